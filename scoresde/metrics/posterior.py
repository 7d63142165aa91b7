"""Whether posterior samples agree with truths that were drawn with their data: ranks, coverage, calibration.

calibration_error(samples, truth)               # of posterior samples (n, S, *event) for truths (n, *event)
coverage(samples, truth, 0.9)                   # 0.9 for an exact sampler
below, equal = rank(samples, truth)
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde import checks


def rank(samples: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """How many samples lie below the truth, and how many are equal to it, for each coordinate: two (n, *event), int64.

    If the truth is drawn from the law of the S samples, below is uniform on 0 ... S wherever nothing is equal; with E
    equal ones, a rank drawn from below ... below + E is (simulation-based calibration, Talts et al. 2018,
    arXiv:1804.06788, theorem 1).

    Args:
        samples: (n, S, *event), S samples for each of n cases.
        truth: (n, *event), what was to be found.

    Raises:
        TypeError, ValueError: not floating or not finite, no cases, no samples, or shapes that do not fit.
    """
    checks.state(samples, name="samples", values=True)
    checks.state(truth, name="truth", values=True)
    if samples.ndim < 2 or (samples.shape[0], *samples.shape[2:]) != tuple(truth.shape):
        raise ValueError(
            f"samples must be (n, S, *event) for a truth (n, *event), S samples of each case; got "
            f"{tuple(samples.shape)} and {tuple(truth.shape)}."
        )
    if not samples.numel():
        raise ValueError(
            f"samples must hold cases and samples of each, or there are no ranks; got {checks.got(samples)}."
        )
    other = truth[:, None]
    return (samples < other).sum(1), (samples == other).sum(1)


def coverage(samples: Tensor, truth: Tensor, level: float) -> float:
    r"""Share of coordinates whose truth lies in the central credible interval of ``level`` of its samples.

    The interval is one of ranks, not of estimated quantiles: rank r among S samples stands for the stretch
    [r, r + 1]/(S + 1) of probability, and counts as inside by the share of it that lies in [(1 - level)/2,
    (1 + level)/2]; truths equal to some samples stand for all their ranks together. Where truth and samples are
    exchangeable, as for an exact sampler, the expectation is ``level`` exactly, for every S, law and level.

    Args:
        samples: (n, S, *event), S samples for each of n cases.
        truth: (n, *event).
        level: in (0, 1).
    """
    level = checks.number(level, name="level")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), such as 0.9; got {level}.")
    below, equal = rank(samples, truth)
    steps = samples.shape[1] + 1
    first, last = below.double() / steps, (below + equal + 1).double() / steps
    inside = last.clamp_max((1 + level) / 2) - first.clamp_min((1 - level) / 2)
    return float((inside.clamp_min(0) / (last - first)).mean())


def calibration_error(samples: Tensor, truth: Tensor) -> float:
    r"""∫ |F(u) - u| du, F(u) the share of coordinates whose truth is below the u-quantile of its samples.

    F is that of the ranks, each spread evenly over [r, r + 1]/(S + 1), as in :func:`coverage`; the integral is exact.
    It lies in [0, ½]. For an exact sampler E F(u) = u, and for N independent coordinates the value is about
    sqrt(π/(32 N)) = 0.313/sqrt(N); those of one case are seldom independent. Samples that are much too narrow around
    means off by both signs give ¼, those that miss on one side ½.

    Args:
        samples: (n, S, *event), S samples for each of n cases.
        truth: (n, *event).
    """
    below, equal = (v.flatten() for v in rank(samples, truth))
    steps = samples.shape[1] + 1
    weight = 1 / (equal + 1).double()
    rise = weight.new_zeros(steps + 1).index_add(0, below, weight).index_add(0, below + equal + 1, -weight)
    mass = rise.cumsum(0)[:-1] / len(weight)  # of each rank
    off = torch.cat([mass.new_zeros(1), (mass - 1 / steps).cumsum(0)])  # F(u) - u at the knots, straight between them
    left, right = off[:-1], off[1:]
    total = left.abs() + right.abs()
    area = torch.where(left * right < 0, (left**2 + right**2) / (2 * total), total / 2)
    return float(area.sum() / steps)
