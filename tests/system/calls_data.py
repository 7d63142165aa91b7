"""Bad calls of data sets: from tensors and files, scaled, indexed and mirrored."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from bad_calls import COUNT, FLAG, FRACTION, FUNCTION, MAPPING, NUMBER, OPEN_TENSOR, PATH, POSITIVE, TENSOR, Call, Kind

from scoresde.data import (
    Augmentation,
    Dataset,
    Scaling,
    from_tensors,
    load,
    load_array,
    random_flip,
    reader_of,
    reads,
)

X = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75], [0.0, 1.0, -0.5]])
Y = torch.tensor([0, 1, 1])
SCALING = Scaling(0.5, 2.0)
_KEPT = tempfile.TemporaryDirectory(prefix="scoresde-bad-calls-")  # goes with the process
FOLDER = Path(_KEPT.name)
np.savez(FOLDER / "a.npz", x=X.numpy(), label=Y.numpy())
np.save(FOLDER / "x.npy", X.numpy())
np.save(FOLDER / "y.npy", Y.numpy())


def dataset() -> Dataset:
    return from_tensors(X, Y, conditions={"v": X}, scaling=SCALING)


# Whole numbers are data, too.
DATA = TENSOR.but("whole numbers", one_axis=lambda x: x[0], none=lambda x: x[:0])
LABEL = Kind(
    {
        "a text": lambda y: "cat",
        "a number": lambda y: 1,
        "a list": lambda y: y.tolist(),
        "numpy": lambda y: y.numpy(),
        "fractions": lambda y: y.float(),
        "bools": lambda y: y > 0,
        "negative": lambda y: y - 1,
        "longer": lambda y: torch.cat([y, y]),
        "two axes": lambda y: y[:, None],
        "one for all": lambda y: y[0],
        "a dict": lambda y: {},
        "an object": lambda y: object(),
    }
)
NAMES = Kind(
    {
        "a text": lambda names: "ab",
        "a number": lambda names: 2,
        "too few": lambda names: ["a"],
        "a dict": lambda names: {"a": 1, "b": 2},
        "a tensor": lambda names: torch.ones(2),
        "an object": lambda names: object(),
    },
    {"a tuple": tuple},
)
LEVELS = COUNT.but("None", one=lambda right: 1).only()  # None is the right one
INDICES = Kind(
    {
        "None": lambda right: None,
        "a text": lambda right: "1",
        "fractions": lambda right: [0.5],
        "of fractions": lambda right: torch.tensor([0.0, 1.0]),
        "above": lambda right: [7],
        "below": lambda right: [-7],
        "a mask of another length": lambda right: torch.tensor([True, False]),
        "a dict": lambda right: {0: 1},
        "an object": lambda right: object(),
        "two axes": lambda right: torch.zeros(1, 2, dtype=torch.long),
        "complex": lambda right: torch.tensor([1j]),
    },
    {
        "a tensor": torch.tensor,
        "numpy": np.array,
        "negative": lambda right: [i - 3 for i in right],
        "a mask": lambda right: torch.tensor([i in right for i in range(3)]),
        "bools": lambda right: [i in right for i in range(3)],
    },
)
SCALINGS = FUNCTION.but("None", "a text", a_class=lambda right: Scaling)
FILE = Kind(PATH.but(none=lambda right: None).wrong, {"a text": str})

CALLS = [
    Call(
        Scaling,
        lambda: {"shift": 0.5, "scale": 2.0, "levels": None},
        kinds={
            "shift": NUMBER.but("a tensor (2,)", "a list", "an empty tensor"),
            "scale": POSITIVE.but("a tensor (2,)", "a list", "an empty tensor"),
            "levels": LEVELS,
        },
        answer=lambda s: s.to_model(X),
    ),
    Call(
        Scaling.to_unit_range,
        lambda: {"levels": 256},
        kinds={"levels": COUNT.but(one=lambda right: 1)},
        name="Scaling.to_unit_range",
    ),
    Call(
        Scaling.standardise,
        lambda: {"data": X},
        kinds={"data": TENSOR.but("whole numbers", "no axis", constant=torch.ones_like)},
        name="Scaling.standardise",
        answer=lambda s: s.to_model(X),
    ),
    Call(
        SCALING.to_model,
        lambda: {"data": X},
        kinds={"data": OPEN_TENSOR.but("whole numbers", "no axis")},
        name="Scaling.to_model",
    ),
    Call(
        SCALING.to_data,
        lambda: {"x": X},
        kinds={"x": OPEN_TENSOR.but("no axis", "whole numbers")},
        name="Scaling.to_data",
    ),
    Call(
        Scaling.to_unit_range(256).to_uint8,
        lambda: {"x": X},
        kinds={"x": OPEN_TENSOR.but("no axis", "whole numbers")},
        name="Scaling.to_uint8",
    ),
    Call(
        Scaling.from_json,
        lambda: {"fields": SCALING.to_json()},
        kinds={"fields": MAPPING.but(unknown=lambda f: {**f, "more": 1}, missing=lambda f: {"shift": 1.0})},
        name="Scaling.from_json",
        answer=lambda s: s.to_model(X),
    ),
    Call(
        from_tensors,
        lambda: {
            "data": X,
            "label": Y,
            "levels": None,
            "scaling": SCALING,
            "num_classes": 2,
            "class_names": ["a", "b"],
            "conditions": {"v": X},
        },
        kinds={
            "data": DATA,
            "label": LABEL,
            "levels": LEVELS,
            "scaling": SCALINGS,
            "num_classes": COUNT.but("None", small=lambda right: 1),
            "class_names": NAMES,
        },
        answer=lambda found: found[:]["x"],
    ),
    Call(dataset().batch, lambda: {"indices": [1, 2]}, kinds={"indices": INDICES}, name="Dataset.batch"),
    Call(
        dataset().subset,
        lambda: {"indices": [1, 2]},
        kinds={"indices": INDICES},
        name="Dataset.subset",
        answer=lambda part: part[:],
    ),
    Call(dataset().__getitem__, lambda: {"index": [1, 2]}, kinds={"index": INDICES}, name="Dataset.__getitem__"),
    Call(
        Augmentation,
        lambda: {
            "probability": 0.5,
            "x_flip": True,
            "y_flip": False,
            "quarter_turns": False,
            "whole_shift": 0.5,
            "scale": 0.5,
            "rotation": 0.5,
            "stretch": 0.5,
            "shift": 0.5,
        },
        kinds={
            **dict.fromkeys(("probability", "whole_shift", "rotation", "shift"), FRACTION),
            **dict.fromkeys(("x_flip", "y_flip", "quarter_turns"), FLAG),
            **dict.fromkeys(("scale", "stretch"), FRACTION.but(above=lambda right: 2.5)),
        },
    ),
    Call(
        random_flip,
        lambda: {"x": X, "u": torch.tensor([0.25, 0.75, 0.1])},
        kinds={
            "x": OPEN_TENSOR.but("whole numbers", "bool", "complex"),
            "u": OPEN_TENSOR.but(another_batch=lambda u: u[:2], two_axes=lambda u: u[:, None]),
        },
    ),
    Call(load, lambda: {"path": FOLDER / "a.npz"}, kinds={"path": FILE}, answer=lambda found: found[:]),
    Call(
        load_array,
        lambda: {"path": FOLDER / "x.npy", "label": FOLDER / "y.npy", "channels": "first"},
        kinds={"path": FILE, "label": FILE.but("none")},
        answer=lambda found: found[:],
    ),
    Call(reader_of, lambda: {"path": FOLDER / "a.npz"}, kinds={"path": FILE}),
    Call(
        reads,
        lambda: {"endings": [".of_a_test"]},
        kinds={"endings": Kind({"numbers": lambda right: [3], "None": lambda right: [None]})},
        answer=None,
    ),
]
NOT_CALLED = {
    "scoresde.data.dataset.Dataset": "made by from_tensors and load, which check; its methods are called",
    "scoresde.data.cifar.load_cifar": "load calls it",
    "scoresde.data.folders.load_folder": "load calls it",
    "scoresde.data.parquet.load_parquet": "load calls it",
    "scoresde.data.source.Source": "what a reader answers beside the data",
}
