r"""Whether samples lie where data lie, and everywhere they lie, by balls around the nearest neighbours.

    precision_recall(features(samples), features(data))     # .precision: in the data's support; .recall: all of it
    density_coverage(features(samples), features(data))     # .density; .coverage: balls that are hit
    expected_manifold_coverage(n, m)                        # of samples that are real

The ball of a sample reaches to its k-th neighbour of the same set. All four compare two sets of about equal sizes, and
depend on them: give the same numbers of samples and data wherever figures are compared. ``coverage`` by itself is the
name of another thing, how often credible intervals hold the truth (:func:`~scoresde.metrics.coverage`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde import checks
from scoresde.metrics.sets import CHUNK, blocks, check_sizes, distances, two_sets

_TIE = 1 + 1e-7
"""A sample that is a copy of a neighbour lies on the sphere: inside, whichever way products of matrices are rounded."""


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]: of samples inside balls of the data, and of data inside balls of the samples."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """How many balls of the data a sample lies in, over k; and the share of balls of the data that hold a sample."""

    density: float
    coverage: float


def precision_recall(x: Tensor, data: Tensor, *, neighbours: int = 3, chunk: int = CHUNK) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991, equations 1 and 2).

    Precision falls with samples unlike any data, recall with data unlike any sample. Neither is 1 for a perfect model:
    compare them with those of other real data. One outlier among the data makes a large ball, which raises precision.

    Args:
        x: samples (n, *event), features most often.
        data: (m, *event).
        neighbours: k, whose distance is the radius; fewer than n and m.
        chunk: samples whose distances are taken at once.

    Raises:
        TypeError, ValueError: no more samples than ``neighbours``, not finite, events of two shapes.
    """
    a, b, k, chunk = _checked(x, data, neighbours, chunk)
    of_samples, _ = _balls(b, _radii(b, k, chunk), a, chunk)
    of_data, _ = _balls(a, _radii(a, k, chunk), b, chunk)
    return PrecisionRecall(*(float((held > 0).double().mean()) for held in (of_samples, of_data)))


def density_coverage(x: Tensor, data: Tensor, *, neighbours: int = 5, chunk: int = CHUNK) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020, arXiv:2002.09797, section 3).

    For samples of the data's own law density is 1 on average, exactly, and coverage
    :func:`expected_manifold_coverage`. Density above 1: samples sit where data are densest. Only the data have balls,
    so that outliers among the samples do no harm.

    Args:
        x: samples (n, *event), features most often.
        data: (m, *event).
        neighbours: k, whose distance is the radius; fewer than n and m.
        chunk: samples whose distances are taken at once.

    Raises:
        TypeError, ValueError: no more samples than ``neighbours``, not finite, events of two shapes.
    """
    a, b, k, chunk = _checked(x, data, neighbours, chunk)
    of_samples, hit = _balls(b, _radii(b, k, chunk), a, chunk)
    return DensityCoverage(float(of_samples.double().mean()) / k, float(hit.double().mean()))


def expected_manifold_coverage(n: int, m: int, *, neighbours: int = 5) -> float:
    r"""E coverage where n samples and m data are of one continuous law: 1 - Π_{j=1..k} (m - j)/(n + m - j).

    A ball is empty if its centre's k nearest of all n + m - 1 others are data (Naeem et al. 2020, arXiv:2002.09797,
    section 3). For n = m large 1 - 2^-k.

    Args:
        n: number of samples.
        m: number of data, more than k.
        neighbours: k.

    Raises:
        TypeError, ValueError: no such numbers.
    """
    k = checks.count(neighbours, name="neighbours")
    n, m = checks.count(n, name="n"), checks.count(m, name="m", least=k + 1)
    return 1 - math.prod((m - j) / (n + m - j) for j in range(1, k + 1))


def _checked(x: Tensor, data: Tensor, neighbours: int, chunk: int) -> tuple[Tensor, Tensor, int, int]:
    k, chunk = checks.count(neighbours, name="neighbours"), checks.count(chunk, name="chunk")
    a, b = two_sets(x, data, names=("x", "data"))
    check_sizes(a, b, least=k + 1, names=("x", "data"), what=f"neighbours={k}")
    return a, b, k, chunk


def _radii(rows: Tensor, k: int, chunk: int) -> Tensor:
    """Distance of each to its k-th neighbour among the others, (n,)."""
    found = []
    for here in blocks(len(rows), chunk):
        best = rows.new_full((here.stop - here.start, k), math.inf)
        for there in blocks(len(rows), chunk):
            far = distances(rows[here], rows[there])
            if here == there:
                far.fill_diagonal_(math.inf)
            best = torch.cat([best, far], 1).topk(k, largest=False).values
        found.append(best[:, -1])
    return torch.cat(found)


def _balls(centres: Tensor, radii: Tensor, points: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """In how many balls each point lies (n,), and whether each ball holds a point (m,)."""
    held = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    hit = torch.zeros(len(centres), dtype=torch.bool, device=points.device)
    for here in blocks(len(points), chunk):
        for there in blocks(len(centres), chunk):
            inside = distances(points[here], centres[there]) <= radii[there] * _TIE
            held[here] += inside.sum(1)
            hit[there] |= inside.any(0)
    return held, hit
