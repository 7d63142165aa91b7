"""A solver around a solver that puts a part of the state back to what is known, after each step.

:class:`Held` is how :func:`~scoresde.editing.sdedit` and :func:`~scoresde.editing.diffedit` leave what is outside a
mask as it was. The mask is 1 where the solver inside decides, and ``known`` gives the state elsewhere after i steps::

    held = Held(SpectralMultistep(), mask, known=lambda i, t, noise: states[i])
    held.solve(Reverse(score, eta=0.0), states[0], grid)

The solver inside must step on the grid: one that chooses its own steps is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from scoresde.editing.inputs import blend
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.solvers.base import Solver
from scoresde.solvers.wrapping import Wrapping, require_steps

Known = Callable[[int, Tensor, Noise], Tensor]
"""(i, t, noise) -> what is known of the state after i steps, at time t = grid[i]: (B, *event)."""


class HeldState(NamedTuple):
    """The steps done, and the state of the solver inside."""

    done: int
    inside: Any


@dataclass(frozen=True, eq=False)
class Held(Wrapping):
    """Another solver's steps, after each of which the state outside the mask is put back to what is known.

    Args:
        solver: the one inside, made of the grid's steps.
        mask: 1 where the state of the solver inside is taken, 0 where the known one is.
        known: see :data:`Known`.

    Raises:
        ValueError: a solver that chooses its own steps.
    """

    solver: Solver
    mask: Tensor
    known: Known

    def __post_init__(self) -> None:
        require_steps(self.solver, "between which nothing can be put back outside the mask", ", or leave the mask out")

    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        """The start of the solver inside."""
        x, inside = super().start(process, x, grid, noise)
        return x, HeldState(0, inside)

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """The step of the solver inside, then what is known."""
        x, inside = self.solver.step(process, x, t, s, noise, state.inside)
        done = state.done + 1
        return blend(self.mask, x, self.known(done, s, noise)), HeldState(done, inside)

    def selected(self, state: Any, select: Callable[[Tensor], Tensor]) -> Any:
        """As the solver inside selects."""
        return state._replace(inside=super().selected(state.inside, select))
