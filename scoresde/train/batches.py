"""The samples of each step: from memory in one go, or through worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from scoresde.data import Dataset
from scoresde.train.draws import DataOrder, derive

Batch = dict[str, Tensor]


class MapDataset(Protocol):
    """What can be trained on: ``dataset[i]`` is a dict with "x" and conditions, all tensors or numbers."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """One sample."""
        ...


class _ByIndexLists:
    """A data set asked for whole batches, so that a worker does the collating."""

    def __init__(self, dataset: MapDataset) -> None:
        self._dataset = dataset

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        if isinstance(self._dataset, Dataset):
            return self._dataset.batch(indices)
        many = getattr(self._dataset, "__getitems__", None)
        samples = many(list(indices)) if many is not None else [self._dataset[int(i)] for i in indices]
        return cast(Batch, default_collate(samples))


class _Order:
    """The index lists of this process, from a step on."""

    def __init__(self, order: DataOrder, rows: slice, first: int, steps: int) -> None:
        self._order, self._rows, self._first, self._steps = order, rows, first, steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._first, self._steps):
            yield self._order.indices(step)[self._rows].tolist()


def batches(
    dataset: MapDataset, order: DataOrder, rows: slice, first: int, steps: int, num_workers: int, seed: int
) -> Callable[[], Batch]:
    """A function that returns the batch of the next step, starting with step ``first`` (counted from 0).

    Args:
        dataset: the data set.
        order: which samples belong to which step.
        rows: this process's part of the global batch.
        first: steps done before.
        steps: steps in all.
        num_workers: worker processes; with none the samples are fetched when asked for.
        seed: of the workers' own generators.
    """
    source = _ByIndexLists(dataset)
    lists = _Order(order, rows, first, steps)
    if num_workers == 0:
        pending = iter(lists)
        return lambda: source.__getitems__(next(pending))
    loader: DataLoader[Batch] = DataLoader(
        cast(Any, source),
        batch_sampler=cast(Any, lists),
        collate_fn=cast(Any, _whole_batch),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(derive(seed, "workers", first)),
    )
    iterator = iter(loader)
    return lambda: next(iterator)


def _whole_batch(batch: Batch) -> Batch:
    return batch
