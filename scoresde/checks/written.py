"""Whether a network has to run as it is written, since somebody steps into it, in Python: what replays its work asks.

with as_written():                  # edits of attention maps, encodings that are recorded
    net(x, c)
is_as_written()                     # a recording, which asks nobody, answers only where this is False
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_written: ContextVar[bool] = ContextVar("written", default=False)


@contextmanager
def as_written() -> Iterator[None]:
    """Inside, and in this thread alone, networks are neither recorded nor replayed."""
    token = _written.set(True)
    try:
        yield
    finally:
        _written.reset(token)


def is_as_written() -> bool:
    """Whether this thread is inside of :func:`as_written`."""
    return _written.get()
