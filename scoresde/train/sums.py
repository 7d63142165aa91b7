"""The gradients of several processes summed while the backward pass goes on.

::

    sums = Sums(parameters, processes)
    with sums.step():                                       # on each process, whatever it meets
        first_piece.backward()
        sums.last_piece()                                   # what the next backward pass finishes may be sent
        last_piece.backward()
                                                            # .grad is that of the global batch

Gradients travel in buckets, last layers first, each as soon as it is complete, while earlier layers are still computed
(Li et al. 2020, arXiv:2006.15704, section 3.2). Torch's wrapper that does the same stops, or waits for ever, at what
one process takes: parameters that only some of the samples use, batches that do not divide, a process without samples,
a process that fails. Here each process sends every bucket in the same order whatever happens to it, and the one message
at the end says who has failed, and which parameters have a gradient anywhere: the others keep None.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn

from scoresde.train.processes import Processes

BUCKET_BYTES = 25 << 20
"""Of a bucket, at least, but for the last: what torch's wrapper takes."""


class Sums:
    """What a run sums over its processes in each step.

    Args:
        parameters: those that are trained, in the order of the network.
        processes: that share each batch.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], processes: Processes) -> None:
        self._parameters, self._processes = list(parameters), processes
        self._buckets = _buckets(self._parameters)
        self._of = {id(p): bucket for bucket in self._buckets for p in bucket.parameters}
        self._next, self._sending = 0, False
        self._hooks: list[Any] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """Inside, ``.grad`` becomes this process's part; afterwards it is the sum. Nothing may be exchanged inside.

        Raises:
            TypeError, ValueError, FloatingPointError, CheckpointError, RuntimeError: another process failed; what this
                one met goes on as it is.
        """
        if self._processes.count == 1:
            yield
            return
        for bucket in self._buckets:
            bucket.begin()
        self._next = 0
        try:
            yield
        except BaseException as error:
            self._finish(error)
            raise
        self._finish(None)

    def last_piece(self) -> None:
        """The next backward pass is the last of this step: what it completes is sent."""
        if self._processes.count > 1:
            if not self._hooks:
                me = weakref.ref(self)  # a run that is forgotten must not live on in the hooks of its model

                def hook(parameter: Tensor) -> None:
                    if (sums := me()) is not None:
                        sums._complete(parameter)

                self._hooks = [p.register_post_accumulate_grad_hook(hook) for p in self._parameters]
            self._sending = True

    def close(self) -> None:
        """Leave nothing at the parameters."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _complete(self, parameter: Tensor) -> None:
        """Send what is ready, in the order that all processes have."""
        if not self._sending:
            return
        self._of[id(parameter)].missing.discard(id(parameter))
        while self._next < len(self._buckets) and not self._buckets[self._next].missing:
            self._send_next()

    def _send_next(self) -> None:
        self._buckets[self._next].send()
        self._next += 1

    @torch.no_grad()
    def _finish(self, error: BaseException | None) -> None:
        self._sending = False
        while self._next < len(self._buckets):
            self._send_next()
        # Of a parameter that two inner backward passes reach (recomputing with use_reentrant=True) part comes late.
        late = [p.grad is not None for p in self._parameters]
        had = {id(p) for bucket in self._buckets for p in bucket.had}
        said = [error is not None, *(id(p) in had for p in self._parameters), *late]
        failed, *rest = self._processes.any_of(said)
        for bucket in self._buckets:
            bucket.wait()
        if failed:
            for parameter in self._parameters:
                parameter.grad = None
            self._processes.raise_for(error)
            return
        some, late = rest[: len(late)], rest[len(late) :]
        if any(late):
            behind = {id(p) for p, one in zip(self._parameters, late, strict=True) if one}
            for bucket in self._buckets:
                if any(id(p) in behind for p in bucket.parameters):
                    bucket.add_late()
            some = [a or b for a, b in zip(some, late, strict=True)]
        wanted = {id(p) for p, one in zip(self._parameters, some, strict=True) if one}
        for bucket in self._buckets:
            bucket.give(wanted)


class _Bucket:
    """Parameters whose gradients are one flat tensor on their way."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.missing: set[int] = set()
        self.had: list[nn.Parameter] = []
        self._flat: Tensor | None = None
        self._work: Any = None

    def begin(self) -> None:
        """None of the gradients is there yet."""
        self.missing, self.had, self._flat = {id(p) for p in self.parameters}, [], None

    def send(self) -> None:
        """Start the sum of what there is; the gradients themselves are given up."""
        self.had = [p for p in self.parameters if p.grad is not None]
        self._flat, self._work = self._started()

    def wait(self) -> None:
        """Until the sum is there."""
        self._work.wait()
        self._work = None

    def add_late(self) -> None:
        """The sum of gradients that came after the others were sent, added."""
        flat, work = self._started()
        work.wait()
        cast(Tensor, self._flat).add_(flat)

    def give(self, wanted: set[int]) -> None:
        """Their parts of the sum to those parameters that have a gradient on any process."""
        for parameter, view in zip(self.parameters, self._views(cast(Tensor, self._flat)), strict=True):
            if id(parameter) in wanted:
                parameter.grad = view
        self._flat = None

    @torch.no_grad()
    def _started(self) -> tuple[Tensor, Any]:
        like = self.parameters[0]
        here = [p for p in self.parameters if p.grad is not None]
        make = torch.empty if len(here) == len(self.parameters) else torch.zeros
        flat = make(sum(p.numel() for p in self.parameters), dtype=like.dtype, device=like.device)
        views = dict(zip(map(id, self.parameters), self._views(flat), strict=True))
        for parameter in here:
            gradient = cast(Tensor, parameter.grad)
            views[id(parameter)].copy_(gradient.to_dense() if gradient.is_sparse else gradient)
            parameter.grad = None
        return flat, distributed.all_reduce(flat, async_op=True)

    def _views(self, flat: Tensor) -> list[Tensor]:
        """A part of the flat tensor for each, in the memory format of the parameter where it has no holes."""
        pieces = flat.split([p.numel() for p in self.parameters])
        return [
            piece.as_strided(p.shape, p.stride(), piece.storage_offset()) if _dense(p) else piece.view(p.shape)
            for piece, p in zip(pieces, self.parameters, strict=True)
        ]


def _dense(tensor: Tensor) -> bool:
    """Whether its numbers fill their memory, in whatever order of axes."""
    spread = sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
    filled = 1
    for stride, size in spread:
        if stride != filled:
            return False
        filled *= size
    return True


def _buckets(parameters: Sequence[nn.Parameter]) -> list[_Bucket]:
    """Parameters of one dtype and device together, the last first: gradients are complete about in that order."""
    open_ones: dict[Any, list[nn.Parameter]] = {}
    closed: list[list[nn.Parameter]] = []
    for parameter in reversed(parameters):
        kind = parameter.dtype, parameter.device
        some = open_ones.setdefault(kind, [])
        some.append(parameter)
        if sum(p.numel() * p.element_size() for p in some) >= BUCKET_BYTES:
            closed.append(open_ones.pop(kind))
    return [_Bucket(some) for some in (*closed, *open_ones.values())]
