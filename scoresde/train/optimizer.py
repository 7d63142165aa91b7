"""AdamW with clipping, its learning rate as a closed formula of the step, and its state as named tensors.

:class:`Optimizer` is what the loop steps; :func:`learning_rate` is the rate of a step, with linear warm-up and, if
wanted, cosine decay. After ``loss.backward()``::

    optimizer = Optimizer(model, betas=(0.9, 0.999), weight_decay=0.0)
    lr = learning_rate(step, lr=1e-3, steps=2000, warmup=100, decay="cosine")
    optimizer.step(lr, optimizer.gradient_norm(), clip=1.0)

The rate depends on the step alone, and ``optimizer.state()`` is a dict of tensors that a checkpoint can hold, so that a
resumed run goes on exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.files import Fail
from scoresde.train.tensors import local_part

Decay = Literal["constant", "cosine"]


def learning_rate(step: int, *, lr: float, steps: int, warmup: int = 0, decay: Decay = "constant") -> float:
    """The learning rate of one optimizer step.

    With k = ``step`` counted from 0 and w = ``warmup``::

        k < w       lr (k + 1) / w
        constant    lr
        cosine      lr (1 + cos(π (k - w) / (steps - w))) / 2       (Loshchilov & Hutter 2017, arXiv:1608.03983)
    """
    step, steps = checks.count(step, name="step", least=0), checks.count(steps, name="steps")
    warmup = checks.whole(warmup, name="warmup", least=0, most=steps)
    lr, decay = checks.positive(lr, name="lr"), checks.one_of(decay, get_args(Decay), name="decay")
    if step < warmup:
        return lr * (step + 1) / warmup
    if decay == "constant":
        return lr
    return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def trained_parameters(model: nn.Module, companion: nn.Module | None) -> dict[str, nn.Parameter]:
    """Those that are trained, by the names that checkpoints have for them: the model's, and what is trained along."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    along = {} if companion is None else {f"{_ALONG}.{name}": p for name, p in companion.named_parameters()}
    return {**named, **along}


_ALONG = "weighting"


class Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), fused, on the trainable parameters of a model.

    Args:
        model: on its device.
        betas, weight_decay: AdamW's.
        companion: what is trained along with it.

    Attributes:
        parameters: those that are trained.
        rule: torch's optimizer, which steps.
    """

    _names: list[str]
    parameters: list[nn.Parameter]
    rule: torch.optim.Optimizer

    def __init__(
        self,
        model: nn.Module,
        betas: tuple[float, float],
        weight_decay: float,
        companion: nn.Module | None = None,
    ) -> None:
        named = trained_parameters(model, companion)
        self._names, self.parameters = list(named), list(named.values())
        # Fused kernels take divided weights or whole ones, not both at once: those beside the network are whole.
        divided = [p for p in self.parameters if local_part(p) is not p]
        whole = [p for p in self.parameters if local_part(p) is p]
        groups = [{"params": some} for some in (divided, whole) if some]
        self.rule = torch.optim.AdamW(groups, betas=betas, weight_decay=weight_decay, fused=True)

    @property
    def name(self) -> str | None:
        """What a checkpoint records of it: None for AdamW."""
        return None

    @property
    def recorded(self) -> dict[str, Any]:
        """What a checkpoint records of it, beside the options."""
        return {"optimizer": self.name}

    def rest(self) -> None:
        """When an iteration is over."""

    def check_divisible(self) -> None:
        """Raise unless its state can be divided among processes as the parameters are."""

    def rates(self, step: int, *, lr: float, steps: int, warmup: int, decay: Decay) -> list[float]:
        """The learning rate of each group of parameters at a step (from 0)."""
        rate = learning_rate(step, lr=lr, steps=steps, warmup=warmup, decay=decay)
        return [rate] * len(self.rule.param_groups)

    def gradient_norm(self) -> Tensor:
        """The Euclidean norm of all gradients together, ()."""
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self._gradients())))

    def step(self, lr: float | Sequence[float], norm: Tensor, clip: float | None) -> None:
        """Scale the gradients, whose norm is ``norm``, down to norm ``clip``; step with rate ``lr``, or that of each
        group; clear them.
        """
        # On the CPU the norm can be looked at, and the multiplication saved.
        if clip is not None and (norm.device.type != "cpu" or norm.item() > clip):
            torch._foreach_mul_(self._gradients(), (clip / norm).clamp(max=1.0))
        self.set_rates([lr] * len(self.rule.param_groups) if isinstance(lr, float) else lr)
        self.rule.step()
        self.rule.zero_grad(set_to_none=True)

    def settings(self) -> list[dict[str, Any]]:
        """The numbers in its groups, and pairs of them: what callbacks may set."""
        return [
            {
                key: value.item() if isinstance(value, Tensor) else value
                for key, value in group.items()
                if key != "params" and (not value.ndim if isinstance(value, Tensor) else _is_setting(value))
            }
            for group in self.rule.param_groups
        ]

    def adopt(self, settings: Sequence[Mapping[str, Any]]) -> None:
        """Have these numbers in its groups."""
        for group, given in zip(self.rule.param_groups, settings, strict=True):
            for key, value in given.items():
                if isinstance(group.get(key), Tensor):
                    group[key].fill_(value)
                else:
                    group[key] = value

    def set_rates(self, rates: Sequence[float]) -> None:
        """The learning rate of each group."""
        for group, rate in zip(self.rule.param_groups, rates, strict=True):
            held = group.get("lr")
            if isinstance(held, Tensor):  # one that a captured or compiled step reads
                held.fill_(rate)
            elif held is not None:
                group["lr"] = rate

    def state(self) -> dict[str, Tensor]:
        """Its tensors as "<kind>/<parameter>"; those of a parameter that has had no gradient are missing."""
        return {
            f"{kind}/{name}": value
            for name, parameter in zip(self._names, self.parameters, strict=True)
            for kind, value in self.rule.state[parameter].items()
        }

    def check_saved(
        self, parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor], steps: int, fail: Fail
    ) -> None:
        """Raise unless ``saved``, perhaps without values, is the state of this optimizer on these parameters."""
        check_state(parameters, saved, steps, fail)

    def load_state(self, saved: Mapping[str, Tensor], steps: int, fail: Fail = ValueError) -> None:
        """The inverse of ``state`` after so many steps; the tensors become its own.

        Raises:
            Exception: what ``fail`` makes (a ValueError): not the state of these parameters, see ``check_state``.
        """
        self.check_saved(dict(zip(self._names, self.parameters, strict=True)), saved, steps, fail)
        own = dict(zip(self._names, self.parameters, strict=True))
        held = [id(p) for group in self.rule.param_groups for p in group["params"]]
        position = {name: held.index(id(p)) for name, p in own.items()}
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in saved.items():
            kind, _, name = key.partition("/")
            state.setdefault(position[name], {})[kind] = laid_out(value, own[name])
        self.rule.load_state_dict({"state": state, "param_groups": self.rule.state_dict()["param_groups"]})

    def _gradients(self) -> list[Tensor]:
        """Those there are: of weights that several processes divide, this process's parts."""
        return [local_part(p.grad) for p in self.parameters if p.grad is not None]


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """``value`` in the memory format of a parameter of its shape: fused kernels take that for granted, unlooked at."""
    if value.shape != like.shape or value.stride() == like.stride():
        return value
    return torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)


def _is_setting(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, tuple) and all(map(_is_setting, value)))


def check_state(parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor], steps: int, fail: Fail) -> None:
    """Raise unless ``saved`` is the state of AdamW on these parameters after so many steps.

    Its kernels trust sizes and dtypes without a look. Those on the device "meta" have no values to be looked at.

    Args:
        parameters: by name; those that never had a gradient have no state.
        saved: as :meth:`Optimizer.state` returns it.
        steps: how many the run has done; a parameter may have had fewer.
        fail: makes the error of a text.
    """
    if steps and not saved:
        raise fail(f"there is no state, but there have been {steps} steps.")
    names = list({key.partition("/")[2]: None for key in saved})
    for name in names:
        if name not in parameters:
            raise fail(
                f"the saved optimizer has state for {name:.200}, which is not trained now. Freeze the same parameters "
                "as before."
            )
        parameter, count = parameters[name], torch.empty((), dtype=torch.float32, device="meta")
        for kind, like in {"step": count, "exp_avg": parameter, "exp_avg_sq": parameter}.items():
            value = saved.get(f"{kind}/{name}")
            if value is None or value.shape != like.shape or value.dtype != like.dtype:
                found = "nothing" if value is None else f"{tuple(value.shape)}, {value.dtype}"
                raise fail(f"{kind}/{name:.200} must be {tuple(like.shape)}, {like.dtype}, got {found}.")
            if value.is_meta:
                continue
            value = local_part(value)
            if not bool(value.isfinite().all()) or (kind != "exp_avg" and bool((value < 0).any())):
                range = "finite" if kind == "exp_avg" else "finite and at least 0"
                raise fail(f"{kind}/{name:.200} must be {range}.")
            if kind == "step" and (value.item() % 1 or not 1 <= value.item() <= steps):
                raise fail(f"{kind}/{name:.200} must be a whole number from 1 to {steps} steps, got {value.item()}.")
    if len(saved) != 3 * len(names):
        known = {f"{kind}/{name}" for kind in ("step", "exp_avg", "exp_avg_sq") for name in parameters}
        raise fail(f"{next(key for key in saved if key not in known):.200} is nothing that AdamW has.")
