"""The loop of adaptive methods: each sample at its own place, with its own step, until all have arrived."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoresde import checks
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.solvers._frames import check_data_scale
from scoresde.solvers._step_control import StepLimits, Tolerance, lost, mixed
from scoresde.solvers.base import Solver, arrived
from scoresde.solvers.incomplete import gave_up, shrank
from scoresde.solvers.solution import Ending, Report, unheard


class Line(ABC):
    """The variable p along which a method steps, rising from noise to data, and the state y that it carries there."""

    ends: Tensor
    """(n + 1,) float64, p at the times of the grid."""
    grid: Tensor
    """(n + 1,) those times, on the same device."""
    to_zero: bool
    """Whether the grid ends at σ = 0, to which :meth:`finish` takes the last step."""

    @abstractmethod
    def time(self, p: Tensor) -> Tensor:
        """t at places (B,)."""

    @abstractmethod
    def enter(self, x: Tensor) -> Tensor:
        """y of the state x at the grid's first time."""

    @abstractmethod
    def leave(self, y: Tensor, p: Tensor) -> Tensor:
        """x of y at places (B,)."""

    @abstractmethod
    def finish(self, y: Tensor) -> Tensor:
        """x at the grid's last time, where σ = 0, from y at the last place, in one evaluation."""


class AdaptiveMethod(ABC):
    """Steps of length h (B,) for the samples that still run, and what is remembered between them."""

    evaluations: int
    """Of one attempt."""
    finite: Tensor
    """(B,) whether the first evaluation was."""

    @abstractmethod
    def first_step(self, y: Tensor) -> Tensor:
        """A first length (B,) or ()."""

    @abstractmethod
    def attempt(self, y: Tensor, p: Tensor, h: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From p (B,) by h to ``target``, which is p + h up to rounding; h = 0 for samples that wait.

        Returns y there, its error in units of the tolerance (B,), infinite where it is no number, and the factor (B,)
        by which the next step may differ.
        """

    @abstractmethod
    def commit(self, accepted: Tensor) -> None:
        """Take over what :meth:`attempt` found where ``accepted`` (B,), forget it elsewhere."""

    @abstractmethod
    def between(self, y: Tensor, part: Tensor) -> Tensor:
        """The state at the fraction ``part`` (B,) of the step from y just tried and not yet committed.

        Asked with rising fractions for each sample.
        """

    @abstractmethod
    def select(self, rows: Tensor) -> None:
        """Only these samples (B,) go on."""

    def reach(self, p: Tensor, h: Tensor) -> Tensor:
        """How far a step of length h from p may go, (B,)."""
        return h

    def refused(self, target: Tensor) -> Tensor | None:
        """(B,) bool, for which samples :meth:`attempt` cannot take a step to ``target``; None where it always can."""
        return None


@dataclass(frozen=True, kw_only=True)
class Adaptive(Solver):
    """A solver that finds its own steps between the ends of the grid, for each sample on its own."""

    rtol: float = 1e-4
    atol: float = 1e-4
    max_steps: int = 1000
    first_step: float | None = None
    shrink: float = 0.2
    grow: float = 2.5
    safety: float = 0.7
    sigma_data: float | None = None
    compact: bool = False
    steps_on_grid: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rtol", "atol"):
            checks.positive(getattr(self, name), name=name)
        check_data_scale(self.sigma_data)
        checks.count(self.max_steps, name="max_steps")
        if self.first_step is not None:
            checks.positive(self.first_step, name="first_step")
        self.limits.check()

    @property
    def limits(self) -> StepLimits:
        """Bounds of the factor between steps."""
        return StepLimits(self.shrink, self.grow, self.safety)

    def tolerance(self, dtype: torch.dtype) -> Tolerance:
        """That of states of this dtype."""
        return Tolerance(self.rtol, self.atol).above_rounding(dtype)

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None) -> tuple[Tensor, None]:
        """From t to s, in as many steps as it takes.

        Raises:
            RuntimeError: a sample did not reach s; where it stopped it is no state at s.
        """
        return arrived(self, self.integrate(process, x, torch.stack([t, s]), noise, unheard), t, s), None

    def integrate(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise, report: Report) -> Ending:
        name = type(self).__name__
        checks.refuse_without_float64(x, name, "take a solver that steps on a grid, such as DPMSolverPP()")
        if not x.numel():
            for i in range(1, len(grid)):
                report(i, x)
            counts = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
            return Ending(x, True, counts, grid[-1].detach().to(x.device).expand(x.shape[0]).clone())
        line, method = self.begin(process, x, grid, noise)
        return AdaptiveRun(self, line, method, x, report).ending()

    @abstractmethod
    def begin(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Line, AdaptiveMethod]:
        """The variable, and the method at its beginning, after its first evaluation."""


class AdaptiveRun:
    """One run: the samples still carried, in the order of ``rows``, and what is known of all of them."""

    def __init__(self, solver: Adaptive, line: Line, method: AdaptiveMethod, x: Tensor, report: Report) -> None:
        self.solver, self.line, self.method, self.report = solver, line, method, report
        batch, device = x.shape[0], x.device
        self.rows = torch.arange(batch, device=device)
        self.end, self.p = line.ends[-1].expand(batch), line.ends[0].expand(batch)
        self.y = line.enter(x)
        # samples that the score is not finite for, however short the steps; the others go on without them
        self.lost = ~method.finite
        self.when = "at the start"
        self.nfe = torch.ones(batch, dtype=torch.long, device=device)
        self.stuck = self.lost.clone()
        first = method.first_step(self.y) if solver.first_step is None else solver.first_step
        self.h = torch.as_tensor(first, dtype=torch.float64, device=device).expand(batch)
        # results as far as they are known: samples are put there when they leave, or all of them at the end
        self.result, self.reached = self.y, self.p
        self.states: list[Tensor] | None = None
        if report is not unheard and len(line.ends) > 2:
            self.states = [self.y] * (len(line.ends) - 2)
        self.passed = torch.zeros_like(self.rows)  # inner times of the grid behind each of the running samples
        self.told = 0
        self.blind = torch.zeros_like(self.rows, dtype=torch.bool)  # whose last attempt met NaN or infinity

    def ending(self) -> Ending:
        """All steps."""
        steps, running = 0, (self.p < self.end) & ~self.lost
        while bool(running.any()) and steps < self.solver.max_steps:
            steps += 1
            self.nfe = self.nfe.index_add(0, self.rows, self.method.evaluations * running.long())
            running = self._step(running)
            self._tell()
            if self.solver.compact and not bool(running.all()):
                self._put_aside(running)
                running = running[running]
        self._store()
        t = self.line.time(self.reached).detach()
        if bool(self.lost.all()):
            raise lost(type(self.solver).__name__, self.lost.nonzero().flatten(), t, self.when)
        short = self.reached < self.line.ends[-1]
        left = short & ~self.lost
        if bool(left.any()):
            stuck = int((self.stuck & left).sum())
            why = shrank(stuck) if stuck else f"max_steps = {self.solver.max_steps} was reached"
            gave_up(self.solver, left, t, why)
        x = self.line.leave(self.result, self.reached)
        if self.line.to_zero and not bool(short.all()):
            self.nfe = self.nfe + (~short).long()
            x = mixed(short, x, self.line.finish(self.result))
        x = mixed(self.lost, torch.full_like(x, torch.nan), x)
        self._tell(x)
        return Ending(x, not bool(left.any()), self.nfe, torch.where(short, t, self.line.grid[-1].detach()))

    def _step(self, running: Tensor) -> Tensor:
        """One attempt for each running sample; which of them run on."""
        rest = self.end - self.p
        h = torch.minimum(self.method.reach(self.p, self.h), rest.detach())
        last = 1.05 * h >= rest.detach()  # rather a little further than leave a splinter
        target = torch.where(running, torch.where(last, self.end, self.p + h), self.p)
        refused = self.method.refused(target)
        if refused is not None and bool((running & self.blind & refused).any()):
            self._lose(running & self.blind & refused)  # no shorter step is to be had
            running = running & ~(self.blind & refused)
            target = torch.where(running, target, self.p)
        # the last step is as long as the ends say, with their gradients; all others are constants
        h = torch.where(last, rest, h) * running
        after, error, factor = self.method.attempt(self.y, self.p, h, target)
        accepted = running & (error <= 1)
        if self.states is not None:
            self._interpolate(accepted, h, target)
        self.method.commit(accepted)
        self.y = mixed(accepted, after, self.y)
        before, self.p = self.p, torch.where(accepted, target, self.p)
        self.h = torch.where(running, self.solver.limits.next(h.detach(), factor, accepted), self.h)
        shrunk = running & ~accepted & (before + self.h <= before)
        if bool(shrunk.any()):
            self.stuck = self.stuck.index_fill(0, self.rows[shrunk], True)
            self._lose(shrunk & ~error.isfinite())
        self.blind = running & ~error.isfinite()
        return (self.p < self.end) & ~self.stuck[self.rows]

    def _lose(self, rows: Tensor) -> None:
        for name in ("stuck", "lost"):
            setattr(self, name, getattr(self, name).index_fill(0, self.rows[rows], True))
        self.when = f"after {int(self.nfe.max())} evaluations"

    def _interpolate(self, accepted: Tensor, h: Tensor, target: Tensor) -> None:
        """The states at the inner times that lie inside the steps just accepted."""
        assert self.states is not None
        inner = self.line.ends[1:-1]
        while True:
            following = inner[self.passed.clamp_max(len(inner) - 1)]
            crossed = accepted & (self.passed < len(inner)) & (following <= target)
            if not bool(crossed.any()):
                return
            part = torch.where(crossed, (following - self.p) / torch.where(crossed, h, 1.0), 0.0)
            inside = self.method.between(self.y, part)
            for i in self.passed[crossed].unique().tolist():
                chosen = crossed & (self.passed == i)
                self.states[i] = self.states[i].index_put((self.rows[chosen],), inside[chosen])
            self.passed = self.passed + crossed

    def _store(self) -> None:
        self.result = self.result.index_put((self.rows,), self.y)
        self.reached = self.reached.index_put((self.rows,), self.p)
        for i, state in enumerate(self.states or ()):
            short = self.passed <= i  # did not come so far: the last state stands in
            assert self.states is not None
            self.states[i] = state.index_put((self.rows[short],), self.y[short])

    def _put_aside(self, running: Tensor) -> None:
        """Samples that have arrived, or are stuck, leave the batch that the score sees."""
        self._store()
        for name in ("rows", "end", "p", "y", "h", "passed", "blind"):
            setattr(self, name, getattr(self, name)[running])
        self.method.select(running)

    def _tell(self, x: Tensor | None = None) -> None:
        """Report what has become known: inner times that all samples have passed; with the end x all of them."""
        if self.states is None:
            if x is not None:
                self.report(len(self.line.ends) - 1, x)
            return
        running = x is None and len(self.rows) > 0
        behind = int(self.passed.min()) if running else len(self.states)
        for i in range(self.told, behind):
            # a sample that stopped short of this time is still where it stopped
            reached = self.reached.index_put((self.rows,), self.p)
            place = torch.minimum(reached, self.line.ends[i + 1])
            self.report(i + 1, self.line.leave(self.states[i], place))
        self.told = behind
        if x is not None:
            self.report(len(self.line.ends) - 1, x)
