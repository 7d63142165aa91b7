"""Files of unknown origin: what may be opened, and what they may ask for, decided before anything is allocated::

    with open_regular(path) as stream:                      # never a FIFO, a device or a socket, which could hang
        ...
    encoded = content(path, most=MOST_ENCODED)              # the bytes of a small file
    within_memory(count * size, "the images in pictures")            # ValueError in place of the end of the process

:class:`Unreadable` is the one kind of error with which readers answer to what cannot be read in one file among many.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

MOST_ENCODED = 2**30
"""Bytes of one encoded image: none of a size that is read here is larger."""
_SMALL = 2**30
_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Unreadable(ValueError):
    """Why one file, or one row, among others cannot be read; the text says nothing of its name."""


def irregular(mode: int) -> str | None:
    """What a file of this ``st_mode`` is, where it is no regular file."""
    return None if stat.S_ISREG(mode) else next((word for is_a, word in _KINDS if is_a(mode)), "no regular file")


def open_regular(path: Path) -> IO[bytes]:
    """A regular file, opened for reading. A link that leads to one is followed: who may name it decides elsewhere.

    Raises:
        Unreadable: something else, or it may not be read.
    """
    try:
        _refuse_irregular(os.stat(path).st_mode)  # first, since opening a device or FIFO may do something already
        stream = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 (closed by who asked for it)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    try:
        _refuse_irregular(os.fstat(stream.fileno()).st_mode)  # again: it may have been exchanged in between
    except BaseException:
        stream.close()
        raise
    return stream


def content(path: Path, *, most: int) -> bytes:
    """The bytes of a regular file of at most ``most`` bytes.

    Raises:
        Unreadable: another kind of file, too large, or it may not be read.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise Unreadable(f"it has {size} bytes; at most {most} are read")
        try:
            return stream.read(most)
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error


def within_memory(size: int, what: str) -> None:
    """Raises ValueError where ``size`` bytes exceed the memory of this machine, or of this container."""
    if size <= _SMALL:
        return
    limit = _memory()
    if limit is not None and size > limit:
        raise ValueError(
            f"{what} would take {size / 2**30:.1f} GiB of memory, and there are {limit / 2**30:.1f} GiB. "
            "Read fewer or smaller samples."
        )


def _refuse_irregular(mode: int) -> None:
    kind = irregular(mode)
    if kind is not None:
        raise Unreadable(f"it is {kind}; only regular files are read")


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a FIFO without a writer would wait for ever


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
