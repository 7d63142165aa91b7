"""CIFAR-10 and CIFAR-100 as they are published, in their binary version, into data sets.

:func:`load_cifar` is the reader that :func:`~scoresde.data.load` finds for ``.bin``, and for the folder that the
published archive unpacks to::

    training = load_cifar("cifar-10-batches-bin")                    # data_batch_1.bin to data_batch_5.bin
    held = load_cifar("cifar-10-batches-bin/test_batch.bin")
    dataset = load_cifar("cifar-100-binary", labels="coarse")        # 20 classes in place of 100

A record is one byte with the label, two in CIFAR-100 (coarse, then fine), and 3072 bytes with the red, green and blue
plane of a 32x32 picture, row by row (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from scoresde import checks
from scoresde.data.dataset import Dataset, from_tensors
from scoresde.data.foreign import within_memory
from scoresde.data.readers import existing, reads
from scoresde.data.source import Source
from scoresde.files import PathName, opened

Labels = Literal["fine", "coarse"]

EVENT = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_TRAINING = re.compile(r"(data_batch_\d+|train)\.bin")
_CIFAR100 = {"train.bin", "test.bin"}  # names that CIFAR-10 has not
_NAMES = {10: "batches.meta.txt", 20: "coarse_label_names.txt", 100: "fine_label_names.txt"}
_MOST_NAMES = 1 << 16  # bytes of a list of names


def _training_files(folder: Path) -> list[Path]:
    try:
        found = [file for file in folder.iterdir() if _TRAINING.fullmatch(file.name) and file.is_file()]
    except OSError:  # the reader of folders says what is wrong
        return []
    return sorted(found, key=lambda file: (len(file.name), file.name))


def _holds_cifar(folder: Path) -> bool:
    return bool(_training_files(folder))


@reads(".bin", folders=_holds_cifar)
def load_cifar(path: PathName, *, labels: Labels | None = None) -> Dataset:
    """The pictures and labels of CIFAR-10 or CIFAR-100 in the published binary format.

    Names of classes come from the lists beside the pictures (batches.meta.txt, fine_label_names.txt), where they are.

    Args:
        path: one ``.bin`` file, or the folder of all: its training files, in the order of their numbers. Test pictures
            are those of the file test_batch.bin or test.bin.
        labels: of CIFAR-100: "fine" for the 100 classes, which is the default, or "coarse" for the 20.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: no training files in the folder, a file that is cut short or holds something else, labels that the
            data set does not have, more than fits into memory.
    """
    path = existing(path)
    if labels is not None:
        checks.one_of(labels, ("fine", "coarse"), name="labels")
    files = _training_files(path) if path.is_dir() else [path]
    if not files:
        raise ValueError(
            f"{path} holds no training files of CIFAR's binary version, data_batch_1.bin and so on or train.bin; give "
            "the folder that the archive unpacks to, or one of its .bin files."
        )
    sizes = [_size(file) for file in files]
    before = {_label_bytes(file, size) for file, size in zip(files, sizes, strict=True)}
    if len(before) > 1:
        raise ValueError(f"{path} mixes files of CIFAR-10 and CIFAR-100; give one of the files.")
    (first,) = before
    if labels is not None and first == 1:
        raise ValueError(
            f"labels={labels!r} is for CIFAR-100, and {path} holds CIFAR-10, which has one label; leave it out."
        )
    within_memory(sum(sizes), f"the pictures in {path}")
    records = np.concatenate(
        [_read(file, size).reshape(-1, first + _PIXELS) for file, size in zip(files, sizes, strict=True)]
    )
    column = 0 if first == 1 or labels == "coarse" else 1
    count = 10 if first == 1 else 20 if labels == "coarse" else 100
    found = records[:, column]
    if int(found.max()) >= count:
        raise ValueError(
            f"{path} holds the label {int(found.max())} in record {int(found.argmax())}, and there are {count} "
            "classes: it is no file of CIFAR's binary version, or a damaged one."
        )
    place = path if path.is_dir() else path.parent
    dataset = from_tensors(
        torch.from_numpy(records[:, first:].reshape(-1, *EVENT)),
        torch.from_numpy(found.astype(np.int64)),
        channels="first",
        levels=256,
        num_classes=count,
        class_names=_class_names(place / _NAMES[count], count),
    )
    kind = "CIFAR-10" if first == 1 else f"CIFAR-100, {labels or 'fine'} labels"
    dataset.source = Source(str(path), (f"{kind}, {', '.join(file.name for file in files)}",))
    return dataset


def _size(file: Path) -> int:
    with opened(file, lambda text: _unreadable(file, text)) as stream:
        return os.fstat(stream.fileno()).st_size


def _label_bytes(file: Path, size: int) -> int:
    """1 for CIFAR-10, 2 for CIFAR-100: what divides the file into records, or its name where both do."""
    fitting = [first for first in (1, 2) if size and size % (first + _PIXELS) == 0]
    if not fitting:
        raise _unreadable(
            file,
            f"its {size} bytes are not a whole number of records of {1 + _PIXELS} bytes (CIFAR-10) or {2 + _PIXELS} "
            "(CIFAR-100). It may be cut short.",
        )
    return fitting[0] if len(fitting) == 1 else 2 if file.name in _CIFAR100 else 1


def _read(file: Path, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    with opened(file, lambda text: _unreadable(file, text)) as stream:
        content = stream.read(size)
    if len(content) != size:
        raise _unreadable(file, "it became shorter while it was read.")
    return np.frombuffer(content, dtype=np.uint8)


def _class_names(path: Path, count: int) -> list[str] | None:
    try:
        with opened(path, lambda text: _unreadable(path, text), most=_MOST_NAMES) as stream:
            names = stream.read(_MOST_NAMES).decode("utf-8", errors="replace").split()
    except FileNotFoundError:
        return None
    return names if len(names) == count and len(set(names)) == count else None


def _unreadable(path: Path, reason: str) -> ValueError:
    return ValueError(f"cannot read {path} as CIFAR's binary version: {reason}")
