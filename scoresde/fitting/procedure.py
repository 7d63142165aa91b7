"""Fitting in one function: from a score to a sampler of few evaluations.

:func:`fit` draws starts from the prior, solves the probability-flow ODE from them accurately, begins with the fixed
method that does best on these trajectories, and moves its times and coefficients until its ends agree with theirs::

    fitted = fit(model.bind(label=y), steps=5, shape=(1000, 3, 32, 32))      # y (250,): one label a row of a batch
    print(fitted.report)                                                     # its errors, and the best fixed method's
    sample(score, shape, solver=fitted)

Where the fit is no better on trajectories held out, the best fixed method is what comes back, and the report says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.fitting.candidates import Candidate, candidates, default_solvers
from scoresde.fitting.gauss_newton import FitLimits, Iteration, descend
from scoresde.fitting.recorded import run
from scoresde.fitting.trajectories import Trajectories, reference, root_mean, trimmed
from scoresde.fitting.unknowns import Unknowns
from scoresde.models import Score, parameters_of
from scoresde.models.evaluation import in_evaluation_mode
from scoresde.models.score import check_score
from scoresde.noise import PerSampleNoise
from scoresde.rules import MOST_STEPS
from scoresde.sde import SDE
from scoresde.solvers import Solver
from scoresde.solvers.fitted import FitReport, Fitted, FittedLevels, LinearMethod
from scoresde.solvers.spectral import known_spectrum

# Of the blocks of trajectories: what is trained on and validated on; the rest is held out.
_TRAINED, _VALIDATED = 0.6, 0.15
# The end points should be this much better than the best fixed method's.
_REFERENCE = 1e-3


@torch.inference_mode(False)
@in_evaluation_mode("score", "solver")
def fit(
    score: Score,
    steps: int = 8,
    *,
    solver: Solver | Sequence[Solver] | None = None,
    shape: tuple[int, ...] | None = None,
    starts: Tensor | None = None,
    batch: int = 250,
    seed: int = 0,
    iterations: int = 300,
    budget: float = 60.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    callback: Callable[[Iteration], None] | None = None,
) -> Fitted:
    r"""A sampler for one score and its SDE: the times of its evaluations and all coefficients, fitted to exact ends.

    The end y_n of n evaluations D_j = E[x_0 | x_{τ_j} = y_j] of combinations of what is known so far::

        y_i = a_i x_T + Σ_{j<i} w_ij D_j        i = 0 … n

    is brought close to the end of the probability-flow ODE by a damped Gauss-Newton method on a robust loss, starting
    at the fixed method that does best on the trajectories: each of ``solver`` on each of the rules for a grid. The
    end points come from a fifth-order method with up to 1024 steps, halved until they stand still. A part of the
    trajectories is held out: where the fit is no better there than the best fixed method, that method is what is
    returned, and ``.report`` says so.

    The family of methods, and fitting it to trajectories (by Adam, for velocities): Shaul et al. 2024
    (arXiv:2403.01329), eq. 10. The damping: Marquardt 1963 (doi:10.1137/0111030).

    Args:
        score: a Score: a network, guided or bound to conditions. Its parameters are left alone.
        steps: n, the score evaluations of the sampler. Solvers start it with the steps of their own that take so many.
        solver: where to start: linear methods with fixed steps; default several of
            :class:`~scoresde.solvers.Multistep`.
        shape: (N, *event), how many starts to draw from the prior: one to two thousand.
        starts: (N, *event), or the states at T themselves.
        batch: the score is always called with so many samples, the first ones first: the size that bound conditions
            have. N is a multiple of it. 3/5 of the batches are fitted to, about 1/7 say when to stop, the rest judges.
        seed: of the starts, and of the order in which batches are taken.
        iterations: at most so many.
        budget: at most so many seconds of them; end points and fixed methods come on top.
        dtype: of the starts drawn.
        device: of the starts drawn; default that of the score's parameters.
        callback: called after each iteration that moved.

    Returns:
        A :class:`~scoresde.solvers.fitted.Fitted`: ``sample(score, shape, solver=fitted)``, ``fitted.save(path)``.

    Raises:
        TypeError: not a Score; a solver that is none.
        ValueError: a method that is not linear in the score; numbers that do not fit; a score that answers differently
            when asked twice.
        FloatingPointError: every fixed method ends with NaN or infinite values.
    """
    check_score(score)
    solvers = _solvers(solver)
    steps = checks.count(steps, name="steps", most=MOST_STEPS)
    batch, iterations = checks.count(batch, name="batch"), checks.count(iterations, name="iterations", least=0)
    budget, seed = checks.positive(budget, name="budget, in seconds,"), checks.seed(seed)
    dtype = checks.dtype(dtype)
    device = None if device is None else checks.device(device)
    if callback is not None:
        checks.function(callback, name="callback", what="of an Iteration", takes=1)
    began = time.monotonic()
    x = _starts(score, shape, starts, seed, dtype, device)
    blocks = _blocks(score, x, batch)
    event = tuple(x.shape[1:])
    # what a solver takes from the score and the shape is to be known before it is run on symbols
    made = [solver.made_for(score, event) for solver in solvers]
    methods = candidates(score.sde, made, steps, known_spectrum(score, event))
    generator = torch.Generator().manual_seed(seed)
    # on one block, roughly: which method to start from, and how good the end points need to be
    rough = Trajectories(blocks[:1], reference(score, blocks[:1], math.inf)[0])
    least, start = min(((root_mean(_squared(score, c.method, rough)), c) for c in methods), key=lambda pair: pair[0])
    if not math.isfinite(least):
        raise FloatingPointError(
            f"every fixed method of {steps} steps ended with NaN or infinite values; the score returns such values, or "
            "the steps are too long: take more of them."
        )
    ends, reference_error = reference(score, blocks, _REFERENCE * least)
    parts = _split(Trajectories(blocks, ends))
    unknowns, theta = Unknowns.of(score.sde, start.method)
    limits = FitLimits(iterations, time.monotonic() + budget)
    theta, _, done = descend(score, unknowns, theta, parts.train, parts.validation, limits, generator, callback)
    tried = Candidate("fit", unknowns.method(theta))
    return _better(score, tried, methods, parts, start, reference_error, done, time.monotonic() - began, seed)


@dataclass(frozen=True)
class _Parts:
    train: Trajectories
    validation: Trajectories
    held_out: Trajectories


def _split(all_: Trajectories) -> _Parts:
    n = len(all_)
    trained = min(max(1, round(_TRAINED * n)), n - 2)
    validated = min(max(1, round(_VALIDATED * n)), n - trained - 1)
    return _Parts(all_.part(0, trained), all_.part(trained, trained + validated), all_.part(trained + validated, n))


def _squared(score: Score, method: LinearMethod, on: Trajectories) -> Tensor:
    return on.squared(lambda x: run(method, score, x))


def _better(
    score: Score,
    tried: Candidate,
    methods: Sequence[Candidate],
    parts: _Parts,
    start: Candidate,
    reference_error: float,
    iterations: int,
    seconds: float,
    seed: int,
) -> Fitted:
    """The fit, or the fixed method that does best on the held-out trajectories where the fit does no better."""
    errors = {c.name: _squared(score, c.method, parts.held_out) for c in (tried, *methods)}
    fixed = min(methods, key=lambda c: root_mean(errors[c.name]))
    # not <, so that NaN is no better either
    better = root_mean(errors[tried.name]) < root_mean(errors[fixed.name])
    chosen = tried if better else fixed
    report = FitReport(
        chosen="fitted" if better else "fixed",
        train=root_mean(_squared(score, chosen.method, parts.train)),
        validation=root_mean(_squared(score, chosen.method, parts.validation)),
        held_out=root_mean(errors[chosen.name]),
        held_out_trimmed=trimmed(errors[chosen.name]),
        fixed=root_mean(errors[fixed.name]),
        fixed_trimmed=trimmed(errors[fixed.name]),
        fixed_method=fixed.name,
        rejected=None if better else root_mean(errors[tried.name]),
        started_from=start.name,
        reference_error=reference_error,
        trajectories=(parts.train.count, parts.validation.count, parts.held_out.count),
        event=tuple(parts.train.starts[0].shape[1:]),
        iterations=iterations,
        seconds=round(seconds, 1),
        seed=seed,
    )
    return _sampler(score.sde, chosen.method, report)


def _sampler(sde: SDE, method: LinearMethod, report: FitReport) -> Fitted:
    at = tuple(float(t) for t in method.evaluated_at)
    times = _in_order(sde, at)
    of_start, weights = tuple(method.of_start), tuple(tuple(row) for row in method.weights)
    return Fitted(times, at, of_start, weights, FittedLevels.of(sde, (*times, *at)), report)


def _in_order(sde: SDE, evaluated_at: Sequence[float]) -> tuple[float, ...]:
    """T, the times after the first in decreasing order, t_min; equal ones are moved apart by what is needed."""
    first, last = sde.T, sde.t_min
    n = len(evaluated_at)
    least = 1e-6 * (first - last) / n
    times = [first]
    for i, t in enumerate(sorted(evaluated_at[1:], reverse=True)):
        times.append(min(times[-1] - least, max(t, last + (n - 1 - i) * least)))
    return (*times, last)


# -- what comes in ---------------------------------------------------------------------------------------------------


def _solvers(solver: Solver | Sequence[Solver] | None) -> list[Solver]:
    if solver is None:
        return default_solvers()
    solvers: list[Any] = list(solver) if isinstance(solver, (tuple, list)) else [solver]
    if not solvers or not all(isinstance(s, Solver) for s in solvers):
        raise TypeError(
            f"solver must be a Solver, several of them, or None for a choice of ours; got {checks.got(solver)}."
        )
    return solvers


def _starts(
    score: Score,
    shape: tuple[int, ...] | None,
    starts: Tensor | None,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Tensor:
    if (shape is None) == (starts is None):
        raise ValueError(
            "give either shape = (N, *event), how many trajectories of which shape to draw from the prior, or starts, "
            "the states at T themselves."
        )
    if starts is not None:
        return checks.state(starts, name="starts", values=True).detach()
    parameters = parameters_of(score)
    where = torch.device(device) if device is not None else parameters[0].device if parameters else torch.device("cpu")
    return score.sde.prior_sample(checks.shape(shape), PerSampleNoise(seed).stream("fit"), dtype=dtype, device=where)


def _blocks(score: Score, x: Tensor, batch: int) -> list[Tensor]:
    if x.ndim < 2 or len(x) % batch or len(x) < 3 * batch:
        raise ValueError(
            f"the trajectories (N, *event) are cut into blocks of batch = {batch}, the one batch size with which the "
            f"score is called; N must be a multiple of it, at least {3 * batch} to train, validate and hold out. Got "
            f"shape {tuple(x.shape)}."
        )
    blocks = list(x.split(batch))
    T = torch.tensor(score.sde.T, dtype=torch.float64)
    with torch.no_grad():
        once, again = (score(blocks[0], T) for _ in range(2))
    if not bool((once - again).abs().max() <= 1e-4 * once.abs().max()):
        raise ValueError(
            "the score is not finite at T, or answers differently when asked twice: it draws random numbers of its own "
            "(its modules are in evaluation mode here)."
        )
    return blocks
