"""What was measured: kept in files, one JSON object a line, so that it is not measured again, and put into tables.

    results = measured(path, Result, {("mixture2d-vp", 10): measure}, key=lambda r: (r.problem, r.budget))
    print(markdown(["solver", "NFE:"], [["Heun", "10"]]))

A colon after a head aligns its column of numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CACHE = Path("runs/benchmarks")
Row = TypeVar("Row")
Key = tuple[object, ...]
Measuring = Callable[[Sequence[Row]], Sequence[Row]]
"""Measures something anew; it is given all rows that there are by then."""


@dataclass(frozen=True)
class Outcome:
    """One sampler on one problem.

    Attributes:
        problem: its name.
        budget: evaluations allowed.
        nfe: evaluations used.
        solver: library, method and options.
        grid: rule of its noise levels.
        samples: how many, in each set.
    """

    problem: str
    budget: int
    nfe: int
    solver: str
    grid: str
    samples: int

    @property
    def name(self) -> str:
        """Solver and grid, ours without the name of the library."""
        return f"{self.solver.removeprefix('scoresde ')}, {self.grid}"


@dataclass(frozen=True)
class Result(Outcome):
    """Its distance to exact end points.

    Attributes:
        rms: root of the mean squared distance, over sqrt(D): the error of a coordinate.
        trimmed: the same without the worst 5 % of the samples.
        bands: that of a coordinate along the directions of large, middle and small variance, see :func:`contest.bands`;
            None for a band without directions, and where the problem does not know its own.
    """

    rms: float
    trimmed: float
    bands: list[float | None] | None = None


@dataclass(frozen=True)
class LawResult(Outcome):
    """Its distance to an exact law; the solver "exact" is the floor.

    Attributes:
        distance: sliced Wasserstein-2, root mean square over the repeats.
        each: the repeats.
    """

    distance: float
    each: list[float]


def best(results: Iterable[Result], error: str = "rms") -> Result:
    """The least error."""
    return min(results, key=lambda r: float(getattr(r, error)))


# -- files -------------------------------------------------------------------------------------------------------------


def write(path: Path, results: Iterable[DataclassInstance]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(r)) + "\n" for r in results), "utf-8")


def read(path: Path, kind: type[Row]) -> list[Row]:
    """What ``write`` wrote, as objects of the class ``kind``; nothing where there is no file."""
    if not path.exists():
        return []
    return [kind(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def write_array(path: Path, rows: Iterable[DataclassInstance]) -> None:
    """One JSON array of all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1), "utf-8")


def measured(
    path: Path,
    kind: type[Row],
    wanted: Mapping[Key, Measuring[Row]],
    key: Callable[[Row], Key],
) -> list[Row]:
    """All that the file holds, after what is wanted and not in it has been measured and added.

    Args:
        path: the file.
        kind: the class of its rows.
        wanted: what measures, by the key of its rows.
        key: of a row.
    """
    found = read(path, kind)
    known = {key(row) for row in found}
    for question, answer in wanted.items():
        if question not in known:
            found += answer(found)
            write(path, found)  # type: ignore[arg-type]
    return found


# -- tables ------------------------------------------------------------------------------------------------------------


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with these heads, a colon at the end of one for a column of numbers; short rows end early."""
    sides = ["---:" if head.endswith(":") else "---" for head in heads]
    lines = [[head.removesuffix(":") for head in heads], sides, *rows]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in cells) for cells in lines)


def verdict(ratio: float, bar: float) -> str:
    """Whether a ratio meets its bar, the most that it should be; nothing where there is none, 0."""
    return "" if not bar else f"{bar:.3g}: {'met' if ratio <= bar else 'missed'}"
