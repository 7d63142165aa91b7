"""A solver that keeps a part of the state where it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from scoresde.editing.inputs import blend
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.solvers import Solver
from scoresde.solvers.defaults import steps_on_the_grid

Known = Callable[[int, Tensor, Noise], Tensor]
"""(i, t, noise) -> what is known of the state after i steps, at time t = grid[i]: (B, *event)."""


class Place(NamedTuple):
    """The steps done, and the inner solver's own state."""

    done: int
    inner: Any


@dataclass(frozen=True, eq=False)
class Held(Solver):
    """The inner solver's steps, after each of which the state outside the mask is put back to what is known.

    Args:
        inner: a solver made of the grid's steps.
        mask: 1 where the inner solver's state is taken, 0 where the known one is.
        known: see :data:`Known`.

    Raises:
        ValueError: a solver that chooses its own steps.
    """

    inner: Solver
    mask: Tensor
    known: Known

    def __post_init__(self) -> None:
        steps_on_the_grid(
            self.inner, "between which nothing can be put back outside the mask", ", or leave the mask out"
        )

    def check(self, process: Reverse) -> None:
        """That of the inner solver."""
        self.inner.check(process)

    def draws_noise(self, process: Reverse) -> bool:
        """That of the inner solver."""
        return self.inner.draws_noise(process)

    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        """The inner solver's start."""
        x, state = self.inner.start(process, x, grid, noise)
        return x, Place(0, state)

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """The inner step, then what is known."""
        place: Place = state
        x, inner = self.inner.step(process, x, t, s, noise, place.inner)
        done = place.done + 1
        return blend(self.mask, x, self.known(done, s, noise)), Place(done, inner)
