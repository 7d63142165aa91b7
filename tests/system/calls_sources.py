"""Bad calls of what brings data of others into training, and of what watches it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
from bad_calls import COUNT, FUNCTION, MAPPING, PATH, Call, Kind

from scoresde.data import Dataset, Scaling, from_huggingface, from_tensors
from scoresde.train import TensorBoard, TrainOptions

_KEPT = tempfile.TemporaryDirectory(prefix="scoresde-bad-calls-")  # goes with the process
FOLDER = Path(_KEPT.name)
X = torch.tensor([[0.5, -1.0], [1.5, 0.25], [0.0, 1.0]])


def rows() -> Any:
    return datasets.Dataset.from_dict({"point": X.tolist(), "kind": [0, 1, 1], "size": [[0.5], [1.0], [2.5]]})


COLUMNS = MAPPING.but(
    none=lambda right: None,
    missing=lambda right: {**right, "label": "nothing"},
    the_other_way_round=lambda right: {"point": "x", "kind": "label"},
    numbers=lambda right: {"x": 1.5},
    no_identifier=lambda right: {**right, "a b": "size"},
    c=lambda right: {**right, "c": "size"},
)
SCALINGS = FUNCTION.but("None", "a text", a_class=lambda right: Scaling)
OPTIMIZER = Kind(
    {
        "a text": lambda right: "sgd",
        "a number": lambda right: 3,
        "a list": lambda right: [right],
        "a dict": lambda right: {},
        "a tensor": lambda right: torch.ones(2),
        "an object": lambda right: object(),
    }
)
CALLBACKS = Kind(
    {
        "a function": lambda right: right[0],
        "a text": lambda right: "step",
        "numbers": lambda right: [3],
        "a number": lambda right: 3,
        "None": lambda right: None,
        "a class": lambda right: [TensorBoard],
        "of other arguments": lambda right: [lambda run: None],
        "an object": lambda right: object(),
        "a tensor": lambda right: torch.ones(2),
    },
    {"a tuple": tuple},
)


def watch(run: Any, record: Any) -> None:
    """After each step."""


def shuffled(dataset: Dataset) -> Any:
    return dataset[:]["x"]


CALLS = [
    Call(
        from_huggingface,
        lambda: {
            "dataset": rows(),
            "columns": {"x": "point", "label": "kind", "size": "size"},
            "scaling": Scaling(0.5, 2.0),
        },
        kinds={
            "dataset": MAPPING.but(
                none=lambda right: None,
                splits=lambda right: datasets.DatasetDict(train=right),
                a_stream=lambda right: right.to_iterable_dataset(),
                ours=lambda right: from_tensors(X),
                empty=lambda right: right.select([]),
            ),
            "columns": COLUMNS,
            "scaling": SCALINGS,
        },
        answer=shuffled,
    ),
    Call(
        TrainOptions,
        lambda: {
            "steps": 3,
            "batch_size": 2,
            "columns": {"x": "point", "label": "kind"},
            "scaling": Scaling(0.5, 2.0),
            "optimizer": torch.optim.SGD,
            "callbacks": [watch],
        },
        kinds={
            "columns": COLUMNS.but("missing", "none", "the other way round", turned=lambda right: {"point": "x"}),
            "scaling": SCALINGS,
            "optimizer": OPTIMIZER,
            "callbacks": CALLBACKS,
        },
        name="TrainOptions with data of others",
        answer=lambda made: made.recorded("score"),
    ),
    Call(
        TensorBoard,
        lambda: {"folder": FOLDER / "logs", "every": 5, "pictures": watch, "pictures_every": 3},
        kinds={"folder": PATH, "every": COUNT, "pictures": FUNCTION, "pictures_every": COUNT.but("None")},
        answer=lambda made: made.every,
    ),
]
NOT_CALLED = {"scoresde.train.callbacks.Callback": "a base class whose methods do nothing"}
