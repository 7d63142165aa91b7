"""NumPy arrays into data sets: ``.npy`` and ``.npz``. Pickle is never read.

:func:`load_array` is the reader that :func:`~scoresde.data.load` finds for these endings. An ``.npy`` file holds x,
with labels in a second file if there are any; an ``.npz`` archive holds both, by name::

    dataset = load_array("digits.npz")                                       # arrays x and label
    dataset = load_array("x.npy", label="y.npy", channels="last", levels=256)

The arrays are checked and scaled by :func:`~scoresde.data.from_tensors`, to which the other options go.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scoresde import checks
from scoresde.data.dataset import Dataset, from_tensors
from scoresde.data.numpy_files import Array, as_tensor, map_npy, mapped_tensor, read_arrays
from scoresde.data.readers import LABELS, existing, reads
from scoresde.data.scaling import Per, Scaling
from scoresde.data.source import Source
from scoresde.data.structure import Channels, arranged, holds_levels
from scoresde.files import PathName

_IMAGES = ("x", "images", "image", "data", "arr_0")


@reads(".npy", ".npz")
def load_array(
    path: PathName,
    *,
    label: PathName | None = None,
    channels: Channels | None = None,
    levels: int | None = None,
    scaling: Scaling | Per | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    mapped: bool = False,
) -> Dataset:
    """``.npy`` with (N, *event), or ``.npz`` with arrays ``x`` and (optional) ``label``.

    Args:
        path: the file. In an ``.npz``, images, image, data or a single unnamed array also stand for x;
            labels or y for label.
        label: an ``.npy`` file with the (N,) integer labels.
        channels: where the channel axis is. "first" takes the array as it is, (N, C, ...) or vectors (N, d);
            "last" moves the last axis to the second place; "none" puts in an axis of length 1. By default the array
            is taken as it is where its shape has no other likely meaning, and refused where it has, as (N, 32, 32, 3)
            and whole numbers (N, 28, 28) have.
        levels, scaling, num_classes, class_names: as in ``from_tensors``.
        mapped: leave the numbers of an ``.npy`` file in it, and map it into memory: for more than memory holds. The
            file must stay as it is meanwhile.

    Raises:
        FileNotFoundError, TypeError, ValueError: as ``from_tensors``, and for files that are damaged or hold
            Python objects, or tell of more than they hold or than fits into memory.
    """
    path = existing(path)
    mapped = checks.flag(mapped, name="mapped")
    loaded, names = (map_npy(path), ()) if mapped else read_arrays(path, _IMAGES, LABELS)
    labels: Array | None = None
    notes, taken = [], []
    if isinstance(loaded, dict):
        name = _pick(loaded, names, _IMAGES, path)
        label_name = next((name for name in LABELS if name in loaded), None)
        array, labels = loaded[name], None if label_name is None else loaded[label_name]
        taken = [name] if label_name is None else [name, label_name]
        notes.append(f"array{'s' if len(taken) > 1 else ''} {' and '.join(taken)}")
    else:
        array = loaded
    if label is not None:
        if labels is not None:
            raise ValueError(f"{path} has labels of its own; leave label={str(label)!r} out.")
        place = existing(label, name="label")
        found, found_names = read_arrays(place, LABELS)
        labels = found[_pick(found, found_names, LABELS, place)] if isinstance(found, dict) else found
        notes.append(f"labels from {place}")
    data = mapped_tensor(array, path) if mapped else as_tensor(array, path)
    data = arranged(data, channels, whole=holds_levels(data, levels, scaling), name=f"the array in {path}")
    if channels is not None and array.ndim > 1:
        notes.append(f"channels {channels}")
    dataset = from_tensors(
        data,
        None if labels is None else as_tensor(labels, path if label is None else Path(label)),
        channels="first",
        levels=levels,
        scaling=scaling,
        num_classes=num_classes,
        class_names=class_names,
        mapped=mapped,
    )
    if mapped:
        notes.append("mapped")
    dataset.source = Source(str(path), tuple(notes), passed_over=tuple(name for name in names if name not in taken))
    return dataset


def _pick(arrays: dict[str, Array], names: Sequence[str], wanted: Sequence[str], path: Path) -> str:
    found = [name for name in wanted if name in arrays]
    if not found:
        raise ValueError(f"{path} holds the arrays {sorted(names)[:20]}; expected one of {', '.join(wanted)}.")
    return found[0]
