"""The one-liner over all of it."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde import checks
from scoresde.noise import Noise, chosen_noise
from scoresde.reverse import Reverse
from scoresde.score import Score, parameters_of
from scoresde.sde import SDE
from scoresde.solvers import Progress, Solution, Solver
from scoresde.solvers.defaults import chosen_grid, chosen_solver, default_grid
from scoresde.solvers.fitted import Fitted


def sample(
    sde: SDE,
    score: Score,
    shape: tuple[int, ...],
    *,
    solver: Solver | os.PathLike[str] | None = None,
    steps: int = 25,
    grid: Tensor | Callable[[SDE, int], Tensor] | None = None,
    eta: float | None = None,
    seed: int | None = None,
    noise: Noise | torch.Generator | None = None,
    x: Tensor | None = None,
    denoise: bool = True,
    trajectory: bool = False,
    callback: Callable[[Progress], None] | None = None,
    progress: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Solution:
    """Generate ``shape`` = (B, *event) samples: prior, grid, process, solver, in one call, without gradients.

    For gradients through a run, or in constant memory, call ``solver.solve`` on a :class:`~scoresde.Reverse`.

    Args:
        sde: the SDE whose prior is drawn from and which is reversed.
        score: (x, t) -> score; a ScoreModel, ``model.bind(label=y)``, a guided or an exact score.
        shape: (B, *event).
        solver: default :class:`~scoresde.VelocityMultistep` for data of unit scale, one evaluation a step; for others
            ``VelocityMultistep(sigma_data=0.5)``. A sampler made by :func:`~scoresde.grids.fit`, or the path of its
            file, brings its own times.
        steps: number of steps; ignored where ``grid`` is a tensor of times, and by a fitted sampler.
        grid: times, or one of :mod:`scoresde.grids`; default :func:`~scoresde.grids.balanced` for the default solver
            and :func:`~scoresde.grids.karras` for others.
        eta: the dial of :class:`~scoresde.Reverse`; default the solver's own.
        seed: sample i depends on (seed, i) alone, whatever the batch size; default 0. Excludes ``noise``. Exceptions:
            an adaptive ODE solver, within its tolerance, and torchsde's methods with Lévy areas ("srk", "log_ode").
        noise: any other source, e.g. ``PerSampleNoise(seed, first=64)`` for the next part of a large set.
        x: start here, at the grid's first time, instead of drawing from the prior.
        denoise: end with E[x_0 | x] at the last time, one evaluation more. Without it the samples follow p at t_min.
        trajectory: keep the state at every time.
        callback: called after each step.
        progress: show a progress bar.
        dtype: of the samples, where x is not given.
        device: default that of the score's parameters if it is a model, else the CPU.

    Returns:
        A :class:`~scoresde.solvers.Solution`: ``.x``, ``.nfe``, ``.grid``, ``.trajectory``.

    Raises:
        TypeError, ValueError: see :meth:`Solver.solve`.
    """
    if isinstance(solver, os.PathLike):
        solver = Fitted.load(solver)
    solver = chosen_solver(solver)
    source = chosen_noise(seed, noise)
    process = Reverse(sde, score, solver.default_eta if eta is None else eta)
    if grid is None:
        grid = solver.grid if isinstance(solver, Fitted) else default_grid(solver)
    times = chosen_grid(sde, grid, steps)
    shape = _shape(shape)
    if x is None:
        if not dtype.is_floating_point:
            raise TypeError(f"samples need a floating dtype, got {dtype}.")
        drawn = source.initial(shape, dtype=dtype, device=torch.device(device or _device(score)))
        x = drawn * sde.sigma(times[0])
    elif tuple(checks.state(x).shape) != shape:
        raise ValueError(f"x must have the shape asked for, {shape}; got {tuple(x.shape)}.")
    with torch.no_grad():
        if not progress:
            return solver.solve(process, x, times, source, denoise=denoise, trajectory=trajectory, callback=callback)
        from tqdm import tqdm

        with tqdm(total=len(times) - 1, desc=type(solver).__name__, unit="step") as bar:

            def tick(state: Progress) -> None:
                bar.update()
                if callback is not None:
                    callback(state)

            return solver.solve(process, x, times, source, denoise=denoise, trajectory=trajectory, callback=tick)


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(shape, int) or not all(isinstance(n, int) and n >= 0 for n in shape) or not len(shape):
        raise ValueError(f"shape must be (B, *event), whole numbers; got {shape!r}.")
    return tuple(shape)


def _device(score: Score) -> torch.device:
    parameters = parameters_of(score)
    return parameters[0].device if parameters else torch.device("cpu")
