"""Energy distance of two sets: E of distances between them, less those within them.

energy_distance(samples, data)                  # 0 where the laws agree, up to the sizes of the sets
energy_distance(samples, data, unbiased=True)   # 0 on average where they agree
"""

from __future__ import annotations

from torch import Tensor

from scoresde import checks
from scoresde.metrics.sets import CHUNK, check_sizes, distances, two_sets


def energy_distance(x: Tensor, y: Tensor, *, unbiased: bool = False, chunk: int = CHUNK) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, the V-statistic (Székely & Rizzo 2013, doi:10.1016/j.jspi.2013.03.018).

    Non-negative; zero where the two sets are one. Pairs of a sample with itself count (as 0), which biases it upwards
    by about E|X - X'| (1/n + 1/m): compare it with its value between two sets of real data of the same sizes, or leave
    those pairs out.

    Args:
        x: (n, *event).
        y: (m, *event).
        unbiased: the U-statistic, without pairs of a sample with itself: its mean is the distance of the two laws, and
            single values may be below 0. Two samples of each at least.
        chunk: samples whose distances are taken at once.
    """
    unbiased, chunk = checks.flag(unbiased, name="unbiased"), checks.count(chunk, name="chunk")
    a, b = two_sets(x, y)
    if unbiased:
        check_sizes(a, b, least=2, names=("x", "y"), what="unbiased=True")
    less = int(unbiased)
    within = [_sum_of_distances(s, s, chunk) / (len(s) * (len(s) - less)) for s in (a, b)]
    return 2 * _sum_of_distances(a, b, chunk) / (len(a) * len(b)) - within[0] - within[1]


def _sum_of_distances(x: Tensor, y: Tensor, chunk: int) -> float:
    return sum(float(distances(a, b).sum()) for a in x.split(chunk) for b in y.split(chunk))
