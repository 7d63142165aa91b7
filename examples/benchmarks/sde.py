"""Bar 2: sliced Wasserstein-2 distance to the exact law for samplers of the reverse SDE.

    python examples/benchmarks/sde.py --ours "EulerMaruyama()@karras" "Ancestral()@karras"

20,000 samples of each against as many exact ones at t_min, beside the same distance between two exact sets, the
floor. Peers run with eta = 1, their default. Their results are kept in --peers and read from there the next time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import contest
import peers_azula
import peers_diffusers
import peers_kdiffusion
import problems
import torch
import tyro
from contest import GridRule
from peer_grids import SHIPPED
from peers import Oracle, Peer
from problems import NAMES, Mixture
from torch import Tensor

import scoresde as ss
from scoresde.metrics import sliced_wasserstein

GRIDS = {name: SHIPPED[name] for name in ("karras", "exponential", "cosine", "flow")}


@dataclass
class Config:
    """Compare samplers of the reverse SDE."""

    ours: tuple[str, ...] = ("default",)
    """Solvers of scoresde with their grids; "default" is what scoresde.sample takes for eta = 1."""
    problems: tuple[str, ...] = NAMES
    """Which problems."""
    nfe: tuple[int, ...] = (10, 20, 50, 100)
    """Score evaluations allowed."""
    samples: int = 20_000
    """Samples in each set."""
    repeats: int = 4
    """Sets of samples whose distances are averaged."""
    slices: int = 128
    """Directions of the sliced distance."""
    screen: int = 2000
    """Samples on which every peer runs on every grid before the best of them run on all."""
    keep: int = 4
    """How many of them."""
    peers: Path = contest.CACHE / "peers_sde.jsonl"
    """File of the peers' results: read where it has them, else written."""
    out: Path = contest.CACHE / "ours_sde.jsonl"
    """File for our results."""


@dataclass(frozen=True)
class LawResult:
    """What one sampler came to.

    Attributes:
        problem: its name.
        budget: evaluations allowed.
        nfe: evaluations used.
        solver: library, method and options; "exact" is the floor.
        grid: rule of its noise levels.
        samples: in each set.
        distance: sliced Wasserstein-2 to the exact law, root mean square over the repeats.
        each: the repeats.
    """

    problem: str
    budget: int
    nfe: int
    solver: str
    grid: str
    samples: int
    distance: float
    each: list[float]


Sampler = Callable[[Tensor, int], tuple[Tensor, int]]
"""(x_T (n, D), seed) -> (samples at t_min, evaluations used)."""


def all_peers() -> dict[str, Peer]:
    """Every stochastic sampler by name."""
    return {**peers_kdiffusion.sde(), **peers_diffusers.sde(), **peers_azula.sde()}


@functools.cache
def reference(problem: Mixture, samples: int) -> Tensor:
    """The exact set that every set is compared with."""
    return problem.law(samples, 10_000)


def judged(problem: Mixture, sampler: Sampler, samples: int, repeats: int, slices: int) -> tuple[list[float], int]:
    """Distances of ``repeats`` sets to the exact law, and the evaluations used for one."""
    each, nfe = [], 0
    for seed in range(repeats):
        x, nfe = sampler(problem.start(samples, 100 + seed), seed)
        x = x.nan_to_num(1e6, 1e6, -1e6)
        each.append(sliced_wasserstein(x, reference(problem, samples), slices=slices))
    return each, nfe


def together(each: list[float]) -> float:
    """Root mean square: what sampling noise adds to a squared distance does not depend on the sampler."""
    return math.sqrt(sum(d**2 for d in each) / len(each))


def floor(problem: Mixture, samples: int, repeats: int, slices: int) -> LawResult:
    """The distance between exact sets."""
    each, _ = judged(problem, lambda x, seed: (problem.law(samples, 20_000 + seed), 0), samples, repeats, slices)
    return LawResult(problem.name, 0, 0, "exact", "", samples, together(each), each)


def peer_sampler(problem: Mixture, peer: Peer, grid: str, nfe: int) -> Sampler:
    """A peer with at most ``nfe`` evaluations; it draws from torch's global generator, which is put back."""

    def sample(x: Tensor, seed: int) -> tuple[Tensor, int]:
        oracle = Oracle(problem)
        levels = GRIDS[grid](problem, peer.steps(nfe))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            y = peer.run(oracle, x / problem.sde.alpha(problem.sde.T), levels)
        return y * problem.sde.alpha(problem.sde.t_min), oracle.calls

    return sample


def our_sampler(problem: Mixture, solver: ss.Solver | None, grid: GridRule | None, nfe: int) -> Sampler:
    """A solver of ours on the reverse SDE with at most ``nfe`` evaluations."""
    noise = ss.IndependentNoise(0)
    eta = 1.0 if solver is None or not solver.default_eta else solver.default_eta

    def run(x: Tensor, steps: int, noise: ss.Noise) -> ss.Solution:
        return ss.sample(
            problem.sde, problem.score, tuple(x.shape), solver=solver, steps=steps, grid=grid, x=x, eta=eta,
            noise=noise, denoise=False,
        )  # fmt: skip

    one = problem.start(1)
    steps = contest.most(lambda n: run(one, n, noise).nfe, nfe, repr(solver))

    def sample(x: Tensor, seed: int) -> tuple[Tensor, int]:
        solution = run(x, steps, ss.IndependentNoise(1000 + seed))
        return solution.x, solution.nfe

    return sample


def evaluate(
    solver: ss.Solver | None, grid: GridRule | None, problem: Mixture, nfe: int, *, samples: int = 20_000,
    repeats: int = 4, slices: int = 128,
) -> LawResult:  # fmt: skip
    """Distance to the exact law of a solver of ours with at most ``nfe`` evaluations; None is ``sample``'s default."""
    each, used = judged(problem, our_sampler(problem, solver, grid, nfe), samples, repeats, slices)
    names = ("default" if solver is None else repr(solver), "default" if grid is None else contest.title(grid))
    return LawResult(problem.name, nfe, used, f"scoresde {names[0]}", names[1], samples, together(each), each)


def tournament(config: Config, problem: Mixture, nfe: int) -> list[LawResult]:
    """Every peer on every grid with few samples; then the best of them with all."""
    entries = [(name, peer, grid) for name, peer in all_peers().items() for grid in GRIDS]
    first = []
    for i, (_, peer, grid) in enumerate(entries):
        each, _ = judged(problem, peer_sampler(problem, peer, grid, nfe), config.screen, 1, config.slices)
        first.append((each[0], i))
    results = []
    for _, i in sorted(first)[: config.keep]:
        name, peer, grid = entries[i]
        sampler = peer_sampler(problem, peer, grid, nfe)
        each, used = judged(problem, sampler, config.samples, config.repeats, config.slices)
        results.append(LawResult(problem.name, nfe, used, name, grid, config.samples, together(each), each))
    return results


def peer_results(config: Config) -> list[LawResult]:
    """The floors and the peers, from the file, or measured and added to it."""
    results = contest.read(config.peers, LawResult)
    for name in config.problems:
        problem = problems.mixture(name)
        if not any((r.problem, r.solver, r.samples) == (name, "exact", config.samples) for r in results):
            results.append(floor(problem, config.samples, max(8, config.repeats), config.slices))
        for nfe in config.nfe:
            if any((r.problem, r.budget, r.samples) == (name, nfe, config.samples) for r in results):
                continue
            results += tournament(config, problem, nfe)
            contest.write(config.peers, results)
            print(f"measured the peers on {name} at {nfe} evaluations", flush=True)
    return [r for r in results if r.samples == config.samples]


def our_results(config: Config) -> list[LawResult]:
    """Measured."""
    results = []
    for text in config.ours:
        solver, grid = contest.parsed(text)
        for name in config.problems:
            for nfe in config.nfe:
                results.append(
                    evaluate(
                        solver, grid, problems.mixture(name), nfe, samples=config.samples, repeats=config.repeats,
                        slices=config.slices,
                    )
                )  # fmt: skip
    return results


def table(name: str, peers: list[LawResult], ours: list[LawResult]) -> str:
    """Markdown: the best peer, ours, and the ratios to it and to the floor, for one problem."""
    least = next(r.distance for r in peers if (r.problem, r.solver) == (name, "exact"))
    lines = [
        f"**{name}**, sliced Wasserstein-2 to the exact law; between exact sets {least:.2e}",
        "",
        "| NFE | best peer | its distance | ours | our distance | ours / best peer | ours / floor |",
        "| ---: | --- | --- | --- | --- | ---: | ---: |",
    ]
    for r in (r for r in ours if r.problem == name):
        field = [p for p in peers if (p.problem, p.budget) == (name, r.budget)]
        if not field:
            continue
        first = min(field, key=lambda p: p.distance)
        lines.append(
            f"| {r.budget} | {first.solver}, {first.grid} | {first.distance:.2e} "
            f"| {r.solver.removeprefix('scoresde ')}, {r.grid} | {r.distance:.2e} "
            f"| {r.distance / first.distance:.2f} | {r.distance / least:.2f} |"
        )
    return "\n".join(lines)


def main(config: Config) -> None:
    """Measure what is missing and print the tables."""
    torch.set_num_threads(1)
    for text in config.ours:
        contest.parsed(text)
    peers = peer_results(config)
    ours = our_results(config)
    contest.write(config.out, ours)
    for name in config.problems:
        print(table(name, peers, ours), end="\n\n")


if __name__ == "__main__":
    main(tyro.cli(Config))
