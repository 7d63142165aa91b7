"""Weights, gradients, averages and the optimizer's state divided among the processes of a run: fully sharded data
parallelism (Zhao et al. 2023, arXiv:2304.11277), by torch's ``fully_shard``.

Each process holds 1/N of each tensor, by rows, as a DTensor. A unit, a block of the network, is gathered when it is
called, dropped, gathered again for its backward pass, and its gradient is summed into the parts: only the activations
and one unit or two are whole anywhere. The optimizer, the averages and clipping work on the parts. The steps are those
of one process, but for the order of sums::

    placement = placed("full", processes)                   # a Placement, see scoresde.train.placement

Where a process fails between two of the exchanges that make up a pass, it cannot take part in the next ones. It leaves
its reason where the others find it, and raises at once. Theirs end when it is gone, or after ``PATIENCE``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn, optim
from torch.nn.parameter import is_lazy

from scoresde.models.pretrained import Pretrained
from scoresde.train import contents
from scoresde.train.contents import Description
from scoresde.train.copying import copied
from scoresde.train.describe import Model
from scoresde.train.ema import EMA
from scoresde.train.objective import Objective
from scoresde.train.optimizer import Optimizer
from scoresde.train.option_checks import Sharding
from scoresde.train.options import TrainOptions
from scoresde.train.placement import Placement
from scoresde.train.processes import Made, Processes
from scoresde.train.shard_files import rows_held, write_parts
from scoresde.train.sums import Sums
from scoresde.train.tensors import joined, local_part
from scoresde.train.writing import Content

SMALLEST_UNIT = 10_000
"""Numbers in the weights of a block that is gathered on its own; smaller ones go with the rest of the network."""

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others in the middle of a pass."""


def placed(sharding: Sharding | None, processes: Processes) -> Placement:
    """How a run is to hold its weights: as told, else as Accelerate is configured. One process holds them whole.

    Raises:
        ValueError: this torch cannot divide them.
    """
    wanted = sharding or ("full" if processes.sharded else "no")
    return Sharded(processes) if wanted == "full" and processes.count > 1 else Placement(processes)


class Sharded(Placement):
    """Each process holds its rows of each weight of the network, and writes its share of a checkpoint.

    Weights without axes, and those of a learned schedule, are whole on each process.

    Raises:
        ValueError: this torch cannot.
    """

    divided = True

    def __init__(self, processes: Processes) -> None:
        super().__init__(processes)
        try:
            from torch.distributed.fsdp import FSDPModule, fully_shard

            known = hasattr(FSDPModule, "set_force_sum_reduction_for_comms")
        except ImportError:
            known = False
        if not known:
            raise ValueError(f"sharding='full' needs torch 2.8 or later; this is {torch.__version__}.")
        self._fully_shard: Any = fully_shard
        self._group: Any = distributed.new_group(timeout=PATIENCE)
        self._mesh: Any = None
        self._whole: nn.Module | None = None
        self._names: dict[int, str] = {}
        self._alone: Callable[[], bool] = lambda: False
        self._heard = self._rest = False

    def check(self, options: TrainOptions, model: nn.Module) -> None:
        """Raise unless the run can be divided.

        Raises:
            ValueError: an optimizer over weights that will be others, or a process that would have no samples.
        """
        if isinstance(options.optimizer, optim.Optimizer):
            name = type(options.optimizer).__qualname__
            raise ValueError(
                f"sharding='full' divides the weights that this {name} was made for: give optimizer=lambda p: "
                f"{name}(p, ...), which makes it of the parts."
            )
        least = self.processes.count * options.accumulate
        if options.batch_size < least:
            raise ValueError(
                f"sharding='full' needs a sample for each piece of each process, for all take part in every pass of "
                f"the network: batch_size of at least {self.processes.count} processes x accumulate="
                f"{options.accumulate}, {least}; got {options.batch_size}."
            )

    def units(self, model: nn.Module) -> list[nn.Module]:
        """The elements of lists of modules, from the outside in, that are large enough and share no weight."""
        net = model.net
        users: dict[int, int] = {}
        for module in cast(nn.Module, net).modules():
            for _, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                users[id(parameter)] = users.get(id(parameter), 0) + 1

        def own(module: nn.Module) -> bool:
            inside: dict[int, int] = {}
            for part in module.modules():
                for _, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
                    inside[id(parameter)] = inside.get(id(parameter), 0) + 1
            return all(users[key] == count for key, count in inside.items())

        def visit(module: nn.Module) -> Iterator[nn.Module]:
            for child in module.children():
                listed = isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList | nn.ModuleDict)
                if listed and sum(p.numel() for p in child.parameters()) >= SMALLEST_UNIT and own(child):
                    yield child
                else:
                    yield from visit(child)

        return list(dict.fromkeys(visit(cast(nn.Module, net))))

    def place(self, objective: Objective[Any], units: Sequence[nn.Module], alone: Callable[[], bool]) -> None:
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import FSDPModule

        model, self._alone = objective.model, alone
        self._whole = _without_weights(model)
        net = cast(nn.Module, model.net)
        for parameter in net.parameters():
            if not parameter.is_contiguous():  # rows are cut from contiguous memory
                parameter.data = parameter.data.contiguous()
        self._mesh = DeviceMesh.from_group(self._group, self.processes.device.type)
        kept = {p for p in net.parameters() if p.ndim == 0}
        # Gathered anew for the backward pass, the outermost part too: a look at the averaged weights in between two
        # steps must not find those of the step before.
        how: dict[str, Any] = {"mesh": self._mesh, "reshard_after_forward": True, "ignored_params": kept}
        for unit in units:
            self._fully_shard(unit, **how)
        self._fully_shard(net, **how)
        for module in net.modules():
            if isinstance(module, FSDPModule):  # sums, as the loss of each part is its share of the whole batch's
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

        def refuse(*_: Any) -> None:
            if alone():
                raise RuntimeError(_ALONE)

        net.register_forward_pre_hook(refuse, prepend=True)

    def follow(self, parameters: Sequence[nn.Parameter]) -> None:
        self._sums = Sums([p for p in parameters if local_part(p) is p], self.processes)
        self._rest = any(local_part(p) is p for p in parameters)

    # -- a step --------------------------------------------------------------------------------------------------------

    @contextmanager
    def step(self) -> Iterator[None]:
        with self.passes():
            yield
            if self._rest:
                with self._sums.step():
                    pass

    @contextmanager
    def passes(self) -> Iterator[None]:
        self._heard = False
        try:
            yield
        except BaseException as error:
            if self._heard:
                raise
            told = self._reason()
            if told is not None and isinstance(error, RuntimeError):
                raise RuntimeError(told) from error
            self._leave_reason(error)
            raise

    @contextmanager
    def reading(self) -> Iterator[None]:
        try:
            with self.processes.together():
                yield
        except BaseException:
            self._heard = True  # all raise
            raise

    def last_piece(self) -> None:
        """Every piece is summed as it is done: what is kept in between is divided, too."""

    def gradient_norm(self, optimizer: Optimizer) -> Tensor:
        """The root of the sum of squares over all parts of all processes, and of what is whole once."""
        here: list[Tensor] = []
        everywhere: list[Tensor] = []
        for parameter in optimizer.parameters:
            if parameter.grad is not None:
                part = local_part(parameter.grad)
                (everywhere if part is parameter.grad else here).append(part)
        zero = torch.zeros((), device=self.processes.device)
        total = self.processes.sum(_square(here, zero)) + _square(everywhere, zero)
        return total.sqrt()

    def _leave_reason(self, error: BaseException) -> None:
        with suppress(Exception):
            text = f"process {self.processes.rank} failed, and the others with it: {type(error).__name__}: {error}"
            distributed.distributed_c10d._get_default_store().set(self._key(), text)

    def _reason(self) -> str | None:
        """Why another process failed, if one did."""
        with suppress(Exception):
            store = distributed.distributed_c10d._get_default_store()
            if store.check([self._key()]):
                return str(store.get(self._key()), "utf-8")
        return None

    def _key(self) -> str:
        return f"scoresde/failed/{self._group.group_name}"

    # -- copies and files ----------------------------------------------------------------------------------------------

    def ema_model(self, model: Model, ema: EMA) -> Model:
        """A whole copy on each process; all call it."""
        if self._alone():
            raise RuntimeError(_ALONE)
        whole, values = cast(Model, self._whole), ema.state()
        memo: dict[int, Any] = {}
        with torch.no_grad():
            for name, parameter in whole.named_parameters():
                memo[id(parameter)] = nn.Parameter(joined(values[name]).detach().clone(), requires_grad=False)
            made = copy.deepcopy(whole, memo)
            for (_, mine), (_, live) in zip(made.named_buffers(), model.named_buffers(), strict=True):
                if not is_lazy(live):
                    mine.copy_(live)
        for name in ("scaling", "condition_scalings", "trained_with", "loss_curve"):
            if hasattr(model, name):
                setattr(made, name, copy.copy(getattr(model, name)))
        if isinstance(made, Pretrained):
            made.averaged = True
        return made.eval().requires_grad_(False)

    def once(self, action: Callable[[], Made]) -> Made:
        return action()

    @torch.no_grad()
    def whole(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """One at a time, into main memory; nothing on the other processes."""
        found: dict[str, Tensor] = {}
        for name, value in tensors.items():
            full = joined(value)
            if self.processes.main:
                found[name] = full.detach().cpu()
        return found

    def write(self, folder: Path, content: Content) -> Path:
        return write_parts(self.processes, folder, content)

    def read(self, description: Description, name: str, model: nn.Module) -> dict[str, Tensor]:
        """The rows of this process alone are read, whatever number of processes wrote them."""
        from torch.distributed.tensor import DTensor, Shard

        parameters = dict(model.named_parameters())

        def like(key: str, shape: Sequence[int]) -> Tensor | None:
            """The weight that a tensor belongs to, where it is divided as that is."""
            found = parameters.get(key, parameters.get(key.partition("/")[2]))
            divided = found is not None and local_part(found) is not found and tuple(shape) == tuple(found.shape)
            return found if divided else None

        def rows(key: str, shape: Sequence[int]) -> slice | None:
            return None if like(key, shape) is None else rows_held(shape[0], self.processes)

        found = contents.read_rows_of(description, name, rows)
        for key, (value, shape) in found.items():
            if like(key, shape) is not None:
                whole = torch.empty(shape, device="meta")
                found[key] = (
                    DTensor.from_local(
                        value.to(self.processes.device),
                        self._mesh,
                        [Shard(0)],
                        run_check=False,
                        shape=whole.shape,
                        stride=whole.stride(),
                    ),
                    shape,
                )
        return {key: value for key, (value, _) in found.items()}


_ALONE = (
    "callbacks run on one process, and the weights are divided among all of them: the network cannot be called there, "
    "nor run.ema_model(). Take load_model(folder) after a checkpoint, or do it in the loop, on all processes."
)


def _square(gradients: Sequence[Tensor], zero: Tensor) -> Tensor:
    """The sum of their squares."""
    if not gradients:
        return zero
    return torch.stack([norm.float() for norm in torch._foreach_norm(list(gradients))]).square().sum()


def _without_weights(model: Model) -> Model:
    """A copy whose parameters have shapes and no memory."""
    made: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copied(model, made)
