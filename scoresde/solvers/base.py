"""THE loop: a solver is a frozen dataclass with one step; everything around the steps is here, once.

    solution = EulerMaruyama().solve(Reverse(score, eta=1.0), x_T, grids.karras(sde, 100), noise)
    solution.x, solution.nfe

A solver of your own derives from :class:`Solver` and writes :meth:`~Solver.step`; from
:class:`~scoresde.solvers.planned.Planned` where its coefficients are known before the first step; from
:class:`~scoresde.solvers.wrapping.Wrapping` where it does something more around another one's.
"""

from __future__ import annotations

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from scoresde import checks, rules
from scoresde.checks.later import answering
from scoresde.models.evaluation import evaluating, in_evaluation_mode
from scoresde.models.score import Score, check_independent
from scoresde.noise import Noise, as_noise
from scoresde.reverse import Reverse
from scoresde.sde import SDE, has_signal
from scoresde.solvers._checkpointing import checkpointed, default_states
from scoresde.solvers.carried import mapped
from scoresde.solvers.incomplete import finite_rows, without
from scoresde.solvers.progress import Bar
from scoresde.solvers.solution import CountedScore, Ending, Progress, Report, Solution, unheard


@dataclass(frozen=True)
class Solver(ABC):
    """A numerical method for :class:`~scoresde.Reverse`.

    A subclass is a frozen dataclass (its fields are its options) with :meth:`step`, and declares:

    Attributes:
        order: order of the global error for η = 0; None for methods that are no discretisation of the process.
        weak_order: order of the error in law for η > 0; None where the method does not take η > 0.
        strong_order: order of the pathwise error on one Brownian path; None as above or where not claimed.
        default_eta: the stochasticity with which ``sample`` runs the method unless told otherwise.
        steps_on_grid: whether a run is made of the grid's steps; False for a method with its own :meth:`integrate`.
        has_memory: whether a step depends on earlier ones beyond the state x.
        follows_process: whether the states at the grid's inner times follow the process, and not its end alone.
    """

    order: ClassVar[int | None] = None
    weak_order: ClassVar[float | None] = None
    strong_order: ClassVar[float | None] = None
    default_eta: ClassVar[float] = 0.0
    steps_on_grid: ClassVar[bool] = True
    has_memory: ClassVar[bool] = False
    follows_process: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Checks the fields by their annotations; a subclass that checks more calls it first."""
        checks.fields(self)

    @abstractmethod
    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """From x at time t to the state at s < t.

        Args:
            process: the reverse process.
            x: (B, *event).
            t: (), float64, on the CPU.
            s: the same.
            noise: standard normals; ask ``noise.between(x, t, s)`` for the increment of this interval.
            state: what the method remembers between steps, None at the start unless :meth:`start` says otherwise;
                tensors and numbers in tuples, lists, dicts or dataclasses, returned anew and never changed in place.
        """

    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        """State (and x) before the first step."""
        return x, None

    def check(self, process: Reverse) -> None:  # noqa: B027 (most methods take every process)
        """Raises ValueError where the method cannot integrate this process."""

    def denoised(self, process: Reverse, x: Tensor, t: Tensor) -> Tensor:
        """The x_0 (B, *event) that a last denoising step makes of x at the last time, from one evaluation."""
        return process.score.denoise(x, t)

    def draws_noise(self, process: Reverse) -> bool:
        """Whether a step needs random numbers on this process."""
        return process.eta > 0

    def judged(self, process: Reverse, x: Tensor, state: Any) -> Tensor | None:
        """The error that the run which ended with this state expects, (B,); None for a method that does not say."""
        return None

    def default_grid(self, score: Score) -> rules.Rule | Tensor:
        """The rule of the grid that goes with the method; for a method that knows only its own times, these."""
        return rules.karras

    def made_for(self, score: Score, event: tuple[int, ...]) -> Self:
        """The same solver, with what it is to take from the score and the shape of a sample (*event) filled in."""
        return self

    def selected(self, state: Any, select: Callable[[Tensor], Tensor]) -> Any:
        """What is remembered of some samples: ``state`` with each tensor of samples replaced by ``select`` of it."""
        return mapped(state, select)

    @in_evaluation_mode("self", "process")
    @answering()
    def solve(
        self,
        process: Reverse,
        x: Tensor,
        grid: Tensor,
        noise: Noise | torch.Generator | int | None = None,
        *,
        denoise: bool = False,
        trajectory: bool = False,
        callback: Callable[[Progress], None] | None = None,
        checkpoint: bool | int = False,
        progress: bool = False,
    ) -> Solution:
        """Integrate from x at grid[0] to grid[-1]; gradients flow through all of it.

        The modules behind the process and the solver are in evaluation mode meanwhile, with gradients too, and in their
        own again afterwards: see :func:`~scoresde.models.evaluating`.

        The state is carried in float32 at least, whatever the dtype of x and of the network, and in float64 where the
        grid starts above σ/α = 1e4 (:func:`state_dtype`); the solution has x's dtype.

        Args:
            process: the reverse process.
            x: (B, *event), finite, the state at grid[0].
            grid: (n + 1,) strictly decreasing times in the SDE's range. It may start where α = 0, at a score that says
                x_0 there: the first step is then x_s = α_s x̂_0 + σ_s ε.
            noise: a Noise, a generator or a seed; may be left out where nothing is drawn.
            denoise: end with E[x_0 | x] at the last time, one evaluation more; where σ = 0 there, that is x itself.
            trajectory: keep the state at every time.
            callback: called after each step. What it raises ends the run and comes out as it is.
            checkpoint: how gradients are had. False keeps the graph of every step. A number k keeps k states and no
                graph; backward computes the others again, one step's graph at a time, so that memory does not grow with
                the steps. True is k = ceil(log2 n), with which no step is done again more than log2 n times
                (Griewank & Walther 2000). The gradients are the same to rounding, of first order. Meanwhile x, states
                and parameters may not be changed in place, callbacks see states without a graph, and a ``trajectory``
                costs its n states. Without gradients it changes nothing.
            progress: show a bar: of the steps, or where the method chooses its own, of the way in log-SNR.

        Raises:
            TypeError, ValueError: bad x, grid or noise, or a process that the method cannot integrate; checkpoint for a
                method that is not made of the grid's steps, or with a noise that has no ``position()``.
            FloatingPointError: no sample's end state is finite.

        Warns:
            IncompleteWarning: some samples are not finite, and are NaN in the solution, or did not reach the last time.
        """
        checkpoint = self._check_checkpoint(checkpoint)
        denoise = checks.flag(denoise, name="denoise")
        trajectory = checks.flag(trajectory, name="trajectory")
        if callback is not None:
            checks.function(callback, name="callback", what="of a Progress", takes=1)
        checks.instance(process, Reverse, name="process", hint="Write Reverse(score, eta=0.0).")
        progress = checks.flag(progress, name="progress")
        checks.state(x, values=True)
        grid = checks.grid(grid, process.sde.t_max)
        self.check(process)
        if self.draws_noise(process):
            check_independent(process.score, what=f"{type(self).__name__}, which draws noise,")
        source = self._source(process, noise)
        source.check(grid)
        steps = len(grid) - 1
        with Bar(
            progress, type(self).__name__, process.sde, grid[0], grid[-1], steps if self.steps_on_grid else None
        ) as bar:
            counted = CountedScore(process.score, bar.asked if bar.over_evaluations else None)
            process = dataclasses.replace(process, score=counted)
            dtype, working = x.dtype, state_dtype(process.sde, grid, x.dtype)
            if working is torch.float64:
                checks.refuse_without_float64(
                    x, "a run from σ/α above 1e4", "begin at less noise: of such states float32 keeps few digits"
                )
            x = x.to(working)
            states = [x]

            def report(step: int, x: Tensor) -> None:
                if trajectory and step:
                    states.append(x)
                if callback is not None and step:
                    callback(Progress(step, steps, grid[step], x))
                if step:
                    bar.stepped()

            if checkpoint and torch.is_grad_enabled():
                budget = default_states(steps) if checkpoint is True else checkpoint
                passed = self._run_again(process, x, grid, source, report, budget, every=trajectory)
                ending, states = Ending(passed[-1]), [x, *passed]
            else:
                wanted = trajectory or callback is not None or (progress and self.steps_on_grid)
                ending = self.integrate(process, x, grid, source, report if wanted else unheard)
            x = ending.x
            denoise = denoise and ending.complete and process.sde.sigma(grid[-1]).item() > 0
            if denoise:
                x = self.denoised(process, x, grid[-1])
        finite = finite_rows(x)
        whole = bool(finite.all())
        if not whole:
            x = without(
                x,
                finite,
                f"{type(self).__name__} ended with NaN or infinite values after {counted.nfe} evaluations",
                "The score returned such values, or the steps are too long for the method: look at the trajectory with "
                "a callback, or take more steps.",
            )
        path = torch.stack(states).to(dtype) if trajectory else None
        each = ending.nfe_per_sample if ending.nfe_per_sample is None else ending.nfe_per_sample + int(denoise)
        return Solution(
            x=x.to(dtype),
            nfe=counted.nfe,
            grid=grid,
            trajectory=path,
            denoised=denoise,
            complete=ending.complete and whole,
            nfe_per_sample=each,
            reached=ending.reached,
            error=ending.error,
            finite=finite,
            scaling=counted.scaling,
        )

    def integrate(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise, report: Report) -> Ending:
        """All steps, from x at grid[0] to grid[-1]: the loop over :meth:`step`.

        A method that chooses its own steps (a library's solver, an adaptive one) overrides it, and declares
        ``steps_on_grid = False``.

        Args:
            process: its score counts evaluations.
            x: (B, *event), float32 or wider.
            grid: (n + 1,), checked.
            noise: standard normals.
            report: to be called with the number of steps done and the state, at each time of the grid but the first.
        """
        x, state = self.start(process, x, grid, noise)
        times = grid.unbind()
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            x, state = self.step(process, x, t, s, noise, state)
            report(i + 1, x)
        return Ending(x, error=self.judged(process, x, state))

    def _run_again(
        self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise, report: Report, budget: int, *, every: bool
    ) -> list[Tensor]:
        """The same with steps that are done again for their gradients: the state after each step, or the last alone."""
        x, state = self.start(process, x, grid, noise)
        times = grid.unbind()

        def step(i: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
            return self.step(process, x, times[i], times[i + 1], noise, state)

        def around() -> AbstractContextManager[None]:
            return evaluating(self, process)

        count = len(times) - 1
        return checkpointed(step, x, state, count, noise, states=budget, report=report, every=every, around=around)

    def _check_checkpoint(self, checkpoint: bool | int) -> bool | int:
        try:
            checkpoint = checks.flag(checkpoint, name="checkpoint")
        except TypeError:
            try:
                checkpoint = checks.count(checkpoint, name="checkpoint", least=0)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    "checkpoint must be True, False or how many states to keep, at least 1; got "
                    f"{checks.got(checkpoint)}."
                ) from error
        if checkpoint and not self.steps_on_grid:
            raise ValueError(
                f"{type(self).__name__} is not made of the grid's steps, so checkpoint cannot repeat them. For "
                "gradients in constant memory take a solver with steps, or the adjoint: ProbabilityFlow(adjoint=True), "
                "TorchSDE(adjoint=True)."
            )
        return checkpoint

    def _source(self, process: Reverse, noise: Noise | torch.Generator | int | None) -> Noise:
        if noise is not None:
            return as_noise(noise)
        if self.draws_noise(process):
            raise ValueError(
                f"{type(self).__name__} draws noise on a process with eta = {process.eta:g}; pass noise=, for example "
                "IndependentNoise(seed=0)."
            )
        return _NoNoise()


class _NoNoise(Noise):
    """Stands where a deterministic run has no use for noise."""

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        raise ValueError("this solver drew noise though none was given; pass noise= to solve.")

    def normal(self, x: Tensor) -> Tensor:
        return self.initial(tuple(x.shape), dtype=x.dtype, device=x.device)

    def position(self) -> object:
        return None

    def rewind(self, position: object) -> None:
        pass


def state_dtype(sde: SDE, grid: Tensor, dtype: torch.dtype) -> torch.dtype:
    """In which dtype the state of a run is carried that is asked for in ``dtype``: float32 at least.

    float64 where σ/α is above 1e4 at the first time with signal: of x = α x_0 + σ ε float32 would keep hardly three
    digits of x_0, and of the differences that a method makes of such states none.
    """
    alpha, sigma = sde.alpha(grid[:2]).detach(), sde.sigma(grid[:2]).detach()
    first = 0 if has_signal(alpha[0], sigma[0]) else 1
    return torch.float64 if sigma[first] > 1e4 * alpha[first] else torch.promote_types(dtype, torch.float32)


def arrived(solver: Solver, ending: Ending, t: Tensor, s: Tensor) -> Tensor:
    """The state of an integration from t to s, as one step within another solver's run.

    Raises:
        RuntimeError: it stopped short of s.
    """
    if not ending.complete:
        raise RuntimeError(
            f"{type(solver).__name__} did not come from t = {t:g} to {s:g} within max_steps, so that there is no state "
            "to go on from. Loosen rtol and atol, raise max_steps, or take a solver that steps on the grid."
        )
    return ending.x


def _check_pair(solver: Solver, process: Reverse) -> None:
    checks.instance(solver, Solver, name="solver")
    checks.instance(process, Reverse, name="process", hint="Write Reverse(score, eta=0.0).")


def only_ode(solver: Solver, process: Reverse) -> None:
    """For methods of the probability-flow ODE: η must be 0."""
    _check_pair(solver, process)
    if process.eta != 0:
        raise ValueError(
            f"{type(solver).__name__} integrates the probability-flow ODE; got a process with eta = {process.eta:g}. "
            "Give it Reverse(score, eta=0.0), or take a solver of the reverse SDE such as EulerMaruyama."
        )


def only_sde(solver: Solver, process: Reverse) -> None:
    """For methods written for the reverse SDE: η must be 1."""
    _check_pair(solver, process)
    if process.eta != 1:
        raise ValueError(
            f"{type(solver).__name__} samples the reverse SDE, eta = 1; got eta = {process.eta:g}. "
            "Give it Reverse(score, eta=1.0), or take DDIM or EulerMaruyama, which run on any eta."
        )
