"""Exponential multistep methods: one evaluation a step, any order, with or without a corrector, for every η."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from scoresde import checks
from scoresde.models.combination import Coefficient, as_number, combine
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.solvers._frames import Frame, Levels, Predicts, data_scale, frame_of, levels, levels_at
from scoresde.solvers._from_noise import Carry, carried, carry_over, counted, counted_from_noise
from scoresde.solvers._quadrature import for_steps
from scoresde.solvers._rows import rows
from scoresde.solvers._variables import KARRAS, LOG_SNR, NOISE_LEVEL, Variable, angle, time_of
from scoresde.solvers.planned import Planned

Interpolates = Literal["log_snr", "noise_level", "time", "karras", "angle"]


class Form(NamedTuple):
    """What a multistep method is made of.

    Attributes:
        history: p, how many evaluations the predictor's polynomial goes through.
        correct: whether each evaluation also corrects the step that led to it (polynomial through p + 1 values).
        predicts: which F is interpolated.
        interpolates: in which variable it is a polynomial.
        full_start: whether the first step spends evaluations on starting values of the method's own order.
        sigma_data: scale of the data, for predicts="v" and interpolates="angle"; None for the score's own, else 1.
    """

    history: int
    correct: bool = False
    predicts: Predicts = "x0"
    interpolates: Interpolates = "log_snr"
    full_start: bool = False
    sigma_data: float | None = None

    @property
    def order(self) -> int:
        """Order of convergence for η = 0: p, or p + 1 with the corrector; at most 3 without a full start."""
        reached = self.history + self.correct
        return reached if self.full_start else min(reached, 3)


class Row(NamedTuple):
    """One step: F = a x + b s, in units that the weights undo, then x_s = c x + Σ w F + d z.

    Attributes:
        evaluates: (a, b); None for a step without an evaluation.
        linear: c.
        weights: w, of the newest F first.
        noise: d.
        remember: how many F to hand on.
        carry: of each F that is handed on, where it is counted from x/σ: see :mod:`~scoresde.solvers._from_noise`.
        follow: by how much each past F follows a change of x from outside, there.
        doubt: (a, w...), of x and F, newest first: by how much the evaluation corrects x, weighed for an estimate of
            the error; None for a method that makes none.
    """

    evaluates: tuple[Coefficient, Coefficient] | None
    linear: Coefficient
    weights: tuple[Coefficient, ...]
    noise: Coefficient
    remember: int
    carry: tuple[Carry, ...] = ()
    follow: tuple[Coefficient, ...] = ()
    doubt: tuple[Coefficient, ...] | None = None


class StartUp(NamedTuple):
    """The first step on nodes of its own: to each node by the values before it, then by the values at all nodes."""

    times: Sequence[Tensor]
    evaluates: Sequence[tuple[Coefficient, Coefficient]]
    linear: Sequence[Coefficient]
    first: Sequence[tuple[Coefficient, ...]]
    full: Sequence[tuple[Coefficient, ...]]
    carry: tuple[Carry, ...] = ()


class Doubt(NamedTuple):
    """Sum of the mean squares of the rows' ``doubt``, (B,) float64, and some coordinates of past F, newest first."""

    squares: Tensor
    past: tuple[Tensor, ...]


class Memory(NamedTuple):
    """Past F, newest first; ``ahead`` if the newest belongs to the time where the next step starts.

    ``x`` is the state from whose x/σ they are counted, if they are. ``doubt`` is what the estimate of the error has
    come to.
    """

    past: tuple[Tensor, ...] = ()
    ahead: bool = False
    x: Tensor | None = None
    doubt: Doubt | None = None


@dataclass(frozen=True)
class ExponentialMultistep(Planned):
    r"""The engine: F of a :class:`~scoresde.solvers._frames.Frame` as a polynomial through its last p values::

        x_s = c x_t + Σ_j w_j F_j + d z        w_j = ∫_{h_t}^{h_s} K(h) ℓ_j(φ(h)) dh

    on any grid, with the weights of the grid's own steps. With a corrector, the evaluation at x_s also replaces the
    polynomial of the step before by the one through p + 1 values; since x_s enters linearly, that is a change of the
    next step's weights and costs nothing. The first step is always corrected, so that a method with p <= 3 starts with
    its own order at no cost. Beyond that ``full_start`` spends (P - 2)² - 1 evaluations more on the first step: P - 2
    sweeps over P - 2 nodes, each sweep raising the order of the values there by one (deferred correction); not where
    η > 0, since the paths are too rough for it to help. At an end with σ = 0 the last step goes to α E[x_0 | x_t].
    """

    strong_order: ClassVar[float | None] = 1.0
    default_eta: ClassVar[float] = 0.0

    @property
    def has_memory(self) -> bool:  # type: ignore[override]
        """Whether more than one value enters a step."""
        form = self.form()
        return form.history + form.correct > 1

    @property
    def weak_order(self) -> float:  # type: ignore[override]
        """2 with more than one value, for any number of them; 1 with one."""
        form = self.form()
        return 2.0 if form.history + form.correct > 1 else 1.0

    @abstractmethod
    def form(self) -> Form:
        """What the method is made of."""

    def plan(self, process: Reverse, grid: Tensor) -> Sequence[Any]:
        """Rows; the first of them a :class:`StartUp` where one is asked for."""
        form, sde = self.form(), process.sde
        scale = data_scale(form.sigma_data, process.score)
        frame, variable = frame_of(form.predicts, process.eta, scale), variable_of(form.interpolates, sde, scale)
        at = levels(sde, grid)
        steps, nodes = len(grid) - 1 - bool(at.sigma[-1] == 0), form.history + form.correct - 2
        if not (form.full_start and process.eta == 0 and nodes > 1 and steps):
            return plan_rows(frame, form, at, None, variable)
        inner, start = _start(frame, sde, at.at(slice(0, 2)), nodes, variable)
        return [start, *plan_rows(frame, form, at, inner, variable)[1:]]

    def advance(
        self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, row: Any, memory: Any
    ) -> tuple[Tensor, Any]:
        """One evaluation."""
        if isinstance(row, StartUp):
            return _sweep(process, x, row)
        past, ahead, origin, doubt = memory or Memory()
        if origin is not None and origin is not x:  # a corrector, or a measurement, has moved x since
            past = tuple(combine((1.0, f), (c, x - origin)) for c, f in zip(row.follow, past, strict=False))
        if not ahead and row.evaluates is not None:
            past = (process.score.linear(x, t, *row.evaluates), *past)
        if row.carry:
            change = combine(*zip(row.weights, past, strict=False))
            after = combine((1.0, change), (row.linear, x))
            return after, Memory(carried(x, change, past, row.carry), False, after if row.carry[0].counted else None)
        if row.doubt is not None:
            doubt = doubted(x, past[0], row, doubt)
        terms = [(row.linear, x), *zip(row.weights, past, strict=False)]
        if self.draws_noise(process):
            terms.append((row.noise, noise.between(x, t, s)))
        return combine(*terms), Memory(past[: row.remember], doubt=doubt)


_PIECES, _LONG = 16, 16  # pieces of a sample, at equal distances, and their length: by which its error is estimated


def doubted(x: Tensor, newest: Tensor, row: Row, before: Doubt | None) -> Doubt:
    """With the mean square over some coordinates of what the row says of x and the past, ``newest`` its newest."""
    weights, size = row.doubt or (), math.prod(x.shape[1:])
    apart = size // _PIECES

    def some(value: Tensor) -> Tensor:
        flat = value.detach().reshape(len(x), size)
        if apart <= _LONG:
            return flat
        return flat[:, : _PIECES * apart].reshape(len(x), _PIECES, apart)[:, :, :_LONG].flatten(1)

    with torch.no_grad():
        past = (some(newest), *(before.past if before else ()))[: len(weights) - 1]
        square = combine(*zip(map(as_number, weights), (some(x), *past), strict=True))
        square = (square.double() if checks.has_float64(x.device) else square).square().mean(1)
    return Doubt(square + before.squares if before else square, past[: row.remember])


def variable_of(name: Interpolates, sde: SDE, sigma_data: float) -> Variable:
    """φ by name."""
    if name == "time":
        return time_of(sde)
    if name == "angle":
        return angle(sigma_data)
    return {"log_snr": LOG_SNR, "noise_level": NOISE_LEVEL, "karras": KARRAS}[name]


def weights(frame: Frame, start: Tensor, end: Levels, nodes: Tensor, count: Tensor, variable: Variable) -> Tensor:
    """The weights (n, p) ∫ K(h) ℓ_j(φ(h)) dh of F at unequal nodes, ℓ_j Lagrange's polynomials, for n steps at once.

    Args:
        frame: gives K.
        start: (n,) h at which each step begins.
        end: (n,) where it ends, σ > 0.
        nodes: (n, p) h of the nodes.
        count: (n,) how many of the nodes, from the first, are used; the others get weight 0.
        variable: φ, the variable in which F is taken for a polynomial.
    """
    length = end.h - start
    points, measure = for_steps(length, frame.eta)
    h = start[:, None] + length[:, None] * points  # (n, Q)
    mass = frame.kernel(h, end) * length[:, None] * measure
    at, known = variable.of_h(h), variable.of_h(nodes)
    p = nodes.shape[1]
    used = torch.arange(p) < count[:, None]  # (n, p)
    factor = used[:, :, None] & used[:, None, :] & ~torch.eye(p, dtype=torch.bool)  # (n, j, m): m shapes ℓ_j
    gap = torch.where(factor, known[:, :, None] - known[:, None, :], 1.0)
    above = (at[:, :, None] - known[:, None, :])[:, :, None, :]  # (n, Q, 1, m)
    basis = torch.where(factor[:, None], above / gap[:, None], 1.0).prod(-1)  # (n, Q, j)
    return torch.where(used, (mass[:, :, None] * basis).sum(1), 0.0)


MOST = 50.0
"""How much larger than the integral itself the weights of an interpolant may be, in sum: so much are errors amplified.

On equal steps 3.7 with three values, 6.7 with four; where a long step follows short ones, as at σ/α of 1e6, up to 1e8.
"""


def stable_weights(
    frame: Frame, start: Tensor, end: Levels, nodes: Tensor, count: Tensor, variable: Variable
) -> Tensor:
    """:func:`weights` through fewer of the nodes where those through all of them would amplify errors of the values."""
    found = weights(frame, start, end, nodes, count, variable)
    for fewer in range(int(count.max()) - 1 if len(count) else 0, 0, -1):
        # the weights sum to the integral of K
        wild = found.detach().abs().sum(1) > MOST * found.detach().sum(1).abs()
        if not bool(wild.any()):
            break
        found = torch.where(wild[:, None], weights(frame, start, end, nodes, count.clamp_max(fewer), variable), found)
    return found


def plan_rows(frame: Frame, form: Form, at: Levels, start: Levels | None, variable: Variable) -> list[Row]:
    """The steps of a run, whose first step has left the values at its inner nodes if these are given.

    At an end with σ = 0 the last step goes to the data themselves.
    """
    clean, p, extra = bool(at.sigma[-1] == 0), form.history, 0 if start is None else len(start.h)
    noisy = at.at(slice(0, -1)) if clean else at
    t, s = noisy.at(slice(0, -1)), noisy.at(slice(1, None))
    # every evaluation, in the order of time: at the first time, at inner nodes, at the other times
    parts = zip(noisy, start or Levels(*(part[:0] for part in at)), strict=True)
    known = Levels(*(torch.cat([a[:1], b, a[1:]]) for a, b in parts))
    index = torch.arange(len(at.h) - 1)
    newest = torch.where(index > 0, index + extra, 0)  # which of them belongs to t
    behind = (newest[:, None] - torch.arange(p + 1)).clamp_min(0)
    before = behind[: len(t.h), :p]
    count = (newest[: len(t.h)] + 1).clamp_max(p)
    nodes = torch.cat([s.h[:, None], known.h[before]], 1)
    predictor = torch.nn.functional.pad(stable_weights(frame, t.h, s, nodes[:, 1:], count, variable), (0, 1))
    # by how much an evaluation at the end would change each step: weights of (F there, F before)
    change = torch.zeros(1, p + 1, dtype=torch.float64).expand(len(index), -1)
    if form.correct or p > 1:
        corrector = stable_weights(frame, t.h, s, nodes, count + 1, variable)
        corrected = torch.full((len(t.h), 1), form.correct)
        corrected[:1] = start is None  # the values that a start leaves need no correction
        late = torch.where(corrected, corrector - predictor.roll(1, 1), 0.0)
        change = torch.cat([change[:1], late])[: len(index)]
    linear, fresh = frame.linear(t, s), frame.noise(t, s)
    if clean:
        of_x, weight = frame.to_data(noisy.at(slice(-1, None)), at.at(slice(-1, None)))
        last = torch.nn.functional.pad(weight[:, None], (0, p))
        linear, predictor = torch.cat([linear, of_x]), torch.cat([predictor, last])
        fresh = torch.cat([fresh, torch.zeros_like(of_x)])
    total = predictor + linear[:, None] * change
    unit, evaluates = frame.units(known)
    scale = unit[behind]
    carry: list[tuple[Carry, ...]] = [()] * len(index)
    follow: list[tuple[Coefficient, ...]] = [()] * len(index)
    far = counted(frame, known, p + form.correct)
    if bool(far.any()):
        own, asked = counted_from_noise(known)
        scale = torch.where(far[newest, None], own[behind], scale)
        evaluates = [asked[i] if is_far else evaluates[i] for i, is_far in enumerate(far.tolist())]
        linear = torch.where(far[newest], at.sigma[1:] / at.sigma[:-1], linear)
        carry, follow = _counted_memory(noisy, known, far, newest, behind)
    taken = (newest + 1).clamp_max(p + form.correct).tolist()
    columns = rows(linear, fresh, *(total * scale).unbind(1))
    remember = p - 1 + form.correct
    return [
        Row(evaluates[new], of_x, tuple(row[:n]), noise, remember, handed[:remember], moved)
        for new, n, (of_x, noise, *row), handed, moved in zip(
            newest.tolist(), taken, columns, carry, follow, strict=True
        )
    ]


def _start(frame: Frame, sde: SDE, ends: Levels, nodes: int, variable: Variable) -> tuple[Levels, StartUp]:
    """The inner nodes of a first step, at equal distances in h, and the step."""
    h = ends.h[0] + (ends.h[1] - ends.h[0]) * torch.linspace(0, 1, nodes + 1, dtype=torch.float64)
    inner = levels_at(sde, h[1:-1])
    at = Levels(*(torch.cat([a[:1], b, a[1:]]) for a, b in zip(ends, inner, strict=True)))
    origin, targets = Levels(*(part[:1].expand(nodes) for part in at)), at.at(slice(1, None))
    far = counted(frame, at, nodes + 2)
    unit, evaluates = counted_from_noise(at) if bool(far[0]) else frame.units(at)
    linear = targets.sigma / origin.sigma if bool(far[0]) else frame.linear(origin, targets)
    count, every = torch.arange(1, nodes + 1), at.h.expand(nodes, nodes + 1)
    first = weights(frame, origin.h, targets, every, count, variable) * unit
    full = weights(frame, origin.h, targets, every, torch.full_like(count, nodes + 1), variable) * unit
    by_row = [row[: i + 1] for i, row in enumerate(rows(*first.unbind(1)))]
    carry: tuple[Carry, ...] = ()
    if bool(far[0]):
        carry = carry_over(at.sigma.flip(0), at.sigma[:1], at.sigma[-1:], bool(far[-1]))
    return inner, StartUp(at.t.unbind(), evaluates, [c for (c,) in rows(linear)], by_row, rows(*full.unbind(1)), carry)


def _counted_memory(
    at: Levels, known: Levels, far: Tensor, newest: Tensor, behind: Tensor
) -> tuple[list[tuple[Carry, ...]], list[tuple[Coefficient, ...]]]:
    """For each step, what becomes of the values that it hands on, and by how much those before follow a change of x."""
    carry: list[tuple[Carry, ...]] = [()] * len(newest)
    follow: list[tuple[Coefficient, ...]] = [()] * len(newest)
    for i in far[newest].nonzero().flatten().tolist():
        t, sigma = at.sigma[i : i + 1], known.sigma[behind[i]]
        if i + 1 < len(newest):  # nothing follows the last step
            carry[i] = carry_over(sigma, t, at.sigma[i + 1 : i + 2], bool(far[newest[i + 1]]))
        ahead = i == 1 and int(newest[1]) > 1  # the value at this time is known before the step
        follow[i] = tuple(c for (c,) in rows((sigma if ahead else sigma[1:]) / t))
    return carry, follow


def _sweep(process: Reverse, x: Tensor, start: StartUp) -> tuple[Tensor, Memory]:
    """The first step by repeated integration of the polynomial through F at all of its nodes."""

    def change(weights: tuple[Coefficient, ...]) -> Tensor:
        return combine(*zip(weights, values, strict=True))

    def value(moved: Tensor, node: int) -> Tensor:
        state = combine((1.0, moved), (start.linear[node - 1], x))
        found = process.score.linear(state, start.times[node], *start.evaluates[node])
        return combine((1.0, found), (-1.0, moved)) if start.carry else found

    values, nodes = [process.score.linear(x, start.times[0], *start.evaluates[0])], range(1, len(start.times))
    for node in nodes:
        values.append(value(change(start.first[node - 1]), node))
    for _ in range(len(nodes) - 1):
        moved = [change(start.full[node - 1]) for node in nodes]
        values[1:] = [value(each, node) for each, node in zip(moved, nodes, strict=True)]
    moved_to_end, past = change(start.full[-1]), tuple(reversed(values))
    after = combine((1.0, moved_to_end), (start.linear[-1], x))
    if not start.carry:
        return after, Memory(past, True)
    return after, Memory(carried(x, moved_to_end, past, start.carry), True, after if start.carry[0].counted else None)


def one_step_rows(plan: Sequence[Any], name: str) -> list[tuple[Coefficient, ...]]:
    """(a, b, c) of the steps x_s = a x_t + b s + c z of a method without a memory.

    Raises:
        ValueError: it has one.
    """
    found: list[tuple[Coefficient, ...]] = []
    for row in plan:
        if not isinstance(row, Row) or row.evaluates is None or any(w != 0.0 for w in row.weights[1:]):
            raise ValueError(f"{name} remembers past steps, so a step of it is no Gaussian given x alone.")
        (a, b), weight = row.evaluates, row.weights[0]
        found.append((row.linear + weight * a, weight * b, row.noise))
    return found
