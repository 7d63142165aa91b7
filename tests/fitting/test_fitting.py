"""Fitted samplers: what is recorded, what is differentiated, what is promised of the result."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde import checks, grids
from scoresde.fitting import Iteration, fit, gauss_newton
from scoresde.fitting.candidates import Candidate, candidates, fixed_grids
from scoresde.fitting.procedure import _in_order
from scoresde.fitting.recorded import record, run
from scoresde.fitting.trajectories import Trajectories, reference, root_mean, square, trimmed
from scoresde.fitting.unknowns import Unknowns
from scoresde.models import Score, ScoreModel, as_score
from scoresde.nn import MLP
from scoresde.noise import PerSampleNoise
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sampling import sample
from scoresde.sde import EDM, VE, VP, RectifiedFlow
from scoresde.solvers import (
    DDIM,
    DEIS,
    AdaptiveODE,
    DPMSolverPP,
    EulerMaruyama,
    Fitted,
    Heun,
    Multistep,
    Solver,
    SpectralMultistep,
    UniPC,
)
from scoresde.solvers.fitted import FitReport, FittedLevels, LinearMethod

F64 = torch.float64
SDES = {"VP": VP(), "EDM": EDM(), "VE": VE(), "RectifiedFlow": RectifiedFlow()}
START = Multistep(2, True, "v")


@functools.cache
def mixture() -> GaussianMixture:
    """Three unequal components in the plane."""
    means = torch.tensor([[1.0, 0.2], [-0.8, 0.6], [0.1, -1.1]], dtype=F64)
    return GaussianMixture(torch.tensor([0.5, 0.3, 0.2]), means, torch.tensor([0.04, 0.02, 0.09], dtype=F64))


def exact_score(sde: Any = None, data: GaussianMixture | None = None) -> Score:
    return (data or mixture()).score(VP() if sde is None else sde)


def ode(sde: Any = None, data: GaussianMixture | None = None) -> Reverse:
    return Reverse(exact_score(sde, data), 0.0)


@functools.cache
def fitted() -> Fitted:
    """Four evaluations on the mixture, a second's work."""
    return fit(exact_score(), 4, solver=START, shape=(640, 2), batch=64, seed=3, iterations=40, dtype=F64)


def starts(n: int, sde: Any = None, event: tuple[int, ...] = (2,), seed: int = 99) -> Tensor:
    """Noise that no fit here has seen."""
    return (VP() if sde is None else sde).prior_sample((n, *event), seed, dtype=F64)


def noise_free_error(solver: Solver, grid: Tensor, x: Tensor, ends: Tensor, process: Reverse) -> float:
    return root_mean(square(solver.solve(process, x, grid).x - ends))


# -- recording ---------------------------------------------------------------------------------------------------------

LINEAR: list[Solver] = [
    DDIM(),
    EulerMaruyama(),
    Heun(),
    DPMSolverPP(3),
    DEIS(4),
    UniPC(3),
    SpectralMultistep(),
    Multistep(3, True, "v", "angle"),
    Multistep(2, False, "noise", "noise_level"),
]


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("solver", LINEAR, ids=repr)
def test_a_recorded_method_is_the_solver(solver: Solver, sde: str) -> None:
    """To rounding, in as many evaluations; from a time at which α is not so small that rounding is enlarged."""
    schedule = SDES[sde]
    process, grid = ode(schedule), grids.karras(schedule, 5, t_start=0.9 * schedule.T, t_end=0.01)
    x = starts(50, schedule)
    solution = solver.solve(process, x, grid)
    method = record(solver, schedule, grid)
    assert len(method.evaluated_at) == solution.nfe
    # sums of at most ten terms, of which the largest are of the size of x: rounding relative to those
    torch.testing.assert_close(run(method, process.score, x), solution.x, rtol=1e-9, atol=1e-11 * float(x.abs().max()))


@dataclasses.dataclass(frozen=True)
class Clipping(Solver):
    """Not linear: it clips."""

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Any, state: Any) -> tuple[Tensor, Any]:
        data = process.score.denoise(x, t).clamp(-0.3, 0.3)
        return process.sde.alpha(s) * data + process.sde.sigma(s) / process.sde.sigma(t) * (x - data), None


@pytest.mark.parametrize("solver", [Clipping(), AdaptiveODE(rtol=0.1, atol=0.1)], ids=lambda s: type(s).__name__)
def test_only_linear_methods_are_recorded(solver: Solver) -> None:
    with pytest.raises(ValueError, match="linear"):
        record(solver, VP(), grids.log_snr(VP(), 3))


# -- derivatives -------------------------------------------------------------------------------------------------------


def jacobian(unknowns: Unknowns, theta: Tensor, process: Reverse, x: Tensor) -> Tensor:
    """(B, D, P) by central differences."""
    columns = []
    for i in range(len(theta)):
        # 1e-6: rounding, 1e-16 / 1e-6, and the cubic term, 1e-12, are both far below the tolerance of 1e-6
        step = torch.zeros_like(theta)
        step[i] = 1e-6
        columns.append(
            (
                run(unknowns.method(theta + step), process.score, x)
                - run(unknowns.method(theta - step), process.score, x)
            )
            / 2e-6
        )
    return torch.stack(columns, -1)


@pytest.mark.parametrize("sde", ["VP", "EDM"])
def test_rows_are_the_derivatives_of_each_sample(sde: str) -> None:
    process, x = ode(SDES[sde]), starts(6, SDES[sde])
    schedule = process.sde
    # times inside the range, so that both sides of a difference are
    method = record(START, schedule, grids.karras(schedule, 3, t_start=0.9 * schedule.T, t_end=0.1))
    unknowns, theta = Unknowns.of(schedule, method)
    assert len(theta) == 4 + 6 + 3
    slope = jacobian(unknowns, theta, process, x)
    end = torch.ones_like(x)
    rows = unknowns.derivatives(process.score, theta, x, end, None)
    error = run(unknowns.method(theta), process.score, x) - end
    torch.testing.assert_close(rows.error, error)
    close = functools.partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6 * float(slope.abs().max()))
    close(rows.sketch, slope.movedim(1, 0))
    close(rows.gradient, torch.einsum("bdp,bd->bp", slope, error))
    signs = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], dtype=F64)[:, None].repeat(1, 6, 1)
    rows = unknowns.derivatives(process.score, theta, x, end, signs)
    expected = torch.einsum("kbd,bdp->kbp", signs, slope) / math.sqrt(3)
    close(rows.sketch, expected)
    close(rows.gradient, torch.einsum("bdp,bd->bp", slope, error))


def test_random_signs_give_the_matrix_on_average() -> None:
    """Over all sign vectors the sketch's squares are the Gauss-Newton matrix exactly."""
    process, x = ode(), starts(5)
    unknowns, theta = Unknowns.of(process.sde, record(START, process.sde, grids.log_snr(process.sde, 2)))
    exact = unknowns.derivatives(process.score, theta, x, x, None).sketch
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2)), dtype=F64)[:, None].repeat(1, 5, 1)
    sketched = unknowns.derivatives(process.score, theta, x, x, every).sketch
    squares = [torch.einsum("kbp,kbq->pq", s, s) for s in (exact, sketched)]
    torch.testing.assert_close(squares[1], squares[0], rtol=1e-10, atol=1e-10 * float(squares[0].abs().max()))


def test_the_gradient_is_that_of_the_robust_loss() -> None:
    process, x = ode(), starts(40)
    unknowns, theta = Unknowns.of(process.sde, record(START, process.sde, grids.karras(process.sde, 3, t_start=0.9)))
    blocks = Trajectories([x[:20], x[20:]], [0.5 * x[:20], 0.5 * x[20:]])
    system = gauss_newton._assemble(process.score, unknowns, theta, blocks, 0.0, torch.Generator())

    def mean_loss(theta: Tensor) -> float:
        squared = blocks.squared(lambda x: run(unknowns.method(theta), process.score, x))
        return float(gauss_newton.loss(squared, system.scale).mean())

    assert math.isclose(system.loss, mean_loss(theta), rel_tol=1e-12)
    assert math.isclose(system.scale, float(system.squared.median().sqrt()), rel_tol=1e-12)
    for i in range(len(theta)):
        step = torch.zeros_like(theta)
        step[i] = 1e-6
        slope = (mean_loss(theta + step) - mean_loss(theta - step)) / 2e-6
        # the loss's derivative by e² times twice eᵀ ∂e/∂θ; differences as above
        assert math.isclose(slope, 2 * float(system.gradient[i]), rel_tol=1e-5, abs_tol=1e-6), i


# -- what a fit comes to -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", SDES)
def test_one_step_is_exact_on_an_isotropic_gaussian(sde: str) -> None:
    """The flow is x -> A + B x there and E[x_0 | x_T] affine in x_T too: two coefficients solve two equations."""
    schedule = SDES[sde]
    data = Gaussian(torch.tensor([0.7], dtype=F64), 0.25)
    process = ode(schedule, data)
    made = fit(process.score, 1, solver=START, shape=(96, 1), batch=32, iterations=60, dtype=F64)
    x = starts(64, schedule, (1,))
    exact = data.flow(schedule, x, schedule.T, schedule.t_min)
    assert made.report.chosen == "fitted" and made.report.started_from != "fit"
    # what is left is the error of the reference, which the report states
    error = noise_free_error(made, made.grid, x, exact, process)
    assert error <= 3 * made.report.reference_error + 1e-9
    assert error < 0.01 * made.report.fixed


def test_a_fit_beats_every_fixed_grid_on_new_noise() -> None:
    made, process, x = fitted(), ode(), starts(500)
    (ends,), _ = reference(process.score, [x], 1e-9)
    best = min(noise_free_error(START, grid, x, ends, process) for grid in fixed_grids(process.sde, 4).values())
    # half is what the benchmark asks for at 5 evaluations
    assert noise_free_error(made, made.grid, x, ends, process) < 0.5 * best
    report = made.report
    assert report.chosen == "fitted" and report.rejected is None and report.held_out < 0.5 * report.fixed
    assert report.trajectories == (384, 128, 128) and report.event == (2,) and report.seed == 3
    assert str(report).startswith("fitted: RMS")


def test_the_report_tells_the_truth() -> None:
    """Its errors are those of the sampler and of the fixed method on the trajectories held out."""
    made, process = fitted(), ode()
    x = process.sde.prior_sample((640, 2), PerSampleNoise(3).stream("fit"), dtype=F64)[-128:]
    (ends,), error = reference(process.score, [x], 1e-9)
    squared = square(made.solve(process, x, made.grid).x - ends)
    # the ends differ by the errors of both references
    slack = 3 * (made.report.reference_error + error) / made.report.held_out
    assert math.isclose(root_mean(squared), made.report.held_out, rel_tol=slack)
    assert math.isclose(trimmed(squared), made.report.held_out_trimmed, rel_tol=3 * slack)
    named = {f"{START!r} on {name}": grid for name, grid in fixed_grids(process.sde, 4).items()}
    fixed = noise_free_error(START, named[made.report.fixed_method], x, ends, process)
    assert math.isclose(fixed, made.report.fixed, rel_tol=slack)
    assert fixed <= min(noise_free_error(START, grid, x, ends, process) for grid in named.values()) * (1 + slack)


def test_a_fit_of_no_iterations_is_the_fixed_method() -> None:
    process = ode()
    made = fit(process.score, 4, solver=START, shape=(96, 2), batch=32, iterations=0, dtype=F64)
    assert made.report.chosen == "fixed" and made.report.iterations == 0
    named = {f"{START!r} on {name}": grid for name, grid in fixed_grids(process.sde, 4).items()}
    x = starts(20)
    expected = START.solve(process, x, named[made.report.fixed_method]).x
    torch.testing.assert_close(made.solve(process, x, made.grid).x, expected, rtol=1e-10, atol=1e-11)


def test_a_fit_that_fails_leaves_the_best_fixed_method(monkeypatch: pytest.MonkeyPatch) -> None:
    def sabotaged(score: Score, unknowns: Unknowns, theta: Tensor, *args: Any) -> tuple[Tensor, float, int]:
        return unknowns.inside(theta * torch.linspace(0.5, 2.0, len(theta), dtype=F64)), 0.0, 7

    monkeypatch.setattr("scoresde.fitting.procedure.descend", sabotaged)
    made = fit(exact_score(), 4, solver=START, shape=(96, 2), batch=32, dtype=F64)
    report = made.report
    assert report.chosen == "fixed" and report.held_out == report.fixed and report.rejected is not None
    assert report.rejected >= report.fixed and "no better" in str(report) and f"{report.fixed:.3g}" in str(report)
    x = starts(20)
    named = {f"{START!r} on {name}": grid for name, grid in fixed_grids(VP(), 4).items()}
    expected = START.solve(ode(), x, named[report.fixed_method]).x
    torch.testing.assert_close(made.solve(ode(), x, made.grid).x, expected, rtol=1e-10, atol=1e-11)


def test_the_reference_is_as_good_as_it_says() -> None:
    data = Gaussian(torch.tensor([0.7, -0.4], dtype=F64), torch.tensor([0.5, 0.01], dtype=F64))
    for sde in (VP(), EDM()):
        x = starts(20, sde)
        exact = data.flow(sde, x, sde.T, sde.t_min)
        for wanted in (math.inf, 1e-8):
            (ends,), error = reference(exact_score(sde, data), [x], wanted)
            assert root_mean(square(ends - exact)) <= error <= wanted
    assert error < 1e-8


def test_samples_far_off_are_weighed_less() -> None:
    squared = torch.tensor([0.01, 1.0, 100.0], dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(gauss_newton.loss(squared, 0.5).sum(), squared)
    torch.testing.assert_close(slope, gauss_newton.weight(squared, 0.5).detach())
    assert bool((slope.diff() < 0).all()) and float(slope[0]) > 0.95 and float(slope[2]) < 0.06


def test_errors_leave_out_one_in_twenty() -> None:
    squared = torch.cat([torch.ones(19), torch.tensor([400.0])]).double()
    assert root_mean(squared) == math.sqrt(419 / 20) and trimmed(squared) == 1.0
    assert root_mean(torch.tensor([1.0, math.nan])) == math.inf


# -- options -----------------------------------------------------------------------------------------------------------


def quick(score: Score | None = None, **options: Any) -> Fitted:
    given = {"shape": (24, 2), "batch": 8, "iterations": 2, "dtype": F64, "solver": START, "steps": 2, **options}
    return fit(score or exact_score(), **given)


def test_the_seed_is_the_fit() -> None:
    assert dataclasses.replace(quick(), report=fitted().report) == dataclasses.replace(quick(), report=fitted().report)
    assert quick(seed=1).weights != quick(seed=2).weights


def test_given_starts_are_used() -> None:
    """Those of the seed give the same sampler as the seed; others another."""
    x = VP().prior_sample((24, 2), PerSampleNoise(0).stream("fit"), dtype=F64)
    assert quick(shape=None, starts=x).weights == quick().weights != quick(shape=None, starts=x.flip(0)).weights
    # and not those from which sample(seed=0) starts: a fit must not be judged on what it was fitted to
    others = VP().prior_sample((24, 2), PerSampleNoise(0), dtype=F64)
    assert float(torch.cdist(x, others).min()) > 0


def test_solvers_are_where_it_starts() -> None:
    assert quick(solver=DDIM()).report.started_from.startswith("DDIM")
    for both in ([EulerMaruyama(), START], [START, EulerMaruyama()]):  # the worse by orders of magnitude
        assert quick(solver=both, steps=4).report.started_from.startswith("Multistep")
    made = quick(solver=Heun(), steps=4)  # two steps of Heun's
    assert made.steps == 4 and made.report.started_from.startswith("Heun")
    assert "Multistep" in quick(solver=None).report.started_from


def test_limits_stop_it() -> None:
    seen: list[Iteration] = []
    assert quick(iterations=3, callback=seen.append).report.iterations == 3
    assert [i.iteration for i in seen] == sorted({i.iteration for i in seen}) and 1 <= len(seen) <= 3
    assert all(math.isfinite(i.train) and math.isfinite(i.validation) and i.seconds >= 0 for i in seen)
    assert quick(iterations=3, budget=1e-9).report.iterations == 0


def test_dtype_and_device_are_those_of_the_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    inner = VP.prior_sample

    def spying(self: VP, shape: Any, noise: Any, *, dtype: torch.dtype, device: Any) -> Tensor:
        asked.append((dtype, torch.device(device)))
        return inner(self, shape, noise, dtype=dtype)

    monkeypatch.setattr(VP, "prior_sample", spying)
    monkeypatch.setattr(checks, "device", torch.device)  # as if it were there
    kinds: set[torch.dtype] = set()

    def score(x: Tensor, t: Tensor) -> Tensor:
        kinds.add(x.dtype)
        return mixture().score(VP())(x, t)

    quick(as_score(score, VP()), dtype=torch.float32, device="cuda:0")
    assert asked == [(torch.float32, torch.device("cuda:0"))]
    # float64 besides: solvers are recorded on symbols, but never with this score
    assert kinds == {torch.float32}


def test_bound_conditions_meet_the_batch_they_were_bound_for() -> None:
    """The score takes 8 samples, sample i of class i: called with any other number it raises."""
    labels = torch.arange(8) % 3
    inner = mixture().score(VP(), labels)
    made = quick(inner, batch=8, shape=(40, 2), steps=3, iterations=6)
    x = starts(8)
    assert bool(made.solve(Reverse(inner, 0.0), x, made.grid).x.isfinite().all())


def test_a_network_is_left_alone() -> None:
    torch.manual_seed(0)
    net = MLP(3, width=8, depth=1)
    torch.nn.init.normal_(net.head.weight)  # 0 at first: a network that is not there
    model = ScoreModel(net, VP(), sigma_data=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    made = quick(model, shape=(96, 3), batch=32, steps=3, iterations=10, dtype=torch.float32)
    assert made.report.held_out <= made.report.fixed
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_score_without_slope_in_time_is_fitted() -> None:
    """Networks that look their time up in a table have a derivative of 0 there."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        return mixture().score(VP())(x, t.detach())

    assert quick(as_score(score, VP()), shape=(96, 2), batch=32, iterations=10).report.chosen == "fitted"


@pytest.mark.parametrize("event", [(1, 2), (1, 2, 1)])
def test_any_event_shape(event: tuple[int, ...]) -> None:
    data = GaussianMixture(torch.ones(2), torch.stack([torch.ones(event), -torch.ones(event)]), 0.1)
    made = quick(exact_score(VP(), data), shape=(96, *event), batch=32, iterations=10)
    assert made.report.event == event and made.report.chosen == "fitted"


def test_more_coordinates_than_directions() -> None:
    """Six coordinates, four random directions: the other branch of the derivatives."""
    data = Gaussian(torch.zeros(6, dtype=F64), torch.linspace(0.1, 1.0, 6, dtype=F64))
    made = quick(exact_score(VP(), data), shape=(96, 6), batch=32, steps=3, iterations=30)
    assert made.report.held_out < 0.5 * made.report.fixed


# -- running one -------------------------------------------------------------------------------------------------------


def test_sample_takes_its_times() -> None:
    made, process = fitted(), ode()
    solution = sample(process.score, (5, 2), solver=made, steps=99, dtype=F64, seed=4, denoise=False)
    assert solution.nfe == made.steps == 4 and torch.equal(solution.grid, made.grid)
    x = sample(process.score, (5, 2), solver=made, grid=made.grid, dtype=F64, seed=4, denoise=False).x
    assert torch.equal(solution.x, x)
    one = sample(process.score, (5, 2), solver=made, dtype=F64, seed=4)
    assert one.denoised and one.nfe == 5


def test_sample_takes_its_file(tmp_path: Path) -> None:
    made, process = fitted(), ode()
    path = made.save(tmp_path / "four.json")
    runs = [sample(process.score, (5, 2), solver=s, dtype=F64).x for s in (made, path)]
    assert torch.equal(*runs)


def test_states_have_the_dtype_of_x() -> None:
    made, process = fitted(), ode()
    x = starts(100)
    exact, single = (made.solve(process, v, made.grid).x for v in (x, x.float()))
    assert single.dtype == torch.float32
    # a few roundings of float32, enlarged at most by the slope of the flow at a border between modes
    torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=1e-3)


def test_gradients_flow_through_it() -> None:
    made, process, x = fitted(), ode(), starts(3).requires_grad_()
    torch.autograd.gradcheck(lambda v: made.solve(process, v, made.grid).x, x)
    plain, kept = (
        torch.autograd.grad(made.solve(process, x, made.grid, checkpoint=c).x.square().sum(), x)[0] for c in (False, 2)
    )
    torch.testing.assert_close(kept, plain, rtol=1e-12, atol=1e-12)


def test_a_process_that_starts_without_signal_is_fitted() -> None:
    """α(T) = 0: x̂_0 there is what the score says of it, and no coefficient divides by α."""
    sde = RectifiedFlow(T=1.0)
    made = quick(exact_score(sde), shape=(320, 2), batch=32, steps=4, iterations=30)
    assert made.report.chosen == "fitted" and made.report.held_out < 0.7 * made.report.fixed
    x, near = starts(200, sde), RectifiedFlow(T=1 - 1e-9)
    (ends,), _ = reference(exact_score(near), [x], 1e-9)
    # the flow from α = 1e-9 is that from 0 to 1e-9
    assert root_mean(square(made.solve(ode(sde), x, made.grid).x - ends)) < 2 * made.report.held_out


def test_steps_come_in_their_order() -> None:
    made, process, x = fitted(), ode(), starts(3)
    times, noise = made.grid.unbind(), PerSampleNoise(0)
    y, state = made.start(process, x, made.grid, noise)
    for t, s in itertools.pairwise(times):
        y, state = made.step(process, y, t, s, noise, state)
    assert torch.equal(y, made.solve(process, x, made.grid).x)
    _, state = made.start(process, x, made.grid, noise)
    with pytest.raises(ValueError, match="number 1; none goes from"):
        made.step(process, x, times[1], times[2], noise, state)
    with pytest.raises(ValueError, match="its own 4 steps"):
        made.step(process, x, times[0], times[1], noise, None)


def test_it_refuses_what_it_was_not_fitted_for() -> None:
    made, x = fitted(), starts(3)
    with pytest.raises(ValueError, match=r"fitted for VP\(.*beta_max=20.0.*the process has VP\(.*beta_max=19.0"):
        made.solve(ode(VP(beta_max=19.0)), x, made.grid)
    with pytest.raises(ValueError, match="another schedule"):
        made.solve(ode(EDM()), x, made.grid)
    with pytest.raises(ValueError, match="eta = 1"):
        made.solve(Reverse(mixture().score(VP()), 1.0), x, made.grid)
    for grid in (grids.uniform(VP(), 4), grids.log_snr(VP(), 5)):
        with pytest.raises(ValueError, match="its own 4 steps"):
            made.solve(ode(), x, grid)


def test_its_times_decrease_whatever_the_evaluations() -> None:
    for at in ((1.0, 0.5, 0.5, 0.7), (0.3, 1.0, 1.0, 1.0), (1.0, 1e-3, 1e-3, 1e-3), (0.9,), (1.0, 0.2, 1e-3, 0.4)):
        times = _in_order(VP(), at)
        assert len(times) == len(at) + 1 and (times[0], times[-1]) == (1.0, 1e-3)
        assert all(a > b for a, b in itertools.pairwise(times))
    assert _in_order(VP(), (1.0, 0.7, 0.4)) == (1.0, 0.7, 0.4, 1e-3)


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_file_brings_back_every_bit(tmp_path: Path) -> None:
    made = fitted()
    path = made.save(tmp_path / "four.json")
    again = Fitted.load(path)
    assert again == made and again.weights == made.weights and hash(again) == hash(made)
    x, process = starts(50), ode()
    assert torch.equal(again.solve(process, x, again.grid).x, made.solve(process, x, made.grid).x)
    content = json.loads(path.read_text("utf-8"))
    assert content["eta"] == 0 and content["steps"] == 4 and content["schedule"]["name"].startswith("VP(")
    assert [p.name for p in tmp_path.iterdir()] == ["four.json"]


def test_a_write_that_dies_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "four.json"
    path.write_text("old", "utf-8")

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    for moment in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, moment, killed)
            with pytest.raises(KeyboardInterrupt):
                fitted().save(path)
        assert path.read_text("utf-8") == "old" and [p.name for p in tmp_path.iterdir()] == ["four.json"]


def _changed(key: str, value: Any) -> Any:
    def change(content: dict[str, Any]) -> None:
        *parents, last = key.split(".")
        for parent in parents:
            content = content[parent]
        content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_changed("format", "x"), "no fitted sampler"),
        (_changed("version", 1), "version 1"),
        (_changed("of_start", [1.0, 1.0, math.nan, 1.0, 1.0]), r"of_start\[2\] must be finite, got nan"),
        (_changed("of_start", [1.0]), r"n \+ 1 of_start"),
        (_changed("times", [1.0, 0.5, 0.6, 0.1, 0.001]), "strictly decreasing"),
        (_changed("evaluated_at", "1.0"), "evaluated_at must be a list, got '1.0'"),
        (_changed("evaluated_at", [1.0, 0.5, 0.2, True]), r"evaluated_at\[3\] must be a finite number, got True"),
        (_changed("schedule.alpha", [1.0]), "schedule"),
        (_changed("report", {}), r"report\.\w+ is missing"),
        (_changed("report.more", 1), r"report\.more is no field"),
        (_changed("report.fixed", 0.0), r"report\.fixed must be a finite number above 0"),
        (_changed("report.rejected", "x"), r"report\.rejected must be a finite number"),
        (_changed("report.trajectories", [1, 2]), r"report\.trajectories must be a list of 3"),
        (_changed("schedule", 3), "schedule must be a JSON object"),
        (_changed("weights", [[1.0], [0.5, 10**400]]), "weights.* more than 64 bits"),
        (lambda content: content.pop("weights"), "weights"),
    ],
    ids=lambda v: v.replace(" ", "-") if isinstance(v, str) else "",
)
def test_a_damaged_file_is_refused(change: Any, match: str, tmp_path: Path) -> None:
    path = fitted().save(tmp_path / "four.json")
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match=match) as caught:
        Fitted.load(path)
    assert "four.json" in str(caught.value)


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "four.json"
    path.write_text(fitted().save(path).read_text("utf-8")[:-40], "utf-8")
    with pytest.raises(ValueError, match="not JSON"):
        Fitted.load(path)
    with pytest.raises(FileNotFoundError):
        Fitted.load(tmp_path / "none.json")


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"shape": None}, ValueError, "either shape"),
        ({"starts": torch.zeros(24, 2)}, ValueError, "either shape"),
        ({"shape": (25, 2)}, ValueError, "multiple"),
        ({"shape": (16, 2)}, ValueError, "at least 24"),
        ({"shape": (24,)}, ValueError, "blocks"),
        ({"shape": None, "starts": torch.full((24, 2), math.nan)}, ValueError, "NaN"),
        ({"batch": 0}, ValueError, "batch"),
        ({"steps": 0}, ValueError, "steps"),
        ({"iterations": -1}, ValueError, "iterations"),
        ({"budget": 0.0}, ValueError, "budget"),
        ({"solver": "ddim"}, TypeError, "Solver"),
        ({"solver": []}, TypeError, "Solver"),
        ({"solver": Clipping()}, ValueError, "linear"),
        ({"solver": Heun(), "steps": 3}, ValueError, "no number of steps"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else getattr(v, "__name__", ""),
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        quick(**options)


def test_bad_scores_are_refused() -> None:
    with pytest.raises(TypeError, match="must be a Score"):
        quick(ode())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="as_score"):
        quick(lambda x, t: -x)  # type: ignore[arg-type]

    def dropout(x: Tensor, t: Tensor) -> Tensor:
        return x * torch.rand_like(x)

    with pytest.raises(ValueError, match="random numbers of its own"):
        quick(as_score(dropout, VP()))
    with pytest.raises(FloatingPointError):
        quick(as_score(lambda x, t: torch.where(t > 0.9, -x, math.nan), VP()))
    with pytest.raises(ValueError, match="not finite at T"):
        quick(as_score(lambda x, t: x * math.nan, VP()))


def test_methods_that_all_diverge_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Candidate("diverging", LinearMethod([1.0], [1.0, math.inf], [[1.0]]))
    monkeypatch.setattr("scoresde.fitting.procedure.candidates", lambda *args: [made])
    with pytest.raises(FloatingPointError, match="every fixed method of 2 steps"):
        quick()


def test_the_pieces_of_a_sampler_must_fit() -> None:
    made = fitted()
    with pytest.raises(ValueError, match="rows of 1 to n"):
        dataclasses.replace(made, weights=made.weights[:-1])
    with pytest.raises(ValueError, match="NaN"):
        dataclasses.replace(made, evaluated_at=(math.inf, *made.evaluated_at[1:]))
    assert FittedLevels.of(VP(), (*made.times, *made.evaluated_at)) == made.schedule
    assert isinstance(made.report, FitReport) and len(candidates(VP(), [DDIM()], 3)) >= 7
