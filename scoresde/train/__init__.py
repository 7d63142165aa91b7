"""Training on Hugging Face Accelerate: the loop, averaged weights, checkpoints. Needs the extra ``train``."""

from scoresde.train.checkpoint import Description, describe, load_classifier, load_model, save
from scoresde.train.ema import EMA, ema_model
from scoresde.train.folder import CheckpointError
from scoresde.train.loop import Run
from scoresde.train.record import StepRecord
from scoresde.train.schedule import average_decay, learning_rate
from scoresde.train.start import train, train_classifier

__all__ = [
    "EMA",
    "CheckpointError",
    "Description",
    "Run",
    "StepRecord",
    "average_decay",
    "describe",
    "ema_model",
    "learning_rate",
    "load_classifier",
    "load_model",
    "save",
    "train",
    "train_classifier",
]
