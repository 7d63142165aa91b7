"""Moves that keep p_t ψ_t and part what resampling has copied."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.guidance import Twist
from scoresde.noise import Noise

BEST = 0.574
"""The most efficient share of accepted proposals for many dimensions (Roberts & Rosenthal 1998)."""

LONGEST = 0.5
"""The greatest ℓ. In few dimensions acceptance allows longer steps, along which the line integral is no longer good."""


class LangevinMoves:
    r"""Metropolis-adjusted Langevin moves with stationary law p_t ψ_t, whose score is s + ∇ log ψ_t::

        y = x + τ (s + ∇ log ψ)(x) + sqrt(2τ) z        τ = ℓ σ²
        log ratio = ½ (y - x)·(s_x + s_y) + log ψ(y)/ψ(x) + log q(x|y)/q(y|x)

    MALA (Roberts & Tweedie 1996, doi:10.2307/3318418). log p_t(y)/p_t(x) is the trapezoidal line integral of the score:
    exact on every Gaussian, elsewhere off by O(|y - x|³). ψ_t and its gradient may be anything: they are evaluated.

    A density that has been convolved with N(0, σ² I) has no precision above 1/σ², so ℓ is a number that hardly depends
    on t. It begins at (2.53/D)^{1/3}, from which N(0, σ² I) in many dimensions D accepts 57 % of the proposals
    (Roberts & Rosenthal 1998, doi:10.1111/1467-9868.00123), and after each move log ℓ of each group grows by half of
    what its acceptance exceeded that (adaptation across the population: Fearnhead & Taylor 2013, arXiv:1005.1193).
    It is kept to 1/2 at most: beyond, the line integral's error was seen to shift weights of modes by up to 0.09.

    Args:
        groups: G; each has its own ℓ.
        dimension: D, numbers in a particle.
        device: that of the particles.
    """

    def __init__(self, groups: int, dimension: int, device: torch.device) -> None:
        start = min(LONGEST, (2.53 / max(1, dimension)) ** (1 / 3))
        self.length = torch.full((groups,), start, dtype=torch.float64, device=device)
        self.acceptance = torch.full((groups,), math.nan, dtype=torch.float64, device=device)

    def __call__(
        self, evaluate: Callable[[Tensor], Twist], x: Tensor, now: Twist, sigma: Tensor, noise: Noise
    ) -> tuple[Tensor, Twist]:
        """One move of every particle: one evaluation.

        Args:
            evaluate: x -> the twist there, at the time of the move.
            x: (G·N, *event).
            now: the twist at x.
            sigma: σ at that time.
            noise: one normal for each element, and one for each particle.
        """
        groups = len(self.length)
        each = (self.length * float(sigma) ** 2).repeat_interleave(len(x) // groups)
        step = each.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        pull = now.score + now.gradient
        proposal = x + step * pull + (2 * step).sqrt() * noise.normal(x)
        there = evaluate(proposal)
        ratio = self.log_ratio(x, now, proposal, there, each)
        # a uniform number below the ratio: Φ of one normal for each particle; NaN is never accepted
        accepted = torch.special.log_ndtr(noise.normal(ratio)) < ratio
        self.acceptance = accepted.double().reshape(groups, -1).mean(1)
        self.length = (self.length * (0.5 * (self.acceptance - BEST)).exp()).clamp_max(LONGEST)

        def chosen(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(accepted.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        return chosen(proposal, x), Twist(*(chosen(a, b) for a, b in zip(there, now, strict=True)))

    @staticmethod
    def log_ratio(x: Tensor, now: Twist, y: Tensor, there: Twist, step: Tensor) -> Tensor:
        """log of π(y) q(x|y) / (π(x) q(y|x)), (B,) float64, with π = p ψ and ``step`` τ (B,)."""
        d, here, ahead = y - x, now.score + now.gradient, there.score + there.gradient
        gain = 0.5 * dot(d, now.score + there.score) + there.log_psi.double() - now.log_psi.double()
        back = -0.5 * dot(d, here + ahead) + 0.25 * step * (dot(here, here) - dot(ahead, ahead))
        return gain + back


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ over the event, (B,) float64."""
    return (a.flatten(1) * b.flatten(1)).sum(1, dtype=torch.float64)
