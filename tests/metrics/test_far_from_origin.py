"""Measures that are functions of distances do not depend on where the origin is."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scoresde import metrics

MEASURES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "energy_distance": metrics.energy_distance,
    "mmd": lambda x, y: metrics.mmd(x, y),
    "mmd by distances": lambda x, y: metrics.mmd(x, y, metrics.DistanceKernel()),
    "mmd_test": lambda x, y: metrics.mmd_test(x, y, permutations=19),
    "precision_recall": metrics.precision_recall,
    "density_coverage": metrics.density_coverage,
    "authenticity": metrics.authenticity,
    "memorised_share": lambda x, y: metrics.memorised_share(x, y[:80], y[80:]),
    "nearest_distance": lambda x, y: metrics.nearest_distance(x, y).mean().item(),
    "vendi_score": lambda x, y: metrics.vendi_score(x, metrics.GaussianKernel(1.0)),
    "sliced_wasserstein": metrics.sliced_wasserstein,
    "max_sliced_wasserstein": metrics.max_sliced_wasserstein,
    "frechet_distance": metrics.frechet_distance,
}


def dyadic(seed: int) -> Tensor:
    """Multiples of 2^-10, to which 2^32 can be added without rounding: 42 bits of 53."""
    x = torch.randn(120, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x * 1024).round() / 1024


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES.keys())
def test_translation_changes_nothing(measure: Callable[[Tensor, Tensor], object]) -> None:
    # The same numbers to rounding of the mean, 2^-20 of a deviation for means of 2^32: by |a|^2 + |b|^2 - 2ab they
    # would be off by 2^64 2^-53 = 2048 in the square of a distance.
    x, y = dyadic(0), dyadic(1) + 0.25
    wanted = torch.as_tensor(measure(x, y), dtype=torch.float64)
    found = torch.as_tensor(measure(x + 2.0**32, y + 2.0**32), dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_two_clusters_far_apart() -> None:
    # No origin is near both: distances within each are those of the cluster alone.
    x, y = dyadic(0), dyadic(1)
    both_x, both_y = (torch.cat([one, one + 2.0**32]) for one in (x, y))
    alone, both = metrics.nearest_distance(x, y), metrics.nearest_distance(both_x, both_y)
    torch.testing.assert_close(both, torch.cat([alone, alone]), rtol=0, atol=1e-5)  # the mean, 2^31, rounds by 2^-22


def test_a_copy_is_at_distance_zero() -> None:
    x = torch.randn(300, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 5.0
    assert metrics.nearest_distance(x, x.flip(0)).max() == 0
    assert metrics.authenticity(x, x) == 0
    # each point six times, so that balls of five neighbours have the radius 0, and hold the copies all the same
    sixfold = x[:50].repeat(6, 1)
    assert metrics.density_coverage(sixfold, sixfold, neighbours=5) == (pytest.approx(6 / 5), 1.0)
