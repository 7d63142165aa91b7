"""Choosing the end of an SDE from data: how large σ_max must be, and what is lost by starting from the prior.

    sde = VE(sigma_max=suggest_sigma_max(x))
    prior_mismatch(sde, x)                          # PriorMismatch(upper=..., gaussian=...), nats

Both look at the data once, before training.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scoresde import checks
from scoresde.sde.base import SDE


def _flat(x: Tensor, least: int) -> Tensor:
    checks.state(x, values=True)
    if x.shape[0] < least:
        raise ValueError(f"x must hold at least {least} samples, got {x.shape[0]}.")
    return x.reshape(x.shape[0], -1).double()


def suggest_sigma_max(x: Tensor, *, chunk: int = 2048) -> float:
    """The largest Euclidean distance between two samples of ``x`` (B, *event), B >= 2.

    Technique 1 of Song & Ermon 2020 (arXiv:2006.09011): noise of this size lets a chain started at any sample reach
    any other. Exact, in O(chunk²) memory.

    Raises:
        ValueError: fewer than two samples, or values that are not finite.
    """
    flat, chunk = _flat(x, 2), checks.count(chunk, name="chunk")
    rows = (flat - flat.mean(0)).split(chunk)  # cdist expands |a - b|²: far from the origin that cancels
    return max(float(torch.cdist(a, b).max()) for i, a in enumerate(rows) for b in rows[i:])


class PriorMismatch(NamedTuple):
    """KL(p_T || prior) in nats for a data set.

    Attributes:
        upper: mean over the data of KL(p(x_T | x_0) || prior) = α_T² |x_0|² / (2 σ_T²): never below the true value.
        gaussian: the value if the data were Gaussian with their own mean and covariance.
    """

    upper: float
    gaussian: float


def prior_mismatch(sde: SDE, x: Tensor) -> PriorMismatch:
    """How far the true law of x_T lies from the prior N(0, σ_T² I) that generation starts from.

    Args:
        sde: the SDE with its T.
        x: data (B, *event), B >= 2.
    """
    checks.instance(sde, SDE, name="sde")
    flat = _flat(x, 2)
    t = torch.tensor(sde.T, dtype=torch.float64)
    ratio = (sde.alpha(t) / sde.prior_std).item() ** 2  # the SNR at T
    upper = 0.5 * ratio * flat.square().sum(1).mean().item()
    mean = flat.mean(0)
    spectrum = torch.linalg.svdvals(flat - mean) ** 2 / flat.shape[0]  # the other eigenvalues are 0 and add nothing
    excess = ratio * spectrum  # of each eigenvalue of Cov x_T over the prior's
    gaussian = 0.5 * (excess - torch.log1p(excess)).sum().item() + 0.5 * ratio * mean.square().sum().item()
    return PriorMismatch(upper, gaussian)
