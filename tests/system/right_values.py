"""Small right values that the tables of bad calls are made of: scores, networks, measurements, solvers."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from scoresde import DDIM, SDE, VP, Gaussian, GaussianMixture, Score, ScoreModel, inverse, nn, rules

T = torch.float64


@cache
def gaussian() -> Gaussian:
    """Of three numbers."""
    return Gaussian(torch.zeros(3), torch.eye(3))


@cache
def score(sde: SDE | None = None) -> Score:
    """An exact one, of (B, 3)."""
    return gaussian().score(sde or VP())


@cache
def mixture() -> GaussianMixture:
    """Of two bumps in the plane."""
    return GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.tensor(0.1))


@cache
def model(**options: Any) -> ScoreModel:
    """A network of (B, 3), with a label of four classes."""
    torch.manual_seed(0)
    return ScoreModel(nn.MLP(3, 4, 1, num_classes=4, **options).eval(), VP())


def measurement(noise_std: float = 0.1) -> inverse.Measurement:
    """Of two of three numbers."""
    return inverse.Measurement(torch.zeros(2), inverse.Mask(torch.tensor([True, True, False])), noise_std)


def grid(steps: int = 2) -> Tensor:
    """Of VP."""
    return rules.karras(VP(), steps)


def state() -> Tensor:
    """(2, 3), the same each time."""
    return torch.tensor([[0.3, -0.2, 0.5], [1.0, 0.1, -0.4]])


SOLVER = DDIM()
