"""Densities from which training times are drawn: functions of uniforms, so that randomness stays an argument::

    t, weight = LogNormalSigma(mean=-1.2, std=1.2).sample(sde, torch.rand(batch))
    loss = (weight * dsm_loss(model, x0, t, eps)).mean()

:class:`Stratified` spreads a batch over all times; :class:`LevelTime` draws the levels of a discrete chain;
:class:`AdaptiveTimes` learns where the loss is.
"""

from scoresde.times.adaptive import AdaptiveTimes
from scoresde.times.densities import (
    LevelTime,
    LogitNormalTime,
    LogNormalSigma,
    LogSNRTime,
    Stratified,
    TimeDensity,
    Times,
    UniformTime,
)

__all__ = [
    "AdaptiveTimes",
    "LevelTime",
    "LogNormalSigma",
    "LogSNRTime",
    "LogitNormalTime",
    "Stratified",
    "TimeDensity",
    "Times",
    "UniformTime",
]
