"""What a long job will cost, told before or soon after it starts: sizes, and seconds once the first steps are timed.

say(size_of_training(model))                       # "53,202 parameters; 0.2 MB of weights, 0.9 MB while training"
watch = Watch(total=20_000, unit="step")
for step in run:
    watch.done(step.step)                          # once: "0.021 s a step: about 7 min for 20,000 of them"
expect(trained, 26, total=1000, size=64)           # "26 evaluations of 1,000 samples: about 40 s on cpu"
for rows in in_batches(1000, 64):                  # a bar, and after the first batch how long the others take
    ...
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from tqdm import tqdm

from scoresde.cli.outputs import say
from scoresde.cli.trained import Trained

SETTLE = 3
"""Steps that are left out of the timing, in which memory is allocated and kernels are chosen."""
LEAST = 2.0
"""Seconds to be timed; what is over by then needs no forecast."""
LONG = 5.0
"""Seconds from which a job is long enough for a forecast."""
ROWS = 16
"""Samples of which an evaluation is timed."""


def parameters_of_model(model: nn.Module) -> int:
    """Numbers that are learned."""
    return sum(p.numel() for p in model.parameters())


def size_of_training(model: nn.Module) -> str:
    """Parameters, and memory of weights, and of these with gradients, AdamW's two moments and the average."""
    count = parameters_of_model(model)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return f"{count:,} parameters; {megabytes(size)} of weights, {megabytes(5 * size)} with what training holds of them"


def megabytes(size: float) -> str:
    """Bytes in words."""
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Watch:
    """Says once how long the whole will take, when a few seconds of it have been timed.

    Args:
        total: steps in all, earlier sessions included.
        unit: what one is called.
    """

    def __init__(self, total: int, unit: str) -> None:
        self._total, self._unit = total, unit
        self._seen = 0
        self._began: tuple[float, int] | None = None
        self._told = False

    def done(self, step: int) -> None:
        """So many are done."""
        if self._told:
            return
        self._seen += 1
        now = time.perf_counter()
        if self._began is None:
            if self._seen >= SETTLE:
                self._began = now, step
            return
        began, first = self._began
        if now - began < LEAST or step < first + SETTLE:
            return
        self._told = True
        each, left = (now - began) / (step - first), self._total - step
        if left > 0:
            say(f"{each:.3g} s a {self._unit}: about {duration(each * left)} for the {left:,} that are left")


def in_batches(total: int, size: int, unit: str = "sample") -> Iterator[slice]:
    """Rows 0 ... total - 1 in slices of at most ``size``, under a progress bar; see :func:`through`."""
    yield from through([slice(first, min(first + size, total)) for first in range(0, total, size)], unit)


def through(batches: Iterable[slice], unit: str = "sample", *, quiet: bool = False) -> Iterator[slice]:
    """These batches under a progress bar, unless ``quiet``.

    After the first of them, where the others will be long, how long they take is told.
    """
    began, batches, done = time.perf_counter(), list(batches), 0
    total = sum(rows.stop - rows.start for rows in batches)
    with tqdm(total=total, unit=unit, disable=quiet) as bar:
        for rows in batches:
            yield rows
            first, done = done == 0, done + rows.stop - rows.start
            bar.update(rows.stop - rows.start)
            left, seconds = total - done, time.perf_counter() - began
            if first and not quiet and left and seconds * left / done > LONG:
                say(
                    f"the first {done:,} took {duration(seconds)}: about {duration(seconds * left / done)} "
                    f"for the {left:,} that are left"
                )


def expect(trained: Trained, evaluations: int, total: int, size: int, *, gradients: bool = False) -> None:
    """Say how long so many evaluations of so many samples will take, where that is long, by timing one of a batch.

    Args:
        trained: the model.
        evaluations: for each sample.
        total: samples in all.
        size: samples in a batch.
        gradients: of each evaluation the gradient is taken, too, which costs two more.
    """
    each = evaluations * (3 if gradients else 1)
    few, rows = min(ROWS, size, total), min(size, total)
    seconds = evaluation_seconds(trained, few) * each * total / few  # at most: more at once cost less for each
    if seconds > LONG and rows > few:
        seconds = evaluation_seconds(trained, rows) * each * -(-total // size)
    if seconds > LONG:
        kind = "evaluations and gradients" if gradients else "evaluations"
        say(f"{evaluations:,} {kind} of {total:,} samples: about {duration(seconds)} on {trained.device}")


def evaluation_seconds(trained: Trained, rows: int = ROWS) -> float:
    """Seconds of one evaluation of a batch, the second time."""
    given = {
        name: torch.zeros(
            rows, *(n or 1 for n in told["shape"]), dtype=torch.int64 if "int" in str(told["dtype"]) else torch.float32
        )
        for name, told in trained.conditions.items()
        if "shape" in told
    }
    if trained.classes is not None:
        given["label"] = torch.zeros(rows, dtype=torch.int64)
    x = torch.zeros(rows, *trained.event, device=trained.device)
    score = trained.model.bind(**{k: v.to(trained.device) for k, v in given.items()}) if given else trained.model
    began = 0.0
    for _ in range(2):
        began = time.perf_counter()
        with torch.no_grad():
            float(score(x, trained.model.sde.T).sum())  # a number on the CPU: a GPU is through by then
    return time.perf_counter() - began
