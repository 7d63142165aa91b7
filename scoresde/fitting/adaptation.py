"""A grid adapted to one score: seconds on a few samples, good for every number of steps.

:func:`adapted`, which users find in :mod:`scoresde.grids`, solves the probability-flow ODE from a few starts, runs the
solver from them at four numbers of steps, and moves the density of its steps (and of the default solver what its
weights assume) towards the least error at all four, by a damped Gauss-Newton method whose derivatives are differences
of runs::

    times = adapted(model.bind(label=y), (8, 3, 32, 32), cache="adapted.json")
    sample(score, shape, grid=times, steps=12)

It has nine numbers for each number of steps and no more, so that few samples determine them, and they vary so little
with the number of steps that others are interpolated. :func:`~scoresde.fitting.fit` has all the coefficients of one
number of steps, and needs minutes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde import checks
from scoresde.files import make_writable
from scoresde.fitting.trajectories import root_mean, trimmed
from scoresde.models import Score
from scoresde.models.evaluation import in_evaluation_mode
from scoresde.models.score import check_score
from scoresde.noise import PerSampleNoise
from scoresde.reverse import Reverse
from scoresde.rules import spectral, spectral_density, spectral_range
from scoresde.solvers import Solution, SpectralMultistep
from scoresde.solvers.adapted import Adapted, AdaptedReport
from scoresde.solvers.advice import unadvised
from scoresde.solvers.base import Solver
from scoresde.solvers.defaults import prior_draw
from scoresde.solvers.incomplete import require_finite
from scoresde.solvers.spectral import Tuning, known_spectrum
from scoresde.solvers.wrapping import require_solver, require_steps
from scoresde.spectrum import Spectrum

_STEPS = (6, 10, 18, 33)
_VALUES = 6  # of the logarithm of the density's factor, from the first σ/α to the last
_REFERENCE = 97  # steps of the end points: three times the most above
_LEAST = 64  # coordinates of all samples together, below which they would be fitted themselves

_DELTA = 0.05  # of the differences
_RIDGE, _SMOOTH = 0.02, 0.05  # what a squared value, and its squared change by the logarithm of the steps, cost
_DAMPING = 1e-2
_MOST = 1.0  # by which a value moves at once
_SAME = 0.01  # of two scores' answers to one question, by which they count as one


@torch.inference_mode(False)
@in_evaluation_mode("score", "solver")
def adapted(
    score: Score,
    shape: tuple[int, ...],
    *,
    solver: Solver | None = None,
    evaluations: int = 2500,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    callback: Callable[[int, tuple[float, ...]], None] | None = None,
) -> Adapted:
    r"""Times for any number of steps, adapted to one score and solver by runs from a few starts.

    At 6, 10, 18 and 33 steps the density of steps in log σ/α is that of :func:`scoresde.grids.spectral` times exp f, f
    linear between six values, and for the default solver the scale, the largest deviation and the roughness that its
    weights assume have factors too: 36 numbers θ in all, 0 at first, which minimise::

        Σ_n mean_b s_n log(1 + e²_nb/s_n) / (the same at first) + 0.02 |θ|² + 0.05 |dθ/d log n|²

    e_nb the distance of sample b after n steps to the end of the probability-flow ODE, s_n twice the median of e² at
    first, so that a sample that passes a border between modes does not decide. Damped Gauss-Newton steps (Marquardt
    1963), with derivatives by differences. On as many other starts it is judged: at a number of steps where these
    speak against it, it stays what it was. Other solvers begin with their own rule where that does better; |θ| is then
    the distance from it.

    Args:
        score: a Score: a network, guided or bound to conditions.
        shape: (B, *event) of the trajectories; the score is always called with B samples, the size that bound
            conditions have. Four to eight images do; of small events take hundreds.
        solver: whose steps they are to be, one that steps on a grid at η = 0; default
            :class:`~scoresde.solvers.SpectralMultistep`, whose weights are adapted too.
        evaluations: at most so many of B samples each: about 400, and 680 for each Gauss-Newton step of the default.
        seed: of the starts.
        cache: a file. If it holds the adapted grid of this score, solver, shape and seed, that is what is returned;
            else it is written.
        dtype: of the starts; float32 at least in the runs.
        device: of the starts; default that of the score's parameters.
        callback: called with the evaluations done and the errors at the four numbers of steps, after each step.

    Returns:
        An :class:`~scoresde.solvers.adapted.Adapted`: ``sample(score, shape, grid=adapted, steps=12)``.

    Raises:
        TypeError: not a Score, or not a Solver.
        ValueError: a solver that is not made of the grid's steps or draws noise, too few evaluations or coordinates, a
            cache that holds something else or cannot be written.
        FloatingPointError: the score answers NaN or infinite values.
    """
    check_score(score)
    chosen = SpectralMultistep() if solver is None else require_solver(solver)
    require_steps(chosen, "so that there is nothing to adapt")
    shape = checks.shape(shape)
    evaluations = checks.count(evaluations, name="evaluations")
    dtype, seed = checks.dtype(dtype), checks.seed(seed)
    device = None if device is None else checks.device(device)
    cache = None if cache is None else checks.path(cache, name="cache")
    if callback is not None:
        checks.function(callback, name="callback", what="of the evaluations done and the errors", takes=2)
    if math.prod(shape) < _LEAST:
        raise ValueError(
            f"shape = {shape} are {math.prod(shape)} coordinates, too few to adapt to; take more, e.g. shape = "
            f"{(256, *shape[1:])}."
        )
    began = time.monotonic()
    method = _Method.of(score, chosen, shape[1:])
    x, others = _starts(score, shape, seed, dtype, device)
    answer = _answer(score, x)
    method.done += 1
    if cache is not None:
        known = _cached(cache, repr(chosen), shape, seed, answer)
        if known is not None:
            return known
        make_writable(cache.parent)
    aim, reference_error = method.aim(x)
    held, _ = method.aim(others)
    start = _start(method, aim)
    theta = _descend(method, start, aim, evaluations, callback)
    theta, errors = _kept(method, start, theta, held)
    seconds = round(time.monotonic() - began, 1)
    report = AdaptedReport(repr(chosen), *errors, reference_error, shape, method.done, seconds, seed, answer)
    result = method.rule(theta, report)
    if cache is not None:
        result.save(cache)
    return result


class _Aim(NamedTuple):
    """Starts and where the ODE carries them, (B, *event)."""

    starts: Tensor
    ends: Tensor


@dataclass
class _Method:
    """The solver with the values θ (4, p), each row at its number of steps; counts evaluations."""

    process: Reverse
    solver: Solver
    spectrum: Spectrum
    tuned: bool
    done: int = 0

    @classmethod
    def of(cls, score: Score, solver: Solver, event: tuple[int, ...]) -> _Method:
        process = Reverse(score, eta=0.0)
        solver.check(process)
        name, instead = type(solver).__name__, "Take one that steps on any grid, such as SpectralMultistep() or DDIM()."
        if solver.draws_noise(process):
            raise ValueError(f"{name} draws noise at eta = 0 too, and a grid is adapted to the ODE. {instead}")
        if not callable(solver.default_grid(score)):
            raise ValueError(f"{name} knows only its own times, so that there is nothing to adapt. {instead}")
        tuned = type(solver) is SpectralMultistep and solver.tuning is None
        made = solver.made_for(score, event)
        own = made.spectrum if isinstance(made, SpectralMultistep) else None
        return cls(process, made, own or known_spectrum(score, event), tuned)

    @property
    def values(self) -> int:
        """p."""
        return _VALUES + 3 * self.tuned

    def rule(self, theta: np.ndarray, report: AdaptedReport | None = None) -> Adapted:
        """The rule of these values."""
        logs = tuple(tuple(float(v) for v in row[:_VALUES]) for row in theta)
        told = [tuple(float(v) for v in row[_VALUES:]) for row in theta]
        tuning = Tuning(_STEPS, tuple((a, b, c) for a, b, c in told)) if self.tuned else None
        ones = (1.0,) * len(_STEPS)
        none = AdaptedReport("", ones, ones, ones, 0.0, (), 0, 0.0, 0, ())
        return Adapted(_STEPS, logs, self.ratios, self.spectrum, tuning, report or none)

    @property
    def ratios(self) -> tuple[float, float]:
        """Of σ/α, those between which a grid of the spectral rule takes its steps."""
        sde = self.process.sde
        times = spectral(sde, 2, spectrum=self.spectrum)
        first = float(sde.sigma(times[0]) / sde.alpha(times[0]).clamp_min(1e-300))
        last = float(sde.sigma(times[-1]) / sde.alpha(times[-1]))
        bottom, top = spectral_range(self.spectrum)
        first = min(first, top)
        return first, min(max(last, bottom), first / math.e)

    def end(self, theta: np.ndarray, steps: int, x: Tensor) -> Tensor:
        """The end of so many steps."""
        rule = self.rule(theta)
        solver = rule.solver if self.tuned else self.solver
        return self._run(solver, x, rule(self.process.sde, steps)).x

    def aim(self, x: Tensor) -> tuple[_Aim, float]:
        """The ends of the ODE, and an estimate of their error."""
        fine = SpectralMultistep(self.spectrum)
        solution = self._run(fine, x, spectral(self.process.sde, _REFERENCE, spectrum=self.spectrum))
        error = solution.error
        return _Aim(x, solution.x), 0.0 if error is None else root_mean(error.double().cpu() ** 2)

    def _run(self, solver: Solver, x: Tensor, times: Tensor) -> Solution:
        with torch.no_grad(), unadvised():  # few steps are known to be few; what is not finite is an error here
            solution = solver.solve(self.process, x, times)
        self.done += solution.nfe
        require_finite(solution.x, type(solver).__name__)
        return solution


def _start(method: _Method, aim: _Aim) -> np.ndarray:
    """θ = 0; or the solver's own rule, as nearly as the values allow, where it does better: in the mean logarithm."""
    none = np.zeros((len(_STEPS), method.values))
    rule = method.solver.default_grid(method.process.score)
    if method.tuned or not callable(rule):
        return none
    sde = method.process.sde
    times = rule(sde, 256)[1:-1]  # the first may have no signal, the last no noise
    u = (-0.5 * sde.log_snr(times)).detach().numpy()
    middle, own = (u[:-1] + u[1:]) / 2, -1 / np.diff(u)
    ratio = torch.from_numpy(middle).exp()
    first, last = np.log(method.ratios)
    places = np.linspace(first, last, _VALUES)
    found = none.copy()
    for row, n in zip(found, _STEPS, strict=True):
        log = np.log(own) - spectral_density(ratio, n, method.spectrum).log().numpy()
        values = np.interp(-places, -middle, log)
        row[:] = (values - values.mean()).clip(-6, 6)

    def log_error(theta: np.ndarray) -> float:
        errors = _trial(method, theta, aim)
        if errors is None:
            return math.inf
        return sum(float(_squared(e).clamp_min(1e-300).log().mean()) for e in errors)

    return found if log_error(found) < log_error(none) else none


def _descend(
    method: _Method,
    start: np.ndarray,
    aim: _Aim,
    evaluations: int,
    callback: Callable[[int, tuple[float, ...]], None] | None,
) -> np.ndarray:
    """Damped Gauss-Newton steps from ``start`` for as long as another is within ``evaluations``."""
    m, p = len(_STEPS), method.values
    before, theta = method.done, start
    errors = [_difference(method, theta, n, aim) for n in _STEPS]
    sweep = method.done - before
    # both methods on the starts held out; a step's derivatives and its trial
    rest, step = 2 * sweep, (p + 1) * sweep
    if method.done + rest + step > evaluations:
        raise ValueError(
            f"evaluations must be {method.done + rest + step} at least to adapt {method.solver}, got {evaluations}."
        )
    scales = [max(2 * float(_squared(e).median()), 1e-300) for e in errors]
    first = [_loss(e, s) for e, s in zip(errors, scales, strict=True)]
    penalty, damping = _penalty(p), _DAMPING

    def total(theta: np.ndarray, errors: list[Tensor]) -> float:
        losses = (_loss(e, s) / f for e, s, f in zip(errors, scales, first, strict=True))
        moved = (theta - start).ravel()
        return sum(losses) + float(moved @ penalty @ moved)

    now = total(theta, errors)
    while method.done + rest + step <= evaluations:
        matrix, gradient = penalty.copy(), penalty @ (theta - start).ravel()
        for i, n in enumerate(_STEPS):
            own, slope = _normal(method, theta, i, n, aim, errors[i], scales[i])
            block = slice(i * p, (i + 1) * p)
            matrix[block, block] += own / first[i]
            gradient[block] += slope / first[i]
        moved = None
        while moved is None and method.done + rest + sweep <= evaluations and damping < 1e6:
            change = -np.linalg.solve(matrix + damping * np.diag(np.diag(matrix)), gradient)
            tried = theta + change.clip(-_MOST, _MOST).reshape(m, p)
            trial = _trial(method, tried, aim)
            if trial is not None and total(tried, trial) < now:
                moved = tried, trial
            else:
                damping *= 10
        if moved is None:
            break
        (theta, errors), damping = moved, damping / 5
        now = total(theta, errors)
        if callback is not None:
            callback(method.done, tuple(root_mean(_squared(e)) for e in errors))
    return theta


def _trial(method: _Method, theta: np.ndarray, aim: _Aim) -> list[Tensor] | None:
    """The errors there; None where the method diverges, or θ is beyond what an adapted grid may hold."""
    if not abs(theta).max() <= 9 - _DELTA:
        return None
    try:
        return [_difference(method, theta, n, aim) for n in _STEPS]
    except FloatingPointError:
        return None


def _normal(
    method: _Method, theta: np.ndarray, i: int, steps: int, aim: _Aim, error: Tensor, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and gradient of Gauss-Newton for the loss at one number of steps, each sample with its weight."""
    weight = (1 + _squared(error) / scale).rsqrt().to(error)[:, None]
    columns = []
    for k in range(method.values):
        tried = theta.copy()
        tried[i, k] += _DELTA
        columns.append(((_difference(method, tried, steps, aim) - error) / _DELTA * weight).flatten())
    slopes = torch.stack(columns)
    matrix, gradient = slopes @ slopes.T, slopes @ (error * weight).flatten()
    return matrix.cpu().numpy() / error.numel(), gradient.cpu().numpy() / error.numel()


def _penalty(p: int) -> np.ndarray:
    """The quadratic form of θ, row by row."""
    change = np.diff(np.eye(len(_STEPS)), axis=0) / np.diff(np.log(_STEPS))[:, None]
    found: np.ndarray = np.kron(_RIDGE * np.eye(len(_STEPS)) + _SMOOTH * change.T @ change, np.eye(p))
    return found


def _difference(method: _Method, theta: np.ndarray, steps: int, aim: _Aim) -> Tensor:
    """(B, D), float64."""
    return (method.end(theta, steps, aim.starts).double() - aim.ends.double()).flatten(1)


def _squared(error: Tensor) -> Tensor:
    return error.square().mean(1).cpu()


def _loss(error: Tensor, scale: float) -> float:
    return float(scale * (_squared(error) / scale).log1p().mean())


def _kept(
    method: _Method, start: np.ndarray, theta: np.ndarray, held: _Aim
) -> tuple[np.ndarray, tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]]:
    """θ, the start at the numbers of steps where trajectories held out speak against it; their errors as in the report.

    By the mean of the logarithms of the ratios, which one sample that ends on another mode does not decide, against its
    standard error: of eight images it is a third.
    """
    theta, errors = theta.copy(), []
    for i, n in enumerate(_STEPS):
        was = _squared(_difference(method, start, n, held)).clamp_min(1e-300)
        try:
            now = _squared(_difference(method, theta, n, held)).clamp_min(1e-300)
        except FloatingPointError:  # it diverges
            now = was * math.inf
        gain = -(now / was).log()
        doubt = gain.std() / math.sqrt(len(gain)) if len(gain) > 1 else gain.new_zeros(())
        better = bool(gain.mean() + doubt > 0)  # false where it is NaN, as where now is infinite
        theta[i] = theta[i] if better else start[i]
        kept = now if better else was
        errors.append((root_mean(kept), root_mean(was), trimmed(kept)))
    after, before, typical = zip(*errors, strict=True)
    return theta, (after, before, typical)


# -- what comes in ---------------------------------------------------------------------------------------------------


def _starts(
    score: Score, shape: tuple[int, ...], seed: int, dtype: torch.dtype, device: torch.device | str | None
) -> tuple[Tensor, Tensor]:
    """Two batches at T: to adapt to, and to judge by."""
    noise = PerSampleNoise(seed)
    start = torch.tensor(score.sde.T, dtype=torch.float64)
    first, held = (
        prior_draw(score.sde, start, shape, noise.stream(name), dtype=dtype, device=device, score=score)
        for name in ("adapt", "held out")
    )
    wide = torch.promote_types(dtype, torch.float32)  # as runs are; of ends in less, rounding would hide the changes
    return first.to(wide), held.to(wide)


def _answer(score: Score, x: Tensor) -> tuple[float, ...]:
    """What E[x_0 | x_t] of fixed x half-way down the log-SNR holds of some fixed directions, over its norm."""
    times = spectral(score.sde, 2)
    with torch.no_grad():
        x0 = score.denoise(x * (score.sde.sigma(times[1]) / score.sde.sigma(times[0])).to(x), times[1]).double().cpu()
    if not bool(x0.isfinite().all()):
        raise FloatingPointError("the score answers NaN or infinite values; nothing can be adapted to it.")
    directions = torch.randn(8, x0.numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = x0.norm().clamp_min(1e-300)
    return (*(directions @ x0.flatten() / norm).tolist(), float(norm) / math.sqrt(x0.numel()))


def _cached(path: Path, solver: str, shape: tuple[int, ...], seed: int, answer: tuple[float, ...]) -> Adapted | None:
    """What the file holds, if it is that; None if there is none, or of another score.

    Raises:
        ValueError: the file holds something else.
    """
    if not path.exists():
        return None
    found = Adapted.load(path)
    report = found.report
    asked = (report.solver, report.shape, report.seed) == (solver, shape, seed)
    alike = len(report.answer) == len(answer) and np.allclose(report.answer, answer, rtol=_SAME, atol=_SAME)
    return found if asked and alike else None
