"""Files that are there whole or not at all, in a folder that is known to be writable before work starts::

    out = make_writable(Path("runs/digits"))                # now, not after an hour of work
    write_json(out / "report.json", {"accuracy": 0.99, "folder": out})
    with replacing(out / "samples.npy") as partial:
        np.save(partial, samples)

A file is written under another name beside its own, and takes its name when it is complete: at whatever moment a
process is killed or a disk fills up, who looks finds the file of before or the new one, never half of it. Checkpoints,
which are folders of several files, are written the same way by :mod:`scoresde.train`.

:func:`saving` is the one way in which the library writes a file, :func:`append_line` the one in which it adds to one:
whatever goes wrong is an OSError, and the file has the mode that the user's umask gives, not that of who wrote it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

from scoresde.files.reading import MOST_JSON

PathName = str | PathLike[str]
"""A file or folder."""

PARTIAL = ".partial-"
"""What the names of unfinished files and folders begin with."""


def make_writable(folder: Path) -> Path:
    """Make the folder, with those above it, and try to write in it.

    Raises:
        ValueError: it cannot be made or written.
    """
    probe = folder / f"{PARTIAL}probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)  # whoever claims a run's folder sweeps there
    except OSError as error:
        raise ValueError(f"cannot write into {folder}: {error}. Choose a folder that you may write.") from error
    return folder


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """In the block a file is written at ``path``; after it, it is on the disk, with the mode of any new file.

    Raises:
        OSError: it was not written.
    """
    with open(path, "wb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    path.unlink()  # what is not written in the block is not there
    yield
    if stat.S_IMODE(path.stat().st_mode) != mode:  # some libraries write temporary files, for nobody else's eyes
        path.chmod(mode)
    flush(path)  # or a power cut could leave a name on an empty file


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The place to write a file at, with the same ending; it becomes ``path`` when the block ends without an error."""
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")  # of this process: another may write the same file
    try:
        with saving(partial):
            yield partial
        os.replace(partial, path)
    finally:
        with suppress(OSError):  # a disk that can no longer be written is not what went wrong first
            partial.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, whole or not at all, as far as the system lets it; it is in the file when this returns.

    Raises:
        OSError: it was not added.
    """
    content = (line + "\n").encode("utf-8")
    with open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            with suppress(OSError):
                file.truncate(before)
            raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, indented; what JSON does not know, such as paths, becomes text."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def write_format(path: Path, *, format: str, version: int, content: Mapping[str, Any]) -> Path:
    """Write what :func:`~scoresde.files.read_format` reads: JSON whose numbers come back bit for bit.

    Raises:
        ValueError: NaN or infinity, or more than can be read again.
    """
    text = json.dumps({"format": format, "version": version, **content}, indent=1, allow_nan=False)
    if len(text) >= MOST_JSON:
        raise ValueError(f"{path} would have {len(text)} bytes; at most {MOST_JSON} are read again.")
    with replacing(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    return path


def flush(path: Path) -> None:
    """Down to the disk; folders too, where the system can open them."""
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
