"""What a command tells besides pictures: lines, arrays, and a report of its flags, what it found and how long it took.

    report = {"config": told(config, out), "accuracy": 0.99}
    finish(report, out, start)

Each file is there whole or not at all (:mod:`scoresde.files`). Standard output holds what was found, line by line;
progress bars go to standard error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scoresde.data.source import shown
from scoresde.files import replacing, write_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def say(line: str = "") -> None:
    """A line on standard output, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def brief(value: object) -> str:
    """The repr of something for a line: cut where it is long, as of a schedule of a thousand numbers."""
    return " ".join(shown(" ".join(repr(value).split())).split())


@contextmanager
def gone_if_empty(folder: Path, *, there: bool) -> Iterator[None]:
    """After an error inside a folder that was made for it goes again, where nothing came into it.

    Args:
        folder: for results.
        there: whether it was there before.
    """
    try:
        yield
    except BaseException:
        if not there:
            with suppress(OSError):  # something is in it
                folder.rmdir()
        raise


def save_array(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write an .npy file."""
    with replacing(path) as partial:
        np.save(partial, array, allow_pickle=False)


def file_name(title: str, ending: str) -> str:
    """A title as the name of a file: "label, scale 1" and ".png" as label-scale-1.png."""
    return title.replace(",", "").replace(" ", "-") + ending


def told(config: DataclassInstance, out: Path) -> dict[str, Any]:
    """The flags of a run as its report repeats them."""
    return {**asdict(config), "out": str(out)}


def show(name: str, figures: Mapping[str, Any]) -> None:
    """One line of figures."""
    say(f"{name:34s}" + "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))


def finish(report: dict[str, Any], out: Path, start: float) -> None:
    """Add the seconds since ``start``, write report.json, and say where all of it is."""
    report["seconds"] = round(time.perf_counter() - start, 1)
    write_json(out / "report.json", report)
    say(f"{report['seconds']:.0f} s in all; pictures and report.json are in {out}")
