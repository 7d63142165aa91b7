"""Fixed points x = g(x), sample by sample, plain or by Anderson's acceleration.

    found = fixed_point(g, x, iterations=20, tolerance=1e-6, memory=3)
    found.x, found.moved, found.calls

What :func:`~scoresde.editing.invert` solves each implicit step with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.checks.later import Lagging
from scoresde.editing.inputs import root_mean_square
from scoresde.solvers.incomplete import each


class FixedPoint(NamedTuple):
    """What was found: x (B, *event), |g(x) - x| of each sample (B,), RMS over its entries, and the calls of g."""

    x: Tensor
    moved: Tensor
    calls: int


def fixed_point(
    g: Callable[[Tensor], Tensor], x: Tensor, *, iterations: int, tolerance: float, memory: int = 0
) -> FixedPoint:
    r"""Iterates x <- g(x) at most ``iterations`` times, each sample until |g(x) - x| <= ``tolerance`` (RMS).

    With a memory m, Anderson's acceleration from the last m differences (Walker & Ni 2011, doi:10.1137/10078356X,
    section 2)::

        f = g(x) - x        γ = argmin |f - Σ_j γ_j Δf_j|²        x <- x + f - Σ_j γ_j (Δx_j + Δf_j)

    which converges where the plain iteration is slow or moves away. Of each sample the x with the least |g(x) - x| is
    answered, the start among them, so that iterations that run away do no harm; none depends on the rest of the batch.
    """
    best, least = x, x.new_full((len(x),), math.inf)
    past: list[tuple[Tensor, Tensor]] = []
    calls, going = 0, Lagging()
    for done in range(iterations + 1):
        image = g(x)
        calls += 1
        step = image - x
        moved = root_mean_square(step)
        closer = moved < least
        best = torch.where(each(closer, x), x, best)
        least = torch.where(closer, moved, least)
        settled = least.detach() <= tolerance
        if done == iterations or not going.any(~settled):
            break
        if memory:
            past = [*past, (x, step)][-memory - 1 :]
            image = _accelerated(past, image)
        x = torch.where(each(settled, x), x, image)
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
    # a ridge at rounding: as the iteration settles the differences become parallel, and those of settled samples 0
    size = gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-200)
    ridge = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device) * (1e-12 * size)[:, None, None]
    mix = torch.linalg.solve_ex(gram + ridge, changes @ steps[:, -1:].mT).result  # (B, m, 1)
    shift = (mix * (states + changes)).sum(1)
    return image - shift.to(image.dtype).reshape(image.shape)
