"""Kernels of maximum mean discrepancies and of Vendi scores: similarities k(x, y) of rows, as frozen dataclasses.

GaussianKernel(bandwidth=median_distance(x, y))         # sees every difference of laws, on its scale most of all
PolynomialKernel()                                      # that of KID: means, covariances and third moments
DistanceKernel()                                        # -|x - y|: the squared MMD is the energy distance
CosineKernel()                                          # of directions, in [-1, 1]
GaussianKernel(1.0).matrix(a, b)                        # (n, m) of rows (n, d) and (m, d)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde import checks
from scoresde.metrics.sets import distances, two_sets

MOST_FOR_MEDIAN = 4000
"""Samples of two sets together whose distances the median is of."""


class Kernel(ABC):
    """A symmetric, (conditionally) positive definite function of two rows."""

    @abstractmethod
    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """k(a_i, b_j), (n, m), of rows (n, d) and (m, d) float64."""


@dataclass(frozen=True)
class GaussianKernel(Kernel):
    """exp(-|x - y|²/(2 h²)).

    Attributes:
        bandwidth: h, in units of the samples; :func:`median_distance` is the usual choice.
    """

    bandwidth: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "bandwidth", checks.positive(self.bandwidth, name="bandwidth"))

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(distances(a, b).square() / (-2 * self.bandwidth**2))


@dataclass(frozen=True)
class PolynomialKernel(Kernel):
    """(scale x·y + offset)^degree.

    Attributes:
        degree: 3 sees skewness too.
        scale: of the product; 1/d unless told (Bińkowski et al. 2018, arXiv:1801.01401, section 4).
        offset: at least 0.
    """

    degree: int = 3
    scale: float | None = None
    offset: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "degree", checks.count(self.degree, name="degree"))
        object.__setattr__(self, "offset", checks.not_negative(self.offset, name="offset"))
        if self.scale is not None:
            object.__setattr__(self, "scale", checks.positive(self.scale, name="scale"))

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        scale = 1 / a.shape[1] if self.scale is None else self.scale
        return (scale * (a @ b.T) + self.offset) ** self.degree


@dataclass(frozen=True)
class DistanceKernel(Kernel):
    """-|x - y|, conditionally positive definite: the squared MMD with it is the energy distance.

    Sejdinovic et al. 2013 (arXiv:1207.6076, theorem 22), but for their factor 2.
    """

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        return -distances(a, b)


@dataclass(frozen=True)
class CosineKernel(Kernel):
    """x·y/(|x| |y|); a row of zeros is like nothing but itself."""

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def median_distance(x: Tensor, y: Tensor) -> float:
    """The median of the distances between all samples of both sets: the usual bandwidth of a Gaussian kernel.

    Gretton et al. 2012 (Journal of Machine Learning Research 13, section 8). A function of the two sets together, which
    a permutation of them does not change, so that permutation tests stay exact. Of more than 4000 samples every k-th in
    the order of their norms.

    Args:
        x: (n, *event).
        y: (m, *event).

    Raises:
        ValueError: more than half of all pairs are equal, or there is no pair.
    """
    pooled = torch.cat(two_sets(x, y))
    if len(pooled) > MOST_FOR_MEDIAN:
        pooled = pooled[pooled.norm(dim=1).argsort(stable=True)][:: -(-len(pooled) // MOST_FOR_MEDIAN)]
    far = torch.pdist(pooled)
    found = float(far.median()) if len(far) else 0.0
    if found <= 0:
        raise ValueError(f"x and y must hold samples of which most differ; got a median distance of {found:g}.")
    return found
