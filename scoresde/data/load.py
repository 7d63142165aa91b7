"""Files into data sets: NumPy arrays, folders of images, Parquet of images. Pickle is never read."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from scoresde.data.dataset import Dataset, from_tensors
from scoresde.data.images import SUFFIXES, Mode, decode
from scoresde.data.scaling import Scaling
from scoresde.extras import needs

PathName = str | PathLike[str]

_IMAGES = ("x", "images", "image", "data", "arr_0")
_LABELS = ("label", "labels", "y")
_IMAGE_COLUMNS = ("image", "img")


def load(path: PathName, **options: Any) -> Dataset:
    """A data set from a file or folder; what is there decides how it is read.

    ==================  ==================  ==============================================================
    path                read by             options
    ==================  ==================  ==============================================================
    ``.npy``, ``.npz``  ``load_array``      label, channels, levels, scaling, num_classes, class_names
    a folder of images  ``load_folder``     mode
    ``.parquet``        ``load_parquet``    mode, image_column, label_column
    ==================  ==================  ==============================================================

    Raises:
        FileNotFoundError: nothing at ``path``.
        TypeError: an option that this kind of file does not have.
        ValueError: a kind of file that is not read here, or one of the errors of the three readers.
    """
    return reader_of(path)(path, **options)


def reader_of(path: PathName) -> Callable[..., Dataset]:
    """``load_array``, ``load_folder`` or ``load_parquet``: the one by which ``load`` reads ``path``.

    Raises:
        FileNotFoundError: nothing at ``path``.
        ValueError: a kind of file that is not read here.
    """
    path = _existing(path)
    if path.is_dir():
        return load_folder
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        return load_array
    if suffix == ".parquet":
        return load_parquet
    why = " Files of torch.save are pickles, which can run code: save the tensor with numpy.save instead."
    raise ValueError(
        f"cannot read {path}: expected a folder of images, or a file ending in .npy, .npz or .parquet, got "
        f"{suffix or 'no ending'!r}.{why if suffix in ('.pt', '.pth', '.pkl', '.ckpt') else ''}"
    )


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
    path = _existing(path)
    loaded = _read_numpy(path)
    labels: np.ndarray[Any, Any] | None = None
    if isinstance(loaded, dict):
        array = _pick(loaded, _IMAGES, path, required=True)
        labels = _pick(loaded, _LABELS, path, required=False)
    else:
        array = loaded
    if label is not None:
        if labels is not None:
            raise ValueError(f"{path} has labels of its own; leave label={str(label)!r} out.")
        found = _read_numpy(_existing(label))
        labels = _pick(found, _LABELS, Path(label), required=True) if isinstance(found, dict) else found
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


def load_folder(path: PathName, *, mode: Mode | None = None) -> Dataset:
    """A folder of images of one size: sub-folders are classes, sorted by name; without them, no labels.

    Args:
        path: the folder. Hidden files and folders, and files whose ending is not an image's, are passed over.
        mode: "L" (grey) or "RGB" converts all images; by default all must be the same of the two.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no images, an empty class, images beside class folders, an unreadable image, mixed sizes or
            modes.
    """
    path = _existing(path)
    if not path.is_dir():
        raise ValueError(f"{path} is a file; expected a folder of images.")
    inside = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    folders = [p for p in inside if p.is_dir()]
    top = [p for p in inside if _is_image(p)]
    if not folders:
        if not top:
            parquet = [p.name for p in inside if p.suffix.lower() == ".parquet"]
            hint = f" It holds Parquet files ({', '.join(parquet[:5])}): pass one of them." if parquet else ""
            raise ValueError(f"{path} holds no images (looked for {', '.join(sorted(SUFFIXES))}).{hint}")
        return from_tensors(decode(((str(p), p) for p in top), len(top), mode))
    if top:
        raise ValueError(
            f"{path} holds images ({top[0].name}, ...) beside folders ({folders[0].name}, ...). "
            "Put every image into the folder of its class, or all into one folder without sub-folders."
        )
    files: list[Path] = []
    label: list[int] = []
    for i, folder in enumerate(folders):
        members = sorted(p for p in folder.rglob("*") if _is_image(p) and not _hidden(p.relative_to(folder)))
        if not members:
            raise ValueError(f"the class folder {folder} holds no images; remove it or fill it.")
        files += members
        label += [i] * len(members)
    images = decode(((str(p), p) for p in files), len(files), mode)
    return from_tensors(images, torch.tensor(label), class_names=[p.name for p in folders])


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
    path = _existing(path)
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
    label_name = _column(schema, label_column, _LABELS, path, "label")
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

    data = decode(images(), count, mode)
    if label_name is None:
        return from_tensors(data)
    if None in labels:
        raise ValueError(f"row {labels.index(None)} of {path} has no label in column {label_name!r}.")
    return from_tensors(data, torch.tensor(labels), class_names=_class_names(schema.metadata, label_name))


def _existing(path: PathName) -> Path:
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no data at {path} (looked in {Path.cwd()} for relative paths).")
    return path


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _read_numpy(path: Path) -> np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]:
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
