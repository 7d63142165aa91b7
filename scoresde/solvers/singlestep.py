"""Single-step methods of order 1 to 4 for the probability-flow ODE: DPM-Solver, exponential and plain Runge-Kutta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from scoresde import checks
from scoresde.reverse import Reverse
from scoresde.solvers import tableaus
from scoresde.solvers.base import only_ode
from scoresde.solvers.frames import Predicts, frame_of
from scoresde.solvers.stages import LOG_SNR, NOISE_LEVEL, Scheme, Singlestep, angle


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
    predicts: Literal["data", "noise"] = "noise"

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
        predicts: which F is interpolated: x̂_0, ε̂, or the velocity between them.
        sigma_data: scale of the data, for "velocity".
    """

    predicts: Predicts = "data"
    sigma_data: float = 1.0
    order: ClassVar[int | None] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self.sigma_data, name="sigma_data")

    def check(self, process: Reverse) -> None:
        """η must be 0."""
        only_ode(self, process)

    def scheme(self, process: Reverse) -> Scheme:
        """In log-SNR."""
        return Scheme(frame_of(self.predicts, process.eta, self.sigma_data), LOG_SNR, tableaus.KROGSTAD)


@dataclass(frozen=True)
class RungeKutta(Singlestep):
    r"""Classical Runge-Kutta in the variable that leaves nothing but an integral of F: ρRK-DEIS, and on the circle.

    "noise": d(x/α)/dσ̃ = ε̂ with σ̃ = σ/α (Zhang & Chen 2023, arXiv:2204.13902, section 4 on ρRK). "velocity":
    d(x/N)/dθ = v̂ with tan θ = σ̃/σ_data, N = sqrt(α² σ_data² + σ²). Order 2 is Ralston's tableau (stage at 2/3), 3
    Heun's third-order one (1/3, 2/3), 4 the classical one; ``order`` evaluations a step.

    Args:
        order: order of convergence.
        predicts: which F, and with it the variable.
        sigma_data: scale of the data, for "velocity".
    """

    order: Literal[2, 3, 4] = 4  # type: ignore[misc]
    predicts: Literal["noise", "velocity"] = "noise"
    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self.sigma_data, name="sigma_data")

    def check(self, process: Reverse) -> None:
        """η must be 0."""
        only_ode(self, process)

    def scheme(self, process: Reverse) -> Scheme:
        """In σ̃ or θ."""
        tableau = {2: tableaus.RALSTON, 3: tableaus.THIRDS, 4: tableaus.KROGSTAD}[self.order]
        variable = NOISE_LEVEL if self.predicts == "noise" else angle(self.sigma_data)
        return Scheme(frame_of(self.predicts, process.eta, self.sigma_data), variable, tableau)
