"""Robust least squares: the coefficients that carry trajectories to their ends.

:func:`descend` takes damped Gauss-Newton steps (Levenberg-Marquardt) on a pseudo-Huber loss over changing blocks of
trajectories, and keeps the unknowns with the least validation error. :func:`~scoresde.fitting.fit` calls it::

    unknowns, theta = Unknowns.of(score.sde, method)
    limits = FitLimits(iterations=300, until=time.monotonic() + 60.0)
    theta, error, done = descend(score, unknowns, theta, train, validation, limits, generator, callback)

A callback is handed an :class:`Iteration` after each step that moved: how far it is, and both errors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.fitting.recorded import run
from scoresde.fitting.trajectories import Trajectories, root_mean, square, trimmed
from scoresde.fitting.unknowns import Unknowns
from scoresde.models import Score

# Random directions in which an error of many coordinates is differentiated; each costs a backward pass.
_PROBES = 4
# Rows of derivatives an iteration should see for each unknown.
_ROWS = 10
# Iterations without a better validation error before more trajectories are taken into each.
_PATIENCE = 12


class Iteration(NamedTuple):
    """What a callback sees: iterations done, seconds since the start, RMS on these trajectories and on validation."""

    iteration: int
    seconds: float
    train: float
    validation: float


@dataclass(frozen=True)
class FitLimits:
    """When to stop: whichever comes first."""

    iterations: int
    until: float  # on time.monotonic's clock


def loss(squared: Tensor, scale: float) -> Tensor:
    """Pseudo-Huber: e² near 0, 2 scale |e| far out, so that trajectories that end on another mode do not dominate."""
    return 2 * scale**2 * ((1 + squared / scale**2).sqrt() - 1)


def weight(squared: Tensor, scale: float) -> Tensor:
    """The derivative of :func:`loss` by e²."""
    return (1 + squared / scale**2).rsqrt()


def descend(
    score: Score,
    unknowns: Unknowns,
    theta: Tensor,
    train: Trajectories,
    validation: Trajectories,
    limits: FitLimits,
    generator: torch.Generator,
    callback: Callable[[Iteration], None] | None = None,
) -> tuple[Tensor, float, int]:
    """Levenberg and Marquardt's damped Gauss-Newton steps on a robust loss, over changing blocks of trajectories.

    (H + λ diag H) δ = -g with g and H the loss's gradient and Gauss-Newton matrix; a step is kept if it lowers the
    loss on its blocks, and λ follows how well it was predicted. Blocks are added when the validation error rests.

    Returns:
        The θ of least validation error (geometric mean of plain and trimmed), that error, iterations done.
    """
    began = time.monotonic()
    per = _blocks_for(theta, train)
    damping, scale = 1e-2, 0.0
    best, least, since, done = theta, _judged(score, unknowns, theta, validation)[0], 0, 0
    order: list[int] = []
    while done < limits.iterations and time.monotonic() < limits.until:
        if len(order) < per:
            order = torch.randperm(len(train), generator=generator).tolist()
        chosen, order = order[:per], order[per:]
        blocks = Trajectories([train.starts[i] for i in chosen], [train.ends[i] for i in chosen])
        system = _assemble(score, unknowns, theta, blocks, scale, generator)
        scale = system.scale
        moved, damping = _step(score, unknowns, theta, blocks, system, damping)
        done += 1
        since += 1
        if moved is None:
            since += 3
        else:
            theta = moved
            judged, plain = _judged(score, unknowns, theta, validation)
            if callback is not None:
                callback(Iteration(done, time.monotonic() - began, root_mean(system.squared), plain))
            if judged < least:
                since = since if judged > 0.995 * least else 0
                best, least = theta, judged
        if since > _PATIENCE:
            if per == len(train):
                break
            per, since, damping = min(2 * per, len(train)), 0, max(damping, 1e-4)
            order = []
    return best, least, done


def _blocks_for(theta: Tensor, train: Trajectories) -> int:
    x = train.starts[0]
    rows = len(x) * min(_PROBES, x[0].numel())
    return min(len(train), math.ceil(_ROWS * len(theta) / rows))


def _judged(score: Score, unknowns: Unknowns, theta: Tensor, parts: Trajectories) -> tuple[float, float]:
    method = unknowns.method(theta)
    squared = parts.squared(lambda x: run(method, score, x))
    plain = root_mean(squared)
    return math.sqrt(plain * trimmed(squared)), plain


class _System(NamedTuple):
    gradient: Tensor
    matrix: Tensor
    squared: Tensor
    loss: float
    scale: float


def _assemble(
    score: Score, unknowns: Unknowns, theta: Tensor, blocks: Trajectories, scale: float, generator: torch.Generator
) -> _System:
    """g and H of the mean loss, with the weights of iteratively reweighted least squares."""
    event = blocks.starts[0].shape[1:]
    d = math.prod(event)
    found = []
    for x, end in zip(blocks.starts, blocks.ends, strict=True):
        signs = None
        if d > _PROBES:
            signs = 2.0 * torch.randint(0, 2, (_PROBES, len(x), *event), generator=generator) - 1.0
        found.append(unknowns.derivatives(score, theta, x, end, signs))
    squared = torch.cat([square(rows.error) for rows in found])
    now = max(float(squared.median().sqrt()), 1e-12)
    scale = now if scale == 0.0 else 0.8 * scale + 0.2 * now
    weights = weight(squared, scale)
    gradient, matrix, first = torch.zeros_like(theta), torch.zeros(len(theta), len(theta), dtype=theta.dtype), 0
    for rows in found:
        own = weights[first : first + len(rows.gradient)] / (d * len(squared))
        first += len(own)
        gradient += own @ rows.gradient
        sketch = (rows.sketch * own.sqrt()[:, None]).flatten(0, 1)
        matrix += sketch.T @ sketch
    return _System(gradient, matrix, squared, float(loss(squared, scale).mean()), scale)


def _step(
    score: Score, unknowns: Unknowns, theta: Tensor, blocks: Trajectories, system: _System, damping: float
) -> tuple[Tensor | None, float]:
    """The next θ, or None where no step lowers the loss; and the damping to begin the next with."""
    diagonal = system.matrix.diagonal()
    unit = (diagonal + 1e-12 * diagonal.max()).rsqrt()  # in units in which H has a diagonal of ones
    scaled = system.matrix * unit[:, None] * unit
    eye = torch.eye(len(theta), dtype=theta.dtype)
    for _ in range(6):
        step = -unit * torch.linalg.solve_ex(scaled + damping * eye, unit * system.gradient).result
        if not bool(step.isfinite().all()):  # derivatives that are not finite, or a matrix singular to rounding
            damping = min(4 * damping, 1e3)
            continue
        moved = unknowns.inside(theta + step)
        step = moved - theta
        method = unknowns.method(moved)
        after = float(loss(blocks.squared(lambda x: run(method, score, x)), system.scale).mean())  # noqa: B023
        predicted = -2 * float(system.gradient @ step + 0.5 * step @ system.matrix @ step)
        gain = (system.loss - after) / predicted if predicted > 0 else -1.0
        if after < system.loss and gain > 0.1:
            return moved, max(damping / 4, 1e-9) if gain > 0.6 else damping
        damping = min(4 * damping, 1e3)
    return None, damping
