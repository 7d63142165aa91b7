"""Images decoded once, into a file that is then mapped into memory: for more of them than memory holds.

Readers of images have an option ``decoded``, the name of an ``.npy`` file::

    load("train.parquet", decoded="train.npy")              # decodes into train.npy, which takes a while
    load("train.parquet", decoded="train.npy")              # the second time opens it at once

Beside it lie ``train-label.npy``, where there are labels, and ``train.json``, which says of what it was made: files
that have changed since, or other options, are refused. The arrays are those of NumPy, for any other use::

    load("train.npy", mapped=True, label="train-label.npy")
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scoresde import checks
from scoresde.data.dataset import Dataset, from_tensors
from scoresde.data.numpy_files import as_tensor, map_npy, mapped_tensor, read_arrays
from scoresde.data.source import Source
from scoresde.files import PathName, read_format, refusing, replacing, write_format

_FORMAT, _VERSION = "scoresde decoded images", 1


def origin_of(files: Iterable[Path], options: Mapping[str, Any]) -> str:
    """What decoded images come from: a digest of names, sizes and times of change, and of how they are read."""
    told = hashlib.sha256(repr(sorted(options.items())).encode())
    for file in files:
        found = file.stat()
        told.update(repr((str(file.absolute()), found.st_size, found.st_mtime_ns)).encode())
    return told.hexdigest()


def decoded_once(path: PathName, origin: str, make: Callable[[Path], Dataset]) -> Dataset:
    """The data set of a file of decoded images, which is written first where it is not there.

    Args:
        path: of the file, which ends in ``.npy``.
        origin: see :func:`origin_of`.
        make: decodes into a new file, and makes the data set of it.

    Raises:
        ValueError: another ending; a file that was made of something else, or by somebody else, or is damaged.
    """
    place = checks.path(path, name="decoded").expanduser()
    if place.suffix != ".npy":
        raise ValueError(f"decoded must be the name of an .npy file, got {str(path)!r}.")
    told = place.with_suffix(".json")
    if not told.exists():
        if place.exists():
            raise ValueError(
                f"{place} is there already, and {told.name}, which would say what it was made of, is not: choose "
                "another name for decoded, or remove it."
            )
        with replacing(place) as partial:
            dataset = make(partial)
        if dataset.label is not None:
            with replacing(_labels(place)) as partial:
                np.save(partial, dataset.label.numpy())
        source = dataset.source or Source(str(place))
        content = {
            "origin": origin,
            "class_names": dataset.class_names,
            "path": source.path,
            "notes": source.notes,
            "skipped": source.skipped,
            "passed_over": source.passed_over,
        }
        write_format(told, format=_FORMAT, version=_VERSION, content=content)
    found = read_format(
        told, refusing(told), format=_FORMAT, version=_VERSION, what="decoded images", mend="Remove it to decode anew."
    )
    if found.get("origin") != origin:
        raise ValueError(
            f"{place} was decoded from files that have changed since, or with other options: choose another name for "
            f"decoded, or remove {told.name} and {place.name} to decode anew."
        )
    return _opened(place, found)


def _opened(place: Path, told: Mapping[str, Any]) -> Dataset:
    names, label = told.get("class_names"), None
    if names is not None:
        array, _ = read_arrays(_labels(place))
        assert isinstance(array, np.ndarray)
        label = as_tensor(array, _labels(place))
    pixels = mapped_tensor(map_npy(place), place)
    dataset = from_tensors(pixels, label, class_names=names, channels="first", levels=256, mapped=True)
    try:
        skipped = tuple((str(name), str(reason)) for name, reason in told["skipped"])
        notes, others = (tuple(map(str, told[name])) for name in ("notes", "passed_over"))
        dataset.source = Source(str(told["path"]), (*notes, f"decoded into {place}"), skipped, others)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place.with_suffix('.json')} is damaged; remove it to decode anew.") from error
    return dataset


def _labels(place: Path) -> Path:
    return place.with_name(f"{place.stem}-label.npy")
