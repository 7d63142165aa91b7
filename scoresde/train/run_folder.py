"""The folder of a run while it runs: opened, kept from other processes, given up, and not taken again where another
run was there meanwhile::

    place = RunFolder(path, processes)
    resumed = place.opened(resume=True, fits=lambda path: continued(path, model, dataset, steps, optimizer))
    place.release(), place.claim()                          # the run was closed, and is iterated again

With ``path=None`` all of it does nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

from scoresde.train import folder
from scoresde.train.atomic import uninterrupted
from scoresde.train.contents import Description
from scoresde.train.folder import CheckpointError
from scoresde.train.owner import Owner
from scoresde.train.processes import Processes


class RunFolder:
    """Where a run writes.

    Args:
        path: its folder, or None.
        processes: of which the main one holds it for all.

    Attributes:
        claimed: whether other processes are kept out of it now.
    """

    def __init__(self, path: Path | None, processes: Processes) -> None:
        self.path, self._processes = path, processes
        self._owner: Owner | None = None
        self._left: Sequence[Path] = ()
        self.claimed = False

    def opened(self, *, resume: bool, fits: Callable[[Path], Description]) -> Description | None:
        """Make the folder ready; the checkpoint to continue from, if there is one.

        Args:
            resume: whether there may be one.
            fits: describes a checkpoint, or raises where this run does not go on from it.

        Raises:
            CheckpointError: there is one and it is not to be resumed, or another run owns the folder.
        """
        path = self.path
        if path is None:
            return None
        self._processes.from_main(lambda: folder.prepare(path))
        found = folder.checkpoints(path)
        self._processes.agree(found[-1].name if found else "none", f"checkpoints in {path}")
        if found and not resume:
            raise CheckpointError(
                f"{path} holds checkpoints already (the last is {found[-1].name}). Pass resume=True to continue that "
                "run, or choose another folder."
            )
        with self._processes.together():
            description = fits(found[-1]) if found else None
        # Only a folder that is ours is swept: until here it may be the one of another run.
        self.claim()
        if folder.checkpoints(path)[-1:] != found[-1:]:
            raise CheckpointError(f"another run wrote into {path} while this one was starting, and ended; start again.")
        return description

    def claim(self) -> None:
        """Keep other processes out of the folder, until it is released or forgotten."""
        path = self.path

        def take() -> None:
            if path is not None:
                with uninterrupted():
                    self._owner = Owner(path)
                    weakref.finalize(self, self._owner.release)

        self._processes.from_main(take)
        self.claimed = True

    def claim_again(self) -> None:
        """The same after a release.

        Raises:
            CheckpointError: another run wrote into the folder meanwhile: it is not to be overwritten.
        """
        self.claim()
        self._processes.from_main(self._refuse_overtaken)

    def release(self) -> None:
        """Give the folder up."""
        if self._owner is not None:
            if self.path is not None:
                self._left = folder.checkpoints(self.path)
            self._owner.release()
        self._owner, self.claimed = None, False

    def _refuse_overtaken(self) -> None:
        path = self.path
        new = [] if path is None else [found for found in folder.checkpoints(path) if found not in self._left]
        if new:
            raise CheckpointError(
                f"another run wrote {new[-1]} while this one was closed. Start anew with resume=True to go on from "
                "there, or choose another folder."
            )
