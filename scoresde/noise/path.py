"""One Brownian path for each sample, the same for all solvers and step sizes.

:class:`BrownianNoise` is a :class:`~scoresde.noise.Noise` whose increments belong to one path, which can be asked for
at any times in any order::

    noise = BrownianNoise(seed=0, T=sde.T)
    sample(score, shape, solver=EulerMaruyama(), steps=50, noise=noise)
    noise.w(x, 0.3), noise.increment(x, 0.5, 0.3)           # the path at a time, w(0.3) - w(0.5), shaped like x

:func:`brownian_path` makes a path from any noise, for a method that needs one, such as
:class:`~scoresde.solvers.TorchSDE`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TypeVar

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.lasting import lasting
from scoresde.noise.base import PATH, Noise, Shape, check_times
from scoresde.noise.counter import Counter, absorb, absorb_rows, begin
from scoresde.noise.places import Division, Place, Places, all_beside, beside
from scoresde.noise.shapes import PIECES, library
from scoresde.noise.sources import PerSampleNoise

_SHAPE = 63  # stands in a key where the level of a node stands; no tree is as deep
K = TypeVar("K")


class BrownianNoise(Noise):
    """One Brownian path for each sample, the same for all step sizes, batch splits, devices and orders of queries.

    A virtual Brownian tree (Li et al. 2020, arXiv:2001.01328, section 4) graded towards t = 0. The octaves
    [T/2, T], [T/4, T/2], ... have independent increments. Each is halved again and again, the middle drawn by a
    Brownian bridge whose normal is a hash of (seed, sample, cell). Cells of 64 pieces are halved no more: a hash picks
    the values inside from a list of 65536 bridges (``scoresde/noise/shapes.py``), and inside a piece [a, b] the path is
    the line between its ends plus sqrt((t - a)(b - t) / (b - a)) times one normal.

    So w is one continuous function of (seed, sample, element, t), and its values at times of which no two lie strictly
    inside one piece have exactly the mean, the covariance and the vanishing odd moments of Brownian motion. The fourth
    moment of a normalised increment is 3 to within 0.02 inside a cell, and to within 0.002 for steps of two cells.

    Pieces are T / 2**levels long in the first octaves and between t / 2**(levels - 3) and t / 2**(levels - 4) from
    T/8 down, to the 24th octave; within T/16 of T they shrink with T - t. Steps that put two times strictly inside one
    piece are refused by :meth:`check` and :meth:`between`. The default serves uniform grids of up to 2048 steps and
    logarithmic ones of 128 for each halving of t. A further level costs about half a torch.randn for each step.

    Memory is O(levels) states, independent of the number of steps, and 33 MB for the list of bridges.

    Args:
        seed: an integer.
        T: end of the time range, at least ``sde.T``.
        first: index of the batch's first sample.
        levels: how fine the path is, 1 to 40.

    Raises:
        ValueError: T, first or levels out of range; :meth:`between` and :meth:`check`, for times outside [0, T] and
            for steps shorter than the path resolves.
    """

    def __init__(self, seed: int, T: float, *, first: int = 0, levels: int = 11) -> None:
        checks.positive(T, name="T")
        levels = checks.whole(levels, name="levels", least=1, most=40)
        first = checks.count(first, name="first", least=0)
        self._fresh = PerSampleNoise(seed, first=first)
        self._key: tuple[int, ...] = (checks.seed(seed), PATH)
        self._first, self.T, self.levels = first, float(T), levels
        self._division = Division(self.T, levels)
        self._kind: tuple[Shape, torch.dtype, torch.device] | None = None
        self._above: tuple[int, Tensor]  # an octave, and w at its upper end

    def initial(self, shape: Shape, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._fresh.initial(shape, dtype=dtype, device=device)

    def normal(self, x: Tensor) -> Tensor:
        return self._fresh.normal(x)

    def stream(self, purpose: str) -> PerSampleNoise:
        """Per-sample noise of the same seed and first sample, in streams of its own."""
        return self._fresh.stream(purpose)

    def position(self) -> object:
        """That of :meth:`normal`, :meth:`initial` and the streams: the path itself is a function of time alone."""
        return self._fresh.position()

    def rewind(self, position: object) -> None:
        """Sets :meth:`normal`, :meth:`initial` and the streams back."""
        self._fresh.rewind(position)

    def check(self, grid: Tensor) -> None:
        """The grid must lie in [0, T], with no two neighbouring times strictly inside one piece of the path."""
        times = checks.grid(grid, math.inf).detach()
        for time in (times[0].item(), times[-1].item()):
            self.covers(time, name="each time of the grid")
        places = self._division.places(times)
        upper, lower = Places(*(field[:-1] for field in places)), Places(*(field[1:] for field in places))
        self._refuse_any(all_beside(upper, lower), times[:-1], times[1:])

    def resolves(self, t: Tensor, s: Tensor) -> Tensor:
        """(B,) bool on the CPU, whether steps between the times t and s (B,) are long enough for :meth:`between`."""
        start, end = (time.detach().to("cpu", torch.float64) for time in (t, s))
        upper, lower = torch.maximum(start, end), torch.minimum(start, end)
        return ~(all_beside(self._division.places(upper), self._division.places(lower)) & (upper > lower))

    def between(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """(w_s - w_t) / sqrt(t - s) of the path counted from w(T) = 0 down, for s < t, shaped like ``x``.

        Times may be (B,), one for each sample: a row is what its own times would give, and 0 where t = s, for a sample
        that does not move. Two single times must differ.
        """
        checks.state(x)
        check_times(t, s)
        t, s = (time if isinstance(time, Tensor) else checks.real(time, name="t") for time in (t, s))
        if t.ndim or s.ndim:
            return self._each(x, t, s, normalised=True)
        upper, lower = max(t.item(), s.item()), min(t.item(), s.item())
        if upper == lower:
            raise ValueError(f"an interval of no length has no normalised increment, got t = s = {upper:g}.")
        a, b = self._place(upper), self._place(lower)
        if beside(a, b):
            self._refuse(upper, lower)
        return self._difference(x, a, b, 1 / math.sqrt(upper - lower))

    def increment(self, x: Tensor, t: float | Tensor, s: float | Tensor) -> Tensor:
        """w_s - w_t, shaped like ``x``: not normalised, over intervals of any length; times (B,) row by row."""
        checks.state(x)
        times = (checks.real(time, name=name) for name, time in (("t", t), ("s", s)))
        first, last = (time.to(torch.float64) for time in times)
        check_times(first, last)
        if first.ndim or last.ndim:
            return self._each(x, first, last, normalised=False)
        start, end = first.item(), last.item()
        a, b = self._place(max(start, end)), self._place(min(start, end))
        return self._difference(x, a, b, 1.0 if start >= end else -1.0)

    @lasting
    def w(self, x: Tensor, t: float) -> Tensor:
        """The path at time t, counted from w(T) = 0 backwards, shaped like ``x``.

        Raises:
            ValueError: t outside [0, T].
        """
        checks.state(x)
        place = self._place(t)
        self._prepare(x)
        octave, total = self._above
        if octave > place.octave:
            octave, total = 0, self._zero
        while octave < place.octave:
            total = total + self._octave(octave)
            octave += 1
        self._above = octave, total
        return self._counter.rotate((total + self._value(place)).mul_(0.5)).to(x.dtype)

    def covers(self, t: float, *, name: str = "t") -> None:
        """Raise ValueError unless t lies on the path, in [0, T]."""
        t = checks.number(t, name=name)
        if not -1e-9 * self.T <= t <= self.T * (1 + 1e-9):
            raise ValueError(
                f"{name} must lie on the path, in [0, {self.T:g}], got {t:g}; give BrownianNoise a larger T."
            )

    def _place(self, t: float) -> Place:
        self.covers(t)
        return self._division.place(float(t))

    def _refuse(self, t: float, s: float) -> None:
        least = self._division.piece(self._place(t))
        raise ValueError(
            f"a path of {self.levels} levels on [0, {self.T:g}] resolves steps of {least:.3g} at t = {t:.6g}; got one "
            f"of {t - s:.3g}. Take longer steps, or {'a smaller T' if self.levels == 40 else 'more levels'}."
        )

    def _refuse_any(self, refused: Tensor, upper: Tensor, lower: Tensor) -> None:
        if bool(refused.any()):
            i = int(refused.nonzero()[0])
            self._refuse(upper[i].item(), lower[i].item())

    # -- one time for all: the way down to it is remembered ------------------------------------------------------

    def _prepare(self, x: Tensor) -> None:
        """Empty caches for a batch of another kind. Below, "values" are the path before Counter.rotate."""
        kind = (tuple(x.shape), x.dtype, x.device)
        if kind == self._kind:
            return
        self._counter = Counter(self._key[0], self._first, *kind)
        self._state = absorb(begin(len(self._key) + 3), *self._key)
        self._zero = torch.zeros(self._counter.raw_shape, dtype=self._counter.dtype, device=x.device)
        self._nodes: OrderedDict[tuple[int, int, int], Tensor] = OrderedDict()
        self._kept = self._division.tree[0] + 3  # the way to a time, and octaves beside
        self._lanes: OrderedDict[tuple[int, int, int], Tensor] = OrderedDict()
        self._values: OrderedDict[Place, Tensor] = OrderedDict()
        self._above = 0, self._zero
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._kind = kind

    @lasting
    def _difference(self, x: Tensor, a: Place, b: Place, scale: float) -> Tensor:
        """w(b) - w(a) times ``scale``, from the octaves' own ends: no large values far from 0 to round off."""
        self._prepare(x)
        values = self._value(b) - self._value(a)
        for octave in range(a.octave, b.octave):
            values += self._octave(octave)
        return self._counter.rotate(values.mul_(0.5 * scale)).to(x.dtype)

    def _value(self, place: Place) -> Tensor:
        """The path at a place, counted from the upper end of its octave."""
        if place not in self._values:
            _keep(self._values, place, self._descend(place), 3)
        return self._values[place]

    def _octave(self, octave: int) -> Tensor:
        """The increment over an octave."""
        return self._node((octave, 0, 0), self._division.length(octave), self._zero, self._zero)

    def _node(self, key: tuple[int, int, int], variance: float, low: Tensor, high: Tensor) -> Tensor:
        """Half the sum of the ends and a normal of this variance."""
        if key not in self._nodes:
            lanes = self._counter.lanes(absorb(self._state, *key))
            node = self._counter.pick(self._counter.table * math.sqrt(variance), lanes)
            if key[1]:
                node.add_(low, alpha=0.5).add_(high, alpha=0.5)
            _keep(self._nodes, key, node, self._kept)
        self._nodes.move_to_end(key)
        return self._nodes[key]

    def _descend(self, place: Place) -> Tensor:
        """The path at a place, from the ends of its octave down the tree."""
        octave, zone, piece, inside = place
        tree, fine = self._division.tree[zone], self._division.fine[zone]
        if piece == 0 and inside == 0:
            return self._zero
        low, high, length = self._zero, self._octave(octave), self._division.length(octave)
        if piece + 1 == 1 << (tree + fine) and inside == 1:
            return high
        for level in range(1, tree + 1):
            below = tree + fine - level
            here = piece >> below
            middle = self._node((octave, level, here | 1), length / 4, low, high)
            length /= 2
            if here & 1:
                low = middle
                if here << below == piece and inside == 0:
                    return low
            else:
                high = middle
        key = (octave, tree, piece >> fine)
        if key not in self._lanes:
            _keep(self._lanes, key, self._counter.lanes(absorb(self._state, octave, _SHAPE + tree, key[2])), 2)
        first = piece & ((1 << fine) - 1)
        way, scale, stride = (first + inside) / (1 << fine), math.sqrt(length), PIECES >> fine
        nodes, rest = library(self._zero.device)
        shapes = nodes[first * stride].to(self._zero.dtype) * ((1 - inside) * scale)
        shapes.add_(nodes[(first + 1) * stride], alpha=inside * scale)
        shapes.add_(rest[first], alpha=math.sqrt(inside * (1 - inside) / (1 << fine)) * scale)
        value = self._counter.pick(shapes, self._lanes[key])
        return value.add_(low, alpha=1 - way).add_(high, alpha=way)

    # -- a time for each sample ----------------------------------------------------------------------------------

    @lasting
    def _each(self, x: Tensor, t: Tensor, s: Tensor, *, normalised: bool) -> Tensor:
        if not x.ndim or any(time.ndim and time.shape != x.shape[:1] for time in (t, s)):
            raise ValueError(
                f"times must be () or (B,), one for each sample of x; got shapes {tuple(t.shape)} and {tuple(s.shape)} "
                f"with x of {tuple(x.shape)}."
            )
        if not len(x):
            return torch.zeros_like(x)
        start, end = (time.detach().to("cpu", torch.float64).expand(len(x)) for time in (t, s))
        upper, lower = torch.maximum(start, end), torch.minimum(start, end)
        self.covers(lower.min().item())
        self.covers(upper.max().item())
        a, b = self._division.places(upper), self._division.places(lower)
        if normalised:
            self._refuse_any(all_beside(a, b) & (upper > lower), upper, lower)
            scale = torch.where(upper > lower, upper - lower, torch.inf).rsqrt()
        else:
            scale = torch.where(start >= end, 1.0, -1.0).double()
        self._prepare(x)
        above = self._row_values(upper, a)
        values = self._row_values(lower, b) - above
        for octave in range(int(a.octave.min()), int(b.octave.max())):
            passed = (a.octave <= octave) & (octave < b.octave)
            if bool(passed.any()):
                values += self._octave(octave) * self._column(passed.double())
        return self._counter.rotate(values.mul_(self._column(0.5 * scale))).to(x.dtype)

    def _column(self, rows: Tensor) -> Tensor:
        """(B,) on the CPU as (B, 1) beside the values."""
        return rows.to(self._zero.device, self._zero.dtype)[:, None]

    def _row_values(self, times: Tensor, places: Places) -> Tensor:
        """:meth:`_value` at times (B,)."""
        for known, value in self._rows:
            if torch.equal(known, times):
                return value
        value = self._row_descend(places)
        self._rows = [*self._rows[-2:], (times.clone(), value)]
        return value

    def _row_descend(self, places: Places) -> Tensor:
        """:meth:`_descend` for each row, without the ways out for nodes."""
        octave, zone, piece, inside = places
        counter, device = self._counter, self._zero.device
        tree, fine = self._division.trees[zone], self._division.fines[zone]
        length = torch.tensor([self._division.length(k) for k in octave.tolist()], dtype=torch.float64)
        state = absorb_rows(self._state, octave.to(device))

        def draw(level: int, index: Tensor, variance: Tensor) -> Tensor:
            lanes = counter.lanes(absorb_rows(state, level, index.to(device)))
            return counter.pick(counter.table, lanes).mul_(self._column(variance.sqrt()))

        low, high = self._zero, draw(0, torch.zeros_like(piece), length)
        for level in range(1, int(tree.max()) + 1):
            here = piece >> (tree + fine - level).clamp(min=0)
            middle = draw(level, here | 1, length / 4).add_(low, alpha=0.5).add_(high, alpha=0.5)
            active, odd = level <= tree, here & 1 == 1
            low = torch.where((active & odd).to(device)[:, None], middle, low)
            high = torch.where((active & ~odd).to(device)[:, None], middle, high)
            length = torch.where(active, length / 2, length)
        lanes = counter.lanes(absorb_rows(state, (_SHAPE + tree).to(device), (piece >> fine).to(device)))
        pieces = 1 << fine
        first, stride = piece & (pieces - 1), PIECES >> fine
        way = (first + inside) / pieces
        value = low * self._column(1 - way) + high * self._column(way)
        nodes, rest = library(device)
        for table, row, weight in (
            (nodes, first * stride, 1 - inside),
            (nodes, (first + 1) * stride, inside),
            (rest, first, (inside * (1 - inside) / pieces).sqrt()),
        ):
            entries = lanes + (row.to(device) * table.shape[1])[:, None]
            value += counter.pick(table.view(-1), entries).to(value.dtype) * self._column(weight * length.sqrt())
        return value


def _keep(cache: OrderedDict[K, Tensor], key: K, value: Tensor, most: int) -> None:
    """Add to a cache, at the expense of what was added or asked for longest ago."""
    cache[key] = value
    if len(cache) > most:
        cache.popitem(last=False)


def brownian_path(noise: Noise, T: float) -> BrownianNoise:
    """A Brownian path on [0, T] driven by a noise, a new one at each call; of a path, itself.

    It resolves steps of T / 2**20, for methods that choose their own.
    """
    checks.instance(noise, Noise, name="noise")
    checks.positive(T, name="T")
    if isinstance(noise, BrownianNoise):
        noise.covers(T)
        return noise
    key, first = noise.path_key()
    path = BrownianNoise(key[0], T, first=first, levels=20)
    path._key = key
    return path
