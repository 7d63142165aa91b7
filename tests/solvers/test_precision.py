"""What is left of a run in float32 and in half precision: nothing is lost where σ/α is large, or a network is rough."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from strategies import name, normal
from torch import Tensor, nn

from scoresde import grids
from scoresde.models import Score, ScoreModel, as_score
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sampling import sample
from scoresde.sde import EDM, SDE, VE, VP, RectifiedFlow
from scoresde.solvers import (
    DDIM,
    DEIS,
    AdaptiveODE,
    AdaptiveSDE,
    AdjustedLangevin,
    DPMSolver,
    DPMSolverPP,
    ExponentialRungeKutta,
    Heun,
    Langevin,
    Multistep,
    PredictorCorrector,
    ProbabilityFlow,
    Progress,
    RungeKutta,
    SASolver,
    Solver,
    SpectralMultistep,
    StochasticRungeKutta,
    TorchSDE,
    UniPC,
    _from_noise,
    catalogue,
)
from scoresde.solvers._frames import frame_of, levels
from scoresde.solvers._multistep import stable_weights, weights
from scoresde.solvers._variables import LOG_SNR

F64 = torch.float64
NORMAL = Gaussian(torch.zeros(1, dtype=F64), 1.0)
MIXTURE = GaussianMixture(torch.tensor([0.4, 0.6]), torch.tensor([[-1.0], [0.7]], dtype=F64), 0.05)
HALVES = [torch.float16, torch.bfloat16]


def start(sde: SDE, n: int = 300) -> Tensor:
    """The same in every dtype."""
    return (normal(n, 1, seed=1) * sde.prior_std).bfloat16()


def deviation(score: Score, solver: Solver, steps: int, dtype: torch.dtype) -> float:
    x = start(score.sde).to(dtype)
    return float(sample(score, tuple(x.shape), solver=solver, steps=steps, x=x).x.double().std())


# ---- the state of a run ----


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "solver", [SpectralMultistep(), DEIS(), Heun(), DDIM(1.0), AdaptiveODE(), TorchSDE()], ids=name
)
def test_half_precision_comes_in_and_goes_out_and_float32_is_carried(solver: Solver, dtype: torch.dtype) -> None:
    seen: list[Progress] = []
    asked: list[torch.dtype] = []

    def score(x: Tensor, t: Tensor) -> Tensor:
        asked.append(x.dtype)
        return -x

    process = Reverse(as_score(score, VP()), solver.default_eta)
    x = normal(4, 2).to(dtype)
    grid = grids.karras(VP(), 5)
    half, whole = (
        solver.solve(process, start, grid, 0, denoise=True, trajectory=True, callback=seen.append)
        for start in (x, x.float())
    )
    assert half.x.dtype == dtype and half.trajectory is not None and half.trajectory.dtype == dtype
    assert set(asked) == {torch.float32} and {p.x.dtype for p in seen} == {torch.float32}
    # nothing but the first and the last cast is left of it
    assert torch.equal(half.x, whole.x.to(dtype)) and whole.trajectory is not None
    assert torch.equal(half.trajectory, whole.trajectory.to(dtype))


def test_samples_drawn_in_half_precision_are_carried_in_float32() -> None:
    seen: list[Progress] = []
    found = sample(NORMAL.score(VP()), (4, 1), steps=4, dtype=torch.bfloat16, callback=seen.append)
    assert found.x.dtype == torch.bfloat16 and {p.x.dtype for p in seen} == {torch.float32}


# ---- how far a run in float32 is from one in float64 ----

EXTREME = [RectifiedFlow(T=1 - 1e-6), VE(sigma_max=1e6)]
# an adaptive SDE method decides by what it has rounded; the backends' Euler steps explode at 7 of them
OTHERS = (AdaptiveSDE, TorchSDE, ProbabilityFlow)


@pytest.mark.parametrize("steps", [7, pytest.param(25, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("solver", [s for s in catalogue.variants() if not isinstance(s, OTHERS)], ids=catalogue.label)
def test_no_digits_are_lost_where_there_is_hardly_any_signal(solver: Solver, steps: int) -> None:
    """On N(0, 1), from σ/α = 1e6 and from 1e3: float32 as float64, and bfloat16 but for its own first rounding.

    With the exact score; :mod:`scoresde.certify.rounding` has a network's, at 25 steps too.
    """
    for sde in (RectifiedFlow(), *EXTREME):
        score = NORMAL.score(sde)
        exact = deviation(score, solver, steps, F64)
        size = max(1.0, exact)
        assert deviation(score, solver, steps, torch.float32) == pytest.approx(exact, abs=1e-3 * size), sde
        assert deviation(score, solver, steps, torch.bfloat16) == pytest.approx(exact, abs=2e-2 * size), sde


@pytest.mark.parametrize("steps", [7, 25])
@pytest.mark.parametrize(
    "solver", [SpectralMultistep(), DEIS(), DEIS(4), UniPC(4, "noise"), SASolver(), Heun()], ids=repr
)
def test_nor_on_data_that_are_not_gaussian(solver: Solver, steps: int) -> None:
    for sde in EXTREME:
        exact = deviation(MIXTURE.score(sde), solver, steps, F64)
        found = deviation(MIXTURE.score(sde), solver, steps, torch.float32)
        assert found == pytest.approx(exact, abs=1e-3 * max(1.0, exact)), sde


@functools.cache  # the same for every prediction
def in_float64(solver: Solver, steps: int, sde: SDE) -> float:
    return deviation(NORMAL.score(sde), solver, steps, F64)


class Rough(nn.Module):
    """A perfect network, but for computing in half precision: scaled x in, F out."""

    def __init__(self, problem: GaussianMixture, sde: SDE, predicts: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.bfloat16))
        self.score, self.predicts = problem.score(sde), predicts

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        assert x.dtype == torch.bfloat16 and c.dtype == torch.float32
        sde = self.score.sde
        ends = sde.log_snr(torch.tensor([sde.T, sde.t_min], dtype=F64)).tolist()
        t = sde.t_of_log_snr((-2 * c.double()).clamp(*ends))
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        size = (alpha**2 + sigma**2).sqrt()
        state = x.double() * size
        x0, eps = self.score.denoise(state, t), self.score.noise(state, t)
        targets = {"v": alpha * eps - sigma * x0, "edm": (x0 - alpha / size**2 * state) * size / sigma, "x0": x0}
        return targets[self.predicts].bfloat16()


@pytest.mark.parametrize("steps", [7, pytest.param(25, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("predicts", ["v", "edm", "x0"])
@pytest.mark.parametrize(
    "solver",
    [
        SpectralMultistep(),
        DDIM(),
        DEIS(),
        UniPC(),
        UniPC(3, "noise"),
        DPMSolverPP(3),
        DPMSolver(2, "x0"),
        Heun(),
        AdaptiveODE(),
    ],
    ids=repr,
)
def test_a_network_in_half_precision_is_rounded_there_alone(solver: Solver, predicts: str, steps: int) -> None:
    for sde in (RectifiedFlow(), *EXTREME):
        model = ScoreModel(Rough(NORMAL, sde, predicts), sde, predicts, sigma_data=1.0)
        exact = in_float64(solver, steps, sde)
        found = deviation(model, solver, steps, torch.bfloat16)
        assert found == pytest.approx(exact, abs=2e-2 * max(1.0, exact)), sde


@pytest.mark.parametrize(("solver", "steps"), [(DEIS(), 7), (DPMSolverPP(), 7), (UniPC(), 7)], ids=repr)
def test_the_bare_score_would_not_do(solver: Solver, steps: int) -> None:
    """The same network behind a function that answers ∇ log p_t alone: what is measured above is then lost."""
    for sde in EXTREME:
        model = ScoreModel(Rough(NORMAL, sde, "v"), sde, "v", sigma_data=1.0)
        bare = as_score(lambda x, t, model=model: model(x, t).bfloat16(), sde)  # type: ignore[misc]
        exact = deviation(NORMAL.score(sde), solver, steps, F64)
        assert abs(deviation(bare, solver, steps, torch.bfloat16) - exact) > 0.5


# ---- predictions of the noise counted from x/σ ----

SINGLE: list[Any] = [
    DPMSolver(2, "x0"), DPMSolver(3, "x0"), DPMSolver(3), ExponentialRungeKutta(), ExponentialRungeKutta("v"),
    RungeKutta(3, "v"), StochasticRungeKutta(2), StochasticRungeKutta(3, "v"), StochasticRungeKutta(4), Heun(),
]  # fmt: skip
NOISE: list[Any] = [
    DEIS(1), DEIS(2, "noise_level"), DEIS(3), DEIS(4), UniPC(2, "noise"), UniPC(4, "noise"),
    UniPC(3, "noise", full_start=False), Multistep(3, False, "noise"), Multistep(4, True, "noise", full_start=True),
    PredictorCorrector(UniPC(2, "noise"), Langevin(0.3)), PredictorCorrector(DEIS(4), Langevin(0.2)),
    PredictorCorrector(DEIS(3), AdjustedLangevin()),
]  # fmt: skip


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
@pytest.mark.parametrize("sde", [VP(), EDM(t_min=0.0)], ids=name)
@pytest.mark.parametrize("solver", NOISE, ids=repr)
def test_counted_from_the_state_it_is_the_same_method(
    solver: Solver, sde: SDE, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everywhere, nowhere, and in between: also where a corrector moves x, and where the first step has nodes."""
    x = normal(3, 2) * sde.prior_std
    data = GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.3], [0.7, 0.1]], dtype=F64), 0.05)
    grid = (grids.karras if sde.t_min == 0 else grids.log_snr)(sde, steps)
    process, runs = Reverse(data.score(sde), 0.0), []
    counted = _from_noise.counted
    for level in (0.0, 0.5, 20.0, 1e9):

        def above(frame: Any, at: Any, values: int, level: float = level) -> Tensor:
            assert counted(frame, at, values).shape == at.h.shape
            return at.sigma >= level * at.alpha if frame.rests_on_noise else torch.zeros_like(at.h, dtype=torch.bool)

        monkeypatch.setattr("scoresde.solvers._multistep.counted", above)
        run = solver.solve(process, x, grid, 0, trajectory=True)
        runs.append(run.trajectory)
    for run in runs[:-1]:
        torch.testing.assert_close(run, runs[-1], rtol=1e-9, atol=1e-9 * float(x.abs().max()))


def test_where_values_are_counted_from_the_state() -> None:
    at = functools.partial(torch.tensor, dtype=F64)
    for solver, first in ((DEIS(3), 160.0), (DEIS(4), 3.0), (UniPC(3, "noise"), 3.0), (UniPC(2, "noise"), 160.0)):
        sde = EDM(T=1e4)
        process = Reverse(NORMAL.score(sde), 0.0)
        grid = at([1e4, 161.0, 159.0, 3.02, 2.98, 0.1])
        rows = solver.plan(process, grid)[1:]
        # the combination that is evaluated: x + σ² s, or s
        taken = [row.evaluates == (1.0, float(t) ** 2) for row, t in zip(rows, grid[1:-1], strict=True)]
        assert taken == [float(t) >= first for t in grid[1:-1]], solver
    # with noise x/σ is not what stays, and nothing is counted from it
    rows = DEIS(3).plan(Reverse(NORMAL.score(EDM()), 1.0), at([80.0, 40.0, 1.0]))
    assert all(row.evaluates == (0.0, 1.0) and not row.carry for row in rows)


@pytest.mark.parametrize("solver", [StochasticRungeKutta(), DPMSolver(1, "x0"), RungeKutta(2, "v")], ids=repr)
def test_where_stages_ask_for_the_score_alone(solver: Any) -> None:
    """Up to σ/α = 160, where the state is known exactly enough to make F of it: one pass over memory less."""
    sde = EDM(T=1e3)
    plan = solver.plan(Reverse(NORMAL.score(sde), 0.0), torch.tensor([1e3, 161.0, 159.0, 1.0], dtype=F64))
    asked = [row.stages[0].evaluates for row in plan]
    assert asked[2] == (0.0, 1.0) and all(of_x == 1.0 and of_score != 1.0 for of_x, of_score in asked[:2])


@pytest.mark.parametrize("solver", SINGLE, ids=repr)
def test_either_way_stages_are_the_same_method(solver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sde, x = VP(), normal(3, 1)
    process, grid, ends = Reverse(MIXTURE.score(sde), solver.default_eta), grids.karras(sde, 5), []
    for far in (0.0, 3.0, 1e9):
        monkeypatch.setattr("scoresde.solvers._stages.FAR", far)
        ends.append(solver.solve(process, x, grid, 0).x)
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-10, atol=1e-11)


def test_weights_may_amplify_errors_fifty_times() -> None:
    """Two values at a distance δ, extrapolated over a step: with δ so small the slope between them is left out."""
    at = levels(VP(), torch.tensor([0.6, 0.35], dtype=F64))
    frame, start, end = frame_of("x0", 0.0, 1.0), at.h[:1], at.at(slice(1, 2))
    count = torch.tensor([2])

    def amplified(delta: float) -> float:
        nodes = torch.stack([start, start - delta], 1)
        found = weights(frame, start, end, nodes, count, LOG_SNR)[0]
        return float(found.abs().sum() / found.sum())

    low, high = 1e-4, 1.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if amplified(middle) > 50 else (low, middle)
    for delta, both in ((low * 1.002, True), (low * 0.998, False)):
        nodes = torch.stack([start, start - delta], 1)
        found = stable_weights(frame, start, end, nodes, count, LOG_SNR)
        kept = weights(frame, start, end, nodes, count if both else torch.tensor([1]), LOG_SNR)
        assert torch.equal(found, kept) and (float(found[0, 1]) != 0) is both


@pytest.mark.parametrize("solver", [DEIS(3), DEIS(4), UniPC(2, "noise")], ids=repr)
def test_gradients_and_repeated_steps_pass_through_it(solver: Solver) -> None:
    sde = EDM(T=1e3, t_min=0.5)
    grid = grids.karras(sde, 6)
    found = []
    for checkpoint in (False, True, 1):
        x, times = (normal(2, 1) * sde.T).requires_grad_(), grid.clone().requires_grad_()
        end = solver.solve(Reverse(MIXTURE.score(sde), 0.0), x, times, checkpoint=checkpoint).x
        found.append(torch.autograd.grad(end.square().sum(), (x, times)))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    inner = grid[1:-1].clone().requires_grad_()
    x = normal(2, 1) * sde.T

    def end_of(inner: Tensor) -> Tensor:
        times = torch.cat([grid[:1], inner, grid[-1:]])
        return solver.solve(Reverse(MIXTURE.score(sde), 0.0), x, times).x

    assert torch.autograd.gradcheck(end_of, inner, eps=1e-5, atol=1e-4, rtol=1e-3)
