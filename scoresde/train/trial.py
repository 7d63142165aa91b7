"""What a run needs from its first step to its end, tried before the first step.

:class:`~scoresde.train.Run` calls these as it is made. A network that cannot be copied, averaged or written, a
weighting that is negative somewhere: each would be found after hours, and is found here::

    check_weights(objective, times)                     # times, their weights and the weighting: finite, not negative
    check_step(objective, dataset, times)               # the loss of the first sample, and that it reaches the weights
    check_average(objective, dataset, times)            # the copy that ema_model() makes, and whose weights it uses
    check_kept(model, dataset, recorded)                # what goes into a checkpoint

Nothing is learnt, and nothing of the model changes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from scoresde import checks
from scoresde.data import Augmentation
from scoresde.data.augmentation import NAME as AUGMENT
from scoresde.losses import Coupling
from scoresde.models.conditions import drop_conditions
from scoresde.sde import SDE, signal_left
from scoresde.times import TimeDensity, UniformTime
from scoresde.train.atomic import as_it_was
from scoresde.train.batches import MapDataset
from scoresde.train.compatibility import entries
from scoresde.train.contents import describe_data
from scoresde.train.describe import describe_model
from scoresde.train.draws import seeded_where
from scoresde.train.ema import EMA, ema_model
from scoresde.train.objective import Objective
from scoresde.warning import warn_user

_QUANTILES = 64  # of the density of times, at which weights are looked at


def drawn_times(times: TimeDensity, sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
    """Times of a density and their weights for uniforms u (B,), after a look at them.

    Raises:
        ValueError: they are not what a density must answer: shaped like u, finite, in the SDE's range, not negative.
    """
    try:
        drawn = times.sample(sde, u)
    except Exception as error:  # of whatever class of a user's own
        kind = type(error) if isinstance(error, (TypeError, ValueError)) else ValueError
        raise kind(f"times.sample failed for {len(u)} uniforms: {error or type(error).__name__}") from error
    if not isinstance(drawn, tuple) or len(drawn) != 2:
        raise ValueError(f"times.sample must return t and weight, scoresde.times.Times; got {checks.got(drawn)}.")
    for name, value in zip(("t", "weight"), drawn, strict=True):
        if not isinstance(value, Tensor) or value.shape != u.shape or not value.is_floating_point():
            raise ValueError(
                f"times.sample must return floating t and weight shaped like u, {tuple(u.shape)}; {name} is "
                f"{checks.got(value)}."
            )
        bad = ~(value.isfinite() & (value >= 0))
        if bad.any():
            raise ValueError(
                f"times.sample must return finite t and weights of at least 0; at u = {u[bad][0].item():g} its {name} "
                f"is {value[bad][0].item():g}."
            )
    t, weight = drawn
    late = t > sde.t_max * (1 + 1e-9)
    if late.any():
        raise ValueError(
            f"times.sample must return t from 0 to {sde.t_max:g}, the end of {type(sde).__name__}; at u = "
            f"{u[late][0].item():g} it is {t[late][0].item():g}."
        )
    return t, weight


def check_weights(objective: Objective[Any], times: TimeDensity) -> None:
    """Raise unless times, their weights and the weighting of the loss are sound over the whole density of times.

    Raises:
        ValueError: one answers NaN, infinity, a negative number or another shape, or all weights are 0.
    """
    sde = objective.model.sde
    drawn_times(times, sde, torch.tensor([0.25, 0.75], dtype=torch.float64, device="cpu"))
    u = (torch.arange(_QUANTILES, dtype=torch.float64, device="cpu") + 0.5) / _QUANTILES
    t, weight = drawn_times(times, sde, u)
    weighting = objective.weighting
    if weighting is None:
        return
    try:
        w = torch.as_tensor(weighting(sde, t))
    except Exception as error:  # of whatever function of a user's own
        kind = type(error) if isinstance(error, (TypeError, ValueError)) else ValueError
        raise kind(f"weighting failed for {_QUANTILES} times: {error or type(error).__name__}") from error
    if w.shape not in ((), t.shape) or w.is_complex() or w.dtype == torch.bool:
        raise ValueError(
            f"weighting must answer one number for each time, {tuple(t.shape)} here, whatever the event; got "
            f"{checks.got(w)}."
        )
    w = w.expand(t.shape)
    without = (w == torch.inf) & ~signal_left(sde.alpha(t), sde.sigma(t))  # where α = 0, the loss takes the limit
    bad = ~((w.isfinite() | without) & (w >= 0))
    if bad.any():
        hint = " A negative weight would teach the network to be wrong there." if bool(w[bad][0] < 0) else ""
        raise ValueError(
            f"weighting must be finite and at least 0; at t = {t[bad][0].item():g} it is {w[bad][0].item():g}.{hint}"
        )
    if not bool((w * weight > 0).any()):
        raise ValueError("weighting and the weights of times are 0 at all times: nothing would be learnt.")


def check_step(objective: Objective[Any], dataset: MapDataset, times: TimeDensity) -> None:
    """Raise unless the loss of the data set's first sample can be computed: before a folder is made, or a step done.

    The sample is taken twice, for a batch of one hides axes that do not line up. The model is in evaluation mode, not
    compiled, and gets its mode and its buffers back. Gradients are on, as in training: what the network keeps of a
    forward pass is then what it will keep.

    Raises:
        TypeError, ValueError: the sample, the network, the weighting or the density of times do not fit together; the
            loss is not finite, or depends on no weight that is trained.
    """
    trial = _batch(objective, dataset, times)
    with plain(objective), seeded_where(objective.draws, trial[0].device, 0):
        loss = _loss(objective, *trial)
    if not bool(loss.isfinite()):
        bad = next((n for n, p in objective.model.named_parameters() if not bool(p.isfinite().all())), None)
        why = "the network answers values that are not finite" if bad is None else f"the weight {bad} is not finite"
        raise ValueError(f"no loss for dataset[0], {_shapes(*trial)}: it is {loss.item():g}; {why}, before training.")
    if not loss.requires_grad:
        raise ValueError(
            "the loss does not depend on any weight that is trained: does the network compute under torch.no_grad(), "
            "detach its answer, use none of its parameters that require a gradient, or is its adapter off or merged?"
        )
    foreign = _leaves(loss) - {id(parameter) for parameter in objective.parameters()}
    if foreign:
        warn_user(
            f"the loss depends on {len(foreign)} tensors that require a gradient and are not parameters of the model, "
            "as those of modules in a plain list are: they are neither trained nor saved. Register them "
            "(nn.ModuleList, nn.ParameterList), or turn their gradients off."
        )


def check_coupling(
    objective: Objective[Any], dataset: MapDataset, coupling: Coupling | None, augment: Augmentation | None = None
) -> None:
    """Raise unless a coupling of data and noise answers noises for two copies of the first sample.

    Raises:
        TypeError, ValueError: it does not.
    """
    if coupling is None:
        return
    x0, _, _, given = _batch(objective, dataset, UniformTime())
    if augment is not None:  # a condition like the others: one row is not given
        given[AUGMENT] = x0.new_tensor([[torch.nan], [0.0]]).expand(-1, augment.size).contiguous()
    eps = torch.tensor([1.0, -1.0], device=x0.device, dtype=x0.dtype).reshape(-1, *[1] * (x0.ndim - 1)).expand_as(x0)
    try:
        found = coupling(x0, eps.contiguous(), given)
    except (TypeError, ValueError, ModuleNotFoundError) as error:
        if augment is not None:
            error.add_note(f"With augment, what was done to each picture is one more condition, {AUGMENT!r}.")
        raise
    except Exception as error:  # of whatever function of a user's own
        raise ValueError(f"coupling failed for dataset[0], taken twice: {error or type(error).__name__}") from error
    if not isinstance(found, Tensor) or found.shape != eps.shape or found.dtype != eps.dtype:
        raise ValueError(
            f"coupling must answer noises shaped like eps, {tuple(eps.shape)} of {eps.dtype}; got {checks.got(found)}."
        )
    if not torch.equal(found.sort(0).values, eps.sort(0).values):
        raise ValueError("coupling must answer the noises of the batch in another order, each once; it changed them.")


def check_average(objective: Objective[Any], dataset: MapDataset, times: TimeDensity) -> None:
    """Raise unless ``ema_model`` makes a copy that computes with its own weights.

    Called after ``check_step``: what the network keeps of a forward pass is there, and has to be copied.

    Raises:
        TypeError: an attribute cannot be copied.
        ValueError: the copy computes with weights of the original, or not at all.
    """
    model: nn.Module = objective.model
    averaged = ema_model(model, EMA(model))
    twin = copy.copy(objective)
    twin._modules = {**objective._modules, "model": averaged}
    trial = _batch(objective, dataset, times)
    with torch.no_grad(), plain(objective), seeded_where(objective.draws, trial[0].device, 0):
        before = _loss(twin, *trial)
        kept = [(parameter, parameter.data) for parameter in model.parameters()]
        try:
            for parameter, data in kept:  # of the original: NaN, without memory for it
                parameter.data = torch.full((), torch.nan, dtype=data.dtype, device=data.device).expand(data.shape)
            after = _loss(twin, *trial)
        finally:
            for parameter, data in kept:
                parameter.data = data
    if bool(before.isfinite()) and not bool(after.isfinite()):
        raise ValueError(
            "a copy of the network computes with weights of the original, so that ema_model() would answer with "
            "weights that are not averaged: a lambda, a function or a hook of it holds on to a module or a parameter. "
            "Make it a method, or hold the module as an attribute."
        )


@torch.no_grad()
def usable_units(
    objective: Objective[Any], dataset: MapDataset, times: TimeDensity, units: Sequence[nn.Module]
) -> list[nn.Module]:
    """Those parts of the network whose weights are used inside their own calls alone: outside, they may be elsewhere.

    Outside of its call, the weights of each unit are NaN in a trial of the loss. Where that shows, no unit is usable.

    Args:
        objective, dataset, times: of the run.
        units: parts of the network, which share no weights.
    """
    if not units:
        return []
    trial = _batch(objective, dataset, times)
    kept = [(unit, [(p, p.data) for p in unit.parameters()]) for unit in units]

    def hide(held: list[tuple[nn.Parameter, Tensor]]) -> None:
        for parameter, data in held:
            if data.is_floating_point():
                parameter.data = torch.full((), torch.nan, dtype=data.dtype, device=data.device).expand(data.shape)

    def show(held: list[tuple[nn.Parameter, Tensor]]) -> None:
        for parameter, data in held:
            parameter.data = data

    hooks: list[Any] = []
    with plain(objective), seeded_where(objective.draws, trial[0].device, 0):
        try:
            for unit, held in kept:
                hide(held)
                hooks.append(unit.register_forward_pre_hook(lambda *_, held=held: show(held), prepend=True))
                hooks.append(unit.register_forward_hook(lambda *_, held=held: hide(held)))
            sound = bool(_loss(objective, *trial).isfinite())
        finally:
            for hook in hooks:
                hook.remove()
            for _, held in kept:
                show(held)
    if not sound:
        warn_user(
            "weights of this network's blocks are used outside of the blocks' own calls, so that the network is "
            "gathered whole in each pass instead of block by block: more memory, the same numbers."
        )
    return list(units) if sound else []


def check_kept(model: nn.Module, dataset: object, recorded: Mapping[str, Any]) -> None:
    """Raise unless a checkpoint can be written of this model, data set and options.

    Of each tensor one number is written into memory.

    Raises:
        TypeError, ValueError: what cannot be written, by name.
    """
    from safetensors.torch import save as write

    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"the state of the network holds {name}, {checks.got(value)}, and a checkpoint holds tensors alone: "
                "keep it as a buffer, or out of the state (get_extra_state)."
            )
        if value.layout != torch.strided or value.is_quantized:
            raise TypeError(
                f"{name} is {value.layout} of {value.dtype}, and a checkpoint holds plain tensors: keep its parts as "
                "buffers, or build it with the network, register_buffer(..., persistent=False)."
            )
        if any(size > 1 and stride == 0 for size, stride in zip(value.shape, value.stride(), strict=True)):
            raise TypeError(f"{name} repeats a number without holding it, and cannot be loaded: give it .contiguous().")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(
                f"{name} holds values that are not finite, and is not saved so. A buffer that is rebuilt with the "
                "network need not be saved: register_buffer(..., persistent=False); a mask can be boolean."
            )
        try:
            write({name: value.detach().reshape(-1)[:1].cpu().clone()})
        except Exception as error:
            raise TypeError(f"{name}, {checks.got(value)}, cannot be written into a checkpoint: {error}") from error
    for what, content in (
        ("the model", describe_model(model)),
        ("the data set", describe_data(dataset)),
        ("the options", recorded),
    ):
        try:
            json.dumps(content, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(f"what {what} says of itself cannot be written as JSON: {error}; got {content}.") from error


@contextmanager
def plain(objective: nn.Module) -> Iterator[None]:
    """Inside, a module and those in it are in evaluation mode and not compiled; all is restored."""
    compiled = [(module, module._compiled_call_impl) for module in objective.modules()]
    with as_it_was(objective):
        for module, _ in compiled:
            module._compiled_call_impl = None
        try:
            yield
        finally:
            for module, call in compiled:
                if call is not None:
                    module._compiled_call_impl = call
                else:
                    module.__dict__.pop("_compiled_call_impl", None)


def _leaves(loss: Tensor) -> set[int]:
    """The ids of the tensors in which a gradient of ``loss`` ends."""
    found: set[int] = set()
    seen: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting.extend(other for other, _ in node.next_functions)
    return found


_Trial = tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]
"""x_0, times, their weights and the other entries of a batch."""


def _batch(objective: Objective[Any], dataset: MapDataset, times: TimeDensity) -> _Trial:
    model, sample = objective.model, dataset[0]
    parameter = next(p for p in model.parameters() if p.requires_grad)
    for name in ("x", *objective.names):
        if not isinstance(sample[name], (Tensor, np.ndarray, np.number, int, float)):
            raise TypeError(f"dataset[0][{name!r}] must be a tensor or a number, got {checks.got(sample[name])}.")
    batch = default_collate([{name: sample[name] for name in ("x", *objective.names)}] * 2)
    t, weight = drawn_times(times, model.sde, torch.tensor([0.25, 0.75], dtype=torch.float64, device="cpu"))
    given = entries(batch, objective.names, parameter)
    second = torch.tensor([False, True], device=parameter.device)
    given = drop_conditions(given, objective.nulls, dict.fromkeys(objective.droppable, second))
    x0 = batch["x"].detach().to(parameter.device, parameter.dtype)
    return x0, checks.time_beside(t, x0), checks.sent(weight, x0.device), given


def _loss(objective: nn.Module, x0: Tensor, t: Tensor, weight: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    try:
        loss: Tensor = objective(x0, t, torch.zeros_like(x0), weight, given)
    except (TypeError, ValueError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a network of a user's own raises
        raise ValueError(
            f"no loss for dataset[0], {_shapes(x0, t, weight, given)}: {error or type(error).__name__}. Does the "
            "network take such a sample?"
        ) from error
    return loss


def _shapes(x0: Tensor, t: Tensor, weight: Tensor, given: Mapping[str, Tensor]) -> str:
    others = ", ".join(f"{name} {tuple(value.shape[1:])}" for name, value in given.items()) or "no conditions"
    return f"x {tuple(x0.shape[1:])} with {others}"
