"""Training on what can only be gone through: iterables, generator functions, streams of Hugging Face.

The samples of a stream are taken in its own order, ``batch_size`` of them for each step, pass after pass: batches run
across the end of a pass. :class:`StreamFeed` is the feed of such::

    def samples():                                          # gone through anew for each pass
        for line in open("points.txt"):
            yield {"x": torch.tensor([float(word) for word in line.split()])}

    train(model, samples, steps=2000, batch_size=128)

What is promised: where the stream is the same each time (given its pass, by ``set_epoch``, and torch's, NumPy's and
Python's default generators, which are seeded for each step), a resumed run takes the samples that the uninterrupted one
would have taken. It goes over those of the steps before again, which takes the time of reading them. Of several
processes each goes over the whole stream and keeps its rows of each batch, as one process would have them; a stream of
Hugging Face's is split instead (``split_dataset_by_node``), each process reads its share alone, and the run depends on
how many there are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, cast

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from scoresde import checks
from scoresde.data.columns import Columns
from scoresde.data.huggingface import class_names, columns_of, levels_told, of_kind
from scoresde.extras import needs
from scoresde.train.batches import Batch, Fetched, seeded_everywhere
from scoresde.train.draws import derive
from scoresde.train.options import TrainOptions
from scoresde.train.processes import Processes


class FirstSample:
    """The first sample of a stream as a data set of one, with all that the stream tells of itself.

    Args:
        sample: by our names.
        source: may tell scaling, class_names, num_classes and condition_scalings.
        columns: how samples are read.
        names: of the classes, where they are known otherwise.
    """

    def __init__(self, sample: dict[str, Any], source: object, columns: Columns, names: Any = None) -> None:
        self._sample = sample
        self.scaling = columns.units(source)
        self.class_names = getattr(source, "class_names", None) if names is None else names
        known = self.class_names
        self.num_classes = getattr(source, "num_classes", None) if known is None else len(known)
        self.condition_scalings = getattr(source, "condition_scalings", {})
        x = sample["x"]
        self.event_shape = tuple(x.shape) if isinstance(x, Tensor) else None

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._sample


class Passes(Iterator[Any]):
    """The items of a source, pass after pass.

    Args:
        start: begins a pass, given its number from 0.
    """

    def __init__(self, start: Callable[[int], Iterator[Any]]) -> None:
        self._start, self._pass = start, -1
        self._items: Iterator[Any] = iter(())

    def __next__(self) -> Any:
        for item in self._items:
            return item
        self._pass += 1
        self._items = self._start(self._pass)
        for item in self._items:
            return item
        raise ValueError(
            f"pass {self._pass + 1} over the data gave no sample. If it gave some before, it can be gone through once "
            "only: give what begins anew each time."
        )

    def close(self) -> None:
        """End what the pass under way holds: generators, workers."""
        self.end(self._items)

    @staticmethod
    def end(items: object) -> None:
        """The same of any iterator."""
        for end in ("close", "_shutdown_workers"):
            getattr(items, end, lambda: None)()


class Uneven(ValueError):
    """Samples that do not make a batch; what the source itself raises is handed on."""


class StepReader:
    """The batch of a step after the other; those of steps that are not wanted are gone over.

    What may be asked is any step; one that is not the next, or the last once more, begins the source anew.

    Args:
        open: makes a fresh reader of batches: a function of the step, called with one after the other from 0.
        seed: of the run.
    """

    def __init__(self, open: Callable[[], tuple[Callable[[bool], Batch], Passes]], seed: int) -> None:
        self._open, self._seed = open, seed
        self._read: Callable[[bool], Batch] | None = None
        self._passes: Passes | None = None
        self._next = 0
        self._last: tuple[int, Batch] | None = None

    def __call__(self, step: int) -> Batch:
        if self._last is not None and self._last[0] == step:  # the step was interrupted after it was read
            return self._last[1]
        if self._read is None or step < self._next:
            self.close()
            (self._read, self._passes), self._next = self._open(), 0
        try:
            for before in range(self._next, step):
                self._one(before, False)
            batch = self._one(step, True)
        except BaseException:
            self.close()
            raise
        self._last = step, batch
        return batch

    def _one(self, step: int, wanted: bool) -> Batch:
        assert self._read is not None
        with seeded_everywhere(derive(self._seed, "stream", step)):
            try:
                batch = self._read(wanted)
            except Uneven as error:
                raise ValueError(
                    f"samples of step {step + 1} do not make a batch: {error}. Each must have the same entries, of the "
                    "same shapes."
                ) from error
            except Exception as error:  # of somebody's code, as it is
                error.add_note(f"This happened while the samples of step {step + 1} were read.")
                raise
        self._next = step + 1
        return batch

    def close(self) -> None:
        """Forget where the source is, and end its workers."""
        passes, self._passes, self._read, self._last = self._passes, None, None, None
        if passes is not None:
            passes.close()


class StreamFeed:
    """Batches of an iterable, or of a function that returns one.

    Args:
        source: gone through anew for each pass; ``source.set_epoch(number)`` is called before where there is one.
        options: of the run.
        processes: that share each batch.

    Raises:
        TypeError, ValueError: an iterator, no samples, a first one that cannot be used, more than one worker.
    """

    size: int | None = None

    def __init__(self, source: Any, options: TrainOptions, processes: Processes) -> None:
        if options.num_workers > 1:
            raise ValueError(
                f"num_workers={options.num_workers} for an iterable, which one worker reads, num_workers=1: for more "
                "give a DataLoader(dataset, batch_size, num_workers=...) of a data set that shares its samples out "
                "among its workers."
            )
        if options.prefetch and not options.num_workers:
            raise ValueError(
                f"prefetch={options.prefetch} for an iterable, which may draw from the generators that the step under "
                "way draws from: let a process read it ahead, num_workers=1."
            )
        self._source, self._options = source, options
        self._split = of_kind(source, "IterableDataset")
        names, chosen, scaling = None, options.columns, options.scaling
        if self._split:
            chosen = columns_of(source, options.columns) or None
            names = None if chosen is None else class_names(source, chosen)
            scaling = levels_told(source, chosen) if scaling is None and chosen is not None else scaling
            if processes.count > 1 and getattr(source, "_distributed", None) is None:
                with needs("datasets"):
                    from datasets.distributed import split_dataset_by_node
                self._source = split_dataset_by_node(source, processes.rank, processes.count)
        self._columns = Columns(chosen, scaling)
        items = passed(self._source)(0)
        first = next(items, None)
        Passes.end(items)
        if first is None:
            raise ValueError(f"the data set is empty: {checks.got(source)} gave no sample.")
        self.look = FirstSample(self._columns(first, what="the first sample"), source, self._columns, names)
        self._reader: StepReader | None = None

    def fetched(self, rows: slice, processes: Processes, *, first: int) -> Fetched:
        options = self._options
        if options.num_workers:
            worker = _InWorker(self._opened(rows), first, options.steps, options.seed)
            loader: DataLoader[Batch] = DataLoader(
                worker,
                batch_size=None,
                num_workers=1,
                prefetch_factor=options.prefetch,
                pin_memory=processes.device.type == "cuda",
            )
            with seeded_everywhere(derive(options.seed, "workers", processes.rank)):
                return Fetched(iter(loader))
        if self._reader is None:
            self._reader = StepReader(self._opened(rows), options.seed)
        return Fetched(map(self._reader, range(first, options.steps)))

    def seeded(self, seed: int) -> AbstractContextManager[None]:
        return seeded_everywhere(seed)

    def _opened(self, rows: slice) -> _Opened:
        size = self._options.batch_size
        own = slice(0, rows.stop - rows.start) if self._split else rows
        return _Opened(self._source, self._columns, rows.stop - rows.start if self._split else size, own)


class _Opened:
    """Begins to read a stream; an object, which a worker process can be given.

    Args:
        source: the stream.
        columns: how samples are read.
        size: samples that a step takes from the stream.
        rows: those of them that are kept.
    """

    def __init__(self, source: Any, columns: Columns, size: int, rows: slice) -> None:
        self._source, self._columns, self._size, self._rows = source, columns, size, rows

    def __call__(self) -> tuple[Callable[[bool], Batch], Passes]:
        passes, kept = Passes(passed(self._source)), range(self._size)[self._rows]

        def read(wanted: bool) -> Batch:
            samples = [(i, next(passes)) for i in range(self._size)]
            if not wanted:
                return {}
            made = [self._columns(one, what=f"sample {i} of a batch") for i, one in samples if i in kept]
            try:
                return cast(Batch, default_collate(made))
            except (TypeError, RuntimeError, KeyError) as error:
                raise Uneven(str(error)) from error

        return read, passes


class _InWorker(IterableDataset[Batch]):
    """The batches of the steps from one on, read in a worker process."""

    def __init__(self, opened: _Opened, first: int, steps: int, seed: int) -> None:
        self._opened, self._first, self._steps, self._seed = opened, first, steps, seed

    def __iter__(self) -> Iterator[Batch]:
        return map(StepReader(self._opened, self._seed), range(self._first, self._steps))


def passed(source: Any) -> Callable[[int], Iterator[Any]]:
    """A function that begins pass k of a source.

    Raises:
        TypeError: it can be gone through once only, takes arguments, or returns nothing to go through.
    """

    def start(number: int) -> Iterator[Any]:
        set_epoch = getattr(source, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(number)
        if hasattr(source, "__iter__"):
            found = iter(source)
            if found is source:
                raise TypeError(_once(source))
            return found
        return iter(_called(source))

    return start


def _called(function: Any) -> Iterable[Any]:
    try:
        needed = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty
                  and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]  # fmt: skip
    except (TypeError, ValueError):  # of C
        needed = []
    if needed:
        raise TypeError(
            f"a function as a data set is called without arguments for each pass, and {checks.got(function)} needs "
            f"{', '.join(needed)}: give functools.partial(function, ...)."
        )
    found = function()
    if isinstance(found, DataLoader):
        raise TypeError(
            f"{checks.got(function)} returned a DataLoader, whose items are batches: give the DataLoader itself, which "
            "is gone through anew for each pass."
        )
    if not hasattr(found, "__iter__"):
        raise TypeError(
            f"a function as a data set must return an iterable of samples; {checks.got(function)} returned "
            f"{checks.got(found)}."
        )
    return cast(Iterable[Any], found)


def _once(source: Any) -> str:
    return (
        f"{checks.got(source)} is an iterator, which can be gone through once only, and training goes over the data "
        "again: for each pass, to resume, and for a look at the first sample. Give the function that makes it (samples "
        "for samples()), or an object whose __iter__ begins anew."
    )
