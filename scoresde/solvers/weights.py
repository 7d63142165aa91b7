"""Weights of an interpolant: ∫ K(h) ℓ_j(φ(h)) dh for Lagrange polynomials ℓ_j through unequal nodes."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from scoresde.solvers.frames import Frame, Levels

Variable = Callable[[Tensor], Tensor]
"""h = log(α/σ) -> φ, increasing or decreasing: in which variable F is taken for a polynomial."""

# For K = e^{kh} the error is about (kΔ/4)^2Q / (2Q)!: below rounding on steps of up to kΔ = 30.
_POINTS = 20


@functools.cache
def _gauss_legendre() -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(_POINTS)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def weights(frame: Frame, start: Tensor, end: Levels, nodes: Tensor, count: Tensor, variable: Variable) -> Tensor:
    """The weights (n, p) of F at the nodes in ∫ K F dh, for n steps at once.

    Args:
        frame: gives K.
        start: (n,) h at which each step begins.
        end: (n,) where it ends, σ > 0.
        nodes: (n, p) h of the nodes.
        count: (n,) how many of the nodes, from the first, are used; the others get weight 0.
        variable: φ.
    """
    points, measure = _gauss_legendre()
    length = end.h - start
    h = start[:, None] + length[:, None] * points  # (n, Q)
    mass = frame.kernel(h, end) * length[:, None] * measure
    at, known = variable(h), variable(nodes)
    p = nodes.shape[1]
    used = torch.arange(p) < count[:, None]  # (n, p)
    factor = used[:, :, None] & used[:, None, :] & ~torch.eye(p, dtype=torch.bool)  # (n, j, m): m shapes ℓ_j
    gap = torch.where(factor, known[:, :, None] - known[:, None, :], 1.0)
    above = (at[:, :, None] - known[:, None, :])[:, :, None, :]  # (n, Q, 1, m)
    basis = torch.where(factor[:, None], above / gap[:, None], 1.0).prod(-1)  # (n, Q, j)
    return torch.where(used, (mass[:, :, None] * basis).sum(1), 0.0)
