"""torchdiffeq and torchsde as solvers: the same equations, the same paths, their methods, gradients and failures."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
import torchsde
from torch import Tensor, nn
from torchdiffeq._impl.odeint import SOLVERS

from scoresde import grids
from scoresde.guidance import classifier, classifier_free
from scoresde.models import ScoreModel, as_score
from scoresde.noise import BrownianNoise, IndependentNoise, Noise, PerSampleNoise
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sde import EDM, SDE, VE, VP, Cosine, LinearSDE, RectifiedFlow, SubVP
from scoresde.solvers import (
    EulerMaruyama,
    Heun,
    IncompleteWarning,
    ProbabilityFlow,
    Solution,
    Solver,
    TorchSDE,
    sde_backend,
)

FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
ADAPTIVE = ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"]
ADAMS = ["explicit_adams", "implicit_adams", "fixed_adams"]
SDE_METHODS = sde_backend._ITO + sde_backend._STRATONOVICH
WITHOUT_AREAS = [m for m in SDE_METHODS if m not in sde_backend._AREA]

DATA = Gaussian(torch.tensor([0.7, -0.4], dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64))
MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]), torch.tensor([[1.0, 0.5], [-1.0, 0.0]], dtype=torch.float64), torch.tensor([0.1, 0.3])
)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ode(sde: SDE, problem: GaussianMixture = DATA) -> Reverse:
    return Reverse(problem.score(sde), eta=0.0)


# ---- torchdiffeq ----


def test_every_method_of_torchdiffeq_is_tried_here() -> None:
    assert set(SOLVERS) == {*FIXED, *ADAPTIVE, *ADAMS, "scipy_solver"}


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("sde", [VP(beta_max=10.0, t_min=0.1), SubVP(beta_max=8.0, t_min=0.2)], ids=str)
def test_fixed_steps_have_the_order_of_their_method_on_our_grid(method: str, sde: SDE) -> None:
    """A grid with unequal steps: were they taken anywhere else, the order would be lost."""
    x = normals(3, 2) * sde.prior_std
    exact, errors = DATA.flow(sde, x, sde.T, sde.t_min), []
    for steps in (32, 64, 128):
        solution = ProbabilityFlow(method).solve(ode(sde), x, grids.karras(sde, steps))
        errors.append(float((solution.x - exact).norm()))
    a, b = math.log2(errors[0] / errors[1]), math.log2(errors[1] / errors[2])
    # 0.1 on the slope extrapolated to small steps, as in test_orders
    assert abs(2 * b - a - FIXED[method]) < 0.1


def test_fixed_euler_is_ours() -> None:
    sde = Cosine()
    x, grid = normals(3, 2) * sde.prior_std, grids.karras(sde, 9)
    a = ProbabilityFlow("euler").solve(ode(sde), x, grid, trajectory=True)
    b = EulerMaruyama().solve(ode(sde), x, grid, trajectory=True)
    assert a.trajectory is not None and b.trajectory is not None and a.nfe == b.nfe == 9
    # the same sums in another order
    torch.testing.assert_close(a.trajectory, b.trajectory, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", [*ADAPTIVE, *ADAMS, "scipy_solver"])
@pytest.mark.parametrize("sde", [SubVP(), VE(0.05, 20.0)], ids=lambda s: type(s).__name__)
def test_other_methods_reach_the_exact_end_in_decreasing_time(method: str, sde: SDE) -> None:
    x = normals(3, 2) * sde.prior_std
    # torchdiffeq's Adams methods would go up to order 12, which is unstable at such steps
    options, tolerance = {"max_order": 4} if method in ADAMS else {}, 1e-6 if method == "fehlberg2" else 1e-5
    solver = ProbabilityFlow(method, rtol=tolerance, atol=tolerance, options=options)
    grid = grids.uniform(sde, 80) if method in ADAMS else grids.log_snr(sde, 4)
    solution = solver.solve(ode(sde), x, grid, trajectory=True)
    exact = DATA.flow(sde, x, sde.T, sde.t_min)
    # Adaptive: the tolerance is local; over some hundreds of steps (in the methods of order 2) it accumulates by tens.
    # Adams: fourth order, 80 steps of a coefficient that changes by e^6 over the run.
    torch.testing.assert_close(solution.x, exact, rtol=2e-3, atol=2e-3)
    assert solution.trajectory is not None and torch.equal(solution.trajectory[0], x)
    for t, state in zip(solution.grid, solution.trajectory, strict=True):
        between = DATA.flow(sde, x, sde.T, t)
        # inner times of adaptive methods are read off an interpolant of order 4 at most
        torch.testing.assert_close(state, between, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "sde", [VP(), VE(), EDM(), Cosine(), LinearSDE(lambda t: -t, lambda t: 1 + t)], ids=lambda s: type(s).__name__
)
def test_adaptive_ends_equal_scipy(sde: SDE) -> None:
    score, x = MIXTURE.score(sde), normals(2, 2) * sde.prior_std

    def rate(t: float, y: np.ndarray) -> np.ndarray:
        state, time = torch.from_numpy(y).reshape(2, 2), torch.tensor(t, dtype=torch.float64)
        return (sde.f(time) * state - 0.5 * sde.g(time) ** 2 * score(state, time)).flatten().numpy()

    tight = {"rtol": 1e-9, "atol": 1e-9}
    out = scipy.integrate.solve_ivp(rate, (sde.T, sde.t_min), x.flatten().numpy(), method="DOP853", **tight)
    got = ProbabilityFlow(**tight).solve(ode(sde, MIXTURE), x, torch.tensor([sde.T, sde.t_min]).double()).x
    # Both are within the tolerance times the number of steps and the flow's expansion, here up to some hundreds.
    torch.testing.assert_close(got, torch.from_numpy(out.y[:, -1]).reshape(2, 2), rtol=1e-6, atol=1e-6)


def test_each_tolerance_counts() -> None:
    sde = VP()
    x, grid = normals(3, 2), torch.tensor([1.0, 1e-3], dtype=torch.float64)
    nfe = {
        (r, a): ProbabilityFlow(rtol=r, atol=a).solve(ode(sde), x, grid).nfe
        for r, a in [(1e-8, 1e-8), (1e-3, 1e-8), (1e-8, 1e-3), (1e-3, 1e-3)]
    }
    assert nfe[1e-8, 1e-8] > max(nfe[1e-3, 1e-8], nfe[1e-8, 1e-3]) >= nfe[1e-3, 1e-3]


def test_adaptive_steps_do_not_depend_on_the_grid_between_its_ends() -> None:
    sde = VP()
    x = normals(3, 2)
    a = ProbabilityFlow().solve(ode(sde), x, torch.tensor([1.0, 1e-3], dtype=torch.float64))
    b = ProbabilityFlow().solve(ode(sde), x, grids.uniform(sde, 50, t_end=1e-3))
    assert torch.equal(a.x, b.x) and a.nfe == b.nfe


def test_options_reach_the_method() -> None:
    sde = VP()
    x, ends = normals(3, 2), torch.tensor([1.0, 0.1], dtype=torch.float64)
    half = ProbabilityFlow("euler", options={"step_size": 0.45}).solve(ode(sde), x, ends)
    assert half.nfe == 2
    assert ProbabilityFlow(options={"max_step": 0.01}).solve(ode(sde), x, ends).nfe >= 6 * 90


def test_an_adaptive_solver_never_asks_outside_the_grid() -> None:
    """Past the ends the SDE may not exist, as for a flow that starts at T and ends at 0."""
    sde, asked = RectifiedFlow(T=0.9), []
    score = DATA.score(sde)

    def listening(x: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t))
        return score(x, t)

    for method in [*ADAPTIVE, *FIXED]:
        ProbabilityFlow(method).solve(
            Reverse(as_score(listening, sde), 0.0), normals(2, 2), torch.tensor([0.9, 0.05, 0.0], dtype=torch.float64)
        )
    assert min(asked) >= 0.0 and max(asked) <= 0.9


def test_adams_methods_refuse_unequal_steps() -> None:
    """torchdiffeq's coefficients are those of equal steps: anything else would silently be inconsistent."""
    for method in ADAMS:
        with pytest.raises(ValueError, match="equal steps"):
            ProbabilityFlow(method).solve(ode(VP()), normals(2, 2), grids.log_snr(VP(), 9))


def attempted(score: Callable[[Tensor, Tensor], Tensor], **options: Any) -> Solution:
    return ProbabilityFlow(**options).solve(
        Reverse(as_score(score, VP()), 0.0), torch.ones(2, 2).double(), torch.tensor([1.0, 0.1])
    )


@pytest.mark.parametrize(
    ("score", "options", "why"),
    [
        (lambda x, t: -x, {"options": {"max_num_steps": 2}}, r"max_num_steps'\] = 2 was reached"),
        (lambda x, t: -x, {"max_steps": 2}, "max_steps = 2 was reached"),
        (lambda x, t: 1e14 * torch.sin(1e20 * t) * torch.ones_like(x), {}, "shrank to nothing"),
    ],
)
def test_a_run_that_gives_up_is_partial_and_says_why(score: Any, options: dict[str, Any], why: str) -> None:
    with pytest.warns(IncompleteWarning, match=why) as caught:
        solution = attempted(score, **options)
    assert len(caught) == 1 and not solution.complete and bool(solution.x.isfinite().all())
    assert solution.reached is not None and bool((solution.reached > 0.1).all())


def test_a_partial_state_is_that_at_the_time_reached() -> None:
    sde, x, grid = VP(), normals(3, 2), grids.log_snr(VP(), 12)
    tight = {"rtol": 1e-8, "atol": 1e-8}
    with pytest.warns(IncompleteWarning, match="max_steps = 15"):
        solution = ProbabilityFlow(max_steps=15, **tight).solve(ode(sde), x, grid, trajectory=True)
    assert solution.reached is not None and solution.trajectory is not None
    t = solution.reached[0]
    assert sde.t_min < float(t) < 0.9
    exact = DATA.flow(sde, x, sde.T, t)
    torch.testing.assert_close(solution.x, exact, rtol=1e-6, atol=1e-6)  # 15 steps of 1e-8
    for time, state in zip(grid, solution.trajectory, strict=True):
        # before, the last state that was accepted: nearer to the start, and never one from further on
        if time <= t:
            assert torch.equal(state, solution.x)
    whole = ProbabilityFlow(max_steps=2000, **tight).solve(ode(sde), x, grid)
    assert whole.complete and whole.reached is not None and bool((whole.reached == grid[-1]).all())


def test_scores_that_are_no_number() -> None:
    for score in (lambda x, t: x * math.nan, lambda x, t: x * (math.nan if float(t) < 0.4 else -1.0)):
        for method in ("dopri5", "rk4"):
            with pytest.raises(FloatingPointError, match="NaN"):
                attempted(score, method=method)
    with pytest.raises(FloatingPointError, match=r"near t = 0\.4"):
        attempted(lambda x, t: x * (math.nan if float(t) < 0.4 else -1.0))


def test_what_a_score_raises_comes_out_as_it_is() -> None:
    """An assertion of the score's own is not one of torchdiffeq's."""

    def broken(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("mine")

    for method in ("dopri5", "rk4", "scipy_solver"):
        with pytest.raises(AssertionError, match="mine"):
            attempted(broken, method=method)


def test_a_tolerance_that_the_dtype_cannot_resolve_is_refused() -> None:
    process, ends = Reverse(DATA.score(VP()), 0.0), torch.tensor([1.0, 0.5])
    with pytest.raises(ValueError, match=r"rtol = 1e-14 .*float32 .* x in float64"):
        ProbabilityFlow(rtol=1e-14).solve(process, normals(2, 2).float(), ends)
    with pytest.raises(ValueError, match="rtol = 1e-18"):
        ProbabilityFlow(rtol=1e-18).solve(process, normals(2, 2), ends)
    assert ProbabilityFlow(rtol=1e-14, max_steps=10000).solve(process, normals(2, 2), ends).complete


def test_a_step_size_makes_no_more_steps_than_the_limit() -> None:
    with pytest.raises(ValueError, match=r"step_size.*more steps"):
        attempted(lambda x, t: -x, method="euler", options={"step_size": 1e-9})


# ---- gradients of both ----


class Net(nn.Module):
    """A small smooth network in float64, without global randomness."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 6, dtype=torch.float64), nn.Linear(6, 2, dtype=torch.float64)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(0.5 * normals(*p.shape, seed=i))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(torch.cat([x, c[:, None].to(x)], 1))))


def gradients(solver: Solver, bound: bool, eta: float, steps: int, noise: Noise | None) -> tuple[Tensor, Tensor]:
    """Of a random direction of the end, in x and in all parameters."""
    sde = VP(t_min=0.05)
    model = ScoreModel(Net(), sde, "v")
    x = normals(4, 2, seed=7).requires_grad_(True)
    process = Reverse(model.bind() if bound else model, eta)
    end = solver.solve(process, x, grids.uniform(sde, steps), noise).x
    inputs = [x, *model.parameters()]
    grads = torch.autograd.grad((end * normals(4, 2, seed=8)).sum(), inputs)
    return grads[0], torch.cat([g.flatten() for g in grads[1:]])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("bound", [True, False])
def test_ode_adjoint_gradients_equal_direct_ones(bound: bool) -> None:
    tight = {"rtol": 1e-6, "atol": 1e-6}
    direct = gradients(ProbabilityFlow(**tight), bound, 0.0, 2, None)
    adjoint = gradients(ProbabilityFlow(**tight, adjoint=True), bound, 0.0, 2, None)
    for a, b in zip(adjoint, direct, strict=True):
        assert relative(a, b) < 1e-4  # tolerance of both solves, accumulated over some tens of steps


def test_adjoint_gradients_reach_parameters_through_guidance() -> None:
    class Conditional(Net):
        null_conditions = {"label": 0}  # noqa: RUF012

        def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, c) * (1 + 0.3 * label[:, None])

    def gradients(adjoint: bool) -> list[Tensor]:
        sde = VP(t_min=0.3)
        model = ScoreModel(Conditional(), sde, "v")
        score = classifier(classifier_free(model, {"label": 1}, 2.0), lambda x, t: -0.5 * x.square().sum(1), 0.5)
        solver = ProbabilityFlow(rtol=1e-6, atol=1e-6, adjoint=adjoint)
        end = solver.solve(Reverse(score, 0.0), normals(3, 2), torch.tensor([1.0, 0.3])).x
        return list(torch.autograd.grad(end.square().sum(), list(model.parameters())))

    for a, b in zip(gradients(True), gradients(False), strict=True):
        assert relative(a, b) < 1e-4  # tolerance of both solves


class Classifier(nn.Module):
    """log p(y | x) with a parameter, apart from the score's."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return -self.scale * x.square().sum(1)


@pytest.mark.parametrize(
    "hidden", [lambda c: c, functools.partial, lambda c: c.forward], ids=["module", "partial", "method"]
)
@pytest.mark.parametrize("kind", ["ode", "sde"])
def test_adjoint_gradients_reach_a_classifier(kind: str, hidden: Any) -> None:
    def gradients(adjoint: bool) -> list[Tensor]:
        sde = VP(t_min=0.3)
        model, judge = ScoreModel(Net(), sde, "v"), Classifier()
        score = classifier(model, hidden(judge), 0.5)
        solver: Solver = TorchSDE("reversible_heun", adjoint=adjoint)
        if kind == "ode":
            solver = ProbabilityFlow(rtol=1e-6, atol=1e-6, adjoint=adjoint)
        grid = grids.uniform(sde, 8)
        end = solver.solve(Reverse(score, 0.0 if kind == "ode" else 1.0), normals(3, 2), grid, 5).x
        return list(torch.autograd.grad(end.square().sum(), [judge.scale, *model.parameters()]))

    for a, b in zip(gradients(True), gradients(False), strict=True):
        assert relative(a, b) < 1e-4  # tolerance of both ODE solves; reversible_heun's adjoint is exact


@pytest.mark.parametrize(("method", "path"), [("euler", False), ("midpoint", False), ("reversible_heun", True)])
def test_sde_adjoint_gradients_approach_direct_ones(method: str, path: bool) -> None:
    noise = (lambda: BrownianNoise(3, T=1.0)) if path else (lambda: PerSampleNoise(3))
    errors = []
    for steps in (10, 40):
        direct = gradients(TorchSDE(method), False, 1.0, steps, noise())
        adjoint = gradients(TorchSDE(method, adjoint=True), path, 1.0, steps, noise())
        errors.append(max(relative(a, b) for a, b in zip(adjoint, direct, strict=True)))
    if method == "reversible_heun":
        assert max(errors) < 1e-12  # this method is inverted exactly (Kidger et al. 2021): rounding
    else:
        # The adjoint is a discretisation of its own, of order 1 or better: a quarter of the step, less than half the
        # error; and 0.4 bounds the size that a first-order error has with 40 steps of this stiff start.
        assert errors[1] < 0.5 * errors[0] and errors[1] < 0.4


# ---- torchsde ----


@pytest.mark.parametrize("shape", [(3,), (3, 2), (2, 1, 3, 2)])
@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
def test_our_euler_maruyama_is_torchsdes_on_one_path(shape: tuple[int, ...], eta: float) -> None:
    sde = VP()
    process = Reverse(as_score(lambda x, t: -x.sin() - x, sde), eta)
    x, grid = normals(*shape), grids.log_snr(sde, 12)
    a = EulerMaruyama().solve(process, x, grid, BrownianNoise(5, T=1.0), trajectory=True)
    b = TorchSDE("euler").solve(process, x, grid, BrownianNoise(5, T=1.0), trajectory=True)
    assert a.trajectory is not None and b.trajectory is not None and a.nfe == b.nfe == 12
    # t is recovered as T - u: 1e-16 in time, through coefficients of some tens
    torch.testing.assert_close(a.trajectory, b.trajectory, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("grid", [grids.uniform, grids.karras], ids=["uniform", "karras"])
@pytest.mark.parametrize("sde", [EDM(), RectifiedFlow(), Cosine(), VE(), VP()], ids=lambda s: type(s).__name__)
def test_our_euler_maruyama_is_torchsdes_under_every_schedule(sde: SDE, grid: Any) -> None:
    process, x, times = Reverse(DATA.score(sde)), normals(3, 2) * sde.prior_std, grid(sde, 40)
    a = EulerMaruyama().solve(process, x, times, BrownianNoise(5, sde.T), trajectory=True)
    b = TorchSDE("euler").solve(process, x, times, BrownianNoise(5, sde.T), trajectory=True)
    assert a.trajectory is not None and b.trajectory is not None
    # t comes back as T - u, off by 2^-53 T. The path's slope is at most some 5 / sqrt(cell), cell = T 2^-40, so w is
    # off by 5 * 2^-33 sqrt(T) = 6e-10 sqrt(T), and x by that times g. g sqrt(T) is some tens of σ_T, less later on.
    scale = float(torch.stack([sde.g(t) for t in times]).max()) * math.sqrt(sde.T)
    torch.testing.assert_close(a.trajectory, b.trajectory, rtol=1e-8, atol=1e-9 * scale)


@pytest.mark.parametrize("method", WITHOUT_AREAS)
def test_per_sample_noise_gives_torchsde_any_batch_split(method: str) -> None:
    sde = VP(t_min=0.1)
    process, x, grid = Reverse(MIXTURE.score(sde)), normals(5, 2), grids.uniform(sde, 4)
    solver = TorchSDE(method)
    whole = solver.solve(process, x, grid, PerSampleNoise(7)).x
    parts = [solver.solve(process, x[i:j], grid, PerSampleNoise(7, first=i)).x for i, j in ((0, 2), (2, 5))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)  # sums over other shapes: rounding
    noise = PerSampleNoise(7)
    runs = [solver.solve(process, x, grid, noise).x for _ in range(2)]
    assert torch.equal(runs[0], whole) and not torch.allclose(runs[1], whole)  # draws move on, as those of any noise


def test_our_euler_maruyama_is_an_independent_call_of_torchsde() -> None:
    """Everything but the path is written here again: u = 1 - t, drift and diffusion of VP by hand."""
    score, steps = MIXTURE.score(VP()), 16

    class ReverseVP(nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, u: Tensor, y: Tensor) -> Tensor:
            beta = 0.1 + 19.9 * (1 - u)
            return 0.5 * beta * y + beta * score(y, torch.as_tensor(1 - u, dtype=torch.float64))

        def g(self, u: Tensor, y: Tensor) -> Tensor:
            return torch.full_like(y, math.sqrt(0.1 + 19.9 * (1 - u)))

    class Path(torchsde.BaseBrownian):
        """w̄ of our BrownianNoise, which counts from w(T) = 0 downwards."""

        levy_area_approximation, dtype, device, shape = "none", torch.float64, torch.device("cpu"), torch.Size((5, 2))

        def __init__(self) -> None:
            self.ours = BrownianNoise(9, T=1.0)

        def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Tensor:
            x = torch.zeros(5, 2, dtype=torch.float64)
            return self.ours.w(x, 1 - float(tb)) - self.ours.w(x, 1 - float(ta))

        def __repr__(self) -> str:
            return "Path"

        def size(self) -> torch.Size:
            return self.shape

    x, t_end = normals(5, 2), 0.5  # a dyadic length: torchsde's sums of dt then end exactly
    u = torch.tensor([0.0, 1 - t_end], dtype=torch.float64)
    expected = torchsde.sdeint(ReverseVP(), x, u, bm=Path(), method="euler", dt=(1 - t_end) / steps)[-1]
    sde = VP()
    grid = grids.uniform(sde, steps, t_end=t_end)
    got = EulerMaruyama().solve(Reverse(score), x, grid, BrownianNoise(9, T=1.0)).x
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)  # rounding


@pytest.mark.parametrize("method", WITHOUT_AREAS)
def test_methods_agree_on_one_path_as_steps_shrink(method: str) -> None:
    """Additive noise: Itô and Stratonovich are one, so all go to one limit, at order 1 or better."""
    sde = VP(beta_max=10.0, t_min=0.1)
    process, x = Reverse(DATA.score(sde)), normals(64, 2)

    def gap(steps: int) -> float:
        grid = grids.uniform(sde, steps)
        ours, theirs = (
            s.solve(process, x, grid, BrownianNoise(1, T=1.0, levels=20)).x for s in (EulerMaruyama(), TorchSDE(method))
        )
        return float((ours - theirs).detach().norm())

    if method in ("euler", "milstein"):  # Milstein's correction vanishes with additive noise
        assert gap(10) < 1e-9
    else:
        # halved or better; 0.7 leaves room for one path's chance and higher orders of the step
        assert gap(64) < 0.7 * gap(32)


@pytest.mark.parametrize("method", SDE_METHODS)
def test_every_method_of_torchsde_has_the_right_law(method: str) -> None:
    sde = VP(t_min=0.05)
    n = 4000
    mean, covariance = DATA.moments(sde, sde.T)
    x = mean + normals(n, 2) @ torch.linalg.cholesky(covariance).mT
    got = TorchSDE(method).solve(Reverse(DATA.score(sde)), x, grids.log_snr(sde, 40), IndependentNoise(1)).x
    mean, covariance = DATA.moments(sde, sde.t_min)
    # 5 standard errors, plus 0.03 and 6 per cent for the first-order bias of 40 steps (see test_orders)
    assert bool(((got.mean(0) - mean).abs() < 5 * (covariance.diagonal() / n).sqrt() + 0.03).all())
    assert bool(((got.var(0) / covariance.diagonal() - 1).abs() < 5 * math.sqrt(2 / n) + 0.06).all())


def test_torchsde_repeats_with_a_seed_and_differs_without() -> None:
    sde = VP()
    process, x, grid = Reverse(MIXTURE.score(sde)), normals(3, 2), grids.log_snr(sde, 4)
    for kind in (IndependentNoise, PerSampleNoise):
        a, b, c = (TorchSDE().solve(process, x, grid, kind(seed)).x for seed in (1, 1, 2))
        assert torch.equal(a, b) and not torch.allclose(a, c)


def test_torchsde_without_noise_is_the_ode() -> None:
    sde = VP()
    x, grid = normals(3, 2), grids.log_snr(sde, 8)
    a = TorchSDE("euler").solve(ode(sde), x, grid, 0).x
    torch.testing.assert_close(a, EulerMaruyama().solve(ode(sde), x, grid).x, rtol=1e-9, atol=1e-9)  # t as T - u


@pytest.fixture
def untouched_global_state() -> Iterator[None]:
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    yield
    after = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and before[2] == after[2]
    assert all(np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))


@pytest.mark.usefixtures("untouched_global_state")
def test_backends_leave_global_randomness_alone() -> None:
    sde = VP()
    x, grid = normals(3, 2), grids.log_snr(sde, 3)
    for method in SDE_METHODS:
        TorchSDE(method).solve(Reverse(MIXTURE.score(sde)), x, grid, 0)
    ProbabilityFlow().solve(ode(sde), x, grid)
    Heun(churn=1.0).solve(ode(sde), x, grid, 0)
