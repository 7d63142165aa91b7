"""Reverse-time processes: one family, one dial η, from the probability-flow ODE to the reverse SDE and beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from scoresde import checks
from scoresde.score import Score
from scoresde.sde import SDE, Time, spread


@dataclass(frozen=True)
class Reverse:
    r"""The process that carries noise back to data::

        dx = [f x - ½ (1 + η²) g² s(x, t)] dt + η g dw̄

    All η >= 0 share the marginals p_t. η = 0 is the probability-flow ODE, η = 1 Anderson's reverse SDE
    (Song et al. 2021, arXiv:2011.13456, eq. 6 and 13; the family: Zhang & Chen 2023, arXiv:2204.13902, eq. 4).

    Args:
        sde: the forward SDE.
        score: (x, t) -> ∇ log p_t(x); a :class:`~scoresde.ScoreModel` without conditions will do.
        eta: the dial η; a tensor () is differentiable.

    Raises:
        ValueError: η negative or not finite.
    """

    sde: SDE
    score: Score
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.sde, SDE):
            raise TypeError(f"sde must be an SDE, got {type(self.sde).__name__}; call Reverse(sde, score, eta).")
        if not callable(self.score):
            raise TypeError(f"score must be a function (x, t) -> score, got {type(self.score).__name__}.")
        if not (math.isfinite(checks.number(self.eta)) and self.eta >= 0):
            raise ValueError(f"eta must be at least 0 (0: probability-flow ODE, 1: reverse SDE), got {self.eta}.")

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """f x - ½ (1 + η²) g² s(x, t), (B, *event): dx/dt along increasing t when η = 0."""
        weight = 0.5 * (1 + self.eta**2) * self.sde.g(t) ** 2
        return spread(self.sde.f(t), x) * x - spread(weight, x) * self.score(x, t)  # type: ignore[arg-type]

    def diffusion(self, t: Time) -> Tensor:
        """η g(t), shaped like t."""
        return self.eta * self.sde.g(t)

    def noise(self, x: Tensor, t: Time) -> Tensor:
        """E[ε | x_t = x] = -σ s(x, t)."""
        return spread(-self.sde.sigma(t), x) * self.score(x, t)  # type: ignore[arg-type]

    def denoise(self, x: Tensor, t: Time) -> Tensor:
        """E[x_0 | x_t = x] = (x + σ² s) / α."""
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return spread(1 / alpha, x) * x + spread(sigma**2 / alpha, x) * self.score(x, t)  # type: ignore[arg-type]
