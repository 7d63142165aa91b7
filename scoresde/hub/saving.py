"""A model into a folder of its own, whole or not at all, in the format of checkpoints::

    folder = save_pretrained(model, "digits", licence="mit", figures={"accuracy": 0.99})
    folder / "config.json"              # what it is; SHA-256 of itself and of the weights
    folder / "model.safetensors"        # the weights of the model as it is; averaged ones too where ``ema`` is given
    folder / "README.md"                # a model card

``run.ema_model()`` and ``load_model(run)`` have averaged weights alone, and a folder made of one says so.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.files import PARTIAL, PathName, flush, opened, saving
from scoresde.hub.card import CARD, checked_figures, licence_fields, model_card
from scoresde.models import ClassifierModel, ContrastiveModel, ScoreModel
from scoresde.train import EMA, CheckpointError
from scoresde.train import folder as folders
from scoresde.train.checkpoint import NARROWED, config_of, stored_in
from scoresde.train.contents import AVERAGE, FLOATING, MODEL
from scoresde.train.describe import kind_of
from scoresde.train.tensors import check_finite, writer

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PICTURES = {".png": b"\x89PNG\r\n\x1a\n", ".jpg": b"\xff\xd8\xff", ".gif": b"GIF8", ".webp": b"RIFF"}
"""Endings of a card's picture, and what such a file begins with."""

MOST_PICTURE = 10_000_000
"""Bytes of a card's picture."""

_YOUNG = 10.0  # seconds in which a folder that was just made may be without its lock yet

OWN = {folders.CONFIG, MODEL, AVERAGE, CARD, *(f"samples{ending}" for ending in PICTURES)}
"""The files that a saved folder may have, and that may be replaced."""


def save_pretrained(
    model: ScoreModel | ClassifierModel | ContrastiveModel,
    folder: PathName,
    *,
    ema: EMA | None = None,
    dtype: torch.dtype | None = None,
    licence: str | None = None,
    figures: Mapping[str, Any] | None = None,
    notes: str | None = None,
    picture: PathName | None = None,
    max_bytes: int | None = None,
    overwrite: bool = False,
    source: str | None = None,
) -> Path:
    """Write a model into a folder of its own, from which ``from_pretrained`` and ``load_model`` read it.

    The folder appears when it is complete: a process that is killed leaves none, or the one of before. Several may save
    to one place, one after the other; who reads meanwhile gets one model or the other, and never a mixture.

    Args:
        model: with the weights to be kept; of code of your own (network, SDE, prediction) only names are written, and
            who loads it passes them.
        folder: new or empty, made with those above it.
        ema: averaged weights of this model, to be kept beside its own; loading prefers them. Averaged weights alone
            are those of ``run.ema_model()``, or of ``ema_model(model, ema)``.
        dtype: in which the network's weights are stored: torch.float16, bfloat16, float32 or float64; default their
            own. The network comes back in its own dtype, with weights rounded to this one; its buffers and a schedule
            are not rounded.
        licence: an identifier such as "mit" or "cc-by-4.0", or the name of another licence; for the card.
        figures: what was measured, for the card: numbers or texts by name, or a mapping of such for each row.
        notes: Markdown for the top of the card: what the model is for, and what it should not be used for.
        picture: a PNG, JPEG, GIF or WebP file with samples, copied beside the card.
        max_bytes: bytes of weights that may be written; None for any number.
        overwrite: replace a folder that ``save_pretrained`` wrote; one that holds anything else is left alone.
        source: what the card tells its readers to load, such as "owner/name" where it is to be published; default the
            folder.

    Returns:
        The folder.

    Raises:
        TypeError, ValueError: an argument of another kind; weights that ``dtype`` cannot hold, or of more than
            ``max_bytes``; averages of another model; figures that are not finite.
        FloatingPointError: a weight is not finite.
        CheckpointError: the folder is not empty, or cannot be written; what was there is intact.
    """
    kind_of(model)  # which it must have
    place = Path(os.path.realpath(checks.path(folder, name="folder")))
    overwrite = checks.flag(overwrite, name="overwrite")
    checked_figures(figures), licence_fields(licence)
    shown = None if picture is None else checked_picture(checks.path(picture, name="picture"))
    for option, value in (("notes", notes), ("source", source)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{option} must be a text, got {checks.got(value)}.")
    tensors, computes_in = weights_to_store(model, ema, dtype)
    size = sum(value.numel() * value.element_size() for values in tensors.values() for value in values.values())
    if max_bytes is not None and size > checks.count(max_bytes, name="max_bytes"):
        half = "" if dtype is not None else "; dtype=torch.float16 or torch.bfloat16 halves those of float32"
        raise ValueError(f"max_bytes must be at least {size}, the bytes of these weights, got {max_bytes}{half}.")
    config = config_of(model, step=0)
    averaged = True if ema is None and model.averaged else None
    narrowed = str(dtype).removeprefix("torch.") if computes_in is not None else None
    config["stored"] = {"averaged": averaged, "computes_in": computes_in, "dtype": narrowed}
    card = model_card(
        model,
        config,
        name=place.name,
        source=os.fspath(folder) if source is None else source,
        bytes=size,
        licence=licence,
        figures=figures,
        notes=notes,
        picture=None if shown is None else shown.name,
    )
    files = {name: writer(values) for name, values in tensors.items()}

    def fill(partial: Path) -> None:
        folders.fill(partial, config, files)
        with saving(partial / CARD):
            (partial / CARD).write_text(card, encoding="utf-8")
        if shown is not None and picture is not None:
            with saving(partial / shown.name):
                shutil.copyfile(Path(picture), partial / shown.name)

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place.parent, wait=True):
            _recover(place)
            check_free(place, overwrite)
        _put(place, fill)
    except OSError as error:
        raise CheckpointError(
            f"could not write the model into {place}: {error}. What was there before is intact."
        ) from error
    return place


def weights_to_store(
    model: ScoreModel | ClassifierModel | ContrastiveModel, ema: EMA | None, dtype: torch.dtype | None
) -> tuple[dict[str, Mapping[str, Tensor]], str | None]:
    """The tensors of each file, and the dtype of the network where they are stored in another.

    Raises:
        TypeError, ValueError: no EMA, or one of another model; a dtype that is not floating or too narrow, or a network
            of several. FloatingPointError: a weight is not finite.
    """
    tensors: dict[str, Mapping[str, Tensor]] = {MODEL: model.state_dict()}
    if ema is not None:
        averages = checks.instance(ema, EMA, name="ema").state()
        own = {name: tuple(value.shape) for name, value in model.named_parameters()}
        if own != {name: tuple(value.shape) for name, value in averages.items()}:
            raise ValueError(f"ema holds the averages of another model, of {len(averages)} parameters; got {len(own)}.")
        tensors[AVERAGE] = averages
    for values in tensors.values():
        check_finite(values, "weight", "in this model")
    if dtype is None:
        return tensors, None
    dtype, words = checks.dtype(dtype), {value: name for name, value in FLOATING.items()}
    weights = [p for name, p in model.named_parameters() if name.startswith(NARROWED) and p.is_floating_point()]
    own_dtypes = sorted({p.dtype for p in weights}, key=str)
    if own_dtypes in ([], [dtype]):
        return tensors, None
    if len(own_dtypes) > 1 or own_dtypes[0] not in words:
        raise ValueError(
            f"dtype={dtype}: the network has weights of {', '.join(map(str, own_dtypes))}, which could not come back "
            "as they were. Leave dtype out, or bring the network to one dtype first: model.net.float()."
        )
    return {name: stored_in(model, values, dtype) for name, values in tensors.items()}, words[own_dtypes[0]]


def checked_picture(path: Path) -> Path:
    """The name under which a picture stands beside the card.

    Raises:
        ValueError: it is no picture of a kind that a card can show, or too large.
    """

    def fail(text: str) -> Exception:
        return ValueError(f"picture {path}: {text}")

    ending = {".jpeg": ".jpg"}.get(path.suffix.lower(), path.suffix.lower())
    if ending not in PICTURES:
        raise fail(f"its name must end in one of {', '.join(PICTURES)}.")
    try:
        with opened(path, fail, most=MOST_PICTURE) as file:
            start = file.read(16)
    except FileNotFoundError as error:
        raise fail("it must be a file, and there is no such file.") from error
    if not start.startswith(PICTURES[ending]):
        raise fail(f"its bytes are not those of a {ending[1:].upper()} file.")
    return Path(f"samples{ending}")


def check_free(place: Path, overwrite: bool) -> None:
    """Raise unless a folder may be made there, or may be replaced.

    Raises:
        CheckpointError: something is there that is not to be replaced.
    """
    try:
        if not os.path.lexists(place):
            return
        if not place.is_dir():
            raise CheckpointError(f"{place} is a file: a model is written into a folder of its own.")
        if Path(os.path.realpath(os.getcwd())).is_relative_to(place):
            raise CheckpointError(
                f"{place} is the folder that this process works in, which cannot be replaced as a whole: choose a "
                "folder in it, such as './model'."
            )
        found = sorted(path.name for path in place.iterdir())
        others = [name for name in found if name not in OWN or not (place / name).is_file()]
        if not found:
            return
        if others:
            raise CheckpointError(
                f"{place} holds {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}, which save_pretrained did "
                "not write and does not remove: choose a new folder."
            )
        if not overwrite:
            raise CheckpointError(
                f"{place} holds {', '.join(found)} already; overwrite=True replaces them, or choose a new folder."
            )
        if folders.CONFIG in found:
            folders.read_sealed(place, folders.CONFIG)  # of another program it is refused
    except OSError as error:
        raise CheckpointError(f"cannot write into {place}: {error}. Choose a folder that you may write.") from error


def _put(place: Path, fill: Callable[[Path], None]) -> None:
    """Have a folder filled beside its place, and give it its name when it is complete."""
    above = place.parent
    _sweep(above, place.name)
    partial = above / f"{PARTIAL}{secrets.token_hex(4)}-{place.name}"
    try:
        partial.mkdir()
        with _locked(partial, wait=False):  # a folder that nobody has locked was left by a dead process
            fill(partial)
            with _locked(above, wait=True):
                _recover(place)
                _swap(partial, place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _recover(place: Path) -> None:
    """Undo, or finish, what a process was killed in the middle of; only with a lock on the folder above."""
    aside = folders.aside_of(place)
    if aside.is_dir():
        shutil.rmtree(aside) if place.exists() else aside.rename(place)


def _swap(partial: Path, place: Path) -> None:
    """Give a folder the name of another, which goes, or stays where this fails."""
    aside, occupied = folders.aside_of(place), place.is_dir() and any(place.iterdir())
    if occupied:
        place.rename(aside)
    try:
        partial.rename(place)
        flush(place.parent)
    except BaseException:
        with suppress(OSError):
            if not partial.exists():
                place.rename(partial)
        with suppress(OSError):  # if this fails, too, readers find what was put aside
            if occupied:
                aside.rename(place)
        raise
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of a folder in the block, where the system has locks; it ends with the process, too."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _sweep(above: Path, name: str) -> None:
    """Remove what killed processes left of this folder, where that can be known."""
    own = re.compile(re.escape(PARTIAL) + "[0-9a-f]{8}-" + re.escape(name))
    for path in (path for path in above.iterdir() if fcntl is not None and own.fullmatch(path.name)):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime < _YOUNG:
                continue
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
