"""Sections of measurements within a budget of seconds, each written down when it is done: a kill loses one at most.

run_sections([Section("sync", 60, sync)], Bench(torch.device("cuda"), seconds=600, out=Path("gpu")))
"""

from __future__ import annotations

import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

LARGEST = 16 * 2**20
"""Bytes of one file: what a loan brings back."""


@dataclass
class Bench:
    """Where it runs, how long it may, and where results go.

    Attributes:
        device: of everything.
        seconds: for all sections together.
        out: folder of the results.
        small: sizes for a smoke test.
    """

    device: torch.device
    seconds: float
    out: Path
    small: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.monotonic() - self.began)

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done what it was asked."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def timed(self, work: Callable[[], object], *, seconds: float = 2.0, most: int = 50) -> float:
        """Seconds of one call, after one to warm up: the mean over calls that take about as long as told."""
        work()
        self.wait()
        began, count = time.perf_counter(), 0
        while count < (2 if self.small else most) and time.perf_counter() - began < seconds:
            work()
            self.wait()
            count += 1
        return (time.perf_counter() - began) / count

    def among(self, cases: Sequence[Any], reserve: float) -> Iterator[Any]:
        """The cases while more than ``reserve`` seconds are left."""
        for case in cases:
            if self.left < reserve:
                return
            yield case

    def memory(self, work: Callable[[], object]) -> int:
        """Bytes that a call takes at most beyond what was there; 0 where that cannot be asked."""
        if not self.cuda:
            work()
            return 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) - before


@dataclass(frozen=True)
class Section:
    """A name, the seconds without which it is not begun, and what it measures: rows of figures, as they come."""

    name: str
    seconds: float
    measure: Callable[[Bench], Iterator[dict[str, Any]]]


def run_sections(sections: Sequence[Section], bench: Bench) -> dict[str, Any]:
    """Each in turn, by priority; ``out``/gpu.json is whole after every one of them, and holds what failed and why."""
    found: dict[str, Any] = {"machine": machine(bench), "sections": {}}
    write(bench.out, found)
    for section in sections:
        rows: list[dict[str, Any]] = []
        said: dict[str, Any] = {"rows": rows}
        began = time.monotonic()
        if bench.left < (0 if bench.small else section.seconds):
            said["left out"] = f"{bench.left:.0f} s were left of {section.seconds:.0f}"
        else:
            try:
                for row in section.measure(bench):
                    rows.append(row)
                    print(section.name, json.dumps(row), flush=True)
            except Exception as error:  # the others are worth their seconds, too
                said["error"] = "".join(traceback.format_exception(error))[-4000:]
                print(section.name, "FAILED", error, flush=True)
        said["seconds"] = round(time.monotonic() - began, 1)
        found["sections"][section.name] = said
        write(bench.out, found)
        if bench.cuda:
            torch.cuda.empty_cache()
    return found


def machine(bench: Bench) -> dict[str, Any]:
    """The card and the versions."""
    told: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(bench.device),
        "date": time.strftime("%Y-%m-%d"),
        "small": bench.small,
    }
    if bench.cuda:
        card = torch.cuda.get_device_properties(bench.device)
        told |= {"card": card.name, "memory": card.total_memory, "cuda": torch.version.cuda}
    return told


def write(out: Path, found: dict[str, Any]) -> None:
    """Whole or not at all, and no larger than what can be brought back."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1)
    if len(text) > LARGEST:
        raise ValueError(f"{len(text)} bytes of results are more than one file may have, {LARGEST}.")
    partial = out / "gpu.json.part"
    partial.write_text(text + "\n")
    os.replace(partial, out / "gpu.json")
