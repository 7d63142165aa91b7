"""The convergence laboratory measures right: what is broken on purpose is refused, what is right passes."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from scoresde import certify, grids
from scoresde.certify import FLOW, LAW, PATH, NotAffine, NotCertified, cases
from scoresde.certify.__main__ import main
from scoresde.certify.affine import affine, apart, propagate, recorded
from scoresde.certify.cases import GAUSSIAN, MIXED, WIDE, PlainScore, exact_ends, starts
from scoresde.certify.counting import costs
from scoresde.certify.rounding import DATA, SCHEDULES, RoundedNetwork
from scoresde.certify.slopes import follow_errors
from scoresde.certify.table import cells, page, source
from scoresde.certify.weak import conditional, law
from scoresde.models import Combination, Score, ScoreModel, as_score, modules_of
from scoresde.models.combination import combine
from scoresde.models.score import DerivedScore
from scoresde.noise import BrownianNoise, Noise
from scoresde.problems import Gaussian
from scoresde.reverse import Reverse
from scoresde.sde import VE, VP
from scoresde.solvers import (
    DDIM,
    DEIS,
    Ancestral,
    AnnealedLangevin,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    ProbabilityFlow,
    SASolver,
    Solver,
    SpectralMultistep,
    UniPC,
    Wrapping,
)
from scoresde.solvers.catalogue import label

# ---- a third-order multistep method by hand, right, and wrong in the ways known from libraries ----


@dataclass(frozen=True)
class ThreeStep(Solver):
    """x̂_0 as the parabola through its last three values, integrated exactly against e^{-(h_s - h)}; RK4 to start.

    Its options break it: ``curvature`` is the factor on the second difference, ``start`` the method of the first steps.
    """

    curvature: float = 2.0
    start_with: str = "rk4"
    order: ClassVar[int | None] = 3

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        sde, past = process.sde, state or ()
        h, end = 0.5 * sde.log_snr(t), 0.5 * sde.log_snr(s)
        past = ((h, process.score.denoise(x, t)), *past)[:3]
        if len(past) < 3 and self.start_with == "rk4":
            return runge_kutta(process, x, t, s), past
        length, (h0, newest) = end - h, past[0]
        value, first, second = newest, torch.zeros_like(x), torch.zeros_like(x)
        if len(past) > 1:
            h1, middle = past[1]
            first = (newest - middle) / (h0 - h1)
        if len(past) > 2:
            h2, oldest = past[2]
            divided = (first - (middle - oldest) / (h1 - h2)) / (h0 - h2)
            first, second = first + divided * (h0 - h1), self.curvature * divided
        # ∫ e^{-(L - u)} u^k / k! du over [0, L] for k = 0, 1, 2
        zero = -torch.expm1(-length)
        one = length - zero
        two = 0.5 * length**2 - one
        integral = zero * value + one * first + two * second
        return (sde.sigma(s) / sde.sigma(t)) * x + sde.alpha(s) * integral, past


def runge_kutta(process: Reverse, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    length, middle = s - t, (s + t) / 2
    a = process.drift(x, t)
    b = process.drift(x + 0.5 * length * a, middle)
    c = process.drift(x + 0.5 * length * b, middle)
    d = process.drift(x + length * c, s)
    return x + length / 6 * (a + 2 * b + 2 * c + d)


@dataclass(frozen=True)
class LinearOnly(ThreeStep):
    """With a second difference of the score added: nothing on a linear ODE, an error of order 2 on any other."""

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        bend = process.score(x + 0.5, t) - 2 * process.score(x, t) + process.score(x - 0.5, t)
        x, state = super().step(process, x, t, s, noise, state)
        return x + (t - s) ** 3 * bend, state


def ode_orders(solver: Solver, sde: str = "VP") -> list[float]:
    return [slope.order for slope in certify.ode_order(solver, FLOW[sde], grids.log_snr)]


def test_the_right_three_step_method_is_of_order_three() -> None:
    certificate = certify.certify(ThreeStep()).require()
    assert abs(certificate["ODE order"].measured - 3) < 0.1  # type: ignore[operator]


@pytest.mark.parametrize(
    "solver",
    [
        ThreeStep(curvature=1.0),  # a factor 2 dropped from the second difference
        ThreeStep(start_with="itself"),  # first steps of order 1 and 2
        LinearOnly(),
    ],
    ids=["curvature", "start", "nonlinear"],
)
def test_a_wrong_three_step_method_is_of_order_two_and_refused(solver: Solver) -> None:
    certificate = certify.certify(solver, sdes={"VP": FLOW["VP"]}, grids={"log_snr": grids.log_snr})
    assert not certificate.passed
    assert abs(certificate["ODE order"].measured - 2) < 0.1  # type: ignore[operator]
    with pytest.raises(NotCertified, match=r"ODE order: claims 3, measured (2\.0|1\.9)"):
        certificate.require()


def test_only_nonlinear_data_show_a_nonlinear_error() -> None:
    gaussian, mixture = ode_orders(LinearOnly())
    assert abs(gaussian - 3) < 0.1 and abs(mixture - 2) < 0.1


# ---- other solvers broken on purpose ----


@dataclass(frozen=True)
class WrongDDIM(DDIM):
    """σ_t where σ_s belongs."""

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        sde = process.sde
        ratio = sde.alpha(s) / sde.alpha(t)
        after = ratio * x + (sde.sigma(t) - ratio * sde.sigma(t)) * process.score.noise(x, t)
        return after, None


@dataclass(frozen=True)
class WeakDDIM(DDIM):
    """The variance of the noise not taken from the direction to x_t."""

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        sde, ratio = process.sde, process.sde.alpha(s) / process.sde.alpha(t)
        drawn = process.eta * sde.sigma(s) / sde.sigma(t) * sde.transition_coefficients(s, t)[1].sqrt()
        after = ratio * x + (sde.sigma(s) - ratio * sde.sigma(t)) * process.score.noise(x, t)
        return after + drawn * noise.between(x, t, s), None


@dataclass(frozen=True)
class FullHeun(Heun):
    """Without the half."""

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        slope = process.drift(x, t)
        after = x + (s - t) * slope
        return after + (s - t) * (process.drift(after, s) - slope), None


@dataclass(frozen=True)
class LateHeun(Heun):
    """Second slope at t: Euler's order in Heun's clothes."""

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        slope = process.drift(x, t)
        after = x + (s - t) * slope
        return x + 0.5 * (s - t) * (slope + process.drift(after, t)), None


@dataclass(frozen=True)
class ModestHeun(Heun):
    """Claims less than it does."""

    order: ClassVar[int | None] = 1


@dataclass(frozen=True)
class QuietEuler(EulerMaruyama):
    """A tenth of the noise's variance missing."""

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        after = x + process.drift(x, t) * (s - t)
        return after + math.sqrt(0.9) * process.diffusion(t) * (t - s).sqrt() * noise.between(x, t, s), None


@dataclass(frozen=True)
class HalfScoreEuler(EulerMaruyama):
    """η² forgotten in the drift."""

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        drift = Reverse(process.score, 0.0).drift(x, t)
        return x + drift * (s - t) + process.diffusion(t) * (t - s).sqrt() * noise.between(x, t, s), None


@dataclass(frozen=True)
class FreshEuler(EulerMaruyama):
    """Right in law, but not on the path: independent noise at each step size."""

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        after = x + process.drift(x, t) * (s - t)
        return after + process.diffusion(t) * (t - s).sqrt() * noise.normal(x), None


@dataclass(frozen=True)
class MirroredEuler(EulerMaruyama):
    """On the path -w: right in law, and convergent on every path, but to another limit."""

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        after = x + process.drift(x, t) * (s - t)
        return after - process.diffusion(t) * (t - s).sqrt() * noise.between(x, t, s), None


REFUSED: list[tuple[Solver, set[str]]] = [
    (WrongDDIM(), {"ODE order", "weak order", "strong order"}),
    (FullHeun(), {"ODE order"}),
    (LateHeun(), {"ODE order"}),
    (ModestHeun(), {"ODE order"}),
    (WeakDDIM(), {"weak order", "strong order"}),
    (QuietEuler(), {"weak order", "strong order"}),
    (HalfScoreEuler(), {"weak order", "strong order"}),
    (FreshEuler(), {"strong order"}),
    (MirroredEuler(), {"strong order"}),
]


@pytest.mark.parametrize(("solver", "wrong"), REFUSED, ids=[type(s).__name__ for s, _ in REFUSED])
def test_a_broken_solver_is_refused_for_what_is_broken(solver: Solver, wrong: set[str]) -> None:
    certificate = certify.certify(solver, sdes={"VP": FLOW["VP"]}, grids={"log_snr": grids.log_snr})
    assert {row.name for row in certificate.claims if not row.passed} == wrong
    with pytest.raises(NotCertified, match=f"{min(wrong)}: claims"):
        certificate.require()
    assert "FAILS" in str(certificate) and not certificate.passed


def test_a_right_solver_passes_and_says_so() -> None:
    certificate = certify.certify(EulerMaruyama())
    assert certificate.require() is certificate and certificate.passed
    assert {row.name for row in certificate.claims} == {"ODE order", "weak order", "strong order"}
    assert str(certificate).startswith("EulerMaruyama(): holds") and "claimed    1   measured  1.0" in str(certificate)
    with pytest.raises(KeyError, match="that of a row, got 'order'"):
        certificate["order"]


def test_a_solver_that_claims_nothing_is_neither_certified_nor_refused() -> None:
    certificate = certify.certify(AnnealedLangevin(), sdes={"VP": FLOW["VP"]})
    assert not certificate.claims and not certificate.passed and "claims nothing" in str(certificate)
    with pytest.raises(NotCertified, match="nothing to certify"):
        certificate.require()


def test_whatever_a_solver_raises_is_in_its_certificate() -> None:
    @dataclass(frozen=True)
    class Unfinished(Solver):
        order: ClassVar[int | None] = 1
        weak_order: ClassVar[float | None] = 1.0

        def check(self, process: Reverse) -> None:
            if process.eta:
                raise ValueError("not yet")

        def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> Any:
            raise RuntimeError("half done")

    certificate = certify.certify(Unfinished())
    assert certificate["ODE order"].note == "RuntimeError: half done" and certificate["ODE order"].passed is False
    assert certificate["weak order"].note == "takes none of η = 1, 0.5" and certificate["weak order"].passed is False
    assert certificate.costs is None and "half done" in str(certificate)


def test_only_solvers_are_certified() -> None:
    with pytest.raises(TypeError, match="a class: call it"):
        certify.certify(Heun)  # type: ignore[arg-type]


def test_the_caller_chooses_etas_schedules_grids_and_the_bar() -> None:
    @dataclass(frozen=True)
    class Recorded(EulerMaruyama):
        seen: list[tuple[str, float, int]] = dataclasses.field(default_factory=list, compare=False)

        def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
            self.seen.append((type(process.sde).__name__, process.eta, len(grid)))
            return super().start(process, x, grid, noise)

    solver = Recorded()
    asked: list[int] = []

    def even(sde: Any, n: int) -> Tensor:
        asked.append(n)
        return grids.uniform(sde, n)

    certificate = certify.certify(solver, eta=0.25, sdes={"mine": FLOW["VE"]}, grids={"even": even})
    assert certificate.passed and asked
    assert {name for name, _, _ in solver.seen} == {"VE"} and {eta for _, eta, _ in solver.seen} >= {0.0, 0.25}
    assert 0.5 not in {eta for _, eta, _ in solver.seen}
    assert "mine even η = 0.25" in certificate["weak order"].note
    assert not certify.certify(solver, eta=0.25, sdes={"mine": FLOW["VE"]}, within=1e-9).passed


# ---- slopes ----


def powers(p: float, c: float = 0.0, cap: float = 0.0) -> Callable[[int], dict[str, float]]:
    return lambda n: {"error": n**-p * (1 + c / n) + cap * n**-2}


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0, 4.0, 6.0])
@pytest.mark.parametrize("c", [-1.0, 0.0, 5.0])
def test_an_order_is_found_through_its_next_term(p: float, c: float) -> None:
    (slope,) = follow_errors(powers(p, c))
    # extrapolation leaves terms in (c/n)², less than 0.05 where three extrapolated slopes agree to that
    assert slope.settled and abs(slope.order - p) < 0.05


def test_a_start_up_of_low_order_shows_though_its_constant_is_small() -> None:
    (slope,) = follow_errors(powers(3.0, cap=3e-4))
    # at n = 256 the terms n^-3 and 3e-4 n^-2 are 13 to 1: a slope of 2.93, extrapolated to 2.79 and falling
    assert slope.order < 2.9
    (slope,) = follow_errors(powers(4.0, cap=1e-3))
    assert slope.order < 3.5


def test_an_error_that_stays_has_order_zero() -> None:
    (slope,) = follow_errors(lambda n: {"error": 0.1 + 0.5 / n})
    assert abs(slope.order) < 0.05


def test_errors_below_the_floor_are_left_out() -> None:
    (slope,) = follow_errors(lambda n: {"error": n**-6.0 + 1e-14 * math.cos(n)})
    # rounding of 1e-14 moves the slope of errors above 1e-12 by a per cent of 1/ln 2 times 3, in the extrapolation
    assert min(slope.errors) > 1e-12 and abs(slope.order - 6) < 0.05


def test_counts_that_a_method_refuses_are_left_out() -> None:
    def errors(n: int) -> dict[str, float]:
        if n < 16:
            raise ValueError("too few steps")
        return {"error": 1 / n}

    (slope,) = follow_errors(errors)
    assert slope.steps[0] == 16 and slope.settled and abs(slope.order - 1) < 1e-12
    with pytest.raises(ValueError, match="too few steps"):
        follow_errors(errors, most=8)
    with pytest.raises(ValueError, match="NaN"):
        follow_errors(lambda n: {"error": math.nan})


# ---- problems ----


@pytest.mark.parametrize("sde", FLOW)
def test_the_mixture_is_the_gaussian_on_three_axes(sde: str) -> None:
    schedule = FLOW[sde]
    x, t = starts(schedule), torch.tensor(0.7 * schedule.T, dtype=torch.float64)
    expected = GAUSSIAN.score(schedule)(x[:, :3], t)
    # rounding of both
    torch.testing.assert_close(MIXED.score(schedule)(x, t)[:, :3], expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(PlainScore(GAUSSIAN, schedule)(x[:, :3], t), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("sde", FLOW)
def test_scores_with_little_around_them_are_the_problems_own(sde: str) -> None:
    schedule = FLOW[sde]
    x, one = starts(schedule), torch.tensor(0.7 * schedule.T, dtype=torch.float64)
    for t in (one, one.expand(3)):
        for method in ("__call__", "denoise", "noise"):
            found, expected = (getattr(s, method)(x, t) for s in (PlainScore(MIXED, schedule), MIXED.score(schedule)))
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)  # rounding of both


def test_the_reference_on_the_mixture_is_that_of_another_method() -> None:
    """Gauss's three-stage method by fixed-point iteration, order 6, against dopri8."""
    sde = FLOW["VE"]
    process, x = Reverse(MIXED.score(sde), 0.0), starts(sde)
    nodes = torch.tensor([0.5 - 15**0.5 / 10, 0.5, 0.5 + 15**0.5 / 10], dtype=torch.float64)
    moments = torch.stack([nodes**k for k in range(3)])
    a = [torch.linalg.solve(moments, torch.stack([c ** (k + 1) / (k + 1) for k in range(3)])) for c in nodes]
    b = torch.tensor([5 / 18, 8 / 18, 5 / 18], dtype=torch.float64)
    for t, s in itertools.pairwise(grids.uniform(sde, 60)):
        slopes = torch.stack([process.drift(x, t)] * 3)
        for _ in range(12):
            slopes = torch.stack(
                [
                    process.drift(x + (s - t) * torch.einsum("j,jbd->bd", row, slopes), t + c * (s - t))
                    for row, c in zip(a, nodes, strict=True)
                ]
            )
        x = x + (s - t) * torch.einsum("j,jbd->bd", b, slopes)
    # (1.6/60)^6 / 2000, the constant of the method, is 2e-13 for an ODE of rate 1; rates here go to 3
    torch.testing.assert_close(x, torch.cat(exact_ends(sde), 1), rtol=0, atol=1e-10)


def test_a_reference_that_is_not_exact_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "ProbabilityFlow", lambda method, rtol, atol: ProbabilityFlow("dopri5", 1e-6, 1e-6))
    with pytest.raises(ArithmeticError, match="reference"):
        exact_ends(VE(0.31, 1.5))  # met nowhere else: ends are kept


# ---- in law ----


@dataclass(frozen=True)
class Bent(EulerMaruyama):
    """Of weak order 1, and not affine."""

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        after = x + process.drift(x, t) * (s - t) + 0.5 * (t - s) ** 2 * x.sin()
        return after + process.diffusion(t) * (t - s).sqrt() * noise.between(x, t, s), None


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("sde", LAW)
def test_the_conditional_law_is_that_of_many_small_steps(sde: str, eta: float) -> None:
    schedule = LAW[sde]
    process = Reverse(PlainScore(GAUSSIAN, schedule), eta)
    got = []
    for n in (128, 256):
        offset, slope, noises = affine(EulerMaruyama(), process, grids.uniform(schedule, n), 3)
        got.append(torch.stack([offset, slope, noises.square().sum(0)]))
    expected = torch.stack(conditional(GAUSSIAN, schedule, eta))
    # Richardson's 2 e_256 - e_128 leaves the error of order 2: (rates of 10)² / 256² = 2e-3
    torch.testing.assert_close(2 * got[1] - got[0], expected, rtol=0, atol=2e-3)
    mean, variance = law(GAUSSIAN, schedule, schedule.T)
    end = law(GAUSSIAN, schedule, schedule.t_min)
    torch.testing.assert_close(expected[0] + expected[1] * mean, end[0])
    torch.testing.assert_close(expected[1] ** 2 * variance + expected[2], end[1])


def test_a_method_that_leaves_the_marginals_right_passes_on_them_alone() -> None:
    """DDIM at η = ½ is no discretisation of the process with η = 1, though its marginals are."""
    solver, sde = DDIM(eta=0.5), LAW["EDM"]
    assert abs(certify.weak_order(solver, sde, 1.0, marginal=True).order - 1) < 0.1
    assert abs(certify.weak_order(solver, sde, 1.0).order) < 0.1


def test_several_draws_a_step_are_propagated() -> None:
    @dataclass(frozen=True)
    class Twice(Solver):
        def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
            return x + 3 * noise.normal(x), None

        def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> Any:
            return 2 * x + noise.normal(x) + 4 * noise.between(x, t, s), None

    process = Reverse(as_score(lambda x, t: torch.zeros_like(x), VP()))
    one = torch.ones(2, dtype=torch.float64)
    mean, variance = propagate(Twice(), process, grids.uniform(VP(), 2), one, one)
    # 2 (2 (x + 3 z) + z + 4 z') + z'' + 4 z''': mean 4; variance 16 + 144 + 4 + 64 + 1 + 16
    torch.testing.assert_close(mean, 4 * one)
    torch.testing.assert_close(variance, 245 * one)


def test_steps_that_are_not_affine_are_noticed_and_sampled() -> None:
    with pytest.raises(NotAffine, match="Bent is not affine"):
        certify.weak_order(Bent(), LAW["EDM"], 1.0)
    with pytest.raises(NotAffine, match="Bent is not affine"):
        certify.strong_order(Bent(), LAW["EDM"], 1.0)
    certificate = certify.certify(Bent(), eta=1.0, sdes={"EDM": LAW["EDM"]}, grids={"uniform": grids.uniform})
    assert "sampled" in certificate["weak order"].note and "sampled" in certificate["strong order"].note
    assert abs(certificate["strong order"].measured - 1) < 0.15  # type: ignore[operator]  # of the next term at n = 32


@pytest.mark.parametrize("solver", [EulerMaruyama(), DDIM()], ids=label)
def test_sampled_weak_order_of_nonlinear_data(solver: Solver) -> None:
    found = certify.weak_order_sampled(solver, LAW["RectifiedFlow"], 1.0, samples=1024)
    assert found.low < found.order < found.high and found.high - found.low < 0.6
    # what 8 steps leave of the next term: the exact slope on Gaussian data lies within 0.15 of 1 there
    assert found.low - 0.15 < 1 < found.high + 0.15


def test_sampled_weak_order_sees_a_lower_order() -> None:
    @dataclass(frozen=True)
    class Restless(EulerMaruyama):
        def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> Any:
            x, state = super().step(process, x, t, s, noise, state)
            return x + (t - s) ** 1.5, state  # an error of √h in all

    found = certify.weak_order_sampled(Restless(), LAW["RectifiedFlow"], 1.0, samples=1024, batches=8)
    # half an order, and Euler's own order 1 beside it
    assert found.order < 0.8


def test_an_order_that_drowns_in_noise_is_not_given() -> None:
    with pytest.raises(ValueError, match="drowns in Monte Carlo error"):
        certify.weak_order_sampled(FreshEuler(), LAW["EDM"], 1.0, samples=16, batches=8)


# ---- on one path ----


def test_the_distance_on_a_path_is_that_of_the_closed_form() -> None:
    """With no score the end is x + Σ g(t_k) √h z_k, and two grids differ by the increments times differences of g."""
    sde, none = PATH["VE"], torch.zeros(1, dtype=torch.float64)
    process = Reverse(as_score(lambda x, t: torch.zeros_like(x), sde), 1.0)
    coarse, fine = grids.uniform(sde, 4), grids.uniform(sde, 8)
    a, b = (recorded(EulerMaruyama(), grid, process, 1) for grid in (coarse, fine))
    got = apart((a, b), process, (none, none + 1))
    held = sde.g(coarse[:-1]).repeat_interleave(2) - sde.g(fine[:-1])
    expected = float((held**2 * -fine.diff()).sum().sqrt())
    assert abs(got / expected - 1) < 1e-12  # rounding


def test_counts_that_a_solver_refuses_are_left_out_on_a_path_too() -> None:
    @dataclass(frozen=True)
    class Many(EulerMaruyama):
        def solve(self, process: Reverse, x: Tensor, grid: Tensor, *args: Any, **options: Any) -> Any:
            if len(grid) < 7:
                raise ValueError("at least six steps")
            return super().solve(process, x, grid, *args, **options)

    slope = certify.strong_order(Many(), PATH["VE"], 1.0)
    assert slope.steps[0] == 8 and abs(slope.order - 1) < 0.1


def test_the_exact_distance_on_a_path_is_the_sampled_one() -> None:
    sde, n = PATH["VE"], 8
    process = Reverse(PlainScore(GAUSSIAN, sde), 1.0)
    mean, variance = law(GAUSSIAN, sde, sde.T)
    runs = [recorded(DDIM(), grids.uniform(sde, steps), process, 3) for steps in (n, 2 * n)]
    exact = apart((runs[0], runs[1]), process, (mean, variance))
    path = BrownianNoise(3, sde.T)
    x = mean + variance.sqrt() * path.initial((4096, 3), dtype=torch.float64, device=torch.device("cpu"))
    ends = [solver.solve(process, x, grid, path).x for solver, grid, _ in runs]
    sampled = float((ends[0] - ends[1]).square().sum(1).mean().sqrt())
    # the root of a mean of 4096 squares, at least one normal each: relative spread at most 1/√8192 = 0.011, times 4
    assert abs(sampled / exact - 1) < 0.045


@pytest.mark.parametrize("given", [None, BrownianNoise(11, 1.0)], ids=["ours", "given"])
def test_sampled_strong_order_of_nonlinear_data(given: BrownianNoise | None) -> None:
    found = certify.strong_order_sampled(DDIM(), PATH["VE"], 1.0, path=given, samples=256)
    # a spread of 0.04 with 256 samples, and 0.05 of the next term at these steps
    assert abs(found.order - 1) < 0.15
    wrong = certify.strong_order_sampled(FreshEuler(), PATH["VE"], 1.0, path=given, samples=256)
    assert wrong.order < 0.3


def test_a_path_is_told_from_its_mirror_image() -> None:
    found = certify.strong_order_sampled(MirroredEuler(), PATH["VE"], 1.0, samples=64)
    assert found.order == 0 and "Euler-Maruyama" in found.of
    with pytest.raises(ValueError, match="twice the one before"):
        certify.strong_order_sampled(DDIM(), PATH["VE"], 1.0, steps=(8, 16, 24))


# ---- tolerances ----


@dataclass(frozen=True)
class Lax(ProbabilityFlow):
    """Works to the root of the tolerance asked for."""

    def integrate(self, *args: Any) -> Any:
        honest = ProbabilityFlow(rtol=math.sqrt(self.rtol), atol=math.sqrt(self.atol))
        return honest.integrate(*args)


def test_an_error_in_proportion_to_the_tolerance_is_certified() -> None:
    assert (
        certify.certify(ProbabilityFlow("bosh3"), sdes={"VP": WIDE["VP"]}).require()["error per tolerance"].claimed == 1
    )


def test_a_tolerance_that_is_not_kept_is_refused() -> None:
    with pytest.raises(NotCertified, match=r"error per tolerance: claims 1, measured 0\.[2-6]"):
        certify.certify(Lax(), sdes={"VP": WIDE["VP"]}).require()


def test_a_tolerance_that_sets_no_steps_is_no_claim() -> None:
    certificate = certify.certify(ProbabilityFlow("rk4", options={"step_size": 0.05}), sdes={"VP": WIDE["VP"]})
    assert not certificate.claims
    with pytest.raises(ValueError, match="must have an option named"):
        certify.tolerance_slope(Heun(), FLOW["VE"])


def test_an_adaptive_method_of_the_sde_alone_is_listed_without_a_claim() -> None:
    @dataclass(frozen=True)
    class Wild(ProbabilityFlow):
        def check(self, process: Reverse) -> None:
            if process.eta == 0:
                raise ValueError("not the ODE")

    certificate = certify.certify(Wild(), sdes={"VP": WIDE["VP"]})
    row = certificate["error per tolerance"]
    assert row.claimed is None and row.passed is None and "takes no η = 0" in row.note
    shown = cells(certificate)
    assert (shown[4], shown[6]) == ("—", "its own choice")


# ---- costs ----


def test_costs_are_counted() -> None:
    sde = FLOW["VP"]
    assert costs(Heun(), sde, 0.0) == certify.Costs(2, 0, 1, 0, 0)
    assert costs(DDIM(), sde, 1.0) == certify.Costs(1, 0, 1, 1, 0)
    # RK4 for two steps: 4 evaluations more each; x and two or three values of x̂_0, of which one is dropped at the next
    assert costs(ThreeStep(), sde, 0.0) == certify.Costs(1, 8, 4, 0, 0)
    langevin = costs(AnnealedLangevin(steps=3), sde, 1.0)
    assert (langevin.evaluations, langevin.once, langevin.normals) == (3, 3, 3)
    assert costs(ProbabilityFlow("rk4"), sde, 0.0).states is None
    assert costs(Heun(churn=1.0), sde, 0.0).normals > 0


# ---- rounding ----


class OnTheScore(DerivedScore):
    """Any combination put together from x and the score's values, all of it in the network's dtype."""

    def __init__(self, score: Score) -> None:
        self.score = score
        self.dtype = next(modules_of(score)[0].parameters()).dtype

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        a, b = wanted.of_score(self.sde, t)
        score = self.score(x, t)
        return combine((a, x.to(self.dtype)), (b, score.to(self.dtype))).to(x.dtype)


@dataclass(frozen=True)
class FromTheScore(Wrapping):
    """The formulas of a solver put back on the score: x̂_0 = (x + σ² s)/α, and so on."""

    solver: Solver

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        return self.solver.step(Reverse(OnTheScore(process.score), process.eta), x, t, s, noise, state)


@dataclass(frozen=True)
class ScoreDDIM(DDIM):
    """The same of DDIM, with what DDIM claims."""

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        return super().step(Reverse(OnTheScore(process.score), process.eta), x, t, s, noise, state)


@pytest.mark.parametrize("right", [DDIM(), SpectralMultistep()], ids=label)
def test_a_solver_that_composes_before_it_rounds_passes(right: Solver) -> None:
    single, half = certify.floors(right)
    assert single.passed and half.passed and not single.missed
    assert single.bar == 1e-3 and half.bar == 2e-2 and (single.name, half.name) == ("float32", "bfloat16")
    # a step rounds its state once to 6e-8, and a network in bfloat16 answers to 4e-3, averaged over samples and steps
    assert single.error < 1e-5 < half.error
    assert len(single.cells) == len(half.cells) == 2 * len(SCHEDULES)
    assert certify.precision(right, torch.bfloat16) == half


ON_THE_SCORE = [SpectralMultistep(), DDIM(), DPMSolverPP(), UniPC(), DEIS(), Heun(), Ancestral(), SASolver()]


@pytest.mark.parametrize("right", ON_THE_SCORE, ids=label)
def test_a_solver_on_the_bare_score_misses_the_bar_in_bfloat16(right: Solver) -> None:
    wrong = certify.precision(FromTheScore(right), torch.bfloat16)
    assert (
        wrong.passed is False and wrong.error > 2 * wrong.bar and wrong.error in {cell.error for cell in wrong.missed}
    )
    # float64 hardly sees the difference
    cells = zip(wrong.cells, certify.precision(right, torch.bfloat16).cells, strict=True)
    assert all(math.isclose(a, b, rel_tol=1e-3) for w, r in cells for a, b in zip(w.exact, r.exact, strict=True))


def test_a_certificate_tells_what_rounding_costs() -> None:
    far = {name: sde for name, sde in SCHEDULES.items() if "1e" in name}
    assert len(far) == 2
    certificate = certify.certify(ScoreDDIM(), sdes=far)
    assert not certificate.holds and not certificate.passed and "FAILS" in str(certificate)
    with pytest.raises(NotCertified, match=r"rounding to bfloat16, of at most 0\.02: "):
        certificate.require()


@pytest.mark.parametrize("sde", SCHEDULES)
def test_the_rounded_network_is_exact_but_for_rounding(sde: str) -> None:
    """In float64 the model's scores are those of the data; in bfloat16 F is off by an eighth bit of what it is."""
    schedule = SCHEDULES[sde]
    for t in (schedule.t_min, 0.4 * schedule.T, schedule.T):
        time = torch.tensor(t, dtype=torch.float64)
        x = schedule.alpha(time) * DATA.sample(40, 1) + schedule.sigma(time) * DATA.sample(40, 2)
        expected = DATA.score(schedule).denoise(x, time)
        exact, half = (
            ScoreModel(RoundedNetwork(dtype), schedule, "edm", sigma_data=1.0).denoise(x, time)
            for dtype in (torch.float64, torch.bfloat16)
        )
        torch.testing.assert_close(exact, expected, rtol=1e-8, atol=1e-8)  # log σ/α and back, and sums of ten terms
        # half a unit of 2^-8 in F and in x, and the slope of x̂_0, at most (0.8/0.6)² + 1 times the change of x
        size = float(expected.abs().max())
        assert 0 < float((half - expected).abs().max()) < 2**-8 * 4 * size or size < 1e-6


def test_a_run_that_rounding_ends_in_infinity_misses_every_bar() -> None:
    @dataclass(frozen=True)
    class Overflowing(DDIM):
        def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> Any:
            x, state = super().step(process, x, t, s, noise, state)
            return x * 1e30 * 1e30 / 1e60, state  # finite in float64 alone

    floor = certify.precision(Overflowing(), torch.float32, sdes={"VP": VP()}, steps=(3,))
    assert [cell.error for cell in floor.cells] == [math.inf] and floor.passed is False


def test_runs_that_float64_refuses_are_left_out() -> None:
    @dataclass(frozen=True)
    class Never(DDIM):
        def check(self, process: Reverse) -> None:
            raise ValueError("no process will do")

    floor = certify.precision(Never(), torch.float32)
    assert floor.cells == () and floor.passed is None and not floor.missed and math.isnan(floor.error)
    assert "not measured" in str(certify.certify(Never()))
    with pytest.raises(ValueError, match="each dtype must be one of"):
        certify.precision(DDIM(), torch.float16)


def test_a_thorough_measurement_takes_every_eta_and_count() -> None:
    one = certify.precision(DDIM(), torch.float32, sdes={"VP": VP()}, samples=16)
    all_ = certify.precision(DDIM(), torch.float32, sdes={"VP": VP()}, samples=16, thorough=True)
    assert (
        len(one.cells) == 2
        and len(all_.cells) == 8
        and {cell.where for cell in one.cells} < {c.where for c in all_.cells}
    )
    adaptive = certify.precision(ProbabilityFlow(), torch.float32, sdes={"VP": VP()}, samples=16)
    assert len(adaptive.cells) == 1  # its tolerance sets the steps


# ---- the table ----


def test_the_table_prints_claims_measurements_and_costs() -> None:
    certificate = certify.certify(DDIM(), sdes={"VE": FLOW["VE"]}, grids={"uniform": grids.uniform})
    row = cells(certificate)
    assert row[0] == "`DDIM()`" and row[1].startswith("1 (") and row[6:9] == ("1", "1", "1 path")
    assert row[9] == "[Song et al. 2021](https://arxiv.org/abs/2010.02502)"
    assert page([certificate]).endswith(f"| {' | '.join(row)} |\n")
    wrong = certify.certify(FullHeun(), sdes={"VE": FLOW["VE"]}, grids={"uniform": grids.uniform})
    assert "**fails**" in cells(wrong)[1] and row[5].count("e-") == 2


def test_the_command_writes_the_page_or_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--solver", "DDIM()"]) == 0
    written = capsys.readouterr().out
    assert written.startswith("# Solvers") and written.count("| `DDIM()` |") == 1
    assert main(["--thorough", "--solver", "DDIM()"]) == 0
    cells_ = 2 * 4 * len(SCHEDULES)
    assert re.fullmatch(
        rf"DDIM\(\): float32 \S+ of {cells_} cells, bfloat16 \S+ of {cells_} cells\n", capsys.readouterr().out
    )


def test_sources_are_read_from_docstrings() -> None:
    assert source(EulerMaruyama) == "Kloeden & Platen 1992"
    assert source(Heun) == "[Karras et al. 2022](https://arxiv.org/abs/2206.00364)"
    assert source(ThreeStep) == "—"


def test_a_gaussian_with_another_mean_is_another_law() -> None:
    """``conditional`` and ``law`` read the data they are given."""
    shifted = Gaussian(torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    sde = LAW["EDM"]
    assert float((conditional(shifted, sde, 1.0)[0] - conditional(GAUSSIAN, sde, 1.0)[0]).abs().max()) > 0.1
