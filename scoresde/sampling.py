"""Sampling in one call: prior, grid, process and solver. :func:`sample` puts them together, and each is an argument::

    solution = sample(model.bind(label=3), (16, 3, 32, 32), steps=25, seed=0)
    solution.x, solution.nfe

It runs without gradients, and with the networks in evaluation mode, each of whose modules has its own mode back when
the call returns (:func:`~scoresde.models.evaluating`); no global generator or setting is touched. For gradients
through a run, call ``solver.solve`` on a :class:`~scoresde.reverse.Reverse`.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.lasting import outlasting, without_graph
from scoresde.checks.later import answering
from scoresde.models.score import Score, check_score
from scoresde.noise import Noise, chosen_noise
from scoresde.reverse import Reverse
from scoresde.rules import Rule
from scoresde.solvers import Progress, Solution, Solver
from scoresde.solvers.adapted import Adapted
from scoresde.solvers.defaults import chosen_grid, chosen_solver, prior_draw
from scoresde.solvers.fitted import Fitted


@answering()
def sample(
    score: Score,
    shape: tuple[int, ...],
    *,
    solver: Solver | os.PathLike[str] | None = None,
    steps: int = 25,
    grid: Tensor | Rule | os.PathLike[str] | None = None,
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

    Networks are in evaluation mode meanwhile, and in their own again afterwards.

    For gradients through a run, or in constant memory, call ``solver.solve`` on a :class:`~scoresde.Reverse`.

    Args:
        score: a Score: a ScoreModel, ``model.bind(label=y)``, a guided or an exact one. Its SDE gives the prior, and is
            reversed. A function becomes one by :func:`~scoresde.as_score`.
        shape: (B, *event).
        solver: default :class:`~scoresde.solvers.SpectralMultistep`, one evaluation a step, with the ``spectrum`` of
            the score, or one that data of this shape and its ``sigma_data`` may have; for a posterior score
            :class:`~scoresde.solvers.Ancestral`. A sampler made by
            :func:`~scoresde.fitting.fit`, or the path of its file, brings its own times.
        steps: number of steps; ignored where ``grid`` is a tensor of times, and by a fitted sampler.
        grid: times, or one of :mod:`scoresde.grids`; default the solver's, :func:`~scoresde.grids.spectral` for the
            default solver, and for Ancestral of a posterior score, and :func:`~scoresde.grids.karras` for others. One
            made by :func:`~scoresde.grids.adapted`, or the path of its file, brings its solver too.
        eta: the stochasticity of :class:`~scoresde.Reverse`; default the solver's own.
        seed: sample i depends on (seed, i) alone, whatever the batch size; default 0. Excludes ``noise``. Exceptions:
            an adaptive ODE solver, within its tolerance, and torchsde's methods with Lévy areas ("srk", "log_ode").
        noise: any other source, e.g. ``PerSampleNoise(seed, first=64)`` for the next part of a large set.
        x: start here, at the grid's first time, instead of drawing from the prior.
        denoise: end with E[x_0 | x] at the last time, one evaluation more. Without it the samples follow p at t_min.
        trajectory: keep the state at every time.
        callback: called after each step.
        progress: show a progress bar: of the steps, or of the way in log-SNR where the solver chooses its own.
        dtype: of the samples, where x is not given; the run itself is in float32 at least.
        device: default that of the score's parameters if it is a model, else the CPU.

    Returns:
        A :class:`~scoresde.solvers.Solution`: ``.x``, ``.nfe``, ``.grid``, ``.trajectory``; and ``.data``, the samples
        in the units of the data, where the score knows them.

    Raises:
        TypeError, ValueError: see :meth:`Solver.solve`.
    """
    check_score(score)
    grid = Adapted.load(grid) if isinstance(grid, os.PathLike) else grid
    solver = Fitted.load(solver) if isinstance(solver, os.PathLike) else chosen_solver(solver, score, eta, grid)
    source = chosen_noise(seed, noise)
    process = Reverse(score, solver.default_eta if eta is None else eta)
    shape = checks.shape(shape)
    dtype, progress = checks.dtype(dtype), checks.flag(progress, name="progress")
    if device is not None:
        device = checks.device(device)
    if callback is not None:
        checks.function(callback, name="callback", what="of a Progress", takes=1)
    with without_graph():
        times = chosen_grid(score, grid, steps, solver, shape[1:])
        if x is None:
            x = prior_draw(score.sde, times[0], shape, source, dtype=dtype, device=device, score=score)
        elif tuple(checks.state(x).shape) != shape:
            raise ValueError(f"x must have the shape asked for, shape = {shape}; got x of {tuple(x.shape)}.")
        return solver.solve(
            process,
            outlasting(x),
            times,
            source,
            denoise=denoise,
            trajectory=trajectory,
            callback=callback,
            progress=progress,
        )
