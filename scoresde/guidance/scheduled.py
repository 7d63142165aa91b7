"""Guidance between two branches whose strength depends on time, or that is no sum of scores."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.guidance.branches import Branches
from scoresde.guidance.nonlinear import NonlinearGuidance, mixed
from scoresde.sde import SDE, spread
from scoresde.sde.base import root

Schedule = Callable[[Tensor], Tensor | float]
# Relative room for a σ/α that should be an end of the interval: grids find their times to about 1e-10.
_SLACK = 1e-9


@dataclass(frozen=True, eq=False)
class TwoBranches(NonlinearGuidance):
    """What :class:`ScheduledGuidance` and projected guidance share: the scale at t, and who needs which branch."""

    branches: Branches
    scale: float | Schedule
    interval: tuple[float, float] | None

    @property
    @abstractmethod
    def single(self) -> frozenset[int]:
        """The scales, of 0 and 1, at which the guided score is the branch of that number, and needs no other."""

    @abstractmethod
    def guide(self, x: Tensor, t: Tensor, weak: Tensor, strong: Tensor, scale: Tensor) -> Tensor:
        """The guided score from those of branch 0 and branch 1, (n, *event); scale () or (n,), float64."""

    def weight(self, t: Tensor) -> Tensor:
        """The scale at t, float64, () or (B,): 1 outside the interval."""
        time = torch.as_tensor(t)
        value = checks.real(self.scale(time) if callable(self.scale) else self.scale, name="scale(t)")
        if value.ndim > 1 or (value.ndim == 1 and value.shape != time.shape):
            raise ValueError(
                f"scale(t) must be one number (), or one for each entry of t, {tuple(time.shape)}; got "
                f"{tuple(value.shape)}."
            )
        if checks.readable(value) and not bool(value.isfinite().all()):
            raise ValueError(f"scale(t) must be finite; got {value.tolist()} at t = {time.tolist()}.")
        if self.interval is None:
            return value
        level = torch.exp(-0.5 * self.branches.model.sde.log_snr(time.to(torch.float64)))
        low, high = self.interval
        inside = (level > low * (1 + _SLACK)) & (level <= high * (1 + _SLACK))
        return torch.where(inside, value.to(inside.device), torch.ones_like(level))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        scale = self.weight(t)
        if scale.ndim == 0:
            return self._same(x, t, scale)
        checks.same_batch(scale, x)
        values = scale.detach() if torch.compiler.is_compiling() else scale.detach().cpu()
        if scale.requires_grad or not checks.readable(values):
            return self._all(x, t, scale)
        alone = {i: values == i if i in self.single else torch.zeros_like(values, dtype=torch.bool) for i in (0, 1)}
        if not bool((alone[0] | alone[1]).any()):
            return self._all(x, t, scale)
        return self._each(x, t, scale, alone)

    def _same(self, x: Tensor, t: Tensor, scale: Tensor) -> Tensor:
        """One scale for all samples."""
        if not scale.requires_grad and checks.readable(scale) and scale.item() in self.single:
            return self.branches(x, t, [int(scale.item())])[0]
        return self._all(x, t, scale)

    def _all(self, x: Tensor, t: Tensor, scale: Tensor) -> Tensor:
        """Both branches for all samples."""
        weak, strong = self.branches(x, t, [0, 1])
        return self.guide(x, t, weak, strong, scale)

    def _each(self, x: Tensor, t: Tensor, scale: Tensor, alone: Mapping[int, Tensor]) -> Tensor:
        """Samples with scales of their own, each with the branches that it needs, in one call.

        ``alone[i]`` (B,) says which samples are branch i itself.
        """
        needs = {i: (~alone[1 - i]).nonzero().flatten().to(x.device) for i in (0, 1)}
        needs = {i: rows for i, rows in needs.items() if len(rows)}
        found = dict(zip(needs, self.branches.some(x, t, needs), strict=True))
        out = x.new_zeros(x.shape)
        for i, rows in needs.items():
            out = out.index_copy(0, rows, found[i])
        two = (~(alone[0] | alone[1])).nonzero().flatten().to(x.device)
        if not len(two):
            return out
        weak, strong = (found[i][torch.searchsorted(needs[i], two)] for i in (0, 1))
        time = torch.as_tensor(t)
        inside = time[two.to(time.device)] if time.ndim else time
        return out.index_copy(0, two, self.guide(x[two], inside, weak, strong, scale[two.to(scale.device)]))

    def _why_varying(self) -> list[str]:
        found = ["its scale is a function of time"] if callable(self.scale) else []
        return found + (["it guides in an interval of σ/α only"] if self.interval is not None else [])


@dataclass(frozen=True, eq=False)
class ScheduledGuidance(TwoBranches):
    """A Score made by :func:`classifier_free` with a schedule, an interval or rescaling."""

    rescale: float

    @property
    def single(self) -> frozenset[int]:
        """Rescaling asks for the deviation of branch 1 at scale 0 too."""
        return frozenset((1,) if self.rescale > 0 else (0, 1))

    def guide(self, x: Tensor, t: Tensor, weak: Tensor, strong: Tensor, scale: Tensor) -> Tensor:
        """Branch 0 + scale (branch 1 - branch 0), rescaled."""
        guided = mixed(weak, strong, scale)
        if self.rescale == 0:
            return guided
        if x[0:1].numel() < 2 and len(x):
            raise ValueError(
                f"rescale takes the standard deviation over an event, and one of shape {tuple(x.shape[1:])} holds too "
                "few numbers; leave rescale at 0."
            )
        noise, signal = tweedie(self.branches.model.sde, x, t)
        now, wanted = signal * x + noise * guided, signal * x + noise * strong
        deviation = _std(now)
        positive = deviation > 0
        ratio = torch.where(positive, _std(wanted) / torch.where(positive, deviation, 1.0), 1.0)
        # x̂_0 changes by φ (ratio - 1) x̂_0, and the score by that over σ²/α: no difference of large numbers.
        return guided + self.rescale * (ratio - 1) * now / noise

    @property
    def reason(self) -> str:
        """What changes with time, or is no sum."""
        return " and ".join(self._why_varying() + (["it rescales the prediction"] if self.rescale > 0 else []))


def tweedie(sde: SDE, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """σ²/α and 1/α, ready to multiply x: x̂_0 = x/α + (σ²/α) s."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return spread(sigma**2 / alpha, x), spread(1 / alpha, x)


def _std(x: Tensor) -> Tensor:
    """Standard deviation over the event, (n, 1, ...)."""
    flat = x.flatten(1)
    return root((flat - flat.mean(1, keepdim=True)).square().mean(1)).reshape(-1, *[1] * (x.ndim - 1))


def checked_interval(interval: tuple[float, float]) -> tuple[float, float]:
    """Raises ValueError unless it is (low, high) with 0 <= low < high."""
    hint = "0 <= low < high in units of σ/α, e.g. interval=(0.2, 3.0); high may be math.inf"
    try:
        low, high = (checks.number(end, name="interval") for end in interval)
    except (TypeError, ValueError) as error:
        raise ValueError(f"interval must be (low, high) with {hint}; got {interval!r}.") from error
    if not 0 <= low < high or math.isinf(low):
        raise ValueError(f"interval must be (low, high) with {hint}; got ({low:g}, {high:g}).")
    return low, high


def fraction(value: float, *, name: str) -> None:
    """Raises ValueError unless a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}.")
