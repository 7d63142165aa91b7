"""Scaling: the map between the numbers in a file and the numbers a model sees.

A :class:`Scaling` is a shift and a positive scale, and for quantised data the number of levels::

    scaling = Scaling.to_unit_range(256)            # 0 ... 255 to [-1, 1]; Scaling.standardise(data): mean 0, std 1
    x = scaling.to_model(pixels)
    scaling.to_data(x), scaling.to_uint8(x)         # back, and as a picture
    scaling.bin_width                               # of a level in model units, for bits per dimension

Every :class:`~scoresde.data.Dataset` has one as ``scaling``, and checkpoints keep it by ``to_json``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scaling:
    """``x = (data - shift) / scale``: data in their own units, x in the model's.

    Attributes:
        shift: what becomes 0 in model units.
        scale: what becomes 1 in model units; positive. A density in data units is that of x divided by
            ``scale`` per dimension.
        levels: the data are the whole numbers 0 ... levels - 1; None for continuous data.

    Raises:
        ValueError: numbers not finite, scale not positive, levels not a whole number of at least 2.
    """

    shift: float
    scale: float
    levels: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.shift) and math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(
                f"Scaling needs finite numbers with scale > 0, got shift={self.shift}, scale={self.scale}."
            )
        if self.levels is not None and (
            isinstance(self.levels, bool) or not isinstance(self.levels, int) or self.levels < 2
        ):
            raise ValueError(f"levels must be a whole number of at least 2 or None, got {self.levels!r}.")

    @classmethod
    def to_unit_range(cls, levels: int = 256) -> Scaling:
        """Whole numbers 0 ... levels - 1 to [-1, 1], ends included."""
        half = (levels - 1) / 2
        return cls(shift=half, scale=half, levels=levels)

    @classmethod
    def standardise(cls, data: Tensor) -> Scaling:
        """Mean 0 and standard deviation 1 over all numbers in ``data``; one scale for all keeps its geometry.

        Raises:
            ValueError: the data are constant.
        """
        mean = data.double().mean().item()
        std = data.double().std(correction=0).item()
        # Constant float32 data leave a spread of a few roundings.
        if not std > 1e-7 * abs(mean):
            raise ValueError(f"the data are constant (every number is {mean:g}): they cannot be standardised.")
        return cls(shift=mean, scale=std)

    @property
    def bin_width(self) -> float | None:
        """Distance between neighbouring levels in model units; None for continuous data.

        What bits per dimension of quantised data need: log2 of the probability of a bin is the log-density of
        dequantised x plus log2(bin_width) per dimension.
        """
        return None if self.levels is None else 1.0 / self.scale

    def to_model(self, data: Tensor) -> Tensor:
        """(data - shift) / scale, float32 (float64 for float64 data)."""
        x = data if data.is_floating_point() else data.float()
        return (x - self.shift) / self.scale

    def to_data(self, x: Tensor) -> Tensor:
        """x * scale + shift: the inverse of ``to_model``, not rounded to levels."""
        return x * self.scale + self.shift

    def to_uint8(self, x: Tensor) -> Tensor:
        """x as a picture: the nearest level, clamped to the range; 0 ... levels - 1 spread over 0 ... 255.

        Raises:
            ValueError: the data are continuous, so black and white are unknown.
        """
        if self.levels is None:
            raise ValueError(
                "continuous data have no black and white; choose them yourself, for instance "
                "((x - x.min()) / (x.max() - x.min()) * 255).to(torch.uint8)."
            )
        top = self.levels - 1
        level = self.to_data(x).round().clamp(0, top)
        return (level * (255 / top)).round().to(torch.uint8)

    def to_json(self) -> dict[str, Any]:
        """The three numbers, for ``from_json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Scaling:
        """The inverse of ``to_json``."""
        return cls(**fields)
