"""Training on a DataLoader of one's own: its batches, its workers, its sampler::

    loader = DataLoader(dataset, batch_size=64, shuffle=True, num_workers=4)
    train(model, loader, steps=2000, columns={"x": 0, "label": 1})      # batch_size is the loader's unless given

The rows of its batches are taken in its order, ``batch_size`` of them for each step. With the loader's own size and
``drop_last=True`` its batches are those of the steps; a short last batch is filled up from the next pass, and another
``batch_size`` cuts the rows anew.

What is promised is what a stream is promised (:mod:`~scoresde.train.streams`): what the loader, its sampler and its
workers draw starts from the seed of the run, ``set_epoch`` is called before each pass, and a generator of the loader's
own is put back to where it was when the run was made; a resumed run goes over the batches of the steps before again. Of
several processes each goes over the whole loader and keeps its rows of each batch; one whose sampler shares the samples
out (``DistributedSampler``) is taken to give this process its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from scoresde import checks
from scoresde.data.columns import Columns
from scoresde.data.parts import teller
from scoresde.train.batches import Batch, Fetched, seeded_everywhere
from scoresde.train.options import TrainOptions
from scoresde.train.processes import Processes
from scoresde.train.streams import FirstSample, Passes, StepReader, Uneven

_NOTHING = object()


class LoaderFeed:
    """Batches of a DataLoader.

    Args:
        loader: the user's.
        options: of the run.

    Raises:
        TypeError, ValueError: workers besides its own, no batches, or a first one that cannot be used.
    """

    size: int | None = None

    def __init__(self, loader: DataLoader[Any], options: TrainOptions) -> None:
        if options.num_workers:
            raise ValueError(
                f"num_workers={options.num_workers} for a DataLoader, which has workers of its own: "
                "DataLoader(..., num_workers=...)."
            )
        if options.prefetch is not None:
            raise ValueError(
                f"prefetch={options.prefetch} for a DataLoader, whose workers read ahead: "
                "DataLoader(..., num_workers=1, prefetch_factor=...)."
            )
        self._loader, self._options = loader, options
        self._columns = Columns(options.columns, options.scaling)
        held = (loader, loader.sampler, loader.batch_sampler, loader.dataset)
        made = {id(g): g for one in held if isinstance(g := getattr(one, "generator", None), torch.Generator)}
        self._reader: StepReader | None = None
        self._generators = [(generator, generator.get_state()) for generator in made.values()]
        self.shared = any(getattr(one, name, 1) > 1 for one in held for name in ("num_replicas", "num_processes"))
        items = self._start(0)
        try:
            batch = next(items, _NOTHING)
        finally:
            Passes.end(items)
            self.end_workers()
            self._put_back()
        if batch is _NOTHING:
            short = " drop_last=True leaves out what is no whole batch." if loader.drop_last else ""
            raise ValueError(f"the data set is empty: the DataLoader gave no batch.{short}")
        batch = self._of(batch, "the first batch")
        first = {name: value[0] for name, value in batch.items()}
        self.look = FirstSample(first, teller(loader.dataset), self._columns)

    def fetched(self, rows: slice, processes: Processes, *, first: int) -> Fetched:
        own, size = rows, self._options.batch_size
        if self.shared and processes.count > 1:
            own, size = slice(0, rows.stop - rows.start), rows.stop - rows.start
        if self._reader is None:
            self._reader = StepReader(lambda: self._opened(size, own), self._options.seed)
        return _FromLoader(map(self._reader, range(first, self._options.steps)), self)

    def seeded(self, seed: int) -> AbstractContextManager[None]:
        return seeded_everywhere(seed)

    def end_workers(self) -> None:
        """And with them forget where the loader is: it begins anew then, with workers that draw what they drew."""
        if self._loader.num_workers:
            if self._reader is not None:
                self._reader.close()
            self._loader._iterator = None

    def _start(self, number: int) -> Iterator[Any]:
        for one in (self._loader, self._loader.sampler, self._loader.batch_sampler, self._loader.dataset):
            set_epoch = getattr(one, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(number)
        return iter(self._loader)

    def _put_back(self) -> None:
        for generator, state in self._generators:
            generator.set_state(state)

    def _opened(self, size: int, rows: slice) -> tuple[Callable[[bool], Batch], Passes]:
        self._put_back()
        passes = Passes(self._start)
        left: list[Batch] = []  # rows that no step has had

        def read(wanted: bool) -> Batch:
            count = sum(len(part["x"]) for part in left)
            for _ in range(size):  # each batch has a row at least
                if count >= size:
                    break
                left.append(self._of(next(passes), "a batch"))
                count += len(left[-1]["x"])
            try:
                whole = left[0] if len(left) == 1 else {n: torch.cat([part[n] for part in left]) for n in left[0]}
            except KeyError as error:
                raise Uneven(f"{error} is missing from some batches") from error
            except RuntimeError as error:
                raise Uneven(str(error).rstrip(".")) from error
            left[:] = [{name: value[size:] for name, value in whole.items()}] if count > size else []
            return {name: value[:size][rows] for name, value in whole.items()}

        return read, passes

    def _of(self, batch: Any, what: str) -> dict[str, Tensor]:
        """A batch of the loader by our names, tensors of one length."""
        if self._loader.batch_size is None and self._loader.batch_sampler is None:  # it hands on samples
            batch = default_collate([batch])
        made: Mapping[str, Any] = self._columns(batch, what=what, batch=True)
        count = len(made["x"]) if made["x"].ndim else 0
        found: dict[str, Tensor] = {}
        for name, value in made.items():
            if not isinstance(value, Tensor) or not value.ndim or len(value) != count:
                if self._options.columns is None and name != "x":  # what a data set tells besides, and nobody asked for
                    continue
                raise ValueError(
                    f"{name} of {what} must be a tensor with one entry for each of its {count} samples, got "
                    f"{checks.got(value)}."
                )
            found[name] = value
        if not count:
            raise ValueError(f"{what} of the DataLoader holds no sample.")
        return found


class _FromLoader(Fetched):
    """Ends the workers of the loader with the session; without workers it stays where it is."""

    def __init__(self, pending: Iterator[Batch], feed: LoaderFeed) -> None:
        super().__init__(pending)
        self._feed = feed

    def close(self) -> None:
        super().close()
        self._feed.end_workers()
