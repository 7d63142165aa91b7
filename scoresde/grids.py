"""Decreasing times for the solvers: (steps + 1,), float64, from T down to t_min.

    grid = grids.karras(sde, steps=20)
    sample(score, shape, grid=grids.uniform, steps=50)      # a rule, made for the score's SDE

Where α(T) = 0 every rule but :func:`uniform` steps as from σ/α = 1000 (T = 0.999 of rectified flow), its first time
still T; :func:`spectral` as from 1000 scales of the data, or 30 times the largest deviation.

:func:`by_loss` goes by the held-out loss that training measured, ``model.loss_curve``; :func:`adapted` finds such a
rule for one score, by a few runs::

    times = grids.adapted(model.bind(label=y), (8, 3, 32, 32), cache="adapted.json")
    sample(score, shape, grid=times, steps=12)
"""

from scoresde.fitting.adaptation import adapted
from scoresde.rules import Rule, by_density, by_loss, karras, log_snr, spectral, uniform
from scoresde.solvers.adapted import Adapted, AdaptedReport

__all__ = [
    "Adapted",
    "AdaptedReport",
    "Rule",
    "adapted",
    "by_density",
    "by_loss",
    "karras",
    "log_snr",
    "spectral",
    "uniform",
]
