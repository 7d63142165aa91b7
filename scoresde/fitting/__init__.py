"""Samplers fitted to one process: the optimisation behind :func:`scoresde.grids.fit`."""

from scoresde.fitting.gauss_newton import Iteration
from scoresde.fitting.procedure import fit

__all__ = ["Iteration", "fit"]
