"""Any linear solver as the table of its coefficients, found by running it on symbols."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.solvers import Solver
from scoresde.solvers.fitted import Method
from scoresde.solvers.linear import combine


def run(method: Method, process: Reverse, x: Tensor) -> Tensor:
    """The end of the method from x (B, *event) at T.

    Coefficients may be numbers, tensors () or (B, 1, ...); the times numbers, tensors () or (B,).
    """
    past: list[Tensor] = []
    y = combine((method.keep[0], x))
    for ask, keep, weights in zip(method.asks, method.keep[1:], method.weights, strict=True):
        time = torch.as_tensor(ask, dtype=torch.float64)
        # one time stays in main memory, as in every solver; one for each sample lies beside x
        past.append(process.denoise(y, time.to(y.device) if time.ndim else time))
        y = combine((keep, x), *zip(weights, past, strict=True))
    return y


class _Symbols:
    """A score on vectors of coefficients: the k-th evaluation makes x̂_0 the k-th unit vector."""

    def __init__(self, sde: SDE, size: int) -> None:
        self.sde, self.size = sde, size
        self.states: list[Tensor] = []
        self.times: list[float] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.states.append(x[0].clone())
        self.times.append(float(t))
        data = torch.zeros_like(x)
        data[0, min(len(self.states), self.size - 1)] = 1.0
        return (self.sde.alpha(t) * data - x) / self.sde.sigma(t) ** 2


def evaluations(solver: Solver, sde: SDE, grid: Tensor) -> int:
    """How many ``solver`` takes on this grid."""
    return len(_traced(solver, sde, grid, 2)[0])


def record(solver: Solver, sde: SDE, grid: Tensor) -> Method:
    """The method that ``solver`` is on this grid.

    Raises:
        ValueError: the solver is not linear in the start and the score's values.
    """
    count = evaluations(solver, sde, grid)
    states, times, end = _traced(solver, sde, grid, count + 1)
    if len(states) != count:
        raise _nonlinear(solver)
    table = [*states, end]
    weights = [row[1 : i + 1].tolist() for i, row in enumerate(table)]
    method = Method(times, [float(row[0]) for row in table], weights[1:])
    _check_linear(solver, sde, grid, method)
    return method


def _traced(solver: Solver, sde: SDE, grid: Tensor, size: int) -> tuple[list[Tensor], list[float], Tensor]:
    symbols = _Symbols(sde, size)
    start = torch.zeros(1, size, dtype=torch.float64)
    start[0, 0] = 1.0
    with torch.no_grad():
        end = solver.solve(Reverse(sde, symbols, 0.0), start, grid).x[0]
    return symbols.states, symbols.times, end


def _check_linear(solver: Solver, sde: SDE, grid: Tensor, method: Method) -> None:
    """On a score with no symmetry: what was recorded must do what the solver does."""
    x = float(sde.prior_std) * torch.tensor([[0.3, -1.2], [1.7, 0.4]], dtype=torch.float64)

    def score(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        spread = (alpha**2 + sigma**2).sqrt()
        return (alpha * torch.sin(2 * x / spread + x.flip(1) / spread) - x) / sigma**2

    process = Reverse(sde, score, 0.0)
    with torch.no_grad():
        ours, theirs = run(method, process, x), solver.solve(process, x, grid).x
    # 1e-6: rounding grows with the weights and with the slope of this score, yet another method is nowhere near
    if not bool(((ours - theirs).abs() <= 1e-6 * (1 + theirs.abs())).all()) or not math.isfinite(float(ours.sum())):
        raise _nonlinear(solver)


def _nonlinear(solver: Solver) -> ValueError:
    return ValueError(
        f"{solver!r} cannot start a fit: a fit starts from a method with fixed steps whose states are linear in the "
        "start and in the score's values, such as Multistep, UniPC, DEIS, DPMSolverPP, Heun or DDIM."
    )
