"""What a score is asked for: one linear combination of all that is known at (x, t).

Given x, the score s and the predictions x̂_0 = E[x_0 | x_t = x] and ε̂ = E[ε | x_t = x] determine one another::

    x = α x̂_0 + σ ε̂        s = -ε̂/σ        x̂_0 = (x + σ² s)/α

so a x + b s, p x̂_0 + q ε̂ and A x + B x̂_0 are three ways to write one quantity. A :class:`Linear` or an
:class:`Expectation` says which quantity is wanted; every kind of score reads it in the way that suits it, so that
coefficients meet in float64 before they meet a tensor, and nothing is lost where σ/α is large or the network is rough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from scoresde import checks
from scoresde.sde import SDE, has_signal, spread

Coefficient = float | Tensor
"""A number; a float64 tensor () or (B,) where it differs between samples or gradients flow through it."""


class Combination(Protocol):
    """A quantity to be evaluated, in each of its three forms; coefficients are float64."""

    def of_score(self, sde: SDE, t: Tensor) -> tuple[Coefficient, Coefficient]:
        """(a, b) of a x + b s."""
        ...

    def of_predictions(self, alpha: Tensor, sigma: Tensor) -> tuple[Coefficient, Coefficient]:
        """(p, q) of p x̂_0 + q ε̂."""
        ...

    def of_x0(self, alpha: Tensor, sigma: Tensor) -> tuple[Coefficient, Coefficient]:
        """(A, B) of A x + B x̂_0."""
        ...

    def for_samples(self, select: Callable[[Tensor], Tensor]) -> Combination:
        """The same for other samples: ``select`` applied to coefficients (B,), one for each sample."""
        ...


class Linear(NamedTuple):
    """a x + b s(x, t)."""

    a: Coefficient
    b: Coefficient

    def of_score(self, sde: SDE, t: Tensor) -> tuple[Coefficient, Coefficient]:
        return self.a, self.b

    def of_predictions(self, alpha: Tensor, sigma: Tensor) -> tuple[Coefficient, Coefficient]:
        return self.a * alpha, self.a * sigma - self.b / sigma

    def of_x0(self, alpha: Tensor, sigma: Tensor) -> tuple[Coefficient, Coefficient]:
        inside = self.b / sigma**2
        return self.a - inside, alpha * inside

    def for_samples(self, select: Callable[[Tensor], Tensor]) -> Linear:
        return Linear(*(_selected(c, select) for c in self))


class Expectation(NamedTuple):
    """E[p x_0 + q ε | x_t = x]; unlike a x + b s it says x̂_0 where α = 0, too."""

    x0: Coefficient
    noise: Coefficient

    def of_score(self, sde: SDE, t: Tensor) -> tuple[Coefficient, Coefficient]:
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        if not isinstance(self.x0, Tensor) and self.x0 == 0.0:
            return 0.0, -self.noise * sigma
        require_signal(alpha, sigma, "a score alone, of a function, a classifier or a network that predicts scores,")
        return self.x0 / alpha, self.x0 * sigma**2 / alpha - self.noise * sigma

    def of_predictions(self, alpha: Tensor, sigma: Tensor) -> tuple[Coefficient, Coefficient]:
        return self.x0, self.noise

    def of_x0(self, alpha: Tensor, sigma: Tensor) -> tuple[Coefficient, Coefficient]:
        weight = self.noise / sigma
        return weight, self.x0 - alpha * weight

    def for_samples(self, select: Callable[[Tensor], Tensor]) -> Expectation:
        return Expectation(*(_selected(c, select) for c in self))


def _selected(coefficient: Coefficient, select: Callable[[Tensor], Tensor]) -> Coefficient:
    return select(coefficient) if isinstance(coefficient, Tensor) and coefficient.ndim else coefficient


SCORE = Linear(0.0, 1.0)
"""s itself."""

X0 = Expectation(1.0, 0.0)
"""x̂_0."""

NOISE = Expectation(0.0, 1.0)
"""ε̂."""


def require_signal(alpha: Tensor, sigma: Tensor, what: str) -> None:
    """Raises ValueError where α(t) is 0 to rounding, with ``what`` says nothing of x_0 there."""
    if not has_signal(alpha, sigma):
        raise ValueError(
            f"{what} says nothing of x_0 where α(t) = 0: x_t is noise there, whatever x_0 was. Start below that time "
            "(T = 0.999 loses nothing that training can see), or take a model that predicts x0, v, velocity or edm, "
            "and guide it by its own conditions."
        )


def as_number(coefficient: Coefficient) -> Coefficient:
    """The same as a number, which costs nothing to multiply by, where it can be read and is no function of anything."""
    if not isinstance(coefficient, Tensor) or checks.followed(coefficient):
        return coefficient
    value = checks.single(coefficient)
    return coefficient if value is None else value


def combine(*terms: tuple[Coefficient, Tensor]) -> Tensor:
    """Σ c_i x_i in the dtype of the x_i, in as few passes over memory as can be; numbers c = 0 are left out."""
    if len(terms) == 2:  # what nearly every step asks, in half the time
        (c, x), (d, y) = terms
        if c.__class__ is float and d.__class__ is float and c not in (0.0, 1.0) and d and not checks.transformed(y):
            return (c * x).add_(y, alpha=d)
    total, ours = None, False
    for c, x in terms:
        if isinstance(c, Tensor):
            product = spread(c, x) * x
            total, ours = product if total is None else total + product, True
        elif c == 0.0:
            continue
        elif total is None:
            total, ours = (x, False) if c == 1.0 else (c * x, True)
        elif ours and not checks.transformed(x):  # in place is safe for autograd: a sum does not need its old value
            total = total.add_(x, alpha=c)
        else:
            total, ours = torch.add(total, x, alpha=c), True
    return 0.0 * terms[0][1] if total is None else total
