"""The mixture's closed-form posterior and its tilted density: against Bayes' rule and quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde.problems import Gaussian, GaussianMixture
from scoresde.sde import VP


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mixture(kind: str, event: tuple[int, ...] = (2, 2)) -> GaussianMixture:
    d = math.prod(event)
    root = normals(3, d, d, seed=1)
    covariances = {
        "full": root @ root.mT / d + 0.1 * torch.eye(d, dtype=torch.float64),
        "diagonal": 0.2 + normals(3, d, seed=2) ** 2,
        "isotropic": torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64),
    }
    return GaussianMixture(torch.tensor([1.0, 2.0, 3.0]), normals(3, *event, seed=3), covariances[kind])


def sums(x: Tensor) -> Tensor:
    """Sums along the rows and the first column: (B, 2, 2) -> (B, 3)."""
    return torch.cat([x.sum(2), x[:, :, :1].sum(1)], 1)


@pytest.mark.parametrize("kind", ["full", "diagonal", "isotropic"])
@pytest.mark.parametrize("noise_std", [0.05, 0.7])
def test_the_posterior_obeys_bayes(kind: str, noise_std: float) -> None:
    """p(x | y) / (p(x) N(y; A x, σ²)) is one number, 1/p(y), at every x."""
    data, y = mixture(kind), normals(3, seed=4)
    posterior = data.posterior(sums, y, noise_std)
    x = normals(40, 2, 2, seed=5)
    likelihood = -0.5 * ((y - sums(x)) / noise_std).square().sum(1)
    ratio = posterior.log_prob(x, VP(), 0.0) - data.log_prob(x, VP(), 0.0) - likelihood
    # logs of up to a few hundred / noise_std², each to a rounding
    torch.testing.assert_close(ratio, ratio[:1].expand(40), rtol=0, atol=1e-9 / noise_std**2)


def test_a_matrix_and_a_function_are_one() -> None:
    data, y = mixture("full"), normals(3, seed=4)
    matrix = sums(torch.eye(4, dtype=torch.float64).reshape(4, 2, 2)).mT
    a, b = data.posterior(sums, y, 0.3), data.posterior(matrix, y, 0.3)
    assert torch.equal(a.means, b.means) and torch.equal(a.weights, b.weights)
    assert a.event == (2, 2)


def test_without_noise_the_measured_part_is_known() -> None:
    posterior = mixture("full").posterior(sums, normals(3, seed=4), 0.0)
    # the joint covariance of the measured part is rounding alone
    x = posterior.sample(100, 0)
    torch.testing.assert_close(sums(x), normals(3, seed=4).expand(100, 3), rtol=0, atol=1e-5)


def test_components_that_cannot_be_are_left_out() -> None:
    far = GaussianMixture(torch.ones(2), torch.tensor([[0.0], [100.0]]), 0.01)
    posterior = far.posterior(torch.ones(1, 1), torch.tensor([0.0]), 0.1)
    assert len(posterior.weights) == 1 and abs(float(posterior.means)) < 1e-6


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda m: m.posterior(lambda x: x.square().flatten(1), torch.zeros(4), 0.1), "linear A only"),
        (lambda m: m.posterior(lambda x: x.flatten(1) + 1, torch.zeros(4), 0.1), "linear A only"),
        (lambda m: m.posterior(torch.ones(2, 3), torch.zeros(2), 0.1), r"A, must be \(m, 4\)"),
        (lambda m: m.posterior(sums, torch.zeros(2), 0.1), "the 3 numbers"),
        (lambda m: m.posterior(sums, torch.full((3,), math.nan), 0.1), "NaN"),
        (lambda m: m.posterior(sums, torch.zeros(3), -1.0), "noise_std"),
        (lambda m: m.posterior(sums, torch.zeros(3), 1e200), "noise_std must be at most"),
        (lambda m: m.posterior(torch.ones(2, 4), torch.zeros(2), 0.0), "singular"),
        (lambda m: m.posterior(torch.eye(4)[[0, 0]], torch.tensor([0.3, 0.5]), 0.0), "singular"),
        (lambda m: m.posterior(torch.tensor([[1, 0.3, 0.1, 0], [0.7, 0.21, 0.07, 0]]), torch.ones(2), 0.0), "singular"),
        (lambda m: m.tilted_sample(0, -1.0, 3, 0), "at least 0"),
        (lambda m: m.tilted_sample(3, 1.0, 3, 0), "from 0 to 2"),
    ],
)
def test_refusals(build: Callable[[GaussianMixture], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build(mixture("full"))


LINE = GaussianMixture(torch.tensor([1.0, 2.0]), torch.tensor([[-1.0], [0.5]], dtype=torch.float64), 0.4)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_tilted_samples_have_the_tilted_density(scale: float) -> None:
    grid = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    density = LINE.tilted_log_prob(grid[:, None], 1, scale).exp()
    cdf = torch.cumulative_trapezoid(density, grid)
    x, n = LINE.tilted_sample(1, scale, 20000, 0)[:, 0], 20000
    at = torch.searchsorted(grid[1:].contiguous(), x.sort().values).clamp_max(len(cdf) - 1)
    gap = (cdf[at] / cdf[-1] - torch.arange(1, n + 1) / n).abs().max()
    # Kolmogorov-Smirnov: P(gap sqrt(n) > 1.95) = 0.001; two grid cells of quadrature beside it
    assert float(gap) < 1.95 / math.sqrt(n) + 2e-3, float(gap)


def test_the_tilt_of_a_level() -> None:
    x, sde, t = normals(5, 1), VP(), torch.tensor(0.3, dtype=torch.float64)
    expected = LINE.log_prob(x, sde, t) + 2.5 * LINE.label_log_prob(sde)(x, t)[:, 0]
    torch.testing.assert_close(LINE.tilted_log_prob(x, 0, 2.5, sde, t), expected, rtol=1e-12, atol=1e-12)


def test_none_are_asked_for_and_one_is_certain() -> None:
    assert LINE.tilted_sample(0, 2.0, 0, 0).shape == (0, 1)
    alone = Gaussian(torch.zeros(2, dtype=torch.float64), 1.0)
    assert alone.tilted_sample(0, 5.0, 7, 0).shape == (7, 2)
