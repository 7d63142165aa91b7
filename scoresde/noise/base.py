"""What a source of randomness is: the base class :class:`Noise`, and what every one of them can do.

A noise answers standard normals: ``initial`` for x_T, ``between`` for the Wiener increment of a step, ``normal`` for
anything else; ``stream`` is another source for another use. One of your own writes two methods::

    class Fixed(Noise):
        def initial(self, shape, *, dtype, device):
            return torch.zeros(shape, dtype=dtype, device=device)

        def normal(self, x):
            return torch.zeros_like(x)

It should also write ``position`` and ``rewind`` where runs are to be repeated from the middle, as gradients in constant
memory ask for. :func:`drawn_seed` takes from a noise a seed for a generator that is not ours.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from scoresde import checks

Shape = tuple[int, ...]

# What a draw of a seed is for: the second part of each key, so that equal seeds in different roles share nothing.
INITIAL, NORMAL, PATH = 0, 1, 2


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
        Euler-Maruyama step. Independent of every other interval unless a subclass keeps a path. The times may be (B,),
        one for each sample; a path gives 0 to a sample with t = s.
        """
        check_times(t, s)
        return self.normal(x)

    def stream(self, purpose: str) -> Noise:
        """The source of normals for another use than a solver's, such as "probe" or "data".

        A noise keyed by a seed answers one that shares no draw with itself, the same object for the same purpose, so
        its draws move on. By default the noise itself, which is right where every draw is new anyway.
        """
        return self

    def path_key(self) -> tuple[tuple[int, ...], int]:
        """Key and first sample of a new path driven by this noise; see :func:`~scoresde.noise.brownian_path`."""
        return (drawn_seed(self), PATH), 0

    def check(self, grid: Tensor) -> None:  # noqa: B027 (most noises serve every grid)
        """Raises ValueError where this noise cannot serve the steps of ``grid`` (n + 1,); called before any work."""

    def position(self) -> object:
        """Where the streams stand, to be handed to :meth:`rewind`: the same numbers can then be drawn again."""
        raise TypeError(
            f"{type(self).__name__} cannot draw its numbers again: it has no position() and rewind(). Write the "
            "two, or use a noise of scoresde.noise."
        )

    def rewind(self, position: object) -> None:
        """Back to where :meth:`position` was asked: what follows repeats what followed there, its streams included."""
        raise TypeError(f"{type(self).__name__} has no rewind(); see position().")


def check_times(t: Tensor, s: Tensor) -> None:
    """Raise unless both are times, () or (B,): finite and not negative, where they are single ones that can be read."""
    for name, time in (("t", t), ("s", s)):
        plain = isinstance(time, Tensor) and time.is_floating_point()
        found = time if plain else checks.real(time, name=name)
        if found.ndim > 1:
            raise ValueError(f"{name} must be one time () or one per sample (B,), got shape {tuple(found.shape)}.")
        value = checks.single(found)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite time of at least 0, got {value:g}.")


def check_purpose(purpose: object) -> None:
    """Raise unless a stream is named by a text."""
    checks.instance(purpose, str, name="purpose", hint='Name the use of the draws, such as "probe".')


def drawn_seed(noise: Noise) -> int:
    """An integer from the noise's own stream, to seed a generator that is not ours."""
    checks.instance(noise, Noise, name="noise")
    draws = noise.normal(torch.zeros(2, 2, dtype=torch.float64))
    return int(draws.abs().sum().item() * 2.0**40)


def digest(text: str) -> int:
    """64 bits that a text stands for: the seed of the stream that it names."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
