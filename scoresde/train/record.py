"""What a training step reports, and the log file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        step: number of steps done, this one included.
        samples: number of training samples seen so far, over all processes.
        lr: learning rate of this step.
        seconds: wall time of training so far, earlier sessions of a resumed run included.
    """

    step: int
    samples: int
    lr: float
    seconds: float
    _loss: Tensor = field(repr=False)
    _grad_norm: Tensor = field(repr=False)

    @property
    def loss(self) -> float:
        """Loss of this step, mean over batch and event. On a GPU, reading it waits for the step to finish."""
        return self._loss.item()

    @property
    def grad_norm(self) -> float:
        """Norm of the gradient before clipping. On a GPU, reading it waits for the step to finish."""
        return self._grad_norm.item()


class Log:
    """``log.jsonl``: one JSON object a line, in the order of steps.

    Args:
        path: the file.
        step: lines past this step, and a line cut short by a kill, are dropped first.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        if not path.exists():
            return
        kept = [line for line in path.read_text().splitlines() if _step(line) <= step]
        partial = path.with_name(f".partial-{path.name}")
        partial.write_text("".join(line + "\n" for line in kept))
        os.replace(partial, path)

    def write(self, line: dict[str, Any]) -> None:
        """Append one line; it is in the file when this returns."""
        with self._path.open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
