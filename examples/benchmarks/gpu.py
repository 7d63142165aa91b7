"""All that only a GPU can show, in one script that fits into a loan of some minutes and needs nothing but torch.

    python examples/benchmarks/gpu.py --seconds 600 --out runs/benchmarks/gpu
    python examples/benchmarks/gpu.py --device cpu --small                     # does it run? in a minute, anywhere

In order of priority, each written to gpu.json in the folder when it is done:

- waits: torch's sync debug mode over every solver of fixed steps, guidance and posterior;
- agreement: every solver against the CPU, float64 to 1e-10, float32, and a network in bfloat16;
- graphs: replays of CUDA graphs are the network's own numbers, and how much faster;
- training: images a second of the presets, in float32, TF32, bfloat16, channels last, compiled, with the share of the
  card's bfloat16 rate and the seconds of compiling;
- checkpointing: memory with activations computed again; sampling: samples a second; peers: diffusers, if installed.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from card import Bench, Section, exact, run_sections, speed

SECTIONS = [
    Section("waits", 60, exact.waits),
    Section("agreement", 60, exact.agreement),
    Section("graphs", 40, exact.graphs),
    Section("training", 150, speed.training),
    Section("checkpointing", 40, speed.checkpointing),
    Section("sampling", 90, speed.sampling),
    Section("peers", 40, speed.peers),
]


@dataclass
class Config:
    """Measure one card."""

    seconds: float = 600.0
    """For all sections together; one is not begun without the time that it needs."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where."""
    small: bool = False
    """Small networks and few cases: a smoke test."""
    out: Path = Path("runs/benchmarks/gpu")
    """Folder for gpu.json."""
    sections: tuple[str, ...] = ()
    """Some of them alone, by name; default all."""


def main(config: Config) -> None:
    """Run the sections and say where the figures are."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; --device cpu --small tries the script without one.")
    unknown = set(config.sections) - {section.name for section in SECTIONS}
    if unknown:
        known = ", ".join(section.name for section in SECTIONS)
        raise SystemExit(f"there is no section {', '.join(sorted(unknown))}; there are {known}.")
    chosen = [one for one in SECTIONS if not config.sections or one.name in config.sections]
    found = run_sections(chosen, Bench(torch.device(config.device), config.seconds, config.out, config.small))
    failed = [name for name, said in found["sections"].items() if "error" in said]
    print(f"{config.out / 'gpu.json'}; " + (f"failed: {', '.join(failed)}" if failed else "nothing failed"))


def parsed() -> Config:
    """By tyro, or where it is not installed by what Python has."""
    try:
        import tyro
    except ImportError:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--seconds", type=float)
        parser.add_argument("--device", choices=("cuda", "cpu"))
        parser.add_argument("--small", action="store_true")
        parser.add_argument("--out", type=Path)
        parser.add_argument("--sections", nargs="+")
        given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
        return dataclasses.replace(Config(), **given)
    return tyro.cli(Config)


if __name__ == "__main__":
    main(parsed())
