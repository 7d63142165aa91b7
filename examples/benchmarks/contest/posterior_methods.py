"""What posteriors.py compares: problems with exact posteriors, and every way to sample them.

    task = Task(SETTINGS["plane-coordinate"](), score, y, samples=200, particles=0, budget=50, seed=0)
    x = METHODS["PiGDM"](task)

A problem or a method is added by naming it in :data:`SETTINGS` or :data:`METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import scoresde as ss
from contest.problems import digits64, mixture2d
from scoresde import grids
from scoresde.guidance import TwistedGuidance
from scoresde.inverse import (
    DiffPIR,
    Downsample,
    LinearOperator,
    Mask,
    Matrix,
    Measurement,
    RePaint,
    Replacement,
    dps,
    moment_matching,
    pigdm,
)
from scoresde.models.combination import Combination
from scoresde.models.score import DerivedScore
from scoresde.particles import twisted
from scoresde.problems import GaussianMixture
from scoresde.solvers import Ancestral, Multistep, Solver, SpectralMultistep

SDE = ss.VP(0.1, 20.0, t_min=1e-3)


@dataclass(frozen=True)
class Setting:
    """A prior and what is measured of it, with noise_std."""

    mixture: GaussianMixture
    operator: LinearOperator
    noise_std: float


def _unit_rows(rows: int, event: tuple[int, ...], seed: int) -> Matrix:
    a = torch.randn(rows, *event, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).flatten(1)
    return Matrix(a / a.norm(dim=1, keepdim=True), event)


def _left_half() -> Mask:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[..., :4] = True
    return Mask(mask)


SETTINGS: Mapping[str, Callable[[], Setting]] = {
    "plane-coordinate": lambda: Setting(mixture2d(), Mask(torch.tensor([True, False])), 0.1),
    "plane-projection": lambda: Setting(mixture2d(), _unit_rows(1, (2,), 0), 0.1),
    "digits-inpainting": lambda: Setting(digits64((1, 8, 8)), _left_half(), 0.1),
    "digits-downsampling": lambda: Setting(digits64((1, 8, 8)), Downsample(2, (1, 8, 8)), 0.1),
    "digits-projections": lambda: Setting(digits64((1, 8, 8)), _unit_rows(16, (1, 8, 8), 0), 0.1),
}


class Counted(DerivedScore):
    """A score that counts its evaluations and the backward passes through it, those that run as one as one."""

    def __init__(self, score: ss.Score) -> None:
        self.score, self.nfe, self.gradients = score, 0, 0

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        self.nfe += 1
        out = self.score.evaluate(x, t, wanted)
        if out.requires_grad:
            out.register_hook(self._count)  # type: ignore[no-untyped-call, unused-ignore]
        return out

    def _count(self, gradient: Tensor) -> None:
        self.gradients += 1


@dataclass(frozen=True)
class Task:
    """What a method is given: the score, y (n, *measured), how many samples of each, evaluations allowed."""

    setting: Setting
    score: ss.Score
    y: Tensor
    samples: int
    particles: int
    budget: int
    seed: int

    def repeated(self, count: int) -> Measurement:
        """The measurements, each ``count`` times."""
        y = self.y.repeat_interleave(count, 0)
        return Measurement(y, self.setting.operator, self.setting.noise_std)

    def run(self, score: ss.Score, solver: Solver | None, steps: int, eta: float | None = None) -> Tensor:
        """(n, samples, *event) of a solver."""
        shape = (len(self.y) * self.samples, *self.setting.mixture.event)
        noise = ss.IndependentNoise(self.seed)
        x = ss.sample(score, shape, solver=solver, steps=max(1, steps), eta=eta, noise=noise, dtype=torch.float64).x
        return x.reshape(len(self.y), self.samples, *shape[1:])


Method = Callable[[Task], Tensor]
"""Samples (n, samples, *event)."""
Twisted = Callable[[ss.Score, Measurement], TwistedGuidance]


def _stepping(make: Callable[[Measurement], Solver], each: int = 1) -> Method:
    """A solver with ``each`` evaluations a step, and one in the end."""
    return lambda task: task.run(task.score, make(task.repeated(task.samples)), (task.budget - 1) // each)


def _guided(make: Twisted, solver: Solver | None = None, eta: float | None = None) -> Method:
    """A likelihood score; with its default solver unless told otherwise."""

    def run(task: Task) -> Tensor:
        return task.run(make(task.score, task.repeated(task.samples)), solver, task.budget - 1, eta)

    return run


def _particles(make: Twisted, moves: int = 0) -> Method:
    """Particles; with Langevin moves at each time, in the frame of v and within the same evaluations."""
    frame: dict[str, Any] = {"solver": Multistep(1, correct=False, predicts="v"), "grid": grids.spectral}

    def run(task: Task) -> Tensor:
        n, event = len(task.y), task.setting.mixture.event
        found = twisted(
            make(task.score, task.repeated(task.particles)),
            (n * task.particles, *event),
            groups=n,
            steps=(task.budget - 1 + moves) // (1 + moves),  # steps + 1 + moves (steps - 1) evaluations
            moves=moves,
            noise=ss.IndependentNoise(task.seed),
            dtype=torch.float64,
            **(frame if moves else {}),
        )
        return found.draw(task.samples, ss.IndependentNoise(task.seed + 1)).reshape(n, task.samples, *event)

    return run


def _dps(scale: float) -> Twisted:
    return lambda score, m: dps(score, m, scale=scale)


def _moments(score: ss.Score, m: Measurement) -> TwistedGuidance:
    return moment_matching(score, m, chunk=1)  # one backward pass at a time, so that they are counted


METHODS: Mapping[str, Method] = {
    "replacement": _stepping(Replacement),
    "RePaint, 5 passes": _stepping(lambda m: RePaint(m, resamplings=5), each=5),
    "DiffPIR": _stepping(DiffPIR),
    "DPS": _guided(_dps(1.0), Ancestral()),
    "DPS, scale 0.3": _guided(_dps(0.3), Ancestral()),
    "PiGDM": _guided(pigdm, SpectralMultistep()),
    "PiGDM, eta = 1": _guided(pigdm, Ancestral()),
    "moment matching": _guided(_moments, SpectralMultistep()),
    "moment matching, eta = 1": _guided(_moments, Ancestral()),
    "particles, PiGDM": _particles(pigdm),
    "particles, moment matching": _particles(_moments),
    "particles with moves, PiGDM": _particles(pigdm, moves=3),
    "particles with moves, moment matching": _particles(_moments, moves=3),
}
