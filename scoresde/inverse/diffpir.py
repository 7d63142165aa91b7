"""DiffPIR: the predicted x_0 is moved towards the measurement in closed form, then noised again.

    sample(score, shape, solver=DiffPIR(measurement, regularisation=2.0), steps=100)

One evaluation a step and no backward passes; an optimiser, whose spread is not the posterior's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from scoresde import checks
from scoresde.inverse.measured_solver import MeasuredSolver
from scoresde.models.combination import combine
from scoresde.noise import Noise
from scoresde.reverse import Reverse


@dataclass(frozen=True)
class DiffPIR(MeasuredSolver):
    r"""Plug-and-play restoration by DDIM-like steps (Zhu et al. 2023, arXiv:2305.08995, Alg. 1), one evaluation each::

        x̂_0  = E[x_0 | x_t]
        x̂_0' = argmin_x |y - A x|²/(2 σ_y²) + λ α_t²/(2 σ_t²) |x - x̂_0|²
             = x̂_0 + Aᵀ (A Aᵀ + λ σ_y² α_t²/σ_t² I)⁻¹ (y - A x̂_0)
        x_s  = α_s x̂_0' + σ_s (sqrt(1 - ζ) ε̂' + sqrt(ζ) z),        ε̂' = (x_t - α_t x̂_0')/σ_t

    With ``denoise`` the end is x̂_0' at the last time. η of the process plays no part; ζ does.

    **Known bias.** It is an optimiser with noise: x_0 given x_t is taken to have the covariance σ_t²/(λ α_t²) I, wider
    than the prior itself while there is much noise, and the noise ζ puts back is not that of the reverse SDE. The
    spread of its samples is therefore not the posterior's.

    Args:
        measurement: y, a linear A and σ_y; at σ_y = 0 the measured part of x̂_0' is y.
        regularisation: λ > 0, weight of the prior, tuned by hand.
        zeta: ζ in [0, 1], the share of new noise; 0 draws none.

    Raises:
        TypeError: no measurement, an A without adjoint.
        ValueError: λ not positive, ζ outside [0, 1].
    """

    regularisation: float = 2.0
    zeta: float = 1.0
    default_eta: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        checks.fraction(self.zeta, name="zeta, the share of new noise,")
        super().__post_init__()
        checks.positive(self.regularisation, name="regularisation")

    def draws_noise(self, process: Reverse) -> bool:
        """Whether ζ > 0."""
        return checks.number(self.zeta) > 0

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """One evaluation."""
        sde = process.sde
        of_x = math.sqrt(1 - self.zeta) * sde.sigma(s) / sde.sigma(t)
        terms = [(of_x, x), (sde.alpha(s) - of_x * sde.alpha(t), self.denoised(process, x, t))]
        if self.draws_noise(process):
            terms.append((math.sqrt(self.zeta) * sde.sigma(s), noise.between(x, t, s)))
        return combine(*terms), state

    def denoised(self, process: Reverse, x: Tensor, t: Tensor) -> Tensor:
        """x̂_0', from one evaluation."""
        x0 = process.score.denoise(x, t)
        signal = process.sde.alpha(t) / process.sde.sigma(t)  # 0 at zero terminal SNR, where x̂_0' meets y
        weight = self.regularisation * (self.measurement.noise_std * signal) ** 2
        return x0 + self.operator.adjoint(self.operator.solve(self.measurement_of(x) - self.operator(x0), 1.0, weight))
