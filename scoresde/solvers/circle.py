"""The probability-flow ODE on the circle tan θ = σ/(α σ_data), with a time of its own for each sample."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.reverse import Reverse
from scoresde.sde import spread
from scoresde.solvers.frames import VelocityFrame
from scoresde.solvers.step_control import schedule


class Place(NamedTuple):
    """Where on the circle, any shape: the time t, the size N of x = N y, and dy/dθ = p x + q s(x, t)."""

    t: Tensor
    size: Tensor
    p: Tensor
    q: Tensor

    def column(self, i: int) -> Place:
        """Entry i of the last axis."""
        return Place(*(part[..., i] for part in self))


class Circle:
    r"""dy/dθ = σ_data cos θ ε̂ - sin θ x̂_0 for y = x / sqrt(α² + σ²/σ_data²), tan θ = σ/(α σ_data), θ falling.

    The frame of :class:`~scoresde.solvers.frames.VelocityFrame`: nothing linear is left, nothing is stiff, the range of
    θ is finite, dy/dθ is smooth at both ends of it, and all of it is the same under every schedule.
    """

    def __init__(self, process: Reverse, grid: Tensor, sigma_data: float, x: Tensor) -> None:
        self.process, self.grid, self.sigma_data = process, grid, sigma_data
        self.frame = VelocityFrame(0.0, sigma_data)
        # the score sees the dtype of x; sums are carried in float32 at least
        self.dtype, self.wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
        sde = process.sde
        ratio = sde.sigma(grid) / sde.alpha(grid)
        self.h = -ratio.log().to(x.device)
        self.theta = torch.atan(ratio / sigma_data).to(x.device)
        """(n + 1,) the grid's θ."""

    def at(self, theta: Tensor) -> Place:
        """θ of any shape, float64."""
        h = -(self.sigma_data * theta.tan()).log()
        levels = schedule(self.process.sde, h, (self.h[0], self.h[-1]))
        # a time computed back from log(α/σ) may pass the end by a rounding
        levels = levels._replace(t=torch.minimum(torch.maximum(levels.t, self.grid[-1].to(h)), self.grid[0].to(h)))
        size = (levels.alpha**2 + (levels.sigma / self.sigma_data) ** 2).sqrt()
        p, q = self.frame.read(levels)
        return Place(levels.t, size, self.sigma_data * p, self.sigma_data * q)

    def slope(self, y: Tensor, at: Place) -> Tensor:
        """dy/dθ at places (B,)."""
        x = spread(at.size, y) * y
        score = self.process.score(x.to(self.dtype), at.t).to(self.wide)
        return spread(at.p, x) * x + spread(at.q, x) * score

    def enter(self, x: Tensor) -> Tensor:
        """y of the state at the grid's first time."""
        return x.to(self.wide) / spread(self.at(self.theta[:1].expand(x.shape[0])).size, x.to(self.wide))

    def leave(self, y: Tensor, at: Place) -> Tensor:
        """x of y, in the dtype of the state that came in."""
        return (spread(at.size, y) * y).to(self.dtype)
