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
from typing import Any, Literal

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

    After evaluation k, b is the lowest loss of those that were measured until half of the present steps were done. Then
    the run

    - has *converged* where no loss L since is below b by the tolerance: b - L < tolerance |L| for each of them, by z
      standard errors of the paired difference;
    - is *overfitting* where each of the last ``patience`` losses is above the lowest of all by z standard errors of
      that difference, and by more than the tolerance of it.

    Either takes ``patience`` evaluations since. What is not known to be below is not called so: a held-out set that is
    too small to tell says "undecided" for ever. z is the quantile of Student's t of probability ``false_alarm`` /
    (k (k - 1)²): the lowest loss is one of k - 1, and 1/(k (k - 1)) sums to 1 (Bonferroni). So each of the two is said
    with probability ``false_alarm`` at most in a whole run in which it is never true of the networks' expected losses,
    however often is evaluated, as far as means of paired differences are normal; and seldom even that, for all
    evaluations of the second half, or of the last, must agree.

    Args:
        tolerance: relative change of the loss that is taken for none.
        patience: evaluations that must agree.
        false_alarm: probability of either statement in a run where it is never true.

    Raises:
        TypeError, ValueError: no numbers, or out of their range.
    """

    tolerance: float = 0.01
    patience: int = 3
    false_alarm: float = 0.05

    def __post_init__(self) -> None:
        checks.fields(self)
        checks.count(self.patience, name="patience", most=SPACING)
        for name in ("tolerance", "false_alarm"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name):g}.")


@dataclass(frozen=True)
class Judgement:
    """What an evaluation says beside those before.

    Attributes:
        best_step: of the lowest loss so far, this one included.
        above_best, above_best_error: this loss less that one, and the standard error of the paired difference.
        before: the step of the lowest loss until half of the steps were done; None where there is none yet.
        fall, fall_error: that loss less the lowest since, and the standard error of the paired difference.
        verdict: see :class:`EarlyStopping`; "falling" where the fall is above 0 by z standard errors.
    """

    best_step: int
    above_best: float
    above_best_error: float
    before: int | None
    fall: float
    fall_error: float
    verdict: Verdict


@dataclass(frozen=True)
class HeldOutLoss(Judgement):
    """The held-out loss after a step.

    Attributes:
        step: optimizer steps done.
        loss: the training's own loss on the held-out samples: its density of times, as it was at the beginning, its
            weighting, without what an ``Uncertainty`` learns of it, and its coupling; NaN where the loss of a draw is
            not finite.
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
    """

    def __init__(self, design: Design, rule: EarlyStopping, *, samples: int, begin: int = 0) -> None:
        self._design, self._rule, self._freedom, self._begin = design, rule, samples - 1, begin
        self.count = 0
        self.steps: list[int] = []
        self._losses: list[Tensor] = []

    @property
    def best(self) -> int:
        """The step of the lowest loss so far, 0 before there is any."""
        means = [one.mean().item() for one in self._losses]
        return self.steps[min(range(len(means)), key=means.__getitem__)] if means else 0

    def judge(self, step: int, losses: Tensor, *, kept: bool = True) -> Judgement:
        """Compare an evaluation (M,) with those before; with ``kept`` it is one of them from now on."""
        steps, all_losses = [*self.steps, step], [*self._losses, losses]
        found = self._judged(self.count + 1, steps, all_losses)
        if kept:
            self.count += 1
            kept_ones = self._worth(steps, [one.mean().item() for one in all_losses])
            self.steps, self._losses = [steps[i] for i in kept_ones], [all_losses[i] for i in kept_ones]
        return found

    def _judged(self, k: int, steps: list[int], losses: list[Tensor]) -> Judgement:
        rule, now = self._rule, len(steps) - 1
        means = [one.mean().item() for one in losses]
        best = min(range(now + 1), key=means.__getitem__)
        above, above_error = self._design.mean(losses[now] - losses[best]) if best != now else (0.0, 0.0)
        until = [i for i, one in enumerate(steps) if self._begin <= one and 2 * one <= steps[now]]
        if not until:
            return Judgement(steps[best], above, above_error, None, 0.0, 0.0, "undecided")
        before = min(until, key=means.__getitem__)
        since = [i for i, one in enumerate(steps) if 2 * one > steps[now]]
        lowest = min(since, key=means.__getitem__)
        fall, fall_error = self._design.mean(losses[before] - losses[lowest])
        z = quantile(rule.false_alarm / (k * (k - 1) ** 2), self._freedom)
        last = range(max(0, now + 1 - rule.patience), now + 1)
        verdict: Verdict = "undecided"
        if best < last[0] and all(self._above(losses[i], losses[best], z) for i in last):
            verdict = "overfitting"
        elif len(since) >= rule.patience and all(self._not_below(losses[i], losses[before], z) for i in since):
            verdict = "converged"
        elif fall > z * fall_error:
            verdict = "falling"
        return Judgement(steps[best], above, above_error, steps[before], fall, fall_error, verdict)

    def _above(self, losses: Tensor, best: Tensor, z: float) -> bool:
        """Whether they are surely above the best, by more than the tolerance of it."""
        rise, error = self._design.mean(losses - best)
        return rise > z * error and rise > self._rule.tolerance * abs(best.mean().item())

    def _not_below(self, losses: Tensor, before: Tensor, z: float) -> bool:
        """Whether they are surely not below those before by the tolerance."""
        # one contrast of the draws: the loss of which the tolerance is a share is itself uncertain
        tolerance = math.copysign(self._rule.tolerance, losses.mean().item())
        margin, error = self._design.mean(before - losses - tolerance * losses)
        return margin + z * error < 0

    def _worth(self, steps: list[int], means: list[float]) -> list[int]:
        """Which evaluations later ones may be compared with, of those that do not stand closer than 1/32 of the steps.

        Of those before half way that is the lowest alone.
        """
        now = len(steps) - 1
        best = min(range(now + 1), key=means.__getitem__)
        until = [i for i, one in enumerate(steps) if 2 * one <= steps[now]]
        counted = [i for i in until if steps[i] >= self._begin]
        must = {best, *range(max(0, now + 1 - self._rule.patience), now + 1)}
        must |= {min(counted, key=means.__getitem__)} if counted else set()
        kept: list[int] = []
        for i in range(now + 1):
            near = bool(kept) and i < now and (steps[i + 1] - steps[kept[-1]]) * SPACING <= steps[now]
            if i in must or not (i in until or near):
                kept.append(i)
        return kept

    def state(self) -> tuple[dict[str, Any], Tensor]:
        """What a resumed run goes on with: counters, and the losses of the draws (n, M)."""
        losses = torch.stack(self._losses) if self._losses else torch.zeros(0, len(self._design.samples)).double()
        return {"count": self.count, "steps": list(self.steps)}, losses

    def load_state(self, count: int, steps: Sequence[int], losses: Tensor) -> None:
        """The inverse of ``state``."""
        self.count, self.steps = count, list(steps)
        self._losses = list(losses)
