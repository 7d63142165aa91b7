"""Conditions on the command line: ``--condition obs=obs.npy``, in training a row for each sample, later what is asked.

    dataset = with_conditions(dataset, ("obs=obs.npy",))                  # of training: read, checked, standardised
    asked = asked_conditions(("obs=0.3,1.2",), trained, 64)               # {"obs": (64, d)}: of sampling

A value is written as numbers with commas, or as the name of an ``.npy`` file with one row, or with rows that the
samples take in turn.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.cli.trained import Trained
from scoresde.data import Dataset
from scoresde.data.condition_files import of_members, read_conditions
from scoresde.data.numpy_files import as_tensor, read_arrays
from scoresde.data.readers import existing
from scoresde.models.conditions import check_name


def pairs_of(words: Sequence[str]) -> dict[str, str]:
    """``name=value`` by name.

    Raises:
        ValueError: a word of another form, a name that no condition has, or one given twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise ValueError(f"--condition is written name=value or name=file.npy, without spaces; got {word!r}.")
        if name in found:
            raise ValueError(f"--condition {name} is given twice.")
        if name == "label":
            raise ValueError("classes have flags of their own, --label for a file and --labels for what is asked.")
        check_name(name)
        found[name] = value
    return found


def read_numbers(path: Path, what: str, *, members: bool = False) -> Tensor:
    """The array of an ``.npy`` file: int64, or float64; with ``members`` rows of NaN along its last axis are padding.

    Raises:
        FileNotFoundError, TypeError, ValueError: none, a damaged one, or no numbers; NaN or infinite ones.
    """
    array, _ = read_arrays(existing(path, name=what))
    if isinstance(array, dict):
        raise ValueError(f"{what} {path} is an archive of several arrays; save one array with numpy.save.")
    numbers = as_tensor(array, path)
    numbers = numbers.double() if numbers.is_floating_point() else numbers.long()
    padding = numbers.isnan().all(-1, keepdim=True) if members and numbers.ndim else torch.zeros(1, dtype=torch.bool)
    if numbers.is_floating_point() and not bool((numbers.isfinite() | padding).all()):
        raise ValueError(f"{what} {path} holds NaN or infinite values; drop or mend these rows.")
    return numbers


def with_conditions(dataset: Dataset, words: Sequence[str], members: Collection[str] = ()) -> Dataset:
    """The data set with a row of each condition for each sample, read and standardised as ``scoresde.data.load`` does.

    Whole numbers (N,) are amounts: classes come by ``--label``. Arrays (N, L, d) beside vectors, and those that
    ``members`` names, are sets or series, each of their columns standardised.

    Raises:
        FileNotFoundError, TypeError, ValueError: no such file, other numbers of rows, NaN, one number for all samples.
    """
    files = {name: existing(Path(value), name=f"--condition {name}") for name, value in pairs_of(words).items()}
    found = read_conditions(files)
    for name, values in found.items():
        if values.ndim == 1 and not values.is_floating_point():
            found[name] = values.double()
        if 1 < len(dataset) == values.shape[:1].numel() and bool((values == values[:1]).all()):
            raise ValueError(f"condition {name!r} is the same for all samples in {files[name]}: leave it out.")
    scalings = {}
    for name, values in found.items():
        if values.ndim == 3 and (name in members or len(dataset.event_shape) == 1):
            found[name] = values.double()
            scalings[name] = of_members(found[name])
    return dataset.with_conditions(found, scalings, from_files=True) if found else dataset


def network_conditions(
    dataset: Dataset, event: tuple[int, ...], sets: Sequence[str] = (), series: Sequence[str] = ()
) -> dict[str, Any]:
    """The conditions of a data set as arguments of a network: vectors, images, captions, embeddings, sets, series.

    Arrays (N, L, d) beside vectors are series unless ``sets`` names them: a series encoder loses nothing of a set, and
    a set encoder the order of a series.

    Raises:
        ValueError: a shape that no condition of a network has, or a name of none.
    """
    found: dict[str, dict[str, Any]] = {}
    for flag, names in {"--sets": sets, "--series": series}.items():
        for name in names:
            if name not in dataset.conditions or dataset.conditions[name].ndim != 3:
                has = ", ".join(f"{one} {tuple(rows.shape)}" for one, rows in dataset.conditions.items()) or "none"
                raise ValueError(f"{flag} {name}: expected the name of a --condition (N, L, d); there are: {has}.")
            if name in sets and name in series:
                raise ValueError(f"{name} is in --sets and in --series; say one of them.")
    for name, value in dataset.conditions.items():
        shape = tuple(value.shape[1:])
        if name in sets or name in series or (value.is_floating_point() and len(shape) == 2 and len(event) == 1):
            found.setdefault("sets" if name in sets else "series", {})[name] = shape[1]
            continue
        if len(shape) == len(event) > 1 and bool(value.isnan().any()):
            raise ValueError(f"--condition {name} holds NaN, and is a picture of each sample; drop or mend these.")
        if not value.is_floating_point() and value.ndim == 2:
            size = {"vocabulary": max(1, int(value.max())), "length": shape[0]}
            found.setdefault("captions", {})[name] = size
        elif value.is_floating_point() and len(shape) <= 1:
            found.setdefault("vectors", {})[name] = math.prod(shape)  # 1 of numbers (N,)
        elif value.is_floating_point() and len(shape) == len(event) > 1:
            found.setdefault("images", {})[name] = shape[0]
        elif value.is_floating_point() and len(shape) == 2:
            found.setdefault("embeddings", {})[name] = shape[1]
        else:
            raise ValueError(
                f"--condition {name} has rows of shape {shape} and dtype {value.dtype}; expected vectors (N, d), "
                f"images (N, C, ...) beside samples {event}, embeddings, sets or series (N, L, d), or whole numbers of "
                "tokens (N, L)."
            )
    return found


def asked_conditions(
    words: Sequence[str], trained: Trained, count: int, *, one_or_all: bool = False
) -> dict[str, Tensor]:
    """What the flags ask of a model: by name (count, ...) on its device, rows of files in turn.

    Args:
        words: of the flags.
        trained: the model.
        count: rows that are wanted.
        one_or_all: refuse files that have neither one row nor ``count``.

    Raises:
        FileNotFoundError, TypeError, ValueError: a condition that the model does not take, or of another shape.
    """
    asked = {}
    for name, value in pairs_of(words).items():
        if name not in trained.conditions:
            known = ", ".join(trained.conditions) or "none"
            raise ValueError(f"--condition {name}: the model in {trained.path} takes {known}.")
        rows = _rows(name, value, trained.conditions[name])
        if one_or_all and len(rows) not in (1, count):
            raise ValueError(f"--condition {name}={value} has {len(rows)} rows, and there are {count} samples.")
        asked[name] = rows[torch.arange(count) % len(rows)].to(trained.device)
    return asked


def _rows(name: str, value: str, told: Mapping[str, Any]) -> Tensor:
    """The rows (R, ...) that are written or in a file, in the shape of the condition."""
    whole = "int" in str(told.get("dtype", ""))
    known = "shape" in told
    shape = tuple(told.get("shape", ()))
    try:
        numbers = torch.tensor([float(part) for part in value.split(",")], dtype=torch.float64)
    except ValueError:
        if not Path(value).expanduser().exists() and not value.endswith((".npy", ".npz")):
            raise ValueError(
                f"--condition {name}={value}: expected numbers with commas, such as {name}=0.5,1.2, or an .npy file."
            ) from None
        numbers = read_conditions({name: existing(Path(value), name=f"--condition {name}")})[name]
    if told.get("members"):  # of any number: a file holds one (L, d), or a row for each sample (R, L, d)
        numbers = numbers[None] if numbers.ndim == 2 else numbers
        if numbers.ndim == 1 and numbers.numel() % shape[1] == 0:
            numbers = numbers.reshape(1, -1, shape[1])
        if numbers.ndim != 3 or numbers.shape[2] != shape[1] or not len(numbers):
            raise ValueError(
                f"--condition {name}={value} has shape {tuple(numbers.shape)}; the model was trained with any number "
                f"of members of {shape[1]} numbers: expected (L, {shape[1]}), or rows of it (R, L, {shape[1]})."
            )
        return numbers.float()
    if not bool(numbers.double().isfinite().all()):
        raise ValueError(f"--condition {name}={value}: expected finite numbers.")
    size = math.prod(shape)
    if not known:  # of a network of the user's own: rows as they come
        return numbers[None] if numbers.ndim < 2 else numbers
    if tuple(numbers.shape) == shape:
        numbers = numbers[None]
    elif tuple(numbers.shape[1:]) != shape and (shape != (1,) or numbers.ndim != 1) and numbers.numel() != size:
        raise ValueError(
            f"--condition {name}={value} has shape {tuple(numbers.shape)}; the model was trained with {name} of shape "
            f"{shape} for each sample: expected that, or rows of it."
        )
    rows = numbers.reshape(-1, *shape)
    if not len(rows):
        raise ValueError(f"--condition {name}={value} holds no rows.")
    return rows.long() if whole else rows.float()
