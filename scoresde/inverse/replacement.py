"""Replacement: after each step of any solver the measured part of x is drawn anew from its law given y."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from scoresde.inverse.ending import MeasuredSolver
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.sde import Time, spread
from scoresde.solvers import Ancestral, Solver
from scoresde.solvers.fitted import Fitted


@dataclass(frozen=True)
class Replacement(MeasuredSolver):
    r"""A solver's steps, each followed by a new draw of the measured part A x_s, of its law at s given y alone::

        A x_s | y ~ N(α_s y, σ_s² A Aᵀ + α_s² σ_y² I),        x_s <- x_s + A⁺ (drawn - A x_s)

    under a flat prior of A x_0 (Song et al. 2021, arXiv:2011.13456, appendix I.2, where σ_y = 0). The start's measured
    part is drawn as well. With ``denoise`` the end is E[x_0 | x] of the score with the measured part put to its mean
    given x and y, y + α σ_y² (α² σ_y² I + σ² A Aᵀ)⁻¹ (A x - α y): y itself without noise, no noisy hole.

    **Known bias.** What is left is drawn given the noisy measured part x_s, never given y, so that y pulls too little
    while there is much noise, and not at all on what has been decided by then. For a Gaussian pair of variances 1 and
    correlation ρ, of which one is measured without noise, the other ends, in the limit of small steps at η = 1 and for
    every schedule, with

        mean y (1 - sqrt(1 - ρ²)) / ρ,  not ρ y;        variance (1 - ρ²) artanh(ρ) / ρ,  not 1 - ρ²:

    half the shift for weak correlations. :class:`RePaint` has less of it, at more evaluations.

    Args:
        measurement: y, a linear A and σ_y.
        inner: the solver, with steps of the grid. What it remembers of past steps stays as it was seen; the limit of
            small steps is the same. A fitted one is refused: its states between the ends are not those of the process.

    Raises:
        TypeError: no measurement, an A without adjoint, an inner that is no solver.
        ValueError: an inner that is fitted.
    """

    inner: Solver = field(default_factory=Ancestral)

    @property
    def default_eta(self) -> float:  # type: ignore[override]
        """The inner solver's."""
        return self.inner.default_eta

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.inner, Solver):
            raise TypeError(f"inner must be a Solver such as Ancestral(), got {self.inner!r}.")
        if isinstance(self.inner, Fitted):
            raise ValueError(
                "between its ends a fitted sampler does not follow the process, so that no part of its states can be "
                "replaced; take another inner solver, such as Ancestral() or VelocityMultistep()."
            )

    def check(self, process: Reverse) -> None:
        """What the inner solver asks."""
        self.inner.check(process)

    def draws_noise(self, process: Reverse) -> bool:
        """Always: the measured part is drawn."""
        return True

    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        """The measured part at T, then the inner solver's start."""
        x = self.replaced(process, x, grid[0], noise)
        moved, state = self.inner.start(process, x, grid, noise)
        return (moved if moved is x else self.replaced(process, moved, grid[0], noise)), state

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """The inner solver's evaluations."""
        x, state = self.inner.step(process, x, t, s, noise, state)
        return self.replaced(process, x, s, noise), state

    def replaced(self, process: Reverse, x: Tensor, t: Time, noise: Noise) -> Tensor:
        """x (B, *event) at time t with its measured part drawn anew."""
        measured = self.operator(x)
        alpha, sigma = (spread(v, measured) for v in (process.sde.alpha(t), process.sde.sigma(t)))
        drawn = alpha * self.measurement_of(x)
        if bool((sigma > 0).any()):
            drawn = drawn + sigma * self.operator(noise.normal(x))
        if self.measurement.noise_std > 0:
            drawn = drawn + alpha * self.measurement.noise_std * noise.normal(measured)
        return x + self.operator.pseudo_inverse(drawn.to(x.dtype) - measured)

    def clean(self, process: Reverse, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x] of the score, but E[A x_0 | A x, y] for the measured part."""
        x0, y, measured = process.denoise(x, t), self.measurement_of(x), self.operator(x)
        alpha, sigma, noise_std = process.sde.alpha(t), process.sde.sigma(t), self.measurement.noise_std
        mean = y
        if noise_std > 0:
            residual = measured - spread(alpha, y) * y
            pull = self.operator.solve(residual, sigma**2, (alpha * noise_std) ** 2)
            mean = y + spread(alpha, y) * noise_std**2 * pull
        return x0 + self.operator.pseudo_inverse(mean - self.operator(x0))
