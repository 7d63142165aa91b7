"""An optimizer of the user's own in place of AdamW: an instance, or a function of the parameters that makes one::

    train(model, dataset, steps=2000, batch_size=128, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))

Its state is in checkpoints and comes back on resuming, as named tensors without pickle. What that state will be is
learnt before the first step, by one step of a copy, so that an optimizer that cannot be saved is refused then.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.files import Fail
from scoresde.train.optimizer import Decay, Optimizer, laid_out, learning_rate, trained_parameters
from scoresde.train.tensors import all_finite, local_part

OwnRule = torch.optim.Optimizer | Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
"""An instance over the model's parameters, or a function that makes one of them."""

_GROUP, _NUMBER = "group", "number."  # group/<index>/<entry>, and number.<kind>/<parameter> for what is no tensor


class OwnOptimizer(Optimizer):
    """The same as :class:`~scoresde.train.optimizer.Optimizer`, with the user's rule.

    Args:
        model: on its device.
        given: the instance, or the function.
        companion: what is trained along with it.

    Raises:
        TypeError: no optimizer, or one whose state is neither tensors nor numbers.
        ValueError: not over exactly the parameters that are trained; one that needs a closure, as LBFGS does.
    """

    def __init__(self, model: nn.Module, given: OwnRule, companion: nn.Module | None = None) -> None:
        named = trained_parameters(model, companion)
        self._names, self.parameters = list(named), list(named.values())
        made = given if isinstance(given, torch.optim.Optimizer) else given(list(self.parameters))
        if not isinstance(made, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, or a function of the parameters that returns one, such as "
                f"lambda p: torch.optim.SGD(p, lr=0.1); {checks.got(given)} returned {checks.got(made)}."
            )
        self._check_covers(made)
        self.rule = made
        self._base = [_number(group.get("lr", 0.0)) for group in made.param_groups]
        self._scheduled = False
        self._given = [{key: _value(one) for key, one in _settings(group)} for group in made.param_groups]
        self._layout, self._moving, self._of_groups = self._tried(made)

    @property
    def name(self) -> str | None:
        return type(self.rule).__qualname__

    @property
    def recorded(self) -> dict[str, Any]:
        return {"optimizer": self.name, "optimizer_rates": self._base}

    def rates(self, step: int, *, lr: float, steps: int, warmup: int, decay: Decay) -> list[float]:
        """Those of its groups: their own, times what warm-up and decay say; without these, what they are now."""
        if not warmup and decay == "constant":
            return [_number(group.get("lr", 0.0)) for group in self.rule.param_groups]
        self._scheduled = True
        return [
            learning_rate(step, lr=base, steps=steps, warmup=warmup, decay=decay) if base > 0 else base
            for base in self._base
        ]

    def rest(self) -> None:
        if self._scheduled:  # the end of a schedule is not where the next run with this instance begins
            self.set_rates(self._base)

    def state(self) -> dict[str, Tensor]:
        """Tensors as "<kind>/<parameter>", numbers as "number.<kind>/<parameter>", and what moves in its groups."""
        found: dict[str, Tensor] = {}
        for name, parameter in zip(self._names, self.parameters, strict=True):
            for kind, value in self.rule.state.get(parameter, {}).items():
                found.update(_entry(f"{kind}/{name}", value))
        for i, group in enumerate(self.rule.param_groups):
            for key, value in _settings(group):
                given = self._given[i].get(key)
                if isinstance(given, float | Tensor) and isinstance(value, int):
                    value = float(value)
                set_by_callback = key in self._given[i] and not _same(given, value) and _is_number(value)
                if (i, key) in self._moving or set_by_callback:
                    found.update(_entry(f"{_GROUP}/{i}/{key}", value))
        return found

    def check_saved(
        self, parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor], steps: int, fail: Fail
    ) -> None:
        """Raise unless ``saved`` is what a step of this optimizer leaves, in names, shapes and dtypes."""
        known = {key: value for one in (*self._layout.values(), self._of_groups) for key, value in one.items()}
        for key, value in saved.items():
            if key not in known:
                raise fail(
                    f"{key:.200} is nothing that {self.name} keeps of the parameters that are trained now. Give the "
                    "same optimizer, and freeze the same parameters, as before."
                )
            like = known[key]
            if value.shape != like.shape or value.dtype != like.dtype:
                raise fail(
                    f"{key:.200} must be {tuple(like.shape)}, {like.dtype}, got {tuple(value.shape)}, {value.dtype}."
                )
            if not value.is_meta and not all_finite(value):
                raise fail(f"{key:.200} must be finite.")
        kept = any(self._layout.values()) or self._moving
        if steps and kept and not saved:
            raise fail(f"there is no state, but there have been {steps} steps of {self.name}.")

    def load_state(self, saved: Mapping[str, Tensor], steps: int, fail: Fail = ValueError) -> None:
        self.check_saved({}, saved, steps, fail)
        owner = dict(zip(self._names, self.parameters, strict=True))
        for parameter in self.parameters:
            self.rule.state.pop(parameter, None)
        for key, value in saved.items():
            kind, _, name = key.removeprefix(_NUMBER).partition("/")
            single = key.startswith(_NUMBER)
            if kind == _GROUP:
                i, _, entry = name.partition("/")
                group = self.rule.param_groups[int(i)]
                plain = tuple(value.tolist()) if value.ndim else value.item()
                group[entry] = plain if single else value.to(group[entry].device)
                continue
            like = self._layout[name][key]
            mine = value if single else laid_out(value.to(like.device, copy=True), owner[name])
            self.rule.state[owner[name]][kind] = value.item() if single else mine

    def check_divisible(self) -> None:
        """Raise unless what a step leaves of each parameter is shaped like it, or one number: then it can be divided
        among processes as the parameter is.

        Raises:
            ValueError: something else.
        """
        for name, parameter in zip(self._names, self.parameters, strict=True):
            for key, value in self._layout[name].items():
                if value.shape.numel() > 1 and value.shape != parameter.shape:
                    raise ValueError(
                        f"{self.name} keeps {key} of shape {tuple(value.shape)} for a parameter of shape "
                        f"{tuple(parameter.shape)}, which cannot be divided as that is: take a rule whose state is "
                        "shaped like the parameters, or sharding='no'."
                    )

    def _check_covers(self, made: torch.optim.Optimizer) -> None:
        held = [p for group in made.param_groups for p in group["params"]]
        mine, theirs = {id(p) for p in self.parameters}, {id(p) for p in held}
        foreign = len(theirs - mine)
        left = [name for name, p in zip(self._names, self.parameters, strict=True) if id(p) not in theirs]
        if foreign or left:
            words = [f"it holds {foreign} that are none of the model's, or are frozen"] if foreign else []
            words += [f"it leaves out {', '.join(left[:5])}"] if left else []
            raise ValueError(
                f"optimizer must be over the parameters of the model that require a gradient: {'; '.join(words)}. Make "
                "it of model.parameters(), freeze the others (requires_grad_(False)), or give a function of the "
                "parameters."
            )
        closure = inspect.signature(made.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ValueError(
                f"{type(made).__qualname__} computes the loss several times a step, by a closure, which this loop does "
                "not give it: take one that steps on a gradient."
            )

    def _tried(self, made: torch.optim.Optimizer) -> tuple[dict[str, _Layouts], list[tuple[int, str]], _Layouts]:
        """What a step leaves of each parameter, which entries of the groups it moves, and what these are: on a copy."""
        memo: dict[int, Any] = {}
        try:
            with torch.no_grad():
                twin = copy.deepcopy(made, memo)
        except Exception as error:  # of whatever an optimizer holds
            raise TypeError(f"optimizer, {checks.got(made)}, cannot be copied for a trial step: {error}") from error
        for group in twin.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, 1e-3)
        try:
            twin.step()
        except Exception as error:  # of whatever class
            raise ValueError(f"a step of {type(made).__qualname__} failed in a trial: {error}{_mixed(twin)}") from error
        layout: dict[str, _Layouts] = {}
        for name, parameter in zip(self._names, self.parameters, strict=True):
            state = twin.state.get(memo[id(parameter)], {})
            layout[name] = _layouts({f"{kind}/{name}": value for kind, value in state.items()})
        moving = [
            (i, key)
            for i, (group, old) in enumerate(zip(twin.param_groups, self._given, strict=True))
            for key, value in _settings(group)
            if not _same(old.get(key), value)
        ]
        settings = {
            f"{_GROUP}/{i}/{key}": value
            for i, group in enumerate(twin.param_groups)
            for key, value in _settings(group)
            if (i, key) in moving or _is_number(value)
        }
        rates = {key: float(value) for key, value in settings.items() if isinstance(value, Tensor) and not value.ndim}
        return layout, moving, {**_layouts(settings), **_layouts(rates)}  # a callback may set a number in their place


def _mixed(rule: torch.optim.Optimizer) -> str:
    """What to do where a group holds divided weights and whole ones, which fused and foreach kernels do not take."""
    if all(len({local_part(p) is p for p in group["params"]}) == 1 for group in rule.param_groups):
        return ""
    return (
        ". Some weights are divided among processes (sharding='full') and others, of a learned weighting or schedule, "
        "are not: let them be two groups, as by isinstance(p, DTensor), or take foreach=False and fused=False."
    )


class _Layout(NamedTuple):
    """Of a tensor, without its memory."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


_Layouts = dict[str, _Layout]


def _layouts(values: Mapping[str, Any]) -> _Layouts:
    entries = [pair for key, value in values.items() for pair in _entry(key, value).items()]
    return {key: _Layout(value.shape, value.dtype, value.device) for key, value in entries}


def _entry(key: str, value: Any) -> dict[str, Tensor]:
    """How a checkpoint holds it; nothing for None."""
    if value is None:
        return {}
    if isinstance(value, Tensor):
        return {key: value}
    if isinstance(value, tuple) and value and all(isinstance(one, float) for one in value):
        return {f"{_NUMBER}{key}": torch.tensor(value, dtype=torch.float64)}
    if isinstance(value, (bool, int, float)):
        kind = torch.bool if isinstance(value, bool) else torch.int64 if isinstance(value, int) else torch.float64
        return {f"{_NUMBER}{key}": torch.tensor(value, dtype=kind)}
    raise TypeError(
        f"the state of the optimizer holds {key}, {checks.got(value)}; a checkpoint holds tensors and numbers alone."
    )


def _settings(group: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in group.items() if key != "params"]


def _is_number(value: Any) -> bool:
    """Whether a checkpoint can hold it."""
    try:
        return bool(_entry("", value))
    except TypeError:
        return False


def _value(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.copy(value)


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return old.shape == new.shape and bool((old == new).all())
    return bool(old is new or old == new)


def _number(rate: Any) -> float:
    return rate.item() if isinstance(rate, Tensor) else float(rate)
