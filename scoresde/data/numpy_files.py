"""NumPy's files, of which nothing is believed: ``.npy`` and ``.npz`` into arrays of numbers. Pickle is never read.

    array = read_npy(stream, size, "x.npy")                          # shape and size agree, or it is refused
    found, others = read_arrays(path, ("x", "images"), ("label",))   # {"x": array, ...} and the names of the rest

The header says how large an array is. Before anything is allocated that is compared with the bytes there are, and in a
compressed archive with the bytes that there can be.
"""

from __future__ import annotations

import math
import os
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.data.foreign import within_memory
from scoresde.files import opened

Array = np.ndarray[Any, Any]

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_LARGE = "Leave an .npy file where it is, by mapped=True; or "
_MOST_DEFLATED = 1032  # no byte of deflate stands for more
_INSTEAD = {
    "b": "convert it by .astype(numpy.uint8), and give levels=2",
    "c": "store real and imaginary parts as two channels",
    "V": "store one of its fields, or numpy.lib.recfunctions.structured_to_unstructured of it",
    "U": "store numbers",
    "S": "store numbers",
}


def read_arrays(path: Path, *wanted: Sequence[str]) -> tuple[Array | dict[str, Array], tuple[str, ...]]:
    """The array of an ``.npy`` file; or of an ``.npz`` archive those called by one of the names in each of ``wanted``,
    with the names of all that it holds. The content decides which of the two it is.

    Raises:
        TypeError: an array of something else than integers or real numbers.
        ValueError: no such file, a damaged one, Python objects, more than fits into memory, two names for the same.
    """
    try:
        with opened(path, lambda text: _unreadable(str(path), text.removesuffix("."))) as stream:
            magic = stream.read(6)
            stream.seek(0)
            if magic[:2] != b"PK":
                return read_npy(stream, os.fstat(stream.fileno()).st_size, str(path)), ()
            return _read_npz(stream, path, wanted)
    except NotAnArray as refused:
        raise ValueError(str(refused)) from refused.__cause__
    except NotNumbers as refused:
        raise TypeError(str(refused)) from None
    except MemoryError as error:
        raise ValueError(f"reading {path} takes more memory than there is: {error}") from error
    except Exception as error:  # what damaged bytes make of a parser of headers, an archive, a decompressor: anything
        raise _unreadable(str(path), f"{error}" or type(error).__name__) from error


def read_npy(stream: IO[bytes], size: int, name: str) -> Array:
    """The array of the ``.npy`` file of ``size`` bytes that ``stream`` is at the start of.

    Raises: as :func:`read_arrays`, and whatever NumPy says of damaged bytes.
    """
    shape, dtype, _ = _checked_header(stream, size, name)
    try:
        within_memory(math.prod(shape) * dtype.itemsize, f"the array in {name}", hint=_LARGE)
    except ValueError as error:
        raise NotAnArray(str(error)) from error
    stream.seek(0)
    array: Array = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def map_npy(path: Path) -> Array:
    """The array of an ``.npy`` file, left in it: the pages that are looked at are read, and forgotten where memory is
    short. It cannot be written to.

    Raises:
        TypeError: an array of something else than integers or real numbers.
        ValueError: no such file, a damaged one, Python objects, an archive, or numbers that would have to be converted.
    """
    try:
        with opened(path, lambda text: _unreadable(str(path), text.removesuffix("."))) as stream:
            if stream.read(2) == b"PK":
                raise NotAnArray(f"{path} is an archive, which cannot be mapped: write x alone by numpy.save.")
            stream.seek(0)
            shape, dtype, fortran = _checked_header(stream, os.fstat(stream.fileno()).st_size, str(path))
            if fortran and len(shape) > 1:
                raise NotAnArray(
                    f"{path} is in Fortran's order, in which a sample lies all over the file: write it by "
                    "numpy.save(..., numpy.ascontiguousarray(x))."
                )
            if not math.prod(shape):
                return np.empty(shape, dtype)
            found: Array = np.memmap(stream, dtype, mode="r", offset=stream.tell(), shape=shape)
            return found
    except NotAnArray as refused:
        raise ValueError(str(refused)) from refused.__cause__
    except NotNumbers as refused:
        raise TypeError(str(refused)) from None
    except Exception as error:  # what damaged bytes make of a parser of headers: anything
        raise _unreadable(str(path), f"{error}" or type(error).__name__) from error


def mapped_tensor(array: Array, path: Path) -> Tensor:
    """A mapped array as a tensor on the same memory.

    Raises:
        ValueError: of a dtype that torch does not know, or in the order of bytes of another machine.
    """
    if array.dtype != _native(array.dtype):
        raise ValueError(
            f"{path} holds {array.dtype}, which would have to be converted, and so be read into memory: write "
            f"{_native(array.dtype)} to map it."
        )
    with warnings.catch_warnings():  # that it cannot be written to: nobody does
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def _checked_header(stream: IO[bytes], size: int, name: str) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, dtype and whether the order is Fortran's, of a file at whose first number the stream is then."""
    read_header = _HEADERS.get(np.lib.format.read_magic(stream))
    if read_header is None:
        raise _unreadable(name, "a version of the format that holds no plain numbers")
    shape, fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise _unreadable(name, "it holds Python objects")
    if dtype.kind not in "iuf":
        instead = _INSTEAD.get(dtype.kind)
        raise NotNumbers(
            f"{name} holds an array of {dtype}; expected integers or real numbers{f': {instead}' if instead else ''}."
        )
    need, there = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if min(shape, default=0) < 0 or need > there:
        raise _unreadable(name, f"its header says shape {shape} of {dtype}, {need} bytes, but {there} follow")
    if need < there:
        raise NotAnArray(
            f"{name} holds {there - need} bytes more than the one array that its header tells of, shape {shape} of "
            f"{dtype}. Write one array into a file, or several by numpy.savez."
        )
    return shape, dtype, fortran


def _read_npz(
    stream: IO[bytes], path: Path, wanted: Sequence[Sequence[str]]
) -> tuple[dict[str, Array], tuple[str, ...]]:
    found: dict[str, Array] = {}
    with zipfile.ZipFile(stream) as archive:
        names = tuple(entry.filename.removesuffix(".npy") for entry in archive.infolist())
        for name in dict.fromkeys(name for group in wanted for name in _chosen(names, group, path)):
            (info,) = (entry for entry in archive.infolist() if entry.filename.removesuffix(".npy") == name)
            label = f"{path} ({name})"
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _unreadable(label, "it is compressed in a way that NumPy does not write")
            if info.file_size > _MOST_DEFLATED * (info.compress_size + 1):
                raise _unreadable(label, f"{info.compress_size} bytes cannot become the {info.file_size} it tells of")
            with archive.open(info) as member:
                found[name] = read_npy(member, info.file_size, label)
    return found, names


def _chosen(names: Sequence[str], group: Sequence[str], path: Path) -> list[str]:
    chosen = [name for name in names if name in group]
    if len(chosen) > 1:
        raise NotAnArray(f"{path} holds {' and '.join(chosen)}, which say the same; keep one of them.")
    return chosen


def as_tensor(array: Array, path: Path) -> Tensor:
    """An array of a file as a tensor of its own, in a dtype that torch knows.

    Raises:
        ValueError: numbers that int64 cannot hold.
    """
    if array.dtype.kind == "u" and array.dtype.itemsize == 8 and array.size and int(array.max()) >= 2**63:
        raise ValueError(f"{path} holds whole numbers of 2**63 and more; expected less.")
    return torch.from_numpy(np.asarray(array, dtype=_native(array.dtype), order="C"))


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that torch computes with."""
    native = dtype.newbyteorder("=")
    if native in (np.uint16, np.uint32, np.uint64, np.longdouble):  # torch knows little of these
        return np.dtype(np.float64 if native.kind == "f" else np.int64)
    return native


class NotAnArray(ValueError):
    """An error whose message is complete."""


class NotNumbers(TypeError):
    """The same, of an array of something else."""


def _unreadable(name: str, reason: str) -> ValueError:
    return NotAnArray(
        f"cannot read {name} as NumPy data: {reason}. It may be cut short or hold Python objects; "
        "write plain numbers with numpy.save or numpy.savez."
    )
