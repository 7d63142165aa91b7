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
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")  # of this process: another may write the same file
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, indented; what JSON does not know, such as paths, becomes text."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def write_format(path: Path, *, format: str, version: int, content: Mapping[str, Any]) -> Path:
    """Write what :func:`read_format` reads: JSON whose numbers come back bit for bit; NaN and infinity are refused."""
    text = json.dumps({"format": format, "version": version, **content}, indent=1, allow_nan=False)
    with replacing(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    return path


def read_format(path: Path, *, format: str, version: int, what: str, mend: str) -> Mapping[str, Any]:
    """The content of a file whose "format" and "version" are those.

    Args:
        path: the file.
        format: what it should say that it is.
        version: of the format, that can be read.
        what: what the file should hold, in words.
        mend: how such a file is made.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another file, another version, or no JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); {mend}.") from error
    if not isinstance(content, Mapping) or content.get("format") != format:
        raise ValueError(f'{path} holds no {what}: its "format" should be {format!r}.')
    if content.get("version") != version:
        raise ValueError(
            f"{path} has version {content.get('version')!r} of the format, this library reads {version}; {mend}."
        )
    return content
