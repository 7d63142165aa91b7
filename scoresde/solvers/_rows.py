"""Coefficients worked out for a whole grid at once, handed out step by step."""

from __future__ import annotations

from torch import Tensor

from scoresde import checks
from scoresde.models.combination import Coefficient


def rows(*columns: Tensor) -> list[tuple[Coefficient, ...]]:
    """The columns (n,), float64, step by step: numbers, cheap to multiply by, unless a derivative is taken of them."""
    if any(map(checks.followed, columns)):
        return list(zip(*(column.unbind() for column in columns), strict=True))
    return list(zip(*(column.tolist() for column in columns), strict=True))
