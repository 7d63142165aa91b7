"""The training loop, as an iterator: each ``next`` is one step of the optimizer.

A :class:`Run` holds what lasts: the model, the optimizer, the averages, the count of steps. What begins with the first
step of an iteration and ends with it, the workers and the progress bar, is its session; the folder is claimed at the
start, and given up with the session. All that is random comes from :mod:`~scoresde.train.draws`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, NoReturn

import torch
from torch import nn
from tqdm import tqdm

from scoresde.train import checkpoint, contents
from scoresde.train.atomic import Buffers, uninterrupted
from scoresde.train.averages import Averages
from scoresde.train.batches import Fetched, MapDataset
from scoresde.train.callbacks import Callbacks
from scoresde.train.compatibility import (
    bin_width,
    check_augmented,
    check_dataset,
    check_mirrored,
    check_model,
    continued,
)
from scoresde.train.computing import Computing
from scoresde.train.contents import Description
from scoresde.train.convergence import HeldOutLoss, Verdict
from scoresde.train.describe import Model
from scoresde.train.draws import derive, is_of_ours
from scoresde.train.feeds import Data, Feed, feed_of
from scoresde.train.folder import CheckpointError
from scoresde.train.gradient import GlobalGradient
from scoresde.train.held_out import held_out_of
from scoresde.train.objective import Objective
from scoresde.train.optimizer import Optimizer
from scoresde.train.options import TrainOptions, differences
from scoresde.train.own_optimizer import OwnOptimizer
from scoresde.train.placement import Placement
from scoresde.train.posthoc import check_power_averages
from scoresde.train.processes import Processes
from scoresde.train.record import Log, LossWindow, StepRecord
from scoresde.train.run_folder import RunFolder
from scoresde.train.sharded import placed
from scoresde.train.signals import Listening, Terminated, dead_workers_forgiven, worker_died
from scoresde.train.trial import check_average, check_coupling, check_kept, check_step, check_weights, usable_units
from scoresde.train.watch import HeldOutWatch, as_line
from scoresde.warning import warn_user


@contextmanager
def _own_modes() -> Iterator[None]:
    """Training computes gradients, whoever calls it: under torch.no_grad and torch.inference_mode, too."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@dataclass
class _Session:
    """What lives from the first step of an iteration to its end."""

    fetched: Fetched | None
    progress: Any
    start: float
    deadline: float
    draws: bool


@dataclass
class _Done:
    """A step that was applied, and is yet to be logged, saved and reported."""

    record: StepRecord
    mean: float | None = None
    logged: bool = False
    shown: bool = False


class Run(Iterator[StepRecord], Generic[Model]):
    """A training run: iterating does the steps. Made by ``train`` and ``train_classifier``.

    A step is done wholly or not at all. After Ctrl-C, or an error of the data set or the network, the run is as it was
    before the step that was under way, and iterating it again does that step (with several processes it is over: they
    may have been stopped in different places). After ``max_seconds`` iterating it again, in a new ``for``, takes as
    long again. Where it cannot go on, after a FloatingPointError or CheckpointError, iterating it again raises an error
    that says why; when all steps are done, it just ends.

    SIGTERM, by which a machine is taken away, lets all processes finish the step under way and write a checkpoint,
    where there is a folder; then :class:`~scoresde.train.Terminated` is raised, which ends a process with status 143.

    Attributes:
        model: in training.
        ema: the average of its weights, the first where there are several; ``with run.ema.applied():`` puts it into
            ``model`` for a look.
        averages: all that the option ``ema`` asks for, by decay.
        step: optimizer steps done.
        options: of the run.
    """

    def __init__(self, objective: Objective[Model], dataset: Data, options: TrainOptions) -> None:
        model = objective.model
        self.model: Model = model
        self.step = 0
        if options.path is not None:  # whatever the working directory will be
            options = replace(options, folder=options.path.absolute())
        self._options, self.options = options, options
        self._task: Objective[Model] = objective
        self._processes = Processes(options.cpu)
        self._device = self._processes.device
        self._place = RunFolder(options.path, self._processes)
        self._callbacks = Callbacks(options.callbacks, self._processes.main)
        self._watched = self._processes.decided(bool(options.callbacks))  # the main process's may be the only ones
        self._session: _Session | None = None
        self._saved: tuple[int, Path] | None = None
        self._done: _Done | None = None
        self._applying = self._time_is_up = self._stopping = self._leaving = False
        self._failure: tuple[type[Exception], str] | None = None
        self._told = Listening(self._leave)
        try:
            with _own_modes():
                self._set_up(dataset)
        except BaseException:  # who looks at the error may keep this object, which must not keep the folder
            self.close()
            raise

    def __iter__(self) -> Run[Model]:
        if self._time_is_up:
            self.close()
            self._time_is_up = self._stopping = False
        return self

    def __next__(self) -> StepRecord:
        with self._told.at_work():
            return self._next()

    def _next(self) -> StepRecord:
        if self._failure is not None:
            kind, why = self._failure
            raise kind(why)
        if self._done is None and (self.step >= self._options.steps or self._time_is_up or self._has_ended):
            self.close()
            raise StopIteration
        self._averages.refuse_if_applied("iterating the run")
        if self._told and self._processes.count == 1:  # between two steps
            raise self._terminated()
        with _own_modes():
            try:
                fresh = self._session is None
                session = self._session = self._session or self._begin()
                if fresh:
                    self._tell("begin")
            except BaseException:
                self.close()
                raise
            try:
                if self._done is None:
                    self._advance(session)
                record = self._report(session)
            except BaseException as error:
                self._stopped_by(error)
                if self._told and self._failure is None and worker_died(error):
                    raise self._terminated() from error
                raise
        if self._leaving:
            raise self._terminated()
        return record

    def __reduce__(self) -> NoReturn:
        """Raises TypeError: a run holds a folder and processes, of which there cannot be two."""
        raise TypeError(
            "a Run cannot be pickled or copied: it owns its folder, its workers and its part in other processes. Save "
            "a checkpoint, run.save(), and go on from it by the same call of train; or copy run.model and run.ema."
        )

    def close(self) -> None:
        """Stop the workers and the bar and give up the folder; iterating a run that is not over takes them again."""
        session, self._session = self._session, None
        if session is not None:
            session.progress.close()
            if session.fetched is not None:
                session.fetched.close()
        self._place.release()
        self._told.end()
        if session is not None:
            self._placement.close()
            self._callbacks("end", self)
            self._optimizer.rest()

    def stop(self) -> None:
        """End the iteration after the step under way, as ``max_seconds`` does: with a checkpoint, where there is a
        folder. In a new ``for`` the run goes on.

        For callbacks (in a loop of your own write ``break``). With several processes the main one's word counts.
        """
        self._stopping = True

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Torch's optimizer that steps: AdamW, or that of the option ``optimizer``."""
        return self._optimizer.rule

    @property
    def held_out(self) -> HeldOutLoss | None:
        """The held-out loss that was measured last; None where there is none yet, or nothing is held out."""
        return None if self._watch is None else self._watch.latest

    @property
    def verdict(self) -> Verdict | None:
        """What the held-out loss says of the run: falling, undecided, converged, overfitting; None before it does."""
        return None if self.held_out is None else self.held_out.verdict

    @property
    def _has_ended(self) -> bool:
        """Whether the option early_stopping ended it."""
        return self._watch is not None and self._watch.ended

    def ema_model(self, decay: float | None = None) -> Model:
        """A copy of the model with the averaged weights, for use: those of the average of this decay, or the first.

        Where the weights are divided among processes, all of them call this, and each gets a whole copy.

        Raises:
            ValueError: there is none of this decay.
        """
        return self._placement.ema_model(self.model, self._averages.of(decay))

    def save(self) -> Path:
        """Write a checkpoint of the present step, if there is none yet, and return its folder.

        All processes of a run call it; the main one writes, and all return the same.

        Raises:
            CheckpointError: it cannot be written.
            FloatingPointError: a weight is not finite.
            RuntimeError: inside ``ema.applied()``, after an error in the middle of applying a step, or in a callback
                where there are several processes.
            ValueError: the run has no folder.
        """
        path = self._options.path
        if path is None:
            raise ValueError("this run has no folder; pass folder=... to train, or use scoresde.train.save.")
        self._averages.refuse_if_applied("saving the run")
        if self._applying:
            raise RuntimeError(f"the run stopped in the middle of applying step {self.step + 1}; that is not saved.")
        if self._callbacks.inside and self._processes.count > 1:
            raise RuntimeError("callbacks run on one process, and all have to call run.save(): take save_every.")
        if self._saved is None or self._saved[0] != self.step:
            with self._told.at_work():
                self._saved = (self.step, self._placement.once(lambda: self._write(path)))
            if self._watch is not None:
                self._watch.saved(*self._saved)
            if not self._callbacks.inside:
                self._tell("checkpoint", self._saved[1])
        return self._saved[1]

    def _write(self, path: Path) -> Path:
        judged, losses = ({}, None) if self._watch is None else self._watch.state()
        return checkpoint.save_by(
            self._placement.write,
            path,
            self.model,
            step=self.step,
            ema=list(self._averages),
            dataset=self._dataset,
            optimizer=self._optimizer.state(),
            training={
                "ema_updates": self.ema.updates,
                "seconds": self._seconds,
                **self._window.state(),
                **self._gradient.times.state(),
                "options": self._recorded(),
                **({"held_out": judged} if judged else {}),
            },
            weighting=self._task.companion,
            held_out=losses,
            keep=self._options.keep,
            spare=() if self._watch is None else self._watch.spared,
        )

    # -- before the first step -----------------------------------------------------------------------------------------

    _optimizer: Optimizer

    def _set_up(self, dataset: Data) -> None:
        options, model, together = self._options, self.model, self._processes.together
        self._placement: Placement = placed(options.sharding, self._processes)
        with together():
            check_model(model)
            feed = feed_of(dataset, options, self._processes)
            trained, held = held_out_of(feed, options, self._processes)
            self._feed: Feed = trained
            self._dataset: MapDataset = self._feed.look
            with self._feed.seeded(derive(options.seed, "checks")):
                self._check()
            self._watch: HeldOutWatch[Model] | None = None
            if held is not None:
                self._watch = HeldOutWatch(self._task, held, options, self._placement)
        model.loss_curve = None  # until it is measured, of the weights as they will be
        resumed = self._place.opened(
            resume=options.resume,
            fits=self._fits,
        )
        if resumed is not None:
            with together():
                checkpoint.load_weights(model, contents.read_tensors(resumed, contents.MODEL), resumed)
        self._processes.share_state(model)
        if self._placement.divided:
            with together():
                self._optimizer.check_divisible()
                units = usable_units(self._task, self._dataset, options.times, self._placement.units(model))
            callbacks = self._callbacks
            self._placement.place(self._task, units, lambda: callbacks.inside)
            self._optimizer = self._made_optimizer()
        self._gradient: GlobalGradient[Any] = GlobalGradient(
            self._task, self._dataset, options, self._placement, self._optimizer.parameters, self._computing
        )
        self._averages = Averages(model, options)
        self.averages, self.ema = self._averages.by_decay, self._averages.first
        self._seconds, self._window = 0.0, LossWindow(self._device)
        self._log: Log | None = None
        with together():
            if resumed is not None:
                self._load(resumed)
            if options.path is not None and self._processes.main:
                self._averages.claim(options.path, self.step, anew=resumed is None and not options.resume)
                self._log = Log(options.path / "log.jsonl", self.step)
        self._undo = Buffers(model)
        steps = (getattr(module, "after_step", None) for module in model.modules())
        self._after_step = [step for step in steps if callable(step)]  # what a layer asks for, see nn.magnitude
        self._task.mark(self._dataset)

    def _fits(self, path: Path) -> Description:
        """The checkpoint at ``path``, if this run goes on from it."""
        options = self._options
        companion = self._task.companion
        description = continued(path, self.model, self._dataset, options.steps, self._optimizer, companion)
        check_power_averages(description, options.snapshots)
        return description

    def _made_optimizer(self) -> Optimizer:
        options = self._options
        if options.optimizer is None:
            return Optimizer(self.model, options.betas, options.weight_decay, self._task.companion)
        return OwnOptimizer(self.model, options.optimizer, self._task.companion)

    def _check(self) -> None:
        """Whether all fits together, and what the run will need at its end; the folder is not touched."""
        options, dataset, objective, model = self._options, self._dataset, self._task, self.model
        check_dataset(dataset)
        self._placement.check(options, model)
        if options.batch_size % options.accumulate:
            raise ValueError(
                f"batch_size={options.batch_size} does not divide into accumulate={options.accumulate} equal parts; "
                f"take a multiple of {options.accumulate}."
            )
        if options.dequantize:
            bin_width(dataset)
        objective.check_data(dataset)
        if options.flip:
            check_mirrored(objective, dataset)
        if options.augment is not None:
            check_augmented(objective, dataset, options.augment)
        objective.autocast = self._processes.bfloat16(options.mixed_precision)
        objective.told(dataset)
        objective.to(self._device)
        check_weights(objective, options.times)
        check_step(objective, dataset, options.times)
        check_average(objective, dataset, options.times)
        check_coupling(objective, dataset, options.coupling, options.augment)
        # lazy parameters have their shapes now
        self._computing = Computing.of(objective, dataset, options, self._processes)
        self._optimizer = self._made_optimizer()
        if options.path is not None:
            check_kept(model, dataset, self._recorded())
        parts = self._processes.count * options.accumulate
        if parts > 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
            warn_user(
                f"each step's batch is worked off in {parts} parts (processes x accumulate), and batch normalisation "
                "sees one part at a time: the run depends on their number. GroupNorm or LayerNorm does not."
            )

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _begin(self) -> _Session:
        options, now = self._options, time.perf_counter()
        if not self._place.claimed:  # again, after close
            self._place.claim_again()
        self._told.begin()
        hidden = not (options.progress and self._processes.main)
        rows = self._gradient.rows
        empty = rows.start == rows.stop  # a process more than there are samples in a batch
        return _Session(
            fetched=None if empty else self._feed.fetched(rows, self._processes, first=self.step),
            progress=tqdm(total=options.steps, initial=self.step, disable=hidden, unit="step"),
            start=now - self._seconds,
            deadline=math.inf if options.max_seconds is None else now + options.max_seconds,
            draws=not (is_of_ours(options.times) and is_of_ours(options.coupling)) or self._task.draws,
        )

    def _advance(self, session: _Session) -> None:
        """One step of the optimizer: all of it is done, or nothing."""
        options = self._options
        if self._watched and self._processes.count > 1:  # what a callback set on the main process, all have
            self._optimizer.adopt(self._processes.from_main(self._optimizer.settings))
        rates = self._optimizer.rates(
            self.step, lr=options.lr, steps=options.steps, warmup=options.warmup, decay=options.decay
        )
        lr = rates[0]
        if self._computing.to_be_compiled:
            session.progress.set_postfix_str("compiling: this step takes a minute")
        loss = self._gradient.compute(self.step, session.fetched, draws=session.draws)
        norm = self._placement.gradient_norm(self._optimizer)
        self._window.look(self.step + 1, loss, norm)
        if self._device.type == "cpu":
            self._stop_if_bad(lr)
        with uninterrupted():
            self._applying = True
            self._optimizer.step(rates, norm, options.clip)
            for restore in self._after_step:
                restore()
            self._averages.update()
            self.step += 1
            self._seconds = time.perf_counter() - session.start
            self._window.add(loss)
            self._gradient.note()
            self._undo.keep()
            record = StepRecord(self.step, self.step * options.batch_size, lr, self._seconds, loss, norm)
            self._done = _Done(record)
            self._applying = False

    def _report(self, session: _Session) -> StepRecord:
        """Log and save, where it is time; all of it can be done again after an interruption."""
        options, done = self._options, self._done
        assert done is not None
        if not done.shown:
            done.shown = True
            if (seconds := self._computing.compiled_in()) is not None:
                session.progress.set_postfix_str(f"compiled: that step took {seconds:.0f} s")
                self._tell("compiled", seconds)
            self._tell("step", done.record)
        self._time_is_up = self._late(session)
        save = options.save_every is not None and self.step % options.save_every == 0
        self._measure(done, save=save)
        last = self._time_is_up or self.step == options.steps or self._has_ended
        save = last or save
        log = last or self.step % options.log_every == 0 or done.record.held_out is not None
        keep = self._averages.due(self.step, last=self.step == options.steps or self._has_ended)
        if log or save or keep:
            self._stop_if_bad(done.record.lr)
        if log and not done.logged:
            with uninterrupted():
                done.mean = self._window.close() if done.mean is None else done.mean
                self._log_line(done.record, done.mean)
                done.logged = True
            session.progress.set_postfix(loss=f"{done.mean:.4f}")
            self._tell("log", done.record, done.mean)
        session.progress.update(self.step - session.progress.n)
        if keep and options.path is not None:  # before the checkpoint of the step, so that it never lacks them
            self._averages.keep(options.path, self.step, self._placement, self._processes)
        if save and options.folder is not None:
            self.save()
        self._done = None
        return done.record

    def _measure(self, done: _Done, *, save: bool) -> None:
        """Measure the held-out loss, where it is time."""
        watch = self._watch
        if watch is None or done.record.held_out is not None:
            return
        if watch.scheduled(self.step) or save or self.step == self._options.steps:
            self._stop_if_bad(done.record.lr)
            done.record = replace(done.record, held_out=watch.measure(self.step, self.ema))
            self._tell("held_out", done.record)

    def _tell(self, occasion: str, *args: Any) -> None:
        """Call the callbacks, on the main process; Ctrl-C in one of them stops all."""
        if self._watched:
            with self._processes.together():
                self._callbacks(occasion, self, *args)

    def _stopped_by(self, error: BaseException) -> None:
        """After an error in a step: undo what was half done, and say whether the run can go on."""
        self._gradient.clear()
        why = f"{type(error).__name__}: {error}".rstrip(": ")
        final = isinstance(error, (FloatingPointError, CheckpointError))
        if self._applying:
            why = f"{why}, in the middle of applying the step, so that weights and averages do not belong together"
        elif self._done is None:
            self._undo.restore()
        if self._processes.count > 1:
            why = f"{why}; of {self._processes.count} processes each may be in another place"
        if final or self._applying or self._processes.count > 1:
            at = f"after step {self.step}" if self._done is not None else f"in step {self.step + 1}"
            kind = type(error) if isinstance(error, (FloatingPointError, CheckpointError)) else RuntimeError
            self._failure = (kind, f"this run stopped {at} and cannot go on: {why}. {self._way_on()}")
        self.close()

    def _way_on(self) -> str:
        if self._options.path is None:
            return "It has no folder to resume from: train a new model, with folder=... and save_every=...."
        if self._saved is None:
            return "Nothing was saved before: train anew."
        return f"Go on from {self._saved[1]} by train(..., folder=..., resume=True)."

    def _late(self, session: _Session) -> bool:
        """Whether time is up or somebody asked for the end, where the main process decides for all, or SIGTERM came."""
        stop, self._leaving = self._processes.heard(
            self._stopping or time.perf_counter() >= session.deadline, bool(self._told)
        )
        return stop or self._leaving

    def _leave(self) -> None:
        """When SIGTERM comes between two steps: nobody may ask for another one, so that it is heeded at once."""
        if self._processes.count == 1 and not self._averages.any_applied:
            raise self._terminated()

    def _terminated(self) -> Terminated:
        """Save, where there is a folder, and close: what to raise then."""
        with self._told.at_work():
            try:
                if self._session is not None and self._session.fetched is not None:
                    with dead_workers_forgiven():
                        self._session.fetched.close()
                path = None if self._options.path is None else self.save()
            finally:
                self.close()
        self._told.forget()
        self._time_is_up = self._stopping = self._leaving = False
        return Terminated(self.step, path)

    def _stop_if_bad(self, lr: float) -> None:
        step = self._window.bad_step()
        if step:
            kept = "nothing was saved before" if self._saved is None else f"the last checkpoint is {self._saved[1]}"
            raise FloatingPointError(
                f"the loss or its gradient is not finite at step {step}, with learning rate {lr:g}; {kept}. Lower lr, "
                "lengthen warmup, clip the gradient, or look for extreme values in the data."
            )

    def _log_line(self, record: StepRecord, mean: float) -> None:
        """Write a line of the log, with the mean loss since the line before."""
        if self._log is not None:
            self._log.write(
                {
                    "step": record.step,
                    "loss": mean,
                    "grad_norm": record.grad_norm,
                    "lr": record.lr,
                    "seconds": round(record.seconds, 3),
                    "samples": record.samples,
                    **({} if record.held_out is None else {"held_out": as_line(record.held_out)}),
                }
            )

    # -- resuming ------------------------------------------------------------------------------------------------------

    def _load(self, resumed: Description) -> None:
        training = contents.read_training(resumed)
        recorded = json.loads(json.dumps(self._recorded()))
        differ = differences(training["options"], recorded)
        if differ:
            warn_user(
                f"resuming {resumed.path} with other settings ({'; '.join(differ)}): the run will differ from an "
                "uninterrupted one."
            )
        self.step, self._saved = resumed.step, (resumed.step, resumed.path)
        read, model = self._placement.read, self.model
        self._averages.load(resumed, lambda file: read(resumed, file, model), training["ema_updates"])
        checkpoint.load_optimizer(self._optimizer, resumed, read(resumed, contents.OPTIMIZER, model))
        if self._task.companion is not None and contents.parts(resumed.files, contents.WEIGHTING):
            self._task.companion.load_state_dict(contents.read_tensors(resumed, contents.WEIGHTING))
        self._seconds = training["seconds"]
        self._window.load_state(training)
        try:
            if training["options"].get("times") == recorded["times"]:  # else what was learned is of other cells
                self._gradient.times.load_state(training)
        except (TypeError, ValueError, KeyError) as error:
            raise contents.misplaced(resumed, contents.TRAINING)(str(error)) from error
        self.model.loss_curve = resumed.loss_curve
        if self._watch is not None and training["held_out"] is not None:
            self._watch.load_state(
                training["held_out"], contents.read_tensors(resumed, contents.HELD_OUT), resumed.path
            )

    def _recorded(self) -> dict[str, Any]:
        """What a resumed run must have in common with the first session to be its continuation."""
        share = self._options.held_out
        held_out = share if isinstance(share, float) else None
        here = {"processes": self._processes.count, "samples": self._feed.size, "held_out": held_out}
        return {**self._options.recorded(self._task.kind), **here, **self._optimizer.recorded}
