"""Files that are there whole or not at all, in a folder that is known to be writable before work starts::

    out = make_writable(Path("runs/digits"))                # now, not after an hour of work
    write_json(out / "report.json", {"accuracy": 0.99, "folder": out})
    with replacing(out / "samples.npy") as partial:
        np.save(partial, samples)

A file is written under another name beside its own, and takes its name when it is complete: at whatever moment a
process is killed or a disk fills up, who looks finds the file of before or the new one, never half of it. Checkpoints,
which are folders of several files, are written the same way by :mod:`scoresde.train`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

PathName = str | PathLike[str]

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
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write into {folder}: {error}. Choose a folder that you may write.") from error
    return folder


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The place to write a file at, with the same ending; it becomes ``path`` when the block ends without an error."""
    partial = path.with_name(PARTIAL + path.name)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, indented; what JSON does not know, such as paths, becomes text."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
