"""The default solver: its formula written out again, its free start, what is exact for it, and what it is for."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from scoresde import grids
from scoresde.models import Score, as_score
from scoresde.noise import IndependentNoise
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sde import EDM, SDE, VP, Cosine, RectifiedFlow
from scoresde.solvers import UniPC, VMultistep
from scoresde.solvers._frames import levels
from scoresde.solvers._relaxed import extended

R, S = (0.0, -0.56, 2.38, 5.76), (0.0, 0.0, 3.6, 7.7, 5.4)  # as fitted


def scales(n: int, few: bool) -> tuple[float, float]:
    """d and c, written out again."""
    n = max(4, n)
    if few:
        return 1.247 * math.exp(2.23 / n), 0.204 * math.exp(9.96 / n)
    return 1.027 * math.exp(2.40 / n), 0.636 * math.exp(1.78 / n)


def mixture(scale: float = 1.0) -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.3], [0.9, 0.6], [0.2, -1.1]], dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.3, 0.4, 0.3]), scale * means, torch.tensor([0.04, 0.09, 0.06]) * scale**2)


def ratio(sde: SDE, grid: Tensor) -> np.ndarray:
    out: np.ndarray = (sde.sigma(grid) / sde.alpha(grid)).numpy()
    return out


def newton(nodes: list[float], values: list[float], shares: list[float]) -> Any:
    """Newton's form of the polynomial with a share of each term."""
    table, coefficients = list(values), [values[0]]
    for k in range(1, len(nodes)):
        table = [(table[i + 1] - table[i]) / (nodes[i + k] - nodes[i]) for i in range(len(table) - 1)]
        coefficients.append(table[0])

    def polynomial(phi: float) -> float:
        total, product = 0.0, 1.0
        for k, coefficient in enumerate(coefficients):
            total += (1.0 if k == 0 else max(0.0, shares[k])) * coefficient * product
            product *= phi - nodes[k]
        return total

    return polynomial


def velocity(at: float) -> float:
    """A v that depends on time alone, by φ."""
    return math.exp(-2 * at) * math.cos(5 * at)


def integrals(sde: SDE, grid: Tensor, c: float, d: float) -> Callable[[int, list[int], list[float]], float]:
    """Over step i, of Newton's form through v at these times, by scipy."""
    level = ratio(sde, grid)
    phi, theta = level / (c + level), np.arctan(level / d)

    def integral(i: int, nodes: list[int], shares: list[float]) -> float:
        form = newton([phi[j] for j in nodes], [velocity(phi[j]) for j in nodes], shares)

        def along(angle: float) -> float:
            return float(form(d * math.tan(angle) / (c + d * math.tan(angle))))

        return float(quad(along, theta[i], theta[i + 1], epsabs=1e-12)[0])

    return integral


@pytest.mark.parametrize("sde", [VP(), EDM(), RectifiedFlow(), Cosine(t_min=0.01)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [4, 6, 10, 21])
def test_the_formula_of_few_evaluations(sde: SDE, steps: int) -> None:
    """A v that depends on time alone, v(φ): the end is a sum of integrals of Newton forms, here by scipy."""
    n = steps - 1
    d, c = scales(n, few=True)
    grid = grids.balanced(sde, steps)
    integral = integrals(sde, grid, c, d)
    predict, correct = [1 - r / n for r in R], [1 + s / n for s in S]
    total = integral(0, [1, 2], [1.0, correct[1]])  # the free step, by the first two evaluations
    for i in range(1, steps - 1):
        total += integral(i, [i + 1, *range(i, max(0, i - 4), -1)], correct)
    total += integral(steps - 1, list(range(steps - 1, max(0, steps - 5), -1)), predict)
    expected = 0.7 + total  # of x/N

    first, last = (((sde.alpha(t) * d) ** 2 + sde.sigma(t) ** 2).sqrt() for t in (grid[0], grid[-1]))
    x = 0.7 * first.reshape(1, 1)
    found = VMultistep().solve(Reverse(rotating(sde, c, d, velocity), 0.0), x, grid)
    assert found.nfe == n
    # quadrature of 20 points on steps that span up to 6 in log σ/α at 4 steps; rounding otherwise
    assert float(found.x / last) == pytest.approx(expected, abs=1e-5 if steps == 4 else 1e-7)


@pytest.mark.parametrize("sde", [VP(), EDM(), RectifiedFlow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [3, 22, 30])
def test_the_formula_of_many_evaluations(sde: SDE, steps: int) -> None:
    """The same for runs without a free step: five values, six with the evaluation that corrects, all taken whole."""
    d, c = scales(steps, few=False)
    grid = grids.balanced(sde, steps)
    integral = integrals(sde, grid, c, d)

    def whole(i: int, first: int, count: int) -> float:
        nodes = list(range(first, max(-1, first - count), -1))
        return integral(i, nodes, [1.0] * len(nodes))

    total = sum(whole(i, i + 1, 6) for i in range(steps - 1)) + whole(steps - 1, steps - 1, 5)
    first, last = (((sde.alpha(t) * d) ** 2 + sde.sigma(t) ** 2).sqrt() for t in (grid[0], grid[-1]))
    found = VMultistep().solve(Reverse(rotating(sde, c, d, velocity), 0.0), 0.7 * first.reshape(1, 1), grid)
    assert found.nfe == steps
    assert float(found.x / last) == pytest.approx(0.7 + total, abs=1e-5 if steps == 3 else 1e-7)  # quadrature, as above


def rotating(sde: SDE, c: float, d: float, velocity: Callable[[float], float]) -> Score:
    """The score whose v depends on time alone."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        norm = ((alpha * d) ** 2 + sigma**2).sqrt()
        value = velocity(float(sigma / alpha / (c + sigma / alpha)))
        # v = cos θ ε - sin θ x0/d and x/N = cos θ x0/d + sin θ ε: a rotation by θ, turned back
        epsilon = alpha * d / norm * value + sigma / norm * x / norm
        return -epsilon / sigma

    return as_score(score, sde)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_a_step_is_free_from_twenty_times_the_scale_on(scale: float) -> None:
    for start, evaluations in ((20.1 * scale, 7), (19.9 * scale, 8)):
        sde = EDM(T=start)
        process, x = Reverse(mixture().score(sde), 0.0), torch.ones(1, 2, dtype=torch.float64)
        assert VMultistep(scale).solve(process, x, grids.balanced(sde, 8, sigma_data=scale)).nfe == evaluations


def test_an_end_without_noise_is_taken_for_one_with_hardly_any() -> None:
    at = levels(EDM(t_min=0.0), torch.tensor([80.0, 3.0, 0.5, 0.0], dtype=torch.float64))
    near = extended(at)
    for ours, theirs in zip(near, at, strict=True):
        assert torch.equal(ours[:-1], theirs[:-1])
    assert float(near.h[-1]) == math.log(2) + 25 and float(near.sigma[-1]) == pytest.approx(0.5 * math.exp(-25))


def test_evaluations() -> None:
    far, x = VP(), torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def nfe(steps: int, sde: SDE = far, eta: float = 0.0, scale: float = 1.0) -> int:
        grid = grids.balanced(sde, steps, sigma_data=scale)
        return VMultistep(scale).solve(Reverse(mixture().score(sde), eta), x, grid, 0).nfe

    assert [nfe(s) for s in (1, 2, 3, 4, 10, 21, 22, 50)] == [1, 2, 3, 3, 9, 20, 22, 50]
    assert nfe(10, eta=0.5) == 10  # noise is drawn from the first step on
    assert nfe(10, VP(T=0.5)) == 10  # σ/α starts at 3.4, where the score is not the prior's
    assert nfe(10, scale=10.0) == 10  # and 152 is not far for data of scale 10


@pytest.mark.parametrize("sde", [VP(), EDM(), RectifiedFlow(), VP(t_min=0.0)], ids=repr)
@pytest.mark.parametrize("steps", [3, 5, 9, 21, 30])
def test_exact_on_data_of_the_frames_scale(sde: SDE, steps: int) -> None:
    """On N(0, d² I) v is 0, free step or not."""
    few = 4 <= steps <= 21
    d, _ = scales(steps - few, few)
    data = Gaussian(torch.zeros(2, dtype=torch.float64), d**2)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * sde.prior_std
    grid = grids.balanced(sde, steps)
    found = VMultistep().solve(Reverse(data.score(sde), 0.0), x, grid).x
    # rounding: v is a difference of two numbers that agree, summed with weights below 10
    torch.testing.assert_close(found, data.flow(sde, x, grid[0], grid[-1]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [8, 30])
@pytest.mark.parametrize("scale", [0.1, 4.0])
def test_scaled_data_with_their_scale_are_the_same_problem(steps: int, scale: float) -> None:
    """x -> s x, σ -> s σ, sigma_data -> s sigma_data changes nothing else: it reaches frame, φ, threshold and grid."""
    x = 80 * torch.randn(6, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def end(s: float, told: float) -> Tensor:
        sde = EDM(T=80.0 * s, t_min=0.002 * s)
        grid = grids.balanced(sde, steps, sigma_data=told)
        return VMultistep(told).solve(Reverse(mixture(s).score(sde), 0.0), s * x, grid).x / s

    torch.testing.assert_close(end(scale, scale), end(1.0, 1.0), rtol=1e-8, atol=1e-8)  # rounding of times near 0.002
    assert not torch.allclose(end(scale, 1.0), end(1.0, 1.0), atol=1e-5)


@pytest.mark.parametrize("sde", [VP(), EDM(), RectifiedFlow(), VP(t_min=0.0)], ids=repr)
@pytest.mark.parametrize("steps", [8, 21, 40])
def test_it_needs_fewer_evaluations(sde: SDE, steps: int) -> None:
    """What it is for: a third at most of the error of a good method with as many evaluations."""
    data = mixture()
    process = Reverse(data.score(sde), 0.0)
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * sde.prior_std
    exact = VMultistep().solve(process, x, grids.balanced(sde, 400)).x
    ours = VMultistep().solve(process, x, grids.balanced(sde, steps))
    peer = UniPC(2).solve(process, x, grids.karras(sde, ours.nfe))
    assert peer.nfe == ours.nfe
    errors = [float((run.x - exact).square().mean().sqrt()) for run in (ours, peer)]
    assert errors[0] < errors[1] / 3  # measured: a fifth to a fiftieth


def test_stochastic_runs_have_the_right_law() -> None:
    data, sde = mixture(), VP()
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    run = partial(VMultistep().solve, Reverse(data.score(sde), 1.0), x, grids.balanced(sde, 40))
    found, truth = run(IndependentNoise(5)).x, data.sample(4000, 6)
    # means and second moments of 4000 samples: 5 standard errors
    for a, b in ((found, truth), (found**2, truth**2)):
        spread = (a.var(0) + b.var(0)).div(4000).sqrt()
        assert bool(((a.mean(0) - b.mean(0)).abs() < 5 * spread).all())


@pytest.mark.parametrize("steps", [4, 23])
def test_gradients_reach_the_grid(steps: int) -> None:
    sde, data = EDM(), Gaussian(torch.full((1,), 0.4, dtype=torch.float64), 0.3)
    x = torch.full((1, 1), 30.0, dtype=torch.float64)

    def end(grid: Tensor) -> Tensor:
        return VMultistep().solve(Reverse(data.score(sde), 0.0), x, grid).x

    grid = grids.balanced(sde, steps).requires_grad_()
    (gradient,) = torch.autograd.grad(end(grid).sum(), grid)
    i, step = 2, 1e-5 * float(grid[2].detach())
    move = torch.zeros(steps + 1, dtype=torch.float64)
    move[i] = step
    slope = (end(grid.detach() + move) - end(grid.detach() - move)).sum() / (2 * step)
    assert float(gradient[i]) == pytest.approx(float(slope), rel=1e-4, abs=1e-9)  # central difference


def test_bad_scales() -> None:
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="sigma_data must be positive"):
            VMultistep(bad)
        with pytest.raises(ValueError, match="sigma_data must be positive"):
            grids.balanced(VP(), 5, sigma_data=bad)


@pytest.mark.parametrize(
    ("eta", "steps"), [(1.0, 15), (0.5, 4), (2.0, 60), (math.sqrt(20.05 / 15), 21), (math.sqrt(19.95 / 15), 20)]
)
def test_noise_is_corrected_from_fifteen_eta_squared_steps_on(eta: float, steps: int) -> None:
    """A corrected step of two values has weights for three, one without the corrector for two."""
    sde = VP()

    def values(steps: int) -> int:
        plan = VMultistep().plan(Reverse(as_score(lambda x, t: -x, sde), eta), grids.balanced(sde, steps))
        return max(len(row.weights) for row in plan)

    assert values(steps) == 3
    assert values(steps - 1) == 2
