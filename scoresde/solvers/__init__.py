"""Solvers: one loop (base), one small file for each family of steps, torchdiffeq and torchsde as backends."""

from scoresde.solvers.adaptive_ode import AdaptiveODE
from scoresde.solvers.adaptive_sde import AdaptiveSDE
from scoresde.solvers.base import Progress, Solution, Solver, only_ode, only_sde
from scoresde.solvers.ddim import DDIM, Ancestral
from scoresde.solvers.euler import EulerMaruyama, ReverseDiffusion
from scoresde.solvers.exponential import DEIS, DPMSolverPP, Multistep, SASolver, UniPC
from scoresde.solvers.heun import Heun
from scoresde.solvers.langevin import AnnealedLangevin, Corrector, Langevin, PredictorCorrector
from scoresde.solvers.metropolis import AdjustedLangevin, Move
from scoresde.solvers.ode_backend import ProbabilityFlow
from scoresde.solvers.sde_backend import TorchSDE
from scoresde.solvers.singlestep import DPMSolver, ExponentialRungeKutta, RungeKutta
from scoresde.solvers.stochastic_rk import StochasticRungeKutta
from scoresde.solvers.velocity import VelocityMultistep

__all__ = [
    "DDIM",
    "DEIS",
    "AdaptiveODE",
    "AdaptiveSDE",
    "AdjustedLangevin",
    "Ancestral",
    "AnnealedLangevin",
    "Corrector",
    "DPMSolver",
    "DPMSolverPP",
    "EulerMaruyama",
    "ExponentialRungeKutta",
    "Heun",
    "Langevin",
    "Move",
    "Multistep",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Progress",
    "ReverseDiffusion",
    "RungeKutta",
    "SASolver",
    "Solution",
    "Solver",
    "StochasticRungeKutta",
    "TorchSDE",
    "UniPC",
    "VelocityMultistep",
    "only_ode",
    "only_sde",
]
