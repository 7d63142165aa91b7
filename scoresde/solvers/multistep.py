"""Exponential multistep methods, one evaluation a step, by the names of their papers::

    sample(score, shape, solver=DPMSolverPP(order=2), steps=20)
    sample(score, shape, solver=SASolver(), steps=50)                 # the reverse SDE

:class:`Multistep` has the order, the corrector, the quantity that is extrapolated and the variable as arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from scoresde import checks
from scoresde.models.combination import Coefficient
from scoresde.reverse import Reverse
from scoresde.solvers._frames import Predicts, check_data_scale
from scoresde.solvers._multistep import ExponentialMultistep, Form, Interpolates, one_step_rows

__all__ = ["DEIS", "DPMSolverPP", "Multistep", "SASolver", "UniPC"]


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
