"""The gradient of one step: this process's samples prepared, their loss taken, and the parts of all processes summed.

:class:`GlobalGradient` is what a :class:`~scoresde.train.Run` asks at each step::

    gradient = GlobalGradient(objective, dataset, options, placement, parameters)
    loss = gradient.compute(step, fetched, draws=False)     # .grad of each parameter is that of the global batch

Whatever happens inside, nothing lasts but gradients and the buffers of the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from scoresde import checks
from scoresde.data import Augmentation, random_flip
from scoresde.data.augmentation import NAME as AUGMENT
from scoresde.losses import Coupling
from scoresde.models.conditions import drop_conditions
from scoresde.train.adaptation import TimesInTraining
from scoresde.train.batches import Fetched, MapDataset
from scoresde.train.compatibility import bin_width, entries
from scoresde.train.computing import Computing, pieces
from scoresde.train.describe import Model
from scoresde.train.draws import Uniforms, derive, named_uniforms, seeded_where, step_noise
from scoresde.train.objective import Objective
from scoresde.train.options import TrainOptions
from scoresde.train.placement import Placement


class _Rows(NamedTuple):
    """x_0, times, their weights, noises and the other entries of some rows of a batch."""

    x0: Tensor
    t: Tensor
    weight: Tensor
    eps: Tensor
    given: dict[str, Tensor]


class GlobalGradient(Generic[Model]):
    """The gradient of the mean loss of a global batch, whoever has which part of it.

    Args:
        task: a model and its loss.
        dataset: from which the samples are.
        options: of the run.
        placement: how the processes that share each batch hold the weights.
        parameters: those that are trained.
        computing: what is around the loss and its gradient.

    Attributes:
        times: from which times are drawn, and what it is to note of the step computed last.
    """

    def __init__(
        self,
        task: Objective[Model],
        dataset: MapDataset,
        options: TrainOptions,
        placement: Placement,
        parameters: Sequence[nn.Parameter],
        computing: Computing,
    ) -> None:
        self._task: Objective[Model] = task
        processes = placement.processes
        self._dataset, self._options, self._processes, self._placement = dataset, options, processes, placement
        self._parameters, self._device, self._computing = parameters, processes.device, computing
        placement.follow(parameters)
        self.rows = processes.rows(options.batch_size)
        self.times = TimesInTraining(options.times)
        self._terms: list[Tensor] = []
        self._modules, self._every = list(task.model.modules()), list(task.parameters())

    def compute(self, step: int, fetched: Fetched | None, *, draws: bool) -> Tensor:
        """Put the gradient into ``.grad`` of the parameters; return the loss, ().

        Args:
            step: steps done before.
            fetched: the samples of this process; None where it has none.
            draws: whether torch's default generators are to be set, for something may draw from them.
        """
        processes, options = self._processes, self._options
        seed = derive(options.seed, "network", step, processes.rank)
        if options.coupling is None:
            with self._placement.step():
                self._ready()
                with seeded_where(draws and fetched is not None, self._device, seed):
                    with self._placement.reading():
                        batch = self._prepare(step, fetched)
                    loss = self._own_part(batch)
        else:
            with processes.together():
                self._ready()
                with seeded_where(draws and fetched is not None, self._device, derive(seed, "before coupling")):
                    batch = self._prepare(step, fetched)
                    mine = self._samples(batch)
            everybody = {n: processes.joined(one, self.rows, options.batch_size) for n, one in mine.items()}
            with self._placement.step(), seeded_where(draws and batch is not None, self._device, seed):
                with self._placement.reading():
                    batch = self._coupled(step, batch, everybody)
                loss = self._own_part(batch)
        processes.share(self._task.model.buffers())  # statistics of batches are the main process's
        if self.times.adapts:
            self._seen = (step + 1, self._global_terms())
        return processes.sum(loss)

    def note(self) -> None:
        """Let the density of times know of the step computed last, which was applied."""
        if self.times.adapts:
            step, terms = self._seen
            uniforms = Uniforms.draw(self._options.seed, step - 1, self._options.batch_size)
            self.times.note(step, uniforms.time, terms)

    def _global_terms(self) -> Tensor:
        """The weighted losses of the global batch, (batch_size,)."""
        dtype: torch.dtype = torch.promote_types(self._parameters[0].dtype, torch.float32)
        own = torch.zeros(0, device=self._device, dtype=dtype)
        mine = torch.cat([own, *(one.to(dtype) for one in self._terms)])
        return self._processes.joined(mine, self.rows, self._options.batch_size)

    def clear(self) -> None:
        """No gradients: of whatever was half done, or somebody did with the model between two steps."""
        for parameter in self._every:
            parameter.grad = None

    def _ready(self) -> None:
        self.clear()
        self._terms = []
        if not all(module.training for module in self._modules):  # some were looked at in evaluation mode
            self._task.train()

    def _own_part(self, batch: _Rows | None) -> Tensor:
        """Gradient and loss of this process's rows, as their part of those of the global batch."""
        options, total = self._options, self.rows.stop - self.rows.start
        loss = torch.zeros((), device=self._device)
        if batch is None:
            return loss
        x0, eps, given = self._computing.ordered(batch.x0, batch.eps, batch.given)
        parts = pieces(total, options.accumulate)
        for piece in parts:
            size = piece.stop - piece.start
            with self._computing:
                some = {name: value[piece] for name, value in given.items()}
                args = (x0[piece], batch.t[piece], eps[piece], batch.weight[piece], some)
                if self.times.adapts:
                    value, terms = self._task.with_terms(*args)
                    self._terms.append(terms)
                else:
                    value = self._task(*args)
                value = value / (options.batch_size / size)
                if piece == parts[-1]:
                    self._placement.last_piece()
                value.backward()
                loss = loss + value.detach()
        return loss

    def _samples(self, batch: _Rows | None) -> dict[str, Tensor]:
        """What other processes have to know of this one's rows; of a process without any, tensors without rows."""
        if batch is not None:
            return {"x": batch.x0, **batch.given}
        sample = default_collate([self._dataset[0]])
        found = entries(sample, ("x", *self._task.names), self._parameters[0])
        none = {name: value[:0] for name, value in found.items()}
        if self._options.augment is not None:
            none[AUGMENT] = found["x"].new_zeros((0, self._options.augment.size))
        return none

    def _coupled(self, step: int, batch: _Rows | None, everybody: Mapping[str, Tensor]) -> _Rows | None:
        """These rows with the noises that a coupling of the whole global batch gives them: all know those of all."""
        if batch is None:
            return None
        x0, given = everybody["x"], {name: value for name, value in everybody.items() if name != "x"}
        eps = cast(Coupling, self._options.coupling)(x0, step_noise(self._options.seed, step, 0, x0), given)
        return batch._replace(eps=eps[self.rows])

    def _prepare(self, step: int, fetched: Fetched | None) -> _Rows | None:
        """This process's rows, on the device; None where it has none."""
        if fetched is None:
            return None
        batch = fetched()
        options, rows, device = self._options, self.rows, self._device
        task: Objective[Any] = self._task
        missing = [name for name in ("x", *task.names) if name not in batch]
        if missing:
            raise ValueError(
                f"samples of step {step + 1} do not make a batch: {', '.join(missing)} is missing. Each must have "
                "the same entries, those of dataset[0]."
            )
        task.check_batch(batch, step + 1)
        uniforms = Uniforms.draw(options.seed, step, options.batch_size)
        # Of the whole batch: a density may place its samples in relation to each other.
        t, weight = self.times.density.sample(self._task.model.sde, uniforms.time)
        both = entries(batch, ("x", *task.names), self._parameters[0])
        if options.flip:
            coins = sent_along(uniforms.flip[rows], device)
            both.update({name: random_flip(both[name], coins) for name in ("x", *task.mirrored)})
        if options.augment is not None:
            told = self._augmentation(step, options.augment, both["x"])
            for name in ("x", *task.mirrored):
                both[name] = options.augment.apply(both[name], told)
            both[AUGMENT] = checks.sent(told, device).to(both["x"].dtype)
        x0 = both.pop("x")
        if options.dequantize:
            normal = step_noise(options.seed, step, rows.start, x0, name="dequantize")
            x0 = x0 + bin_width(self._dataset) * (torch.special.ndtr(normal) - 0.5)
        dropped = task.dropped(uniforms.condition_dropout, seed=options.seed, step=step)
        lost = {name: sent_along(where[rows], device) for name, where in dropped.items()}
        times = checks.time_beside(sent_along(t[rows], device, narrow=False), x0)
        eps = step_noise(options.seed, step, rows.start, x0)
        given = drop_conditions(both, task.nulls, lost)
        return _Rows(x0, times, sent_along(weight[rows], device), eps, given)

    def _augmentation(self, step: int, augmentation: Augmentation, x: Tensor) -> Tensor:
        """What is done to this process's rows, in main memory; drawn for the whole batch, as all else."""
        options = self._options
        drawn = [
            named_uniforms(options.seed, step, options.batch_size, f"augmentation {i}")
            for i in range(augmentation.draws)
        ]
        return augmentation.draw(torch.stack(drawn, 1)[self.rows], x.shape[1:])


def sent_along(x: Tensor, device: torch.device, *, narrow: bool = True) -> Tensor:
    """``x`` of the CPU on the device; to CUDA by way of pinned memory, so that nobody waits for what it is doing.

    Args:
        x: values.
        device: where they go.
        narrow: whether float64 becomes float32 where the device has no float64; else it stays on the CPU.
    """
    if device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return checks.sent(x, device) if narrow else x
