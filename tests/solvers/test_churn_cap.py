"""Heun's churn never raises the noise level above that at T, where the schedule ends."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde import grids
from scoresde.models import as_score
from scoresde.noise import IndependentNoise
from scoresde.reverse import Reverse
from scoresde.sde import EDM
from scoresde.solvers import Heun


def test_churn_is_capped_at_the_end_of_the_schedule() -> None:
    sde, asked = EDM(), []

    def score(x: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t))
        return -x / (1 + t**2)

    grid = grids.karras(sde, 8)
    x = sde.prior_sample((2, 3), 0, dtype=torch.float64)
    Heun(churn=100.0).solve(Reverse(as_score(score, sde), 0.0), x, grid, IndependentNoise(0))
    assert asked[0] == sde.T  # the textbook, which has no end of the schedule, would ask at sqrt(2) T
    # later steps have room, and are raised by the largest factor, sqrt(2): exact but for rounding
    assert abs(asked[4] / (2**0.5 * grid[2].item()) - 1) < 1e-12
