"""SDEs: one abstraction, its members, and members from a user's own functions."""

from scoresde.sde.base import SDE, Time, spread
from scoresde.sde.chain import Chain
from scoresde.sde.custom import ChainSDE, LinearSDE, ScheduleSDE
from scoresde.sde.members import EDM, VE, VP, Cosine, RectifiedFlow, SubVP
from scoresde.sde.prior import PriorMismatch, prior_mismatch, suggest_sigma_max

__all__ = [
    "EDM",
    "SDE",
    "VE",
    "VP",
    "Chain",
    "ChainSDE",
    "Cosine",
    "LinearSDE",
    "PriorMismatch",
    "RectifiedFlow",
    "ScheduleSDE",
    "SubVP",
    "Time",
    "prior_mismatch",
    "spread",
    "suggest_sigma_max",
]
