"""Scores, models and conditions: what is asked for a score, and who answers.

- :class:`Score` knows its SDE and answers any linear combination a x + b ∇ log p_t(x); :func:`as_score` makes one of a
  function, :func:`score_of_denoiser` of a denoiser.
- :class:`ScoreModel` is a network, its SDE and what it predicts (:mod:`~scoresde.models.predictions`).
- :class:`ClassifierModel` is a noise-conditional classifier, :class:`ContrastiveModel` one whose classes are captions.
- :func:`captured` replays networks from CUDA graphs.
- :func:`evaluating` is evaluation mode for as long as samples are drawn.
- :mod:`~scoresde.models.conditions` is the one home of conditions.
"""

from scoresde.models.captured import captured
from scoresde.models.classifier import ClassifierModel
from scoresde.models.combination import Combination, Expectation, Linear
from scoresde.models.contrastive import ContrastiveModel, Similarity, ZeroShot
from scoresde.models.evaluation import evaluating
from scoresde.models.model import BoundScore, ScoreModel
from scoresde.models.modules import modules_of, parameters_of
from scoresde.models.predictions import PREDICTIONS, Affine, Prediction
from scoresde.models.score import DerivedScore, Score, Units, as_score, score_of_denoiser

__all__ = [
    "PREDICTIONS",
    "Affine",
    "BoundScore",
    "ClassifierModel",
    "Combination",
    "ContrastiveModel",
    "DerivedScore",
    "Expectation",
    "Linear",
    "Prediction",
    "Score",
    "ScoreModel",
    "Similarity",
    "Units",
    "ZeroShot",
    "as_score",
    "captured",
    "evaluating",
    "modules_of",
    "parameters_of",
    "score_of_denoiser",
]
