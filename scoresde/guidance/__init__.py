"""Guidance: functions that turn a Score into a Score, so they compose with each other and with every solver."""

from scoresde.guidance.classifier import classifier
from scoresde.guidance.classifier_free import classifier_free
from scoresde.guidance.classifier_model import ClassifierModel
from scoresde.guidance.parts import LinearGuidance, Part, Twist, TwistedGuidance

__all__ = ["ClassifierModel", "LinearGuidance", "Part", "Twist", "TwistedGuidance", "classifier", "classifier_free"]
