"""Bar 1: distance to the exact end point of the probability-flow ODE for a given number of score evaluations.

    python examples/benchmarks/ode.py --ours default "Heun()@karras"

Every peer, free to use its best solver and grid, and ours, on the same exact score in float64 from the same noise. The
peers' results are kept in --peers and read from there the next time; remove the file to run them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import contest
import peer_edm
import peers_azula
import peers_diffusers
import peers_kdiffusion
import torch
import tyro
from contest import Entry, Result
from peer_grids import TUNED
from peers import Peer
from problems import NAMES


@dataclass
class Config:
    """Compare integrators of the probability-flow ODE."""

    ours: tuple[str, ...] = ("default",)
    """Solvers of scoresde with their grids, "Heun()@karras(rho=5)"; "default" is what scoresde.sample takes."""
    problems: tuple[str, ...] = NAMES
    """Which problems; the folder of a trained network is one too (with fewer samples, for it takes longer)."""
    nfe: tuple[int, ...] = (5, 6, 8, 10, 15, 20, 35, 50, 100)
    """Score evaluations allowed."""
    samples: int = 1000
    """Samples whose distances are averaged."""
    screen: int = 128
    """Samples on which every peer runs on every grid before the best of them run on all."""
    keep: int = 10
    """How many of them."""
    peers: Path = contest.CACHE / "peers_ode.jsonl"
    """File of the peers' results: read where it has them, else written."""
    out: Path = contest.CACHE / "ours_ode.jsonl"
    """File for our results."""
    cache: Path = contest.CACHE
    """Folder for the exact end points."""


def all_peers() -> dict[str, Peer]:
    """Every deterministic sampler by name."""
    return {**peers_kdiffusion.ode(), **peers_diffusers.ode(), **peers_azula.ode(), **peer_edm.ode()}


def field(name: str, nfe: int, results: list[Result]) -> list[Entry]:
    """Everybody; on a network, which takes long, the three best at ``nfe`` on each of the mixtures."""
    everybody = contest.entries(all_peers())
    known = set()
    for mixture in NAMES:
        ran = [r for r in results if (r.problem, r.budget) == (mixture, nfe)]
        known |= {(r.solver, r.grid) for r in sorted(ran, key=lambda r: r.rms)[:3]}
    return everybody if name in NAMES or not known else [e for e in everybody if (e[0], e[2]) in known]


def peer_results(config: Config) -> list[Result]:
    """From the file, or measured and added to it."""
    results = contest.read(config.peers, Result)
    for name in config.problems:
        for nfe in config.nfe:
            if any((r.problem, r.budget, r.samples) == (name, nfe, config.samples) for r in results):
                continue
            at = contest.setting(name, config.samples, cache=config.cache)
            results += contest.tournament(field(name, nfe, results), at, nfe, screen=config.screen, keep=config.keep)
            contest.write(config.peers, results)
            print(f"measured the peers on {name} at {nfe} evaluations", flush=True)
    return [r for r in results if r.samples == config.samples]


def our_results(config: Config) -> list[Result]:
    """Measured."""
    results = []
    for text in config.ours:
        solver, grid = contest.parsed(text)
        for name in config.problems:
            at = contest.setting(name, config.samples, cache=config.cache)
            results += [contest.evaluate(solver, grid, at, nfe) for nfe in config.nfe]
    return results


def table(name: str, peers: list[Result], ours: list[Result]) -> str:
    """Markdown for one problem: ours beside the best peer on the shipped grids, and on those tuned by hand too."""
    lines = [
        f"**{name}**, root-mean-square error of a coordinate (in brackets: without the worst 5 % of the samples)",
        "",
        "| NFE | ours | error | best peer | error | ours / peer | with a hand-tuned grid | error | ours / peer |",
        "| ---: | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in (r for r in ours if r.problem == name):
        field = [p for p in peers if (p.problem, p.budget) == (name, r.budget)]
        cells = [str(r.budget), f"{r.solver.removeprefix('scoresde ')}, {r.grid}", f"{r.rms:.2e} ({r.trimmed:.2e})"]
        for rivals in ([p for p in field if p.grid not in TUNED], field):
            if rivals:
                first, firm = contest.best(rivals), contest.best(rivals, "trimmed")
                cells += [f"{first.solver}, {first.grid}", f"{first.rms:.2e} ({firm.trimmed:.2e})"]
                cells += [f"{r.rms / first.rms:.2f} ({r.trimmed / firm.trimmed:.2f})"]
        lines.append(f"| {' | '.join(cells)} |")
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
