"""Work that the processes of torchrun share: each does its part, and all know all of it.

    work = SharedWork()
    for i in work.mine(splits): ...                         # every count-th of them
    work.gathered({i: found})                               # the parts of all, in one mapping, on all
    with work.main_first(): ...                             # the main process, then the others

With one process nothing is exchanged, and Accelerate is not needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from scoresde.extras import needs

Value = TypeVar("Value")


class SharedWork:
    """This process and those that were started with it.

    Args:
        cpu: stay on the CPU although there is a GPU.

    Attributes:
        count: how many there are.
        rank: which one this is, from 0.
        main: whether it is the one that writes and talks.
    """

    def __init__(self, *, cpu: bool = False) -> None:
        self.count, self.rank, self.device = 1, 0, None
        self._state: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            with needs("train"):
                from accelerate import PartialState
            self._state = PartialState(cpu=cpu or not torch.cuda.is_available())
            self.count, self.rank = self._state.num_processes, self._state.process_index
            self.device = self._state.device
        self.main = self.rank == 0

    def mine(self, total: int) -> range:
        """Which of ``total`` pieces are this process's."""
        return range(self.rank, total, self.count)

    def rows(self, total: int) -> slice:
        """This process's stretch of ``total`` rows."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def gathered(self, found: Mapping[Any, Value]) -> dict[Any, Value]:
        """What all processes found, by key, in the order of keys."""
        parts = [dict(found)]
        if self.count > 1:
            from accelerate.utils import gather_object

            parts = gather_object(parts)
        every = {key: value for part in parts for key, value in part.items()}
        return {key: every[key] for key in sorted(every)}

    def joined(self, rows: Tensor) -> Tensor:
        """The stretches of all processes as one tensor, on the CPU."""
        return torch.cat(list(self.gathered({self.rank: rows.cpu()}).values()))

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process does what is inside, then the others."""
        if self._state is None:
            yield
            return
        with self._state.main_process_first():
            yield
