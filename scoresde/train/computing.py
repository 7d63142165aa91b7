"""How a step is computed: in which order in memory, compiled or not, and with which products of float32::

    computing = Computing(model.net, (3, 32, 32), device, {128}, compile=True, channels_last=None, tf32=False,
                          autocast=True)                               # weights are put into their order here
    x0, eps, given = computing.ordered(x0, eps, given)
    with computing:
        objective(x0, t, eps, weight, given).backward()

What is set lasts for the block alone: between two steps a program finds torch as it left it, and the network plain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.train.batches import MapDataset
from scoresde.train.compiled import Compiled
from scoresde.train.objective import Objective
from scoresde.train.options import TrainOptions
from scoresde.train.processes import Processes

_FORMATS = {3: torch.channels_last, 4: torch.channels_last_3d}
"""Orders of memory with the channels innermost, by the axes of an event."""


def channels_innermost(asked: bool | None, event_shape: Sequence[int], *, fast: bool) -> torch.memory_format | None:
    """The memory format of weights and batches with the channels innermost, or None for the usual one.

    Args:
        asked: True, False, or None for what suits.
        event_shape: of a sample, (C, *axes).
        fast: whether the channels innermost are what suits: compiled kernels in bfloat16 on CUDA.

    Raises:
        ValueError: asked for, and samples have neither two nor three axes besides their channels.
    """
    known = _FORMATS.get(len(event_shape))
    if asked and known is None:
        raise ValueError(
            f"channels_last=True is for pictures (C, H, W) and volumes (C, D, H, W); samples here have shape "
            f"{tuple(event_shape)}. Leave it out."
        )
    return known if (fast if asked is None else asked) else None


@contextmanager
def tf32_allowed() -> Iterator[None]:
    """Inside, CUDA may round the factors of float32 matrix products and convolutions to TF32, of 11 significant bits.

    Both are what they were afterwards, whoever set them, by the settings of today's torch or by those of old.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    conv: Any = getattr(cudnn, "conv", None)
    settings: list[tuple[Any, str, Any]]
    if hasattr(matmul, "fp32_precision") and conv is not None:  # of torch 2.9, where the old ones are not read beside
        settings = [(matmul, "fp32_precision", "tf32"), (conv, "fp32_precision", "tf32")]
    else:
        settings = [(matmul, "allow_tf32", True), (cudnn, "allow_tf32", True)]
    before = [(where, name, getattr(where, name)) for where, name, _ in settings]
    try:
        for where, name, value in settings:
            setattr(where, name, value)
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)


def pieces(total: int, accumulate: int) -> list[slice]:
    """The parts in which ``total`` rows are worked off: ``accumulate`` of them, that differ by one row at most."""
    cut = [total * i // accumulate for i in range(accumulate + 1)]
    return [slice(a, b) for a, b in pairwise(cut) if b > a]


class Computing:
    """What is around the loss and its gradient in each step.

    Args:
        net: the network in training, whose weights are put in order.
        event_shape: of a sample.
        device: where it computes.
        sizes: numbers of samples that the network will be called with.
        compile, channels_last, tf32: the options of a run.
        autocast: whether it computes in bfloat16.

    Attributes:
        format: the memory format of weights and batches; None for the usual one.

    Raises:
        TypeError, ValueError, RuntimeError: see :func:`channels_innermost` and
            :class:`~scoresde.train.compiled.Compiled`.
    """

    def __init__(
        self,
        net: Any,
        event_shape: Sequence[int],
        device: torch.device,
        sizes: Set[int],
        *,
        compile: bool,
        channels_last: bool | None,
        tf32: bool,
        autocast: bool,
    ) -> None:
        cuda = device.type == "cuda"
        self.format = channels_innermost(channels_last, event_shape, fast=cuda and compile and autocast)
        self._rank = len(event_shape) + 1
        self._tf32 = tf32 and cuda
        self._compiled = Compiled(net, sizes, device) if compile else None
        self._told = not compile
        if self.format is not None:
            for parameter in net.parameters() if isinstance(net, nn.Module) else ():
                if parameter.ndim == self._rank:
                    parameter.data = parameter.data.contiguous(memory_format=self.format)

    @classmethod
    def of(cls, task: Objective[Any], dataset: MapDataset, options: TrainOptions, processes: Processes) -> Computing:
        """That of a run's own process."""
        rows = processes.rows(options.batch_size)
        sizes = {piece.stop - piece.start for piece in pieces(rows.stop - rows.start, options.accumulate)}
        return cls(
            task.model.net,
            dataset[0]["x"].shape,
            processes.device,
            sizes,
            compile=options.compile,
            channels_last=options.channels_last,
            tf32=options.tf32,
            autocast=task.autocast,
        )

    def ordered(self, x0: Tensor, eps: Tensor, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """A batch in the run's memory format: what of it has as many axes as x0."""
        if self.format is None:
            return x0, eps, dict(given)
        x0, eps, *others = (
            x.contiguous(memory_format=self.format) if x.ndim == self._rank else x for x in (x0, eps, *given.values())
        )
        return x0, eps, dict(zip(given, others, strict=True))

    @property
    def to_be_compiled(self) -> bool:
        """Whether the next step compiles."""
        return self._compiled is not None and self._compiled.seconds is None

    def compiled_in(self) -> float | None:
        """Seconds of the step that compiled, once; None where there was none, or it has been told."""
        if self._told or self._compiled is None or self._compiled.seconds is None:
            return None
        self._told = True
        return self._compiled.seconds

    def __enter__(self) -> None:
        self._open = ExitStack()
        if self._tf32:
            self._open.enter_context(tf32_allowed())
        if self._compiled is not None:
            self._open.enter_context(self._compiled.used())

    def __exit__(self, *error: Any) -> bool | None:
        return self._open.__exit__(*error)
