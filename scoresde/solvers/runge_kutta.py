"""Single-step methods: DPM-Solver, exponential, plain and stochastic Runge-Kutta, and Heun's method with churn::

    sample(score, shape, solver=Heun(), steps=25)                      # EDM's sampler
    sample(score, shape, solver=DPMSolver(order=3), steps=10)
    sample(score, shape, solver=StochasticRungeKutta(stages=4), steps=25)

A step takes an evaluation for each stage of the method, and nothing is remembered from one step to the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from scoresde import checks
from scoresde.models.combination import Coefficient, combine
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.sde.base import root
from scoresde.solvers import _tableaus as tableaus
from scoresde.solvers._frames import (
    Levels,
    NoiseFrame,
    Predicts,
    check_data_scale,
    data_scale,
    frame_of,
    levels,
)
from scoresde.solvers._rows import rows
from scoresde.solvers._stages import Scheme, Singlestep, StepRow, noisy_part, plan_stages, run_stages, to_data
from scoresde.solvers._variables import LOG_SNR, NOISE_LEVEL, angle
from scoresde.solvers.base import only_ode
from scoresde.solvers.planned import Planned

__all__ = ["DPMSolver", "ExponentialRungeKutta", "Heun", "RungeKutta", "StochasticRungeKutta"]


@dataclass(frozen=True)
class DPMSolver(Singlestep):
    r"""DPM-Solver-1, -2 and -3, single-step, in either prediction, with stages at equal distances in log-SNR.

    Order 1 is DDIM, 2 the exponential midpoint rule (r_1 = 1/2), 3 has stages at 1/3 and 2/3. Noise prediction: Lu et
    al. 2022 (arXiv:2206.00927), eq. 3.7, Alg. 1 and 2. Data prediction: DPM-Solver++(2S), Lu et al. 2022
    (arXiv:2211.01095), Alg. 1 with r = 1/2, and the same tableau at order 3. ``order`` evaluations a step.

    Args:
        order: order of convergence.
        predicts: which of ε̂ and x̂_0 is interpolated; at order 1 both are the same step.
    """

    order: Literal[1, 2, 3] = 2  # type: ignore[misc]
    predicts: Literal["x0", "noise"] = "noise"

    def check(self, process: Reverse) -> None:
        """η must be 0."""
        only_ode(self, process)

    def scheme(self, process: Reverse) -> Scheme:
        """In log-SNR."""
        tableau = (tableaus.EULER, tableaus.MIDPOINT, tableaus.THIRDS)[self.order - 1]
        return Scheme(frame_of(self.predicts, process.eta, 1.0), LOG_SNR, tableau)


@dataclass(frozen=True)
class ExponentialRungeKutta(Singlestep):
    r"""Krogstad's exponential Runge-Kutta of order 4 in log-SNR: four evaluations a step.

    Krogstad 2005 (doi:10.1016/j.jcp.2004.08.006), ETDRK4-B, with the exact linear part of the frame of F; its φ are the
    moments of the frame's kernel.

    Args:
        predicts: which F is interpolated: x̂_0, ε̂, or v between them.
        sigma_data: scale of the data, for "v"; default the score's own, else 1.
    """

    predicts: Predicts = "x0"
    sigma_data: float | None = None
    order: ClassVar[int | None] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_data_scale(self.sigma_data)

    def check(self, process: Reverse) -> None:
        """η must be 0."""
        only_ode(self, process)

    def scheme(self, process: Reverse) -> Scheme:
        """In log-SNR."""
        return Scheme(
            frame_of(self.predicts, process.eta, data_scale(self.sigma_data, process.score)), LOG_SNR, tableaus.KROGSTAD
        )


@dataclass(frozen=True)
class RungeKutta(Singlestep):
    r"""Classical Runge-Kutta in the variable that leaves nothing but an integral of F: ρRK-DEIS, and on the circle.

    "noise": d(x/α)/dσ̃ = ε̂ with σ̃ = σ/α (Zhang & Chen 2023, arXiv:2204.13902, section 4 on ρRK). "v":
    d(x/N)/dθ = v̂ with tan θ = σ̃/σ_data, N = sqrt(α² σ_data² + σ²). Order 2 is Ralston's tableau (stage at 2/3), 3
    Heun's third-order one (1/3, 2/3), 4 the classical one; ``order`` evaluations a step.

    Args:
        order: order of convergence.
        predicts: which F, and with it the variable.
        sigma_data: scale of the data, for "v"; default the score's own, else 1.
    """

    order: Literal[2, 3, 4] = 4  # type: ignore[misc]
    predicts: Literal["noise", "v"] = "noise"
    sigma_data: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_data_scale(self.sigma_data)

    def check(self, process: Reverse) -> None:
        """η must be 0."""
        only_ode(self, process)

    def scheme(self, process: Reverse) -> Scheme:
        """In σ̃ or θ."""
        tableau = {2: tableaus.RALSTON, 3: tableaus.THIRDS, 4: tableaus.KROGSTAD}[self.order]
        variable = NOISE_LEVEL if self.predicts == "noise" else angle(data_scale(self.sigma_data, process.score))
        return Scheme(
            frame_of(self.predicts, process.eta, data_scale(self.sigma_data, process.score)), variable, tableau
        )


@dataclass(frozen=True)
class StochasticRungeKutta(Singlestep):
    r"""Exponential Runge-Kutta for every η, exact in the linear part and in the law of the noise.

    Two or three stages at thirds of the step in log-SNR, each with the noise of one path up to its place, have weak
    order 2: noise is additive, so a tableau of order 2 needs no more than increments that are nested. (Drawn
    independently, they give order 1. Such methods: Gonzalez et al. 2023, arXiv:2305.14267.) Four stages have weak order
    3, with noises in two of them on opposite sides of the mean given the step's own; the conditions are in
    :data:`~scoresde.solvers._tableaus.ANTITHETIC`, and methods of this order go back to Debrabant 2010
    (doi:10.1007/s10543-010-0276-2). At η = 0 the orders are 2, 3 and 3. As many evaluations a step as stages, and two
    increments (three with three stages).

    Args:
        stages: evaluations a step.
        predicts: which F is interpolated: x̂_0, or v between x̂_0 and ε̂, for which the noise and linear part
            are exact in law on data N(0, σ_data² I).
        sigma_data: scale of the data, for "v"; default the score's own, else 1.
    """

    stages: Literal[2, 3, 4] = 2
    predicts: Literal["x0", "v"] = "x0"
    sigma_data: float | None = None
    strong_order: ClassVar[float | None] = 1.0
    default_eta: ClassVar[float] = 1.0

    @property
    def order(self) -> int:  # type: ignore[override]
        """2 with two stages, else 3."""
        return min(self.stages, 3)

    @property
    def weak_order(self) -> float:  # type: ignore[override]
        """3 with four stages, else 2."""
        return 3.0 if self.stages == 4 else 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_data_scale(self.sigma_data)

    def scheme(self, process: Reverse) -> Scheme:
        """In log-SNR."""
        tableau = {2: tableaus.RALSTON, 3: tableaus.THIRDS, 4: tableaus.ANTITHETIC}[self.stages]
        return Scheme(
            frame_of(self.predicts, process.eta, data_scale(self.sigma_data, process.score)), LOG_SNR, tableau
        )


class HeunRow(NamedTuple):
    """One step: the churn before it, as factors of x and of a fresh normal (None: no churn), then its two stages."""

    churn: tuple[Coefficient, ...] | None
    step: StepRow


@dataclass(frozen=True)
class Heun(Planned):
    r"""Heun's method for dx̃/dσ̃ = ε(x̃, σ̃), x̃ = x/α, σ̃ = σ/α; EDM's Algorithm 2 where α = 1, σ = t.

    In these variables the probability-flow ODE is the same under every schedule (Karras et al. 2022,
    arXiv:2206.00364, algorithm 1 and, with churn, 2), and so is this method at equal σ̃. With churn, each step first
    raises the noise level from σ̃ to (1 + γ) σ̃, or to its value at T if that is less, by adding fresh noise. Two
    evaluations a step, one where σ(s) = 0 (the slope there is 0/0).

    Args:
        churn: S_churn; γ = min(S_churn / steps, sqrt(2) - 1). 0 is the deterministic method of order 2.
        churn_min: S_tmin, the least σ̃ at which noise is added.
        churn_max: S_tmax, the largest.
        churn_noise: S_noise, scale of the added noise.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0
    order: ClassVar[int | None] = 2
    default_eta: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("churn_min", "churn_noise"):
            checks.not_negative(getattr(self, name), name=name)
        if not (self.churn >= 0 and self.churn_min <= self.churn_max):
            raise ValueError(
                "Heun needs churn >= 0, churn_noise >= 0 and churn_min <= churn_max; got "
                f"{self.churn}, {self.churn_noise}, {self.churn_min}, {self.churn_max}."
            )

    def check(self, process: Reverse) -> None:
        """η must be 0: the noise of this method is its churn."""
        only_ode(self, process)

    def draws_noise(self, process: Reverse) -> bool:
        """Whether churn > 0."""
        return self.churn > 0

    def plan(self, process: Reverse, grid: Tensor) -> Sequence[HeunRow]:
        """γ depends on the number of steps."""
        sde, (at, data) = process.sde, noisy_part(process.sde, grid)
        t, s = (at, at.at(slice(1, None))) if data is not None else (at.at(slice(0, -1)), at.at(slice(1, None)))
        gamma = min(self.churn / (len(grid) - 1), math.sqrt(2) - 1)
        churn: list[tuple[Coefficient, ...] | None] = [None] * len(t.h)
        if gamma:
            t, churn = self._raise(sde, t, gamma)
        scheme = Scheme(NoiseFrame(process.eta), NOISE_LEVEL, tableaus.HEUN)
        steps = plan_stages(scheme, sde, t.at(slice(0, len(s.h))), s, False)
        if data is not None:
            steps.append(to_data(scheme.frame, t.at(slice(-1, None)), data))
        return [HeunRow(*row) for row in zip(churn, steps, strict=True)]

    def advance(
        self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, row: Any, memory: Any
    ) -> tuple[Tensor, Any]:
        """Two evaluations."""
        if row.churn is not None:
            of_x, fresh = row.churn
            x = combine((of_x, x), (fresh, noise.normal(x)))
        return run_stages(process, x, noise, row.step), None

    def _raise(self, sde: SDE, t: Levels, gamma: float) -> tuple[Levels, list[tuple[Coefficient, ...] | None]]:
        """Where adding noise until σ/α is 1 + γ times as much leads, at most to T; and with which factors."""
        ratio, highest = t.sigma / t.alpha, (-0.5 * sde.log_snr(sde.T)).exp()
        up = sde.t_of_log_snr(-2 * torch.minimum((1 + gamma) * ratio, highest).log())
        raised = (self.churn_min <= ratio) & (ratio <= self.churn_max) & (up > t.t)
        up = torch.where(raised, up, t.t)
        scale, variance = sde.transition_coefficients(t.t, up)
        factors = rows(scale, self.churn_noise * root(variance))
        return levels(sde, up), [row if there else None for row, there in zip(factors, raised.tolist(), strict=True)]
