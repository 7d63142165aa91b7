"""THE loop: a solver is a frozen dataclass with one step; everything around the steps is here, once."""

from __future__ import annotations

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoresde import checks
from scoresde.noise import Noise, as_noise
from scoresde.reverse import Reverse
from scoresde.score import Score
from scoresde.solvers.checkpointing import checkpointed, default_states


class Progress(NamedTuple):
    """What a callback sees after each step: ``step`` of ``steps`` done, the time ``t`` reached, the state ``x``."""

    step: int
    steps: int
    t: Tensor
    x: Tensor


@dataclass(frozen=True)
class Solution:
    """Where a run ended.

    Attributes:
        x: (B, *event) the state at the last time of the grid, or E[x_0 | that state] if ``denoised``.
        nfe: score evaluations used, each for the whole batch.
        grid: (n + 1,) the times.
        trajectory: (n + 1, B, *event) the states at those times, if asked for; never denoised.
        denoised: whether a last denoising step was taken: asked for, and σ > 0 at the last time.
        complete: whether every sample reached the last time; adaptive methods stop short of it at their step limit.
        nfe_per_sample: (B,) evaluations that each sample needed, from methods whose samples step on their own.
        reached: (B,) float64, the time that each sample reached, from the same methods.
    """

    x: Tensor
    nfe: int
    grid: Tensor
    trajectory: Tensor | None = None
    denoised: bool = False
    complete: bool = True
    nfe_per_sample: Tensor | None = None
    reached: Tensor | None = None


@dataclass(frozen=True)
class Ending:
    """What the steps come to: the state, and the fields of :class:`Solution` that only adaptive methods know."""

    x: Tensor
    complete: bool = True
    nfe_per_sample: Tensor | None = None
    reached: Tensor | None = None


class CountedScore:
    """A score that counts its evaluations, refuses an answer of another shape and keeps x's dtype."""

    def __init__(self, score: Score) -> None:
        self.score, self.nfe = score, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.nfe += 1
        out = self.score(x, t)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"the score must return a tensor shaped like x, {tuple(x.shape)}; it returned {got}.")
        return out.to(x.dtype)


@dataclass(frozen=True)
class Solver(ABC):
    """A numerical method for :class:`~scoresde.Reverse`.

    A subclass is a frozen dataclass (its fields are its options) with :meth:`step`, and declares:

    Attributes:
        order: order of the global error for η = 0; None for methods that are no discretisation of the process.
        weak_order: order of the error in law for η > 0; None where the method does not take η > 0.
        strong_order: order of the pathwise error on one Brownian path; None as above or where not claimed.
        default_eta: the dial on which ``sample`` runs the method unless told otherwise.
    """

    order: ClassVar[int | None] = None
    weak_order: ClassVar[float | None] = None
    strong_order: ClassVar[float | None] = None
    default_eta: ClassVar[float] = 0.0

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

    def clean(self, process: Reverse, x: Tensor, t: Tensor) -> Tensor:
        """The x_0 (B, *event) that a last denoising step makes of x at the last time, from one evaluation."""
        return process.denoise(x, t)

    def draws_noise(self, process: Reverse) -> bool:
        """Whether a step needs random numbers on this process."""
        return process.eta > 0

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
    ) -> Solution:
        """Integrate from x at grid[0] to grid[-1]; gradients flow through all of it.

        Args:
            process: the reverse process.
            x: (B, *event), finite, the state at grid[0]; its dtype and device are kept.
            grid: (n + 1,) strictly decreasing times in the SDE's range.
            noise: a Noise, a generator or a seed; may be left out where nothing is drawn.
            denoise: end with E[x_0 | x] at the last time, one evaluation more; where σ = 0 there, that is x itself.
            trajectory: keep the state at every time.
            callback: called after each step.
            checkpoint: how gradients are had. False keeps the graph of every step. A number k keeps k states and no
                graph; backward computes the others again, one step's graph at a time, so that memory does not grow with
                the steps. True is k = ceil(log2 n), with which no step is done again more than log2 n times
                (:func:`~scoresde.solvers.checkpointing.left_part`). The gradients are the same to rounding, of first
                order. Meanwhile x, states and parameters may not be changed in place, callbacks see states
                without a graph, and a ``trajectory`` costs its n states. Without gradients it changes nothing.

        Raises:
            TypeError, ValueError: bad x, grid or noise, or a process that the method cannot integrate; checkpoint for a
                method that is not made of the grid's steps, or with a noise that has no ``position()``.
            FloatingPointError: the end state is not finite.
        """
        self._check_checkpoint(checkpoint)
        checks.state(x, values=True)
        grid = checks.grid(grid, process.sde.t_max)
        self.check(process)
        source = self._noise(process, noise)
        source.check(grid)
        counted = CountedScore(process.score)
        process = dataclasses.replace(process, score=counted)
        states = [x]

        def report(step: int, x: Tensor) -> None:
            if trajectory and step:
                states.append(x)
            if callback is not None and step:
                callback(Progress(step, len(grid) - 1, grid[step], x))

        if checkpoint and torch.is_grad_enabled():
            room = default_states(len(grid) - 1) if checkpoint is True else checkpoint
            passed = self._run_again(process, x, grid, source, report, room, every=trajectory)
            ending, states = Ending(passed[-1]), [x, *passed]
        else:
            wanted = trajectory or callback is not None
            ending = self._run(process, x, grid, source, report if wanted else unheard)
        x = ending.x
        denoise = denoise and ending.complete and process.sde.sigma(grid[-1]).item() > 0
        if denoise:
            x = self.clean(process, x, grid[-1])
        if x.numel() and not bool(torch.isfinite(x.detach()).all()):
            raise FloatingPointError(
                f"{type(self).__name__} ended with NaN or infinite values after {counted.nfe} evaluations. The score "
                "returned such values, or the steps are too long for the method: look at the trajectory with a "
                "callback, or take more steps."
            )
        path = torch.stack(states) if trajectory else None
        each = ending.nfe_per_sample if ending.nfe_per_sample is None else ending.nfe_per_sample + int(denoise)
        return Solution(x, counted.nfe, grid, path, denoise, ending.complete, each, ending.reached)

    def _run(
        self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise, report: Callable[[int, Tensor], None]
    ) -> Ending:
        """All steps. Black-box backends and adaptive methods override this."""
        x, state = self.start(process, x, grid, noise)
        times = grid.unbind()
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            x, state = self.step(process, x, t, s, noise, state)
            report(i + 1, x)
        return Ending(x)

    def _run_again(
        self,
        process: Reverse,
        x: Tensor,
        grid: Tensor,
        noise: Noise,
        report: Callable[[int, Tensor], None],
        room: int,
        *,
        every: bool,
    ) -> list[Tensor]:
        """The same with steps that are done again for their gradients: the state after each step, or the last alone."""
        x, state = self.start(process, x, grid, noise)
        times = grid.unbind()

        def step(i: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
            return self.step(process, x, times[i], times[i + 1], noise, state)

        return checkpointed(step, x, state, len(times) - 1, noise, states=room, report=report, every=every)

    def _check_checkpoint(self, checkpoint: bool | int) -> None:
        if not isinstance(checkpoint, int) or checkpoint < 0:
            raise ValueError(
                f"checkpoint must be True, False or how many states to keep, at least 1; got {checkpoint!r}."
            )
        if checkpoint and type(self)._run is not Solver._run:
            raise ValueError(
                f"{type(self).__name__} is not made of the grid's steps, so checkpoint cannot repeat them. For "
                "gradients in constant memory take a solver with steps, or the adjoint: ProbabilityFlow(adjoint=True), "
                "TorchSDE(adjoint=True)."
            )

    def _noise(self, process: Reverse, noise: Noise | torch.Generator | int | None) -> Noise:
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


def unheard(step: int, x: Tensor) -> None:
    """The report of a run whose inner states nobody asked for: methods need not work them out."""


def only_ode(solver: Solver, process: Reverse) -> None:
    """For methods of the probability-flow ODE: η must be 0."""
    if process.eta != 0:
        raise ValueError(
            f"{type(solver).__name__} integrates the probability-flow ODE; got a process with eta = {process.eta:g}. "
            "Give it Reverse(sde, score, eta=0.0), or take a solver of the reverse SDE such as EulerMaruyama."
        )


def only_sde(solver: Solver, process: Reverse) -> None:
    """For methods written for the reverse SDE: η must be 1."""
    if process.eta != 1:
        raise ValueError(
            f"{type(solver).__name__} samples the reverse SDE, eta = 1; got eta = {process.eta:g}. "
            "Give it Reverse(sde, score, eta=1.0), or take DDIM or EulerMaruyama, which run on any eta."
        )
