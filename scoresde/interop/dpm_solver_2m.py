"""DPM-Solver++ (2M) by the formulas of its paper, as other libraries have it::

    sample(score, shape, solver=DPMSolver2M(), grid=grid)

:class:`~scoresde.solvers.DPMSolverPP` is the better one: it integrates its polynomial exactly and starts with its own
order. This one is for results equal to those of others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from scoresde import checks
from scoresde.models.combination import Coefficient, as_number, combine
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.solvers import Planned


@dataclass(frozen=True)
class DPMSolver2M(Planned):
    r"""x̂_0 extrapolated through its last two values, with h = ½ log-SNR, Δ = h_s - h_t, Δ' the step before::

        x_s = (σ_s/σ_t) e^{-η²Δ} x_t + α_s (1 - e^{-κΔ}) D + σ_s sqrt(1 - e^{-2η²Δ}) z,     κ = 1 + η²
        D = x̂_0 + w (x̂_0 - x̂_0')     with w = Δ/(2Δ') ("midpoint"), or as the integral of the line asks ("heun")

    Lu et al. 2022 (arXiv:2211.01095), Alg. 2 and section 5; the first step is DDIM's. "midpoint" replaces the integral
    of the line by its value in the middle.

    Args:
        solver_type: "midpoint" or "heun", as diffusers calls them.
        last_first_order: the last step is DDIM's, too, as diffusers does with fewer than 15 steps.
    """

    solver_type: Literal["midpoint", "heun"] = "midpoint"
    last_first_order: bool = False

    order: ClassVar[int | None] = 2
    weak_order: ClassVar[float | None] = 2.0
    strong_order: ClassVar[float | None] = 1.0
    default_eta: ClassVar[float] = 0.0
    has_memory: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of(self.solver_type, ("midpoint", "heun"), name="solver_type")

    def plan(self, process: Reverse, grid: Tensor) -> Sequence[tuple[Coefficient, ...]]:
        """Coefficients of x_t, x̂_0, the x̂_0 before, and z for each step."""
        sde, square = process.sde, process.eta**2
        alpha, sigma, h = sde.alpha(grid), sde.sigma(grid), 0.5 * sde.log_snr(grid)
        length, kappa = h.diff(), 1 + square
        linear = sigma[1:] / sigma[:-1] * torch.exp(-square * length)
        total = -alpha[1:] * torch.expm1(-kappa * length)
        fresh = sigma[1:] * torch.sqrt(-torch.expm1(-2 * square * length))
        share = 0.5 * total
        if self.solver_type == "heun":  # α_s ∫ κ e^{-κ(h_s - u)} (u - h_t)/Δ du
            share = alpha[1:] * (1 + torch.expm1(-kappa * length) / (kappa * length))
        before = torch.cat([length[:1], length[:-1]])
        extra = share * length / before
        first = torch.zeros(len(length), dtype=torch.bool)
        first[0] = True
        first[-1] |= self.last_first_order
        # at σ = 0 the step is infinite in h, and goes to x̂_0
        extra = torch.where(first | ~length.isfinite(), torch.zeros_like(extra), extra)
        if sigma[-1] == 0:
            linear, total, fresh = (
                torch.cat([value[:-1], end.reshape(1)])
                for value, end in ((linear, 0 * sigma[-1]), (total, alpha[-1]), (fresh, 0 * sigma[-1]))
            )
        columns = (linear, total + extra, -extra, fresh)
        return [tuple(map(as_number, row)) for row in zip(*(column.unbind() for column in columns), strict=True)]

    def advance(
        self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, row: Any, memory: Any
    ) -> tuple[Tensor, Any]:
        """One evaluation."""
        linear, newest, before, fresh = row
        x0 = process.score.denoise(x, t)
        terms = [(linear, x), (newest, x0)]
        if memory is not None:
            terms.append((before, memory[0]))
        if self.draws_noise(process):
            terms.append((fresh, noise.between(x, t, s)))
        return combine(*terms), (x0,)
