"""Fixed points x = g(x), sample by sample, plain or accelerated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.editing.inputs import rms


class FixedPoint(NamedTuple):
    """What was found: x (B, *event), how far the last step to it moved each sample (B,), and the calls of g."""

    x: Tensor
    moved: Tensor
    calls: int


def fixed_point(
    g: Callable[[Tensor], Tensor], x: Tensor, *, iterations: int, tolerance: float, memory: int = 0
) -> FixedPoint:
    r"""Iterates x <- g(x) until no sample moves by more than ``tolerance`` (RMS over its entries).

    With a memory m, Anderson's acceleration from the last m differences (Walker & Ni 2011, doi:10.1137/10078356X,
    section 2)::

        f = g(x) - x        γ = argmin |f - Σ_j γ_j Δf_j|²        x <- x + f - Σ_j γ_j (Δx_j + Δf_j)

    which converges where the plain iteration is slow or moves away. Of each sample the g(x) with the least |g(x) - x|
    is answered, so that iterations that run away do no harm.
    """
    best, least = x, x.new_full((len(x),), math.inf)
    past: list[tuple[Tensor, Tensor]] = []
    calls = 0
    for _ in range(iterations):
        image = g(x)
        calls += 1
        step = image - x
        moved = rms(step)
        closer = moved < least
        best = torch.where(closer.reshape(-1, *[1] * (x.ndim - 1)), image, best)
        least = torch.where(closer, moved, least)
        if not len(x) or bool((least.detach() <= tolerance).all()):
            break
        if memory:
            past = [*past, (x, step)][-memory - 1 :]
            image = _accelerated(past, image)
        x = image
    return FixedPoint(best, least, calls)


def _accelerated(past: list[tuple[Tensor, Tensor]], image: Tensor) -> Tensor:
    """Anderson's mixture of the remembered (x, f); ``image`` = x + f of the last one."""
    if len(past) == 1:
        return image
    flat = (len(image), math.prod(image.shape[1:]))
    states = torch.stack([x.reshape(flat).double() for x, _ in past], 1).diff(dim=1)  # (B, m, D)
    steps = torch.stack([f.reshape(flat).double() for _, f in past], 1)
    changes = steps.diff(dim=1)
    gram = changes @ changes.mT
    # a ridge at rounding: as the iteration settles the differences become parallel
    size = gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(torch.finfo(torch.float64).tiny)
    ridge = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device) * (1e-12 * size)[:, None, None]
    mix = torch.linalg.solve(gram + ridge, changes @ steps[:, -1:].mT)  # (B, m, 1)
    pull = (mix * (states + changes)).sum(1)
    return image - pull.to(image.dtype).reshape(image.shape)
