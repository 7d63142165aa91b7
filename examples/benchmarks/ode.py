"""Bar 1: distance to the exact end point of the probability-flow ODE for a given number of score evaluations.

    python examples/benchmarks/ode.py --ours default "Heun()@karras"

Every peer, free to use its best solver and grid, and ours, on the same exact score in float64 from the same noise. The
peers' results are kept in --peers and read from there the next time; remove the file to run them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

import contest
import scoresde as ss
from contest import Result
from contest.problems import NAMES
from peers import tournament
from peers.grids import TUNED
from peers.tournament import Entry


@dataclass
class Config(contest.ContestFlags):
    """Compare integrators of the probability-flow ODE."""

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


def field(name: str, nfe: int, results: Sequence[Result]) -> list[Entry]:
    """Everybody; on a network, which takes long, the three best at ``nfe`` on each of the mixtures."""
    everybody = tournament.entries(tournament.ode())
    known = set()
    for mixture in NAMES:
        ran = [r for r in results if (r.problem, r.budget) == (mixture, nfe)]
        known |= {(r.solver, r.grid) for r in sorted(ran, key=lambda r: r.rms)[:3]}
    return everybody if name in NAMES or not known else [e for e in everybody if (e[0], e[2]) in known]


def run_peers(config: Config, name: str, nfe: int, results: Sequence[Result]) -> list[Result]:
    """The best peers on one problem with one budget."""
    at = contest.setting(name, config.samples, cache=config.cache)
    found = tournament.best_of(field(name, nfe, results), at, nfe, screen=config.screen, keep=config.keep)
    print(f"measured the peers on {name} at {nfe} evaluations", flush=True)
    return found


def peer_results(config: Config) -> list[Result]:
    """From the file, or measured and added to it."""
    wanted: dict[contest.Key, contest.Measuring[Result]] = {
        (name, nfe, config.samples): partial(run_peers, config, name, nfe)
        for name in config.problems
        for nfe in config.nfe
    }
    results = contest.measured(config.peers, Result, wanted, key=lambda r: (r.problem, r.budget, r.samples))
    return [r for r in results if r.samples == config.samples]


def table(name: str, peers: list[Result], ours: list[Result]) -> str:
    """Markdown for one problem: ours beside the best peer on the shipped grids, and on those tuned by hand too."""
    heads = ["NFE:", "ours", "error", "best peer", "error", "ours / peer"]
    heads += ["with a hand-tuned grid", "error", "ours / peer"]
    rows = []
    for r in (r for r in ours if r.problem == name):
        field = [p for p in peers if (p.problem, p.budget) == (name, r.budget)]
        cells = [str(r.budget), r.name, f"{r.rms:.2e} ({r.trimmed:.2e})"]
        for rivals in ([p for p in field if p.grid not in TUNED], field):
            if rivals:
                first, firm = contest.best(rivals), contest.best(rivals, "trimmed")
                cells += [first.name, f"{first.rms:.2e} ({firm.trimmed:.2e})"]
                cells += [f"{r.rms / first.rms:.2f} ({r.trimmed / firm.trimmed:.2f})"]
        rows.append(cells)
    title = "root-mean-square error of a coordinate (in brackets: without the worst 5 % of the samples)"
    return f"**{name}**, {title}\n\n{contest.markdown(heads, rows)}"


def main(config: Config) -> None:
    """Measure what is missing and print the tables."""

    def ours(solver: ss.Solver | None, grid: contest.GridRule | None, name: str, nfe: int) -> Result:
        return contest.evaluate(solver, grid, contest.setting(name, config.samples, cache=config.cache), nfe)

    contest.compete(config, peer_results, ours, table)


if __name__ == "__main__":
    main(tyro.cli(Config))
