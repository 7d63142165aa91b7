"""``fit``: from a process to a sampler of few evaluations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.fitting.candidates import Candidate, candidates, default_solvers
from scoresde.fitting.gauss_newton import Iteration, Limits, descend
from scoresde.fitting.recorded import run
from scoresde.fitting.trajectories import Trajectories, reference, rms, trimmed
from scoresde.fitting.unknowns import Unknowns
from scoresde.noise import PerSampleNoise
from scoresde.reverse import Reverse
from scoresde.score import parameters_of
from scoresde.solvers import Solver
from scoresde.solvers.fitted import Fitted, Method, Report, Schedule

# Of the blocks of trajectories: what is trained on and validated on; the rest is held out.
_TRAINED, _VALIDATED = 0.6, 0.15
# The end points should be this much better than the best fixed method's.
_REFERENCE = 1e-3


def fit(
    process: Reverse,
    solver: Solver | Sequence[Solver] | None = None,
    steps: int = 8,
    *,
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
    """See :func:`scoresde.grids.fit`."""
    solvers = _solvers(solver)
    checks.count(steps, name="steps")
    _check(process, iterations, budget)
    began = time.monotonic()
    x = _starts(process, shape, starts, seed, dtype, device)
    blocks = _blocks(process, x, batch)
    methods = candidates(process.sde, solvers, steps)
    generator = torch.Generator().manual_seed(seed)
    # on one block, roughly: which method to start from, and how good the end points need to be
    rough = Trajectories(blocks[:1], reference(process, blocks[:1], math.inf)[0])
    least, start = min(((rms(_squared(process, c.method, rough)), c) for c in methods), key=lambda pair: pair[0])
    if not math.isfinite(least):
        raise FloatingPointError(
            f"every fixed method of {steps} steps ended with NaN or infinite values; the score returns such values, or "
            "the steps are too long: take more of them."
        )
    ends, reference_error = reference(process, blocks, _REFERENCE * least)
    parts = _split(Trajectories(blocks, ends))
    unknowns, theta = Unknowns.of(process.sde, start.method)
    limits = Limits(iterations, time.monotonic() + budget)
    theta, _, done = descend(process, unknowns, theta, parts.train, parts.validation, limits, generator, callback)
    tried = Candidate("fit", unknowns.method(theta))
    return _kept(process, tried, methods, parts, start, reference_error, done, time.monotonic() - began, seed)


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


def _squared(process: Reverse, method: Method, on: Trajectories) -> Tensor:
    return on.squared(lambda x: run(method, process, x))


def _kept(
    process: Reverse,
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
    errors = {c.name: _squared(process, c.method, parts.held_out) for c in (tried, *methods)}
    fixed = min(methods, key=lambda c: rms(errors[c.name]))
    # not <, so that NaN is no better either
    better = rms(errors[tried.name]) < rms(errors[fixed.name])
    chosen = tried if better else fixed
    report = Report(
        kept="fitted" if better else "fixed",
        train=rms(_squared(process, chosen.method, parts.train)),
        validation=rms(_squared(process, chosen.method, parts.validation)),
        held_out=rms(errors[chosen.name]),
        held_out_trimmed=trimmed(errors[chosen.name]),
        fixed=rms(errors[fixed.name]),
        fixed_trimmed=trimmed(errors[fixed.name]),
        fixed_method=fixed.name,
        rejected=None if better else rms(errors[tried.name]),
        started_from=start.name,
        reference_error=reference_error,
        trajectories=(parts.train.count, parts.validation.count, parts.held_out.count),
        event=tuple(parts.train.starts[0].shape[1:]),
        iterations=iterations,
        seconds=round(seconds, 1),
        seed=seed,
    )
    return _sampler(process, chosen.method, report)


def _sampler(process: Reverse, method: Method, report: Report) -> Fitted:
    asks = tuple(float(t) for t in method.asks)
    times = _in_order(process, asks)
    keep, weights = tuple(method.keep), tuple(tuple(row) for row in method.weights)
    return Fitted(times, asks, keep, weights, Schedule.of(process.sde, (*times, *asks)), report)


def _in_order(process: Reverse, asks: Sequence[float]) -> tuple[float, ...]:
    """T, the times asked after the first in decreasing order, t_min; equal ones are moved apart by what is needed."""
    first, last = process.sde.T, process.sde.t_min
    n = len(asks)
    least = 1e-6 * (first - last) / n
    times = [first]
    for i, t in enumerate(sorted(asks[1:], reverse=True)):
        times.append(min(times[-1] - least, max(t, last + (n - 1 - i) * least)))
    return (*times, last)


# -- what comes in ---------------------------------------------------------------------------------------------------


def _solvers(solver: Solver | Sequence[Solver] | None) -> list[Solver]:
    solvers = default_solvers() if solver is None else [solver] if isinstance(solver, Solver) else list(solver)
    if not solvers or not all(isinstance(s, Solver) for s in solvers):
        raise TypeError(f"solver must be a Solver, several of them, or None for a choice of ours; got {solver!r}.")
    return solvers


def _check(process: Reverse, iterations: int, budget: float) -> None:
    if not isinstance(process, Reverse):
        raise TypeError(f"process must be a Reverse, got {type(process).__name__}; call Reverse(sde, score, eta=0.0).")
    if process.eta != 0:
        raise ValueError(
            f"a sampler is fitted to end points, which only the ODE has: eta must be 0; got eta = {process.eta:g}. "
            "Fit Reverse(sde, score, eta=0.0)."
        )
    checks.count(iterations, name="iterations", least=0)
    checks.positive(budget, name="budget, in seconds,")


def _starts(
    process: Reverse,
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
    parameters = parameters_of(process.score)
    where = torch.device(device) if device is not None else parameters[0].device if parameters else torch.device("cpu")
    return process.sde.prior_sample(tuple(shape or ()), PerSampleNoise(seed).stream("fit"), dtype=dtype, device=where)


def _blocks(process: Reverse, x: Tensor, batch: int) -> list[Tensor]:
    checks.count(batch, name="batch")
    if x.ndim < 2 or len(x) % batch or len(x) < 3 * batch:
        raise ValueError(
            f"the trajectories (N, *event) are cut into blocks of batch = {batch}, the one batch size with which the "
            f"score is called; N must be a multiple of it, at least {3 * batch} to train, validate and hold out. Got "
            f"{tuple(x.shape)}."
        )
    blocks = list(x.split(batch))
    T = torch.tensor(process.sde.T, dtype=torch.float64)
    with torch.no_grad():
        once, again = process.score(blocks[0], T), process.score(blocks[0], T)
    if not bool((once - again).abs().max() <= 1e-4 * once.abs().max()):
        raise ValueError(
            "the score is not finite at T, or answers differently when asked twice: put its network into evaluation "
            "mode (model.eval() switches dropout off)."
        )
    return blocks
