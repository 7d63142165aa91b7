"""The probability-flow ODE on the circle tan θ = σ/(α σ_data), with a time of its own for each sample."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from scoresde.reverse import Reverse
from scoresde.solvers._adaptive_run import Line
from scoresde.solvers._frames import VFrame
from scoresde.solvers._step_control import held, ratios, scaled, schedule
from scoresde.solvers._variables import angle


class CirclePoint(NamedTuple):
    """Where on the circle, any shape: the time t, the size N of x = N y, and dy/dp = b x + c s(x, t)."""

    t: Tensor
    size: Tensor
    b: Tensor
    c: Tensor

    def column(self, i: int) -> CirclePoint:
        """Entry i of the last axis."""
        return CirclePoint(*(part[..., i] for part in self))


class Circle(Line):
    r"""p = -θ, tan θ = σ/(α σ_data), and y = x / sqrt(α² + σ²/σ_data²)::

        dy/dp = sin θ x̂_0 - σ_data cos θ ε̂

    The frame of :class:`~scoresde.solvers._frames.VFrame`: nothing linear is left, nothing is stiff, the range of
    θ is finite, dy/dp is smooth at both ends of it, and all of it is the same under every schedule.
    """

    def __init__(self, process: Reverse, grid: Tensor, sigma_data: float, least: float = 0.01) -> None:
        self.process, self.grid, self.sigma_data = process, grid, sigma_data
        self.frame, self._angle = VFrame(0.0, sigma_data), angle(sigma_data)
        ratio, self.to_zero = ratios(process.sde, self.grid, least * sigma_data, sigma_data / least**2)
        self.h = -ratio.log()
        self.ends = -self._angle.of_h(self.h)

    def at(self, p: Tensor) -> CirclePoint:
        """Points of any shape, float64."""
        h = self._angle.to_h(-p)
        levels = schedule(self.process.sde, h, (self.h[0], self.h[-1]))
        levels = levels._replace(t=held(levels.t, self.grid))
        size = self.frame.size(levels) / self.sigma_data
        of_x, of_score = self.frame.combination(levels)
        return CirclePoint(levels.t, size, -self.sigma_data * of_x, -self.sigma_data * of_score)

    def slope(self, y: Tensor, at: CirclePoint) -> Tensor:
        """dy/dp at points (B,)."""
        return self.process.score.linear(scaled(at.size, y), at.t, at.b, at.c)

    def time(self, p: Tensor) -> Tensor:
        return self.at(p).t

    def enter(self, x: Tensor) -> Tensor:
        return scaled(1 / self.at(self.ends[:1].expand(len(x))).size, x)

    def leave(self, y: Tensor, p: Tensor) -> Tensor:
        return scaled(self.at(p).size, y)

    def finish(self, y: Tensor) -> Tensor:
        """Along the tangent to θ = 0, where x = α y."""
        p = self.ends[-1:].expand(len(y))
        straight = y - scaled(p, self.slope(y, self.at(p)))
        return self.process.sde.alpha(self.grid[-1]) * straight
