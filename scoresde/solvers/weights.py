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

# Exact to rounding for K times a polynomial of degree 6 on steps of up to 8 in h: e^8 needs about 24 nodes.
_POINTS = 32


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
    one = torch.ones((), dtype=torch.float64)
    columns = []
    for j in range(p):
        basis = mass
        for m in range(p):
            if m != j:
                both = used[:, m] & used[:, j]
                gap = torch.where(both, known[:, j] - known[:, m], one)
                basis = basis * torch.where(both[:, None], (at - known[:, m, None]) / gap[:, None], one)
        columns.append(torch.where(used[:, j], basis.sum(1), 0 * one))
    return torch.stack(columns, 1)
