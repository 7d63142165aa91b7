"""The held-out loss of a run as it goes on: measured, judged, logged, kept in checkpoints.

:class:`~scoresde.train.Run` has a :class:`HeldOutWatch` where samples are held out::

    watch = HeldOutWatch(task, samples, options, placement)
    if watch.scheduled(step):
        found = watch.measure(step, ema)                    # a HeldOutLoss, of the averaged weights
        log.write({**line, "held_out": as_line(found)})
    watch.ended                                             # whether the run is to end here
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor

from scoresde.files import Fields
from scoresde.train.convergence import EarlyStopping, HeldOutLoss, History, Judgement
from scoresde.train.describe import Model
from scoresde.train.ema import EMA
from scoresde.train.folder import checkpoints
from scoresde.train.held_out import HeldOut, HeldOutSamples, warn_not_finite
from scoresde.train.objective import Objective
from scoresde.train.options import TrainOptions
from scoresde.train.placement import Placement
from scoresde.warning import warn_user

LOSSES = "losses"
"""The tensor in which a checkpoint holds the losses of draws that later evaluations are compared with, (n, M)."""
ENDING = ("converged", "overfitting")
MOST_EVALUATIONS = 1000


class HeldOutWatch(Generic[Model]):
    """Measures the held-out loss, and says when a run is to end.

    Args:
        task: a model and its loss.
        samples: that are not trained on.
        options: of the run.
        placement: how the processes that share the evaluations hold the weights.

    Attributes:
        latest: what was measured last; None before.
        ended: whether it ends the run.
    """

    def __init__(
        self, task: Objective[Model], samples: HeldOutSamples, options: TrainOptions, placement: Placement
    ) -> None:
        self._task: Objective[Model] = task
        self._processes, self._stops = placement.processes, options.early_stopping is not None
        self._rule = options.early_stopping or EarlyStopping()
        self._held: HeldOut[Model] = HeldOut(task, samples, options, placement)
        self._history = History(self._held.design, self._rule, samples=self._held.samples, begin=options.warmup)
        self._fingerprint = self._held.fingerprint()
        self._best_saved: tuple[str, float] | None = None
        self._measured: tuple[int, float] | None = None
        self.latest: HeldOutLoss | None = None
        self.ended = False

    @property
    def every(self) -> int:
        """Steps between evaluations that are compared with each other."""
        return self._held.every

    def scheduled(self, step: int) -> bool:
        """Whether an evaluation is due after this step."""
        return step % self._held.every == 0

    def measure(self, step: int, ema: EMA) -> HeldOutLoss:
        """Measure the averaged model. All processes call it, and all get the same.

        What is measured out of turn, at a checkpoint or at the end, is judged, and neither ends the run nor is compared
        with later: that must not depend on when checkpoints are written.
        """
        held, history, began, turn = self._held, self._history, time.perf_counter(), self.scheduled(step)
        with ema.applied():
            losses = held.evaluate()
        curve = held.curve(losses.level, step=step)
        bad = held.not_finite(losses)
        if bad is not None and self._processes.main:
            warn_not_finite(step, bad)
        if bool(losses.training.isfinite().all()):
            loss, error = held.design.mean(losses.training)
            judged = history.judge(step, losses.training, kept=turn)
            self._measured = (step, loss)
        else:
            loss = error = math.nan
            judged = Judgement(history.best, math.nan, math.nan, None, math.nan, math.nan, "undecided")
        self.latest = HeldOutLoss(
            **vars(judged),
            step=step,
            loss=loss,
            standard_error=error,
            curve=curve,
            seconds=time.perf_counter() - began,
        )
        if curve is not None:
            self._task.model.loss_curve = curve
        if turn and self._stops:
            self.ended = self._processes.decided(judged.verdict in ENDING)
        return self.latest

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def saved(self, step: int, path: Path) -> None:
        """A checkpoint was written."""
        if self._measured is not None and self._measured[0] == step:
            loss = self._measured[1]
            if self._best_saved is None or loss <= self._best_saved[1]:
                self._best_saved = (path.name, loss)

    @property
    def spared(self) -> list[str]:
        """Names of checkpoints that are not to be removed: of the lowest held-out loss."""
        return [] if self._best_saved is None else [self._best_saved[0]]

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a resumed run goes on with: JSON, and tensors."""
        counters, losses = self._history.state()
        return {
            **counters,
            "draws": self._fingerprint,
            "measured": None if self._measured is None else list(self._measured),
            "best_saved": None
            if self._best_saved is None
            else dict(zip(("name", "loss"), self._best_saved, strict=True)),
            "ended_by": self._ended_by() if self.ended else None,
        }, {LOSSES: losses}

    def load_state(self, saved: Fields, tensors: dict[str, Tensor], path: Path) -> None:
        """The inverse of ``state``, of the checkpoint at ``path``; with a warning, nothing, where it was of others.

        Raises:
            Exception: what the fields make of one that is damaged.
        """
        draws = list(saved.wholes("draws", most_items=3, items=3))
        steps = saved.wholes("steps", most_items=MOST_EVALUATIONS)
        losses = tensors.get(LOSSES)
        if losses is None or losses.shape != (len(steps), draws[1]) or losses.dtype != torch.float64:
            raise saved.refused("steps", f"{len(steps)} steps do not belong to the losses of the draws.")
        if draws != self._fingerprint:
            warn_user(
                f"the samples, the noise, the weighting or the average of the held-out loss are others than those of "
                f"{path}: what is said of convergence begins anew."
            )
            return
        self._history.load_state(saved.whole("count", least=len(steps)), steps, losses)
        if not saved.null("best_saved"):
            best = saved.object("best_saved")
            name = best.text("name", most=100)
            if name in [other.name for other in checkpoints(path.parent)]:  # it may have been removed since
                self._best_saved = (name, best.number("loss"))
        if not saved.null("measured"):
            step, loss = saved.numbers("measured", most_items=2, items=2)
            self._measured = (int(step), loss)
            self.saved(_step_of(path), path)
        if self._stops and not saved.null("ended_by"):  # by another rule it may not have ended
            self.ended = saved.value("ended_by") == self._ended_by()

    def _ended_by(self) -> list[float]:
        return [self._rule.tolerance, self._rule.patience, self._rule.false_alarm]


def _step_of(path: Path) -> int:
    return int(path.name.split("-")[1])


def as_line(found: HeldOutLoss) -> dict[str, Any]:
    """As JSON for a line of the log, numbers to six digits; null where they are not finite."""
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    curve = values.pop("curve")
    told = {name: _short(value) for name, value in values.items() if name != "step"}
    if curve is not None:
        told["curve"] = {name: _short(value) for name, value in curve.to_json().items() if name != "step"}
    return told


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(one) for one in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
