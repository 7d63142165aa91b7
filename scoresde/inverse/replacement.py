"""Replacement: after each step of any solver the measured part of x is drawn anew from its law given y.

    sample(score, shape, solver=Replacement(measurement), steps=100)
    sample(score, shape, solver=Replacement(measurement, solver=SpectralMultistep()), eta=1.0)

No backward passes; biased in a way that its docstring derives.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from scoresde.inverse.measured_solver import MeasuredSolver
from scoresde.models.combination import combine
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.sde import Time
from scoresde.solvers.base import Solver
from scoresde.solvers.one_step import Ancestral
from scoresde.solvers.wrapping import Wrapping, require_process


@dataclass(frozen=True)
class Replacement(MeasuredSolver, Wrapping):
    r"""A solver's steps, each followed by a new draw of the measured part A x_s, of its law at s given y alone::

        A x_s | y ~ N(α_s y, σ_s² A Aᵀ + α_s² σ_y² I),        x_s <- x_s + A⁺ (drawn - A x_s)

    under a flat prior of A x_0 (Song et al. 2021, arXiv:2011.13456, appendix I.2, where σ_y = 0). The start's measured
    part is drawn as well. With ``denoise`` the end is E[x_0 | x] of the score with the measured part put to its mean
    given x and y, y + α σ_y² (α² σ_y² I + σ² A Aᵀ)⁻¹ (A x - α y): y itself without noise, no noisy hole.

    **Known bias.** What is left is drawn given the noisy measured part x_s, never given y, so that y counts too little
    while there is much noise, and not at all for what has been decided by then. For a Gaussian pair of variances 1 and
    correlation ρ, of which one is measured without noise, the other ends, in the limit of small steps at η = 1 and for
    every schedule, with

        mean y (1 - sqrt(1 - ρ²)) / ρ,  not ρ y;        variance (1 - ρ²) artanh(ρ) / ρ,  not 1 - ρ²:

    half the shift for weak correlations. :class:`RePaint` has less of it, at more evaluations.

    Args:
        measurement: y, a linear A and σ_y.
        solver: the solver inside, taken step by step of the grid. What it remembers of past steps stays as it was seen;
            the limit of small steps is the same.

    Raises:
        TypeError: no measurement, an A without adjoint, a solver that is none.
        ValueError: a solver whose states on the way are not those of the process, such as a fitted one.
    """

    solver: Solver = field(default_factory=Ancestral)

    def __post_init__(self) -> None:
        super().__post_init__()
        # without a memory a step begins anew at x, whatever x was before; with one it may not look at x again
        if self.solver.has_memory:
            require_process(self.solver, "so that no part of them can be replaced")

    def draws_noise(self, process: Reverse) -> bool:
        """Always: the measured part is drawn."""
        return True

    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        """The measured part at T, then the start of the solver inside."""
        x = self.replaced(process, x, grid[0], noise)
        moved, state = super().start(process, x, grid, noise)
        return (moved if moved is x else self.replaced(process, moved, grid[0], noise)), state

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """The evaluations of the solver inside."""
        x, state = self.solver.step(process, x, t, s, noise, state)
        return self.replaced(process, x, s, noise), state

    def replaced(self, process: Reverse, x: Tensor, t: Time, noise: Noise) -> Tensor:
        """x (B, *event) at time t with its measured part drawn anew."""
        y, alpha, sigma = self.measurement_of(x), process.sde.alpha(t), process.sde.sigma(t)
        terms = [(alpha, y)]
        if bool((sigma > 0).any()):
            terms.append((sigma, self.operator(noise.normal(x))))
        if self.measurement.noise_std > 0:
            terms.append((alpha * self.measurement.noise_std, noise.normal(y)))
        return self.operator.project(x, combine(*terms))

    def denoised(self, process: Reverse, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x] of the score, but E[A x_0 | A x, y] for the measured part."""
        x0, y = process.score.denoise(x, t), self.measurement_of(x)
        alpha, sigma, noise_std = process.sde.alpha(t), process.sde.sigma(t), self.measurement.noise_std
        if noise_std > 0:
            residual = combine((1.0, self.operator(x)), (-alpha, y))
            whitened = self.operator.solve(residual, sigma**2, (alpha * noise_std) ** 2)
            y = combine((1.0, y), (alpha * noise_std**2, whitened))
        return self.operator.project(x0, y)
