"""What a training step reports, the losses between two lines of the log, and the log file.

Iterating a run yields a :class:`StepRecord` for each step; the loop itself keeps a :class:`LossWindow` and writes a
:class:`Log`, one JSON object a line::

    for record in train(model, dataset, steps=2000, batch_size=128, folder="run"):
        print(record.step, record.loss, record.lr)          # reading the loss waits for a GPU

    json.loads(Path("run/log.jsonl").read_text().splitlines()[-1])["loss"]      # the mean since the line before

A resumed run drops the lines past its checkpoint, so the log has each step once.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.files import append_line, opened, replacing
from scoresde.train.convergence import HeldOutLoss
from scoresde.train.folder import CheckpointError


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        step: number of steps done, this one included.
        samples: number of training samples seen so far, over all processes.
        lr: learning rate of this step.
        seconds: wall time of training so far, earlier sessions of a resumed run included.
        held_out: the held-out loss after this step, where it was measured.
    """

    step: int
    samples: int
    lr: float
    seconds: float
    _loss: Tensor = field(repr=False)
    _grad_norm: Tensor = field(repr=False)
    held_out: HeldOutLoss | None = None

    @property
    def loss(self) -> float:
        """Loss of this step, mean over batch and event. On a GPU, reading it waits for the step to finish."""
        return self._loss.item()

    @property
    def grad_norm(self) -> float:
        """Norm of the gradient before clipping. On a GPU, reading it waits for the step to finish."""
        return self._grad_norm.item()


class LossWindow:
    """The losses since the last line of the log, and the first step that was not finite.

    Both stay on the device, so that a GPU need not be waited for before they are asked for.

    Args:
        device: of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        kind = torch.float64 if checks.has_float64(device) else torch.float32
        self._sum, self._steps = torch.zeros((), dtype=kind, device=device), 0
        self._bad = torch.zeros((), dtype=torch.int64, device=device)

    def look(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Note whether the loss and the gradient of a step (counted from 1) are finite."""
        finite = loss.isfinite() & norm.isfinite()
        self._bad = torch.where((self._bad == 0) & ~finite, step, self._bad)

    def bad_step(self) -> int:
        """The first step that was not finite, 0 for none."""
        return int(self._bad)

    def add(self, loss: Tensor) -> None:
        """Count the loss of a step that was done."""
        self._sum += loss
        self._steps += 1

    def close(self) -> float:
        """The mean loss since the window was opened; a new one is open then."""
        mean = self._sum.item() / self._steps
        self._sum.zero_()
        self._steps = 0
        return mean

    def state(self) -> dict[str, Any]:
        """What is in it, as JSON."""
        return {"loss_sum": self._sum.item(), "loss_steps": self._steps}

    def load_state(self, saved: dict[str, Any]) -> None:
        """The inverse of ``state``; other entries are passed over."""
        self._sum.fill_(saved["loss_sum"])
        self._steps = saved["loss_steps"]


class Log:
    """``log.jsonl``: one JSON object a line, in the order of steps.

    Args:
        path: the file.
        step: lines past this step, and a line cut short by a kill, are dropped first.

    Raises:
        CheckpointError: the file cannot be read or written.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        try:
            self._drop(step)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._failed(str(error)) from error

    def write(self, line: dict[str, Any]) -> None:
        """Append one line; it is in the file when this returns.

        Raises:
            CheckpointError: it cannot be written.
        """
        try:
            append_line(self._path, json.dumps(line, allow_nan=False))
        except OSError as error:
            raise self._failed(str(error)) from error

    def _drop(self, step: int) -> None:
        with opened(self._path, self._failed, most=_MOST) as file:
            whole, end = True, 0
            for line in iter(lambda: file.readline(_LONGEST), b""):
                if not (line.endswith(b"\n") and _step(line) <= step):
                    whole = False
                    break
                end += len(line)
            if whole:
                return
            rest = [line for line in iter(lambda: file.readline(_LONGEST), b"") if _step(line) <= step]
        if not rest:  # as always, unless somebody wrote into it: takes no room on a disk that is full
            os.truncate(self._path, end)
            return
        content = self._path.read_bytes()[:end] + b"".join(line.removesuffix(b"\n") + b"\n" for line in rest)
        with replacing(self._path) as partial:
            partial.write_bytes(content)

    def _failed(self, text: str) -> Exception:
        return CheckpointError(f"the log {self._path} cannot be kept: {text} Earlier checkpoints are intact.")


_MOST, _LONGEST = 1 << 30, 1 << 16  # bytes of a log, and of a line of it


def _step(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")
