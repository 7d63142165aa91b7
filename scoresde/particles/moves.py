"""Langevin moves that leave p_t ψ_t as it is, and part what resampling has copied.

:class:`LangevinMoves` moves all particles once at a fixed time, accepts or rejects each by Metropolis, and adapts the
step of each group to its acceptance. :func:`~scoresde.particles.twisted` makes one and calls it ``moves`` times at each
time of the grid::

    moves = LangevinMoves(groups=1, dimension=x[0].numel(), device=x.device)
    x, now = moves(evaluate, x, now, alpha, sigma, noise)   # evaluate: x -> Twist; now: that of x
    moves.acceptance, moves.length                          # (G,) each

A :class:`~scoresde.guidance.Twist` holds x̂_0, log ψ_t and its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.guidance import Twist
from scoresde.models.combination import combine
from scoresde.noise import Noise
from scoresde.solvers.metropolis import accepts, dot, proposal_log_ratio

BEST = 0.574
"""The most efficient share of accepted proposals for many dimensions (Roberts & Rosenthal 1998)."""

LONGEST = 0.5
"""The greatest ℓ. In few dimensions acceptance allows longer steps, along which the line integral is no longer good."""


class LangevinMoves:
    r"""Metropolis-adjusted Langevin moves with stationary law p_t ψ_t, whose score is s + ∇ log ψ_t::

        y = x + τ (s + ∇ log ψ)(x) + sqrt(2τ) z = (1 - ℓ) x + ℓ α x̂_0 + τ ∇ log ψ + sqrt(2τ) z        τ = ℓ σ²
        log ratio = ½ (y - x)·(s_x + s_y) + log ψ(y)/ψ(x) + log q(x|y)/q(y|x)

    MALA (Roberts & Tweedie 1996, doi:10.2307/3318418). log p_t(y)/p_t(x) is the trapezoidal line integral of the score:
    exact on every Gaussian, elsewhere off by O(|y - x|³). ψ_t and its gradient may be anything: they are evaluated.

    A density that has been convolved with N(0, σ² I) has no precision above 1/σ², so ℓ is a number that hardly depends
    on t. It begins at (2.53/D)^{1/3}, from which N(0, σ² I) in many dimensions D accepts 57 % of the proposals
    (Roberts & Rosenthal 1998, doi:10.1111/1467-9868.00123), and after each move log ℓ of each group grows by half of
    what its acceptance exceeded that (adaptation across the population: Fearnhead & Taylor 2013, arXiv:1005.1193).
    It is 1/2 at most: beyond, the line integral's error was seen to shift weights of modes by up to 0.09.

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
        self, evaluate: Callable[[Tensor], Twist], x: Tensor, now: Twist, alpha: float, sigma: float, noise: Noise
    ) -> tuple[Tensor, Twist]:
        """One move of every particle: one evaluation.

        Args:
            evaluate: x -> the twist there, at the time of the move.
            x: (G·N, *event).
            now: the twist at x.
            alpha: α at that time.
            sigma: σ there.
            noise: one normal for each element, and one for each particle.
        """
        groups = len(self.length)
        length = self.length.repeat_interleave(len(x) // groups)
        size = length * sigma**2
        proposal = combine(
            (1 - length, x), (length * alpha, now.x0), (size, now.gradient), ((2 * size).sqrt(), noise.normal(x))
        )
        there = evaluate(proposal)
        accepted = accepts(noise, self.log_ratio(x, now, proposal, there, size, alpha, sigma))
        self.acceptance = accepted.double().reshape(groups, -1).mean(1)
        self.length = (self.length * (0.5 * (self.acceptance - BEST)).exp()).clamp_max(LONGEST)

        def chosen(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(accepted.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        return chosen(proposal, x), Twist(*(chosen(a, b) for a, b in zip(there, now, strict=True)))

    @staticmethod
    def log_ratio(x: Tensor, now: Twist, y: Tensor, there: Twist, size: Tensor, alpha: float, sigma: float) -> Tensor:
        """log of π(y) q(x|y) / (π(x) q(y|x)), (B,) float64, with π = p ψ and ``size`` τ (B,)."""
        d = y.double() - x.double()
        s_x, s_y = (
            combine((-1 / sigma**2, at.double()), (alpha / sigma**2, twist.x0.double()))
            for at, twist in ((x, now), (y, there))
        )
        gain = 0.5 * dot(d, s_x + s_y) + there.log_psi.double() - now.log_psi.double()
        return gain + proposal_log_ratio(d, size, s_x + now.gradient, s_y + there.gradient)
