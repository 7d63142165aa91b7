r"""Averages with power profiles as vectors: their inner products in closed form, and least squares of one by others::

    fit = fit_profile(steps=[100, 100, 200, 200], widths=[0.05, 0.1, 0.05, 0.1], step=200, width=0.07)
    fit.coefficients                                        # of the averages; they sum to 1
    fit.error                                               # what is left of the profile, as a part of its norm

A :class:`~scoresde.train.PowerEMA` of width σ_rel, hence exponent γ, is after t steps the mean of θ(τ) = θ_k
(k - 1 < τ <= k) with the density p(τ) = (γ + 1) τ^γ / t^(γ+1) on [0, t] (Karras et al. 2024, arXiv:2312.02696, eq.
121), exactly: the steps are no approximation of it. So what a sum Σ a_i p_i lacks of the profile wanted, it lacks of
the average wanted, and a_i by least squares need the inner products of densities alone (eq. 151 and algorithm 3, which
scales the a_i to the sum 1 afterwards; here that is a constraint)::

    <p_i, p_j> = (γ_i + 1) (γ_j + 1) / (γ_i + γ_j + 1) · min(t_i, t_j)^(γ_i+γ_j+1) / (t_i^(γ_i+1) t_j^(γ_j+1))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde import checks
from scoresde.train.ema import exponent_of


class ProfileFit(NamedTuple):
    """A profile as a sum of others.

    Attributes:
        coefficients: of each of the others, float64; they sum to 1, so that weights that never moved come out exactly.
        error: the norm of what is left, in L², as a part of that of the profile wanted. An average of weights whose
            steps have the deviation s about any centre is missed by at most error (γ + 1)/sqrt(2γ + 1) sqrt(T/t) s
            (Cauchy and Schwarz), by far less where they move smoothly; t is the step wanted, T the last of those kept
            or t, whichever is later, and s that up to T.
    """

    coefficients: Tensor
    error: float


def fit_profile(*, steps: Sequence[int], widths: Sequence[float], step: int, width: float) -> ProfileFit:
    """The sum of averages that is nearest to the one of ``width`` after ``step`` steps, in float64.

    The error falls with the square of the number n of snapshots that are spaced evenly up to ``step``. For averages of
    widths 0.05 and 0.10 in each of them it is 1.0/n² for a width of 0.07, 2.4/n² for 0.15 and 7.3/n² for 0.2: 6.2e-5,
    1.5e-4 and 4.5e-4 for n = 128. At a step between two snapshots the profile ends where none of the others does, and
    the error is that of the piece between: about the root of its share of the profile's norm.

    Args:
        steps: after which each average was kept.
        widths: of each of them.
        step: after which it is wanted, at least 1.
        width: that is wanted.

    Raises:
        TypeError, ValueError: lists of different lengths, or none; a step below 1; a width out of range.
    """
    kept = [checks.count(int(one), name="each of steps") for one in _whole(steps)]
    widths = checks.numbers(widths, name="widths")
    if len(kept) != len(widths) or not kept:
        raise ValueError(f"steps and widths must be of the same averages, got {len(kept)} and {len(widths)} of them.")
    t = torch.tensor(kept, dtype=torch.float64)
    gamma = torch.tensor([exponent_of(one) for one in widths], dtype=torch.float64)
    end = torch.tensor(float(checks.count(step, name="step")), dtype=torch.float64)
    wanted = torch.tensor(exponent_of(width), dtype=torch.float64)
    products = _cosines(t[:, None], gamma[:, None], t, gamma)
    aim = _cosines(t, gamma, end, wanted)
    # Of profiles of norm 1; a profile's own coefficient is that times the ratio of the norms.
    ratio = _norm(end, wanted) / _norm(t, gamma)
    free, along = torch.linalg.lstsq(products, torch.stack([aim, ratio], 1), driver="gelsd").solution.unbind(1)
    solution = free + (1 - ratio @ free) / (ratio @ along) * along  # the least squares among those that sum to 1
    left = 1 - 2 * aim @ solution + solution @ products @ solution
    return ProfileFit(solution * ratio, math.sqrt(max(left.item(), 0.0)))


def _whole(steps: Sequence[int]) -> tuple[float, ...]:
    found = checks.numbers(steps, name="steps", what="a list of whole numbers")
    if not all(math.isfinite(one) and one % 1 == 0 for one in found):
        raise ValueError(f"steps must be whole numbers, got {checks.got(steps)}.")
    return found


def _norm(t: Tensor, gamma: Tensor) -> Tensor:
    return (gamma + 1) / ((2 * gamma + 1) * t).sqrt()


def _cosines(t: Tensor, gamma: Tensor, s: Tensor, delta: Tensor) -> Tensor:
    """The inner products of profiles of norm 1, by logarithms: powers of steps would overflow."""
    both = gamma + delta + 1
    log = 0.5 * ((2 * gamma + 1).log() + (2 * delta + 1).log() - t.log() - s.log()) - both.log()
    return (log + both * torch.minimum(t, s).log() - gamma * t.log() - delta * s.log()).exp()
