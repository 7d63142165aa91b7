"""A model into a repository of a hub, in one commit::

    url = push_to_hub(model, "owner/digits", licence="mit", figures={"accuracy": 0.99})
    url = push_to_hub(model, "owner/digits", pull_request=True)         # into a repository of somebody else

The files are those of :func:`~scoresde.hub.save_pretrained`, written into a temporary folder first: what cannot be
saved is not pushed, and whoever loads the model finds the files of one commit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from scoresde import checks
from scoresde.extras import needs
from scoresde.files import PathName
from scoresde.hub.remote import ID, Repository, told_by
from scoresde.hub.saving import save_pretrained
from scoresde.models import ClassifierModel, ContrastiveModel, ScoreModel
from scoresde.train import EMA
from scoresde.train.contents import AVERAGE, MODEL


def push_to_hub(
    model: ScoreModel | ClassifierModel | ContrastiveModel,
    repo_id: str,
    *,
    ema: EMA | None = None,
    dtype: torch.dtype | None = None,
    licence: str | None = None,
    figures: Mapping[str, Any] | None = None,
    notes: str | None = None,
    picture: PathName | None = None,
    max_bytes: int | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    message: str | None = None,
    pull_request: bool = False,
) -> str:
    """Write a model into a repository of a hub, which is made where it is missing; all files in one commit.

    Files of an earlier model are replaced, its card too, and weights that this one does not have are removed; the hub
    keeps what was there in the history of the repository.

    Args:
        model: with the weights to be kept.
        repo_id: "owner/name".
        ema, dtype, licence, figures, notes, picture, max_bytes: as for :func:`~scoresde.hub.save_pretrained`.
        private: whether a repository that is made now is; default what its owner has set. One that is there stays as
            it is.
        revision: the branch to write, made where it is missing; default the main one.
        token: a text, or True for the one that is kept on this machine; default that one, too.
        message: of the commit.
        pull_request: propose the commit instead, for repositories that are not yours; its repository must be there.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        TypeError, ValueError, FloatingPointError: as of ``save_pretrained``; an id that is none.
        CheckpointError: the hub cannot be reached, or refuses; what was there is as it was.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    if not isinstance(repo_id, str):
        raise TypeError(f"repo_id must be a text 'owner/name', got {checks.got(repo_id)}.")
    if not ID.fullmatch(repo_id):
        raise ValueError(f"repo_id must be 'owner/name' of letters, digits, '-', '_' and '.', got {repo_id!r:.80}.")
    Repository.checked(revision, token, None, False)
    private = None if private is None else checks.flag(private, name="private")
    pull_request = checks.flag(pull_request, name="pull_request")
    if message is not None and not isinstance(message, str):
        raise TypeError(f"message must be a text, got {checks.got(message)}.")
    with needs("hub"):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public by its documentation
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id must be 'owner/name' by the rules of the hub: {error}") from error
    with tempfile.TemporaryDirectory(prefix="scoresde-push-") as room:
        folder = save_pretrained(
            model,
            Path(room) / repo_id.rpartition("/")[2],
            source=repo_id,
            ema=ema,
            dtype=dtype,
            licence=licence,
            figures=figures,
            notes=notes,
            picture=picture,
            max_bytes=max_bytes,
        )
        api = HfApi(token=token)
        with told_by(repo_id, revision):
            if not pull_request:
                api.create_repo(repo_id, private=private, exist_ok=True)
                if revision is not None:
                    api.create_branch(repo_id, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=message or f"A {type(model).__name__} of scoresde",
                create_pr=pull_request,
                delete_patterns=[MODEL, AVERAGE],
            )
    return str(commit.pr_url if pull_request else commit.commit_url)
