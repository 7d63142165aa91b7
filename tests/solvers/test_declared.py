"""What a solver says of itself is what its code does; and the variables of the engines are maps with inverses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from strategies import DEFAULTS, name, normal
from torch import Tensor

from scoresde import grids
from scoresde.models import ScoreModel
from scoresde.noise import Noise, PerSampleNoise
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sampling import sample
from scoresde.sde import EDM, VP, RectifiedFlow
from scoresde.solvers import (
    DDIM,
    DEIS,
    AnnealedLangevin,
    Heun,
    Langevin,
    Multistep,
    PredictorCorrector,
    ProbabilityFlow,
    Solver,
    SpectralMultistep,
    UniPC,
    Wrapping,
    catalogue,
)
from scoresde.solvers import _variables as variables
from scoresde.spectrum import Spectrum

F64 = torch.float64
MIXTURE = GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.3], [0.7, 0.1]], dtype=F64), 0.05)
MORE = [
    Heun(churn=2.0), DDIM(0.5), Multistep(1, False), Multistep(1, False, "v"), PredictorCorrector(UniPC()),
    PredictorCorrector(DDIM(), Langevin(0.3, 2)), PredictorCorrector(ProbabilityFlow("rk4")),
]  # fmt: skip
ALL = [*catalogue.variants(), *MORE]


def label(solver: Solver) -> str:
    return repr(solver) if solver in MORE else catalogue.label(solver)


class Known(Noise):
    """The same normals for the same times, whoever asks and in whichever order."""

    def normal(self, x: Tensor) -> Tensor:
        return normal(*x.shape, seed=11)

    def between(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return normal(*x.shape, seed=int(1e6 * float(t)) + int(1e3 * float(s)))

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        raise AssertionError("nothing is drawn from the prior")


def process_of(solver: Solver) -> Reverse:
    return Reverse(MIXTURE.score(VP()), solver.default_eta)


@pytest.mark.parametrize("solver", ALL, ids=label)
def test_steps_on_the_grid(solver: Solver) -> None:
    """A run is the loop over ``step`` at the grid's own times, or the method's own ``integrate``."""
    assert solver.steps_on_grid is (type(solver).integrate is Solver.integrate)
    if not solver.steps_on_grid:
        return
    grid, x, process = grids.karras(VP(), 6), normal(3, 2), process_of(solver)
    expected = solver.solve(process, x, grid, Known(), trajectory=True).trajectory
    asked: list[tuple[float, float]] = []
    y, state = solver.start(process, x, grid, Known())
    assert expected is not None
    for i, (t, s) in enumerate(itertools.pairwise(grid), 1):
        y, state = solver.step(process, y, t, s, Known(), state)
        asked.append((float(t), float(s)))
        assert torch.equal(y, expected[i])
    assert asked == list(itertools.pairwise(grid.tolist()))


@pytest.mark.parametrize("solver", [s for s in ALL if s.steps_on_grid], ids=label)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_memory(solver: Solver, eta: float) -> None:
    """Whether a step from one state differs after two pasts; it must not, where none is declared."""
    process, grid = Reverse(MIXTURE.score(VP()), eta), grids.karras(VP(), 8)
    try:
        solver.check(process)
    except ValueError:
        return
    ends = []
    for seed in (0, 1):
        x, state = solver.start(process, normal(3, 2, seed=seed), grid, Known())
        for t, s in itertools.pairwise(grid[:4]):
            x, state = solver.step(process, x, t, s, Known(), state)
        ends.append(solver.step(process, normal(3, 2, seed=5), grid[3], grid[4], Known(), state)[0])
    same = torch.equal(*ends)
    assert same is not solver.has_memory
    if solver.has_memory:
        assert float((ends[0] - ends[1]).abs().max()) > 1e-5


@pytest.mark.parametrize("solver", ALL, ids=label)
def test_states_on_the_way_follow_the_process(solver: Solver) -> None:
    """At every time of the grid the law is p_t, as far as the method goes."""
    sde, data = VP(), Gaussian(torch.zeros(1, dtype=F64), 0.25)
    if isinstance(solver, AnnealedLangevin):
        assert not solver.follows_process
        return
    assert solver.follows_process
    x = normal(1000, 1)
    run = solver.solve(Reverse(data.score(sde), solver.default_eta), x, grids.log_snr(sde, 40), 0, trajectory=True)
    assert run.trajectory is not None
    for t, state in zip(run.grid, run.trajectory, strict=True):
        expected = float(data.moments(sde, t)[1]) ** 0.5
        # 5 standard errors, and the bias of first-order methods in 40 steps
        assert float(state.std()) == pytest.approx(expected, rel=5 / 2000**0.5 + 0.12)


def test_annealed_langevin_does_not() -> None:
    """One step at each level does not bring the law along: the reason for what it declares."""
    sde, data = VP(), Gaussian(torch.zeros(1, dtype=F64), 0.01)
    process, grid = Reverse(data.score(sde), 1.0), grids.log_snr(sde, 20)
    run = AnnealedLangevin(steps=1).solve(process, normal(1000, 1), grid, 0, trajectory=True)
    assert run.trajectory is not None
    ratios = [
        float(state.std()) / float(data.moments(sde, t)[1]) ** 0.5
        for t, state in zip(run.grid, run.trajectory, strict=True)
    ]
    assert max(ratios) > 1.3


@pytest.mark.parametrize("solver", ALL, ids=label)
def test_the_default_grid_is_the_one_that_sample_takes(solver: Solver) -> None:
    score = MIXTURE.score(VP())
    rule = solver.default_grid(score)
    assert callable(rule)
    expected = grids.spectral if isinstance(solver, SpectralMultistep) else grids.karras
    assert torch.equal(rule(VP(), 9), expected(VP(), 9))
    assert torch.equal(sample(score, (2, 2), solver=solver, steps=9).grid, rule(VP(), 9))
    assert float(rule(VP(), 9, t_start=0.5)[0]) == 0.5


def test_the_default_grid_knows_the_scale_of_the_data() -> None:
    knows = ScoreModel(lambda x, c: x, VP(), "x0", sigma_data=0.3)
    for solver, scale in ((SpectralMultistep(), 0.3), (SpectralMultistep(Spectrum(2.0, 2.0)), 2.0)):
        rule = solver.default_grid(knows)
        assert callable(rule) and torch.equal(rule(VP(), 9), grids.spectral(VP(), 9, spectrum=Spectrum(scale, scale)))
        around: Any = PredictorCorrector(solver).default_grid(knows)
        assert torch.equal(around(VP(), 9), rule(VP(), 9))


@pytest.mark.parametrize("solver", ALL, ids=label)
def test_the_default_eta_is_one_that_the_method_takes(solver: Solver) -> None:
    assert solver.default_eta in (0.0, 1.0)
    process = process_of(solver)
    solver.check(process)
    assert solver.draws_noise(process) or solver.default_eta == 0
    if not solver.draws_noise(process):  # and then none is asked for
        solver.solve(process, normal(2, 2), grids.karras(VP(), 3))


@pytest.mark.parametrize(
    "inner", [UniPC(), DDIM(), AnnealedLangevin(), ProbabilityFlow("rk4"), SpectralMultistep()], ids=name
)
def test_a_solver_around_another_declares_what_the_other_does(inner: Solver) -> None:
    outer = PredictorCorrector(inner)
    assert isinstance(outer, Wrapping) and outer.solver is inner
    assert (outer.default_eta, outer.has_memory, outer.follows_process) == (
        inner.default_eta, inner.has_memory, inner.follows_process,
    )  # fmt: skip
    assert outer.steps_on_grid and outer.draws_noise(process_of(inner))


def test_what_is_remembered_of_some_samples() -> None:
    """``selected`` picks rows out of whatever a method carries: the run goes on as theirs alone."""
    for solver in (UniPC(3), DEIS(3), SpectralMultistep(), PredictorCorrector(UniPC()), AnnealedLangevin(), DDIM()):
        process, grid, rows = process_of(solver), grids.karras(VP(), 6), torch.tensor([2, 0])
        whole = normal(3, 2)
        ends = []
        for some in (False, True):
            x, state = solver.start(process, whole, grid, PerSampleNoise(0))
            for i, (t, s) in enumerate(itertools.pairwise(grid)):
                if some and i == 3:
                    x, state = x[rows], solver.selected(state, lambda v, rows=rows: v[rows])
                noise = Rows(rows if some and i >= 3 else None, i)
                x, state = solver.step(process, x, t, s, noise, state)
            ends.append(x)
        torch.testing.assert_close(ends[1], ends[0][rows], rtol=1e-12, atol=1e-12)


class Rows(Known):
    """Normals of three samples, or of some of them."""

    def __init__(self, rows: Tensor | None, step: int) -> None:
        self.rows, self.seed = rows, 100 * step

    def normal(self, x: Tensor) -> Tensor:
        self.seed += 1
        whole = normal(3, *x.shape[1:], seed=self.seed)
        return whole if self.rows is None else whole[self.rows]

    def between(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.normal(x)


# ---- variables ----

VARIABLES = {
    "log_snr": variables.LOG_SNR,
    "noise_level": variables.NOISE_LEVEL,
    "karras": variables.KARRAS,
    **{f"angle {s}": variables.angle(s) for s in (0.1, 1.0, 7.0)},
}


@pytest.mark.parametrize("key", VARIABLES)
def test_variables_have_their_inverses(key: str) -> None:
    of_h, to_h = VARIABLES[key]
    h = torch.linspace(-6, 6, 25, dtype=F64).reshape(5, 5)
    v = of_h(h)
    steps = v.flatten().diff()
    assert v.shape == h.shape and (bool((steps > 0).all()) or bool((steps < 0).all()))
    # an angle near π/2, a share near 1, lose e^-6 to e^-12 of their digits
    torch.testing.assert_close(to_h(v), h, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sde", [*DEFAULTS, RectifiedFlow(t_min=0.1), EDM()], ids=name)
def test_time_is_a_variable_of_every_schedule(sde: Any) -> None:
    of_h, to_h = variables.time_of(sde)
    ends = 0.5 * sde.log_snr(torch.tensor([sde.T, max(sde.t_min, 1e-4)], dtype=F64))
    h = (ends[0] + (ends[1] - ends[0]) * torch.linspace(0.01, 0.99, 24, dtype=F64)).reshape(4, 6)
    assert of_h(h).shape == h.shape and bool((of_h(h).flatten().diff() < 0).all())
    torch.testing.assert_close(to_h(of_h(h)), h, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(of_h(to_h(of_h(h))), of_h(h), rtol=1e-10, atol=1e-12)


def test_what_the_variables_are() -> None:
    h = torch.tensor([-1.0, 0.0, 2.0], dtype=F64)
    ratio = torch.exp(-h)
    expected = {
        "log_snr": h, "noise_level": ratio, "karras": ratio ** (1 / 7), "angle 7.0": torch.atan(ratio / 7),
    }  # fmt: skip
    for key, value in expected.items():
        torch.testing.assert_close(VARIABLES[key].of_h(h), value, rtol=1e-14, atol=0)
