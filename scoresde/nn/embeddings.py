"""From a time, given as c = log(sigma/alpha), a class label and vectors to one conditioning vector::

    conditions = Conditions({"label": Label(10), "size": Vector(2)})
    embed = ConditionEmbedding(features=64, width=256, kind="sinusoidal", conditions=conditions)
    e = embed(c, conditions.read({"label": y, "size": s}, x))      # (B, 256)

c is the natural clock of a Gaussian process: x_t/alpha carries noise of standard deviation exp(c), whatever
the schedule. Useful noise levels span about exp(-7) (invisible in 8-bit data) to exp(7) (no data left), so
both kinds of features below are laid out for c in [-7, 7], and both are smooth beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import checks
from scoresde.models.conditions import Conditions, Label, Series, Set, Vector, split_absent
from scoresde.nn.attention import edit_of
from scoresde.nn.series import SeriesEncoder
from scoresde.nn.sets import SetEncoder

TimeFeatures = Literal["sinusoidal", "fourier"]


class _Waves(nn.Module):
    """sqrt(2) (cos(w c), sin(w c)) for a fixed row of angular frequencies w; the mean square is 1."""

    frequencies: Tensor

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies)

    def forward(self, c: Tensor) -> Tensor:
        """Map c (B,) to features (B, dim), in float32, or in float64 where c or the frequencies are."""
        phase = c[:, None] * self.frequencies  # at least float32, as the frequencies are, even for a half c
        return math.sqrt(2) * torch.cat([phase.cos(), phase.sin()], dim=1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Waves:
        # net.half() and net.bfloat16() would round the frequencies, hence shift every phase: keep them exact.
        exact = self.frequencies
        super()._apply(fn, recurse)
        if self.frequencies.dtype.itemsize < 4:
            self.frequencies = exact.to(self.frequencies.device)
        return self


class SinusoidalFeatures(_Waves):
    """Sines and cosines of c at geometrically spaced angular frequencies, c (B,) -> (B, dim).

    The idea is that of Vaswani et al. 2017 (section 3.5) and Ho et al. 2020; the range is chosen for
    c = log(sigma/alpha) instead of a step number in 0 ... 1000:

    * slowest = pi/14 radians per unit of c: its sine rises all the way from c = -7 to c = 7, so that no two
      times share a code, however far apart;
    * fastest = 8: noise levels 5 % apart are 0.4 radians apart, clearly resolved. A trained score varies over
      differences of c of order 1 (noise changing by a factor e), so that nothing is gained by going faster,
      and it would make the network rougher in time, where high-order solvers rely on its smoothness.

    Args:
        dim: number of features, even; half are cosines and half sines.
        slowest: smallest angular frequency, in radians per unit of c.
        fastest: largest angular frequency.

    Raises:
        ValueError: dim is odd or below 2, or not 0 < slowest <= fastest.
    """

    def __init__(self, dim: int, *, slowest: float = math.pi / 14, fastest: float = 8.0) -> None:
        dim = _check_dim(dim)
        slowest, fastest = checks.positive(slowest, name="slowest"), checks.positive(fastest, name="fastest")
        if not slowest <= fastest:
            raise ValueError(f"slowest={slowest} and fastest={fastest}: expected 0 < slowest <= fastest.")
        exponents = torch.linspace(math.log(slowest), math.log(fastest), dim // 2, dtype=torch.float64)
        super().__init__(exponents.exp().float())


class FourierFeatures(_Waves):
    """Sines and cosines of c at random angular frequencies w ~ N(0, (2 pi scale)^2), c (B,) -> (B, dim).

    Random Fourier features (Tancik et al. 2020; for noise levels, Song et al. 2021, appendix H). The default
    scale, 1/4 cycle per unit of c, is that of Karras et al. 2024 (their unit bandwidth acts on c/4): most
    periods are between 2 and 20 units of c, so that both ends of [-7, 7] are told apart, and small steps too.

    The frequencies are a buffer: drawn once, saved with the weights, never trained.

    Args:
        dim: number of features, even; half are cosines and half sines.
        scale: standard deviation of the frequencies, in cycles per unit of c.
        seed: an integer, or a torch.Generator on the CPU, that the frequencies are drawn from.

    Raises:
        ValueError: dim is odd or below 2, or scale is not positive.
    """

    def __init__(self, dim: int, scale: float = 0.25, seed: int | torch.Generator = 0) -> None:
        dim, scale = _check_dim(dim), checks.positive(scale, name="scale")
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(checks.seed(seed))
        normals = torch.randn(dim // 2, generator=generator, device="cpu", dtype=torch.float64)
        super().__init__((2 * math.pi * scale * normals).float())


def _check_dim(dim: int) -> int:
    found = checks.count(dim, name="dim", most=2**20)
    if found % 2:
        raise ValueError(f"dim={found}: expected an even number, a cosine and a sine per frequency.")
    return found


def time_features(kind: TimeFeatures, dim: int) -> nn.Module:
    """Return the features named `kind`, "sinusoidal" or "fourier"."""
    if isinstance(kind, str) and kind == "sinusoidal":
        return SinusoidalFeatures(dim)
    if isinstance(kind, str) and kind == "fourier":
        return FourierFeatures(dim)
    raise ValueError(f"time_features={kind!r}: the kind must be 'sinusoidal' or 'fourier'.")


class VectorEmbedding(nn.Module):
    """A condition (B, size) to (B, width) by linear, silu, linear; a learned vector for rows of NaN, "not given".

    Numbers of order one train best: standardise sizes, angles or counts first.

    Args:
        size: size d of the condition.
        width: size of the vector.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        size, width = checks.count(size, name="size"), checks.count(width, name="width")
        self.linear1 = nn.Linear(size, width)
        self.linear2 = nn.Linear(width, width)
        self.absent = nn.Parameter(torch.randn(width))

    def forward(self, value: Tensor) -> Tensor:
        """Map value (B, size) to (B, width)."""
        known, absent = split_absent(value)
        h = self.linear2(F.silu(self.linear1(known.to(self.linear1.weight.dtype))))
        return torch.where(absent[:, None], self.absent.to(h.dtype), h)


def encoder_of(one: Set | Series, width: int) -> SetEncoder | SeriesEncoder:
    """The encoder of a set or a series to a vector of this width."""
    encoder = SetEncoder if type(one) is Set else SeriesEncoder
    return encoder(one.size, width, hidden=one.width, layers=one.layers)


class ConditionEmbedding(nn.Module):
    """One vector per sample: silu(MLP(features(c)) + class_vector[label] + the sum of its embedded vectors, sets and
    series).

    Args:
        features: number of time features.
        width: size of the vector.
        kind: "sinusoidal" or "fourier".
        conditions: those of the network. A label has one more vector, at index num_classes, for "no class"; each
            vector has a `VectorEmbedding`, each set a `SetEncoder` and each series a `SeriesEncoder`; other kinds are
            left to the network.
    """

    def __init__(self, features: int, width: int, kind: TimeFeatures, conditions: Conditions) -> None:
        super().__init__()
        checks.instance(conditions, Conditions, name="conditions")
        features, width = checks.count(features, name="features"), checks.count(width, name="width")
        if features % 2:
            raise ValueError(f"features={features}: expected an even number, a cosine and a sine per frequency.")
        label, vectors = conditions.of_kind(Label).get("label"), conditions.of_kind(Vector)
        self.features = time_features(kind, features)
        self.linear1 = nn.Linear(features, width)
        self.linear2 = nn.Linear(width, width)
        self.classes = None if label is None else nn.Embedding(label.num_classes + 1, width)
        sets, series = conditions.of_kind(Set), conditions.of_kind(Series)
        self.names = [*vectors, *sets, *series]
        self.told_of = (*conditions.of_kind(Label), *self.names)
        self.vectors = nn.ModuleList(VectorEmbedding(vector.size, width) for vector in vectors.values())
        self.sets = nn.ModuleList(encoder_of(one, width) for one in sets.values())
        self.series = nn.ModuleList(encoder_of(one, width) for one in series.values())

    def forward(self, c: Tensor, given: Mapping[str, Tensor | None]) -> Tensor:
        """Map c (B,) and the checked conditions of a call, None where left out, to (B, width)."""
        # Waves are computed in at least float32 and only then rounded to the weights' dtype.
        waves = self.features(c).to(self.linear1.weight.dtype)
        h = self.linear2(F.silu(self.linear1(waves)))
        if self.classes is not None:
            h = h + self.classes(given["label"])
        for embed, name in zip([*self.vectors, *self.sets, *self.series], self.names, strict=True):
            value = given[name]
            h = h + (embed.absent if value is None else embed(value))
        edit = edit_of(self)
        return F.silu(h if edit is None else edit(h))
