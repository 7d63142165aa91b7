"""What orders are measured on: SDEs, grids, and problems with known answers on which nothing cancels.

The SDEs by name: :data:`FLOW` for the probability-flow ODE, :data:`LAW` for errors in law, :data:`PATH` for errors on
one Brownian path, :data:`WIDE` for adaptive methods; :data:`GRIDS` holds the rules for the times. The data are
:data:`GAUSSIAN`, :data:`MIXED` and :data:`SMOOTH`. The modules that measure begin with::

    sde = FLOW["VP"]
    process = process_for(Heun(), MIXED.score(sde), eta=0.0)    # ValueError where the solver does not take this η
    x, (gaussian, mixture) = starts(sde), exact_ends(sde)       # three states at T, and where the ODE leads from them

:func:`exact_ends` has the end of the Gaussian axes in closed form and that of the mixture to 1e-13.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde import checks, rules
from scoresde.checks.lasting import lasting
from scoresde.models import Combination, Score
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sde import EDM, SDE, VE, VP, Cosine, RectifiedFlow, SubVP
from scoresde.solvers import ProbabilityFlow, Solver

Grid = Callable[[SDE, int], Tensor]
"""(sde, steps) -> times, such as the rules of :mod:`scoresde.grids`."""

# Ranges without the last decades of log-SNR: there the constants, not the orders, of low-order methods are extreme.

FLOW: dict[str, SDE] = {
    "VP": VP(beta_max=10.0, T=0.5, t_min=0.15),
    "VE": VE(0.3, 1.5),
    "Cosine": Cosine(T=0.6, t_min=0.2),
}
"""For the ODE: from σ/α = 1.5, where E[x_0 | x_t] already varies, so that the start-up of a multistep method counts."""

LAW: dict[str, SDE] = {
    "SubVP": SubVP(beta_max=8.0, T=0.6, t_min=0.4),
    "EDM": EDM(T=1.5, t_min=0.7),
    "RectifiedFlow": RectifiedFlow(T=0.6, t_min=0.4),
}
"""For errors in law: shorter, since an error of the ODE's order hides the noise's until steps are short."""

PATH: dict[str, SDE] = {
    "VE": VE(0.05, 0.3),
    "VP": VP(beta_max=10.0, T=0.2, t_min=0.03),
    "Cosine": Cosine(T=0.2, t_min=0.04),
}
"""For errors on a path: at noise levels below the data's spread, where they reach their order at the fewest steps."""

WIDE: dict[str, SDE] = {"VP": VP(t_min=0.01), "VE": VE(0.05, 20.0), "Cosine": Cosine(T=0.98, t_min=0.02)}
"""For adaptive methods: ranges on which they take steps of many sizes."""

MOST_SAMPLES = 100_000_000
"""Of a measurement by sampling."""

GRIDS: dict[str, Grid] = {"uniform": rules.uniform, "log_snr": rules.log_snr}
"""The rules for the times, by name."""


def _double(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


_MEAN, _VARIANCE = (0.7, -0.4, 1.5), (0.5, 2.0, 0.1)

GAUSSIAN = Gaussian(_double(_MEAN)[0], _double(_VARIANCE)[0])
"""Three axes of unlike mean and variance: no symmetry hides an error, and no leading error cancels on all of them."""

MIXED = GaussianMixture(
    _double((0.3, 0.4, 0.3))[0],
    _double((*_MEAN, -0.8, 0.5), (*_MEAN, 0.9, 0.2), (*_MEAN, 0.1, -1.0)),
    _double((*_VARIANCE, 0.3, 0.6), (*_VARIANCE, 0.5, 0.3), (*_VARIANCE, 0.4, 0.4)),
)
"""The axes of GAUSSIAN and, independent of them, a mixture in the plane.

On Gaussian data the probability-flow ODE is linear, and conditions of order that only nonlinear equations test go
unseen; on the two axes of the mixture it is nonlinear. The components overlap, so that the order shows at few steps.
"""

SMOOTH = GaussianMixture(
    _double((0.5, 0.5))[0],
    _double((0.7, -0.4, -0.8, 0.5), (0.7, -0.4, 0.9, -0.2)),
    _double((0.7, 2.0, 0.6, 0.9), (0.7, 2.0, 0.8, 0.7)),
)
"""The same without an axis as tight as the third, on which paths reach the regime of an order only at many steps."""


@dataclass(frozen=True, eq=False)
class PlainScore(Score):
    """``data.score(sde)`` for diagonal covariances with as little around it as can be: an order takes many steps."""

    data: GaussianMixture
    sde: SDE

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        if t.ndim:
            return self.data.score(self.sde).evaluate(x, t, wanted)
        try:
            at = _laws(self.data, self.sde, t.item())
        except TypeError:  # fields that have no hash
            at = _laws.__wrapped__(self.data, self.sde, t.item())
        p, q = map(float, wanted.of_predictions(at.alpha, at.sigma))  # type: ignore[arg-type]
        slope = p * at.gain + q * at.rate if p else q * at.rate
        if len(slope) == 1:
            along = (x - at.mean) * slope
            return along.add_(self.data.means, alpha=p) if p else along
        apart = x[:, None] - at.mean
        parts = p * self.data.means + slope * apart
        share = (at.weight - 0.5 * (apart.square() / at.variance).sum(-1)).softmax(1)
        return (share[:, :, None] * parts).sum(1)


class _Laws(NamedTuple):
    """The components of x_t: α, σ, mean and variance V (K, D), α C/V, σ/V, log w - ½ Σ log V up to a constant."""

    alpha: float
    sigma: float
    mean: Tensor
    variance: Tensor
    gain: Tensor
    rate: Tensor
    weight: Tensor


@functools.lru_cache(maxsize=2**14)
@lasting
def _laws(data: GaussianMixture, sde: SDE, t: float) -> _Laws:
    """Kept, because the grids of all solvers meet at the same times."""
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    variance = alpha**2 * data.covariances + sigma**2
    weight = data.weights.log() - 0.5 * variance.log().sum(-1)
    return _Laws(
        alpha, sigma, alpha * data.means, variance, alpha * data.covariances / variance, sigma / variance, weight
    )


def check_case(solver: object, sde: object, grid: object = rules.uniform) -> None:
    """Raises TypeError unless these are a Solver, an SDE, and a function of (sde, steps)."""
    check_solver(solver)
    checks.instance(sde, SDE, name="sde", hint="Such as VP(), or one of FLOW.")
    _check_grid(grid, "grid")


def check_solver(solver: object) -> None:
    """Raises TypeError for no solver."""
    checks.instance(solver, Solver, name="solver", hint="Such as Heun().")


def check_named(sdes: object = None, grids: object = None) -> None:
    """Raises TypeError or ValueError unless these are SDEs and grids by name, at least one of each; or None."""
    for name, found, what in (("sdes", sdes, "SDEs"), ("grids", grids, "functions of (sde, steps)")):
        if found is None:
            continue
        if not isinstance(found, Mapping):
            raise TypeError(f"{name} must be a mapping from names to {what}, got {checks.got(found)}.")
        if not found:
            raise ValueError(f"{name} must hold one at least, got {checks.got(found)}.")
        for value in found.values():
            if name == "sdes":
                checks.instance(value, SDE, name="each of sdes")
            else:
                _check_grid(value, "each of grids")


def check_steps(steps: object, *, name: str = "steps") -> tuple[int, ...]:
    """Numbers of steps in a list or tuple, at least one, as ints.

    Raises:
        TypeError, ValueError: something else.
    """
    found = checks.shape(steps, what="a list of numbers of steps", name=name)
    return tuple(checks.count(n, name=name, most=rules.MOST_STEPS) for n in found)


def _check_grid(grid: object, name: str) -> None:
    if isinstance(grid, type):
        raise TypeError(f"{name} must be a function (sde, steps) -> times such as grids.uniform, got {grid!r}.")
    checks.function(grid, name=name, what="(sde, steps) -> times such as grids.uniform")


def process_for(solver: Solver, score: Score, eta: float) -> Reverse:
    """The process of this η.

    Raises:
        ValueError: the solver does not take it.
    """
    process = Reverse(score, eta)
    solver.check(process)
    return process


_STARTS = _double((1.3, -0.8, 0.3, 0.4, -0.9), (-0.5, 1.9, -1.1, -1.2, 0.7), (0.2, 0.5, 0.9, 0.1, 0.2))


def starts(sde: SDE) -> Tensor:
    """Three states (3, 5) at T."""
    return _STARTS * sde.prior_std


@functools.lru_cache(maxsize=64)
@lasting
def exact_ends(sde: SDE) -> tuple[Tensor, Tensor]:
    """Where the probability-flow ODE carries :func:`starts`: the axes of GAUSSIAN (3, 3), those of the mixture (3, 2).

    The first in closed form. The second by torchdiffeq's dopri8 at a tolerance of 1e-13; on the Gaussian axes of the
    same run its error is known.

    Raises:
        ArithmeticError: that error is above a tenth of the least that slopes are read from.
    """
    x = starts(sde)
    reference = ProbabilityFlow("dopri8", rtol=1e-13, atol=1e-13)
    end = reference.solve(Reverse(MIXED.score(sde), eta=0.0), x, rules.uniform(sde, 1)).x
    gaussian = GAUSSIAN.flow(sde, x[:, :3], sde.T, sde.t_min)
    wrong = float((end[:, :3] - gaussian).norm())
    if not wrong < 1e-13 * max(1.0, float(gaussian.norm())):
        raise ArithmeticError(
            f"the reference solution under {sde} is off by {wrong:.1e} where the answer is known, too much to measure "
            "orders with. End at a larger t_min, or start at a smaller T."
        )
    return gaussian, end[:, 3:]
