"""Scores of posteriors: a prior's score and the gradient of an approximate log p(y | x_t).

:func:`~scoresde.inverse.dps`, :func:`~scoresde.inverse.pigdm` and :func:`~scoresde.inverse.moment_matching` are such
scores, for :func:`~scoresde.sample` and for :func:`scoresde.particles.twisted`. One of your own is a frozen dataclass
that writes the potential and its gradient::

    @dataclass(frozen=True, eq=False)
    class Mine(LikelihoodScore):
        def likelihood(self, x, x0, t):
            residual = self.measurement.residual(x0)
            ...
            return log_psi, vjp(x0, x, cotangent)
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoresde import checks
from scoresde.guidance.leaf import on_leaf
from scoresde.guidance.parts import Twist, TwistedGuidance
from scoresde.inverse.measurement import HOW, Measurement
from scoresde.models.combination import Combination, combine
from scoresde.models.score import DerivedScore, Score, check_independent, check_score
from scoresde.sde import has_signal


@dataclass(frozen=True, eq=False)
class LikelihoodScore(DerivedScore, TwistedGuidance):
    r"""s(x, t) + ∇ log ψ_t(x), with log ψ_t an approximation of log p(y | x_t) through x̂_0(x_t) = E[x_0 | x_t].

    The gradient goes through x̂_0: one evaluation of the score and one or more backward passes. At t = 0 every method's
    ψ is to be p(y | x_0), which is what :meth:`log_potential` answers.

    Args:
        score: of the prior, differentiable in x.
        measurement: y, A and σ_y.

    Raises:
        TypeError: no Score, or no Measurement.
        ValueError: when called, where α(t) = 0.
    """

    score: Score
    measurement: Measurement

    rough: ClassVar[bool] = True  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_independent(check_score(self.score), what=f"{type(self).__name__}, a posterior,")
        checks.instance(self.measurement, Measurement, name="measurement", hint=HOW)
        checks.fields(self)

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        """p x̂_0 + q ε̂ of the prior, and p σ²/α - q σ, the coefficient of its score, times ∇ log ψ."""
        time, alpha, sigma = self._schedule(x, t)
        (x0, _, gradient), noise = self._bent(x, time, alpha, sigma)
        p, q = wanted.of_predictions(alpha, sigma)
        return combine((p, x0), (q, noise), (p * sigma**2 / alpha - q * sigma, gradient))

    def twist(self, x: Tensor, t: Tensor) -> Twist:
        """x̂_0 of the prior, log ψ_t(x) and its gradient; differentiable themselves if grad is enabled."""
        return self._bent(x, *self._schedule(x, t))[0]

    def _schedule(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The checked time, α and σ, float64."""
        self.measurement.check(x)
        time = checks.time(t, self.sde.t_max, what=type(self.sde).__name__)
        checks.same_batch(time, x)
        alpha, sigma = self.sde.alpha(time), self.sde.sigma(time)
        if not has_signal(alpha, sigma):
            raise ValueError(
                f"{type(self).__name__} has no answer where α(t) = 0, as at t = {float(time.max()):g} of "
                f"{type(self.sde).__name__}: x_t says nothing of x_0 there, so that ∇ log ψ_t is 0 and its coefficient "
                "σ²/α in x̂_0 infinite. Start the grid below that time, grid=grids.karras(sde, steps, t_start=0.999 * "
                "sde.T), from where nothing is lost."
            )
        return time, alpha, sigma

    def _bent(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Twist, Tensor]:
        """The twist, and ε̂ of the prior: of x̂_0 and ε̂ the score answers the one that gives the other to all digits."""
        further, near_data = torch.is_grad_enabled(), bool((sigma <= alpha).all())
        predicted = self.score.noise if near_data else self.score.denoise
        leaf, answer = on_leaf(lambda leaf: predicted(leaf, t), x, name="the score")
        if near_data:
            with torch.enable_grad():
                x0, noise = combine((1 / alpha, leaf), (-sigma / alpha, answer)), answer
        else:
            x0, noise = answer, combine((1 / sigma, leaf), (-alpha / sigma, answer))
        log_psi, gradient = self.likelihood(leaf, x0, t)
        if further:
            return Twist(x0, log_psi, gradient), noise
        return Twist(x0.detach(), log_psi.detach(), gradient), noise.detach()

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
            t: float64, () or (B,), where α(t) > 0.
        """


def vjp(x0: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
    """(∂x̂_0/∂x)ᵀ cotangent, shaped like x; its own graph is kept if grad is enabled."""
    (gradient,) = torch.autograd.grad(x0, x, cotangent, retain_graph=True, create_graph=torch.is_grad_enabled())
    return gradient
