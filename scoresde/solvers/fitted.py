"""A sampler with coefficients of its own, fitted to one score by :func:`scoresde.fitting.fit`.

    fitted = Fitted.load("sampler.json")
    sample(score, shape, solver=fitted)             # or solver=Path("sampler.json")

It is one file of numbers, tied to the schedule that it was fitted for, and brings its own times.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from scoresde import checks
from scoresde.files import Fields, read_format, refusing, write_format
from scoresde.models.combination import combine
from scoresde.models.score import Score
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.solvers.base import Solver, only_ode

FORMAT, VERSION = "scoresde fitted sampler", 2
# α and σ of the schedule that a sampler is run on, against those it was fitted for: another build's libm may differ.
_SAME = 1e-9


@dataclass(frozen=True)
class FitReport:
    """What a fit came to. Errors are root-mean-square distances to the accurate end points, per coordinate.

    Attributes:
        chosen: "fitted", or "fixed" where the fit was no better on held-out trajectories than the best fixed method.
        train, validation, held_out: error of the sampler returned, on each part of the trajectories.
        held_out_trimmed: the last without the worst 5 % of the trajectories.
        fixed, fixed_trimmed: the same of the best fixed method on the same held-out trajectories.
        fixed_method: which that is.
        rejected: held-out error of the fit that was not kept, None where it was kept.
        started_from: the fixed method from which the fit started.
        reference_error: estimated error of the end points themselves.
        trajectories: how many were trained on, validated on, held out.
        event: shape of a sample.
        iterations, seconds, seed: of the optimisation.
    """

    chosen: Literal["fitted", "fixed"]
    train: float
    validation: float
    held_out: float
    held_out_trimmed: float
    fixed: float
    fixed_trimmed: float
    fixed_method: str
    rejected: float | None
    started_from: str
    reference_error: float
    trajectories: tuple[int, int, int]
    event: tuple[int, ...]
    iterations: int
    seconds: float
    seed: int

    def __str__(self) -> str:
        ratio, trimmed = self.held_out / self.fixed, self.held_out_trimmed / self.fixed_trimmed
        ours = f"{self.held_out:.3g} on {self.trajectories[2]} held-out trajectories"
        fixed = f"{self.fixed_method}: {self.fixed:.3g}"
        if self.chosen == "fixed":
            return f"kept the best fixed method, {fixed}; the fit came to {self.rejected:.3g}, no better."
        told = f"{ratio:.2f} times the best fixed method's ({fixed}); trimmed {trimmed:.2f} times"
        return f"fitted: RMS {ours}, {told}. End points known to {self.reference_error:.1g}."


class FittedLevels(NamedTuple):
    """What a sampler remembers of its SDE: its name for people, and α and σ at its times and evaluations."""

    name: str
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]

    @staticmethod
    def of(sde: SDE, times: Sequence[float]) -> FittedLevels:
        """That of ``sde``."""
        at = torch.tensor(times, dtype=torch.float64)
        return FittedLevels(named(sde), tuple(sde.alpha(at).tolist()), tuple(sde.sigma(at).tolist()))


def named(sde: SDE) -> str:
    """Class and numeric fields."""
    fields = {f.name: getattr(sde, f.name) for f in dataclasses.fields(sde)}
    told = {k: v.item() if isinstance(v, Tensor) and not v.ndim else v for k, v in fields.items()}
    return f"{type(sde).__name__}({', '.join(f'{k}={v}' for k, v in told.items() if isinstance(v, int | float))})"


class LinearMethod(NamedTuple):
    r"""Any explicit linear method with n evaluations of x̂_0, at combinations of the start and the x̂_0 before.

    With D_j = E[x_0 | x_{τ_j} = y_j] and y_n the end::

        y_i = a_i x_T + Σ_{j<i} w_ij D_j        i = 0 … n

    Attributes:
        evaluated_at: τ_0 … τ_{n-1}; numbers, or tensors () or (B,).
        of_start: a_0 … a_n, numbers or tensors that broadcast against x.
        weights: n rows, of 1 … n weights.
    """

    evaluated_at: Sequence[Any]
    of_start: Sequence[Any]
    weights: Sequence[Sequence[Any]]


class FittedRun(NamedTuple):
    """Where a run stands: steps done, x_T, and the D of the steps done."""

    done: int
    start: Tensor
    past: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Fitted(Solver):
    r"""The probability-flow ODE in n evaluations, all times and coefficients fitted to one score.

    With D_j = E[x_0 | x_{τ_j} = y_j], y_n is the end::

        y_i = a_i x_T + Σ_{j<i} w_ij D_j        i = 0 … n

    the most general explicit linear method with one evaluation a step: every multistep and singlestep method is one
    of its special cases. Made by :func:`scoresde.fitting.fit`. The end is fitted; states on the way are what helps the
    end most, and follow the marginals p_t only roughly. n + 1 states are held in memory.

    Args:
        times: (n + 1,) decreasing: T, the times of the evaluations put in order, t_min. It runs on these alone.
        evaluated_at: (n,) τ, the times of the evaluations, in the order of the steps.
        of_start: (n + 1,) a.
        weights: n rows of w, the i-th of i values.
        schedule: of the SDE that it was fitted for.
        report: how it was fitted and what it came to.

    Raises:
        ValueError: lengths that do not fit, numbers that are not finite, times that do not decrease.
    """

    times: tuple[float, ...]
    evaluated_at: tuple[float, ...]
    of_start: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    schedule: FittedLevels
    report: FitReport

    has_memory: ClassVar[bool] = True
    follows_process: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("times", "evaluated_at", "of_start"):
            object.__setattr__(self, name, checks.numbers(getattr(self, name), name=name))
        if not isinstance(self.weights, (tuple, list)):
            raise TypeError(f"weights must be n rows, of 1 to n numbers; got {checks.got(self.weights)}.")
        weights = (checks.numbers(row, name="weights", what="n rows, of 1 to n numbers") for row in self.weights)
        object.__setattr__(self, "weights", tuple(weights))
        n = len(self.evaluated_at)
        lengths = [len(row) for row in self.weights]
        if n < 1 or len(self.times) != n + 1 or len(self.of_start) != n + 1 or lengths != list(range(1, n + 1)):
            raise ValueError(
                "a sampler of n steps must have n + 1 times, n evaluated_at, n + 1 of_start, rows of 1 to n weights; "
                f"got times {self.times}, evaluated_at {self.evaluated_at}, of_start {self.of_start} and weights "
                f"{self.weights}."
            )
        levels = [*self.schedule.alpha, *self.schedule.sigma]
        if len(levels) != 2 * (2 * n + 1):
            raise ValueError(f"the schedule must have α and σ at {2 * n + 1} times; got {len(levels)} values in all.")
        numbers = [*self.times, *self.evaluated_at, *self.of_start, *(w for row in self.weights for w in row), *levels]
        if not all(math.isfinite(v) for v in numbers):
            raise ValueError("a fitted sampler holds NaN or infinite numbers; fit it again.")
        checks.grid(torch.tensor(self.times, dtype=torch.float64), math.inf)

    @property
    def steps(self) -> int:
        """n, which is also the number of score evaluations."""
        return len(self.evaluated_at)

    @property
    def grid(self) -> Tensor:
        """(n + 1,) float64, what ``solve`` wants; ``sample`` takes it by itself."""
        return torch.tensor(self.times, dtype=torch.float64)

    @property
    def method(self) -> LinearMethod:
        """The coefficients."""
        return LinearMethod(self.evaluated_at, self.of_start, self.weights)

    def check(self, process: Reverse) -> None:
        """η = 0, and the schedule that it was fitted for."""
        only_ode(self, process)
        now = FittedLevels.of(process.sde, [t for t in (*self.times, *self.evaluated_at) if t <= process.sde.t_max])
        if len(now.alpha) != len(self.schedule.alpha) or not all(
            math.isclose(a, b, rel_tol=_SAME, abs_tol=1e-300)
            for a, b in zip((*now.alpha, *now.sigma), (*self.schedule.alpha, *self.schedule.sigma), strict=True)
        ):
            raise ValueError(
                f"this sampler was fitted for {self.schedule.name}; the process has {now.name}, another schedule. Fit "
                "one for it with fitting.fit, or take a solver with a rule for every schedule."
            )

    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        """Nothing but a look at the grid, which must be its own."""
        if len(grid) != len(self.times) or not torch.allclose(grid.detach(), self.grid, rtol=_SAME, atol=0.0):
            raise ValueError(
                f"a fitted sampler runs on its own {self.steps} steps, from {self.times[0]:g} to {self.times[-1]:g}; "
                f"got a grid of {len(grid) - 1} from {float(grid[0]):g} to {float(grid[-1]):g}. Pass its .grid, or "
                "leave the grid out of sample(...)."
            )
        return x, FittedRun(0, x)

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """One evaluation, then the next state from the start and all evaluations."""
        run: FittedRun = self.start(process, x, torch.stack([t, s]), noise)[1] if state is None else state
        i = run.done
        if [t.item(), s.item()] != list(self.times[i : i + 2]):
            raise ValueError(f"the next of {self.steps} fitted steps is number {i + 1}; none goes from {t:g} to {s:g}.")
        y = x if i else combine((self.of_start[0], x))
        past = (*run.past, process.score.denoise(y, torch.tensor(self.evaluated_at[i], dtype=torch.float64)))
        after = combine((self.of_start[i + 1], run.start), *zip(self.weights[i], past, strict=True))
        return after, FittedRun(i + 1, run.start, past)

    def default_grid(self, score: Score) -> Tensor:
        """Its own times: there is no rule for others."""
        return self.grid

    # -- files ---------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON, whole or not at all; numbers come back bit for bit."""
        content = {"eta": 0, "steps": self.steps, **dataclasses.asdict(self), "schedule": self.schedule._asdict()}
        return write_format(checks.path(path), format=FORMAT, version=VERSION, content=content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Fitted:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not one of these, or is damaged.
        """
        path, mend = checks.path(path), "a fitted sampler is saved with fitted.save(path), fit again"
        fail = refusing(path)
        content = read_format(path, fail, format=FORMAT, version=VERSION, what="fitted sampler", mend=mend)
        given = Fields(content, fail)
        schedule = given.object("schedule")
        levels = FittedLevels(
            schedule.text("name"),
            schedule.numbers("alpha", most_items=2 * _MOST + 1),
            schedule.numbers("sigma", most_items=2 * _MOST + 1),
        )
        parts = (
            given.numbers("times", most_items=_MOST + 1),
            given.numbers("evaluated_at", most_items=_MOST),
            given.numbers("of_start", most_items=_MOST + 1),
            given.rows("weights", most_items=_MOST),
        )
        report = _report(given.object("report"))
        try:
            return cls(*parts, levels, report)
        except (TypeError, ValueError) as error:
            raise fail(str(error)) from error


_MOST = 10_000  # evaluations of a sampler in a file


def _report(given: Fields) -> FitReport:
    given.only([field.name for field in dataclasses.fields(FitReport)])
    train, validation, held_out = given.wholes("trajectories", most_items=3, items=3)
    return FitReport(
        chosen="fixed" if given.one_of("chosen", ("fitted", "fixed")) == "fixed" else "fitted",
        rejected=given.number("rejected", least=0) if given.value("rejected") is not None else None,
        fixed_method=given.text("fixed_method"),
        started_from=given.text("started_from"),
        trajectories=(train, validation, held_out),
        event=given.wholes("event", most_items=16),
        iterations=given.whole("iterations"),
        seed=given.whole("seed", most=2**64 - 1),
        **{name: given.number(name, least=0) for name in ("train", "validation", "held_out", "held_out_trimmed")},
        **{name: given.number(name, above=0) for name in ("fixed", "fixed_trimmed")},  # errors are told as ratios
        **{name: given.number(name, least=0) for name in ("reference_error", "seconds")},
    )
