"""Where guidance departs from the density p(x) p(k|x)^w, and the particles that do not: docs/guidance.md's table.

    python examples/benchmarks/tilted.py --scales 1 2 4 8

On the 2-D mixture the tilted density is sampled exactly, by rejection. Distances are energy distances to such samples
over that between two exact sets of the same size, so 1 is as good as exact. Every method runs the same steps.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

import contest
import scoresde as ss
from contest.problems import mixture2d
from scoresde.guidance import LinearGuidance, Part
from scoresde.metrics import energy_distance
from scoresde.models.combination import Combination
from scoresde.particles import CollapseWarning, Particles, tilted


@dataclass
class Config:
    """Compare guidance with and without particle weights."""

    scales: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    """Guidance scales w."""
    particles: tuple[int, ...] = (64, 256, 1024, 4096, 16384)
    """Numbers of particles in a group."""
    label: int = 0
    """Component k."""
    steps: int = 100
    """Steps for a scale of 2; in proportion for larger ones, at least as many for smaller ones."""
    eta: float = 2.0
    """The stochasticity of the corrected particles."""
    samples: int = 2000
    """Samples in each set that is compared; groups of few particles are put together."""
    repeats: int = 4
    """Sets, of whose distances the median is taken."""
    out: Path | None = None
    """File for the table."""


@dataclass(frozen=True, eq=False)
class Guided(LinearGuidance):
    """(1 - w) ∇ log p_t + w ∇ log p_t(x | k), exactly."""

    sde: ss.SDE
    law: ss.GaussianMixture
    label: int
    scale: float

    def parts(self, x: Tensor, t: Tensor, wanted: Combination) -> list[Part]:
        unconditional, conditional = self.law.score(self.sde), self.law.score(self.sde, self.label)
        return [
            Part(1 - self.scale, unconditional.evaluate(x, t, wanted)),
            Part(self.scale, conditional.evaluate(x, t, wanted)),
        ]


def alone(guidance: Guided, eta: float, config: Config, steps: int) -> list[Tensor]:
    """Guidance without weights."""
    n = config.samples
    run = ss.sample(guidance, (n * config.repeats, 2), steps=steps, eta=eta, dtype=torch.float64)
    return list(run.x.reshape(-1, n, 2).unbind())


def corrected(guidance: Guided, size: int, config: Config, steps: int) -> tuple[list[Tensor], Particles]:
    """Sets of ``samples`` from as many groups of ``size`` as it takes, an equal share from each."""
    groups = max(1, math.ceil(config.samples / size))
    each = math.ceil(config.samples / groups)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # the table tells
        got = tilted(
            guidance,
            (size * groups * config.repeats, 2),
            groups=groups * config.repeats,
            steps=steps,
            eta=config.eta,
            dtype=torch.float64,
        )
    return list(got.draw(each, 1).reshape(config.repeats, -1, 2).unbind()), got


def column(config: Config, scale: float) -> list[str]:
    """The table's column of one scale, from top to bottom."""
    law, n = mixture2d(), config.samples
    exact = law.tilted_sample(config.label, scale, n * (config.repeats + 1), 0).reshape(-1, n, 2).unbind()
    floor = statistics.median(energy_distance(x, exact[0]) for x in exact[1:])
    guidance = Guided(ss.VP(), law, config.label, scale)
    steps = max(config.steps, round(config.steps * scale / 2))
    found = [str(steps), f"{floor:.1e}"]

    def ratio(sets: list[Tensor]) -> str:
        return f"{statistics.median(energy_distance(x, exact[0]) for x in sets) / floor:.2g}"

    for eta in (0.0, 1.0, config.eta):
        found.append(ratio(alone(guidance, eta, config, steps)))
    for size in config.particles:
        sets, got = corrected(guidance, size, config, steps)
        least = got.effective.min(0).values.median() / size
        found.append(f"{ratio(sets)} ({100 * least:.0f} %)")
    return found


def main(config: Config) -> None:
    """Run and print."""
    torch.set_num_threads(1)
    heads = ["steps", "floor", "guidance, ODE", "guidance, η = 1", f"guidance, η = {config.eta:g}"]
    heads += [f"N = {size}" for size in config.particles]
    columns, begun = [], time.perf_counter()
    for scale in config.scales:
        columns.append(column(config, scale))
        print(f"w = {scale:g}: {', '.join(columns[-1])}  ({time.perf_counter() - begun:.0f} s)", flush=True)
    rows = ([head, *cells] for head, cells in zip(heads, zip(*columns, strict=True), strict=True))
    text = contest.markdown(["", *(f"w = {scale:g}:" for scale in config.scales)], rows)
    print(text)
    if config.out is not None:
        config.out.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main(tyro.cli(Config))
