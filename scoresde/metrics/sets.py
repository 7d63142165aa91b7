"""Two sets of samples as rows of float64, checked, and what all measures of them need::

    a, b = two_sets(x, data, names=("x", "data"))          # (n, d) and (m, d) float64
    check_sizes(len(a), len(b), least=2, names=("x", "data"), what="a covariance")
    for rows in blocks(len(a), CHUNK): ...                  # slices: distances in bounded memory
    far = distances(a[rows], b)                             # wherever the origin is

Sets are (n, *event) of any sizes; events are flattened.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde import checks

CHUNK = 4096
"""Samples whose distances are taken at once: of two such blocks 128 MB in float64."""


class SampleSizeWarning(UserWarning):
    """Too few samples for the figure to say much."""


class Estimate(NamedTuple):
    """A figure and its standard error."""

    value: float
    error: float


class TwoSampleTest(NamedTuple):
    """A statistic of two sets, and how likely one as large is where both are of one law.

    Attributes:
        statistic: of the sets as they are.
        p_value: of one as large or larger, never too small on average: P(p <= a) <= a for all a where the laws are one.
    """

    statistic: float
    p_value: float


def rows_of(x: Tensor, *, name: str) -> Tensor:
    """A set (n, *event) as (n, d) float64.

    Raises:
        TypeError, ValueError: no floating tensor, not finite, or without samples.
    """
    checks.state(x, name=name, values=True)
    if not len(x):
        raise ValueError(f"{name} must hold samples: an empty set has no distance; got {checks.got(x)}.")
    return checks.brought(x.reshape(len(x), -1), torch.float64)


def two_sets(x: Tensor, y: Tensor, *, names: tuple[str, str] = ("x", "y")) -> tuple[Tensor, Tensor]:
    """Two sets (n, *event) and (m, *event) as (n, d) and (m, d) float64.

    Raises:
        TypeError, ValueError: as :func:`rows_of`; or events of two shapes.
    """
    a, b = (rows_of(value, name=name) for name, value in zip(names, (x, y), strict=True))
    if x.shape[1:] != y.shape[1:]:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"{' and '.join(names)} must hold events of one shape, got {shapes}.")
    return a, b


def check_sizes(*sets: Tensor, least: int, names: tuple[str, ...], what: str) -> None:
    """Raise unless each set has ``least`` samples, the fewest with which ``what`` is defined."""
    for name, value in zip(names, sets, strict=True):
        if len(value) < least:
            raise ValueError(f"{name} must hold at least {least} samples for {what}; got {len(value)} samples.")


def blocks(total: int, chunk: int) -> Iterator[slice]:
    """Rows 0 ... total - 1 in slices of at most ``chunk``."""
    for first in range(0, total, chunk):
        yield slice(first, min(first + chunk, total))


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances of rows (n, d) and (m, d), (n, m), each to rounding of the differences themselves.

    |a|² + |b|² - 2 a·b, which a product of matrices makes fast, loses what is small beside |a|²: 0 of a copy becomes
    1e-8 |a|, and far from the origin nothing is left. So it is about the mean, and pairs that are near for it are
    looked at by themselves.
    """
    centre = b.mean(0)
    a, b = a - centre, b - centre
    far = torch.cdist(a, b)
    most = torch.maximum(a.square().sum(1).max(), b.square().sum(1).max())
    near = (far.square() <= torch.finfo(far.dtype).eps ** 0.4 * most).nonzero()  # right to 1e-9 above it
    if len(near) > len(a) + len(b):
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    i, j = near.unbind(1)
    far[i, j] = (a[i] - b[j]).norm(dim=1)
    return far
