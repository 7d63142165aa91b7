"""The probability-flow ODE with step sizes found by the method, for each sample on its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from scoresde import checks
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.solvers.adams import Adams
from scoresde.solvers.base import Ending, Solver, only_ode, unheard
from scoresde.solvers.circle import Circle
from scoresde.solvers.embedded import DORMAND_PRINCE, RungeKutta
from scoresde.solvers.step_control import Limits, Tolerance, gave_up, lost, mixed, noisy_end, options


@dataclass(frozen=True)
class AdaptiveODE(Solver):
    r"""An adaptive method for η = 0, in which every sample has its own time, step size, order and error.

    A sample's result does not depend on the batch it came in, beyond the rounding of the score. The ODE is integrated
    in the angle tan θ = σ/(α σ_data), for y = x / sqrt(α² + σ²/σ_data²) (:class:`~scoresde.solvers.circle.Circle`): the
    same under every schedule, not stiff, and over all noise levels a way of at most π/2. An error estimate is the root
    mean square over the event, held below atol + rtol |y| at each step, y being in units of x at the data; the error
    at the end is proportional to the tolerance, but not bounded by it.

    Only the ends of the grid set the run. States at its inner times come from the method's own interpolant, and asking
    for them changes nothing else. The score is asked at per-sample times t (B,), for the whole batch as long as one
    sample runs: those that have arrived wait at the last time. Gradients flow through the steps, step sizes taken as
    constants. No order is claimed: a grid does not set the steps.

    Args:
        method: "adams", variable order 1 to ``max_order``, one evaluation a step; or "dopri5", the embedded
            Runge-Kutta pair 5(4) of Dormand and Prince, six a step, which keeps no history.
        rtol: relative tolerance; taken no finer than 4 roundings of x's dtype.
        atol: absolute tolerance.
        max_steps: of a sample, rejected ones included. At this limit a run ends with a warning and a partial
            solution: ``complete`` is False, ``reached`` says how far each sample came, and a trajectory repeats the
            last state.
        first_step: length of the first step in θ; default found from the tolerance.
        shrink: the least factor between a step and the next.
        grow: the largest.
        safety: fraction of the step that the error would allow.
        max_order: of "adams", 1 to 8.
        sigma_data: standard deviation of the data, roughly.
        compact: ask the score only for the samples that still run. For scores that take any batch; not where a
            condition is bound for each row.

    Raises:
        ValueError: options out of range, or a grid that ends where σ = 0.
        FloatingPointError: the score answered NaN or infinity and shorter steps did not help.
    """

    method: Literal["adams", "dopri5"] = "adams"
    rtol: float = 1e-4
    atol: float = 1e-4
    max_steps: int = 1000
    first_step: float | None = None
    shrink: float = 0.2
    grow: float = 2.5
    safety: float = 0.7
    max_order: int = 6
    sigma_data: float = 1.0
    compact: bool = False
    default_eta: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if self.method not in ("adams", "dopri5"):
            raise ValueError(f'method must be "adams" or "dopri5", got {self.method!r}.')
        options(self.rtol, self.atol, self.max_steps, self.first_step)
        self._limits.check()
        checks.count(self.max_order, name="max_order")
        if self.max_order > 8:
            raise ValueError(f"max_order must be at most 8, got {self.max_order}: higher orders lose their stability.")
        checks.positive(self.sigma_data, name="sigma_data")

    @property
    def _limits(self) -> Limits:
        return Limits(self.shrink, self.grow, self.safety)

    def check(self, process: Reverse) -> None:
        """η must be 0."""
        only_ode(self, process)

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """From t to s, in as many steps as it takes."""
        return self._run(process, x, torch.stack([t, s]), noise, unheard).x, None

    def _run(
        self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise, report: Callable[[int, Tensor], None]
    ) -> Ending:
        noisy_end(process.sde, grid, type(self).__name__)
        if not x.numel():
            for i in range(1, len(grid)):
                report(i, x)
            counts = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
            return Ending(x, True, counts, grid[-1].detach().expand(x.shape[0]).clone())
        return _Run(self, Circle(process, grid, self.sigma_data, x), x, report).ending()

    def _method(self, circle: Circle, y: Tensor, theta: Tensor) -> Adams | RungeKutta:
        tolerance = Tolerance(self.rtol, self.atol).above_rounding(circle.dtype)
        if self.method == "adams":
            return Adams(circle, y, theta, tolerance, self.max_order, self.safety)
        return RungeKutta(circle, y, theta, tolerance, DORMAND_PRINCE, self.safety)


class _Run:
    """One run: the samples still carried, in the order of ``rows``, and what is known of all of them."""

    def __init__(self, solver: AdaptiveODE, circle: Circle, x: Tensor, report: Callable[[int, Tensor], None]) -> None:
        self.solver, self.circle, self.report = solver, circle, report
        batch, device = x.shape[0], x.device
        self.rows = torch.arange(batch, device=device)
        self.end = circle.theta[-1].expand(batch)
        self.theta, self.y = circle.theta[0].expand(batch), circle.enter(x)
        self.method = solver._method(circle, self.y, self.theta)
        self._finite(self.method.finite, "at the start")
        self.nfe = torch.ones(batch, dtype=torch.long, device=device)
        self.stuck = torch.zeros(batch, dtype=torch.bool, device=device)
        length = (self.theta - self.end).detach()
        first = self.method.first_step(self.y) if solver.first_step is None else solver.first_step
        self.h = torch.minimum(torch.as_tensor(first, dtype=torch.float64, device=device).expand(batch), length)
        # results, as far as they are known: rows leave when they have arrived, or all of them at the end
        self.result, self.reached = self.y, self.theta
        self.states: list[Tensor] | None = None
        if report is not unheard and len(circle.theta) > 2:
            self.states = [self.y] * (len(circle.theta) - 2)
        self.passed = torch.zeros_like(self.rows)  # inner times of the grid behind each of the running samples

    def ending(self) -> Ending:
        steps, each = 0, 1 if self.solver.method == "adams" else len(DORMAND_PRINCE.nodes) - 1
        running = self.theta > self.end
        while bool(running.any()) and steps < self.solver.max_steps:
            steps += 1
            self.nfe = self.nfe.index_add(0, self.rows, each * running.long())
            running = self._step(running)
            if self.solver.compact and not bool(running.all()):
                self._put_aside(running)
                running = running[running]
        self._store()
        places = self.circle.at(self.reached)
        x = self.circle.leave(self.result, places)
        left = self.reached > self.circle.theta[-1]
        if bool(left.any()):
            gave_up(
                type(self.solver).__name__, int(left.sum()), len(left), places.t.max().item(), self.solver.max_steps,
                int(self.stuck.sum()),
            )  # fmt: skip
        self._tell(x)
        reached = torch.where(left, places.t, self.circle.grid[-1].to(places.t)).detach()
        return Ending(x, not bool(left.any()), self.nfe, reached)

    def _step(self, running: Tensor) -> Tensor:
        """One attempt for each running sample; which of them run on."""
        rest = self.theta - self.end
        last = self.h >= rest.detach() * (1 - 1e-9)
        h = torch.where(last, rest, self.h) * running
        target = torch.where(running & ~last, self.theta - h, self.end)
        target = torch.where(running, target, self.theta)
        after, error, factor = self.method.attempt(self.y, self.theta, h, target)
        accepted = running & (error <= 1)
        if self.states is not None:
            self._interpolate(accepted, h, target)
        self.method.commit(accepted)
        self.y = mixed(accepted, after, self.y)
        self.theta = torch.where(accepted, target, self.theta)
        self.h = torch.where(running, self.solver._limits.next(h.detach(), factor, accepted), self.h)
        shrunk = running & ~accepted & (self.h < 1e-13 * self.theta.detach())
        if bool(shrunk.any()):
            self._finite(~(shrunk & ~error.isfinite()), f"after {int(self.nfe.max())} evaluations")
            self.stuck = self.stuck.index_put((self.rows[shrunk],), torch.ones_like(shrunk[shrunk]))
        return (self.theta > self.end) & ~self.stuck[self.rows]

    def _interpolate(self, accepted: Tensor, h: Tensor, target: Tensor) -> None:
        """The states at the inner times that lie inside the steps just accepted."""
        assert self.states is not None
        inner = self.circle.theta[1:-1]
        while True:
            following = inner[self.passed.clamp_max(len(inner) - 1)]
            crossed = accepted & (self.passed < len(inner)) & (following >= target)
            if not bool(crossed.any()):
                return
            part = torch.where(crossed, (self.theta - following) / torch.where(crossed, h, 1.0), 0.0)
            inside = self.method.between(self.y, part)
            for i in self.passed[crossed].unique().tolist():
                chosen = crossed & (self.passed == i)
                self.states[i] = self.states[i].index_put((self.rows[chosen],), inside[chosen])
            self.passed = self.passed + crossed

    def _store(self) -> None:
        self.result = self.result.index_put((self.rows,), self.y)
        self.reached = self.reached.index_put((self.rows,), self.theta)
        if self.states is not None:
            for i in range(len(self.states)):
                short = self.passed <= i  # did not come so far: the last state stands in
                self.states[i] = self.states[i].index_put((self.rows[short],), self.y[short])

    def _put_aside(self, running: Tensor) -> None:
        """Samples that have arrived leave the batch that the score sees."""
        self._store()
        for name in ("rows", "end", "theta", "y", "h", "passed"):
            setattr(self, name, getattr(self, name)[running])
        self.method.keep(running)

    def _tell(self, x: Tensor) -> None:
        if self.states is not None:
            for i, state in enumerate(self.states, start=1):
                # where a sample stopped short of this time its last state is given, as it is there
                theta = torch.maximum(self.reached, self.circle.theta[i])
                self.report(i, self.circle.leave(state, self.circle.at(theta)))
        self.report(len(self.circle.theta) - 1, x)

    def _finite(self, finite: Tensor, when: str) -> None:
        if not bool(finite.all()):
            t = self.circle.at(self.theta).t.detach()
            raise lost(type(self.solver).__name__, self.rows[~finite], t[~finite], when)
