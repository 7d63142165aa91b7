"""Teach a captioned model a subject from a few pictures: a new word, all weights, or low-rank adapters.

    python examples/personalise.py                             # trains a base model first, writes runs/personalise
    python examples/personalise.py --model runs/conditional    # that of conditional.py, task caption
    python examples/personalise.py --task lora --ranks 1 4     # one task
    python examples/personalise.py --subject my-pictures       # folders named as captions, "a sks three, top left"

    textual_inversion    a vector, or two, for a new word; the network as it was (Gal et al. 2022)
    dreambooth           all weights, with and without pictures of the class (Ruiz et al. 2022)
    lora                 adapters of several ranks, beside full tuning (Hu et al. 2021)

The subject is a bold orange hand, 5 pictures; the model saw plain digits in six colours. An independent reader says
what share of the pictures drawn shows the subject, how many are true to the other words of their captions, and what has
become of the other digits. Every figure stands beside that of the model as it was.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scoresde.cli.command import command
from scoresde.cli.outputs import finish, show, told
from scoresde.files import make_writable
from shared.personalise import TASKS
from shared.personalise.task import Flags, make_bench

if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[(*TASKS, "all")]


@dataclass(frozen=True, kw_only=True)
class Config(Flags):
    """Teach a captioned model a subject, and measure what it has learned and what it has forgotten."""

    task: TaskName = "all"
    """How; all is one way after the other."""
    out: Path = Path("runs/personalise")
    """Folder for everything that is written."""


def main(config: Config) -> dict[str, Any]:
    """Train or load, tune, draw, measure, write; the report."""
    start = time.perf_counter()
    out = config.begin(config.out)
    bench = make_bench(config, out)
    report: dict[str, Any] = {
        "config": told(config, out),
        "parameters": bench.parameters,
        "subject_pictures": len(bench.pictures),
        "real": bench.real,
    }
    show("real pictures of the subject", bench.real)
    for name in TASKS if config.task == "all" else [config.task]:
        print(f"-- {name} --", flush=True)
        report[name] = TASKS[name](config, bench, make_writable(out / name))
    finish(report, out, start)
    return report


if __name__ == "__main__":
    command(main, Config)
