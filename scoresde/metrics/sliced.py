"""Sliced Wasserstein distance: the mean over random directions of a distance that is exact along each::

sliced_wasserstein(samples, data, noise=0)      # 0 where the laws agree, up to the sizes of the sets
share, i, j = coupled(len(a), len(b))           # how sorted numbers of two sets are matched
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde import checks
from scoresde.metrics.sets import two_sets
from scoresde.noise import Noise, as_noise


def sliced_wasserstein(x: Tensor, y: Tensor, noise: Noise | torch.Generator | int = 0, *, slices: int = 512) -> float:
    """Sliced Wasserstein-2 distance: root mean square over random directions of the distance of the projections.

    Rabin et al. 2011 (doi:10.1007/978-3-642-24785-9_37). Along each direction the distance of the two empirical laws is
    exact, for sets of unequal size too.

    Args:
        x: (n, *event).
        y: (m, *event).
        noise: source of the directions.
        slices: number of directions.
    """
    a, b = two_sets(x, y)
    slices = checks.count(slices, name="slices")
    directions = as_noise(noise, "slices").initial((slices, a.shape[1]), dtype=torch.float64, device=a.device)
    directions = directions / directions.norm(dim=1, keepdim=True)
    p, q = ((v @ directions.T).sort(0).values for v in (a, b))
    share, i, j = (index.to(a.device) for index in coupled(len(p), len(q)))
    squared = (p[i] - q[j]).square().mean(1)
    return float((share * squared).sum().sqrt())


def coupled(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """The optimal coupling of n sorted numbers with m: shares of mass, and which two they join, (K,) each.

    Both quantile functions are constant between neighbouring levels i/n and j/m, counted in units of 1/(nm).
    """
    if n == m:
        every = torch.arange(n)
        return torch.full((n,), 1 / n, dtype=torch.float64), every, every
    levels = torch.cat([torch.arange(n + 1) * m, torch.arange(1, m) * n]).unique()
    left, share = levels[:-1], levels.diff().double() / (n * m)
    return share, left // m, left // n
