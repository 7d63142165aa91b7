"""Heun's method in σ/α with optional churn: EDM's sampler, for every schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoresde import checks
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.sde.base import root
from scoresde.solvers.base import only_ode
from scoresde.solvers.frames import Levels, NoiseFrame, levels
from scoresde.solvers.linear import Coefficient, combine, rows
from scoresde.solvers.planned import Planned
from scoresde.solvers.stages import NOISE_LEVEL, Scheme, Step, noisy_part, plan_stages, run_stages, to_data
from scoresde.solvers.tableaus import HEUN


class Row(NamedTuple):
    """One step: the churn before it, as factors of x and of a fresh normal (None: no churn), then its two stages."""

    churn: tuple[Coefficient, ...] | None
    step: Step


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
        for name in ("churn", "churn_min", "churn_max", "churn_noise"):
            checks.number(getattr(self, name), name=name)
        if not (self.churn >= 0 and self.churn_noise >= 0 and self.churn_min <= self.churn_max):
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

    def plan(self, process: Reverse, grid: Tensor) -> Sequence[Row]:
        """γ depends on the number of steps."""
        sde, (at, data) = process.sde, noisy_part(process.sde, grid)
        t, s = (at, at.at(slice(1, None))) if data is not None else (at.at(slice(0, -1)), at.at(slice(1, None)))
        gamma = min(self.churn / (len(grid) - 1), math.sqrt(2) - 1)
        churn: list[tuple[Coefficient, ...] | None] = [None] * len(t.h)
        if gamma:
            t, churn = self._raise(sde, t, gamma)
        scheme = Scheme(NoiseFrame(process.eta), NOISE_LEVEL, HEUN)
        steps = plan_stages(scheme, sde, t.at(slice(0, len(s.h))), s, False)
        if data is not None:
            steps.append(to_data(scheme.frame, t.at(slice(-1, None)), data))
        return [Row(*row) for row in zip(churn, steps, strict=True)]

    def advance(
        self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, row: Any, memory: Any
    ) -> tuple[Tensor, Any]:
        """Two evaluations."""
        if row.churn is not None:
            keep, spread = row.churn
            x = combine((keep, x), (spread, noise.normal(x)))
        return run_stages(process, x, noise, row.step), None

    def _raise(self, sde: SDE, t: Levels, gamma: float) -> tuple[Levels, list[tuple[Coefficient, ...] | None]]:
        """Where adding noise until σ/α is 1 + γ times as much leads, at most to T; and with which factors."""
        ratio, highest = t.sigma / t.alpha, (-0.5 * sde.log_snr(sde.T)).exp()
        up = sde.t_of_log_snr(-2 * torch.minimum((1 + gamma) * ratio, highest).log())
        raised = (self.churn_min <= ratio) & (ratio <= self.churn_max) & (up > t.t)
        up = torch.where(raised, up, t.t)
        keep, variance = sde.transition_coefficients(t.t, up)
        factors = rows(keep, self.churn_noise * root(variance))
        return levels(sde, up), [row if there else None for row, there in zip(factors, raised.tolist(), strict=True)]
