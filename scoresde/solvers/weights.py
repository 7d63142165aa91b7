"""Weights of an interpolant: ∫ K(h) ℓ_j(φ(h)) dh for Lagrange polynomials ℓ_j through unequal nodes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.solvers.frames import Frame, Levels
from scoresde.solvers.quadrature import for_steps

Variable = Callable[[Tensor], Tensor]
"""h = log(α/σ) -> φ, increasing or decreasing: in which variable F is taken for a polynomial."""


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
    length = end.h - start
    points, measure = for_steps(length, frame.eta)
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
