"""Where decoded pictures go: into memory, or row by row into an ``.npy`` file that is mapped into it afterwards::

pixels = PixelRows((count, 3, 32, 32), None)            # or Path("new.npy"), for more than memory holds
pixels.add(picture)                                 # uint8 (3, 32, 32), at most count times
pixels.end()                                        # uint8 (n, 3, 32, 32), those that were added
"""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from torch import Tensor

from scoresde.data.foreign import within_memory
from scoresde.data.numpy_files import map_npy, mapped_tensor

_HEADER = 128  # bytes: two of the 64 to which NumPy aligns numbers
_MAGIC = b"\x93NUMPY\x01\x00"


class PixelRows:
    """Rows of uint8, one after the other.

    Args:
        shape: (count, C, H, W), of which there are count rows at most.
        into: a new file; None for memory.

    Raises:
        ValueError: more than fits into memory.
    """

    def __init__(self, shape: tuple[int, int, int, int], into: Path | None) -> None:
        count, *row = shape
        self._shape, self._path, self._added = tuple(row), into, 0
        if into is not None:
            self._file = into.open("wb")
            self._file.write(bytes(_HEADER))  # how many there are is known at the end
            return
        what = f"{count} images of {row[2]}x{row[1]}"
        within_memory(count * row[0] * row[1] * row[2], what, hint="Decode them into a file, by decoded=...; or ")
        try:
            self._rows = torch.empty(shape, dtype=torch.uint8)
        except (RuntimeError, MemoryError) as error:
            raise ValueError(f"there is no memory for {what}: {error}") from error

    def add(self, row: Tensor) -> None:
        """One more row (C, H, W)."""
        if self._path is None:
            self._rows[self._added] = row
        else:
            self._file.write(row.numpy().tobytes())
        self._added += 1

    def end(self) -> Tensor:
        """The rows that were added, in memory or in the file."""
        if self._path is None:
            return self._rows[: self._added]
        shape = ", ".join(map(str, (self._added, *self._shape)))
        fields = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({shape}), }}"
        room = _HEADER - len(_MAGIC) - 2
        with self._file as file:
            file.seek(0)
            file.write(_MAGIC + struct.pack("<H", room) + fields.ljust(room - 1).encode() + b"\n")
        return mapped_tensor(map_npy(self._path), self._path)
