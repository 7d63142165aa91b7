"""Gradients through a run in memory that does not grow with its steps: states are kept here and there, steps redone."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.noise import Noise
from scoresde.solvers import carried
from scoresde.solvers._closures import Listener, derived, stopped

Step = Callable[[int, Tensor, Any], tuple[Tensor, Any]]
"""(i, x, state) before step i -> (x, state) after it."""

Around = Callable[[], AbstractContextManager[Any]]

Gradients = list[Tensor | None]
"""Of the tensors of (x, state), x first."""


def default_states(steps: int) -> int:
    """ceil(log2(n)), at least 1."""
    return max(1, (steps - 1).bit_length())


def left_part(length: int, states: int) -> int:
    """Where to keep the next state on a stretch of ``length`` > 1 steps whose first state is kept, of at most
    ``states`` in all: the offset of the split that has the fewest steps repeated.

    With c states, C(c + r, c) steps can be reversed so that none is repeated more than r times (Griewank & Walther
    2000, doi:10.1145/347837.347846).
    """
    if states < 2:
        return length - 1
    repeats = 1
    while math.comb(states + repeats, states) < length:
        repeats += 1
    least = math.comb(states + repeats - 2, states) if repeats > 1 else 1
    return max(1, least, length - math.comb(states - 1 + repeats, states - 1))


class KeptState(NamedTuple):
    """A state to start again from: where the random numbers stood, and what shows that it was changed in place."""

    x: Tensor
    state: Any
    position: object
    torch_state: tuple[Tensor, ...]
    contents: list[int]


class RepeatedRun:
    """A run whose steps can be done again."""

    def __init__(
        self, step: Step, x: Tensor, state: Any, steps: int, noise: Noise, states: int, around: Around
    ) -> None:
        self._step, self._steps, self._noise, self._states, self._around = step, steps, noise, states, around
        self._draws = True  # from torch's own generators; known after the way forward
        self._device = x.device
        kind = x.device.type
        self._autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        # What is there before the first step and stays as it is (a plan, for example) is no variable of the run: if it
        # requires a gradient, the listener finds it.
        self._initial = carried.nodes(state)
        self._fixed = {id(node) for node in self._initial}
        self._contents = carried.contents(self._initial)
        self._first = self._keep(x.detach(), state)
        self.closures: list[tuple[Tensor, int, int]] = []

    # -- forward -----------------------------------------------------------------------------------------------

    def forward(self, report: Callable[[int, Tensor], None], every: bool) -> list[Tensor]:
        """x after each step, or after the last alone, without a graph."""
        listener, (x, state, *_) = Listener(), self._first
        states: list[Tensor] = []
        for i in range(self._steps):
            listener.step = i
            with torch.no_grad(), self._casting(), listener:
                x, state = self._plain(self._step(i, x, state))
            if every or i == self._steps - 1:
                states.append(x)
            report(i + 1, x)
        first = self._first
        if (carried.contents(self._initial), self._changes(first.x, first.state)) != (self._contents, first.contents):
            raise TypeError(
                "a step changed x or its state in place; with checkpoint, a step leaves what it was given as it was "
                "and returns another."
            )
        self.closures = listener.outside()
        self._draws = listener.drew
        return states

    def _plain(self, after: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        """Without graphs that the step may have built of its own."""

        def plain(t: Tensor) -> Tensor:
            return t.detach() if t.requires_grad else t

        x, state = after
        return plain(x), carried.mapped(state, plain, self._fixed)

    def _casting(self) -> AbstractContextManager[Any]:
        enabled, dtype = self._autocast
        # no cache: a cast that was made without gradients would be reused with them
        return torch.autocast(self._device.type, enabled=enabled, dtype=dtype, cache_enabled=False)

    # -- backward ----------------------------------------------------------------------------------------------

    def backward(self, ends: Gradients, needed: list[bool]) -> tuple[Tensor | None, Gradients]:
        """The gradients of the first x and of each closure, from those of what :meth:`forward` answered.

        Args:
            ends: of x after each step, or after the last alone.
            needed: which closures to follow.
        """
        before = [None] * (self._steps - len(ends))
        sweep = _Sweep(self, [*before, *ends], [c if n else None for c, n in zip(self.closures, needed, strict=True)])
        position = self._noise.position()
        cuda = [self._device] if self._device.type == "cuda" else []
        try:
            # a generator that other threads draw from is left alone unless the score itself draws from it
            with self._around(), torch.random.fork_rng(devices=cuda, enabled=self._draws):
                sweep.reverse(0, self._steps, self._first, self._states)
        finally:
            self._noise.rewind(position)
        return sweep.entering[0], sweep.closures

    def _keep(self, x: Tensor, state: Any) -> KeptState:
        stands: tuple[Tensor, ...] = ()
        if self._draws:
            cuda = (torch.cuda.get_rng_state(self._device),) if self._device.type == "cuda" else ()
            stands = torch.get_rng_state(), *cuda
        return KeptState(x, state, self._noise.position(), stands, self._changes(x, state))

    def _changes(self, x: Tensor, state: Any) -> list[int]:
        return carried.contents((x, *carried.tensors(state, self._fixed)))[1:]

    def restore(self, kept: KeptState) -> tuple[Tensor, Any]:
        """x and state, with the random numbers that followed them to come again."""
        if self._changes(kept.x, kept.state) != kept.contents:
            raise RuntimeError(
                "a tensor that a step was given has been changed in place since: with checkpoint, steps and their "
                "caller leave such tensors as they are until the gradients are had."
            )
        self._noise.rewind(kept.position)
        if self._draws:
            torch.set_rng_state(kept.torch_state[0])
            for state in kept.torch_state[1:]:
                torch.cuda.set_rng_state(state, self._device)
        return kept.x, kept.state

    def advance(self, i: int, j: int, kept: KeptState) -> KeptState:
        """From the state before step i to that before step j."""
        x, state = self.restore(kept)
        with torch.no_grad(), self._casting():
            for k in range(i, j):
                x, state = self._plain(self._step(k, x, state))
        return self._keep(x, state)

    def again(self, i: int, kept: KeptState) -> tuple[list[Tensor], list[Tensor]]:
        """Step i with its graph: the tensors that enter it, and those that leave it, x first in both."""
        x, state = self.restore(kept)
        entering: list[Tensor] = []

        def fresh(t: Tensor) -> Tensor:
            entering.append(t.detach().requires_grad_(t.is_floating_point() or t.is_complex()))
            return entering[-1]

        x = fresh(x)
        state = carried.mapped(state, fresh, self._fixed)
        with torch.enable_grad(), self._casting():
            x, state = self._step(i, x, state)
        return entering, [x, *carried.tensors(state, self._fixed)]


class _Sweep:
    """One pass backwards over a run."""

    def __init__(self, run: RepeatedRun, ends: Gradients, closures: list[tuple[Tensor, int, int] | None]) -> None:
        self._run, self._ends, self._asked = run, ends, closures
        self.closures: Gradients = [None] * len(closures)
        self.entering: Gradients = []  # of the tensors of (x, state) before the step done last, x first
        values = [(k, entry[0]) for k, entry in enumerate(closures) if entry is not None]
        self._derived = {values[i][0] for i in derived(value for _, value in values)}

    def reverse(self, i: int, j: int, kept: KeptState, states: int) -> None:
        """Back from step j to before step i, where ``states`` can be held."""
        while j - i > 1:
            middle = i + left_part(j - i, states)
            self.reverse(middle, j, self._run.advance(i, middle, kept), states - 1)
            j = middle
        self._one(i, kept)

    def _one(self, i: int, kept: KeptState) -> None:
        entering, leaving = self._run.again(i, kept)
        known = self.entering or [None] * len(leaving)
        known[0] = _sum(known[0], self._ends[i])
        flowing = [(t, g) for t, g in zip(leaving, known, strict=True) if g is not None and t.requires_grad]
        asked = [
            (k, entry[0]) for k, entry in enumerate(self._asked) if entry is not None and entry[1] <= i <= entry[2]
        ]
        wanted = [t for t in entering if t.requires_grad] + [value for _, value in asked]
        self.entering = [None] * len(entering)
        if not flowing or not wanted:
            return
        with stopped(value for k, value in asked if k in self._derived) as caught:
            found = iter(
                torch.autograd.grad(
                    [t for t, _ in flowing],
                    wanted,
                    [g for _, g in flowing],
                    allow_unused=True,
                    retain_graph=any(k in self._derived for k, _ in asked),  # the caller's graph is run through
                )
            )
        self.entering = [next(found) if t.requires_grad else None for t in entering]
        for (k, value), gradient in zip(asked, found, strict=True):
            # what came to a hook: whether ``grad`` answers that or what the hook returned differs between versions
            self.closures[k] = _sum(self.closures[k], caught.get(id(value), gradient))


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


class _Joined(torch.autograd.Function):
    """One node of the graph for a whole run."""

    @staticmethod
    def forward(ctx: Any, run: RepeatedRun, ends: list[Tensor], x: Tensor, *closures: Tensor) -> tuple[Tensor, ...]:
        ctx.run = run
        ctx.save_for_backward(x, *closures)
        ctx.set_materialize_grads(False)
        return tuple(end.detach() for end in ends)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "checkpoint gives first derivatives only: call backward without create_graph, or take checkpoint=False."
            )
        _ = ctx.saved_tensors  # refuses tensors that were changed in place, and a second pass over a freed graph
        first, closures = ctx.run.backward(list(gradients), list(ctx.needs_input_grad[3:]))
        return None, None, first, *closures


def checkpointed(
    step: Step,
    x: Tensor,
    state: Any,
    steps: int,
    noise: Noise,
    *,
    states: int,
    report: Callable[[int, Tensor], None],
    every: bool,
    around: Around = nullcontext,
) -> list[Tensor]:
    """x after each step (``every``) or after the last alone, with gradients that repeat the steps.

    Forward the steps run without a graph. Backward, one step's graph stands at a time; the states before it are
    computed again from the at most ``states`` that are kept. Gradients reach x, tensors that ``state`` brings along,
    and every other tensor that entered an operation of the steps (see :class:`~scoresde.solvers._closures.Listener`).

    Args:
        around: makes the context in which steps are done again: the one in which they were done first.

    Raises:
        TypeError: a state of other things than tensors and numbers, or changed in place; a noise without position().
        RuntimeError: from backward, where tensors have been changed in place since, or for second derivatives.
    """
    run = RepeatedRun(step, x, state, steps, noise, states, around)
    ends = run.forward(report, every)
    answer: tuple[Tensor, ...] = _Joined.apply(run, ends, x, *(value for value, _, _ in run.closures))
    return list(answer)
