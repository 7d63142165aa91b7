"""Runs from a time without signal, α(T) = 0: as from a little later, or refused where the score says nothing of x_0."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import pytest
import torch
from strategies import name, normal
from torch import Tensor

from scoresde import grids
from scoresde.models import Score, ScoreModel, as_score, score_of_denoiser
from scoresde.noise import IndependentNoise, PerSampleNoise
from scoresde.problems import Empirical, Gaussian, GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sampling import sample
from scoresde.sde import EDM, SDE, VE, VP, Chain, ChainSDE, Cosine, RectifiedFlow, ScheduleSDE, has_signal
from scoresde.solvers import (
    DDIM,
    AdaptiveODE,
    AdaptiveSDE,
    AnnealedLangevin,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    ProbabilityFlow,
    Solver,
    SpectralMultistep,
    StochasticRungeKutta,
    TorchSDE,
    UniPC,
    catalogue,
)

F64 = torch.float64
DATA = GaussianMixture(torch.tensor([0.4, 0.6]), torch.tensor([[-1.0], [0.7]], dtype=F64), 0.05)


def circle(T: float) -> ScheduleSDE:
    """cos(π/2) is 6e-17 in float64, and not above 0 for that."""
    return ScheduleSDE(lambda t: torch.cos(0.5 * math.pi * t), lambda t: torch.sin(0.5 * math.pi * t), T=T)


def chain(zero: bool) -> ChainSDE:
    """DDPM's of 40 levels, the last of them without signal or as it is."""
    plain = VP(beta_max=12.0).discretize(40)
    ratio, variance = plain.ratio.clone(), plain.variance.clone()
    if zero:
        ratio[-1], variance[-1] = 0.0, 1.0
    return ChainSDE(Chain(times=plain.times, ratio=ratio, variance=variance))


def until(sde: SDE, ratio: float) -> SDE:
    """The same schedule, ending where σ/α has this value."""
    return dataclasses.replace(sde, T=float(sde.t_of_log_snr(-2 * math.log(ratio))))


# without signal at T; and ending at σ/α = 1000, from where the grids of the other are spaced
PAIRS: dict[str, tuple[SDE, SDE]] = {
    "flow": (RectifiedFlow(T=1.0), until(RectifiedFlow(T=1.0), 1000.0)),
    "cosine": (Cosine(T=1.0), until(Cosine(T=1.0), 1000.0)),
    "circle": (circle(1.0), circle(1 - 2 / (1000 * math.pi))),
    "chain": (chain(True), chain(False)),
}


def model(sde: SDE, predicts: str) -> ScoreModel:
    """Perfect, by the prediction's definition; at α = 0 too."""

    def net(x: Tensor, c: Tensor) -> Tensor:
        ends = [float(sde.log_snr(sde.t_min)), float("inf")]
        t = torch.full_like(c, sde.T, dtype=F64)
        known = c < 18.0  # log 1e8 stands for no signal
        level = (-2 * c[known].double()).clamp(max=ends[0])
        t[known] = sde.t_of_log_snr(level)
        exact = DATA.score(sde)
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        state = x.double() * (alpha**2 * 0.64 + sigma**2).sqrt()
        x0, eps = exact.denoise(state, t), exact.noise(state, t)
        total = alpha**2 * 0.64 + sigma**2
        targets = {
            "noise": eps, "x0": x0, "v": alpha * eps - sigma * x0, "score": -eps / sigma, "velocity": eps - x0,
            "edm": (x0 - alpha * 0.64 / total * state) * total.sqrt() / (0.8 * sigma),
        }  # fmt: skip
        return targets[predicts].to(x.dtype)

    return ScoreModel(net, sde, predicts, sigma_data=0.8)


def std(score: Score, solver: Solver, n: int = 500, steps: int = 25) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchsde warns of what it does itself
        return float(sample(score, (n, 1), solver=solver, steps=steps).x.std())


# Its own accuracy at its default tolerance, from so far away; from nothing it is better.
ROOM = {"AdaptiveSDE": 0.2}


@pytest.mark.parametrize("solver", catalogue.variants(), ids=catalogue.label)
def test_every_solver_starts_there_as_it_does_a_little_later(solver: Solver) -> None:
    none, some = PAIRS["circle"]
    assert not has_signal(none.alpha(none.T), none.sigma(none.T)) and has_signal(some.alpha(some.T), some.sigma(some.T))
    found, usual = (std(DATA.score(sde), solver) for sde in (none, some))
    # the same normals but for methods that draw more of them in a step: 4 standard errors of 500
    assert found == pytest.approx(usual, abs=ROOM.get(type(solver).__name__, 0.12 if solver.default_eta else 0.01))


ONE_OF_EACH = [
    SpectralMultistep(), DDIM(), DPMSolverPP(), Heun(), StochasticRungeKutta(), EulerMaruyama(), AdaptiveODE(),
    AdaptiveSDE(), ProbabilityFlow(), TorchSDE(), AnnealedLangevin(),
]  # fmt: skip


@pytest.mark.parametrize("pair", ["flow", "cosine", "chain"])
@pytest.mark.parametrize("solver", ONE_OF_EACH, ids=name)
def test_so_they_do_under_other_schedules(solver: Solver, pair: str) -> None:
    none, some = PAIRS[pair]
    found, usual = (std(DATA.score(sde), solver) for sde in (none, some))
    # a chain that ends at σ/α = 20 in place of nothing: DDIM makes half of its error before that
    assert found == pytest.approx(usual, abs=ROOM.get(type(solver).__name__, 0.12))


@pytest.mark.parametrize("predicts", ["x0", "v", "velocity", "edm"])
@pytest.mark.parametrize("pair", PAIRS)
def test_models_that_say_x0_there_are_sampled(pair: str, predicts: str) -> None:
    none, _ = PAIRS[pair]
    score, exact = model(none, predicts), DATA.score(none)
    for solver in ONE_OF_EACH if pair == "flow" else ONE_OF_EACH[:5]:
        expected, found = (std(s, solver, 100, 12) for s in (exact, score.bind()))
        # the same run in float32, by which an adaptive SDE method may decide otherwise
        assert found == pytest.approx(expected, abs=0.05 if isinstance(solver, AdaptiveSDE) else 0.01), solver


@pytest.mark.parametrize("predicts", ["noise", "score"])
@pytest.mark.parametrize("pair", PAIRS)
def test_models_that_do_not_are_refused_before_any_work(pair: str, predicts: str) -> None:
    none, _ = PAIRS[pair]
    calls: list[Tensor] = []
    score = ScoreModel(lambda x, c: calls.append(x) or x, none, predicts)  # type: ignore[func-returns-value]
    told = rf"a network that predicts '{predicts}' says nothing of x_0 where α\(t\) = 0, as at T = 1 .*T = 0\.999"
    for solver in (
        SpectralMultistep(),
        DDIM(),
        Heun(),
        EulerMaruyama(),
        StochasticRungeKutta(),
        ProbabilityFlow(),
        TorchSDE(),
    ):
        with pytest.raises(ValueError, match=told):
            sample(score, (3, 1), solver=solver, steps=5)
    with pytest.raises(ValueError, match=told):
        score.denoise(torch.zeros(3, 1), none.T)
    with pytest.raises(ValueError, match=told):  # some of the samples
        score.denoise(torch.zeros(3, 1), torch.tensor([0.5, none.T, 0.7]))
    assert not calls
    # what it does say is answered: ε̂ and the score, which are x/σ and -x/σ²
    assert score.noise(torch.ones(3, 1), none.T).shape == score(torch.ones(3, 1), none.T).shape == (3, 1)


@pytest.mark.parametrize("pair", PAIRS)
def test_functions_that_answer_the_score_alone_are_refused_and_denoisers_are_not(pair: str) -> None:
    none, _ = PAIRS[pair]
    exact = DATA.score(none)
    alone = as_score(exact.__call__, none)
    for solver in (SpectralMultistep(), DDIM(1.0), UniPC(), TorchSDE()):
        with pytest.raises(ValueError, match=r"a score alone.* says nothing of x_0 where α\(t\) = 0"):
            sample(alone, (3, 1), solver=solver, steps=5)
    for solver in (SpectralMultistep(), DDIM(1.0), UniPC()):
        expected = sample(exact, (3, 1), solver=solver, steps=5).x
        found = sample(score_of_denoiser(exact.denoise, none), (3, 1), solver=solver, steps=5).x
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)  # float32 of x and x̂_0 combined


@pytest.mark.parametrize("problem", [DATA, Gaussian(torch.tensor([0.3], dtype=F64), 0.2), Empirical(DATA.means)],
                         ids=name)  # fmt: skip
@pytest.mark.parametrize("sde", [pair[0] for pair in PAIRS.values()], ids=list(PAIRS))
def test_an_exact_score_there_is_the_priors_and_the_mean(problem: Any, sde: SDE) -> None:
    x, t = normal(4, 1), torch.tensor(sde.T, dtype=F64)
    score = problem.score(sde)
    mean = problem.data.mean(0) if isinstance(problem, Empirical) else (problem.weights[:, None] * problem.means).sum(0)
    torch.testing.assert_close(score(x, t), -x / sde.sigma(t) ** 2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(score.noise(x, t), x / sde.sigma(t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(score.denoise(x, t), mean.expand(4, 1), rtol=1e-12, atol=1e-12)
    each = torch.tensor([sde.T, 0.5, sde.T, 0.7], dtype=F64)  # one time for each sample
    torch.testing.assert_close(score.denoise(x, each)[::2], mean.expand(2, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("predicts", ["x0", "v", "velocity", "edm"])
def test_a_models_answers_there_are_those_of_its_prediction(predicts: str) -> None:
    """By hand from F, at α = 0, σ = 1: ε̂ = x, and x̂_0 as the prediction defines it."""
    sde, x = RectifiedFlow(T=1.0), normal(4, 2)
    score = ScoreModel(lambda x, c: torch.tanh(x) + 0 * c[:, None], sde, predicts, sigma_data=0.8)
    out = torch.tanh(x)
    x0 = {"x0": out, "v": -out, "velocity": x - out, "edm": 0.8 * out}[predicts]
    for t in (1.0, torch.ones(4, dtype=F64)):
        torch.testing.assert_close(score.denoise(x, t), x0, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(score.noise(x, t), x, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(score(x, t), -x, rtol=1e-12, atol=1e-12)
    # and through another schedule without signal
    other = score.under(circle(1.0))
    torch.testing.assert_close(other.denoise(x, 1.0), x0, rtol=1e-9, atol=1e-9)


# ---- the first step, written out ----


class Fixed(PerSampleNoise):
    """Known normals."""

    def normal(self, x: Tensor) -> Tensor:
        return normal(*x.shape, seed=9).to(x)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_first_step_written_out(pair: str) -> None:
    """x_s = α_s x̂_0 + σ_s x_T/σ_T without noise, α_s x̂_0 + σ_s z with it."""
    sde, _ = PAIRS[pair]
    grid = torch.tensor([sde.T, 0.6], dtype=F64)
    x, score = normal(4, 1), DATA.score(sde)
    mean = (DATA.weights[:, None] * DATA.means).sum(0)
    alpha, sigma = sde.alpha(grid[1]), sde.sigma(grid[1])
    still, noisy = (alpha * mean + sigma * z for z in (x / sde.sigma(grid[0]), normal(4, 1, seed=9)))
    for solver in (SpectralMultistep(), DDIM(), UniPC(), Heun(), EulerMaruyama(), StochasticRungeKutta()):
        run = solver.solve(Reverse(score, 0.0), x, grid)
        assert run.nfe == 1
        torch.testing.assert_close(run.x, still, rtol=1e-12, atol=1e-12)
    for solver in (SpectralMultistep(), DDIM(), EulerMaruyama(), StochasticRungeKutta(), TorchSDE()):
        for eta in (0.3, 1.0):
            run = solver.solve(Reverse(score, eta), x, grid, Fixed())
            torch.testing.assert_close(run.x, noisy, rtol=1e-12, atol=1e-12)
    assert TorchSDE().solve(Reverse(score, 0.0), x, grid, 0).x.allclose(still, rtol=1e-12)


@pytest.mark.parametrize("pair", ["flow", "cosine", "circle"])
def test_the_flow_itself_is_regular_there(pair: str) -> None:
    """dx/dt = E[α' x_0 + σ' ε | x_t], which is σ' x/σ + α' E[x_0] at T: the limit of what is found before it."""
    sde, x = PAIRS[pair][0], normal(4, 1)
    drift = Reverse(DATA.score(sde), 0.0).drift
    at_end, before = drift(x, sde.T), drift(x, sde.T - 1e-6)
    torch.testing.assert_close(at_end, before, rtol=1e-4, atol=1e-4)  # 1e-6 times a second derivative
    with pytest.raises(ValueError, match=r"the reverse SDE has no drift where α\(t\) = 0"):
        Reverse(DATA.score(RectifiedFlow(T=1.0)), 1.0).drift(x, 1.0)  # with noise it is not


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-10])
@pytest.mark.parametrize("method", ["adams", "dopri5"])
def test_adaptive_runs_from_nothing_are_as_exact_as_they_say(method: Any, tolerance: float) -> None:
    data, sde = Gaussian(torch.tensor([0.7, -0.3], dtype=F64), 0.4), RectifiedFlow(T=1.0)
    x, s = normal(5, 2), torch.tensor(0.01, dtype=F64)
    solver = AdaptiveODE(method=method, rtol=tolerance, atol=tolerance)
    found = solver.solve(Reverse(data.score(sde), 0.0), x, torch.stack([torch.ones((), dtype=F64), s])).x
    exact = sde.alpha(s) * data.means[0] + x * (0.4 * sde.alpha(s) ** 2 + sde.sigma(s) ** 2).sqrt()
    # 50 tolerances, and σ/α = 1e7 is as far as it starts
    assert float((found - exact).abs().max()) < 50 * tolerance + 1e-6


@pytest.mark.parametrize("solver", [SpectralMultistep(), UniPC(), DDIM(), Heun()], ids=repr)
def test_gradients_reach_the_schedule_and_the_grid_through_the_first_step(solver: Solver) -> None:
    scale = torch.tensor(1.1, dtype=F64, requires_grad=True)
    x, inner = normal(3, 1), torch.tensor([0.8, 0.4, 0.1], dtype=F64, requires_grad=True)

    def end(scale: Tensor, inner: Tensor) -> Tensor:
        sde = ScheduleSDE(lambda t: 1 - t, lambda t: scale * t, T=1.0)
        grid = torch.cat([torch.ones(1, dtype=F64), inner])
        return solver.solve(Reverse(DATA.score(sde), 0.0), x, grid).x

    assert torch.autograd.gradcheck(end, (scale, inner), eps=1e-6, atol=1e-5, rtol=1e-4)
    again = solver.solve(Reverse(DATA.score(RectifiedFlow(T=1.0)), 0.0), x.requires_grad_(),
                         torch.tensor([1.0, 0.8, 0.4, 0.1], dtype=F64), checkpoint=True).x  # fmt: skip
    (repeated,) = torch.autograd.grad(again.sum(), x)
    plain = solver.solve(Reverse(DATA.score(RectifiedFlow(T=1.0)), 0.0), x, torch.tensor([1.0, 0.8, 0.4, 0.1]).double())
    torch.testing.assert_close(repeated, torch.autograd.grad(plain.x.sum(), x)[0], rtol=1e-6, atol=1e-8)


# ---- no guard that rounding can pass ----


@pytest.mark.parametrize("alpha", [0.0, 6.123e-17, 1e-12, 0.99e-8])
def test_what_rounding_leaves_of_alpha_is_no_signal(alpha: float) -> None:
    """Whatever it is up to 1e-8, the run is that from α = 0; a guard ``> 0`` would divide by it."""
    sde = ScheduleSDE(lambda t: (1 - t) + alpha * t, lambda t: t, T=1.0)
    assert not has_signal(sde.alpha(1.0), sde.sigma(1.0))
    start = normal(200, 1)
    for solver in (SpectralMultistep(), DDIM(), DPMSolverPP(), Heun(), AdaptiveODE(), ProbabilityFlow()):
        runs = [
            sample(DATA.score(s), (200, 1), x=start, solver=solver, steps=10).x for s in (sde, RectifiedFlow(T=1.0))
        ]
        torch.testing.assert_close(*runs, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="says nothing of x_0"):
        sample(ScoreModel(lambda x, c: x, sde), (2, 1))


def test_signal_is_a_matter_of_the_ratio_alone() -> None:
    """Schedules that explode have little signal at T, but some: VE up to σ = 1e8 of α."""
    for sde in (VE(sigma_max=1e6), VE(sigma_max=9e7), EDM(T=1e7), RectifiedFlow(T=1 - 1e-7)):
        assert has_signal(sde.alpha(sde.T), sde.sigma(sde.T))
        # a noise prediction is taken there
        assert ScoreModel(lambda x, c: x, sde).denoise(torch.zeros(2, 1), sde.T).shape == (2, 1)
    assert not has_signal(torch.tensor(1.0), torch.tensor(1.1e8))


@pytest.mark.parametrize("rule", [grids.uniform, grids.log_snr, grids.karras, grids.spectral], ids=lambda r: r.__name__)
@pytest.mark.parametrize("sde", [pair[0] for pair in PAIRS.values()], ids=list(PAIRS))
def test_grids_start_at_the_end_of_the_schedule(rule: Any, sde: SDE) -> None:
    grid = rule(sde, 9)
    assert float(grid[0]) == sde.T and float(grid[-1]) == sde.t_min and bool((grid.diff() < 0).all())
    assert has_signal(sde.alpha(grid[1:]), sde.sigma(grid[1:]))
    run = SpectralMultistep().solve(Reverse(DATA.score(sde), 0.0), normal(4, 1), grid, IndependentNoise(0))
    assert bool(run.x.isfinite().all())
