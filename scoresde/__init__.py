"""Score-based diffusion in continuous time: any SDE, any solver, any guidance, checked against exact answers."""

from scoresde import grids, losses, metrics, problems, times
from scoresde.guidance import NoisyClassifier, classifier, classifier_free
from scoresde.likelihood import bits_per_dim, decode, encode, log_prob
from scoresde.losses import dsm_loss
from scoresde.noise import BrownianNoise, IndependentNoise, Noise, PerSampleNoise
from scoresde.problems import Empirical, Gaussian, GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sampling import sample
from scoresde.score import Score, ScoreModel
from scoresde.sde import (
    EDM,
    SDE,
    VE,
    VP,
    Chain,
    ChainSDE,
    Cosine,
    LinearSDE,
    RectifiedFlow,
    ScheduleSDE,
    SubVP,
    prior_mismatch,
    suggest_sigma_max,
)
from scoresde.solvers import (
    DDIM,
    Ancestral,
    AnnealedLangevin,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    Progress,
    ReverseDiffusion,
    Solution,
    Solver,
    TorchSDE,
)

__version__ = "0.1.0"

__all__ = [
    "DDIM",
    "EDM",
    "SDE",
    "VE",
    "VP",
    "Ancestral",
    "AnnealedLangevin",
    "BrownianNoise",
    "Chain",
    "ChainSDE",
    "Cosine",
    "Empirical",
    "EulerMaruyama",
    "Gaussian",
    "GaussianMixture",
    "Heun",
    "IndependentNoise",
    "Langevin",
    "LinearSDE",
    "Noise",
    "NoisyClassifier",
    "PerSampleNoise",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Progress",
    "RectifiedFlow",
    "Reverse",
    "ReverseDiffusion",
    "ScheduleSDE",
    "Score",
    "ScoreModel",
    "Solution",
    "Solver",
    "SubVP",
    "TorchSDE",
    "bits_per_dim",
    "classifier",
    "classifier_free",
    "decode",
    "dsm_loss",
    "encode",
    "grids",
    "log_prob",
    "losses",
    "metrics",
    "prior_mismatch",
    "problems",
    "sample",
    "suggest_sigma_max",
    "times",
]
