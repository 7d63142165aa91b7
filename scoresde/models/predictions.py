"""What a network's output may mean: each prediction as four coefficients of time.

A :data:`Prediction` is a function (α, σ, σ_data) -> :class:`Affine`, which writes ε̂ and x̂_0 as linear combinations of
x and the network's output. :data:`PREDICTIONS` has those with a name: noise, x0, v, score, velocity, edm::

    ScoreModel(net, sde, predicts="v")                      # PREDICTIONS["v"] is predicts_v
    ScoreModel(net, sde, predicts=my_prediction)            # one of your own
    predicts_v(alpha, sigma, 1.0).x0_out                    # -σ/(α² + σ²)

Both ε̂ and x̂_0 are written out, because computing one from the other loses all digits where σ or α is small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Affine(NamedTuple):
    """What a network's output F means: ε̂ = noise_x x + noise_out F and x̂_0 = x0_x x + x0_out F.

    Four float64 coefficients of time. They are written out for each prediction because computing one quantity from
    the other loses all digits where σ or α is small. Infinite where F says nothing of the quantity.
    """

    noise_x: Tensor
    noise_out: Tensor
    x0_x: Tensor
    x0_out: Tensor


Prediction = Callable[[Tensor, Tensor, float], Affine]
"""(α, σ, σ_data) -> Affine: a user's own parametrisation is one such function."""


def predicts_noise(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Affine:
    """F = ε (Ho et al. 2020, arXiv:2006.11239)."""
    one = torch.ones_like(alpha)
    return Affine(0 * one, one, 1 / alpha, -sigma / alpha)


def predicts_x0(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Affine:
    """F = x_0."""
    one = torch.ones_like(alpha)
    return Affine(1 / sigma, -alpha / sigma, 0 * one, one)


def predicts_v(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Affine:
    """F = v = α ε - σ x_0 (Salimans & Ho 2022, arXiv:2202.00512, section 4), for any α and σ."""
    total = alpha**2 + sigma**2
    return Affine(sigma / total, alpha / total, alpha / total, -sigma / total)


def predicts_score(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Affine:
    """F = ∇ log p_t = -ε/σ (Song et al. 2021, arXiv:2011.13456)."""
    return Affine(torch.zeros_like(alpha), -sigma, 1 / alpha, sigma**2 / alpha)


def predicts_velocity(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Affine:
    """F = ε - x_0, the velocity of the straight path (Liu et al. 2023, arXiv:2209.03003), for any α and σ."""
    total = alpha + sigma
    return Affine(1 / total, alpha / total, 1 / total, -sigma / total)


def predicts_edm(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Affine:
    """F of D = c_skip x̃ + c_out F(c_in x̃), x̃ = x/α (Karras et al. 2022, arXiv:2206.00364, eq. 7 and table 1)."""
    total = sigma**2 + (alpha * sigma_data) ** 2
    return Affine(
        sigma / total,
        -sigma_data * alpha / total.sqrt(),
        sigma_data**2 * alpha / total,
        sigma_data * sigma / total.sqrt(),
    )


PREDICTIONS: Mapping[str, Prediction] = {
    "noise": predicts_noise,
    "x0": predicts_x0,
    "v": predicts_v,
    "score": predicts_score,
    "velocity": predicts_velocity,
    "edm": predicts_edm,
}
"""The predictions by the names that :class:`~scoresde.ScoreModel` takes."""
