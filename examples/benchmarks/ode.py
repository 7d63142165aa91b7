"""Bar 1: distance to the exact end point of the probability-flow ODE for a given number of score evaluations.

    python examples/benchmarks/ode.py --ours default "Heun()@karras"
    python examples/benchmarks/ode.py --problems spectral-vp heavy-edm digits64-guided4-vp "runs/digits@guided2"

Every peer, free to use its best solver and grid, and ours, on the same exact score in float64 from the same noise. The
peers' results are kept in --peers and read from there the next time; remove the file to run them again. What is named
in --problems is said in contest/problems.py and contest/learned.py.
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
from contest.problems import LAWS, Mixture, problem
from peers import tournament
from peers.grids import TUNED
from peers.tournament import Entry

LARGE = 1000


@dataclass
class Config(contest.ContestFlags):
    """Compare integrators of the probability-flow ODE."""

    nfe: tuple[int, ...] = (5, 6, 8, 10, 15, 20, 35, 50, 100)
    """Score evaluations allowed."""
    samples: int = 1000
    """Samples whose distances are averaged."""
    screen: int = 128
    """Samples on which every peer runs on every grid before the best of them run on all."""
    large: tuple[int, int] = (16, 2)
    """The same two numbers where a sample has 1000 coordinates and more, if they are less."""
    keep: int = 10
    """How many of them."""
    few: bool = False
    """Run, on what is not one of the laws themselves, only those of the peers that are among the three best on one of
    the laws; of networks, which take long, always."""
    peers: Path = contest.CACHE / "peers_ode.jsonl"
    """File of the peers' results: read where it has them, else written."""
    out: Path = contest.CACHE / "ours_ode.jsonl"
    """File for our results; what it holds of other problems stays."""
    cache: Path = contest.CACHE
    """Folder for the exact end points."""


def sizes(config: Config, name: str) -> tuple[int, int]:
    """How many samples there are, and on how many of them everybody runs."""
    most = (config.samples, config.screen)
    if problem(name).dimension < LARGE:
        return most
    return min(most[0], config.large[0]), min(most[1], config.large[1])


def field(name: str, nfe: int, results: Sequence[Result], *, few: bool = False) -> list[Entry]:
    """Everybody; or the three best at ``nfe`` on each of the laws that have been measured."""
    everybody = tournament.entries(tournament.ode())
    if name in LAWS or (isinstance(problem(name), Mixture) and not few):
        return everybody
    known = set()
    for law in LAWS:
        ran = [r for r in results if (r.problem, r.budget) == (law, nfe)]
        known |= {(r.solver, r.grid) for r in sorted(ran, key=lambda r: r.rms)[:3]}
    return [e for e in everybody if (e[0], e[2]) in known] if known else everybody


def run_peers(config: Config, name: str, nfe: int, results: Sequence[Result]) -> list[Result]:
    """The best peers on one problem with one budget."""
    samples, screen = sizes(config, name)
    at = contest.setting(name, samples, cache=config.cache)
    some = field(name, nfe, results, few=config.few)
    found = tournament.best_of(some, at, nfe, screen=screen, keep=config.keep)
    print(f"measured {len(some)} peers on {name} at {nfe} evaluations", flush=True)
    return found


def peer_results(config: Config) -> list[Result]:
    """From the file, or measured and added to it."""
    wanted: dict[contest.Key, contest.Measuring[Result]] = {
        (name, nfe, sizes(config, name)[0]): partial(run_peers, config, name, nfe)
        for name in config.problems
        for nfe in config.nfe
    }
    return contest.measured(config.peers, Result, wanted, key=lambda r: (r.problem, r.budget, r.samples))


def rivals(r: Result, peers: list[Result]) -> list[Result]:
    """Those peers that did the same as ours."""
    return [p for p in peers if (p.problem, p.budget, p.samples) == (r.problem, r.budget, r.samples)]


def table(name: str, peers: list[Result], ours: list[Result]) -> str:
    """Markdown for one problem: ours beside the best peer on the shipped grids, and on those tuned by hand too."""
    heads = ["NFE:", "ours", "error", "best peer", "error", "ours / peer"]
    heads += ["with a hand-tuned grid", "error", "ours / peer"]
    rows, samples = [], 0
    for r in (r for r in ours if r.problem == name):
        field, samples = rivals(r, peers), r.samples
        cells = [str(r.budget), r.name, f"{r.rms:.2e} ({r.trimmed:.2e})"]
        for some in ([p for p in field if p.grid not in TUNED], field):
            cells += _beside(r, some) if some else ["–"] * 3
        rows.append(cells)
    title = f"root-mean-square error of a coordinate, {samples} samples (in brackets: without the worst 5 % of them)"
    return f"**{name}**, {title}\n\n{contest.markdown(heads, rows)}"


def _beside(r: Result, peers: list[Result]) -> list[str]:
    """The best peer, its errors, and ours over them."""
    first, firm = contest.best(peers), contest.best(peers, "trimmed")
    errors = f"{first.rms:.2e} ({firm.trimmed:.2e})"
    return [first.name, errors, f"{r.rms / first.rms:.2f} ({r.trimmed / firm.trimmed:.2f})"]


def banded(name: str, peers: list[Result], ours: list[Result]) -> str:
    """Markdown for a problem with directions in every band of the spectrum: the errors of ours and of the best peer in
    each; nothing for another.
    """
    rows = []
    for r in (r for r in ours if r.problem == name):
        field = [p for p in rivals(r, peers) if p.bands]
        mine = _all_bands(r)
        if mine and field:
            first = contest.best(field)
            theirs = _all_bands(first)
            cells = [f"{a:.1e} / {b:.1e} = {a / b:.2g}" for a, b in zip(mine, theirs, strict=True)]
            rows.append([str(r.budget), r.name, first.name, *cells])
    if not rows:
        return ""
    heads = ["NFE:", "ours", "best peer", "large variance", "middle", "small"]
    return f"**{name}**, ours / best peer by the variance of the direction\n\n{contest.markdown(heads, rows)}"


def _all_bands(r: Result) -> list[float]:
    """The errors in the bands where there are some in each, else none."""
    found = [band for band in r.bands or [] if band is not None]
    return found if len(found) == len(contest.BANDS) + 1 else []


def main(config: Config) -> None:
    """Measure what is missing and print the tables."""

    def ours(solver: ss.Solver | None, grid: contest.GridRule | None, name: str, nfe: int) -> Result:
        return contest.evaluate(solver, grid, contest.setting(name, sizes(config, name)[0], cache=config.cache), nfe)

    contest.compete(config, peer_results, ours, table)


if __name__ == "__main__":
    main(tyro.cli(Config))
