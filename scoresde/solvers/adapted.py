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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from scoresde import checks
from scoresde.files import Fields, read_format, refusing, write_format
from scoresde.rules import between, by_density, spectral_density, spectral_range
from scoresde.sde import SDE, Time
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
        checks.fields(self)
        what = "one row of numbers for each of steps"
        object.__setattr__(self, "steps", checks.shape(self.steps, what="increasing numbers of steps", name="steps"))
        ends = checks.numbers(self.ratios, name="ratios", what="the first σ/α and the last")
        object.__setattr__(self, "ratios", ends)
        if not isinstance(self.logs, (tuple, list)):
            raise TypeError(f"logs must be {what}; got {checks.got(self.logs)}.")
        object.__setattr__(self, "logs", tuple(checks.numbers(row, name="logs", what=what) for row in self.logs))
        if len(ends) != 2:
            raise ValueError(f"ratios must be two, the first σ/α and the last; got {ends}.")
        m, sizes = len(self.steps), {len(row) for row in self.logs}
        errors = [*self.report.errors, *self.report.before, *self.report.typical]
        if not m or len(self.logs) != m or len(sizes) != 1 or min(sizes) < 2 or len(errors) != 3 * m:
            raise ValueError(
                f"an adapted grid must have a row of logs, of one length, and three errors for each of its steps; got "
                f"steps {self.steps}, rows of {sorted(sizes)}, logs {self.logs}, and {len(errors)} errors."
            )
        if self.steps[0] < 1 or not all(a < b for a, b in itertools.pairwise(self.steps)):
            raise ValueError(f"the numbers of steps of an adapted grid increase; got {self.steps}.")
        if not all(math.isfinite(v) and v > 0 for v in (*self.ratios, *errors)) or self.ratios[0] <= self.ratios[1]:
            raise ValueError("an adapted grid has positive errors, and a first σ/α above its last; adapt it again.")
        if not all(abs(v) <= 9 for row in self.logs for v in row):
            raise ValueError("an adapted grid holds NaN, or factors beyond e^9; adapt it again.")

    def __call__(self, sde: SDE, steps: int, *, t_start: Time | None = None, t_end: Time | None = None) -> Tensor:
        """The times; arguments as in :func:`scoresde.grids.uniform`."""
        steps = checks.count(steps, name="steps")
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
        steps = checks.count(steps, name="steps")
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
        return write_format(checks.path(path), format=FORMAT, version=VERSION, content=dataclasses.asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Adapted:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not one of these, or is damaged.
        """
        path, mend = checks.path(path), "an adapted grid is saved with adapted.save(path), adapt again"
        fail = refusing(path)
        content = read_format(path, fail, format=FORMAT, version=VERSION, what="adapted grid", mend=mend)
        given = Fields(content, fail)
        ratios, spectrum = given.numbers("ratios", most_items=2, items=2, above=0), given.object("spectrum")
        tuned = None if given.value("tuning") is None else given.object("tuning")
        steps, logs = _steps(given), given.rows("logs", most_items=_MOST)
        tuning = None if tuned is None else (_steps(tuned), tuned.rows("logs", most_items=_MOST, items=3))
        report = _report(given.object("report"))
        scale, largest = (spectrum.number(name, above=0) for name in ("scale", "largest"))
        try:
            known = None if tuning is None else Tuning(tuning[0], tuple((a, b, c) for a, b, c in tuning[1]))
            return cls(steps, logs, (ratios[0], ratios[1]), Spectrum(scale, largest), known, report)
        except (TypeError, ValueError) as error:
            raise fail(str(error)) from error


_MOST = 10_000  # numbers of steps adapted to, and of values for each


def _steps(given: Fields) -> tuple[int, ...]:
    return given.wholes("steps", most_items=_MOST, least=1)


def _report(given: Fields) -> AdaptedReport:
    given.only([field.name for field in dataclasses.fields(AdaptedReport)])
    errors, before, typical = (given.numbers(n, most_items=_MOST, above=0) for n in ("errors", "before", "typical"))
    return AdaptedReport(
        solver=given.text("solver", most=10_000),
        errors=errors,
        before=before,
        typical=typical,
        reference_error=given.number("reference_error", least=0),
        shape=given.wholes("shape", most_items=16),
        evaluations=given.whole("evaluations"),
        seconds=given.number("seconds", least=0),
        seed=given.whole("seed", most=2**64 - 1),
        answer=given.numbers("answer", most_items=1 << 20),
    )
