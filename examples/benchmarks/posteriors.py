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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import tyro
from torch import Tensor

import contest
import scoresde as ss
from contest.posterior_methods import METHODS, SDE, SETTINGS, Counted, Task
from scoresde.inverse import Measurement
from scoresde.metrics import calibration_error, coverage, energy_distance

TRUTHS = 50  # exact draws for each y that coverage is counted with


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
    particles = many(config, method)
    task = Task(setting, score, truth.y, config.samples, particles, budget, 1000 + config.seed)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = METHODS[method](task)
    seconds = time.process_time() - start
    far = distance(samples, truth.exact)
    inside50, inside90, error = ranks(samples, truth.truths)
    return Cell(
        problem=problem,
        method=method,
        budget=budget,
        nfe=score.nfe,
        gradients=score.gradients,
        particles=particles,
        measurements=config.measurements,
        samples=config.samples,
        seed=config.seed,
        distance=far,
        floor=truth.floor,
        ratio=far / truth.floor,
        coverage50=inside50,
        coverage90=inside90,
        calibration=error,
        seconds=seconds,
    )


def measured(config: Config, problem: str, method: str, budget: int, found: Sequence[Cell]) -> list[Cell]:
    """One cell, told."""
    cell = measure(config, problem, method, budget)
    print(f"{problem}, {method}, {budget}: {cell.ratio:.2f} floors, {cell.seconds:.1f} s", flush=True)
    return [cell]


def results(config: Config) -> list[Cell]:
    """Every cell, from the file or measured and added to it."""
    wanted: dict[contest.Key, contest.Measuring[Cell]] = {
        (problem, method, budget, many(config, method), config.measurements, config.samples, config.seed): partial(
            measured, config, problem, method, budget
        )
        for problem in config.problems
        for method in config.methods or METHODS
        for budget in config.nfe
    }
    cells = contest.measured(config.out, Cell, wanted if config.measure else {}, key=lambda cell: cell.key)
    known = {cell.key: cell for cell in cells}
    return [known[key] for key in wanted if key in known]


def many(config: Config, method: str) -> int:
    """Particles of a method; 0 for one without."""
    return config.particles if method.startswith("particles") else 0


def table(config: Config, problem: str, cells: list[Cell]) -> str:
    """Markdown, for one problem."""
    truth = known(problem, config.measurements, config.samples, config.seed)
    inside50, inside90, error = truth.rank_floor
    spread = f"{truth.spread[0]:.2f} to {truth.spread[1]:.2f}"
    rows = [["exact samples", "", "", spread, f"{inside50:.2f}", f"{inside90:.2f}", f"{error:.3f}"]]
    for c in (c for c in cells if c.problem == problem):
        name = f"{c.method} ({c.particles})" if c.particles else c.method
        cost = [str(c.nfe), str(c.gradients)]
        rows.append(
            [name, *cost, f"{c.ratio:.3g}", f"{c.coverage50:.2f}", f"{c.coverage90:.2f}", f"{c.calibration:.3f}"]
        )
    heads = ["Method", "NFE:", "gradients:", "distance / floor:", "coverage of 50 %:", "of 90 %:", "calibration error:"]
    return (
        f"**{problem}**, {config.measurements} measurements, {config.samples} samples of each; "
        f"energy distance between exact sets {truth.floor:.2e}\n\n{contest.markdown(heads, rows)}"
    )


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
