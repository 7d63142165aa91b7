"""SDEs: one abstraction, its members, and members from a user's own functions.

    VP(), SubVP(), VE(sigma_max=80.0), EDM(), Cosine(), RectifiedFlow()
    ScheduleSDE(alpha, sigma), LinearSDE(f, g), ChainSDE(chain)      # from functions, or the levels of DDPM or SMLD
    VE(sigma_max=suggest_sigma_max(x)), prior_mismatch(sde, x)       # choosing the end from data

:class:`SDE` says what every one of them can do. Where α is 0 to rounding, x_t says nothing of x_0: :func:`has_signal`.
"""

from scoresde.sde import members
from scoresde.sde.base import NO_SIGNAL, SDE, Time, has_signal, signal_at, signal_left, spread
from scoresde.sde.chain import Chain
from scoresde.sde.custom import ChainSDE, LinearSDE, ScheduleSDE
from scoresde.sde.members import *
from scoresde.sde.prior import PriorMismatch, prior_mismatch, suggest_sigma_max

__all__ = [
    "NO_SIGNAL",
    "SDE",
    "Chain",
    "ChainSDE",
    "LinearSDE",
    "PriorMismatch",
    "ScheduleSDE",
    "Time",
    "has_signal",
    "prior_mismatch",
    "signal_at",
    "signal_left",
    "spread",
    "suggest_sigma_max",
]
__all__ += members.__all__
