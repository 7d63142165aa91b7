"""Bar 2: sliced Wasserstein-2 distance to the exact law for samplers of the reverse SDE.

    python examples/benchmarks/sde.py --ours "EulerMaruyama()@karras" "Ancestral()@karras"

20,000 samples of each (2000 in thousands of dimensions) against as many exact ones at t_min, beside the same distance
between two exact sets, the floor. Any mixture of contest/problems.py that is neither guided nor rough has an exact law.
Peers run with eta = 1, their default. Their results are kept in --peers and read from there the next time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro
from torch import Tensor

import contest
import scoresde as ss
from contest import GridRule, LawResult
from contest.problems import LAWS, Mixture, mixture
from peers import tournament
from peers.grids import SHIPPED
from peers.peer import Oracle, Peer
from scoresde.metrics import sliced_wasserstein

GRIDS = {name: SHIPPED[name] for name in ("karras", "exponential", "cosine", "flow")}


@dataclass
class Config(contest.ContestFlags):
    """Compare samplers of the reverse SDE."""

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
    large: tuple[int, int] = (2000, 200)
    """Samples, and those for all peers, where a sample has 1000 coordinates and more, if they are less."""
    peers: Path = contest.CACHE / "peers_sde.jsonl"
    """File of the peers' results: read where it has them, else written."""
    out: Path = contest.CACHE / "ours_sde.jsonl"
    """File for our results; what it holds of other problems stays."""


Sampler = Callable[[Tensor, int], tuple[Tensor, int]]
"""(x_T (n, D), seed) -> (samples at t_min, evaluations used)."""


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
        options = {"solver": solver, "steps": steps, "grid": grid, "eta": eta, "noise": noise}
        return ss.sample(problem.score, tuple(x.shape), x=x, denoise=False, **options)  # type: ignore[arg-type]

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
    return LawResult(problem.name, nfe, used, *contest.named(solver, grid), samples, together(each), each)


LARGE = 1000


def sizes(config: Config, problem: Mixture) -> tuple[int, int]:
    """How many samples there are, and with how many everybody runs."""
    most = (config.samples, config.screen)
    if problem.dimension < LARGE:
        return most
    return min(most[0], config.large[0]), min(most[1], config.large[1])


def run_peers(config: Config, problem: Mixture, nfe: int, results: Sequence[LawResult]) -> list[LawResult]:
    """Every peer on every grid with few samples; then the best of them with all."""
    entries = [(name, peer, grid) for name, peer in tournament.sde().items() for grid in GRIDS]
    samples, screen = sizes(config, problem)
    first = []
    for i, (_, peer, grid) in enumerate(entries):
        each, _ = judged(problem, peer_sampler(problem, peer, grid, nfe), screen, 1, config.slices)
        first.append((each[0], i))
    found = []
    for _, i in sorted(first)[: config.keep]:
        name, peer, grid = entries[i]
        sampler = peer_sampler(problem, peer, grid, nfe)
        each, used = judged(problem, sampler, samples, config.repeats, config.slices)
        found.append(LawResult(problem.name, nfe, used, name, grid, samples, together(each), each))
    print(f"measured the peers on {problem.name} at {nfe} evaluations", flush=True)
    return found


def run_floor(config: Config, problem: Mixture, results: Sequence[LawResult]) -> list[LawResult]:
    """The floor, of enough sets to be sure of it."""
    return [floor(problem, sizes(config, problem)[0], max(8, config.repeats), config.slices)]


def law(name: str) -> Mixture:
    """A mixture of which samples of the law at t_min are known.

    Raises:
        ValueError: it is guided or rough, or none.
    """
    if name not in LAWS:
        raise ValueError(f"the laws that are known are {', '.join(LAWS)}; got {name!r}.")
    return mixture(name)


def peer_results(config: Config) -> list[LawResult]:
    """The floors, whose budget is 0, and the peers: from the file, or measured and added to it."""
    wanted: dict[contest.Key, contest.Measuring[LawResult]] = {}
    for name in config.problems:
        problem = law(name)
        samples, _ = sizes(config, problem)
        wanted[name, 0, samples] = partial(run_floor, config, problem)
        for nfe in config.nfe:
            wanted[name, nfe, samples] = partial(run_peers, config, problem, nfe)
    return contest.measured(config.peers, LawResult, wanted, key=lambda r: (r.problem, r.budget, r.samples))


def table(name: str, peers: list[LawResult], ours: list[LawResult]) -> str:
    """Markdown: the best peer, ours, and the ratios to it and to the floor, for one problem."""
    mine = [r for r in ours if r.problem == name]
    peers = [p for p in peers if p.problem == name and p.samples == mine[0].samples]
    least = next(p.distance for p in peers if p.solver == "exact")
    heads = ["NFE:", "best peer", "its distance", "ours", "our distance", "ours / best peer:", "ours / floor:"]
    rows = []
    for r in mine:
        field = [p for p in peers if p.budget == r.budget]
        if field:
            first = min(field, key=lambda p: p.distance)
            cells = [str(r.budget), first.name, f"{first.distance:.2e}", r.name, f"{r.distance:.2e}"]
            rows.append([*cells, f"{r.distance / first.distance:.2f}", f"{r.distance / least:.2f}"])
    title = f"sliced Wasserstein-2 to the exact law, {mine[0].samples} samples; between exact sets {least:.2e}"
    return f"**{name}**, {title}\n\n{contest.markdown(heads, rows)}"


def main(config: Config) -> None:
    """Measure what is missing and print the tables."""

    def ours(solver: ss.Solver | None, grid: GridRule | None, name: str, nfe: int) -> LawResult:
        samples, _ = sizes(config, law(name))
        return evaluate(solver, grid, law(name), nfe, samples=samples, repeats=config.repeats, slices=config.slices)

    contest.compete(config, peer_results, ours, table)


if __name__ == "__main__":
    main(tyro.cli(Config))
