"""Inverse problems: measurements, scores of their posteriors, and solvers that keep to them.

    measurement = Measurement(y, Mask(known), noise_std=0.1)
    sample(moment_matching(score, measurement), shape, steps=50)              # Score -> Score, for every solver
    sample(score, shape, solver=RePaint(measurement), steps=50)               # a solver around a solver

Operators are in :mod:`~scoresde.inverse.operators_members`; one of your own derives from :class:`LinearOperator`, a
score from :class:`LikelihoodScore`, a solver from :class:`MeasuredSolver`. Each method states its bias; particles over
a score (:func:`scoresde.particles.twisted`) have none as they grow in number.
"""

from scoresde.inverse import operators_members
from scoresde.inverse.diffpir import DiffPIR
from scoresde.inverse.dps import dps
from scoresde.inverse.likelihood_score import LikelihoodScore
from scoresde.inverse.measured_solver import MeasuredSolver
from scoresde.inverse.measurement import Measurement
from scoresde.inverse.moment_matching import moment_matching
from scoresde.inverse.operators import LinearOperator
from scoresde.inverse.operators_function import FunctionOperator, PhaseRetrieval
from scoresde.inverse.operators_members import *
from scoresde.inverse.pigdm import pigdm
from scoresde.inverse.repaint import RePaint
from scoresde.inverse.replacement import Replacement

__all__ = [
    "DiffPIR",
    "FunctionOperator",
    "LikelihoodScore",
    "LinearOperator",
    "MeasuredSolver",
    "Measurement",
    "PhaseRetrieval",
    "RePaint",
    "Replacement",
    "dps",
    "moment_matching",
    "pigdm",
]
__all__ += operators_members.__all__
