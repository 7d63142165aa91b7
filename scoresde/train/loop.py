"""The training loop, as an iterator: each ``next`` is one step of the optimizer.

A :class:`Run` holds what lasts: the model, the optimizer, the averages, the count of steps. What begins with the first
step of an iteration and ends with it, the workers and the progress bar, is its session; the folder is claimed at the
start, and given up with the session. All that is random comes from :mod:`~scoresde.train.draws`.
"""

from __future__ import annotations

import json
import math
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor
from tqdm import tqdm

from scoresde.data import random_flip
from scoresde.models.conditions import drop_conditions
from scoresde.train import checkpoint, folder
from scoresde.train.batches import Batch, MapDataset, batches, seeded_everywhere
from scoresde.train.checkpoint import Description
from scoresde.train.compatibility import (
    bin_width,
    check_dataset,
    check_mirrored,
    check_model,
    check_step,
    continued,
    entries,
)
from scoresde.train.describe import Model
from scoresde.train.draws import DataOrder, Uniforms, derive, seeded, step_noise
from scoresde.train.ema import EMA, ema_model
from scoresde.train.folder import CheckpointError
from scoresde.train.objective import Objective
from scoresde.train.optimizer import Optimizer, learning_rate
from scoresde.train.options import TrainOptions, differences
from scoresde.train.owner import Owner
from scoresde.train.processes import Processes
from scoresde.train.record import Log, LossWindow, StepRecord


@dataclass
class _Session:
    """What lives from the first step of an iteration to its end."""

    fetch: Callable[[], Batch]
    progress: Any
    start: float
    deadline: float


class Run(Iterator[StepRecord], Generic[Model]):
    """A training run: iterating does the steps. Made by ``train`` and ``train_classifier``.

    Attributes:
        model: in training.
        ema: the average of its weights; ``with run.ema.applied():`` puts it into ``model`` for a look.
        step: optimizer steps done.
    """

    def __init__(self, objective: Objective[Model], dataset: MapDataset, options: TrainOptions) -> None:
        model = objective.model
        check_model(model)
        with seeded_everywhere(derive(options.seed, "checks")):  # a data set may draw from generators that are not ours
            check_dataset(dataset)
            if options.dequantize:
                bin_width(dataset)
            objective.check_data(dataset)
            if options.flip:
                check_mirrored(objective, dataset)
        self.model: Model = model
        self.step = 0
        self._options, self._dataset = options, dataset
        self._task: Objective[Model] = objective

        self._processes = Processes(options.cpu)
        self._device = self._processes.device
        self._rows = self._processes.rows(options.batch_size, options.accumulate)
        objective.autocast = self._processes.bfloat16(options.mixed_precision)
        model.to(self._device)
        with seeded_everywhere(derive(options.seed, "checks")):
            check_step(objective, dataset, options.times)  # before the folder is touched

        self._owner: Owner | None = None
        self._claimed = False
        resumed = self._open_folder()
        if resumed is not None:
            checkpoint.load_weights(model, checkpoint.read_tensors(resumed, checkpoint.MODEL), resumed)
        self._objective: Any = self._processes.wrapped(objective)
        self._optimizer = Optimizer(model, options.betas, options.weight_decay)
        self.ema = EMA(model, options.ema, warmup=options.ema_warmup)
        self._seconds, self._window = 0.0, LossWindow(self._device)
        self._saved: tuple[int, Path] | None = None
        self._session: _Session | None = None
        self._over = False
        if resumed is not None:
            self._load(resumed)
        self._log: Log | None = None
        if options.path is not None and self._processes.main:
            self._log = Log(options.path / "log.jsonl", self.step)

    def __iter__(self) -> Run[Model]:
        return self

    def __next__(self) -> StepRecord:
        if self.step >= self._options.steps or self._over:
            self.close()
            raise StopIteration
        if self._session is None:
            self._session = self._begin()
        try:
            return self._step(self._session)
        except BaseException:  # nothing half-done is continued
            self._over = True
            self.close()
            raise

    def close(self) -> None:
        """Stop the workers and the bar and give up the folder; iterating a run that is not over takes them again."""
        if self._session is not None:
            self._session.progress.close()
            self._session = None
        if self._owner is not None:
            self._owner.release()
        self._owner, self._claimed = None, False
        if self._over:  # the data-parallel wrapper holds on to the other processes
            self._objective = None

    def ema_model(self) -> Model:
        """A copy of the model with the averaged weights, for use."""
        return ema_model(self.model, self.ema)

    def save(self) -> Path:
        """Write a checkpoint of the present step, if there is none yet, and return its folder.

        All processes of a run call it; the main one writes, and all return the same.

        Raises:
            CheckpointError: it cannot be written.
            FloatingPointError: a weight is not finite.
            ValueError: the run has no folder.
        """
        path = self._options.path
        if path is None:
            raise ValueError("this run has no folder; pass folder=... to train, or use scoresde.train.save.")
        if self._saved is None or self._saved[0] != self.step:
            self._saved = (self.step, self._processes.from_main(lambda: self._write(path)))
        return self._saved[1]

    def _write(self, path: Path) -> Path:
        return checkpoint.save(
            path,
            self.model,
            step=self.step,
            ema=self.ema,
            dataset=self._dataset,
            optimizer=self._optimizer.state(),
            training={
                "ema_updates": self.ema.updates,
                "seconds": self._seconds,
                **self._window.state(),
                "options": self._recorded(),
            },
            keep=self._options.keep,
        )

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _begin(self) -> _Session:
        options, now = self._options, time.perf_counter()
        if not self._claimed:  # again, after close
            self._claim()
        hidden = not (options.progress and self._processes.main)
        return _Session(
            fetch=batches(
                self._dataset,
                DataOrder(len(self._dataset), options.batch_size, options.seed),
                self._rows,
                self.step,
                options.steps,
                num_workers=options.num_workers,
                seed=options.seed,
                rank=self._processes.rank,
                pin_memory=self._device.type == "cuda",
            ),
            progress=tqdm(total=options.steps, initial=self.step, disable=hidden, unit="step"),
            start=now - self._seconds,
            deadline=math.inf if options.max_seconds is None else now + options.max_seconds,
        )

    def _step(self, session: _Session) -> StepRecord:
        options = self._options
        lr = learning_rate(self.step, lr=options.lr, steps=options.steps, warmup=options.warmup, decay=options.decay)
        loss, norm = self._gradient(session.fetch)
        self._window.look(self.step + 1, loss, norm)
        if self._device.type == "cpu":
            self._stop_if_bad(lr)
        self._optimizer.step(lr, norm, options.clip)
        self.ema.update()
        self.step += 1
        self._seconds = time.perf_counter() - session.start
        self._window.add(loss)
        record = StepRecord(self.step, self.step * options.batch_size, lr, self._seconds, loss, norm)

        self._over = self.step == options.steps or self._late(session)
        save = self._over or (options.save_every is not None and self.step % options.save_every == 0)
        log = self._over or self.step % options.log_every == 0
        if log or save:
            self._stop_if_bad(lr)
        session.progress.update()
        if log:
            session.progress.set_postfix(loss=f"{self._log_line(record):.4f}")
        if save and options.folder is not None:
            self.save()
        return record

    def _gradient(self, fetch: Callable[[], Batch]) -> tuple[Tensor, Tensor]:
        """Put the gradient of the global batch's mean loss into ``.grad``; return that loss and the gradient's norm."""
        seed, pieces = self._options.seed, self._options.accumulate
        if not all(module.training for module in self.model.modules()):  # some were looked at in evaluation mode
            self._objective.train()
        with seeded(self._device, derive(seed, "network", self.step, self._processes.rank)):
            x0, t, weight, given = self._prepare(fetch())
            eps = step_noise(seed, self.step, self._rows.start, x0)
            loss = torch.zeros((), device=self._device)
            size = len(x0) // pieces
            for i in range(pieces):
                piece = slice(i * size, (i + 1) * size)
                some = {name: value[piece] for name, value in given.items()}
                # Processes exchange gradients once, after the last piece.
                with nullcontext() if i == pieces - 1 else self._processes.apart(self._objective):
                    value = self._objective(x0[piece], t[piece], eps[piece], weight[piece], some) / pieces
                    value.backward()
                loss = loss + value.detach()
        return self._processes.mean(loss), self._optimizer.gradient_norm()

    def _prepare(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """x_0, times, their weights and the other entries of this process's rows, on the device."""
        options, rows, device = self._options, self._rows, self._device
        task: Objective[Any] = self._task
        task.check_batch(batch, self.step + 1)
        uniforms = Uniforms.draw(options.seed, self.step, options.batch_size)
        # Of the whole batch: a density may place its samples in relation to each other.
        t, weight = options.times.sample(self.model.sde, uniforms.time)
        both = entries(batch, ("x", *task.names), self._optimizer.parameters[0])
        if options.flip:
            coins = uniforms.flip[rows].to(device)
            both.update({name: random_flip(both[name], coins) for name in ("x", *task.mirrored)})
        x0 = both.pop("x")
        if options.dequantize:
            normal = step_noise(options.seed, self.step, rows.start, x0, name="dequantize")
            x0 = x0 + bin_width(self._dataset) * (torch.special.ndtr(normal) - 0.5)
        dropped = task.dropped(uniforms.condition_dropout, seed=options.seed, step=self.step)
        lost = {name: where[rows].to(device) for name, where in dropped.items()}
        return x0, t[rows].to(device), weight[rows].to(device), drop_conditions(both, task.nulls, lost)

    def _late(self, session: _Session) -> bool:
        """Whether time is up; the main process's clock decides for all."""
        if self._options.max_seconds is None:
            return False
        return self._processes.decided(time.perf_counter() >= session.deadline)

    def _stop_if_bad(self, lr: float) -> None:
        step = self._window.bad_step()
        if step:
            kept = "nothing was saved before" if self._saved is None else f"the last checkpoint is {self._saved[1]}"
            raise FloatingPointError(
                f"the loss or its gradient is not finite at step {step}, with learning rate {lr:g}; {kept}. Lower lr, "
                "lengthen warmup, clip the gradient, or look for extreme values in the data."
            )

    def _log_line(self, record: StepRecord) -> float:
        """Write a line of the log; return the mean loss since the line before."""
        mean = self._window.close()
        if self._log is not None:
            self._log.write(
                {
                    "step": record.step,
                    "loss": mean,
                    "grad_norm": record.grad_norm,
                    "lr": record.lr,
                    "seconds": round(record.seconds, 3),
                    "samples": record.samples,
                }
            )
        return mean

    # -- the folder ----------------------------------------------------------------------------------------------------

    def _open_folder(self) -> Description | None:
        """Make the folder ready; the checkpoint to continue from, if there is one."""
        options, path = self._options, self._options.path
        if path is None:
            return None
        self._processes.from_main(lambda: folder.prepare(path))
        found = folder.checkpoints(path)
        self._processes.agree(found[-1].name if found else "none", f"checkpoints in {path}")
        if found and not options.resume:
            raise CheckpointError(
                f"{path} holds checkpoints already (the last is {found[-1].name}). Pass resume=True to continue that "
                "run, or choose another folder."
            )
        description = continued(found[-1], self.model, self._dataset, options.steps) if found else None
        # Only a folder that is ours is swept: until here it may be the one of another run.
        self._claim()
        return description

    def _claim(self) -> None:
        """Keep other processes out of the folder, until the run is closed or forgotten."""
        path = self._options.path

        def take() -> None:
            if path is not None:
                self._owner = Owner(path)
                weakref.finalize(self, self._owner.release)
                folder.sweep(path)

        self._processes.from_main(take)
        self._claimed = True

    def _load(self, resumed: Description) -> None:
        training = checkpoint.read_training(resumed)
        differ = differences(training["options"], json.loads(json.dumps(self._recorded())))
        if differ:
            warnings.warn(
                f"resuming {resumed.path} with other settings ({'; '.join(differ)}): the run will differ from an "
                "uninterrupted one.",
                stacklevel=5,  # the caller of train
            )
        self.step, self._saved = resumed.step, (resumed.step, resumed.path)
        self.ema.load_state(checkpoint.read_tensors(resumed, checkpoint.AVERAGE), training["ema_updates"])
        self._optimizer.load_state(checkpoint.read_tensors(resumed, checkpoint.OPTIMIZER))
        self._seconds = training["seconds"]
        self._window.load_state(training)

    def _recorded(self) -> dict[str, Any]:
        """What a resumed run must have in common with the first session to be its continuation."""
        here = {"processes": self._processes.count, "samples": len(self._dataset)}
        return {**self._options.recorded(self._task.kind), **here}
