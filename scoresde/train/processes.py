"""The processes of a run, as Accelerate sees them: one on a CPU or GPU, or several that share each batch.

What one process did or found, all get to know: where one fails, all fail instead of waiting for it.
:class:`~scoresde.train.Run` makes one :class:`Processes` and goes through it for all that concerns the others::

    processes = Processes(cpu=True)
    processes.rows(batch_size=128)                          # this process's part of each batch, a slice
    with processes.together():                              # what fails inside on one fails on all
        batch = read()
    processes.decided(late)                                 # the main one's answer
    processes.from_main(write)                              # the main one does it, all get what it returns

With one process nothing is exchanged. How many there are is decided by ``accelerate launch`` or torchrun. How gradients
are summed is said in :mod:`~scoresde.train.sums`, and how weights are divided in :mod:`~scoresde.train.sharded`.
"""

from __future__ import annotations

import atexit
import gc
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn

from scoresde.extras import needs
from scoresde.train.folder import CheckpointError

if TYPE_CHECKING:
    from accelerate import Accelerator

Made = TypeVar("Made")

_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (TypeError, ValueError, FloatingPointError, CheckpointError)
}
"""Errors that a process raises as what they are when another one met them; any other becomes a RuntimeError."""


class Processes:
    """This process and those that work with it.

    Args:
        cpu: stay on the CPU although there is a GPU.

    Attributes:
        device: of this process.
        count: how many there are.
        rank: which one this is, from 0.
        main: whether it is the one that writes and talks.
        sharded: whether Accelerate is configured to divide the weights among them.

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
        self.sharded: bool = str(self._accelerator.distributed_type.value) == "FSDP"
        # Words go through main memory: a GPU need not be waited for to hear that all is well.
        self._words: Any = None
        if self.count > 1 and distributed.get_backend() != "gloo":
            self._words = distributed.new_group(backend="gloo")

    def rows(self, batch_size: int) -> slice:
        """This process's part of each batch: parts that differ by one row at most, and may be empty."""
        return slice(batch_size * self.rank // self.count, batch_size * (self.rank + 1) // self.count)

    def bfloat16(self, precision: str | None) -> bool:
        """Whether networks compute in bfloat16: as ``precision`` says, else Accelerate.

        Raises:
            ValueError: Accelerate asks for another format.
        """
        precision = precision or self._accelerator.mixed_precision
        if precision not in ("no", "bf16"):
            raise ValueError(f"mixed precision must be 'no' or 'bf16', but Accelerate is set to {precision!r}.")
        return precision == "bf16"

    # -- what one does, all know ---------------------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails inside on one process fails on all. For work of one's own: nothing may be exchanged inside.

        Raises:
            TypeError, ValueError, FloatingPointError, CheckpointError, RuntimeError: another process failed; what this
                one met goes on as it is.
        """
        if self.count == 1:
            yield
            return
        try:
            yield
        except BaseException as error:
            self._told(error)
            raise
        self._told(None)

    def _told(self, error: BaseException | None) -> None:
        """Tell all whether this process failed, and raise here if another one did and this one did not."""
        if self.any_of([error is not None])[0]:
            self.raise_for(error)

    def any_of(self, answers: Sequence[bool]) -> list[bool]:
        """Of each answer, whether any process gave it."""
        said = torch.tensor(answers, dtype=torch.uint8)
        if self.count > 1:
            distributed.all_reduce(said, op=distributed.ReduceOp.MAX, group=self._words)
        return [bool(one) for one in said.tolist()]

    def raise_for(self, error: BaseException | None) -> None:
        """Raise here, where this process did not fail and another one did; all call it, with what they met.

        Raises:
            TypeError, ValueError, FloatingPointError, CheckpointError, RuntimeError: another process failed.
        """
        everybody: list[Any] = [None] * self.count
        mine = None if error is None else (type(error).__name__, str(error))
        distributed.all_gather_object(everybody, mine, group=self._words)
        if error is None:
            rank, (kind, text) = next((i, said) for i, said in enumerate(everybody) if said is not None)
            raise _KINDS.get(kind, RuntimeError)(f"process {rank} failed, and the others with it: {kind}: {text}")

    def decided(self, answer: bool) -> bool:
        """The main process's answer, on all."""
        if self.count == 1:
            return answer
        decision = torch.tensor(int(answer))
        distributed.broadcast(decision, 0, group=self._words)
        return bool(decision.item())

    def heard(self, main: bool, any: bool) -> tuple[bool, bool]:
        """The main process's answer to one question, and whether any says yes to another, the same on all."""
        if self.count == 1:
            return main, any
        words = torch.tensor([int(main and self.main), int(any)])
        distributed.all_reduce(words, op=distributed.ReduceOp.MAX, group=self._words)
        first, second = words.tolist()
        return bool(first), bool(second)

    def from_main(self, action: Callable[[], Made]) -> Made:
        """What ``action`` returns on the main process, on all.

        Raises:
            CheckpointError: the main process failed; itself, it raises what it met.
        """
        made: list[Any] = [None, None]
        failure: BaseException | None = None
        if self.main:
            try:
                made[0] = action()
            except BaseException as error:
                failure, made[1] = error, f"{type(error).__name__}: {error}"
        if self.count > 1:
            distributed.broadcast_object_list(made, 0, group=self._words)
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
        everybody = self.gathered(found)
        if len(set(everybody)) > 1:
            raise CheckpointError(
                f"the processes see different {what}, in order of rank: {', '.join(everybody)}. Give all of them the "
                "same folder, on a file system that they share."
            )

    def gathered(self, found: Made) -> list[Made]:
        """What each process found, in order of rank, on all."""
        everybody: list[Any] = [found] * self.count
        if self.count > 1:
            distributed.all_gather_object(everybody, found, group=self._words)
        return everybody

    def to_main(self, parts: Mapping[int, Tensor], sizes: Sequence[int]) -> Tensor | None:
        """On the main process the rows of all parts in their order, on the others None.

        Args:
            parts: this process's, by number, in main memory; number k is held by process k modulo their count.
            sizes: rows of each part, of all processes.
        """
        kinds: list[Any] = [None] * self.count
        mine = next(((tuple(part.shape[1:]), part.dtype) for part in parts.values()), None)
        distributed.all_gather_object(kinds, mine, group=self._words)
        if not self.main:
            for k in sorted(parts):
                distributed.send(_bytes(parts[k]), 0, self._words)
            self.wait()
            return None
        shape, dtype = next(kind for kind in kinds if kind is not None)
        whole, first = torch.empty(sum(sizes), *shape, dtype=dtype), 0
        for k, size in enumerate(sizes):
            rows = whole[first : first + size]
            if k in parts:
                rows.copy_(parts[k])
            elif size:
                distributed.recv(_bytes(rows), k % self.count, self._words)
            first += size
        self.wait()
        return whole

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            distributed.barrier(group=self._words)

    # -- tensors -------------------------------------------------------------------------------------------------------

    def share_state(self, model: nn.Module) -> None:
        """Give all processes the main one's parameters and buffers.

        Raises:
            ValueError: the processes hold different networks.
        """
        if self.count == 1:
            return
        held = [*model.named_parameters(), *model.named_buffers()]
        layout = repr([(name, tuple(one.shape), str(one.dtype), one.requires_grad) for name, one in held])
        if len(set(self.gathered(hashlib.sha256(layout.encode()).hexdigest()))) > 1:
            raise ValueError(
                "the processes hold different networks: their parameters and buffers differ in names, shapes, dtypes "
                "or in which are trained. Build the same network in each process; its weights may differ."
            )
        self.share(one for _, one in held)

    @torch.no_grad()
    def share(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite these tensors with the main process's."""
        if self.count > 1:
            for group in _by_dtype(tensors):
                flat = torch.cat([one.detach().reshape(-1) for one in group])
                distributed.broadcast(flat.view(torch.uint8), 0)  # as bytes: not every backend knows every dtype
                _unpack(flat, group)

    def joined(self, mine: Tensor, rows: slice, total: int) -> Tensor:
        """All ``total`` rows of a tensor of which this process has ``rows``, the same on all, exactly."""
        if self.count == 1:
            return mine
        whole = mine.new_zeros((total, *mine.shape[1:]))
        whole[rows] = mine
        distributed.all_reduce(whole.reshape(-1).view(torch.uint8))  # as bytes, of which one process has each
        return whole

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes, the same on all."""
        if self.count > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value


def _bytes(x: Tensor) -> Tensor:
    """The same memory, flat: not every backend knows every dtype."""
    return x.reshape(-1).view(torch.uint8)


def _by_dtype(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = {}
    for one in tensors:
        groups.setdefault(one.dtype, []).append(one)
    return list(groups.values())


def _unpack(flat: Tensor, into: Sequence[Tensor]) -> None:
    for one, piece in zip(into, flat.split([one.numel() for one in into]), strict=True):
        one.detach().copy_(piece.view(one.shape))


def _accelerator(cpu: bool) -> Accelerator:
    with needs("train"):
        from accelerate import Accelerator, DistributedType
        from accelerate.state import PartialState
        from accelerate.utils import parse_flag_from_env
    # Accelerate joins the processes of torchrun on the CPU only when told that it is to stay there. Other
    # accelerators than CUDA and Apple's are left alone.
    there = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
    cpu = cpu or there is None or parse_flag_from_env("ACCELERATE_USE_CPU")
    wanted = "cpu" if cpu else there
    if PartialState._shared_state and PartialState().device.type != wanted:
        raise ValueError(
            f"this run is to be on {wanted!r}, but Accelerate chose {PartialState().device.type!r} earlier in this "
            "process, and keeps to it. Pass the same cpu=... as before, or start a new process."
        )
    found = Accelerator(cpu=cpu)
    if found.distributed_type == DistributedType.FSDP:
        _check_plugin(found.state.fsdp_plugin)
    elif found.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(
            f"Accelerate is set to {found.distributed_type}; this loop knows one process, and data-parallel "
            "processes on CPUs or GPUs, sharded or not. Run `accelerate config` again, or use torchrun."
        )
    if found.distributed_type == DistributedType.MULTI_CPU:
        # Gloo's threads must end before the interpreter does, or a process now and then aborts when it is done.
        atexit.unregister(_leave)
        atexit.register(_leave)
    return found


def _check_plugin(plugin: Any) -> None:
    """Raise where Accelerate is asked for a sharding that this loop does not do."""
    if plugin.fsdp_version != 2:
        wrong = ["--fsdp_version 2"]
    else:
        stays = type(plugin.cpu_offload).__name__ == "OffloadPolicy"  # of torch, and not one of those derived from it
        wrong = [] if stays else ["--fsdp_offload_params false"]
        wrong += [] if plugin.reshard_after_forward is True else ["--fsdp_reshard_after_forward true"]
    if wrong:
        raise ValueError(
            f"accelerate launch --use_fsdp must come with {', '.join(wrong)} here: weights, gradients and the "
            "optimizer's state are divided, on the GPU. The other settings of that plugin have no effect."
        )


def _leave() -> None:
    gc.collect()
    if distributed.is_initialized():
        distributed.destroy_process_group()
