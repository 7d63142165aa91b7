"""Where randomness comes from: independent draws, one stream per sample, or one Brownian path.

A solver asks its noise for standard normals: ``initial`` for the prior, ``between`` for the Wiener increment of a
step, ``normal`` for anything that belongs to no time interval (Langevin steps, churn). Nothing reads or moves torch's
global generators.

A seed means an independent stream for each use: the prior's normals, a solver's, a likelihood's probes and a data
set's samples share nothing, though all are given the same integer. See :meth:`Noise.stream`.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, ...]


class Noise(ABC):
    """A source of standard normals. Holds the position of its streams, so use a new one for each run to repeat it."""

    @abstractmethod
    def initial(self, shape: Shape, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """N(0, I) of ``shape`` (B, *event), for x_T."""

    @abstractmethod
    def normal(self, x: Tensor) -> Tensor:
        """Fresh N(0, I) with the shape, dtype and device of ``x``."""

    def between(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """(w_t - w_s) / sqrt(|t - s|) ~ N(0, I) of a reverse-time Wiener process stepping from t down to s < t.

        With the reverse Wiener process w̄ run from T to 0, ``x + g sqrt(t - s) between(x, t, s)`` is an
        Euler-Maruyama step. Independent of every other interval unless a subclass keeps a path.
        """
        return self.normal(x)

    def stream(self, purpose: str) -> Noise:
        """The source of normals for another use than a solver's, such as "probe" or "data".

        A noise keyed by a seed answers one that shares no draw with itself, the same object for the same purpose, so
        its draws move on. By default the noise itself, which is right where every draw is new anyway.
        """
        return self

    def path(self, T: float) -> BrownianNoise:
        """A Brownian path on [0, T] driven by this noise, a new one at each call; a path answers itself."""
        return BrownianNoise(drawn_seed(self), T)

    def check(self, grid: Tensor) -> None:  # noqa: B027 (most noises serve every grid)
        """Raises ValueError where this noise cannot serve the steps of ``grid`` (n + 1,); called before any work."""


def drawn_seed(noise: Noise) -> int:
    """An integer from the noise's own stream, to seed a generator that is not ours."""
    draws = noise.normal(torch.zeros(2, 2, dtype=torch.float64))
    return int(draws.abs().sum().item() * 2.0**40)


class IndependentNoise(Noise):
    """The fastest: draws from one generator for each device, all samples of a batch together.

    ``initial`` and ``normal`` continue one stream: use one object for a run, not two with the same seed.

    Args:
        seed: an integer, or a torch.Generator whose stream is continued (it fixes the device of the draws).
    """

    def __init__(self, seed: int | torch.Generator = 0) -> None:
        self._seed = seed if isinstance(seed, torch.Generator) else _as_seed(seed)
        self._generators: dict[torch.device, torch.Generator] = {}
        self._streams: dict[str, Noise] = {}

    def stream(self, purpose: str) -> Noise:
        """From a seed: a stream of its own. A generator given from outside is continued."""
        if isinstance(self._seed, torch.Generator):
            return self
        if purpose not in self._streams:
            self._streams[purpose] = IndependentNoise(_digest(self._seed, purpose))
        return self._streams[purpose]

    def path(self, T: float) -> BrownianNoise:
        """A new path, its seed drawn from the generator."""
        generator = self._generator(torch.device("cpu"))
        draw = torch.randint(2**62, (), generator=generator, device=generator.device)
        return BrownianNoise(int(draw), T)

    def _generator(self, device: torch.device) -> torch.Generator:
        if isinstance(self._seed, torch.Generator):
            return self._seed
        if device not in self._generators:
            device = torch.empty(0, device=device).device  # "cuda" is the current one of its devices: name that one
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]

    def initial(self, shape: Shape, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        generator = self._generator(device)
        return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device).to(device)

    def normal(self, x: Tensor) -> Tensor:
        return self.initial(tuple(x.shape), dtype=x.dtype, device=x.device)


class PerSampleNoise(Noise):
    """Sample i of a batch draws from its own stream (seed, first + i): the same sample in any batch, on any device.

    A counter-based generator: draw number k of element j of sample i is a hash of (seed, role, first + i, k, j), so a
    batch of 1000 costs no 1000 generators and batch splits agree bit for bit in the noise. ``initial`` and ``normal``
    are two roles, each with its own count k: ``prior_sample(shape, s)`` followed by ``solve(..., s)`` draws what one
    object PerSampleNoise(s) would draw in both, and the solver's normals are independent of x_T.

    Args:
        seed: an integer.
        first: index of the batch's first sample, to generate a large set in pieces.
    """

    def __init__(self, seed: int = 0, *, first: int = 0) -> None:
        if not isinstance(first, (int, np.integer)) or first < 0:
            raise ValueError(f"first must be a whole number of at least 0, got {first}.")
        self._key: tuple[int, ...] = (_as_seed(seed),)
        self._first = int(first)
        self._drawn = {_INITIAL: 0, _NORMAL: 0, _PATH: 0}
        self._streams: dict[str, PerSampleNoise] = {}

    def initial(self, shape: Shape, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return counter_normal(shape, self._next(_INITIAL), first=self._first, dtype=dtype, device=device)

    def normal(self, x: Tensor) -> Tensor:
        key = self._next(_NORMAL)
        return counter_normal(tuple(x.shape), key, first=self._first, dtype=x.dtype, device=x.device)

    def stream(self, purpose: str) -> PerSampleNoise:
        """Per-sample noise of the same seed and first sample, in streams of its own."""
        if purpose not in self._streams:
            other = PerSampleNoise(_digest(self._key[0], purpose), first=self._first)
            self._streams[purpose] = other
        return self._streams[purpose]

    def path(self, T: float) -> BrownianNoise:
        """A new path for each sample of the same seed and first, so that it is the same in any batch."""
        path = BrownianNoise(self._key[0], T, first=self._first)
        path._key = self._next(_PATH)
        return path

    def _next(self, role: int) -> tuple[int, ...]:
        draw = self._drawn[role]
        self._drawn[role] = draw + 1
        return (*self._key, role, draw)


class BrownianNoise(Noise):
    """One Brownian path for each sample, the same for all step sizes, batch splits and orders of queries.

    A virtual Brownian tree (Li et al. 2020, arXiv:2001.01328, section 4): w at dyadic points of [0, T] is drawn by
    Brownian bridges whose normals are a hash of (seed, sample, node), and is linear inside a cell of the finest level,
    of length c = T / 2**levels. The path is therefore continuous: times one rounding apart have values one rounding
    apart (times 1/sqrt(c)). Memory is O(levels), independent of the number of steps.

    An increment over h is normal with variance between h - c/2 and h; one shorter than 16 c, where more than 3 per
    cent of the variance may be missing, is refused.

    Args:
        seed: an integer.
        T: end of the time range, at least ``sde.T``.
        first: index of the batch's first sample.
        levels: depth of the tree, 1 to 40.

    Raises:
        ValueError: T, first or levels out of range; :meth:`between` and :meth:`check`, for times outside [0, T] and
            for steps shorter than 16 cells.
    """

    def __init__(self, seed: int, T: float, *, first: int = 0, levels: int = 40) -> None:
        if not (math.isfinite(T) and T > 0):
            raise ValueError(f"T must be positive and finite, got {T}.")
        if not 1 <= levels <= 40:
            raise ValueError(f"levels must lie in 1..40, got {levels}.")
        self._fresh = PerSampleNoise(seed, first=first)
        self._key: tuple[int, ...] = (_as_seed(seed), _PATH)
        self._first, self.T, self.levels = int(first), float(T), levels
        self._nodes: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self._recent: OrderedDict[float, Tensor] = OrderedDict()
        self._kind: tuple[Shape, torch.dtype, torch.device] | None = None

    def initial(self, shape: Shape, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._fresh.initial(shape, dtype=dtype, device=device)

    def normal(self, x: Tensor) -> Tensor:
        return self._fresh.normal(x)

    def stream(self, purpose: str) -> PerSampleNoise:
        """Per-sample noise of the same seed and first sample, in streams of its own."""
        return self._fresh.stream(purpose)

    def path(self, T: float) -> BrownianNoise:
        """Itself."""
        self._inside(T)
        return self

    def check(self, grid: Tensor) -> None:
        """The grid must lie in [0, T], with no step shorter than 16 cells of the tree."""
        times = grid.detach()
        for t in (times[0].item(), times[-1].item()):
            self._inside(t)
        self._resolved(-times.diff().max().item())

    def between(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if t.ndim or s.ndim:
            raise ValueError("a Brownian path is asked at one time for the whole batch; got per-sample times.")
        start, end = t.item(), s.item()
        if start == end:
            raise ValueError(f"an interval of no length has no normalised increment, got t = s = {start:g}.")
        self._resolved(abs(start - end))
        difference = self._path(x, end) - self._path(x, start)
        return (difference / math.copysign(math.sqrt(abs(start - end)), start - end)).to(x.dtype)

    def increment(self, x: Tensor, t: float, s: float) -> Tensor:
        """w_s - w_t, shaped like ``x``: not normalised, over an interval of any length."""
        return (self._path(x, s) - self._path(x, t)).to(x.dtype)

    def _inside(self, t: float) -> None:
        if not -1e-9 * self.T <= t <= self.T * (1 + 1e-9):
            raise ValueError(f"the path lives on [0, {self.T:g}], asked at t = {t:g}; give BrownianNoise a larger T.")

    def _resolved(self, length: float) -> None:
        least = 16 * self.T / 2**self.levels
        if not length >= least:
            raise ValueError(
                f"a path of {self.levels} levels on [0, {self.T:g}] resolves steps down to {least:.3g}; got one of "
                f"{length:.3g}. Take longer steps, or {'a smaller T' if self.levels == 40 else 'more levels'}."
            )

    def w(self, x: Tensor, t: float) -> Tensor:
        """The path at time t, counted from w(T) = 0 backwards, shaped like ``x``.

        Raises:
            ValueError: t outside [0, T].
        """
        return self._path(x, t).to(x.dtype)

    def _path(self, x: Tensor, t: float) -> Tensor:
        self._inside(t)
        # At least float32: the difference of two half-precision values of the path would be mostly rounding.
        kind = (tuple(x.shape), torch.promote_types(x.dtype, torch.float32), x.device)
        if kind != self._kind:  # another batch: its nodes have other shapes
            self._nodes.clear()
            self._recent.clear()
            self._kind = kind
        if t not in self._recent:
            self._recent[t] = self._descend(min(max(1 - t / self.T, 0.0), 1.0), kind)
            if len(self._recent) > 4:
                self._recent.popitem(last=False)
        return self._recent[t]

    def _descend(self, u: float, kind: tuple[Shape, torch.dtype, torch.device]) -> Tensor:
        """The path at the fraction u of its way, from its ends down the tree."""
        low, high = torch.zeros(kind[0], dtype=kind[1], device=kind[2]), self._node(0, 1, kind)
        left, width = 0.0, 1.0
        for level in range(1, self.levels + 1):
            if u in (left, left + width):
                break
            width /= 2
            key = (level, round((left + width) / width))
            if key not in self._nodes:
                self._nodes[key] = 0.5 * (low + high) + math.sqrt(self.T * width / 2) * self._draw(key, kind)
                if len(self._nodes) > 3 * self.levels:  # the way to this time and to the two before
                    self._nodes.popitem(last=False)
            middle = self._nodes[key]
            self._nodes.move_to_end(key)
            if u < left + width:
                high = middle
            else:
                low, left = middle, left + width
        if u == left:
            return low
        if u == left + width:
            return high
        return torch.lerp(low, high, (u - left) / width)

    def _node(self, level: int, index: int, kind: tuple[Shape, torch.dtype, torch.device]) -> Tensor:
        if (level, index) not in self._nodes:
            self._nodes[level, index] = math.sqrt(self.T) * self._draw((level, index), kind)
        self._nodes.move_to_end((level, index))
        return self._nodes[level, index]

    def _draw(self, key: tuple[int, int], kind: tuple[Shape, torch.dtype, torch.device]) -> Tensor:
        shape, dtype, device = kind
        return counter_normal(shape, (*self._key, *key), first=self._first, dtype=dtype, device=device)


def as_noise(noise: Noise | torch.Generator | int, purpose: str = "") -> Noise:
    """A Noise as it is; a generator as IndependentNoise; a seed as PerSampleNoise.

    Args:
        noise: any of them.
        purpose: where the normals serve another use than a solver's, its name: a seed then means another stream
            (:meth:`Noise.stream`), so that equal seeds in two uses give independent draws.

    Raises:
        TypeError: anything else.
    """
    if isinstance(noise, Noise):
        return noise.stream(purpose) if purpose else noise
    if isinstance(noise, torch.Generator):
        return IndependentNoise(noise)
    if isinstance(noise, (int, np.integer)) and not isinstance(noise, bool):
        return as_noise(PerSampleNoise(int(noise)), purpose)
    raise TypeError(f"noise must be a Noise, a torch.Generator or an integer seed, got {type(noise).__name__}.")


def _as_seed(seed: int) -> int:
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool):  # numpy's integers too
        raise TypeError(f"a seed must be an integer, got {type(seed).__name__}.")
    return int(seed) & 0xFFFF_FFFF_FFFF_FFFF


# What a draw of a seed is for: the second part of each key, so that equal seeds in different roles share nothing.
_INITIAL, _NORMAL, _PATH = 0, 1, 2


def _digest(seed: int, purpose: str) -> int:
    """A seed of 64 bits for one purpose."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=8).digest(), "little")


def _signed(x: int) -> int:
    """The int64 with the same 64 bits."""
    x &= 0xFFFF_FFFF_FFFF_FFFF
    return x - (1 << 64) if x >= 1 << 63 else x


_GAMMA, _MIX_1, _MIX_2 = 0x9E37_79B9_7F4A_7C15, 0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB


Bits = TypeVar("Bits", int, Tensor)


def _mix(z: Bits) -> Bits:
    """SplitMix64's finaliser (Steele et al. 2014, doi:10.1145/2660193.2660195), right in the lowest 64 bits.

    Masks make >> on int64 logical, and on Python's integers cut off what a product has grown above.
    """
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _signed(_MIX_1)
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _signed(_MIX_2)
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def counter_normal(
    shape: Shape, key: tuple[int, ...], *, first: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """N(0, I) of ``shape`` (B, *event) as a pure function of (key, sample index first + i, element index).

    SplitMix64 streams, one for each (key, sample), turned into pairs of normals by Box and Muller (1958). The result
    does not depend on B, and on the device only through the rounding of log, sqrt and cos.
    """
    if not dtype.is_floating_point:
        raise TypeError(f"normals need a floating dtype, got {dtype}.")
    batch, size = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    state = len(key) * _GAMMA  # no key is another one's beginning
    for part in key:
        state = _signed(_mix(state + part * _GAMMA + _GAMMA))
    rows = torch.arange(first + 1, first + batch + 1, device=device)
    stream = _mix(_mix(rows * _signed(_GAMMA) + state) ^ state)
    pairs = (size + 1) // 2
    counter = torch.arange(1, 2 * pairs + 1, device=device) * _signed(_GAMMA)
    bits = _mix(stream[:, None] + counter)
    # 52 random bits to the middle of one of 2^52 cells of (0, 1), exact in float64: never 0 or 1, the log is finite
    uniform = ((bits >> 12) & ((1 << 52) - 1)).to(torch.float64).add_(0.5).mul_(2.0**-52)
    radius = uniform[:, :pairs].log().mul_(-2).sqrt_()
    angle = uniform[:, pairs:] * (2 * math.pi)
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :size]
    return normal.to(dtype).reshape(shape)
