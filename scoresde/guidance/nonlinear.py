"""Guidance that is no weighted sum of scores: classifier-free guidance without the part that oversaturates.

    projected(model, {"label": y}, scale=7.0, parallel=0.0, norm=15.0)

Schedules, intervals and negative conditions are those of :func:`~scoresde.guidance.classifier_free`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.guidance.classifier_free import number_or_schedule, pair
from scoresde.guidance.parts import finite_scale
from scoresde.guidance.scheduled import TwoBranches, checked_interval
from scoresde.models.model import ScoreModel
from scoresde.models.score import Score
from scoresde.sde import spread
from scoresde.sde.base import root

__all__ = ["projected"]


def projected(
    model: ScoreModel,
    conditions: Mapping[str, Any],
    scale: float | Callable[[Tensor], Tensor | float] = 1.0,
    *,
    parallel: float = 0.0,
    norm: float | None = None,
    null: Mapping[str, Any] | Any = None,
    negative: Mapping[str, Any] | Any = None,
    interval: tuple[float, float] | None = None,
) -> Score:
    r"""Adaptive projected guidance (Sadat et al. 2024, arXiv:2410.02416)::

        Δ = x̂_0(y) - x̂_0(∅),   Δ ← Δ min(1, norm / |Δ|),   Δ = Δ∥ + Δ⊥  along and across x̂_0(y),
        x̂_0 = x̂_0(y) + (scale - 1) (Δ⊥ + parallel Δ∥)

    with norms and projections over each event. Scale 1 is conditional. Scale 0 is not unconditional, and needs both
    branches, unless parallel = 1 without a norm, which is classifier-free guidance. The paper's momentum,
    Δ ← Δ + β Δ of the step before, is left out: a Score is a function of (x, t), and what it answers must not depend
    on which steps were taken before.

    Args:
        model: a ScoreModel trained with its conditions dropped at random.
        conditions: by name, e.g. {"label": y}, as in :func:`classifier_free`.
        scale: as there; ``null``, ``negative`` and ``interval`` likewise.
        parallel: η, the weight of the part along the prediction, which raises contrast and saturation.
        norm: r > 0, the largest norm of Δ, in units of the data; None for no limit.

    Raises:
        TypeError, ValueError: as for classifier_free; a parallel that is not finite, a norm that is not positive.
    """
    scale = number_or_schedule(scale)
    finite_scale(parallel, name="parallel")
    if norm is not None:
        checks.positive(norm, name="norm")
    if interval is not None:
        interval = checked_interval(interval)
    both = pair(model, conditions, null, negative, what="projected")
    both.warn_unless_trained([0, 1] if null is None else [1], what="projected")
    return Projected(both, scale, interval, *map(checks.unboxed, (parallel, norm)))


@dataclass(frozen=True, eq=False)
class Projected(TwoBranches):
    """A Score made by :func:`projected`."""

    parallel: float
    norm: float | None

    @property
    def single(self) -> frozenset[int]:
        """Scale 0 is branch 0 only where all of the difference is taken away again."""
        whole = isinstance(self.parallel, (int, float)) and self.parallel == 1 and self.norm is None
        return frozenset((0, 1) if whole else (1,))

    @property
    def on_x0(self) -> bool:
        """Norms and projections are those of x̂_0."""
        return True

    def guide(self, weak: Tensor, strong: Tensor, scale: Tensor) -> Tensor:
        """Branch 1 + (scale - 1) times the weighted parts of what it differs in from branch 0."""
        along, difference = strong.flatten(1), (strong - weak).flatten(1)
        if self.norm is not None:
            length = root(difference.square().sum(1, keepdim=True))
            long = length > self.norm
            difference = difference * torch.where(long, self.norm / torch.where(long, length, 1.0), 1.0)
        square = along.square().sum(1, keepdim=True)
        positive = square > 0
        share = (difference * along).sum(1, keepdim=True) / torch.where(positive, square, 1.0)
        bent = difference + (self.parallel - 1) * share * along
        return strong + (spread(scale - 1, bent) * bent).reshape(strong.shape)

    @property
    def reason(self) -> str:
        """Projection, and what changes with time."""
        return " and ".join([*self._why_varying(), "it projects the difference of two scores"])
