"""Guidance: functions that turn a Score into a Score, so they compose with each other and with every solver.

    classifier(score, classifier_model, scale=2.0, label=3)
    classifier_free(model, {"label": y}, scale=3.0, interval=(0.2, 3.0))
    projected(model, {"label": y}, scale=7.0)
    clip(model, 1.0), threshold(model, quantile=0.995)
    compose(model, [(2.0, {"label": 3}), (-1.0, {"caption": dull})])
    autoguidance(model.bind(label=y), weak.bind(label=y), scale=2.0)

A guidance of your own is a frozen dataclass that derives from :class:`LinearGuidance` (a weighted sum of scores),
:class:`TwistedGuidance` (a score and a known ψ_t), or :class:`NonlinearGuidance`. Calibration of a classifier, scales
in other conventions, and CFG++ as a schedule are here, too. Sums stand in :mod:`~scoresde.guidance.sums`, what is no
sum in :mod:`~scoresde.guidance.nonlinear`, clipping of the prediction in :mod:`~scoresde.guidance.clipping`.
"""

from scoresde.guidance import clipping, nonlinear, parts, sums
from scoresde.guidance.calibration import Calibration, calibration
from scoresde.guidance.classifier import classifier
from scoresde.guidance.classifier_free import classifier_free
from scoresde.guidance.clipping import *
from scoresde.guidance.conventions import from_scale, to_scale
from scoresde.guidance.nonlinear import *
from scoresde.guidance.parts import *
from scoresde.guidance.plus_plus import PlusPlus, cfg_plus_plus
from scoresde.guidance.sums import *

__all__ = [
    "Calibration",
    "PlusPlus",
    "calibration",
    "cfg_plus_plus",
    "classifier",
    "classifier_free",
    "from_scale",
    "to_scale",
]
__all__ += clipping.__all__ + nonlinear.__all__ + parts.__all__ + sums.__all__
