"""Euler-Maruyama, and the reverse-diffusion sampler that discretises like the forward chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scoresde.reverse import Reverse
from scoresde.sde.base import root
from scoresde.solvers.planned import OneStep


@dataclass(frozen=True)
class EulerMaruyama(OneStep):
    r"""x_s = x_t + drift (s - t) + η g(t) sqrt(t - s) z; Euler's method where η = 0.

    Strong order 1, not ½, because the noise of the reverse process is additive
    (Kloeden & Platen 1992, section 10.2).
    """

    order: ClassVar[int | None] = 1
    weak_order: ClassVar[float | None] = 1.0
    strong_order: ClassVar[float | None] = 1.0
    default_eta: ClassVar[float] = 1.0

    def coefficients(self, process: Reverse, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One evaluation a step."""
        length, rate = t - s, process.sde.g(t) ** 2
        keep = 1 - process.sde.f(t) * length
        return keep, 0.5 * (1 + process.eta**2) * rate * length, process.eta * root(rate * length)


@dataclass(frozen=True)
class ReverseDiffusion(OneStep):
    r"""The reverse-diffusion sampler: the forward transition x_t = r x_s + sqrt(v) z, reversed like the SDE::

        x_s = (2 - r) x_t + ½ (1 + η²) v s(x_t, t) + η sqrt(v) z

    Song et al. 2021 (arXiv:2011.13456), eq. 46 with η = 1: r = sqrt(1 - β_i), v = β_i on DDPM's chain, r = 1,
    v = σ_i² - σ_{i-1}² on SMLD's.
    """

    order: ClassVar[int | None] = 1
    weak_order: ClassVar[float | None] = 1.0
    strong_order: ClassVar[float | None] = 1.0
    default_eta: ClassVar[float] = 1.0

    def coefficients(self, process: Reverse, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One evaluation a step."""
        ratio, variance = process.sde.transition_coefficients(s, t)
        return 2 - ratio, 0.5 * (1 + process.eta**2) * variance, process.eta * root(variance)
