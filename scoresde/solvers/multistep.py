"""Exponential multistep methods: one evaluation a step, any order, with or without a corrector, for every η."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from scoresde import checks
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
    """One step: F = x + pull s, or s where pull is None, in units that the weights undo; x_s = keep x + Σ w F + c z."""

    pull: Coefficient | None
    keep: Coefficient
    weights: tuple[Coefficient, ...]
    noise: Coefficient
    remember: int


class Start(NamedTuple):
    """The first step on nodes of its own: to each node by the values before it, then by the values at all nodes."""

    times: Sequence[Tensor]
    pulls: Sequence[Coefficient | None]
    keep: Sequence[Coefficient]
    first: Sequence[tuple[Coefficient, ...]]
    full: Sequence[tuple[Coefficient, ...]]


class Memory(NamedTuple):
    """Past F, newest first; ``ahead`` if the newest belongs to the time where the next step starts."""

    past: tuple[Tensor, ...] = ()
    ahead: bool = False


@dataclass(frozen=True)
class ExponentialMultistep(Planned):
    r"""The engine: F of a :class:`~scoresde.solvers.frames.Frame` as a polynomial through its last p values::

        x_s = a x_t + Σ_j w_j F_j + c z        w_j = ∫_{h_t}^{h_s} K(h) ℓ_j(φ(h)) dh

    on any grid, with the weights of the grid's own steps. With a corrector, the evaluation at x_s also replaces the
    polynomial of the step before by the one through p + 1 values; since x_s enters linearly, that is a change of the
    next step's weights and costs nothing. The first step is always corrected, so that a method with p <= 3 starts with
    its own order at no cost. Beyond that ``full_start`` spends (P - 2)² - 1 evaluations more on the first step: P - 2
    sweeps over P - 2 nodes, each sweep raising the order of the values there by one (deferred correction); not where
    η > 0, since the paths are too rough for it to help. At an end with σ = 0 the last step goes to α E[x_0 | x_t].
    """

    strong_order: ClassVar[float | None] = 1.0
    default_eta: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        checks.choices(self)

    @property
    def weak_order(self) -> float:  # type: ignore[override]
        """2 with more than one value, for any number of them; 1 with one."""
        form = self.form()
        return 2.0 if form.history + form.correct > 1 else 1.0

    @abstractmethod
    def form(self) -> Form:
        """What the method is made of."""

    def plan(self, process: Reverse, grid: Tensor) -> Sequence[Any]:
        """Rows; the first of them a :class:`Start` where one is asked for."""
        form, sde = self.form(), process.sde
        frame, variable = frame_of(form.predicts, process.eta, form.sigma_data), variable_of(form, sde)
        at = levels(sde, grid)
        clean = bool(at.sigma[-1] == 0)
        noisy = at.at(slice(0, -1)) if clean else at
        steps, nodes = len(noisy.h) - 1, form.history + form.correct - 2
        if form.full_start and process.eta == 0 and nodes > 1 and steps:
            inner, start = _start(frame, sde, noisy.at(slice(0, 2)), nodes, variable)
            found, change = _rows(frame, form, noisy, inner, variable)
            found = [start, *found[1:]]
        else:
            found, change = _rows(frame, form, noisy, None, variable)
        return [*found, _last(frame, at, change)] if clean else found

    def advance(
        self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, row: Any, memory: Any
    ) -> tuple[Tensor, Any]:
        """One evaluation."""
        if isinstance(row, Start):
            return _sweep(process, x, t, row)
        past, ahead = memory or Memory()
        if not ahead:
            past = (_read(process, x, t, row.pull), *past)
        terms = [(row.keep, x), *zip(row.weights, past, strict=False)]
        if self.draws_noise(process):
            terms.append((row.noise, noise.between(x, t, s)))
        return combine(*terms), Memory(past[: row.remember])


def _read(process: Reverse, x: Tensor, t: Tensor, pull: Coefficient | None) -> Tensor:
    score = process.score(x, t)
    return score if pull is None else combine((1.0, x), (pull, score))


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


def _units(frame: Frame, at: Levels) -> tuple[Tensor, list[Coefficient | None]]:
    """F = p x + q s as unit * (x + pull s), one pass over memory; as unit * s where p = 0."""
    p, q = frame.read(at)
    if bool((p == 0).all()):
        return q, [None] * len(q)
    return p, [pull for (pull,) in rows(q / p)]


def _rows(frame: Frame, form: Form, at: Levels, start: Levels | None, variable: Variable) -> tuple[list[Any], Tensor]:
    """The steps of a run, whose first step has left the values at its inner nodes if these are given.

    And by how much an evaluation at the end would change the last of them: weights (1, p + 1) of (F there, F before).
    """
    steps, p, extra = len(at.h) - 1, form.history, 0 if start is None else len(start.h)
    t, s = at.at(slice(0, -1)), at.at(slice(1, None))
    # every evaluation, in the order of time: at the first time, at inner nodes, at the other times
    known = at if start is None else Levels(*(torch.cat([a[:1], b, a[1:]]) for a, b in zip(at, start, strict=True)))
    unit, pulls = _units(frame, known)
    index = torch.arange(steps)
    newest = torch.where(index > 0, index + extra, 0)  # which of them belongs to t
    behind = (newest[:, None] - torch.arange(p)).clamp_min(0)
    count = (newest + 1).clamp_max(p)
    nodes = torch.cat([s.h[:, None], known.h[behind]], 1)
    scale = torch.cat([unit[1 + extra :, None], unit[behind]], 1)
    none = torch.zeros(1, p + 1, dtype=torch.float64)
    predictor = weights(frame, t.h, s, nodes[:, 1:], count, variable) * scale[:, 1:]
    total, change = torch.cat([predictor, 0 * predictor[:, :1]], 1), none
    if form.correct or p > 1:
        corrector = weights(frame, t.h, s, nodes, count + 1, variable) * scale
        corrected = torch.full((steps, 1), form.correct)
        corrected[:1] = start is None  # the values that a start leaves need no correction
        change = torch.where(corrected, corrector - torch.cat([0 * predictor[:, :1], predictor], 1), 0.0)
        change = torch.cat([none, change])
        total = total + frame.keep(t, s)[:, None] * change[:-1]
    taken = (newest + 1).clamp_max(p + form.correct).tolist()
    columns = rows(frame.keep(t, s), frame.noise(t, s), *total.unbind(1))
    found = [
        Row(pulls[new], keep, tuple(row[:n]), noise, p - 1 + form.correct)
        for new, n, (keep, noise, *row) in zip(newest.tolist(), taken, columns, strict=True)
    ]
    return list(found), change[-1:]


def _last(frame: Frame, at: Levels, change: Tensor) -> Row:
    """To the data themselves, where σ = 0."""
    t, s = at.at(slice(-2, -1)), at.at(slice(-1, None))
    unit, (pull,) = _units(frame, t)
    keep, weight = frame.to_data(t, s)
    first = keep * change[:, 0] + weight * unit
    ((a, *row),) = rows(keep, first, *(keep * change[:, 1:]).unbind(1))
    return Row(pull, a, tuple(row), 0.0, 0)


def _start(frame: Frame, sde: SDE, ends: Levels, nodes: int, variable: Variable) -> tuple[Levels, Start]:
    """The inner nodes of a first step, at equal distances in h, and the step."""
    h = ends.h[0] + (ends.h[1] - ends.h[0]) * torch.linspace(0, 1, nodes + 1, dtype=torch.float64)
    inner = levels_at(sde, h[1:-1])
    at = Levels(*(torch.cat([a[:1], b, a[1:]]) for a, b in zip(ends, inner, strict=True)))
    unit, pulls = _units(frame, at)
    origin, targets = Levels(*(part[:1].expand(nodes) for part in at)), at.at(slice(1, None))
    count, every = torch.arange(1, nodes + 1), at.h.expand(nodes, nodes + 1)
    first = weights(frame, origin.h, targets, every, count, variable) * unit
    full = weights(frame, origin.h, targets, every, torch.full_like(count, nodes + 1), variable) * unit
    keep = [a for (a,) in rows(frame.keep(origin, targets))]
    by_row = [row[: i + 1] for i, row in enumerate(rows(*first.unbind(1)))]
    return inner, Start(at.t.unbind(), pulls, keep, by_row, rows(*full.unbind(1)))


def _sweep(process: Reverse, x: Tensor, t: Tensor, start: Start) -> tuple[Tensor, Memory]:
    """The first step by repeated integration of the polynomial through F at all of its nodes."""

    def at(node: int, weights: tuple[Coefficient, ...]) -> Tensor:
        return combine((start.keep[node - 1], x), *zip(weights, values, strict=True))

    def value(state: Tensor, node: int) -> Tensor:
        return _read(process, state, start.times[node], start.pulls[node])

    values, nodes = [value(x, 0)], range(1, len(start.times))
    for node in nodes:
        values.append(value(at(node, start.first[node - 1]), node))
    for _ in range(len(nodes) - 1):
        states = [at(node, start.full[node - 1]) for node in nodes]
        values[1:] = [value(state, node) for state, node in zip(states, nodes, strict=True)]
    return at(len(nodes), start.full[-1]), Memory(tuple(reversed(values)), ahead=True)
