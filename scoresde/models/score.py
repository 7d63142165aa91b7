"""The Score: the currency of the library. It knows its SDE, and answers any linear combination in one evaluation.

Every model bound to its conditions, every guidance, every posterior and every exact score is one. From a function::

    score = as_score(lambda x, t: -x, VP())
    score(x, t)                  # ∇ log p_t(x)
    score.linear(x, t, a, b)     # a x + b ∇ log p_t(x)
    score.denoise(x, t)          # E[x_0 | x_t = x]
    score.noise(x, t)            # E[ε | x_t = x]

A score of your own derives from :class:`Score` and writes :meth:`Score.evaluate`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from scoresde import checks
from scoresde.models.combination import NOISE, SCORE, X0, Coefficient, Combination, Expectation, Linear, combine
from scoresde.models.modules import dtype_behind
from scoresde.sde import SDE, Time
from scoresde.spectrum import Spectrum

Function = Callable[[Tensor, Tensor], Tensor]
"""(x (B, *event), t () or (B,)) -> a tensor shaped like x."""


class Units(Protocol):
    """A map between the units of the data and those of a model, such as a :class:`~scoresde.data.Scaling`."""

    def to_model(self, data: Tensor, /) -> Tensor:
        """From data units to model units."""

    def to_data(self, x: Tensor, /) -> Tensor:
        """From model units to data units."""


class Score(ABC):
    r"""∇_x log p_t(x) of the law of x_t = α x_0 + σ ε under :attr:`sde`, and all that follows from it.

    Attributes:
        sde: the SDE.
        sigma_data: standard deviation of x_0 per coordinate, where the score knows it.
        spectrum: the same along the direction of most, too, where the score knows it.
        scaling: the map between x_0 and the data, where the score knows it: by it a
            :class:`~scoresde.solvers.Solution` tells its samples in the units of the data.
        rough: whether it changes so much from time to time that samplers had better not extrapolate it: then
            :func:`~scoresde.sample` takes :class:`~scoresde.solvers.Ancestral` where nothing else is said.
        coupling: in words, how data and noise were coupled in the training of the model behind it; None where they were
            independent. What answers E[ε | x_t] of a coupling is no score: η = 0 alone is right with it, see
            :func:`check_independent`.
        amplification: where it is a sum of scores Σ a_i s_i, Σ |a_i|: by so much the errors of its parts may come out
            larger, and with it those of an extrapolation. Guidance of scale w has |w| + |1 - w|.
    """

    sde: SDE
    sigma_data: float | None = None
    spectrum: Spectrum | None = None
    scaling: Units | None = None
    rough: bool = False
    coupling: str | None = None
    amplification: float = 1.0

    @abstractmethod
    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        """The wanted combination at (x, t), shaped like x and of its dtype, from one evaluation.

        Args:
            x: (B, *event).
            t: () or (B,), float64.
            wanted: which; read it by ``of_score``, ``of_predictions`` or ``of_x0``.
        """

    def linear(self, x: Tensor, t: Time, a: Coefficient, b: Coefficient) -> Tensor:
        """a x + b ∇ log p_t(x), with a and b numbers or float64 tensors, () or (B,)."""
        time = self._time(x, t)
        if a.__class__ is not float or b.__class__ is not float or a != a or b != b:
            a, b = _coefficient(a, x, "a"), _coefficient(b, x, "b")
        return self.evaluate(x, time, Linear(a, b))

    def expect(self, x: Tensor, t: Time, x0: Coefficient, noise: Coefficient) -> Tensor:
        """E[p x_0 + q ε | x_t = x] with p = ``x0``, q = ``noise``."""
        time = self._time(x, t)
        return self.evaluate(x, time, Expectation(_coefficient(x0, x, "x0"), _coefficient(noise, x, "noise")))

    def denoise(self, x: Tensor, t: Time) -> Tensor:
        """E[x_0 | x_t = x] = (x + σ² s)/α (Robbins 1956; Efron 2011)."""
        return self.evaluate(x, self._time(x, t), X0)

    def noise(self, x: Tensor, t: Time) -> Tensor:
        """E[ε | x_t = x] = -σ s."""
        return self.evaluate(x, self._time(x, t), NOISE)

    def __call__(self, x: Tensor, t: Time) -> Tensor:
        """∇ log p_t(x)."""
        return self.evaluate(x, self._time(x, t), SCORE)

    def _time(self, x: Tensor, t: Time) -> Tensor:
        """The time as :meth:`evaluate` takes it, beside x, after all checks of both."""
        checks.state(x)
        sde = self.sde
        if (  # that of every step, in half a microsecond
            isinstance(t, Tensor)
            and t.dtype is torch.float64
            and not t.ndim
            and checks.readable(t)
            and 0 <= t.item() <= sde.t_max
        ):
            return t
        time = checks.time(t, sde.t_max, what=type(sde).__name__)
        if not time.ndim:
            return time
        checks.same_batch(time, x)
        return _moved(time, x)


class DerivedScore(Score):
    """A score made of another one, :attr:`score` (a field, or a property), whose SDE and scale it has."""

    score: Score

    @property
    def sde(self) -> SDE:  # type: ignore[override]
        return self.score.sde

    @property
    def sigma_data(self) -> float | None:  # type: ignore[override]
        return self.score.sigma_data

    @property
    def spectrum(self) -> Spectrum | None:  # type: ignore[override]
        return self.score.spectrum

    @property
    def scaling(self) -> Units | None:  # type: ignore[override]
        return self.score.scaling

    @property
    def rough(self) -> bool:  # type: ignore[override]
        return self.score.rough

    @property
    def coupling(self) -> str | None:  # type: ignore[override]
        return self.score.coupling

    @property
    def amplification(self) -> float:  # type: ignore[override]
        return self.score.amplification


@dataclass(frozen=True, eq=False)
class FunctionScore(Score):
    """A plain function as a Score; made by :func:`as_score`.

    What is not the score itself is worked out from its values, in their own dtype: x̂_0 = (x + σ² s)/α is off by
    eps σ/α, eps the function's rounding. A function that knows x̂_0 is better given to :func:`score_of_denoiser`.
    """

    function: Function
    sde: SDE
    sigma_data: float | None = None
    dtype: torch.dtype | None = None
    scaling: Units | None = None

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        a, b = wanted.of_score(self.sde, t)
        value = self.function(x if self.dtype is None else checks.brought(x, self.dtype), t)
        return combine((a, x), (b, shaped_like(value, x, "the score")))


@dataclass(frozen=True, eq=False)
class DenoiserScore(Score):
    """A denoiser as a Score; made by :func:`score_of_denoiser`."""

    denoiser: Function
    sde: SDE
    sigma_data: float | None = None
    dtype: torch.dtype | None = None
    scaling: Units | None = None

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        a, b = wanted.of_x0(self.sde.alpha(t), self.sde.sigma(t))
        value = self.denoiser(x if self.dtype is None else checks.brought(x, self.dtype), t)
        return combine((a, x), (b, shaped_like(value, x, "the denoiser")))


def as_score(
    function: Function | Score,
    sde: SDE,
    *,
    sigma_data: float | None = None,
    dtype: torch.dtype | None = None,
    scaling: Units | None = None,
) -> Score:
    """A Score from any function (x, t) -> ∇ log p_t(x).

    Args:
        function: called with x (B, *event) and t, () or (B,), float64; a Score of this SDE is answered as it is.
        sde: the SDE whose p_t it is.
        sigma_data: standard deviation of x_0 per coordinate, if known.
        dtype: that of tensors which the function holds, to which x is brought; default that of the module behind it, if
            :func:`~scoresde.models.modules_of` finds one, else x's own, float32 or float64.
        scaling: the map between x_0 and the data, if known.

    Raises:
        TypeError: not a function, or not an SDE.
        ValueError: a Score of another SDE.
    """
    _check_sde(sde, "as_score(function, sde)")
    if isinstance(function, Score):
        same_sde({"sde": sde, "the score": function.sde})
        return function
    checks.function(function, name="function", what="(x, t) -> score")
    return FunctionScore(function, sde, *_checked(sigma_data, dtype, function), scaling)


def score_of_denoiser(
    denoiser: Function,
    sde: SDE,
    *,
    sigma_data: float | None = None,
    dtype: torch.dtype | None = None,
    scaling: Units | None = None,
) -> Score:
    """The Score (α D(x, t) - x)/σ² of a denoiser D(x, t) = E[x_0 | x_t = x]. Arguments as of :func:`as_score`."""
    _check_sde(sde, "score_of_denoiser(denoiser, sde)")
    checks.function(denoiser, name="denoiser", what="(x, t) -> x_0")
    return DenoiserScore(denoiser, sde, *_checked(sigma_data, dtype, denoiser), scaling)


def check_score(score: object, *, name: str = "score") -> Score:
    """The score, if it is one.

    Raises:
        TypeError: it is not; says how a function becomes one.
    """
    if isinstance(score, Score):
        return score
    if isinstance(score, SDE):
        raise TypeError(
            f"{name} must be a Score, got the SDE {type(score).__name__}: a score knows its own, leave it out."
        )
    hint = f"; write as_score({name}, sde)" if callable(score) else ""
    raise TypeError(
        f"{name} must be a Score (model.bind(label=y), problem.score(sde), a guidance), got "
        f"{type(score).__name__}{hint}."
    )


def check_independent(score: Score, *, what: str) -> None:
    """Raise where data and noise were coupled in the training of the model behind a score.

    Then E[ε | x_t] = -σ ∇ log p_t(x_t) does not hold, which needs ε independent of x_0: with ε = x_0/s for
    x_0 ~ N(0, s²), the optimal coupling, -E[ε | x_t]/σ is -x/(σ (α s + σ)) and the score -x/(α s + σ)². The velocity
    E[α' x_0 + σ' ε | x_t] of the probability-flow ODE is that of the path all the same, and stays right.

    Args:
        score: a Score.
        what: is refused, for the message.

    Raises:
        ValueError: they were.
    """
    if score.coupling is not None:
        raise ValueError(
            f"{what} takes the answers of the model for a score, and they are none: it was trained with data and noise "
            f"coupled ({score.coupling:.80}), so that only its probability-flow ODE is right. Take a solver of the ODE "
            "that draws no noise (eta=0), unguided or guided by conditions, or train without coupling."
        )


def same_sde(parts: dict[str, SDE]) -> None:
    """Raises ValueError unless all have one schedule: α and σ agree wherever both are asked."""
    (first, sde), *others = parts.items()
    for name, other in others:
        if other is not sde and not _one_schedule(sde, other):
            raise ValueError(
                f"{first} has {sde!r}, {name} has {other!r}: a score means nothing under another schedule. Bring one "
                "to the other's, for a model by model.under(sde)."
            )


def _one_schedule(a: SDE, b: SDE) -> bool:
    low, high = max(a.t_min, b.t_min), min(a.T, b.T)
    if not low < high:
        return False
    times = torch.linspace(low, high, 7, dtype=torch.float64)
    with torch.no_grad():
        pairs = ((a.alpha(times), b.alpha(times)), (a.sigma(times), b.sigma(times)))
    # tolerance for the rounding of two ways to write one formula; a chain and its limit differ by O(1/n)
    return all(torch.allclose(p, q, rtol=1e-9, atol=1e-12) for p, q in pairs)


def shaped_like(value: object, x: Tensor, what: str) -> Tensor:
    """``value`` in the dtype of x.

    Raises:
        ValueError: it is no tensor shaped like x.
    """
    if isinstance(value, Tensor) and value.shape == x.shape:
        if value.dtype == x.dtype:
            return value
        if value.is_floating_point():
            return value.to(x.dtype)
        raise ValueError(f"{what} must return a floating tensor like x, {x.dtype}; it returned {value.dtype}.")
    got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(f"{what} must return a tensor shaped like x, {tuple(x.shape)}; it returned {got}.")


def _coefficient(given: Coefficient, x: Tensor, name: str) -> Coefficient:
    """A coefficient as :class:`Linear` and :class:`Expectation` hold it: a float, or float64, () or (B,), beside x."""
    if isinstance(given, (int, float, np.number)):
        number = checks.number(given, name=name)
        if math.isnan(number):
            raise ValueError(f"{name} must be a number, got {number}.")
        return number
    found = checks.real(given, name=name)
    if found.ndim > 1:
        raise ValueError(f"{name} must be a number, or one for each sample (B,), got shape {tuple(found.shape)}.")
    checks.same_batch(found, x, name=name)
    return _moved(found, x)


C = TypeVar("C", Tensor, Coefficient)


def _moved(given: C, x: Tensor) -> C:
    """Where there is one for each sample it goes to x's device; a single one meets x from wherever it is."""
    if isinstance(given, Tensor) and given.ndim and isinstance(x, Tensor) and given.device != x.device:
        return checks.time_beside(given, x)
    return given


def _check_sde(sde: object, order: str) -> None:
    checks.instance(sde, SDE, name="sde", hint=f"The order is {order}.")


def _checked(
    sigma_data: float | None, dtype: torch.dtype | None, function: object
) -> tuple[float | None, torch.dtype | None]:
    """The deviation of the data, and the dtype of the function, said or found."""
    if sigma_data is not None:
        checks.positive(sigma_data, name="sigma_data")
        sigma_data = checks.number(sigma_data, name="sigma_data")
    return sigma_data, dtype_behind(function) if dtype is None else checks.dtype(dtype)
