"""Solvers: numerical methods for the reverse process, all on one loop.

Each family has a page of its own; what a solver may say of itself, and how to write one, is in
:mod:`~scoresde.solvers.base`; what a run comes to in :mod:`~scoresde.solvers.solution`::

    solution = DPMSolverPP(order=2).solve(Reverse(score, eta=0.0), x_T, grids.karras(sde, 20))
    sample(score, shape, solver=PredictorCorrector(), steps=100)

:mod:`~scoresde.solvers.spectral` (the default), :mod:`~scoresde.solvers.multistep`, :mod:`~scoresde.solvers.one_step`,
:mod:`~scoresde.solvers.runge_kutta`, :mod:`~scoresde.solvers.adaptive`, :mod:`~scoresde.solvers.langevin`,
:mod:`~scoresde.solvers.metropolis`, :mod:`~scoresde.solvers.fitted`, torchdiffeq in
:mod:`~scoresde.solvers.ode_backend`, torchsde in :mod:`~scoresde.solvers.sde_backend`. Modules with a leading
underscore are the engines behind them.
"""

from scoresde.solvers import adaptive, langevin, metropolis, multistep, one_step, runge_kutta, spectral
from scoresde.solvers.adaptive import *
from scoresde.solvers.base import Solver, only_ode, only_sde
from scoresde.solvers.fitted import Fitted
from scoresde.solvers.incomplete import IncompleteWarning
from scoresde.solvers.langevin import *
from scoresde.solvers.metropolis import *
from scoresde.solvers.multistep import *
from scoresde.solvers.ode_backend import ProbabilityFlow
from scoresde.solvers.one_step import *
from scoresde.solvers.planned import Planned
from scoresde.solvers.runge_kutta import *
from scoresde.solvers.sde_backend import TorchSDE
from scoresde.solvers.solution import Ending, Progress, Solution
from scoresde.solvers.spectral import *
from scoresde.solvers.wrapping import Wrapping

__all__ = [
    "Ending",
    "Fitted",
    "IncompleteWarning",
    "Planned",
    "ProbabilityFlow",
    "Progress",
    "Solution",
    "Solver",
    "TorchSDE",
    "Wrapping",
    "only_ode",
    "only_sde",
]
__all__ += adaptive.__all__
__all__ += langevin.__all__
__all__ += metropolis.__all__
__all__ += multistep.__all__
__all__ += one_step.__all__
__all__ += runge_kutta.__all__
__all__ += spectral.__all__
