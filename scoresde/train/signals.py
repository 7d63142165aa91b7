"""SIGTERM, by which a machine is taken away: the run finishes its step, writes a checkpoint, and the process ends.

A :class:`~scoresde.train.Run` listens from the first step of an iteration to its end. Nobody need do anything; a
program that has something to clear up does it on the way out::

    try:
        for step in train(model, dataset, steps=100_000, batch_size=128, folder="run"):
            ...
    except Terminated as told:                              # a SystemExit of status 143 = 128 + SIGTERM
        log.warning("%s", told)
        raise

which is what schedulers of clusters take for "ended by the signal". :class:`Listening` is what hears it.
"""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, MethodType
from typing import Any

STATUS = 128 + signal.SIGTERM
"""With which a process ends that was told to: 143."""


class Terminated(SystemExit):
    """SIGTERM came while a run was iterated: it finished its step and, where it has a folder, wrote a checkpoint.

    Raised out of the iteration. Not caught it ends the process with status 143. A program that catches it has the run
    as after its last step, and may iterate it again.

    Args:
        step: steps that are done.
        path: of the checkpoint; None without a folder.
    """

    def __init__(self, step: int, path: Path | None) -> None:
        super().__init__(int(STATUS))
        self.step, self.path = step, path

    def __str__(self) -> str:
        way = "it has no folder to resume from" if self.path is None else f"go on from {self.path} by resume=True"
        return f"SIGTERM: the run ended after step {self.step}; {way}."

    def __reduce__(self) -> Any:
        return type(self), (self.step, self.path)


class Listening:
    """Whether SIGTERM has come since :meth:`begin`, until :meth:`end`.

    It listens in the main thread alone, since others cannot, and where nobody else does: a program that handles or
    ignores SIGTERM itself is left alone. A second signal changes nothing: schedulers and torchrun may both send one.

    Args:
        at_once: a method that is called when the signal comes while nobody is :meth:`at_work`; it is held weakly.
    """

    def __init__(self, at_once: Callable[[], None]) -> None:
        assert isinstance(at_once, MethodType)
        self._at_once = weakref.WeakMethod(at_once)
        self._heard = self._listens = False
        self._process, self._busy = os.getpid(), 0
        self._before: Listening | None = None

    def __bool__(self) -> bool:
        return self._heard

    def begin(self) -> None:
        """Listen; before any other run that does, which may have been left in the middle."""
        self._process = os.getpid()
        if not _in_main_thread():
            return
        there = signal.getsignal(signal.SIGTERM)
        other = getattr(there, "__self__", None)
        if there is signal.SIG_DFL or isinstance(other, Listening):
            if other is not self:
                self._before = other if isinstance(other, Listening) else None
            signal.signal(signal.SIGTERM, self._hear)
            self._listens = True

    def end(self) -> None:
        """SIGTERM does what it did before, unless somebody has begun to handle it since."""
        self._listens = False
        if _in_main_thread() and signal.getsignal(signal.SIGTERM) == self._hear:
            other = self._before
            while other is not None and not other.alive:
                other = other._before
            signal.signal(signal.SIGTERM, signal.SIG_DFL if other is None else other._hear)
            self._before = None

    @property
    def alive(self) -> bool:
        """Whether it listens for a run that is still there."""
        return self._listens and self._at_once() is not None

    def forget(self) -> None:
        """What was heard has been heeded."""
        self._heard = False

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside, what is heard is noted alone."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    def _hear(self, number: int, frame: FrameType | None) -> None:
        at_once = self._at_once()
        if at_once is None or not self._listens or os.getpid() != self._process:
            # a run that was let go, one that ended in another thread, a child that was forked: as if nobody listened
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
            return
        self._heard = True
        if not self._busy:
            at_once()


@contextmanager
def dead_workers_forgiven() -> Iterator[None]:
    """Around the end of workers, which the signal may have ended already."""
    try:
        yield
    except RuntimeError as error:
        if not worker_died(error):
            raise


def worker_died(error: BaseException) -> bool:
    """Whether it tells of a DataLoader's worker that ended: a signal to all processes of a group kills these first."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
