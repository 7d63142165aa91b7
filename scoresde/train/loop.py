"""The training loop."""

from __future__ import annotations

import contextlib
import json
import math
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor

from scoresde.data import random_flip
from scoresde.extras import needs
from scoresde.train import checkpoint, folder
from scoresde.train.batches import Batch, MapDataset, batches, seeded_everywhere
from scoresde.train.checkpoint import Description
from scoresde.train.compatibility import (
    accelerator,
    bin_width,
    check_dataset,
    check_mirrored,
    check_model,
    check_step,
    entries,
)
from scoresde.train.conditions import drop_conditions
from scoresde.train.draws import DataOrder, Uniforms, derive, seeded, step_noise
from scoresde.train.ema import EMA, ema_model
from scoresde.train.folder import CheckpointError
from scoresde.train.objective import Model, Objective
from scoresde.train.optimizer import Optimizer
from scoresde.train.options import Options
from scoresde.train.owner import Owner
from scoresde.train.processes import Made, agree, from_main
from scoresde.train.record import Log, StepRecord
from scoresde.train.resume import continued
from scoresde.train.schedule import learning_rate


@dataclass
class _Session:
    """What lives from the first step of an iteration to its end."""

    fetch: Callable[[], Batch]
    bar: Any
    start: float
    deadline: float


class Run(Iterator[StepRecord], Generic[Model]):
    """A training run: iterating does the steps. Made by ``train`` and ``train_classifier``.

    Attributes:
        model: in training.
        ema: the average of its weights; ``with run.ema.applied():`` puts it into ``model`` for a look.
        step: optimizer steps done.
    """

    def __init__(self, objective: Objective[Model], dataset: MapDataset, options: Options) -> None:
        model = objective.model
        check_model(model)
        with seeded_everywhere(derive(options.seed, "checks")):  # a data set may draw from generators that are not ours
            check_dataset(dataset)
        if options.dequantize:
            bin_width(dataset)
        self.model: Model = model
        self.step = 0
        self._options, self._dataset = options, dataset
        self._task: Objective[Model] = objective
        with seeded_everywhere(derive(options.seed, "checks")):
            objective.check_data(dataset)
            if options.flip:
                check_mirrored(objective, dataset)

        self._accelerator = accelerator(options.cpu)
        self._device, self._processes = self._accelerator.device, self._accelerator.num_processes
        self._main, self._rank = self._accelerator.is_main_process, self._accelerator.process_index
        parts = self._processes * options.accumulate
        if options.batch_size % parts:
            raise ValueError(
                f"batch_size={options.batch_size} does not divide into {self._processes} processes x accumulate="
                f"{options.accumulate} equal parts; take a multiple of {parts}."
            )
        local = options.batch_size // self._processes
        self._rows = slice(self._rank * local, (self._rank + 1) * local)
        precision = options.mixed_precision or self._accelerator.mixed_precision
        if precision not in ("no", "bf16"):
            raise ValueError(f"mixed precision must be 'no' or 'bf16', but Accelerate is set to {precision!r}.")

        objective.autocast = precision == "bf16"
        model.to(self._device)
        with seeded_everywhere(derive(options.seed, "checks")):
            check_step(objective, dataset, options.times)  # before the folder is touched
        self._owner: Owner | None = None
        self._claimed = False
        resumed = self._open_folder()
        if resumed is not None:
            checkpoint.load_weights(model, checkpoint.read_tensors(resumed, checkpoint.MODEL), resumed)
        self._objective: Any = self._accelerator.prepare_model(objective)
        self._optimizer = Optimizer(model, options.betas, options.weight_decay)
        self.ema = EMA(model, options.ema, warmup=options.ema_warmup)
        self._seconds, self._loss_steps = 0.0, 0
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        # The first step that was not finite, 0 for none. It stays on the device, so that a GPU need not be waited for.
        self._bad = torch.zeros((), dtype=torch.int64, device=self._device)
        self._saved: tuple[int, Path] | None = None
        self._session: _Session | None = None
        self._over = False
        if resumed is not None:
            self._load(resumed)
        self._log: Log | None = None
        if options.folder is not None and self._main:
            self._log = Log(options.folder / "log.jsonl", self.step)

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
            self._session.bar.close()
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
        options = self._options
        if options.folder is None:
            raise ValueError("this run has no folder; pass folder=... to train, or use scoresde.train.save.")
        if self._saved is not None and self._saved[0] == self.step:
            return self._saved[1]
        self._saved = (self.step, self._from_main(self._write))
        return self._saved[1]

    def _write(self) -> Path:
        assert self._options.folder is not None
        return checkpoint.save(
            self._options.folder,
            self.model,
            step=self.step,
            ema=self.ema,
            dataset=self._dataset,
            optimizer=self._optimizer.state(),
            training={
                "ema_updates": self.ema.updates,
                "seconds": self._seconds,
                "loss_sum": self._loss_sum.item(),
                "loss_steps": self._loss_steps,
                "options": self._recorded(),
            },
            keep=self._options.keep,
        )

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _begin(self) -> _Session:
        options, now = self._options, time.perf_counter()
        if not self._claimed:  # again, after close
            self._from_main(self._claim)
            self._claimed = True
        order = DataOrder(len(self._dataset), options.batch_size, options.seed)
        return _Session(
            fetch=batches(
                self._dataset,
                order,
                self._rows,
                self.step,
                options.steps,
                num_workers=options.num_workers,
                seed=options.seed,
                rank=self._rank,
                pin_memory=self._device.type == "cuda",
            ),
            bar=_bar(options.steps, self.step, hidden=not (options.progress and self._main)),
            start=now - self._seconds,
            deadline=math.inf if options.max_seconds is None else now + options.max_seconds,
        )

    def _step(self, session: _Session) -> StepRecord:
        options = self._options
        lr = learning_rate(self.step, lr=options.lr, steps=options.steps, warmup=options.warmup, decay=options.decay)
        loss, norm = self._gradient(session.fetch)
        finite = loss.isfinite() & norm.isfinite()
        self._bad = torch.where((self._bad == 0) & ~finite, self.step + 1, self._bad)
        if self._device.type == "cpu":
            self._stop_if_bad(lr)
        self._optimizer.step(lr, norm, options.clip)
        self.ema.update()
        self.step += 1
        self._seconds = time.perf_counter() - session.start
        self._loss_sum += loss
        self._loss_steps += 1
        record = StepRecord(self.step, self.step * options.batch_size, lr, self._seconds, loss, norm)

        self._over = self.step == options.steps or self._all_stop(time.perf_counter() >= session.deadline)
        save = self._over or (options.save_every is not None and self.step % options.save_every == 0)
        log = self._over or self.step % options.log_every == 0
        if log or save:
            self._stop_if_bad(lr)
        session.bar.update()
        if log:
            session.bar.set_postfix(loss=f"{self._log_line(record):.4f}")
        if save and options.folder is not None:
            self.save()
        return record

    def _gradient(self, fetch: Callable[[], Batch]) -> tuple[Tensor, Tensor]:
        """Put the gradient of the global batch's mean loss into ``.grad``; return that loss and the gradient's norm."""
        pieces = self._options.accumulate
        if not all(module.training for module in self.model.modules()):  # some were looked at in evaluation mode
            self._objective.train()
        with seeded(self._device, derive(self._options.seed, "network", self.step, self._rank)):
            x0, t, weight, given = self._prepare(fetch())
            eps = step_noise(self._options.seed, self.step, self._rows.start, x0)
            loss = torch.zeros((), device=self._device)
            size = len(x0) // pieces
            for i in range(pieces):
                piece = slice(i * size, (i + 1) * size)
                some = {name: value[piece] for name, value in given.items()}
                # Processes exchange gradients once, after the last piece.
                with contextlib.nullcontext() if i == pieces - 1 else self._accelerator.no_sync(self._objective):
                    value = self._objective(x0[piece], t[piece], eps[piece], weight[piece], some) / pieces
                    value.backward()
                loss = loss + value.detach()
        if self._processes > 1:
            loss = self._accelerator.reduce(loss, reduction="mean")
        return loss, self._optimizer.gradient_norm()

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
        dropped = task.dropped(uniforms.label_dropout, seed=options.seed, step=self.step)
        lost = {name: where[rows].to(device) for name, where in dropped.items()}
        return x0, t[rows].to(device), weight[rows].to(device), drop_conditions(both, task.nulls, lost)

    def _stop_if_bad(self, lr: float) -> None:
        step = int(self._bad)
        if step:
            kept = "nothing was saved before" if self._saved is None else f"the last checkpoint is {self._saved[1]}"
            raise FloatingPointError(
                f"the loss or its gradient is not finite at step {step}, with learning rate {lr:g}; {kept}. Lower lr, "
                "lengthen warmup, clip the gradient, or look for extreme values in the data."
            )

    def _all_stop(self, stop: bool) -> bool:
        """The main process's clock decides for all."""
        if self._processes == 1 or self._options.max_seconds is None:
            return stop
        with needs("train"):
            from accelerate.utils import broadcast
        return bool(broadcast(torch.tensor(int(stop), device=self._device), from_process=0).item())

    def _log_line(self, record: StepRecord) -> float:
        """Write a line of the log; return the mean loss since the line before."""
        mean = self._loss_sum.item() / self._loss_steps
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
        self._loss_sum.zero_()
        self._loss_steps = 0
        return mean

    # -- the folder ----------------------------------------------------------------------------------------------------

    def _open_folder(self) -> Description | None:
        """Make the folder ready; the checkpoint to continue from, if there is one."""
        options = self._options
        if options.folder is None:
            return None
        path = options.folder
        self._from_main(lambda: folder.make_writable(path))
        found = folder.checkpoints(path)
        agree(found[-1].name if found else "none", f"checkpoints in {path}", processes=self._processes)
        if found and not options.resume:
            raise CheckpointError(
                f"{path} holds checkpoints already (the last is {found[-1].name}). Pass resume=True to continue that "
                "run, or choose another folder."
            )
        description = continued(found[-1], self.model, self._dataset, options.steps) if found else None
        # Only a folder that is ours is swept: until here it may be the one of another run.
        self._from_main(self._claim)
        self._claimed = True
        return description

    def _claim(self) -> None:
        """Keep other processes out of the folder, until the run is closed or forgotten."""
        if self._options.folder is not None:
            self._owner = Owner(self._options.folder)
            weakref.finalize(self, self._owner.release)
            folder.sweep(self._options.folder)

    def _from_main(self, action: Callable[[], Made]) -> Made:
        return from_main(action, main=self._main, processes=self._processes)

    def _load(self, resumed: Description) -> None:
        training = checkpoint.read_training(resumed)
        before, now = training["options"], json.loads(json.dumps(self._recorded()))
        differ = [f"{key}: {before.get(key)!r} -> {value!r}" for key, value in now.items() if before.get(key) != value]
        if differ:
            warnings.warn(
                f"resuming {resumed.path} with other settings ({'; '.join(differ)}): the run will differ from an "
                "uninterrupted one.",
                stacklevel=4,
            )
        self.step, self._saved = resumed.step, (resumed.step, resumed.path)
        self.ema.load_state(checkpoint.read_tensors(resumed, checkpoint.AVERAGE), training["ema_updates"])
        self._optimizer.load_state(checkpoint.read_tensors(resumed, checkpoint.OPTIMIZER))
        self._seconds, self._loss_steps = training["seconds"], training["loss_steps"]
        self._loss_sum += training["loss_sum"]

    def _recorded(self) -> dict[str, Any]:
        """What a resumed run must have in common with the first session to be its continuation."""
        return {**self._options.numbers(), "processes": self._processes, "samples": len(self._dataset)}


def _bar(steps: int, done: int, *, hidden: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=steps, initial=done, disable=hidden, unit="step")
