"""A run on Gaussian data laid open: its end is affine in x and in every draw, and basis vectors show the coefficients.

    offset, slope, noises = affine(DDIM(), process, grid, dimension=3)      # x_end = offset + slope x + Σ noises_k z_k
    coarse, fine = (recorded(DDIM(), grid, process, dimension=3) for grid in grids)
    distance = apart((coarse, fine), process, start)                    # of the two ends on one Brownian path

so that mean, variance and distances at the end follow without Monte Carlo, whatever number of draws a step takes.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.models import Combination, Score
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.solvers import Solver


class NotAffine(ValueError):
    """The steps of a solver are not affine on Gaussian data, so that basis vectors do not show its law or its path."""


class LaidOpen(Noise):
    """A noise that draws nothing at random; x_T is a draw like any other."""

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.normal(torch.zeros(shape, dtype=dtype, device=device))


class BasisNoise(LaidOpen):
    """Draw number k is 1 in row 3 + k of the batch and 0 elsewhere: each row follows one noise through the solver."""

    def __init__(self) -> None:
        self.draws = 0

    def normal(self, x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        if 3 + self.draws < len(x):
            z[3 + self.draws] = 1.0
        self.draws += 1
        return z


class RecordingNoise(LaidOpen):
    """Zeros, and a record of what was asked: the times of increments, and the number of other draws."""

    def __init__(self) -> None:
        self.times: set[float] = set()
        self.draws = 0

    def between(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        self.times |= {float(t), float(s)}
        return torch.zeros_like(x)

    def normal(self, x: Tensor) -> Tensor:
        self.draws += 1
        return torch.zeros_like(x)


class BasisPath(LaidOpen):
    """A Brownian path by its increments over cells of time: in row 3 + k the k-th is 1 and the others are 0.

    Draws that belong to no interval come after the cells, from row ``after`` on, each a row of its own.
    """

    def __init__(self, times: list[float], after: int) -> None:
        self.times, self.after = times, after
        self.lengths = torch.tensor(times, dtype=torch.float64).diff()

    def between(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        low, high = (bisect.bisect_left(self.times, float(v)) for v in (s, t))
        share = (self.lengths[low:high] / (float(t) - float(s))).sqrt()
        z[3 + low : 3 + high] = share[:, None]
        return z

    def normal(self, x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        z[self.after] = 1.0
        self.after += 1
        return z


@dataclass(frozen=True)
class Blind(Score):
    """0, whatever is wanted: what a solver asks of its noise does not depend on the score."""

    sde: SDE

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        return torch.zeros_like(x)


def affine(solver: Solver, process: Reverse, grid: Tensor, dimension: int) -> tuple[Tensor, Tensor, Tensor]:
    """The end of a run whose every step is affine in x and the noise: a + b x + Σ_k c_k z_k on each axis.

    Args:
        solver: any; its steps must treat the axes one by one, as all of ours do.
        process: its score affine, as on Gaussian data with a diagonal covariance.
        grid: (n + 1,).
        dimension: D.

    Returns:
        a (D,), b (D,) and c (K, D), float64.

    Raises:
        NotAffine: the end is not affine in x.
    """
    draws = len(grid) - 1  # one a step, until the run says otherwise
    for _ in range(8):  # the number of draws may depend on the batch, though no method of ours has it so
        noise = BasisNoise()
        end = solver.solve(process, _basis(draws, dimension), grid, noise).x
        if noise.draws <= draws:
            return _read(end, solver, "mean and variance do not follow; measure with weak_order_sampled")
        draws = noise.draws
    raise NotAffine(
        f"{type(solver).__name__} draws more noise the larger its batch is: basis vectors cannot follow it."
    )


def propagate(solver: Solver, process: Reverse, grid: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (D,) at the end of a run that starts with these, without Monte Carlo (:func:`affine`)."""
    offset, slope, noises = affine(solver, process, grid, len(mean))
    return offset + slope * mean, slope**2 * variance + noises.square().sum(0)


class RecordedRun(NamedTuple):
    """A solver on a grid, and what it asks of its noise there; see :func:`recorded`."""

    solver: Solver
    grid: Tensor
    asked: RecordingNoise


def recorded(solver: Solver, grid: Tensor, process: Reverse, dimension: int) -> RecordedRun:
    """A run for :func:`apart`; what it asks of its noise does not depend on the score."""
    asked = RecordingNoise()
    blind = dataclasses.replace(process, score=Blind(process.sde))
    solver.solve(blind, torch.zeros(1, dimension, dtype=torch.float64), grid, asked)
    return RecordedRun(solver, grid, asked)


def apart(runs: tuple[RecordedRun, RecordedRun], process: Reverse, start: tuple[Tensor, Tensor]) -> float:
    """Root mean square distance (all axes) of the ends of two runs on one Brownian path, without Monte Carlo.

    On Gaussian data each end is affine in x and the increments of the path over the cells into which the times that
    both runs ask for divide it: basis vectors show the coefficients, and what they differ by is the distance.

    Args:
        runs: two of :func:`recorded`.
        process: its score affine, axis by axis.
        start: mean and variance (D,) of x at the start.

    Raises:
        NotAffine: an end is not affine in x.
    """
    mean, variance = start
    times = sorted(runs[0].asked.times | runs[1].asked.times)
    cells = max(len(times) - 1, 0)
    x = _basis(cells + sum(one.asked.draws for one in runs), len(mean))
    after, found = 3 + cells, []
    for solver, grid, asked in runs:
        end = solver.solve(process, x, grid, BasisPath(times, after)).x
        after += asked.draws
        found.append(_read(end, solver, "its path does not follow; measure with strong_order_sampled"))
    offset, slope, noises = (a - b for a, b in zip(*found, strict=True))
    return math.sqrt(float(((offset + slope * mean) ** 2 + slope**2 * variance + noises.square().sum(0)).sum()))


def _basis(draws: int, dimension: int) -> Tensor:
    """Starts x = 0, 1 and 2 without noise, then x = 0 for each draw."""
    x = torch.zeros(3 + draws, dimension, dtype=torch.float64)
    x[1], x[2] = 1.0, 2.0
    return x


def _read(end: Tensor, solver: Solver, otherwise: str) -> tuple[Tensor, Tensor, Tensor]:
    """a, b and c of the ends of :func:`_basis`."""
    offset, slope, noises = end[0], end[1] - end[0], end[3:] - end[0]
    if not torch.allclose(end[2], offset + 2 * slope, rtol=1e-9, atol=1e-9):
        raise NotAffine(
            f"{type(solver).__name__} is not affine in x on Gaussian data: x = 0, 1 and 2 end at "
            f"{offset.tolist()}, {end[1].tolist()} and {end[2].tolist()}. From basis vectors {otherwise}."
        )
    return offset, slope, noises
