"""Multistep methods, one evaluation a step: the default, and the exponential methods by the names of their papers::

    sample(score, shape)                                              # VMultistep, the default, on grids.balanced
    sample(score, shape, solver=DPMSolverPP(order=2), steps=20)
    sample(score, shape, solver=SASolver(), steps=50)                 # the reverse SDE

:class:`Multistep` has the order, the corrector, the quantity that is extrapolated and the variable as arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor

from scoresde import checks, grids
from scoresde.models.combination import Coefficient
from scoresde.models.score import Score
from scoresde.reverse import Reverse
from scoresde.solvers._frames import Predicts, VFrame, check_data_scale, data_scale, levels
from scoresde.solvers._multistep import ExponentialMultistep, Form, Interpolates, one_step_rows, plan_rows
from scoresde.solvers._relaxed import extended, relaxed_rows
from scoresde.solvers._variables import flow

__all__ = ["DEIS", "DPMSolverPP", "Multistep", "SASolver", "UniPC", "VMultistep"]

# Numbers of the default, fitted together with those of _relaxed and grids.balanced to a family of mixtures: see
# docs/benchmarks.md.
_STEADY = 15.0  # steps from which the corrector helps at η = 1
_PRIOR = 20.0  # σ/α, in units of the data's scale, from where the score is the prior's


def scales(n: int, few: bool) -> tuple[float, float]:
    """d of the frame and c of φ for n evaluations, in units of the data's scale."""
    n = max(4, n)
    if few:
        return 1.247 * math.exp(2.23 / n), 0.204 * math.exp(9.96 / n)
    return 1.027 * math.exp(2.40 / n), 0.636 * math.exp(1.78 / n)


@dataclass(frozen=True)
class VMultistep(ExponentialMultistep):
    r"""The default: a polynomial of v̂ in flow time through its last five values, with a corrector.

    With N = sqrt(α² d² + σ²), tan θ = σ/(α d) and φ = σ/(c α + σ), one evaluation a step, which also corrects the
    step that led to it::

        x_s / N_s = x_t / N_t + Σ_j w_j v̂_j        w_j = ∫_{θ_t}^{θ_s} ℓ_j(φ) dθ

    Both ends, σ → 0 and σ/α → ∞, are regular in φ and θ, so long steps there do no harm. d and c depend on the number
    n of evaluations and on ``sigma_data``; the grid that goes with them is :func:`~scoresde.grids.balanced`.

    **Few evaluations.** A run of 4 to 21 steps for η = 0 that starts where σ/α >= 20 σ_data takes n = steps - 1
    evaluations: none in the first step, where x is the prior's and v̂ = 0; those that follow correct it. And of the
    terms of Newton's form of a polynomial, by degree q, the predictor takes a share 1 - r_q/n, never below 0, and the
    corrector 1 + s_q/n. For η > 0 two values are used, with the corrector from 15 η² steps on. d and c
    (:func:`scales`), r and s were fitted once to random mixtures in 2, 8 and 64 dimensions.

    The prediction v: Salimans & Ho 2022 (arXiv:2202.00512), appendix D; the corrector: Zhao et al. 2023
    (arXiv:2302.04867).

    Args:
        sigma_data: standard deviation of the data per coordinate; default the score's own, else 1.

    Raises:
        ValueError: sigma_data not positive.
    """

    sigma_data: float | None = None

    order: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_data_scale(self.sigma_data)

    def form(self) -> Form:
        """Five values, corrected."""
        return Form(5, correct=True, predicts="v")

    def plan(self, process: Reverse, grid: Tensor) -> Sequence[Any]:
        """Rows; the first without an evaluation where few must do."""
        at, ode = levels(process.sde, grid), bool(process.eta == 0)
        if ode and bool(at.sigma[-1] == 0):
            at = extended(at)
        steps, scale = len(grid) - 1, checks.number(data_scale(self.sigma_data, process.score))
        few = ode and 4 <= steps <= grids.FEW and float(-at.h[0].detach()) >= math.log(_PRIOR * scale)
        n = steps - 1 if few else steps
        d, c = scales(n, few)
        frame, variable = VFrame(process.eta, d * scale), flow(c * scale)
        if few:
            return relaxed_rows(frame, at, n, variable)
        # noise makes a corrected extrapolation over steps so long unstable
        calm = steps >= _STEADY * checks.number(process.eta) ** 2
        form = self.form() if ode else self.form()._replace(history=2, correct=calm)
        return plan_rows(frame, form, at, None, variable)

    def default_grid(self, score: Score) -> grids.Rule:
        """:func:`~scoresde.grids.balanced`, at the same scale."""
        return partial(grids.balanced, sigma_data=data_scale(self.sigma_data, score))


@dataclass(frozen=True)
class DPMSolverPP(ExponentialMultistep):
    r"""Multistep DPM-Solver++ for every η: 1M, 2M and 3M, and with η = 1 SDE-DPM-Solver++ (1M-3M).

    x̂_0 is a polynomial in the log-SNR through its last ``order`` values, whose integral is exact (the papers' formulas
    replace it by one that differs in the next order). Order 3 is order 3: the first step is corrected by the
    evaluation that ends it, at no cost.

    Lu et al. 2022 (arXiv:2211.01095), Alg. 2 (2M) and section 5 (stochastic).

    Args:
        order: how many values of x̂_0 the polynomial goes through.
    """

    order: Literal[1, 2, 3] = 2  # type: ignore[misc]

    def form(self) -> Form:
        """Data prediction in log-SNR, no corrector."""
        return Form(self.order)


@dataclass(frozen=True)
class DEIS(ExponentialMultistep):
    r"""Exponential Adams-Bashforth on the noise prediction: DEIS (Zhang & Chen 2023, arXiv:2204.13902, section 3).

    Args:
        order: how many values of ε̂ the polynomial goes through; 4 spends 3 evaluations more on the first step.
        interpolates: tAB-DEIS is "time", ρAB-DEIS "noise_level".
    """

    order: Literal[1, 2, 3, 4] = 3  # type: ignore[misc]
    interpolates: Literal["time", "noise_level"] = "time"

    def form(self) -> Form:
        """Noise prediction, no corrector."""
        return Form(self.order, predicts="noise", interpolates=self.interpolates, full_start=self.order > 3)


@dataclass(frozen=True)
class UniPC(ExponentialMultistep):
    r"""The unified predictor-corrector UniPC-p (Zhao et al. 2023, arXiv:2302.04867, Alg. 1-2), of order p + 1.

    A predictor through p values; the evaluation that ends a step also corrects it, so there is none more. The weights
    are those that integrate the polynomial exactly, the limit that the paper's B(h) approximates.

    Args:
        predictor: p.
        predicts: "x0", as on pixels and for guidance in the paper, or "noise".
        full_start: spend (p - 1)² - 1 evaluations more on the first step where p > 2, without which the order is 3.
    """

    predictor: Literal[1, 2, 3, 4] = 2
    predicts: Literal["x0", "noise"] = "x0"
    full_start: bool = True

    @property
    def order(self) -> int:  # type: ignore[override]
        """p + 1; at most 3 without a full start."""
        return self.form().order

    def form(self) -> Form:
        """In log-SNR, with the corrector."""
        return Form(self.predictor, True, self.predicts, full_start=self.full_start)


@dataclass(frozen=True)
class SASolver(ExponentialMultistep):
    r"""SA-Solver: a stochastic Adams predictor-corrector for x̂_0 (Xue et al. 2023, arXiv:2309.05019, Alg. 1).

    Its τ is our η, 1 by default. Each step's noise belongs to both, the prediction and the correction.

    Args:
        predictor: how many values of x̂_0 the predictor's polynomial goes through; the corrector's has one more.
    """

    predictor: Literal[1, 2, 3] = 2

    order: ClassVar[int | None] = None
    default_eta: ClassVar[float] = 1.0

    def form(self) -> Form:
        """Data prediction in log-SNR, with the corrector."""
        return Form(self.predictor, True)


@dataclass(frozen=True)
class Multistep(ExponentialMultistep):
    """Any exponential multistep method: the options of the others, free.

    Args:
        history: p, how many evaluations the predictor's polynomial goes through.
        correct: whether each evaluation corrects the step that it ends.
        predicts: the F that is interpolated.
        interpolates: the variable in which F is a polynomial: h = ½ log-SNR, σ̃ = σ/α, t, σ̃^(1/7), or
            atan(σ̃/σ_data).
        full_start: spend (P - 2)² - 1 evaluations more on the first step, P = p + correct, where P > 3, without which
            the order is 3.
        sigma_data: scale of the data, for "v" and "angle"; default the score's own, else 1.
    """

    history: int = 2
    correct: bool = True
    predicts: Predicts = "x0"
    interpolates: Interpolates = "log_snr"
    full_start: bool = False
    sigma_data: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.count(self.history, name="history, the number of evaluations that the polynomial goes through,")
        check_data_scale(self.sigma_data)
        if self.history > 8:
            raise ValueError(f"history must be at most 8, where polynomials still serve; got {self.history}.")

    @property
    def order(self) -> int:  # type: ignore[override]
        """P; at most 3 without a full start."""
        return self.form().order

    def transitions(self, process: Reverse, grid: Tensor) -> Sequence[tuple[Coefficient, ...]]:
        """(a, b, c) of steps x_s = a x_t + b s + c z, for the method without a memory: history 1, not corrected.

        Raises:
            ValueError: it has a memory.
        """
        return one_step_rows(self.plan(process, grid), type(self).__name__)

    def form(self) -> Form:
        """The options."""
        return Form(self.history, self.correct, self.predicts, self.interpolates, self.full_start, self.sigma_data)
