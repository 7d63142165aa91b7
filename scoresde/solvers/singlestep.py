"""Single-step methods of order 2 to 4 for the probability-flow ODE: DPM-Solver, exponential and plain Runge-Kutta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scoresde.reverse import Reverse
from scoresde.solvers import tableaus
from scoresde.solvers.base import only_ode
from scoresde.solvers.frames import frame_of
from scoresde.solvers.stages import LOG_SNR, NOISE_LEVEL, SIGNAL_LEVEL, Scheme, Singlestep, angle


@dataclass(frozen=True)
class DPMSolver(Singlestep):
    order: Literal[1, 2, 3] = 2  # type: ignore[misc]
    predicts: Literal["data", "noise"] = "noise"

    def check(self, process: Reverse) -> None:
        only_ode(self, process)

    def scheme(self, process: Reverse) -> Scheme:
        tableau = {1: tableaus.EULER, 2: tableaus.MIDPOINT, 3: tableaus.DPM3}[self.order]
        return Scheme(frame_of(self.predicts, process.eta, 1.0), LOG_SNR, tableau)


@dataclass(frozen=True)
class ExponentialRungeKutta(Singlestep):
    order: Literal[2, 3, 4] = 4  # type: ignore[misc]
    predicts: Literal["data", "noise"] = "data"

    def check(self, process: Reverse) -> None:
        only_ode(self, process)

    def scheme(self, process: Reverse) -> Scheme:
        tableau = {2: tableaus.HEUN, 3: tableaus.KUTTA3, 4: tableaus.KROGSTAD}[self.order]
        return Scheme(frame_of(self.predicts, process.eta, 1.0), LOG_SNR, tableau)


@dataclass(frozen=True)
class RungeKutta(Singlestep):
    order: Literal[2, 3, 4] = 4  # type: ignore[misc]
    predicts: Literal["data", "noise", "velocity"] = "noise"
    sigma_data: float = 1.0

    def check(self, process: Reverse) -> None:
        only_ode(self, process)

    def scheme(self, process: Reverse) -> Scheme:
        tableau = {2: tableaus.MIDPOINT, 3: tableaus.KUTTA3, 4: tableaus.KROGSTAD}[self.order]
        variable = {"data": SIGNAL_LEVEL, "noise": NOISE_LEVEL, "velocity": angle(self.sigma_data)}[self.predicts]
        return Scheme(frame_of(self.predicts, process.eta, self.sigma_data), variable, tableau)
