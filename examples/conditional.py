"""Conditional generation on real data: by caption, by image, by label; each with figures and pictures.

    python examples/conditional.py --task caption           # "a red three, top left", writes runs/conditional/caption
    python examples/conditional.py                          # all tasks, one after the other
    python examples/conditional.py --resume                 # go on after a kill
    python examples/conditional.py --task superresolution --data cifar/train.parquet --factor 4

    caption          16x16 pictures composed from real digits, by sentence; digit, colour and place are read by judges
    superresolution  digits, or pictures of your own, from means of 2x2 or 4x4 pixels
    mask             digits from masks of their ink
    segment          masks of digits from pictures with clutter and noise
    label            digits by class, by amount of ink, or both
    classifier       digits by the gradient of a classifier of noisy digits, and whether it is calibrated

Every figure stands beside those of real pictures and of a control: the same network, its conditions hidden.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scoresde.cli.command import command
from scoresde.cli.outputs import finish, told
from scoresde.files import make_writable
from shared.conditional import TASKS
from shared.conditional.task import Flags

if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[(*TASKS, "all")]


@dataclass(frozen=True, kw_only=True)
class Config(Flags):
    """Train networks that take captions, images, labels and numbers; draw under conditions, and measure."""

    task: TaskName = "all"
    """What to learn; all learns one after the other."""
    out: Path | None = None
    """Folder for everything that is written, one inside for each task; default runs/conditional."""

    def check(self) -> None:
        super().check()
        if self.data is not None and self.task != "superresolution":
            raise ValueError(f"--data is for --task superresolution alone, and this is --task {self.task}.")
        if self.factor != 2 and self.task not in ("superresolution", "all"):
            raise ValueError(f"--factor is for --task superresolution, and this is --task {self.task}; leave it out.")
        if self.data is not None and not self.data.expanduser().exists():
            raise FileNotFoundError(f"no data at {self.data}.")


def main(config: Config) -> dict[str, dict[str, Any]]:
    """Train, draw, measure, write; the reports."""
    out = config.begin(Path("runs") / "conditional" if config.out is None else config.out)
    reports = {}
    for name in TASKS if config.task == "all" else [config.task]:
        print(f"-- {name} --", flush=True)
        start, folder = time.perf_counter(), make_writable(out / name)
        reports[name] = {"config": told(config, out), **TASKS[name](config, folder)}
        finish(reports[name], folder, start)
    return reports


if __name__ == "__main__":
    command(main, Config)
