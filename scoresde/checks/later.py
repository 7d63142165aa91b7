"""What a run asks of numbers that lie on a device, without waiting for it.

A number that is read makes the host wait until the device has done all that was asked of it, and then the device waits
for the host. On the CPU nothing waits, and whatever is asked is answered at once. ::

    with answering():                                   # a run: what was asked inside is read at its end, together
        later(lost.any(), lambda: warn_user("..."))     # on the CPU at once

    kept = of_this_run()                                # a dict that lasts as long as the outermost run; else None

    running = Lagging()
    while running.any(flags):                           # of a device the answer of the question before
        ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from scoresde.checks.tensors import hidden, readable

_MOST = 4096
"""Questions after which a long run does wait once, so that what it holds does not grow."""

Waiting = list[tuple[Tensor, Callable[[], None]]]

_asked: ContextVar[Waiting | None] = ContextVar("what is to be read at the end of this run", default=None)

_kept: ContextVar[dict[Any, Any] | None] = ContextVar("what is kept as long as this run", default=None)


def of_this_run() -> dict[Any, Any] | None:
    """What is kept until the outermost run of this thread has ended; None outside of runs, and in traced code."""
    return None if torch.compiler.is_compiling() else _kept.get()


def later(bad: Tensor, then: Callable[[], None]) -> None:
    """Call ``then``, which warns or raises, if ``bad``, a bool (): at once on the CPU, else when the run has ended.

    Outside of :func:`answering` it is read at once, wherever it is; under ``torch.vmap`` and ``torch.compile``, where
    nothing can be read, not at all.
    """
    if hidden(bad):
        return
    waiting = _asked.get()
    if waiting is None or readable(bad):
        if bool(bad):
            then()
        return
    waiting.append((bad.detach(), then))
    if len(waiting) >= _MOST:
        _answer(waiting)


@contextmanager
def answering() -> Iterator[None]:
    """A run at whose end what was asked by :func:`later` is read, all of it at once; not where it ended by an error.

    Of runs inside one another each answers for itself, so that what an inner one raises comes out of it.
    """
    waiting: Waiting = []
    token, outermost = _asked.set(waiting), None if _kept.get() is not None else _kept.set({})
    try:
        yield
    finally:
        _asked.reset(token)
        if outermost is not None:
            _kept.reset(outermost)
    _answer(waiting)


def _answer(waiting: Waiting) -> None:
    asked, waiting[:] = list(waiting), []
    by_device: dict[torch.device, Waiting] = {}
    for one in asked:
        by_device.setdefault(one[0].device, []).append(one)
    for group in by_device.values():
        for bad, (_, then) in zip(torch.stack([flag for flag, _ in group]).tolist(), group, strict=True):
            if bad:
                then()


class Lagging:
    """Whether an iteration is to go on, asked before each turn and answered by what was asked one turn before.

    So a device always has a turn to work on while the host waits, and does at most one more than needed: for loops in
    which samples that have come to their end stay as they are. The CPU is answered at once, and does none too many.
    """

    def __init__(self) -> None:
        self._before: tuple[Tensor, torch.cuda.Event | None] | None = None

    def any(self, flags: Tensor) -> bool:
        """Whether any of ``flags`` was True, the turn before on a device; there the first answer is True."""
        now = flags.any()
        if readable(now):
            return bool(now)
        before, self._before = self._before, _on_its_way(now)
        if before is None:
            return True
        answer, arrived = before
        if arrived is not None:
            arrived.synchronize()
        return bool(answer)


def _on_its_way(flag: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A flag, and where it is on a GPU its copy in main memory with the event that says when it is there."""
    if not flag.is_cuda:
        return flag, None
    copy = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(flag, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(flag.device))
    return copy, arrived
