"""Guidance: functions that turn a Score into a Score, so they compose with each other and with every solver."""

from scoresde.guidance.auto import autoguidance
from scoresde.guidance.calibration import Calibration, calibration
from scoresde.guidance.classifier import classifier
from scoresde.guidance.classifier_free import classifier_free
from scoresde.guidance.classifier_model import ClassifierModel
from scoresde.guidance.compose import compose
from scoresde.guidance.conventions import from_scale, to_scale
from scoresde.guidance.nonlinear import NonlinearGuidance
from scoresde.guidance.parts import LinearGuidance, Part, Twist, TwistedGuidance
from scoresde.guidance.plus_plus import PlusPlus, cfg_plus_plus
from scoresde.guidance.projected import projected

__all__ = [
    "Calibration",
    "ClassifierModel",
    "LinearGuidance",
    "NonlinearGuidance",
    "Part",
    "PlusPlus",
    "Twist",
    "TwistedGuidance",
    "autoguidance",
    "calibration",
    "cfg_plus_plus",
    "classifier",
    "classifier_free",
    "compose",
    "from_scale",
    "projected",
    "to_scale",
]
