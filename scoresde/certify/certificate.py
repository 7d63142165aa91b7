"""One call that measures whatever a solver claims: :func:`certify` and its result, a :class:`Certificate`.

What a class declares (``order``, ``weak_order``, ``strong_order``, a tolerance) is measured and compared; what a step
costs and what rounding costs are measured too::

    certificate = certify(Heun())
    print(certificate)                          # each claim with what was measured, costs, rounding
    certificate["ODE order"].measured           # one CertificateRow
    certificate.require()                       # raises NotCertified where a claim does not hold

The parts that measure are in the modules beside this one, and can be called on their own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from scoresde import checks
from scoresde.certify.affine import NotAffine
from scoresde.certify.cases import FLOW, GRIDS, LAW, PATH, SMOOTH, WIDE, Grid, check_named, check_solver
from scoresde.certify.counting import Costs, costs
from scoresde.certify.ode import ode_order, tolerance_fields, tolerance_slope
from scoresde.certify.rounding import Floor, floors
from scoresde.certify.slopes import Slope, slopes
from scoresde.certify.strong import strong_order, strong_order_sampled
from scoresde.certify.weak import weak_order, weak_order_sampled
from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.solvers import Solver

ETAS = (1.0, 0.5)
WITHIN = 0.1
TOLERANCE_WITHIN = 0.25

T = TypeVar("T")
_Measure = Callable[[], Iterator[tuple[str, Slope]]]


class NotCertified(AssertionError):
    """A claim does not hold, or there is none to hold."""


@dataclass(frozen=True)
class CertificateRow:
    """One property: what the solver claims of it, what was measured, and whether they agree.

    Attributes:
        name: "ODE order", "weak order", "strong order" or "error per tolerance".
        claimed: None where nothing is claimed.
        measured: for the ODE and tolerances the case farthest from the claim, else the lowest; None where nothing could
            be measured.
        passed: None where nothing is claimed.
        note: the case, its errors, or why it could not be measured.
    """

    name: str
    claimed: float | None
    measured: float | None
    passed: bool | None
    note: str = ""


@dataclass(frozen=True)
class Certificate:
    """What a solver claims, and what was measured.

    Attributes:
        solver: the solver.
        rows: the properties for which there is a claim or could be one.
        costs: counted at the η that it runs on by default; draws of noise at η = 1 where it takes that.
        floors: what rounding costs it, in float32 and in bfloat16.
        notes: why not, where counting or rounding could not be measured.
    """

    solver: Solver
    rows: tuple[CertificateRow, ...]
    costs: Costs | None
    floors: tuple[Floor, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def claims(self) -> tuple[CertificateRow, ...]:
        """The rows with a claim."""
        return tuple(row for row in self.rows if row.claimed is not None)

    @property
    def holds(self) -> bool:
        """Whether all that is claimed holds, and no floor is above its bar."""
        return all(row.passed for row in self.claims) and not self._above

    @property
    def passed(self) -> bool:
        """Whether it holds and something is claimed."""
        return bool(self.claims) and self.holds

    @property
    def _above(self) -> list[Floor]:
        return [floor for floor in self.floors if floor.passed is False]

    def __getitem__(self, name: str) -> CertificateRow:
        """The row of that name."""
        for row in self.rows:
            if isinstance(name, str) and row.name == name:
                return row
        known = ", ".join(row.name for row in self.rows)
        raise KeyError(f"name must be that of a row, got {checks.got(name)}; there are {known}.")

    def require(self) -> Certificate:
        """Itself, where it passed.

        Raises:
            NotCertified: naming each claim that does not hold, with the errors that show it, and each floor too high.
        """
        if not self.claims:
            raise NotCertified(
                f"{self.solver!r} claims nothing, so there is nothing to certify: declare order, weak_order or "
                "strong_order on the class, or, for an adaptive method, an option rtol or tol."
            )
        failed = [row for row in self.claims if not row.passed]
        if failed or self._above:
            lines = [
                f"{row.name}: claims {row.claimed:g}, measured {_number(row.measured)}. {row.note}" for row in failed
            ]
            lines += [f"rounding to {floor}" for floor in self._above]
            raise NotCertified("\n  ".join([f"{self.solver!r} does not do what it claims:", *lines]))
        return self

    def __str__(self) -> str:
        verdict = "holds" if self.passed else "does not hold" if self.claims else "claims nothing"
        lines = [f"{self.solver!r}: {verdict}"]
        for row in self.rows:
            mark = {True: "ok", False: "FAILS", None: "no claim"}[row.passed]
            claimed = "-" if row.claimed is None else f"{row.claimed:g}"
            lines.append(f"  {row.name:<20} claimed {claimed:>4}   measured {_number(row.measured):>5}   {mark}")
            if row.note and row.passed is not True:
                lines.append(f"    {row.note}")
        for floor in self.floors:
            mark = {True: "ok", False: "FAILS", None: "not measured"}[floor.passed]
            lines.append(f"  {floor.name:<20} at most {floor.bar:>4g}   measured {floor.error:>5.0e}   {mark}")
            lines += [f"    {cell}" for cell in floor.missed]
        lines += [f"  {note}" for note in self.notes]
        if counted := self.costs:
            lines.append(
                f"  a step: {counted.evaluations:g} evaluations, {counted.increments:g} increments of the path, "
                f"{counted.normals:g} other normals; once: {counted.once:g} evaluations; "
                f"kept between steps: {'?' if counted.states is None else counted.states} states"
            )
        return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def certify(
    solver: Solver,
    *,
    eta: float | tuple[float, ...] | None = None,
    sdes: Mapping[str, SDE] | None = None,
    grids: Mapping[str, Grid] | None = None,
    within: float = WITHIN,
    thorough: bool = False,
) -> Certificate:
    """Measure what a solver claims: ``certify(MySolver()).require()`` is a test of it.

    ``order`` is measured at η = 0 (:func:`~scoresde.certify.ode_order`) under three SDEs and on two grids, on Gaussian
    and nonlinear data; ``weak_order`` (:func:`~scoresde.certify.weak_order`) under three others, on the two grids, on
    Gaussian data, which does not see conditions that only a curved score brings in (measure those with
    :func:`~scoresde.certify.weak_order_sampled`);
    ``strong_order`` (:func:`~scoresde.certify.strong_order`) under three. An order of the ODE holds where no case is
    farther from it than ``within``, above or below; those in law and on a path where the lowest of all cases is that
    close to the claim, since an error of the ODE's higher order may hide the noise's at all steps that can be
    afforded. Where the error in law or on the path cannot be propagated exactly because a
    step is not affine on Gaussian data, it is sampled, and the note says so. A method with churn draws noise at η = 0
    too: its ``order`` is then measured in law. An adaptive method, one with a tolerance on which its evaluations
    depend, is measured by the slope of log error against log tolerance, 1 to 0.25. And what rounding costs is measured
    in float32 and with a network in bfloat16 (:func:`~scoresde.certify.precision`), under the whole family of SDEs and
    two of an extreme range.

    Nothing that a solver raises leaves this function: it is in the note of a claim that fails.

    Args:
        solver: any, your own.
        eta: the η > 0 at which weak and strong order are measured; by default those of 1 and ½ that it takes.
        sdes: by name, in place of ours; ranges that leave out the last decades of log-SNR show orders soonest.
        grids: functions of (sde, steps) by name, in place of uniform and log-SNR.
        within: how far a measured order may be from the claim.
        thorough: measure what rounding costs at every number of steps and every η.

    Raises:
        TypeError: not a solver.
    """
    check_solver(solver)
    check_named(sdes, grids)
    within, thorough = checks.positive(within, name="within"), checks.flag(thorough, name="thorough")
    if eta is not None:
        each = eta if isinstance(eta, (tuple, list)) else (eta,)
        if not each:
            raise ValueError(f"eta must be a number or some of them, got {eta!r}.")
        eta = tuple(checks.not_negative(value, name="eta") for value in each)
    cases = _Cases(solver, sdes, GRIDS if grids is None else grids)
    etas = ETAS if eta is None else eta
    taken = [value for value in etas if cases.takes(value)]
    missing = "" if taken else f"takes none of η = {', '.join(f'{value:g}' for value in etas)}"
    rows = [_row("ODE order", solver.order, within, cases.ode)]
    adaptive = _tolerance_row(cases) if tolerance_fields(solver) else None
    rows += [] if adaptive is None else [adaptive]
    rows.append(_row("weak order", solver.weak_order, within, lambda: cases.weak(taken), "" if taken else missing))
    rows.append(
        _row("strong order", solver.strong_order, within, lambda: cases.strong(taken), "" if taken else missing)
    )
    counted, uncounted = _attempt(cases.costs, "costs not counted")
    rounded, unmeasured = _attempt(lambda: floors(solver, sdes=sdes, thorough=thorough), "rounding not measured")
    return Certificate(solver, tuple(rows), counted, rounded or (), (*uncounted, *unmeasured))


def _attempt(measure: Callable[[], T], otherwise: str) -> tuple[T | None, tuple[str, ...]]:
    """What is measured, or why not."""
    try:
        return measure(), ()
    except Exception as error:  # whatever a half-written solver raises
        return None, (f"{otherwise}: {type(error).__name__}: {error}",)


def _row(name: str, claimed: float | None, within: float, measure: _Measure, missing: str = "") -> CertificateRow:
    """The case farthest from the claim, for the ODE, which must have settled; in law and on a path the lowest order."""
    if claimed is None:
        return CertificateRow(name, None, None, None)
    if missing:
        return CertificateRow(name, float(claimed), None, False, missing)
    try:
        found = list(measure())
    except Exception as error:  # whatever a half-written solver raises
        return CertificateRow(name, float(claimed), None, False, f"{type(error).__name__}: {error}")
    if name == "ODE order":
        orders = [slope.order for _, slope in found]
        worst = max(range(len(found)), key=lambda i: _distance(orders[i], claimed))
    else:
        orders = [_shown(slope) for _, slope in found]
        worst = min(range(len(found)), key=lambda i: -math.inf if math.isnan(orders[i]) else orders[i])
    case, slope = found[worst]
    held = _distance(orders[worst], claimed) <= within and (slope.settled or name != "ODE order")
    return CertificateRow(name, float(claimed), orders[worst], held, f"{case}, {slope}")


def _distance(order: float, claimed: float) -> float:
    return math.inf if math.isnan(order) else abs(order - claimed)


def _shown(slope: Slope) -> float:
    """Where the order is not settled the plain slope: the extrapolated one overshoots a slope that still falls."""
    return slope.order if slope.settled or len(slope.errors) < 2 else slopes(slope.errors)[-1]


def _tolerance_row(cases: _Cases) -> CertificateRow | None:
    """None where the tolerance does not set the steps."""
    title, wide = "error per tolerance", cases.among(WIDE)
    if not cases.takes(0.0):
        return CertificateRow(title, None, None, None, "takes no η = 0, and on a path no proportion is claimed")
    try:
        found = [(name, tolerance_slope(cases.solver, sde)) for name, sde in wide.items()]
    except Exception as error:  # whatever a half-written solver raises
        return CertificateRow(title, 1.0, None, False, f"{type(error).__name__}: {error}")
    if all(len(set(slope.evaluations)) == 1 for _, slope in found):
        return None
    name, worst = max(found, key=lambda pair: abs(pair[1].slope - 1))
    errors = ", ".join(f"{t:g}: {e:.1e}" for t, e in zip(worst.tolerances, worst.errors, strict=True))
    passed = abs(worst.slope - 1) <= TOLERANCE_WITHIN
    return CertificateRow(title, 1.0, worst.slope, passed, f"{name}, errors at tolerances {errors}")


@dataclass(frozen=True)
class _Cases:
    """A solver and what to measure it on."""

    solver: Solver
    sdes: Mapping[str, SDE] | None
    grids: Mapping[str, Grid]

    def among(self, ours: Mapping[str, SDE]) -> Mapping[str, SDE]:
        """The SDEs to take: those that the caller gave, or ours."""
        return ours if self.sdes is None else self.sdes

    def takes(self, eta: float) -> bool:
        """Whether the solver takes this η under any of the SDEs."""
        for sde in self.among(FLOW).values():
            try:
                self.solver.check(Reverse(SMOOTH.score(sde), eta))
            except ValueError:
                continue
            return True
        return False

    def ode(self) -> Iterator[tuple[str, Slope]]:
        """Every SDE and grid; of the two data sets the lower order counts."""
        for name, sde in self.among(FLOW).items():
            for label, grid in self.grids.items():
                if self.solver.draws_noise(Reverse(SMOOTH.score(sde), 0.0)):
                    yield f"{name} {label}", weak_order(self.solver, sde, 0.0, grid, marginal=True)
                else:
                    lowest = min(ode_order(self.solver, sde, grid), key=lambda slope: slope.order)
                    yield f"{name} {label}", lowest

    def weak(self, etas: list[float]) -> Iterator[tuple[str, Slope]]:
        """Every SDE and grid, the η taking turns."""
        for name, sde, label, grid, eta in self._turns(LAW, etas):
            yield f"{name} {label} η = {eta:g}", self._weak(sde, eta, grid)

    def strong(self, etas: list[float]) -> Iterator[tuple[str, Slope]]:
        """Every SDE and grid, the η taking turns."""
        for name, sde, label, grid, eta in self._turns(PATH, etas):
            yield f"{name} {label} η = {eta:g}", self._strong(sde, eta, grid)

    def _turns(self, ours: Mapping[str, SDE], etas: list[float]) -> Iterator[tuple[str, SDE, str, Grid, float]]:
        for i, (name, sde) in enumerate(self.among(ours).items()):
            for j, (label, grid) in enumerate(self.grids.items()):
                yield name, sde, label, grid, etas[(i + j) % len(etas)]

    def _weak(self, sde: SDE, eta: float, grid: Grid) -> Slope:
        try:
            return weak_order(self.solver, sde, eta, grid)
        except NotAffine:
            sampled = weak_order_sampled(self.solver, sde, eta, grid)
            return Slope(f"sampled, {sampled}", (), (), sampled.order, True)

    def _strong(self, sde: SDE, eta: float, grid: Grid) -> Slope:
        try:
            return strong_order(self.solver, sde, eta, grid)
        except NotAffine:
            return strong_order_sampled(self.solver, sde, eta, grid)

    def costs(self) -> Costs:
        """On the default η, or whichever is taken; draws of noise at η = 1 if that is."""
        sde = next(iter(self.among(FLOW).values()))
        etas = [eta for eta in (float(self.solver.default_eta), 1.0, 0.0) if self.takes(eta)]
        if not etas:
            raise ValueError("check() refuses η = 0 and η = 1 under every SDE")
        counted = costs(self.solver, sde, etas[0])
        if etas[0] == 0 and 1.0 in etas:
            noisy = costs(self.solver, sde, 1.0)
            counted = dataclasses.replace(counted, increments=noisy.increments, normals=noisy.normals)
        return counted
