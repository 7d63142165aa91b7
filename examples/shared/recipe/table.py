"""Figures of many sampler runs, row by row into a file: after a kill nothing is measured twice.

rows = Rows(Path("run/table.jsonl"))
if not rows.has(key):                       # {"kind": "guided 2", "sampler": "heun", "nfe": 20, "seed": 0, ...}
    rows.add(key, figures)                  # {"frechet": 31.2, "precision": 0.71, ...}
Path("run/table.md").write_text(markdown(rows.all()))
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scoresde.files import append_line, replacing

Key = Mapping[str, Any]


class Rows:
    """Rows of keys and figures in a file, one JSON object a line; a line that a kill cut short is passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []
        if path.exists():
            lines = path.read_text("utf-8").splitlines(keepends=True)
            whole = [line for line in lines if _row(line) is not None]
            self._rows = [json.loads(line) for line in whole]
            if len(whole) < len(lines):  # or the next row would go on where a kill stopped the last one
                with replacing(path) as partial:
                    partial.write_text("".join(whole), "utf-8")

    def has(self, key: Key) -> bool:
        """Whether a row of this key is there."""
        return any(row["key"] == dict(key) for row in self._rows)

    def add(self, key: Key, figures: Mapping[str, float]) -> None:
        """Append a row; it is in the file when this returns."""
        row = {"key": dict(key), "figures": dict(figures)}
        append_line(self._path, json.dumps(row))
        self._rows.append(row)

    def all(self) -> list[dict[str, Any]]:
        """The rows, in their order."""
        return list(self._rows)


def _row(line: str) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return row if line.endswith("\n") else None


def markdown(rows: Sequence[Mapping[str, Any]], *, apart: str = "seed") -> str:
    """A table with a line for each key, those that differ in ``apart`` alone together: mean ± deviation over them."""
    together: dict[str, tuple[dict[str, Any], list[Mapping[str, float]]]] = {}
    for row in rows:
        key = {name: value for name, value in row["key"].items() if name != apart}
        together.setdefault(json.dumps(key, sort_keys=True), (key, []))[1].append(row["figures"])
    shared = _shared([key for key, _ in together.values()])
    names = list(dict.fromkeys(name for _, figures in together.values() for one in figures for name in one))
    heads = list(dict.fromkeys(name for key, _ in together.values() for name in key if name not in shared))
    lines = [f"{', '.join(f'{name} {value}' for name, value in shared.items())}", ""] if shared else []
    lines += ["| " + " | ".join([*heads, *names]) + " |", "| " + " | ".join("---" for _ in [*heads, *names]) + " |"]
    for key, figures in together.values():
        cells = [str(key.get(name, "")) for name in heads]
        cells += [_cell([one[name] for one in figures if name in one]) for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _shared(keys: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all keys have in common, where there are several."""
    if len(keys) < 2:
        return {}
    return {name: value for name, value in keys[0].items() if all(key.get(name, None) == value for key in keys)}


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.4g}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2g}"
