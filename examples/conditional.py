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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import caption_task
import classifier_task
import image_tasks
import label_task
from command_line import command, use_threads
from conditioned import Flags
from outputs import make_folder, save_json

Task = Callable[[Flags, Path], dict[str, Any]]


@dataclass(kw_only=True)
class Config(Flags):
    """Train networks that take captions, images, labels and numbers; draw under conditions, and measure."""

    task: Literal["caption", "superresolution", "mask", "segment", "label", "classifier", "all"] = "all"
    """What to learn; all learns one after the other."""
    out: Path | None = None
    """Folder for everything that is written, one inside for each task; default runs/conditional."""
    data: Path | None = None
    """Superresolution: images of your own, a folder or a Parquet file, instead of scikit-learn's digits."""
    factor: Literal[2, 4] = 2
    """Superresolution: the side of the squares of pixels of which only the mean is known."""

    def check(self) -> None:
        """Raise ValueError for a flag that would fail only after training."""
        super().check()
        if self.data is not None and self.task != "superresolution":
            raise ValueError(f"--data is for --task superresolution alone, and this is --task {self.task}.")
        if self.factor != 2 and self.task not in ("superresolution", "all"):
            raise ValueError(f"--factor is for --task superresolution, and this is --task {self.task}; leave it out.")
        if self.data is not None and not self.data.expanduser().exists():
            raise FileNotFoundError(f"no data at {self.data}.")


def tasks(config: Config) -> dict[str, Task]:
    """The tasks that are asked for, by name."""
    every: dict[str, Task] = {
        "caption": caption_task.run,
        "superresolution": partial(image_tasks.superresolution, data=config.data, factor=config.factor),
        "mask": image_tasks.mask,
        "segment": image_tasks.segment,
        "label": label_task.run,
        "classifier": classifier_task.run,
    }
    return every if config.task == "all" else {config.task: every[config.task]}


def main(config: Config) -> dict[str, dict[str, Any]]:
    """Train, draw, measure, write; the reports."""
    config.check()
    use_threads(config.threads)
    out = make_folder(Path("runs") / "conditional" if config.out is None else config.out)
    reports = {}
    for name, task in tasks(config).items():
        print(f"-- {name} --", flush=True)
        start, folder = time.perf_counter(), make_folder(out / name)
        figures = task(config, folder)
        seconds = round(time.perf_counter() - start, 1)
        reports[name] = {"config": {**asdict(config), "out": str(out)}, "seconds": seconds, **figures}
        save_json(folder / "report.json", reports[name])
        print(f"{seconds:.0f} s; pictures and report.json are in {folder}", flush=True)
    return reports


if __name__ == "__main__":
    command(main, Config)
