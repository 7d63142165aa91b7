"""Bad calls of training: options, runs, averages, checkpoints."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bad_calls import (
    COUNT,
    COUNT_FROM_0,
    FLAG,
    FUNCTION,
    LITERAL,
    MAPPING,
    NOT_NEGATIVE,
    NUMBER,
    PATH,
    POSITIVE,
    SCORE,
    SEED,
    Call,
    Kind,
)

from scoresde import VP, ClassifierModel, ScoreModel, nn
from scoresde.curve import LossCurve, curve_in_words
from scoresde.data import Dataset, from_tensors
from scoresde.times import UniformTime
from scoresde.train import (
    EMA,
    EarlyStopping,
    TrainOptions,
    average_decay,
    describe,
    ema_model,
    learning_rate,
    load_classifier,
    load_model,
    sample_sharded,
    save,
    train,
    train_classifier,
)

_KEPT = tempfile.TemporaryDirectory(prefix="scoresde-bad-calls-")  # goes with the process
FOLDER = Path(_KEPT.name)
X, Y = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75], [0.0, 1.0, -0.5]]), torch.tensor([0, 1, 1])


def model() -> ScoreModel:
    torch.manual_seed(0)
    return ScoreModel(nn.MLP(3, 4, 1, num_classes=2), VP())


def classifier() -> ClassifierModel:
    torch.manual_seed(0)
    return ClassifierModel(nn.MLP(3, 4, 1, out_dim=2), VP())


SCORED = model().bind(label=1)


def dataset() -> Dataset:
    return from_tensors(X, Y)


save(FOLDER / "score", model(), step=1, ema=EMA(model()), dataset=dataset())
save(FOLDER / "classifier", classifier(), step=1, ema=EMA(classifier()), dataset=dataset())

RATE = NUMBER.but(negative=lambda right: -0.1, one=lambda right: 1.0)
LISTED = Kind(
    {
        "None": lambda right: None,
        "a number": lambda right: 0.5,
        "a text": lambda right: "ab",
        "texts": lambda right: ("a", "b"),
        "None inside": lambda right: (None, 1.0),
        "nan": lambda right: (float("nan"), 1.0),
        "inf": lambda right: (1.0, float("inf")),
    },
    {"a list": list},
)
LEVEL = Kind(
    {
        "None": lambda right: None,
        "a text": lambda right: "ab",
        "True": lambda right: True,
        "complex": lambda right: right + 1j,
        "an object": lambda right: object(),
    },
    {"a list": lambda right: right.tolist(), "float64": lambda right: right.double()},
)
SHARE = POSITIVE.but(one=lambda right: 1.0)
BETAS = Kind(
    {
        "None": lambda right: None,
        "a number": lambda right: 0.9,
        "a text": lambda right: "ab",
        "one": lambda right: (0.9,),
        "three": lambda right: (0.9, 0.9, 0.9),
        "texts": lambda right: ("0.9", "0.9"),
        "None inside": lambda right: (0.9, None),
        "True": lambda right: (True, 0.5),
        "nan": lambda right: (0.9, float("nan")),
        "above": lambda right: (0.9, 1.0),
        "negative": lambda right: (-0.1, 0.5),
        "a dict": lambda right: {0.9: 0.5},
        "a set": lambda right: {0.9, 0.5},
    },
    {"a list": list},
)
WEIGHTING = FUNCTION.but(another_text=lambda right: "nonsense", a_list=lambda right: ["edm"])
DROPOUT = NUMBER.but(
    "None",
    "a dict",
    negative=lambda right: -0.1,
    one=lambda right: 1.0,
    text=lambda right: {"label": "x"},
    above=lambda right: {"label": 1.5},
    nan_by_name=lambda right: {"label": float("nan")},
)
NAMES = Kind(
    {
        "a text": lambda right: "label",
        "a number": lambda right: 3,
        "numbers": lambda right: [3],
        "None inside": lambda right: [None],
        "an object": lambda right: object(),
        "a tensor": lambda right: torch.ones(2),
        "bytes": lambda right: b"label",
    },
    {"a tuple": tuple},
)
SECONDS = POSITIVE.but("None")
CHOICE = FLAG.but("None")  # None leaves it to what there is
OPTIONS: dict[str, Kind] = {
    "lr": POSITIVE,
    "betas": BETAS,
    "weight_decay": NOT_NEGATIVE,
    "warmup": COUNT_FROM_0,
    "clip": POSITIVE.but("None"),
    "ema": RATE,
    "weighting": WEIGHTING,
    "times": FUNCTION.but(a_class=lambda right: UniformTime),
    "condition_dropout": DROPOUT,
    "conditions": NAMES,
    "save_every": COUNT.but("None"),
    "max_seconds": SECONDS,
    "num_workers": COUNT_FROM_0,
    "folder": PATH,
    "mixed_precision": LITERAL.but("None"),
    "sharding": LITERAL.but("None"),
    "seed": SEED.but("negative"),
    "batch_size": COUNT,
}
DATA = MAPPING.but(none=lambda right: None, a_dict=lambda right: {"x": X}, a_class=lambda right: Dataset)


def options() -> Iterator[Call]:
    """All that can be said of a run, each option on its own: most go together with few others."""
    right: dict[str, Any] = {
        "steps": 3,
        "batch_size": 2,
        "lr": 0.5,
        "betas": (0.5, 0.75),
        "weight_decay": 0.5,
        "warmup": 2,
        "decay": "cosine",
        "clip": 1.0,
        "ema": 0.5,
        "ema_warmup": True,
        "weighting": "edm",
        "times": UniformTime(),
        "condition_dropout": 0.5,
        "conditions": ["label"],
        "flip": False,
        "dequantize": False,
        "seed": 3,
        "keep": 2,
        "log_every": 5,
        "max_seconds": 5.0,
        "mixed_precision": "no",
        "sharding": "no",
        "accumulate": 1,
        "num_workers": 0,
        "cpu": True,
        "progress": False,
    }
    yield Call(TrainOptions, lambda: dict(right), kinds=OPTIONS, answer=lambda made: made.recorded("score"))
    folder = {"steps": 3, "batch_size": 2, "folder": FOLDER / "run", "resume": False, "save_every": 2}
    yield Call(
        TrainOptions,
        lambda: dict(folder),
        kinds=OPTIONS,
        name="TrainOptions with a folder",
        answer=lambda made: made.save_every,
    )


CALLS = [
    *options(),
    Call(
        train,
        lambda: {
            "model": model(),
            "dataset": dataset(),
            "options": TrainOptions(steps=1, batch_size=2, progress=False),
        },
        kinds={"model": SCORE, "dataset": DATA, "options": MAPPING},
        answer=None,
    ),
    Call(
        train_classifier,
        lambda: {
            "model": classifier(),
            "dataset": dataset(),
            "options": TrainOptions(steps=1, batch_size=2, progress=False),
        },
        kinds={"model": SCORE, "dataset": DATA, "options": MAPPING},
        answer=None,
    ),
    Call(
        EMA,
        lambda: {"model": model(), "decay": 0.5, "warmup": True},
        kinds={"model": SCORE, "decay": RATE},
        answer=lambda ema: ema.decay,
    ),
    Call(average_decay, lambda: {"update": 3, "decay": 0.5}, kinds={"update": COUNT_FROM_0, "decay": RATE}),
    Call(ema_model, lambda: {"model": model(), "ema": EMA(model())}, kinds={"model": SCORE, "ema": SCORE}, answer=None),
    Call(EMA(model()).copy_to, lambda: {"model": model()}, kinds={"model": SCORE}, name="EMA.copy_to"),
    Call(
        EMA(model()).load_state,
        lambda: {"state": EMA(model()).state(), "updates": 3},
        name="EMA.load_state",
        kinds={
            "state": MAPPING.but(none=lambda right: None, values=lambda right: dict.fromkeys(right, 1.0)),
            "updates": COUNT_FROM_0,
        },
    ),
    Call(
        learning_rate,
        lambda: {"step": 3, "lr": 0.5, "steps": 10, "warmup": 2, "decay": "cosine"},
        kinds={"step": COUNT_FROM_0, "lr": POSITIVE, "warmup": COUNT_FROM_0},
    ),
    Call(
        save,
        lambda: {"folder": FOLDER / "saved", "model": model(), "step": 3, "ema": EMA(model()), "keep": 2},
        kinds={"model": SCORE, "step": COUNT_FROM_0, "ema": SCORE.but("None")},
        answer=None,
    ),
    Call(
        save,
        lambda: {"folder": FOLDER / "watched", "model": model(), "step": 3, "held_out": {"losses": X}, "spare": ["a"]},
        kinds={"model": SCORE, "step": COUNT_FROM_0, "held_out": MAPPING, "spare": NAMES},
        name="save what is held out",
        answer=None,
    ),
    Call(
        EarlyStopping,
        lambda: {"tolerance": 0.02, "patience": 4, "false_alarm": 0.1},
        kinds={"tolerance": SHARE, "patience": COUNT, "false_alarm": SHARE},
    ),
    Call(
        LossCurve,
        lambda: {
            "levels": (-1.0, 1.0),
            "loss": (0.5, 0.7),
            "standard_error": (0.1, 0.2),
            "count": (3, 4),
            "sigma_data": 0.5,
            "step": 7,
        },
        kinds={
            **dict.fromkeys(("levels", "loss", "standard_error", "count"), LISTED),
            "sigma_data": POSITIVE.but("None"),
            "step": COUNT_FROM_0,
        },
    ),
    Call(
        LossCurve((-1.0, 1.0), (0.5, 0.7), (0.1, 0.2), (3, 4), 0.5).at,
        lambda: {"level": X},
        kinds={"level": LEVEL},
        name="LossCurve.at",
    ),
    Call(curve_in_words, lambda: {"curve": LossCurve((0.0,), (0.5,), (0.1,), (3,))}, kinds={"curve": SCORE}),
    Call(load_model, lambda: {"folder": FOLDER / "score", "ema": True}, kinds={"ema": CHOICE}, answer=None),
    Call(load_classifier, lambda: {"folder": FOLDER / "classifier", "ema": True}, kinds={"ema": CHOICE}, answer=None),
    Call(
        sample_sharded,
        lambda: {"score": SCORED, "shape": (3, 3), "batch_size": 2, "seed": 1, "steps": 2, "cpu": False},
        kinds={"score": SCORE, "batch_size": COUNT, "seed": SEED.but("None"), "cpu": FLAG},
        answer=lambda found: found.x,
    ),
    Call(describe, lambda: {"folder": FOLDER / "score"}, answer=lambda told: told.step),
]
NOT_CALLED = {
    "scoresde.train.shared_sampling.SharedSamples": "what sample_sharded answers",
    "scoresde.train.contents.Description": "what describe answers",
    "scoresde.train.convergence.HeldOutLoss": "what a run measures",
    "scoresde.train.folder.CheckpointError": "an error",
    "scoresde.train.signals.Terminated": "raised by a run",
    "scoresde.train.loop.Run": "made by train and train_classifier",
    "scoresde.train.record.StepRecord": "what a run yields",
}
