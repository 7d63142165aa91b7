"""Batches of the next steps, read by a thread while a step is computed::

    fetched = Ahead(fetched, depth=2, pin_memory=True)      # of a function that returns the next step's batch
    fetched()["x"]                                          # the batch of the next step, which was ready
    fetched.close()                                         # the thread ends

The batches are those that would have come without it, in their order; what reading one raises is raised where that
batch is asked for. For data that draw nothing from torch's, NumPy's and Python's default generators alone: these belong
to the whole process, and the step that is computed meanwhile may be drawing from them.
"""

from __future__ import annotations

import queue
import threading
from typing import Any

from scoresde.train.batches import Batch, Fetched

_LOOK = 0.1  # seconds between two looks at whether anybody still waits


class Ahead(Fetched):
    """A function that returns the next batch, of up to ``depth`` that a thread has read.

    Args:
        fetched: a function that returns the next batch, which is called in the thread from now on.
        depth: how many may wait, at least 1.
        pin_memory: put them into memory from which a GPU copies while it computes.
    """

    def __init__(self, fetched: Fetched, depth: int, *, pin_memory: bool) -> None:
        super().__init__(iter(()))
        self._source = fetched
        self._ready: queue.Queue[tuple[Batch | None, BaseException | None]] = queue.Queue(depth)
        self._over = threading.Event()
        self._reader = threading.Thread(
            target=_read, args=(fetched, self._ready, self._over, pin_memory), name="scoresde-ahead", daemon=True
        )
        self._reader.start()

    def __call__(self) -> Batch:
        if self._over.is_set():
            raise RuntimeError("the batches were closed.")
        batch, error = self._ready.get()
        if error is not None:
            self.close()
            raise error
        assert batch is not None
        return batch

    def close(self) -> None:
        """End the thread; what it has read is let go."""
        super().close()
        self._over.set()
        self._reader.join()
        self._source.close()


def _read(fetched: Fetched, ready: queue.Queue[Any], over: threading.Event, pin_memory: bool) -> None:
    """What the thread does; without a reference to the :class:`Ahead`, which may be let go without a word."""
    while not over.is_set():
        try:
            batch = fetched()
            made: Any = ({n: value.pin_memory() for n, value in batch.items()} if pin_memory else batch, None)
        except BaseException as error:  # StopIteration as well: raised where it is asked for
            made = (None, error)
        while not over.is_set():
            try:
                ready.put(made, timeout=_LOOK)
                break
            except queue.Full:
                continue
        if made[1] is not None:
            return
