"""Errors on the probability-flow ODE: how they fall with the steps, and with the tolerance of an adaptive solver.

:func:`ode_order` measures the order of a solver at η = 0, :func:`tolerance_slope` whether the error of a solver with
a tolerance is proportional to it::

    linear, nonlinear = ode_order(Heun(), FLOW["VP"])             # two Slopes: on Gaussian data, and on a mixture
    min(linear.order, nonlinear.order)                            # about 2
    tolerance_slope(AdaptiveODE(), WIDE["VP"]).slope              # about 1

Errors are those of the end point, whose exact value comes from :func:`~scoresde.certify.cases.exact_ends`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scoresde import checks, rules
from scoresde.certify.cases import MIXED, Grid, PlainScore, check_case, exact_ends, process_for, starts
from scoresde.certify.slopes import FEWEST_STEPS, MOST_STEPS, Slope, follow_errors
from scoresde.sde import SDE
from scoresde.solvers import Solver

FIELDS = ("rtol", "atol", "tol", "tolerance")
TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


def ode_order(
    solver: Solver, sde: SDE, grid: Grid = rules.uniform, *, first: int = FEWEST_STEPS, most: int = MOST_STEPS
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
    check_case(solver, sde, grid)
    process, x = process_for(solver, PlainScore(MIXED, sde), 0.0), starts(sde)
    gaussian, mixture = exact_ends(sde)

    def errors(n: int) -> dict[str, float]:
        end = solver.solve(process, x, grid(sde, n), 0).x
        return {
            "Gaussian": float((end[:, :3] - gaussian).norm()),
            "mixture": float((end[:, 3:] - mixture).norm()),
        }

    linear, nonlinear = follow_errors(errors, first=first, most=most)
    return linear, nonlinear


@dataclass(frozen=True)
class ToleranceSlope:
    """How an error follows the tolerance.

    Attributes:
        tolerances: what was asked for.
        errors: the errors at the end, mean over the starting points of the logarithm, each of its norm.
        evaluations: what they took.
        slope: of log error against log tolerance, by least squares; 1 is proportion.
    """

    tolerances: tuple[float, ...]
    errors: tuple[float, ...]
    evaluations: tuple[int, ...]
    slope: float


def tolerance_fields(solver: Solver) -> list[str]:
    """Its options that are named rtol, atol, tol or tolerance."""
    return [field.name for field in dataclasses.fields(solver) if field.name in FIELDS]


def tolerance_slope(solver: Solver, sde: SDE, tolerances: Sequence[float] = TOLERANCES) -> ToleranceSlope:
    """Error at the end against the tolerance, on the data of :func:`ode_order`.

    Every option of the solver that is a tolerance is set to the same value.

    Args:
        solver: takes η = 0, and has a tolerance.
        sde: see :func:`ode_order`.
        tolerances: at least three.

    Raises:
        ValueError: a solver without a tolerance, or one that does not take η = 0.
    """
    check_case(solver, sde)
    tolerances = checks.numbers(tolerances, name="tolerances", what="three positive numbers at least")
    if len(set(tolerances)) < 3 or not all(0 < tolerance < math.inf for tolerance in tolerances):
        raise ValueError(f"tolerances must be three different positive numbers at least, got {tolerances}.")
    names = tolerance_fields(solver)
    if not names:
        raise ValueError(f"solver must have an option named {', '.join(FIELDS)}; {solver!r} has none: use ode_order.")
    process = process_for(solver, MIXED.score(sde), 0.0)
    x, exact = starts(sde), torch.cat(exact_ends(sde), 1)
    errors, evaluations = [], []
    for tolerance in tolerances:
        run = dataclasses.replace(solver, **dict.fromkeys(names, tolerance))
        solution = run.solve(process, x, rules.uniform(sde, 1), 0)
        errors.append(math.exp(float((solution.x - exact).norm(dim=1).log().mean())))
        evaluations.append(solution.nfe)
    along = torch.tensor([tolerances, errors], dtype=torch.float64).log()
    along = along - along.mean(1, keepdim=True)
    slope = float((along[0] @ along[1]) / (along[0] @ along[0]))
    return ToleranceSlope(tolerances, tuple(errors), tuple(evaluations), slope)
