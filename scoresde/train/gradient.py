"""The gradient of one step: this process's samples prepared, their loss taken, and the parts of all processes summed.

:class:`GlobalGradient` is what a :class:`~scoresde.train.Run` asks at each step::

    gradient = GlobalGradient(objective, dataset, options, placement, parameters)
    loss = gradient.compute(step, fetched, draws=False)     # .grad of each parameter is that of the global batch

Whatever happens inside, nothing lasts but gradients and the buffers of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Generic

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.data import random_flip
from scoresde.models.conditions import drop_conditions
from scoresde.train.batches import Batch, Fetched, MapDataset
from scoresde.train.compatibility import bin_width, entries
from scoresde.train.describe import Model
from scoresde.train.draws import Uniforms, derive, seeded_where, step_noise
from scoresde.train.objective import Objective
from scoresde.train.options import TrainOptions
from scoresde.train.placement import Placement


class GlobalGradient(Generic[Model]):
    """The gradient of the mean loss of a global batch, whoever has which part of it.

    Args:
        task: a model and its loss.
        dataset: from which the samples are.
        options: of the run.
        placement: how the processes that share each batch hold the weights.
        parameters: those that are trained.
    """

    def __init__(
        self,
        task: Objective[Model],
        dataset: MapDataset,
        options: TrainOptions,
        placement: Placement,
        parameters: Sequence[nn.Parameter],
    ) -> None:
        self._task: Objective[Model] = task
        processes = placement.processes
        self._dataset, self._options, self._processes, self._placement = dataset, options, processes, placement
        self._parameters, self._device = parameters, processes.device
        placement.follow(parameters)
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
        with self._placement.step():
            loss = self._own_part(step, fetched, draws)
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
        cuts = [total * i // options.accumulate for i in range(options.accumulate + 1)]
        pieces = [slice(start, stop) for start, stop in pairwise(cuts) if stop > start]
        with seeded_where(draws, self._device, derive(options.seed, "network", step, self._processes.rank)):
            with self._placement.reading():
                x0, t, weight, given = self._prepare(step, fetched())
                eps = step_noise(options.seed, step, rows.start, x0)
            for piece in pieces:
                some = {name: value[piece] for name, value in given.items()}
                value = self._task(x0[piece], t[piece], eps[piece], weight[piece], some)
                value = value / (options.batch_size / (piece.stop - piece.start))
                if piece == pieces[-1]:
                    self._placement.last_piece()
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
        x0 = both.pop("x")
        if options.dequantize:
            normal = step_noise(options.seed, step, rows.start, x0, name="dequantize")
            x0 = x0 + bin_width(self._dataset) * (torch.special.ndtr(normal) - 0.5)
        dropped = task.dropped(uniforms.condition_dropout, seed=options.seed, step=step)
        lost = {name: where[rows].to(device) for name, where in dropped.items()}
        times = checks.time_beside(t[rows], x0)
        return x0, times, checks.sent(weight[rows], device), drop_conditions(both, task.nulls, lost)
