"""Diffusion posterior sampling: the likelihood at the denoised sample, for any differentiable A.

    sample(dps(score, measurement), shape, eta=1.0, steps=100)
    sample(dps(score, measurement, step="norm", scale=0.5), shape, eta=1.0, steps=1000)      # the paper's

One evaluation and one backward pass; biased towards the measurement while there is noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scoresde import checks
from scoresde.guidance import TwistedGuidance
from scoresde.guidance.parts import finite_scale
from scoresde.inverse.likelihood_score import LikelihoodScore
from scoresde.inverse.measurement import Measurement
from scoresde.models.score import Score
from scoresde.sde.base import root
from scoresde.solvers.metropolis import dot

PAPER_STEPS = 1000
"""Ancestral steps of Chung et al., for each of which their step size is meant."""


def dps(
    score: Score,
    measurement: Measurement,
    *,
    scale: float = 1.0,
    step: Literal["likelihood", "norm"] = "likelihood",
) -> TwistedGuidance:
    r"""Diffusion posterior sampling (Chung et al. 2022, arXiv:2209.14687, eq. 11): p(y | x_t) ≈ p(y | x̂_0(x_t)).

    With r = y - A(x̂_0(x)), for any differentiable A::

        "likelihood":  log ψ_t = scale · log N(y; A(x̂_0), σ_y² I)
        "norm":        log ψ_t = -c(t) ‖r‖,   c = 2 scale N / (T g(t)²),  N = 1000

    "norm" is the paper's algorithm 1 written as a score. It subtracts ζ/‖r‖ ∇‖r‖² = 2ζ ∇‖r‖ from x after each of N
    ancestral steps; a step of length T/N adds g² T/N times the score, so the same shift comes from the score
    -2ζ N / (T g²) ∇‖r‖. Whatever the number of steps, the total shift on the reverse SDE is then the paper's (half of
    it on the probability-flow ODE). ζ = ``scale`` is tuned by hand; the authors' code shifts by ζ ∇‖r‖, so that
    values published with it are twice the ``scale`` that does the same here. The law that results is no posterior.

    Bias: x_0 is taken to be known once x_t is. For a Gaussian prior the exact gradient has A V Aᵀ + σ_y² I, V the
    covariance of x_0 given x_t, where "likelihood" has σ_y² I alone: in one dimension it is 1 + A² V/σ_y² times too
    large, which tends to 1 as t → 0. It is stiff wherever σ_y is small.

    Args:
        score: of the prior, differentiable in x; may itself be guided or bound.
        measurement: y, A and σ_y; σ_y > 0 for "likelihood".
        scale: finite. 1 is the approximation itself; for "norm" half of the ζ' of the authors' code, which is 0.1 to 1
            for data in [-1, 1] (appendix C.2).
        step: which of the two.

    Raises:
        TypeError: no Score.
        ValueError: an unknown step, a scale that is not finite, σ_y = 0 with "likelihood"; when called, where α(t) = 0,
            and for a score or an A through which no gradient flows.
    """
    return DPS(score, measurement, scale, step)


@dataclass(frozen=True, eq=False)
class DPS(LikelihoodScore):
    """A Score made by :func:`dps`; its fields are that function's arguments."""

    scale: float = 1.0
    step: Literal["likelihood", "norm"] = "likelihood"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", finite_scale(self.scale))
        super().__post_init__()
        if self.step == "likelihood":
            self.measurement.need_noise('dps with step="likelihood"')

    def likelihood(self, x: Tensor, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        further = torch.is_grad_enabled()
        with torch.enable_grad():
            log_psi = self._log_psi(self.measurement.residual(x0), t)
            if not log_psi.requires_grad:
                raise ValueError(_DETACHED)
            (gradient,) = torch.autograd.grad(log_psi.sum(), x, create_graph=further, allow_unused=True)
        if gradient is None:
            raise ValueError(_DETACHED)
        return log_psi, gradient

    def _log_psi(self, residual: Tensor, t: Tensor) -> Tensor:
        if self.step == "likelihood":
            return self.scale * self.measurement.log_normal(residual)
        norm = root(dot(residual, residual))  # at r = 0 the norm has a kink: no shift
        weight = 2 * self.scale * PAPER_STEPS / (self.sde.T * self.sde.g(t) ** 2)
        return -checks.sent(weight, norm.device, norm.dtype) * norm


_DETACHED = (
    "dps needs a differentiable operator, but A(x̂_0) does not depend on x̂_0 for autograd: it is detached inside, "
    "rounds or compares, or leaves torch. Write it with differentiable operations of torch; a linear one may instead "
    "be given with its adjoint, as FunctionOperator(forward, adjoint, event=...), to pigdm or moment_matching."
)
