"""A run of torchdiffeq as seen from inside: which samples are lost, how far it has come, when it is to stop.

torchdiffeq has one step size for the whole batch, no limit, and no way to go on when a sample's slope is NaN. What is
here is the function that it integrates, and the norm by which it judges a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.solvers.incomplete import each, finite_rows, shrank

Parts = tuple[Tensor, ...]
Heard = Callable[[int, Tensor, Parts], None]
"""(steps tried, time reached (), state there): what is told whenever the run has come further."""

# Of the way: steps that are shorter than this because a slope is NaN will not find it finite any more.
_SHORTEST = 1e-10


class StopRun(Exception):
    """Out of torchdiffeq's loop: at the limit, or with no sample left."""


class Watched:
    """The right-hand side of the ODE for torchdiffeq, with its callbacks.

    A sample whose slope is NaN or infinite however short the step is *lost*: its slope is 0 from then on, and it no
    longer counts in the norm, so that the others go on as without it. Methods that do not judge their steps lose a
    sample at once.

    Args:
        field: field(t, *state) -> a tuple.
        state: parts (B, ...).
        times: where the state is wanted, monotone, on the device of the state.
        judges: whether the method judges its steps and may take them back.
        tells: whether it tells of its steps.
        most: steps tried after which the run stops, rejected ones included; evaluations if it does not tell of steps.
        heard: told whenever the run has come further.
        keep: whether to note where the state was at inner times, for a run that does not come to its end.
    """

    def __init__(
        self,
        field: Callable[..., Parts],
        state: Parts,
        times: Tensor,
        *,
        judges: bool,
        tells: bool,
        most: int | None,
        heard: Heard | None,
        keep: bool,
    ) -> None:
        self._field, self._judges, self._heard, self._most, self._keep = field, judges, heard, most, keep
        self._tells, self._single, self._begun = tells, len(state) == 1, False
        self._times = times.detach()
        self._low, self._high = self._times.aminmax()
        self._shortest = _SHORTEST * float(self._high - self._low)
        self.steps = self.evaluations = self._backwards = 0
        self.t, self.state = self._times[0], state
        self.lost = torch.zeros(len(state[0]), dtype=torch.bool, device=state[0].device)
        self.lost_at = self.t.expand(len(state[0]))
        self._lose(~_finite(state), look=True)
        if self._any_lost:
            self.state = tuple(torch.where(each(self.lost, part), 0.0, part) for part in state)
        self.start = self.state
        self.attempt = torch.zeros_like(self.lost)
        """(B,) whose slopes have not been finite since the last step began."""
        self.passed = [self.start]
        """The state at the first of the times, and the last known before each of those passed since."""
        self.outside = False
        """Whether the score or a listener is running: what they raise is theirs."""
        # torchdiffeq finds these by name, and warns of those that a method does not know
        if tells:
            self.callback_step, self.callback_step_adjoint = self._before_step, self._before_step_back
        if judges:
            self.callback_reject_step = self._rejected

    def __call__(self, t: Tensor, y: Any) -> Any:
        """The slope."""
        self.evaluations += 1
        if not self._tells and self._most is not None and self.evaluations > self._most:
            raise StopRun
        if self._judges and checks.readable(t) and t.isnan().item():
            raise StopRun  # by a norm of the caller's
        # the search for a first step may look past the end, where the SDE is not defined
        t, parts = t.clamp(self._low, self._high), (y,) if self._single else y
        self.outside = True
        slopes = tuple(slope.to(parts[0].dtype) for slope in self._field(t, *parts))
        self.outside = False
        bad = ~_finite(slopes)
        if self._judges and self.evaluations > 1:
            self.attempt = self.attempt | bad
        else:  # no shorter step to try
            self._lose(bad, look=self._judges)
        slopes = tuple(torch.where(each(self.lost, slope), 0.0, slope) for slope in slopes)
        return slopes[0] if self._single else slopes

    def norm(self, y: Any) -> Tensor:
        """Root mean square, the largest of the parts; infinite where NaN, so that shorter steps are tried."""
        return torch.stack([self._rms(part.detach()) for part in ((y,) if self._single else y)]).max()

    def _rms(self, part: Tensor) -> Tensor:
        square, out = part.abs().pow(2), self.lost
        if not self._begun:  # torchdiffeq looks for a first step, which NaN would make one of length 0
            out = out | ~finite_rows(part)
        if self._any_lost or not self._begun:
            count = (~out).sum() * (part.numel() // len(part))
            value = (torch.where(each(out, square), 0.0, square).sum() / count.clamp_min(1)).sqrt()
        else:
            value = square.mean().sqrt()
        return torch.where(value.isnan(), torch.inf, value)

    def _lose(self, rows: Tensor, *, look: bool) -> None:
        self.lost_at = torch.where(rows & ~self.lost, self.t, self.lost_at)
        self.lost = self.lost | rows
        if look:
            self._any_lost = bool(self.lost.any())

    def lose_the_attempt(self) -> None:
        """The samples whose slopes were not finite in the step tried last are lost."""
        self._lose(self.attempt | ~_finite(self.state), look=True)

    def _before_step(self, t: Tensor, y: Any, dt: Tensor) -> None:
        self._begun, self.attempt = True, torch.zeros_like(self.lost)
        if self._keep:
            ahead = ((self._times - t) * (self._times[-1] - self._times[0]).sign()).tolist()
            while len(self.passed) < len(ahead) and ahead[len(self.passed)] < 0:
                self.passed.append(self.state)
        # a method that judges has looked at numbers already: looking at one more does not stall a device
        further = self.steps > 0 and (not self._judges or bool(t != self.t))
        self.t, self.state = t.detach(), (y,) if self._single else tuple(y)
        if further and self._heard is not None:
            self.outside = True
            self._heard(self.steps, self.t, self.state)
            self.outside = False
        if self._judges and self._any_lost and bool(self.lost.all()):
            raise StopRun
        if self._most is not None and self.steps >= self._most:
            raise StopRun
        self.steps += 1

    def _rejected(self, t: Tensor, y: Any, dt: Tensor) -> None:
        if float(dt) < self._shortest:
            self._lose(self.attempt, look=True)

    def _before_step_back(self, t: Tensor, y: Any, dt: Tensor) -> None:
        if bool(t.abs() == self._times[-1].abs()):  # torchdiffeq turns the sign of falling times
            self._backwards = 0
        self._backwards += 1
        why = ""
        if self._most is not None and self._backwards > self._most:
            why = f"max_steps = {self._most} was reached"
        elif bool(t + dt == t):
            why = shrank()
        elif not all(bool(part.isfinite().all()) for part in y):
            why = "it became NaN or infinite"
        if why:
            raise RuntimeError(
                f"the adjoint ODE, by which gradients are had, did not come to its end: {why}. Loosen rtol and atol, "
                "raise max_steps, look at the score, or take adjoint=False."
            )


def _finite(parts: Parts) -> Tensor:
    """(B,) whether all parts of a sample are."""
    return torch.stack([finite_rows(part) for part in parts]).all(0)
