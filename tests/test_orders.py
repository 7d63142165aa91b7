"""What each solver claims of its order is measured, and a solver broken on purpose must not pass.

On Gaussian data every quantity is known without Monte Carlo: the probability-flow ODE has a closed-form flow, and each
step of a solver is affine in (x, noise), so mean and variance are carried exactly by feeding basis vectors.
"""

from __future__ import annotations

import functools
import itertools
import math
import typing
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor

import scoresde.solvers as package
from scoresde import (
    DDIM,
    EDM,
    SDE,
    VE,
    VP,
    BrownianNoise,
    Cosine,
    EulerMaruyama,
    Gaussian,
    Heun,
    Langevin,
    Noise,
    PredictorCorrector,
    RectifiedFlow,
    Reverse,
    ReverseDiffusion,
    Solver,
    SubVP,
    grids,
)

# Ranges without the last decades of log-SNR: there the constants, not the orders, of low-order methods are extreme.
SDES: dict[str, SDE] = {
    "VP": VP(beta_max=10.0, t_min=0.1),
    "SubVP": SubVP(beta_max=8.0, t_min=0.2),
    "VE": VE(0.3, 5.0),
    "EDM": EDM(T=5.0, t_min=0.3),
    "Cosine": Cosine(T=0.85, t_min=0.1),
    "RectifiedFlow": RectifiedFlow(T=0.85, t_min=0.1),
}
GRIDS = {"uniform": grids.uniform, "log_snr": grids.log_snr}
# Three axes of unlike variance: no symmetry hides an error, and no leading error cancels on all of them.
DATA = Gaussian(torch.tensor([0.7, -0.4, 1.5], dtype=torch.float64), torch.tensor([0.5, 2.0, 0.1], dtype=torch.float64))


def solvers() -> list[Solver]:
    """Every solver of the package that starts without arguments, in each of its Literal variants."""
    found: list[Solver] = []
    for name in package.__all__:
        kind = getattr(package, name)
        if not (isinstance(kind, type) and issubclass(kind, Solver) and kind is not Solver):
            continue
        hints = typing.get_type_hints(kind)
        options = {f.name: typing.get_args(hints[f.name]) for f in fields(kind) if _literal(hints[f.name])}
        found += [kind(**dict(zip(options, choice, strict=True))) for choice in itertools.product(*options.values())]
    return found


def _literal(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Literal


def takes(solver: Solver, eta: float) -> bool:
    try:
        solver.check(Reverse(VP(), lambda x, t: x, eta))
    except ValueError:
        return False
    return True


def on_each_eta(solvers: list[Solver]) -> list[tuple[Solver, float]]:
    return [(solver, eta) for solver in solvers for eta in (1.0, 0.5) if takes(solver, eta)]


def name(value: Any) -> str | None:
    return repr(value) if isinstance(value, Solver) else None


def fitted_order(errors: list[float]) -> float:
    """The slope of the error over halved steps, extrapolated: slopes at n and 2n differ from the order by c/n, c/2n."""
    assert min(errors) > 1e-12, "no error left to measure above the rounding of float64"
    coarse, fine = (math.log2(a / b) for a, b in itertools.pairwise(errors))
    return 2 * fine - coarse


# ---- order of the ODE ----


def ode_slope(solver: Solver, sde: SDE, grid: Any, order: int) -> float:
    coarse = 32 if order == 1 else 16
    x = torch.tensor([[1.3, -0.8, 0.3], [-0.5, 1.9, -1.1]], dtype=torch.float64) * sde.prior_std
    process = Reverse(sde, DATA.score(sde), eta=0.0)
    exact = DATA.flow(sde, x, sde.T, sde.t_min)
    ends = [solver.solve(process, x, grid(sde, n), 0).x for n in (coarse, 2 * coarse, 4 * coarse)]
    return fitted_order([float((end - exact).norm()) for end in ends])


def check_ode_order(solver: Solver, sde: SDE, grid: Any) -> None:
    assert solver.order is not None
    slope = ode_slope(solver, sde, grid, solver.order)
    # 0.1: the bar of the claim. What extrapolation leaves of the error expansion is of the order 1/n² < 0.01 times a
    # constant that these ranges keep moderate.
    assert abs(slope - solver.order) < 0.1, f"claims order {solver.order}, measured {slope:.3f}"


ORDERED = [s for s in solvers() if s.order is not None]


def test_solvers_with_an_order_are_found() -> None:
    assert {DDIM, EulerMaruyama, Heun, ReverseDiffusion} <= {type(s) for s in ORDERED}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("sde", ["VP", "VE", "Cosine"])
@pytest.mark.parametrize("solver", ORDERED, ids=name)
def test_ode_order(solver: Solver, sde: str, grid: str) -> None:
    check_ode_order(solver, SDES[sde], GRIDS[grid])


# ---- order in law ----


class BasisNoise(Noise):
    """Draw number k is 1 in row 3 + k of the batch and 0 elsewhere: each row follows one noise through the solver."""

    def __init__(self) -> None:
        self.draws = 0

    def normal(self, x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        if 3 + self.draws < len(x):
            z[3 + self.draws] = 1.0
        self.draws += 1
        return z

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.normal(torch.zeros(shape, dtype=dtype, device=device))


def propagate(solver: Solver, process: Reverse, grid: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (D,) after the run, exactly: the end is a + b x + Σ c_k z_k on each axis."""
    rows = len(grid) - 1  # one draw a step, until the run says otherwise
    while True:
        noise = BasisNoise()
        x = torch.zeros(3 + rows, len(mean), dtype=torch.float64)
        x[1], x[2] = 1.0, 2.0
        end = solver.solve(process, x, grid, noise).x
        if noise.draws <= rows:
            break
        rows = noise.draws
    offset, slope, noises = end[0], end[1] - end[0], end[3:] - end[0]
    # Affine to rounding, or the method is not what this propagation takes it for.
    torch.testing.assert_close(end[2], offset + 2 * slope, rtol=1e-9, atol=1e-9)
    return offset + slope * mean, slope**2 * variance + noises.square().sum(0)


def law(sde: SDE, t: float) -> tuple[Tensor, Tensor]:
    mean, covariance = DATA.moments(sde, t)
    return mean, covariance.diagonal()


def weak_slope(solver: Solver, sde: SDE, grid: Any, eta: float) -> float:
    process, errors = Reverse(sde, DATA.score(sde), eta), []
    mean, variance = law(sde, sde.t_min)
    for steps in (24, 48, 96):
        got_mean, got_variance = propagate(solver, process, grid(sde, steps), *law(sde, sde.T))
        errors.append(math.hypot(float((got_mean - mean).norm()), float((got_variance - variance).norm())))
    return fitted_order(errors)


def check_weak_order(solver: Solver, sde: SDE, grid: Any, eta: float) -> None:
    assert solver.weak_order is not None
    slope = weak_slope(solver, sde, grid, eta)
    # 0.1: the bar of the claim; see check_ode_order.
    assert abs(slope - solver.weak_order) < 0.1, f"claims weak order {solver.weak_order}, measured {slope:.3f}"


WEAK = [s for s in solvers() if s.weak_order is not None]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("sde", ["SubVP", "EDM", "RectifiedFlow"])
@pytest.mark.parametrize(("solver", "eta"), on_each_eta(WEAK), ids=name)
def test_weak_order(solver: Solver, eta: float, sde: str, grid: str) -> None:
    check_weak_order(solver, SDES[sde], GRIDS[grid], eta)


def test_every_solver_with_a_weak_order_runs_on_eta_one() -> None:
    assert WEAK and all(takes(s, 1.0) for s in WEAK)


def test_ddim_with_its_own_eta_has_the_law_of_that_eta() -> None:
    """DDIM(eta=0.5) on a process of another η: the law at the end is right at order 1 all the same."""
    check_weak_order(DDIM(eta=0.5), SDES["VP"], grids.uniform, eta=0.0)


# ---- order on one Brownian path ----


class KnownPath(Noise):
    """A BrownianNoise whose values are kept, since every solver asks for the same times again."""

    def __init__(self, path: BrownianNoise) -> None:
        self.path, self.known = path, {}

    def w(self, x: Tensor, t: float) -> Tensor:
        if t not in self.known:
            self.known[t] = self.path.w(x, t)
        return self.known[t]

    def between(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return (self.w(x, float(s)) - self.w(x, float(t))) / math.sqrt(float(t) - float(s))

    def normal(self, x: Tensor) -> Tensor:
        return self.path.normal(x)

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.path.initial(shape, dtype=dtype, device=device)


@functools.cache
def path(T: float) -> KnownPath:
    # cells of T/2^30, far finer than any step here: inside a cell the path is linear
    return KnownPath(BrownianNoise(5, T, levels=30))


# No axis as tight as the third of DATA: with these steps it is not in the regime where an order shows.
SMOOTH = Gaussian(torch.tensor([0.7, -0.4], dtype=torch.float64), torch.tensor([0.7, 2.0], dtype=torch.float64))


def strong_ends(solver: Solver, sde: SDE, eta: float, counts: list[int]) -> list[Tensor]:
    """The ends of runs of so many steps on one path, whose times are nested."""
    process = Reverse(sde, SMOOTH.score(sde), eta)
    x = torch.randn(4096, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * sde.prior_std
    return [solver.solve(process, x, grids.uniform(sde, n), path(sde.T)).x for n in counts]


def check_strong_order(solver: Solver, sde: SDE, eta: float) -> None:
    """The distances between runs of n, 2n and 4n steps on one path shrink by 2^order; and to Euler's limit."""
    assert solver.strong_order is not None
    a, b, c = strong_ends(solver, sde, eta, [64, 128, 256])
    slope = math.log2(float((a - b).norm() / (b - c).norm()))
    # 0.1: the bar of the claim. 4096 samples leave the ratio of two norms a spread of about 0.01; the next order of the
    # expansion moves it by up to 0.07 at these steps.
    assert abs(slope - solver.strong_order) < 0.1, f"claims strong order {solver.strong_order}, measured {slope:.3f}"
    (euler,) = strong_ends(EulerMaruyama(), sde, eta, [256])
    # Each is about its own last halving away from the limit, or they have different limits.
    assert float((c - euler).norm()) < 6 * float((b - c).norm()), "another limit than Euler's"


STRONG = [s for s in solvers() if s.strong_order is not None]


@pytest.mark.parametrize("sde", ["VP", "VE"])
@pytest.mark.parametrize(("solver", "eta"), on_each_eta(STRONG), ids=name)
def test_strong_order(solver: Solver, eta: float, sde: str) -> None:
    check_strong_order(solver, SDES[sde], eta)


# ---- solvers broken on purpose ----


@dataclass(frozen=True)
class WrongDDIM(DDIM):
    """σ_t where σ_s belongs."""

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        sde = process.sde
        ratio = sde.alpha(s) / sde.alpha(t)
        after = ratio * x + (sde.sigma(t) - ratio * sde.sigma(t)) * process.noise(x, t)
        return after, None


@dataclass(frozen=True)
class WeakDDIM(DDIM):
    """The variance of the noise not taken from the direction to x_t."""

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        sde, ratio = process.sde, process.sde.alpha(s) / process.sde.alpha(t)
        drawn = process.eta * sde.sigma(s) / sde.sigma(t) * sde.transition_coefficients(s, t)[1].sqrt()
        after = ratio * x + (sde.sigma(s) - ratio * sde.sigma(t)) * process.noise(x, t)
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
class QuietEuler(EulerMaruyama):
    """A tenth of the noise's variance missing."""

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        after = x + process.drift(x, t) * (s - t)
        return after + math.sqrt(0.9) * process.diffusion(t) * (t - s).sqrt() * noise.between(x, t, s), None


@dataclass(frozen=True)
class HalfScoreEuler(EulerMaruyama):
    """η² forgotten in the drift."""

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        drift = Reverse(process.sde, process.score, 0.0).drift(x, t)
        return x + drift * (s - t) + process.diffusion(t) * (t - s).sqrt() * noise.between(x, t, s), None


@dataclass(frozen=True)
class FreshEuler(EulerMaruyama):
    """Right in law, but not on the path: fresh noise at each step size."""

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        after = x + process.drift(x, t) * (s - t)
        return after + process.diffusion(t) * (t - s).sqrt() * noise.normal(x), None


@pytest.mark.parametrize("solver", [WrongDDIM(), FullHeun(), LateHeun()], ids=name)
def test_check_rejects_a_wrong_ode_step(solver: Solver) -> None:
    with pytest.raises(AssertionError, match="claims order"):
        check_ode_order(solver, SDES["VP"], grids.uniform)


@pytest.mark.parametrize("solver", [WeakDDIM(), QuietEuler(), HalfScoreEuler()], ids=name)
def test_check_rejects_a_wrong_law(solver: Solver) -> None:
    with pytest.raises(AssertionError, match="claims weak order"):
        check_weak_order(solver, SDES["VP"], grids.uniform, eta=1.0)


def test_check_rejects_noise_off_the_path() -> None:
    check_weak_order(FreshEuler(), SDES["VP"], grids.uniform, eta=1.0)
    with pytest.raises(AssertionError, match="claims strong order"):
        check_strong_order(FreshEuler(), SDES["VP"], eta=1.0)


def test_affinity_check_notices_a_step_that_is_not() -> None:
    @dataclass(frozen=True)
    class Bent(EulerMaruyama):
        def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> Any:
            return x + 0.1 * (s - t) * x**2, None

    with pytest.raises(AssertionError):
        propagate(Bent(), Reverse(VP(), DATA.score(VP())), grids.uniform(VP(), 4), *law(VP(), 1.0))


# ---- Langevin corrector: the bias is predicted ----


@pytest.mark.parametrize("snr", [0.1, 0.3])
@pytest.mark.parametrize("sde", ["VP", "SubVP", "VE", "RectifiedFlow"])
def test_corrector_keeps_the_mean_and_follows_the_variance_recursion(sde: str, snr: float) -> None:
    """v <- (1 - τ/c)² v + 2τ, whose fixed point is c / (1 - τ/(2c)), within r²/(1 - r²) of c."""

    @dataclass(frozen=True)
    class Only(Solver):
        corrector: Langevin

        def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> Any:
            return self.corrector.correct(process, x, t, noise), None

    schedule = SDES[sde]
    t = 0.5 * schedule.T
    process = Reverse(schedule, DATA.score(schedule))
    grid = torch.tensor([t, 0.9 * t], dtype=torch.float64)
    mean, c = law(schedule, t)
    size = 2 * (snr * schedule.sigma(t)) ** 2  # τ
    for steps in (1, 3):
        got_mean, got = propagate(Only(Langevin(snr, steps)), process, grid, mean, c)
        expected = c
        for _ in range(steps):
            expected = (1 - size / c) ** 2 * expected + 2 * size
        torch.testing.assert_close(got_mean, mean, rtol=1e-12, atol=1e-12)  # rounding of a few operations
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    fixed = c / (1 - size / (2 * c))
    _, again = propagate(Only(Langevin(snr, 5)), process, grid, mean, fixed)
    torch.testing.assert_close(again, fixed, rtol=1e-12, atol=0)
    assert bool((fixed / c - 1 <= snr**2 / (1 - snr**2) * (1 + 1e-12)).all())


def test_predictor_corrector_leaves_exact_marginals_but_for_the_corrector_bias() -> None:
    """With the exact flow as predictor, the variance over a whole run obeys the recursion to rounding."""

    @dataclass(frozen=True)
    class Exact(Solver):
        def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> Any:
            return DATA.flow(process.sde, x, t, s), None

    sde, snr = SDES["VP"], 0.2
    grid = grids.log_snr(sde, 12)
    mean, variance = law(sde, sde.T)
    got_mean, got = propagate(
        PredictorCorrector(Exact(), Langevin(snr)), Reverse(sde, DATA.score(sde), 0.0), grid, mean, variance
    )
    for t, s in itertools.pairwise(grid):
        c = law(sde, s)[1]
        size = 2 * (snr * sde.sigma(s)) ** 2
        variance = (1 - size / c) ** 2 * (variance * c / law(sde, t)[1]) + 2 * size
    end_mean, c = law(sde, grid[-1])
    torch.testing.assert_close(got_mean, end_mean, rtol=1e-10, atol=1e-12)  # rounding of 24 affine maps
    torch.testing.assert_close(got, variance, rtol=1e-10, atol=0)
    # Never more than the stationary bias, which the docstring bounds by r²/(1 - r²).
    assert bool(((got / c - 1) <= snr**2 / (1 - snr**2)).all()) and bool((got >= c).all())


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_predictor_corrector_converges_to_the_corrector_bias(eta: float) -> None:
    """With small steps the predictor's error goes and the corrector's stationary variance stays."""
    sde, snr = SDES["VP"], 0.2
    mean, variance = law(sde, sde.T)
    solver = PredictorCorrector(ReverseDiffusion(), Langevin(snr, steps=20))
    _, got = propagate(solver, Reverse(sde, DATA.score(sde), eta), grids.log_snr(sde, 16), mean, variance)
    c = law(sde, sde.t_min)[1]
    # 20 steps forget all but (1 - τ/c)^40 of what the predictor left wrong: at c = 2.0 that is the slowest mode.
    size = 2 * (snr * sde.sigma(sde.t_min)) ** 2
    left = float(((1 - size / c) ** 40).max())
    torch.testing.assert_close(got, c / (1 - size / (2 * c)), rtol=left * 0.1 + 1e-12, atol=0)


# ---- churn ----


@pytest.mark.parametrize("sde", ["EDM", "VP"])
def test_churned_heun_converges_to_the_law(sde: str) -> None:
    """Adding noise and removing it again leaves p_t alone: the error in law still falls with the square of the step.

    γ = churn/steps, so halving the steps halves the churn of each; the total noise stays.
    """
    assert abs(weak_slope(Heun(churn=2.0), SDES[sde], grids.log_snr, 0.0) - 2) < 0.25
    # churn_noise ≠ 1 adds noise of the wrong size, which no number of steps mends
    assert weak_slope(Heun(churn=2.0, churn_noise=1.1), SDES[sde], grids.log_snr, 0.0) < 0.5
