"""Data sets of Hugging Face's ``datasets``: their columns by our names, their classes by the names they have there::

    local = datasets.load_dataset("mnist", split="train")
    of_datasets(local, {"x": "image", "label": "label"}, None)      # pictures are decoded when they are asked for
    dataset = from_huggingface(table, {"x": "row", "size": "kg"})   # a Dataset in memory, standardised like any table

:func:`~scoresde.train.train` calls the first; the second is for those who want to choose how numbers are read. What is
asked of an object is asked by ``datasets`` itself, and only where somebody has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde import checks
from scoresde.data.columns import Columns, Names, Renamed, check_columns, is_picture
from scoresde.data.dataset import Dataset, from_tensors
from scoresde.data.foreign import within_memory
from scoresde.data.scaling import Per, Scaling
from scoresde.data.structure import Channels


def of_kind(value: object, kind: str) -> bool:
    """Whether ``value`` is one of the classes "Dataset", "IterableDataset", "DatasetDict" of ``datasets``."""
    package = sys.modules.get("datasets")
    known = getattr(package, kind, None)
    return isinstance(known, type) and isinstance(value, known)


def refuse_splits(value: object) -> None:
    """Raise TypeError for a DatasetDict, of whose data sets one must be chosen."""
    if isinstance(value, Mapping) and (of_kind(value, "DatasetDict") or of_kind(value, "IterableDatasetDict")):
        names = ", ".join(map(repr, value)) or "none"
        first = next(iter(value), "train")
        raise TypeError(
            f"dataset is a {type(value).__name__}, which holds several data sets, {names}: give one of them, "
            f"dataset[{first!r}]."
        )


def columns_of(dataset: Any, columns: Names | None) -> dict[str, str | int]:
    """The columns by our names, after a look at whether they are there.

    Raises:
        ValueError: there is no such column, or no x and nobody says what it is.
    """
    there = dataset.column_names or list(dataset.features or ())
    if columns is None:
        if not there:  # a stream that does not know them before it is read
            return {}
        if "x" in there:
            return {name: name for name in there if name.isidentifier() and name != "c"}
        raise ValueError(
            f"the data set has the columns {', '.join(map(repr, there))}, and none is called x: say which is which, "
            f"columns={_suggested(dataset)}, our names first."
        )
    chosen = check_columns(columns)
    missing = [theirs for theirs in chosen.values() if there and theirs not in there]
    if missing:
        raise ValueError(
            f"columns takes {', '.join(map(repr, missing))}, and the data set has the columns "
            f"{', '.join(map(repr, there))}."
        )
    return chosen


def class_names(dataset: Any, columns: Mapping[str, str | int]) -> tuple[str, ...] | None:
    """The names of the classes, where the label is a ClassLabel."""
    feature = (dataset.features or {}).get(columns.get("label", ""))
    names = getattr(feature, "names", None)
    return None if names is None else tuple(map(str, names))


def levels_told(dataset: Any, columns: Mapping[str, str | int]) -> Scaling | None:
    """256 levels, where x is a column of uint8: its rows come as plain numbers, which do not say so."""
    return Scaling.to_unit_range(256) if _holds_bytes(dataset, columns["x"]) else None


def _holds_bytes(dataset: Any, name: str | int) -> bool:
    return "'uint8'" in str((dataset.features or {}).get(name))


def of_datasets(dataset: Any, columns: Names | None, scaling: Scaling | None) -> Dataset | Renamed:
    """What can be trained on: pictures stay where they are and are decoded one by one; all else is read into memory.

    A transform of the user's (``with_transform``) is kept, and its samples are taken as it answers them.

    Args:
        dataset: of ``datasets``, with random access.
        columns: ours by theirs.
        scaling: of x.

    Raises:
        TypeError, ValueError: a column is missing or cannot be read as numbers; see :func:`from_huggingface`.
    """
    if not len(dataset):
        raise ValueError(f"dataset must hold some rows, got {checks.got(dataset)} with none: the data set is empty.")
    if dataset.format["type"] == "custom":
        first = dataset[0]
        chosen = None if columns is None and "x" in first else check_columns({} if columns is None else columns)
        return Renamed(dataset, Columns(chosen, scaling), None if chosen is None else class_names(dataset, chosen))
    chosen = columns_of(dataset, columns)
    plain = dataset.with_format(None).select_columns(list(dict.fromkeys(chosen.values())))
    if is_picture(plain[0][chosen["x"]]):
        return Renamed(plain, Columns(chosen, scaling), class_names(dataset, chosen))
    return from_huggingface(dataset, chosen, scaling=scaling)


def from_huggingface(
    dataset: Any,
    columns: Names,
    *,
    channels: Channels | None = None,
    levels: int | None = None,
    scaling: Scaling | Per | None = None,
    condition_scalings: Mapping[str, Scaling | None] | None = None,
) -> Dataset:
    """A data set in memory from one of Hugging Face's ``datasets``.

    Args:
        dataset: local, with random access; of a stream, the part that ``list`` of ``take(n)`` holds fits
            ``datasets.Dataset.from_list``.
        columns: our names by theirs, {"x": "image", "label": "digit", "size": "kg"}: x, label where there is one, and
            conditions. A label that is a ClassLabel brings the names of its classes.
        channels, levels, scaling, condition_scalings: as in ``from_tensors``.

    Raises:
        TypeError: not such a data set, or a column that holds no numbers or pictures.
        ValueError: a column is missing, rows differ in shape or hold nothing, more than fits into memory; as
            ``from_tensors``.
    """
    refuse_splits(dataset)
    if not of_kind(dataset, "Dataset"):
        stream = " A stream is trained on as it is, train(model, stream, ...)." * of_kind(dataset, "IterableDataset")
        raise TypeError(f"dataset must be a datasets.Dataset, got {checks.got(dataset)}.{stream}")
    chosen = columns_of(dataset, check_columns(columns))
    if not len(dataset):
        raise ValueError(f"dataset must hold some rows, got {checks.got(dataset)} with none: the data set is empty.")
    read = {ours: _column(dataset, str(theirs)) for ours, theirs in chosen.items()}
    data, label = read.pop("x"), read.pop("label", None)
    if not data.is_floating_point() and _holds_bytes(dataset, chosen["x"]):
        data = data.to(torch.uint8)
    if data.ndim == 1 and channels is None:  # a column of numbers: vectors of one
        data = data[:, None]
    return from_tensors(
        data,
        label,
        channels=channels,
        levels=levels,
        scaling=scaling,
        class_names=class_names(dataset, chosen),
        conditions=read or None,
        condition_scalings=condition_scalings,
    )


def _column(dataset: Any, name: str) -> Tensor:
    """A column as one tensor (N, ...)."""
    part = dataset.with_format(None).select_columns([name])
    first = part[0][name]
    size = np.asarray(first).nbytes if not isinstance(first, str) else 0
    within_memory(size * len(dataset), f"column {name!r} of {len(dataset)} rows")
    if is_picture(first):
        rows = [Columns({"x": name}, Scaling(0.0, 1.0))(row, what=f"row {i}")["x"] for i, row in enumerate(part)]
        _check_one_shape([tuple(row.shape) for row in rows], name)
        return torch.stack(rows).to(torch.uint8)
    wide = {"dtype": np.float64} if "float64" in str((dataset.features or {}).get(name)) else {}  # else it is narrowed
    values = part.with_format("numpy", **wide)[:][name]
    if values.dtype.kind == "O":
        _check_one_shape([np.shape(row) for row in values], name)
        values = np.stack(list(values)) if all(isinstance(row, np.ndarray) for row in values) else values
    if values.dtype.kind not in "iuf":
        hint = " ds.class_encode_column makes classes of texts." if values.dtype.kind in "UO" else ""
        raise TypeError(
            f"column {name!r} must hold numbers or pictures, got {checks.got(first)} in its first row.{hint}"
        )
    if np.issubdtype(values.dtype, np.integer) and values.dtype != np.uint8:
        values = values.astype(np.int64)
    return torch.from_numpy(np.array(values))


def _check_one_shape(shapes: Sequence[tuple[int, ...]], name: str) -> None:
    other = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is not None:
        raise ValueError(
            f"rows of column {name!r} have different shapes: {shapes[0]} in row 0, {shapes[other]} in row {other}. "
            "Crop, resize or pad them to one first."
        )


def _suggested(dataset: Any) -> str:
    """Which columns look like x and the label."""
    features = dataset.features or {}
    images = [name for name, one in features.items() if type(one).__name__ == "Image"]
    classes = [name for name, one in features.items() if type(one).__name__ == "ClassLabel"]
    x = images[0] if images else next(iter(dataset.column_names or features), "...")
    label = f', "label": "{classes[0]}"' if classes else ""
    return f'{{"x": "{x}"{label}}}'
