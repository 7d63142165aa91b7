"""Embedded explicit Runge-Kutta pairs, each sample on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.solvers._adaptive_run import AdaptiveMethod
from scoresde.solvers._circle import Circle
from scoresde.solvers._step_control import Tolerance, rms, scaled


@dataclass(frozen=True)
class Pair:
    """An explicit Runge-Kutta pair whose last stage is the next step's first (FSAL).

    Args:
        order: of the solution that is carried on; the other, of order - 1, gives the error.
        nodes: c, 0 first and 1 last.
        matrix: the rows of a; the last is b, the weights of the solution.
        error: b - b̂.
        inside: the weights of the state at a fraction (B,) of the step, (B, stages).
    """

    order: int
    nodes: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]
    inside: Callable[[Tensor], Tensor]


_DORMAND_PRINCE = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)


def _dormand_prince_inside(part: Tensor) -> Tensor:
    """Hairer, Nørsett & Wanner 1993, section II.6, eq. 6.12: of order 4 everywhere in the step, C¹ at its ends."""
    rise, bump = part**2 * (3 - 2 * part), part**2 * (part - 1) ** 2
    b = _DORMAND_PRINCE[-1]
    return torch.stack(
        [
            rise * b[0] + part * (part - 1) ** 2 - bump * 5 * (2558722523 - 31403016 * part) / 11282082432,
            torch.zeros_like(part),
            rise * b[2] + bump * 100 * (882725551 - 15701508 * part) / 32700410799,
            rise * b[3] - bump * 25 * (443332067 - 31403016 * part) / 1880347072,
            rise * b[4] + bump * 32805 * (23143187 - 3489224 * part) / 199316789632,
            rise * b[5] - bump * 55 * (29972135 - 7076736 * part) / 822651844,
            part**2 * (part - 1) + bump * 10 * (7414447 - 829305 * part) / 29380423,
        ],
        dim=1,
    )


DORMAND_PRINCE = Pair(
    order=5,
    nodes=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    matrix=_DORMAND_PRINCE,
    error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    inside=_dormand_prince_inside,
)
"""Dormand & Prince 1980 (doi:10.1016/0771-050X(80)90013-3), table 2: 5(4), six evaluations a step."""


class EmbeddedPair(AdaptiveMethod):
    """A pair for dy/dp = v(y, p), with the PI controller of Gustafsson 1991 (doi:10.1145/210232.210242)."""

    def __init__(self, circle: Circle, y: Tensor, p: Tensor, tolerance: Tolerance, pair: Pair, safety: float):
        self.circle, self.tolerance, self.pair, self.safety = circle, tolerance, pair, safety
        self.slope = circle.slope(y, circle.at(p))
        self.evaluations = len(pair.nodes) - 1
        self.finite = self.slope.detach().reshape(y.shape[0], -1).isfinite().all(1)
        self.last_error = torch.ones_like(p)

    def first_step(self, y: Tensor) -> Tensor:
        """A tenth of the way at most, and less for a small tolerance; rejections do the rest."""
        return 0.1 * self.tolerance.of(y) ** (1 / self.pair.order)

    def attempt(self, y: Tensor, p: Tensor, h: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All stages."""
        slopes = [self.slope]
        stages = [target if node == 1 else p + node * h for node in self.pair.nodes[1:]]
        places = self.circle.at(torch.stack(stages, dim=1))  # the schedule is asked once for all stages
        for i, row in enumerate(self.pair.matrix[1:]):
            after = y + scaled(h, _sum(row, slopes))
            slopes.append(self.circle.slope(after, places.column(i)))
        self.slopes, self.h = slopes, h
        with torch.no_grad():
            scale = torch.maximum(self.tolerance.of(y), self.tolerance.of(after))
            error = rms(_sum(self.pair.error, slopes)) * h / scale
            self.error = error.nan_to_num(torch.inf, torch.inf)
            floor, order = self.error.clamp_min(1e-10), self.pair.order
            smooth = floor ** (-0.7 / order) * self.last_error ** (0.4 / order)
            factor = self.safety * torch.where(error <= 1, smooth, floor ** (-1 / order))
        return after, self.error, factor

    def commit(self, accepted: Tensor) -> None:
        """The last stage is the next step's first."""
        wide = accepted.reshape(-1, *[1] * (self.slope.ndim - 1))
        self.slope = torch.where(wide, self.slopes[-1], self.slope)
        self.last_error = torch.where(accepted, self.error.clamp_min(1e-4), self.last_error)

    def between(self, y: Tensor, part: Tensor) -> Tensor:
        """By the pair's own weights."""
        weights = self.pair.inside(part)
        total = sum((scaled(w, k) for w, k in zip(weights.unbind(1), self.slopes, strict=True)), torch.zeros_like(y))
        return y + scaled(self.h, total)

    def select(self, rows: Tensor) -> None:
        """Only these samples go on."""
        self.slope, self.last_error = self.slope[rows], self.last_error[rows]


def _sum(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    terms = [(w, k) for w, k in zip(weights, slopes, strict=False) if w]
    total = terms[0][0] * terms[0][1]
    for w, k in terms[1:]:
        total = total + w * k
    return total
