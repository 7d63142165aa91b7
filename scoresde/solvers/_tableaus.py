"""Explicit Runge-Kutta tableaus written in the moments of a kernel: exponential methods, and classical ones as a case.

``phi(k, i)`` is Φ_k = ∫ K τ^{k-1}/(k-1)! over the way from the step's start to stage i (i = -1: to its end), with τ
from 0 to 1 on that way. With the kernel of an exponential integrator it is c_i Δ φ_k(c_i z); with a constant kernel it
is c_i Δ / k!, and the same tableau is a classical one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Phi = Callable[[int, int], Tensor]
Weights = list[list[Tensor]]


class Tableau(NamedTuple):
    """A method.

    Attributes:
        nodes: c_1 = 0, c_2, ...: how far along the step each stage lies.
        weights: from the moments, the rows a_2, a_3, ..., b: weights (n,) of F_1, F_2, ... in stages and end.
        signs: for η > 0. None: each stage has the noise of one path at its place. Else stage i has that noise's
            variance and its covariance with the noise of the whole step, and what it has beside is ``signs[i]`` times
            one normal for all stages: with sign 1 at the last stage that of the path there.
    """

    nodes: tuple[float, ...]
    weights: Callable[[Phi], Weights]
    signs: tuple[float, ...] | None = None


def _line(phi: Phi, i: int, c: float) -> tuple[Tensor, Tensor]:
    """Weights of F at 0 and at the fraction c of the way to i, exact where F is linear."""
    slope = phi(2, i) / c
    return phi(1, i) - slope, slope


def _midpoint(phi: Phi) -> Weights:
    return [[phi(1, 1)], [torch.zeros_like(phi(1, -1)), phi(1, -1)]]


def _heun(phi: Phi) -> Weights:
    return [[phi(1, 1)], [*_line(phi, -1, 1.0)]]


def _ralston(phi: Phi) -> Weights:
    return [[phi(1, 1)], [*_line(phi, -1, 2 / 3)]]


def _thirds(phi: Phi) -> Weights:
    start, last = _line(phi, -1, 2 / 3)
    return [[phi(1, 1)], [*_line(phi, 2, 1 / 2)], [start, torch.zeros_like(last), last]]


def _krogstad(phi: Phi) -> Weights:
    one, two, three = (phi(k, -1) for k in (1, 2, 3))
    middle = 2 * two - 4 * three
    start, last = _line(phi, 3, 1.0)
    # stages 3 and 4 take twice the slope; with K constant that is the classical method's
    return [
        [phi(1, 1)],
        [phi(1, 2) - 2 * phi(2, 2), 2 * phi(2, 2)],
        [start - last, torch.zeros_like(last), 2 * last],
        [one - 3 * two + 4 * three, middle, middle, 4 * three - two],
    ]


# Of the last two stages, which lie at one place with opposite noises: the share of the third in the end's weights, and
# how much of the fourth's slope comes from it.
_THIRD_IN_END, _THIRD_IN_FOURTH = (3 - 6**0.5) / 6, 2 * 6**0.5 - 14 / 3


def _antithetic(phi: Phi) -> Weights:
    near, far = 1 - _THIRD_IN_FOURTH, _THIRD_IN_FOURTH
    from_near, from_far = _line(phi, 3, 1 / 2), _line(phi, 3, 1.0)
    start, last = _line(phi, -1, 2 / 3)
    return [
        [phi(1, 1)],
        [*_line(phi, 2, 1 / 2)],
        [near * from_near[0] + far * from_far[0], near * from_near[1], far * from_far[1]],
        [start, torch.zeros_like(last), _THIRD_IN_END * last, (1 - _THIRD_IN_END) * last],
    ]


EULER = Tableau((0.0,), lambda phi: [[phi(1, -1)]])
"""Exponential Euler: DDIM where η = 0."""

MIDPOINT = Tableau((0.0, 1 / 2), _midpoint)
"""F in the middle for the whole step: DPM-Solver-2."""

HEUN = Tableau((0.0, 1.0), _heun)
"""F linear between the ends."""

RALSTON = Tableau((0.0, 2 / 3), _ralston)
"""F linear through 0 and 2/3: of second-order tableaus the one with the least error constants where K is constant."""

THIRDS = Tableau((0.0, 1 / 3, 2 / 3), _thirds)
"""DPM-Solver-3; Heun's method of order 3 where K is constant."""

KROGSTAD = Tableau((0.0, 1 / 2, 1 / 2, 1.0), _krogstad)
"""ETDRK4-B (Krogstad 2005, doi:10.1016/j.jcp.2004.08.006); the classical method of order 4 where K is constant."""

ANTITHETIC = Tableau((0.0, 1 / 3, 2 / 3, 2 / 3), _antithetic, (0.0, 1.0, -1.0, 1.0))
r"""Weak order 3 for additive noise.

With W the noise of the step and ζ_i that of stage i, on a step of length 1 and K = 1, weak order 3 asks for order 3
without noise, E ζ_i W = E ζ_i² = c_i, and two conditions more::

    Var Σ b_i ζ_i = 1/3        Σ b_i a_ij E ζ_i ζ_j = 1/6

The first, the variance of ∫ W, is out of reach for noises of one path: Σ b_i W(c_i) is a sum where an integral should
be, and its variance always too large. The stages at 2/3 lie on opposite sides of the mean given W, which lowers it:
1/4 + (2/9)(b_4 - b_3)² = 1/3 gives b_4 - b_3 = sqrt(3/8), and the second condition a_43.
"""
