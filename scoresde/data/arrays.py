"""NumPy arrays into data sets: ``.npy`` and ``.npz``. Pickle is never read.

:func:`load_array` is the reader that :func:`~scoresde.data.load` finds for these endings. An ``.npy`` file holds x,
with labels in a second file if there are any; an ``.npz`` archive holds both, by name::

    dataset = load_array("digits.npz")                                       # arrays x and label
    dataset = load_array("x.npy", label="y.npy", channels="last", levels=256)

The arrays are checked and scaled by :func:`~scoresde.data.from_tensors`, to which the other options go.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from scoresde.data.dataset import Dataset, from_tensors
from scoresde.data.readers import LABELS, existing, reads
from scoresde.data.scaling import Scaling
from scoresde.files import PathName

_IMAGES = ("x", "images", "image", "data", "arr_0")


@reads(".npy", ".npz")
def load_array(
    path: PathName,
    *,
    label: PathName | None = None,
    channels: Literal["first", "last", "none"] = "first",
    levels: int | None = None,
    scaling: Scaling | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """``.npy`` with (N, *event), or ``.npz`` with arrays ``x`` and (optional) ``label``.

    Args:
        path: the file. In an ``.npz``, images, image, data or a single unnamed array also stand for x;
            labels or y for label.
        label: an ``.npy`` file with the (N,) integer labels.
        channels: where the channel axis is. "first" takes the array as it is, (N, C, ...) or vectors (N, d);
            "last" moves the last axis to the second place; "none" puts in an axis of length 1.
        levels, scaling, num_classes, class_names: as in ``from_tensors``.

    Raises:
        FileNotFoundError, TypeError, ValueError: as ``from_tensors``, and for files that are damaged or hold
            Python objects.
    """
    path = existing(path)
    loaded = _numpy(path)
    labels: np.ndarray[Any, Any] | None = None
    if isinstance(loaded, dict):
        array = _pick(loaded, _IMAGES, path, required=True)
        labels = _pick(loaded, LABELS, path, required=False)
    else:
        array = loaded
    if label is not None:
        if labels is not None:
            raise ValueError(f"{path} has labels of its own; leave label={str(label)!r} out.")
        found = _numpy(existing(label))
        labels = _pick(found, LABELS, Path(label), required=True) if isinstance(found, dict) else found
    assert array is not None
    data = _as_tensor(array, path)
    if data.ndim < 2 and channels != "none":
        raise ValueError(
            f"{path} holds an array of shape {tuple(data.shape)}; expected (N, *event), channels {channels}. "
            "For single numbers pass channels='none'."
        )
    if channels == "last":
        data = data.movedim(-1, 1)
    elif channels == "none":
        data = data.unsqueeze(1)
    elif channels != "first":
        raise ValueError(f"channels must be 'first', 'last' or 'none', got {channels!r}.")
    return from_tensors(
        data,
        None if labels is None else _as_tensor(labels, path),
        levels=levels,
        scaling=scaling,
        num_classes=num_classes,
        class_names=class_names,
    )


def _numpy(path: Path) -> np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    # What a damaged archive can answer with: NotImplementedError is a method of compression that there is not.
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise ValueError(
            f"cannot read {path} as NumPy data: {error}. It may be cut short or hold Python objects; "
            "write plain numbers with numpy.save or numpy.savez."
        ) from error


def _pick(
    arrays: dict[str, np.ndarray[Any, Any]], names: Sequence[str], path: Path, *, required: bool
) -> np.ndarray[Any, Any] | None:
    found = [name for name in names if name in arrays]
    if len(found) > 1:
        raise ValueError(f"{path} holds {' and '.join(found)}, which say the same; keep one of them.")
    if found:
        return arrays[found[0]]
    if required:
        raise ValueError(f"{path} holds the arrays {sorted(arrays)}; expected one of {', '.join(names)}.")
    return None


def _as_tensor(array: np.ndarray[Any, Any], path: Path) -> Tensor:
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{path} holds an array of {array.dtype}; expected integers or real numbers.")
    if array.dtype in (np.uint16, np.uint32, np.uint64, np.longdouble):  # torch knows little of these
        array = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))
