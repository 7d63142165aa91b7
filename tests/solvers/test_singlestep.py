"""Single-step solvers: moments, published steps, orders on problems that are not Gaussian, noises, ends, gradients."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.interpolate import make_interp_spline
from torch import Tensor

from scoresde import grids
from scoresde.models import as_score
from scoresde.noise import BrownianNoise, IndependentNoise, Noise
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sde import EDM, SDE, VE, VP, Cosine, RectifiedFlow
from scoresde.solvers import (
    DDIM,
    DPMSolver,
    ExponentialRungeKutta,
    Heun,
    RungeKutta,
    Solver,
    StochasticRungeKutta,
)
from scoresde.solvers import _tableaus as tableaus
from scoresde.solvers._frames import frame_of, levels
from scoresde.solvers._stages import Moments, Scheme, Singlestep, StepRow, plan_stages, run_stages
from scoresde.solvers._tableaus import Tableau
from scoresde.solvers._variables import LOG_SNR, NOISE_LEVEL, angle

ODE: list[Any] = [
    *(DPMSolver(order, predicts) for order in (1, 2, 3) for predicts in ("noise", "x0")),
    *(ExponentialRungeKutta(predicts, 0.8) for predicts in ("x0", "noise", "v")),
    *(RungeKutta(order, predicts, 0.8) for order in (2, 3, 4) for predicts in ("noise", "v")),
]  # fmt: skip
SRK = [StochasticRungeKutta(stages, predicts, 0.8) for stages in (2, 3, 4) for predicts in ("x0", "v")]
ALL = [*ODE, *SRK]
# Without the last decades of noise: there the constants, not the orders, of low-order methods are extreme.
SDES: dict[str, SDE] = {"VP": VP(beta_max=10.0, t_min=0.1), "VE": VE(0.3, 5.0), "Cosine": Cosine(T=0.85, t_min=0.1)}
GRIDS = {"uniform": grids.uniform, "log_snr": grids.log_snr}
MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]),
    torch.tensor([[0.7, -0.4], [-0.5, 0.6]], dtype=torch.float64),
    torch.tensor([[0.5, 0.2], [0.3, 0.6]], dtype=torch.float64),
)


def stages_of(solver: Solver) -> int:
    """Evaluations a step, as documented."""
    return solver.stages if isinstance(solver, StochasticRungeKutta) else int(solver.order or 0)


def start(sde: SDE) -> Tensor:
    return torch.tensor([[1.3, -0.8], [-0.5, 1.9]], dtype=torch.float64) * sde.prior_std


def slope(errors: list[float]) -> float:
    """Over halved steps, extrapolated: slopes at n and 2n differ from the order by c/n and c/2n."""
    assert min(errors) > 1e-12, "no error left to measure above the rounding of float64"
    coarse, fine = (math.log2(a / b) for a, b in itertools.pairwise(errors))
    return 2 * fine - coarse


# ---- moments ----


@pytest.mark.parametrize("variable", [LOG_SNR, NOISE_LEVEL, angle(0.7)], ids=["h", "noise_level", "angle"])
@pytest.mark.parametrize(("predicts", "eta"), [("x0", 0.0), ("x0", 1.3), ("noise", 0.5), ("v", 1.0)])
@pytest.mark.parametrize("times", [(0.6, 0.35), (0.6, 0.6 - 1e-7)], ids=["long", "short"])
def test_moments_are_integrals(times: tuple[float, float], predicts: Any, eta: float, variable: Any) -> None:
    at = levels(VP(), torch.tensor(times, dtype=torch.float64))
    t, s = at.at(slice(0, 1)), at.at(slice(1, 2))
    frame = frame_of(predicts, eta, 0.7)
    moments = Moments(frame, variable, t, [t, s])
    low, high = float(t.h), float(s.h)
    first, last = (float(variable.of_h(end)) for end in (t.h, s.h))
    for k in (1, 2, 3):

        def value(part: float, k: int = k) -> float:
            h = torch.tensor([[low + part * (high - low)]], dtype=torch.float64)
            kernel = float(frame.kernel(h, s)) * (high - low)
            # on the short step v(h) is linear to the digits that the difference of two v has
            tau = part if high - low < 1e-5 else (float(variable.of_h(h)) - first) / (last - first)
            return kernel * tau ** (k - 1) / math.factorial(k - 1)

        expected = quad(value, 0, 1, epsabs=0, epsrel=1e-12)[0]
        # 1e-11: quad's own; on the short step the differences of v (of h: 1e-7 of 1, so 1e-9) are what is left
        assert float(moments(k, -1)) == pytest.approx(expected, rel=1e-11 if times[1] < 0.5 else 1e-8)


def test_moments_in_log_snr_are_the_phi_functions() -> None:
    """With K = α_s k e^{-k (h_s - h)}: α_s k Δ φ_j(-k Δ), at any Δ; at small Δ by its series, where nothing cancels."""
    sde, eta = VP(), 0.7
    k = 1 + eta**2
    h = torch.tensor([-2.0, 1.5], dtype=torch.float64)
    for length in (1e-9, 1e-3, 1.0, 5.0):
        ends = sde.t_of_log_snr(2 * torch.cat([h, h + length])).reshape(2, 2)
        t, s = levels(sde, ends[0]), levels(sde, ends[1])
        moments = Moments(frame_of("x0", eta, 1.0), LOG_SNR, t, [t, s])
        for j in (1, 2, 3):
            z = -k * (s.h - t.h)
            phi = sum(z**m / float(math.factorial(m + j)) for m in range(60))  # |z| < 8: terms reach 1e2, end at 1e-20
            expected = s.alpha * k * (s.h - t.h) * phi
            torch.testing.assert_close(moments(j, -1), expected, rtol=1e-12, atol=0)  # 1e2 of rounding in the series


# ---- steps as their papers write them ----


@dataclass
class Schedule:
    """One step's numbers for the formulas of the papers: α, σ and λ = log(α/σ) at t, s and in between."""

    sde: SDE
    t: float
    s: float

    def at(self, r: float) -> tuple[float, float, float, Tensor]:
        ends = [0.5 * self.sde.log_snr(time) for time in (self.t, self.s)]
        time = self.sde.t_of_log_snr(2 * (ends[0] + r * (ends[1] - ends[0])))
        return float(self.sde.alpha(time)), float(self.sde.sigma(time)), float(self.sde.log_snr(time) / 2), time


def published(order: int, predicts: str, process: Reverse, x: Tensor, t: float, s: float) -> Tensor:
    """A step of DPM-Solver-2 or -3 (arXiv:2206.00927, Alg. 1, 2) or of DPM-Solver++(2S) (arXiv:2211.01095, Alg. 1)."""
    step = Schedule(process.sde, t, s)
    a0, s0, l0, t0 = step.at(0.0)
    a, sigma, end, _ = step.at(1.0)
    h = end - l0
    if predicts == "x0":
        a1, s1, _, t1 = step.at(0.5)
        d = process.score.denoise(x, t0)
        u = s1 / s0 * x - a1 * math.expm1(-0.5 * h) * d
        mixed = (1 - 1 / (2 * 0.5)) * d + 1 / (2 * 0.5) * process.score.denoise(u, t1)
        return sigma / s0 * x - a * math.expm1(-h) * mixed
    if order == 2:
        a1, s1, _, t1 = step.at(0.5)
        u = a1 / a0 * x - s1 * math.expm1(h / 2) * process.score.noise(x, t0)
        return a / a0 * x - sigma * math.expm1(h) * process.score.noise(u, t1)
    r1, r2 = 1 / 3, 2 / 3
    (a1, s1, _, t1), (a2, s2, _, t2) = step.at(r1), step.at(r2)
    e = process.score.noise(x, t0)
    u1 = a1 / a0 * x - s1 * math.expm1(r1 * h) * e
    d1 = process.score.noise(u1, t1) - e
    u2 = a2 / a0 * x - s2 * math.expm1(r2 * h) * e - s2 * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = process.score.noise(u2, t2) - e
    return a / a0 * x - sigma * math.expm1(h) * e - sigma / r2 * (math.expm1(h) / h - 1) * d2


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize(("order", "predicts"), [(2, "noise"), (3, "noise"), (2, "x0")])
def test_steps_of_dpm_solver_are_the_published_ones(order: Any, predicts: Any, sde: str) -> None:
    process = Reverse(MIXTURE.score(SDES[sde]), 0.0)
    x, grid = start(process.sde), grids.uniform(process.sde, 3)
    expected = x
    for t, s in itertools.pairwise(grid.tolist()):
        expected = published(order, predicts, process, expected, t, s)
    got = DPMSolver(order, predicts).solve(process, x, grid).x
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)  # rounding of some hundred operations


@pytest.mark.parametrize("sde", SDES)
def test_order_one_is_ddim(sde: str) -> None:
    process, grid = Reverse(MIXTURE.score(SDES[sde]), 0.0), grids.uniform(SDES[sde], 4)
    x = start(process.sde)
    expected = DDIM().solve(process, x, grid).x
    for predicts in ("noise", "x0"):
        got = DPMSolver(1, predicts).solve(process, x, grid).x  # type: ignore[arg-type]
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)  # rounding


@pytest.mark.parametrize("order", [2, 3, 4])
def test_plain_runge_kutta_is_the_textbooks_in_sigma_over_alpha(order: Any) -> None:
    """dy/dv = ε̂(α y, t(v)), v = σ/α, by the tables of Ralston, Heun and Kutta."""
    c, a, b = {
        2: ([0, 2 / 3], [[], [2 / 3]], [1 / 4, 3 / 4]),
        3: ([0, 1 / 3, 2 / 3], [[], [1 / 3], [0, 2 / 3]], [1 / 4, 0, 3 / 4]),
        4: ([0, 1 / 2, 1 / 2, 1], [[], [1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
    }[order]
    sde = SDES["Cosine"]
    process, x, grid = Reverse(MIXTURE.score(sde), 0.0), start(sde), grids.uniform(sde, 3)

    def rate(v: float, y: Tensor) -> Tensor:
        time = sde.t_of_log_snr(torch.tensor(-2 * math.log(v), dtype=torch.float64))
        return process.score.noise(sde.alpha(time) * y, time)

    y = x / sde.alpha(grid[0])
    for t, s in itertools.pairwise(grid):
        v = float(sde.sigma(t) / sde.alpha(t))
        length = float(sde.sigma(s) / sde.alpha(s)) - v
        k: list[Tensor] = []
        for ci, ai in zip(c, a, strict=True):
            k.append(rate(v + ci * length, y + sum((length * w * f for w, f in zip(ai, k, strict=True)), 0 * y)))
        y = y + sum(length * w * f for w, f in zip(b, k, strict=True))
    got = RungeKutta(order, "noise").solve(process, x, grid).x
    torch.testing.assert_close(got, sde.alpha(grid[-1]) * y, rtol=1e-11, atol=1e-11)  # rounding of t(v) and back


def test_krogstads_weights_are_the_published_ones() -> None:
    """On u' = L u + N(u) by φ-functions: u = x/σ, L = 1, N = -ε̂ in h, one step."""
    sde = SDES["VP"]
    process, x = Reverse(MIXTURE.score(sde), 0.0), start(sde)
    step = Schedule(sde, 0.6, 0.3)
    points = {c: step.at(c) for c in (0.0, 0.5, 1.0)}
    z = points[1.0][2] - points[0.0][2]

    def phi(k: int, z: float) -> float:
        return sum(z**m / math.factorial(m + k) for m in range(40))

    def force(u: Tensor, c: float) -> Tensor:
        return -process.score.noise(points[c][1] * u, points[c][3])

    u, half = x / points[0.0][1], 0.5 * z
    n1 = force(u, 0.0)
    grown = math.exp(half) * u
    n2 = force(grown + half * phi(1, half) * n1, 0.5)
    n3 = force(grown + z * ((phi(1, half) / 2 - phi(2, half)) * n1 + phi(2, half) * n2), 0.5)
    n4 = force(math.exp(z) * u + z * ((phi(1, z) - 2 * phi(2, z)) * n1 + 2 * phi(2, z) * n3), 1.0)
    one, two, three = (phi(k, z) for k in (1, 2, 3))
    sums = (one - 3 * two + 4 * three) * n1 + (2 * two - 4 * three) * (n2 + n3) + (4 * three - two) * n4
    expected = points[1.0][1] * (math.exp(z) * u + z * sums)
    got = ExponentialRungeKutta("noise").solve(process, x, torch.tensor([0.6, 0.3], dtype=torch.float64)).x
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)  # rounding


# ---- order without noise ----


@functools.cache
def reference(sde: str) -> Tensor:
    """The mixture's flow by scipy's DOP853, an integrator that shares no line with ours."""
    schedule = SDES[sde]
    process, x = Reverse(MIXTURE.score(schedule), 0.0), start(schedule)

    def rate(t: float, y: Any) -> Any:
        return process.drift(torch.from_numpy(y).reshape(x.shape), t).numpy().ravel()

    ends = (schedule.T, schedule.t_min)
    done = solve_ivp(rate, ends, x.numpy().ravel(), method="DOP853", rtol=1e-13, atol=1e-13)
    return torch.from_numpy(done.y[:, -1]).reshape(x.shape)


def ode_slope(solver: Solver, sde: str, grid: str) -> float:
    schedule = SDES[sde]
    process, x = Reverse(MIXTURE.score(schedule), 0.0), start(schedule)
    ends = [solver.solve(process, x, GRIDS[grid](schedule, n), 0).x for n in (24, 48, 96)]
    return slope([float((end - reference(sde)).norm()) for end in ends])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("solver", [s for s in ALL if s.order > 1], ids=repr)
def test_order_on_a_mixture(solver: Solver, sde: str, grid: str) -> None:
    """Where the flow is nonlinear, which a Gaussian's is not: order conditions of all trees, not of the tall ones."""
    # 0.1: the bar of the claim; extrapolation leaves a constant times 1/n²
    assert abs(ode_slope(solver, sde, grid) - solver.order) < 0.1  # type: ignore[operator]


@dataclass(frozen=True)
class Custom(Singlestep):
    """Any tableau, for wrong ones."""

    tableau: Tableau = tableaus.EULER
    predicts: Any = "x0"

    def scheme(self, process: Reverse) -> Scheme:
        return Scheme(frame_of(self.predicts, process.eta, 1.0), LOG_SNR, self.tableau)


def altered(tableau: Tableau, row: int, change: Callable[[list[Tensor]], list[Tensor]]) -> Tableau:
    def weights(phi: tableaus.Phi) -> tableaus.Weights:
        table = tableau.weights(phi)
        table[row] = change(table[row])
        return table

    return tableau._replace(weights=weights)


WRONG = {
    "DPM-Solver-3 with the second slope as steep as the first": (
        altered(tableaus.THIRDS, 1, lambda w: [w[0] + 0.5 * w[1], 0.5 * w[1]]),
        3,
    ),
    "Krogstad with the slope of stage 3 not doubled": (
        altered(tableaus.KROGSTAD, 1, lambda w: [w[0] + 0.5 * w[1], 0.5 * w[1]]),
        4,
    ),
    "DPM-Solver-3 with the stages at 1/3 and 1/2": (tableaus.THIRDS._replace(nodes=(0.0, 1 / 3, 1 / 2)), 3),
    "the middle's F as if it were the start's": (altered(tableaus.MIDPOINT, 1, lambda w: w[::-1]), 2),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tableaus_are_noticed(name: str) -> None:
    tableau, order = WRONG[name]
    assert ode_slope(Custom(tableau), "VP", "log_snr") < order - 0.5


# ---- closed forms ----


def test_constant_data_are_reached_in_one_step() -> None:
    """All data at one point: x̂_0 is constant, and the data frame leaves nothing to err in. float64 rounding."""
    mean = torch.tensor([0.7, -1.1], dtype=torch.float64)
    sde = SDES["VP"]
    point = Gaussian(mean, 0.0)
    process, x = Reverse(point.score(sde), 0.0), start(sde)
    ends = sde.alpha(sde.t_min) * mean + sde.sigma(sde.t_min) / sde.sigma(sde.T) * (x - sde.alpha(sde.T) * mean)
    grid = torch.tensor([sde.T, sde.t_min], dtype=torch.float64)
    for solver in (DPMSolver(2, "x0"), DPMSolver(3, "x0"), ExponentialRungeKutta("x0"), *SRK[::2]):
        torch.testing.assert_close(solver.solve(process, x, grid, 0).x, ends, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("solver", [ExponentialRungeKutta("v", 0.6), RungeKutta(3, "v", 0.6)], ids=repr)
def test_v_is_exact_on_a_gaussian_of_its_scale(solver: Solver) -> None:
    data = Gaussian(torch.zeros(2, dtype=torch.float64), 0.36)
    for sde in (EDM(), VP()):
        process, x = Reverse(data.score(sde), 0.0), start(sde)
        got = solver.solve(process, x, grids.log_snr(sde, 2)).x
        # v is a difference of terms of the size of x, and that of the end is 1e3 to 1e4 times smaller
        torch.testing.assert_close(got, data.flow(sde, x, sde.T, sde.t_min), rtol=1e-9, atol=0)


def test_stochastic_velocity_is_exact_in_law_on_a_gaussian_of_its_scale() -> None:
    """Two steps over the whole range: the variance at the end is that of the data, to rounding."""
    data, sde = Gaussian(torch.zeros(1, dtype=torch.float64), 0.36), VP()
    for stages, eta in itertools.product((2, 3, 4), (0.5, 1.0)):
        process = Reverse(data.score(sde), eta)
        plan = StochasticRungeKutta(stages, "v", 0.6).plan(process, grids.log_snr(sde, 2))
        variance = float(data.moments(sde, sde.T)[1])
        for step in plan:
            keep, noises = linear_step(process, step)
            variance = keep**2 * variance + float(noises.square().sum())
        assert variance == pytest.approx(float(data.moments(sde, sde.t_min)[1]), rel=1e-9)  # cancellation as above


def linear_step(process: Reverse, step: StepRow) -> tuple[float, Tensor]:
    """(a, c) of x_s = a x + Σ c_k z_k, for a score that is linear in x."""
    basis = torch.eye(1 + len(step.draws), dtype=torch.float64)
    x, draws = basis[:, :1], list(basis[:, 1:].T[:, :, None])

    @dataclass
    class Given(Noise):
        left: list[Tensor]

        def normal(self, x: Tensor) -> Tensor:
            return self.left.pop(0)

        def initial(self, shape: Any, *, dtype: Any, device: Any) -> Tensor:
            raise NotImplementedError

    end = run_stages(process, x, Given(draws), step)[:, 0]
    return float(end[0]), end[1:]


# ---- noises of a step ----


def noises_of(step: StepRow) -> Tensor:
    """(stages + 1, draws): the factors of the increments in each stage and in the end; a score of 0 leaves these."""
    draws = len(step.draws)
    mixes = [*(stage.mix for stage in step.stages), step.end]
    return torch.tensor([[float(c) for c in mix[1 : 1 + draws]] for mix in mixes], dtype=torch.float64)


@pytest.mark.parametrize("eta", [0.4, 1.0, 1.5])
@pytest.mark.parametrize("frame", ["noise", "x0", "v"])
@pytest.mark.parametrize("tableau", ["RALSTON", "THIRDS", "ANTITHETIC"])
def test_noises_have_the_exact_covariances(tableau: str, frame: Any, eta: float) -> None:
    """Every stage's variance and covariance with the end are those of the path; between stages too, without signs.

    The noise frame shows them bare, since its F does not hold x: the other frames feed a stage's noise into later ones.
    """
    sde, chosen = SDES["VP"], getattr(tableaus, tableau)
    at = levels(sde, torch.tensor([0.7, 0.3], dtype=torch.float64))
    t, s = at.at(slice(0, 1)), at.at(slice(1, 2))
    scheme = Scheme(frame_of(frame, eta, 0.8), LOG_SNR, chosen)
    if frame != "noise":  # take F's x out: weights of 0
        zero = Tableau(chosen.nodes, lambda phi: [[0 * w for w in row] for row in chosen.weights(phi)], chosen.signs)
        scheme = scheme._replace(tableau=zero)
    (step,) = plan_stages(scheme, sde, t, s, True)
    got = noises_of(step)
    covariance = got @ got.T
    places = [*(levels(sde, stage.time.reshape(1)) for stage in step.stages), s]
    variance = [float(scheme.frame.noise(t, place) ** 2) for place in places]
    for i, j in itertools.combinations_with_replacement(range(len(places)), 2):
        if i == j or j == len(places) - 1 or chosen.signs is None:
            expected = float(scheme.frame.linear(places[i], places[j])) * variance[i]
            assert float(covariance[i, j]) == pytest.approx(expected, rel=1e-10, abs=1e-14)  # rounding of t(h) and back
    if chosen.signs is not None:
        # the last two lie on opposite sides of their mean given the end's noise, and the last is the path's own
        mean = covariance[2, -1] / covariance[-1, -1] * got[-1]
        torch.testing.assert_close(got[2] - mean, mean - got[3], rtol=1e-9, atol=1e-13)
        assert float(got[3, 1]) == 0.0 or abs(float(got[3, 1])) < 1e-13  # nothing of the increment after it


def test_conditions_of_weak_order_three() -> None:
    """The docstring's conditions, by arithmetic on the tableau with K = 1: to rounding."""
    nodes, weights, signs = tableaus.ANTITHETIC
    assert signs is not None

    def phi(k: int, i: int) -> Tensor:
        length = 1.0 if i == -1 else nodes[i]
        return torch.tensor([length / math.factorial(k)], dtype=torch.float64)

    table = [[float(w) for w in row] for row in weights(phi)]
    n = len(nodes)
    a = np.array([[0.0] * n, *([*row, *[0.0] * (n - len(row))] for row in table[:-1])])
    b, c = np.array(table[-1]), np.array(nodes)
    beside = np.array(signs) * np.sqrt(c * (1 - c))
    covariance = np.outer(c, c) + np.outer(beside, beside)  # E ζ_i ζ_j
    np.testing.assert_allclose(np.diag(covariance), c, atol=1e-15)
    found = [b.sum(), b @ c, b @ c**2, b @ a @ c, b @ covariance @ b, b @ (a * covariance).sum(1)]
    np.testing.assert_allclose(found, [1, 1 / 2, 1 / 3, 1 / 6, 1 / 3, 1 / 6], rtol=1e-14)
    np.testing.assert_allclose(a.sum(1), c, atol=1e-15)


# ---- order in law, where nothing is Gaussian, without Monte Carlo ----

LINE = GaussianMixture(
    torch.tensor([0.3, 0.45, 0.25]),
    torch.tensor([[-1.2], [0.3], [1.4]], dtype=torch.float64),
    torch.tensor([0.1, 0.3, 0.2]),
)
OBSERVED = [lambda x: np.cos(x + 0.4), lambda x: x, lambda x: x**2]


class Quadrature(Noise):
    """Gives the nodes of a quadrature in place of normals, one column for each draw of a step."""

    def __init__(self, columns: Tensor) -> None:
        self.columns = iter(columns)

    def normal(self, x: Tensor) -> Tensor:
        return next(self.columns)[:, None]

    def initial(self, shape: Any, *, dtype: Any, device: Any) -> Tensor:
        raise NotImplementedError


def law_error(solver: Singlestep, sde: SDE, steps: int, eta: float, wide: float = 7.0) -> float:
    """|E f(x_end) - truth| over the f of OBSERVED: the value E[f | x_t = x] carried back from step to step on a grid.

    The truth is known, since the exact law at T, in which x starts, becomes the exact law at t_min.
    """
    process, grid = Reverse(LINE.score(sde), eta), grids.log_snr(sde, steps)
    plan = solver.plan(process, grid)
    draws = len(plan[0].draws)
    nodes, weights = np.polynomial.hermite_e.hermegauss({2: 10, 3: 5}[draws])
    columns = torch.tensor(list(itertools.product(nodes, repeat=draws)), dtype=torch.float64).T
    mass = np.prod(list(itertools.product(weights / weights.sum(), repeat=draws)), axis=1)

    def expected(f: Any, t: Tensor) -> float:
        z, w = np.polynomial.hermite_e.hermegauss(60)
        mean, std = float(sde.alpha(t)) * LINE.means[:, 0].numpy(), components(t)
        return float(sum(p * (w / w.sum() @ f(m + s * z)) for p, m, s in zip(LINE.weights, mean, std, strict=True)))

    def components(t: Tensor) -> Any:
        return np.sqrt(float(sde.alpha(t)) ** 2 * np.array([0.1, 0.3, 0.2]) + float(sde.sigma(t)) ** 2)

    values: list[Any] = OBSERVED
    for t, step in reversed(list(zip(grid[:-1], plan, strict=True))):
        reach = wide * components(t).max() + 1.4 * float(sde.alpha(t))
        x = np.linspace(-reach, reach, 160)
        state = torch.from_numpy(np.repeat(x, len(mass)))[:, None]
        after = run_stages(process, state, Quadrature(columns.repeat(1, len(x))), step)[:, 0].numpy()
        values = [make_interp_spline(x, f(after).reshape(len(x), -1) @ mass, k=5) for f in values]
    return math.hypot(*(expected(v, grid[0]) - expected(f, grid[-1]) for v, f in zip(values, OBSERVED, strict=True)))


def law_slope(solver: Singlestep, eta: float = 1.0, counts: tuple[int, int, int] = (8, 16, 32)) -> float:
    return slope([law_error(solver, EDM(T=3.0, t_min=0.4), n, eta) for n in counts])


@pytest.mark.parametrize("solver", SRK, ids=repr)
def test_order_in_law_on_a_mixture(solver: StochasticRungeKutta) -> None:
    # 0.2: three functionals whose errors have signs of their own, at 8 to 32 steps; the orders are whole numbers
    assert abs(law_slope(solver) - solver.weak_order) < 0.2


def test_noises_on_one_side_have_order_two_in_law() -> None:
    one_side = tableaus.ANTITHETIC._replace(signs=(0.0, 1.0, 1.0, 1.0))
    assert law_slope(Custom(one_side)) < 2.5


def test_independent_noises_have_order_one_in_law() -> None:
    """The same variances at each stage, but nothing nested: the difference between weak order 1 and 2."""

    @dataclass(frozen=True)
    class Apart(Custom):
        def plan(self, process: Reverse, grid: Tensor) -> Any:
            found = []
            for step in super().plan(process, grid):
                noises = noises_of(step).square().sum(1).sqrt().tolist()
                stages = [stage._replace(mix=(*stage.mix[:1], 0.0, 0.0, *stage.mix[3:])) for stage in step.stages]
                mix = stages[1].mix
                stages[1] = stages[1]._replace(mix=(mix[0], noises[1], 0.0, *mix[3:]))
                found.append(step._replace(stages=tuple(stages), end=(step.end[0], 0.0, noises[2], *step.end[3:])))
            return found

    # in the noise frame F does not hold x, so the factors in ``end`` are those of N_s alone
    assert abs(law_slope(Custom(tableaus.RALSTON, "noise"), 0.5) - 2) < 0.3
    assert law_slope(Apart(tableaus.RALSTON, "noise"), 0.5) < 1.3


def test_more_stages_serve_better_in_law() -> None:
    """At an equal number of evaluations, here 24: what weak order 3 is for."""
    sde = EDM(T=3.0, t_min=0.4)
    two, four = (law_error(StochasticRungeKutta(stages), sde, 24 // stages, 1.0) for stages in (2, 4))
    assert four < 0.2 * two


def test_a_step_draws_nested_increments_of_the_path() -> None:
    asked: list[tuple[float, float]] = []

    class Recording(IndependentNoise):
        def between(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            asked.append((float(t), float(s)))
            return super().between(x, t, s)

    sde = VP()
    grid = grids.uniform(sde, 2)
    for stages, increments in ((2, 2), (3, 3), (4, 2)):
        asked.clear()
        StochasticRungeKutta(stages).solve(Reverse(MIXTURE.score(sde), 1.0), start(sde), grid, Recording(0))
        assert len(asked) == 2 * increments
        assert asked[0][0] == sde.T and asked[-1][1] == sde.t_min
        assert all(a[1] == b[0] for a, b in itertools.pairwise(asked)) and all(t > s for t, s in asked)


def test_without_noise_the_stochastic_methods_are_their_deterministic_ones() -> None:
    sde = SDES["Cosine"]
    process, x, grid = Reverse(MIXTURE.score(sde), 0.0), start(sde), grids.uniform(sde, 4)
    expected = DPMSolver(3, "x0").solve(process, x, grid).x
    got = StochasticRungeKutta(3).solve(process, x, grid).x  # nothing drawn: no noise needed
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


# ---- ends, times, batches, dtypes ----


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("sde", [EDM(t_min=0.0), VP(t_min=0.0), RectifiedFlow(t_min=0.0)], ids=["EDM", "VP", "flow"])
@pytest.mark.parametrize("solver", [*ALL, Heun()], ids=repr)
def test_last_step_to_the_data(solver: Solver, sde: SDE, eta: float) -> None:
    """Where σ(s) = 0 the step ends at α E[x_0 | x_t] after one evaluation, whatever η: nothing is NaN."""
    process, grid = Reverse(MIXTURE.score(sde), eta), grids.karras(sde, 4)
    if eta and not isinstance(solver, StochasticRungeKutta):
        return
    solution = solver.solve(process, start(sde), grid, 0, trajectory=True)
    assert solution.trajectory is not None and bool(solution.x.isfinite().all())
    assert solution.nfe == 3 * stages_of(solver) + 1
    before = solution.trajectory[-2]
    # the score times σ² and x cancel down to x_0
    torch.testing.assert_close(solution.x, process.score.denoise(before, grid[-2]), rtol=1e-10, atol=1e-10)


def test_one_step_to_the_data() -> None:
    sde = EDM(t_min=0.0)
    process, x = Reverse(MIXTURE.score(sde), 1.0), start(sde)
    grid = torch.tensor([80.0, 0.0], dtype=torch.float64)
    got = StochasticRungeKutta().solve(process, x, grid, 0)
    assert got.nfe == 1
    torch.testing.assert_close(got.x, process.score.denoise(x, grid[0]), rtol=1e-12, atol=1e-12)  # rounding


@pytest.mark.parametrize("solver", ALL, ids=repr)
def test_where_the_score_is_asked(solver: Any) -> None:
    """At the grid's own times, to the bit, and between them; as many times as documented."""
    sde, asked = SDES["VP"], []

    def score(x: Tensor, t: Tensor) -> Tensor:
        asked.append(t)
        return MIXTURE.score(sde)(x, t)

    grid = grids.uniform(sde, 3)
    solution = solver.solve(Reverse(as_score(score, sde), 0.0), start(sde), grid)
    each = stages_of(solver)
    assert solution.nfe == len(asked) == 3 * each
    assert all(t.shape == () and t.dtype == torch.float64 for t in asked)
    for i in range(3):
        times = [float(t) for t in asked[i * each : (i + 1) * each]]
        assert times[0] == float(grid[i]) and all(float(grid[i + 1]) <= t <= times[0] for t in times)


def test_a_schedule_that_rests_moves_nothing() -> None:
    """Where σ/α stands still, x is only rescaled: no weight is 0/0, and no increment of no length is asked for."""

    @dataclass(frozen=True)
    class Resting(SDE):
        def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
            return torch.ones_like(t)

        def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
            return torch.where(t > 0.6, t - 0.3, t.clamp(max=0.3))

    sde = Resting()
    grid = torch.tensor([0.58, 0.35], dtype=torch.float64)
    for solver in ALL:
        process = Reverse(MIXTURE.score(sde), 0.7 if isinstance(solver, StochasticRungeKutta) else 0.0)
        got = solver.solve(process, start(sde), grid, BrownianNoise(0, 1.0)).x
        torch.testing.assert_close(got, start(sde), rtol=0, atol=1e-12)  # rounding of log σ


@pytest.mark.parametrize("solver", ALL, ids=repr)
def test_samples_are_independent_and_dtypes_are_kept(solver: Any) -> None:
    sde = VP()
    process = Reverse(MIXTURE.score(sde), solver.default_eta)
    x, grid = start(sde), grids.log_snr(sde, 6)
    both, one = solver.solve(process, x, grid, 3).x, solver.solve(process, x[:1], grid, 3).x
    torch.testing.assert_close(both[:1], one, rtol=1e-12, atol=1e-12)  # rounding: other kernels for other shapes
    single = solver.solve(process, x.float(), grid, 3).x
    assert single.dtype == torch.float32
    # 6 steps of float32 rounding, in scores of size 1/σ: 1e-7 times x_T/α_T ~ 1e2 at the worst
    torch.testing.assert_close(single.double(), both, rtol=1e-3, atol=1e-3)
    assert solver.solve(process, x[:0], grid, 3).x.shape == (0, 2)


@pytest.mark.parametrize("solver", ALL, ids=repr)
def test_gradients_through_state_and_times(solver: Any) -> None:
    sde = SDES["VP"]
    process = Reverse(MIXTURE.score(sde), solver.default_eta)
    grid = grids.uniform(sde, 2)

    def end(x: Tensor, middle: Tensor) -> Tensor:
        times = torch.cat([grid[:1], middle.reshape(1), grid[-1:]])
        return solver.solve(process, x, times, 1).x

    x, middle = start(sde)[:1].requires_grad_(), grid[1].clone().requires_grad_()
    assert torch.autograd.gradcheck(end, (x, middle))
    # and through the coefficients as tensors the numbers are the same
    torch.testing.assert_close(end(x, middle), end(x.detach(), middle.detach()), rtol=1e-12, atol=1e-12)  # rounding


@pytest.mark.parametrize("solver", [*ALL, Heun(), Heun(churn=1.0)], ids=repr)
def test_gradients_with_an_end_at_the_data_are_finite(solver: Any) -> None:
    sde = EDM(t_min=0.0)
    grid = grids.karras(sde, 3).requires_grad_()
    end = solver.solve(Reverse(MIXTURE.score(sde), solver.default_eta), start(sde), grid, 0).x
    (gradient,) = torch.autograd.grad(end.sum(), grid)
    assert bool(gradient.isfinite().all()) and bool((gradient[1:-1] != 0).any())


# ---- options and errors ----


def test_every_option_matters() -> None:
    sde = SDES["VP"]
    process, x, grid = Reverse(MIXTURE.score(sde), 0.0), start(sde), grids.uniform(sde, 3)
    variants = [s for s in ALL if s.order != 1 and not (isinstance(s, StochasticRungeKutta) and s.stages == 3)]
    variants += [ExponentialRungeKutta("v", 1.1), RungeKutta(4, "v", 1.1)]
    variants += [StochasticRungeKutta(2, "v", 1.1)]
    ends = [solver.solve(process, x, grid).x for solver in variants]
    for (i, a), (j, b) in itertools.combinations(enumerate(ends), 2):
        # they are at least as far apart as their errors, far above rounding
        assert float((a - b).norm()) > 1e-7, f"{variants[i]} and {variants[j]} do the same"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: DPMSolver(4), "order must be one of 1, 2, 3"),
        (lambda: DPMSolver(2, "v"), "predicts must be one of"),
        (lambda: RungeKutta(1), "order must be one of"),
        (lambda: ExponentialRungeKutta("score"), "predicts must be one of"),
        (lambda: ExponentialRungeKutta(sigma_data=0.0), "sigma_data"),
        (lambda: RungeKutta(sigma_data=-1.0), "sigma_data"),
        (lambda: StochasticRungeKutta(1), "stages must be one of 2, 3, 4"),
        (lambda: StochasticRungeKutta(sigma_data=math.inf), "sigma_data"),
    ],
    ids=range(8),
)
def test_bad_options_are_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_processes_and_grids_that_do_not_fit_are_refused() -> None:
    sde = RectifiedFlow()
    x = torch.ones(1, 2, dtype=torch.float64)
    for solver in (DPMSolver(), ExponentialRungeKutta(), RungeKutta()):
        with pytest.raises(ValueError, match="probability-flow ODE"):
            solver.solve(Reverse(MIXTURE.score(sde), 1.0), x, grids.uniform(sde, 2), 0)
    with pytest.raises(ValueError, match="draws noise"):
        StochasticRungeKutta().solve(Reverse(MIXTURE.score(sde), 1.0), x, grids.uniform(sde, 2))
    alone, twice = as_score(MIXTURE.score(sde).__call__, sde), torch.tensor([1.0, 1 - 1e-9, 0.5], dtype=torch.float64)
    for solver in (DPMSolver(), StochasticRungeKutta(), Heun()):
        with pytest.raises(ValueError, match="says nothing of x_0 where α"):
            solver.solve(Reverse(alone, 0.0), x, torch.tensor([1.0, 0.5]), 0)
        with pytest.raises(ValueError, match=r"α = 0 at t = 1, .* only a first step starts there"):
            solver.solve(Reverse(MIXTURE.score(sde), 0.0), x, twice, 0)
