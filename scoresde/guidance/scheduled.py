"""Guidance between two branches whose strength depends on time, or that is no sum of scores.

What :func:`~scoresde.guidance.classifier_free` makes with a schedule, an interval or rescaling is a
:class:`ScheduledGuidance`; one of your own between the branches of a model derives from :class:`TwoBranches` and writes
``guide``. Samples whose scale is exactly 0 or 1 cost the one branch that they need.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.guidance.parts import NonlinearGuidance, steered
from scoresde.models.combination import X0, Combination, combine
from scoresde.models.model import Branches, ScoreModel
from scoresde.models.score import DerivedScore
from scoresde.sde.base import root

ScaleSchedule = Callable[[Tensor], Tensor | float]
# Relative room for a σ/α that should be an end of the interval: grids find their times to about 1e-10.
_SLACK = 1e-9


@dataclass(frozen=True, eq=False)
class TwoBranches(DerivedScore, NonlinearGuidance):
    """What :class:`ScheduledGuidance` and projected guidance share: the scale at t, and who needs which branch."""

    branches: Branches
    scale: float | ScaleSchedule
    interval: tuple[float, float] | None

    @property
    def score(self) -> ScoreModel:  # type: ignore[override]
        """The model."""
        return self.branches.model

    @property
    def amplification(self) -> float:  # type: ignore[override]
        """That of the largest scale at 65 times, at equal steps in log-SNR between σ/α = 1000 and 1/1000."""
        sde, most = self.branches.model.sde, 2 * math.log(1000.0)
        if self.interval is None and not callable(self.scale):
            return abs(self.scale) + abs(1 - self.scale)
        ends = [sde.log_snr(torch.tensor(t, dtype=torch.float64)).clamp(-most, most) for t in (sde.T, sde.t_min)]
        times = sde.t_of_log_snr(torch.linspace(float(ends[0]), float(ends[1]), 65, dtype=torch.float64))
        scales = torch.stack([self.weight(t.clamp(sde.t_min, sde.T)).detach().cpu() for t in times])
        return float((scales.abs() + (1 - scales).abs()).max())

    @property
    @abstractmethod
    def on_x0(self) -> bool:
        """Whether :meth:`guide` needs x̂_0, or is the same for every combination."""

    @property
    @abstractmethod
    def single(self) -> frozenset[int]:
        """The scales, of 0 and 1, at which the guided score is the branch of that number, and needs no other."""

    @abstractmethod
    def guide(self, weak: Tensor, strong: Tensor, scale: Tensor) -> Tensor:
        """What is guided, from branch 0's and branch 1's, (n, *event): x̂_0, or any; scale () or (n,), float64."""

    def weight(self, t: Tensor) -> Tensor:
        """The scale at t, float64, () or (B,): 1 outside the interval."""
        time = checks.real(t, name="t")
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
        level = torch.exp(-0.5 * self.branches.model.sde.log_snr(time))
        low, high = self.interval
        inside = (level > low * (1 + _SLACK)) & (level <= high * (1 + _SLACK))
        return torch.where(inside, value.to(inside.device), torch.ones_like(level))

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        scale = self.weight(t)
        checks.same_batch(scale, x)
        alone = self._alone(scale)
        if scale.ndim == 0 and alone is not None:
            return self.branches.evaluate(x, t, wanted, [int(scale.item())])[0]
        if not self.on_x0 or (alone is not None and bool((alone[0] | alone[1]).all())):
            return self._guided(x, t, wanted, scale, alone)
        of_x, of_x0 = wanted.of_x0(self.sde.alpha(t), self.sde.sigma(t))
        return combine((of_x, x), (of_x0, self._guided(x, t, X0, scale, alone)))

    def _alone(self, scale: Tensor) -> tuple[Tensor, Tensor] | None:
        """Which samples are branch 0 itself and which branch 1, shaped like the scale; None where there are none.

        A scale that is differentiated, or that cannot be read, takes both branches for all.
        """
        values = scale.detach()
        if scale.ndim and not torch.compiler.is_compiling():
            values = values.cpu()
        if checks.followed(scale) or not checks.readable(values):
            return None
        none = torch.zeros_like(values, dtype=torch.bool)
        zero, one = (values == i if i in self.single else none for i in (0, 1))
        return (zero, one) if bool((zero | one).any()) else None

    def _guided(
        self, x: Tensor, t: Tensor, wanted: Combination, scale: Tensor, alone: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """The guided combination from both branches; samples with scales of their own take those that they need."""
        if alone is None:
            weak, strong = self.branches.evaluate(x, t, wanted, [0, 1])
            return self.guide(weak, strong, scale)
        needs = {i: (~alone[1 - i]).nonzero().flatten().to(x.device) for i in (0, 1)}
        needs = {i: rows for i, rows in needs.items() if len(rows)}
        found = dict(zip(needs, self.branches.some(x, t, wanted, needs), strict=True))
        out = x.new_zeros(x.shape)
        for i, rows in needs.items():
            out = out.index_copy(0, rows, found[i])
        two = (~(alone[0] | alone[1])).nonzero().flatten().to(x.device)
        if not len(two):
            return out
        weak, strong = (found[i][torch.searchsorted(needs[i], two)] for i in (0, 1))
        return out.index_copy(0, two, self.guide(weak, strong, scale[two.to(scale.device)]))

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

    @property
    def on_x0(self) -> bool:
        """Rescaling looks at x̂_0."""
        return self.rescale > 0

    def guide(self, weak: Tensor, strong: Tensor, scale: Tensor) -> Tensor:
        """Branch 0 + scale (branch 1 - branch 0), rescaled."""
        guided = steered(weak, strong, scale)
        if self.rescale == 0:
            return guided
        if guided[0:1].numel() < 2 and len(guided):
            raise ValueError(
                f"rescale takes the standard deviation over an event, and one of shape {tuple(guided.shape[1:])} holds "
                "too few numbers; leave rescale at 0."
            )
        deviation = _std(guided)
        positive = deviation > 0
        ratio = torch.where(positive, _std(strong) / torch.where(positive, deviation, 1.0), 1.0)
        return guided + self.rescale * (ratio - 1) * guided

    @property
    def reason(self) -> str:
        """What changes with time, or is no sum."""
        return " and ".join(self._why_varying() + (["it rescales the prediction"] if self.rescale > 0 else []))


def _std(x: Tensor) -> Tensor:
    """Standard deviation over the event, (n, 1, ...)."""
    flat = x.flatten(1)
    return root((flat - flat.mean(1, keepdim=True)).square().mean(1)).reshape(-1, *[1] * (x.ndim - 1))


def checked_interval(interval: tuple[float, float]) -> tuple[float, float]:
    """Raises ValueError unless it is (low, high) with 0 <= low < high."""
    hint = "0 <= low < high in units of σ/α, e.g. interval=(0.2, 3.0); high may be math.inf"
    try:
        low, high = checks.numbers(interval, name="interval")
    except (TypeError, ValueError) as error:
        raise ValueError(f"interval must be (low, high) with {hint}; got {checks.got(interval)}.") from error
    if not 0 <= low < high or math.isinf(low):
        raise ValueError(f"interval must be (low, high) with {hint}; got ({low}, {high}).")
    return low, high
