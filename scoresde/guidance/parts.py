"""Guidance that is a weighted sum of scores, and what can be said of the density that it points to."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from scoresde import checks


class Part(NamedTuple):
    """One term of a sum of scores: its weight, and the score (B, *event)."""

    weight: float
    score: Tensor


class LinearGuidance(ABC):
    r"""A Score Σ_i a_i s_i(x, t) with Σ_i a_i = 1, each s_i the score of a law p_i that the forward process carries.

    It is the score of π_t ∝ Π_i p_i(x, t)^{a_i}, which in general no forward process carries from time to time, so that
    sampling with it does not end in π_0. What is missing are the weights (Skreta et al. 2025, arXiv:2503.02819)::

        d log w / dτ = ½ g² (|Σ_i a_i s_i|² - Σ_i a_i |s_i|²),        τ = T - t,

    for every η; :func:`scoresde.particles.tilted` carries them along.
    """

    @abstractmethod
    def parts(self, x: Tensor, t: Tensor) -> Sequence[Part]:
        """The terms at (x, t). Their weights are the same at every time, and sum to 1."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return weighted_sum(self.parts(x, t))


class Twist(NamedTuple):
    """A score and what bends it: the score of p_t (B, *event), log ψ_t(x) (B,) and ∇_x log ψ_t(x) (B, *event)."""

    score: Tensor
    log_psi: Tensor
    gradient: Tensor


class TwistedGuidance(ABC):
    r"""A Score s(x, t) + ∇ log ψ_t(x) whose ψ_t is known, up to a constant, and positive.

    What is wanted is p_0(x_0) ψ_0(x_0). The score leads there only where ψ_t(x_t) = E[ψ_0(x_0) | x_t];
    :func:`scoresde.particles.twisted` corrects any other ψ_t.
    """

    @abstractmethod
    def twist(self, x: Tensor, t: Tensor) -> Twist:
        """All three at (x, t), from one evaluation of the score."""

    @abstractmethod
    def log_potential(self, x0: Tensor) -> Tensor:
        """log ψ_0(x_0), (B,): what a sample is weighted with in the end."""

    def check(self) -> None:
        """Raises ValueError where :meth:`log_potential` has no answer; asked before any work. By default it has one."""
        return

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        score, _, gradient = self.twist(x, t)
        return score + gradient


def weighted_sum(parts: Sequence[Part]) -> Tensor:
    """Σ_i a_i s_i."""
    first, *others = parts
    total = first.weight * first.score
    for part in others:
        total = total.add(part.score, alpha=part.weight)
    return total


def finite_scale(scale: float | Tensor, *, name: str = "scale", hint: str = "") -> float:
    """A guidance scale as a float, from a real number of any library or a tensor ().

    A tensor is read, so that no gradient flows to it: what depends on a parameter is given as a function of t.

    Raises:
        ValueError: anything else, or not finite.
    """
    message = f"{name} must be a finite number, got {scale!r}. {hint}".rstrip()
    try:
        value = checks.real(scale, name=name)
    except (TypeError, OverflowError) as error:
        raise ValueError(message) from error
    if value.ndim or not math.isfinite(number := float(value.detach())):
        raise ValueError(message)
    return number
