"""THE loop: a solver is a frozen dataclass with one step; everything around the steps is here, once.

    solution = EulerMaruyama().solve(Reverse(score, eta=1.0), x_T, grids.karras(sde, 100), noise)
    solution.x, solution.nfe

A solver of your own derives from :class:`Solver` and writes :meth:`~Solver.step`; from :class:`Planned` where its
coefficients are known before the first step; from :class:`Wrapping` where it does something more around another one's.
"""

from __future__ import annotations

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from scoresde import checks, rules
from scoresde.models.combination import Coefficient, Combination, combine
from scoresde.models.evaluation import AllModules, evaluating, in_evaluation_mode
from scoresde.models.score import Score, Units, shaped_like
from scoresde.noise import Noise, as_noise
from scoresde.reverse import Reverse
from scoresde.sde import SDE, has_signal
from scoresde.solvers._checkpointing import checkpointed, default_states
from scoresde.solvers.carried import mapped
from scoresde.solvers.incomplete import finite_rows, without
from scoresde.solvers.progress import Bar

Report = Callable[[int, Tensor], None]
"""(steps done, state): what is told after each step."""


class Progress(NamedTuple):
    """What a callback sees after each step: ``step`` of ``steps`` done, the time ``t`` reached, the state ``x``.

    Where a method chooses its own steps and there is no grid, as in a likelihood, ``steps`` is the most it will try.
    """

    step: int
    steps: int
    t: Tensor
    x: Tensor


@dataclass(frozen=True)
class Ending:
    """What the steps come to: the state, and the fields of :class:`Solution` that only some methods know.

    Samples that a method lost, to a score that answered NaN or infinity, are NaN in ``x``. ``complete`` is whether all
    others reached the last time; the method itself warns where they did not.
    """

    x: Tensor
    complete: bool = True
    nfe_per_sample: Tensor | None = None
    reached: Tensor | None = None
    error: Tensor | None = None


@dataclass(frozen=True)
class Solution:
    """Where a run ended.

    Attributes:
        x: (B, *event) the state at the last time of the grid, or E[x_0 | that state] if ``denoised``.
        nfe: score evaluations used, each for the whole batch.
        grid: (n + 1,) the times.
        trajectory: (n + 1, B, *event) the states at those times, if asked for; never denoised.
        denoised: whether a last denoising step was taken: asked for, and σ > 0 at the last time.
        complete: whether every sample reached the last time and is finite. Methods that choose their steps stop short
            of the last time at their step limit; :class:`~scoresde.solvers.IncompleteWarning` says so, and which
            samples are not finite.
        nfe_per_sample: (B,) evaluations that each sample needed, from methods whose samples step on their own.
        reached: (B,) float64, the time that each sample reached, from methods that choose their own steps.
        error: (B,) float64, what a method that judges itself expects the error of a coordinate of each sample to be,
            root mean square, in units of x_0: see :class:`~scoresde.SpectralMultistep`. None around another solver, and
            where steps are done again for gradients (``checkpoint``).
        finite: (B,) bool, whether each sample is finite; those that are not are NaN throughout, and in no way change
            the others.
        scaling: the map from x to the units of the data, where the score knows it.
    """

    x: Tensor
    nfe: int
    grid: Tensor
    trajectory: Tensor | None = None
    denoised: bool = False
    complete: bool = True
    nfe_per_sample: Tensor | None = None
    reached: Tensor | None = None
    error: Tensor | None = None
    finite: Tensor | None = None
    scaling: Units | None = None

    @property
    def data(self) -> Tensor:
        """The samples in the units of the data, ``scaling.to_data(x)``: (B, *event), not rounded to levels.

        float64 where float32 cannot hold them.

        Raises:
            ValueError: the score did not know its scaling.
        """
        if self.scaling is None:
            raise ValueError(
                "the score does not know the units of its data: a model knows them that train() made from a data set "
                "with a scaling, or load_model from its checkpoint; else set model.scaling = dataset.scaling, or take "
                "dataset.scaling.to_data(solution.x)."
            )
        return self.scaling.to_data(self.x)


class CountedScore(Score):
    """Another score, which counts its evaluations, tells ``asked`` of them and refuses an answer of another shape."""

    def __init__(self, score: Score, asked: Callable[[Tensor], None] | None = None) -> None:
        self.score, self.nfe, self._asked = score, 0, asked
        self.sigma_data, self.spectrum = score.sigma_data, score.spectrum
        self.scaling, self.rough = score.scaling, score.rough
        self._behind = AllModules([score])

    @property
    def sde(self) -> SDE:  # type: ignore[override]
        return self.score.sde

    @property
    def amplification(self) -> float:  # type: ignore[override]
        return self.score.amplification  # asked of the score only by who needs it: a schedule's is a search

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        self.nfe += 1
        if self._asked is not None:
            self._asked(t)
        if not self._behind.evaluated():  # in a backward pass that evaluates once more
            with self._behind.evaluating():
                return shaped_like(self.score.evaluate(x, t, wanted), x, "the score")
        return shaped_like(self.score.evaluate(x, t, wanted), x, "the score")


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
        source = self._source(process, noise)
        source.check(grid)
        steps = len(grid) - 1
        with Bar(
            progress, type(self).__name__, process.sde, grid[0], grid[-1], steps if self.steps_on_grid else None
        ) as bar:
            counted = CountedScore(process.score, bar.asked if bar.over_evaluations else None)
            process = dataclasses.replace(process, score=counted)
            dtype, x = x.dtype, x.to(state_dtype(process.sde, grid, x.dtype))
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
                stacklevel=2,
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


class Plan(NamedTuple):
    """The state of a planned solver: what each step needs, the steps done, what the method remembers, its times."""

    rows: Sequence[Any]
    done: int
    memory: Any
    times: Sequence[float]


class FromPrior(NamedTuple):
    """The step from a time without signal, α = 0, where x is noise: x_s = linear x + α_s x̂_0 + fresh z."""

    linear: Coefficient
    alpha: Coefficient
    fresh: Coefficient

    def take(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        """One evaluation, of x̂_0 at t."""
        terms = [(self.linear, x), (self.alpha, process.score.denoise(x, t))]
        if isinstance(self.fresh, Tensor):
            terms.append((self.fresh, noise.between(x, t, s)))
        return combine(*terms)


def from_prior(sde: SDE, t: Tensor, s: Tensor, *, draws: bool) -> FromPrior | None:
    """x_s = α_s x̂_0 + σ_s x_T/σ_T, or with fresh noise in place of x_T/σ_T where ``draws``; None where α(t) > 0."""
    if has_signal(sde.alpha(t), sde.sigma(t)):
        return None
    sigma = sde.sigma(s)
    return FromPrior(0.0 if draws else sigma / sde.sigma(t), sde.alpha(s), sigma if draws else 0.0)


@dataclass(frozen=True)
class Planned(Solver):
    """A solver that asks the schedule once, for all steps together, so that a step costs no more than its tensors.

    A subclass gives :meth:`plan` and :meth:`advance` in place of ``step``. Both see times with α > 0 only: a first step
    from α = 0, where x_T says nothing of x_0, goes to x_s = α_s x̂_0 + σ_s x_T/σ_T, with fresh noise in place of x_T/σ_T
    for a method that draws any; what a method remembers begins after it.
    """

    @abstractmethod
    def plan(self, process: Reverse, grid: Tensor) -> Sequence[Any]:
        """What each of the n steps of ``grid`` (n + 1,) needs, of a solver that is :meth:`made_for` them.

        Raises:
            ValueError: a step cannot be taken.
        """

    @abstractmethod
    def advance(
        self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, row: Any, memory: Any
    ) -> tuple[Tensor, Any]:
        """The step from t to s with its ``row`` of the plan; ``memory`` is what the last step returned, or None."""

    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        """The plan."""
        return x, Plan(self._planned(process, x, grid), 0, None, grid.tolist())

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """The next step of the plan that :meth:`start` made; without a state, or at other times, one on its own.

        Raises:
            ValueError: other times than the plan's, from a method that remembers past steps.
        """
        plan: Plan | None = state
        if plan is None or plan.times[plan.done : plan.done + 2] != [t.item(), s.item()]:
            if plan is not None and plan.memory is not None:
                raise ValueError(
                    f"{type(self).__name__} remembers the steps of its grid, of which none goes from t = {t:g} to "
                    f"{s:g} now. Call start with the times that you will take, or state None for a new beginning."
                )
            plan = Plan(self._planned(process, x, torch.stack([t, s])), 0, None, [t.item(), s.item()])
        row = plan.rows[plan.done]
        if isinstance(row, FromPrior):
            x, memory = row.take(process, x, t, s, noise), None
        else:
            x, memory = self.advance(process, x, t, s, noise, row, plan.memory)
        return x, Plan(plan.rows, plan.done + 1, memory, plan.times)

    def selected(self, state: Any, select: Callable[[Tensor], Tensor]) -> Any:
        """The plan belongs to the grid, not to samples."""
        return state._replace(memory=mapped(state.memory, select))

    def _planned(self, process: Reverse, x: Tensor, grid: Tensor) -> Sequence[Any]:
        first = from_prior(process.sde, grid[0], grid[1], draws=self.draws_noise(process))
        made = self.made_for(process.score, tuple(x.shape[1:]))
        if first is None:
            return made.plan(process, grid)
        return [first, *(made.plan(process, grid[1:]) if len(grid) > 2 else ())]


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


def unheard(step: int, x: Tensor) -> None:
    """The report of a run whose inner states nobody asked for: methods need not work them out."""


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
