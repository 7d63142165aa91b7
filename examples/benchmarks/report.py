"""Writes the tables of docs/benchmarks.md from what the scripts beside it left in their folder.

    python examples/benchmarks/report.py

Each table lies between the comments <!-- NAME --> and <!-- end NAME -->; a result that is not there leaves its table.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import tyro

import contest
import loop_overhead
import ode
import overhead
import sde
import training
from contest import LawResult, Result
from loop_overhead import Overhead
from overhead import Ratio


@dataclass
class Config:
    """Write the tables of the documentation."""

    results: Path = contest.CACHE
    """Folder of the results."""
    page: Path = Path("docs/benchmarks.md")
    """The page whose tables are written anew."""


def tables(results: Path) -> dict[str, str]:
    """Every table that the results allow, by name."""
    found = {}
    peers = contest.read(results / "peers_ode.jsonl", Result)
    for name, file in (("ode", "ours_ode.jsonl"), ("fitted", "fitted_ode.jsonl")):
        ours = contest.read(results / file, Result)
        if peers and ours:
            names = tuple(dict.fromkeys(r.problem for r in ours))
            found[name] = "\n\n".join(ode.table(p, peers, ours) for p in names)
            bands = [some for p in names if (some := ode.banded(p, peers, ours))]
            if name == "ode" and bands:
                found["bands"] = "\n\n".join(bands)
    laws = contest.read(results / "peers_sde.jsonl", LawResult)
    own = contest.read(results / "ours_sde.jsonl", LawResult)
    if laws and own:
        found["sde"] = "\n\n".join(sde.table(p, laws, own) for p in dict.fromkeys(r.problem for r in own))
    ratios = results / "overhead.json"
    if ratios.exists():
        found["overhead"] = overhead.table([Ratio(**row) for row in json.loads(ratios.read_text("utf-8"))])
    loop = results / "loop_overhead.json"
    if loop.exists():
        found["loop overhead"] = loop_overhead.table([Overhead(**row) for row in json.loads(loop.read_text("utf-8"))])
    steps = results / "training.json"
    if steps.exists():
        found["training"] = training.table([training.Row(**row) for row in json.loads(steps.read_text("utf-8"))])
    return found


def filled(page: str, tables: dict[str, str]) -> str:
    """The page with each table in its place.

    Raises:
        ValueError: the page has no place for a table.
    """
    for name, table in tables.items():
        place = re.compile(f"<!-- {name} -->\n.*?<!-- end {name} -->", re.DOTALL)
        if not place.search(page):
            raise ValueError(f"the page has no place for the table {name!r}: <!-- {name} --> ... <!-- end {name} -->.")
        page = place.sub(lambda _, t=table, n=name: f"<!-- {n} -->\n{t}\n<!-- end {n} -->", page)  # type: ignore[misc]
    return page


def main(config: Config) -> None:
    """Write the page."""
    found = tables(config.results)
    config.page.write_text(filled(config.page.read_text("utf-8"), found), "utf-8")
    print(f"{config.page}: wrote {', '.join(found) or 'nothing, no results'}")


if __name__ == "__main__":
    main(tyro.cli(Config))
