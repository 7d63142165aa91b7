"""Draws that belong to no path: independent ones, or one stream for each sample.

:class:`IndependentNoise` draws from one torch generator, :class:`PerSampleNoise` gives each sample a stream of its own,
so that it does not depend on the batch. Entry points turn what they are given into a noise by :func:`as_noise`::

    PerSampleNoise(0, first=100)            # samples 100, 101, ... of seed 0, the same in any batch
    IndependentNoise(torch.Generator())     # continues the generator: the fastest
    as_noise(0)                             # PerSampleNoise(0); as_noise(0, "probe") is another stream of the seed

:func:`chosen_noise` is for functions that take ``seed`` or ``noise``, not both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from scoresde import checks
from scoresde.noise.base import INITIAL, NORMAL, PATH, Noise, Shape, check_purpose, digest
from scoresde.noise.counter import Counter


@dataclass(frozen=True)
class _Generators:
    """Where an IndependentNoise stands."""

    states: dict[torch.device, Tensor]
    streams: dict[str, object]


@dataclass(frozen=True)
class _Counts:
    """Where a PerSampleNoise stands."""

    drawn: dict[int, int]
    streams: dict[str, object]


P = TypeVar("P", _Generators, _Counts)


def _held(position: object, kind: type[P], noise: Noise) -> P:
    if not isinstance(position, kind):
        raise TypeError(
            f"{type(noise).__name__}.rewind takes what its own position() returned, got {type(position).__name__}."
        )
    return position


class IndependentNoise(Noise):
    """The fastest: draws from one generator for each device, all samples of a batch together.

    ``initial`` and ``normal`` continue one stream: use one object for a run, not two with the same seed.

    Args:
        seed: an integer, or a torch.Generator whose stream is continued (it fixes the device of the draws).
    """

    def __init__(self, seed: int | torch.Generator = 0) -> None:
        self._seed = seed if isinstance(seed, torch.Generator) else checks.seed(seed)
        self._generators: dict[torch.device, torch.Generator] = {}
        self._streams: dict[str, Noise] = {}

    def stream(self, purpose: str) -> Noise:
        """From a seed: a stream of its own. A generator given from outside is continued."""
        check_purpose(purpose)
        if isinstance(self._seed, torch.Generator):
            return self
        if purpose not in self._streams:
            self._streams[purpose] = IndependentNoise(digest(f"{self._seed} {purpose}"))
        return self._streams[purpose]

    def path_key(self) -> tuple[tuple[int, ...], int]:
        """Drawn from the generator."""
        generator = self._generator(torch.device("cpu"))
        return (int(torch.randint(2**62, (), generator=generator, device=generator.device)), PATH), 0

    def _generator(self, device: torch.device) -> torch.Generator:
        if isinstance(self._seed, torch.Generator):
            return self._seed
        if device not in self._generators:
            device = torch.empty(0, device=device).device  # "cuda" is the current one of its devices: name that one
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]

    def initial(self, shape: Shape, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._draw(checks.shape(shape), checks.dtype(dtype), checks.device(device))

    def normal(self, x: Tensor) -> Tensor:
        checks.state(x)
        return self._draw(tuple(x.shape), x.dtype, x.device)

    def _draw(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
        generator = self._generator(device)
        return checks.sent(torch.randn(shape, generator=generator, dtype=dtype, device=generator.device), device)

    def position(self) -> object:
        """The states of its generators and of the streams made so far."""
        if isinstance(self._seed, torch.Generator):
            return _Generators({self._seed.device: self._seed.get_state()}, {})
        states = {device: generator.get_state() for device, generator in self._generators.items()}
        return _Generators(states, {purpose: other.position() for purpose, other in self._streams.items()})

    def rewind(self, position: object) -> None:
        """Sets its generators back; one that has been made since begins anew, and so does such a stream."""
        held = _held(position, _Generators, self)
        if isinstance(self._seed, torch.Generator):
            self._seed.set_state(held.states[self._seed.device])
            return
        for device, generator in self._generators.items():
            if device in held.states:
                generator.set_state(held.states[device])
            else:
                generator.manual_seed(self._seed)
        for purpose, other in self._streams.items():
            other.rewind(held.streams.get(purpose, _Generators({}, {})))


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
        self._key: tuple[int, ...] = (checks.seed(seed),)
        self._first = checks.count(first, name="first", least=0)
        self._drawn = {INITIAL: 0, NORMAL: 0, PATH: 0}
        self._streams: dict[str, PerSampleNoise] = {}
        self._counter: Counter | None = None

    def initial(self, shape: Shape, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._draw(INITIAL, checks.shape(shape), checks.dtype(dtype), checks.device(device))

    def normal(self, x: Tensor) -> Tensor:
        checks.state(x)
        return self._draw(NORMAL, tuple(x.shape), x.dtype, x.device)

    def _draw(self, role: int, shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
        kind = (shape, dtype, device)
        if self._counter is None or self._counter.kind != kind:
            self._counter = Counter(self._key[0], self._first, *kind)
        return self._counter.draw(self._next(role))

    def stream(self, purpose: str) -> PerSampleNoise:
        """Per-sample noise of the same seed and first sample, in streams of its own."""
        check_purpose(purpose)
        if purpose not in self._streams:
            other = PerSampleNoise(digest(f"{self._key[0]} {purpose}"), first=self._first)
            self._streams[purpose] = other
        return self._streams[purpose]

    def path_key(self) -> tuple[tuple[int, ...], int]:
        """A new one for each sample of the same seed and first, so that the path is the same in any batch."""
        return self._next(PATH), self._first

    def _next(self, role: int) -> tuple[int, ...]:
        draw = self._drawn[role]
        self._drawn[role] = draw + 1
        return (*self._key, role, draw)

    def position(self) -> object:
        """The numbers of draws so far, its streams' included."""
        return _Counts(dict(self._drawn), {purpose: other.position() for purpose, other in self._streams.items()})

    def rewind(self, position: object) -> None:
        """Sets the counts back; a stream that has been made since begins anew."""
        held = _held(position, _Counts, self)
        self._drawn.update(held.drawn)
        for purpose, other in self._streams.items():
            other.rewind(held.streams.get(purpose, _Counts(dict.fromkeys(self._drawn, 0), {})))


def as_noise(noise: Noise | torch.Generator | int, purpose: str = "") -> Noise:
    """A Noise as it is; a generator as IndependentNoise; a seed as PerSampleNoise.

    Args:
        noise: any of them.
        purpose: where the normals serve another use than a solver's, its name: a seed then means another stream
            (:meth:`Noise.stream`), so that equal seeds in two uses give independent draws.

    Raises:
        TypeError: anything else.
    """
    check_purpose(purpose)
    if isinstance(noise, Noise):
        return noise.stream(purpose) if purpose else noise
    if isinstance(noise, torch.Generator):
        return IndependentNoise(noise)
    single = isinstance(noise, Tensor) and not noise.ndim
    if (isinstance(noise, (int, np.integer)) and not isinstance(noise, bool)) or single:
        return as_noise(PerSampleNoise(checks.seed(noise, name="a seed given as noise")), purpose)
    raise TypeError(f"noise must be a Noise, a torch.Generator or an integer seed, got {checks.got(noise)}.")


def chosen_noise(seed: int | None, noise: Noise | torch.Generator | int | None, purpose: str = "") -> Noise:
    """What an entry point that takes a seed or a noise draws from: the noise as it is, else the seed, default 0.

    Args:
        seed: of one stream for each sample.
        noise: in its place.
        purpose: where a seed is given, another stream of it; see :func:`as_noise`.

    Raises:
        TypeError: neither a seed nor a noise. ValueError: both.
    """
    if seed is not None and noise is not None:
        raise ValueError("give seed or noise, not both.")
    if noise is None:
        return as_noise(PerSampleNoise(0 if seed is None else seed), purpose)
    return as_noise(noise)
