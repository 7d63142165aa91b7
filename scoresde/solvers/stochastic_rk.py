"""Stochastic exponential Runge-Kutta for the reverse SDE: weak order 2 and 3 in single steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from scoresde import checks
from scoresde.reverse import Reverse
from scoresde.solvers import tableaus
from scoresde.solvers.frames import frame_of
from scoresde.solvers.stages import LOG_SNR, Scheme, Singlestep


@dataclass(frozen=True)
class StochasticRungeKutta(Singlestep):
    r"""Exponential Runge-Kutta for every η, exact in the linear part and in the law of the noise.

    Two or three stages at thirds of the step in log-SNR, each with the noise of one path up to its place, have weak
    order 2: noise is additive, so a tableau of order 2 needs no more than increments that are nested. (Drawn
    independently, they give order 1. Such methods: Gonzalez et al. 2023, arXiv:2305.14267.) Four stages have weak order
    3, with noises in two of them on opposite sides of the mean given the step's own; the conditions are in
    :data:`~scoresde.solvers.tableaus.ANTITHETIC`, and methods of this order go back to Debrabant 2010
    (doi:10.1007/s10543-010-0276-2). At η = 0 the orders are 2, 3 and 3. As many evaluations a step as stages, and two
    increments (three with three stages).

    Args:
        stages: evaluations a step.
        predicts: which F is interpolated: x̂_0, or the velocity between x̂_0 and ε̂, for which the noise and linear part
            are exact in law on data N(0, σ_data² I).
        sigma_data: scale of the data, for "velocity".
    """

    stages: Literal[2, 3, 4] = 2
    predicts: Literal["data", "velocity"] = "data"
    sigma_data: float = 1.0
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
        checks.positive(self.sigma_data, name="sigma_data")

    def scheme(self, process: Reverse) -> Scheme:
        """In log-SNR."""
        tableau = {2: tableaus.RALSTON, 3: tableaus.THIRDS, 4: tableaus.ANTITHETIC}[self.stages]
        return Scheme(frame_of(self.predicts, process.eta, self.sigma_data), LOG_SNR, tableau)
