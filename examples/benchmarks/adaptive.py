"""Adaptive ODE solvers: evaluations at equal achieved error, ours beside torchdiffeq's and scipy's, on exact scores.

    python examples/benchmarks/adaptive.py --samples 128

Each method runs over a range of tolerances; its evaluations at a given root-mean-square distance to the exact end point
are interpolated on logarithmic scales. A batched method asks for the whole batch each time: its count is the number of
calls. A sample's own count is averaged over samples; its peer is scipy's RK45 run for each sample alone. torchdiffeq
has no tsit5 in the versions at hand: its dopri5, dopri8 and bosh3 stand for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro
from scipy.integrate import solve_ivp
from torch import Tensor

import scoresde as ss
from contest.problems import NAMES, Problem, problem
from contest.reference import end_points
from contest.results import CACHE
from scoresde.solvers import AdaptiveODE, ProbabilityFlow

ERRORS = (1e-2, 1e-3, 1e-4, 1e-5)


@dataclass
class Config:
    """Compare adaptive solvers."""

    samples: int = 128
    """Samples in the batch."""
    alone: int = 16
    """Of them, for methods that run each sample by itself."""
    problems: tuple[str, ...] = NAMES
    """Which problems."""
    seed: int = 0
    """Of the starting noise."""
    cache: Path = CACHE
    """Folder of the exact end points."""


class Point(NamedTuple):
    """One run: its error, batched calls, evaluations for each sample on average."""

    error: float
    calls: float
    mean: float


Method = Callable[[Problem, Tensor, float], tuple[Tensor, float, float]]


def ours(solver: Callable[[float], ss.Solver]) -> Method:
    """One of our solvers at a tolerance."""

    def run(problem: Problem, x: Tensor, tolerance: float) -> tuple[Tensor, float, float]:
        ends = torch.tensor([problem.sde.T, problem.sde.t_min], dtype=torch.float64)
        with torch.no_grad():
            done = solver(tolerance).solve(ss.Reverse(problem.score, 0.0), x, ends)
        each = done.nfe if done.nfe_per_sample is None else float(done.nfe_per_sample.double().mean())
        return done.x, done.nfe, each

    return run


def scipy_rk45(problem: Problem, x: Tensor, tolerance: float, method: str = "RK45") -> tuple[Tensor, float, float]:
    """The whole batch as one system, dx/dt = drift."""
    process = ss.Reverse(problem.score, 0.0)

    def drift(t: float, flat: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            out: np.ndarray = process.drift(torch.from_numpy(flat).reshape(x.shape), t).numpy().ravel()
        return out

    span = (problem.sde.T, problem.sde.t_min)
    done = solve_ivp(drift, span, x.numpy().ravel(), method=method, rtol=tolerance, atol=tolerance)
    return torch.from_numpy(done.y[:, -1]).reshape(x.shape), done.nfev, done.nfev


def scipy_each(problem: Problem, x: Tensor, tolerance: float) -> tuple[Tensor, float, float]:
    """Each sample as a system of its own."""
    parts = [scipy_rk45(problem, x[i : i + 1], tolerance) for i in range(len(x))]
    counts = [count for _, count, _ in parts]
    return torch.cat([end for end, _, _ in parts]), max(counts), sum(counts) / len(counts)


OURS: dict[str, Method] = {
    "AdaptiveODE adams": ours(lambda tolerance: AdaptiveODE(rtol=tolerance, atol=tolerance)),
    "AdaptiveODE dopri5": ours(lambda tolerance: AdaptiveODE(method="dopri5", rtol=tolerance, atol=tolerance)),
}
BATCHED: dict[str, Method] = {
    "torchdiffeq dopri5": ours(lambda tolerance: ProbabilityFlow("dopri5", tolerance, tolerance)),
    "torchdiffeq dopri8": ours(lambda tolerance: ProbabilityFlow("dopri8", tolerance, tolerance)),
    "torchdiffeq bosh3": ours(lambda tolerance: ProbabilityFlow("bosh3", tolerance, tolerance)),
    "scipy RK45": scipy_rk45,
}
ALONE: dict[str, Method] = {"scipy RK45 each alone": scipy_each}


def sweep(method: Method, problem: Problem, x: Tensor, exact: Tensor) -> list[Point]:
    """Runs at falling tolerances, until the smallest error of interest is reached."""
    points: list[Point] = []
    for power in range(-2, 22):
        end, calls, mean = method(problem, x, 10.0 ** (-power / 2))
        error = float((end - exact).square().sum(1).mean().sqrt())
        if math.isfinite(error):
            points.append(Point(error, calls, mean))
        if error < ERRORS[-1]:
            break
    return points


def at(points: list[Point], error: float, *, mean: bool) -> float:
    """Evaluations at this error, on the line through log(evaluations) over log(error); NaN outside what was measured.

    Errors that do not fall with the tolerance count by what the least work achieved them.
    """
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: point.mean if mean else point.calls):
        if not best or point.error < best[-1][0]:
            best.append((point.error, point.mean if mean else point.calls))
    if not best or not best[-1][0] <= error <= best[0][0]:
        return math.nan
    errors, counts = (np.log([pair[i] for pair in reversed(best)]) for i in range(2))
    return float(np.exp(np.interp(math.log(error), errors, counts)))


def line(name: str, counts: list[float], ratios: list[float] | None = None) -> None:
    """Evaluations at each error, and what they are to the best peer's."""
    text = f"  {name:36s}" + "".join(f"{count:9.1f}" for count in counts)
    print(text + ("" if ratios is None else "   ratio" + "".join(f"{ratio:7.2f}" for ratio in ratios)))


def compare(config: Config, name: str) -> None:
    """Print one problem's table."""
    here = problem(name)
    x = here.start(config.samples, config.seed)
    exact = end_points(here, x, cache=config.cache)
    few, exact_few = x[: config.alone], exact[: config.alone]
    print(f"\n{name}: evaluations at RMS error " + ", ".join(f"{error:g}" for error in ERRORS))
    peers = {key: sweep(method, here, x, exact) for key, method in BATCHED.items()}
    calls = {key: [at(points, error, mean=False) for error in ERRORS] for key, points in peers.items()}
    for key, counts in calls.items():
        line(key, counts)
    least = [float(np.nanmin([counts[i] for counts in calls.values()])) for i in range(len(ERRORS))]
    single = {key: sweep(method, here, few, exact_few) for key, method in ALONE.items()}
    for key, points in single.items():
        line(f"{key}, mean", [at(points, error, mean=True) for error in ERRORS])
    alone = [at(points, error, mean=True) for points in single.values() for error in ERRORS]
    for key, method in OURS.items():
        mine, mine_few = sweep(method, here, x, exact), sweep(method, here, few, exact_few)
        counts = [at(mine, error, mean=False) for error in ERRORS]
        line(f"{key}, calls / best batched peer", counts, [a / b for a, b in zip(counts, least, strict=True)])
        counts = [at(mine, error, mean=True) for error in ERRORS]
        line(f"{key}, mean / best batched peer", counts, [a / b for a, b in zip(counts, least, strict=True)])
        counts = [at(mine_few, error, mean=True) for error in ERRORS]
        line(f"{key}, mean / each alone", counts, [a / b for a, b in zip(counts, alone, strict=True)])


def main(config: Config) -> None:
    """All tables."""
    torch.set_num_threads(1)
    for name in config.problems:
        compare(config, name)


if __name__ == "__main__":
    main(tyro.cli(Config))
