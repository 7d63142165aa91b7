"""Distances between sets: brute force, closed forms, and what they are blind to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from scoresde.metrics import energy_distance, memorised_share, nearest_distance, sliced_wasserstein


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- energy distance ----


@pytest.mark.parametrize("event", [(1,), (3,), (2, 2), (1, 2, 2)])
def test_energy_distance_by_brute_force(event: tuple[int, ...]) -> None:
    x, y = normals(7, *event), 0.5 + normals(5, *event, seed=1)

    def mean(a: Tensor, b: Tensor) -> float:
        return float(np.mean([float((u - v).norm()) for u in a for v in b]))

    expected = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-12)  # rounding of sums
    assert energy_distance(y, x) == pytest.approx(expected, rel=1e-12)


def test_energy_distance_in_one_dimension_is_scipys() -> None:
    """2 ∫(F - G)²: scipy returns the square root of it."""
    x, y = normals(30), 0.3 + 2 * normals(50, seed=1)
    expected = scipy.stats.energy_distance(x.numpy(), y.numpy()) ** 2
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-10)  # sums in another order
    assert energy_distance(x[:, None], y[:, None]) == pytest.approx(expected, rel=1e-10)


def test_energy_distance_closed_forms() -> None:
    a, b = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    assert energy_distance(a, b) == pytest.approx(10.0)  # 2·5
    pair = torch.tensor([[0.0], [2.0]])
    assert energy_distance(pair, torch.tensor([[1.0]])) == pytest.approx(2 * 1 - 1 - 0)
    # up to 25 rows cdist takes differences; above, a matrix product, which errs by sqrt(rounding) near 0: 1e-8
    x = normals(8, 3)
    assert energy_distance(x, x) == 0.0
    assert energy_distance(x, x[torch.randperm(8, generator=torch.Generator().manual_seed(0))]) == pytest.approx(
        0, abs=1e-12
    )
    assert energy_distance(x, x.repeat(3, 1)) == pytest.approx(0, abs=1e-12)  # the same law


def test_energy_distance_scales_and_ignores_motions() -> None:
    x, y = normals(20, 3), normals(25, 3, seed=1) + 0.4
    rotation = torch.linalg.qr(normals(3, 3, seed=2))[0]
    value = energy_distance(x, y)
    assert energy_distance(5 * x, 5 * y) == pytest.approx(5 * value, rel=1e-10)
    assert energy_distance(x @ rotation + 7, y @ rotation + 7) == pytest.approx(value, rel=1e-8)  # cancellation of 7


def test_energy_distance_bias_is_as_documented() -> None:
    """E of the V-statistic between two sets of one law is E|X - X'| (1/n + 1/m); here E|X - X'| = 2/sqrt(π)."""
    n, m = 20, 30
    values = torch.tensor(
        [energy_distance(normals(n, 1, seed=2 * i), normals(m, 1, seed=2 * i + 1)) for i in range(300)]
    )
    expected = 2 / math.sqrt(math.pi) * (1 / n + 1 / m)
    assert abs(float(values.mean()) - expected) < 5 * float(values.std()) / math.sqrt(300)


@pytest.mark.parametrize("unbiased", [False, True])
def test_large_sets_are_taken_in_chunks(unbiased: bool) -> None:
    x, y = normals(37, 2), normals(23, 2, seed=1)
    whole, nearest = energy_distance(x, y, unbiased=unbiased), nearest_distance(x, y)
    # cdist multiplies matrices for 37 rows and takes differences for 10: sqrt of rounding apart, where points are close
    assert energy_distance(x, y, unbiased=unbiased, chunk=10) == pytest.approx(whole, rel=1e-8)
    torch.testing.assert_close(nearest_distance(x, y, chunk=10), nearest, rtol=1e-8, atol=1e-8)


# ---- sliced Wasserstein ----


@pytest.mark.parametrize(("n", "m"), [(8, 8), (6, 9), (5, 7), (1, 4), (12, 3)])
def test_sliced_wasserstein_in_one_dimension_is_exact(n: int, m: int) -> None:
    """Each set repeated to a common size, where the optimal transport sorts."""
    x, y = normals(n, 1), 0.3 + 2 * normals(m, 1, seed=1)
    a, b = x.flatten().sort().values.repeat_interleave(m), y.flatten().sort().values.repeat_interleave(n)
    expected = float((a - b).square().mean().sqrt())
    assert sliced_wasserstein(x, y, slices=3) == pytest.approx(expected, rel=1e-12)
    assert sliced_wasserstein(y, x, slices=3) == pytest.approx(expected, rel=1e-12)


def test_sliced_wasserstein_closed_forms() -> None:
    x = normals(50, 4)
    assert sliced_wasserstein(x, x) == 0.0
    assert sliced_wasserstein(x, x.repeat(2, 1)) == pytest.approx(0, abs=1e-12)
    # A shift by d: mean over directions of (d·u)² is |d|²/4, up to 512 directions' spread
    shift = torch.tensor([2.0, 0.0, 0.0, 0.0]).double()
    assert sliced_wasserstein(x, x + shift, slices=4000) == pytest.approx(1.0, rel=0.05)
    assert sliced_wasserstein(3 * x, 3 * x + 3 * shift) == pytest.approx(
        3 * sliced_wasserstein(x, x + shift), rel=1e-10
    )
    one = torch.ones(1, 2, 2)
    assert sliced_wasserstein(x[:, :1], x[:, :1] + 2, slices=1) == pytest.approx(2.0)  # on a line one direction is all
    assert sliced_wasserstein(0 * one, one, slices=4000) == pytest.approx(1.0, rel=0.05)  # |1|² / 4


def test_sliced_wasserstein_of_gaussians_approaches_its_population_value() -> None:
    """N(0, I) against N(0, 4 I): every projection is 1 apart."""
    x, y = normals(4000, 2), 2 * normals(4000, 2, seed=1)
    assert sliced_wasserstein(x, y, slices=64) == pytest.approx(
        1.0, abs=0.08
    )  # 5 standard errors of a std of 2, n=4000


def test_sliced_wasserstein_repeats_with_its_seed() -> None:
    x, y, state = normals(20, 3), normals(20, 3, seed=1), torch.get_rng_state()
    assert sliced_wasserstein(x, y, 1, slices=4) == sliced_wasserstein(x, y, 1, slices=4)
    assert sliced_wasserstein(x, y, 1, slices=4) != sliced_wasserstein(x, y, 2, slices=4)
    assert sliced_wasserstein(x, y) == sliced_wasserstein(x, y, 0, slices=512)
    assert torch.equal(state, torch.get_rng_state())


# ---- memorisation ----


def test_nearest_distance_by_brute_force() -> None:
    x, data = normals(6, 2, 2), normals(9, 2, 2, seed=1)
    expected = torch.stack([torch.stack([(a - b).norm() for b in data]).min() for a in x])
    torch.testing.assert_close(nearest_distance(x, data), expected, rtol=1e-12, atol=0)  # rounding of sums
    # a copy is at distance 0 but for cdist's matrix product on large sets: sqrt of rounding
    assert float(nearest_distance(data.repeat(5, 1, 1), data.repeat(5, 1, 1)).max()) < 1e-6


def test_memorised_share_tells_new_samples_from_copies() -> None:
    train, held_out, new = (normals(400, 2, seed=i) for i in range(3))
    assert memorised_share(train, train, held_out) == 1.0
    assert memorised_share(torch.cat([train[:100], 50 + train[100:]]), train, held_out) == pytest.approx(0.25)
    for quantile in (0.05, 0.3):
        # binomial spread of both the quantile and the share, 5 standard errors each
        spread = 5 * math.sqrt(2 * quantile * (1 - quantile) / 400)
        assert abs(memorised_share(new, train, held_out, quantile=quantile) - quantile) < spread
        assert memorised_share(held_out, train, held_out, quantile=quantile) == pytest.approx(quantile, abs=1 / 400)
    assert memorised_share(new, train, held_out) == memorised_share(new, train, held_out, quantile=0.05)
    assert memorised_share(100 + new, train, held_out) == 0.0


# ---- refusals ----


X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: energy_distance(X, torch.zeros(3, 3)), ValueError, "one shape"),
        (lambda: energy_distance(X, X[:0]), ValueError, "empty"),
        (lambda: energy_distance(X * math.nan, X), ValueError, "x must be finite"),
        (lambda: energy_distance(X, X / 0), ValueError, "y must be finite"),
        (lambda: energy_distance(X.long(), X), TypeError, "floating"),
        (lambda: energy_distance([[0.0]], X), TypeError, "torch.Tensor"),  # type: ignore[arg-type]
        (lambda: sliced_wasserstein(X, X, slices=0), ValueError, "slices"),
        (lambda: sliced_wasserstein(X, X, slices=1.5), TypeError, "slices"),  # type: ignore[arg-type]
        (lambda: sliced_wasserstein(X, X, "a"), TypeError, "noise"),  # type: ignore[arg-type]
        (lambda: sliced_wasserstein(X[:0], X), ValueError, "empty"),
        (lambda: memorised_share(X, X, X, quantile=0.0), ValueError, "quantile"),
        (lambda: memorised_share(X, X, X, quantile=1.0), ValueError, "quantile"),
        (lambda: memorised_share(X, X, torch.zeros(3, 3)), ValueError, "one shape"),
        (lambda: nearest_distance(X, X[:0]), ValueError, "empty"),
    ],
)
def test_bad_input(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_floating_dtype_is_measured_in_float64(dtype: torch.dtype) -> None:
    x, y = normals(5, 2).to(dtype), normals(6, 2, seed=1).to(dtype)
    assert energy_distance(x, y) == energy_distance(x.double(), y.double())
    assert sliced_wasserstein(x, y) == sliced_wasserstein(x.double(), y.double())
    assert nearest_distance(x, y).dtype == torch.float64


def test_a_number_of_slices_is_a_number() -> None:
    x = torch.zeros(3, 2)
    for bad in (0, True, 2.5):
        with pytest.raises((TypeError, ValueError), match="slices must be a whole number of at least 1"):
            sliced_wasserstein(x, x, slices=bad)  # type: ignore[arg-type]
