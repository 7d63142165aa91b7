"""The default solver: a multistep method for the velocity that makes the most of few evaluations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoresde import checks
from scoresde.grids import FEW
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.solvers.frames import Frame, Levels, VelocityFrame, levels
from scoresde.solvers.linear import Coefficient, combine, rows
from scoresde.solvers.multistep import ExponentialMultistep, Form, Memory, Row, _last, _rows, _units
from scoresde.solvers.weights import Variable, weights

# Numbers of the method, fitted together with those of grids.balanced to a family of mixtures: see docs/benchmarks.md.
_RELAX = (0.0, -0.56, 2.38, 5.76)  # how much less of each term of Newton's form the predictor takes, times n
_STRESS = (0.0, 0.0, 3.6, 7.7, 5.4)  # how much more of it the corrector takes, times n
_STEADY = 15.0  # steps from which the corrector helps at η = 1
_PRIOR = 20.0  # σ/α, in units of the data's scale, from where the score is the prior's


def _scales(n: int, few: bool) -> tuple[float, float]:
    """d of the frame and c of φ for n evaluations, in units of the data's scale."""
    n = max(4, n)
    if few:
        return 1.247 * math.exp(2.23 / n), 0.204 * math.exp(9.96 / n)
    return 1.027 * math.exp(2.40 / n), 0.636 * math.exp(1.78 / n)


class Coast(NamedTuple):
    """A step without an evaluation: x_s = keep x."""

    keep: Coefficient


@dataclass(frozen=True)
class VelocityMultistep(ExponentialMultistep):
    r"""The default: a polynomial of the velocity v̂ in flow time through its last five values, with a corrector.

    With N = sqrt(α² d² + σ²), tan θ = σ/(α d) and φ = σ/(c α + σ), one evaluation a step, which also corrects the
    step that led to it::

        x_s / N_s = x_t / N_t + Σ_j w_j v̂_j        w_j = ∫_{θ_t}^{θ_s} ℓ_j(φ) dθ

    Both ends, σ → 0 and σ/α → ∞, are regular in φ and θ, so long steps there do no harm. d and c depend on the number
    n of evaluations and on ``sigma_data``; the grid that goes with them is :func:`~scoresde.grids.balanced`.

    **Few evaluations.** A run of 4 to 21 steps for η = 0 that starts where σ/α >= 20 sigma_data takes n = steps - 1
    evaluations: none in the first step, where x is the prior's and v̂ = 0; those that follow correct it. And of the
    terms of Newton's form of a polynomial, by degree, the predictor takes a share 1 - r_q/n, never below 0, and the
    corrector 1 + s_q/n, where r = (0, -0.56, 2.38, 5.76), four values, and s = (0, 0, 3.6, 7.7, 5.4)::

        d = 1.247 e^{2.23/n} sigma_data    c = 0.204 e^{9.96/n} sigma_data
        otherwise, n = steps:
        d = 1.027 e^{2.40/n} sigma_data    c = 0.636 e^{1.78/n} sigma_data        n = max(4, n)

    For η > 0 two values are used, with the corrector from 15 η² steps on. The numbers were fitted once to random
    mixtures in 2, 8 and 64 dimensions. The velocity: Salimans & Ho 2022 (arXiv:2202.00512), appendix D; the corrector:
    Zhao et al. 2023 (arXiv:2302.04867).

    Args:
        sigma_data: scale of the data, standard deviation per coordinate; 0.5 to 2 times the truth does little harm.

    Raises:
        ValueError: sigma_data not positive.
    """

    sigma_data: float = 1.0

    order: ClassVar[int] = 3

    def __post_init__(self) -> None:
        checks.positive(self.sigma_data, name="sigma_data")

    def form(self) -> Form:
        """Five values, corrected."""
        return Form(5, correct=True, predicts="velocity")

    def plan(self, process: Reverse, grid: Tensor) -> Sequence[Any]:
        """Rows; the first a :class:`Coast` where few evaluations must do."""
        at = levels(process.sde, grid)
        clean, ode = bool(at.sigma[-1] == 0), bool(process.eta == 0)
        if clean and ode:
            at, clean = _near(at), False
        noisy = at.at(slice(0, -1)) if clean else at
        steps, scale = len(grid) - 1, checks.number(self.sigma_data)
        few = ode and 4 <= steps <= FEW and float(-at.h[0].detach()) >= math.log(_PRIOR * scale)
        n = steps - 1 if few else steps
        d, c = _scales(n, few)
        frame = VelocityFrame(process.eta, d * scale)

        def flow(h: Tensor) -> Tensor:
            return 1 / (1 + c * scale * h.exp())

        if few:
            return _relaxed(frame, at, n, flow)
        # noise makes a corrected extrapolation over steps so long unstable
        calm = steps >= _STEADY * checks.number(process.eta) ** 2
        form = self.form() if ode else self.form()._replace(history=2, correct=calm)
        found, change = _rows(frame, form, noisy, None, flow)
        return [*found, _last(frame, at, change)] if clean else found

    def advance(
        self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, row: Any, memory: Any
    ) -> tuple[Tensor, Any]:
        """One evaluation; none to coast."""
        if isinstance(row, Coast):
            return combine((row.keep, x)), Memory()
        return super().advance(process, x, t, s, noise, row, memory)


def _near(at: Levels) -> Levels:
    """σ = 0 at the end replaced by 1e-11 of what is before, which the velocity's step reaches as well as any."""
    h = torch.cat([at.h[:-1], at.h[-2:-1].clamp_min(0) + 25])
    return Levels(at.t, at.alpha, torch.cat([at.sigma[:-1], (at.alpha * (-h).exp())[-1:]]), h)


def _relaxed(frame: Frame, at: Levels, n: int, variable: Variable) -> list[Any]:
    """The steps of a run whose first is free."""
    steps = len(at.h) - 1
    p = len(_RELAX)
    t, s = at.at(slice(0, -1)), at.at(slice(1, None))
    unit, pulls = _units(frame, at)
    index = torch.arange(steps)
    behind = (index[:, None] - torch.arange(p)).clamp_min(1)  # nothing is known at the first time
    count = index.clamp_max(p)
    nodes = torch.cat([s.h[:, None], at.h[behind]], 1)
    scale = torch.cat([unit[1:, None], unit[behind]], 1)
    predictor = _by_order(frame, t.h, s, nodes[:, 1:], count, variable, [1 - r / n for r in _RELAX]) * scale[:, 1:]
    corrector = _by_order(frame, t.h, s, nodes, count + 1, variable, [1 + v / n for v in _STRESS]) * scale
    none = torch.zeros(1, p + 1, dtype=torch.float64)
    change = corrector - torch.cat([none[:, :1].expand(steps, 1), predictor], 1)
    keep = frame.keep(t, s)
    # the second evaluation gives the free step its slope, after the first has given it a value
    two, first = torch.tensor([2]), slice(0, 1)
    ends = torch.stack([at.h[2], at.h[1]])[None]
    slope = weights(frame, t.h[first], s.at(first), ends, two, variable) * scale[1:2, :2]
    value = torch.cat([none[:, :1], corrector[first, :1]], 1)
    late = (1 + _STRESS[1] / n) * keep[1] * (slope - value)
    change = torch.cat([change[:1], change[1:2] + torch.nn.functional.pad(late, (0, p - 1)), change[2:]])
    brought = keep[:, None] * torch.cat([none, change])[:-1]
    total = torch.cat([predictor, none[:, :1].expand(steps, 1)], 1) + brought
    columns = rows(keep, *total.unbind(1))
    found: list[Any] = [Coast(columns[0][0])]
    for i, (a, *row) in enumerate(columns[1:], 1):
        found.append(Row(pulls[i], a, tuple(row[: min(i, p + 1)]), 0.0, p))
    return found


def _by_order(
    frame: Frame, start: Tensor, end: Levels, nodes: Tensor, count: Tensor, variable: Variable, shares: Sequence[float]
) -> Tensor:
    """Weights of Newton's form of the polynomial with a share of each difference; the constant is taken whole."""
    total = before = torch.zeros_like(nodes)
    for q, share in enumerate(shares, 1):
        full = weights(frame, start, end, nodes, count.clamp_max(q), variable)
        total = total + (full - before if q == 1 else max(share, 0.0) * (full - before))
        before = full
    return total
