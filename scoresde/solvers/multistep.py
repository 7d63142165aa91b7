"""Exponential multistep methods: one evaluation a step, any order, with or without a corrector, for every η."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.solvers.frames import Frame, Levels, Predicts, frame_of, levels, levels_at
from scoresde.solvers.linear import Coefficient, combine, rows
from scoresde.solvers.planned import Planned
from scoresde.solvers.weights import Variable, weights

Interpolates = Literal["log_snr", "noise_level", "time", "karras", "angle"]


class Form(NamedTuple):
    """What a multistep method is made of.

    Attributes:
        history: p, how many evaluations the predictor's polynomial goes through.
        correct: whether each evaluation also corrects the step that led to it (polynomial through p + 1 values).
        predicts: which F is interpolated.
        interpolates: in which variable it is a polynomial.
        full_start: whether the first step spends evaluations on starting values of the method's own order.
        sigma_data: scale of the data, for predicts="velocity" and interpolates="angle".
    """

    history: int
    correct: bool = False
    predicts: Predicts = "data"
    interpolates: Interpolates = "log_snr"
    full_start: bool = False
    sigma_data: float = 1.0

    @property
    def order(self) -> int:
        """Order of convergence for η = 0: p, or p + 1 with the corrector; at most 3 without a full start."""
        reached = self.history + self.correct
        return reached if self.full_start else min(reached, 3)


class Row(NamedTuple):
    """One step: F = read · (x, s); x moves by ``correct`` · (F, older F); then x_s = keep x + weights · F + noise z."""

    read: tuple[Coefficient, ...]
    correct: tuple[Coefficient, ...]
    keep: Coefficient
    weights: tuple[Coefficient, ...]
    noise: Coefficient


class Start(NamedTuple):
    """The first step on nodes of its own: for each node the row that leads there, and the weights through all nodes."""

    times: Sequence[Tensor]
    rows: Sequence[Row]
    full: Sequence[tuple[Coefficient, ...]]
    keep: Sequence[Coefficient]
    sweeps: int


class Memory(NamedTuple):
    """Past F, newest first; ``ahead`` if the newest belongs to the time where the next step starts."""

    past: tuple[Tensor, ...] = ()
    ahead: bool = False


@dataclass(frozen=True)
class ExponentialMultistep(Planned):
    r"""The engine: F of a :class:`~scoresde.solvers.frames.Frame` as a polynomial through its last p values::

        x_s = a x_t + Σ_j w_j F_j + c z        w_j = ∫_{h_t}^{h_s} K(h) ℓ_j(φ(h)) dh

    on any grid, with the weights of the grid's own steps. Where a corrector is used, the evaluation at x_s also
    replaces the polynomial of the step before by the one through p + 1 values (no evaluation more). The first step is always corrected, so that a method with p <= 3 starts with its own order at no cost. Beyond that
    ``full_start`` spends (P - 2)² - 1 evaluations more on the first step: P - 2 sweeps over P - 2 inner nodes, each
    sweep raising the order of the values there by one (deferred correction); not where η > 0, since the paths are too
    rough for it to help. At an end with σ = 0 the last step goes to α E[x_0 | x_t].
    """

    @abstractmethod
    def form(self) -> Form:
        """What the method is made of."""

    def check(self, process: Reverse) -> None:
        """The velocity's frame wants η = 0."""
        form = self.form()
        frame_of(form.predicts, process.eta, form.sigma_data)

    def plan(self, process: Reverse, grid: Tensor) -> Sequence[Any]:
        """Rows; the first of them a :class:`Start` where one is asked for."""
        form, sde = self.form(), process.sde
        frame, variable = frame_of(form.predicts, process.eta, form.sigma_data), variable_of(form, sde)
        at = levels(sde, grid)
        clean = bool(at.sigma[-1] == 0)
        inner = at.at(slice(0, -1)) if clean else at
        depth = form.history + form.correct - 2  # inner nodes of a full start
        if form.full_start and process.eta == 0 and depth > 1 and len(inner.h) > 1:
            start = _start(frame, sde, inner.at(slice(0, 2)), depth, variable)
            before = start.nodes[1:-1]
            steps, change = _rows(frame, form, inner, before, variable)
            found: list[Any] = [start.start, *steps[1:]]
        else:
            steps, change = _rows(frame, form, inner, inner.h[:0], variable)
            found = list(steps)
        if clean:
            found.append(_last(frame, at, change))
        return found

    def advance(
        self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, row: Any, memory: Any
    ) -> tuple[Tensor, Any]:
        """One evaluation."""
        memory = Memory() if memory is None else memory
        if isinstance(row, Start):
            return _sweep(process, x, t, row)
        past = memory.past
        if not memory.ahead:
            past = (_read(process, x, t, row), *past)
        if row.correct:
            x = combine((1.0, x), *zip(row.correct, past, strict=False))
        terms = [(row.keep, x), *zip(row.weights, past, strict=False)]
        if self.draws_noise(process):
            terms.append((row.noise, noise.between(x, t, s)))
        return combine(*terms), Memory(past[: self.form().history])


def _read(process: Reverse, x: Tensor, t: Tensor, row: Row) -> Tensor:
    keep, pull = row.read
    return combine((keep, x), (pull, process.score(x, t)))


def variable_of(form: Form, sde: SDE) -> Variable:
    """φ by name."""
    if form.interpolates == "log_snr":
        return lambda h: h
    if form.interpolates == "noise_level":
        return lambda h: (-h).exp()
    if form.interpolates == "karras":
        return lambda h: (-h / 7).exp()
    if form.interpolates == "angle":
        return lambda h: torch.atan((-h).exp() / form.sigma_data)
    return lambda h: sde.t_of_log_snr(2 * h.reshape(-1)).reshape(h.shape)


def _rows(
    frame: Frame, form: Form, at: Levels, before: Tensor, variable: Variable
) -> tuple[list[Row], tuple[Coefficient, ...]]:
    """The steps of a run whose F is also known at ``before``, h of nodes inside the first step.

    And the correction that an evaluation at the end of the last of them would bring.
    """
    steps, p = len(at.h) - 1, form.history
    t, s = at.at(slice(0, -1)), at.at(slice(1, None))
    # h of every evaluation so far, newest first: the grid's, then what the start has left
    known = torch.cat([at.h[:1], before, at.h[1:]])
    offset = len(before)
    index = torch.arange(steps)
    newest = torch.where(index > 0, index + offset, index)  # where in ``known`` the evaluation at t lies
    behind = (newest[:, None] - torch.arange(p)).clamp_min(0)
    count = (newest + 1).clamp_max(p)
    predictor = weights(frame, t.h, s, known[behind], count, variable)
    # the same step once its end has been evaluated: the corrector's weights on (F_s, F_t, ...) minus the predictor's
    nodes = torch.cat([s.h[:, None], known[behind]], 1)
    corrector = weights(frame, t.h, s, nodes, count + 1, variable)
    change = corrector - torch.cat([torch.zeros_like(corrector[:, :1]), predictor], 1)
    read = rows(*frame.read(t))
    predicts, changes = rows(*predictor.unbind(1)), rows(*change.unbind(1))
    # the change that comes with each evaluation: for the step before it
    brought: list[tuple[Coefficient, ...]] = [()]
    for i in range(steps):
        corrected = not offset if i == 0 and (p > 1 or form.correct) else form.correct and i > 0
        brought.append(changes[i][: int(count[i]) + 1] if corrected else ())
    found = [
        Row(read[i], brought[i], a, predicts[i][: int(count[i])], c)
        for i, (a, c) in enumerate(rows(frame.keep(t, s), frame.noise(t, s)))
    ]
    return found, brought[-1]


def _last(frame: Frame, at: Levels, change: tuple[Coefficient, ...]) -> Row:
    """To the data themselves, where σ = 0."""
    t, s = at.at(slice(-2, -1)), at.at(slice(-1, None))
    ((keep, weight),) = rows(*frame.to_data(t, s))
    return Row(rows(*frame.read(t))[0], change, keep, (weight,), 0.0)


class _Started(NamedTuple):
    start: Start
    nodes: Tensor


def _start(frame: Frame, sde: SDE, ends: Levels, depth: int, variable: Variable) -> _Started:
    """The first step with ``depth`` nodes after its start, at equal distances in h."""
    h = ends.h[0] + (ends.h[1] - ends.h[0]) * torch.linspace(0, 1, depth + 1, dtype=torch.float64)
    inner = levels_at(sde, h[1:-1])
    at = Levels(*(torch.cat([a[:1], b, a[1:]]) for a, b in zip(ends, inner, strict=True)))
    origin, targets = at.at(slice(0, 1)), at.at(slice(1, None))
    start, count = origin.h.expand(depth), torch.arange(1, depth + 1)
    nodes = at.h.expand(depth, depth + 1)
    first = weights(frame, start, targets, nodes, count, variable)
    full = weights(frame, start, targets, nodes, torch.full((depth,), depth + 1), variable)
    keep = [a for (a,) in rows(frame.keep(Levels(*(part.expand(depth) for part in origin)), targets))]
    read = rows(*frame.read(at))
    leads = [Row(read[0], (), 1.0, (), 0.0)]
    leads += [Row(read[i + 1], (), keep[i], row[: i + 1], 0.0) for i, row in enumerate(rows(*first.unbind(1)))]
    return _Started(Start(at.t.unbind(), leads, rows(*full.unbind(1)), keep, depth), at.h)


def _sweep(process: Reverse, x: Tensor, t: Tensor, start: Start) -> tuple[Tensor, Memory]:
    """The first step by repeated integration of the polynomial through F at all of its nodes."""
    values = [_read(process, x, t, start.rows[0])]
    for time, row in zip(start.times[1:], start.rows[1:], strict=True):
        there = combine((row.keep, x), *zip(row.weights, values, strict=True))
        values.append(_read(process, there, time, row))
    for _ in range(start.sweeps - 1):
        states = [combine((a, x), *zip(w, values, strict=True)) for a, w in zip(start.keep, start.full, strict=True)]
        values[1:] = [
            _read(process, there, time, row)
            for there, time, row in zip(states, start.times[1:], start.rows[1:], strict=True)
        ]
    end = combine((start.keep[-1], x), *zip(start.full[-1], values, strict=True))
    return end, Memory(tuple(reversed(values)), ahead=True)
