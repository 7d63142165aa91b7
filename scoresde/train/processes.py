"""The processes of a run, as Accelerate sees them: one on a CPU or GPU, or several that share each batch.

What one process did or found, all get to know: where the main one fails, all fail instead of waiting for it.
:class:`~scoresde.train.Run` makes one :class:`Processes` and goes through it for all that concerns the others::

    processes = Processes(cpu=True)
    processes.rows(batch_size=128, accumulate=1)            # this process's part of each batch, a slice
    processes.mean(loss), processes.decided(late)           # the mean over all; the main one's answer
    processes.from_main(write)                              # the main one does it, all get what it returns

With one process nothing is exchanged. How many there are is decided by ``accelerate launch`` or torchrun.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from scoresde.extras import needs
from scoresde.train.folder import CheckpointError

if TYPE_CHECKING:
    from accelerate import Accelerator

Made = TypeVar("Made")


class Processes:
    """This process and those that work with it.

    Args:
        cpu: stay on the CPU although there is a GPU.

    Attributes:
        device: of this process.
        count: how many there are.
        rank: which one this is, from 0.
        main: whether it is the one that writes and talks.

    Raises:
        ValueError: Accelerate is configured for something else than data-parallel processes, or holds another device.
        ModuleNotFoundError: Accelerate is not installed.
    """

    def __init__(self, cpu: bool) -> None:
        self._accelerator: Any = _accelerator(cpu)
        self.device: torch.device = self._accelerator.device
        self.count: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index
        self.main: bool = self._accelerator.is_main_process

    def rows(self, batch_size: int, accumulate: int) -> slice:
        """This process's part of each batch, which is worked off in ``accumulate`` pieces.

        Raises:
            ValueError: the batch does not divide into equal pieces.
        """
        parts = self.count * accumulate
        if batch_size % parts:
            raise ValueError(
                f"batch_size={batch_size} does not divide into {self.count} processes x accumulate={accumulate} equal "
                f"parts; take a multiple of {parts}."
            )
        local = batch_size // self.count
        return slice(self.rank * local, (self.rank + 1) * local)

    def bfloat16(self, precision: str | None) -> bool:
        """Whether networks compute in bfloat16: as ``precision`` says, else Accelerate.

        Raises:
            ValueError: Accelerate asks for another format.
        """
        precision = precision or self._accelerator.mixed_precision
        if precision not in ("no", "bf16"):
            raise ValueError(f"mixed precision must be 'no' or 'bf16', but Accelerate is set to {precision!r}.")
        return precision == "bf16"

    def wrapped(self, module: nn.Module) -> Any:
        """The module such that its gradients are the mean of all processes'."""
        return self._accelerator.prepare_model(module)

    def apart(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """Inside, a backward pass of a wrapped module leaves the gradients with their process."""
        return nullcontext() if self.count == 1 else cast(Any, self._accelerator.no_sync(wrapped))

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes, the same on all."""
        return self._accelerator.reduce(value, reduction="mean") if self.count > 1 else value

    def decided(self, answer: bool) -> bool:
        """The main process's answer, on all."""
        if self.count == 1:
            return answer
        with needs("train"):
            from accelerate.utils import broadcast
        return bool(broadcast(torch.tensor(int(answer), device=self.device), from_process=0).item())

    def from_main(self, action: Callable[[], Made]) -> Made:
        """What ``action`` returns on the main process, on all.

        Raises:
            CheckpointError: the main process failed; itself, it raises what it met.
        """
        made: list[Any] = [None, None]
        failure: Exception | None = None
        if self.main:
            try:
                made[0] = action()
            except Exception as error:
                failure, made[1] = error, f"{type(error).__name__}: {error}"
        if self.count > 1:
            with needs("train"):
                from accelerate.utils import broadcast_object_list
            broadcast_object_list(made, from_process=0)
        if failure is not None:
            raise failure
        if made[1] is not None:
            raise CheckpointError(f"the main process failed: {made[1]}")
        return cast(Made, made[0])

    def agree(self, found: str, what: str) -> None:
        """Raise, on all processes, unless all found the same.

        Raises:
            CheckpointError: they did not.
        """
        if self.count == 1:
            return
        with needs("train"):
            from accelerate.utils import gather_object
        everybody = gather_object([found])
        if len(set(everybody)) > 1:
            raise CheckpointError(
                f"the processes see different {what}, in order of rank: {', '.join(everybody)}. Give all of them the "
                "same folder, on a file system that they share."
            )


def _accelerator(cpu: bool) -> Accelerator:
    with needs("train"):
        from accelerate import Accelerator, DistributedType
        from accelerate.state import PartialState
        from accelerate.utils import parse_flag_from_env
    # Accelerate joins the processes of torchrun on the CPU only when told that it is to stay there. Other
    # accelerators than CUDA are left alone: schedules need float64.
    cpu = cpu or not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    wanted = "cpu" if cpu else "cuda"
    if PartialState._shared_state and PartialState().device.type != wanted:
        raise ValueError(
            f"this run is to be on {wanted!r}, but Accelerate chose {PartialState().device.type!r} earlier in this "
            "process, and keeps to it. Pass the same cpu=... as before, or start a new process."
        )
    found = Accelerator(cpu=cpu)
    if found.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(
            f"Accelerate is set to {found.distributed_type}; this loop knows one process, and data-parallel "
            "processes on CPUs or GPUs. Run `accelerate config` again, or use torchrun."
        )
    if found.distributed_type == DistributedType.MULTI_CPU:
        # Gloo's threads must end before the interpreter does, or a process now and then aborts when it is done.
        atexit.unregister(_leave)
        atexit.register(_leave)
    return found


def _leave() -> None:
    gc.collect()  # data-parallel wrappers that are out of use, but still hold the group
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
