"""A score seen under another schedule: the same laws of x_t/α at the same σ/α.

    Rescheduled(score, RectifiedFlow())(x, t)

The laws of x_t/α depend on σ/α alone, so with t' the time at which both ratios agree, the predictions x̂_0 and ε̂ of the
new schedule at (x, t) are those of the old one at (x', t'), x' being x by the ratio of their sqrt(α² + σ²), which no
α = 0 makes infinite. A network under another schedule is :meth:`ScoreModel.under <scoresde.ScoreModel.under>`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.models.combination import Combination, Expectation
from scoresde.models.score import DerivedScore, Score
from scoresde.sde import SDE, spread


def size(sde: SDE, t: Tensor) -> Tensor:
    """sqrt(α² + σ²), by which states under two schedules with the same σ/α differ; float64, shaped like t."""
    return torch.hypot(sde.alpha(t), sde.sigma(t))


def same_level(sde: SDE, t: Tensor, own: SDE) -> Tensor:
    """The time at which ``own`` has the σ/α that ``sde`` has at t."""
    return own.t_of_log_snr(sde.log_snr(t))


def in_schedule(sde: SDE, x: Tensor, t: Tensor, own: SDE, wanted: Combination) -> tuple[Tensor, Tensor, Expectation]:
    """(x', t', what is wanted there) of the schedule ``own``, for x at t under ``sde``."""
    time = same_level(sde, t, own)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    factor = size(own, time) / torch.hypot(alpha, sigma)
    return spread(factor, x) * x, time, Expectation(*wanted.of_predictions(alpha, sigma))


@dataclass(frozen=True, eq=False)
class Rescheduled(DerivedScore):
    """``score`` under another ``schedule``, exactly.

    Raises:
        ValueError: asked for a σ/α that the schedule of ``score`` does not have.
    """

    score: Score
    schedule: SDE

    def __post_init__(self) -> None:
        checks.fields(self)

    @property
    def sde(self) -> SDE:  # type: ignore[override]
        return self.schedule

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        return self.score.evaluate(*in_schedule(self.schedule, x, t, self.score.sde, wanted))
