"""The exponential multistep engine: weights, frames, equalities with published steps, its start and its end."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from torch import Tensor

from scoresde import certify as laboratory
from scoresde import grids
from scoresde.models import as_score
from scoresde.noise import BrownianNoise, IndependentNoise
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sde import EDM, SDE, VE, VP, Cosine, RectifiedFlow
from scoresde.solvers import (
    DDIM,
    DEIS,
    Ancestral,
    DPMSolverPP,
    EulerMaruyama,
    Langevin,
    Multistep,
    PredictorCorrector,
    SASolver,
    Solver,
    UniPC,
)
from scoresde.solvers._frames import frame_of, levels
from scoresde.solvers._multistep import weights
from scoresde.solvers._variables import LOG_SNR, NOISE_LEVEL

SDES: dict[str, SDE] = {"VP": VP(beta_max=10.0, t_min=0.1), "VE": VE(0.3, 5.0), "Cosine": Cosine(T=0.85, t_min=0.1)}
MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]),
    torch.tensor([[0.7, -0.4], [-0.5, 0.6]], dtype=torch.float64),
    torch.tensor([[0.5, 0.2], [0.3, 0.6]], dtype=torch.float64),
)
FRAMES = ["x0", "noise", "v"]
VARIABLES = ["log_snr", "noise_level", "time", "karras", "angle"]


def points(sde: SDE) -> Tensor:
    return torch.tensor([[1.3, -0.8], [-0.5, 1.9]], dtype=torch.float64) * sde.prior_std


def exact(sde: SDE, x: Tensor) -> Tensor:
    """The flow of the mixture's ODE by scipy's DOP853, an integrator that shares no line with ours."""
    process = Reverse(MIXTURE.score(sde), 0.0)

    def rate(t: float, y: Any) -> Any:
        return process.drift(torch.from_numpy(y).reshape(x.shape), t).numpy().ravel()

    done = solve_ivp(rate, (sde.T, sde.t_min), x.numpy().ravel(), method="DOP853", rtol=1e-13, atol=1e-13)
    return torch.from_numpy(done.y[:, -1]).reshape(x.shape)


# ---- weights and frames ----


@pytest.mark.parametrize("variable", [LOG_SNR, NOISE_LEVEL], ids=["h", "noise_level"])
@pytest.mark.parametrize(("predicts", "eta"), [("x0", 0.0), ("x0", 1.3), ("noise", 0.5), ("v", 0.0)])
def test_weights_are_the_integrals_of_lagrange_polynomials(predicts: Any, eta: float, variable: Any) -> None:
    sde = VP()
    frame = frame_of(predicts, eta, 0.7)
    times = torch.tensor([0.6, 0.35], dtype=torch.float64)
    at = levels(sde, times)
    start, end = at.h[:1], at.at(slice(1, 2))
    nodes = torch.tensor([[float(at.h[0]), -2.0, -2.7]], dtype=torch.float64)
    got = weights(frame, start, end, nodes, torch.tensor([3]), variable)[0]
    phi = [float(variable.of_h(v)) for v in nodes[0]]

    def integrand(h: float, j: int) -> float:
        here = torch.tensor([[h]], dtype=torch.float64)
        f = float(variable.of_h(here[0]))
        lagrange = math.prod((f - phi[m]) / (phi[j] - phi[m]) for m in range(3) if m != j)
        return float(frame.kernel(here, end)) * lagrange

    for j in range(3):
        expected, error = quad(integrand, float(start), float(end.h), args=(j,), epsabs=1e-13, epsrel=1e-13)
        # both are quadratures in float64: their rounding, and quad's own estimate of its error
        assert abs(float(got[j]) - expected) < 1e-11 * max(1, abs(expected)) + error


def test_unused_nodes_have_no_weight_and_no_influence() -> None:
    at = levels(VP(), torch.tensor([0.6, 0.35], dtype=torch.float64))
    frame, end = frame_of("x0", 0.0, 1.0), at.at(slice(1, 2))
    for other in (-9.0, -2.0):
        nodes = torch.tensor([[float(at.h[0]), -2.7, other]], dtype=torch.float64)
        got = weights(frame, at.h[:1], end, nodes, torch.tensor([2]), LOG_SNR)
        alone = weights(frame, at.h[:1], end, nodes[:, :2], torch.tensor([2]), LOG_SNR)
        assert torch.equal(got[:, :2], alone) and float(got[0, 2]) == 0.0


@pytest.mark.parametrize("sde", [VP(), VE(), RectifiedFlow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("predicts", FRAMES)
def test_frames_leave_the_probability_flow_ode_unchanged(predicts: Any, sde: SDE) -> None:
    """d/ds of a x_t + ∫ K F at s = t is the drift, whatever the score."""
    t = torch.tensor([0.4 * sde.T, 0.4 * sde.T * (1 - 1e-6)], dtype=torch.float64)
    frame, at = frame_of(predicts, 0.0, 0.7), levels(sde, t)
    before, after = at.at(slice(0, 1)), at.at(slice(1, 2))
    x, score = torch.tensor(1.3, dtype=torch.float64), torch.tensor(-0.8, dtype=torch.float64)
    p, q = frame.combination(before)
    mass = frame.kernel((0.5 * (before.h + after.h))[:, None], after)[:, 0] * (after.h - before.h)
    moved = frame.linear(before, after) * x + mass * (p * x + q * score)
    drift = Reverse(as_score(lambda x, t: score.expand(x.shape), sde), 0.0).drift(x[None], t[0])
    # a difference quotient over 1e-6 of t: second derivatives times that, and rounding over the difference
    torch.testing.assert_close((moved - x) / (t[1] - t[0]), drift, rtol=1e-4, atol=1e-6)


def test_x0_frame_carries_the_law_of_a_point_exactly() -> None:
    """For data at one point x̂_0 is constant: the step at any η must map p_t = N(α_t c, σ_t²) on p_s."""
    at = levels(VP(), torch.tensor([0.9, 0.3], dtype=torch.float64))
    t, s = at.at(slice(0, 1)), at.at(slice(1, 2))
    for eta in (0.0, 0.4, 1.0, 2.0):
        frame = frame_of("x0", eta, 1.0)
        variance = (frame.linear(t, s) * t.sigma) ** 2 + frame.noise(t, s) ** 2
        torch.testing.assert_close(variance, s.sigma**2, rtol=1e-12, atol=0)
        total = weights(frame, t.h, s, t.h[:, None], torch.tensor([1]), LOG_SNR)[:, 0]
        torch.testing.assert_close(frame.linear(t, s) * t.alpha + total, s.alpha, rtol=1e-12, atol=0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_frames_are_the_process_over_a_short_step(eta: float) -> None:
    """Mean and variance of a step of length 1e-6: drift and diffusion of the process itself."""
    sde, short = VP(), 1e-6
    at = levels(sde, torch.tensor([0.4, 0.4 - short], dtype=torch.float64))
    t, s = at.at(slice(0, 1)), at.at(slice(1, 2))
    for predicts in FRAMES:
        frame = frame_of(predicts, eta, 0.7)  # type: ignore[arg-type]
        process = Reverse(MIXTURE.score(sde), eta)
        x = torch.tensor([[0.3, -0.6]], dtype=torch.float64)
        p, q = frame.combination(t)
        weight = weights(frame, t.h, s, t.h[:, None], torch.tensor([1]), LOG_SNR)[:, 0]
        moved = frame.linear(t, s) * x + weight * (p * x + q * process.score(x, t.t[0]))
        # relative error of first order in the step's length, times a few second derivatives
        torch.testing.assert_close((moved - x) / -short, process.drift(x, t.t[0]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(frame.noise(t, s) ** 2 / short, process.diffusion(t.t) ** 2, rtol=1e-4, atol=0)


@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
def test_v_frame_keeps_the_law_of_the_gaussian_of_its_scale(eta: float) -> None:
    """With v̂ = 0 a step maps N(0, N_t²) on N(0, N_s²), N² = α² σ_data² + σ², at any η and length."""
    at = levels(VP(), torch.tensor([0.9, 0.01], dtype=torch.float64))
    t, s = at.at(slice(0, 1)), at.at(slice(1, 2))
    frame = frame_of("v", eta, 0.7)
    before, after = ((0.49 * level.alpha**2 + level.sigma**2) for level in (t, s))
    assert float(frame.noise(t, s)) > 0
    torch.testing.assert_close(frame.linear(t, s) ** 2 * before + frame.noise(t, s) ** 2, after, rtol=1e-12, atol=0)


@pytest.mark.parametrize("history", [1, 3])
def test_v_frame_is_exact_on_the_gaussian_of_its_scale(history: int) -> None:
    """v̂ = 0 for N(0, σ_data² I): any number of steps, any method, no error."""
    sde, scale = VP(), 0.7
    data = Gaussian(torch.zeros(2, dtype=torch.float64), scale**2)
    x = points(sde)
    solver = Multistep(history, predicts="v", sigma_data=scale)
    end = solver.solve(Reverse(data.score(sde), 0.0), x, grids.log_snr(sde, 3)).x
    # α² 0.49 + σ² - σ² loses digits where σ is small: rounding times 1/σ(t_min)²
    torch.testing.assert_close(end, data.flow(sde, x, sde.T, sde.t_min), rtol=1e-9, atol=1e-10)


# ---- equalities with published steps ----


def run(solver: Solver, sde: SDE, eta: float = 0.0, steps: int = 8, seed: int = 0, grid: Any = None) -> Tensor:
    times = grids.log_snr(sde, steps) if grid is None else grid
    return solver.solve(Reverse(MIXTURE.score(sde), eta), points(sde), times, IndependentNoise(seed)).x


@pytest.mark.parametrize("solver", [DPMSolverPP(1), DEIS(1), DEIS(1, "noise_level"), Multistep(1, False)], ids=repr)
def test_order_one_is_ddim(solver: Solver) -> None:
    # the same step with its sums in another order
    torch.testing.assert_close(run(solver, VP()), run(DDIM(), VP()), rtol=1e-11, atol=1e-12)


def test_sde_dpm_solver_of_order_one_is_ancestral_sampling() -> None:
    torch.testing.assert_close(run(DPMSolverPP(1), VP(), 1.0), run(Ancestral(), VP(), 1.0), rtol=1e-11, atol=1e-12)


def test_second_order_step_is_the_textbooks_to_leading_order() -> None:
    """Lu et al. 2022, Alg. 2 on equal steps in h: x_s = (σ_s/σ_t) x - α_s (e^{-Δ} - 1)(3/2 D_0 - 1/2 D_1).

    Exact integration has weights on D_1 of -(Δ + e^{-Δ} - 1)/Δ instead of -(1 - e^{-Δ})/2: equal up to Δ²/12.
    """
    sde = VP()
    grid = grids.log_snr(sde, 40)
    at = levels(sde, grid)
    length = float(at.h[6] - at.h[5])
    row = DPMSolverPP(2).plan(Reverse(MIXTURE.score(sde), 0.0), grid)[5]
    one, two = (w * float(at.alpha[k]) / float(at.alpha[6]) for w, k in zip(row.weights, (5, 4), strict=True))
    assert abs(one - (1 + two * -1 - math.exp(-length))) < 1e-12, "the weights sum to 1 - e^{-Δ}"
    assert abs(two + (length + math.exp(-length) - 1) / length) < 1e-12
    assert abs(two + 0.5 * (1 - math.exp(-length))) < length**2 / 10


def test_adams_bashforth_weights_on_equal_steps() -> None:
    """EDM's ODE in t = σ̃ on a uniform grid with ε̂ polynomial in σ̃ is Adams-Bashforth: 23/12, -16/12, 5/12."""
    sde = EDM(t_min=0.5, T=4.0)
    row = DEIS(3, "noise_level").plan(Reverse(MIXTURE.score(sde), 0.0), grids.uniform(sde, 10))[5]
    sigma, step = grids.uniform(sde, 10), -0.35
    found = [w / (-float(sigma[5 - j]) * step) for j, w in enumerate(row.weights)]
    np.testing.assert_allclose(found, [23 / 12, -16 / 12, 5 / 12], rtol=1e-10)


@pytest.mark.parametrize("sde", [VP(), Cosine()], ids=["VP", "Cosine"])
def test_schedules_with_the_same_noise_levels_give_the_same_run(sde: SDE) -> None:
    """In x/α and σ/α the ODE knows no schedule: the same levels under EDM give the same x/α."""
    grid = grids.log_snr(sde, 7)
    levels_of = sde.sigma(grid) / sde.alpha(grid)
    edm = EDM(T=float(levels_of[0]), t_min=float(levels_of[-1]))
    x = points(sde)
    for solver in (UniPC(3), DEIS(3, "noise_level"), Multistep(3, predicts="v", interpolates="angle")):
        ours = solver.solve(Reverse(MIXTURE.score(sde), 0.0), x, grid).x / sde.alpha(grid[-1])
        theirs = solver.solve(Reverse(MIXTURE.score(edm), 0.0), x / sde.alpha(grid[0]), levels_of).x
        # log-SNR and back lose a few roundings; the chaos of 7 large steps makes them a little larger
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


# ---- the start, the corrector, the end ----


def orders(solver: Solver, sde: SDE, counts: tuple[int, int, int]) -> list[float]:
    x = points(sde)
    end = exact(sde, x)
    process = Reverse(MIXTURE.score(sde), 0.0)
    errors = [float((solver.solve(process, x, grids.log_snr(sde, n)).x - end).norm()) for n in counts]
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


@pytest.mark.parametrize(("predictor", "extra"), [(1, 0), (2, 0), (3, 3), (4, 8)])
def test_full_start_costs_what_is_said(predictor: int, extra: int) -> None:
    sde = VP()
    solution = UniPC(predictor).solve(Reverse(MIXTURE.score(sde), 0.0), points(sde), grids.log_snr(sde, 10))  # type: ignore[arg-type]
    assert solution.nfe == 10 + extra
    free = dataclasses.replace(UniPC(predictor), full_start=False)  # type: ignore[arg-type]
    assert free.solve(Reverse(MIXTURE.score(sde), 0.0), points(sde), grids.log_snr(sde, 10)).nfe == 10
    assert free.order == min(3, predictor + 1)


def test_full_start_keeps_an_order_that_a_free_start_loses() -> None:
    """From where F varies fast, the first steps' errors dominate: order 5 with the start, about 3 without."""
    sde = VE(0.3, 2.0)
    x = torch.tensor([[0.3, -0.2], [-0.1, 0.5]], dtype=torch.float64)
    end, process = exact(sde, x), Reverse(MIXTURE.score(sde), 0.0)

    def slope(solver: Solver) -> float:
        a, b = (float((solver.solve(process, x, grids.log_snr(sde, n)).x - end).norm()) for n in (24, 48))
        return math.log2(a / b)

    # 0.5: not asymptotic, but nearer to its own order than to the other's
    assert abs(slope(UniPC(4)) - 5) < 0.5
    assert abs(slope(UniPC(4, full_start=False)) - 3) < 0.5


@pytest.mark.parametrize("history", [2, 3])
def test_first_step_is_corrected_for_free(history: int) -> None:
    """Without the change that the second evaluation brings to the first step, order 3 would show 2."""
    solver = Multistep(history, correct=False)
    sde = VE(0.3, 2.0)
    plan = solver.plan(Reverse(MIXTURE.score(sde), 0.0), grids.log_snr(sde, 4))
    uncorrected = Multistep(1, correct=False).plan(Reverse(MIXTURE.score(sde), 0.0), grids.log_snr(sde, 4))
    # the first step itself is Euler's, to the rounding of another summation
    torch.testing.assert_close(plan[0].weights, uncorrected[0].weights, rtol=1e-14, atol=0)
    assert len(plan[1].weights) == 2


def test_corrector_reaches_one_order_more() -> None:
    with_it = orders(Multistep(2, True), SDES["VE"], (24, 48, 96))
    without = orders(Multistep(2, False), SDES["VE"], (24, 48, 96))
    # 0.1: the bar of the claims, on steps where the next order is small
    assert abs(with_it[-1] - 3) < 0.1 and abs(without[-1] - 2) < 0.1


@pytest.mark.parametrize("predicts", FRAMES)
@pytest.mark.parametrize("variable", VARIABLES)
def test_every_form_has_its_order(predicts: Any, variable: Any) -> None:
    solver = Multistep(2, True, predicts, variable)
    coarse, fine = orders(solver, SDES["VE"], (32, 64, 128))
    # extrapolated, as in the laboratory; the bar of a claim
    assert abs(2 * fine - coarse - 3) < 0.15


@pytest.mark.parametrize("predicts", FRAMES)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_end_without_noise_is_the_denoised_state(predicts: Any, steps: int) -> None:
    """A grid that ends at σ = 0: its last step must be E[x_0 | x] of the run that ends one time earlier."""
    sde = EDM(t_min=0.0)
    grid = grids.karras(sde, steps)
    process = Reverse(MIXTURE.score(sde), 0.0)
    solver = Multistep(1, False, predicts)
    end = solver.solve(process, points(sde), grid).x
    before = solver.solve(process, points(sde), grid[:-1]).x if steps > 1 else points(sde)
    torch.testing.assert_close(end, process.score.denoise(before, grid[-2]), rtol=1e-10, atol=1e-11)
    full = Multistep(3, True, predicts, full_start=True).solve(process, points(sde), grid).x
    assert bool(full.isfinite().all())


def test_langevin_moves_between_steps_survive_the_correction() -> None:
    """The corrector is a change of x, not a new x: what a Langevin step added must stay."""

    @dataclasses.dataclass(frozen=True)
    class Push:
        def correct(self, process: Reverse, x: Tensor, t: Tensor, noise: Any) -> Tensor:
            return x + 1.0

    sde = VE()
    point = Gaussian(torch.zeros(2, dtype=torch.float64), 1e-12)
    # data at 0: x̂_0 = 0, every method is x_s = (σ_s/σ_t) x, and a push adds (σ_end/σ_s)
    grid = grids.log_snr(sde, 4)
    solution = PredictorCorrector(UniPC(2), Push()).solve(Reverse(point.score(sde), 0.0), points(sde), grid, 0)
    sigma = sde.sigma(grid)
    expected = sigma[-1] / sigma[0] * points(sde) + (sigma[-1] / sigma[1:]).sum()
    # x̂_0 is 1e-12/σ² of x, not 0: at σ = 0.01 1e-8
    torch.testing.assert_close(solution.x, expected, rtol=1e-7, atol=1e-7)
    assert (
        PredictorCorrector(UniPC(2), Langevin())
        .solve(Reverse(MIXTURE.score(sde), 0.0), points(sde), grid, 0)
        .x.isfinite()
        .all()
    )


# ---- noise ----


def test_exponential_solvers_and_euler_reach_the_same_end_on_one_path() -> None:
    """Differences between methods at equal steps shrink like the steps (strong order 1 of each)."""
    sde = SDES["VP"]
    process = Reverse(MIXTURE.score(sde), 1.0)
    x = sde.prior_sample((128, 2), 3, dtype=torch.float64)
    solvers = [EulerMaruyama(), DPMSolverPP(1), DPMSolverPP(2), SASolver(2), DDIM()]
    gaps = []
    for steps in (16, 64):
        ends = [s.solve(process, x, grids.uniform(sde, steps), BrownianNoise(7, sde.T)).x for s in solvers]
        gaps.append([float((end - ends[0]).norm() / len(x) ** 0.5) for end in ends[1:]])
    # four times the steps: a factor 4 at order 1; 3 leaves room for what 16 steps are from the asymptotic regime
    assert all(coarse > 3 * fine for coarse, fine in zip(*gaps, strict=True)), gaps
    assert max(gaps[1]) < 0.2


@pytest.mark.parametrize(
    "solver", [DPMSolverPP(2), SASolver(2), UniPC(3), DEIS(2), Multistep(2, predicts="v")], ids=repr
)
@pytest.mark.parametrize("eta", [0.3, 1.0, 1.5])
def test_every_eta_runs_and_has_the_right_variance(solver: Solver, eta: float) -> None:
    """On a Gaussian the end law of 200 steps is right to the second order in the steps."""
    sde = VP(t_min=0.01)
    data = Gaussian(torch.zeros(1, dtype=torch.float64), 0.49)
    x = sde.prior_sample((20000, 1), 1, dtype=torch.float64)
    end = solver.solve(Reverse(data.score(sde), eta), x, grids.log_snr(sde, 200), 2).x
    expected = 0.49 * float(sde.alpha(0.01)) ** 2 + float(sde.sigma(0.01)) ** 2
    # 20000 samples: the variance's standard error is 1 %; 4 of them
    assert abs(float(end.var()) / expected - 1) < 0.04


# ---- dtypes, odd inputs, gradients ----


@pytest.mark.parametrize("solver", [DPMSolverPP(3), UniPC(2), DEIS(3), SASolver(2), Multistep(4)], ids=repr)
def test_dtypes_and_shapes(solver: Solver) -> None:
    sde = VP()
    data = GaussianMixture(torch.ones(2), torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1), 0.1)
    process = Reverse(data.score(sde), solver.default_eta)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.ones(3, 1, 1, 1, dtype=dtype)
        for steps in (1, 2, 3, 9):
            end = solver.solve(process, x, grids.log_snr(sde, steps), 0).x
            assert end.dtype == dtype and end.shape == x.shape and bool(end.isfinite().all())
    assert solver.solve(process, torch.ones(0, 1, 1, 1), grids.log_snr(sde, 4), 0).x.shape == (0, 1, 1, 1)


@pytest.mark.parametrize("solver", [DPMSolverPP(2), UniPC(3), DEIS(2), Multistep(2, predicts="v")], ids=repr)
def test_gradients_through_state_and_grid(solver: Solver) -> None:
    sde = VP()

    def end(x: Tensor, inner: Tensor) -> Tensor:
        grid = torch.cat([torch.tensor([1.0]), inner, torch.tensor([0.01])])
        return solver.solve(Reverse(MIXTURE.score(sde), 0.0), x, grid).x

    x = points(sde).requires_grad_()
    inner = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(end, (x, inner), eps=1e-6, atol=1e-5, rtol=1e-4)


def test_a_plan_is_the_same_in_numbers_and_in_tensors() -> None:
    sde, solver = VP(), UniPC(3)
    process = Reverse(MIXTURE.score(sde), 0.0)
    plain = solver.solve(process, points(sde), grids.log_snr(sde, 6)).x
    tracked = solver.solve(process, points(sde), grids.log_snr(sde, 6).requires_grad_()).x
    torch.testing.assert_close(tracked, plain, rtol=1e-10, atol=1e-12)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="history"):
        Multistep(0)
    with pytest.raises(ValueError, match="at most 8"):
        Multistep(9)
    with pytest.raises(ValueError, match="sigma_data"):
        Multistep(2, predicts="v", sigma_data=0.0)
    for wrong in (
        lambda: Multistep(predicts="score"),  # type: ignore[arg-type]
        lambda: Multistep(interpolates="h"),  # type: ignore[arg-type]
        lambda: DPMSolverPP(4),  # type: ignore[arg-type]
        lambda: DEIS(5),  # type: ignore[arg-type]
        lambda: DEIS(2, "h"),  # type: ignore[arg-type]
        lambda: UniPC(0),  # type: ignore[arg-type]
        lambda: UniPC(2, "v"),  # type: ignore[arg-type]
        lambda: SASolver(4),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="must be one of"):
            wrong()


@pytest.mark.parametrize("solver", [DDIM(), DPMSolverPP(), DEIS(), UniPC(), SASolver(), Multistep()], ids=repr)
def test_a_start_without_signal_is_refused_with_its_reason(solver: Solver) -> None:
    """A score alone says nothing of x_0 there; and from a second such time nothing starts, whatever is known."""
    sde = RectifiedFlow()
    alone = as_score(MIXTURE.score(sde).__call__, sde)
    grid = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    with pytest.raises(ValueError, match="says nothing of x_0 where α"):
        solver.solve(Reverse(alone, solver.default_eta), points(sde), grid, 0)
    with pytest.raises(ValueError, match=r"α = 0 at t = 1, .* only a first step starts there"):
        run(solver, sde, solver.default_eta, grid=torch.tensor([1.0, 1 - 1e-9, 0.1], dtype=torch.float64))


def test_switches_must_be_switches() -> None:
    for wrong in (lambda: Multistep(3, 2, full_start=True), lambda: UniPC(full_start="no")):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="must be True or False"):
            wrong()
    with pytest.raises(ValueError, match="sigma_data must be positive"):
        Multistep(interpolates="angle", sigma_data=-1.0)


@pytest.mark.parametrize("predicts", FRAMES)
def test_the_evaluation_before_a_clean_end_corrects_the_step_that_led_to_it(predicts: Any) -> None:
    """The last step, to σ = 0, starts from the corrected state: as if that state had been computed first."""
    sde = EDM(t_min=0.0, T=2.0)
    grid = torch.tensor([2.0, 1.0, 0.4, 0.0], dtype=torch.float64)
    process = Reverse(MIXTURE.score(sde), 0.0)
    solver = Multistep(2, True, predicts)
    x = points(EDM(T=2.0))
    end = solver.solve(process, x, grid).x
    # the state at 0.4 corrected by hand: c x, and the weights through F at 0.4, 1.0 and 2.0
    predicted = [x, *solver.solve(process, x, grid[:-1], trajectory=True).trajectory[1:]]  # type: ignore[index]
    frame, at = frame_of(predicts, 0.0, 1.0), levels(sde, grid[:-1])

    def value(i: int) -> Tensor:
        p, q = frame.combination(at.at(slice(i, i + 1)))
        return p * predicted[i] + q * process.score(predicted[i], grid[i])

    def step(i: int, state: Tensor, nodes: list[int]) -> Tensor:
        t, s = at.at(slice(i, i + 1)), at.at(slice(i + 1, i + 2))
        w = weights(frame, t.h, s, at.h[nodes][None], torch.tensor([len(nodes)]), LOG_SNR)[0]
        return frame.linear(t, s) * state + sum(a * value(n) for a, n in zip(w, nodes, strict=True))

    first = step(0, x, [1, 0])
    corrected = step(1, first, [2, 1, 0])
    (keep,), (weight,) = (c for c in frame.to_data(at.at(slice(2, 3)), levels(sde, grid[-1:])))
    # the same sums in another order
    torch.testing.assert_close(end, keep * corrected + weight * value(2), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("sde", [VP(), EDM(), RectifiedFlow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("predicts", "eta"), [("x0", 0.0), ("x0", 1.0), ("x0", 3.0), ("noise", 1.0)])
def test_one_step_over_everything_has_the_exact_integral(predicts: Any, eta: float, sde: SDE) -> None:
    """∫ K dh in closed form: α_s (1 - e^{-kΔ}) for the data's kernel, k α_s (σ̃_s - σ̃_t) for the noise's."""
    at = levels(sde, torch.tensor([sde.T, sde.t_min], dtype=torch.float64))
    t, s = at.at(slice(0, 1)), at.at(slice(1, 2))
    got = weights(frame_of(predicts, eta, 1.0), t.h, s, t.h[:, None], torch.tensor([1]), LOG_SNR)[0, 0]
    k = 1 + eta**2
    data = s.alpha * -torch.expm1(-k * (s.h - t.h))
    noise = k * s.alpha * (s.sigma / s.alpha - t.sigma / t.alpha)
    torch.testing.assert_close(got, (data if predicts == "x0" else noise)[0], rtol=1e-11, atol=0)


def test_v_weights_of_one_step_are_exact() -> None:
    """At η = 0 ∫ K dh is N_s times the angle between the ends, however long the step."""
    sde = RectifiedFlow()
    at = levels(sde, torch.tensor([sde.T, sde.t_min], dtype=torch.float64))
    t, s = at.at(slice(0, 1)), at.at(slice(1, 2))
    got = weights(frame_of("v", 0.0, 1.0), t.h, s, t.h[:, None], torch.tensor([1]), LOG_SNR)[0, 0]
    angle = torch.atan(s.sigma / s.alpha) - torch.atan(t.sigma / t.alpha)
    norm = (s.alpha**2 + s.sigma**2).sqrt()
    # 64 nodes: ρ^{-128} = 4e-13 over 13.8 in h
    torch.testing.assert_close(got, (norm * angle)[0], rtol=1e-11, atol=0)


def test_the_order_in_law_holds_on_curved_scores_too() -> None:
    """What Gaussian data cannot show: expectations on a mixture, by coupled Monte Carlo."""
    found = laboratory.weak_order_sampled(DPMSolverPP(2), laboratory.LAW["SubVP"], 1.0, steps=8)
    # eight steps are 0.2 from the limit; 1.5 is nearer to order 1 than to 2
    assert found.low > 1.5


def test_steps_at_other_times_than_planned_are_planned_anew_or_refused() -> None:
    sde = VP()
    process, noise, grid = Reverse(MIXTURE.score(sde), 0.0), IndependentNoise(0), grids.log_snr(sde, 4)
    x, state = DDIM().start(process, points(sde), grid, noise)
    halfway = 0.5 * (grid[0] + grid[1])
    moved, _ = DDIM().step(process, x, grid[0], halfway, noise, state)
    expected = DDIM().solve(process, x, torch.stack([grid[0], halfway])).x
    torch.testing.assert_close(moved, expected, rtol=0, atol=0)
    x, state = UniPC().start(process, points(sde), grid, noise)
    x, state = UniPC().step(process, x, grid[0], grid[1], noise, state)
    with pytest.raises(ValueError, match="remembers the steps of its grid"):
        UniPC().step(process, x, grid[1], grid[1] - 0.01, noise, state)
