"""The engine of single-step methods: Runge-Kutta in a frame, each stage a sum of x, noises and earlier predictions."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.models.combination import Coefficient, combine
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.sde.base import root
from scoresde.solvers._frames import FAR, Frame, Levels, levels, levels_at
from scoresde.solvers._quadrature import for_steps
from scoresde.solvers._rows import rows
from scoresde.solvers._tableaus import Tableau
from scoresde.solvers._variables import LOG_SNR, Variable
from scoresde.solvers.planned import Planned


class Scheme(NamedTuple):
    """A single-step method: what is interpolated, in which variable, with which weights."""

    frame: Frame
    variable: Variable
    tableau: Tableau


class StageRow(NamedTuple):
    """An evaluation of F = a x + b s, (a, b) = ``evaluates``, at ``time``, in ``mix`` · (x, noises, earlier F)."""

    time: Tensor
    mix: tuple[Coefficient, ...]
    evaluates: tuple[Coefficient, Coefficient]


class StepRow(NamedTuple):
    """One step: the intervals whose increments it draws (None: of no length), its stages, and its end."""

    draws: tuple[tuple[Tensor, Tensor] | None, ...]
    stages: tuple[StageRow, ...]
    end: tuple[Coefficient, ...]


@dataclass(frozen=True)
class Singlestep(Planned):
    r"""Runge-Kutta for x_s = c x_t + ∫ K(h) F dh + d z, the form of a :class:`~scoresde.solvers._frames.Frame`.

    At stage i, a fraction of the way from t to s in a variable v(h)::

        x_i = c_i x_t + Σ_{j<i} a_ij F_j + N_i        x_s = c x_t + Σ_j b_j F_j + N_s

    with weights a_ij, b_j made of the kernel's own moments (see :mod:`~scoresde.solvers._tableaus`). N_s is exact in
    law, and the noises of the stages are partial sums over its increments. Everything is linear in x, the F and
    the increments, so all coefficients are numbers before the first step.

    A step to an end with σ = 0 goes to α E[x_0 | x_t], with one evaluation: log(α/σ) has no end there.
    """

    @abstractmethod
    def scheme(self, process: Reverse) -> Scheme:
        """What the method is made of."""

    def plan(self, process: Reverse, grid: Tensor) -> Sequence[StepRow]:
        """Every stage of every step."""
        scheme, (at, data) = self.scheme(process), noisy_part(process.sde, grid)
        found = plan_stages(scheme, process.sde, at.at(slice(0, -1)), at.at(slice(1, None)), process.eta > 0)
        return found if data is None else [*found, to_data(scheme.frame, at.at(slice(-1, None)), data)]

    def advance(
        self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, row: Any, memory: Any
    ) -> tuple[Tensor, Any]:
        """One evaluation for each stage."""
        return run_stages(process, x, noise, row), None


def noisy_part(sde: SDE, grid: Tensor) -> tuple[Levels, Levels | None]:
    """The schedule at the times of ``grid`` with σ > 0; and at the last one (1,) if σ = 0 there."""
    at = levels(sde, grid)
    if bool(at.sigma[-1] > 0):
        return at, None
    return at.at(slice(0, -1)), at.at(slice(-1, None))


def run_stages(process: Reverse, x: Tensor, noise: Noise, step: StepRow) -> Tensor:
    """One step from x."""
    terms = [x, *(torch.zeros_like(x) if span is None else noise.between(x, *span) for span in step.draws)]
    for i, (time, mix, evaluates) in enumerate(step.stages):
        there = combine(*zip(mix, terms, strict=True)) if i else x
        terms.append(process.score.linear(there, time, *evaluates))
    return combine(*zip(step.end, terms, strict=True))


def plan_stages(scheme: Scheme, sde: SDE, t: Levels, s: Levels, noisy: bool) -> list[StepRow]:
    """The steps from t (n,) to s (n,), σ(s) > 0."""
    if not len(t.h):
        return []
    frame, variable, (nodes, weights, signs) = scheme
    places = [*_places(sde, t, s, variable, nodes), s]  # the stages, then the end
    knots = sorted({c for c in (nodes[-1:] if signs else nodes) if 0 < c < 1})
    path = [t, *(places[nodes.index(c)] for c in knots), s]
    count = len(path) - 1 if noisy else 0
    # rows (n, width): each state as a sum of x, the increments, and what is evaluated in the stages
    unit = torch.eye(1 + count + len(nodes), dtype=torch.float64)
    noises = [torch.zeros_like(unit[:1])] * len(places)
    if noisy:
        on_path = dict(zip([0.0, *knots, 1.0], _nested(frame, path, unit[: 1 + count]), strict=True))
        if signs:
            noises = _bridged(frame, t, places, signs, on_path[nodes[-1]], on_path[1.0])
        else:
            noises = [on_path[c] for c in (*nodes, 1.0)]
    table = weights(Moments(frame, variable, t, places))
    states = [unit[:1].expand(len(t.h), -1)]
    slopes: list[Tensor] = []
    evaluates: list[list[tuple[Coefficient, Coefficient]]] = []
    for i, place in enumerate(places):
        if i:
            drift = sum(w[:, None] * slope for w, slope in zip(table[i - 1], slopes, strict=True))
            states.append(frame.linear(t, place)[:, None] * unit[0] + drift + noises[i])
        if i < len(nodes):
            size, combinations = frame.units(place)
            # near the data F is made of the state, which is known, and of the score alone: one pass over memory less
            near = (place.sigma <= FAR * place.alpha).detach()
            of_x, of_score = frame.combination(place)
            apart = of_x[:, None] * states[i] + of_score[:, None] * unit[1 + count + i]
            slopes.append(torch.where(near[:, None], apart, size[:, None] * unit[1 + count + i]))
            evaluates.append(
                [(0.0, 1.0) if is_near else c for is_near, c in zip(near.tolist(), combinations, strict=True)]
            )
    mixes = [rows(*state[:, : 1 + count + i].unbind(1)) for i, state in enumerate(states)]
    ends, times = [place.t.unbind() for place in path], [place.t.unbind() for place in places]
    return [
        StepRow(
            tuple(_span(ends[k][n], ends[k + 1][n]) for k in range(count)),
            tuple(StageRow(times[i][n], mixes[i][n], evaluates[i][n]) for i in range(len(nodes))),
            mixes[-1][n],
        )
        for n in range(len(t.h))
    ]


def to_data(frame: Frame, t: Levels, s: Levels) -> StepRow:
    """The one step from t (1,) to s (1,), where σ(s) = 0."""
    linear, weight = frame.to_data(t, s)
    unit, (evaluates,) = frame.units(t)
    (end,) = rows(linear, weight * unit)
    return StepRow((), (StageRow(t.t[0], (), evaluates),), end)


def _span(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor] | None:
    return (t, s) if bool(t > s) else None


def _places(sde: SDE, t: Levels, s: Levels, variable: Variable, nodes: Sequence[float]) -> list[Levels]:
    """The schedule at each node; the interval's own ends where a node is one of them."""
    inside = sorted({c for c in nodes if 0 < c < 1})
    known = {0.0: t, 1.0: s}
    if inside:
        first, last = variable.of_h(t.h), variable.of_h(s.h)
        part = torch.tensor(inside, dtype=torch.float64)[:, None]
        found = levels_at(sde, variable.to_h(first + part * (last - first)).reshape(-1))
        # rounding must not carry a stage out of its step
        found = found._replace(
            t=torch.minimum(torch.maximum(found.t, s.t.repeat(len(inside))), t.t.repeat(len(inside)))
        )
        known |= {c: found.at(slice(i * len(t.h), (i + 1) * len(t.h))) for i, c in enumerate(inside)}
    return [known[c] for c in nodes]


def _nested(frame: Frame, path: Sequence[Levels], unit: Tensor) -> list[Tensor]:
    """The noise (n, width) at each place of ``path``, as sums over the increments between them."""
    found = [torch.zeros(len(path[0].h), unit.shape[1], dtype=torch.float64)]
    for k, (u, s) in enumerate(itertools.pairwise(path)):
        found.append(frame.linear(u, s)[:, None] * found[k] + frame.noise(u, s)[:, None] * unit[1 + k])
    return found


def _bridged(
    frame: Frame, t: Levels, places: Sequence[Levels], signs: Sequence[float], last: Tensor, end: Tensor
) -> list[Tensor]:
    """The noises (n, width) of a tableau with signs; ``last`` and ``end`` are the path's, at the last stage and end."""
    total = frame.noise(t, places[-1]) ** 2
    some = torch.where(total > 0, total, torch.ones_like(total))
    shared, apart = [], []
    for place in places[:-1]:
        variance = frame.noise(t, place) ** 2
        shared.append(frame.linear(place, places[-1]) * variance / some)
        apart.append(root(variance - shared[-1] ** 2 * total))
    rest = torch.where(apart[-1] > 0, apart[-1], torch.ones_like(total))
    normal = (last - shared[-1][:, None] * end) / rest[:, None]
    beside = [(sign * part)[:, None] * normal for part, sign in zip(apart, signs, strict=True)]
    return [*(part[:, None] * end + more for part, more in zip(shared, beside, strict=True)), end]


class Moments:
    r"""Φ_k(i) = ∫_{h_t}^{h_i} K(h) τ^{k-1}/(k-1)! dh, with τ from 0 at t to 1 at stage i linear in v: (n,), float64.

    The last "stage" is the step's end. In log-SNR these are c_i Δ φ_k(c_i z), the φ-functions of exponential
    integrators, up to the frame's factor; a quadrature of positive terms, so that nothing cancels at small z.
    """

    def __init__(self, frame: Frame, variable: Variable, t: Levels, places: Sequence[Levels]) -> None:
        self._frame, self._variable, self._t, self._places = frame, variable, t, places
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, k: int, i: int) -> Tensor:
        i = i % len(self._places)
        if i not in self._known:
            end = self._places[i]
            length = end.h - self._t.h
            points, measure = for_steps(length, self._frame.eta)
            h = self._t.h[:, None] + length[:, None] * points
            part = points if self._variable is LOG_SNR else self._part(h, end.h)
            self._known[i] = self._frame.kernel(h, end) * length[:, None] * measure, part
        mass, part = self._known[i]
        return (mass * part ** (k - 1)).sum(1) / math.factorial(k - 1)

    def _part(self, h: Tensor, end: Tensor) -> Tensor:
        """τ at ``h`` (n, Q). A step of length Δ loses eps/Δ of it by cancellation: of the weights, Δ times it, eps."""
        first, last = self._variable.of_h(self._t.h), self._variable.of_h(end)
        gap = torch.where(first == last, torch.ones_like(first), last - first)
        return (self._variable.of_h(h) - first[:, None]) / gap[:, None]
