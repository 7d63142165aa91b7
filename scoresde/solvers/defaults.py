"""What goes with a solver where nothing is said: the solver itself, and its grid. One home for every entry point."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from scoresde import checks, grids
from scoresde.sde import SDE
from scoresde.solvers.base import Solver
from scoresde.solvers.fitted import Fitted
from scoresde.solvers.velocity import VelocityMultistep

GridRule = Callable[..., Tensor]
"""(sde, steps) -> times, as those of :mod:`scoresde.grids`, which also take t_start=... ."""


def chosen_solver(solver: Solver | None) -> Solver:
    """The solver, by default a new VelocityMultistep.

    Raises:
        TypeError: something else.
    """
    if solver is None:
        return VelocityMultistep()
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a Solver such as VelocityMultistep() or Heun(), got {solver!r}.")
    return solver


def default_grid(solver: Solver) -> GridRule:
    """The rule of the grid that goes with a solver.

    Raises:
        ValueError: a fitted sampler, which has times instead of a rule.
    """
    if isinstance(solver, Fitted):
        raise ValueError(
            "a fitted sampler knows only its own times, which start at T; they cannot be made anew from another time. "
            "Take VelocityMultistep() or another solver."
        )
    if isinstance(solver, VelocityMultistep):
        return partial(grids.balanced, sigma_data=solver.sigma_data)
    return grids.karras


def chosen_grid(sde: SDE, grid: Tensor | GridRule, steps: int, *, start: Tensor | None = None) -> Tensor:
    """Times: those given, or made by a rule of so many steps, from ``start`` if there is one; see :func:`checks.grid`.

    Raises:
        TypeError: neither times nor a rule. ValueError: bad times.
    """
    if callable(grid):
        grid = grid(sde, steps) if start is None else grid(sde, steps, t_start=start)
    try:
        times = grid if isinstance(grid, Tensor) else checks.real(grid, name="grid")
    except TypeError as error:
        raise TypeError(
            f"grid must be times or a function of scoresde.grids such as grids.karras, got {grid!r}."
        ) from error
    return checks.grid(times, sde.t_max)


def steps_on_the_grid(solver: Solver, why: str, otherwise: str = "") -> None:
    """Raises ValueError for a solver not made of the grid's steps, saying why that will not do, and what would."""
    if type(solver)._run is not Solver._run:
        raise ValueError(
            f"{type(solver).__name__} is not made of the grid's steps but chooses its own steps, {why}. Take a solver "
            f"that steps on the grid, such as VelocityMultistep(), Heun() or DDIM(){otherwise}."
        )
