"""The reverse SDE with step sizes found by the method, for each sample on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.sde import spread
from scoresde.solvers.adaptive_run import Adaptive, Line, Method
from scoresde.solvers.frames import DataFrame, Levels
from scoresde.solvers.remembered import Driver, driver
from scoresde.solvers.step_control import Tolerance, held, mixed, ratios, rms, scaled, schedule


class HalfLogSNR(Line):
    """p = log(α/σ), y = x / sqrt(α² + σ²/σ_data²)."""

    def __init__(self, process: Reverse, grid: Tensor, sigma_data: float, x: Tensor, least: float) -> None:
        self.process, self.grid, self.sigma_data = process, grid.to(x.device), sigma_data
        self.dtype, self.wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
        self.frame = DataFrame(process.eta)
        ratio, self.to_zero = ratios(process.sde, self.grid, least * sigma_data)
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
        of_x, of_score = self.frame.read(at)
        score = self.process.score(x.to(self.dtype), at.t).to(self.wide)
        return spread(of_x, x) * x + spread(of_score, x) * score

    def time(self, p: Tensor) -> Tensor:
        return self.at(p).t

    def enter(self, x: Tensor) -> Tensor:
        return scaled(1 / self.size(self.at(self.ends[:1].expand(len(x)))), x.to(self.wide))

    def leave(self, y: Tensor, p: Tensor) -> Tensor:
        return scaled(self.size(self.at(p)), y).to(self.dtype)

    def finish(self, y: Tensor) -> Tensor:
        """All of the noise that is left is taken off, x = α E[x_0 | x]."""
        at = self.at(self.ends[-1:].expand(len(y)))
        return (self.process.sde.alpha(self.grid[-1]) * self.denoised(scaled(self.size(at), y), at)).to(self.dtype)


class StochasticHeun(Method):
    """The pair of :class:`AdaptiveSDE`."""

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
        guess = scaled(self.line.frame.keep(here, there), x) + scaled(first, self.data) + kick
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
        x = scaled(self.line.frame.keep(self.here, inside), scaled(self.line.size(self.here), y))
        x = x + scaled(first, self.data) + scaled(second, self.new - self.data)
        x = x + scaled(inside.sigma, self.driver.between(inside.h, (self.here.t, inside.t)))
        return scaled(1 / self.line.size(inside), x)

    def keep(self, rows: Tensor) -> None:
        self.driver.keep(rows)
        self.data = self.data[rows]
        self.here = Levels(*(part[rows] for part in self.here))


@dataclass(frozen=True)
class AdaptiveSDE(Adaptive):
    r"""An adaptive method for η > 0, in which every sample has its own time, step size, noise and error.

    An exponential pair in data prediction with the linear part and the noise exact, k = 1 + η², Δ = h_s - h_t,
    h = log(α/σ), N of variance 1 - e^{-2 η² Δ}::

        x̂_s = (σ_s/σ_t) e^{-η² Δ} x_t + α_s (1 - e^{-kΔ}) D_t + σ_s N                        D_s = E[x_0 | x̂_s]
        x_s = x̂_s + α_s (1 - (1 - e^{-kΔ})/(kΔ)) (D_s - D_t)

    that is exponential Euler, and Heun's method, of weak order 2 for additive noise; the difference is the error that
    is held below atol + rtol |y|, as in :class:`~scoresde.AdaptiveODE`. D_s serves the next step as D_t, so that a
    step costs one evaluation. Comparing the two on the same noise is due to Jolicoeur-Martineau et al. 2021
    (arXiv:2105.14080); there Euler's method and its Heun partner in t, one step size for each sample, no bridge.

    A rejected step is tried again on the same path: its noise is kept and bridged
    (:class:`~scoresde.solvers.remembered.Remembered`), so that rejecting steps on which the noise happened to be large
    does not thin out large noise. A :class:`~scoresde.BrownianNoise` is followed as it is given
    (:class:`~scoresde.solvers.remembered.Followed`).

    Only the ends of the grid set the run. States at its inner times are drawn given the steps around them. A grid that
    ends at σ = 0, where there is no score, is run to a noise level of about the tolerance and ends with E[x_0 | x]. The
    score is asked at per-sample times t (B,), for the whole batch as long as one sample runs. No order is claimed: a
    grid does not set the steps.

    Args:
        rtol: relative tolerance; taken no finer than 4 roundings of x's dtype.
        atol: absolute tolerance.
        max_steps: of a sample, rejected ones included; then a warning and a partial solution, as in
            :class:`~scoresde.AdaptiveODE`.
        first_step: length of the first step in log(α/σ), default 0.5.
        shrink: the least factor between a step and the next.
        grow: the largest.
        safety: fraction of the step that the error would allow.
        sigma_data: standard deviation of the data, roughly.
        compact: ask the score only for the samples that still run.

    Raises:
        ValueError: options out of range, a grid that starts where α = 0, η = 0; steps shorter than a given Brownian
            path resolves.
        FloatingPointError: the score answered NaN or infinity and shorter steps did not help.
    """

    rtol: float = 1e-2
    atol: float = 1e-2
    default_eta: ClassVar[float] = 1.0

    def check(self, process: Reverse) -> None:
        """η must not be 0."""
        if not process.eta > 0:
            raise ValueError(
                f"AdaptiveSDE integrates processes with noise, eta > 0; got eta = {process.eta:g}. Take AdaptiveODE."
            )

    def _begin(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Line, Method]:
        line = HalfLogSNR(process, grid, self.sigma_data, x, self.rtol + self.atol)
        y = line.enter(x)
        return line, StochasticHeun(
            line, y, driver(noise, y.detach(), process.eta), self.tolerance(x.dtype), self.safety
        )
