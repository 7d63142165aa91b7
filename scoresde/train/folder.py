"""The folder of a run: checkpoints that are there whole or not at all.

A checkpoint is written into a hidden folder beside its place, flushed to disk, and renamed: whatever moment a process
is killed or a disk fills up, the folders named step-... are complete. This file knows nothing of what is in them but
config.json, which lists the others with size and hash, and carries a hash of its own content.

:func:`write` makes a checkpoint of functions that write one file each; the others find and verify what is there::

    prepare(folder)
    path = write(folder, step, config, {"training.json": json_writer(state)})    # folder/step-00002000
    find(folder), checkpoints(folder)                                           # the latest; all, oldest first
    config = read_sealed(path, CONFIG)                                          # CheckpointError where it was changed
    verified(path, "training.json", config["files"]["training.json"])

:mod:`scoresde.train.checkpoint` says what goes into the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scoresde.files import PARTIAL, make_writable

Writer = Callable[[Path], None]

CONFIG = "config.json"
SEAL = "sha256"
_NAME = re.compile(r"step-(\d+)(?:-(\d+))?")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another make, or that cannot be written."""


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in the folder of a run, oldest first."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted(found, key=lambda m: (int(m[0][1]), int(m[0][2] or 0)))]


def find(folder: Path) -> Path:
    """``folder`` itself if it is a checkpoint, else the latest in it.

    Raises:
        CheckpointError: there is none.
    """
    if (folder / CONFIG).exists() or (_NAME.fullmatch(folder.name) and folder.is_dir()):
        return folder
    found = checkpoints(folder)
    if not found:
        what = "it holds no folder step-..." if folder.is_dir() else "there is no such folder"
        raise CheckpointError(f"no checkpoint in {folder}: {what}. Give the folder that training wrote into.")
    return found[-1]


def prepare(folder: Path) -> None:
    """Make the folder of a run and try to write in it.

    Raises:
        CheckpointError: it cannot be made or written.
    """
    try:
        make_writable(folder)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written; only for who owns the folder."""
    for path in folder.glob(f"{PARTIAL}step-*"):
        shutil.rmtree(path, ignore_errors=True)


def write(folder: Path, step: int, config: Mapping[str, Any], files: Mapping[str, Writer]) -> Path:
    """Write a checkpoint: all files, then config.json with their sizes and hashes, then give it its name.

    Args:
        folder: of the run, writable.
        step: names it; a second one of a step gets a name of its own.
        config: JSON, to which ``files`` is added.
        files: a function for each file, which writes it at the path it is given.

    Raises:
        OSError: it could not be written; nothing is left of it.
    """
    name, again = f"step-{step:08d}", 1
    while (folder / name).exists():
        again += 1
        name = f"step-{step:08d}-{again}"
    partial = folder / f"{PARTIAL}{name}"
    try:
        partial.mkdir()
        listed = {}
        for file, writer in files.items():
            path = partial / file
            writer(path)
            _flush(path)
            listed[file] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        json_writer(sealed({**config, "files": listed}))(partial / CONFIG)
        _flush(partial / CONFIG)
        _flush(partial)
        partial.rename(folder / name)
        _flush(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder / name


def prune(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the last ``keep``."""
    for old in checkpoints(folder)[:-keep]:
        # Out of sight first: a kill in the middle of the removal must not leave half a checkpoint with a good name.
        doomed = folder / f"{PARTIAL}{old.name}"
        old.rename(doomed)
        shutil.rmtree(doomed)


def json_writer(content: Mapping[str, Any]) -> Writer:
    """A function that writes ``content`` at a path."""

    def write(path: Path) -> None:
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    return write


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with its own SHA-256, that of its canonical JSON (sorted keys, no spaces) without the hash."""
    bare = {key: value for key, value in content.items() if key != SEAL}
    canonical = json.dumps(bare, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {**bare, SEAL: hashlib.sha256(canonical.encode()).hexdigest()}


def read_sealed(checkpoint: Path, name: str) -> dict[str, Any]:
    """A JSON file that was written with its own hash.

    Raises:
        CheckpointError: it is missing, is no JSON object, or its content is not the one that was written.
    """
    content = read_json(checkpoint, name)
    try:
        intact = sealed(content)[SEAL] == content.get(SEAL)
    except ValueError:  # NaN or infinity, which is never written
        intact = False
    if not intact:
        raise CheckpointError(
            f"{checkpoint / name} is damaged: its SHA-256 is not the one written; it was changed. {instead(checkpoint)}"
        )
    return content


def read_json(checkpoint: Path, name: str) -> dict[str, Any]:
    """One of a checkpoint's JSON files.

    Raises:
        CheckpointError: it is missing or is no JSON object.
    """
    path = checkpoint / name
    if not path.exists():
        raise CheckpointError(f"{path} is missing. {instead(checkpoint)}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). {instead(checkpoint)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: expected a JSON object. {instead(checkpoint)}")
    return content


def verified(checkpoint: Path, name: str, expected: Mapping[str, Any]) -> Path:
    """The path of a file that has the size and hash it was written with.

    Raises:
        CheckpointError: it has not, or is missing.
    """
    path = checkpoint / name
    if not path.exists():
        raise CheckpointError(f"{path} is missing. {instead(checkpoint)}")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise CheckpointError(
            f"{path} has {size} bytes, but {expected['bytes']} were written: it was cut short or changed. "
            f"{instead(checkpoint)}"
        )
    if _sha256(path) != expected["sha256"]:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one written. {instead(checkpoint)}")
    return path


def instead(checkpoint: Path) -> str:
    """What to do without a damaged checkpoint."""
    others = [other.name for other in checkpoints(checkpoint.parent) if other != checkpoint]
    if others:
        return f"Remove {checkpoint.name}: {others[-1]} beside it is then the latest."
    return "There is no other checkpoint beside it: copy it again from where it came, or train again."


def _flush(path: Path) -> None:
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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
