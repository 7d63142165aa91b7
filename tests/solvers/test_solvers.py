"""Our steps against the papers' algorithms, written out here from the papers; and what a solver refuses."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from published import Listed, edm_sampler, edm_times
from torch import Tensor

from scoresde import grids
from scoresde.models import Score, as_score
from scoresde.noise import BrownianNoise, Noise, PerSampleNoise
from scoresde.problems import GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sde import EDM, SDE, VE, VP, ChainSDE, Cosine, RectifiedFlow, SubVP
from scoresde.solvers import (
    DDIM,
    Ancestral,
    AnnealedLangevin,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    Solver,
    TorchSDE,
    catalogue,
)
from scoresde.solvers.solution import Progress

# Rounding: the textbook's formula and ours round differently a few times in each of some tens of steps.
ROUNDING = {"rtol": 1e-10, "atol": 1e-10}


def normals(n: int, seed: int = 0, shape: tuple[int, ...] = (3, 2)) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=g) for _ in range(n)]


def mixture() -> GaussianMixture:
    means = torch.tensor([[1.0, 0.5], [-1.0, 0.0]], dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.3, 0.7]), means, torch.tensor([0.1, 0.3]))


def chain_score(eps: Callable[[Tensor, int], Tensor], sigma: Tensor, n: int) -> Score:
    """The score -ε(x, i)/σ_i of a network that knows levels 1 .. n, asked at the times i T/n with T = 1."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        level = round(float(t) * n)
        assert abs(float(t) * n - level) < 1e-9, "asked between levels"
        return -eps(x, level) / sigma[level - 1]

    return score


def network(x: Tensor, level: int) -> Tensor:
    """Stands for a trained ε_θ: nonlinear in x, different at each level."""
    return torch.tanh(x + 0.1 * level) + 0.05 * x.flip(-1)


# ---- DDPM: chains of Ho et al. 2020 ----


def ddpm(n: int) -> tuple[Tensor, Tensor]:
    """β_i and ᾱ_i of a linear schedule, as in the paper; with n = 12 a scaled one."""
    beta = torch.linspace(0.1 / n, 10.0 / n, n, dtype=torch.float64)
    return beta, (1 - beta).cumprod(0)


@pytest.mark.parametrize("variance", ["posterior", "transition"])
def test_ancestral_is_ddpm_algorithm_2(variance: Any) -> None:
    n = 12
    beta, bar = ddpm(n)
    chain = VP(beta_min=0.1, beta_max=10.0).discretize(n)
    torch.testing.assert_close(chain.beta, beta, rtol=1e-14, atol=0)
    z = normals(n)

    # Algorithm 2: x_{i-1} = (x_i - (1 - α_i)/sqrt(1 - ᾱ_i) ε)/sqrt(α_i) + σ_i z, z = 0 in the last step.
    x = z[0]
    for i in range(n, 0, -1):
        b, a_bar = beta[i - 1], bar[i - 1]
        before = bar[i - 2] if i > 1 else torch.ones(())
        square = b if variance == "transition" else (1 - before) / (1 - a_bar) * b
        x = (x - b / (1 - a_bar).sqrt() * network(x, i)) / (1 - b).sqrt()
        if i > 1:
            x = x + square.sqrt() * z[n - i + 1]

    sde = ChainSDE(chain)
    process = Reverse(as_score(chain_score(network, (1 - bar).sqrt(), n), sde))
    got = Ancestral(variance).solve(process, z[0], chain.times.flip(0), Listed(z[1:]), denoise=True)
    torch.testing.assert_close(got.x, x, **ROUNDING)
    assert got.nfe == n and got.denoised


def test_ancestral_on_a_ve_chain_is_its_own_formula() -> None:
    """Song et al. 2021, appendix F, eq. 47, with d = σ_i² - σ_{i-1}²: x_i + d s + sqrt(d σ_{i-1}²/σ_i²) z."""
    n, z = 9, normals(9)
    sigma = torch.logspace(-2, 1, n, dtype=torch.float64)
    chain = VE(0.01, 10.0).discretize(n)
    score = chain_score(network, sigma, n)
    x = z[0]
    for i in range(n, 1, -1):
        high, low = sigma[i - 1] ** 2, sigma[i - 2] ** 2
        step = torch.tensor(i / n, dtype=torch.float64)
        x = x + (high - low) * score(x, step) + (low * (high - low) / high).sqrt() * z[n - i + 1]
    got = Ancestral().solve(Reverse(as_score(score, ChainSDE(chain))), z[0], chain.times.flip(0), Listed(z[1:]))
    torch.testing.assert_close(got.x, x, **ROUNDING)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("own", [True, False])
def test_ddim_is_equations_12_and_16(eta: float, own: bool) -> None:
    """On a subsequence of the levels, as the paper accelerates."""
    n, levels = 12, [12, 9, 8, 4, 1]
    _, bar = ddpm(n)
    chain = VP(beta_min=0.1, beta_max=10.0).discretize(n)
    z = normals(5)
    x, draws = z[0], iter(z[1:])
    for i, j in itertools.pairwise(levels):
        a, b, eps = bar[i - 1], bar[j - 1], network(x, i)
        d = eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).sqrt()  # eq. 16
        x = b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b - d**2).sqrt() * eps  # eq. 12
        if eta:
            x = x + d * next(draws)
    process = Reverse(as_score(chain_score(network, (1 - bar).sqrt(), n), ChainSDE(chain)), 0.0 if own else eta)
    grid = torch.stack([chain.time(i) for i in levels])
    got = DDIM(eta if own else None).solve(process, z[0], grid, Listed(z[1:]) if eta else None)
    torch.testing.assert_close(got.x, x, **ROUNDING)


def test_ddim_at_eta_one_is_ancestral_sampling() -> None:
    for sde in (VP(), VE(), Cosine(), RectifiedFlow()):
        process, grid = Reverse(mixture().score(sde)), grids.karras(sde, 6)
        x, z = normals(1, 5)[0] * sde.prior_std, normals(6, 6)
        a, b = (solver.solve(process, x, grid, Listed(z)).x for solver in (DDIM(), Ancestral()))
        torch.testing.assert_close(a, b, **ROUNDING)


@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_reverse_diffusion_is_equation_46(eta: float) -> None:
    """Song et al. 2021, eq. 46, on DDPM's and SMLD's chains; between 0 and 1 the score's weight is ½(1 + η²)."""
    n, z = 12, normals(12)
    beta, bar = ddpm(n)
    chain = VP(beta_min=0.1, beta_max=10.0).discretize(n)
    score, x = chain_score(network, (1 - bar).sqrt(), n), z[0]
    for i in range(n, 1, -1):
        b = beta[i - 1]
        s = score(x, torch.tensor(i / n, dtype=torch.float64))
        x = (2 - (1 - b).sqrt()) * x + 0.5 * (1 + eta**2) * b * s + eta * b.sqrt() * z[n - i + 1]
    got = ReverseDiffusion().solve(
        Reverse(as_score(score, ChainSDE(chain)), eta), z[0], chain.times.flip(0), Listed(z[1:])
    )
    torch.testing.assert_close(got.x, x, **ROUNDING)

    sigma = torch.logspace(-2, 1, n, dtype=torch.float64)
    chain, score, x = VE(0.01, 10.0).discretize(n), chain_score(network, sigma, n), z[0]
    for i in range(n, 1, -1):
        v = sigma[i - 1] ** 2 - sigma[i - 2] ** 2
        s = score(x, torch.tensor(i / n, dtype=torch.float64))
        x = x + 0.5 * (1 + eta**2) * v * s + eta * v.sqrt() * z[n - i + 1]
    got = ReverseDiffusion().solve(
        Reverse(as_score(score, ChainSDE(chain)), eta), z[0], chain.times.flip(0), Listed(z[1:])
    )
    torch.testing.assert_close(got.x, x, **ROUNDING)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_euler_maruyama_written_out(eta: float) -> None:
    """β(t) x/2 and β(t) of VP by hand."""
    sde, z = VP(), normals(5)
    score, grid, x = mixture().score(sde), grids.uniform(sde, 4), z[0]
    for k, (t, s) in enumerate(itertools.pairwise(grid)):
        h, beta = t - s, 0.1 + t * 19.9
        x = x + h * (0.5 * beta * x + 0.5 * (1 + eta**2) * beta * score(x, t)) + eta * (beta * h).sqrt() * z[k + 1]
    got = EulerMaruyama().solve(Reverse(as_score(score, sde), eta), z[0], grid, Listed(z[1:]))
    torch.testing.assert_close(got.x, x, **ROUNDING)


# ---- NCSN ----


@pytest.mark.parametrize("given", [True, False])
def test_annealed_langevin_is_ncsn_algorithm_1(given: bool) -> None:
    n, steps = 6, 4
    sigma = torch.logspace(-1, 1, n, dtype=torch.float64)
    chain = VE(0.1, 10.0).discretize(n)
    score, z = chain_score(network, sigma, n), normals(1 + n * steps)
    epsilon = 2e-3 if given else 0.5 * float(sigma[0]) ** 2  # the documented default
    x, draws = z[0], iter(z[1:])
    for i in range(n, 0, -1):
        a = epsilon * sigma[i - 1] ** 2 / sigma[0] ** 2
        for _ in range(steps):
            x = x + 0.5 * a * score(x, torch.tensor(i / n, dtype=torch.float64)) + a.sqrt() * next(draws)
    solver = AnnealedLangevin(step_size=epsilon if given else None, steps=steps)
    got = solver.solve(Reverse(as_score(score, ChainSDE(chain))), z[0], chain.times.flip(0), Listed(z[1:]))
    torch.testing.assert_close(got.x, x, **ROUNDING)
    assert got.nfe == n * steps


def test_langevin_corrector_is_algorithm_4_with_its_expected_norms() -> None:
    """ε = 2 (r |z|/|s|)²; x <- x + ε s + sqrt(2ε) z, with |z|/|s| = σ."""
    sde, z, r, steps = VP(), normals(4), 0.16, 3  # the default r
    score, t, x = mixture().score(sde), torch.tensor(0.3, dtype=torch.float64), z[0]
    for k in range(steps):
        e = 2 * (r * sde.sigma(t)) ** 2
        x = x + e * score(x, t) + (2 * e).sqrt() * z[k + 1]
    got = Langevin(steps=steps).correct(Reverse(as_score(score, sde)), z[0], t, Listed(z[1:]))
    torch.testing.assert_close(got, x, **ROUNDING)


def test_predictor_corrector_alternates_at_the_new_time() -> None:
    sde, z, corrector = VE(), normals(7), Langevin(0.2, 2)
    process, grid, x = Reverse(mixture().score(sde)), torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64), z[0]
    noise = Listed(z[1:])
    for t, s in itertools.pairwise(grid):
        x = corrector.correct(process, EulerMaruyama().step(process, x, t, s, noise, None)[0], s, noise)
    got = PredictorCorrector(EulerMaruyama(), corrector).solve(process, z[0], grid, Listed(z[1:]))
    torch.testing.assert_close(got.x, x, **ROUNDING)
    assert got.nfe == 2 * (1 + 2)


def test_predictor_corrector_keeps_the_state_of_its_predictor() -> None:
    """Heun's γ depends on the number of steps, which only its ``start`` sees."""
    sde, z = EDM(T=200.0), normals(9)
    process, grid = Reverse(mixture().score(sde), 0.0), grids.karras(sde, 4, t_start=80.0)
    solver = PredictorCorrector(Heun(churn=2.0), Langevin(1e-9))
    plain = Heun(churn=2.0).solve(process, z[0], grid, Listed(z[1::2])).x
    got = solver.solve(process, z[0], grid, Listed(z[1:])).x
    # the corrector's steps are of size 1e-9 σ
    torch.testing.assert_close(got, plain, rtol=1e-5, atol=1e-6)
    assert solver.default_eta == 0.0 and PredictorCorrector().default_eta == 1.0


# ---- EDM ----


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"churn": 2.0},
        {"churn": 1e3},  # γ at its bound sqrt(2) - 1
        {"churn": 2.0, "churn_min": 0.05, "churn_max": 10.0},
        {"churn": 2.0, "churn_noise": 1.007},
    ],
    ids=str,
)
def test_heun_is_edm_algorithm_2(options: dict[str, float]) -> None:
    n, z = 8, normals(9)
    sde, times = EDM(T=200.0), edm_times(n)  # room above 80 for the first step's churn
    torch.testing.assert_close(grids.karras(EDM(), n - 1), times[:-1], rtol=1e-12, atol=0)
    process, x = Reverse(mixture().score(sde), 0.0), 80 * z[0]
    expected = edm_sampler(
        process.score.denoise,
        times,
        x,
        Listed(z[1:]),
        options.get("churn", 0.0),
        options.get("churn_min", 0.0),
        options.get("churn_max", math.inf),
        options.get("churn_noise", 1.0),
    )
    got = Heun(**options).solve(process, x, times, Listed(z[1:]))
    # t is found from log-SNR and back: 1e-15 relative in t, times slopes of order one
    torch.testing.assert_close(got.x, expected, rtol=1e-9, atol=1e-9)
    assert got.nfe == 2 * n - 1  # the last step, to 0, is Euler's


def test_churn_stops_at_the_largest_noise_the_sde_has() -> None:
    """At T there is no room: the first step adds nothing, a later one at most what leads to T."""
    sde, z = VP(), normals(3)
    process = Reverse(mixture().score(sde), 0.0)
    top = torch.tensor([1.0, 0.5], dtype=torch.float64)
    plain, churned = (Heun(churn=c).solve(process, z[0], top, Listed(z[1:])).x for c in (0.0, 1.0))
    torch.testing.assert_close(plain, churned, rtol=0, atol=0)
    near = torch.tensor([0.999, 0.5], dtype=torch.float64)
    mean, std = sde.transition(z[0], 0.999, 1.0)
    raised = mean + std * z[1]
    expected = Heun().solve(process, raised, top, None).x
    got = Heun(churn=1.0).solve(process, z[0], near, Listed(z[1:])).x
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


# ---- invariance: these methods know only x/α and σ/α ----


@pytest.mark.parametrize(
    "solver",
    [DDIM(), DDIM(eta=0.4), Heun(), Heun(churn=3.0), Ancestral(), AnnealedLangevin(steps=3),
     PredictorCorrector(DDIM(eta=1.0), Langevin(0.3, 2))],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("other", [VP(), Cosine(), RectifiedFlow(), VE(1e-3, 50.0)], ids=lambda s: type(s).__name__)
def test_methods_in_the_noise_level_do_not_see_the_schedule(solver: Solver, other: SDE) -> None:
    """At equal σ/α, x/α is the same under every schedule: exact scores obey the same change of variables."""
    reference = EDM(T=200.0)
    ratio = torch.tensor([30.0, 5.0, 1.0, 0.2, 0.05], dtype=torch.float64)
    z, eta = normals(40), solver.default_eta
    times = other.t_of_log_snr(-2 * ratio.log())
    noise = Listed(z[1:]), Listed(z[1:])
    a = solver.solve(Reverse(mixture().score(reference), eta), 30 * z[0], ratio, noise[0]).x
    b = solver.solve(
        Reverse(mixture().score(other), eta), 30 * z[0] * other.alpha(times[0]), times, noise[1]
    ).x / other.alpha(times[-1])
    # times come from a root of the log-SNR: 1e-10 relative at worst, amplified by the steps
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
    assert len(noise[0].left) == len(noise[1].left)


# ---- contracts of every solver ----


def default_solvers() -> list[Solver]:
    return [kind() for kind in catalogue.classes()]


@pytest.mark.parametrize("solver", default_solvers(), ids=lambda s: type(s).__name__)
def test_every_solver_is_a_frozen_dataclass_that_states_its_orders(solver: Solver) -> None:
    assert dataclasses.is_dataclass(solver)
    assert type(solver).__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert type(solver)() == solver and hash(type(solver)) is not None
    for order in (solver.order, solver.weak_order, solver.strong_order):
        assert order is None or order > 0
    assert solver.default_eta in (0.0, 1.0)
    solver.check(Reverse(as_score(lambda x, t: x, VP()), solver.default_eta))
    assert type(solver).__doc__


@pytest.mark.parametrize("solver", default_solvers(), ids=lambda s: type(s).__name__)
def test_one_step_grids_empty_batches_and_batches_of_one(solver: Solver) -> None:
    sde = VP()
    process = Reverse(mixture().score(sde), solver.default_eta)
    grid = torch.tensor([1.0, 0.8], dtype=torch.float64)
    for n in (0, 1):
        solution = solver.solve(process, torch.zeros(n, 2), grid, 0, denoise=True, trajectory=True)
        assert solution.x.shape == (n, 2) and solution.trajectory is not None
        assert solution.trajectory.shape == (2, n, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("solver", default_solvers(), ids=lambda s: type(s).__name__)
def test_states_keep_their_dtype_and_times_are_never_rounded_to_it(solver: Solver, dtype: torch.dtype) -> None:
    """In half precision t = 0.999 would be 1 or 0.996; the score must be asked at the grid's own times."""
    sde, asked = VP(), []

    def score(x: Tensor, t: Tensor) -> Tensor:
        assert x.dtype == torch.promote_types(dtype, torch.float32)  # the state of a run
        asked.extend(t.flatten().tolist())  # an adaptive method asks each sample at its own time
        return -x  # of N(0, I), which is stationary

    grid = torch.tensor([0.999, 0.501, 0.0499], dtype=torch.float64)
    x = torch.ones(2, 3, dtype=dtype)
    solution = solver.solve(
        Reverse(as_score(score, sde), solver.default_eta), x, grid, 0, denoise=True, trajectory=True
    )
    assert solution.x.dtype == dtype and solution.trajectory is not None and solution.trajectory.dtype == dtype
    # 1e-7: torchdiffeq keeps times in float32 where the state is one
    assert min(abs(t - 0.0499) for t in asked) < 1e-7
    assert min(abs(t - 0.999) for t in asked) < 1e-7 or isinstance(solver, AnnealedLangevin)


@pytest.mark.parametrize("solver", default_solvers(), ids=lambda s: type(s).__name__)
def test_grids_may_end_where_no_noise_is_left(solver: Solver) -> None:
    """At σ = 0 there is no score to ask for: no solver does, and denoising is the identity."""
    sde = RectifiedFlow()

    def score(x: Tensor, t: Tensor) -> Tensor:
        if bool((t == 0).any()) and not isinstance(
            solver, (ProbabilityFlow, TorchSDE)
        ):  # these look at the end themselves
            raise AssertionError("asked at σ = 0")
        return -x / (1 - 2 * t + 2 * t**2).reshape(-1, 1)  # of N(0, 1): variance (1 - t)² + t²

    process = Reverse(as_score(score, sde), solver.default_eta)
    grid = torch.tensor([0.9, 0.4, 0.0], dtype=torch.float64)
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b = (solver.solve(process, x, grid, 0, denoise=d) for d in (False, True))
    assert torch.equal(a.x, b.x) and a.nfe == b.nfe


@pytest.mark.parametrize("solver", default_solvers(), ids=lambda s: type(s).__name__)
def test_a_score_in_another_dtype_does_not_change_the_state(solver: Solver) -> None:
    for wide in (torch.float64, torch.bfloat16):
        process = Reverse(as_score(lambda x, t: -x.to(wide), VP()), solver.default_eta)  # noqa: B023
        solution = solver.solve(process, torch.ones(2, 2), torch.tensor([1.0, 0.5, 0.1]), 0, denoise=True)
        assert solution.x.dtype == torch.float32


@pytest.mark.parametrize("sde", [VP(), VE(), EDM(), Cosine()], ids=lambda s: type(s).__name__)
def test_the_process_written_out_for_one_time_and_for_each(sde: SDE) -> None:
    data, x = mixture(), normals(1)[0]
    score, t = data.score(sde), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64) * sde.T
    for eta in (0.0, 0.5, 1.0, 2.0):
        process = Reverse(score, eta)
        f, g, s = sde.f(t)[:, None], sde.g(t)[:, None], score(x, t)
        torch.testing.assert_close(process.drift(x, t), f * x - 0.5 * (1 + eta**2) * g**2 * s, **ROUNDING)
        torch.testing.assert_close(process.diffusion(t), eta * sde.g(t), **ROUNDING)
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        torch.testing.assert_close(score.noise(x, t), -sigma * s, **ROUNDING)
        torch.testing.assert_close(score.denoise(x, t), (x + sigma**2 * s) / alpha, **ROUNDING)
        for i in range(3):
            for method in (process.drift, score.noise, score.denoise):
                torch.testing.assert_close(method(x, t)[i : i + 1], method(x[i : i + 1], t[i]), **ROUNDING)
    # E[x_0 | x_t] of a mixture: Σ_k p(k | x) [μ_k + c α/(α² c + σ²) (x - α μ_k)], by hand
    means, c = data.means, torch.tensor([0.1, 0.3]).double()
    for i in range(3):
        a, v = sde.alpha(t[i]), sde.alpha(t[i]) ** 2 * c + sde.sigma(t[i]) ** 2
        away = x[i] - a * means
        weight = (data.weights.log() - away.square().sum(1) / (2 * v) - v.log()).softmax(0)
        expected = (weight[:, None] * (means + (c * a / v)[:, None] * away)).sum(0)
        torch.testing.assert_close(score.denoise(x, t)[i], expected, rtol=1e-8, atol=1e-8)


def test_steps_by_hand_equal_solve() -> None:
    sde, z = VP(), normals(4)
    process, grid = Reverse(mixture().score(sde)), grids.uniform(sde, 3)
    solver, noise = EulerMaruyama(), Listed(z[1:])
    x, state = solver.start(process, z[0], grid, noise)
    for t, s in itertools.pairwise(grid):
        x, state = solver.step(process, x, t, s, noise, state)
    assert torch.equal(x, solver.solve(process, z[0], grid, Listed(z[1:])).x)


def test_deterministic_runs_need_no_noise_and_draw_none() -> None:
    sde = VP()
    x, grid = normals(1)[0], grids.uniform(sde, 3)
    for solver in (DDIM(), Heun(), EulerMaruyama(), ReverseDiffusion(), DDIM(eta=0.0), ProbabilityFlow()):
        eta = 1.0 if solver == DDIM(eta=0.0) else 0.0
        solver.solve(Reverse(mixture().score(sde), eta), x, grid)


# ---- what is refused, before any work ----


def never(x: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("the score was called though the input is bad")


X = torch.zeros(2, 2)
GRID = torch.tensor([1.0, 0.5, 0.1])


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"x": [[0.0]]}, TypeError, "torch.Tensor"),
        ({"x": X.long()}, TypeError, "floating"),
        ({"x": torch.zeros(2, 2, dtype=torch.complex64)}, TypeError, "floating"),
        ({"x": torch.zeros(())}, ValueError, "batch axis"),
        ({"x": torch.full((2, 2), math.nan)}, ValueError, "NaN or infinite"),
        ({"x": torch.tensor([[0.0, math.inf], [0.0, 0.0]])}, ValueError, r"samples \[0\]"),
        ({"grid": GRID.flip(0)}, ValueError, "strictly decreasing"),
        ({"grid": torch.tensor([1.0, 0.5, 0.5])}, ValueError, "strictly decreasing"),
        ({"grid": torch.tensor([1.0])}, ValueError, "at least two"),
        ({"grid": GRID[None]}, ValueError, "at least two"),
        ({"grid": torch.tensor([1.5, 0.5])}, ValueError, r"\[0, 1\]"),
        ({"grid": torch.tensor([0.5, -0.1])}, ValueError, r"\[0, 1\]"),
        ({"grid": torch.tensor([1.0, math.nan, 0.1])}, ValueError, "nan"),
        ({"noise": None}, ValueError, "draws noise"),
        ({"noise": "seed"}, TypeError, "noise must be"),
        ({"noise": True}, TypeError, "noise must be"),
        ({"noise": 1.5}, TypeError, "noise must be"),
    ],
)
def test_bad_arguments_of_solve(change: dict[str, Any], error: type[Exception], match: str) -> None:
    arguments = {"x": X, "grid": GRID, "noise": 0} | change
    with pytest.raises(error, match=match):
        EulerMaruyama().solve(Reverse(as_score(never, VP())), **arguments)


@pytest.mark.parametrize(
    ("solver", "eta", "match"),
    [
        (Heun(), 1.0, "probability-flow ODE"),
        (ProbabilityFlow(), 0.5, "probability-flow ODE"),
        (Ancestral(), 0.0, "eta = 1"),
        (Ancestral(), 0.5, "eta = 1"),
        (PredictorCorrector(Ancestral()), 0.0, "eta = 1"),
        (PredictorCorrector(Heun()), 1.0, "probability-flow ODE"),
        (ProbabilityFlow("rk5"), 0.0, "method must be one of"),
        (ProbabilityFlow(options={"steps": 3}), 0.0, "has no option steps"),
        (ProbabilityFlow("rk4", options={"first_step": 0.1}), 0.0, "has no option first_step"),
        (DDIM(eta=3.0), 0.0, "more noise than x_s holds"),
    ],
    ids=repr,
)
def test_processes_that_a_solver_does_not_take(solver: Solver, eta: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        solver.solve(Reverse(as_score(never, VP()), eta), X, torch.tensor([1.0, 0.9]), 0)


def test_default_noise_is_refused_by_methods_that_always_draw() -> None:
    for solver in (PredictorCorrector(DDIM()), AnnealedLangevin(), Heun(churn=1.0), TorchSDE(), DDIM(eta=0.1)):
        with pytest.raises(ValueError, match="draws noise"):
            solver.solve(Reverse(as_score(never, VP()), 0.0), X, GRID)


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: Ancestral("beta"), ValueError, "posterior"),  # type: ignore[arg-type]
        (lambda: DDIM(eta=-0.1), ValueError, "at least 0"),
        (lambda: DDIM(eta=math.nan), ValueError, "eta must be a number, got nan"),
        (lambda: Heun(churn=-1.0), ValueError, "churn"),
        (lambda: Heun(churn=math.nan), ValueError, "churn"),
        (lambda: Heun(churn_min=2.0, churn_max=1.0), ValueError, "churn_min"),
        (lambda: Heun(churn_noise=-1.0), ValueError, "churn_noise"),
        (lambda: Langevin(snr=0.0), ValueError, "snr"),
        (lambda: Langevin(snr=1.0), ValueError, "snr"),
        (lambda: Langevin(snr=math.nan), ValueError, "snr"),
        (lambda: Langevin(steps=0), ValueError, "steps"),
        (lambda: Langevin(steps=1.5), TypeError, "steps"),  # type: ignore[arg-type]
        (lambda: AnnealedLangevin(steps=0), ValueError, "steps"),
        (lambda: AnnealedLangevin(step_size=0.0), ValueError, "step_size"),
        (lambda: AnnealedLangevin(step_size=math.inf), ValueError, "step_size"),
        (lambda: PredictorCorrector(3), TypeError, "predictor must be a Solver"),  # type: ignore[arg-type]
        (lambda: PredictorCorrector(corrector=0.16), TypeError, "corrector must be an object with correct"),  # type: ignore[arg-type]
        (lambda: ProbabilityFlow(rtol=0.0), ValueError, "rtol"),
        (lambda: ProbabilityFlow(atol=-1.0), ValueError, "atol"),
        (lambda: TorchSDE("rk4"), ValueError, "method must be one of"),
        (lambda: Reverse(as_score(never, VP()), eta=-1.0), ValueError, "eta"),
        (lambda: Reverse(as_score(never, VP()), eta=math.nan), ValueError, "eta"),
        (lambda: Reverse(never), TypeError, r"must be a Score .* write as_score\(score, sde\)"),  # type: ignore[arg-type]
        (lambda: Reverse(VP()), TypeError, "a score knows its own"),  # type: ignore[arg-type]
        (lambda: Reverse(None), TypeError, "must be a Score"),  # type: ignore[arg-type]
    ],
)
def test_bad_options(build: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build()


def test_a_step_size_relative_to_no_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="σ = 0 at the last time"):
        AnnealedLangevin(step_size=0.1).solve(Reverse(as_score(never, VP())), X, torch.tensor([1.0, 0.0]), 0)


def test_brownian_path_too_short_or_without_areas() -> None:
    with pytest.raises(ValueError, match="lie on the path"):
        EulerMaruyama().solve(
            Reverse(as_score(lambda x, t: -x, EDM())), X, torch.tensor([80.0, 1.0]), BrownianNoise(0, T=1.0)
        )
    for method in ("srk", "log_ode"):
        with pytest.raises(ValueError, match="Lévy"):
            TorchSDE(method).solve(Reverse(as_score(never, VP())), X, GRID, BrownianNoise(0, T=1.0))


@pytest.mark.parametrize("solver", default_solvers(), ids=lambda s: type(s).__name__)
def test_scores_of_the_wrong_shape_or_not_finite(solver: Solver) -> None:
    def solve(score: Any, denoise: bool = False) -> None:
        solver.solve(Reverse(as_score(score, VP()), solver.default_eta), X + 1, GRID, 0, denoise=denoise)

    for wrong in (lambda x, t: x[:, :1], lambda x, t: x.sum(), lambda x, t: None):
        with pytest.raises(ValueError, match="shaped like x"):
            solve(wrong)
    with pytest.raises(FloatingPointError):
        solve(lambda x, t: x * math.nan)
    with pytest.raises(FloatingPointError):
        solve(lambda x, t: x * (math.nan if float(t.min()) < 0.11 else -1.0), denoise=True)


def test_a_solver_given_the_priors_seed_draws_other_normals() -> None:
    """With the score 0 and f = 0, one step adds g sqrt(h) z alone: z must not be the normals of x_T."""
    sde, n = VE(), 8000
    x = sde.prior_sample((n,), 3, dtype=torch.float64)
    end = EulerMaruyama().solve(Reverse(as_score(lambda x, t: 0 * x, sde)), x, torch.tensor([1.0, 0.5]), 3).x
    correlation = torch.corrcoef(torch.stack([x, end - x]))[0, 1]
    assert abs(float(correlation)) < 5 / math.sqrt(n)  # five standard errors


@pytest.mark.parametrize("predictor", [ProbabilityFlow("rk4"), TorchSDE("euler")], ids=repr)
def test_a_black_box_predicts(predictor: Solver) -> None:
    """A step is the black box's run on one interval, then the correction at its end."""
    sde = VP()
    process, grid = Reverse(mixture().score(sde), predictor.default_eta), grids.uniform(sde, 3)
    x, noise = normals(1)[0], PerSampleNoise(1)
    got = PredictorCorrector(predictor, Langevin(0.2)).solve(process, x, grid, PerSampleNoise(1)).x
    for ends in itertools.pairwise(grid):
        x = predictor.solve(process, x, torch.stack(ends), noise).x
        x = Langevin(0.2).correct(process, x, ends[1], noise)
    torch.testing.assert_close(got, x, **ROUNDING)


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
def test_ddim_keeps_its_digits_at_short_times(eta: float) -> None:
    """kept = σ_s² - d² in exact fractions: on EDM α = 1 and σ = t, so d² = η² s² (t² - s²) / t²."""
    t, s = torch.tensor([1.0, 1e-9], dtype=torch.float64)
    process = Reverse(as_score(lambda x, t: x, EDM(t_min=0.0)), eta)  # ε = -t x, here -t
    got = DDIM().step(process, torch.ones(1, dtype=torch.float64), t, s, Listed([torch.zeros(1)]), None)[0]
    # x_s = x + (kept^½ - t) ε with kept = s² ((1 - η²) + η² s²/t²)
    root = 1e-9 * math.sqrt((1 - eta**2) + eta**2 * 1e-18)
    torch.testing.assert_close(got - 1, torch.tensor([(1 - root)], dtype=torch.float64), rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("sde", [EDM(t_min=0.0), VP(t_min=0.0), Cosine(t_min=0.0)], ids=lambda s: type(s).__name__)
def test_ddim_at_eta_one_is_never_refused(sde: SDE) -> None:
    """kept = r² σ_s⁴ / σ_t² > 0; as the difference σ_s² - d² it would come out as minus a rounding for small s."""
    process, t, x = Reverse(as_score(lambda x, t: -x, sde), 1.0), torch.tensor(0.9, dtype=torch.float64), normals(1)[0]
    for s in torch.logspace(-12, -1, 200, dtype=torch.float64):
        DDIM().step(process, x, t, s, Listed([x]), None)


def test_denoised_says_whether_the_step_was_taken() -> None:
    process = Reverse(mixture().score(VP()), 0.0)
    for end, taken in ((0.0, False), (0.1, True)):
        grid = torch.tensor([1.0, 0.5, end], dtype=torch.float64)
        assert DDIM().solve(process, normals(1)[0], grid, denoise=True).denoised is taken


def test_a_path_that_cannot_serve_the_grid_is_refused_before_any_work() -> None:
    for solver in (EulerMaruyama(), TorchSDE()):
        with pytest.raises(ValueError, match="give BrownianNoise a larger T"):
            solver.solve(Reverse(as_score(never, EDM())), X, torch.tensor([80.0, 1.0]), BrownianNoise(0, T=1.0))
        with pytest.raises(ValueError, match="more levels"):
            grid = torch.tensor([1.0, 0.45, 0.44999])
            solver.solve(Reverse(as_score(never, VP())), X, grid, BrownianNoise(0, T=1.0, levels=12))


@pytest.mark.parametrize(
    "solver", [DDIM(), DDIM(0.5), Ancestral(), Heun(), EulerMaruyama(), ReverseDiffusion()], ids=repr
)
@pytest.mark.parametrize("make", [lambda p: VP(beta_min=p), lambda p: Cosine(s=p), lambda p: SubVP(beta_min=p)])
def test_gradients_on_a_grid_that_ends_at_zero_are_finite(solver: Solver, make: Any) -> None:
    parameter = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    sde = make(parameter)
    score = mixture().score(VP()).__call__  # as a function, which does not hang on the parameter
    grid = torch.tensor([0.9, 0.4, 0.0], dtype=torch.float64)
    end = solver.solve(Reverse(as_score(score, sde), solver.default_eta), normals(1)[0], grid, 0).x
    (gradient,) = torch.autograd.grad(end.square().sum(), parameter)
    assert bool(gradient.isfinite()) and float(gradient.abs()) > 1e-6


def test_callbacks_see_each_step() -> None:
    seen: list[Progress] = []
    sde = VP()
    grid = grids.uniform(sde, 3)
    for solver in default_solvers():
        seen.clear()
        process = Reverse(mixture().score(sde), solver.default_eta)
        solution = solver.solve(process, X.double(), grid, 0, trajectory=True, callback=seen.append)
        assert [p.step for p in seen] == [1, 2, 3] and {p.steps for p in seen} == {3}
        assert [float(p.t) for p in seen] == grid[1:].tolist()
        assert solution.trajectory is not None
        assert torch.equal(torch.stack([p.x for p in seen]), solution.trajectory[1:])
        assert torch.equal(solution.trajectory[-1], solution.x) and torch.equal(solution.trajectory[0], X.double())


def test_a_users_own_solver_is_one_method() -> None:
    @dataclass(frozen=True)
    class Mine(Solver):
        def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> Any:
            return x + process.drift(x, t) * (s - t), (state or 0) + 1

    sde = VP()
    process, grid = Reverse(mixture().score(sde), 0.0), grids.uniform(sde, 3)
    # the same sums in another order: a few roundings of float32
    torch.testing.assert_close(Mine().solve(process, X, grid).x, EulerMaruyama().solve(process, X, grid).x)
