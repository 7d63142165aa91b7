"""Any linear solver as the table of its coefficients, found by running it on symbols.

:func:`record` hands a solver vectors of coefficients in place of samples, and a denoiser that answers unit vectors;
what comes out is a :class:`~scoresde.solvers.fitted.LinearMethod`, which :func:`run` applies to any score::

    method = record(DDIM(), sde, grids.karras(sde, 5))
    run(method, score, x_T)                                 # what DDIM().solve does at η = 0, to rounding
    evaluations(DDIM(), sde, grids.karras(sde, 5))          # 5

A solver whose states are not linear in the start and the score's values, or that chooses its steps, raises ValueError.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.models import Score, score_of_denoiser
from scoresde.models.combination import combine
from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.solvers import Solver
from scoresde.solvers.advice import unadvised
from scoresde.solvers.fitted import LinearMethod


def run(method: LinearMethod, score: Score, x: Tensor) -> Tensor:
    """The end of the method from x (B, *event) at T.

    Coefficients and times may be numbers, or tensors () or (B,).
    """
    past: list[Tensor] = []
    y = combine((method.of_start[0], x))
    for at, of_start, weights in zip(method.evaluated_at, method.of_start[1:], method.weights, strict=True):
        time = torch.as_tensor(at, dtype=torch.float64)
        # one time stays in main memory, as in every solver; one for each sample lies beside x
        past.append(score.denoise(y, time.to(y.device) if time.ndim else time))
        y = combine((of_start, x), *zip(weights, past, strict=True))
    return y


class _Symbols:
    """A denoiser of vectors of coefficients: the k-th evaluation answers the k-th unit vector, whatever it is asked."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.states: list[Tensor] = []
        self.times: list[float] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.states.append(x[0].clone())
        self.times.append(float(t))
        x0 = torch.zeros_like(x)
        x0[0, min(len(self.states), self.size - 1)] = 1.0
        return x0


def evaluations(solver: Solver, sde: SDE, grid: Tensor) -> int:
    """How many ``solver`` takes on this grid."""
    return len(_traced(solver, sde, grid, 2)[0].states)


def record(solver: Solver, sde: SDE, grid: Tensor) -> LinearMethod:
    """The method that ``solver`` is on this grid.

    Raises:
        ValueError: the solver is not linear in the start and the score's values.
    """
    count = evaluations(solver, sde, grid)
    symbols, end = _traced(solver, sde, grid, count + 1)
    if len(symbols.states) != count:
        raise _nonlinear(solver)
    table = [*symbols.states, end]
    weights = [row[1 : i + 1].tolist() for i, row in enumerate(table)]
    method = LinearMethod(symbols.times, [float(row[0]) for row in table], weights[1:])
    _check_linear(solver, sde, grid, method)
    return method


def _traced(solver: Solver, sde: SDE, grid: Tensor, size: int) -> tuple[_Symbols, Tensor]:
    """What the solver evaluated, and its end, from the 0-th unit vector."""
    symbols = _Symbols(size)
    start = torch.zeros(1, size, dtype=torch.float64)
    start[0, 0] = 1.0
    with torch.no_grad(), unadvised():  # what a solver thinks of its error on symbols means nothing
        return symbols, solver.solve(Reverse(score_of_denoiser(symbols, sde), 0.0), start, grid).x[0]


def _check_linear(solver: Solver, sde: SDE, grid: Tensor, method: LinearMethod) -> None:
    """On a score with no symmetry: what was recorded must do what the solver does."""
    x = float(sde.prior_std) * torch.tensor([[0.3, -1.2], [1.7, 0.4]], dtype=torch.float64)

    def x0(x: Tensor, t: Tensor) -> Tensor:
        y = x / (sde.alpha(t) ** 2 + sde.sigma(t) ** 2).sqrt()
        return torch.sin(2 * y + y.flip(1))

    score = score_of_denoiser(x0, sde)
    with torch.no_grad(), unadvised():
        ours, theirs = run(method, score, x), solver.solve(Reverse(score, 0.0), x, grid).x
    # 1e-6: rounding grows with the weights and with the slope of this score, yet another method is nowhere near
    if not bool(((ours - theirs).abs() <= 1e-6 * (1 + theirs.abs())).all()) or not math.isfinite(float(ours.sum())):
        raise _nonlinear(solver)


def _nonlinear(solver: Solver) -> ValueError:
    return ValueError(
        f"{solver!r} cannot start a fit: a fit starts from a method with fixed steps whose states are linear in the "
        "start and in the score's values, such as Multistep, UniPC, DEIS, DPMSolverPP, Heun or DDIM."
    )
