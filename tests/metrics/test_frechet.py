"""Fréchet distance: closed forms of Gaussians, scipy's matrix root, its bias, and moments of streams and processes."""

from __future__ import annotations

import math
import warnings

import pytest
import scipy.linalg
import torch
from torch import Tensor

from scoresde import metrics
from scoresde.metrics import (
    RunningMoments,
    SampleSizeWarning,
    frechet_bias,
    frechet_distance,
    frechet_extrapolated,
    frechet_of_moments,
)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moments(*batches: Tensor) -> RunningMoments:
    found = RunningMoments()
    for batch in batches:
        found.update(batch)
    return found


def with_moments(x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """The same samples, moved to have this mean and unbiased covariance exactly."""
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), (x - x.mean(0)).T, upper=False)
    return (torch.linalg.cholesky(covariance) @ white).T + mean


def spd(d: int, seed: int) -> Tensor:
    a = normals(d, d, seed=seed)
    return a @ a.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


# ---- the distance ----


def test_it_is_the_distance_of_commuting_gaussians() -> None:
    """Diagonal covariances: Σ (μ - ν)² + (σ - τ)²."""
    s, t = torch.tensor([0.5, 1.0, 3.0]).double(), torch.tensor([2.0, 1.0, 0.25]).double()
    x = with_moments(normals(50, 3), torch.tensor([1.0, 0, -2]).double(), torch.diag(s**2))
    y = with_moments(normals(40, 3, seed=1), torch.zeros(3).double(), torch.diag(t**2))
    expected = 5 + float((s - t).square().sum())
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(x.reshape(50, 3, 1), y.reshape(40, 3, 1)) == pytest.approx(expected, rel=1e-12)


def test_it_is_scipys_matrix_root() -> None:
    """The formula as it is published, with scipy's square root of a matrix that is not symmetric."""
    x, y = normals(30, 4) @ spd(4, 1), normals(60, 4, seed=2) @ spd(4, 3) + 0.3
    a, b = torch.cov(x.T), torch.cov(y.T)
    root = torch.tensor(scipy.linalg.sqrtm((a @ b).numpy()).real)
    expected = (x.mean(0) - y.mean(0)).square().sum() + torch.trace(a + b - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-10)
    assert frechet_of_moments(moments(x), moments(y)) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize(("n", "m", "d"), [(6, 9, 8), (5, 40, 8), (40, 5, 8), (3, 2, 5)])
def test_singular_covariances_are_exact_and_warned_of(n: int, m: int, d: int) -> None:
    """By factors of the samples and by eigenvalues of the covariances: two routes with one answer."""
    x, y = normals(n, d), normals(m, d, seed=1) + 0.5
    with pytest.warns(SampleSizeWarning, match=rf"covariance of {min(n, m)} samples in {d} dimensions"):
        value = frechet_distance(x, y)
    with pytest.warns(SampleSizeWarning):
        assert frechet_of_moments(moments(x), moments(y)) == pytest.approx(value, rel=1e-6)  # roots of rounding
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A rotation moves nothing, nor do coordinates that are always 0
        q = torch.linalg.qr(normals(d, d, seed=7))[0]
        assert frechet_distance(x @ q, y @ q) == pytest.approx(value, rel=1e-9)
        wide = [torch.cat([v, torch.zeros(len(v), 3)], 1) for v in (x, y)]
        assert frechet_distance(*wide) == pytest.approx(value, rel=1e-9)
        assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)


def test_enough_samples_are_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(normals(9, 8), normals(9, 8, seed=1))


# ---- its bias ----


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.1)])
def test_the_bias_is_that_of_draws(scales: tuple[float, ...]) -> None:
    n, m, d = 150, 250, len(scales)
    s = torch.tensor(scales).double()
    values = torch.tensor(
        [frechet_distance(s * normals(n, d, seed=2 * i), s * normals(m, d, seed=2 * i + 1)) for i in range(400)]
    )
    expected = frechet_bias(torch.diag(s**2), n, m)
    # 4 standard errors, and the next order: relatively (d + 1) (1/n + 1/m), below a hundredth
    assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / 20 + 0.04 * expected
    if scales == (1.0, 1.0, 1.0):
        assert expected == pytest.approx((1 / n + 1 / m) * d * (d + 5) / 4, rel=1e-12)


def test_the_extrapolated_distance_has_no_bias() -> None:
    """Of equal laws 0, and of others the distance of the laws, where the plain one is several deviations above both."""
    n, m, d, runs = 300, 400, 5, 60
    for shift, scale in ((0.0, 1.0), (0.5, 1.5)):
        sets = [(normals(n, d, seed=2 * i), shift + scale * normals(m, d, seed=2 * i + 1)) for i in range(runs)]
        truth = d * (shift**2 + (scale - 1) ** 2)
        found = torch.tensor([frechet_extrapolated(x, y, i) for i, (x, y) in enumerate(sets)])
        plain = torch.tensor([frechet_distance(x, y) for x, y in sets])
        error = float(found.std()) / math.sqrt(runs)
        assert abs(float(found.mean()) - truth) < 4 * error  # of the mean
        assert float(plain.mean()) - truth > 4 * float(plain.std()) / math.sqrt(runs)


def test_extrapolation_repeats_with_its_seed_and_asks_for_samples() -> None:
    x, y = normals(60, 3), normals(60, 3, seed=1)
    assert frechet_extrapolated(x, y, 1) == frechet_extrapolated(x, y, 1) != frechet_extrapolated(x, y, 2)
    with pytest.raises(ValueError, match="x must hold at least 21 samples"):
        frechet_extrapolated(x[:20], y)
    with pytest.raises(ValueError, match="y must hold at least 35 samples"):
        frechet_extrapolated(x, y[:34], parts=5)


# ---- moments ----


def test_moments_of_a_stream_are_those_of_all() -> None:
    x = 1e6 + normals(101, 4)  # a mean that sums of squares would lose to: 1e12 beside 1
    parts = moments(*x.split([1, 30, 2, 68]))
    assert parts.count == 101
    # rounding of 1e6: 1e-10 in each number, with weights of a hundredth
    torch.testing.assert_close(parts.mean, x.mean(0), rtol=1e-15, atol=0)
    torch.testing.assert_close(parts.covariance, torch.cov(x.T), rtol=0, atol=1e-9)
    merged = moments(x[:40])
    merged.merge(moments(x[40:]))
    merged.merge(RunningMoments())
    torch.testing.assert_close(merged.covariance, parts.covariance, rtol=0, atol=1e-9)
    into_empty = RunningMoments()
    into_empty.merge(parts)
    parts.update(x)  # which the copy does not see
    assert into_empty.count == 101 and torch.equal(into_empty.covariance, moments(*x.split([1, 30, 2, 68])).covariance)


def test_gathered_moments_are_merged_in_order() -> None:
    """A ``gather`` as of two processes, which puts rows behind each other; real ones: test_metrics_processes.py."""
    x = normals(30, 2, 2)
    one, two = moments(x[:11]), moments(x[11:])
    seen: list[Tensor] = []
    one.gathered(lambda row: seen.append(row) or row)  # type: ignore[func-returns-value]
    whole = two.gathered(lambda row: torch.cat([seen[0], row]))
    assert whole.count == 30
    torch.testing.assert_close(whole.covariance, torch.cov(x.flatten(1).T), rtol=1e-12, atol=1e-13)


def test_moments_refuse() -> None:
    empty, two = RunningMoments(), moments(normals(3, 2))
    for read in (lambda: empty.mean, lambda: empty.covariance, lambda: moments(normals(1, 2)).covariance):
        with pytest.raises(ValueError, match="need at least"):
            read()
    with pytest.raises(ValueError, match="2 numbers a sample"):
        two.update(normals(3, 3))
    with pytest.raises(ValueError, match="2 numbers a sample"):
        two.merge(moments(normals(3, 3)))
    with pytest.raises(ValueError, match="at least 2 samples"):
        frechet_of_moments(two, moments(normals(1, 2)))
    with pytest.raises(ValueError, match="one size"):
        frechet_of_moments(two, moments(normals(5, 3)))
    with pytest.raises(ValueError, match="at least 2 samples"):
        metrics.frechet_distance(normals(1, 2), normals(4, 2))
