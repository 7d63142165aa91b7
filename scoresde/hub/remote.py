"""A repository of a hub, as if a stranger had made it: the few files that are needed, of sizes that are known before::

    repository = Repository.checked(revision=None, token=None, cache_dir=None, local_files_only=False)
    folder = repository.named("owner/name").fetched(lambda description: ["model.safetensors"])

Files come by huggingface_hub, whose cache, tokens, proxies and offline mode hold here too (``HF_ENDPOINT``,
``HF_HOME``, ``HF_HUB_OFFLINE``). All are of one commit, that of config.json, which lists the others with size and hash.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from scoresde import checks
from scoresde.extras import needs
from scoresde.files import MOST_JSON, PathName, read_json
from scoresde.train import CheckpointError, Description, describe
from scoresde.train import folder as folders

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
"""What may be "owner/name"; a hub has a few rules more."""

TIMEOUT = 10.0
"""Seconds that a hub may take to answer what a file is."""


@dataclass(frozen=True)
class Repository:
    """Where files are fetched from, and what is said to whoever gives them.

    Attributes:
        name: "owner/name".
        revision: a branch, a tag or a commit; None for the main branch.
        token: a text, True for the one that is kept, False for none, None for the one that is kept if any.
        cache_dir: where files are kept; None for the client's own place.
        local_files_only: whether the hub is not asked.
    """

    name: str = ""
    revision: str | None = None
    token: str | bool | None = dataclasses.field(default=None, repr=False)
    cache_dir: Path | None = None
    local_files_only: bool = False

    @classmethod
    def checked(
        cls, revision: str | None, token: str | bool | None, cache_dir: PathName | None, local_files_only: bool
    ) -> Self:
        """Of options that a user gave.

        Raises:
            TypeError, ValueError: one of them is of another kind.
        """
        if revision is not None and (not isinstance(revision, str) or not revision):
            kind = ValueError if isinstance(revision, str) else TypeError
            raise kind(f"revision must be the name of a branch, a tag or a commit, got {checks.got(revision)}.")
        if token is not None and not isinstance(token, (str, bool)):
            raise TypeError(f"token must be a text, True, False or None, got {checks.got(token)}.")
        folder = None if cache_dir is None else checks.path(cache_dir, name="cache_dir")
        return cls("", revision, token, folder, checks.flag(local_files_only, name="local_files_only"))

    def named(self, name: str) -> Repository:
        """The same options for a repository."""
        return dataclasses.replace(self, name=name)

    def fetched(self, wanted: Callable[[Description], list[str]]) -> Path:
        """The folder in the cache with config.json and the files that are wanted of what it describes.

        Raises:
            CheckpointError: there is no such repository, or it is no model of ours; the hub cannot be reached.
            ModuleNotFoundError: huggingface_hub is not installed.
        """
        config = self._file(folders.CONFIG, most=MOST_JSON)
        folder = config.parent
        told = folders.foreign(self.name, [folders.CONFIG], read_json(config, folders.damaged(folder, folders.CONFIG)))
        if told is not None:
            raise CheckpointError(told)
        description = describe(folder)
        pinned = dataclasses.replace(self, revision=folder.name)  # the commit: later files are of the same
        for name in wanted(description):
            pinned._file(name, exactly=int(description.files[name]["bytes"]))
        return folder

    def _file(self, name: str, *, most: int | None = None, exactly: int | None = None) -> Path:
        """The path of a file in the cache, fetched where it is not there; its size is known before."""
        with needs("hub"):
            import huggingface_hub as client
            from huggingface_hub.errors import LocalEntryNotFoundError
        place: dict[str, Any] = {"repo_id": self.name, "filename": name, "revision": self.revision}
        kept: dict[str, Any] = {"cache_dir": self.cache_dir, "token": self.token}
        local, unreachable = self.local_files_only, ""
        if not local:
            try:
                url = client.hf_hub_url(**place)
                size = client.get_hf_file_metadata(url, token=self.token, timeout=TIMEOUT).size
            except Exception as error:
                told = self._answered(error, name)
                if told is not None:
                    raise told from error
                local, unreachable = True, f"the hub cannot be reached ({_first_line(error)})"
            else:
                self._check_size(name, size, most, exactly)
        try:
            return Path(str(client.hf_hub_download(**place, **kept, local_files_only=local)))
        except LocalEntryNotFoundError as error:
            at = f" at revision {self.revision}" if self.revision is not None else ""
            why = unreachable or (
                "local_files_only=True asks no hub" if local else f"the hub failed ({error.__cause__})"
            )
            raise CheckpointError(
                f"there is no folder {self.name} here, {why}, and {name} of {self.name}{at} is not in the cache."
            ) from error
        except Exception as error:
            told = self._answered(error, name)
            raise told or CheckpointError(
                f"{name} of {self.name} could not be fetched: {_first_line(error)}"
            ) from error

    def _check_size(self, name: str, size: int | None, most: int | None, exactly: int | None) -> None:
        if most is not None and size is not None and size > most:
            raise CheckpointError(f"{name} of {self.name} has {size} bytes; the limit is {most}. It is not fetched.")
        if exactly is not None and size is not None and size != exactly:
            raise CheckpointError(
                f"{name} of {self.name} has {size} bytes, and its config.json says {exactly}: one of them was changed. "
                "It is not fetched. Ask who published it to push it again."
            )

    def _answered(self, error: Exception, name: str) -> Exception | None:
        """What a hub that was reached says no to, in words; None where it was not reached."""
        from huggingface_hub import errors

        if isinstance(error, errors.HFValidationError):
            return CheckpointError(
                f"there is no folder {self.name} here, and it is no id of a hub: {str(error).splitlines()[0]}"
            )
        return refusal(self.name, self.revision, error) or (
            self._missing(name) if isinstance(error, errors.EntryNotFoundError) else None
        )

    def _missing(self, name: str) -> CheckpointError:
        """What a repository without one of our files holds instead."""
        import huggingface_hub as client

        files: list[str] = []
        with_files = ""
        try:
            files = client.HfApi(token=self.token).list_repo_files(self.name, revision=self.revision)
        except Exception as error:  # whatever it is, the file is missing
            with_files = f" (its files cannot be listed: {error!s:.100})"
        told = folders.foreign(self.name, files, {}) if name == folders.CONFIG else None
        some = ", ".join(files[:8]) + (", ..." if len(files) > 8 else "")
        return CheckpointError(
            told
            or f"{self.name} on the hub has no {name}, so that it is no model of scoresde"
            f"{f'; it holds {some}' if files else with_files}."
        )


def refusal(name: str, revision: str | None, error: Exception) -> CheckpointError | None:
    """What a hub refused, in words; None where it said nothing of the kind."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            f"{name} is gated: its owner lets in who has accepted its terms. Accept them on its page, and give a token "
            "of your account, token=... or `hf auth login`."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"there is no folder {name} here, and no repository of that name on the hub; if it is a private one, give "
            "a token that may read it, token=... or `hf auth login`."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(f"{name} on the hub has no revision {revision!r}: give a branch, a tag or a commit.")
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403):
        return CheckpointError(
            f"the hub does not allow this for {name} ({status}): give a token with the rights for it, token=... or "
            f"`hf auth login`. It says: {_first_line(error)}"
        )
    return None


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0]:.200}"


@contextmanager
def told_by(name: str, revision: str | None) -> Iterator[None]:
    """Around calls that write to a hub: whatever goes wrong is a CheckpointError.

    Raises:
        CheckpointError: the hub cannot be reached, or refuses.
    """
    try:
        yield
    except Exception as error:
        raise refusal(name, revision, error) or CheckpointError(
            f"the model could not be pushed to {name}: {_first_line(error)}"
        ) from error
