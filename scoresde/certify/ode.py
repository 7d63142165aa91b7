"""Order of a solver on the probability-flow ODE."""

from __future__ import annotations

from scoresde import grids
from scoresde.certify.cases import MIXED, Grid, exact_ends, starts
from scoresde.certify.slopes import FIRST, MOST, Slope, follow
from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.solvers import Solver


def ode_order(
    solver: Solver, sde: SDE, grid: Grid = grids.uniform, *, first: int = FIRST, most: int = MOST
) -> tuple[Slope, Slope]:
    """Slopes of the end-point error at η = 0, with the solver's own start-up: on Gaussian data, and on a mixture.

    The Gaussian end point is exact (:meth:`~scoresde.Gaussian.flow`), that of the mixture known to 1e-13. A solver
    has order p where both slopes are p: the ODE of Gaussian data is linear, so a method may gain an order there that it
    does not have.

    Args:
        solver: takes η = 0.
        sde: its range [t_min, T] had better leave out the last decades of log-SNR, where the steps at which an order
            shows are many.
        grid: one of :mod:`scoresde.grids`, or any function of (sde, steps).
        first: the fewest steps.
        most: the most steps.

    Returns:
        The two :class:`Slope`: "Gaussian" and "mixture". Errors are norms over three starting points and all axes.

    Raises:
        ValueError: the solver does not take η = 0.
    """
    process = Reverse(sde, MIXED.score(sde), eta=0.0)
    solver.check(process)
    x = starts(sde)
    gaussian, mixture = exact_ends(sde)

    def errors(n: int) -> dict[str, float]:
        end = solver.solve(process, x, grid(sde, n), 0).x
        return {
            "Gaussian": float((end[:, :3] - gaussian).norm()),
            "mixture": float((end[:, 3:] - mixture).norm()),
        }

    linear, nonlinear = follow(errors, first=first, most=most)
    return linear, nonlinear
