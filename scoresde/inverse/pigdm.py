"""Pseudo-inverse guidance: a Gaussian around the denoised sample, of one variance everywhere.

    sample(pigdm(score, measurement, sigma_data=0.5), shape, steps=50)

One evaluation and one backward pass; right for data of one variance in all directions.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scoresde import checks
from scoresde.guidance import TwistedGuidance
from scoresde.inverse.likelihood_score import LikelihoodScore, vjp
from scoresde.inverse.measurement import Measurement
from scoresde.models.score import Score, check_score
from scoresde.solvers.metropolis import dot


def pigdm(score: Score, measurement: Measurement, *, sigma_data: float | None = None) -> TwistedGuidance:
    r"""ΠGDM (Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems", ICLR)::

        x_0 | x_t ≈ N(x̂_0, r² I),   r² = σ² σ_d² / (α² σ_d² + σ²)
        log ψ_t = log N(y; A x̂_0, r² A Aᵀ + σ_y² I) + const(t)
        gradient = (∂x̂_0/∂x)ᵀ Aᵀ (r² A Aᵀ + σ_y² I)⁻¹ (y - A x̂_0)

    r² is the variance of x_0 given x_t for data N(m, σ_d² I) with any m, and for those the score is exact. This is the
    paper's likelihood score; the weights that it multiplies it with inside DDIM steps are not part of it.

    log ψ_t leaves out the normalisation, which depends on t but not on x: it cancels wherever weights are normalised
    over particles at one time. The gradient is that of log ψ_t.

    Bias: directions in which x_0 given x_t varies less than r (or more) are trusted too little (too much). For a
    Gaussian prior of covariance C the exact gradient has A V Aᵀ with V = σ² C (α² C + σ² I)⁻¹ in place of r² A Aᵀ.

    Args:
        score: of the prior, differentiable in x; may itself be guided or bound.
        measurement: with a LinearOperator. σ_y = 0 is allowed while σ(t) > 0: y is then kept exactly as t → 0, and the
            score grows like 1/σ² as it does for any measurement without noise.
        sigma_data: σ_d, the standard deviation of the data; default the score's own, else 1.

    Raises:
        TypeError: no Score, or the measurement's operator is only a function.
        ValueError: sigma_data is not positive; when called, where α(t) = 0.
    """
    if sigma_data is None:
        sigma_data = check_score(score).sigma_data or 1.0
    return PiGDM(score, measurement, sigma_data)


@dataclass(frozen=True, eq=False)
class PiGDM(LikelihoodScore):
    """A Score made by :func:`pigdm`; its fields are that function's arguments."""

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self.sigma_data, name="sigma_data")
        self.measurement.need_linear("pigdm")

    def likelihood(self, x: Tensor, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        operator = self.measurement.need_linear("pigdm")
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        variance = (sigma * self.sigma_data) ** 2 / ((alpha * self.sigma_data) ** 2 + sigma**2)
        residual = self.measurement.residual(x0)
        whitened = operator.solve(residual, variance, self.measurement.noise_std**2)
        return -0.5 * dot(residual, whitened), vjp(x0, x, operator.adjoint(whitened))
