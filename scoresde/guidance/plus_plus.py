"""CFG++ as a schedule of classifier-free guidance.

    grid = grids.karras(sde, 25)
    score = classifier_free(model, {"label": y}, cfg_plus_plus(sde, grid, 0.6))
    sample(score, shape, solver=DDIM(eta=0.0), grid=grid)

With another solver or another grid it is a schedule of scales like any other, not the paper's step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.guidance.parts import finite_scale
from scoresde.sde import SDE


def cfg_plus_plus(sde: SDE, grid: Tensor | Callable[[SDE, int], Tensor], strength: float) -> PlusPlus:
    r"""The scales by which classifier-free guidance under DDIM is CFG++ (Chung et al. 2024, arXiv:2406.08070)::

        x_s = α_s x̂_0^λ + σ_s ε̂(∅),      x̂_0^λ = x̂_0(∅) + λ (x̂_0(y) - x̂_0(∅))

    With σ̃ = σ/α, the step is x̃_s = x̃_t - (σ̃_t - σ̃_s) ε̂(∅) - λ σ̃_t (ε̂(y) - ε̂(∅)), which is the DDIM
    step under guidance of scale::

        ω(t) = λ σ̃_t / (σ̃_t - σ̃_s),

    constant in time on a grid whose σ̃ is geometric, and λ for the last step to σ̃ = 0 (or the denoising that ends the
    run). Give it to :func:`classifier_free` as ``scale`` and sample with ``DDIM(eta=0.0)`` on the same grid. Other
    solvers may use it too, but then it is not the paper's step.

    Args:
        sde: the SDE.
        grid: (n + 1,) decreasing times, those of the sampling.
        strength: λ, from 0 (unconditional) to 1 in the paper.

    Returns:
        a function of t, () or (B,), constant from each time of the grid down to the next.

    Raises:
        TypeError: not an SDE, or a rule in place of a grid.
        ValueError: a bad grid, or a strength that is not finite.
    """
    if not isinstance(sde, SDE):
        raise TypeError(f"sde must be an SDE, got {checks.got(sde)}; call cfg_plus_plus(sde, grid, strength).")
    if callable(grid):
        raise TypeError(
            f"grid must be times, not a rule for them: call it first, e.g. grids.karras(sde, steps); got "
            f"{checks.got(grid)}."
        )
    strength = finite_scale(strength, name="strength")
    times = checks.grid(grid, sde.t_max)
    log_snr = sde.log_snr(times)
    # 1 - σ̃_s/σ̃_t, without cancellation on fine grids
    shrink = -torch.expm1(0.5 * (log_snr[:-1] - log_snr[1:]))
    return PlusPlus(times, torch.cat([strength / shrink, shrink.new_full((1,), strength)]), sde.t_max)


@dataclass(frozen=True, eq=False)
class PlusPlus:
    """A schedule made by :func:`cfg_plus_plus`: the times (n + 1,) and the scale (n + 1,) that holds from each down."""

    times: Tensor
    scales: Tensor
    upper: float = math.inf

    def __call__(self, t: Tensor) -> Tensor:
        """The scale at t, () or (B,), float64; above the first time that of the first step."""
        time = checks.time(t, self.upper, what="the SDE of this schedule")
        rising = self.times.detach().flip(0).to(time.device)
        room = checks.rounding(t) * rising[-1]
        # how many times of the grid lie at or above t
        above = len(rising) - torch.searchsorted(rising, time.detach() - room)
        return self.scales.to(time.device)[(above - 1).clamp_min(0)]
