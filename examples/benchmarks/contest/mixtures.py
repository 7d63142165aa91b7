"""The laws of the benchmark's exact problems: Gaussian mixtures, each like one thing that data of the field have.

    MIXTURES["spectral"]().sample(16, 0)

One is added by naming it in :data:`MIXTURES`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from scoresde.problems import GaussianMixture


@functools.cache
def mixture2d(components: int = 8, seed: int = 0) -> GaussianMixture:
    """Eight Gaussians around the unit circle, with unequal weights, radii, widths (0.1 to 0.3) and orientations."""
    draw = np.random.default_rng(seed)
    angle = 2 * np.pi * (np.arange(components) + draw.uniform(-0.2, 0.2, components)) / components
    radius = draw.uniform(0.8, 1.2, components)
    means = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    turn = draw.uniform(0, np.pi, components)
    axes = np.stack([np.stack([np.cos(turn), -np.sin(turn)], 1), np.stack([np.sin(turn), np.cos(turn)], 1)], 1)
    variances = draw.uniform(0.1, 0.3, (components, 2)) ** 2
    covariances = np.einsum("kij,kj,klj->kil", axes, variances, axes)
    return GaussianMixture(*(torch.from_numpy(v) for v in (draw.uniform(0.5, 1.5, components), means, covariances)))


@functools.cache
def digits64(event: tuple[int, ...] = (64,), ridge: float = 0.01) -> GaussianMixture:
    """One full Gaussian for each class of scikit-learn's 8x8 digits, in pixels of mean 0 and mean variance 1.

    ``ridge`` is added to each covariance: some pixels never change within a class.
    """
    pixels, label = load_digits(return_X_y=True)
    x = (pixels - pixels.mean(0)) / np.sqrt(pixels.var(0).mean())
    classes = [x[label == k] for k in range(10)]
    means = np.stack([c.mean(0) for c in classes])
    covariances = np.stack([np.cov(c.T) + ridge * np.eye(64) for c in classes])
    weights = np.array([float(len(c)) for c in classes])
    return GaussianMixture(
        torch.from_numpy(weights), torch.from_numpy(means).reshape(-1, *event), torch.from_numpy(covariances)
    )


@functools.cache
def spectral(components: int = 10, dimension: int = 3072, seed: int = 0) -> GaussianMixture:
    r"""Stationary Gaussians, diagonal in Fourier space, with a power law for a spectrum as natural images have::

        λ_i ∝ 1 / (i^1.3 (1 + (i/150)^1.2)),  mean 1/4
        μ_k ~ N(0, λ/4),  C_k = 3/4 λ_i a_k (i/30)^(-τ_k),  log a_k ~ N(0, 0.7²),  τ_k ~ N(0, 0.15²)

    A coordinate is the amplitude of one frequency, i = 1, ..., D: a rotation of the pixels, which no sampler notices
    that treats all coordinates alike.
    """
    draw = torch.Generator().manual_seed(seed)
    normal = functools.partial(torch.randn, generator=draw, dtype=torch.float64)
    i = _counted(dimension)
    power = 1 / (i**1.3 * (1 + (i / 150) ** 1.2))
    power = power * (0.25 * dimension / power.sum())
    means = normal(components, dimension) * (0.25 * power).sqrt()
    loud = torch.exp(0.7 * normal(components, 1))
    tilt = 0.15 * normal(components, 1)
    weights = torch.rand(components, generator=draw, dtype=torch.float64) + 0.5
    return GaussianMixture(weights, means, 0.75 * power * loud * (i / 30) ** (-tilt))


@functools.cache
def heavy(dimension: int = 64) -> GaussianMixture:
    """Heavy tails: one centre, five scales s_k = 0.1 to 4, C_k = 2 s_k² diag(1/i), i = 1, ..., D."""
    scales = torch.tensor([0.1, 0.25, 0.6, 1.5, 4.0], dtype=torch.float64)
    weights = torch.tensor([0.3, 0.3, 0.2, 0.15, 0.05], dtype=torch.float64)
    covariances = 2 * scales[:, None] ** 2 / _counted(dimension)
    return GaussianMixture(weights, torch.zeros(5, dimension, dtype=torch.float64), covariances)


@functools.cache
def scales2d(seed: int = 5) -> GaussianMixture:
    """Three clusters, 2 from the middle, of three, 0.4 apart, of two, 0.06 apart, which are of deviation 0.02 each."""
    draw = torch.Generator().manual_seed(seed)
    normal = functools.partial(torch.randn, 2, generator=draw, dtype=torch.float64)
    means = []
    for a in range(3):
        outer = 2 * torch.tensor([math.cos(2.1 * a), math.sin(2.1 * a)], dtype=torch.float64)
        for _ in range(3):
            inner = outer + 0.4 * normal()
            means += [inner + 0.06 * normal() for _ in range(2)]
    weights = torch.rand(len(means), generator=draw) + 0.5
    return GaussianMixture(weights, torch.stack(means), torch.full((len(means),), 0.02**2, dtype=torch.float64))


MIXTURES: Mapping[str, Callable[[], GaussianMixture]] = {
    "mixture2d": mixture2d,
    "digits64": digits64,
    "spectral": spectral,
    "heavy": heavy,
    "scales2d": scales2d,
}


def _counted(n: int) -> Tensor:
    """1, ..., n."""
    return torch.arange(1, n + 1, dtype=torch.float64)


def directions(mixture: GaussianMixture) -> tuple[Tensor, Tensor | None]:
    """Variances (D,) of the whole law, and the axes (D, D) along which they are, as columns.

    Of diagonal components those of the coordinates, for which there are no axes, None; else the principal ones.
    """
    mu = mixture.means.double().flatten(1)
    cov, w = mixture.covariances, mixture.weights[:, None]
    away = mu - (w * mu).sum(0)
    if cov.ndim == 3:
        variances, axes = torch.linalg.eigh((w[:, :, None] * cov).sum(0) + (w * away).mT @ away)
        return variances, axes
    within = cov.reshape(len(cov), -1) if cov.ndim else cov.reshape(1, 1)
    return (w * (within + away.square())).sum(0), None
