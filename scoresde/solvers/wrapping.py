"""Solvers around solvers, and what is asked of a solver that something else is built on.

:class:`Wrapping` passes everything on to its field ``solver``; a subclass, a frozen dataclass, changes the step::

    @dataclass(frozen=True)
    class Clamped(Wrapping):
        solver: Solver

        def step(self, process, x, t, s, noise, state):
            x, state = self.solver.step(process, x, t, s, noise, state)
            return x.clamp(-3, 3), state

    sample(score, shape, solver=Clamped(DDIM()))

:func:`require_solver`, :func:`require_steps` and :func:`require_process` raise where a solver will not do, and say why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Self

from torch import Tensor

from scoresde import checks, rules
from scoresde.models.score import Score
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.solvers.base import Solver


class Wrapping(Solver):
    """A solver that does something more around the steps of another one, :attr:`solver`: a field, or a property.

    It takes the processes that the other takes, on the stochasticity and the grid that go with the other, and remembers
    what the other remembers. A subclass is a frozen dataclass and writes ``step`` by the other's.
    """

    solver: Solver

    @property
    def default_eta(self) -> float:  # type: ignore[override]
        return self.solver.default_eta

    @property
    def has_memory(self) -> bool:  # type: ignore[override]
        return self.solver.has_memory

    @property
    def follows_process(self) -> bool:  # type: ignore[override]
        return self.solver.follows_process

    def default_grid(self, score: Score) -> rules.Rule | Tensor:
        return self.solver.default_grid(score)

    def made_for(self, score: Score, event: tuple[int, ...]) -> Self:
        held = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is self.solver]
        return dataclasses.replace(self, **dict.fromkeys(held, self.solver.made_for(score, event)))

    def check(self, process: Reverse) -> None:
        """What the other solver asks."""
        self.solver.check(process)

    def draws_noise(self, process: Reverse) -> bool:
        """What the other solver does."""
        return self.solver.draws_noise(process)

    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        """The other solver's."""
        return self.solver.start(process, x, grid, noise)

    def denoised(self, process: Reverse, x: Tensor, t: Tensor) -> Tensor:
        """The other solver's."""
        return self.solver.denoised(process, x, t)

    def selected(self, state: Any, select: Callable[[Tensor], Tensor]) -> Any:
        """As the other solver selects."""
        return self.solver.selected(state, select)


def require_solver(solver: object, *, name: str = "solver") -> Solver:
    """The solver, if it is one.

    Raises:
        TypeError: something else.
    """
    hint = "Write SpectralMultistep() or Heun()."
    return checks.instance(solver, Solver, name=name, hint=hint)


def require_steps(solver: Solver, why: str, otherwise: str = "") -> None:
    """Raises ValueError for a solver not made of the grid's steps, saying why that will not do, and what would."""
    if not solver.steps_on_grid:
        raise ValueError(
            f"{type(solver).__name__} is not made of the grid's steps but chooses its own steps, {why}. Take a solver "
            f"that steps on the grid, such as SpectralMultistep(), Heun() or DDIM(){otherwise}."
        )


def require_process(solver: Solver, why: str) -> None:
    """Raises ValueError for a solver whose states on the way do not follow the process, saying why that will not do."""
    if not solver.follows_process:
        raise ValueError(
            f"the states of {type(solver).__name__} between its ends do not follow the process, {why}. Take a solver "
            "of the process, such as SpectralMultistep() or DDIM()."
        )
