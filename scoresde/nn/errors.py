r"""The law p(x | z) of an event around what a decoder makes of its latents::

    net = Autoencoder(3, errors=NormalErrors())             # N(D(z), s² I), s learned
    net = Autoencoder(3, errors=LaplaceErrors(0.1))         # of scale 0.1: absolute errors, which blur less
    net.log_likelihood(x, net.decode(z))                    # log p(x | z), (B,)

A learned scale weighs the reconstruction against the penalty of the bottleneck by how large the errors are (Rybkin et
al. 2021, arXiv:2006.13202).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scoresde import checks


class Errors(Protocol):
    """What an autoencoder asks of the law of its errors."""

    @property
    def fixed(self) -> float | None:
        """The scale; None where it is learned."""
        ...

    def log_prob(self, error: Tensor, log_scale: Tensor) -> Tensor:
        """log p of errors (B, *event) of this scale, (B,)."""
        ...


@dataclass(frozen=True)
class NormalErrors:
    """N(0, std² I): log p = -½ Σ (e/s)² - D log s - ½ D log 2π.

    Args:
        std: s, in units of x; None learns it.

    Raises:
        TypeError, ValueError: neither a positive number nor None.
    """

    std: float | None = None

    def __post_init__(self) -> None:
        _check(self, "std")

    @property
    def fixed(self) -> float | None:
        """The scale; None where it is learned."""
        return self.std

    def log_prob(self, error: Tensor, log_scale: Tensor) -> Tensor:
        """log p of errors (B, *event), (B,) in nats, float32 or wider."""
        error, log_scale = _wide(error, log_scale)
        squares = (error * (-log_scale).exp()).square().flatten(1).sum(1)
        return -0.5 * squares - math.prod(error.shape[1:]) * (log_scale + 0.5 * math.log(2 * math.pi))


@dataclass(frozen=True)
class LaplaceErrors:
    """Laplace's law of each number: log p = -Σ |e|/b - D log 2b.

    Args:
        scale: b, in units of x; None learns it.

    Raises:
        TypeError, ValueError: neither a positive number nor None.
    """

    scale: float | None = None

    def __post_init__(self) -> None:
        _check(self, "scale")

    @property
    def fixed(self) -> float | None:
        """The scale; None where it is learned."""
        return self.scale

    def log_prob(self, error: Tensor, log_scale: Tensor) -> Tensor:
        """log p of errors (B, *event), (B,) in nats, float32 or wider."""
        error, log_scale = _wide(error, log_scale)
        sizes = (error * (-log_scale).exp()).abs().flatten(1).sum(1)
        return -sizes - math.prod(error.shape[1:]) * (log_scale + math.log(2))


def _check(errors: NormalErrors | LaplaceErrors, name: str) -> None:
    checks.fields(errors)
    if getattr(errors, name) is not None:
        checks.positive(getattr(errors, name), name=name)


def _wide(error: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(error.dtype, torch.float32)
    return error.to(wide), log_scale.to(wide)
