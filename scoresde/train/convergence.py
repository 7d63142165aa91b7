r"""Whether training has converged, by the losses of the same held-out draws at several steps::

    history = History(design, EarlyStopping(tolerance=0.01), samples=1024)
    judged = history.judge(step, losses)                    # (M,) float64: the loss of each draw; answers a Judgement
    judged.verdict                                          # "falling", "undecided", "converged" or "overfitting"

The draws are the same at every evaluation, so two evaluations are compared draw by draw, and what makes a loss high or
low for all networks cancels. Evaluations are compared over the second half of the steps: what a power law gained there
is more than it will gain in as many steps again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scoresde import checks
from scoresde.curve import LossCurve
from scoresde.train.standard_errors import Design, quantile

Verdict = Literal["falling", "undecided", "converged", "overfitting"]

SPACING = 32
"""Evaluations are kept for comparison at distances of 1/32 of the steps done; at most 40 of them or so."""


@dataclass(frozen=True)
class EarlyStopping:
    """When a run ends before its steps are done: as soon as its held-out loss has converged, or rises.

    With losses L at evaluation k, and L' at the last one that half of the steps were done at, the run has

    - *converged* where L' - L < tolerance |L|: in the second half of the steps the loss fell by less than the
      tolerance. It must be below by z standard errors of the paired difference, so that a held-out set that is too
      small to tell says "undecided" and never this;
    - been *overfitting* where L is above the lowest loss so far by z standard errors of that difference, and by more
      than the tolerance of it.

    z grows with k as the quantile of Student's t of probability ``false_alarm`` / (k (k - 1)), over k - 1 more for the
    second, whose lowest loss is one of k - 1. These sum to ``false_alarm`` over all evaluations that may ever come
    (Bonferroni), so that each of the two statements is made with that probability at most in a whole run where it is
    never true, however often is evaluated.

    Args:
        tolerance: relative change of the loss that is taken for none.
        false_alarm: probability of either statement in a run where it is never true.

    Raises:
        TypeError, ValueError: no numbers, or not between 0 and 1.
    """

    tolerance: float = 0.01
    false_alarm: float = 0.05

    def __post_init__(self) -> None:
        checks.fields(self)
        for name in ("tolerance", "false_alarm"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name):g}.")


@dataclass(frozen=True)
class Judgement:
    """What an evaluation says beside those before.

    Attributes:
        best_step: of the lowest loss so far, this one included.
        above_best, above_best_error: this loss less that one, and the standard error of the paired difference.
        since: the step that it is compared with, half way or before; None where there is none yet.
        fall, fall_error: by how much the loss fell since, and the standard error of the paired difference.
        verdict: see :class:`EarlyStopping`; "falling" where the fall is above 0 by z standard errors.
    """

    best_step: int
    above_best: float
    above_best_error: float
    since: int | None
    fall: float
    fall_error: float
    verdict: Verdict


@dataclass(frozen=True)
class HeldOutLoss(Judgement):
    """The held-out loss after a step.

    Attributes:
        step: optimizer steps done.
        loss: the training's own loss, its density of times and weighting, on the held-out samples; NaN where the loss
            of a draw is not finite.
        standard_error: of it, over samples.
        curve: the loss at each noise level; None where no level has finite losses.
        seconds: that the evaluation took.
    """

    step: int
    loss: float
    standard_error: float
    curve: LossCurve | None
    seconds: float


class History:
    """Evaluations so far, as far as later ones are compared with them.

    Args:
        design: of the draws.
        rule: by which is judged.
        samples: of which the draws are, at least 2.
        begin: steps of the warm-up of the learning rate, in which little is learnt: not compared with.

    Attributes:
        count: evaluations so far.
        steps: of those that are kept, increasing.
        best: the step of the lowest loss.
    """

    def __init__(self, design: Design, rule: EarlyStopping, *, samples: int, begin: int = 0) -> None:
        self._design, self._rule, self._freedom, self._begin = design, rule, samples - 1, begin
        self.count, self.best = 0, 0
        self.steps: list[int] = []
        self._losses: list[Tensor] = []

    def judge(self, step: int, losses: Tensor, *, kept: bool = True) -> Judgement:
        """Compare an evaluation (M,) with those before; with ``kept`` it is one of them from now on."""
        k = self.count + 1
        found = self._judged(k, step, losses)
        if kept:
            self.count, self.best = k, found.best_step
            self.steps.append(step)
            self._losses.append(losses)
            self._thin(step)
        return found

    def _judged(self, k: int, step: int, losses: Tensor) -> Judgement:
        mean, tolerance = losses.mean().item(), self._rule.tolerance
        lowest = self._losses[self.steps.index(self.best)] if self.steps else losses
        below = lowest.mean().item()
        best = step if not self.steps or mean < below else self.best
        above, above_error = self._design.mean(losses - lowest) if best != step else (0.0, 0.0)
        earlier = [i for i, other in enumerate(self.steps) if self._begin <= other and 2 * other <= step]
        if not earlier:
            return Judgement(best, above, above_error, None, 0.0, 0.0, "undecided")
        before = self._losses[earlier[-1]]
        fall, fall_error = self._design.mean(before - losses)
        probability = self._rule.false_alarm / (k * (k - 1))
        z = quantile(probability, self._freedom)
        # one contrast of the draws: the tolerance of a loss that is itself uncertain
        margin, margin_error = self._design.mean(before - losses - math.copysign(tolerance, mean) * losses)
        verdict: Verdict = "undecided"
        if above > quantile(probability / (k - 1), self._freedom) * above_error and above > tolerance * abs(below):
            verdict = "overfitting"
        elif margin + z * margin_error < 0:
            verdict = "converged"
        elif fall > z * fall_error:
            verdict = "falling"
        return Judgement(best, above, above_error, self.steps[earlier[-1]], fall, fall_error, verdict)

    def _thin(self, step: int) -> None:
        """Drop what no later evaluation will be compared with, and what stands closer than 1/32 of the steps."""
        half = max((other for other in self.steps if 2 * other <= step), default=0)
        kept: list[int] = []
        for i, one in enumerate(self.steps):
            if one == self.best or one == step:
                kept.append(i)
            elif one >= half:
                previous = self.steps[kept[-1]] if kept else 0
                if one == half or (self.steps[i + 1] - previous) * SPACING > step:
                    kept.append(i)
        self.steps, self._losses = [self.steps[i] for i in kept], [self._losses[i] for i in kept]

    def state(self) -> tuple[dict[str, int | list[int]], Tensor]:
        """What a resumed run goes on with: counters, and the losses of the draws (n, M)."""
        losses = torch.stack(self._losses) if self._losses else torch.zeros(0, len(self._design.samples)).double()
        return {"count": self.count, "best": self.best, "steps": list(self.steps)}, losses

    def load_state(self, count: int, best: int, steps: Sequence[int], losses: Tensor) -> None:
        """The inverse of ``state``."""
        self.count, self.best, self.steps = count, best, list(steps)
        self._losses = list(losses)
