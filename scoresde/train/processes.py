"""What the processes of a run tell each other outside the gradients: what one did or found, all get to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from scoresde.extras import needs
from scoresde.train.folder import CheckpointError

Made = TypeVar("Made")


def from_main(action: Callable[[], Made], *, main: bool, processes: int) -> Made:
    """What ``action`` returns on the main process, on all; where it fails, all fail instead of waiting for it.

    Raises:
        CheckpointError: the main process failed; itself, it raises what it met.
    """
    made: list[Any] = [None, None]
    failure: Exception | None = None
    if main:
        try:
            made[0] = action()
        except Exception as error:
            failure, made[1] = error, f"{type(error).__name__}: {error}"
    if processes > 1:
        with needs("train"):
            from accelerate.utils import broadcast_object_list
        broadcast_object_list(made, from_process=0)
    if failure is not None:
        raise failure
    if made[1] is not None:
        raise CheckpointError(f"the main process failed: {made[1]}")
    return cast(Made, made[0])


def agree(found: str, what: str, *, processes: int) -> None:
    """Raise, on all processes, unless all found the same.

    Raises:
        CheckpointError: they did not.
    """
    if processes == 1:
        return
    with needs("train"):
        from accelerate.utils import gather_object
    everybody = gather_object([found])
    if len(set(everybody)) > 1:
        raise CheckpointError(
            f"the processes see different {what}, in order of rank: {', '.join(everybody)}. Give all of them the same "
            "folder, on a file system that they share."
        )
