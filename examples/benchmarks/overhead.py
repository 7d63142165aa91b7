"""Bars 3 and 5: what the library adds to the arithmetic, per score evaluation and per draw of noise.

    python examples/benchmarks/overhead.py --batch 64 --event 3 32 32

On a score that costs nothing: each fixed-step solver's time per evaluation over that of a hand-written loop, Euler's
where nothing is drawn, Euler-Maruyama's with torch.randn where noise is; peers beside them. On a small U-Net: the whole
time over that of as many bare forward passes. And each noise's time per step over that of torch.randn. One thread,
the fastest of many turns that the contestants take in rotation.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torchsde
import tyro
from torch import Tensor

import contest
import scoresde as ss
from contest import timing
from peers.overhead import Free, contestants
from scoresde import grids
from scoresde.nn import presets
from scoresde.solvers import catalogue


@dataclass
class Config:
    """Measure the library's overhead per step."""

    batch: int = 64
    """Samples."""
    event: tuple[int, ...] = (3, 32, 32)
    """Shape of one sample."""
    steps: int = 50
    """Steps of each solver."""
    repeats: int = 30
    """Turns of each contestant, of which the fastest counts."""
    peers: bool = True
    """Run the peers beside."""
    unet: bool = True
    """Time whole runs with a small U-Net too, which takes a minute or two."""
    out: Path = contest.CACHE / "overhead.json"
    """File for the ratios."""


@dataclass(frozen=True)
class Ratio:
    """Time of ``name`` over that of the bare loop ``over``; ``bar`` is the most it should be, 0 where there is none."""

    group: str
    name: str
    ratio: float
    over: str
    bar: float


def fixed_step() -> list[ss.Solver]:
    """Every public solver that takes the grid's steps one by one, at the defaults of its options."""
    solvers = (kind() for kind in catalogue.classes())
    return sorted((s for s in solvers if s.steps_on_grid), key=lambda s: type(s).__name__)


def solver_ratios(config: Config) -> list[Ratio]:
    """Per evaluation, over the bare loops."""
    sde, shape = ss.VP(), (config.batch, *config.event)
    grid, x = grids.uniform(sde, config.steps), torch.randn(shape)
    free = Free()

    def euler() -> Tensor:
        """The least that a step of an ODE can cost."""
        y = x
        for _ in range(config.steps):
            y = y + 0.001 * (-0.5 * y - 0.5 * free(y))
        return y

    def euler_maruyama() -> Tensor:
        """The same with a normal draw."""
        y = x
        for _ in range(config.steps):
            y = y + 0.001 * (-0.5 * y - 0.5 * free(y)) + 0.01 * torch.randn(shape)
        return y

    work: dict[str, timing.Work] = {"Euler": euler, "Euler-Maruyama": euler_maruyama}
    noisy, evaluations = {"Euler": False, "Euler-Maruyama": True}, dict.fromkeys(work, config.steps)
    for solver in fixed_step():
        for eta in (0.0, 1.0):
            process = ss.Reverse(ss.as_score(free, sde), eta)
            name = f"{type(solver).__name__} eta {eta:g}"

            def run(solver: ss.Solver = solver, process: ss.Reverse = process) -> ss.Solution:
                return solver.solve(process, x, grid, ss.IndependentNoise(0))

            try:
                evaluations[name] = run().nfe
            except ValueError:
                continue  # not a method for this eta
            work[name], noisy[name] = run, solver.draws_noise(process)
    ours = set(work)
    if config.peers:
        for name, run_peer in contestants(free, x, config.steps).items():
            free.calls = 0
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run_peer()
            work[name], evaluations[name] = run_peer, free.calls
            noisy[name] = any(word in name for word in ("ancestral", "sde", "SDE", "SA-", "DDPM"))
    with torch.no_grad():
        seconds = timing.fastest(work, config.repeats)
    each = {name: seconds[name] / evaluations[name] for name in work}
    for name in ("Euler", "Euler-Maruyama"):
        print(f"bare {name} loop: {1e6 * each[name]:.0f} us a step, batch {shape}")
    return [
        Ratio(
            "per evaluation, ours" if name in ours else "per evaluation, peers",
            name,
            each[name] / each["Euler-Maruyama" if noisy[name] else "Euler"],
            "Euler-Maruyama with randn" if noisy[name] else "Euler",
            1.25 if name in ours else 0.0,
        )
        for name in work
        if name not in ("Euler", "Euler-Maruyama")
    ]


def network_ratios(config: Config) -> list[Ratio]:
    """Whole runs of the small U-Net for 3x32x32 pictures on 16 of them, over bare forward passes."""
    net = presets.cifar_small().eval()
    sde = ss.VP()
    model = ss.ScoreModel(net, sde, predicts="noise")
    x, level = torch.randn(16, 3, 32, 32), torch.full((16,), 0.5)
    steps = 4
    grid = grids.uniform(sde, steps)
    runs: dict[str, timing.Work] = {"forward": lambda: [net(x, level) for _ in range(steps)]}
    for solver, eta in ((ss.DDIM(), 0.0), (ss.EulerMaruyama(), 1.0)):
        process = ss.Reverse(model, eta)

        def run(solver: ss.Solver = solver, process: ss.Reverse = process) -> ss.Solution:
            return solver.solve(process, x, grid, ss.IndependentNoise(0))

        runs[f"{type(solver).__name__} eta {eta:g}"] = run
    with torch.no_grad():
        seconds = timing.fastest(runs, max(3, config.repeats // 6), patience=60.0)
    bare = seconds.pop("forward")
    print(f"small U-Net: {1e3 * bare / steps:.0f} ms a forward pass")
    return [Ratio("small U-Net, whole time", name, s / bare, "bare forward", 1.02) for name, s in seconds.items()]


def noise_ratios(config: Config) -> list[Ratio]:
    """Each noise's time per step over torch.randn's."""
    shape = (config.batch, *config.event)
    x, grid = torch.empty(shape), grids.uniform(ss.VP(), config.steps)
    times = grid.tolist()

    def draws(noise: ss.Noise) -> None:
        for i in range(config.steps):
            noise.between(x, grid[i], grid[i + 1])

    def interval() -> None:
        path = torchsde.BrownianInterval(0.0, 1.0, size=(config.batch, x[0].numel()), entropy=0)
        for i in range(config.steps):
            path(1 - times[i], 1 - times[i + 1])

    def tree() -> None:
        path = torchsde.BrownianTree(0.0, torch.zeros_like(x), 1.0, entropy=0)
        for i in range(config.steps):
            path(1 - times[i], 1 - times[i + 1])

    work: dict[str, timing.Work] = {
        "randn": lambda: [torch.randn(shape) for _ in range(config.steps)],
        "IndependentNoise": lambda: draws(ss.IndependentNoise(0)),
        "PerSampleNoise": lambda: draws(ss.PerSampleNoise(0)),
        "BrownianNoise": lambda: draws(ss.BrownianNoise(0, 1.0)),
        "torchsde.BrownianInterval": interval,
        "torchsde.BrownianTree, as k-diffusion uses it": tree,
    }
    seconds = timing.fastest(work, max(5, config.repeats // 3))
    randn = seconds.pop("randn")
    bars = {"BrownianNoise": 2.0}
    return [Ratio("noise", name, s / randn, "torch.randn", bars.get(name, 0.0)) for name, s in seconds.items()]


def table(ratios: list[Ratio]) -> str:
    """Markdown."""
    rows = ([r.group, r.name, f"{r.ratio:.3f} x", r.over, contest.verdict(r.ratio, r.bar)] for r in ratios)
    return contest.markdown(["What", "Contestant", "Time:", "over", "Bar"], rows)


def main(config: Config) -> None:
    """Print and keep the ratios."""
    timing.warm_up()
    ratios = solver_ratios(config) + noise_ratios(config) + (network_ratios(config) if config.unet else [])
    contest.write_array(config.out, ratios)
    print(table(ratios))


if __name__ == "__main__":
    main(tyro.cli(Config))
