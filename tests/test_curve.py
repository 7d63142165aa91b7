"""A loss at each noise level: between them as by NumPy, in its other units as by hand, as JSON and back."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from scoresde.curve import LossCurve

CURVE = LossCurve((-2.0, -1.0, 1.5), (0.2, 0.6, 1.0), (0.01, 0.02, 0.03), (10, 11, 12), 0.5, 40)


def test_between_levels_and_beyond_as_by_numpy() -> None:
    level = torch.linspace(-4, 4, 60, dtype=torch.float64).reshape(3, 20)
    expected = np.interp(level.numpy(), CURVE.levels, CURVE.loss)
    assert np.allclose(CURVE.at(level), expected, rtol=1e-14)  # the same arithmetic
    assert CURVE.at(torch.tensor(0)).dtype == torch.float64
    one = LossCurve((0.0,), (0.3,), (0.0,), (5,))
    assert one.at(level).eq(0.3).all() and one.at(level).shape == level.shape
    followed = torch.tensor([-1.5], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(CURVE.at(followed).sum(), followed)
    assert slope.item() == pytest.approx(0.4)  # (0.6 - 0.2) / 1


def test_the_best_that_knows_the_deviation_alone_has_1() -> None:
    """x_0 ~ N(0, s²), α = 1: x̂_0 = s² x_t / (s² + σ²) errs by s² σ²/(s² + σ²), and ε̂ by that over σ²."""
    flat, s = LossCurve((0.0,), (1.0,), (0.0,), (5,), 0.7), 0.7
    for sigma in (0.01, 0.7, 30.0):
        level = torch.tensor(math.log(sigma))
        error = s**2 * sigma**2 / (s**2 + sigma**2)
        assert flat.x0_error(level).item() == pytest.approx(error, rel=1e-6)  # the level is float32
        assert flat.noise_error(level).item() == pytest.approx(error / sigma**2, rel=1e-6)


def test_as_json_and_back() -> None:
    for curve in (CURVE, replace(CURVE, sigma_data=None, step=0)):
        assert LossCurve.from_json(json.loads(json.dumps(curve.to_json()))) == curve
    wrongs: tuple[object, ...] = ({}, [], {**CURVE.to_json(), "more": 1}, {**CURVE.to_json(), "loss": [1.0]})
    for wrong in wrongs:
        with pytest.raises(ValueError):
            LossCurve.from_json(wrong)
    with pytest.raises(TypeError):
        LossCurve.from_json({**CURVE.to_json(), "levels": ["a", "b", "c"]})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"levels": (0.0, 0.0, 1.0)}, "increase"),
        ({"levels": ()}, "levels"),
        ({"loss": (0.1, math.inf, 0.2)}, "finite"),
        ({"loss": (0.1, math.nan, 0.2)}, "NaN"),
        ({"loss": (0.1, -0.1, 0.2)}, "squares"),
        ({"standard_error": (0.1, -0.1, 0.2)}, "standard_error"),
        ({"count": (1, 0, 1)}, "count"),
        ({"count": (1, 1)}, "count: 2"),
        ({"sigma_data": 0.0}, "sigma_data"),
        ({"step": -1}, "step"),
    ],
)
def test_what_is_no_curve(change: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(CURVE, **change)  # type: ignore[arg-type]


def test_cross_entropies_tell_no_error_of_x0() -> None:
    with pytest.raises(ValueError, match="cross-entropies"):
        replace(CURVE, sigma_data=None).x0_error(torch.zeros(1))
