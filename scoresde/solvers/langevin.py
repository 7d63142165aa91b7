"""Langevin dynamics at a fixed noise level: the corrector, predictor-corrector sampling, and annealed Langevin::

    sample(score, shape, solver=PredictorCorrector(EulerMaruyama(), Langevin(snr=0.1)), steps=100)
    sample(score, shape, solver=AnnealedLangevin(), steps=10)

A :class:`Corrector` of your own is any object with ``correct(process, x, t, noise)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from scoresde import checks
from scoresde.models.combination import combine
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.sde import has_signal
from scoresde.solvers._rows import rows
from scoresde.solvers.base import Solver
from scoresde.solvers.one_step import ReverseDiffusion
from scoresde.solvers.planned import from_prior
from scoresde.solvers.wrapping import Wrapping

__all__ = ["AnnealedLangevin", "Corrector", "Langevin", "PredictorCorrector"]


class Corrector(Protocol):
    """What :class:`PredictorCorrector` asks of a corrector."""

    def correct(self, process: Reverse, x: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """Move x (B, *event) so that its law comes closer to p_t, and stays there."""
        ...


@dataclass(frozen=True)
class Langevin:
    r"""Unadjusted Langevin steps that leave p_t nearly unchanged::

        x <- x + τ s(x, t) + sqrt(2τ) z,        τ = 2 (r σ(t))²

    This is the corrector of Song et al. 2021 (arXiv:2011.13456, Alg. 4), τ = 2 (r |z|/|s|)², with |z|/|s| replaced by
    σ, the value it has where noise dominates: the step then depends on no other sample of the batch and the bias is
    known. (Their Alg. 5, for VP, has a further factor 1 - β_i.) On a Gaussian of variance c along a direction the
    stationary variance is c / (1 - τ/(2c)) (Wibisono 2018, arXiv:1802.08089, on the unadjusted chain); since
    c >= σ², the relative bias is at most r² / (1 - r²).

    Args:
        snr: the signal-to-noise ratio r, below 1.
        steps: Langevin steps at each correction.
    """

    snr: float = 0.16
    steps: int = 1

    def __post_init__(self) -> None:
        checks.fields(self)
        if not 0 < self.snr < 1:
            raise ValueError(f"snr must lie in (0, 1), where the steps are stable; got {self.snr}.")
        checks.count(self.steps, name="steps")

    def step_size(self, process: Reverse, t: Tensor) -> Tensor:
        """τ = 2 (r σ(t))²."""
        return 2 * (self.snr * process.sde.sigma(t)) ** 2

    def correct(self, process: Reverse, x: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """``steps`` Langevin steps at time t, one evaluation each."""
        return langevin_steps(process, x, t, self.step_size(process, t), self.steps, noise)


def langevin_steps(process: Reverse, x: Tensor, t: Tensor, size: Tensor, steps: int, noise: Noise) -> Tensor:
    """x <- x + τ s(x, t) + sqrt(2τ) z, ``steps`` times."""
    if size.item() == 0:  # σ(t) = 0: nothing moves, and there is no score to ask for
        return x
    ((forward, spread),) = rows(size.reshape(1), (2 * size).sqrt().reshape(1))
    for _ in range(steps):
        x = combine((1.0, process.score.linear(x, t, 1.0, forward)), (spread, noise.normal(x)))
    return x


@dataclass(frozen=True)
class PredictorCorrector(Wrapping):
    """A predictor step to s, then a correction of the law at s (Song et al. 2021, arXiv:2011.13456, Alg. 1).

    Args:
        predictor: any solver; ProbabilityFlow and TorchSDE integrate each interval of the grid on its own.
        corrector: any object with ``correct(process, x, t, noise) -> x``.
    """

    predictor: Solver = field(default_factory=ReverseDiffusion)
    corrector: Corrector = field(default_factory=Langevin)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.corrector, type) or not callable(getattr(self.corrector, "correct", None)):
            raise TypeError(
                "corrector must be an object with correct(process, x, t, noise), as Langevin() is; got "
                f"{checks.got(self.corrector)}."
            )

    @property
    def solver(self) -> Solver:  # type: ignore[override]
        """The predictor."""
        return self.predictor

    def draws_noise(self, process: Reverse) -> bool:
        """Always: the corrector does."""
        return True

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """The predictor's evaluations, and one for each Langevin step."""
        x, state = self.predictor.step(process, x, t, s, noise, state)
        return self.corrector.correct(process, x, s, noise), state


@dataclass(frozen=True)
class AnnealedLangevin(Solver):
    r"""NCSN's annealed Langevin dynamics (Song & Ermon 2019, arXiv:1907.05600, Alg. 1).

    At each time of the grid, first to last, ``steps`` steps x <- x + ½ a s(x, t) + sqrt(a) z with
    a = ε σ(t)²/σ(t_end)². Between times x is rescaled by α_s/α_t, which is 1 in the textbook's VE; from α = 0 it goes
    to α_s E[x_0 | x_t] + (σ_s/σ_t) x. No process is discretised, so no order is claimed and η plays no part.

    Args:
        step_size: ε, in squared units of x; None takes ε = 0.5 σ(t_end)², stable for every score of p_t (the textbook's
            2e-5 belongs to images in [0, 1] and σ_end = 0.01).
        steps: T, Langevin steps at each level.
    """

    step_size: float | None = None
    steps: int = 10
    default_eta: ClassVar[float] = 1.0
    follows_process: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size is not None:
            checks.positive(self.step_size, name="step_size")
        checks.count(self.steps, name="steps")

    def draws_noise(self, process: Reverse) -> bool:
        """Always."""
        return True

    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        """Langevin steps at the first level; a / σ² is the state."""
        last = process.sde.sigma(grid[-1]) ** 2
        if self.step_size is not None and last.item() == 0:
            raise ValueError(
                f"the step size a = ε σ²/σ_end² does not exist: σ = 0 at the last time, t = {grid[-1]:g}. End the grid "
                "at t_min > 0, or leave step_size to its default."
            )
        relative = 0.5 + 0 * last if self.step_size is None else self.step_size / last
        return self._at_level(process, x, grid[0], relative, noise), relative

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """Rescale, then ``steps`` evaluations at s."""
        sde = process.sde
        before = sde.alpha(t)
        first = None if has_signal(before, sde.sigma(t)) else from_prior(sde, t, s, draws=False)
        x = (sde.alpha(s) / before) * x if first is None else first.take(process, x, t, s, noise)
        return self._at_level(process, x, s, state, noise), state

    def selected(self, state: Any, select: Callable[[Tensor], Tensor]) -> Any:
        """The step size belongs to the grid, not to samples."""
        return state

    def _at_level(self, process: Reverse, x: Tensor, t: Tensor, relative: Tensor, noise: Noise) -> Tensor:
        size = 0.5 * relative * process.sde.sigma(t) ** 2
        return langevin_steps(process, x, t, size, self.steps, noise)
