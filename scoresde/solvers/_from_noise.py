"""Predictions of the noise counted from x/σ, which they nearly are where σ/α is large.

There ε̂ - x/σ = -(α/σ) x̂_0 is all that is known. A multistep method for ε̂ has weights as large as α_s/α_t, so the
rounding of its values, eps x/σ, comes back as eps σ/α: in float32 at σ/α = 1e6 nothing is left. Counted from x/σ, for
η = 0, the same method is::

    x_s = (σ_s/σ_t) x_t + Δ        Δ = Σ_j w_j (ε̂_j - x_t/σ_t)

since its weights sum to what the step adds to (α_s/α_t) x_t for a constant ε̂. When x moves on, the past values are
counted from the new x/σ: x_s/σ_s - x_t/σ_t = Δ/σ_s is a small number too, and known without cancellation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.models.combination import Coefficient, combine
from scoresde.solvers._frames import FAR, Frame, Levels
from scoresde.solvers._rows import rows


class Carry(NamedTuple):
    """What becomes of a past value F in a step to x_s = c x_t + Δ: k F + q Δ + m x_t.

    ``counted``: whether that is counted from x_s/σ_s.
    """

    past: Coefficient
    change: Coefficient
    state: Coefficient
    counted: bool


def counted(frame: Frame, at: Levels, values: int) -> Tensor:
    """(n,) bool, where the values of a method that combines so many of them are counted from x/σ.

    From σ/α = 160 on (VP starts at 152), below which the rounding of ε̂ itself does no harm; with four values or more,
    whose weights amplify it, from 3 on.
    """
    far = (at.sigma >= (FAR if values < 4 else 3.0) * at.alpha).detach()
    return far if frame.rests_on_noise else torch.zeros_like(far)


def counted_from_noise(at: Levels) -> tuple[Tensor, list[tuple[Coefficient, Coefficient]]]:
    """ε̂ - x/σ as unit (x + σ² s): units (n,), and the combinations to evaluate."""
    return -1 / at.sigma, [(1.0, square) for (square,) in rows(at.sigma**2)]


def carry_over(known: Tensor, before: Tensor, after: Tensor, still: bool) -> tuple[Carry, ...]:
    """Of values at σ = ``known`` (n,), in their units, in a step between two σ, ``before`` and ``after`` (1,).

    They are x + σ² s, counted from x/σ at the end as well if ``still``; else they become scores s.
    """
    if still:
        return tuple(Carry(1.0, ratio, 0.0, True) for (ratio,) in rows(known / after))
    return tuple(Carry(k, 0.0, m, False) for k, m in rows(1 / known**2, -1 / (before * known)))


def carried(x: Tensor, change: Tensor, past: tuple[Tensor, ...], carry: tuple[Carry, ...]) -> tuple[Tensor, ...]:
    """The past values after the step from x that has added ``change``."""
    return tuple(combine((c.past, f), (c.change, change), (c.state, x)) for c, f in zip(carry, past, strict=False))
