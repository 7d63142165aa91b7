"""Sampling shared by the processes of ``torchrun`` or ``accelerate launch``: the same samples at any number of them.

    found = sample_sharded(lambda rows: model.bind(label=labels[rows]), (10_000, 3, 32, 32), batch_size=256, seed=0)
    if found.x is not None:                             # on the main process
        save(found.x)

What is handed out are whole batches, in turn, and sample i draws from a stream of its own; so each batch is computed as
one process would compute it, and its samples are the same to the last bit wherever that is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from scoresde import checks
from scoresde.models import Score
from scoresde.noise import Noise, PerSampleNoise
from scoresde.sampling import sample
from scoresde.solvers import Solution
from scoresde.train.processes import Processes

ScoreOfRows = Callable[[slice], Score]
"""rows -> the Score of these samples, with their rows of every condition."""


@dataclass(frozen=True)
class SharedSamples:
    """What processes have drawn together.

    Attributes:
        x: (N, *event) all samples in their order, in main memory; on the main process alone, None on the others.
        finite: (N,) bool, which of them are finite; None as well.
        nfe: the most evaluations that a batch of this process took; 0 where it had none.
        rows: the batches that this process drew.
    """

    x: Tensor | None
    finite: Tensor | None
    nfe: int
    rows: tuple[slice, ...]


def sample_sharded(
    score: Score | ScoreOfRows,
    shape: tuple[int, ...],
    *,
    batch_size: int = 64,
    seed: int | None = None,
    noise: Callable[[int], Noise] | None = None,
    around: Callable[[Iterable[slice]], Iterable[slice]] = iter,
    cpu: bool = False,
    **options: Any,
) -> SharedSamples:
    """:func:`~scoresde.sample` of a set in batches, shared by all processes, gathered by the main one.

    All processes call it with the same arguments, each with its own copy of the model on its own device; of one process
    nothing else is asked, not even Accelerate. Batch k goes to process k modulo their number. At the same
    ``batch_size`` the samples are the same to the last bit at any number of processes, as long as their devices compute
    alike. At another one they agree to rounding: how a matrix product or a convolution orders its sums depends on how
    many rows it has.

    Args:
        score: for all samples; or a function of rows, a slice, that answers the score of these samples, by which
            conditions given for each sample are handed out: ``lambda rows: model.bind(label=labels[rows])``.
        shape: (N, *event), of the whole set.
        batch_size: samples at a time. A batch is not divided: take N / (processes × a whole number), or less, for all
            of them to have the same to do.
        seed: sample i depends on (seed, i); default 0.
        noise: in its place a function of the number of a batch's first sample, such as
            ``lambda first: BrownianNoise(0, sde.T, first=first)``.
        around: what this process's batches are drawn through, such as a progress bar.
        cpu: the processes meet on the CPU although there is a GPU, as :func:`~scoresde.train.train` has it.
        options: of :func:`~scoresde.sample`: solver, steps, grid, eta, denoise, dtype, device. Neither x nor a
            trajectory.

    Raises:
        TypeError, ValueError: see :func:`~scoresde.sample`. What one process meets is raised on all.
        FloatingPointError: no sample of a batch is finite.
    """
    shape = checks.shape(shape)
    batch_size, cpu = checks.count(batch_size, name="batch_size"), checks.flag(cpu, name="cpu")
    _refuse({"x", "trajectory", "callback"} & set(options))
    if seed is not None and noise is not None:
        raise ValueError("give seed or noise, not both.")
    seed = 0 if seed is None else checks.seed(seed)
    if noise is not None:
        checks.function(noise, name="noise", what="of a batch's first sample, answering a Noise", takes=1)
    if not isinstance(score, Score):
        checks.function(score, name="score", what="of rows, a slice, answering their Score; or a Score", takes=1)
    batches = [slice(first, min(first + batch_size, shape[0])) for first in range(0, shape[0], batch_size)]
    processes = Processes(cpu) if several_processes() else None
    count, rank = (processes.count, processes.rank) if processes is not None else (1, 0)

    def draw() -> dict[int, Solution]:
        mine = range(rank, len(batches), count)
        return {k: one(batches[k]) for k, _ in zip(mine, around(batches[k] for k in mine), strict=True)}

    def one(rows: slice) -> Solution:
        own = score if isinstance(score, Score) else score(rows)
        source = PerSampleNoise(seed, first=rows.start) if noise is None else noise(rows.start)
        return sample(own, (rows.stop - rows.start, *shape[1:]), noise=source, **options)

    if processes is None:
        drawn = draw()
    else:
        with processes.together():
            drawn = draw()
    nfe = max((solution.nfe for solution in drawn.values()), default=0)
    x = _gathered(processes, {k: solution.x for k, solution in drawn.items()}, batches)
    finite = _gathered(processes, {k: _finite(solution) for k, solution in drawn.items()}, batches)
    return SharedSamples(x, finite, nfe, tuple(batches[k] for k in drawn))


def several_processes() -> bool:
    """Whether this one was started with others, by torchrun or accelerate launch, or has joined them since."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size() > 1
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _finite(solution: Solution) -> Tensor:
    known = solution.finite
    return torch.ones(len(solution.x), dtype=torch.bool) if known is None else known


def _gathered(processes: Processes | None, drawn: dict[int, Tensor], batches: list[slice]) -> Tensor | None:
    parts = {k: part.detach().cpu().contiguous() for k, part in drawn.items()}
    if processes is None:
        return torch.cat([parts[k] for k in range(len(batches))]) if batches else None
    return processes.to_main(parts, [rows.stop - rows.start for rows in batches])


def _refuse(names: set[str]) -> None:
    if names:
        raise TypeError(
            f"sample_sharded draws each batch from the prior and gathers its end: leave {', '.join(sorted(names))} "
            "out, or call sample for one batch."
        )
