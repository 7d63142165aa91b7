"""What a solver thinks of its own answer, said as a warning, unless whoever runs it knows better::

    with unadvised():
        solver.solve(process, x, few_steps)           # no word about an error that is expected

Python's own filters are of the whole process: changing them for a while would silence other threads, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from scoresde.warning import warn_user

_silent: ContextVar[bool] = ContextVar("solvers say nothing of their answers", default=False)


@contextmanager
def unadvised() -> Iterator[None]:
    """Inside, and in this thread alone, :func:`advise` says nothing."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def advise(message: str, category: type[Warning] = UserWarning) -> None:
    """:func:`~scoresde.warning.warn_user`, unless :func:`unadvised`."""
    if not _silent.get():
        warn_user(message, category)
