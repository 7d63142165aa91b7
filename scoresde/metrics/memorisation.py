"""Whether samples are copies of what a model was trained on.

memorised_share(samples, train, held_out)       # how many lie nearer to the training set than new data do
authenticity(samples, train)                    # how many are farther from their neighbour than that from its own
nearest_distance(samples, train)                # (n,)
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde import checks
from scoresde.metrics.sets import CHUNK, two_sets


def nearest_distance(x: Tensor, data: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Euclidean distance from each of x (n, *event) to the nearest of ``data`` (m, *event), (n,)."""
    chunk = checks.count(chunk, name="chunk")
    return _nearest(x, data, chunk, ("x", "data"))


def _nearest(x: Tensor, data: Tensor, chunk: int, names: tuple[str, str]) -> Tensor:
    a, b = two_sets(x, data, names=names)
    return torch.cat([torch.cdist(part, b).min(1).values for part in a.split(chunk)])


def memorised_share(x: Tensor, train: Tensor, held_out: Tensor, *, quantile: float = 0.05) -> float:
    """Share of x closer to a training sample than all but a ``quantile`` of held-out samples are.

    A model that draws new samples scores about ``quantile``, one that repeats its training data 1.

    Args:
        x: generated samples (n, *event).
        train: what the model was trained on.
        held_out: real samples that it has not seen.
        quantile: in (0, 1).
    """
    share = checks.number(quantile, name="quantile")
    if not 0 < share < 1:
        raise ValueError(f"quantile must lie in (0, 1), got {share:g}.")
    limit = torch.quantile(_nearest(held_out, train, CHUNK, ("held_out", "train")), share)
    return float((_nearest(x, train, CHUNK, ("x", "train")) < limit).double().mean())
