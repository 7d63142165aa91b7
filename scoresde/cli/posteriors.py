"""How measurements are answered: every method of scoresde.inverse, and particles, in one call that counts its cost.

    answers = answer(prior, "pigdm", measurement)
    answers.x, answers.nfe, answers.gradients

A method is added by naming it in :data:`METHODS`, as a function of prior, score and measurement: what to follow, by
which solver, in how many steps.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

import scoresde as ss
from scoresde import grids
from scoresde.cli.costs import in_batches
from scoresde.guidance import TwistedGuidance
from scoresde.inverse import DiffPIR, Measurement, RePaint, Replacement, dps, moment_matching, pigdm
from scoresde.models.combination import Combination
from scoresde.models.score import DerivedScore
from scoresde.particles import twisted
from scoresde.solvers import Ancestral, Multistep
from scoresde.spectrum import Spectrum

FollowedScore = tuple[ss.Score, ss.Solver, int]
"""The score to follow, the solver, its steps."""

PASSES = 5  # of RePaint over each step; it takes that many times fewer steps
# Of moment matching's conjugate gradients: few, as in Rozet et al. A network's covariance is neither symmetric nor
# positive, and more iterations follow that error: on digits 2 did as well as 3, and 5 worse.
ITERATIONS = 2


class Counted(DerivedScore):
    """A score that counts evaluations, and gradients through them, in rows: one for each sample in a batch."""

    def __init__(self, score: ss.Score) -> None:
        self.score, self.evaluations, self.gradients = score, 0, 0

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        self.evaluations += len(x)
        answer = self.score.evaluate(x, t, wanted)
        if answer.requires_grad:
            answer.register_hook(self._passed)  # type: ignore[no-untyped-call, unused-ignore]
        return answer

    def _passed(self, gradient: Tensor) -> None:
        self.gradients += len(gradient)


@dataclass(frozen=True)
class PriorModel:
    """What is known before measuring, and how it is asked.

    Attributes:
        score: without conditions. event: shape of one sample.
        sigma_data: the deviation of the data that ΠGDM takes in every direction.
        samples: for each measurement. particles: the same, where samples are drawn of weighted ones.
        steps: evaluations of the score for a sample, but for the last one that denoises.
        dps_scale: how far each step of DPS pulls. batch_size: rows at once. seed: of all noise. device: of it all.
    """

    score: ss.Score
    sigma_data: float
    event: tuple[int, ...]
    samples: int
    particles: int
    steps: int
    dps_scale: float
    batch_size: int
    seed: int
    device: torch.device


@dataclass(frozen=True)
class Answers:
    """Samples of each posterior (N, S, *event) on the CPU, their cost for one sample (or particle), and notes."""

    x: Tensor
    nfe: float
    gradients: float
    seconds: float
    notes: dict[str, float] = field(default_factory=dict)


def answer(prior: PriorModel, method: MethodName, measurement: Measurement) -> Answers:
    """Samples for each of the measurements, y (N, *measured)."""
    score = Counted(prior.score)
    start = time.perf_counter()
    notes: dict[str, float] = {}
    with warnings.catch_warnings():
        # few iterations are meant to stop short
        warnings.filterwarnings("ignore", "conjugate gradients stopped", RuntimeWarning)
        if method == PARTICLES:
            x, notes = _particles(prior, score, measurement)
        else:
            x = _samples(prior, score, METHODS[method], measurement)
    seconds = time.perf_counter() - start
    rows = len(measurement.y) * (prior.particles if method == PARTICLES else prior.samples)
    return Answers(x.cpu(), score.evaluations / rows, score.gradients / rows, seconds, notes)


def _samples(
    prior: PriorModel,
    score: Counted,
    method: Callable[[PriorModel, ss.Score, Measurement], FollowedScore],
    measurement: Measurement,
) -> Tensor:
    """Row i·S + k is sample k for measurement i; it depends on the seed and its row alone."""
    y = measurement.y.repeat_interleave(prior.samples, 0)
    parts = []
    for rows in in_batches(len(y), prior.batch_size):
        some = Measurement(y[rows], measurement.operator, measurement.noise_std)
        followed, solver, steps = method(prior, score, some)
        solution = ss.sample(
            followed,
            (len(some.y), *prior.event),
            solver=solver,
            steps=steps,
            noise=ss.PerSampleNoise(prior.seed, first=rows.start),
            device=prior.device,
        )
        parts.append(solution.x)
    return torch.cat(parts).reshape(len(measurement.y), prior.samples, *prior.event)


def _particles(prior: PriorModel, score: Counted, measurement: Measurement) -> tuple[Tensor, dict[str, float]]:
    """Samples of weighted particles over ΠGDM; the least effective sample size on the way, and families at the end."""
    groups = max(1, prior.batch_size // prior.particles)
    parts, least, families = [], [], []
    for rows in in_batches(len(measurement.y), groups, "measurement"):
        y = measurement.y[rows]
        some = Measurement(y.repeat_interleave(prior.particles, 0), measurement.operator, measurement.noise_std)
        noise = ss.PerSampleNoise(prior.seed, first=rows.start * prior.particles)
        found = twisted(
            _pigdm(prior, score, some),
            (len(some.y), *prior.event),
            groups=len(y),
            solver=Multistep(1, correct=False, predicts="v", sigma_data=prior.sigma_data),
            grid=partial(grids.spectral, spectrum=Spectrum.assumed(prior.event, prior.sigma_data)),
            steps=prior.steps,
            noise=noise,
            device=prior.device,
        )
        parts.append(found.draw(prior.samples, noise).reshape(len(y), prior.samples, *prior.event))
        least.append(found.effective.min(0).values)
        families.append(found.distinct.double())
    notes = {
        "least_effective_sample_size": float(torch.cat(least).median()),
        "families": float(torch.cat(families).median()),
    }
    return torch.cat(parts), notes


def _pigdm(prior: PriorModel, score: ss.Score, measurement: Measurement) -> TwistedGuidance:
    return pigdm(score, measurement, sigma_data=prior.sigma_data)


def _dps(prior: PriorModel, score: ss.Score, measurement: Measurement) -> FollowedScore:
    # dps means its scale for each of 1000 steps; here it is that of each step, however few there are.
    scale = prior.dps_scale * prior.steps / 1000
    return dps(score, measurement, scale=scale, step="norm"), Ancestral(), prior.steps


def _moments(prior: PriorModel, score: ss.Score, measurement: Measurement) -> FollowedScore:
    found = moment_matching(score, measurement, covariance="cg", tolerance=0.01, iterations=ITERATIONS)
    return found, Ancestral(), prior.steps


METHODS: Mapping[str, Callable[[PriorModel, ss.Score, Measurement], FollowedScore]] = {
    "replacement": lambda prior, score, m: (score, Replacement(m), prior.steps),
    "repaint": lambda prior, score, m: (score, RePaint(m, resamplings=PASSES), max(1, prior.steps // PASSES)),
    "dps": _dps,
    # Likelihood scores are stiff: the noise of ancestral steps forgets what long ones do wrong, where at equal
    # evaluations the solvers of the ODE were 1 to 4 dB worse on digits.
    "pigdm": lambda prior, score, m: (_pigdm(prior, score, m), Ancestral(), prior.steps),
    "moment-matching": _moments,
    "diffpir": lambda prior, score, m: (score, DiffPIR(m), prior.steps),
}

PARTICLES = "particles"  # weighted ones over ΠGDM, which are drawn together and not row by row
NAMES = (*METHODS, PARTICLES)
WITH_GRADIENTS = ("dps", "pigdm", "moment-matching", PARTICLES)
"""Those that take the gradient of every evaluation."""
if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[NAMES]
