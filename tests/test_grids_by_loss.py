"""Steps by a measured loss: those of the closed form on a Gaussian, and errors of a few steps that fall."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from scoresde import grids
from scoresde.curve import LossCurve
from scoresde.problems import GaussianMixture
from scoresde.sampling import sample
from scoresde.sde import EDM, VP
from scoresde.solvers import DDIM

SCALE = 0.7


def exact_error(level: Tensor) -> Tensor:
    """E|x_0 - D|² of N(0, s²) at log σ̃."""
    return 1 / (SCALE**-2 + (-2 * level).exp())


def curve_of(levels: Tensor, errors: Tensor) -> LossCurve:
    loss = errors * (SCALE**-2 + (-2 * levels).exp())
    n = len(levels)
    return LossCurve(tuple(levels.tolist()), tuple(loss.tolist()), (0.01,) * n, (9,) * n, SCALE)


@pytest.mark.parametrize("power", [0.25, 1.0])
def test_the_steps_follow_the_slope_of_the_error(power: float) -> None:
    """2 s⁴ σ̃²/(s² + σ̃²)², smoothed by a Gaussian of width 0.5 by quadrature."""
    levels = torch.linspace(-7, 7, 700, dtype=torch.float64)
    sde, rest = EDM(), 0.05
    away = torch.linspace(-4, 4, 400, dtype=torch.float64)
    kernel = torch.softmax(-0.5 * (away / 0.5) ** 2, 0)

    def slope(level: Tensor) -> Tensor:
        square = (2 * (level[:, None] + away)).exp()
        return (2 * SCALE**4 * square / (SCALE**2 + square) ** 2 * kernel).sum(1)

    most = slope(levels).max()
    found = grids.by_loss(sde, 12, curve=curve_of(levels, exact_error(levels)), power=power, rest=rest)
    expected = grids.by_density(
        sde, 12, lambda r: (slope(r.log()) / most) ** power + rest, bottom=0.002 * SCALE, top=1000 * SCALE
    )
    # where the curve ends its smoothing is lopsided, and 700 levels are a sum
    assert torch.allclose(found.log(), expected.log(), atol=0.02)


def test_near_the_ends_the_slope_is_that_of_the_smoothed_error() -> None:
    """Of a line on levels that end inside the grid, by automatic differentiation of its mean under the kernel."""
    levels = torch.linspace(-3, 2, 11, dtype=torch.float64)
    errors = 4.0 + levels

    def slope(level: Tensor) -> Tensor:
        level = level.clamp(levels[0], levels[-1]).detach().requires_grad_()
        smooth = torch.softmax(-0.5 * ((level[:, None] - levels) / 0.5) ** 2, 1) @ errors
        return torch.autograd.grad(smooth.sum(), level)[0]

    def density(ratio: Tensor) -> Tensor:
        level = ratio.log()
        inside = (level >= levels[0]) & (level <= levels[-1])
        return torch.where(inside, slope(level) / slope(levels).max(), 0.0).clamp(0, 1) + 0.05

    found = grids.by_loss(EDM(), 40, curve=curve_of(levels, errors), power=1.0, rest=0.05)
    expected = grids.by_density(EDM(), 40, density, bottom=0.002 * SCALE, top=1000 * SCALE)
    torch.testing.assert_close(found.log(), expected.log(), rtol=1e-6, atol=1e-6)


def test_of_few_levels_with_noise_they_serve_as_well_as_of_many() -> None:
    """32 levels with errors of 5 %, as training measures them: the steps move by a tenth of the range at most."""
    levels = torch.linspace(-5, 5, 32, dtype=torch.float64)
    noise = 1 + 0.05 * torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clean, rough = (curve_of(levels, exact_error(levels) * one) for one in (torch.ones(32), noise))
    a, b = (grids.by_loss(EDM(), 10, curve=one).log() for one in (clean, rough))
    assert bool((a.diff() < 0).all()) and (a - b).abs().max() < 0.1 * (a[0] - a[-1])


def test_they_beat_the_steps_of_karras_where_data_are_clusters() -> None:
    """Two clusters of deviation 0.05 at distance 2: DDIM errs less in as many steps, for all that is decided is decided
    where the measured error changes.
    """
    problem = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], 0.0025 * torch.eye(2).repeat(2, 1, 1))
    sde = VP()
    score = problem.score(sde)
    levels = torch.linspace(-5, 5, 32, dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    x0 = _clusters(4000, g)
    t = sde.t_of_log_snr(-2 * levels)
    errors = []
    for one in t:
        x = sde.alpha(one) * x0 + sde.sigma(one) * torch.randn(x0.shape, generator=g, dtype=torch.float64)
        errors.append((score.denoise(x, one) - x0).square().mean())
    scale = float(x0.square().mean().sqrt())
    mean = torch.stack(errors)
    loss = mean * (scale**-2 + (-2 * levels).exp())
    curve = LossCurve(tuple(levels.tolist()), tuple(loss.tolist()), (0.01,) * 32, (4000,) * 32, scale)
    options = {"solver": DDIM(), "seed": 0, "dtype": torch.float64}
    truth = sample(score, (500, 2), steps=400, **options).x  # type: ignore[arg-type]

    def error(grid: object) -> float:
        found = sample(score, (500, 2), steps=10, grid=grid, **options)  # type: ignore[arg-type]
        return math.sqrt(float((found.x - truth).square().mean()))

    assert error(partial(grids.by_loss, curve=curve)) < 0.8 * error(grids.karras)


def _clusters(count: int, g: torch.Generator) -> Tensor:
    side = torch.randint(0, 2, (count, 1), generator=g).double() * 2 - 1
    centres = torch.cat([side, torch.zeros(count, 1)], 1)
    return centres + 0.05 * torch.randn(count, 2, generator=g, dtype=torch.float64)


def test_what_is_no_loss_of_a_score_is_refused() -> None:
    with pytest.raises(ValueError, match="cross-entropies"):
        grids.by_loss(VP(), 3, curve=LossCurve((0.0, 1.0), (1.0, 2.0), (0.1, 0.1), (9, 9)))
    with pytest.raises(ValueError, match="grow with the noise"):
        grids.by_loss(VP(), 3, curve=LossCurve((0.0,), (1.0,), (0.1,), (9,), 1.0))
    with pytest.raises(TypeError, match="held_out"):
        grids.by_loss(VP(), 3, curve=None)  # type: ignore[arg-type]
