"""Replacement, RePaint and DiffPIR: their exact laws on Gaussians, by following every normal that they draw."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import posteriors
from scoresde import grids
from scoresde.fitting import fit
from scoresde.guidance import classifier
from scoresde.inverse import (
    DiffPIR,
    Downsample,
    FunctionOperator,
    LinearOperator,
    Mask,
    Matrix,
    MeasuredSolver,
    Measurement,
    RePaint,
    Replacement,
)
from scoresde.models import as_score
from scoresde.noise import BrownianNoise, IndependentNoise, Noise
from scoresde.particles import tilted
from scoresde.problems import GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sampling import sample
from scoresde.sde import EDM, SDE, VP, RectifiedFlow, SubVP
from scoresde.solvers import (
    DDIM,
    Ancestral,
    AnnealedLangevin,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
    Solver,
    SpectralMultistep,
    UniPC,
)

F64 = torch.float64
RHO, Y = 0.8, 1.0
FIRST = Mask(torch.tensor([True, False]))
SDES = [VP(), SubVP(), EDM(), RectifiedFlow()]
KINDS: list[Any] = [Replacement, RePaint, DiffPIR]


def name(value: Any) -> str:
    return type(value).__name__ if not isinstance(value, type) else value.__name__


def pair(rho: float = RHO) -> GaussianMixture:
    """Two coordinates of variance 1 and correlation rho."""
    covariance = torch.tensor([[[1.0, rho], [rho, 1.0]]], dtype=F64)
    return GaussianMixture(torch.ones(1), torch.zeros(1, 2, dtype=F64), covariance)


def plane() -> GaussianMixture:
    """Three components on an event (1, 2, 1)."""
    means = torch.tensor([[-1.0, 0.5], [1.0, 1.0], [0.0, -1.0]], dtype=F64).reshape(3, 1, 2, 1)
    return GaussianMixture(torch.tensor([0.5, 0.3, 0.2]), means, 0.04)


class Units(Noise):
    """Row 0 draws zeros, row k draws 1 as the k-th normal of the run and 0 else.

    A solver whose steps are affine in x then ends, exactly, with its mean in row 0 and mean + column k of its Jacobian
    in row k: the law of its samples without a Monte Carlo error.
    """

    def __init__(self) -> None:
        self.drawn = 1

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        out, size = torch.zeros(shape, dtype=dtype, device=device), math.prod(shape[1:])
        assert self.drawn + size <= shape[0], "more normals than rows"
        out.reshape(shape[0], size)[self.drawn : self.drawn + size].fill_diagonal_(1)
        self.drawn += size
        return out

    def normal(self, x: Tensor) -> Tensor:
        return self.initial(tuple(x.shape), dtype=x.dtype, device=x.device)


def law(solver: Solver, sde: SDE, steps: int, *, rows: int = 1600, rho: float = RHO, **options: Any) -> Any:
    """Mean (2,) and covariance (2, 2) of the samples of a pair."""
    options = {"grid": grids.karras, "denoise": True} | options
    score = pair(rho).score(sde)
    x = sample(score, (rows, 2), solver=solver, steps=steps, noise=Units(), dtype=F64, **options).x
    spread = x[1:] - x[0]
    return x[0], spread.mT @ spread


def measured(noise_std: float = 0.0, y: float = Y) -> Measurement:
    return Measurement(torch.tensor([y], dtype=F64), FIRST, noise_std)


# -- replacement: derived bias ---------------------------------------------------------------------------------------


def derived(sde: SDE, grid: Tensor, eta: float, noise_std: float) -> tuple[Tensor, Tensor]:
    """The same law from the recursion of two moments, written without the library's solvers.

    p_t of the pair has covariance [[c, k], [k, c]], c = α² + σ², k = α² ρ. The measured part is N(α y, σ² + α² σ_y²),
    independent of the rest at each time; the other, N(m, v), makes DDIM's step: α_s x̂_0 + sqrt(σ_s² - d²) ε̂ + d z.
    """

    def at(t: Tensor) -> tuple[float, float]:
        return float(sde.alpha(t)), float(sde.sigma(t))

    m, v = 0.0, float(sde.sigma(grid[0])) ** 2
    for t, s in itertools.pairwise(grid):
        (at_t, st), (as_, ss) = at(t), at(s)
        c, k = at_t**2 + st**2, at_t**2 * RHO
        of_1, of_2 = k / (c**2 - k**2), -c / (c**2 - k**2)  # the second score's coefficients
        ratio = at_t / as_
        d = eta * ss / st * math.sqrt(st**2 - (ratio * ss) ** 2)
        keep, pull = as_ / at_t, as_ / at_t * st**2 - math.sqrt(ss**2 - d**2) * st
        on_1, on_2 = pull * of_1, keep + pull * of_2
        m, v = on_1 * at_t * Y + on_2 * m, on_1**2 * (st**2 + (at_t * noise_std) ** 2) + on_2**2 * v + d**2
    alpha, sigma = at(grid[-1])
    c, k = alpha**2 + sigma**2, alpha**2 * RHO
    on_1 = sigma**2 / alpha * k / (c**2 - k**2)
    on_2 = 1 / alpha - sigma**2 / alpha * c / (c**2 - k**2)
    first = sigma**2 + (alpha * noise_std) ** 2
    gain = alpha * noise_std**2 / first  # E[x_1(0) | x_1(t), y] = y + gain (x_1(t) - α y)
    mean = torch.tensor([Y, on_1 * alpha * Y + on_2 * m], dtype=F64)
    cross = gain * on_1 * first
    return mean, torch.tensor([[gain**2 * first, cross], [cross, on_1**2 * first + on_2**2 * v]], dtype=F64)


@pytest.mark.parametrize("noise_std", [0.0, 0.5])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_law_of_replacement_is_the_derived_one(sde: SDE, eta: float, noise_std: float) -> None:
    grid = grids.karras(sde, 20)
    got = law(Replacement(measured(noise_std), DDIM()), sde, 20, grid=grid, eta=eta)
    for a, b in zip(got, derived(sde, grid, eta, noise_std), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)  # rounding: scores of sizes 1/σ_min² times σ_min²


@pytest.mark.parametrize("rho", [0.2, 0.8])
@pytest.mark.parametrize("sde", [VP(t_min=1e-5), EDM()], ids=name)
def test_the_stated_bias_is_the_limit_of_small_steps(sde: SDE, rho: float) -> None:
    """First order in 1/n: Richardson's extrapolation of n and 2n leaves what is of second order."""
    mean = (1 - math.sqrt(1 - rho**2)) / rho
    variance = (1 - rho**2) * math.atanh(rho) / rho
    few, many = (law(Replacement(measured()), sde, n, rho=rho) for n in (160, 320))
    for index, limit in ((0, mean), (1, variance)):
        a, b = (float(v[index].flatten()[-1]) for v in (few, many))
        assert 1.7 < (a - limit) / (b - limit) < 2.3  # order one
        assert 2 * b - a == pytest.approx(limit, abs=4e-3)  # 100 / n², twice what was seen
    assert abs(mean - rho * Y) > 0.09  # which is not the posterior's mean


@pytest.mark.parametrize("solver", [SpectralMultistep(), DPMSolverPP()], ids=name)
def test_a_memory_of_past_steps_does_not_move_the_limit(solver: Solver) -> None:
    mean, variance = (1 - math.sqrt(1 - RHO**2)) / RHO, (1 - RHO**2) * math.atanh(RHO) / RHO
    got = law(Replacement(measured(), solver), VP(t_min=1e-5), 160, eta=1.0)
    # of first order, as for solvers without memory; they are 0.015 away at as many steps
    assert float(got[0][1]) == pytest.approx(mean, abs=0.015)
    assert float(got[1][1, 1]) == pytest.approx(variance, abs=0.015)


# -- the measured part -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Replacement, RePaint])
@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_the_measured_part_has_its_law_at_every_time(kind: Any, noise_std: float) -> None:
    """N(α y, σ² A Aᵀ + α² σ_y² I) with rows of A that are neither orthogonal nor of length 1."""
    a = Matrix(torch.tensor([[2.0, 1.0]], dtype=F64))
    solver = kind(Measurement(torch.tensor([Y], dtype=F64), a, noise_std), Ancestral())
    sde = VP()
    for steps in (1, 3):
        for denoise in (False, True):
            mean, covariance = law(solver, sde, steps, rows=300, denoise=denoise)
            alpha, sigma = (1.0, 0.0) if denoise else (float(v) for v in (sde.alpha(sde.t_min), sde.sigma(sde.t_min)))
            row = a.matrix()[0]
            assert float(row @ mean) == pytest.approx(alpha * Y, rel=1e-9)  # rounding
            variance = 5 * sigma**2 + (alpha * noise_std) ** 2
            if denoise:  # of E[A x_0 | A x, y], by the law of total variance σ_y² less what is left
                al, si = float(sde.alpha(sde.t_min)), float(sde.sigma(sde.t_min))
                variance = (al * noise_std**2) ** 2 / (5 * si**2 + (al * noise_std) ** 2)
            assert float(row @ covariance @ row) == pytest.approx(variance, rel=1e-7, abs=1e-15)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_start_is_drawn_given_the_measurement(sde: SDE) -> None:
    x = torch.full((500, 2), 1e3, dtype=F64)
    process = Reverse(pair().score(sde), 1.0)
    started, _ = Replacement(measured(0.3)).start(process, x, torch.tensor([sde.T, sde.t_min], dtype=F64), Units())
    alpha, sigma = float(sde.alpha(sde.T)), float(sde.sigma(sde.T))
    assert bool((started[:, 1] == 1e3).all())
    assert float(started[0, 0]) == pytest.approx(alpha * Y, abs=1e-12 * sigma)
    # row by row one normal: the state's two, of which the mask passes one, and the measurement's
    assert float((started[:, 0] - started[0, 0]).square().sum()) == pytest.approx(sigma**2 + (0.3 * alpha) ** 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clean_measurement_is_kept_to_rounding(kind: Any) -> None:
    """No noisy hole: where y is exact, A of the answer is y, for operators with and without A Aᵀ = I."""
    data, sde = plane(), VP()
    a = Matrix(torch.tensor([[2.0, 1.0]], dtype=F64), event=(1, 2, 1))
    for operator in (a, Mask(torch.tensor([[[True], [False]]])), Downsample((1, 2, 1), event=(1, 2, 1))):
        y = operator(data.sample(5, 0))
        x = sample(data.score(sde), (5, 1, 2, 1), solver=kind(Measurement(y, operator, 0.0)), steps=8, dtype=F64).x
        torch.testing.assert_close(operator(x), y, rtol=0, atol=1e-12)
        around = PredictorCorrector(kind(Measurement(y, operator, 0.0)))  # a solver around it denoises as it does
        x = sample(data.score(sde), (5, 1, 2, 1), solver=around, steps=8, dtype=F64).x
        torch.testing.assert_close(operator(x), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_times_with_no_noise_left(kind: Any) -> None:
    """A grid to t = 0, where σ = 0: nothing to denoise; A x is y, or drawn with σ_y by replacement."""
    sde = VP(t_min=0.0)
    grid = torch.tensor([1.0, 0.5, 0.1, 0.0], dtype=F64)
    for noise_std in (0.0, 0.3):
        solver = kind(measured(noise_std))
        mean, covariance = law(solver, sde, 3, grid=grid)
        if kind is DiffPIR and noise_std:
            continue  # its own law, below
        assert float(mean[0]) == pytest.approx(Y, abs=1e-12)
        assert float(covariance[0, 0]) == pytest.approx(noise_std**2, abs=1e-12)


# -- RePaint ---------------------------------------------------------------------------------------------------------


def test_one_resampling_is_replacement() -> None:
    for jump in (1, 3):
        got, plain = (
            law(s, VP(), 7) for s in (RePaint(measured(0.2), resamplings=1, jump=jump), Replacement(measured(0.2)))
        )
        assert torch.equal(got[0], plain[0]) and torch.equal(got[1], plain[1])


@pytest.mark.parametrize("jump", [1, 4])
def test_the_bias_falls_with_resamplings(jump: int) -> None:
    """The mean of the free coordinate rises from near Y (1 - sqrt(1 - ρ²))/ρ = 0.5 to near ρ Y = 0.8."""
    means = [
        float(law(RePaint(measured(), resamplings=u, jump=jump), VP(), 40, rows=400 * u + 20)[0][1]) for u in (1, 3, 9)
    ]
    bias = [RHO * Y - m for m in means]
    assert bias[0] > 1.5 * bias[1] > 3 * bias[2] > 0
    assert bias[0] == pytest.approx(0.3, abs=0.06)  # the limit of small steps, 40 of them


def test_going_back_follows_the_forward_transition() -> None:
    """One stretch of one step from a known x: the second pass starts from N(r x_s, v), here with a score of 0."""
    sde, t, s = VP(), torch.tensor(0.7, dtype=F64), torch.tensor(0.4, dtype=F64)
    process = Reverse(as_score(lambda x, t: 0 * x, sde), 1.0)
    x = torch.ones(40, 2, dtype=F64)
    end, _ = RePaint(measured(), DDIM(eta=0.0), resamplings=2).step(process, x, t, s, Units(), None)
    ratio, variance = (float(v) for v in sde.transition_coefficients(s, t))
    keep = float(sde.alpha(s) / sde.alpha(t))  # DDIM's step where the score is 0, with ratio = 1/keep
    assert float(end[0, 1]) == pytest.approx(keep * ratio * keep, rel=1e-12)
    assert float((end[:, 1] - end[0, 1]).square().sum()) == pytest.approx(keep**2 * variance, rel=1e-12)


@pytest.mark.parametrize(("steps", "jump"), [(1, 3), (4, 1), (6, 3), (7, 3)])
def test_evaluations_are_resamplings_times_steps(steps: int, jump: int, monkeypatch: pytest.MonkeyPatch) -> None:
    solver = RePaint(measured(), resamplings=3, jump=jump)
    back: list[Any] = []
    forward = VP.transition
    monkeypatch.setattr(VP, "transition", lambda self, *a: (back.append(a), forward(self, *a))[1])
    solution = sample(pair().score(VP()), (2, 2), solver=solver, steps=steps, trajectory=True, dtype=F64)
    assert solution.nfe == 3 * steps + 1
    assert len(back) == 2 * math.ceil(steps / jump)  # each stretch is gone back twice, as a whole
    assert solution.trajectory is not None and len(solution.trajectory) == steps + 1


def test_passes_do_not_share_a_paths_noise() -> None:
    """A Brownian path answers the same increment for the same interval: in the second pass that would be no new noise.

    With a score of 0 the answer is linear in the normals; shared, pass one's would come back with weight.
    """
    sde = VP()
    grid = torch.tensor([0.5, 0.3], dtype=F64)
    process = Reverse(as_score(lambda x, t: 0 * x, sde), 1.0)
    x = torch.zeros(4000, 2, dtype=F64)
    end = RePaint(measured(), EulerMaruyama(), resamplings=2).solve(process, x, grid, BrownianNoise(0, sde.T)).x[:, 1]
    g = float(sde.g(grid[0])) ** 2 * 0.2
    ratio, variance = (float(v) for v in sde.transition_coefficients(grid[1], grid[0]))
    keep = 1 - float(sde.f(grid[0])) * 0.2
    independent = keep**2 * (ratio**2 * g + variance) + g
    # the standard error of a variance is sqrt(2/4000) = 2.2 %; sharing would add 2 keep ratio g, a third and more
    assert float(end.var()) == pytest.approx(independent, rel=0.1)
    assert 2 * keep * ratio * g > 0.3 * independent


# -- DiffPIR ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_std", [0.0, 0.4])
def test_the_proximal_point_minimises(noise_std: float) -> None:
    """The gradient of the objective is 0 there (σ_y > 0), or the measurement is met at the least distance (σ_y = 0)."""
    sde, t = VP(), torch.tensor(0.4, dtype=F64)
    a = Matrix(torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, -1.0]], dtype=F64))
    data = GaussianMixture(torch.ones(2), torch.tensor([[1.0, 0, 2], [0, -1, 0]], dtype=F64), 0.2)
    y = torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=F64)
    process = Reverse(data.score(sde))
    x = torch.tensor([[0.3, -0.5, 1.0], [0.0, 2.0, 1.0]], dtype=F64)
    solver = DiffPIR(Measurement(y, a, noise_std), regularisation=3.0)
    point, x0 = solver.denoised(process, x, t), process.score.denoise(x, t)
    if noise_std:
        rho = 3.0 * float(sde.alpha(t) / sde.sigma(t)) ** 2
        gradient = (point @ a.matrix().mT - y) @ a.matrix() / noise_std**2 + rho * (point - x0)
        assert float(gradient.abs().max()) < 1e-10  # rounding
    else:
        torch.testing.assert_close(a(point), y, rtol=0, atol=1e-12)
        away = torch.linalg.svd(a.matrix())[2][2]  # along the null space nothing has moved
        assert float(((point - x0) @ away).abs().max()) < 1e-12


@pytest.mark.parametrize("zeta", [0.0, 0.3, 1.0])
def test_a_step_of_diffpir(zeta: float) -> None:
    """Mean and covariance of one step: α_s x̂_0' + σ_s (sqrt(1 - ζ) ε̂' + sqrt(ζ) z)."""
    sde, t, s = EDM(), torch.tensor(2.0, dtype=F64), torch.tensor(1.2, dtype=F64)
    process = Reverse(pair().score(sde))
    x = torch.tensor([[0.7, -1.1]], dtype=F64).expand(5, 2)
    solver = DiffPIR(measured(0.4), 2.0, zeta)
    assert solver.draws_noise(process) == (zeta > 0)
    end, _ = solver.step(process, x, t, s, Units(), None)
    x0 = solver.denoised(process, x[:1], t)
    mean = x0 + 1.2 * math.sqrt(1 - zeta) * (x[:1] - x0) / 2.0
    torch.testing.assert_close(end[:1], mean, rtol=1e-12, atol=0)
    spread = end[1:] - end[:1]
    torch.testing.assert_close(spread.mT @ spread, 1.44 * zeta * torch.eye(2, dtype=F64), rtol=1e-9, atol=1e-12)


def test_the_spread_of_diffpir_is_not_the_posteriors() -> None:
    """The stated bias: at ζ = 1 on an exactly Gaussian problem the free coordinate's variance is less than half."""
    exact = 1 - RHO**2 / (1 + 0.5**2)
    (_, at_1), (_, at_2) = (law(DiffPIR(measured(0.5), 1.0, 1.0), VP(), n) for n in (50, 200))
    assert float(at_2[1, 1]) < float(at_1[1, 1]) * 1.05 < 0.6 * exact  # more steps do not mend it


# -- zero terminal SNR: α(T) = 0 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_std", [0.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_runs_start_where_nothing_is_left_of_the_picture(kind: Any, noise_std: float) -> None:
    """The law at α(T) = 0 is the limit of those at T = 1 - ε, on the same times but the first."""
    times = grids.karras(RectifiedFlow(), 12)
    moments = []
    for sde in (RectifiedFlow(T=1.0), RectifiedFlow(T=1 - 1e-9)):
        grid = torch.cat([torch.tensor([sde.T], dtype=F64), times[1:]])
        moments.append(
            law(kind(measured(noise_std), **({"resamplings": 2} if kind is RePaint else {})), sde, 12, grid=grid)
        )
    for a, b in zip(*moments, strict=True):
        # the prior's covariance beside α² of it: 1e-9 in x̂_0, and 1e-7 where σ/α = 1e9 multiplies roundings
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


# -- composition -----------------------------------------------------------------------------------------------------

INSIDE: list[Solver] = [
    Ancestral(), DDIM(), EulerMaruyama(), Heun(), Heun(churn=1.0), PredictorCorrector(), AnnealedLangevin(steps=2),
    ProbabilityFlow(method="euler"),
]  # fmt: skip


@pytest.mark.parametrize("solver", INSIDE, ids=repr)
@pytest.mark.parametrize("kind", [Replacement, RePaint])
def test_any_solver_that_steps_fits_inside(kind: Any, solver: Solver) -> None:
    data, sde = plane(), VP()
    operator = Mask(torch.tensor([[[True], [False]]]))
    y = operator(data.sample(3, 0)).float()
    x = sample(data.score(sde), (3, 1, 2, 1), solver=kind(Measurement(y, operator, 0.0), solver), steps=6).x
    assert x.dtype == torch.float32
    torch.testing.assert_close(operator(x), y, rtol=0, atol=1e-5)  # float32


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("kind", KINDS)
def test_every_schedule_and_batch_size(kind: Any, sde: SDE) -> None:
    """No sample, one step; and samples that do not depend on the batch they are in, each with its own y."""
    data = plane()
    operator, score = Mask(torch.tensor([[[True], [False]]])), data.score(sde)
    y = operator(data.sample(4, 0))

    def run(y: Tensor, steps: int) -> Tensor:
        shape = (len(y), 1, 2, 1)
        return sample(score, shape, solver=kind(Measurement(y, operator, 0.1)), steps=steps, dtype=F64, seed=3).x

    for steps in (1, 5):
        assert run(y[:0], steps).shape == (0, 1, 2, 1)
        together = run(y, steps)
        torch.testing.assert_close(run(y[:1], steps), together[:1], rtol=1e-12, atol=1e-12)  # sums in other orders
    one = kind(Measurement(y[0], operator, 0.1))
    shared = sample(score, (4, 1, 2, 1), solver=one, steps=5, dtype=F64, seed=3).x
    torch.testing.assert_close(shared, run(y[:1].expand_as(y), 5), rtol=0, atol=0)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_to_x_y_and_the_grid(kind: Any, checkpoint: bool) -> None:
    sde, options = VP(), {"resamplings": 2, "jump": 2} if kind is RePaint else {}
    score = plane().score(sde)
    operator = Mask(torch.tensor([[[True], [False]]]))

    def run(x: Tensor, y: Tensor, grid: Tensor) -> Tensor:
        solver = kind(Measurement(y, operator, 0.2), **options)
        process = Reverse(score, 1.0)
        return solver.solve(process, x, grid, IndependentNoise(0), denoise=True, checkpoint=checkpoint).x

    x = torch.randn(2, 1, 2, 1, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.tensor([[0.4], [-0.6]], dtype=F64, requires_grad=True)
    grid = torch.tensor([0.9, 0.6, 0.3, 0.1], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, y, grid))


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_measurements_that_do_not_serve(kind: Any) -> None:
    with pytest.raises(TypeError, match="measurement must be a Measurement"):
        kind(FIRST)
    with pytest.raises(TypeError, match=r"FunctionOperator.*take dps"):
        kind(Measurement(torch.zeros(2), lambda x: x**2, 0.1))
    score = pair().score(VP())
    each = kind(Measurement(torch.zeros(3, 1), FIRST, 0.1))
    with pytest.raises(ValueError, match="3 measurements, one for each sample, but x has 4"):
        sample(score, (4, 2), solver=each, steps=2)
    with pytest.raises(ValueError, match=r"x must be \(B, 2\)"):
        sample(score, (4, 3), solver=kind(measured()), steps=2)


@pytest.mark.parametrize("solver", [UniPC(), DPMSolverPP(), SpectralMultistep()], ids=name)
def test_passes_gone_again_want_no_memory(solver: Solver) -> None:
    with pytest.raises(ValueError, match="remembers past steps"):
        RePaint(measured(), solver)
    with pytest.raises(ValueError, match="remembers past steps"):  # a solver around one says so, too
        RePaint(measured(), PredictorCorrector(solver))
    assert RePaint(measured(), DPMSolverPP(order=1)).solver.has_memory is False


def test_a_fitted_sampler_has_no_states_to_replace() -> None:
    fitted = fit(pair().score(VP()), steps=3, shape=(24, 2), batch=8, iterations=0, dtype=F64)
    for solver in (fitted, PredictorCorrector(fitted)):
        with pytest.raises(ValueError, match="do not follow the process, so that no part of them can be replaced"):
            Replacement(measured(), solver)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_particles_refuse_solvers_that_follow_a_measurement(kind: Any) -> None:
    tilt = classifier(pair().score(VP()), pair().label_log_prob(VP()), label=0)
    with pytest.raises(ValueError, match="do not follow the process"):
        tilted(tilt, (8, 2), steps=3, solver=kind(measured()))


def test_options_out_of_range() -> None:
    with pytest.raises(TypeError, match="solver must be a Solver"):
        Replacement(measured(), "ddim")  # type: ignore[arg-type]
    for bad in (0, 1.5, True):
        with pytest.raises((TypeError, ValueError), match="resamplings must be a whole number"):
            RePaint(measured(), resamplings=bad)  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError), match="jump must be a whole number"):
            RePaint(measured(), jump=bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="regularisation must be positive"):
        DiffPIR(measured(), regularisation=0.0)
    for zeta in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="share of new noise"):
            DiffPIR(measured(), zeta=zeta)


def test_the_checks_of_the_solver_inside_hold() -> None:
    with pytest.raises(ValueError, match="eta = 1"):
        sample(pair().score(VP()), (2, 2), solver=Replacement(measured(), Ancestral()), eta=0.5, steps=2)
    assert Replacement(measured(), DDIM()).default_eta == 0.0
    with pytest.raises(ValueError, match="pass noise="):
        Replacement(measured(), DDIM()).solve(
            Reverse(pair().score(VP()), 0.0), torch.zeros(1, 2), torch.tensor([1.0, 0.5])
        )


class Zeros(Noise):
    """No noise at all."""

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    def normal(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize(
    "solver",
    [Replacement(measured(), DPMSolverPP()), RePaint(measured(), Heun(), resamplings=2, jump=3)],
    ids=["replacement", "repaint"],
)
def test_a_state_can_be_taken_of_some_samples(solver: Solver) -> None:
    """As particles do between steps: what follows is what follows for those samples."""
    process, grid = Reverse(pair().score(VP()), 0.0), grids.karras(VP(), 6)
    x = torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([2, 0, 2])

    def run(at: int) -> Tensor:
        now, state = solver.start(process, x, grid, Zeros())
        for i, (t, s) in enumerate(itertools.pairwise(grid)):
            if i == at:
                now, state = now[rows], solver.selected(state, lambda v: v[rows])
            now, state = solver.step(process, now, t, s, Zeros(), state)
        return now

    torch.testing.assert_close(run(2), run(-1)[rows], rtol=1e-12, atol=1e-12)


@dataclasses.dataclass(frozen=True)
class Projected(MeasuredSolver):
    """The example of ``MeasuredSolver``."""

    def denoised(self, process: Reverse, x: Tensor, t: Tensor) -> Tensor:
        return self.operator.project(process.score.denoise(x, t), self.measurement_of(x))

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        x0 = self.denoised(process, x, t)
        return process.sde.alpha(s) * x0 + process.sde.sigma(s) * noise.between(x, t, s), state


def test_a_solver_of_ones_own_is_two_methods() -> None:
    solution = sample(pair().score(VP()), (50, 2), solver=Projected(measured()), steps=20)
    torch.testing.assert_close(solution.x[:, 0], torch.ones(50), rtol=0, atol=1e-6)
    assert solution.nfe == 21


def test_the_users_own_operator() -> None:
    """A function with its adjoint derived: the mean of both coordinates."""
    operator: LinearOperator = FunctionOperator(lambda x: x.mean(1, keepdim=True), event=(2,))
    solver = Replacement(Measurement(torch.tensor([0.3]), operator, 0.0))
    x = sample(pair().score(VP()), (6, 2), solver=solver, steps=10).x
    torch.testing.assert_close(x.mean(1), torch.full((6,), 0.3), rtol=0, atol=1e-5)


# -- the benchmark ---------------------------------------------------------------------------------------------------


def test_the_benchmark_runs_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    config = posteriors.Config(quick=True, problems=("plane-projection",), out=tmp_path / "cells.jsonl")
    config.markdown = tmp_path / "table.md"
    config.methods = ("replacement", "PiGDM", "particles, moment matching")
    posteriors.main(config)
    table = config.markdown.read_text("utf-8")
    assert table.startswith("**plane-projection**") and table.count("\n| ") == 2 + 1 + 3
    monkeypatch.setattr(posteriors, "measure", None)  # a second run finds every cell
    posteriors.main(config)
    assert config.markdown.read_text("utf-8") == table
    config.out = tmp_path / "none.jsonl"
    config.measure = False
    assert posteriors.results(posteriors.checked(config)) == []
    with pytest.raises(ValueError, match="unknown method 'particle'"):
        posteriors.checked(posteriors.Config(methods=("particle",)))


def test_the_benchmark_judges_rightly() -> None:
    """Exact samples come out at the floor and calibrated; the prior's, which ignore y, do not."""
    truth = posteriors.known("plane-coordinate", 4, 100, 5)
    setting = posteriors.SETTINGS["plane-coordinate"]()
    laws = [setting.mixture.posterior(setting.operator, y, setting.noise_std) for y in truth.y]
    exact = torch.stack([law.sample(100, 77) for law in laws])
    prior = setting.mixture.sample(400, 78).reshape(4, 100, 2)
    # between sets of 100 for four y the distance scatters by about a third of its mean
    assert 0.4 < posteriors.distance(exact, truth.exact) / truth.floor < 2.5
    assert posteriors.distance(prior, truth.exact) > 10 * truth.floor
    # 4 · 50 · 2 truths, but 100 samples of each y: standard error about sqrt(¼/(4 · 50)) = 0.035 and a little
    assert posteriors.ranks(exact, truth.truths)[0] == pytest.approx(0.5, abs=0.12)


def test_evaluations_and_gradients_are_counted() -> None:
    """Moment matching of 16 numbers: as many gradients in each evaluation; the last one is the denoising step's."""
    setting = posteriors.SETTINGS["digits-projections"]()
    score = posteriors.Counted(setting.mixture.score(posteriors.SDE))
    task = posteriors.Task(setting, score, torch.zeros(2, 16, dtype=F64), 3, 0, 4, 0)
    x = posteriors.METHODS["moment matching, eta = 1"](task)
    assert x.shape == (2, 3, 1, 8, 8) and (score.nfe, score.gradients) == (4, 4 * 16)
