"""The pair of the adaptive method for η > 0, and the variable along which it steps."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.reverse import Reverse
from scoresde.solvers._adaptive_run import AdaptiveMethod, Line
from scoresde.solvers._frames import Levels, X0Frame
from scoresde.solvers._remembered import Driver
from scoresde.solvers._step_control import Tolerance, held, mixed, ratios, rms, scaled, schedule


class HalfLogSNR(Line):
    """p = log(α/σ), y = x / sqrt(α² + σ²/σ_data²)."""

    def __init__(self, process: Reverse, grid: Tensor, sigma_data: float, x: Tensor, least: float) -> None:
        self.process, self.grid, self.sigma_data = process, grid.to(x.device), sigma_data
        self.frame = X0Frame(process.eta)
        ratio, self.to_zero = ratios(process.sde, self.grid, least * sigma_data, sigma_data / least)
        self.ends = -ratio.log()

    def at(self, p: Tensor) -> Levels:
        """The schedule at places (B,)."""
        levels = schedule(self.process.sde, p, (self.ends[0], self.ends[-1]))
        return levels._replace(t=held(levels.t, self.grid), h=p)

    def size(self, at: Levels) -> Tensor:
        """x / y."""
        return (at.alpha**2 + (at.sigma / self.sigma_data) ** 2).sqrt()

    def denoised(self, x: Tensor, at: Levels) -> Tensor:
        """E[x_0 | x]."""
        return self.process.score.linear(x, at.t, *self.frame.combination(at))

    def time(self, p: Tensor) -> Tensor:
        return self.at(p).t

    def enter(self, x: Tensor) -> Tensor:
        return scaled(1 / self.size(self.at(self.ends[:1].expand(len(x)))), x)

    def leave(self, y: Tensor, p: Tensor) -> Tensor:
        return scaled(self.size(self.at(p)), y)

    def finish(self, y: Tensor) -> Tensor:
        """All of the noise that is left is taken off, x = α E[x_0 | x]."""
        at = self.at(self.ends[-1:].expand(len(y)))
        return self.process.sde.alpha(self.grid[-1]) * self.denoised(scaled(self.size(at), y), at)


class StochasticHeun(AdaptiveMethod):
    """The pair of :class:`~scoresde.solvers.AdaptiveSDE`."""

    evaluations = 1

    def __init__(self, line: HalfLogSNR, y: Tensor, driver: Driver, tolerance: Tolerance, safety: float) -> None:
        self.line, self.driver, self.tolerance, self.safety = line, driver, tolerance, safety
        self.here = line.at(line.ends[:1].expand(len(y)))
        self.data = line.denoised(scaled(line.size(self.here), y), self.here)
        self.finite = self.data.detach().reshape(len(y), -1).isfinite().all(1)

    def first_step(self, y: Tensor) -> Tensor:
        """Noise is forgotten over a length of 1/(1 + η²) in log(α/σ)."""
        return torch.full_like(self.here.t, 0.5)

    def reach(self, p: Tensor, h: Tensor) -> Tensor:
        return self.driver.reach(p, h)

    def refused(self, target: Tensor) -> Tensor | None:
        return self.driver.refused((self.here.t, self.line.at(target).t))

    def _drift(self, t: Levels, s: Levels, part: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Weights of x̂_0 at t, and of its change over the whole step, of which s lies at the fraction ``part``."""
        k = 1 + self.line.process.eta**2
        way = k * (s.h - t.h)
        whole = -torch.expm1(-way)
        # ∫ k e^{-k (h_s - h)} (h - h_t)/Δ dh; a sample that waits has a way of 0
        rising = torch.where(way > 0, 1 - whole / torch.where(way > 0, way, 1.0), 0.0)
        return s.alpha * whole, s.alpha * rising * part

    def attempt(self, y: Tensor, p: Tensor, h: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        here, there = self.here, self.line.at(target)
        self.there, self.moved = there, h.detach() > 0
        size = self.line.size(there)
        kick = scaled(there.sigma, self.driver.attempt(p, target, (here.t, there.t)))
        x = scaled(self.line.size(here), y)
        first, second = self._drift(here, there)
        guess = scaled(self.line.frame.linear(here, there), x) + scaled(first, self.data) + kick
        self.new = self.line.denoised(guess, there)
        change = scaled(second, self.new - self.data)
        after = scaled(1 / size, guess + change)
        with torch.no_grad():
            scale = torch.maximum(self.tolerance.of(y), self.tolerance.of(after))
            error = (rms(scaled(1 / size, change)) / scale).nan_to_num(torch.inf, torch.inf)
            # the two differ by Δ^{3/2} where the change of x̂_0 is that of noise
            factor = self.safety * error.clamp_min(1e-12) ** (-2 / 3)
        return after, error, factor

    def commit(self, accepted: Tensor) -> None:
        self.driver.commit(self.moved, accepted)
        self.data = mixed(accepted, self.new, self.data)
        self.here = Levels(*(torch.where(accepted, a, b) for a, b in zip(self.there, self.here, strict=True)))

    def between(self, y: Tensor, part: Tensor) -> Tensor:
        inside = self.line.at(self.here.h + part * (self.there.h - self.here.h))
        first, second = self._drift(self.here, inside, part)
        x = scaled(self.line.frame.linear(self.here, inside), scaled(self.line.size(self.here), y))
        x = x + scaled(first, self.data) + scaled(second, self.new - self.data)
        x = x + scaled(inside.sigma, self.driver.between(inside.h, (self.here.t, inside.t)))
        return scaled(1 / self.line.size(inside), x)

    def select(self, rows: Tensor) -> None:
        self.driver.select(rows)
        self.data = self.data[rows]
        self.here = Levels(*(part[rows] for part in self.here))
