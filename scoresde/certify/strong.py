"""Order of a solver on one Brownian path, exactly where the data are Gaussian, on sampled paths where they are not.

The error is the distance between the ends of runs with n and 2n steps on the same path::

    strong_order(EulerMaruyama(), PATH["VE"], eta=1.0).order            # about 1, without Monte Carlo
    strong_order_sampled(EulerMaruyama(), PATH["VE"], eta=1.0).order    # the same on a mixture, from 512 paths

:func:`strong_order` needs steps that are affine on Gaussian data and raises
:class:`~scoresde.certify.NotAffine` otherwise; :func:`strong_order_sampled` takes any solver. Both answer a
:class:`~scoresde.certify.Slope`, whose order is 0 where the limit is not the one that Euler-Maruyama has on that path.
"""

from __future__ import annotations

import itertools
import math

import torch

from scoresde import checks, rules
from scoresde.certify.affine import RecordedRun, apart, recorded
from scoresde.certify.cases import (
    GAUSSIAN,
    MOST_SAMPLES,
    SMOOTH,
    Grid,
    PlainScore,
    check_case,
    check_steps,
    process_for,
)
from scoresde.certify.slopes import FEWEST_STEPS, Slope, follow_errors
from scoresde.certify.weak import law
from scoresde.noise import BrownianNoise
from scoresde.sde import SDE
from scoresde.solvers import EulerMaruyama, Solver

_MOST = 128


def strong_order(
    solver: Solver, sde: SDE, eta: float, grid: Grid = rules.uniform, *, first: int = FEWEST_STEPS, most: int = _MOST
) -> Slope:
    """The slope of the distance between the ends of runs with n and 2n steps on one Brownian path, exactly.

    The expectation over paths and starting points is taken without Monte Carlo
    (:func:`~scoresde.certify.affine.apart`), on Gaussian data. The
    limit must also be that of Euler-Maruyama on the same path, or the order is 0: a solver that follows another path
    converges too, elsewhere. Squares of errors add up on a path, so an order sets in slowly: the last slope must come
    as close to the extrapolated one as 0.06.

    Args:
        solver: takes this η, and draws the noise of a step by ``noise.between``.
        sde: see :func:`~scoresde.certify.ode_order`.
        eta: the stochasticity, above 0.
        grid: one of :mod:`scoresde.grids`, or any function of (sde, steps).
        first: the fewest steps.
        most: the most steps.

    Raises:
        ValueError: the solver does not take this η.
        NotAffine: its steps are not affine on Gaussian data.
    """
    check_case(solver, sde, grid)
    process = process_for(solver, PlainScore(GAUSSIAN, sde), eta)
    start = law(GAUSSIAN, sde, sde.T)

    runs: dict[int, RecordedRun] = {}

    def on(solver: Solver, n: int) -> RecordedRun:
        return recorded(solver, grid(sde, n), process, len(start[0]))

    def error(n: int) -> dict[str, float]:
        for steps in (n, 2 * n):
            runs[steps] = runs.get(steps) or on(solver, steps)
        return {"path": apart((runs[n], runs[2 * n]), process, start)}

    (slope,) = follow_errors(error, first=first, most=most, close=0.06)
    n = 2 * slope.steps[-1]
    coarse, fine = (on(EulerMaruyama(), steps) for steps in (n // 2, n))
    # Each is about its own last halving away from the limit, or they have different limits.
    moved = slope.errors[-1] + apart((coarse, fine), process, start)
    return _same_limit(slope, apart((runs[n], fine), process, start), moved)


def strong_order_sampled(
    solver: Solver,
    sde: SDE,
    eta: float,
    grid: Grid = rules.uniform,
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
        eta: the stochasticity, above 0.
        grid: one of :mod:`scoresde.grids`, or any function of (sde, steps).
        path: reaching to ``sde.T``; one of ours unless given.
        samples: starting points.
        steps: three numbers or more, each twice the one before.

    Raises:
        ValueError: the solver does not take this η, or steps that are not halved.
    """
    check_case(solver, sde, grid)
    if path is not None:
        checks.instance(path, BrownianNoise, name="path")
    samples, steps = checks.count(samples, name="samples", most=MOST_SAMPLES), check_steps(steps)
    if len(steps) < 3 or any(b != 2 * a for a, b in itertools.pairwise(steps)):
        raise ValueError(f"steps must be three numbers or more, each twice the one before; got {steps}.")
    process = process_for(solver, SMOOTH.score(sde), eta)
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
