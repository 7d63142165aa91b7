r"""The nearest covariance to a symmetric matrix, without waiting for a device.

    nearest = positive_part(symmetric)               # (B, m, m), its negative eigenvalues put to 0

torch's eigendecomposition looks at its own success, for which the host has to wait. On a device the same matrix comes
from |S| = S sign(S) instead, whose polar decomposition is a fixed number of QR decompositions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde import checks

_SMALLEST = 1e-16
"""Relative size of the least eigenvalue whose sign is found; what is below is 0 to rounding, with either sign."""


def positive_part(symmetric: Tensor) -> Tensor:
    """S without its negative eigenvalues, for matrices (B, m, m) in float64.

    What is taken away counts as a constant: eigenvectors have no derivative where eigenvalues coincide.
    """
    with torch.no_grad():
        taken = by_eigenvectors(symmetric) if checks.readable(symmetric) else by_polar(symmetric)
    return symmetric - taken


def by_eigenvectors(symmetric: Tensor) -> Tensor:
    """The negative part of S."""
    values, vectors = torch.linalg.eigh(symmetric)
    return (vectors * values.clamp_max(0)[:, None]) @ vectors.mT


def by_polar(symmetric: Tensor) -> Tensor:
    r"""The same, (S - |S|)/2, by QR-based dynamically weighted Halley iterations (Nakatsukasa, Bai & Gygi 2010,
    doi:10.1137/090774999, eq. 3.5 and 4.2)::

        [√c X; I] = [Q₁; Q₂] R        X ← (b/c) X + (a - b/c)/√c Q₁ Q₂ᵀ

    which is stable for every condition. Their weights depend on the bound of the least eigenvalue alone: numbers.
    """
    greatest = symmetric.abs().amax((-2, -1), keepdim=True)
    x = symmetric / torch.where(greatest > 0, greatest, 1.0)  # squares of what is very small or large have no place
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(1)  # not below the largest eigenvalue
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand_as(x)
    for a, b, c in _weights():
        q, _ = torch.linalg.qr(torch.cat([math.sqrt(c) * x, eye], dim=-2))
        upper, lower = q.chunk(2, dim=-2)
        x = (b / c) * x + ((a - b / c) / math.sqrt(c)) * (upper @ lower.mT)
    product = x @ symmetric
    return 0.5 * (symmetric - 0.5 * (product + product.mT))


def _weights() -> list[tuple[float, float, float]]:
    """(a, b, c) of each iteration, until the least singular value is 1 to rounding: six of them."""
    found: list[tuple[float, float, float]] = []
    least = _SMALLEST
    while abs(1 - least) > 1e-15 and len(found) < 8:
        square = least * least
        d = (4 * (1 - square) / square**2) ** (1 / 3)
        a = math.sqrt(1 + d) + 0.5 * math.sqrt(max(0.0, 8 - 4 * d + 8 * (2 - square) / (square * math.sqrt(1 + d))))
        b = 0.25 * (a - 1) ** 2
        c = a + b - 1
        found.append((a, b, c))
        least = min(1.0, least * (a + b * square) / (1 + c * square))
    return found
