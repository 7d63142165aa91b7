"""Step sizes found by the method, for each sample on its own: the probability-flow ODE and the reverse SDE::

    sample(score, shape, solver=AdaptiveODE(rtol=1e-4))
    sample(score, shape, solver=AdaptiveSDE())

:class:`AdaptiveODE` and :class:`AdaptiveSDE` take tolerances in place of a number of steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from scoresde import checks
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.solvers._adams import Adams
from scoresde.solvers._adaptive_run import Adaptive, AdaptiveMethod, Line
from scoresde.solvers._adaptive_sde import HalfLogSNR, StochasticHeun
from scoresde.solvers._circle import Circle
from scoresde.solvers._embedded import DORMAND_PRINCE, EmbeddedPair
from scoresde.solvers._frames import data_scale
from scoresde.solvers._remembered import driver
from scoresde.solvers.base import only_ode

__all__ = ["AdaptiveODE", "AdaptiveSDE"]


@dataclass(frozen=True)
class AdaptiveODE(Adaptive):
    r"""An adaptive method for η = 0, in which every sample has its own time, step size, order and error.

    A sample's result does not depend on the batch it came in, beyond the rounding of the score. The ODE is integrated
    in the angle tan θ = σ/(α σ_data), for y = x / sqrt(α² + σ²/σ_data²) (:class:`~scoresde.solvers._circle.Circle`):
    the same under every schedule, not stiff, and over all noise levels a way of at most π/2. An error estimate is the
    root mean square over the event, held below atol + rtol |y| at each step, y being in units of x at the data; the
    error at the end is proportional to the tolerance, but not bounded by it.

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
        sigma_data: standard deviation of the data, roughly; default the score's own, else 1.
        compact: ask the score only for the samples that still run. For scores that take any batch; not where a
            condition is bound for each row.

    Raises:
        ValueError: options out of range.
        FloatingPointError: the score answered NaN or infinity and shorter steps did not help.
    """

    method: Literal["adams", "dopri5"] = "adams"
    max_order: int = 6
    default_eta: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.count(self.max_order, name="max_order")
        if self.max_order > 8:
            raise ValueError(f"max_order must be at most 8, got {self.max_order}: higher orders lose their stability.")

    def check(self, process: Reverse) -> None:
        """η must be 0."""
        only_ode(self, process)

    def begin(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Line, AdaptiveMethod]:
        # where the grid ends at σ = 0, a straight last step from here makes an error of about the tolerance
        scale = data_scale(self.sigma_data, process.score)
        circle = Circle(process, grid.to(x.device), scale, math.sqrt(self.rtol + self.atol))
        y, p = circle.enter(x), circle.ends[0].expand(len(x))
        if self.method == "adams":
            return circle, Adams(circle, y, p, self.tolerance(x.dtype), self.max_order, self.safety)
        return circle, EmbeddedPair(circle, y, p, self.tolerance(x.dtype), DORMAND_PRINCE, self.safety)


@dataclass(frozen=True)
class AdaptiveSDE(Adaptive):
    r"""An adaptive method for η > 0, in which every sample has its own time, step size, noise and error.

    An exponential pair in data prediction with the linear part and the noise exact, k = 1 + η², Δ = h_s - h_t,
    h = log(α/σ), N of variance 1 - e^{-2 η² Δ}::

        x̂_s = (σ_s/σ_t) e^{-η² Δ} x_t + α_s (1 - e^{-kΔ}) D_t + σ_s N                        D_s = E[x_0 | x̂_s]
        x_s = x̂_s + α_s (1 - (1 - e^{-kΔ})/(kΔ)) (D_s - D_t)

    that is exponential Euler, and Heun's method, of weak order 2 for additive noise; the difference is the error that
    is held below atol + rtol |y|, as in :class:`AdaptiveODE`. D_s serves the next step as D_t, so that a step
    costs one evaluation. Comparing the two on the same noise is due to Jolicoeur-Martineau et al. 2021
    (arXiv:2105.14080); there Euler's method and its Heun partner in t, one step size for each sample, no bridge.

    A rejected step is tried again on the same path: its noise is kept and bridged
    (:class:`~scoresde.solvers._remembered.Remembered`), so that rejecting steps on which the noise happened to be large
    does not thin out large noise. A :class:`~scoresde.BrownianNoise` is followed as it is given
    (:class:`~scoresde.solvers._remembered.Followed`).

    Only the ends of the grid set the run. States at its inner times are drawn given the steps around them. A grid that
    ends at σ = 0, where there is no score, is run to a noise level of about the tolerance and ends with E[x_0 | x]. The
    score is asked at per-sample times t (B,), for the whole batch as long as one sample runs. No order is claimed: a
    grid does not set the steps.

    Args:
        rtol: relative tolerance; taken no finer than 4 roundings of x's dtype.
        atol: absolute tolerance.
        max_steps: of a sample, rejected ones included; then a warning and a partial solution, as in
            :class:`~scoresde.solvers.AdaptiveODE`.
        first_step: length of the first step in log(α/σ), default 0.5.
        shrink: the least factor between a step and the next.
        grow: the largest.
        safety: fraction of the step that the error would allow.
        sigma_data: standard deviation of the data, roughly; default the score's own, else 1.
        compact: ask the score only for the samples that still run.

    Raises:
        ValueError: options out of range, η = 0; steps shorter than a given Brownian
            path resolves.
        FloatingPointError: the score answered NaN or infinity and shorter steps did not help.
    """

    rtol: float = 1e-2
    atol: float = 1e-2
    default_eta: ClassVar[float] = 1.0

    def check(self, process: Reverse) -> None:
        """η must not be 0."""
        if not process.eta > 0:
            raise ValueError(
                f"AdaptiveSDE integrates processes with noise, eta > 0; got eta = {process.eta:g}. Take AdaptiveODE."
            )

    def begin(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Line, AdaptiveMethod]:
        scale = data_scale(self.sigma_data, process.score)
        line = HalfLogSNR(process, grid, scale, x, self.rtol + self.atol)
        y = line.enter(x)
        return line, StochasticHeun(
            line, y, driver(noise, y.detach(), process.eta), self.tolerance(x.dtype), self.safety
        )
