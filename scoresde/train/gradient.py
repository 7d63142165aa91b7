"""The gradient of one step: this process's samples prepared, their loss taken, and the parts of all processes summed.

:class:`GlobalGradient` is what a :class:`~scoresde.train.Run` asks at each step::

    gradient = GlobalGradient(objective, dataset, options, processes, parameters)
    loss = gradient.compute(step, fetched, draws=False)     # .grad of each parameter is that of the global batch

Whatever happens inside, nothing lasts but gradients and the buffers of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.data import Augmentation, random_flip
from scoresde.data.augmentation import NAME as AUGMENT
from scoresde.models.conditions import drop_conditions
from scoresde.train.batches import Batch, Fetched, MapDataset
from scoresde.train.compatibility import bin_width, entries
from scoresde.train.describe import Model
from scoresde.train.draws import Uniforms, derive, named_uniforms, seeded_where, step_noise
from scoresde.train.objective import Objective
from scoresde.train.options import TrainOptions
from scoresde.train.processes import Processes


class GlobalGradient(Generic[Model]):
    """The gradient of the mean loss of a global batch, whoever has which part of it.

    Args:
        task: a model and its loss.
        dataset: from which the samples are.
        options: of the run.
        processes: that share each batch.
        parameters: those that are trained.
    """

    def __init__(
        self,
        task: Objective[Model],
        dataset: MapDataset,
        options: TrainOptions,
        processes: Processes,
        parameters: Sequence[nn.Parameter],
    ) -> None:
        self._task: Objective[Model] = task
        self._dataset, self._options, self._processes = dataset, options, processes
        self._parameters, self._device = parameters, processes.device
        self.rows = processes.rows(options.batch_size)
        self._modules, self._every = list(task.model.modules()), list(task.model.parameters())

    def compute(self, step: int, fetched: Fetched | None, *, draws: bool) -> Tensor:
        """Put the gradient into ``.grad`` of the parameters; return the loss, ().

        Args:
            step: steps done before.
            fetched: the samples of this process; None where it has none.
            draws: whether torch's default generators are to be set, for something may draw from them.
        """
        processes = self._processes
        with processes.together():
            loss = self._own_part(step, fetched, draws)
        processes.sum_gradients(self._parameters)
        processes.share(self._task.model.buffers())  # statistics of batches are the main process's
        return processes.sum(loss)

    def clear(self) -> None:
        """No gradients: of whatever was half done, or somebody did with the model between two steps."""
        for parameter in self._every:
            parameter.grad = None

    def _own_part(self, step: int, fetched: Fetched | None, draws: bool) -> Tensor:
        """Gradient and loss of this process's rows, as their part of those of the global batch."""
        options, rows = self._options, self.rows
        loss, total = torch.zeros((), device=self._device), rows.stop - rows.start
        self.clear()
        if not all(module.training for module in self._modules):  # some were looked at in evaluation mode
            self._task.train()
        if fetched is None:
            return loss
        with seeded_where(draws, self._device, derive(options.seed, "network", step, self._processes.rank)):
            x0, t, weight, given = self._prepare(step, fetched())
            eps = step_noise(options.seed, step, rows.start, x0)
            for i in range(options.accumulate):
                piece = slice(total * i // options.accumulate, total * (i + 1) // options.accumulate)
                size = piece.stop - piece.start
                if size:
                    some = {name: value[piece] for name, value in given.items()}
                    value = self._task(x0[piece], t[piece], eps[piece], weight[piece], some)
                    value = value / (options.batch_size / size)
                    value.backward()
                    loss = loss + value.detach()
        return loss

    def _prepare(self, step: int, batch: Batch) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """x_0, times, their weights and the other entries of this process's rows, on the device."""
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
        t, weight = options.times.sample(self._task.model.sde, uniforms.time)
        both = entries(batch, ("x", *task.names), self._parameters[0])
        if options.flip:
            coins = checks.sent(uniforms.flip[rows], device)
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
        lost = {name: where[rows].to(device) for name, where in dropped.items()}
        times = checks.time_beside(t[rows], x0)
        return x0, times, checks.sent(weight[rows], device), drop_conditions(both, task.nulls, lost)

    def _augmentation(self, step: int, augmentation: Augmentation, x: Tensor) -> Tensor:
        """What is done to this process's rows, in main memory; drawn for the whole batch, as all else."""
        options = self._options
        drawn = [
            named_uniforms(options.seed, step, options.batch_size, f"augmentation {i}")
            for i in range(augmentation.draws)
        ]
        return augmentation.draw(torch.stack(drawn, 1)[self.rows], x.shape[1:])
