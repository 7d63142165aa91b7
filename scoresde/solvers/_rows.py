"""Coefficients worked out for a whole grid at once, handed out step by step."""

from __future__ import annotations

from torch import Tensor

from scoresde.models.combination import Coefficient


def rows(*columns: Tensor) -> list[tuple[Coefficient, ...]]:
    """The columns (n,), float64, step by step: numbers, which cost nothing to multiply by, unless gradients flow."""
    if any(column.requires_grad for column in columns):
        return list(zip(*(column.unbind() for column in columns), strict=True))
    return list(zip(*(column.tolist() for column in columns), strict=True))
