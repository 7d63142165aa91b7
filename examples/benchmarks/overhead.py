"""What the library adds to the arithmetic: time per step as a ratio to hand-written loops and to torchsde, in one run.

    python examples/benchmarks/overhead.py --batch 64 --event 3 32 32

On a score that costs nothing, each solver's time per score evaluation over that of a bare loop with the same number of
evaluations; and each noise's time per step over that of torch.randn. Minimum of several repeats, one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

import scoresde as ss
from scoresde import grids


@dataclass
class Config:
    """Measure the library's overhead per step."""

    batch: int = 64
    """Samples."""
    event: tuple[int, ...] = (3, 32, 32)
    """Shape of one sample."""
    steps: int = 50
    """Steps of each solver."""
    repeats: int = 5
    """Repeats, of which the fastest counts."""


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of ``repeats`` calls, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main(config: Config) -> None:
    """Print the ratios."""
    torch.set_num_threads(1)
    sde, shape = ss.VP(), (config.batch, *config.event)
    grid, x = grids.uniform(sde, config.steps), torch.randn(shape)

    def score(x: Tensor, t: Tensor) -> Tensor:
        return -x

    def bare() -> Tensor:
        """A hand-written Euler loop on numbers worked out before: the least that a step can cost."""
        y = x
        for _ in range(config.steps):
            y = y + 0.001 * (-0.5 * y - 0.5 * score(y, grid[0]))
        return y

    base = fastest(bare, config.repeats) / config.steps
    print(f"bare Euler loop: {1e6 * base:.0f} us per step, batch {shape}")
    ode: list[ss.Solver] = [ss.EulerMaruyama(), ss.DDIM(), ss.Heun(), ss.ProbabilityFlow("euler")]
    sde_solvers: list[ss.Solver] = [
        ss.EulerMaruyama(), ss.ReverseDiffusion(), ss.Ancestral(), ss.PredictorCorrector(), ss.TorchSDE(),
    ]  # fmt: skip
    for eta, solvers in ((0.0, ode), (1.0, sde_solvers)):
        for solver in solvers:
            process = ss.Reverse(sde, score, eta)

            def run(solver: ss.Solver = solver, process: ss.Reverse = process) -> ss.Solution:
                return solver.solve(process, x, grid, ss.IndependentNoise(0))

            nfe = run().nfe
            seconds = fastest(run, config.repeats)
            print(
                f"{type(solver).__name__:20s} eta {eta:g}: {seconds / nfe / base:6.2f} x the bare loop per evaluation"
            )

    randn = fastest(lambda: [torch.randn(shape) for _ in range(config.steps)], config.repeats)
    for name, make in {
        "IndependentNoise": lambda: ss.IndependentNoise(0),
        "PerSampleNoise": lambda: ss.PerSampleNoise(0),
        "BrownianNoise": lambda: ss.BrownianNoise(0, sde.T),
    }.items():

        def draw(make: Callable[[], ss.Noise] = make) -> None:
            noise = make()
            for i in range(config.steps):
                noise.between(x, grid[i], grid[i + 1])

        print(f"{name:20s}: {fastest(draw, config.repeats) / randn:6.1f} x torch.randn per step")

    import torchsde

    def interval() -> None:
        path = torchsde.BrownianInterval(0.0, 1.0, size=(config.batch, x[0].numel()), entropy=0)
        for i in range(config.steps):
            path(1 - float(grid[i]), 1 - float(grid[i + 1]))

    print(f"{'torchsde interval':20s}: {fastest(interval, config.repeats) / randn:6.1f} x torch.randn per step")


if __name__ == "__main__":
    main(tyro.cli(Config))
