"""What rounding costs a solver: its run in float32 and with a network in bfloat16, beside the same run in float64.

    floor = precision(DDIM(), torch.bfloat16)
    floor.error, floor.bar, floor.passed           # the largest relative difference of a standard deviation
    print(floor)                                   # where it is, and whatever misses the bar

The network is exact and rounded alone: it computes in float64 what a network trained on the data would answer, from an
input and to an output in its own dtype. States are carried as every run carries them, in float32 at least. Start and
noise are the same for all dtypes, so that what differs is arithmetic, also at steps so long that the law is far off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.certify.cases import MOST_SAMPLES, check_named, check_solver, check_steps
from scoresde.certify.ode import tolerance_fields
from scoresde.models import ScoreModel
from scoresde.problems import GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sde import EDM, SDE, VE, VP, Cosine, RectifiedFlow, SubVP
from scoresde.solvers import Solver
from scoresde.solvers.advice import unadvised
from scoresde.solvers.defaults import chosen_grid

BARS: Mapping[torch.dtype, float] = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
"""The dtypes of the network, and how far a standard deviation may be from float64's, relatively."""

SCHEDULES: Mapping[str, SDE] = {
    "VP": VP(),
    "SubVP": SubVP(),
    "VE": VE(),
    "EDM": EDM(),
    "Cosine": Cosine(),
    "RectifiedFlow": RectifiedFlow(),
    "VE to 1e6": VE(sigma_max=1e6),
    "RectifiedFlow to 1 - 1e-6": RectifiedFlow(T=1 - 1e-6),
}
"""The whole family as a newcomer makes it, and two schedules whose σ/α starts at a million."""

STEPS = (7, 25)
"""Few steps and some; all of :data:`EVERY` are measured by ``thorough``."""

EVERY = (7, 10, 25, 100)

_MEAN, _VARIANCE = 0.8, 0.36

DATA = GaussianMixture(
    torch.tensor([0.5, 0.5], dtype=torch.float64),
    torch.tensor([[0.0, -_MEAN], [0.0, _MEAN]], dtype=torch.float64),
    torch.tensor([[1.0, _VARIANCE], [1.0, _VARIANCE]], dtype=torch.float64),
)
"""N(0, 1) on the first axis and two normal laws on the second, independent, each of mean 0 and variance 1.

The two are alike, so that where steps are so long that all samples end near one point it is 0, about which what a
network answers is rounded relatively; about another point no solver could tell the samples apart.
"""


class RoundedNetwork(nn.Module):
    r"""The exact network of :data:`DATA` in EDM's prediction, F = (σ x̂_0/σ_d - σ_d α ε̂)/sqrt(α² σ_d² + σ²), σ_d = 1::

        F = 0 on the first axis, σ/(v + σ²) [(v - 1) x + m n tanh(m n x/(v + σ²))] on the other, n = sqrt(1 + σ²)

    with ±m and v the means and the variance of the two laws, x the scaled input and σ for σ/α. Its weights are of
    ``dtype``, so that x is rounded to it before and F after; in between is float64.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype), requires_grad=False)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """F (B, 2) of x/sqrt(α² + σ²) and c = log(σ/α), (B,)."""
        square = (2 * c[:, None].double()).exp()
        total, mean, y = _VARIANCE + square, _MEAN * (1 + square).sqrt(), x[:, 1:].double()
        out = square.sqrt() / total * ((_VARIANCE - 1) * y + mean * (mean / total * y).tanh())
        return torch.cat([torch.zeros_like(out), out], 1).to(x.dtype)


@dataclass(frozen=True)
class FloorCell:
    """One run: where, the largest relative difference of a standard deviation, and float64's own of each axis."""

    where: str
    error: float
    exact: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.where}: {self.error:.1e}, float64 has {', '.join(f'{std:.3g}' for std in self.exact)}"


@dataclass(frozen=True)
class Floor:
    """The floor of a solver's error in one dtype.

    Attributes:
        dtype: of the network.
        bar: what it is held to.
        cells: all that was measured; runs that float64 refuses, or ends with infinite values, are left out.
    """

    dtype: torch.dtype
    bar: float
    cells: tuple[FloorCell, ...]

    @property
    def name(self) -> str:
        """That of the dtype."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def error(self) -> float:
        """The largest of all cells; NaN where none was measured."""
        return max((cell.error for cell in self.cells), default=float("nan"))

    @property
    def missed(self) -> tuple[FloorCell, ...]:
        """The cells above the bar."""
        return tuple(cell for cell in self.cells if not cell.error <= self.bar)

    @property
    def passed(self) -> bool | None:
        """Whether none is; None where none was measured."""
        return not self.missed if self.cells else None

    def __str__(self) -> str:
        worst = max(self.cells, key=lambda cell: cell.error, default=None)
        return "\n  ".join([f"{self.name}, of at most {self.bar:g}: {worst}", *map(str, self.missed)])


def precision(
    solver: Solver,
    dtype: torch.dtype,
    *,
    sdes: Mapping[str, SDE] | None = None,
    steps: Sequence[int] = STEPS,
    thorough: bool = False,
    samples: int = 256,
) -> Floor:
    """The largest relative difference, over axes and runs, of the standard deviation at the end from float64's.

    Args:
        solver: any; it runs on the grid that goes with it.
        dtype: of the network.
        sdes: by name, in place of :data:`SCHEDULES`.
        steps: numbers of steps.
        thorough: every number in :data:`EVERY`, and η = 0 and 1 where they are taken, in place of ``steps`` and the
            solver's default η alone.
        samples: started from the prior, the same for every run.

    Raises:
        ValueError: a dtype without a bar.
    """
    return floors(solver, (checks.dtype(dtype),), sdes=sdes, steps=steps, thorough=thorough, samples=samples)[0]


def floors(
    solver: Solver,
    dtypes: Sequence[torch.dtype] = tuple(BARS),
    *,
    sdes: Mapping[str, SDE] | None = None,
    steps: Sequence[int] = STEPS,
    thorough: bool = False,
    samples: int = 256,
) -> tuple[Floor, ...]:
    """:func:`precision` in several dtypes, for which float64 is run once."""
    check_solver(solver)
    check_named(sdes)
    steps, thorough = check_steps(steps), checks.flag(thorough, name="thorough")
    samples = checks.count(samples, name="samples", least=2, most=MOST_SAMPLES)
    if not isinstance(dtypes, (tuple, list)) or not dtypes:
        raise TypeError(f"dtypes must be a list of dtypes, one at least; got {checks.got(dtypes)}.")
    dtypes = tuple(checks.dtype(dtype, name="each of dtypes") for dtype in dtypes)
    if unknown := [str(dtype) for dtype in dtypes if dtype not in BARS]:
        raise ValueError(f"each dtype must be one of {', '.join(map(str, BARS))}; got {', '.join(unknown)}.")
    found: dict[torch.dtype, list[FloorCell]] = {dtype: [] for dtype in dtypes}
    schedules = SCHEDULES if sdes is None else sdes
    for name, sde, eta, n in _runs(solver, schedules, EVERY if thorough else steps, thorough):
        exact = _deviation(solver, sde, eta, n, torch.float64, samples)
        if exact is None:
            continue
        for dtype in dtypes:
            rounded = _deviation(solver, sde, eta, n, dtype, samples)
            error = float("inf") if rounded is None else float(((rounded - exact) / exact).abs().max())
            found[dtype].append(FloorCell(f"{name}, {n} steps, η = {eta:g}", error, tuple(exact.tolist())))
    return tuple(Floor(dtype, BARS[dtype], tuple(cells)) for dtype, cells in found.items())


def _runs(
    solver: Solver, sdes: Mapping[str, SDE], steps: Sequence[int], every: bool
) -> Iterator[tuple[str, SDE, float, int]]:
    """(name, SDE, η, steps): the default η, or every one; one number of steps where the tolerance sets them."""
    counts = steps[:1] if tolerance_fields(solver) and not solver.steps_on_grid else steps
    for name, sde in sdes.items():
        etas = [eta for eta in (float(solver.default_eta), 0.0, 1.0) if _takes(solver, sde, eta)]
        for eta in dict.fromkeys(etas if every else etas[:1]):
            yield from ((name, sde, eta, n) for n in counts)


def _process(sde: SDE, eta: float, dtype: torch.dtype) -> Reverse:
    return Reverse(ScoreModel(RoundedNetwork(dtype), sde, "edm", sigma_data=1.0), eta)


def _takes(solver: Solver, sde: SDE, eta: float) -> bool:
    try:
        solver.check(_process(sde, eta, torch.float64))
    except ValueError:
        return False
    return True


def _deviation(solver: Solver, sde: SDE, eta: float, steps: int, dtype: torch.dtype, samples: int) -> Tensor | None:
    """The standard deviation (2,) at the end, float64; None for a run that is refused, or ends with infinite values."""
    process = _process(sde, eta, dtype)
    x = sde.prior_sample((samples, *DATA.event), 0, dtype=torch.float64)
    try:
        grid = chosen_grid(process.score, None, steps, solver, DATA.event)
        with torch.no_grad(), unadvised():  # of adaptive methods at their step limit
            end = solver.solve(process, x.to(torch.promote_types(dtype, torch.float32)), grid, 0).x
    except (ValueError, FloatingPointError):
        return None
    return end.double().std(0)
