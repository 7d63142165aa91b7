"""The samples of each step: from memory in one go, or through worker processes.

:class:`MapDataset` is what can be trained on. :func:`batches` is called by :class:`~scoresde.train.Run` at the start of
an iteration, and answers a function that returns the next step's batch, this process's rows of it::

    order = DataOrder(len(dataset), batch_size=128, seed=0)
    fetched = batches(dataset, order, slice(0, 128), 0, 2000, num_workers=0, seed=0, rank=0, pin_memory=False)
    fetched()["x"]                                          # (128, *event)
    fetched.close()                                         # the worker processes end

Which samples a step has depends on the seed and the step alone, so a resumed run goes on with the right ones;
:func:`seeded_everywhere` does the same for what a data set draws itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from scoresde.data import Dataset
from scoresde.train.draws import DataOrder, derive, seeded

Batch = dict[str, Tensor]
_Places = npt.NDArray[np.int64]


class MapDataset(Protocol):
    """What can be trained on: ``dataset[i]`` is a dict with "x" and conditions, all tensors or numbers."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """One sample."""
        ...


class _ByIndexLists:
    """A data set asked for whole batches, so that a worker does the collating.

    What the data set itself draws from the default generators of torch, NumPy and Python (an augmentation, say) starts
    from (seed, step, process), in a worker or not: it does not depend on where a run was interrupted.
    """

    def __init__(self, dataset: MapDataset, seed: int, rank: int) -> None:
        self._dataset, self._seed, self._rank = dataset, seed, rank

    def __getitems__(self, wanted: tuple[int, _Places]) -> Batch:
        step, places = wanted
        if type(self._dataset) is Dataset:  # which draws nothing
            return self._dataset.gather(torch.from_numpy(places))
        indices = places.tolist()
        if isinstance(self._dataset, Dataset):
            with seeded_everywhere(derive(self._seed, "data set", step, self._rank)):
                return self._dataset.batch(indices)
        many = getattr(self._dataset, "__getitems__", None)
        with seeded_everywhere(derive(self._seed, "data set", step, self._rank)):
            samples = many(indices) if many is not None else [self._dataset[i] for i in indices]
        try:
            return cast(Batch, default_collate(samples))
        except (RuntimeError, KeyError, TypeError) as error:
            raise ValueError(
                f"samples of step {step + 1}, the first {indices[:5]}, do not make a batch: {error}. Each must have "
                "the same entries, of the same shapes."
            ) from error


@contextmanager
def seeded_everywhere(seed: int) -> Iterator[None]:
    """Inside, the default generators of torch (on the CPU), NumPy and Python start from ``seed``.

    They belong to the whole process, so that another thread that draws from them meanwhile is disturbed: this stands
    around data sets of somebody else's alone.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - a user's data set may draw from it
    with seeded(torch.device("cpu"), seed):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


class _Order:
    """The steps and places of this process's samples, from a step on."""

    def __init__(self, order: DataOrder, rows: slice, first: int, steps: int) -> None:
        self._order, self._rows, self._first, self._steps = order, rows, first, steps

    def __iter__(self) -> Iterator[tuple[int, _Places]]:
        for step in range(self._first, self._steps):
            yield step, self._order.indices(step)[self._rows].numpy()


class Fetched:
    """A function that returns the batch of the next step, and the workers behind it."""

    def __init__(self, pending: Iterator[Batch]) -> None:
        self._pending: Iterator[Batch] | None = pending

    def __call__(self) -> Batch:
        if self._pending is None:
            raise RuntimeError("the batches were closed.")
        return next(self._pending)

    def close(self) -> None:
        """End the workers now: an error that is being looked at may hold on to the iterator for long."""
        end = getattr(self._pending, "_shutdown_workers", None)
        self._pending = None
        if end is not None:
            end()


def batches(
    dataset: MapDataset,
    order: DataOrder,
    rows: slice,
    first: int,
    steps: int,
    *,
    num_workers: int,
    prefetch: int | None = None,
    seed: int,
    rank: int,
    pin_memory: bool,
) -> Fetched:
    """A function that returns the batch of the next step, starting with step ``first`` (counted from 0).

    Args:
        dataset: the data set.
        order: which samples belong to which step.
        rows: this process's part of the global batch.
        first: steps done before.
        steps: steps in all.
        num_workers: worker processes; with none the samples are fetched when asked for.
        prefetch: batches that each worker reads ahead; torch's 2 unless given.
        seed, rank: of the run and of this process: what a data set draws starts from them and the step.
        pin_memory: whether the samples go on to a GPU.
    """
    source = _ByIndexLists(dataset, seed, rank)
    lists = _Order(order, rows, first, steps)
    if num_workers == 0:
        return Fetched(map(source.__getitems__, lists))
    loader: DataLoader[Batch] = DataLoader(
        cast(Any, source),
        batch_sampler=cast(Any, lists),
        collate_fn=cast(Any, _whole_batch),
        num_workers=num_workers,
        prefetch_factor=prefetch,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(derive(seed, "workers", rank)),  # or torch's default one is drawn from
    )
    return Fetched(iter(loader))


def _whole_batch(batch: Batch) -> Batch:
    return batch
