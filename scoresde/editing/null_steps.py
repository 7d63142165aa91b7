"""One step of null-text inversion: the null of each sample by which a guided step ends nearest to a known state.

    best = optimised(reached, target, first, sizes, iterations=10, rate=0.1, tolerance=1e-3)
    best.null, best.x, best.distance

``reached`` takes nulls by name, (B, ...) each, to the states (B, *event) at which the step ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.checks.later import Lagging
from scoresde.editing.inputs import root_mean_square
from scoresde.solvers.incomplete import each

Learned = Mapping[str, Tensor]
"""A null by its parts, (B, ...) each: conditions by their names, shifts of encodings by the place of their encoder."""


class Best(NamedTuple):
    """What was found for each sample: its null, the state x (B, *event), its distance (B,), and the calls needed."""

    null: Learned
    x: Tensor
    distance: Tensor
    calls: int


def optimised(
    reached: Callable[[Learned], Tensor],
    target: Tensor,
    first: Learned,
    sizes: Mapping[str, Tensor],
    *,
    iterations: int,
    rate: float,
    tolerance: float,
) -> Best:
    """The least |reached(null) - target| that Adam sees from ``first`` on, RMS over the event of each sample.

    Args:
        reached: called with nulls (B, ...); only gradients to them are taken.
        target: (B, *event).
        first: where the null starts.
        sizes: what a number of each part is measured in, of a shape that broadcasts to it.
        iterations: at most so many.
        rate: the length of the first one, in units of ``sizes``; it falls linearly to 0.
        tolerance: a sample that is this near stays as it is, whatever the others do.
    """
    with torch.enable_grad():
        free = {name: (value / sizes[name]).requires_grad_() for name, value in first.items()}
    leaves = list(free.values())
    adam = torch.optim.Adam(leaves, lr=rate, eps=1e-30)  # without a floor: near the target gradients are tiny
    best: Best | None = None
    going = Lagging()
    for done in range(iterations + 1):
        with torch.set_grad_enabled(done < iterations):
            x = reached({name: leaf * sizes[name] for name, leaf in free.items()})
            distance = root_mean_square(x - target)
            square = (x - target).square().sum()
        now = Best({name: leaf.detach() * sizes[name] for name, leaf in free.items()}, x.detach(), distance.detach(), 1)
        best = now if best is None else _nearer(best, now, tolerance)
        if done == iterations or not going.any(~(best.distance <= tolerance)):
            break
        for leaf, gradient in zip(leaves, torch.autograd.grad(square, leaves), strict=True):
            leaf.grad = gradient
        for group in adam.param_groups:
            group["lr"] = rate * (1 - done / iterations)
        adam.step()
    assert best is not None
    return best


def _nearer(best: Best, now: Best, tolerance: float) -> Best:
    """Of each sample the nearer, or the one that was near enough."""
    better = (now.distance < best.distance.nan_to_num(math.inf)) & ~(best.distance <= tolerance)
    return Best(
        {name: torch.where(each(better, new), new, best.null[name]) for name, new in now.null.items()},
        torch.where(each(better, now.x), now.x, best.x),
        torch.where(better, now.distance, best.distance),
        best.calls + 1,
    )
