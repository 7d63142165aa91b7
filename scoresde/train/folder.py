"""The folder of a run: checkpoints that are there whole or not at all.

A checkpoint is written into a hidden folder beside its place, flushed to disk, and renamed: whatever moment a process
is killed or a disk fills up, the folders named step-... are complete. This file knows nothing of what is in them but
config.json, which lists the others with size and hash, and carries a hash of its own content.

:func:`write` makes a checkpoint of functions that write one file each; the others find and verify what is there::

    prepare(folder)
    path = write(folder, step, config, {"training.json": json_writer(state)})    # folder/step-00002000
    find(folder), checkpoints(folder)                                           # the one meant; all, oldest first
    config = read_sealed(path, CONFIG)                                          # CheckpointError where it was changed
    verified(path, "training.json", size, digest)                               # as config.json lists them

:mod:`scoresde.train.checkpoint` says what goes into the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from scoresde.files import MOST_JSON, PARTIAL, Fail, Fields, flush, make_writable, opened, read_json, saving
from scoresde.warning import warn_user

Writer = Callable[[Path], None]

CONFIG, LOG, RUN = "config.json", "log.jsonl", "checkpoints"
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".pyt", ".msgpack"})
"""Endings of files of weights that are no safetensors."""
_PIPELINE = "model_index.json"
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
    """The checkpoint that ``folder`` means; every reader finds its checkpoint by this rule.

    A step-... folder, or one that ``save_pretrained`` wrote, is a checkpoint itself. Of a folder with step-... folders
    in it, it is the latest of them; of the folder of a run, the same of its sub-folder "checkpoints", or else of the
    only one that has any (a run of several models keeps each in a folder of its own).

    Raises:
        CheckpointError: there is none, or one of several models would have to be chosen, or the folder cannot be read,
            or is another program's.
    """
    try:
        found = _found(folder)
        if found is None and (aside := aside_of(folder)).is_dir() and not folder.exists():
            found = aside  # a process was killed between the two steps of replacing the folder
        if found is not None:
            check_own(found)
            return found
        below = [] if not folder.is_dir() else [path for path in sorted(folder.iterdir()) if _visible(path)]
        several = [(path, latest) for path in below if (latest := _latest(path)) is not None]
        if len(several) == 1:
            return several[0][1]
    except OSError as error:
        raise CheckpointError(f"no checkpoint in {folder}: it cannot be read ({error}).") from error
    if several:
        names = ", ".join(path.name for path, _ in several[:8]) + (", ..." if len(several) > 8 else "")
        raise CheckpointError(
            f"{folder} holds the checkpoints of {len(several)} models, in {names}: give the folder of one of them, "
            f"{several[0][0]}."
        )
    check_own(folder)
    named = not folder.is_absolute() and len(folder.parts) <= 2 and not folder.exists()
    what = "it is a file" if folder.is_file() else "there is no such folder"
    what = "it holds no folder step-... and no config.json" if folder.is_dir() else what
    raise CheckpointError(
        f"no checkpoint in {folder}: {what}. Give the folder that training or save_pretrained wrote into."
        f"{' Names of models that ship, and ids of a hub, are for ScoreModel.from_pretrained.' if named else ''}"
    )


def _found(folder: Path) -> Path | None:
    """The checkpoint that a folder is, or the latest in it or in its "checkpoints"."""
    if (folder / CONFIG).exists() or (_NAME.fullmatch(folder.name) and folder.is_dir()):
        return folder
    return _latest(folder)


def _latest(folder: Path) -> Path | None:
    return next((found[-1] for inner in (folder, folder / RUN) if (found := checkpoints(inner))), None)


def has_run(folder: Path) -> bool:
    """Whether a folder is a checkpoint, or has one or the place of some in it, whole or not."""
    own = _NAME.fullmatch(folder.name) or (folder / CONFIG).exists() or (folder / RUN).exists()
    return bool(own) or any(_latest(path) is not None for path in (folder, *filter(_visible, folder.iterdir())))


def _visible(folder: Path) -> bool:
    return not folder.name.startswith(".") and folder.is_dir()


def aside_of(folder: Path) -> Path:
    """Where a folder is, whole, for the moment in which another takes its name."""
    place = Path(os.path.realpath(folder))  # "." and links, too, have a name there
    return place.parent / f"{PARTIAL}old-{place.name}"


def check_own(folder: Path) -> None:
    """Raise where a folder was written by another program that is known, with what reads it.

    Raises:
        CheckpointError: it was.
    """
    with suppress(OSError):
        if folder.is_dir() and not _NAME.fullmatch(folder.name):
            content: dict[str, Any] = {}
            with suppress(OSError, ValueError):
                content = read_json(folder / CONFIG, ValueError)
            told = foreign(str(folder), [path.name for path in folder.iterdir()], content)
            if told is not None:
                raise CheckpointError(told)


def foreign(where: str, names: Collection[str], config: Mapping[str, Any]) -> str | None:
    """What a folder of somebody else holds and what reads it, in words; None for ours, and where nothing is known.

    Args:
        where: the folder, or the name of a repository.
        names: of the files in it.
        config: what its config.json says, if it has one.
    """
    reads = "which scoresde.interop reads: scoresde.interop.from_diffusers"
    if SEAL in config:
        return None
    if _PIPELINE in names:
        return f"{where} holds a pipeline of diffusers, {reads}('{where}/unet', scheduler)."
    if isinstance(config.get("_class_name"), str):
        return f"{where} holds a {config['_class_name']:.60} of diffusers, {reads}('{where}', scheduler)."
    if isinstance(config.get("model_type"), str) or "architectures" in config:
        return f"{where} holds a model of transformers ({config.get('model_type')!r:.60}), which is no score model."
    pickles = sorted(name for name in names if PurePath(name).suffix in PICKLES)
    if pickles and CONFIG not in names:
        return (
            f"{where} holds {', '.join(pickles[:5])}: pickles, which run code when they are read, and are not read "
            "here. Build the network, load its weights by torch.load(..., weights_only=True), and write them with "
            "ScoreModel(net, sde).save_pretrained(folder)."
        )
    return None


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
    for path in (
        *folder.glob(f"{PARTIAL}step-*"),
        *folder.glob(f"{PARTIAL}*-{LOG}"),
        *folder.glob(f"{PARTIAL}probe-*"),
    ):
        if path in _WRITING:  # by another thread of this process
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


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
    draft = Draft(folder, step)
    try:
        return draft.finish(config, written_files(draft.path, files))
    except BaseException:
        draft.drop()
        raise


class Draft:
    """A checkpoint that is being written, out of sight until it is finished.

    Args:
        folder: of the run, writable.
        step: names it; a second one of a step gets a name of its own.

    Attributes:
        path: the folder to write the files into.

    Raises:
        OSError: it could not be made.
    """

    def __init__(self, folder: Path, step: int) -> None:
        name, again = f"step-{step:08d}", 1
        while os.path.lexists(folder / name) or folder / f"{PARTIAL}{name}" in _WRITING:
            again += 1
            name = f"step-{step:08d}-{again}"
        self._folder, self._name, self.path = folder, name, folder / f"{PARTIAL}{name}"
        _WRITING.add(self.path)
        try:
            self.path.mkdir()
        except BaseException:
            _WRITING.discard(self.path)
            raise

    def finish(self, config: Mapping[str, Any], listed: Mapping[str, Mapping[str, Any]]) -> Path:
        """Write config.json, which lists the files, and give the folder its name.

        Raises:
            OSError: it could not be written.
        """
        _seal(self.path, config, listed)
        self.path.rename(self._folder / self._name)
        flush(self._folder)
        _WRITING.discard(self.path)
        return self._folder / self._name

    def drop(self) -> None:
        """Leave nothing of it, unless it is finished."""
        if self.path in _WRITING:
            shutil.rmtree(self.path, ignore_errors=True)
            _WRITING.discard(self.path)


def fill(partial: Path, config: Mapping[str, Any], files: Mapping[str, Writer]) -> None:
    """Write these files into a folder, and config.json, which lists them, all of it down to the disk.

    Raises:
        OSError: it could not be written.
    """
    _seal(partial, config, written_files(partial, files))


def written_files(partial: Path, files: Mapping[str, Writer]) -> dict[str, dict[str, Any]]:
    """Write these files into a folder, down to the disk; their sizes and hashes, as config.json lists them.

    Raises:
        OSError: it could not be written.
    """
    listed = {}
    for file, writer in files.items():
        path = partial / file
        with saving(path):
            writer(path)
        listed[file] = {"bytes": path.stat().st_size, "sha256": sha256(path, OSError)}
    return listed


def _seal(partial: Path, config: Mapping[str, Any], listed: Mapping[str, Mapping[str, Any]]) -> None:
    with saving(partial / CONFIG):
        json_writer(sealed({**config, "files": dict(listed)}))(partial / CONFIG)
    flush(partial)


def prune(folder: Path, keep: int, written: Path, spare: Collection[str] = ()) -> None:
    """Remove all checkpoints but the last ``keep``, the one just written, whatever its step, and those of ``spare``.

    What cannot be removed stays, with a warning: the new checkpoint is there all the same.
    """
    for old in checkpoints(folder)[:-keep]:
        if old == written or old.name in spare:
            continue
        # Out of sight first: a kill in the middle of the removal must not leave half a checkpoint with a good name.
        doomed = folder / f"{PARTIAL}{old.name}"
        try:
            if old.is_symlink():  # to where somebody moved it: that stays
                old.unlink()
                continue
            old.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            warn_user(
                f"{written} is written, but the old checkpoint {old.name} beside it could not be removed ({error}); "
                "remove it by hand."
            )


def json_writer(content: Mapping[str, Any]) -> Writer:
    """A function that writes ``content`` at a path.

    Raises:
        ValueError: more than can be read again, NaN or infinity.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    if len(text) > MOST_JSON:  # of ASCII
        raise ValueError(
            f"a JSON file of a checkpoint would have {len(text)} bytes; at most {MOST_JSON} are read again."
        )

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with its own SHA-256, that of its canonical JSON (sorted keys, no spaces) without the hash."""
    bare = {key: value for key, value in content.items() if key != SEAL}
    canonical = json.dumps(bare, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {**bare, SEAL: hashlib.sha256(canonical.encode()).hexdigest()}


def read_sealed(checkpoint: Path, name: str) -> Fields:
    """The fields of a JSON file that was written with its own hash.

    Raises:
        CheckpointError: it is missing, is no JSON object, or its content is not the one that was written.
    """
    content = _read(checkpoint, name)
    if sealed(content)[SEAL] != content.get(SEAL):
        raise CheckpointError(
            f"{checkpoint / name} is damaged: its SHA-256 is not the one written; it was changed. {instead(checkpoint)}"
        )
    return Fields(content, damaged(checkpoint, name))


def read_json_fields(checkpoint: Path, name: str) -> Fields:
    """The fields of one of a checkpoint's JSON files.

    Raises:
        CheckpointError: it is missing or is no JSON object.
    """
    return Fields(_read(checkpoint, name), damaged(checkpoint, name))


def _read(checkpoint: Path, name: str) -> dict[str, Any]:
    try:
        return read_json(checkpoint / name, damaged(checkpoint, name))
    except FileNotFoundError as error:
        raise CheckpointError(f"{checkpoint / name} is missing. {instead(checkpoint)}") from error


def damaged(checkpoint: Path, name: str) -> Fail:
    """Errors about one of a checkpoint's files."""
    return lambda text: CheckpointError(f"{checkpoint / name} is damaged: {text} {instead(checkpoint)}")


def verified(checkpoint: Path, name: str, size: int, digest: str) -> Path:
    """The path of a file that has the size and hash it was written with.

    Raises:
        CheckpointError: it has not, is missing, or is no regular file.
    """
    path, fail = checkpoint / name, damaged(checkpoint, name)
    try:
        check_size(checkpoint, name, size)
        if sha256(path, fail) != digest:
            raise fail("its SHA-256 is not the one written.")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing. {instead(checkpoint)}") from error
    except OSError as error:
        raise fail(f"the file cannot be read ({error}).") from error
    return path


def check_size(checkpoint: Path, name: str, size: int) -> None:
    """Raise unless a file is a regular one of so many bytes.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is another.
    """
    path = checkpoint / name
    with opened(path, damaged(checkpoint, name)) as file:
        found = os.fstat(file.fileno()).st_size
    if found != size:
        raise CheckpointError(
            f"{path} has {found} bytes, but {size} were written: it was cut short or changed. {instead(checkpoint)}"
        )


def instead(checkpoint: Path) -> str:
    """What to do without a damaged checkpoint."""
    if checkpoint.parent.name == "snapshots":  # in the cache of a hub, whose client looks into no file that it has
        return (
            f"It is in the cache of a hub: remove {checkpoint.parent.parent}, and it is fetched again; where that does "
            "not help, ask who published it."
        )
    others = []
    with suppress(OSError):
        others = [other.name for other in checkpoints(checkpoint.parent) if other != checkpoint]
    if others:
        return f"Remove {checkpoint.name}: {others[-1]} beside it is then the latest."
    return "There is no other checkpoint beside it: copy it again from where it came, or train again."


def sha256(path: Path, fail: Fail) -> str:
    """Of the bytes of a file."""
    digest = hashlib.sha256()
    with opened(path, fail) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


_WRITING: set[Path] = set()
"""The unfinished checkpoints that threads of this process are writing."""
