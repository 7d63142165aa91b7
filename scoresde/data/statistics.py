"""Where groups of numbers lie and how far they spread, in float64 whatever the data are stored in::

    found = moments(data, axes=(0,))        # of each column of a table: mean and standard deviation
    found.centre, found.deviation           # (1, d)
    found = quartiles(data, axes=(0,))      # the same by median and quartiles, blind to how far out the tails reach
    centre, deviation = bulk(data)          # (d,) each, the same for columns that are one number for the most part, too

The first reads the data in pieces, so that a large data set is not held twice; the others sort a copy in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scoresde import checks

_PIECE = 2**22
"""Numbers that are turned into float64 at a time."""

_NORMAL_QUARTILES = 1.3489795003921634
"""Distance between the quartiles of N(0, 1): twice the quantile of 3/4."""

_NORMAL_NINETY = 3.289707253902945
"""Distance between the quantiles of 1/20 and 19/20."""

HEAVY = 10.0
"""A column whose deviation is above so many times that of its bulk has heavy tails."""


@dataclass(frozen=True)
class Spread:
    """Of each group, float64, of the data's rank with 1 for the axes that a group runs over.

    Attributes:
        centre: mean or median.
        deviation: standard deviation, or that of a normal law with the same quartiles.
        least, largest: its ends.
    """

    centre: Tensor
    deviation: Tensor
    least: Tensor
    largest: Tensor


def moments(data: Tensor, axes: tuple[int, ...]) -> Spread:
    """Mean and standard deviation, sqrt(mean (x - mean)²), in two passes.

    Args:
        data: (N, ...), real and finite, with N > 0.
        axes: over which a group runs, the first among them.

    Raises:
        ValueError: numbers further apart than float64 holds.
    """
    ends = [(part.amin(axes, keepdim=True), part.amax(axes, keepdim=True)) for part in _pieces(data)]
    least = torch.stack([low for low, _ in ends]).amin(0).double()
    largest = torch.stack([high for _, high in ends]).amax(0).double()
    each = data.numel() // least.numel()
    # of distances from the least number, in units of the largest distance: squares neither overflow nor vanish
    reach = torch.where(largest > least, largest - least, torch.ones_like(least))
    if not bool(reach.isfinite().all()):
        raise ValueError(
            f"the numbers reach from {float(least.min()):.3g} to {float(largest.max()):.3g}, further than float64 "
            "holds: divide them by a number first."
        )
    total = torch.zeros_like(least)
    for part in _pieces(data):
        total += ((part.double() - least) / reach).sum(axes, keepdim=True)
    mean = total / each
    squares = torch.zeros_like(least)
    for part in _pieces(data):
        squares += ((part.double() - least) / reach - mean).square().sum(axes, keepdim=True)
    deviation = torch.where(largest > least, reach * (squares / each).sqrt(), torch.zeros_like(least))
    return Spread(least + reach * mean, deviation, least, largest)


def quartiles(data: Tensor, axes: tuple[int, ...]) -> Spread:
    """Median, and the deviation of a normal law whose quartiles are as far apart. Arguments as of :func:`moments`."""
    values = data.cpu().double().numpy()
    q0, q1, q2, q3, q4 = np.quantile(values, [0, 0.25, 0.5, 0.75, 1], axis=axes, keepdims=True)
    found = (q2, (q3 - q1) / _NORMAL_QUARTILES, q0, q4)
    return Spread(*(torch.from_numpy(np.array(value)) for value in found))


def bulk(data: Tensor) -> tuple[Tensor, Tensor]:
    """Median and deviation of the bulk of each column of ``data`` (N, d), (d,) float64.

    The deviation is that of a normal law with the same quartiles; or, where these are less than a tenth as far apart as
    the quantiles of 1/20 and 19/20 say, since half of the numbers or more are nearly the same, that of a law with the
    same of these.
    """
    values = data.cpu().double().numpy()
    low, q1, q2, q3, high = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    narrow, wide = (q3 - q1) / _NORMAL_QUARTILES, (high - low) / _NORMAL_NINETY
    return torch.from_numpy(q2), torch.from_numpy(np.where(wide > HEAVY * narrow, wide, narrow))


def finite_in_pieces(data: Tensor, *, hint: str) -> None:
    """Raise ValueError where data (N, ...) hold NaN or infinity; they are read in pieces, and not held twice."""
    if data.is_meta or not all(bool(part.isfinite().all()) for part in _pieces(data)):
        checks.finite(data, name="data", hint=hint)


def _pieces(data: Tensor) -> Iterator[Tensor]:
    rows = max(1, _PIECE // max(1, data[0].numel())) if data.ndim else 1
    return iter(data.split(rows)) if data.ndim else iter((data,))
