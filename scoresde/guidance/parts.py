"""What a guidance derives from: a weighted sum of scores, a score bent by a known ψ_t, or neither.

    guided.parts(x, t, SCORE)                       # [Part(weight, value), ...] of a LinearGuidance
    guided.twist(x, t)                              # Twist(x0, log_psi, gradient) of a TwistedGuidance
    guided.reason                                   # why a NonlinearGuidance has neither

:mod:`scoresde.particles` corrects samples by them: ``tilted`` the first, ``twisted`` the second. A guidance of your own
is a frozen dataclass that derives from one of the three, and from :class:`~scoresde.models.score.DerivedScore`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from scoresde import checks
from scoresde.models.combination import Combination, as_number, combine
from scoresde.models.score import Score
from scoresde.sde import spread

__all__ = ["LinearGuidance", "NonlinearGuidance", "Part", "Twist", "TwistedGuidance"]


class Part(NamedTuple):
    """One term of a sum of scores: its weight, and what it answers to the combination asked for, (B, *event)."""

    weight: float
    value: Tensor


class LinearGuidance(Score):
    r"""A Score Σ_i a_i s_i(x, t) with Σ_i a_i = 1, each s_i the score of a law p_i that the forward process carries.

    As the weights sum to 1, any combination of it is the same sum of its parts' combinations.

    It is the score of π_t ∝ Π_i p_i(x, t)^{a_i}, which in general no forward process carries from time to time, so that
    sampling with it does not end in π_0. What is missing are the weights (Skreta et al. 2025, arXiv:2503.02819)::

        d log w / dτ = ½ g² (|Σ_i a_i s_i|² - Σ_i a_i |s_i|²),        τ = T - t,

    for every η; :func:`scoresde.particles.tilted` carries them along.

    Attributes:
        correction: how samples are brought to that density, for whoever asks the wrong function to.
    """

    correction: ClassVar[str] = "it is a weighted sum of scores: use tilted(...) for it"

    @abstractmethod
    def parts(self, x: Tensor, t: Tensor, wanted: Combination) -> Sequence[Part]:
        """The terms at (x, t), each the wanted combination of its score. Weights are constant in time, and sum to 1."""

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        return weighted_sum(self.parts(x, t, wanted))


class Twist(NamedTuple):
    """A score and what bends it: x̂_0 of the law p_t (B, *event), log ψ_t(x) (B,) and ∇_x log ψ_t(x) (B, *event)."""

    x0: Tensor
    log_psi: Tensor
    gradient: Tensor


class TwistedGuidance(Score):
    r"""A Score s(x, t) + ∇ log ψ_t(x) whose ψ_t is known, up to a constant, and positive.

    What is wanted is p_0(x_0) ψ_0(x_0). The score leads there only where ψ_t(x_t) = E[ψ_0(x_0) | x_t];
    :func:`scoresde.particles.twisted` corrects any other ψ_t.

    Attributes:
        correction: how samples are brought to that density, for whoever asks the wrong function to.
    """

    correction: ClassVar[str] = "it is a score with a known twist: use twisted(...) for it"

    @abstractmethod
    def twist(self, x: Tensor, t: Tensor) -> Twist:
        """All three at (x, t), from one evaluation of the score."""

    @abstractmethod
    def log_potential(self, x0: Tensor) -> Tensor:
        """log ψ_0(x_0), (B,): what a sample is weighted with in the end."""

    def check(self) -> None:
        """Raises ValueError where :meth:`log_potential` has no answer; asked before any work. By default it has one."""
        return

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        """A x + B x̂_0 of the law itself, and the score's coefficient times ∇ log ψ."""
        x0, _, gradient = self.twist(x, t)
        of_x, of_x0 = wanted.of_x0(self.sde.alpha(t), self.sde.sigma(t))
        return combine((of_x, x), (of_x0, x0), (wanted.of_score(self.sde, t)[1], gradient))


def weighted_sum(parts: Sequence[Part]) -> Tensor:
    """Σ_i a_i value_i."""
    first, *others = parts
    total = first.weight * first.value
    for part in others:
        total = total.add(part.value, alpha=part.weight)
    return total


def finite_scale(scale: float | Tensor, *, name: str = "scale", hint: str = "") -> float:
    """A guidance scale as a float, from a real number of any library or a tensor ().

    A tensor is read, so that no gradient flows to it: what depends on a parameter is given as a function of t.

    Raises:
        ValueError: anything else, or not finite.
    """
    message = f"{name} must be a finite number, got {checks.got(scale)}. {hint}".rstrip()
    try:
        number = checks.number(scale, name=name)
    except TypeError as error:
        raise ValueError(message) from error
    if not math.isfinite(number):
        raise ValueError(message)
    return number


class NonlinearGuidance(Score):
    """A guided Score for which scores alone give no weights that would correct its samples.

    Its weights change with time, or it is no sum of scores at all. :func:`scoresde.particles.tilted` needs a
    :class:`LinearGuidance`; ``reason`` is what it can tell the user.
    """

    @property
    @abstractmethod
    def reason(self) -> str:
        """Why there are no weights, as part of a sentence."""

    @property
    def correction(self) -> str:
        """What to do about it, as part of a sentence."""
        return (
            f"it cannot be corrected from scores alone, since {self.reason}; take a constant scale without interval, "
            "rescale or projection"
        )


def parts_of(score: Score, x: Tensor, t: Tensor, wanted: Combination) -> list[Part]:
    """A score as a weighted sum: the parts of a LinearGuidance, any other score as one part of weight 1.

    Raises:
        TypeError: a NonlinearGuidance, which is none.
    """
    if isinstance(score, NonlinearGuidance):
        raise TypeError(f"{type(score).__name__} is no weighted sum of scores: {score.correction}.")
    if isinstance(score, LinearGuidance):
        return list(score.parts(x, t, wanted))
    return [Part(1.0, score.evaluate(x, t, wanted))]


def steered(weak: Tensor, strong: Tensor, scale: Tensor) -> Tensor:
    """Weak + scale (strong - weak), with one scale () or one for each sample (B,)."""
    number = as_number(scale)
    if not isinstance(number, Tensor):
        return torch.lerp(weak, strong, number)
    return torch.lerp(weak, strong, spread(scale, strong) if scale.ndim else scale.to(strong))
