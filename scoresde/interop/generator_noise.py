"""Noise from torch's generators, as the pipelines of diffusers hand them in::

noise = GeneratorNoise([torch.Generator().manual_seed(i) for i in range(4)])    # one for each of four samples
solver.step(process, x, t, s, noise, state)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from scoresde import checks
from scoresde.noise import Noise

Draws = torch.Generator | Sequence[torch.Generator] | None
"""One generator, one for each sample, or torch's own."""


class GeneratorNoise(Noise):
    """Draws from a generator, from one for each sample, or from torch's global one.

    Raises:
        TypeError: something else.
    """

    def __init__(self, generator: Any) -> None:
        parts = generator if isinstance(generator, (list, tuple)) else [generator]
        if generator is not None and not (parts and all(isinstance(part, torch.Generator) for part in parts)):
            raise TypeError(
                f"generator must be a torch.Generator, a list with one for each sample, or None; got "
                f"{checks.got(generator)}."
            )
        self._generator = list(generator) if isinstance(generator, Sequence) else generator

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        if isinstance(self._generator, list) and len(self._generator) != shape[0]:
            raise ValueError(
                f"generator must be one, or one for each of {shape[0]} samples; got a list of {len(self._generator)}."
            )
        drawn: Tensor = randn_tensor(shape, generator=self._generator, device=device, dtype=dtype)
        return drawn

    def normal(self, x: Tensor) -> Tensor:
        return self.initial(tuple(x.shape), dtype=x.dtype, device=x.device)
