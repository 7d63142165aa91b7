"""What a sampler is fitted to: starts, and where the probability-flow ODE carries them.

:func:`reference` solves the ODE by a fifth-order method whose steps are halved until the ends stand still;
:class:`Trajectories` holds starts and ends in blocks of the one batch size with which the score is called::

    ends, error = reference(score, blocks, 1e-6)            # blocks: a list of (B, *event)
    trajectories = Trajectories(blocks, ends)
    squared = trajectories.squared(sampler)                 # (count,), the error of x -> sampler(x) on each
    root_mean(squared), trimmed(squared)                    # RMS, and the same without the worst 5 %

:func:`~scoresde.fitting.fit` splits them into those it fits to, those that say when to stop and those held out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import rules
from scoresde.models import Score
from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.solvers import Multistep
from scoresde.solvers.incomplete import require_finite

# Steps of the reference: doubled from the first until its error is small enough, at most to the last.
_FEWEST, _MOST = 64, 1024
TRIM = 0.05


@dataclass(frozen=True)
class Trajectories:
    """Starts and ends in blocks of the one batch size with which the score is called: lists of (B, *event)."""

    starts: Sequence[Tensor]
    ends: Sequence[Tensor]

    def part(self, first: int, last: int) -> Trajectories:
        """Some of the blocks."""
        return Trajectories(self.starts[first:last], self.ends[first:last])

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def count(self) -> int:
        """How many trajectories."""
        return sum(len(x) for x in self.starts)

    def squared(self, sampler: Callable[[Tensor], Tensor]) -> Tensor:
        """(count,) float64, each trajectory's squared error at the end, averaged over coordinates."""
        with torch.no_grad():
            found = [square(sampler(x) - end) for x, end in zip(self.starts, self.ends, strict=True)]
        return torch.cat(found)


def square(difference: Tensor) -> Tensor:
    """(B,) float64 on the CPU: the mean square over coordinates."""
    return difference.double().flatten(1).square().mean(1).cpu()


def root_mean(squared: Tensor) -> float:
    """Root of the mean; infinite where anything is not finite."""
    return float(squared.nan_to_num(torch.inf).mean().sqrt())


def trimmed(squared: Tensor) -> float:
    """The same without the worst 5 %."""
    ordered = squared.nan_to_num(torch.inf).sort().values
    return float(ordered[: len(ordered) - int(TRIM * len(ordered))].mean().sqrt())


def reference(score: Score, starts: Sequence[Tensor], error: float) -> tuple[Sequence[Tensor], float]:
    """The ends of the probability-flow ODE, and an estimate of their error.

    A fifth-order multistep method at equal steps in log-SNR. The steps are halved until the difference to twice as
    few is below ``error`` or no longer falls; that difference is the error of the coarser run, of which the finer has
    about 1/32 until rounding takes over.
    """
    solver, process = Multistep(4, True, full_start=True), Reverse(score, eta=0.0)

    def ends(steps: int) -> list[Tensor]:
        times = _fine(score.sde, steps)
        with torch.no_grad():
            return [require_finite(solver.solve(process, x, times).x, "the reference") for x in starts]

    steps, before = _FEWEST, (math.inf, math.inf)
    coarse = ends(steps)
    while True:
        steps *= 2
        fine = ends(steps)
        squared = torch.cat([square(a - b) for a, b in zip(coarse, fine, strict=True)])
        found = root_mean(squared), trimmed(squared)
        # less than halved by twice the steps, for most and for the worst: what is left is rounding
        stands = all(now > last / 2 for now, last in zip(found, before, strict=True))
        if found[0] <= error or stands or 2 * steps > _MOST:
            return fine, found[0]
        coarse, before = fine, found


def _fine(sde: SDE, steps: int) -> Tensor:
    try:
        return rules.log_snr(sde, steps)
    except ValueError:  # σ = 0 at the end: no equal steps in log-SNR
        return rules.karras(sde, steps)
