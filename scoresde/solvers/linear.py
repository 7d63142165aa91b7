"""Arithmetic of a step: coefficients worked out for the whole grid at once, and sums of scaled tensors."""

from __future__ import annotations

import torch
from torch import Tensor

Coefficient = float | Tensor
"""A number; a float64 tensor () where gradients flow through it."""


def rows(*columns: Tensor) -> list[tuple[Coefficient, ...]]:
    """The columns (n,), float64, step by step: numbers, which cost nothing to multiply by, unless gradients flow."""
    if any(column.requires_grad for column in columns):
        return list(zip(*(column.unbind() for column in columns), strict=True))
    return list(zip(*(column.tolist() for column in columns), strict=True))


def combine(*terms: tuple[Coefficient, Tensor]) -> Tensor:
    """Σ c_i x_i in the dtype of the x_i, in as few passes over memory as can be; numbers c = 0 are left out."""
    kept = [(c, x) for c, x in terms if isinstance(c, Tensor) or c != 0.0]
    if not kept:
        return 0.0 * terms[0][1]
    (first, x), *others = kept
    if others and isinstance(first, float) and first == 1.0 and isinstance(second := others[0][0], float):
        total = torch.add(x, others.pop(0)[1], alpha=second)
    else:
        total = first * x
    for coefficient, y in others:
        # in place is safe for autograd: ``total`` is ours, and a sum does not need its old value
        total = total.add_(y, alpha=coefficient) if isinstance(coefficient, float) else total + coefficient * y
    return total
