"""The probability-flow ODE with step sizes found by the method, for each sample on its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from scoresde import checks
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.solvers.adams import Adams
from scoresde.solvers.adaptive_run import Adaptive, Line, Method
from scoresde.solvers.base import only_ode
from scoresde.solvers.circle import Circle
from scoresde.solvers.embedded import DORMAND_PRINCE, EmbeddedPair


@dataclass(frozen=True)
class AdaptiveODE(Adaptive):
    r"""An adaptive method for η = 0, in which every sample has its own time, step size, order and error.

    A sample's result does not depend on the batch it came in, beyond the rounding of the score. The ODE is integrated
    in the angle tan θ = σ/(α σ_data), for y = x / sqrt(α² + σ²/σ_data²) (:class:`~scoresde.solvers.circle.Circle`): the
    same under every schedule, not stiff, and over all noise levels a way of at most π/2. An error estimate is the root
    mean square over the event, held below atol + rtol |y| at each step, y being in units of x at the data; the error
    at the end is proportional to the tolerance, but not bounded by it.

    Only the ends of the grid set the run. States at its inner times come from the method's own interpolant, and asking
    for them changes nothing else. A grid that ends at σ = 0, where there is no score, is run to a noise level of about
    the tolerance's root, then straight on in θ. The score is asked at per-sample times t (B,), for the whole batch as
    long as one sample runs: those that have arrived wait at the last time. Gradients flow through the steps, step sizes
    taken as constants. No order is claimed: a grid does not set the steps.

    Args:
        method: "adams", variable order 1 to ``max_order``, one evaluation a step; or "dopri5", the embedded
            Runge-Kutta pair 5(4) of Dormand and Prince, six a step, which keeps no history.
        rtol: relative tolerance; taken no finer than 4 roundings of x's dtype.
        atol: absolute tolerance.
        max_steps: of a sample, rejected ones included. At this limit a run ends with a warning and a partial
            solution: ``complete`` is False, ``reached`` says how far each sample came, and a trajectory repeats the
            last state.
        first_step: length of the first step in θ; default found from the tolerance.
        shrink: the least factor between a step and the next.
        grow: the largest.
        safety: fraction of the step that the error would allow.
        max_order: of "adams", 1 to 8.
        sigma_data: standard deviation of the data, roughly.
        compact: ask the score only for the samples that still run. For scores that take any batch; not where a
            condition is bound for each row.

    Raises:
        ValueError: options out of range, or a grid that starts where α = 0.
        FloatingPointError: the score answered NaN or infinity and shorter steps did not help.
    """

    method: Literal["adams", "dopri5"] = "adams"
    max_order: int = 6
    default_eta: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in ("adams", "dopri5"):
            raise ValueError(f'method must be "adams" or "dopri5", got {self.method!r}.')
        checks.count(self.max_order, name="max_order")
        if self.max_order > 8:
            raise ValueError(f"max_order must be at most 8, got {self.max_order}: higher orders lose their stability.")

    def check(self, process: Reverse) -> None:
        """η must be 0."""
        only_ode(self, process)

    def _begin(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Line, Method]:
        # where the grid ends at σ = 0, a straight last step from here makes an error of about the tolerance
        circle = Circle(process, grid, self.sigma_data, x, math.sqrt(self.rtol + self.atol))
        y, p = circle.enter(x), circle.ends[0].expand(len(x))
        if self.method == "adams":
            return circle, Adams(circle, y, p, self.tolerance(x.dtype), self.max_order, self.safety)
        return circle, EmbeddedPair(circle, y, p, self.tolerance(x.dtype), DORMAND_PRINCE, self.safety)
