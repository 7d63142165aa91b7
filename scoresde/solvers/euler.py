"""Euler-Maruyama, and the reverse-diffusion sampler that discretises like the forward chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.sde import spread
from scoresde.sde.base import root
from scoresde.solvers.base import Solver


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    r"""x_s = x_t + drift (s - t) + η g(t) sqrt(t - s) z; Euler's method where η = 0.

    Strong order 1, not ½, because the noise of the reverse process is additive
    (Kloeden & Platen 1992, section 10.2).
    """

    order: ClassVar[int | None] = 1
    weak_order: ClassVar[float | None] = 1.0
    strong_order: ClassVar[float | None] = 1.0
    default_eta: ClassVar[float] = 1.0

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """One step; one evaluation."""
        after = x + process.drift(x, t) * (s - t)
        if process.eta:
            after = after + process.diffusion(t) * (t - s).sqrt() * noise.between(x, t, s)
        return after, None


@dataclass(frozen=True)
class ReverseDiffusion(Solver):
    r"""The reverse-diffusion sampler: the forward transition x_t = r x_s + sqrt(v) z, reversed like the SDE::

        x_s = (2 - r) x_t + ½ (1 + η²) v s(x_t, t) + η sqrt(v) z

    Song et al. 2021 (arXiv:2011.13456), eq. 46 with η = 1: r = sqrt(1 - β_i), v = β_i on DDPM's chain, r = 1,
    v = σ_i² - σ_{i-1}² on SMLD's.
    """

    order: ClassVar[int | None] = 1
    weak_order: ClassVar[float | None] = 1.0
    strong_order: ClassVar[float | None] = 1.0
    default_eta: ClassVar[float] = 1.0

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """One step; one evaluation."""
        ratio, variance = process.sde.transition_coefficients(s, t)
        after = spread(2 - ratio, x) * x + 0.5 * (1 + process.eta**2) * variance * process.score(x, t)
        if process.eta:
            after = after + process.eta * root(variance) * noise.between(x, t, s)
        return after, None
