"""Explicit Runge-Kutta tableaus written in the moments of a kernel: exponential methods, and classical ones as a case.

``Phi(k, i)`` is ∫ K τ^{k-1}/(k-1)! over the way from the step's start to stage i (i = -1: its end). With the kernel of
an exponential integrator it is c_i Δ φ_k(c_i z); with a constant kernel it is c_i Δ / k!, and the same tableau is a
classical one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Phi = Callable[[int, int], Tensor]
Weights = list[list[Tensor]]


class Tableau(NamedTuple):
    """Nodes c_1 = 0, c_2, ..., and from the moments the rows a_2, a_3, ..., b: weights (n,) of F_1, F_2, ..."""

    nodes: tuple[float, ...]
    weights: Callable[[Phi], Weights]
    signs: tuple[float, ...] | None = None


def _linear(phi: Phi, i: int, c: float, gain: float = 1.0) -> tuple[Tensor, Tensor]:
    """Weights of F at 0 and at the fraction c of the way to i, exact for linear F."""
    slope = gain * phi(2, i) / c
    return phi(1, i) - slope, slope


EULER = Tableau((0.0,), lambda phi: [[phi(1, -1)]])
"""Exponential Euler: DDIM where η = 0."""


def _midpoint(phi: Phi) -> Weights:
    return [[phi(1, 1)], [torch.zeros_like(phi(1, -1)), phi(1, -1)]]


MIDPOINT = Tableau((0.0, 0.5), _midpoint)
"""The middle's F for the whole step: DPM-Solver-2."""


def _heun(phi: Phi) -> Weights:
    return [[phi(1, 1)], list(_linear(phi, -1, 1.0))]


HEUN = Tableau((0.0, 1.0), _heun)
"""F linear between the ends: ETD2RK (Cox & Matthews 2002, doi:10.1006/jcph.2002.6995, eq. 22)."""


def _two_thirds(phi: Phi) -> Weights:
    return [[phi(1, 1)], list(_linear(phi, -1, 2 / 3))]


RALSTON = Tableau((0.0, 2 / 3), _two_thirds)
"""F linear through 0 and 2/3."""


def _dpm3(phi: Phi) -> Weights:
    first, slope = _linear(phi, 2, 0.5)
    start, far = _linear(phi, -1, 2 / 3)
    return [[phi(1, 1)], [first, slope], [start, torch.zeros_like(far), far]]


DPM3 = Tableau((0.0, 1 / 3, 2 / 3), _dpm3)
"""Heun's third-order tableau in exponential form: DPM-Solver-3, r_1 = 1/3, r_2 = 2/3."""


def _kutta3(phi: Phi) -> Weights:
    first, slope = _linear(phi, 2, 0.5)
    one, two, three = phi(1, -1), phi(2, -1), phi(3, -1)
    # the parabola through 0, 1/2, 1; the last stage takes twice the slope, -1 and 2 in Kutta's method
    return [
        [phi(1, 1)],
        [phi(1, 2) - 4 * phi(2, 2), 4 * phi(2, 2)],
        [one - 3 * two + 4 * three, 4 * two - 8 * three, 4 * three - two],
    ]


KUTTA3 = Tableau((0.0, 0.5, 1.0), _kutta3)
"""ETD3RK (Cox & Matthews 2002, eq. 23-25): Kutta's third-order method where K is constant."""


def _krogstad(phi: Phi) -> Weights:
    none = torch.zeros_like(phi(1, -1))
    one, two, three = phi(1, -1), phi(2, -1), phi(3, -1)
    middle = 2 * two - 4 * three
    return [
        [phi(1, 1)],
        [phi(1, 2) - 2 * phi(2, 2), 2 * phi(2, 2)],
        [phi(1, 3) - 2 * phi(2, 3), none, 2 * phi(2, 3)],
        [one - 3 * two + 4 * three, middle, middle, 4 * three - two],
    ]


KROGSTAD = Tableau((0.0, 0.5, 0.5, 1.0), _krogstad)
"""ETDRK4-B (Krogstad 2005, doi:10.1016/j.jcp.2004.08.006, eq. 51): the classical Runge-Kutta where K is constant."""


def _weak3(phi: Phi) -> Weights:
    near, far, share = 14 / 3 - 2 * 6**0.5, 2 * 6**0.5 - 14 / 3, (3 - 6**0.5) / 6
    first3, slope3 = _linear(phi, 2, 0.5)
    first4, slope4 = _linear(phi, 3, 0.5, 1 + near)
    whole = phi(2, 3)
    start, last = _linear(phi, -1, 2 / 3)
    none = torch.zeros_like(start)
    return [
        [phi(1, 1)],
        [first3, slope3],
        [phi(1, 3) - (1 - far) * phi(2, 3) / 0.5 - far * whole, (1 - far) * phi(2, 3) / 0.5, far * whole],
        [start, none, share * last, (1 - share) * last],
    ]


WEAK3 = Tableau((0.0, 1 / 3, 2 / 3, 2 / 3), _weak3, (0.0, 1.0, -1.0, 1.0))
