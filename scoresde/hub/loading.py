"""Which folder is meant, and the model in it: by a path, the name of a model that ships, or an id of a hub::

    model = from_pretrained("runs/digits")                      # a run, its checkpoints, a step, or a saved folder
    model = from_pretrained("owner/name", revision="v1.0")      # of a hub; from then on it is in the cache
    classifier = from_pretrained("runs/classifier", kind=ClassifierModel)
    describe(locate("owner/name")).event_shape                  # for all that takes a folder

A path that exists wins over a name and an id; but a folder with no checkpoint in it, such as one of pictures, hides no
model that ships.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.files import PathName
from scoresde.hub.remote import ID, Repository
from scoresde.hub.shipped import SHIPPED, folder_of
from scoresde.models import ClassifierModel, ContrastiveModel, ScoreModel
from scoresde.sde import SDE
from scoresde.train import CheckpointError, Description, describe, load_classifier, load_contrastive, load_model
from scoresde.train import folder as folders
from scoresde.train.checkpoint import uses_averages
from scoresde.train.contents import AVERAGE, MODEL, parts

Loaded = TypeVar("Loaded", ScoreModel, ClassifierModel, ContrastiveModel)

_OTHERS: Mapping[Any, Callable[..., Any]] = {ClassifierModel: load_classifier, ContrastiveModel: load_contrastive}
"""How models are loaded that are no scores."""

MOST_BYTES = 20_000_000_000
"""Bytes of weights that are read unless more are allowed."""


def from_pretrained(
    path_or_id: PathName,
    *,
    kind: type[Loaded] = ScoreModel,  # type: ignore[assignment]
    ema: bool | None = None,
    dtype: torch.dtype | None = None,
    net: Callable[..., Tensor] | None = None,
    sde: SDE | None = None,
    predicts: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: PathName | None = None,
    local_files_only: bool = False,
    max_bytes: int = MOST_BYTES,
) -> Loaded:
    """A trained model, on the CPU, in evaluation mode, with what is known of its data: ``scaling``,
    ``condition_scalings``, ``event_shape``, ``class_names``, ``vocabularies``, ``trained_with`` and ``spectrum``.

    Args:
        path_or_id: the folder of a run, its checkpoints, a step-... folder or one that ``save_pretrained`` wrote; or
            the name of a model that ships; or an id "owner/name" of a hub, of which only the files that are needed are
            fetched. A path that exists wins.
        kind: ScoreModel, ClassifierModel or ContrastiveModel.
        ema: True for averaged weights, False for those of the last step of training; by default the averaged ones where
            there are any, and else those there are.
        dtype: of the network's weights; default that in which the network was trained.
        net, sde, predicts: a network, an SDE or a prediction function of your own, which a file does not rebuild.
        revision: of a hub: a branch, a tag or a commit; default its main branch.
        token: of a hub: a token, True for the one that is kept on this machine, False for none; default the one that
            is kept, if any.
        cache_dir: where files of a hub are kept; default the cache of huggingface_hub.
        local_files_only: take what is in the cache, and ask no hub.
        max_bytes: of weights, that are fetched and read at most.

    Raises:
        TypeError, ValueError: an argument of another kind; a part that is given contradicts the model.
        CheckpointError: nothing is there, or it is no model of this library, is damaged, or larger than max_bytes; the
            hub cannot be reached, or does not give it.
        ModuleNotFoundError: an id of a hub, and huggingface_hub is not installed.
    """
    if kind is not ScoreModel and kind not in _OTHERS:
        word = kind.__name__ if isinstance(kind, type) else checks.got(kind)
        raise TypeError(
            f"kind must be ScoreModel, ClassifierModel or ContrastiveModel, got {word}: a file does not rebuild a "
            "subclass of them. Load a ScoreModel, and make yours from its net and sde."
        )
    dtype = None if dtype is None else checks.dtype(dtype)
    wanted = None if ema is None else checks.flag(ema, name="ema")

    if sde is not None:
        checks.instance(sde, SDE, name="sde")
    if (
        predicts is not None
        and not isinstance(predicts, str)
        and (isinstance(predicts, type) or not callable(predicts))
    ):
        raise TypeError(f"predicts must be the name of a prediction or a function, got {checks.got(predicts)}.")
    folder = locate(
        path_or_id,
        ema=wanted,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        max_bytes=max_bytes,
    )
    model: Any
    if kind is ScoreModel:
        model = load_model(folder, ema=wanted, net=net, sde=sde, predicts=predicts)
    elif predicts is not None:
        raise ValueError(
            f"predicts is said of a ScoreModel; a {kind.__name__} predicts no score, got {predicts!r:.80}."
        )
    else:
        model = _OTHERS[kind](folder, ema=wanted, net=net, sde=sde)
    if dtype is not None and isinstance(model.net, nn.Module):
        model.net.to(dtype)
    loaded: Loaded = model
    return loaded


def locate(
    path_or_id: PathName,
    *,
    ema: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: PathName | None = None,
    local_files_only: bool = False,
    max_bytes: int = MOST_BYTES,
) -> Path:
    """The folder of the checkpoint that is meant, for ``load_model``, ``describe`` and whatever else takes one.

    Args:
        path_or_id, ema, revision, token, cache_dir, local_files_only, max_bytes: as for :func:`from_pretrained`; of a
            hub, the weights that ``ema`` wants are fetched.

    Returns:
        A folder with config.json and the weights; of a run's folder, its latest step.

    Raises:
        TypeError, ValueError, CheckpointError, ModuleNotFoundError: as of :func:`from_pretrained`.
    """
    path = checks.path(path_or_id, name="path_or_id")
    wanted = None if ema is None else checks.flag(ema, name="ema")
    most = checks.count(max_bytes, name="max_bytes")
    repository = Repository.checked(revision, token, cache_dir, local_files_only)
    text = os.fspath(path_or_id)
    here = _exists(path)
    if not here and isinstance(path_or_id, str) and path_or_id not in SHIPPED and ID.fullmatch(text):
        return repository.named(text).fetched(lambda found: weights_of(found, wanted, most))
    if revision is not None:
        raise ValueError(
            f"revision must be left out for a path or a name, as {text!r:.80} is one and no id of a hub; got "
            f"{revision!r:.80}."
        )
    if ships(path_or_id):
        return folder_of(text)
    if not here:
        raise CheckpointError(
            f"there is no folder {text}, and path_or_id must be a folder, the name of a model that ships "
            f"({', '.join(map(repr, SHIPPED))}) or an id of a hub, 'owner/name'."
        )
    found = folders.find(path)
    weights_of(describe(found), wanted, most)
    return found


def ships(path_or_id: PathName) -> bool:
    """Whether a text is the name of a model that ships, and no path of that name holds a checkpoint."""
    if os.fspath(path_or_id) not in SHIPPED:
        return False
    path = Path(path_or_id)
    if _exists(path) and not path.is_dir():
        return False
    try:
        return not path.is_dir() or not folders.has_run(path)
    except OSError:  # it cannot be read, which the caller will tell
        return False


def weights_of(description: Description, ema: bool | None, most: int) -> list[str]:
    """The files of weights that are needed.

    Raises:
        CheckpointError: there are none of that kind, or they have more than ``most`` bytes.
    """
    kinds = [MODEL, AVERAGE] if uses_averages(description, ema) else [MODEL]
    names = [part for kind in kinds for part in parts(description.files, kind)]
    size = sum(int(description.files[name]["bytes"]) for name in names)
    if size > most:
        raise CheckpointError(
            f"the weights in {description.path} have {size} bytes, and max_bytes is {most}: it must be at least {size} "
            "for them, if you trust where they are from."
        )
    return names


def _exists(path: Path) -> bool:
    """Whether a path is there, or was a moment ago and is being replaced."""
    try:
        return os.path.lexists(path) or folders.aside_of(path).is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False
