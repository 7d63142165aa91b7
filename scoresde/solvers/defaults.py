"""What a run has where nothing is said: its solver, its grid, its first state. One home for every entry point.

:func:`~scoresde.sample`, the particle methods and the edits call these, so that a default means the same everywhere::

    solver = chosen_solver(None, score)                     # SpectralMultistep()
    grid = chosen_grid(score, None, 25, solver, event)      # the solver's default rule, 25 steps, float64 (26,)
    x = prior_draw(score.sde, grid[0], shape, noise, dtype=torch.float32, device=None, score=score)

Each checks what it is given, and raises TypeError or ValueError with what would be right.
"""

from __future__ import annotations

import inspect
from functools import partial

import torch
from torch import Tensor

from scoresde import checks, rules
from scoresde.models.modules import parameters_of
from scoresde.models.score import Score
from scoresde.noise import Noise
from scoresde.sde import SDE
from scoresde.solvers.adapted import Adapted
from scoresde.solvers.base import Solver
from scoresde.solvers.one_step import Ancestral
from scoresde.solvers.spectral import SpectralMultistep, known_spectrum
from scoresde.solvers.wrapping import require_solver


def chosen_solver(
    solver: Solver | None, score: Score, eta: float | None = None, grid: Tensor | rules.Rule | None = None
) -> Solver:
    """The solver, by default a new SpectralMultistep; for a rough score Ancestral, unless its η = 1 is not wanted.

    On an adapted grid the default is the solver that was adapted with it.

    Raises:
        TypeError: something else.
        ValueError: none, on a grid adapted to another solver than the default.
    """
    if solver is not None:
        return require_solver(solver)
    if isinstance(grid, Adapted):
        return grid.solver
    return Ancestral() if score.rough and eta in (None, 1) else SpectralMultistep()


def chosen_grid(
    score: Score,
    grid: Tensor | rules.Rule | None,
    steps: int,
    solver: Solver,
    event: tuple[int, ...],
    *,
    start: Tensor | None = None,
) -> Tensor:
    """Times: those given, or made by a rule of so many steps, by default the solver's, from ``start`` if there is one.

    Ancestral steps of a rough score are spectral ones by default.

    ``event`` is the shape of a sample, on which the solver's rule may depend.

    Raises:
        TypeError: neither times nor a rule.
        ValueError: bad times; a start for a solver that knows only its own times.
    """
    steps = checks.count(steps, name="steps", most=rules.MOST_STEPS)
    if grid is None and score.rough and isinstance(solver, Ancestral):
        # 0.8 dB nearer on posteriors of digits than Karras' steps
        grid = partial(rules.spectral, spectrum=known_spectrum(score, event))
    grid = solver.made_for(score, event).default_grid(score) if grid is None else grid
    if start is not None and isinstance(grid, Tensor):
        raise ValueError(
            f"{type(solver).__name__} knows only its own times, which start at T; they cannot be made anew from "
            "another time. Take SpectralMultistep() or another solver."
        )
    if callable(grid) and not isinstance(grid, type):
        grid = _made(grid, score.sde, steps, {} if start is None else {"t_start": start})
    return checks.grid(grid, score.sde.t_max)


def _made(rule: rules.Rule, sde: SDE, steps: int, options: dict[str, Tensor]) -> Tensor:
    try:
        return rule(sde, steps, **options)
    except TypeError as error:
        try:
            inspect.signature(rule).bind(sde, steps, **options)
        except (TypeError, ValueError):
            asked = ", ".join(("sde", "steps", *options))
            raise TypeError(
                f"grid must be times, or a function called with ({asked}) such as grids.karras; got {checks.got(rule)}."
            ) from error
        raise


def prior_draw(
    sde: SDE,
    t: Tensor | float,
    shape: tuple[int, ...],
    noise: Noise,
    *,
    dtype: torch.dtype,
    device: torch.device | str | None,
    score: object,
) -> Tensor:
    """x ~ N(0, σ(t)² I) of ``shape`` (B, *event), on ``device`` or else where the parameters behind ``score`` are.

    Raises:
        TypeError: a dtype that is not floating.
    """
    dtype = checks.dtype(dtype)
    parameters = parameters_of(score)
    where = checks.device(device) if device is not None else parameters[0].device if parameters else torch.device("cpu")
    return noise.initial(shape, dtype=dtype, device=where) * sde.sigma(t)
