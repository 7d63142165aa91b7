"""Files of unknown origin: what may be read of them, and what they may ask for, decided before anything is allocated::

    encoded = content(path, most=MOST_ENCODED)              # never of a FIFO, a device or a socket, which could hang
    within_memory(count * size, "the images in pictures")            # ValueError in place of the end of the process

:class:`Unreadable` is the one kind of error with which readers answer to what cannot be read in one file among many.
"""

from __future__ import annotations

import os
from pathlib import Path

from scoresde.files import opened

MOST_ENCODED = 2**30
"""Bytes of one encoded image: none of a size that is read here is larger."""
_SMALL = 2**30
_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class Unreadable(ValueError):
    """Why one file, or one row, among others cannot be read; the text says nothing of its name."""


def content(path: Path, *, most: int) -> bytes:
    """The bytes of a regular file of at most ``most`` bytes. A link that leads to one is followed: who may name it
    decides elsewhere.

    Raises:
        Unreadable: another kind of file, too large, gone, or it may not be read.
    """
    try:
        with opened(path, lambda text: Unreadable(text.removesuffix(".")), most=most) as stream:
            return stream.read(most)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error


def within_memory(size: int, what: str, *, hint: str = "") -> None:
    """Raises ValueError where ``size`` bytes exceed the memory of this machine, or of this container."""
    if size <= _SMALL:
        return
    limit = _memory()
    if limit is not None and size > limit:
        raise ValueError(
            f"{what} would take {size / 2**30:.1f} GiB of memory, and there are {limit / 2**30:.1f} GiB. "
            f"{hint}{'read' if hint else 'Read'} fewer or smaller samples."
        )


def _memory() -> int | None:
    """Bytes of memory that this process could have at most; None where the system does not tell."""
    try:
        limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, ValueError, OSError):
        limits = []
    for path in _CGROUPS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(limits, default=None)
