"""Sliced and max-sliced Wasserstein distances: Gaussians in closed form, POT, and what the maximum does to noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scoresde.metrics import max_sliced_wasserstein, sliced_wasserstein


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_on_a_line_there_is_one_direction() -> None:
    for n, m in ((20, 20), (7, 12)):
        x, y = normals(n, 1), 0.3 + 2 * normals(m, 1, seed=1)
        assert max_sliced_wasserstein(x, y, starts=1) == pytest.approx(sliced_wasserstein(x, y, slices=1), rel=1e-12)


def test_a_shift_is_found_whole() -> None:
    """Along the shift; no direction shows more of it, whatever the shape of the law."""
    x, shift = normals(60, 5), torch.tensor([3.0, 0, -4.0, 0, 0]).double()
    assert max_sliced_wasserstein(x, x + shift) == pytest.approx(5.0, rel=1e-9)
    assert max_sliced_wasserstein(x, x) == 0.0
    q = torch.linalg.qr(normals(5, 5, seed=3))[0]
    y = 1.5 * normals(45, 5, seed=1)
    value = max_sliced_wasserstein(x, y)
    assert max_sliced_wasserstein(7 * x @ q, 7 * y @ q) == pytest.approx(7 * value, rel=0.02)  # other random starts


@pytest.mark.parametrize(
    ("mean", "scales"),
    [((0.0, 0.0, 0.0), (1.0, 3.0, 0.5)), ((1.5, 0.0, 0.5), (1.0, 1.0, 2.0)), ((0, 0, 0), (0.2, 1, 1))],
)
def test_of_gaussians_it_is_the_maximum_of_their_projections(
    mean: tuple[float, ...], scales: tuple[float, ...]
) -> None:
    """max_u (μ·u)² + (sqrt(uᵀC u) - 1)², over a grid of directions; samples err by about sd/sqrt(2n) each way."""
    mu, s = torch.tensor(mean).double(), torch.tensor(scales).double()
    x, y = normals(6000, 3), mu + s * normals(6000, 3, seed=1)
    u = torch.nn.functional.normalize(normals(50_000, 3, seed=2), dim=1)
    expected = float(((u @ mu) ** 2 + (((u * s) ** 2).sum(1).sqrt() - 1) ** 2).max().sqrt())
    assert max_sliced_wasserstein(x, y, starts=4) == pytest.approx(expected, abs=5 * max(scales) / math.sqrt(2 * 6000))


def test_pots_and_random_directions_are_below_it() -> None:
    """POT takes the best of random directions: in three dimensions 5000 of them come within a percent."""
    ot = pytest.importorskip("ot")
    x, y = normals(40, 3), 0.3 + normals(40, 3, seed=1) * torch.tensor([1.0, 2.0, 1.0]).double()
    pots = float(ot.max_sliced_wasserstein_distance(x.numpy(), y.numpy(), n_projections=5000, seed=0))
    ours = max_sliced_wasserstein(x, y)
    assert pots * (1 - 1e-9) <= ours < 1.01 * pots
    sliced = float(ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), n_projections=5000, seed=0))
    assert sliced_wasserstein(x, y, slices=5000) == pytest.approx(sliced, rel=0.03)  # two draws of 5000 directions


def test_held_out_directions_take_the_noise_of_the_search_away() -> None:
    """Of two sets of one law in 30 dimensions the maximum is far above that of a line, and a held-out one is not."""
    pairs = [(normals(200, 30, seed=2 * i), normals(200, 30, seed=2 * i + 1)) for i in range(6)]
    searched = sum(max_sliced_wasserstein(x, y, starts=2, steps=20) for x, y in pairs) / 6
    held = sum(max_sliced_wasserstein(x, y, starts=2, steps=20, held_out=True) for x, y in pairs) / 6
    line = sum(max_sliced_wasserstein(x[:100, :1], y[:100, :1]) for x, y in pairs) / 6
    assert searched > 2 * held and held < 2 * line
    assert max_sliced_wasserstein(*pairs[0], 1, held_out=True) == max_sliced_wasserstein(*pairs[0], 1, held_out=True)
    with pytest.raises(ValueError, match="at least 4 samples"):
        max_sliced_wasserstein(normals(3, 2), normals(9, 2), held_out=True)
