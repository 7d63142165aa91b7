"""Checkpoints that several processes write, each its share, and none of them holds the whole.

A checkpoint of two processes has ``model-00001-of-00002.safetensors`` and ``model-00002-of-00002.safetensors`` in the
place of ``model.safetensors``, and likewise for averages and the optimizer's state: each tensor whole in one of them,
as published models have it. config.json lists all with size and hash, and the folder gets its name when all are there.
Any number of processes, and one without the others, goes on from it: the files do not tell how weights were divided::

    write_parts(processes, folder, step, config, tensors, others, keep)         # on all processes
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.train import checkpoint, contents
from scoresde.train import folder as folders
from scoresde.train.folder import Draft, Writer
from scoresde.train.owner import claimed
from scoresde.train.processes import Processes
from scoresde.train.tensors import check_finite, joined, writer


def rows_held(length: int, processes: Processes) -> slice:
    """The rows of this process of a tensor that is divided along its first axis, as torch.chunk divides it."""
    each = -(-length // processes.count)
    start = min(processes.rank * each, length)
    return slice(start, min(start + each, length))


def write_parts(
    processes: Processes,
    folder: Path,
    step: int,
    config: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    others: Mapping[str, Writer],
    keep: int,
    spare: Collection[str],
) -> Path:
    """Write a checkpoint together, then remove all but the last ``keep``; all processes call it.

    Args:
        processes: that hold the tensors.
        folder: of the run, the same for all.
        step, config: as for ``folder.write``.
        tensors: by file, then by name: whole, the same on all processes, or divided among them.
        others: a function for each other file, which the main process calls.
        keep: how many checkpoints to leave.
        spare: names of checkpoints that are left besides.

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
        with claimed(folder), checkpoint.told_of_writing(folder, step):
            folders.sweep(folder)
            draft = Draft(folder, step)
        return str(draft.path)

    def finish() -> Path:
        assert draft is not None
        with claimed(folder), checkpoint.told_of_writing(folder, step):
            listed.update(folders.written_files(draft.path, others))
            path = draft.finish(config, listed)
            folders.prune(folder, keep, path, spare)
        return path

    place = Path(processes.from_main(begin))
    try:
        mine: dict[str, Any] = {}
        for file, values in tensors.items():
            name = contents.part_name(file, processes.rank, processes.count)
            share = _share(values, processes)
            with processes.together(), checkpoint.told_of_writing(folder, step):
                check_finite(share, contents.number_in(file), f"after step {step}")
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
