"""The probability-flow ODE on the circle tan θ = σ/(α σ_data), with a time of its own for each sample."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.reverse import Reverse
from scoresde.sde import spread
from scoresde.solvers.adaptive_run import Line
from scoresde.solvers.frames import VelocityFrame
from scoresde.solvers.step_control import held, ratios, scaled, schedule


class Place(NamedTuple):
    """Where on the circle, any shape: the time t, the size N of x = N y, and dy/dp = b x + c s(x, t)."""

    t: Tensor
    size: Tensor
    b: Tensor
    c: Tensor

    def column(self, i: int) -> Place:
        """Entry i of the last axis."""
        return Place(*(part[..., i] for part in self))


class Circle(Line):
    r"""p = -θ, tan θ = σ/(α σ_data), and y = x / sqrt(α² + σ²/σ_data²)::

        dy/dp = sin θ x̂_0 - σ_data cos θ ε̂

    The frame of :class:`~scoresde.solvers.frames.VelocityFrame`: nothing linear is left, nothing is stiff, the range of
    θ is finite, dy/dp is smooth at both ends of it, and all of it is the same under every schedule.
    """

    def __init__(self, process: Reverse, grid: Tensor, sigma_data: float, x: Tensor, least: float = 0.01) -> None:
        self.process, self.grid, self.sigma_data = process, grid.to(x.device), sigma_data
        self.frame = VelocityFrame(0.0, sigma_data)
        # the score sees the dtype of x; sums are carried in float32 at least
        self.dtype, self.wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
        ratio, self.to_zero = ratios(process.sde, self.grid, least * sigma_data)
        self.h = -ratio.log()
        self.ends = -torch.atan(ratio / sigma_data)

    def at(self, p: Tensor) -> Place:
        """Places of any shape, float64."""
        h = -(self.sigma_data * (-p).tan()).log()
        levels = schedule(self.process.sde, h, (self.h[0], self.h[-1]))
        levels = levels._replace(t=held(levels.t, self.grid))
        size = (levels.alpha**2 + (levels.sigma / self.sigma_data) ** 2).sqrt()
        of_x, of_score = self.frame.read(levels)
        return Place(levels.t, size, -self.sigma_data * of_x, -self.sigma_data * of_score)

    def slope(self, y: Tensor, at: Place) -> Tensor:
        """dy/dp at places (B,)."""
        x = spread(at.size, y) * y
        score = self.process.score(x.to(self.dtype), at.t).to(self.wide)
        return spread(at.b, x) * x + spread(at.c, x) * score

    def time(self, p: Tensor) -> Tensor:
        return self.at(p).t

    def enter(self, x: Tensor) -> Tensor:
        wide = x.to(self.wide)
        return wide / spread(self.at(self.ends[:1].expand(len(x))).size, wide)

    def leave(self, y: Tensor, p: Tensor) -> Tensor:
        return scaled(self.at(p).size, y).to(self.dtype)

    def finish(self, y: Tensor) -> Tensor:
        """Along the tangent to θ = 0, where x = α y."""
        p = self.ends[-1:].expand(len(y))
        straight = y - scaled(p, self.slope(y, self.at(p)))
        return (self.process.sde.alpha(self.grid[-1]) * straight).to(self.dtype)
