"""What guidance costs: the time of a guided step over that of an unguided one, and what it asks of the network.

    python examples/benchmarks/guidance.py --net cifar_small --batch 16 --steps 10

Whole runs of DDIM with a class-conditional U-Net: the fastest of many turns that the contestants take in rotation, on
one thread. The bar of classifier-free guidance is 2.05 unguided steps; limited to an interval, the same 2.5 % above
what its network calls cost, which is proportional to the share of steps inside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

import contest
import scoresde as ss
from contest import timing
from scoresde import grids
from scoresde.guidance import autoguidance, cfg_plus_plus, compose, projected
from scoresde.nn import UNet, presets

SLACK = 1.025


@dataclass
class Config:
    """Measure the cost of guidance per step."""

    net: Literal["digits", "cifar_small"] = "cifar_small"
    """The U-Net: 1x8x8 or 3x32x32."""
    batch: int = 16
    """Samples."""
    steps: int = 10
    """Steps of each run."""
    inside: float = 0.3
    """Share of steps inside the interval of the limited runs, in the middle of the grid."""
    repeats: int = 10
    """Turns of each contestant, of which the fastest counts."""
    patience: float = 60.0
    """Seconds after which a contestant has no more turns, but for its first three."""
    out: Path = contest.CACHE / "guidance.json"
    """File for the costs."""


@dataclass(frozen=True)
class Cost:
    """One way of guiding.

    Attributes:
        name: what it is.
        rows: samples that the networks saw per step, over the batch.
        milliseconds: per step.
        ratio: time over that of the unguided run.
        bar: the most that ratio should be; 0 where there is none.
    """

    name: str
    rows: float
    milliseconds: float
    ratio: float
    bar: float


def network(config: Config) -> tuple[UNet, tuple[int, ...]]:
    """A network of ten classes, and the shape of a batch."""
    make, event = {"digits": (presets.digits, (1, 8, 8)), "cifar_small": (presets.cifar_small, (3, 32, 32))}[config.net]
    return make(num_classes=10).eval(), (config.batch, *event)


def interval(sde: ss.SDE, grid: Tensor, share: float) -> tuple[tuple[float, float], float]:
    """(low, high) in σ/α that holds a share of the steps of a grid in its middle, and the share that it came to."""
    n = len(grid) - 1
    count = min(max(round(share * n), 1), n)
    first = (n - count) // 2
    levels = (sde.sigma(grid) / sde.alpha(grid)).tolist()
    low = math.sqrt(levels[first + count - 1] * levels[first + count])  # between the last step inside and the next
    return (low, levels[first]), count / n


def guidances(config: Config, sde: ss.SDE, grid: Tensor) -> tuple[dict[str, ss.Score], dict[str, float], UNet, UNet]:
    """The contestants by name, the bars of some, and the two networks behind them."""
    net, weak = network(config)[0], network(config)[0]
    model, weaker = ss.ScoreModel(net, sde), ss.ScoreModel(weak, sde)
    label = torch.arange(config.batch) % 10
    bound, share = interval(sde, grid, config.inside)
    limited = f"classifier_free, {share:.0%} of the steps"
    scores: dict[str, ss.Score] = {
        "unguided": model.bind(label=label),
        "classifier_free": ss.classifier_free(model, {"label": label}, 3.0),
        limited: ss.classifier_free(model, {"label": label}, 3.0, interval=bound),
        "classifier_free, rescaled": ss.classifier_free(model, {"label": label}, 3.0, rescale=0.7),
        "classifier_free, CFG++": ss.classifier_free(model, {"label": label}, cfg_plus_plus(sde, grid, 0.6)),
        "projected": projected(model, {"label": label}, 3.0, norm=10.0),
        "compose of 2": compose(model, [(2.0, {"label": label}), (-0.5, {"label": 5})]),
        "autoguidance, networks of one size": autoguidance(model.bind(label=label), weaker.bind(label=label), 2.0),
    }
    return scores, {"classifier_free": 2 * SLACK, limited: (1 + share) * SLACK}, net, weak


def costs(config: Config) -> list[Cost]:
    """Measure."""
    sde = ss.VP()
    grid, shape = grids.karras(sde, config.steps), network(config)[1]
    scores, bars, *networks = guidances(config, sde, grid)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    seen = 0

    def count(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += len(args[0])

    work: dict[str, timing.Work] = {}
    rows: dict[str, float] = {}
    with torch.no_grad():
        for name, score in scores.items():
            process = ss.Reverse(score, 0.0)

            def run(process: ss.Reverse = process) -> ss.Solution:
                return ss.DDIM().solve(process, x, grid)

            hooks = [net.register_forward_pre_hook(count) for net in networks]
            seen = 0
            run()
            rows[name] = seen / (config.steps * config.batch)
            for hook in hooks:
                hook.remove()
            work[name] = run
        seconds = timing.fastest(work, config.repeats, patience=config.patience)
    bare = seconds["unguided"]
    return [
        Cost(name, rows[name], 1e3 * each / config.steps, each / bare, bars.get(name, 0.0))
        for name, each in seconds.items()
    ]


def table(found: list[Cost]) -> str:
    """Markdown."""
    rows = (
        [c.name, f"{c.rows:.2f} B", f"{c.milliseconds:.1f}", f"{c.ratio:.3f}", contest.verdict(c.ratio, c.bar)]
        for c in found
    )
    return contest.markdown(["Guidance", "Network rows per step:", "ms a step:", "Time, unguided = 1:", "Bar"], rows)


def main(config: Config) -> None:
    """Print and keep the costs."""
    timing.warm_up()
    found = costs(config)
    contest.write_array(config.out, found)
    print(table(found))


if __name__ == "__main__":
    main(tyro.cli(Config))
