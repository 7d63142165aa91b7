"""Batched conjugate gradients for symmetric positive systems, each sample on its own.

    u = conjugate_gradients(lambda u: a.apply(a.transpose(u)) + 0.1 * u, v)

Gradients flow to v and to what the system holds, by one more solve and no graph of the iterations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scoresde.checks.later import Lagging, later
from scoresde.sde import spread
from scoresde.solvers.metropolis import dot
from scoresde.warning import warn_user

System = Callable[[Tensor], Tensor]
r"""u -> K u on (B, \*measured), each sample alone."""


def conjugate_gradients(
    system: System, v: Tensor, *, tolerance: float | None = None, iterations: int | None = None, remedy: str = ""
) -> Tensor:
    r"""The solution u of K u = v for a linear K = ``system``, symmetric and positive (semi-)definite for each sample.

    Hestenes & Stiefel 1952 (doi:10.6028/jres.049.044). A sample stops when its residual is below tolerance · |v|, so
    that its answer does not depend on the others. The gradient is that of the solution, K du = dv - dK u, from one
    more solve in the backward pass and none of the iterations; it is of first order only.

    Args:
        system: u -> K u on (B, *measured). A graph to parameters of K may hang on it.
        v: (B, *measured).
        tolerance: relative, by default 10 roundings of v's dtype.
        iterations: how many at most; by default twice as many as a sample of v has numbers, and at least 20. In exact
            arithmetic as many as it has numbers suffice.
        remedy: what the warning recommends.

    Warns:
        RuntimeWarning: some sample did not converge.
    """
    numbers = v[0].numel() if len(v) else 0
    tolerance = 10 * torch.finfo(v.dtype).eps if tolerance is None else tolerance
    iterations = max(2 * numbers, 20) if iterations is None else iterations

    def solve(v: Tensor) -> Tensor:
        return _iterate(system, v.detach(), tolerance, iterations, remedy)

    u = solve(v)
    if not torch.is_grad_enabled():
        return u
    residual = v - system(u)
    # Its value is 0 to tolerance; what counts is how it moves with v and K.
    return u + _Solved.apply(residual, solve) if residual.requires_grad else u


class _Solved(torch.autograd.Function):
    """K⁻¹ r where r = 0: nothing forward, K⁻¹ backward."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, solve: System) -> Tensor:
        ctx.solve = solve
        return torch.zeros_like(residual)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.solve(gradient), None


def _iterate(system: System, v: Tensor, tolerance: float, iterations: int, remedy: str) -> Tensor:
    with torch.no_grad():
        u, residual, direction = torch.zeros_like(v), v, v
        square = dot(v, v)
        goal = tolerance**2 * square
        running = square > goal
        going = Lagging()
        for _ in range(iterations):
            if not going.any(running):
                break
            image = system(direction).detach()
            curvature = dot(direction, image)
            running = running & (curvature > 0)  # a direction without curvature: singular, or not positive
            step = torch.where(running, square / torch.where(running, curvature, 1), 0)
            u = u + spread(step, v) * direction
            residual = residual - spread(step, v) * image
            now = dot(residual, residual)
            direction = residual + spread(torch.where(running, now / torch.where(running, square, 1), 0), v) * direction
            square = torch.where(running, now, square)
            running = running & (square > goal)
        # what stopped for want of curvature, a hundredfold from the goal or less, is as near as roundings let it come
        left = square > torch.where(running, goal, 1e4 * goal)

        def warn() -> None:
            worst = float((square / dot(v, v)).nan_to_num().max().sqrt())
            warn_user(
                f"conjugate gradients stopped within {iterations} iterations with {int(left.sum())} of {len(v)} "
                f"samples not at tolerance {tolerance:.1g}; the largest relative residual is {worst:.1g}. "
                f"{remedy}".rstrip(),
                RuntimeWarning,
            )

        later(left.any(), warn)
    return u
