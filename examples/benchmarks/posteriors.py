"""How far the samplers for inverse problems are from exact posteriors, which mixtures have in closed form.

    python examples/benchmarks/posteriors.py --problems plane-coordinate plane-projection --markdown runs/posteriors.md

For each of several unknowns x0* and their measurements y, every method draws samples; their energy distance to exact
ones is divided by that between two exact sets of the same sizes, the floor. Coverage and calibration are those of the
samples' ranks against further exact draws for the same y, which are unknowns as good as x0*. Cells that are in --out
already are not measured again.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import contest
import problems
import torch
import tyro
from torch import Tensor

import scoresde as ss
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
from scoresde.metrics import calibration_error, coverage, energy_distance
from scoresde.problems import GaussianMixture
from scoresde.solvers import Solver

SDE = ss.VP(0.1, 20.0, t_min=1e-3)
TRUTHS = 50  # exact draws for each y that coverage is counted with


@dataclass(frozen=True)
class Setting:
    """A prior and what is measured of it, with noise_std."""

    mixture: GaussianMixture
    operator: LinearOperator
    noise_std: float


def _unit_rows(rows: int, event: tuple[int, ...], seed: int) -> Matrix:
    a = torch.randn(rows, *event, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).flatten(1)
    return Matrix(a / a.norm(dim=1, keepdim=True), event)


@functools.cache
def _digits() -> GaussianMixture:
    """digits64 as pictures (1, 8, 8)."""
    flat = problems.digits64()
    return GaussianMixture(flat.weights, flat.means.reshape(-1, 1, 8, 8), flat._covariances())


def _left_half() -> Mask:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[..., :4] = True
    return Mask(mask)


SETTINGS: dict[str, Callable[[], Setting]] = {
    "plane-coordinate": lambda: Setting(problems.mixture2d(), Mask(torch.tensor([True, False])), 0.1),
    "plane-projection": lambda: Setting(problems.mixture2d(), _unit_rows(1, (2,), 0), 0.1),
    "digits-inpainting": lambda: Setting(_digits(), _left_half(), 0.1),
    "digits-downsampling": lambda: Setting(_digits(), Downsample(2, (1, 8, 8)), 0.1),
    "digits-projections": lambda: Setting(_digits(), _unit_rows(16, (1, 8, 8), 0), 0.1),
}


@dataclass
class Config:
    """Compare samplers for inverse problems with exact posteriors."""

    problems: tuple[str, ...] = tuple(SETTINGS)
    """Which problems."""
    methods: tuple[str, ...] = ()
    """Which methods; all where none is named."""
    nfe: tuple[int, ...] = (50, 200)
    """Score evaluations allowed for a sample."""
    measurements: int = 8
    """Pairs of an unknown and its measurement."""
    samples: int = 200
    """Samples for each measurement."""
    particles: int = 2000
    """Particles for each measurement, of which the samples are drawn, where a method has such."""
    seed: int = 0
    """Of all randomness."""
    out: Path = contest.CACHE / "posteriors.jsonl"
    """File of the results; what it holds is not measured again."""
    markdown: Path | None = None
    """File for the tables."""
    measure: bool = True
    """Whether to measure what is missing; else the tables show what there is."""
    quick: bool = False
    """Two measurements, 20 samples, 12 evaluations, the plane: to see that all of it runs."""


@dataclass(frozen=True)
class Cell:
    """What one method came to on one problem.

    Attributes:
        problem, method: their names.
        budget: evaluations of the score allowed.
        nfe: evaluations used for a sample or particle.
        gradients: backward passes through the score.
        particles: for each measurement; 0 where a method has none.
        measurements, samples, seed: sizes and seed.
        distance: mean energy distance to exact samples.
        floor: the same between exact sets of the same sizes.
        ratio: distance / floor.
        coverage50, coverage90: share of truths in the central credible intervals.
        calibration: calibration error of all coordinates together.
        seconds: of the sampling.
    """

    problem: str
    method: str
    budget: int
    nfe: int
    gradients: int
    particles: int
    measurements: int
    samples: int
    seed: int
    distance: float
    floor: float
    ratio: float
    coverage50: float
    coverage90: float
    calibration: float
    seconds: float

    @property
    def key(self) -> tuple[object, ...]:
        """What it is the answer to."""
        return (self.problem, self.method, self.budget, self.particles, self.measurements, self.samples, self.seed)


class Counted:
    """A score that counts its evaluations and the backward passes through it, those that run as one as one."""

    def __init__(self, score: ss.Score) -> None:
        self.score, self.nfe, self.gradients = score, 0, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.nfe += 1
        out = self.score(x, t)
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
        x = ss.sample(
            SDE, score, shape, solver=solver, steps=max(1, steps), eta=eta, noise=ss.IndependentNoise(self.seed),
            dtype=torch.float64,
        ).x  # fmt: skip
        return x.reshape(len(self.y), self.samples, *shape[1:])


Method = Callable[[Task], Tensor]
"""Samples (n, samples, *event)."""
Twisted = Callable[[ss.Score, Measurement], TwistedGuidance]


def _stepping(make: Callable[[Measurement], Solver], each: int = 1) -> Method:
    """A solver with ``each`` evaluations a step, and one in the end."""
    return lambda task: task.run(task.score, make(task.repeated(task.samples)), (task.budget - 1) // each)


def _guided(make: Twisted, solver: Solver | None = None, eta: float | None = None) -> Method:
    """A likelihood score; with the default solver unless told otherwise."""

    def run(task: Task) -> Tensor:
        return task.run(make(task.score, task.repeated(task.samples)), solver, task.budget - 1, eta)

    return run


def _particles(make: Twisted) -> Method:
    def run(task: Task) -> Tensor:
        from scoresde.particles import twisted

        n, event, drawn = len(task.y), task.setting.mixture.event, ss.IndependentNoise(task.seed)
        guidance = make(task.score, task.repeated(task.particles))
        shape = (n * task.particles, *event)
        found = twisted(SDE, guidance, shape, groups=n, steps=task.budget - 1, noise=drawn, dtype=torch.float64)
        return found.draw(task.samples, ss.IndependentNoise(task.seed + 1)).reshape(n, task.samples, *event)

    return run


def _moving(make: Twisted, moves: int = 3) -> Method:
    """Particles in the velocity's frame, with Langevin moves at each time; all within the same evaluations."""

    def run(task: Task) -> Tensor:
        from scoresde.particles import VelocityStep, twisted

        n, event, drawn = len(task.y), task.setting.mixture.event, ss.IndependentNoise(task.seed)
        guidance = make(task.score, task.repeated(task.particles))
        steps = (task.budget - 1 + moves) // (1 + moves)  # steps + 1 + moves (steps - 1) evaluations
        found = twisted(
            SDE, guidance, (n * task.particles, *event), groups=n, kernel=VelocityStep(), steps=steps,
            grid=ss.grids.balanced, moves=moves, noise=drawn, dtype=torch.float64,
        )  # fmt: skip
        return found.draw(task.samples, ss.IndependentNoise(task.seed + 1)).reshape(n, task.samples, *event)

    return run


def _dps(scale: float) -> Twisted:
    return lambda score, m: dps(score, SDE, m, scale=scale)


def _pigdm(score: ss.Score, m: Measurement) -> TwistedGuidance:
    return pigdm(score, SDE, m)


def _moments(score: ss.Score, m: Measurement) -> TwistedGuidance:
    return moment_matching(score, SDE, m, chunk=1)  # one backward pass at a time, so that they are counted


METHODS: dict[str, Method] = {
    "replacement": _stepping(Replacement),
    "RePaint, 5 passes": _stepping(lambda m: RePaint(m, resamplings=5), each=5),
    "DiffPIR": _stepping(DiffPIR),
    "DPS": _guided(_dps(1.0), ss.Ancestral()),
    "DPS, scale 0.3": _guided(_dps(0.3), ss.Ancestral()),
    "PiGDM": _guided(_pigdm),
    "PiGDM, eta = 1": _guided(_pigdm, ss.Ancestral()),
    "moment matching": _guided(_moments),
    "moment matching, eta = 1": _guided(_moments, ss.Ancestral()),
    "particles, PiGDM": _particles(_pigdm),
    "particles, moment matching": _particles(_moments),
    "particles with moves, PiGDM": _moving(_pigdm),
    "particles with moves, moment matching": _moving(_moments),
}


@dataclass(frozen=True)
class Known:
    """What a problem's answers are compared with.

    Attributes:
        y: (n, *measured) the measurements.
        exact: (n, R, *event) exact samples.
        truths: (n, T, *event) others.
        floor: mean energy distance between exact sets.
        spread: the least and the greatest of eight such distances over their mean.
        rank_floor: (coverage at 0.5, at 0.9, calibration error) of exact samples.
    """

    y: Tensor
    exact: Tensor
    truths: Tensor
    floor: float
    spread: tuple[float, float]
    rank_floor: tuple[float, float, float]


@functools.cache
def known(name: str, measurements: int, samples: int, seed: int) -> Known:
    """Unknowns from the prior, their measurements, and exact samples of each posterior."""
    setting, noise = SETTINGS[name](), ss.IndependentNoise(seed)
    x0 = setting.mixture.sample(measurements, noise)
    y = Measurement.simulate(x0, setting.operator, setting.noise_std, noise).y
    laws = [setting.mixture.posterior(setting.operator, v, setting.noise_std) for v in y]

    def exact(count: int) -> Tensor:
        return torch.stack([law.sample(count, noise) for law in laws])

    reference = exact(4 * samples)
    truths = torch.cat([x0[:, None], exact(TRUTHS - 1)], 1)
    sets = [exact(samples) for _ in range(8)]
    each = [distance(s, reference) for s in sets]
    floor = sum(each) / len(each)
    return Known(y, reference, truths, floor, (min(each) / floor, max(each) / floor), ranks(sets[0], truths))


def distance(samples: Tensor, reference: Tensor) -> float:
    """Energy distance of (n, S, *event) to (n, R, *event), mean over n."""
    return sum(energy_distance(a, b) for a, b in zip(samples, reference, strict=True)) / len(samples)


def ranks(samples: Tensor, truths: Tensor) -> tuple[float, float, float]:
    """Coverage at 0.5 and 0.9, and the calibration error, of (n, S, *event) against (n, T, *event)."""
    every = samples.repeat_interleave(truths.shape[1], 0)
    flat = truths.flatten(0, 1)
    return coverage(every, flat, 0.5), coverage(every, flat, 0.9), calibration_error(every, flat)


def measure(config: Config, problem: str, method: str, budget: int) -> Cell:
    """One cell."""
    setting = SETTINGS[problem]()
    truth = known(problem, config.measurements, config.samples, config.seed)
    score = Counted(setting.mixture.score(SDE))
    many = config.particles if method.startswith("particles") else 0
    task = Task(setting, score, truth.y, config.samples, many, budget, 1000 + config.seed)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = METHODS[method](task)
    seconds = time.process_time() - start
    far = distance(samples, truth.exact)
    return Cell(
        problem, method, budget, score.nfe, score.gradients, many, config.measurements, config.samples, config.seed,
        far, truth.floor, far / truth.floor, *ranks(samples, truth.truths), seconds,
    )  # fmt: skip


def results(config: Config) -> list[Cell]:
    """Every cell, from the file or measured and added to it."""
    found = {cell.key: cell for cell in contest.read(config.out, Cell)}
    wanted = []
    for problem in config.problems:
        for method in config.methods or METHODS:
            for budget in config.nfe:
                many = config.particles if method.startswith("particles") else 0
                key = (problem, method, budget, many, config.measurements, config.samples, config.seed)
                if key not in found and config.measure:
                    cell = found[key] = measure(config, problem, method, budget)
                    contest.write(config.out, found.values())
                    print(f"{problem}, {method}, {budget}: {cell.ratio:.2f} floors, {cell.seconds:.1f} s", flush=True)
                wanted += [found[key]] if key in found else []
    return wanted


def table(config: Config, problem: str, cells: list[Cell]) -> str:
    """Markdown, for one problem."""
    truth = known(problem, config.measurements, config.samples, config.seed)
    inside50, inside90, error = truth.rank_floor
    lines = [
        f"**{problem}**, {config.measurements} measurements, {config.samples} samples of each; "
        f"energy distance between exact sets {truth.floor:.2e}",
        "",
        "| Method | NFE | gradients | distance / floor | coverage of 50 % | of 90 % | calibration error |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| exact samples | | | {truth.spread[0]:.2f} to {truth.spread[1]:.2f} "
        f"| {inside50:.2f} | {inside90:.2f} | {error:.3f} |",
    ]
    for c in (c for c in cells if c.problem == problem):
        name = f"{c.method} ({c.particles})" if c.particles else c.method
        lines.append(
            f"| {name} | {c.nfe} | {c.gradients} | {c.ratio:.3g} | {c.coverage50:.2f} | {c.coverage90:.2f} "
            f"| {c.calibration:.3f} |"
        )
    return "\n".join(lines)


def checked(config: Config) -> Config:
    """The configuration, its names looked up; made small where it is to be quick.

    Raises:
        ValueError: an unknown name.
    """
    for kind, names, known_names in (
        ("problem", config.problems, SETTINGS.keys()),
        ("method", config.methods, METHODS.keys()),
    ):
        if unknown := [name for name in names if name not in known_names]:
            raise ValueError(f"unknown {kind} {unknown[0]!r}; there are {', '.join(known_names)}.")
    if not config.quick:
        return config
    plane = tuple(name for name in config.problems if name.startswith("plane"))
    return replace(config, problems=plane, nfe=(12,), measurements=2, samples=20, particles=40)


def main(config: Config) -> None:
    """Measure what is missing and print the tables."""
    torch.set_num_threads(1)
    config = checked(config)
    cells = results(config)
    text = "\n\n".join(table(config, problem, cells) for problem in config.problems)
    print(text)
    if config.markdown is not None:
        config.markdown.parent.mkdir(parents=True, exist_ok=True)
        config.markdown.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main(tyro.cli(Config))
