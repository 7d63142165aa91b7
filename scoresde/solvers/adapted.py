"""Times and weights adapted to one score by :func:`scoresde.grids.adapted`, for any number of steps.

    times = Adapted.load("adapted.json")
    sample(score, shape, grid=times, steps=12)      # or grid=Path("adapted.json")
    times.error(12)                                 # what to expect of it

It is a rule for times, as those of :mod:`scoresde.grids`, in one file of numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from scoresde import checks
from scoresde.files import read_format, write_format
from scoresde.rules import between, by_density, spectral_density, spectral_range
from scoresde.sde import SDE, Time
from scoresde.solvers.fitted import numbers_of
from scoresde.solvers.spectral import SpectralMultistep, Tuning
from scoresde.spectrum import Spectrum

FORMAT, VERSION = "scoresde adapted grid", 1


@dataclass(frozen=True)
class AdaptedReport:
    """What an adaptation came to. Errors are root-mean-square distances to accurate end points, per coordinate.

    Attributes:
        solver: for which it was made.
        errors: of the adapted method at each number of steps adapted to, on trajectories held out.
        before: the same of the method as it was.
        typical: as ``errors``, without the worst 5 %: one that ends on another mode outweighs all others there.
        reference_error: estimated error of the end points themselves.
        shape: (B, *event) of the trajectories, as many again were held out.
        evaluations: of batches, in all.
        seconds, seed: of the run.
        answer: what the score answered to one question, by which it is known again.
    """

    solver: str
    errors: tuple[float, ...]
    before: tuple[float, ...]
    typical: tuple[float, ...]
    reference_error: float
    shape: tuple[int, ...]
    evaluations: int
    seconds: float
    seed: int
    answer: tuple[float, ...]


@dataclass(frozen=True)
class Adapted:
    r"""A rule for times, (sde, steps) -> times: those of :func:`scoresde.grids.spectral`, in another density.

    The density of steps in log σ/α is that of the spectral rule times exp f, f linear between values at equal distances
    in log σ/α, which are interpolated in the logarithm of the number of steps. Where it was made for the default
    solver, :attr:`solver` is that with weights adapted too, and ``sample(..., grid=adapted)`` takes it.

    Args:
        steps: numbers of steps that were adapted to.
        logs: for each, the values of f, from the first σ/α to the last.
        ratios: these σ/α.
        spectrum: of the spectral rule.
        tuning: of :class:`~scoresde.SpectralMultistep`; None where it was made for another solver.
        report: how it was found and what it came to.

    Raises:
        ValueError: lengths that do not fit, numbers that are not finite.
    """

    steps: tuple[int, ...]
    logs: tuple[tuple[float, ...], ...]
    ratios: tuple[float, float]
    spectrum: Spectrum
    tuning: Tuning | None
    report: AdaptedReport

    def __post_init__(self) -> None:
        m, sizes = len(self.steps), {len(row) for row in self.logs}
        errors = [*self.report.errors, *self.report.before, *self.report.typical]
        if not m or len(self.logs) != m or len(sizes) != 1 or min(sizes) < 2 or len(errors) != 3 * m:
            raise ValueError(
                f"an adapted grid has a row of logs, of one length, and three errors for each of its steps; got "
                f"{m} steps, rows of {sorted(sizes)} and {len(errors)} errors."
            )
        if self.steps[0] < 1 or not all(a < b for a, b in itertools.pairwise(self.steps)):
            raise ValueError(f"the numbers of steps of an adapted grid increase; got {self.steps}.")
        if not all(math.isfinite(v) and v > 0 for v in (*self.ratios, *errors)) or self.ratios[0] <= self.ratios[1]:
            raise ValueError("an adapted grid has positive errors, and a first σ/α above its last; adapt it again.")
        if not all(abs(v) <= 9 for row in self.logs for v in row):
            raise ValueError("an adapted grid holds NaN, or factors beyond e^9; adapt it again.")

    def __call__(self, sde: SDE, steps: int, *, t_start: Time | None = None, t_end: Time | None = None) -> Tensor:
        """The times; arguments as in :func:`scoresde.grids.uniform`."""
        checks.count(steps, name="steps")
        first, last = (math.log(r) for r in self.ratios)
        row = between(self.steps, self.logs, steps)
        cells = len(row) - 1

        def density(ratio: Tensor) -> Tensor:
            place = ((first - ratio.log()) * (cells / (first - last))).clamp(0, cells)
            values, cell = place.new_tensor(row), place.detach().long().clamp_max(cells - 1)
            f = values[cell] + (place - cell) * (values[cell + 1] - values[cell])
            return spectral_density(ratio, steps, self.spectrum) * f.exp()

        bottom, top = spectral_range(self.spectrum)
        return by_density(sde, steps, density, bottom=bottom, top=top, t_start=t_start, t_end=t_end)

    @property
    def solver(self) -> SpectralMultistep:
        """The default solver, tuned.

        Raises:
            ValueError: it was adapted to another solver.
        """
        if self.tuning is None:
            raise ValueError(f"these times were adapted to {self.report.solver}; give that as solver=....")
        return SpectralMultistep(self.spectrum, self.tuning)

    def error(self, steps: int) -> float:
        """The error to expect, per coordinate: the typical one, interpolated in logarithms, beyond by its slope."""
        checks.count(steps, name="steps")
        x, y = np.log(self.steps), np.log(self.report.typical)
        at = math.log(steps)
        if len(x) > 1 and not x[0] <= at <= x[-1]:
            i = (0, 1) if at < x[0] else (-1, -2)
            return float(np.exp(y[i[0]] + (at - x[i[0]]) * (y[i[1]] - y[i[0]]) / (x[i[1]] - x[i[0]])))
        return float(np.exp(np.interp(at, x, y)))

    def __str__(self) -> str:
        table = ", ".join(
            f"{n} steps {b:.2g} -> {a:.2g}"
            for n, b, a in zip(self.steps, self.report.before, self.report.errors, strict=True)
        )
        r = self.report
        return f"adapted to {r.solver} with {r.evaluations} evaluations of {r.shape[0]}: error {table}."

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON, whole or not at all; numbers come back bit for bit."""
        return write_format(Path(path), format=FORMAT, version=VERSION, content=dataclasses.asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Adapted:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not one of these, or is damaged.
        """
        path = Path(path)
        mend = "an adapted grid is saved with adapted.save(path), adapt again"
        content = read_format(path, format=FORMAT, version=VERSION, what="adapted grid", mend=mend)
        try:
            first, last = numbers_of(content["ratios"])
            return cls(
                _counts(content["steps"]),
                tuple(numbers_of(row) for row in content["logs"]),
                (first, last),
                Spectrum(**content["spectrum"]),
                None if content["tuning"] is None else _tuning(content["tuning"]),
                _report(content["report"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _counts(values: Any) -> tuple[int, ...]:
    numbers_of(values)
    if not all(isinstance(v, int) for v in values):
        raise TypeError(f"expected whole numbers, got {values!r:.80}")
    return tuple(values)


def _tuning(content: Any) -> Tuning:
    rows = [numbers_of(row) for row in content["logs"]]
    return Tuning(_counts(content["steps"]), tuple((a, b, c) for a, b, c in rows))


def _report(content: Any) -> AdaptedReport:
    expected = {field.name for field in dataclasses.fields(AdaptedReport)}
    if not isinstance(content, Mapping) or set(content) != expected:
        raise ValueError(f"the report should have the entries {', '.join(sorted(expected))}")
    errors, before, typical, answer = (numbers_of(content[name]) for name in ("errors", "before", "typical", "answer"))
    reference, seconds = numbers_of([content["reference_error"], content["seconds"]])
    evaluations, seed = _counts([content["evaluations"], content["seed"]])
    shape = _counts(content["shape"])
    return AdaptedReport(
        str(content["solver"]), errors, before, typical, reference, shape, evaluations, seconds, seed, answer
    )
