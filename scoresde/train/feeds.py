"""Where the batches of a run come from: a data set with random access, a stream, a DataLoader.

:func:`feed_of` looks at what ``train`` was given, and answers an object that the loop asks for batches::

    feed = feed_of(dataset, options)
    feed.look                                               # what is checked before the run: a data set, or a sample
    fetched = feed.fetched(rows, processes, first=0)        # a function that returns the next step's batch
    fetched()["x"]                                          # this process's rows of it

:class:`MapFeed` is the one of data sets with random access; streams are in :mod:`~scoresde.train.streams`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from scoresde import checks
from scoresde.data import Dataset
from scoresde.data.columns import Columns, Renamed, is_picture, warn_unless_unit
from scoresde.data.huggingface import of_datasets, of_kind, refuse_splits
from scoresde.data.parts import TOLD, Told, chosen, teller
from scoresde.train.ahead import Ahead
from scoresde.train.batches import Fetched, MapDataset, batches, seeded_everywhere
from scoresde.train.draws import DataOrder, derive
from scoresde.train.loaders import LoaderFeed
from scoresde.train.options import TrainOptions
from scoresde.train.processes import Processes
from scoresde.train.streams import StreamFeed

Data = MapDataset | Iterable[Any] | Callable[[], Iterable[Any]]
"""What can be trained on."""


class Feed(Protocol):
    """Where batches come from."""

    @property
    def look(self) -> MapDataset:
        """What is checked before a run: the data set, or the first sample of a stream as a data set of one."""
        ...

    @property
    def size(self) -> int | None:
        """The number of samples, None where nobody knows it."""
        ...

    def fetched(self, rows: slice, processes: Processes, *, first: int) -> Fetched:
        """A function that returns the batch of the next step, beginning with step ``first`` (from 0)."""
        ...

    def seeded(self, seed: int) -> AbstractContextManager[None]:
        """Around looks at the data: what somebody else's code draws there starts from ``seed``."""
        ...


class MapFeed:
    """Batches of a data set with random access, in an order that is a function of the seed.

    Args:
        dataset: ``len(dataset)`` and ``dataset[i]``.
        options: of the run.
        places: (n,) int64, the samples that are taken; None for all.

    Raises:
        ValueError: batches of a data set that computes its samples are to be read ahead without workers.
    """

    def __init__(self, dataset: MapDataset, options: TrainOptions, places: Tensor | None = None) -> None:
        self.look = dataset
        self._options, self._places = options, places
        self._plain = type(dataset) is Dataset  # which draws nothing
        self._mapped = isinstance(dataset, Dataset) and dataset.mapped
        if options.prefetch and not options.num_workers and not self._plain:
            raise ValueError(
                f"prefetch={options.prefetch} for a data set of your own, which may draw from the generators that the "
                "step under way draws from: let a process read it ahead, num_workers=1."
            )

    def only(self, places: Tensor) -> MapFeed:
        """The same of some samples (n,) alone."""
        return MapFeed(self.look, self._options, places)

    @property
    def size(self) -> int:
        return len(self.look) if self._places is None else len(self._places)

    def fetched(self, rows: slice, processes: Processes, *, first: int) -> Fetched:
        options, cuda = self._options, processes.device.type == "cuda"
        fetched = batches(
            self.look,
            DataOrder(self.size, options.batch_size, options.seed, self._places),
            rows,
            first,
            options.steps,
            num_workers=options.num_workers,
            prefetch=options.prefetch,
            seed=options.seed,
            rank=processes.rank,
            pin_memory=cuda,
        )
        if not self._plain or options.num_workers:
            return fetched
        depth = (2 if cuda or self._mapped else 0) if options.prefetch is None else options.prefetch
        return Ahead(fetched, depth, pin_memory=cuda) if depth else fetched

    def seeded(self, seed: int) -> AbstractContextManager[None]:
        return nullcontext() if type(self.look) is Dataset else seeded_everywhere(seed)


def feed_of(data: Any, options: TrainOptions, processes: Processes) -> Feed:
    """The feed of whatever ``train`` was given.

    Raises:
        TypeError: nothing that can be trained on, or an iterator, which can be gone through once only.
        ValueError: options that do not go with it, no samples, or a first sample that cannot be used.
    """
    refuse_splits(data)
    data = chosen(data)
    with seeded_everywhere(derive(options.seed, "checks")) if not isinstance(data, Dataset) else nullcontext():
        if isinstance(data, Dataset):
            _refuse_options(options, "a scoresde.data.Dataset, whose entries have their names and units already")
            return MapFeed(data, options)
        if isinstance(data, DataLoader):
            return LoaderFeed(data, options)
        if of_kind(data, "Dataset"):
            return MapFeed(of_datasets(data, options.columns, options.scaling), options)
        if isinstance(data, (type, Mapping, str, bytes, Tensor)):
            raise TypeError(_no_data(data))
        if not isinstance(data, IterableDataset) and hasattr(data, "__len__") and hasattr(data, "__getitem__"):
            return MapFeed(_by_our_names(data, options), options)
        if callable(getattr(data, "__iter__", data)):
            return StreamFeed(data, options, processes)
        raise TypeError(_no_data(data))


def chosen_batch_size(data: Any) -> int | None:
    """The batch size of a DataLoader that is the whole of each step's; None where there is none to be had."""
    if not isinstance(data, DataLoader):
        return None
    size = data.batch_size or getattr(data.batch_sampler, "batch_size", None)
    return size if isinstance(size, int) else None


def _by_our_names(data: Any, options: TrainOptions) -> MapDataset:
    """The data set as it is, where its samples are ours already; what is wrong with others is told later."""
    source = teller(data)
    data = data if source is data else Told(data, source)
    if options.columns is None and options.scaling is None:
        try:
            sample = data[0]
        except Exception:  # of whatever class of a user's own: check_dataset says so
            return data
        x = sample.get("x") if isinstance(sample, Mapping) else None
        if not (is_picture(x) or isinstance(x, np.ndarray) or (isinstance(x, Tensor) and not x.is_floating_point())):
            if isinstance(x, Tensor) and all(getattr(data, name, None) is None for name in TOLD):
                warn_unless_unit(x, "dataset[0]")
            return data
    elif not len(data):
        raise ValueError("the data set is empty.")
    return Renamed(data, Columns(options.columns, options.scaling))


def _refuse_options(options: TrainOptions, what: str) -> None:
    given = [name for name in ("columns", "scaling") if getattr(options, name) is not None]
    if given:
        raise ValueError(f"{' and '.join(given)} cannot be given with {what}: leave {given[0]} out.")


def _no_data(data: object) -> str:
    return (
        f"a data set needs len(dataset) and dataset[i], or is an iterable, a function that returns one, a DataLoader, "
        f"or one of Hugging Face's; got {checks.got(data)}; see scoresde.data.from_tensors and scoresde.data.load."
    )
