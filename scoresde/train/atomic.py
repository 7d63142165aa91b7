"""Steps that are done wholly or not at all, though somebody presses Ctrl-C or data cannot be read::

    with uninterrupted():                                   # Ctrl-C inside is heard at the end
        optimizer.step()
        ema.update()

    undo = Buffers(model)                                   # what a forward pass may change besides the gradients
    try:
        model(x)                                            # batch statistics, counters
    except BaseException:
        undo.restore()                                      # as at the last keep()
        raise
    undo.keep()

:class:`~scoresde.train.Run` goes on in the same process after an interrupted step because of these.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_SMALL = 2**16  # numbers: their copy takes no time
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Inside, signals that Python handles (Ctrl-C, and SIGTERM where the program does) wait for the end of the block.

    Only the main thread hears signals; in another nothing is done. Keep what is inside short.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[tuple[int, Any]] = []
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in ours:
            signal.signal(number, lambda *said: heard.append(said))
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        for said in heard[:1]:
            ours[signal.Signals(said[0])](*said)


def kept_buffers(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The buffers of a module, each with a copy, for :func:`write_back`."""
    return [(buffer, buffer.detach().clone()) for buffer in module.buffers() if _writable(buffer)]


@torch.no_grad()
def write_back(kept: list[tuple[Tensor, Tensor]]) -> None:
    """Overwrite buffers with the copies that were kept of them."""
    for buffer, value in kept:
        buffer.copy_(value)


def _writable(buffer: Tensor) -> bool:
    """Whether numbers can be written into it: not one that repeats a number, nor one that is yet to get its shape."""
    if is_lazy(buffer) or buffer.layout != torch.strided:
        return False
    return not any(size > 1 and stride == 0 for size, stride in zip(buffer.shape, buffer.stride(), strict=True))


@contextmanager
def as_it_was(module: nn.Module) -> Iterator[None]:
    """Inside, a module and those in it are in evaluation mode; afterwards modes and buffers are what they were."""
    modes, buffers = [(part, part.training) for part in module.modules()], kept_buffers(module)
    try:
        module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training
        write_back(buffers)


class Buffers:
    """The buffers of a module as they were when ``keep`` was called last, or at the beginning.

    Large ones are copied again only where they were changed since, by the version that torch counts; of small ones that
    is not known, for batch normalisation writes its statistics without counting.

    Args:
        module: whose buffers are kept.
    """

    def __init__(self, module: nn.Module) -> None:
        self._places = [(part, name) for part in module.modules() for name, _ in part.named_buffers(recurse=False)]
        self._kept: dict[tuple[nn.Module, str], tuple[Tensor, int, Tensor]] = {}
        self.keep()

    def keep(self) -> None:
        """What is to be restored is as it is now."""
        for place, buffer in self._perhaps_changed():
            self._kept[place] = (buffer, buffer._version, buffer.detach().clone())

    @torch.no_grad()
    def restore(self) -> None:
        """The buffers as they were."""
        for part, name in [place for place, _ in self._perhaps_changed() if place in self._kept]:
            buffer, _, value = self._kept[part, name]
            buffer.copy_(value)
            setattr(part, name, buffer)
        self.keep()

    def _perhaps_changed(self) -> Iterator[tuple[tuple[nn.Module, str], Tensor]]:
        for part, name in self._places:
            buffer, kept = getattr(part, name, None), self._kept.get((part, name))
            if buffer is None or not _writable(buffer):
                continue
            small = buffer.numel() <= _SMALL
            if small or kept is None or kept[0] is not buffer or kept[1] != buffer._version:
                yield (part, name), buffer
