r"""Means over noise levels and samples, and how sure they are::

    design = Design(strata, samples)                        # of each draw: its stratum, its sample, (M,) each
    mean, error = design.mean(losses)                       # (M,): the loss of each draw
    mean, error = design.mean(after - before)               # paired: what the draws have in common cancels
    quantile(1e-4, samples - 1)                             # how many errors it is off with that probability at most

The draws stand in equal cells of the noise levels, one in each, and neighbouring cells form strata: what differs
between levels is no error of the mean. A sample that was drawn several times, at different levels, is one sample.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Design:
    """Which draws belong together.

    Args:
        strata: (M,) int64, the stratum of each draw, of at least two draws each.
        samples: (M,) int64, its sample.
    """

    strata: Tensor
    samples: Tensor

    def part(self, rows: Tensor) -> Design:
        """The same of some draws, whole strata of them."""
        return Design(self.strata[rows], self.samples[rows])

    def mean(self, values: Tensor) -> tuple[float, float]:
        r"""The mean of the values (M,) of the draws, and its standard error.

        With e the residual about the mean of its stratum, of s draws, the variance of the mean is estimated by::

            (Σ_m e_m² s/(s - 1)  +  Σ_{m ≠ n, of one sample} e_m e_n (s/(s - 1))²) / M²

        where the second sum counts if it is positive. For draws of different samples the first is unbiased up to
        differences between the cells of a stratum, which make it larger (Cochran 1977, Sampling Techniques, section
        5A.12); s/(s - 1) makes of e the residual about the others of the stratum.
        """
        values = values.double()
        stratum, sizes, sample, samples = self._places
        means = torch.zeros_like(sizes).index_add_(0, stratum, values) / sizes
        size = sizes[stratum]
        residual = (values - means[stratum]) * size / (size - 1)
        own = (residual.square() * (size - 1) / size).sum().item()
        sums = values.new_zeros(samples).index_add_(0, sample, residual)
        shared = (sums.square().sum() - residual.square().sum()).item()
        return values.mean().item(), math.sqrt(own + max(0.0, shared)) / len(values)

    @functools.cached_property
    def _places(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """Strata and samples numbered from 0, with the sizes of the former and the number of the latter."""
        strata, stratum = self.strata.unique(return_inverse=True)
        samples, sample = self.samples.unique(return_inverse=True)
        return stratum, torch.bincount(stratum, minlength=len(strata)).double(), sample, len(samples)


def strata_of(count: int, size: int) -> Tensor:
    """The strata (count,) of so many draws in order: ``size`` of them each, or up to twice as many less one."""
    groups = max(1, count // size)
    return (torch.arange(count) * groups) // count


def quantile(probability: float, freedom: int) -> float:
    """The number that Student's t with so many degrees of freedom exceeds with a small probability.

    By the expansion about the normal quantile (Abramowitz & Stegun 1964, 26.7.5); with 31 degrees of freedom it is off
    by less than 0.1 % down to a probability of 1e-6.
    """
    z = -NormalDist().inv_cdf(probability)
    s, v = z * z, float(freedom)
    terms = (
        (s + 1) / 4,
        ((5 * s + 16) * s + 3) / 96,
        (((3 * s + 19) * s + 17) * s - 15) / 384,
        ((((79 * s + 776) * s + 1482) * s - 1920) * s - 945) / 92160,
    )
    return z * (1 + sum(term / v ** (k + 1) for k, term in enumerate(terms)))
