"""How well masks and maps of them agree with the truth: overlap, ranking, and whether their probabilities hold.

dice(mask, truth)                       # (n,): 2 |A and B| / (|A| + |B|) of each sample
roc_auc(scores, truth)                  # 0.5 is chance, 1 ranks every positive above every negative
found = reliability(share, truth)       # share: in how many of some runs each pixel belonged to the mask
found.forecast, found.frequency, found.ece
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks

_MOST_BINS = 1_000_000


def dice(mask: Tensor, truth: Tensor) -> Tensor:
    r"""2 |A ∩ B| / (|A| + |B|) of each sample, (n,) float64; 1 where both are empty (Dice 1945, doi:10.2307/1932409).

    Args:
        mask: (n, *event), boolean or of zeros and ones.
        truth: the same shape.

    Raises:
        TypeError, ValueError: other values, or shapes that differ.
    """
    a, b = _masks(mask=mask, truth=truth)
    both, sizes = (a & b).flatten(1).sum(1), a.flatten(1).sum(1) + b.flatten(1).sum(1)
    return torch.where(sizes == 0, 1.0, 2 * both.double() / sizes.clamp_min(1))


def roc_auc(scores: Tensor, truth: Tensor) -> float:
    r"""The area under the receiver operating characteristic, over all entries of all samples together.

    P(score of a positive > score of a negative) + ½ P(equal), by ranks (Mann & Whitney 1947; Hanley & McNeil 1982,
    doi:10.1148/radiology.143.1.7063747).

    Args:
        scores: (n, *event), floating, higher where a positive is more likely.
        truth: the same shape, boolean or of zeros and ones.

    Raises:
        TypeError, ValueError: bad input, or a truth that is all positive or all negative, with nothing to rank.
    """
    checks.state(scores, name="scores", values=True)
    (positive,) = (mask.flatten() for mask in _masks(truth=truth))
    checks.same_shape(scores, truth, names="scores and truth")
    ones = int(positive.sum())
    zeros = positive.numel() - ones
    if not ones or not zeros:
        raise ValueError(
            f"truth must hold positives and negatives to be told apart; got {ones} and {zeros} in {checks.got(truth)}."
        )
    _, group, count = scores.flatten().unique(return_inverse=True, return_counts=True)
    rank = count.cumsum(0).double() - (count - 1) / 2  # the mean rank, from 1, of equal scores
    return float((rank[group][positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


@dataclass(frozen=True)
class Reliability:
    """What :func:`reliability` found.

    Attributes:
        forecast: (bins,) the mean probability in each bin; NaN where it is empty.
        frequency: (bins,) the share of positives there; NaN where it is empty.
        count: (bins,) int64, entries in each.
        ece: Σ_m n_m/n · |frequency_m - forecast_m|, the expected calibration error.
        ece_floor: what probabilities that hold show in ``ece`` from sampling alone, at most, in expectation, were the
            entries independent: (1/n) Σ_m sqrt(Σ_{i in bin m} p_i (1 - p_i)), by Jensen's inequality.
        brier: the mean of (p - truth)² (Brier 1950).
    """

    forecast: Tensor
    frequency: Tensor
    count: Tensor
    ece: float
    ece_floor: float
    brier: float


def reliability(probability: Tensor, truth: Tensor, *, bins: int = 10) -> Reliability:
    r"""How often what is said to have the probability p is so, in equal bins of p (Murphy & Winkler 1977,
    doi:10.2307/2346866), over all entries of all samples together.

    The share of K runs in which a pixel belongs to a mask is no probability yet: where each run is a draw from the true
    law, of a pixel of share k/K the expected frequency is that of its posterior given k, which lies nearer to the mean
    by about 1/K. :attr:`Reliability.ece` of few runs shows that, too.

    Args:
        probability: (n, *event), floating, in [0, 1].
        truth: the same shape, boolean or of zeros and ones.
        bins: [0, 1/bins], (1/bins, 2/bins], ...

    Raises:
        TypeError, ValueError: bad input.
    """
    checks.state(probability, name="probability", values=True)
    (positive,) = (mask.flatten().double() for mask in _masks(truth=truth))
    checks.same_shape(probability, truth, names="probability and truth")
    bins = checks.count(bins, name="bins", most=_MOST_BINS)
    p = probability.flatten().double()
    if not p.numel():
        raise ValueError(f"probability must hold at least one entry; got {checks.got(probability)}.")
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(f"probability must lie in [0, 1]; {checks.got(probability)} holds {p.min():g} to {p.max():g}.")
    edges = torch.arange(1, bins, dtype=torch.float64, device=p.device) / bins
    where = torch.bucketize(p, edges.to(probability.dtype).double())  # 0.3 of float32 lies at 0.3, not above

    def summed(values: Tensor) -> Tensor:
        return values.new_zeros(bins).index_add(0, where, values)

    count = torch.bincount(where, minlength=bins)
    said, true, spread = summed(p), summed(positive), summed(p * (1 - p))
    filled = torch.where(count > 0, count, 1).double()
    empty = count == 0
    return Reliability(
        forecast=(said / filled).masked_fill(empty, math.nan),
        frequency=(true / filled).masked_fill(empty, math.nan),
        count=count,
        ece=float((true - said).abs().sum() / len(p)),
        ece_floor=float(spread.sqrt().sum() / len(p)),
        brier=float((p - positive).square().mean()),
    )


def _masks(**given: Tensor) -> list[Tensor]:
    """Masks as bool, of one shape (n, *event)."""
    found = [_mask(value, name) for name, value in given.items()]
    if len({one.shape for one in found}) > 1:
        shapes = " and ".join(str(tuple(one.shape)) for one in found)
        raise ValueError(f"{' and '.join(given)} must have one shape, (n, *event); got {shapes}.")
    return found


def _mask(value: object, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor (n, *event), got {checks.got(value)}.")
    if value.is_complex() or value.layout is not torch.strided or value.is_nested or value.is_meta:
        raise TypeError(f"{name} must be a dense tensor of zeros and ones, got {checks.got(value)}, {value.layout}.")
    if not value.ndim:
        raise ValueError(f"{name} must have an axis of samples, (n, *event); got {checks.got(value)}.")
    if value.dtype is torch.bool:
        return value
    if value.dtype.itemsize == 1 and value.is_floating_point():
        raise TypeError(f"{name} must be boolean or of zeros and ones, got {value.dtype}; call .bool().")
    if not bool(((value == 0) | (value == 1)).all()):
        raise ValueError(
            f"{name} must be boolean or of zeros and ones; it holds values in [{value.min():g}, {value.max():g}]. For "
            f"8-bit masks write {name} > 127."
        )
    return value.bool()
