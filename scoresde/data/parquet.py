"""Parquet files of images, in the layout of Hugging Face image data sets, into data sets.

:func:`load_parquet` is the reader that :func:`~scoresde.data.load` finds for ``.parquet``. The file has a column of
structs whose ``bytes`` hold an encoded image, and may have one of integer labels::

    dataset = load_parquet("train.parquet")                                       # columns image or img, and label
    dataset = load_parquet("train.parquet", mode="RGB", image_column="picture", label_column="digit")

Names of classes are taken from the metadata of the schema where they are. It needs PyArrow and Pillow, of the extra
``train``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from scoresde import checks
from scoresde.data.dataset import Dataset, from_tensors
from scoresde.data.decoded import decoded_once, origin_of
from scoresde.data.foreign import Unreadable
from scoresde.data.images import Frames, Mode, read_images
from scoresde.data.readers import LABELS, existing, reads
from scoresde.data.source import Source, warn_of
from scoresde.extras import needs
from scoresde.files import PathName, opened

_IMAGE_COLUMNS = ("image", "img")

# Rows that a byte of a file can stand for at most: even equal images, which are stored once, need a number each.
_ROWS_PER_BYTE = 100
_ROWS_AT_ONCE = 128


@reads(".parquet")
def load_parquet(
    path: PathName,
    *,
    mode: Mode | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    frames: Frames | None = None,
    skip_bad: bool = False,
    decoded: PathName | None = None,
) -> Dataset:
    """One Parquet file in the layout of a Hugging Face image data set.

    Args:
        path: the file, with a column of structs holding the encoded image in ``bytes``, and one of labels. What stands
            beside ``bytes``, as a path, is never followed.
        mode: "L" (grey) or "RGB" converts all images; by default all must be the same of the two.
        image_column: by default ``image`` or ``img``.
        label_column: by default ``label``, ``labels`` or ``y`` where there is one.
        num_classes, class_names: as in ``from_tensors``; by default the names in the schema's metadata, where they are.
        frames: "first" takes the first frame of animations and files of several pages; by default they are refused.
        skip_bad: leave out rows whose image is missing or cannot be read, or without a label: ``dataset.skipped`` lists
            them, and one warning says so.
        decoded: an ``.npy`` file into which the images are decoded the first time, and which is mapped into memory then
            and later: for more than memory holds, and to begin at once. See :mod:`scoresde.data.decoded`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not Parquet, missing columns (those found are listed), missing or unreadable images,
            labels missing or out of range, mixed sizes or modes, more than fits into memory.
    """
    path = existing(path)
    options: dict[str, Any] = {
        "mode": mode,
        "image_column": image_column,
        "label_column": label_column,
        "num_classes": num_classes,
        "class_names": class_names,
        "frames": frames,
        "skip_bad": skip_bad,
    }
    if decoded is None:
        return _loaded(path, **options)
    return decoded_once(decoded, origin_of([path], options), lambda into: _loaded(path, **options, into=into))


def _loaded(
    path: Path,
    *,
    mode: Mode | None,
    image_column: str | None,
    label_column: str | None,
    num_classes: int | None,
    class_names: Sequence[str] | None,
    frames: Frames | None,
    skip_bad: bool,
    into: Path | None = None,
) -> Dataset:
    with needs("train"):
        import pyarrow.parquet as pq
    skip_bad = checks.flag(skip_bad, name="skip_bad")
    with opened(path, lambda text: ValueError(f"{path} is not a readable Parquet file: {text}")) as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            schema, count = file.schema_arrow, int(file.metadata.num_rows)
            _listed(schema)  # names that are no text fail here
        except Exception as error:  # damaged bytes make anything of a parser, and of texts that are none
            raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
        with file:
            image, label = _columns(schema, path, image_column, label_column)
            if count == 0:
                raise ValueError(f"{path} has no rows.")
            if not 0 < count <= _ROWS_PER_BYTE * size:
                raise ValueError(f"{path} tells of {count} rows, more than a file of {size} bytes can hold.")
            labels: list[int | None] = []
            rows = _rows(file, path, count, image, label, labels)
            read = read_images(rows, count, mode, frames=frames, skip_bad=skip_bad, into=into)
    if label is None:
        dataset = from_tensors(
            read.images, channels="first", levels=256, num_classes=num_classes, class_names=class_names
        )
    else:
        if num_classes is None and class_names is None:
            class_names = _class_names(schema.metadata, label)
        known = [labels[i] for i in read.kept]
        if any(number is not None and number >= 2**63 for number in known):
            raise ValueError(f"column {label!r} of {path} holds numbers of 2**63 and more; expected class numbers.")
        numbers = torch.tensor(known)
        dataset = from_tensors(
            read.images, numbers, channels="first", levels=256, num_classes=num_classes, class_names=class_names
        )
    taken = [image] if label is None else [image, label]
    others = tuple(name for name in schema.names if name not in taken)
    notes = (f"column{'s' if len(taken) > 1 else ''} {' and '.join(taken)}",)
    dataset.source = Source(str(path), notes, read.skipped, others)
    warn_of(read.skipped, count, "rows")
    return dataset


def _columns(schema: Any, path: Path, image: str | None, label: str | None) -> tuple[str, str | None]:
    """The names of the columns of images and labels, which are of the right types."""
    import pyarrow as pa

    image_name = _column(schema, image, _IMAGE_COLUMNS, path, "image")
    label_name = _column(schema, label, LABELS, path, "label")
    if image_name is None:
        raise ValueError(
            f"{path} has no column {' or '.join(_IMAGE_COLUMNS)}; it has {_listed(schema)}. "
            "Name the one with the images by image_column."
        )
    kind = schema.field(image_name).type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise ValueError(
            f"column {image_name!r} of {path} is {kind}; expected a struct with a field 'bytes' holding an "
            f"encoded image. The columns are {_listed(schema)}."
        )
    encoded = kind.field("bytes").type
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    if not any(is_a(encoded) for is_a in binary):
        raise ValueError(
            f"the field 'bytes' of column {image_name!r} of {path} is {encoded}; expected binary, the bytes of an "
            "encoded image. Paths of files are not followed."
        )
    if label_name is not None and not pa.types.is_integer(schema.field(label_name).type):
        raise ValueError(
            f"column {label_name!r} of {path} is {schema.field(label_name).type}; expected integer class "
            f"numbers. The columns are {_listed(schema)}."
        )
    return image_name, label_name


def _rows(
    file: Any, path: Path, count: int, image: str, label: str | None, labels: list[int | None]
) -> Iterator[tuple[str, bytes | Unreadable]]:
    """The encoded images by row, or why there is none; the labels are entered into ``labels`` on the way."""
    columns = [image] if label is None else [image, label]
    row, pieces = 0, file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns)
    while True:
        try:
            batch = next(pieces, None)
            if batch is None:
                break
            structs = batch.column(image)
            values = structs.flatten()[structs.type.get_field_index("bytes")].to_pylist()  # None in a struct of None
            numbers = [0] * len(values) if label is None else batch.column(label).to_pylist()
        except Exception as error:
            raise ValueError(f"{path} is damaged behind row {row}: {error}. Download or write it again.") from error
        labels.extend(numbers)
        for value, number in zip(values, numbers, strict=True):
            missing = f"it has no image bytes in column {image!r}" if value is None else ""
            if number is None:
                missing = f"it has no label in column {label!r}"
            yield f"row {row} of {path}", Unreadable(missing) if missing else value
            row += 1
        if row > count:
            break
    if row != count:
        raise ValueError(f"{path} says that it has {count} rows, but holds {row}: it is damaged.")


def _listed(schema: Any) -> str:
    return ", ".join(f"{field.name!r} ({field.type})" for field in schema)


def _column(schema: Any, given: str | None, names: Sequence[str], path: Path, what: str) -> str | None:
    if given is not None:
        checks.instance(given, str, name=f"{what}_column")
        if given not in schema.names:
            raise ValueError(f"{path} has no column {given!r} for {what}_column; it has {_listed(schema)}.")
        return _single(schema, given, path)
    found = [name for name in names if name in schema.names]
    if len(found) > 1:
        raise ValueError(f"{path} has the columns {' and '.join(found)}; say which one with {what}_column.")
    return _single(schema, found[0], path) if found else None


def _single(schema: Any, name: str, path: Path) -> str:
    if schema.names.count(name) > 1:
        raise ValueError(f"{path} has several columns {name!r}; it has {_listed(schema)}. Keep one of them.")
    return name


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> list[str] | None:
    """The names in ``{"info": {"features": {column: {"names": [...]}}}}``, where the schema carries them."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):  # no such metadata, or somebody else's
        return None
    return names if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None
