"""Precision, recall, density and coverage: brute force as published, and expectations in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scoresde.metrics import density_coverage, expected_manifold_coverage, precision_recall


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def published(x: Tensor, data: Tensor, k: int) -> tuple[float, float, float, float]:
    """Precision, recall, density and coverage by loops over the papers' sums."""

    def radius(rows: Tensor, i: int) -> float:
        return sorted(float((rows[i] - other).norm()) for j, other in enumerate(rows) if j != i)[k - 1]

    far = [[float((a - b).norm()) for b in data] for a in x]
    of_data = [radius(data, i) for i in range(len(data))]
    of_x = [radius(x, j) for j in range(len(x))]
    n, m = len(x), len(data)
    inside = [[far[j][i] <= of_data[i] for i in range(m)] for j in range(n)]
    return (
        sum(any(row) for row in inside) / n,
        sum(any(far[j][i] <= of_x[j] for j in range(n)) for i in range(m)) / m,
        sum(map(sum, inside)) / (k * n),
        sum(any(inside[j][i] for j in range(n)) for i in range(m)) / m,
    )


@pytest.mark.parametrize(("n", "m", "k"), [(12, 15, 3), (9, 7, 1), (6, 20, 5)])
def test_they_are_the_papers_sums(n: int, m: int, k: int) -> None:
    x, data = 0.7 * normals(n, 2) + 0.3, normals(m, 2, seed=1)
    expected = published(x, data, k)
    for chunk in (4096, 4):
        found = (
            *precision_recall(x, data, neighbours=k, chunk=chunk),
            *density_coverage(x, data, neighbours=k, chunk=chunk),
        )
        assert found == pytest.approx(expected, abs=1e-12)  # sums of counts


def test_real_samples_score_what_is_expected() -> None:
    """Means over draws of E density = 1 and of E coverage, for sizes and dimensions of which neither depends on."""
    for n, m, k, d in ((60, 40, 3, 2), (30, 50, 5, 7)):
        pairs = [(normals(n, d, seed=2 * i), normals(m, d, seed=2 * i + 1)) for i in range(200)]
        found = torch.tensor([density_coverage(x, y, neighbours=k) for x, y in pairs]).double()
        for mean, std, expected in zip(
            found.mean(0).tolist(), found.std(0).tolist(), (1.0, expected_manifold_coverage(n, m, neighbours=k)),
            strict=True,
        ):  # fmt: skip
            assert abs(mean - expected) < 4 * std / math.sqrt(200)


def test_expected_coverage_counts_orders() -> None:
    """k = 1: a ball is empty if the nearest of n + m - 1 others is one of m - 1. Many of each: 1 - 2^-k."""
    assert expected_manifold_coverage(7, 5, neighbours=1) == pytest.approx(1 - 4 / 11)
    assert expected_manifold_coverage(10**7, 10**7, neighbours=5) == pytest.approx(1 - 2**-5, abs=1e-6)


def test_faults_are_told_apart() -> None:
    """Samples elsewhere cost precision, modes left out cost recall and coverage; copies keep precision at 1."""
    data = torch.cat([normals(150, 2), 20 + normals(150, 2, seed=1)])
    half = normals(300, 2, seed=2)
    off = torch.cat([normals(100, 2, seed=3), 20 + normals(100, 2, seed=4), 200 + normals(100, 2, seed=5)])
    precision, recall = precision_recall(half, data)
    assert precision > 0.8 and recall == pytest.approx(0.5, abs=0.1)
    assert density_coverage(half, data).coverage < 0.55
    assert precision_recall(off, data).precision == pytest.approx(2 / 3, abs=0.1)
    assert precision_recall(data, data) == (1.0, 1.0)
    # of copies each sample lies in the balls of itself and, on average, of k others
    assert density_coverage(data, data) == pytest.approx(((5 + 1) / 5, 1.0))


def test_too_few_are_refused() -> None:
    with pytest.raises(ValueError, match="data must hold at least 4 samples for neighbours=3"):
        precision_recall(normals(9, 2), normals(3, 2))
    with pytest.raises(ValueError, match="x must hold at least 6"):
        density_coverage(normals(5, 2), normals(9, 2))
    with pytest.raises(ValueError, match="m must be a whole number of at least 6"):
        expected_manifold_coverage(5, 5)
