"""Bar 1, fitted: samplers made by ``scoresde.fitting.fit``, on noise that the fit has not seen, beside the best peer.

    python examples/benchmarks/fitted.py --problems mixture2d-vp --nfe 5 6 8 10

Peers are free to use their best solver and grid; their results are those that ode.py measured and keeps in --peers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

import contest
from contest import Result
from contest.problems import NAMES, Mixture
from scoresde.fitting import fit
from scoresde.solvers import Fitted

# The bars by number of evaluations, as shares of the best peer's error; without the worst 5 % of the samples.
BARS = {5: 0.5}
BAR, TRIMMED_BAR = 0.4, 0.25


@dataclass
class Config:
    """Fit samplers and compare them with the peers."""

    problems: tuple[str, ...] = NAMES
    """Which problems; the folder of a trained network is one too."""
    nfe: tuple[int, ...] = (5, 6, 8, 10)
    """Score evaluations, for each of which one sampler is fitted."""
    samples: int = 1000
    """Samples whose distances are averaged; none of them is fitted to."""
    trajectories: int = 2000
    """Trajectories that the fit may see."""
    batch: int = 250
    """The fit calls the score with so many samples."""
    seconds: float = 60.0
    """Time of the optimisation, without that for the end points of the trajectories."""
    seed: int = 7
    """Of the trajectories."""
    threads: int = 1
    """Cores for each fit."""
    peers: Path = contest.CACHE / "peers_ode.jsonl"
    """File of the peers' results, written by ode.py."""
    out: Path = contest.CACHE / "fitted_ode.jsonl"
    """File for our results."""
    folder: Path = contest.CACHE / "fitted"
    """Folder for the samplers, as JSON."""
    cache: Path = contest.CACHE
    """Folder for the exact end points."""


def fitted(config: Config, name: str, nfe: int) -> tuple[Result, Fitted]:
    """A sampler and its error on the setting's own noise."""
    at = contest.setting(name, config.samples, cache=config.cache)
    sampler = fit(
        at.problem.score,
        steps=nfe,
        shape=(config.trajectories, *at.x.shape[1:]),
        batch=config.batch,
        seed=config.seed,
        iterations=10_000,
        budget=config.seconds,
        # trained networks are compared in float64
        dtype=torch.float32 if isinstance(at.problem, Mixture) else torch.float64,
    )
    result = contest.evaluate(sampler, lambda sde, steps: sampler.grid, at, nfe)
    return replace(result, solver=f"scoresde {sampler.report.chosen}", grid="its own"), sampler


HEADS = [
    "problem",
    "NFE:",
    "fitted",
    "best peer",
    "fitted / peer",
    "bar met",
    "fitted / our best fixed",
    "fit, iterations",
]


def row(result: Result, peers: list[Result], sampler: Fitted) -> list[str]:
    """One line of the table."""
    report = sampler.report
    cells = [result.problem, str(result.nfe), f"{result.rms:.2e} ({result.trimmed:.2e})"]
    if peers:
        first, firm = contest.best(peers), contest.best(peers, "trimmed")
        ratio, trimmed = result.rms / first.rms, result.trimmed / firm.trimmed
        met = ratio <= BARS.get(result.budget, BAR) and trimmed <= TRIMMED_BAR
        cells += [f"{first.rms:.2e} ({firm.trimmed:.2e})", f"{ratio:.3f} ({trimmed:.3f})", "yes" if met else "no"]
    else:
        cells += ["–", "–", "–"]
    cells += [f"{report.held_out / report.fixed:.3f} ({report.held_out_trimmed / report.fixed_trimmed:.3f})"]
    return [*cells, f"{report.seconds:.0f} s, {report.iterations}"]


def main(config: Config) -> None:
    """Fit, compare, print."""
    torch.set_num_threads(config.threads)
    peers = [r for r in contest.read(config.peers, Result) if r.samples == config.samples]
    results = contest.read(config.out, Result)
    config.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in config.problems:
        for nfe in config.nfe:
            result, sampler = fitted(config, name, nfe)
            sampler.save(config.folder / f"{Path(name).name}-{nfe}.json")
            results = [r for r in results if (r.problem, r.budget) != (name, nfe)] + [result]
            contest.write(config.out, results)
            rows.append(row(result, [p for p in peers if (p.problem, p.budget) == (name, nfe)], sampler))
            print(", ".join(rows[-1]), flush=True)
    print(contest.markdown(HEADS, rows))


if __name__ == "__main__":
    main(tyro.cli(Config))
