"""Gauss-Legendre quadrature on [0, 1], float64."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.lasting import lasting

SHORT, LONG, LONGEST = 20, 64, 256


@functools.cache
@lasting
def gauss_legendre(points: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights (points,), exact for polynomials of degree 2 points - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def for_steps(length: Tensor, eta: float | Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights that integrate the kernels of the frames to rounding over steps of ``length`` (n,) in h.

    For e^{kh}, k = 1 + η², Q nodes err by about (kΔ/4)^{2Q} / (2Q)!, for the v's kernel, whose poles lie at a
    distance of π/2 from the real line, by ρ^{-2Q} with ρ = u + sqrt(1 + u²), u = π/Δ: 20 nodes are enough up to
    kΔ = 4, 64 up to Δ = 14 and kΔ = 60, 256 up to Δ = 45.
    """
    longest = float(length.detach().abs().max()) * (1 + checks.number(eta) ** 2) if length.numel() else 0.0
    return gauss_legendre(SHORT if longest <= 4 else LONG if longest <= 14 else LONGEST)
