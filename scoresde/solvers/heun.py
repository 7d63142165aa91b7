"""Heun's method in σ/α with optional churn: EDM's sampler, for every schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.solvers.base import Solver, only_ode


@dataclass(frozen=True)
class Heun(Solver):
    r"""Heun's method for dx̃/dσ̃ = ε(x̃, σ̃), x̃ = x/α, σ̃ = σ/α; EDM's Algorithm 2 where α = 1, σ = t.

    In these variables the probability-flow ODE is the same under every schedule (Karras et al. 2022,
    arXiv:2206.00364, algorithm 1 and, with churn, 2), and so is this method at equal σ̃. With churn, each step first
    raises the noise level from σ̃ to (1 + γ) σ̃, or to its value at T if that is less, by adding fresh noise.

    Args:
        churn: S_churn; γ = min(S_churn / steps, sqrt(2) - 1). 0 is the deterministic method of order 2.
        churn_min: S_tmin, the least σ̃ at which noise is added.
        churn_max: S_tmax, the largest.
        churn_noise: S_noise, scale of the added noise.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0
    order: ClassVar[int | None] = 2
    default_eta: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not (self.churn >= 0 and self.churn_noise >= 0 and self.churn_min <= self.churn_max):
            raise ValueError(
                "Heun needs churn >= 0, churn_noise >= 0 and churn_min <= churn_max; got "
                f"{self.churn}, {self.churn_noise}, {self.churn_min}, {self.churn_max}."
            )

    def check(self, process: Reverse) -> None:
        """η must be 0: the noise of this method is its churn."""
        only_ode(self, process)

    def draws_noise(self, process: Reverse) -> bool:
        """Whether churn > 0."""
        return self.churn > 0

    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        """γ depends on the number of steps."""
        return x, min(self.churn / (len(grid) - 1), math.sqrt(2) - 1)

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """One step; two evaluations, one where σ(s) = 0 (the slope there is 0/0)."""
        sde, gamma = process.sde, state
        ratio_t = sde.sigma(t) / sde.alpha(t)
        if gamma and self.churn_min <= ratio_t.item() <= self.churn_max:
            x, t = self._raise(process, x, t, (1 + gamma) * ratio_t, noise)
        alpha_t, alpha_s = sde.alpha(t), sde.alpha(s)
        ratio_s = sde.sigma(s) / alpha_s
        length = ratio_s - sde.sigma(t) / alpha_t
        slope = process.noise(x, t)
        after = (alpha_s / alpha_t) * x + alpha_s * length * slope
        if ratio_s.item() > 0:
            after = after + 0.5 * alpha_s * length * (process.noise(after, s) - slope)
        return after, gamma

    def _raise(self, process: Reverse, x: Tensor, t: Tensor, ratio: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Add noise until σ/α is ``ratio``, or its value at T if that is less."""
        sde = process.sde
        highest = (-0.5 * sde.log_snr(sde.T)).exp()
        if not ratio.item() < highest.item():
            ratio = highest
        up = sde.t_of_log_snr(-2 * ratio.log())
        if not up.item() > t.item():
            return x, t
        mean, std = sde.transition(x, t, up)
        return mean + self.churn_noise * std * noise.normal(x), up
