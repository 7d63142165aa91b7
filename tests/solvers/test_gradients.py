"""Gradients through a run: against finite differences, closed forms and adjoints; in bounded memory, to rounding."""

from __future__ import annotations

import functools
import gc
import itertools
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from strategies import normal
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from scoresde import grids
from scoresde.guidance import classifier
from scoresde.models import as_score
from scoresde.noise import BrownianNoise, IndependentNoise, Noise, PerSampleNoise
from scoresde.problems import Gaussian
from scoresde.reverse import Reverse
from scoresde.sde import VP, LinearSDE
from scoresde.solvers import (
    DDIM,
    AdjustedLangevin,
    AnnealedLangevin,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    Progress,
    SASolver,
    Solver,
    TorchSDE,
    UniPC,
    catalogue,
)
from scoresde.solvers._checkpointing import default_states, left_part
from scoresde.solvers._closures import derived
from scoresde.solvers.carried import mapped, tensors

F64 = torch.float64


class Scaled(Noise):
    """Noise with a parameter: scale times standard normals."""

    def __init__(self, scale: Tensor, seed: int = 3) -> None:
        self.scale, self.inner = scale, PerSampleNoise(seed)

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.scale * self.inner.initial(shape, dtype=dtype, device=device)

    def normal(self, x: Tensor) -> Tensor:
        return self.scale * self.inner.normal(x)

    def position(self) -> object:
        return self.inner.position()

    def rewind(self, position: object) -> None:
        self.inner.rewind(position)


class Inputs(NamedTuple):
    """All that a run can be differentiated by."""

    x: Tensor
    grid: Tensor
    beta: Tensor
    theta: Tensor
    eta: Tensor
    scale: Tensor


def inputs(eta: float, times: tuple[float, ...] = (0.9, 0.6, 0.35, 0.2)) -> Inputs:
    values = ([[0.3, -0.7], [1.1, 0.4]], times, 8.0, 0.6, eta, 1.1)
    return Inputs(*(torch.tensor(v, dtype=F64, requires_grad=True) for v in values))


def end(solver: Solver, v: Inputs, eta: float, **options: Any) -> Tensor:
    """A number that depends on everything: a nonlinear score, the SDE's parameter, noise with a parameter."""
    sde = VP(beta_max=v.beta)  # type: ignore[arg-type]

    def score(x: Tensor, t: Tensor) -> Tensor:
        return -x / (sde.alpha(t) ** 2 * v.theta + sde.sigma(t) ** 2) + 0.2 * torch.sin(v.theta * x) * torch.cos(t)

    # η is a number where the method asks for one value of it
    process = Reverse(as_score(score, sde), v.eta if eta not in (0.0, 1.0) else eta)  # type: ignore[arg-type]
    solution = solver.solve(process, v.x, v.grid, Scaled(v.scale), **options)
    value = (solution.x.sin() * normal(2, 2, seed=5)).sum()
    return value if solution.trajectory is None else value + (solution.trajectory**2).sum()


def gradients(value: Tensor, inputs: Any) -> list[Tensor]:
    found = torch.autograd.grad(value, list(inputs), allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for g, i in zip(found, inputs, strict=True)]


def takes(solver: Solver, eta: float) -> bool:
    try:
        solver.check(Reverse(as_score(lambda x, t: x, VP()), eta))
    except ValueError:
        return False
    return True


def name(value: Any) -> str | None:
    return repr(value) if isinstance(value, Solver) else None


def runs() -> list[tuple[Solver, float]]:
    """Every solver in each variant, at an η where all of it is in use."""
    more = [Heun(churn=2.0), PredictorCorrector(DPMSolverPP(2), Langevin(0.3, 2))]
    found = [solver for solver in [*catalogue.variants(), *more] if solver.steps_on_grid]
    return [(solver, next(eta for eta in (0.6, 0.0, 1.0) if takes(solver, eta))) for solver in found]


# ---- against finite differences ----


@pytest.mark.parametrize(("solver", "eta"), runs(), ids=name)
def test_gradients_equal_finite_differences(solver: Solver, eta: float) -> None:
    at, h = inputs(eta), 1e-5
    got = gradients(end(solver, at, eta), at)
    directions = [normal(*v.shape, seed=i).reshape(v.shape) * (0.1 if i == 1 else 1.0) for i, v in enumerate(at)]

    def along(sign: float) -> float:
        moved = Inputs(*(v.detach() + sign * h * d for v, d in zip(at, directions, strict=True)))
        return end(solver, moved, eta).item()

    parts = [float((g * d).sum()) for g, d in zip(got, directions, strict=True)]
    # h² times a third derivative of order 10 to 100, and rounding 1e-16/h
    assert sum(parts) == pytest.approx((along(1) - along(-1)) / (2 * h), rel=1e-6, abs=1e-7)
    # nothing is lost unseen: x, grid, SDE and score always act
    assert all(abs(part) > 1e-4 for part in parts[:4]), parts
    if eta == 0.6 and not isinstance(solver, AnnealedLangevin):  # which takes no notice of η
        assert abs(parts[4]) > 1e-4 and abs(parts[5]) > 1e-4, parts


def test_parameters_inside_a_linear_sde() -> None:
    rate = torch.tensor(1.3, dtype=F64, requires_grad=True)

    def run(rate: Tensor) -> Tensor:
        sde = LinearSDE(lambda t: -rate * (1 + t), lambda t: (1 + t) * rate.sqrt(), T=1.0)
        grid = torch.linspace(0.9, 0.2, 3, dtype=F64)
        return UniPC(2).solve(Reverse(as_score(lambda x, t: -x, sde), 0.0), normal(2, 2), grid).x

    assert torch.autograd.gradcheck(run, rate)


# ---- against closed forms ----


def test_the_derivative_of_the_flow_on_a_gaussian() -> None:
    """x, the SDE's parameter and both ends of the grid, through the solver and through the closed-form flow."""
    data = Gaussian(torch.tensor([0.7, -0.4], dtype=F64), torch.tensor([0.5, 2.0], dtype=F64))

    def differentiate(steps: int | None) -> Tensor:
        x = normal(3, 2).requires_grad_()
        beta, first, last = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (9.0, 0.9, 0.2))
        sde = VP(beta_max=beta)  # type: ignore[arg-type]
        if steps is None:
            out = data.flow(sde, x, first, last)
        else:
            grid = first + (last - first) * torch.linspace(0, 1, steps + 1, dtype=F64)
            out = UniPC(2).solve(Reverse(data.score(sde), 0.0), x, grid).x
        return torch.cat([g.flatten() for g in gradients((out * normal(3, 2, seed=1)).sum(), (x, beta, first, last))])

    exact = differentiate(None)
    errors = [float((differentiate(n) - exact).abs().max()) for n in (40, 80)]
    # third order, as the solution itself; 80 steps leave 3e-4
    assert 2.6 < math.log2(errors[0] / errors[1]) < 3.4 and errors[1] < 1e-3 * float(exact.abs().max()), errors


def test_the_derivative_by_eta_of_an_exact_linear_step() -> None:
    """One DDIM-like Euler step: x_s = (1 - f Δ) x + ½ (1 + η²) g² Δ s + η g sqrt(Δ) z."""
    eta, sde = torch.tensor(0.7, dtype=F64, requires_grad=True), VP()
    t, s = torch.tensor([0.5, 0.4], dtype=F64)
    x, z = normal(3, 2), PerSampleNoise(2).normal(normal(3, 2))
    got = (
        EulerMaruyama().solve(Reverse(as_score(lambda x, t: -x, sde), eta), x, torch.stack([t, s]), PerSampleNoise(2)).x
    )  # type: ignore[arg-type]
    (slope,) = torch.autograd.grad(got.sum(), eta)
    length, g = 0.1, sde.g(t)
    expected = (eta.detach() * g**2 * length * -x + g * math.sqrt(length) * z).sum()
    assert float(slope) == pytest.approx(float(expected), rel=1e-12)  # rounding


# ---- loops of their own: adaptive methods and backends ----


def own_loops() -> list[tuple[Solver, float]]:
    return [(s, eta) for s in catalogue.variants() if not s.steps_on_grid for eta in (0.0, 1.0) if takes(s, eta)]


@pytest.mark.parametrize(("solver", "eta"), own_loops(), ids=name)
def test_other_loops_pass_the_derivative_by_x(solver: Solver, eta: float) -> None:
    """On Gaussian data x_s = a x_t + noise with a = (α_t/α_s)^{η²} (v_s/v_t)^{(1 + η²)/2}, v = α² λ + σ²."""
    data, sde = Gaussian(torch.zeros(2, dtype=F64), torch.tensor([0.5, 2.0], dtype=F64)), VP(beta_max=9.0)
    x, grid = normal(3, 2).requires_grad_(), torch.linspace(0.9, 0.2, 101 if isinstance(solver, TorchSDE) else 2)
    out = solver.solve(Reverse(data.score(sde), eta), x, grid, 5).x
    (got,) = torch.autograd.grad(out.sum(), x)
    t, s = (torch.diagonal(data.moments(sde, end)[1]) for end in (0.9, 0.2))
    exact = (sde.alpha(0.9) / sde.alpha(0.2)) ** (eta**2) * (s / t) ** ((1 + eta**2) / 2)
    # adaptive SDE methods aim at 1 per cent of x, others at less; 100 steps of Euler's method leave as much
    torch.testing.assert_close(got, exact.expand(3, 2), rtol=0.05, atol=0.01)


@pytest.mark.parametrize("adjoint", [False, True])
def test_torchdiffeq_differentiates_ends_of_the_grid(adjoint: bool) -> None:
    data, sde = Gaussian(torch.zeros(2, dtype=F64), torch.tensor([0.5, 2.0], dtype=F64)), VP()
    solver = ProbabilityFlow(rtol=1e-9, atol=1e-9, adjoint=adjoint)
    x, ends = normal(3, 2).requires_grad_(), torch.tensor([0.9, 0.2], dtype=F64, requires_grad=True)
    got = gradients(solver.solve(Reverse(data.score(sde), 0.0), x, ends).x.sum(), (x, ends))
    exact = gradients(data.flow(sde, x, *ends.unbind()).sum(), (x, ends))
    for a, b in zip(got, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)  # the tolerance of the solver, amplified


def test_torchsde_refuses_a_grid_that_asks_for_gradients() -> None:
    grid = grids.uniform(VP(), 3).requires_grad_()
    process = Reverse(as_score(lambda x, t: -x, VP()), 1.0)
    with pytest.raises(ValueError, match="detach the grid"):
        TorchSDE().solve(process, normal(2, 2), grid, 0)
    with torch.no_grad():
        assert TorchSDE().solve(process, normal(2, 2), grid, 0).nfe == 3


# ---- checkpoints: the same gradients ----


@pytest.mark.parametrize(("solver", "eta"), runs(), ids=name)
def test_checkpointed_gradients_are_the_plain_ones(solver: Solver, eta: float) -> None:
    times = (0.95, 0.8, 0.66, 0.5, 0.35, 0.24, 0.2)
    plain = gradients(end(solver, v := inputs(eta, times), eta, trajectory=True), v)
    for states in (True, 2):
        again = gradients(end(solver, v := inputs(eta, times), eta, trajectory=True, checkpoint=states), v)
        for a, b in zip(plain, again, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)  # sums in another order


class Always(nn.Dropout):
    """Monte Carlo dropout, in evaluation mode too: a score that draws from torch's own generator."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.p, training=True)


class Experts(nn.Module):
    """A network whose parameters are not the same at all times, with an embedding from outside."""

    def __init__(self, drop: float = 0.4) -> None:
        super().__init__()
        self.early, self.late, self.drop = nn.Linear(2, 2, dtype=F64), nn.Linear(2, 2, dtype=F64), Always(drop)
        self.label = nn.Linear(1, 2, dtype=F64)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(0.3 * normal(*p.shape, seed=i))


def by_experts(net: Experts, given: Tensor, x: Tensor, t: Tensor) -> Tensor:
    layer = net.early if t > 0.5 else net.late
    return -x + net.drop(torch.tanh(layer(x) * given)) + 0.1 * given.exp() + 0.1 * net.label.bias


@pytest.mark.parametrize(
    "noise", [lambda: IndependentNoise(1), lambda: BrownianNoise(1, 1.0), lambda: PerSampleNoise(1)]
)
@pytest.mark.parametrize("states", [True, 1, 3, 50])
def test_closures_of_every_kind_get_their_gradients(states: int, noise: Callable[[], Noise]) -> None:
    """Parameters of some times only, a tensor computed before from parameters also used, dropout, guidance."""
    net, shift = Experts(), torch.tensor(0.3, dtype=F64, requires_grad=True)

    def run(checkpoint: int | bool) -> tuple[int, list[Tensor]]:
        given = net.label(torch.ones(1, dtype=F64)) * shift.exp()  # computed before the run, then used in each step
        guided = classifier(
            as_score(functools.partial(by_experts, net, given), VP()),
            lambda x, t: -((x - shift) ** 2).sum(1) * shift.cos(),
            scale=0.5,
        )
        x = normal(4, 2).requires_grad_()
        torch.manual_seed(11)
        solution = SASolver(2).solve(
            Reverse(guided, 0.8), x, grids.uniform(VP(), 9), noise(), denoise=True, checkpoint=checkpoint
        )
        return solution.nfe, gradients((solution.x**2).sum(), [x, shift, *net.parameters()])

    (nfe, plain), (again_nfe, again) = run(False), run(states)
    assert nfe == again_nfe == 10
    assert all(float(g.abs().max()) > 1e-6 for g in plain)
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)  # sums in another order


def test_parameters_accumulate_as_they_do_without_checkpoints() -> None:
    grads = []
    for checkpoint in (False, True):
        net = Experts(drop=0.0)
        for seed in (0, 1):
            process = Reverse(
                as_score(lambda x, t, net=net: by_experts(net, torch.ones((), dtype=F64), x, t), VP()), 1.0
            )
            EulerMaruyama().solve(
                process, normal(3, 2), grids.uniform(VP(), 5), seed, checkpoint=checkpoint
            ).x.sum().backward()
        assert net.label.weight.grad is None
        grads.append([p.grad for p in (*net.early.parameters(), net.label.bias) if p.grad is not None])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-13)


def test_autocast_is_the_same_in_the_repetition() -> None:
    """The score computes in bfloat16 forward, so its repetition outside of the block must as well."""

    def run(checkpoint: bool) -> list[Tensor]:
        torch.manual_seed(0)
        net, x = nn.Linear(2, 2), normal(3, 2, dtype=torch.float32).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            process = Reverse(as_score(lambda x, t: net(x) - x, VP()), 0.0)
            out = DDIM().solve(process, x, grids.uniform(VP(), 4), checkpoint=checkpoint).x
            value = net(out).float().sum()  # a cast kept from the run would have no gradient
        return gradients(value, [x, *net.parameters()])

    for a, b in zip(run(False), run(True), strict=True):
        assert float(a.abs().max()) > 0.05
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)  # bfloat16 has 8 bits; gradients are summed in it


def test_random_streams_go_on_as_if_nothing_had_been_repeated() -> None:
    after = []
    for checkpoint in (False, True):
        noise, x = IndependentNoise(4), normal(2, 2).requires_grad_()
        torch.manual_seed(3)
        out = EulerMaruyama().solve(
            Reverse(as_score(lambda x, t: -x, VP())), x, grids.uniform(VP(), 5), noise, checkpoint=checkpoint
        )
        drawn = [noise.normal(x.detach()), torch.rand(2)]
        out.x.sum().backward()
        after.append([*drawn, noise.normal(x.detach()), torch.rand(2)])
    assert all(torch.equal(a, b) for a, b in zip(*after, strict=True))


def test_callbacks_are_called_once_and_see_no_graph() -> None:
    seen: list[Progress] = []
    x = normal(2, 2).requires_grad_()
    process = Reverse(as_score(lambda x, t: -x, VP()), 0.0)
    out = DDIM().solve(process, x, grids.uniform(VP(), 5), checkpoint=True, callback=seen.append)
    out.x.sum().backward()
    assert [p.step for p in seen] == [1, 2, 3, 4, 5]
    assert not any(p.x.requires_grad for p in seen) and torch.equal(seen[-1].x, out.x)
    with torch.no_grad():
        assert not DDIM().solve(process, x, grids.uniform(VP(), 5), checkpoint=True).x.requires_grad
    assert not DDIM().solve(process, x.detach(), grids.uniform(VP(), 5), checkpoint=True).x.requires_grad


def test_states_that_do_not_move_pass_their_gradient_on() -> None:
    @dataclass(frozen=True)
    class Still(Solver):
        def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> Any:
            return x, state

    x = normal(2, 2).requires_grad_()
    out = Still().solve(
        Reverse(as_score(lambda x, t: x, VP()), 0.0), x, grids.uniform(VP(), 3), trajectory=True, checkpoint=True
    )
    (grad,) = torch.autograd.grad(out.x.sum() + out.trajectory.sum(), x)  # type: ignore[union-attr]
    assert torch.equal(grad, torch.full_like(x, 5.0))  # itself, three states and the end


@dataclass
class Past:
    values: list[Tensor] = field(default_factory=list)
    count: int = 0


@dataclass(frozen=True)
class Remembering(Solver):
    """x decays towards what it was: a state of every kind of container, with x_0 in it from the start."""

    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        return x, {"first": x, "past": Past()}

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        values = [*state["past"].values, x][-2:]
        new = 0.5 * x + 0.3 * (values[0] ** 2) + 0.2 * state["first"] * (t - s)
        return new, {"first": state["first"], "past": Past(values, state["past"].count + 1)}


def test_states_of_any_container_are_carried() -> None:
    grads = []
    for checkpoint in (False, True, 1):
        x = normal(2, 2).requires_grad_()
        out = (
            Remembering()
            .solve(Reverse(as_score(lambda x, t: x, VP()), 0.0), x, grids.uniform(VP(), 7), checkpoint=checkpoint)
            .x
        )
        grads.append(torch.autograd.grad(out.sum(), x)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(grads[0], grads[2], rtol=1e-12, atol=1e-14)


# ---- checkpoints: memory and work ----


def optimum(length: int, states: int) -> int:
    """The fewest steps that must be done without a graph to reverse ``length`` of them, by dynamic programming."""

    @functools.cache
    def least(n: int, c: int) -> int:
        if n == 1:
            return 0
        if c == 1:
            return n * (n - 1) // 2
        return min(m + least(n - m, c - 1) + least(m, c) for m in range(1, n))

    return least(length, states)


def used(length: int, states: int) -> int:
    """The same for :func:`left_part`."""
    total = 0
    while length > 1:
        left = left_part(length, states)
        assert 1 <= left < length
        total += left + used(length - left, max(states - 1, 1))
        length = left
    return total


@pytest.mark.parametrize("states", range(1, 7))
def test_no_schedule_repeats_fewer_steps(states: int) -> None:
    assert [used(n, states) for n in range(1, 60)] == [optimum(n, states) for n in range(1, 60)]


def test_as_many_states_as_steps_repeat_nothing_twice() -> None:
    assert used(50, 50) == 49 and used(50, 200) == 49
    assert [default_states(n) for n in (1, 2, 3, 16, 17, 1024)] == [1, 1, 2, 4, 5, 10]
    assert all(used(n, default_states(n)) <= n * math.log2(n) for n in (2, 16, 64, 256, 1024))


@pytest.mark.parametrize("states", [1, 2, 5])
def test_the_number_of_repeated_steps_is_the_schedules(states: int) -> None:
    calls = 0

    def score(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return -x

    x = normal(2, 2).requires_grad_()
    solution = EulerMaruyama().solve(Reverse(as_score(score, VP())), x, grids.uniform(VP(), 23), 0, checkpoint=states)
    assert solution.nfe == calls == 23
    solution.x.sum().backward()
    # one pass forward, one with graphs, and what the schedule repeats between
    assert calls == 2 * 23 + optimum(23, states) and solution.nfe == 23


class Live(TorchDispatchMode):
    """The most bytes that tensors made inside have held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.held: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for part in tensors(out if isinstance(out, (tuple, list, Tensor)) else ()):
            storage = part.untyped_storage()
            if storage._cdata not in self.held:
                self.held[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._drop, storage._cdata)
        return out

    def _drop(self, key: int) -> None:
        self.now -= self.held.pop(key)


class _Saved:
    """A tensor that autograd keeps."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def memory(solver: Solver, steps: int, checkpoint: bool | int) -> tuple[float, float]:
    """Peak of live bytes, and of bytes saved for backward, over a run and its backward; in states."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).to(F64)
    x = normal(4_000, 2).requires_grad_()
    kept = most = 0

    def pack(value: Tensor) -> _Saved:
        nonlocal kept, most
        held, size = _Saved(value), value.numel() * value.element_size()
        kept += size
        most = max(most, kept)

        def drop() -> None:
            nonlocal kept
            kept -= size

        weakref.finalize(held, drop)
        return held

    gc.collect()
    live = Live()
    with live, saved_tensors_hooks(pack, lambda held: held.value):
        process = Reverse(as_score(lambda x, t: net(x) - x, VP()), 1.0 if takes(solver, 1.0) else 0.0)
        out = solver.solve(process, x, grids.uniform(VP(), steps), 0, checkpoint=checkpoint).x
        out.sum().backward()
    state = x.numel() * x.element_size()
    return live.peak / state, most / state


@pytest.mark.parametrize(("solver", "each"), [(EulerMaruyama(), 1), (DPMSolverPP(3), 4)], ids=["one-step", "multistep"])
def test_memory_grows_with_the_logarithm_of_the_steps_or_not_at_all(solver: Solver, each: int) -> None:
    """``each``: tensors of x's size in a kept state, x and past evaluations."""
    counts = (4, 16, 64)
    memory(solver, 4, False)  # tables that are made once
    plain = [memory(solver, n, False) for n in counts[1:]]
    log, fixed = ([memory(solver, n, states) for n in counts] for states in (True, 3))
    assert plain[1][0] - plain[0][0] > 48 * 2 and plain[1][1] - plain[0][1] > 48 * 2  # two tensors for each step
    # four times the steps bring two more states; plans and times are numbers, small beside a state
    for a, b in itertools.pairwise(log):
        assert b[0] - a[0] < 2 * each + 0.7, log
    # three states whatever the steps: room for plans
    assert fixed[2][0] - fixed[1][0] < 0.7, fixed
    # saved for backward: one step's graph
    assert max(saved for _, saved in log + fixed) < 1.05 * min(saved for _, saved in log), (log, fixed)
    assert log[2][0] < 0.35 * plain[1][0]


# ---- refusals ----


def failing(**options: Any) -> None:
    x = normal(2, 2).requires_grad_()
    arguments: dict[str, Any] = {"solver": EulerMaruyama(), "noise": 0, "checkpoint": True, "score": lambda x, t: -x}
    arguments |= options
    solver = arguments["solver"]
    process = Reverse(as_score(arguments["score"], VP()), 0.0 if isinstance(solver, ProbabilityFlow) else 1.0)
    solver.solve(process, x, grids.uniform(VP(), 4), arguments["noise"], checkpoint=arguments["checkpoint"])


class Forgetful(Scaled):
    position, rewind = Noise.position, Noise.rewind


@dataclass(frozen=True)
class Careless(Solver):
    hidden: bool = False

    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        return x, [x]

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        if self.hidden:
            return x, lambda: x
        state.append(x)
        return 0.5 * x + 0.1 * state[-2], state


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"checkpoint": -1}, ValueError, "checkpoint must be"),
        ({"checkpoint": 2.0}, ValueError, "checkpoint must be"),
        ({"checkpoint": "yes"}, ValueError, "checkpoint must be"),
        ({"solver": ProbabilityFlow()}, ValueError, "adjoint=True"),
        ({"solver": TorchSDE()}, ValueError, "adjoint=True"),
        ({"noise": Forgetful(torch.ones((), dtype=F64))}, TypeError, "position"),
        ({"solver": Careless()}, TypeError, "in place"),
        ({"solver": Careless(hidden=True)}, TypeError, "holds a function"),
    ],
    ids=["negative", "float", "word", "torchdiffeq", "torchsde", "noise", "state in place", "state hidden"],
)
def test_what_checkpoints_refuse(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        failing(**options)


def test_tensors_changed_before_backward_are_noticed() -> None:
    """As without checkpoints: silently wrong gradients would be worse."""
    grid = grids.uniform(VP(), 6)
    weight = torch.tensor(0.5, dtype=F64, requires_grad=True)
    x = normal(2, 2).requires_grad_()
    process = Reverse(as_score(lambda x, t: -weight * x, VP()), 0.0)
    for touched in (weight, x):
        out = DDIM().solve(process, x, grid, checkpoint=True).x
        with torch.no_grad():
            touched.mul_(1.5)
        with pytest.raises(RuntimeError, match=r"in-?place"):
            out.sum().backward()


@pytest.mark.parametrize("when", [0.0, 0.5, 0.9], ids=str)
def test_steps_that_work_in_place_are_noticed(when: float) -> None:
    @dataclass(frozen=True)
    class InPlace(Solver):
        def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> Any:
            return x.mul_(0.5) if s <= when < t or when == 0.9 else 0.5 * x**2, state

    x = normal(2, 2).requires_grad_()
    with pytest.raises((TypeError, RuntimeError), match=r"in.?place"):
        InPlace().solve(
            Reverse(as_score(lambda x, t: x, VP()), 0.0), x, torch.linspace(1, 0, 8), checkpoint=2
        ).x.sum().backward()


def test_second_derivatives_and_second_passes_are_refused() -> None:
    x = normal(2, 2).requires_grad_()
    out = DDIM().solve(Reverse(as_score(lambda x, t: -(x**3), VP()), 0.0), x, grids.uniform(VP(), 4), checkpoint=True).x
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(out.sum(), x, create_graph=True)
    out = DDIM().solve(Reverse(as_score(lambda x, t: -(x**3), VP()), 0.0), x, grids.uniform(VP(), 4), checkpoint=True).x
    first = torch.autograd.grad(out.sum(), x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(out.sum(), x)[0])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out.sum(), x)


# ---- the parts ----


def test_trees_are_walked_in_order_and_copied() -> None:
    a, b, c = (torch.tensor(float(i)) for i in range(3))
    tree = {"a": (a, 1, "x", None), "b": Past([b], 3), "c": [c, torch.Size([2])]}
    assert [t.item() for t in tensors(tree)] == [0.0, 1.0, 2.0]
    doubled = mapped(tree, lambda t: 2 * t)
    assert doubled["b"].values[0].item() == 2.0 and doubled["b"].count == 3 and tree["b"].values[0] is b  # type: ignore[union-attr]
    assert mapped(tree, lambda t: 2 * t, {id(tree["b"])})["b"] is tree["b"]


def test_derived_closures_are_found_through_the_graph() -> None:
    a = torch.tensor(1.0, requires_grad=True)
    b = a.exp()
    c = (b * 2).sin()
    d = torch.tensor(1.0, requires_grad=True).exp()
    assert derived([a, c, d]) == [1] and derived([c, d]) == [] and derived([b, c, a]) == [0, 1]
    deep = a
    for _ in range(5000):  # deeper than Python's stack
        deep = deep + 1
    assert derived([deep, a]) == [0]


def adjusted() -> list[Solver]:
    correctors = AdjustedLangevin(snr=0.9, steps=2), AdjustedLangevin(lambda x, t: -(x**2).sum(1), 0.9, 2)
    return [PredictorCorrector(DDIM(1.0), corrector) for corrector in correctors]


@pytest.mark.parametrize("solver", adjusted(), ids=["score", "density"])
def test_metropolis_repeats_its_choices(solver: Solver) -> None:
    plain = gradients(end(solver, v := inputs(0.6), 0.6), v)
    again = gradients(end(solver, v := inputs(0.6), 0.6, checkpoint=True), v)
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)  # sums in another order
