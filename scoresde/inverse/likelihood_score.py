"""Scores of posteriors: a prior's score and the gradient of an approximate log p(y | x_t)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.guidance import Twist, TwistedGuidance
from scoresde.guidance.leaf import on_leaf
from scoresde.inverse.measurement import Measurement
from scoresde.score import Score
from scoresde.sde import SDE, spread


@dataclass(frozen=True, eq=False)
class LikelihoodScore(TwistedGuidance):
    r"""s(x, t) + ∇ log ψ_t(x), with log ψ_t an approximation of log p(y | x_t) through x̂_0(x_t) = E[x_0 | x_t].

    x̂_0 = (x + σ² s(x, t)) / α (Tweedie's formula), and the gradient goes through the score: one evaluation and one or
    more backward passes. At t = 0 every method's ψ is to be p(y | x_0), which is what :meth:`log_potential` answers.
    """

    score: Score
    sde: SDE
    measurement: Measurement

    def __post_init__(self) -> None:
        if not callable(self.score):
            raise TypeError(f"score must be a function (x, t) -> score, got {type(self.score).__name__}.")
        if not isinstance(self.sde, SDE):
            raise TypeError(f"sde must be an SDE, got {type(self.sde).__name__}; the order is score, sde, measurement.")
        if not isinstance(self.measurement, Measurement):
            raise TypeError(
                f"measurement must be a Measurement(y, operator, noise_std), got {type(self.measurement).__name__}."
            )

    def twist(self, x: Tensor, t: Tensor) -> Twist:
        """The prior's score, log ψ_t(x) and its gradient; differentiable themselves if grad is enabled."""
        self.measurement.check(x)
        time = checks.time(t, self.sde.t_max, what=type(self.sde).__name__)
        checks.same_batch(time, x)
        further = torch.is_grad_enabled()
        leaf, score = on_leaf(lambda leaf: self.score(leaf, time), x, name="the score")
        with torch.enable_grad():
            alpha, sigma = self.sde.alpha(time), self.sde.sigma(time)
            x0 = spread(1 / alpha, x) * leaf + spread(sigma**2 / alpha, x) * score
        with torch.set_grad_enabled(further):
            log_psi, gradient = self.likelihood(leaf, x0, time)
        return Twist(score, log_psi, gradient) if further else Twist(score.detach(), log_psi.detach(), gradient)

    def log_potential(self, x0: Tensor) -> Tensor:
        """log N(y; A(x_0), σ_y² I), (B,); needs noise_std > 0."""
        return self.measurement.log_prob(x0)

    def check(self) -> None:
        """Raises ValueError without measurement noise, where clean samples have no density of y."""
        self.measurement.need_noise("weighing clean samples by a measurement")

    @abstractmethod
    def likelihood(self, x: Tensor, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """log ψ_t (B,) and its gradient in x (B, *event).

        Args:
            x: (B, *event), requiring a gradient.
            x0: E[x_0 | x_t = x], with a graph to x, which may be gone through several times.
            t: float64, () or (B,).
        """


def pulled(x0: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
    """(∂x̂_0/∂x)ᵀ cotangent, shaped like x; its own graph is kept if grad is enabled."""
    (gradient,) = torch.autograd.grad(x0, x, cotangent, retain_graph=True, create_graph=torch.is_grad_enabled())
    return gradient
