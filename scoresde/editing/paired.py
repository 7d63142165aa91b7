"""The same noise for both halves of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.noise import BrownianNoise, Noise


class PairedNoise(Noise):
    """Draws of another source for the first half of a batch, and the same again for the second."""

    def __init__(self, noise: Noise) -> None:
        self.noise = noise

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return _twice(self.noise.initial((shape[0] // 2, *shape[1:]), dtype=dtype, device=device))

    def normal(self, x: Tensor) -> Tensor:
        return _twice(self.noise.normal(x[: len(x) // 2]))

    def between(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return _twice(self.noise.between(x[: len(x) // 2], t, s))

    def stream(self, purpose: str) -> PairedNoise:
        """That of the other source, for both halves."""
        return PairedNoise(self.noise.stream(purpose))

    def path(self, T: float) -> BrownianNoise:
        """There is none that two halves share."""
        raise ValueError("a method that asks for a Brownian path of its own cannot share it between two runs.")

    def check(self, grid: Tensor) -> None:
        """That of the other source."""
        self.noise.check(grid)

    def position(self) -> object:
        """That of the other source."""
        return self.noise.position()

    def rewind(self, position: object) -> None:
        """That of the other source."""
        self.noise.rewind(position)


def _twice(draw: Tensor) -> Tensor:
    return torch.cat([draw, draw])
