"""Checkpoints that several processes write, each its share, and none of them holds the whole.

A checkpoint of two processes has ``model-00001-of-00002.safetensors`` and ``model-00002-of-00002.safetensors`` in the
place of ``model.safetensors``, and likewise for averages and the optimizer's state: each tensor whole in one of them,
as published models have it. config.json lists all with size and hash, and the folder gets its name when all are there.
Any number of processes, and one without the others, goes on from it: the files do not tell how weights were divided::

    write_parts(processes, folder, content)                         # on all processes
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.train import contents
from scoresde.train import folder as folders
from scoresde.train.folder import Draft
from scoresde.train.owner import claimed
from scoresde.train.processes import Processes
from scoresde.train.tensors import joined, writer
from scoresde.train.writing import Content, told_of_writing


def rows_held(length: int, processes: Processes) -> slice:
    """The rows of this process of a tensor that is divided along its first axis, as torch.chunk divides it."""
    each = -(-length // processes.count)
    start = min(processes.rank * each, length)
    return slice(start, min(start + each, length))


def write_parts(processes: Processes, folder: Path, content: Content) -> Path:
    """Write a checkpoint together, then remove all but the last ones; all processes call it.

    Args:
        processes: that hold the tensors.
        folder: of the run, the same for all.
        content: of the checkpoint; its tensors are whole, the same on all processes, or divided among them. The main
            process writes the other files.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: it cannot be written; earlier checkpoints are intact.
        FloatingPointError: a number is not finite.
    """
    draft: Draft | None = None

    def begin() -> str:
        nonlocal draft
        folders.prepare(folder)
        with claimed(folder), told_of_writing(folder, content.step):
            folders.sweep(folder)
            draft = Draft(folder, content.step)
        return str(draft.path)

    def finish() -> Path:
        assert draft is not None
        with claimed(folder), told_of_writing(folder, content.step):
            listed.update(folders.written_files(draft.path, content.others))
            path = draft.finish(content.config, listed)
            folders.prune(folder, content.keep, path, content.spare)
        return path

    place = Path(processes.from_main(begin))
    try:
        mine: dict[str, Any] = {}
        for file, values in content.tensors.items():
            name = contents.part_name(file, processes.rank, processes.count)
            share = _share(values, processes)
            with processes.together(), told_of_writing(folder, content.step):
                content.check(file, share)
                mine.update(folders.written_files(place, {name: writer(share, apart=True)}))
            del share
        listed = {name: one for some in processes.gathered(mine) for name, one in some.items()}
        return processes.from_main(finish)
    except BaseException:
        if draft is not None:
            draft.drop()
        raise


@torch.no_grad()
def _share(tensors: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """The tensors that this process writes, whole, in main memory; one at a time is put together on the way."""
    owners = _owners({name: value.numel() * value.element_size() for name, value in tensors.items()}, processes.count)
    mine: dict[str, Tensor] = {}
    for name, value in tensors.items():
        full = joined(value)
        if owners[name] == processes.rank:  # tied ones apart, too
            mine[name] = (full.clone() if full is value else full).detach().cpu().contiguous()
    return mine


def _owners(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Which process writes which tensor: the largest first, to who has least so far."""
    load = [0] * count
    owners = {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        owners[name] = load.index(min(load))
        load[owners[name]] += sizes[name]
    return owners
