"""Order of a solver on one Brownian path, exactly where the data are Gaussian, on sampled paths where they are not."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math

import torch
from torch import Tensor

from scoresde import grids
from scoresde.certify.cases import GAUSSIAN, SMOOTH, Grid, affine_score
from scoresde.certify.slopes import FIRST, Slope, follow
from scoresde.certify.weak import NotAffine, law
from scoresde.noise import BrownianNoise, Noise
from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.solvers import EulerMaruyama, Solver

MOST = 128


class RecordingNoise(Noise):
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

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.normal(torch.zeros(shape, dtype=dtype, device=device))


class BasisPath(Noise):
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

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.normal(torch.zeros(shape, dtype=dtype, device=device))


def apart(
    runs: tuple[tuple[Solver, Tensor], tuple[Solver, Tensor]], process: Reverse, start: tuple[Tensor, Tensor]
) -> float:
    """Root mean square distance (all axes) of the ends of two (solver, grid) on one Brownian path, without Monte Carlo.

    On Gaussian data each end is affine in x and the increments of the path over the cells into which the times that
    both runs ask for divide it: basis vectors show the coefficients, and what they differ by is the distance.

    Args:
        runs: two solvers with their grids.
        process: its score affine, axis by axis.
        start: mean and variance (D,) of x at the start.

    Raises:
        NotAffine: an end is not affine in x.
    """
    records = [RecordingNoise(), RecordingNoise()]
    mean, variance = start
    blind = dataclasses.replace(process, score=lambda x, t: torch.zeros_like(x))  # what is asked for needs no score
    for (solver, grid), record in zip(runs, records, strict=True):
        solver.solve(blind, mean[None], grid, record)
    times = sorted(records[0].times | records[1].times)
    cells = 3 + max(len(times) - 1, 0)
    x = torch.zeros(cells + sum(r.draws for r in records), len(mean), dtype=torch.float64)
    x[1], x[2] = 1.0, 2.0
    after, ends = cells, []
    for (solver, grid), record in zip(runs, records, strict=True):
        end = solver.solve(process, x, grid, BasisPath(times, after)).x
        after += record.draws
        if not torch.allclose(end[2], 2 * end[1] - end[0], rtol=1e-9, atol=1e-9):
            raise NotAffine(
                f"{type(solver).__name__} is not affine in x on Gaussian data, so that its path does not follow from "
                "basis vectors; measure with strong_order_sampled."
            )
        ends.append(end)
    difference = ends[0] - ends[1]
    offset, slope, noises = difference[0], difference[1] - difference[0], difference[3:] - difference[0]
    return math.sqrt(float(((offset + slope * mean) ** 2 + slope**2 * variance + noises.square().sum(0)).sum()))


def strong_order(
    solver: Solver, sde: SDE, eta: float, grid: Grid = grids.uniform, *, first: int = FIRST, most: int = MOST
) -> Slope:
    """The slope of the distance between the ends of runs with n and 2n steps on one Brownian path, exactly.

    The expectation over paths and starting points is taken without Monte Carlo (:func:`apart`), on Gaussian data. The
    limit must also be that of Euler-Maruyama on the same path, or the order is 0: a solver that follows another path
    converges too, elsewhere. Squares of errors add up on a path, so an order sets in slowly: the last slope must come
    as close to the extrapolated one as 0.06.

    Args:
        solver: takes this η, and draws the noise of a step by ``noise.between``.
        sde: see :func:`~scoresde.certify.ode_order`.
        eta: the dial, above 0.
        grid: one of :mod:`scoresde.grids`, or any function of (sde, steps).
        first: the fewest steps.
        most: the most steps.

    Raises:
        ValueError: the solver does not take this η.
        NotAffine: its steps are not affine on Gaussian data.
    """
    process = Reverse(sde, affine_score(GAUSSIAN, sde), eta)
    solver.check(process)
    start = law(GAUSSIAN, sde, sde.T)

    def distance(a: Solver, n: int, b: Solver, m: int) -> float:
        return apart(((a, grid(sde, n)), (b, grid(sde, m))), process, start)

    (slope,) = follow(lambda n: {"path": distance(solver, n, solver, 2 * n)}, first=first, most=most, close=0.06)
    n, euler = 2 * slope.steps[-1], EulerMaruyama()
    # Each is about its own last halving away from the limit, or they have different limits.
    return _same_limit(slope, distance(solver, n, euler, n), slope.errors[-1] + distance(euler, n // 2, euler, n))


def strong_order_sampled(
    solver: Solver,
    sde: SDE,
    eta: float,
    grid: Grid = grids.uniform,
    *,
    path: BrownianNoise | None = None,
    samples: int = 512,
    steps: tuple[int, ...] = (8, 16, 32, 64),
) -> Slope:
    """The same on nonlinear data, on a sampled path: one :class:`~scoresde.BrownianNoise` for all runs.

    Root mean square over ``samples`` starting points, each with its own path, and four axes, two of them a mixture's:
    with 512 samples the slope has a spread of about 0.03.

    Args:
        solver: takes this η, and draws the noise of a step by ``noise.between``.
        sde: see :func:`~scoresde.certify.ode_order`.
        eta: the dial, above 0.
        grid: one of :mod:`scoresde.grids`, or any function of (sde, steps).
        path: reaching to ``sde.T``; one of ours unless given.
        samples: starting points.
        steps: three numbers or more, each twice the one before.

    Raises:
        ValueError: the solver does not take this η, or steps that are not halved.
    """
    if len(steps) < 3 or any(b != 2 * a for a, b in itertools.pairwise(steps)):
        raise ValueError(f"steps must be three numbers or more, each twice the one before; got {steps}.")
    process = Reverse(sde, SMOOTH.score(sde), eta)
    solver.check(process)
    # cells of T/2^30, far finer than any step here: inside a cell the path is linear
    noise = BrownianNoise(5, sde.T, levels=30) if path is None else path
    x = noise.initial((samples, *SMOOTH.event), dtype=torch.float64, device=torch.device("cpu")) * sde.prior_std
    size = math.sqrt(x.numel())
    ends = [solver.solve(process, x, grid(sde, n), noise).x for n in steps]
    errors = tuple(float((a - b).norm()) / size for a, b in itertools.pairwise(ends))
    order = math.log2(errors[-2] / errors[-1]) if errors[-1] > 0 else math.nan
    slope = Slope("sampled path", steps[:-1], errors, order, math.isfinite(order))
    coarse, fine = (EulerMaruyama().solve(process, x, grid(sde, n), noise).x for n in steps[-2:])
    return _same_limit(slope, float((ends[-1] - fine).norm()) / size, errors[-1] + float((coarse - fine).norm()) / size)


def _same_limit(slope: Slope, apart: float, moved: float) -> Slope:
    if apart < 4 * moved:
        return slope
    where = f"{slope.of}, ending {apart:.1e} from where Euler-Maruyama's leads"
    return Slope(where, slope.steps, slope.errors, 0.0, True)
