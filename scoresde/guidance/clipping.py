"""Guidance that bends the prediction x̂_0 into the range of the data: static clipping and dynamic thresholding.

    clip(model, 1.0)                                # x̂_0 to [-1, 1] at every evaluation
    clip(classifier_free(model, {"label": y}, 7.5), (0.0, 1.0))
    threshold(model.bind(label=y), quantile=0.995)  # Imagen's: a limit for each sample, from its own x̂_0

Both give a Score, for every solver: the score that belongs to the bent x̂_0, (α x̂_0 - x)/σ². So ε̂ is the noise that
goes with it, too; a loop that clips x̂_0 and keeps the network's ε̂ moves by a pair that belongs to no score.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.guidance.parts import NonlinearGuidance
from scoresde.models.combination import X0, Combination, combine
from scoresde.models.score import DerivedScore, Score, check_score

__all__ = ["clip", "threshold"]


def clip(score: Score, limit: float | Sequence[float] = 1.0) -> Score:
    r"""x̂_0 clipped to the range of the data, element by element: min(max(x̂_0, low), high).

    The range is in the units of the model, those of x. Gradients flow where x̂_0 is inside, and are 0 outside. An
    x̂_0 = E[x_0 | x_t] of data in the range lies in it (the range is convex), so that an exact score is left as it is;
    what is clipped is the error of a network, or of a guidance at large scales.

    Args:
        score: any Score; guidance first, clipping around it.
        limit: (low, high), or one number for (-limit, limit). An end may be infinite, not both.

    Raises:
        TypeError: not a Score, or no numbers.
        ValueError: a limit that is not positive, or not low < high.
    """
    check_score(score)
    if isinstance(limit, (Sequence, Tensor)) and not isinstance(limit, (str, bytes)) and _is_pair(limit):
        low, high = checks.numbers(limit, name="limit")
        if not low < high or (math.isinf(low) and math.isinf(high)):
            raise ValueError(
                f"limit must be (low, high) with low < high, not both infinite, or one positive number; got "
                f"({low:g}, {high:g})."
            )
        return Clipped(score, low, high)
    checks.positive(limit, name="limit")
    high = checks.number(limit, name="limit")
    return Clipped(score, -high, high)


def _is_pair(limit: Sequence[float] | Tensor) -> bool:
    if isinstance(limit, Tensor) and not limit.ndim:
        return False
    if len(limit) != 2:
        raise ValueError(f"limit must be one number, or two, (low, high); got {checks.got(limit)}.")
    return True


def threshold(score: Score, quantile: float = 0.995, *, limit: float = 1.0, largest: float = math.inf) -> Score:
    r"""Dynamic thresholding of x̂_0 (Saharia et al. 2022, arXiv:2205.11487, section 2.3 and appendix A.32).

    For each sample on its own, with s the given quantile of \|x̂_0\| over its event, linearly interpolated::

        s ← min(max(s, limit), largest),      x̂_0 ← min(max(x̂_0, -s), s) limit / s

    A sample whose quantile is within the limit is clipped to it, as by :func:`clip`; one that goes beyond is scaled
    back as a whole, which keeps the contrast of saturated pictures. Gradients flow through s, too.

    Args:
        score: any Score; guidance first, thresholding around it.
        quantile: from 0 to 1; 1 scales by the largest value.
        limit: the data lie in [-limit, limit], in the units of the model.
        largest: most that s may be, at least ``limit``; what is beyond is clipped. ``limit`` itself is static clipping.

    Raises:
        TypeError: not a Score, or no numbers.
        ValueError: a quantile outside [0, 1], a limit that is not positive and finite, a largest below it.
    """
    check_score(score)
    quantile = checks.fraction(quantile, name="quantile")
    checks.positive(limit, name="limit")
    limit, largest = checks.number(limit, name="limit"), checks.number(largest, name="largest")
    if not math.isfinite(limit):
        raise ValueError(f"limit must be finite, got {limit:g}.")
    if not largest >= limit:
        raise ValueError(f"largest must be at least limit = {limit:g}, got {largest:g}.")
    return Thresholded(score, quantile, limit, largest)


class BentPrediction(DerivedScore, NonlinearGuidance):
    """A Score whose x̂_0 is a function of another's. A subclass writes :meth:`bend`."""

    @abstractmethod
    def bend(self, x0: Tensor) -> Tensor:
        """What becomes of x̂_0 (B, *event), each sample on its own."""

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        of_x, of_x0 = wanted.of_x0(self.sde.alpha(t), self.sde.sigma(t))
        return combine((of_x, x), (of_x0, self.bend(self.score.evaluate(x, t, X0))))


@dataclass(frozen=True, eq=False)
class Clipped(BentPrediction):
    """A Score made by :func:`clip`."""

    score: Score
    low: float
    high: float

    def bend(self, x0: Tensor) -> Tensor:
        """Between the ends."""
        return x0.clamp(self.low, self.high)

    @property
    def reason(self) -> str:
        """What is no sum."""
        return "it clips the prediction of x_0"


@dataclass(frozen=True, eq=False)
class Thresholded(BentPrediction):
    """A Score made by :func:`threshold`."""

    score: Score
    quantile: float
    limit: float
    largest: float

    def bend(self, x0: Tensor) -> Tensor:
        """Between -s and s, brought to the limit."""
        if not x0.numel():
            return x0
        flat = x0.flatten(1) if x0.ndim > 1 else x0[:, None]
        wide = flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
        s = _quantile(wide.abs(), self.quantile).clamp(self.limit, self.largest)
        return (wide.maximum(-s).minimum(s) * (self.limit / s)).to(x0.dtype).reshape(x0.shape)

    @property
    def reason(self) -> str:
        """What is no sum."""
        return "it thresholds the prediction of x_0"


def _quantile(values: Tensor, quantile: float) -> Tensor:
    """The quantile of each row (B, 1), linear between order statistics; torch's own stops at 2^24 numbers."""
    at = quantile * (values.shape[1] - 1)
    below = min(int(at), values.shape[1] - 1)
    ordered = values.sort(1).values
    return torch.lerp(ordered[:, below], ordered[:, min(below + 1, values.shape[1] - 1)], at - below)[:, None]
