"""Grids adapted to one score: the objective and its slope, what is promised of the result, files and refusals."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from scoresde import editing, grids
from scoresde.fitting import adaptation
from scoresde.fitting.adaptation import _Aim, _Method
from scoresde.grids import Adapted, AdaptedReport, adapted
from scoresde.models import Score, as_score
from scoresde.models.combination import Combination
from scoresde.noise import PerSampleNoise
from scoresde.problems import GaussianMixture
from scoresde.reverse import Reverse
from scoresde.rules import spectral_density
from scoresde.sampling import sample
from scoresde.sde import EDM, SDE, VE, VP, Cosine, RectifiedFlow
from scoresde.solvers import (
    DDIM,
    AdaptiveODE,
    Ancestral,
    Fitted,
    Heun,
    PredictorCorrector,
    Solver,
    SpectralMultistep,
    UniPC,
)
from scoresde.solvers.fitted import FitReport, FittedLevels
from scoresde.solvers.spectral import Tuning, prior_of
from scoresde.solvers.wrapping import Wrapping
from scoresde.spectrum import Spectrum

F64 = torch.float64
STEPS = (6, 10, 18, 33)
REFERENCE = 96  # evaluations of 97 steps whose first is free
SWEEP = 63  # of 6, 10, 18 and 33 steps, the first of each free
LEAST = 1 + 2 * REFERENCE + SWEEP + 2 * SWEEP + 10 * SWEEP  # the answer, ends, errors, held out, one step and its trial


@functools.cache
def mixture() -> GaussianMixture:
    """Three unequal components in the plane."""
    means = torch.tensor([[1.0, 0.2], [-0.8, 0.6], [0.1, -1.1]], dtype=F64)
    return GaussianMixture(torch.tensor([0.5, 0.3, 0.2]), means, torch.tensor([0.04, 0.02, 0.09], dtype=F64))


def exact(sde: SDE | None = None) -> Score:
    return mixture().score(VP() if sde is None else sde)


@functools.cache
def plane(solver: Solver | None = None) -> Adapted:
    return adapted(exact(), (256, 2), solver=solver)


def quick(score: Score | None = None, shape: tuple[int, ...] = (32, 2), **options: Any) -> Adapted:
    """One Gauss-Newton step."""
    return adapted(score or exact(), shape, **{"evaluations": LEAST, **options})


class Counting(Score):
    """Another score, whose evaluations are counted."""

    def __init__(self, score: Score) -> None:
        self.score, self.sde, self.calls = score, score.sde, 0
        self.dtypes: set[torch.dtype] = set()

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        self.calls += 1
        self.dtypes.add(x.dtype)
        return self.score.evaluate(x, t, wanted)


def rule(
    logs: Any = ((0.0,) * 6,) * 4,
    tuning: Any = ((0.0, 0.0, 0.0),) * 4,
    *,
    ratios: tuple[float, float] = (150.0, 0.01),
    typical: tuple[float, ...] = (8e-2, 2e-2, 5e-3, 1e-3),
    spectrum: Spectrum | None = None,
) -> Adapted:
    rows = tuple(map(tuple, logs))
    report = AdaptedReport("UniPC()", typical, typical, typical, 1e-6, (8, 2), 1000, 0.5, 3, (0.1, -0.2))
    told = None if tuning is None else Tuning(STEPS, tuple(map(tuple, tuning)))
    return Adapted(STEPS, rows, ratios, spectrum or Spectrum(1.0, 1.0), told, report)


def some(seed: int, columns: int, size: float = 1.0) -> np.ndarray:
    return size * np.random.default_rng(seed).normal(size=(len(STEPS), columns))


BENT = some(1, 6)


# -- the rule ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sde", [VP(), EDM(), VE(), RectifiedFlow(T=1.0), Cosine(), VP(t_min=0.0)], ids=lambda s: repr(s)[:20]
)
def test_unmoved_it_is_the_default(sde: SDE) -> None:
    """θ = 0: times and samples to the bit, also from and to other times than it was adapted on."""
    spectrum = Spectrum(0.5, 3.0)
    method = _Method.of(exact(sde), SpectralMultistep(spectrum), (2,))
    still = method.rule(np.zeros((4, 9)))
    x = sde.prior_sample((5, 2), 0, dtype=F64)
    process = Reverse(exact(sde), 0.0)
    for n in (1, 2, 5, 6, 14, 60):
        ends: list[dict[str, Any]] = [
            {},
            {"t_start": 0.6 * sde.T},
            {"t_end": 0.0},
            {"t_start": 0.5 * sde.T, "t_end": 0.1 * sde.T},
        ]
        for options in ends:
            expected = grids.spectral(sde, n, spectrum=spectrum, **options)
            assert torch.equal(still(sde, n, **options), expected)
        times = grids.spectral(sde, n, spectrum=spectrum)
        runs = [s.solve(process, x, times).x for s in (still.solver, SpectralMultistep(spectrum))]
        assert torch.equal(*runs)


@pytest.mark.parametrize("steps", [3, 6, 8, 13, 24, 33, 70])
def test_the_density_is_what_it_says(steps: int) -> None:
    """Between neighbours lies one integral of the spectral density times exp f, by scipy; f between rows by hand."""
    spectrum, sde = Spectrum(0.5, 2.0), EDM(T=150.0, t_min=0.01)
    made = rule(BENT, spectrum=spectrum)
    place = np.clip(np.interp(math.log(steps), np.log(STEPS), range(4)), 0, 3)
    row = min(int(place), 2)
    values = BENT[row] + (place - row) * (BENT[row + 1] - BENT[row])
    knots = np.log(150.0) + np.arange(6) / 5 * np.log(0.01 / 150.0)

    def density(u: float) -> float:
        f = np.interp(-u, -knots, values)
        return float(spectral_density(torch.tensor(math.exp(u), dtype=F64), steps, spectrum)) * math.exp(f)

    u = made(sde, steps).log().tolist()
    shares = [quad(density, b, a, points=[k for k in knots if b < k < a] or None)[0] for a, b in itertools.pairwise(u)]
    # as in tests/test_grids.py, 1e-3 of a step for 66 cells in it: here they are 57 at least
    np.testing.assert_allclose(shares, np.mean(shares), rtol=2e-3)


def test_rows_hold_at_their_steps_and_beyond_the_last() -> None:
    made, sde = rule(BENT), EDM(T=150.0, t_min=0.01)
    told = Tuning(STEPS, tuple(map(tuple, some(2, 3).tolist())))
    for i, n in enumerate(STEPS):
        alone = rule([BENT[i]] * 4)
        # the logarithm of a row's number of steps is on the mesh exactly: roundings
        torch.testing.assert_close(made(sde, n), alone(sde, n), rtol=1e-12, atol=0.0)
        assert told.at(n) == pytest.approx(np.exp(told.logs[i]), rel=1e-12)
    for i, beyond in ((0, (1, 2, 5)), (3, (34, 200))):
        for n in beyond:
            assert torch.equal(made(sde, n), rule([BENT[i]] * 4)(sde, n))
            assert told.at(n) == told.at(STEPS[i])
    for a, b, n in ((0, 1, 8), (2, 3, 24)):  # not in the middle of 6 and 10: of their logarithms
        share = math.log(n / STEPS[a]) / math.log(STEPS[b] / STEPS[a])
        expected = np.exp((1 - share) * np.array(told.logs[a]) + share * np.array(told.logs[b]))
        assert told.at(n) == pytest.approx(expected, rel=1e-12)


@pytest.mark.filterwarnings("error::UserWarning")  # torch warns where a gradient is cut by float(tensor)
def test_gradients_reach_ends_and_schedule() -> None:
    start, end, top = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (0.9, 0.05, 20.0))
    made = rule(BENT)
    # gradcheck's own tolerances
    assert torch.autograd.gradcheck(lambda a, b, c: made(VP(beta_max=c), 5, t_start=a, t_end=b), (start, end, top))


def test_the_error_to_expect_follows_a_power_between_and_beyond() -> None:
    made = rule()
    for n, value in zip(STEPS, made.report.typical, strict=True):
        assert made.error(n) == pytest.approx(value, rel=1e-12)
    power = math.log(8e-2 / 2e-2) / math.log(10 / 6)
    for n in (3, 8):  # below the first on the line through the first two
        assert made.error(n) == pytest.approx(8e-2 * (6 / n) ** power, rel=1e-12)
    power = math.log(5e-3 / 1e-3) / math.log(33 / 18)
    for n in (24, 66):
        assert made.error(n) == pytest.approx(1e-3 * (33 / n) ** power, rel=1e-12)
    with pytest.raises(ValueError, match="steps must be a whole number"):
        made.error(0)


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [4, 6, 9, 20])
def test_factors_of_both_deviations_are_those_of_the_spectrum(steps: int) -> None:
    """Weights for deviations c times as large are those of a spectrum of c times the deviations."""
    score, sde = exact(), VP()
    factor = Tuning((4, 20), ((math.log(1.7), math.log(1.7), 0.0), (math.log(0.4), math.log(0.4), 0.0)))
    c = factor.at(steps)[0]
    times, x = grids.spectral(sde, steps), sde.prior_sample((6, 2), 1, dtype=F64)
    tuned, told = (
        s.solve(Reverse(score, 0.0), x, times)
        for s in (SpectralMultistep(Spectrum(0.8, 2.0), factor), SpectralMultistep(Spectrum(0.8 * c, 2.0 * c)))
    )
    assert tuned.nfe == told.nfe
    # weights are solved of matrices of condition up to 1e8, from numbers that differ by a rounding
    torch.testing.assert_close(tuned.x, told.x, rtol=1e-6, atol=1e-6)


def test_each_factor_is_of_what_it_says() -> None:
    spectrum = Spectrum(0.8, 2.0)

    def assumed(*logs: float) -> Any:
        made = SpectralMultistep(spectrum, Tuning((9,), ((logs[0], logs[1], logs[2]),)))
        return made._assumed(spectrum, 9, True)

    plain = prior_of(spectrum, 8)
    prior, unit = assumed(0.0, 0.0, math.log(3.0))
    assert unit == 1.0 and prior.roughness == pytest.approx(3 * plain.roughness)
    assert torch.equal(prior.variances, plain.variances) and prior.slack == plain.slack
    prior, unit = assumed(math.log(1.5), 0.0, 0.0)
    assert unit == pytest.approx(1.5) and prior.roughness == plain.roughness
    # in units of the scale
    assert float(prior.variances[-1]) == pytest.approx(float(prior_of(Spectrum(1.2, 2.0), 8).variances[-1]))
    prior, unit = assumed(0.0, math.log(2.0), 0.0)
    assert unit == 1.0 and torch.equal(prior.variances, prior_of(Spectrum(0.8, 4.0), 8).variances)
    assert float(assumed(2.0, -3.0, 0.0)[0].variances[-1]) == pytest.approx(  # the largest is at least the scale
        float(prior_of(Spectrum(1.0, 1.0), 8).variances[-1])
    )


# -- the objective and its slope ---------------------------------------------------------------------------------------


class Objective:
    """As the docstring of adapted has it, with the public solvers and rules."""

    def __init__(self, method: _Method, aim: _Aim, start: np.ndarray) -> None:
        self.method, self.aim, self.start = method, aim, start
        squared = [self.squared(start, n) for n in STEPS]
        self.scales = [2 * float(e2.sort().values[(len(e2) - 1) // 2]) for e2 in squared]
        self.first = [float((s * (1 + e2 / s).log()).mean()) for s, e2 in zip(self.scales, squared, strict=True)]

    def squared(self, theta: np.ndarray, steps: int) -> Tensor:
        spectrum, tuned = self.method.spectrum, self.method.tuned
        made = rule(theta[:, :6], theta[:, 6:] if tuned else None, ratios=self.method.ratios, spectrum=spectrum)
        solver = SpectralMultistep(spectrum, made.tuning) if tuned else self.method.solver
        process = self.method.process
        return (solver.solve(process, self.aim.starts, made(process.sde, steps)).x - self.aim.ends).square().mean(1)

    def loss(self, theta: np.ndarray, i: int) -> float:
        s, e2 = self.scales[i], self.squared(theta, STEPS[i])
        return float((s * (1 + e2 / s).log()).mean()) / self.first[i]

    def penalty(self, theta: np.ndarray) -> float:
        moved = theta - self.start
        slopes = [(b - a) / math.log(n / m) for (m, a), (n, b) in itertools.pairwise(zip(STEPS, moved, strict=True))]
        return 0.02 * float(np.square(moved).sum()) + 0.05 * float(sum(np.square(v).sum() for v in slopes))

    def slope(self, theta: np.ndarray) -> np.ndarray:
        """By central differences: of each value only its own number of steps changes."""
        out = np.zeros_like(theta)
        for i, k in np.ndindex(*theta.shape):
            step = np.zeros_like(theta)
            step[i, k] = 1e-4
            for sign in (1, -1):
                at = theta + sign * step
                out[i, k] += sign * (self.loss(at, i) + self.penalty(at)) / 2e-4
        return out


def described(solver: Solver, count: int = 64) -> tuple[_Method, _Aim]:
    method = _Method.of(exact(), solver, (2,))
    return method, method.aim(VP().prior_sample((count, 2), 3, dtype=F64))[0]


def test_the_ends_are_those_of_the_flow() -> None:
    method, aim = described(SpectralMultistep())
    fine = UniPC(3).solve(method.process, aim.starts, grids.log_snr(VP(), 600)).x
    error = float((aim.ends - fine).square().mean().sqrt())
    _, told = method.aim(aim.starts)
    # 97 steps of order 3, against 33 whose error is 3e-4; the estimate is known to a factor of 4, see test_spectral
    assert error < 2e-5 and 0.25 < told / error < 4


@pytest.mark.parametrize("solver", [SpectralMultistep(), DDIM()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("i", [0, 2])
def test_gauss_newton_has_the_slope_of_the_objective(solver: Solver, i: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it, as its matrix is half of the second derivative; each sample with its weight in both."""
    monkeypatch.setattr(adaptation, "_DELTA", 1e-5)
    method, aim = described(solver)
    p = 9 if method.tuned else 6
    theta, start = some(5, p, 0.3), np.zeros((4, p))
    objective = Objective(method, aim, start)
    error = adaptation._difference(method, theta, STEPS[i], aim)
    scale = objective.scales[i]
    matrix, gradient = adaptation._normal(method, theta, i, STEPS[i], aim, error, scale)

    def jacobian(k: int) -> Tensor:
        step = np.zeros_like(theta)
        step[i, k] = 1e-5
        up, down = (adaptation._difference(method, theta + s * step, STEPS[i], aim) for s in (1, -1))
        return (up - down) / 2e-5

    columns = [jacobian(k) for k in range(p)]
    weight = 1 / (1 + error.square().mean(1) / scale)
    expected = [[float((weight * (a * b).mean(1)).mean()) for b in columns] for a in columns]
    # one-sided differences of 1e-5 err by about as much, relatively
    np.testing.assert_allclose(matrix, expected, rtol=1e-3, atol=1e-4 * np.abs(matrix).max())
    for k in range(p):
        step = np.zeros_like(theta)
        step[i, k] = 1e-5
        slope = (objective.loss(theta + step, i) - objective.loss(theta - step, i)) * objective.first[i] / 2e-5
        assert math.isclose(slope, 2 * gradient[k], rel_tol=1e-3, abs_tol=1e-4 * float(np.abs(gradient).max())), k


@pytest.mark.parametrize("p", [6, 9])
def test_the_penalty_is_what_it_says(p: int) -> None:
    moved = some(6, p)
    found = moved.ravel() @ adaptation._penalty(p) @ moved.ravel()
    changes = np.diff(moved, axis=0) / np.log([10 / 6, 18 / 10, 33 / 18])[:, None]
    assert found == pytest.approx(0.02 * (moved**2).sum() + 0.05 * (changes**2).sum(), rel=1e-12)


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_the_descent_ends_where_the_objective_has_no_slope(start: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Penalty, weights and the share of each number of steps together; θ is measured from where it starts."""
    monkeypatch.setattr(adaptation, "_DELTA", 1e-3)
    method, aim = described(DDIM(), 32)
    begin = some(7, 6, start)
    objective = Objective(method, aim, begin)
    theta = adaptation._descend(method, begin, aim, 6000, None)
    before, after = (float(np.linalg.norm(objective.slope(at))) for at in (begin, theta))
    # 1e-3 is what the one-sided differences leave of a slope of 1: 3e-4 has been seen
    assert after < 2e-3 * before and before > 0.5
    sums = [sum(objective.loss(at, i) for i in range(4)) + objective.penalty(at) for at in (begin, theta)]
    assert sums[0] == pytest.approx(4.0) and sums[1] < 3.5


def test_no_step_makes_it_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every direction is uphill, the damping rises to its end, and it stays where it is."""
    method, aim = described(DDIM(), 32)
    normal = adaptation._normal

    def reversed_slope(*args: Any) -> Any:
        matrix, slope = normal(*args)
        return matrix, -slope

    monkeypatch.setattr(adaptation, "_normal", reversed_slope)
    begin = np.zeros((4, 6))
    assert np.array_equal(adaptation._descend(method, begin, aim, 4000, None), begin)


# -- where it starts, and what is kept ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OwnRule(DDIM):
    """DDIM, at home on a density of its own."""

    def default_grid(self, score: Score) -> Any:
        return partial(grids.by_density, density=lambda ratio: ratio**0.2)


def test_it_starts_at_the_solvers_own_rule_where_that_is_better() -> None:
    """Six values of the quotient of the two densities, for each number of steps; θ = 0 where the own rule is worse."""
    score = Counting(exact())
    score.spectrum = wrong = Spectrum(60.0, 60.0)  # by which the spectral rule has all its steps in the noise
    method = _Method.of(score, OwnRule(), (2,))
    x = VP().prior_sample((64, 2), 3, dtype=F64)
    aim = _Aim(x, UniPC(3).solve(method.process, x, grids.log_snr(VP(), 200)).x)
    found = adaptation._start(method, aim)
    first, last = np.log(method.ratios)
    places = first + np.arange(6) / 5 * (last - first)
    for row, n in zip(found, STEPS, strict=True):
        log = 0.2 * places - spectral_density(torch.from_numpy(places).exp(), n, wrong).log().numpy()
        # steps of 1/256 of the range 8: the values at its ends are those half a step further in
        np.testing.assert_allclose(row, log - log.mean(), atol=0.05)
        assert np.ptp(row) > 0.5
    assert np.array_equal(adaptation._start(*described(OwnRule())), np.zeros((4, 6)))


def test_a_rule_that_diverges_is_not_where_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    method, aim = described(UniPC(2))
    end = method.end

    def diverging(theta: np.ndarray, steps: int, x: Tensor) -> Tensor:
        if theta.any():
            raise FloatingPointError
        return end(theta, steps, x)

    monkeypatch.setattr(method, "end", diverging)
    assert not adaptation._start(method, aim).any()


def test_what_is_worse_on_starts_held_out_goes_back_alone() -> None:
    method, held = described(SpectralMultistep())
    start = np.zeros((4, 9))
    better = np.array(plane().logs), np.array(plane().tuning.logs)  # type: ignore[union-attr]
    theta = np.hstack(better)
    theta[1] = [6.0, -6.0, 6.0, -6.0, 6.0, -6.0, 0.0, 0.0, 0.0]
    found, (after, before, typical) = adaptation._kept(method, start, theta, held)
    assert np.array_equal(found[1], start[1]) and np.array_equal(np.delete(found, 1, 0), np.delete(theta, 1, 0))
    assert after[1] == before[1] and all(a < b for i, (a, b) in enumerate(zip(after, before, strict=True)) if i != 1)
    for i, n in enumerate(STEPS):  # and they are the errors of what is kept
        ends = [method.end(at, n, held.starts) for at in (found, start)]
        squares = [(e - held.ends).square().mean(1) for e in ends]
        assert (after[i], before[i]) == pytest.approx([float(s.mean().sqrt()) for s in squares])
        assert typical[i] == pytest.approx(float(squares[0].sort().values[:-3].mean().sqrt()))  # 64 samples less 5 %


def test_what_diverges_on_starts_held_out_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    method, held = described(SpectralMultistep(), 8)
    end = method.end

    def diverging(theta: np.ndarray, steps: int, x: Tensor) -> Tensor:
        if steps == 18 and theta.any():
            raise FloatingPointError
        return end(theta, steps, x)

    monkeypatch.setattr(method, "end", diverging)
    found, (after, before, _) = adaptation._kept(method, np.zeros((4, 9)), np.full((4, 9), 1e-3), held)
    assert not found[2].any() and after[2] == before[2] < math.inf


def test_one_sample_decides_by_its_own() -> None:
    method, held = described(SpectralMultistep(), 1)
    worse = np.zeros((4, 9))
    worse[:, :6] = [5.0, -5.0, 5.0, -5.0, 5.0, -5.0]
    assert not adaptation._kept(method, np.zeros((4, 9)), worse, held)[0].any()


# -- what it comes to --------------------------------------------------------------------------------------------------


@functools.cache
def held_out() -> tuple[Tensor, Tensor]:
    """Starts that no adaptation here has seen, and their ends."""
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(5), dtype=F64)
    return x, UniPC(3).solve(Reverse(exact(), 0.0), x, grids.log_snr(VP(), 400)).x


def squares(solver: Solver, times: Tensor) -> Tensor:
    x, ends = held_out()
    return (solver.solve(Reverse(exact(), 0.0), x, times).x - ends).square().mean(1)


@pytest.mark.parametrize(
    # over six seeds the means were 0.54 to 0.66, 0.13 to 0.15 and 0.46 to 0.47, the largest of each 0.86, 0.51 and 0.54
    ("solver", "mean", "most"),
    [(None, 0.75, 1.0), (UniPC(2), 0.22, 0.7), (DDIM(), 0.55, 0.65)],
    ids=["default", "UniPC", "DDIM"],
)
def test_errors_fall_at_numbers_of_steps_between_and_beyond(solver: Solver | None, mean: float, most: float) -> None:
    made = plane(solver)
    plain = (solver or SpectralMultistep()).made_for(exact(), (2,))
    usual: Any = plain.default_grid(exact())
    ratios = []
    for n in (5, 8, 14, 22, 28, 40):
        now, was = squares(solver or made.solver, made(VP(), n)), squares(plain, usual(VP(), n))
        ratios.append(float((now.mean() / was.mean()).sqrt()))
        # the error to expect of most: told over true was 0.29 to 1.4
        assert 0.2 < made.error(n) / float(now.sort().values[:-15].mean().sqrt()) < 2
    assert math.exp(float(np.mean(np.log(ratios)))) < mean and max(ratios) < most


@pytest.mark.parametrize(
    "sde", [EDM(), VE(), RectifiedFlow(T=1.0), Cosine(), EDM(t_min=0.0)], ids=lambda s: repr(s)[:20]
)
def test_every_schedule(sde: SDE) -> None:
    made = quick(exact(sde), (128, 2), evaluations=1100)
    # one step of the method: the errors fell to 0.9 at least
    assert all(a <= b for a, b in zip(made.report.errors, made.report.before, strict=True))
    assert np.mean(np.log(np.divide(made.report.errors, made.report.before))) < math.log(0.95)
    first, last = made.ratios
    grid = made(sde, 12)
    assert (float(grid[0]), float(grid[-1])) == (sde.T, sde.t_min) and bool((grid.diff() < 0).all())
    assert 0.001 < last < 0.1 < first <= 1000


def test_a_range_below_every_scale() -> None:
    made = quick(exact(EDM(T=0.001, t_min=1e-6)), evaluations=1200)
    assert made.ratios[0] > made.ratios[1] and bool((made(EDM(T=0.001, t_min=1e-6), 9).diff() < 0).all())


def test_the_report_tells_the_truth() -> None:
    made, method = plane(), _Method.of(exact(), SpectralMultistep(), (2,))
    report = made.report
    assert report.shape == (256, 2) and report.seed == 0 and report.seconds > 0 and 0 < report.reference_error < 1e-4
    assert made.steps == STEPS and report.solver == repr(SpectralMultistep()) and made.spectrum == method.spectrum
    x = VP().prior_sample((256, 2), PerSampleNoise(0).stream("held out"), dtype=torch.float32)
    ends = UniPC(3).solve(Reverse(exact(), 0.0), x.double(), grids.log_snr(VP(), 400)).x
    for i, n in enumerate(STEPS):
        for solver, times, told in (
            (made.solver, made(VP(), n), report.errors[i]),
            (SpectralMultistep(method.spectrum), grids.spectral(VP(), n, spectrum=method.spectrum), report.before[i]),
        ):
            end = solver.solve(Reverse(exact(), 0.0), x, times).x.double()
            # float32, and the reference's error of 4e-6: of 2e-4 at least
            assert float((end - ends).square().mean().sqrt()) == pytest.approx(told, rel=0.05)
    assert str(made).startswith("adapted to SpectralMultistep(spectrum=None, tuning=None) with ")
    assert f"{report.evaluations} evaluations of 256: error 6 steps {report.before[0]:.2g} -> " in str(made)


@pytest.mark.parametrize(
    ("solver", "evaluations"), [(None, 1900), (Heun(), 1900), (UniPC(3), 1900), (DDIM(), 2600)], ids=repr
)
def test_evaluations_are_counted_and_within_their_limit(solver: Solver | None, evaluations: int) -> None:
    score = Counting(exact())
    seen: list[tuple[int, tuple[float, ...]]] = []
    made = quick(score, solver=solver, evaluations=evaluations, callback=lambda n, e: seen.append((n, e)))
    assert score.calls == made.report.evaluations <= evaluations
    assert 1 <= len(seen) <= 4 and all(len(errors) == 4 and min(errors) > 0 for _, errors in seen)
    assert all(a < b for (a, _), (b, _) in itertools.pairwise([*seen, (made.report.evaluations, ())]))


def test_the_least_evaluations_are_told() -> None:
    score = Counting(exact())
    with pytest.raises(ValueError, match=rf"must be {LEAST} at least to adapt SpectralMultistep.*, got {LEAST - 1}"):
        quick(score, evaluations=LEAST - 1)
    assert score.calls == 1 + 2 * REFERENCE + SWEEP
    assert quick(score, evaluations=LEAST).report.evaluations == LEAST
    # 997 = 1 + 192 + (2 + 1 + 7 + 2) 67
    with pytest.raises(ValueError, match=r"must be 997 at least to adapt DDIM.*, got 500"):
        quick(score, evaluations=500, solver=DDIM())
    assert quick(score, evaluations=997, solver=DDIM()).report.evaluations == 997


def test_the_seed_is_the_adaptation() -> None:
    first, again, other = quick(seed=3), quick(seed=3), quick(seed=4)
    assert first.logs == again.logs and first.tuning == again.tuning and first.logs != other.logs
    assert quick(seed=np.int64(3)).report.seed == 3
    # not the starts of sample(seed=0)
    x, held = adaptation._starts(exact(), (9, 2), 0, F64, None)
    assert float(torch.cdist(torch.cat([x, held]), VP().prior_sample((9, 2), PerSampleNoise(0), dtype=F64)).min()) > 0
    assert float(torch.cdist(x, held).min()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_runs_are_in_float32_at_least(dtype: torch.dtype) -> None:
    """Ends in half precision would hide what moves them: as good as in float64."""
    score = Counting(exact())
    made = quick(score, (128, 2), dtype=dtype)
    assert score.dtypes == {torch.float32}
    assert all(a < 0.95 * b for a, b in zip(made.report.errors, made.report.before, strict=True))
    if dtype == torch.float32:
        double = quick(score, (128, 2), dtype=F64)
        # differences of ends, of 1e-7 in numbers of 1 over changes of 1e-4
        np.testing.assert_allclose(made.report.errors, double.report.errors, rtol=0.1)
        assert score.dtypes == {torch.float32, F64}


def test_bound_conditions_meet_the_batch_they_were_bound_for() -> None:
    """The score takes 40 samples, sample i of class i: called with any other number it raises."""
    inner = mixture().score(VP(), torch.arange(40) % 3)
    made = quick(inner, (40, 2))
    assert bool(sample(inner, (40, 2), grid=made, steps=7).x.isfinite().all())
    with pytest.raises(ValueError, match="40"):
        quick(inner, (41, 2))


@pytest.mark.parametrize("event", [(1, 2), (2, 1, 1)])
def test_any_event_shape(event: tuple[int, ...]) -> None:
    data = GaussianMixture(torch.ones(2), torch.stack([torch.ones(event), -torch.ones(event)]), 0.1)
    made = quick(data.score(VP()), (64, *event))
    assert made.report.shape == (64, *event)
    assert sample(data.score(VP()), (3, *event), grid=made, steps=5).x.shape == (3, *event)


def test_one_sample_of_many_coordinates() -> None:
    ones = torch.ones(2, 64, dtype=F64) * torch.tensor([[0.5], [-0.5]])
    made = quick(GaussianMixture(torch.ones(2), ones, 0.1).score(VP()), (1, 64), evaluations=1100)
    assert all(a <= b for a, b in zip(made.report.errors, made.report.before, strict=True))
    assert made.spectrum == Spectrum.assumed((64,)) and made.report.shape == (1, 64)


def test_a_spectrum_and_a_tuning_of_ones_own() -> None:
    own = Spectrum(0.7, 1.5)
    made = quick(solver=SpectralMultistep(own))
    assert made.spectrum == own == made.solver.spectrum and made.tuning is not None
    tuning = Tuning((10,), ((0.1, 0.2, 0.3),))
    solver = SpectralMultistep(own, tuning)
    made = quick(solver=solver)  # its weights stay as they are told
    assert made.spectrum == own and made.tuning is None
    with pytest.raises(
        ValueError, match=r"adapted to SpectralMultistep\(spectrum=.*tuning=Tuning.*give that as solver"
    ):
        made.solver


@dataclasses.dataclass(frozen=True)
class Around(Wrapping):
    """A solver around another, that does nothing more."""

    solver: Solver

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Any, state: Any) -> tuple[Tensor, Any]:
        return self.solver.step(process, x, t, s, noise, state)


def test_a_solver_around_another_has_its_steps_adapted() -> None:
    plain, around = (quick(solver=s, evaluations=1200) for s in (DDIM(), Around(DDIM())))
    assert plain.logs == around.logs and around.report.solver == "Around(solver=DDIM(eta=None))"
    assert around.tuning is None and quick(solver=Around(SpectralMultistep())).tuning is None


# -- where it is used --------------------------------------------------------------------------------------------------


def test_sample_takes_it_with_its_solver(tmp_path: Path) -> None:
    made, score = plane(), exact()
    run = partial(sample, score, (4, 2), steps=9, denoise=False, dtype=F64, seed=2)
    x = VP().prior_sample((4, 2), PerSampleNoise(2), dtype=F64)
    expected = made.solver.solve(Reverse(score, 0.0), x, made(VP(), 9))
    solution = run(grid=made)
    assert torch.equal(solution.x, expected.x) and torch.equal(solution.grid, made(VP(), 9)) and solution.nfe == 8
    assert torch.equal(run(grid=made.save(tmp_path / "plane.json")).x, expected.x)
    assert not torch.equal(run(grid=made, solver=SpectralMultistep()).x, expected.x)  # tuning is given up
    assert torch.equal(run(grid=made, solver=DDIM()).grid, made(VP(), 9))
    assert torch.equal(run(grid=made, solver=made.solver).x, expected.x)


def test_adapted_to_another_solver_it_asks_for_that() -> None:
    made, score = plane(DDIM()), exact()
    with pytest.raises(ValueError, match=r"adapted to DDIM\(eta=None\); give that as solver="):
        sample(score, (4, 2), grid=made)
    run = sample(score, (4, 2), grid=made, solver=DDIM(), steps=7)
    assert torch.equal(run.grid, made(VP(), 7))


def test_edits_take_it_with_its_solver() -> None:
    made, score, x = plane(), exact(), mixture().sample(3, 0).double()
    found, same, plain = (
        editing.sdedit(score, x, t=0.5, grid=made, solver=solver, steps=6, seed=1)
        for solver in (None, made.solver, SpectralMultistep())
    )
    assert torch.equal(found.x, same.x) and not torch.equal(found.x, plain.x)
    assert torch.equal(found.grid, made(VP(), 6, t_start=0.5))


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [None, DDIM()], ids=["tuned", "times alone"])
def test_a_file_brings_back_every_bit(solver: Solver | None, tmp_path: Path) -> None:
    made = plane(solver)
    made = dataclasses.replace(made, report=dataclasses.replace(made.report, seed=2**63 + 1))
    again = Adapted.load(made.save(tmp_path / "plane.json"))
    assert again == made and hash(again) == hash(made) and again.report.seed == 2**63 + 1
    assert all(type(n) is int for n in (*again.steps, *again.report.shape, again.report.evaluations))
    assert torch.equal(again(VP(), 17), made(VP(), 17)) and again.error(17) == made.error(17)
    assert [p.name for p in tmp_path.iterdir()] == ["plane.json"]


def changed(key: str, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        *parents, last = key.split(".")
        for parent in parents:
            content = content[parent]
        content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (changed("format", "x"), "holds no adapted grid"),
        (changed("version", 7), "version 7 of the format"),
        (changed("logs", [[0.0] * 6] * 3), "a row of logs"),
        (changed("logs", [[0.0] * 6, [0.0] * 5] * 2), r"rows of \[5, 6\]"),
        (changed("logs", [[0.0]] * 4), "a row of logs"),
        (changed("logs", [[math.nan] * 6] * 4), r"logs\[0\]\[\d\] must be finite, got nan"),
        (changed("logs", [[9.5] * 6] * 4), "NaN"),
        (changed("logs", [["0"] * 6] * 4), r"logs\[0\]\[0\] must be a finite number, got '0'"),
        (changed("steps", [6, 10, 10, 33]), r"increase; got \(6, 10, 10, 33\)"),
        (changed("steps", [0, 10, 18, 33]), r"steps\[0\] must be a whole number from 1"),
        (changed("steps", [6, 10, 18, 33.5]), r"steps\[3\] must be a whole number .*33\.5"),
        (changed("steps", [6, 10, 18, math.inf]), r"steps\[3\] must be finite, got inf"),
        (changed("ratios", [0.01, 150.0]), "first σ/α above its last"),
        (changed("ratios", [1.0, 0.1, 0.01]), "ratios must be a list of 2, got 3"),
        (changed("ratios", [math.inf, 0.1]), r"ratios\[0\] must be finite"),
        (changed("ratios", [10**400, 0.1]), r"ratios\[0\] is a whole number of more than 64 bits"),
        (changed("spectrum", {"scale": 1.0}), r"spectrum\.largest is missing"),
        (changed("spectrum.scale", -1.0), r"spectrum\.scale must be a finite number above 0"),
        (changed("tuning.logs", [[0.0, 0.0]] * 4), r"tuning\.logs\[0\] must be a list of 3, got 2"),
        (changed("tuning.logs", [[0.0, 0.0, 9.5]] * 4), "of at most 9"),
        (changed("tuning.steps", [6]), "a row for each"),
        (changed("tuning", [1.0]), "tuning must be a JSON object"),
        (changed("report", {}), r"report\.\w+ is missing"),
        (changed("report.typical", [1e-3, 0.0, 1e-3, 1e-3]), r"report\.typical\[1\] must be a finite number above 0"),
        (changed("report.errors", [1e-3]), "10 errors|9 errors"),
        (changed("report.answer", None), r"report\.answer must be a list, got None"),
        (changed("report.seed", math.inf), r"report\.seed must be finite"),
        (lambda content: content.pop("tuning"), "tuning"),
    ],
    ids=lambda v: v.replace(" ", "-") if isinstance(v, str) else "",
)
def test_a_damaged_file_is_refused(change: Any, match: str, tmp_path: Path) -> None:
    path = plane().save(tmp_path / "plane.json")
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match=match) as caught:
        Adapted.load(path)
    assert "plane.json" in str(caught.value)


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = plane().save(tmp_path / "plane.json")
    path.write_text(path.read_text("utf-8")[:-40], "utf-8")
    with pytest.raises(ValueError, match=r"plane\.json: .* is not JSON .*adapted\.save\(path\), adapt again"):
        Adapted.load(path)
    with pytest.raises(ValueError, match="is not JSON"):
        sample(exact(), (4, 2), grid=path)
    with pytest.raises(FileNotFoundError):
        Adapted.load(tmp_path / "none.json")


def test_the_pieces_must_fit() -> None:
    with pytest.raises(ValueError, match="a row for each of its increasing steps"):
        Tuning((10, 6), ((0.0, 0.0, 0.0),) * 2)
    with pytest.raises(ValueError, match="steps must be increasing numbers of steps"):
        Tuning((), ())
    with pytest.raises(ValueError, match="three logarithms of factors"):
        Tuning((6,), ((0.0, 0.0, math.nan),))
    with pytest.raises(ValueError, match="steps must be a whole number"):
        rule()(VP(), 0)


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_a_cache_is_one_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "new" / "adapted.json"
    score = Counting(exact())
    made = quick(score, cache=path)
    assert score.calls == LEAST and Adapted.load(path) == made
    assert quick(score, cache=str(path), evaluations=2500) == made and score.calls == LEAST + 1
    assert [p.name for p in path.parent.iterdir()] == ["adapted.json"]


def test_a_cache_of_something_else_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "adapted.json"
    before = quick(cache=path)
    moved = GaussianMixture(torch.ones(2), torch.tensor([[1.0, 0.3], [-1.0, 0.5]], dtype=F64), 0.05).score(VP())
    others: list[dict[str, Any]] = [
        {"score": moved},
        {"score": mixture().score(VP(), torch.arange(32) % 3)},
        {"seed": 1},
        {"shape": (33, 2)},
        {"solver": DDIM()},
    ]
    for options in others:
        score = Counting(options.pop("score", exact()))
        made = quick(score, cache=path, **options)
        assert score.calls > 900 and made != before and Adapted.load(path) == made
        again = quick(score, cache=path, **options)
        assert again == made
        before = made


def test_a_cache_that_cannot_be_used_is_told_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    score = Counting(exact())
    with pytest.raises(ValueError, match="cannot write into"):
        quick(score, cache=tmp_path / "file" / "adapted.json")
    with pytest.raises(ValueError, match="file is not JSON"):
        quick(score, cache=tmp_path / "file")
    assert score.calls <= 2


# -- bad input ---------------------------------------------------------------------------------------------------------


def fitted() -> Fitted:
    report = FitReport("fixed", 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, "DDIM", None, "DDIM", 0.1, (1, 1, 1), (2,), 0, 0.0, 0)
    return Fitted((1.0, 0.001), (1.0,), (1.0, 0.0), ((1.0,),), FittedLevels.of(VP(), (1.0, 0.001, 1.0)), report)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"score": lambda x, t: -x}, TypeError, "as_score"),
        ({"solver": "ddim"}, TypeError, "must be a Solver"),
        ({"solver": AdaptiveODE()}, ValueError, "chooses its own steps, so that there is nothing to adapt"),
        ({"solver": Ancestral()}, ValueError, "eta = 1; got eta = 0"),
        ({"solver": PredictorCorrector(DDIM())}, ValueError, "PredictorCorrector draws noise at eta = 0"),
        ({"solver": fitted()}, ValueError, "Fitted knows only its own times"),
        ({"solver": Around(fitted())}, ValueError, "Around knows only its own times"),
        ({"shape": (31, 2)}, ValueError, r"\(31, 2\) are 62 coordinates, too few .* shape = \(256, 2\)"),
        ({"shape": 64}, TypeError, "shape must be"),
        ({"shape": (32, 3)}, ValueError, r"\(B, 2\), got \(32, 3\)"),
        ({"evaluations": 0}, ValueError, "evaluations must be a whole number"),
        ({"seed": 0.5}, TypeError, "seed must be a whole number"),
        ({"dtype": torch.int64}, TypeError, "floating dtype"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else getattr(v, "__name__", ""),
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception], match: str) -> None:
    score = options.get("score") or Counting(exact())
    with pytest.raises(error, match=match):
        quick(score, **{k: v for k, v in options.items() if k != "score"})
    assert getattr(score, "calls", 0) <= 1


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(FloatingPointError, match="the score answers NaN or infinite values; nothing can be adapted"):
        quick(as_score(lambda x, t: x * math.nan, VP()))
    with pytest.raises(FloatingPointError, match="ended with NaN or infinite values"):
        quick(as_score(lambda x, t: torch.where(t > 0.1, -x, math.nan), VP()))
