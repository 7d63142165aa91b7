"""Standard normals as a pure function of a key, a sample and an element.

A hash gives 16 bits to each element, which choose one of 65536 atoms of a discrete normal. Elements are then rotated
four by four, by an orthogonal matrix of entries ±1/2: each normal is half a sum of four atoms, on some 2^64 values,
and four neighbours remain uncorrelated. Nothing but integer arithmetic, a table, sums and differences: no logarithm or
cosine whose last bit hangs on the vector unit, so a sample is the same to the bit in any batch.

:func:`counter_normal` is one draw, and a :class:`Counter` all draws of a seed for one kind of batch::

    z = counter_normal((8, 2), (seed, step), first=0, dtype=torch.float32, device=torch.device("cpu"))
    counter = Counter(seed, 0, (8, 2), torch.float32, torch.device("cpu"))
    counter.draw((seed, step))                              # the same

:class:`~scoresde.noise.PerSampleNoise`, :class:`~scoresde.noise.BrownianNoise` and training draw from here.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.lasting import lasting, without_graph

_GAMMA, _MIX_1, _MIX_2 = 0x9E37_79B9_7F4A_7C15, 0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB

Bits = TypeVar("Bits", int, Tensor)


def _signed(x: int) -> int:
    """The int64 with the same 64 bits."""
    x &= 0xFFFF_FFFF_FFFF_FFFF
    return x - (1 << 64) if x >= 1 << 63 else x


def _mix(z: Bits) -> Bits:
    """SplitMix64's finaliser (Steele et al. 2014, doi:10.1145/2660193.2660195), right in the lowest 64 bits.

    Masks make >> on int64 logical, and on Python's integers cut off what a product has grown above.
    """
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _signed(_MIX_1)
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _signed(_MIX_2)
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def absorb(state: int, *parts: int) -> int:
    """The state of 64 bits that follows ``state`` for a key of more ``parts``."""
    for part in parts:
        state = _signed(_mix(_signed(state + part * _GAMMA + _GAMMA)))
    return state


def absorb_rows(state: int | Tensor, *parts: int | Tensor) -> Tensor:
    """:func:`absorb` for parts (B,), a key for each sample."""
    for part in parts:
        step = part * _signed(_GAMMA) if isinstance(part, Tensor) else _signed(part * _GAMMA)
        state = _mix(state + step + _signed(_GAMMA))  # type: ignore[type-var]
    assert isinstance(state, Tensor)
    return state


def begin(length: int) -> int:
    """The state before the first part of a key of ``length`` parts: no key is another one's beginning."""
    return _signed(length * _GAMMA)


@lru_cache(maxsize=4)
@lasting
def atoms(count: int) -> Tensor:
    """(count,) float64: equally likely values of mean 0, variance 1 and fourth moment 3, closed under negation.

    The means of ``count`` normal quantile cells; the two outermost are moved and the others scaled so that the second
    and fourth moments are those of the normal. Entry i is minus entry count - 1 - i. Of 65536 the largest is 4.41 and
    the sixth moment 15 - 0.003; half the sum of four has a sixth cumulant of 2e-4 where a normal has 0.
    """
    edges = torch.special.ndtri(torch.arange(1, count // 2, dtype=torch.float64) / count)  # between negative cells
    density = torch.exp(-0.5 * edges.square()) / math.sqrt(2 * math.pi)
    ends = torch.tensor([0.0, 1 / math.sqrt(2 * math.pi)], dtype=torch.float64)
    means = count * torch.diff(torch.cat([ends[:1], density, ends[1:]]))  # of |z|, from the outermost in
    # With the inner means times √w and an outer one of square y: y + w m2 = n and y² + w² m4 = 3 n over n = count / 2.
    n, m2, m4 = count / 2, means[1:].square().sum(), means[1:].pow(4).sum()
    w = (n * m2 - torch.sqrt((n * m2).square() - (m4 + m2.square()) * (n * n - 3 * n))) / (m4 + m2.square())
    half = torch.cat([torch.sqrt(n - w * m2)[None], means[1:] * w.sqrt()])
    return torch.cat([-half, half.flip(0)])


@lru_cache(maxsize=8)
@lasting
def _table(dtype: torch.dtype, device: torch.device) -> Tensor:
    return checks.sent(atoms(2**16), device, dtype)


class Counter:
    """The draws of a seed for a batch of given size.

    Keeps a random word of 8 bytes for each sample and four elements; a draw mixes its key into them.

    Args:
        seed: the first part of every key.
        first: index of the batch's first sample.
        shape: (B, *event).
        dtype: of the normals; half precision draws in float32.
        device: where.
    """

    @without_graph()  # not lasting: a default device, which costs much for one draw, is nothing to what names its own
    def __init__(self, seed: int, first: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        if not dtype.is_floating_point:
            raise TypeError(f"normals need a floating dtype, got {dtype}.")
        self.kind = shape, dtype, device
        self.shape, self.dtype = shape, torch.promote_types(dtype, torch.float32)
        self.batch, self.size = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
        self.fours = max(1, (self.size + 3) // 4)
        self.raw_shape = (self.batch, 4 * self.fours)
        state = absorb(begin(1), seed)
        rows = torch.arange(first + 1, first + self.batch + 1, device=device)
        stream = _mix(_mix(rows * _signed(_GAMMA) + state) ^ state)
        self._words = _mix(stream[:, None] + torch.arange(1, self.fours + 1, device=device) * _signed(_GAMMA))
        self.table = _table(self.dtype, self._words.device)

    def lanes(self, state: int | Tensor) -> Tensor:
        """(B, 4 fours) int32 in 0..65535, uniform: a function of the key whose state this is, sample and element.

        Each word is multiplied by an odd number drawn from the key, folded, multiplied and folded again.
        """
        if isinstance(state, int):
            bits = self._words * (absorb(state, 1) | 1)
        else:  # a key for each sample
            bits = self._words * (absorb_rows(state, 1) | 1)[:, None]
        fold = bits >> 32
        bits ^= fold  # signed: the highest bit is lost, of 64
        bits *= _signed(_MIX_2)
        torch.bitwise_right_shift(bits, 32, out=fold)
        bits ^= fold.bitwise_and_(0xFFFF_FFFF)
        return bits.flatten().view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF).view(self.raw_shape)

    def pick(self, table: Tensor, lanes: Tensor) -> Tensor:
        """(B, 4 fours): the entries of a ``table`` (65536,) that the lanes name."""
        return torch.index_select(table, 0, lanes.view(-1)).view(lanes.shape)

    def rotate(self, raw: Tensor) -> Tensor:
        """The batch, in its own shape: ``raw`` (B, 4 fours), by fours of elements, times 2 and an orthogonal matrix."""
        quarters = raw.view(self.batch, 2, 2, self.fours)
        sums, differences = quarters[:, 0] + quarters[:, 1], quarters[:, 0] - quarters[:, 1]
        out = torch.empty_like(raw).view(self.batch, 4, self.fours)
        for i, pair in enumerate((sums, differences)):
            torch.add(pair[:, 0], pair[:, 1], out=out[:, 2 * i])
            torch.sub(pair[:, 0], pair[:, 1], out=out[:, 2 * i + 1])
        return out.view(self.raw_shape)[:, : self.size].reshape(self.shape).contiguous()

    def draw(self, key: tuple[int, ...]) -> Tensor:
        """N(0, I) of the batch's shape and dtype for a key that begins with the seed."""
        lanes = self.lanes(absorb(begin(len(key)), *key))
        return self.rotate(self.pick(self.table * 0.5, lanes)).to(self.kind[1])


def counter_normal(
    shape: tuple[int, ...], key: tuple[int, ...], *, first: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """N(0, I) of ``shape`` (B, *event) as a pure function of (key, sample index first + i, element index).

    The result does not depend on B, on the device or, but for rounding, on dtype.

    Raises:
        TypeError, ValueError: an argument of another kind, an empty key, or a first sample below 0.
    """
    if not isinstance(key, (tuple, list)) or not key:
        raise TypeError(f"key must be a tuple of whole numbers, at least one, got {checks.got(key)}.")
    words = tuple(checks.whole(part, name="each part of key", most=2**64 - 1) for part in key)
    first, shape = checks.count(first, name="first", least=0), checks.shape(shape)
    return Counter(words[0], first, shape, checks.dtype(dtype), checks.device(device)).draw(words)
