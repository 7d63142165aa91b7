"""Pseudo-inverse guidance: a Gaussian around the denoised sample, of one variance everywhere."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scoresde import checks
from scoresde.guidance import TwistedGuidance
from scoresde.inverse.likelihood_score import LikelihoodScore, pulled
from scoresde.inverse.measurement import Measurement
from scoresde.score import Score
from scoresde.sde import SDE


def pigdm(score: Score, sde: SDE, measurement: Measurement, *, sigma_data: float = 1.0) -> TwistedGuidance:
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
        sde: the SDE of both.
        measurement: with a LinearOperator. σ_y = 0 is allowed while σ(t) > 0: y is then kept exactly as t → 0, and the
            score grows like 1/σ² as it does for any measurement without noise.
        sigma_data: σ_d, the standard deviation of the data.

    Raises:
        TypeError: the measurement's operator is only a function.
        ValueError: sigma_data is not positive.
    """
    return PiGDM(score, sde, measurement, sigma_data)


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
        spread_out = (sigma * self.sigma_data) ** 2 / ((alpha * self.sigma_data) ** 2 + sigma**2)
        residual = self.measurement.residual(x0)
        whitened = operator.solve(residual, spread_out, self.measurement.noise_std**2)
        log_psi = -0.5 * (residual * whitened).sum(tuple(range(1, residual.ndim)))
        return log_psi, pulled(x0, x, operator.adjoint(whitened))
