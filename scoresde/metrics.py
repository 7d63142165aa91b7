"""How far samples are from data, and posterior samples from the truth.

    energy_distance(samples, data)                  # 0 where the laws agree, up to the sizes of the sets
    sliced_wasserstein(samples, data, noise=0)
    memorised_share(samples, train, held_out)       # how many lie nearer to the training set than new data do
    calibration_error(samples, truth)               # of posterior samples (n, S, *event) for truths (n, *event)

Sets are (n, *event) of any sizes; all is computed in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde import checks
from scoresde.noise import Noise, as_noise

CHUNK = 4096
"""Samples whose distances are taken at once."""


def _pair(x: Tensor, y: Tensor, *, names: tuple[str, str] = ("x", "y")) -> tuple[Tensor, Tensor]:
    for name, value in zip(names, (x, y), strict=True):
        checks.state(value, name=name, values=True)
        if not len(value):
            raise ValueError(f"{name} must hold samples: an empty set has no distance; got {checks.got(value)}.")
    if x.shape[1:] != y.shape[1:]:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"{' and '.join(names)} must hold events of one shape, got {shapes}.")
    return x.reshape(len(x), -1).double(), y.reshape(len(y), -1).double()


def _mean_distance(x: Tensor, y: Tensor, chunk: int = CHUNK) -> float:
    total = sum(float(torch.cdist(a, b).sum()) for a in x.split(chunk) for b in y.split(chunk))
    return total / (len(x) * len(y))


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, the V-statistic (Székely & Rizzo 2013, doi:10.1016/j.jspi.2013.03.018).

    Non-negative; zero where the two sets are one. Pairs of a sample with itself count (as 0), which biases it upwards
    by about E|X - X'| (1/n + 1/m): compare it with its value between two sets of real data of the same sizes.

    Args:
        x: (n, *event).
        y: (m, *event).
    """
    a, b = _pair(x, y)
    return 2 * _mean_distance(a, b) - _mean_distance(a, a) - _mean_distance(b, b)


def sliced_wasserstein(x: Tensor, y: Tensor, noise: Noise | torch.Generator | int = 0, *, slices: int = 512) -> float:
    """Sliced Wasserstein-2 distance: root mean square over random directions of the distance of the projections.

    Rabin et al. 2011 (doi:10.1007/978-3-642-24785-9_37). Along each direction the distance of the two empirical laws is
    exact, for sets of unequal size too.

    Args:
        x: (n, *event).
        y: (m, *event).
        noise: source of the directions.
        slices: number of directions.
    """
    a, b = _pair(x, y)
    slices = checks.count(slices, name="slices")
    directions = as_noise(noise, "slices").initial((slices, a.shape[1]), dtype=torch.float64, device=a.device)
    directions = directions / directions.norm(dim=1, keepdim=True)
    p, q = ((v @ directions.T).sort(0).values for v in (a, b))
    n, m = len(p), len(q)
    # Both quantile functions are constant between neighbouring levels i/n and j/m, here counted in units of 1/(nm).
    levels = torch.cat([torch.arange(n + 1) * m, torch.arange(1, m) * n]).unique().to(a.device)
    left, share = levels[:-1], levels.diff().double() / (n * m)
    squared = (p[left // m] - q[left // n]).square().mean(1)
    return float((share * squared).sum().sqrt())


def nearest_distance(x: Tensor, data: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Euclidean distance from each of x (n, *event) to the nearest of ``data`` (m, *event), (n,)."""
    chunk = checks.count(chunk, name="chunk")
    return _nearest(x, data, chunk, ("x", "data"))


def _nearest(x: Tensor, data: Tensor, chunk: int, names: tuple[str, str]) -> Tensor:
    a, b = _pair(x, data, names=names)
    return torch.cat([torch.cdist(part, b).min(1).values for part in a.split(chunk)])


def memorised_share(x: Tensor, train: Tensor, held_out: Tensor, *, quantile: float = 0.05) -> float:
    """Share of x closer to a training sample than all but a ``quantile`` of held-out samples are.

    A model that draws new samples scores about ``quantile``, one that repeats its training data 1.

    Args:
        x: generated samples (n, *event).
        train: what the model was trained on.
        held_out: real samples that it has not seen.
        quantile: in (0, 1).
    """
    share = checks.number(quantile, name="quantile")
    if not 0 < share < 1:
        raise ValueError(f"quantile must lie in (0, 1), got {share:g}.")
    limit = torch.quantile(_nearest(held_out, train, CHUNK, ("held_out", "train")), share)
    return float((_nearest(x, train, CHUNK, ("x", "train")) < limit).double().mean())


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
