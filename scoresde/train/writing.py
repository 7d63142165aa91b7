"""What a checkpoint is to hold, and how one process writes it; several do in :mod:`~scoresde.train.shard_files`::

content = Content(step=2000, config=config, tensors={"model.safetensors": state}, others={}, keep=2, spare=())
path = write_whole(folder, content)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scoresde.train import folder as folders
from scoresde.train.contents import number_in
from scoresde.train.folder import CheckpointError, Writer
from scoresde.train.owner import claimed
from scoresde.train.tensors import check_finite, writer


@dataclass(frozen=True)
class Content:
    """What a checkpoint is to hold.

    Attributes:
        step: optimizer steps done.
        config: of config.json, but for the files.
        tensors: by file, then by name; whole, or divided among processes.
        others: a function that writes each other file.
        keep: how many checkpoints of the folder to leave.
        spare: names of checkpoints that are left besides.
    """

    step: int
    config: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]
    others: Mapping[str, Writer]
    keep: int
    spare: Collection[str]

    def check(self, file: str, values: Mapping[str, Tensor]) -> None:
        """Raise unless all numbers that go into a file are finite.

        Raises:
            FloatingPointError: one is not.
        """
        check_finite(values, number_in(file), f"after step {self.step}")


def write_whole(folder: Path, content: Content) -> Path:
    """Write all of a checkpoint, one file for each set of tensors, then remove all but the last ones; its folder.

    Raises:
        CheckpointError: it cannot be written; earlier checkpoints are intact.
        FloatingPointError: a number is not finite.
    """
    for file, values in content.tensors.items():
        content.check(file, values)
    files = {name: writer(values) for name, values in content.tensors.items()}
    folders.prepare(folder)
    with claimed(folder):
        folders.sweep(folder)
        with told_of_writing(folder, content.step):
            path = folders.write(folder, content.step, content.config, {**files, **content.others})
            folders.prune(folder, content.keep, path, content.spare)
    return path


@contextmanager
def told_of_writing(folder: Path, step: int) -> Iterator[None]:
    """Inside, what the system cannot write is a CheckpointError.

    Raises:
        CheckpointError: an OSError was met.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"could not write the checkpoint of step {step} into {folder}: {error}. Earlier checkpoints are intact."
        ) from error
