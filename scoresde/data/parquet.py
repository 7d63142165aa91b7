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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from scoresde.data.dataset import Dataset, from_tensors
from scoresde.data.images import Mode, read_images
from scoresde.data.readers import LABELS, existing, reads
from scoresde.extras import needs
from scoresde.files import PathName

_IMAGE_COLUMNS = ("image", "img")


@reads(".parquet")
def load_parquet(
    path: PathName,
    *,
    mode: Mode | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Dataset:
    """One Parquet file in the layout of a Hugging Face image data set.

    Args:
        path: the file, with a column of structs holding the encoded image in ``bytes``, and one of labels.
        mode: "L" (grey) or "RGB" converts all images; by default all must be the same of the two.
        image_column: by default ``image`` or ``img``.
        label_column: by default ``label``, ``labels`` or ``y`` where there is one. The names of the classes
            come from the schema's metadata where they are.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not Parquet, missing columns (those found are listed), missing or unreadable images,
            labels missing or out of range, mixed sizes or modes.
    """
    with needs("train"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    path = existing(path)
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
    with file:
        return _read_parquet(file, path, mode, image_column, label_column)


def _read_parquet(
    file: Any, path: Path, mode: Mode | None, image_column: str | None, label_column: str | None
) -> Dataset:
    import pyarrow as pa

    schema = file.schema_arrow
    image_name = _column(schema, image_column, _IMAGE_COLUMNS, path, "image")
    label_name = _column(schema, label_column, LABELS, path, "label")
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
    if label_name is not None and not pa.types.is_integer(schema.field(label_name).type):
        raise ValueError(
            f"column {label_name!r} of {path} is {schema.field(label_name).type}; expected integer class "
            f"numbers. The columns are {_listed(schema)}."
        )
    count = file.metadata.num_rows
    if count == 0:
        raise ValueError(f"{path} has no rows.")
    columns = [image_name] if label_name is None else [image_name, label_name]
    labels: list[int | None] = []

    def images() -> Iterator[tuple[str, bytes]]:
        row, pieces = 0, file.iter_batches(columns=columns)
        while True:
            try:
                batch = next(pieces, None)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{path} is damaged behind row {row}: {error}. Download or write it again.") from error
            if batch is None:
                break
            if label_name is not None:
                labels.extend(batch.column(columns.index(label_name)).to_pylist())
            for value in batch.column(0).field("bytes"):
                name = f"row {row} of {path}"
                if not value.is_valid:
                    raise ValueError(f"{name} has no image bytes in column {image_name!r}.")
                yield name, value.as_py()
                row += 1
        if row != count:
            raise ValueError(f"{path} says that it has {count} rows, but holds {row}: it is damaged.")

    data = read_images(images(), count, mode)
    if label_name is None:
        return from_tensors(data)
    if None in labels:
        raise ValueError(f"row {labels.index(None)} of {path} has no label in column {label_name!r}.")
    return from_tensors(data, torch.tensor(labels), class_names=_class_names(schema.metadata, label_name))


def _listed(schema: Any) -> str:
    return ", ".join(f"{field.name!r} ({field.type})" for field in schema)


def _column(schema: Any, given: str | None, names: Sequence[str], path: Path, what: str) -> str | None:
    if given is not None:
        if given not in schema.names:
            raise ValueError(f"{path} has no column {given!r} for {what}_column; it has {_listed(schema)}.")
        return given
    found = [name for name in names if name in schema.names]
    if len(found) > 1:
        raise ValueError(f"{path} has the columns {' and '.join(found)}; say which one with {what}_column.")
    return found[0] if found else None


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> list[str] | None:
    """The names in ``{"info": {"features": {column: {"names": [...]}}}}``, where the schema carries them."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) and names else None
