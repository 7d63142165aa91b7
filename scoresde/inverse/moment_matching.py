"""Moment matching: a Gaussian around the denoised sample with the covariance that Tweedie's formula gives it.

    sample(moment_matching(score, measurement), shape, steps=50)                         # up to some hundred numbers
    sample(moment_matching(score, measurement, covariance="cg"), shape, steps=50)        # any number

Exact for Gaussian priors; a backward pass for each number measured, or for each iteration of conjugate gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.later import later
from scoresde.guidance import TwistedGuidance
from scoresde.inverse.conjugate_gradients import conjugate_gradients
from scoresde.inverse.likelihood_score import LikelihoodScore, vjp
from scoresde.inverse.measurement import Measurement
from scoresde.inverse.semidefinite import positive_part
from scoresde.models.score import Score
from scoresde.sde import spread
from scoresde.solvers.metropolis import dot


def moment_matching(
    score: Score,
    measurement: Measurement,
    *,
    covariance: Literal["exact", "cg"] = "exact",
    full_gradient: bool = False,
    chunk: int = 32,
    tolerance: float = 1e-4,
    iterations: int = 50,
) -> TwistedGuidance:
    r"""Moment matching (Boys et al. 2023, arXiv:2310.06721; Rozet et al. 2024, arXiv:2405.13712)::

        x_0 | x_t ≈ N(x̂_0, V),   V = (σ²/α) ∂x̂_0/∂x_t
        log ψ_t = log N(y; A x̂_0, A V Aᵀ + σ_y² I)
        gradient = (∂x̂_0/∂x)ᵀ Aᵀ (A V Aᵀ + σ_y² I)⁻¹ (y - A x̂_0)

    Mean and covariance of x_0 given x_t are exact (Tweedie's formula, of first and second order), so the score is exact
    for every Gaussian prior. Bias: other priors have a law of x_0 given x_t that is no Gaussian; and the gradient takes
    V as it stands, without ∂V/∂x_t, as both papers do.

    "exact" builds A V Aᵀ, (B, m, m), from m backward passes; "cg" solves with conjugate gradients, one backward pass
    each (Rozet et al.), for measurements of many numbers. V is symmetric and positive for an exact score; a
    network's is neither, so "exact" takes its symmetric part without its negative eigenvalues, and "cg" may stop short,
    with a warning.

    log ψ_t is normalised with "exact". "cg" leaves out -½ log det(A V Aᵀ + σ_y² I), which depends on x unless the prior
    is Gaussian: a valid twist for particles all the same, since they correct any.

    Args:
        score: of the prior, differentiable in x, twice for ``full_gradient``; may itself be guided or bound.
        measurement: with a LinearOperator, and σ_y > 0.
        covariance: "exact" or "cg".
        full_gradient: differentiate log ψ_t as a whole, ∂V/∂x_t included: the gradient is then that of the potential,
            which need not bring it nearer to the exact one. With "exact" only.
        chunk: for "exact", how many of the m backward passes run as one, through ``torch.vmap``; 1 for networks that
            it cannot take.
        tolerance: for "cg", the relative residual at which a sample stops.
        iterations: for "cg", how many at most.

    Raises:
        TypeError: no Score, or the measurement's operator is only a function.
        ValueError: σ_y = 0, full_gradient with "cg", or an option out of its range; when called, where α(t) = 0.
    """
    return MomentMatching(score, measurement, covariance, full_gradient, chunk, tolerance, iterations)


@dataclass(frozen=True, eq=False)
class MomentMatching(LikelihoodScore):
    """A Score made by :func:`moment_matching`; its fields are that function's arguments."""

    covariance: Literal["exact", "cg"] = "exact"
    full_gradient: bool = False
    chunk: int = 32
    tolerance: float = 1e-4
    iterations: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.count(self.chunk, name="chunk")
        checks.count(self.iterations, name="iterations")
        checks.positive(self.tolerance, name="tolerance")
        self.measurement.need_linear("moment_matching")
        self.measurement.need_noise("moment_matching")
        if self.full_gradient and self.covariance == "cg":
            raise ValueError('full_gradient needs the determinant of A V Aᵀ + σ_y² I: take covariance="exact".')

    def likelihood(self, x: Tensor, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        factor = self.sde.sigma(t) ** 2 / self.sde.alpha(t)
        if self.covariance == "cg":
            return self._iterated(x, x0, spread(factor, self.measurement.residual(x0)))
        if not self.full_gradient:
            return self._dense(x, x0, factor)
        further = torch.is_grad_enabled()
        with torch.enable_grad():
            log_psi = self._dense(x, x0, factor)[0]
            return log_psi, torch.autograd.grad(log_psi.sum(), x, create_graph=further)[0]

    def _iterated(self, x: Tensor, x0: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        operator, variance = self.measurement.need_linear("moment_matching"), self.measurement.noise_std**2
        residual = self.measurement.residual(x0)

        def system(u: Tensor) -> Tensor:
            return factor * operator.apply(vjp(x0, x, operator.transpose(u))) + variance * u

        remedy = (
            "A V Aᵀ + σ_y² I is ill-conditioned, or a network's V is far from symmetric: give moment_matching more "
            'iterations or a larger tolerance, a larger noise_std, or covariance="exact".'
        )
        whitened = conjugate_gradients(
            system, residual, tolerance=self.tolerance, iterations=self.iterations, remedy=remedy
        )
        return -0.5 * dot(residual, whitened), vjp(x0, x, operator.transpose(whitened))

    def _dense(self, x: Tensor, x0: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        operator, variance = self.measurement.need_linear("moment_matching"), self.measurement.noise_std**2
        batch, m = len(x), math.prod(operator.measured)
        residual = self.measurement.residual(x0).reshape(batch, m)
        rows = self._rows(x, x0)  # (m, B, *event): row i of A times V, without the factor
        images = operator.apply(rows.reshape(m * batch, *x.shape[1:])).reshape(m, batch, m).transpose(0, 1)
        # in float64, so that σ_y² is not lost beside A V Aᵀ
        wide = torch.float64
        images = spread(factor, images) * images
        total = covariance_of(images.to(wide)) + variance * torch.eye(m, dtype=wide, device=x.device)
        lower, failed = torch.linalg.cholesky_ex(total)
        later((failed != 0).any(), _refuse)
        lower = lower.masked_fill((failed != 0)[:, None, None], math.nan)  # half a factor looks like one
        whitened = torch.cholesky_solve(residual.to(wide)[..., None], lower)[..., 0]
        log_det = 2 * lower.diagonal(dim1=1, dim2=2).log().sum(1)
        log_psi = -0.5 * ((residual * whitened).sum(1) + log_det + m * math.log(2 * math.pi))
        return log_psi.to(x.dtype), torch.einsum("bm,mb...->b...", whitened.to(x.dtype), rows)

    def _rows(self, x: Tensor, x0: Tensor) -> Tensor:
        """(∂x̂_0/∂x)ᵀ Aᵀ e_i for each of the m unit vectors, (m, B, *event)."""
        operator = self.measurement.need_linear("moment_matching")
        m = math.prod(operator.measured)
        units = operator.transpose(torch.eye(m, dtype=x.dtype, device=x.device).reshape(m, *operator.measured))
        further, rows = torch.is_grad_enabled(), []
        for start in range(0, m, self.chunk):
            some = units[start : start + self.chunk, None].expand(-1, *x.shape)
            if self.chunk == 1:
                rows.append(vjp(x0, x, some[0])[None])
                continue
            rows += torch.autograd.grad(x0, x, some, retain_graph=True, create_graph=further, is_grads_batched=True)
        return torch.cat(rows)


def covariance_of(images: Tensor) -> Tensor:
    """The symmetric part of matrices (B, m, m), without its negative eigenvalues, which no covariance has.

    What is taken away counts as a constant: eigenvectors have no derivative where eigenvalues coincide.
    """
    return positive_part(0.5 * (images + images.mT))


def _refuse() -> None:
    raise torch.linalg.LinAlgError(  # type: ignore[attr-defined]
        "moment_matching could not factorise A V Aᵀ + σ_y² I, the covariance of the measurement: it holds NaN or "
        "infinite values, or its σ_y² is lost beside A V Aᵀ. Look at the score, or give a larger noise_std."
    )
