"""Adaptive solvers: each sample on its own, errors that follow the tolerance, noise that rejections do not bias."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde import grids
from scoresde.models import as_score
from scoresde.noise import BrownianNoise, IndependentNoise, Noise, PerSampleNoise
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sampling import sample
from scoresde.sde import EDM, SDE, VE, VP, Cosine, RectifiedFlow, SubVP, spread
from scoresde.solvers import AdaptiveODE, AdaptiveSDE, EulerMaruyama, Solution, Solver, adaptive
from scoresde.solvers._adams import _newton
from scoresde.solvers._circle import Circle
from scoresde.solvers._embedded import DORMAND_PRINCE
from scoresde.solvers._remembered import Driver, Remembered

SDES: dict[str, SDE] = {
    "VP": VP(), "SubVP": SubVP(), "VE": VE(), "EDM": EDM(), "Cosine": Cosine(), "RectifiedFlow": RectifiedFlow(),
}  # fmt: skip
DATA = Gaussian(torch.tensor([0.7, -0.4, 1.5], dtype=torch.float64), torch.tensor([0.5, 2.0, 0.1], dtype=torch.float64))
MIXTURE = GaussianMixture(
    torch.ones(3), torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]], dtype=torch.float64), 0.02
)
METHODS = ["adams", "dopri5"]


def ends(sde: SDE) -> Tensor:
    return torch.tensor([sde.T, sde.t_min], dtype=torch.float64)


def start(sde: SDE, n: int, d: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * sde.prior_std


def run(solver: Solver, sde: SDE, x: Tensor, grid: Tensor | None = None, data: Any = DATA, **keywords: Any) -> Solution:
    process = Reverse(data.score(sde), 0.0)
    return solver.solve(process, x, ends(sde) if grid is None else grid, **keywords)


# ---- the tableau and the weights, from their order conditions ----


def trees(order: int) -> list[Any]:
    """Rooted trees with this many nodes, as nested sorted tuples of subtrees (Hairer, Nørsett & Wanner 1993, II.2)."""
    if order == 1:
        return [()]
    found = set()
    for parts in _partitions(order - 1, order - 1):
        for choice in itertools.product(*(trees(part) for part in parts)):
            found.add(tuple(sorted(choice, key=repr)))
    return sorted(found, key=repr)


def _partitions(n: int, largest: int) -> list[list[int]]:
    if n == 0:
        return [[]]
    return [[k, *rest] for k in range(min(n, largest), 0, -1) for rest in _partitions(n - k, k)]


def density(tree: Any) -> int:
    return size(tree) * math.prod(density(branch) for branch in tree)


def size(tree: Any) -> int:
    return 1 + sum(size(branch) for branch in tree)


def elementary(tree: Any, a: Tensor) -> Tensor:
    """Φ_i of the stages."""
    value = torch.ones(len(a), dtype=torch.float64)
    for branch in tree:
        value = value * (a @ elementary(branch, a))
    return value


def tableau() -> tuple[Tensor, Tensor, Tensor]:
    stages = len(DORMAND_PRINCE.nodes)
    a = torch.zeros(stages, stages, dtype=torch.float64)
    for i, row in enumerate(DORMAND_PRINCE.matrix):
        a[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    b = a[-1]
    return a, b, b - torch.tensor(DORMAND_PRINCE.error, dtype=torch.float64)


def test_the_pair_satisfies_its_order_conditions() -> None:
    a, b, other = tableau()
    assert [len(trees(n)) for n in range(1, 6)] == [1, 1, 2, 4, 9]
    torch.testing.assert_close(a.sum(1), torch.tensor(DORMAND_PRINCE.nodes, dtype=torch.float64), rtol=0, atol=1e-14)
    for weights, order in ((b, 5), (other, 4)):
        for tree in itertools.chain(*(trees(n) for n in range(1, order + 1))):
            assert abs(float(weights @ elementary(tree, a)) - 1 / density(tree)) < 1e-14  # rounding of 7 products
        missed = [abs(float(weights @ elementary(tree, a)) - 1 / density(tree)) for tree in trees(order + 1)]
        assert max(missed) > 1e-4  # and of no higher order


def test_the_pair_interpolates_with_order_four() -> None:
    a, b, _ = tableau()
    part = torch.tensor([0.0, 0.3, 0.8, 1.0], dtype=torch.float64)
    weights = DORMAND_PRINCE.inside(part)
    torch.testing.assert_close(weights[-1], b, rtol=0, atol=1e-14)
    for tree in itertools.chain(*(trees(n) for n in range(1, 5))):
        # 1e-9: the published weights are rationals of ten digits
        torch.testing.assert_close(weights @ elementary(tree, a), part ** size(tree) / density(tree), rtol=0, atol=1e-9)


def test_newton_terms_integrate_polynomials_through_unequal_nodes() -> None:
    nodes = torch.tensor([[1.0, 0.0, -0.4, -1.3, -1.35], [1.0, 0.0, -2.0, -2.1, -7.0]], dtype=torch.float64)
    part = torch.tensor([1.0, 0.6], dtype=torch.float64)
    terms = _newton(nodes, part)
    for count in range(1, 6):
        weights = terms[:, :count].sum(1)
        assert bool((weights[:, count:] == 0).all())  # later nodes play no part
        for degree in range(count):
            got = (weights * nodes**degree).sum(1)
            # rounding, times the size of the weights
            torch.testing.assert_close(got, part ** (degree + 1) / (degree + 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("sde", SDES)
def test_the_slope_on_the_circle_is_that_of_the_flow(sde: str) -> None:
    schedule, scale = SDES[sde], 0.7
    x = start(schedule, 4)
    circle = Circle(Reverse(DATA.score(schedule), 0.0), ends(schedule), scale)
    p = torch.linspace(0.02, 0.98, 4, dtype=torch.float64) * (circle.ends[1] - circle.ends[0]) + circle.ends[0]

    def flow(p: Tensor) -> Tensor:
        at = circle.at(p)
        rows = [DATA.flow(schedule, x[i : i + 1], schedule.T, t) for i, t in enumerate(at.t)]
        return torch.cat(rows) / spread(at.size, x)

    step = 1e-5
    slope = (flow(p + step) - flow(p - step)) / (2 * step)
    # central differences: step² / 6 of a third derivative of order 1 to 100, rounding of times 1e-16 / step
    torch.testing.assert_close(circle.slope(flow(p), circle.at(p)), slope, rtol=1e-5, atol=1e-6)


# ---- errors ----


@pytest.mark.parametrize("sde", ["VP", "EDM", "Cosine"])
@pytest.mark.parametrize("method", METHODS)
def test_the_error_is_proportional_to_the_tolerance(method: str, sde: str) -> None:
    schedule = SDES[sde]
    x = start(schedule, 8)
    exact = DATA.flow(schedule, x, schedule.T, schedule.t_min)
    tolerances = [1e-3, 1e-5, 1e-7, 1e-9]
    errors, nfe = [], []
    for tolerance in tolerances:
        solution = run(AdaptiveODE(method=method, rtol=tolerance, atol=tolerance), schedule, x)  # type: ignore[arg-type]
        errors.append(float((solution.x - exact).square().mean().sqrt()))
        nfe.append(solution.nfe)
    # an error for each step: about tolerance times the number of steps, which grows slowly; a factor of 50 covers both
    # the 10 to 40 steps and that errors made early are carried on
    assert all(error < 50 * tolerance for error, tolerance in zip(errors, tolerances, strict=True)), errors
    slope = math.log(errors[0] / errors[-1]) / math.log(tolerances[0] / tolerances[-1])
    assert 0.75 < slope < 1.25, errors
    assert nfe == sorted(nfe) and nfe[0] < nfe[-1]


def test_the_end_is_the_same_under_every_schedule() -> None:
    """At equal σ/α the whole run is: steps, orders, evaluations."""
    solutions = []
    for sde in SDES.values():
        t, s = (sde.t_of_log_snr(-2 * math.log(ratio)) for ratio in (20.0, 0.05))
        x = start(EDM(), 3, 2) / 80 * 20 * sde.alpha(t)
        solution = run(AdaptiveODE(), sde, x, torch.stack([t, s]), MIXTURE)
        solutions.append((solution.x / sde.alpha(s), solution.nfe_per_sample))
    for x, nfe in solutions[1:]:
        # 1e-8: rounding of times and of small σ, carried through 20 steps of a flow that separates modes
        torch.testing.assert_close(x, solutions[0][0], rtol=0, atol=1e-8)
        assert torch.equal(nfe, solutions[0][1])


def test_the_corrector_is_of_one_order_more_than_the_predictor() -> None:
    """On equal steps: predicted with order 1, corrected with order 2, though v is that of the prediction."""
    sde = EDM(T=5.0, t_min=0.3)
    x = start(sde, 3)
    exact = DATA.flow(sde, x, sde.T, sde.t_min)
    length = math.atan(5.0) - math.atan(0.3)
    errors = []
    for n in (32, 64, 128):
        solver = AdaptiveODE(max_order=1, rtol=1e6, atol=1e6, first_step=length / n, grow=1 + 1e-14)
        errors.append(float((run(solver, sde, x).x - exact).norm()))
    coarse, fine = (math.log2(a / b) for a, b in itertools.pairwise(errors))
    assert abs(2 * fine - coarse - 2) < 0.1, errors  # extrapolated: terms of 1/n² are left


# ---- each sample on its own ----


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_does_not_depend_on_its_batch(method: str) -> None:
    sde = VP()
    x = start(sde, 6, 2)
    solver = AdaptiveODE(method=method)  # type: ignore[arg-type]
    together = run(solver, sde, x, data=MIXTURE)
    assert together.nfe_per_sample is not None and len(set(together.nfe_per_sample.tolist())) > 1
    assert together.nfe == int(together.nfe_per_sample.max())
    for i in range(6):
        alone = run(solver, sde, x[i : i + 1], data=MIXTURE)
        assert alone.nfe == int(together.nfe_per_sample[i])
        # sums over components may be taken in another order for another batch: some roundings, grown by the flow
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "solver", [AdaptiveODE(), AdaptiveODE(method="dopri5"), AdaptiveSDE()], ids=["adams", "dopri5", "sde"]
)
def test_compact_asks_for_running_samples_only(solver: Solver) -> None:
    sde, x, asked = VP(), start(VP(), 6, 2), 0
    exact = MIXTURE.score(sde)

    def score(x: Tensor, t: Tensor) -> Tensor:
        nonlocal asked
        asked += len(x)
        return exact(x, t)

    process = Reverse(as_score(score, sde), solver.default_eta)
    grid = grids.log_snr(sde, 4)
    whole = solver.solve(process, x, grid, 0, trajectory=True)
    assert asked == 6 * whole.nfe
    asked = 0
    part = dataclasses.replace(solver, compact=True).solve(process, x, grid, 0, trajectory=True)  # type: ignore[call-arg]
    assert part.nfe_per_sample is not None and whole.nfe_per_sample is not None
    assert asked == int(part.nfe_per_sample.sum()) < 6 * whole.nfe
    assert torch.equal(part.nfe_per_sample, whole.nfe_per_sample)
    torch.testing.assert_close(part.x, whole.x, rtol=0, atol=1e-9)  # rounding in another batch, grown by the flow
    assert part.trajectory is not None and whole.trajectory is not None
    if isinstance(solver, AdaptiveODE):
        torch.testing.assert_close(part.trajectory, whole.trajectory, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", [AdaptiveODE(), AdaptiveODE(method="dopri5")], ids=["adams", "dopri5"])
def test_a_rejected_step_leaves_no_trace(solver: AdaptiveODE) -> None:
    """Tried again from the same place to the same place it is the same, though other samples went on."""
    sde, x = VP(), start(VP(), 4, 2)
    process = Reverse(MIXTURE.score(sde), solver.default_eta)
    line, method = solver.begin(process, x, ends(sde), IndependentNoise(0))
    y, p = line.enter(x), line.ends[0].expand(4)
    h = 0.1 * (line.ends[1] - line.ends[0]).expand(4)
    first = method.attempt(y, p, h, p + h)[0]
    accepted = torch.tensor([True, False, True, False])
    method.commit(accepted)
    method.attempt(y, p, torch.where(accepted, 0.0, 0.5 * h), torch.where(accepted, p, p + 0.5 * h))  # shorter
    method.commit(torch.zeros(4, dtype=torch.bool))
    again = method.attempt(y, p, torch.where(accepted, 0.0, h), torch.where(accepted, p, p + h))[0]
    torch.testing.assert_close(again[~accepted], first[~accepted], rtol=0, atol=1e-14)


def test_a_rejected_step_of_the_sde_is_the_same_when_tried_again() -> None:
    sde, x = VP(), start(VP(), 4, 2)
    process = Reverse(MIXTURE.score(sde), 1.0)
    line, method = AdaptiveSDE().begin(process, x, ends(sde), IndependentNoise(0))
    y, p = line.enter(x), line.ends[0].expand(4)
    first = method.attempt(y, p, torch.ones_like(p), p + 1)[0]
    method.commit(torch.zeros(4, dtype=torch.bool))
    assert torch.equal(method.attempt(y, p, torch.ones_like(p), p + 1)[0], first)


# ---- the grid's inner times ----


@pytest.mark.parametrize("method", METHODS)
def test_states_at_inner_times_follow_the_flow_and_change_nothing(method: str) -> None:
    sde = VP()
    x, grid = start(sde, 4), grids.karras(sde, 30)
    solver = AdaptiveODE(method=method, rtol=1e-6, atol=1e-6)  # type: ignore[arg-type]
    seen: list[int] = []
    bare, full = run(solver, sde, x, grid), run(
        solver, sde, x, grid, trajectory=True, callback=lambda progress: seen.append(progress.step)
    )  # fmt: skip
    assert torch.equal(bare.x, full.x) and bare.nfe == full.nfe and seen == list(range(1, 31))
    assert full.trajectory is not None and torch.equal(full.trajectory[-1], full.x)
    for t, state in zip(grid, full.trajectory, strict=True):
        # 50 tolerances as for the end, and an interpolant of the order of the method or one less
        scale = float((sde.alpha(t) ** 2 + sde.sigma(t) ** 2).sqrt())
        torch.testing.assert_close(state, DATA.flow(sde, x, sde.T, t), rtol=0, atol=2e-4 * scale)


# ---- limits ----


@pytest.mark.parametrize("solver", [AdaptiveODE(max_steps=5), AdaptiveODE(method="dopri5", max_steps=5)], ids=METHODS)
def test_at_the_limit_the_solution_is_partial(solver: Solver) -> None:
    sde = VP()
    x, grid = start(sde, 3), grids.log_snr(sde, 6)
    with pytest.warns(RuntimeWarning, match="max_steps = 5") as caught:
        solution = run(solver, sde, x, grid, trajectory=True, denoise=True)
    assert len(caught) == 1 and not solution.complete and not solution.denoised
    assert solution.reached is not None and solution.trajectory is not None
    assert bool((solution.reached > sde.t_min).all()) and bool((solution.reached < sde.T).all())
    for i, t in enumerate(solution.reached):
        exact = DATA.flow(sde, x[i : i + 1], sde.T, t)[0]
        torch.testing.assert_close(solution.x[i], exact, rtol=0, atol=5e-3)  # 50 tolerances
        for time, state in zip(solution.grid, solution.trajectory[:, i], strict=True):
            if time < t:  # not reached: it repeats where the sample stopped
                torch.testing.assert_close(state, solution.x[i], rtol=0, atol=1e-12)


def test_a_complete_solution_says_so() -> None:
    sde = VP()
    solution = run(AdaptiveODE(), sde, start(sde, 2), denoise=True)
    assert solution.complete and solution.denoised and solution.nfe_per_sample is not None
    assert solution.nfe == int(solution.nfe_per_sample.max())
    assert solution.reached is not None and torch.equal(solution.reached, torch.full_like(solution.reached, sde.t_min))


def test_a_score_that_is_no_number_is_an_error() -> None:
    sde, x = VP(), start(VP(), 3)
    exact = DATA.score(sde)

    def broken(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(t[:, None] < 0.3, torch.nan, exact(x, t))

    with pytest.raises(FloatingPointError, match=r"near t = 0\.3"):
        AdaptiveODE().solve(Reverse(as_score(broken, sde), 0.0), x, ends(sde))
    with pytest.raises(FloatingPointError, match="at the start"):
        AdaptiveODE().solve(Reverse(as_score(lambda x, t: x * torch.nan, sde), 0.0), x, ends(sde))
    with pytest.raises(FloatingPointError, match="shorter steps did not help"):
        AdaptiveSDE().solve(Reverse(as_score(broken, sde), 1.0), x, ends(sde), 0)


def test_a_step_into_infinity_is_taken_back() -> None:
    """NaN far from where the samples belong, met by a first step that is too long, is no error."""
    sde, x = VP(), start(VP(), 3)
    exact = DATA.score(sde)

    def fragile(x: Tensor, t: Tensor) -> Tensor:
        expected = (0.2 + 2 * sde.alpha(t) + 3 * sde.sigma(t))[:, None]
        return torch.where(x.abs() > expected, torch.nan, exact(x, t))

    met = AdaptiveODE(first_step=1.2).solve(Reverse(as_score(fragile, sde), 0.0), x, ends(sde))
    torch.testing.assert_close(met.x, run(AdaptiveODE(), sde, x).x, rtol=0, atol=1e-2)  # two runs, 50 tolerances each


def test_a_score_that_jumps_beyond_all_bounds_stops_the_run() -> None:
    calls = 0

    def wild(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return -x if calls == 1 else torch.full_like(x, 1e30)

    with pytest.warns(RuntimeWarning, match="shrank to nothing"):
        solution = AdaptiveODE().solve(Reverse(as_score(wild, VP()), 0.0), start(VP(), 2), ends(VP()))
    assert not solution.complete and bool(solution.x.isfinite().all())


@pytest.mark.parametrize("method", METHODS)
def test_a_grid_may_end_where_no_noise_is_left(method: str) -> None:
    sde = RectifiedFlow()
    # one axis without width: there the last step is all of the noise that is left
    data = Gaussian(torch.tensor([0.7, 1.5], dtype=torch.float64), torch.tensor([0.5, 0.0], dtype=torch.float64))
    x, process = start(sde, 4, 2), Reverse(data.score(sde), 0.0)
    exact = data.flow(sde, x, sde.T, 0.0)
    for tolerance in (1e-4, 1e-6):
        solver = AdaptiveODE(method=method, rtol=tolerance, atol=tolerance)  # type: ignore[arg-type]
        solution = solver.solve(process, x, grids.karras(sde, 9, t_end=0.0), trajectory=True, denoise=True)
        assert solution.complete and not solution.denoised and solution.trajectory is not None
        assert torch.equal(solution.trajectory[-1], solution.x)
        torch.testing.assert_close(solution.x, exact, rtol=0, atol=50 * tolerance)


def test_the_sde_may_end_where_no_noise_is_left() -> None:
    sde, n = RectifiedFlow(), 4000
    mean, covariance = DATA.moments(sde, sde.T)
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x, ends = mean + z * covariance.diagonal().sqrt(), torch.tensor([sde.T, 0.0])
    solution = AdaptiveSDE(rtol=0.005, atol=0.005).solve(Reverse(DATA.score(sde), 1.0), x, ends, 0)
    ratio = solution.x.var(0) / DATA.moments(sde, 0.0)[1].diagonal()
    # Monte Carlo 4 sqrt(2/n) = 0.09, the method's own error at this tolerance some 0.03
    assert solution.complete and float((ratio - 1).abs().max()) < 0.12


# ---- options ----


def nfe(solver: Solver, sde: SDE | None = None) -> int:
    sde = sde or VP()
    return int(run(solver, sde, start(sde, 4, 2), data=MIXTURE).nfe)


@pytest.mark.parametrize(
    "option",
    [
        {"method": "dopri5"}, {"rtol": 1e-2}, {"atol": 1e-2}, {"first_step": 1e-3}, {"grow": 1.2}, {"shrink": 0.8},
        {"safety": 0.3}, {"max_order": 2}, {"sigma_data": 0.2},
    ],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
def test_each_option_changes_the_steps(option: dict[str, Any]) -> None:
    base: dict[str, Any] = {"first_step": 0.5} if "shrink" in option else {}  # a first step that must be taken back
    assert nfe(AdaptiveODE(**base)) != nfe(AdaptiveODE(**base, **option))


@pytest.mark.parametrize(
    "option", [{"rtol": 0.1}, {"atol": 0.1}, {"first_step": 0.01}, {"grow": 1.2}, {"safety": 0.3}, {"sigma_data": 0.2}],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
def test_each_option_changes_the_steps_of_the_sde(option: dict[str, Any]) -> None:
    sde = VP()
    process = Reverse(MIXTURE.score(sde), 1.0)
    x = start(sde, 4, 2)
    counts = [AdaptiveSDE(**given).solve(process, x, ends(sde), 0).nfe_per_sample for given in ({}, option)]
    assert not torch.equal(*counts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "option",
    [
        {"rtol": 0.0}, {"atol": -1.0}, {"max_steps": 0}, {"first_step": 0.0}, {"shrink": 1.0}, {"grow": 1.0},
        {"safety": 1.0}, {"max_order": 9}, {"max_order": 0}, {"sigma_data": 0.0}, {"method": "rk45"},
    ],
    ids=str,
)  # fmt: skip
def test_bad_options_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        AdaptiveODE(**option)


def test_bad_processes_and_grids_are_refused() -> None:
    sde, x = VP(), start(VP(), 2)
    score = DATA.score(sde)
    with pytest.raises(ValueError, match="eta = 1"):
        AdaptiveODE().solve(Reverse(score, 1.0), x, ends(sde), 0)
    with pytest.raises(ValueError, match="AdaptiveODE"):
        AdaptiveSDE().solve(Reverse(score, 0.0), x, ends(sde), 0)
    flow = RectifiedFlow()
    for solver in (AdaptiveODE(), AdaptiveSDE()):  # a score alone says nothing of x_0 at α = 0 - nor is it asked there
        process = Reverse(as_score(DATA.score(flow).__call__, flow), solver.default_eta)
        assert solver.solve(process, x, torch.tensor([1.0, 0.1]), 0).complete


# ---- kinds of states ----


@pytest.mark.parametrize(
    "solver", [AdaptiveODE(), AdaptiveODE(method="dopri5"), AdaptiveSDE()], ids=["adams", "dopri5", "sde"]
)
def test_empty_batches_and_half_precision(solver: Solver) -> None:
    sde = VP()
    process = Reverse(as_score(lambda x, t: DATA.score(sde)(x.double(), t).to(x.dtype), sde), solver.default_eta)
    empty = solver.solve(process, torch.zeros(0, 3), grids.log_snr(sde, 3), 0, trajectory=True)
    assert empty.x.shape == (0, 3) and empty.nfe == 0 and empty.trajectory is not None
    assert empty.trajectory.shape == (4, 0, 3) and empty.reached is not None and empty.reached.shape == (0,)
    solution = solver.solve(process, start(sde, 2).bfloat16(), ends(sde), 0)
    assert solution.x.dtype == torch.bfloat16 and solution.complete


def test_tolerances_below_rounding_are_lifted() -> None:
    sde = VP()
    x = start(sde, 4).float()
    solution = run(AdaptiveODE(rtol=1e-14, atol=1e-14), sde, x)
    assert solution.complete and solution.nfe < 300
    exact = DATA.flow(sde, x.double(), sde.T, sde.t_min)
    # float32 of the score, at σ = 0.01: some 1e-7 for each of 100 steps
    torch.testing.assert_close(solution.x.double(), exact, rtol=0, atol=5e-5)


def test_sample_takes_them() -> None:
    sde = RectifiedFlow()
    ode = sample(MIXTURE.score(sde), (4, 2), solver=AdaptiveODE(), seed=3)
    assert ode.complete and ode.nfe_per_sample is not None and int(ode.nfe_per_sample.max()) == ode.nfe
    again = sample(MIXTURE.score(sde), (2, 2), solver=AdaptiveSDE(), seed=3)
    torch.testing.assert_close(  # the same samples in a larger batch
        sample(MIXTURE.score(sde), (4, 2), solver=AdaptiveSDE(), seed=3).x[:2], again.x, rtol=0, atol=1e-5
    )


# ---- gradients ----


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_flow(method: str) -> None:
    """In x, in both ends of the grid and in a parameter of the schedule, against the closed form."""
    solver = AdaptiveODE(method=method, rtol=1e-8, atol=1e-8)  # type: ignore[arg-type]
    inputs = [
        start(VP(), 2), torch.tensor([0.9, 0.05], dtype=torch.float64), torch.tensor(15.0, dtype=torch.float64),
    ]  # fmt: skip

    def end(exact: bool) -> list[Tensor]:
        x, grid, beta = (v.clone().requires_grad_() for v in inputs)
        sde = VP(beta_max=beta)  # type: ignore[arg-type]
        got = DATA.flow(sde, x, grid[0], grid[1]) if exact else run(solver, sde, x, grid).x
        return list(torch.autograd.grad((got * torch.arange(6).reshape(2, 3)).sum(), (x, grid, beta)))

    for got, exact in zip(end(False), end(True), strict=True):
        # the derivative of a solution within 50 tolerances, of times of order 10
        torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-5)


def test_gradients_of_the_sde_reach_the_score() -> None:
    """The whole map is smooth while no step changes: against finite differences."""
    sde, x = VP(), start(VP(), 2)
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    solver = AdaptiveSDE(rtol=10.0, atol=10.0, first_step=0.7)  # every step is accepted, and grows by its bound

    def end(scale: Tensor) -> Tensor:
        return solver.solve(
            Reverse(as_score(lambda x, t: scale * DATA.score(sde)(x, t), sde), 1.0), x, ends(sde), 0
        ).x.sum()

    (got,) = torch.autograd.grad(end(scale), scale)
    expected = (end(scale.detach() + 1e-5) - end(scale.detach() - 1e-5)) / 2e-5
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)  # the differences' own error, 1e-10 / 1e-5


@pytest.mark.parametrize("compact", [False, True])
def test_gradients_of_the_sde_by_eta_and_the_ends_are_finite(compact: bool) -> None:
    """Samples wait, and steps land on what a rejected one has left: variances of 0, whose root has no slope."""
    eta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    sde, x = VP(), start(VP(), 3)
    grid = ends(sde).clone().requires_grad_()
    solution = AdaptiveSDE(compact=compact).solve(Reverse(DATA.score(sde), eta), x, grid, 0)
    by_eta, by_grid = torch.autograd.grad(solution.x.sum(), (eta, grid))
    assert bool(by_eta.isfinite()) and bool(by_grid.isfinite().all()) and float(by_eta.abs()) > 0


def test_states_in_between_change_nothing_at_the_end_of_a_generators_run() -> None:
    sde, x = VP(), start(VP(), 3)
    runs = [
        AdaptiveSDE()
        .solve(
            Reverse(DATA.score(sde), 1.0),
            x,
            grids.log_snr(sde, 5),
            torch.Generator().manual_seed(1),
            trajectory=trajectory,
        )
        .x
        for trajectory in (False, True)
    ]
    assert torch.equal(*runs)


# ---- the SDE: law and path ----


class Naive(Driver):
    """What not to do: a rejected step's noise is thrown away."""

    def __init__(self, noise: Noise, x: Tensor, eta: float | Tensor) -> None:
        super().__init__(noise, x, eta)

    def attempt(self, p: Tensor, target: Tensor, times: tuple[Tensor, Tensor]) -> Tensor:
        return spread(self._decay(target - p)[1].sqrt(), self.template) * self._normal(self.noise)

    def between(self, p: Tensor, times: tuple[Tensor, Tensor]) -> Tensor:
        raise NotImplementedError

    def commit(self, moved: Tensor, accepted: Tensor) -> None:
        pass


def noise_under_rejections(kind: Callable[[Noise, Tensor, float], Driver], n: int, eta: float) -> Tensor:
    """σ_s N summed over steps that are taken back whenever their noise is large, (n,): the end of an OU process."""
    x = torch.zeros(n, 1, dtype=torch.float64)
    driver = kind(IndependentNoise(0), x, eta)
    p, end = torch.zeros(n, dtype=torch.float64), torch.full((n,), 2.0, dtype=torch.float64)
    h, value = torch.full_like(p, 0.7), torch.zeros(n, dtype=torch.float64)
    while bool((p < end).any()):
        running = p < end
        length = torch.minimum(driver.reach(p, h), end - p)
        target = torch.where(running, torch.where(length >= end - p, end, p + length), p)
        kick = driver.attempt(p, target, (p, target))[:, 0]
        small = running & ((kick.abs() < 0.6) | (length < 0.02))
        driver.commit(running, small)
        value = torch.where(small, value * (-(eta**2) * (target - p)).exp() + kick, value)
        p = torch.where(small, target, p)
        h = torch.where(small, 1.5 * length, 0.4 * length)
    return value


def test_rejections_do_not_bias_the_noise() -> None:
    n, eta = 20000, 0.8
    exact = 1 - math.exp(-2 * eta**2 * 2.0)
    ours = noise_under_rejections(Remembered, n, eta)
    error = math.sqrt(2 / n)  # of a sample variance of normals, relative
    assert abs(float(ours.var()) / exact - 1) < 4 * error
    assert abs(float(ours.mean())) < 4 * math.sqrt(exact / n)
    assert abs(float((ours**4).mean()) / (3 * exact**2) - 1) < 4 * math.sqrt(96 / 9 / n)  # var z⁴ = 96
    # thrown away, large noise is missing: by far more than that
    assert float(noise_under_rejections(Naive, n, eta).var()) < (1 - 20 * error) * exact


def moments(solver: AdaptiveSDE, n: int = 20000, eta: float = 1.0) -> tuple[Tensor, Tensor, Solution]:
    """Of the end, over the exact ones: (mean - exact)/std and variance/exact along each axis."""
    sde = VP()
    mean, covariance = DATA.moments(sde, sde.T)
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = mean + z * covariance.diagonal().sqrt()
    solution = solver.solve(Reverse(DATA.score(sde), eta), x, ends(sde), 0)
    mean, covariance = DATA.moments(sde, sde.t_min)
    std = covariance.diagonal().sqrt()
    return (solution.x.mean(0) - mean) / std, solution.x.var(0) / covariance.diagonal(), solution


def test_the_law_of_the_sde_converges_and_a_naive_retry_spoils_it(monkeypatch: pytest.MonkeyPatch) -> None:
    solver = AdaptiveSDE(rtol=0.01, atol=0.01)
    mean, variance, solution = moments(solver)
    assert solution.nfe_per_sample is not None
    # Monte Carlo: 4 / sqrt(n) = 0.03 and 4 sqrt(2/n) = 0.04; the method at 50 steps: some 0.05 of the variance
    assert float(mean.abs().max()) < 0.03 and float((variance - 1).abs().max()) < 0.1
    _, loose, _ = moments(AdaptiveSDE(rtol=0.1, atol=0.1))
    assert float((loose - 1).abs().max()) > 2 * float((variance - 1).abs().max())
    monkeypatch.setattr(adaptive, "driver", Naive)
    _, spoilt, _ = moments(solver)
    assert float(spoilt.mean()) < float(variance.mean()) - 0.04


@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
def test_the_linear_part_and_its_noise_are_exact(eta: float) -> None:
    """Data in one point: x̂_0 is constant, so that any number of steps gives the law of x_t itself."""
    sde, n = EDM(), 20000
    point = Gaussian(torch.tensor([0.7], dtype=torch.float64), 0.0)
    x = 0.7 + start(sde, n, 1)
    solver = AdaptiveSDE(first_step=0.8, grow=1.01)
    solution = solver.solve(Reverse(point.score(sde), eta), x, ends(sde), 0)
    z = (solution.x[:, 0] - 0.7) / sde.t_min
    assert solution.nfe > 5
    assert abs(float(z.var()) - 1) < 4 * math.sqrt(2 / n) and abs(float(z.mean())) < 4 / math.sqrt(n)
    forgotten = float(((x[:, 0] - 0.7) / sde.T * z).mean()) - math.exp(-(eta**2) * math.log(sde.T / sde.t_min))
    assert abs(forgotten) < 4 / math.sqrt(n)  # the start is forgotten as fast as η says


def test_a_given_path_is_followed_to_the_end_of_fixed_steps() -> None:
    sde = VP(beta_max=10.0, t_min=0.1)
    x, process = start(sde, 8), Reverse(DATA.score(sde), 1.0)

    def path() -> BrownianNoise:
        return BrownianNoise(4, sde.T, levels=20)

    fine = EulerMaruyama().solve(process, x, grids.log_snr(sde, 512), path()).x
    errors = []
    for tolerance in (0.1, 0.003):
        end = AdaptiveSDE(rtol=tolerance, atol=tolerance).solve(process, x, ends(sde), path()).x
        errors.append(float((end - fine).square().mean().sqrt()))
    # steps go like tolerance^{2/3} and so does an error of strong order 1; independent noise would stay at order 1
    assert errors[1] < 0.4 * errors[0] and errors[1] < 0.05, errors


def test_states_at_inner_times_of_the_sde_have_their_law() -> None:
    sde, n = VP(), 8000
    mean, covariance = DATA.moments(sde, sde.T)
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x, grid = mean + z * covariance.diagonal().sqrt(), grids.log_snr(sde, 40)
    process, solver = Reverse(DATA.score(sde), 1.0), AdaptiveSDE(rtol=0.02, atol=0.02)
    full = solver.solve(process, x, grid, PerSampleNoise(1), trajectory=True)
    assert torch.equal(full.x, solver.solve(process, x, grid, PerSampleNoise(1)).x)
    assert full.trajectory is not None
    before = None
    for t, state in zip(grid[1:], full.trajectory[1:], strict=True):
        mean, covariance = DATA.moments(sde, t)
        # Monte Carlo 4 sqrt(2/n) = 0.06, and the method's own error at this tolerance, below 0.1
        assert float((state.var(0) / covariance.diagonal() - 1).abs().max()) < 0.16
        assert float(((state.mean(0) - mean) / covariance.diagonal().sqrt()).abs().max()) < 0.06
        if before is not None:  # each state moved on from the last: between them is the noise of one interval
            u, last = before
            ratio, variance = sde.transition_coefficients(t, u)
            back = last - ratio * state  # what the forward process adds on this interval, of this variance
            assert float((back.var(0) / variance - 1).abs().max()) < 0.25
        before = t, state


def test_per_sample_noise_gives_the_same_sample_in_any_batch() -> None:
    sde = VP()
    x, process = start(sde, 5, 2), Reverse(MIXTURE.score(VP()), 1.0)
    together = AdaptiveSDE().solve(process, x, ends(sde), PerSampleNoise(2))
    part = AdaptiveSDE().solve(process, x[2:4], ends(sde), PerSampleNoise(2, first=2))
    torch.testing.assert_close(part.x, together.x[2:4], rtol=0, atol=1e-9)  # rounding in another batch
    assert torch.equal(part.nfe_per_sample, together.nfe_per_sample[2:4])  # type: ignore[index, arg-type]
