"""Score-based diffusion in continuous time: any SDE, any solver, any guidance, checked against exact answers.

The names below are the ones that most programs need::

    import scoresde as ss

    sde = ss.VP()
    model = ss.ScoreModel(net, sde, predicts="edm")              # train it on ss.dsm_loss, or by scoresde.train
    solution = ss.sample(model.bind(label=3), (16, 1, 8, 8))     # any Score: a model, a guidance, an exact one

All else lives in submodules, each loaded when it is first used: ``ss.solvers``, ``ss.grids``, ``ss.guidance``,
``ss.inverse``, ``ss.particles``, ``ss.editing``, ``ss.fitting``, ``ss.certify``, ``ss.nn``, ``ss.train``, ``ss.data``,
``ss.interop`` and more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scoresde import (
        certify,
        cli,
        curve,
        data,
        editing,
        fitting,
        grids,
        guidance,
        hub,
        interop,
        inverse,
        likelihood,
        losses,
        metrics,
        models,
        nn,
        noise,
        particles,
        problems,
        reverse,
        sampling,
        sde,
        solvers,
        spectrum,
        times,
        train,
    )
    from scoresde.guidance.classifier import classifier
    from scoresde.guidance.classifier_free import classifier_free
    from scoresde.hub import pretrained
    from scoresde.likelihood import bits_per_dim, log_prob
    from scoresde.losses import dsm_loss
    from scoresde.models import ClassifierModel, Score, ScoreModel, as_score
    from scoresde.noise import BrownianNoise, IndependentNoise, Noise, PerSampleNoise
    from scoresde.problems import Empirical, Gaussian, GaussianMixture
    from scoresde.reverse import Reverse
    from scoresde.sampling import sample
    from scoresde.sde import EDM, SDE, VE, VP, ChainSDE, Cosine, LinearSDE, RectifiedFlow, ScheduleSDE, SubVP
    from scoresde.solvers import DDIM, EulerMaruyama, Heun, PredictorCorrector, Solution, Solver, SpectralMultistep
    from scoresde.spectrum import Spectrum

__version__ = "0.1.0"

_HOME: dict[str, tuple[str, ...]] = {
    "guidance": ("classifier", "classifier_free"),
    "hub": ("pretrained",),
    "likelihood": ("bits_per_dim", "log_prob"),
    "losses": ("dsm_loss",),
    "models": ("ClassifierModel", "Score", "ScoreModel", "as_score"),
    "noise": ("BrownianNoise", "IndependentNoise", "Noise", "PerSampleNoise"),
    "problems": ("Empirical", "Gaussian", "GaussianMixture"),
    "reverse": ("Reverse",),
    "sampling": ("sample",),
    "sde": (
        "ChainSDE",
        "Cosine",
        "EDM",
        "LinearSDE",
        "RectifiedFlow",
        "SDE",
        "ScheduleSDE",
        "SubVP",
        "VE",
        "VP",
    ),
    "solvers": ("DDIM", "EulerMaruyama", "Heun", "PredictorCorrector", "Solution", "Solver", "SpectralMultistep"),
    "spectrum": ("Spectrum",),
}
"""Where each name of the root comes from."""

__all__ = [
    "DDIM",
    "EDM",
    "SDE",
    "VE",
    "VP",
    "BrownianNoise",
    "ChainSDE",
    "ClassifierModel",
    "Cosine",
    "Empirical",
    "EulerMaruyama",
    "Gaussian",
    "GaussianMixture",
    "Heun",
    "IndependentNoise",
    "LinearSDE",
    "Noise",
    "PerSampleNoise",
    "PredictorCorrector",
    "RectifiedFlow",
    "Reverse",
    "ScheduleSDE",
    "Score",
    "ScoreModel",
    "Solution",
    "Solver",
    "SpectralMultistep",
    "Spectrum",
    "SubVP",
    "as_score",
    "bits_per_dim",
    "certify",
    "classifier",
    "classifier_free",
    "cli",
    "curve",
    "data",
    "dsm_loss",
    "editing",
    "fitting",
    "grids",
    "guidance",
    "hub",
    "interop",
    "inverse",
    "likelihood",
    "log_prob",
    "losses",
    "metrics",
    "models",
    "nn",
    "noise",
    "particles",
    "pretrained",
    "problems",
    "reverse",
    "sample",
    "sampling",
    "sde",
    "solvers",
    "spectrum",
    "times",
    "train",
]

_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
_SUBMODULES = frozenset(__all__).difference(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"scoresde.{name}")
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f"scoresde.{_MODULE_OF[name]}"), name)
        globals()[name] = value  # the next look-up finds it at once
        return value
    raise AttributeError(
        f"module 'scoresde' has no attribute {name!r}; see dir(scoresde). Most classes are in a submodule: "
        "solvers in scoresde.solvers, operators in scoresde.inverse, edits in scoresde.editing."
    )


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
