"""How the error of an adaptive solver follows its tolerance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scoresde import grids
from scoresde.certify.cases import MIXED, exact_ends, starts
from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.solvers import Solver

FIELDS = ("rtol", "atol", "tol", "tolerance")
TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


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


def has_tolerance(solver: Solver) -> bool:
    """Whether one of its options is named rtol, atol, tol or tolerance."""
    return bool(_names(solver))


def _names(solver: Solver) -> list[str]:
    return [field.name for field in dataclasses.fields(solver) if field.name in FIELDS]


def tolerance_slope(solver: Solver, sde: SDE, tolerances: Sequence[float] = TOLERANCES) -> ToleranceSlope:
    """Error at the end against the tolerance, on Gaussian data and a mixture (:func:`~scoresde.certify.ode_order`).

    Every option of the solver that is a tolerance is set to the same value.

    Args:
        solver: takes η = 0, and has a tolerance.
        sde: see :func:`~scoresde.certify.ode_order`.
        tolerances: at least three.

    Raises:
        ValueError: a solver without a tolerance, or one that does not take η = 0.
    """
    names = _names(solver)
    if not names:
        raise ValueError(f"{type(solver).__name__} has no option named {', '.join(FIELDS)}: use ode_order.")
    process = Reverse(sde, MIXED.score(sde), eta=0.0)
    solver.check(process)
    x, exact = starts(sde), torch.cat(exact_ends(sde), 1)
    errors, evaluations = [], []
    for tolerance in tolerances:
        run = dataclasses.replace(solver, **dict.fromkeys(names, tolerance))
        solution = run.solve(process, x, grids.uniform(sde, 1), 0)
        errors.append(math.exp(float((solution.x - exact).norm(dim=1).log().mean())))
        evaluations.append(solution.nfe)
    along = torch.tensor([tolerances, errors], dtype=torch.float64).log()
    along = along - along.mean(1, keepdim=True)
    slope = float((along[0] @ along[1]) / (along[0] @ along[0]))
    return ToleranceSlope(tuple(tolerances), tuple(errors), tuple(evaluations), slope)
