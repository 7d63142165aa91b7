"""Anomaly maps: folded normals on Gaussians, every step by hand, and a spot found where the law is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde.editing import anomaly_map
from scoresde.metrics import roc_auc
from scoresde.noise import IndependentNoise
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sde import SDE, VE, VP, RectifiedFlow
from scoresde.solvers import Heun

SPREAD, LEVEL = 0.7, 0.9


def law(dim: int = 1) -> Gaussian:
    return Gaussian(torch.zeros(dim, dtype=torch.float64), SPREAD**2 * torch.eye(dim, dtype=torch.float64))


def folded(mean: Tensor, deviation: float) -> Tensor:
    """E |m + d z|."""
    u = mean / deviation
    return deviation * (math.sqrt(2 / math.pi) * torch.exp(-(u**2) / 2) + u * torch.erf(u / math.sqrt(2)))


@pytest.mark.parametrize("sde", [VP(), VE(), RectifiedFlow()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("steps", [0, 20])
def test_the_map_of_a_gaussian_is_a_folded_normals_mean(sde: SDE, steps: int) -> None:
    """y = x_0 + ℓ z goes to g y, g = s²/(s² + ℓ²), by the denoiser, and to sqrt(g) y along the ODE."""
    x0 = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    n, k = 2000, 2
    many = x0.repeat(n, 1)  # each row draws its own z
    found = anomaly_map(law().score(sde), many, levels=[LEVEL], samples=k, steps=steps, solver=Heun(), seed=1)
    gain = SPREAD**2 / (SPREAD**2 + LEVEL**2)
    gain = math.sqrt(gain) if steps else gain
    # five standard errors, and what t_min and 20 steps of the second order leave
    tolerance = {"rtol": 0.0, "atol": 5 * gain * LEVEL / math.sqrt(n * k) + 0.01}
    mean = found.map.reshape(n, 5, 1).mean(0)
    torch.testing.assert_close(mean, folded((1 - gain) * x0, gain * LEVEL), **tolerance)
    torch.testing.assert_close(found.x.reshape(n, 5, 1).mean(0), gain * x0, **tolerance)
    torch.testing.assert_close(found.difference, many - found.x)
    assert found.nfe == k * (2 * steps + 1 if steps else 1)


@pytest.mark.parametrize("event", [(3, 2, 2), (3, 4), (4,)])
@pytest.mark.parametrize("steps", [0, 3])
def test_it_is_what_it_says(steps: int, event: tuple[int, ...]) -> None:
    """Levels, draws, channels and running means by hand."""
    sde, x0 = VP(), torch.randn(2, *event, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = GaussianMixture(torch.ones(2), torch.stack([0.5 * x0[0], -x0[1]]), 0.3)
    score, options = problem.score(sde), {"levels": [0.5, 2.0], "samples": 3, "steps": steps}
    found = anomaly_map(score, x0, noise=IndependentNoise(7), solver=Heun(), **options)  # type: ignore[arg-type]
    draws = IndependentNoise(7).stream("anomaly")
    made = []
    for level in (0.5, 2.0):
        t = sde.t_of_log_snr(-2 * math.log(level))
        mean, std = sde.marginal(x0, t)
        for _ in range(3):
            x = mean + std * draws.normal(x0)
            if steps:
                grid = Heun().default_grid(score)(sde, steps, t_start=t)  # type: ignore[operator]
                made.append(Heun().solve(Reverse(score, 0.0), x, grid, denoise=True).x)
            else:
                made.append(score.denoise(x, t))
    every = torch.stack(made)
    torch.testing.assert_close(found.x, every.mean(0))
    torch.testing.assert_close(found.spread, every.std(0, correction=0))
    far = (every - x0).abs().mean(0)
    torch.testing.assert_close(found.map, far.mean(1, keepdim=True) if len(event) > 1 else far)
    assert found.nfe == 6 * (2 * steps + 1 if steps else 1)


def test_a_spot_on_a_known_picture_is_found() -> None:
    means = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    means[0, :, :, :2], means[1, :, :, :2] = -1.0, 1.0
    problem = GaussianMixture(torch.ones(2), means, 0.05**2)
    x0 = problem.sample(4, 3)
    truth = torch.zeros_like(x0, dtype=torch.bool)
    truth[:, :, 1, 2] = True
    ill = x0 + truth
    found: Any = anomaly_map(problem.score(VP()), ill, levels=[0.5], samples=4, steps=4)
    # the spot is 20 deviations out of the law, and the noise of half that spot leaves no doubt which picture it is
    assert roc_auc(found.map, truth) == 1.0
    torch.testing.assert_close(found.difference, truth.double(), rtol=0, atol=0.35)
    healthy = anomaly_map(problem.score(VP()), x0, levels=[0.5], samples=4, steps=4)
    assert float(healthy.map.max()) < 0.35 < 0.6 < float(found.map[truth].min())
