"""Whether samples are copies of what a model was trained on.

memorised_share(samples, train, held_out)       # how many lie nearer to the training set than new data do
authenticity(samples, train)                    # how many are farther from their neighbour than that from its own
nearest_distance(samples, train)                # (n,)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde import checks
from scoresde.metrics.sets import CHUNK, blocks, check_sizes, distances, two_sets


def nearest_distance(x: Tensor, data: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Euclidean distance from each of x (n, *event) to the nearest of ``data`` (m, *event), (n,)."""
    chunk = checks.count(chunk, name="chunk")
    return _nearest(x, data, chunk, ("x", "data"))


def _nearest(x: Tensor, data: Tensor, chunk: int, names: tuple[str, str]) -> Tensor:
    a, b = two_sets(x, data, names=names)
    return torch.cat([distances(part, b).min(1).values for part in a.split(chunk)])


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


def authenticity(x: Tensor, train: Tensor, *, chunk: int = CHUNK) -> float:
    """Share of x farther from the nearest training sample than that is from its own nearest other one.

    Alaa et al. 2022 (arXiv:2102.08921). A model that repeats its training data scores 0; new draws of the
    data's law :func:`expected_authenticity` of the number of dimensions in which the data vary, between 1/3 and 1/2;
    samples off the data 1. It needs no held-out data, which :func:`memorised_share` does, and which that one is
    sharper for.

    Args:
        x: generated samples (n, *event), features most often.
        train: what the model was trained on (m, *event), m at least 2.
        chunk: samples whose distances are taken at once.

    Raises:
        TypeError, ValueError: fewer than two training samples, not finite, events of two shapes.
    """
    chunk = checks.count(chunk, name="chunk")
    a, b = two_sets(x, train, names=("x", "train"))
    check_sizes(b, least=2, names=("train",), what="distances within it")
    held = []
    for rows in a.split(chunk):
        far, nearest = _nearest_of(rows, b, chunk)
        among: Tensor = b[nearest]
        held.append(far > _distance_to_others(among, b, nearest, chunk))
    return float(torch.cat(held).double().mean())


def _nearest_of(rows: Tensor, data: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Distance to the nearest, and which one it is, (n,) each."""
    far = rows.new_full((len(rows),), math.inf)
    which = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for there in blocks(len(data), chunk):
        best = distances(rows, data[there]).min(1)
        closer = best.values < far
        far, which = torch.where(closer, best.values, far), torch.where(closer, best.indices + there.start, which)
    return far, which


def _distance_to_others(rows: Tensor, data: Tensor, which: Tensor, chunk: int) -> Tensor:
    """Of rows that are data[which]: the distance to the nearest other of the data."""
    far = rows.new_full((len(rows),), math.inf)
    for there in blocks(len(data), chunk):
        found = distances(rows, data[there])
        itself = which[:, None] == torch.arange(there.start, there.stop, device=rows.device)
        far = torch.minimum(far, found.masked_fill(itself, math.inf).min(1).values)
    return far


def expected_authenticity(dim: int) -> float:
    r"""The authenticity of new draws of a law with a density in ``dim`` dimensions, for many training samples.

    A draw is not authentic if it and its nearest training sample are each other's nearest neighbours: in a Poisson
    process that has the probability 1/(2 - I), I the share of a unit ball that lies in one at distance 1 (Clark & Evans
    1955, doi:10.1126/science.121.3142.397, and Cox 1981 for all dimensions). 1/3 on a line, 0.379 in the
    plane, to 1/2 in many dimensions.

    Raises:
        TypeError, ValueError: no whole number of at least 1.
    """
    dim = checks.count(dim, name="dim")
    # I = ∫_{½}^1 (1 - t²)^((d-1)/2) dt / ∫_0^1 ..., by t = sin u: cos(u)^d, smooth, so that Simpson's rule is exact.
    u = torch.linspace(0, math.pi / 2, 6001, dtype=torch.float64)
    density = u.cos().clamp_min(0) ** dim
    weights = torch.full_like(u, 2.0)
    weights[1::2], weights[0], weights[-1] = 4.0, 1.0, 1.0
    third = 2001  # sin(π/6) = ½
    upper = weights[third - 1 :].clone()
    upper[0] = 1.0
    overlap = float((upper * density[third - 1 :]).sum() / (weights * density).sum())
    return 1 - 1 / (2 - overlap)
