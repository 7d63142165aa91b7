"""Folders of images into data sets: sub-folders are classes, in the order of their names.

:func:`load_folder` is the reader that :func:`~scoresde.data.load` uses for a folder::

    dataset = load_folder("pictures", mode="RGB")
    dataset = load_folder("pictures", skip_bad=True)            # what cannot be read is listed in dataset.skipped
    print(dataset)                                              # what was understood, and what was passed over

How images are decoded, and which formats, is told by :mod:`scoresde.data.images`.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from scoresde import checks
from scoresde.data.dataset import Dataset, from_tensors
from scoresde.data.decoded import decoded_once, origin_of
from scoresde.data.foreign import Unreadable
from scoresde.data.images import Frames, Mode, read_images
from scoresde.data.readers import FOLDER, existing, reads
from scoresde.data.source import Source, listed, warn_of
from scoresde.files import PathName
from scoresde.warning import warn_user

SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
"""Endings of the files in a folder that are read as images; the content decides what they are."""

# What stands beside images and is none: passed over without a warning.
_TEXTS = frozenset(
    {".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".html", ".log", ".ini", ".db"}
)
# Folders that say what samples are for, not what they show.
_SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev", "holdout"})


@dataclass
class _Found:
    """What is in a folder: images with the sub-folder each is in (None: in none), sub-folders, and all else."""

    images: list[tuple[str | None, str, Path | Unreadable]] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    hidden: int = 0
    deeper: int = 0


@reads(FOLDER)
def load_folder(
    path: PathName,
    *,
    mode: Mode | None = None,
    classes: Literal["folders", "none"] | None = None,
    frames: Frames | None = None,
    skip_bad: bool = False,
    follow_links: bool = False,
    decoded: PathName | None = None,
) -> Dataset:
    """A folder of images of one size: sub-folders are classes, sorted by name; without them, no labels.

    Images in folders inside a class folder belong to that class. Hidden files and folders, and files whose ending is
    not an image's, are passed over, and listed by ``str(dataset)``.

    Args:
        path: the folder.
        mode: "L" (grey) or "RGB" converts all images; by default all must be the same of the two.
        classes: "folders": sub-folders are classes; "none": all images, wherever in the folder, without labels. By
            default they are classes where there are any, but for names such as train and test, which are refused.
        frames: "first" takes the first frame of animations and files of several pages; by default they are refused.
        skip_bad: leave out what cannot be read: ``dataset.skipped`` lists it, and one warning says so.
        follow_links: follow symbolic links that lead out of the folder, too; by default only those inside.
        decoded: an ``.npy`` file into which the images are decoded the first time, and which is mapped into memory then
            and later: for more than memory holds, and to begin at once. See :mod:`scoresde.data.decoded`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no images, an empty class, images beside class folders, unreadable images or folders, links out of
            the folder, mixed sizes or modes.
    """
    path = existing(path)
    if not path.is_dir():
        raise ValueError(f"{path} is a file; expected a folder of images.")
    if classes is not None:
        checks.one_of(classes, ("folders", "none"), name="classes")
    skip_bad = checks.flag(skip_bad, name="skip_bad")
    found = _search(path, checks.flag(follow_links, name="follow_links"))
    options: dict[str, Any] = {"mode": mode, "classes": classes, "frames": frames, "skip_bad": skip_bad}
    if decoded is None:
        return _loaded(path, found, **options)
    files = [source for _, _, source in found.images if isinstance(source, Path)]
    return decoded_once(decoded, origin_of(files, options), lambda into: _loaded(path, found, **options, into=into))


def _loaded(
    path: Path,
    found: _Found,
    *,
    mode: Mode | None,
    classes: Literal["folders", "none"] | None,
    frames: Frames | None,
    skip_bad: bool,
    into: Path | None = None,
) -> Dataset:
    if not found.images and not found.folders:
        raise ValueError(_nothing(path, found))
    labelled = bool(found.folders) if classes is None else classes == "folders"
    empty: list[tuple[str, str]] = []
    if labelled:
        _check_classes(path, found, guessed=classes is None)
        full = {folder for folder, _, _ in found.images}
        empty = [(str(folder), "it holds no images") for folder in found.folders if folder.name not in full]
        if empty and not skip_bad:
            raise ValueError(f"the class folder {empty[0][0]} holds no images; remove it or fill it.")
    if not found.images:
        raise ValueError(_nothing(path, found))
    sources = [(name, source) for _, name, source in found.images]
    read = read_images(sources, len(sources), mode, frames=frames, skip_bad=skip_bad, into=into)
    skipped = (*read.skipped, *empty)
    if not labelled:
        dataset = from_tensors(read.images, channels="first", levels=256)
    else:
        member = [str(found.images[i][0]) for i in read.kept]
        names = sorted(set(member))  # a class of which nothing is left is none
        place = {name: k for k, name in enumerate(names)}
        label = torch.tensor([place[name] for name in member])
        dataset = from_tensors(read.images, label, class_names=names, channels="first", levels=256)
    dataset.source = Source(str(path), _notes(found, labelled), skipped, tuple(found.passed_over))
    warn_of(skipped, len(sources) + len(empty), "images and folders")
    _warn_of_others(found, path)
    return dataset


def _search(root: Path, follow_links: bool) -> _Found:
    """Everything in ``root`` and the folders inside, sorted."""
    found = _Found()
    real_root = os.path.realpath(root)
    seen: dict[tuple[int, int], Path] = {}
    waiting: deque[tuple[Path, str | None]] = deque([(root, None)])
    while waiting:
        folder, top = waiting.popleft()
        try:
            state = os.stat(folder)
            if (state.st_dev, state.st_ino) in seen:  # else links in circles would go on for ever
                other = seen[state.st_dev, state.st_ino]
                raise Unreadable(f"it is the same folder as {other}, one of them by a link; remove the link")
            seen[state.st_dev, state.st_ino] = folder
            with os.scandir(folder) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            found.images.append((top, str(folder), Unreadable(f"its content cannot be listed: {error.strerror}")))
            continue
        except Unreadable as error:
            found.images.append((top, str(folder), error))
            continue
        for entry in inside:
            path = folder / entry.name
            if entry.name.startswith("."):
                found.hidden += 1
                continue
            kind = _kind(path, entry.is_symlink() and not follow_links, real_root)
            if isinstance(kind, Unreadable):
                found.images.append((top, str(path), kind))
            elif kind == "folder":
                if folder == root:
                    found.folders.append(path)
                waiting.append((path, entry.name if top is None else top))
            elif kind == "image":
                found.images.append((top, str(path), path))
                found.deeper += top is not None and folder.parent != root
            else:
                found.passed_over.append(str(path.relative_to(root)))
    found.images.sort(key=lambda image: Path(image[1]))
    found.passed_over.sort()
    return found


def _kind(path: Path, within: bool, real_root: str) -> str | Unreadable:
    """One of "folder", "image", "other", or why it is not read; with ``within`` a link must lead into the folder."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return Unreadable(f"it cannot be followed: {error.strerror}" if path.is_symlink() else str(error.strerror))
    is_folder = stat.S_ISDIR(mode)
    if not is_folder and path.suffix.lower() not in SUFFIXES:
        return "other"
    if within:
        target = os.path.realpath(path)
        if os.path.commonpath([target, real_root]) != real_root:
            return Unreadable(
                f"it is a link out of the folder, to {target}; pass follow_links=True to follow such links"
            )
    return "folder" if is_folder else "image"


def _check_classes(path: Path, found: _Found, *, guessed: bool) -> None:
    top = next((name for folder, name, source in found.images if folder is None and isinstance(source, Path)), None)
    if top is not None:
        beside = f"beside folders ({found.folders[0].name}, ...)" if found.folders else "and no folders"
        raise ValueError(
            f"{path} holds images ({Path(top).name}, ...) {beside}. Put every image into the folder of its class, or "
            "all into one folder without sub-folders; or pass classes='none' for all of them without labels."
        )
    names = [folder.name for folder in found.folders]
    parts = [name for name in names if name.lower() in _SPLITS]
    if guessed and parts and (len(parts) > 1 or len(names) == 1):
        raise ValueError(
            f"the folders in {path} are called {', '.join(parts)}: parts of a data set, not classes. Load one of them, "
            f"{str(path / parts[0])!r}; or say classes='folders', or classes='none' for all images without labels."
        )
    if guessed and len(names) == 1 and found.deeper == sum(isinstance(source, Path) for *_, source in found.images) > 0:
        raise ValueError(
            f"the one folder in {path}, {names[0]}, holds no images but in folders of its own, which would all be one "
            f"class. Load {str(found.folders[0])!r} for these as classes; or say classes='folders', or classes='none' "
            "for all images without labels."
        )


def _nothing(path: Path, found: _Found) -> str:
    parquet = [name for name in found.passed_over if name.lower().endswith(".parquet")]
    hint = f" It holds Parquet files ({', '.join(parquet[:5])}): pass one of them." if parquet else ""
    if not parquet and found.passed_over:
        hint = f" It holds other files, {listed(found.passed_over)}."
    return f"{path} holds no images (looked for {', '.join(sorted(SUFFIXES))}).{hint}"


def _notes(found: _Found, labelled: bool) -> tuple[str, ...]:
    if labelled:
        notes = ["sub-folders are classes"]
    else:
        notes = ["no sub-folders, so no labels" if not found.folders else "no labels"]
    if labelled and found.deeper:
        notes.append(f"{found.deeper} images in folders inside a class folder belong to that class")
    if found.hidden:
        notes.append(f"{found.hidden} hidden files and folders passed over")
    return tuple(notes)


def _warn_of_others(found: _Found, path: Path) -> None:
    others = [name for name in found.passed_over if Path(name).suffix.lower() not in _TEXTS]
    if others:
        warn_user(
            f"{path} holds files that do not end as images do, which were passed over, {listed(others)}. "
            f"Images end in {', '.join(sorted(SUFFIXES))}."
        )
