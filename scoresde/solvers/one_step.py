"""One evaluation a step, nothing remembered: Euler-Maruyama, reverse diffusion, DDPM's ancestral sampling, DDIM::

    sample(score, shape, solver=EulerMaruyama(), steps=200)
    sample(score, shape, solver=DDIM(), steps=50)

Each is a :class:`OneStep`: it gives the coefficients a, b, c of x_s = a x + b s + c z for all steps at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from scoresde import checks
from scoresde.models.combination import Coefficient, combine
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.sde.base import root
from scoresde.solvers._frames import levels
from scoresde.solvers._rows import rows
from scoresde.solvers.base import only_sde
from scoresde.solvers.planned import Planned

__all__ = ["DDIM", "Ancestral", "EulerMaruyama", "OneStep", "ReverseDiffusion"]


@dataclass(frozen=True)
class OneStep(Planned):
    """x_s = a x_t + b s(x_t, t) + c z: one evaluation, nothing remembered. A subclass gives a, b and c."""

    @abstractmethod
    def coefficients(self, process: Reverse, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(a, b, c), each (n,), float64, for the steps from t (n,) to s (n,)."""

    def plan(self, process: Reverse, grid: Tensor) -> Sequence[tuple[Coefficient, ...]]:
        """a, b and c for each step."""
        return rows(*self.coefficients(process, grid[:-1], grid[1:]))

    def transitions(self, process: Reverse, grid: Tensor) -> Sequence[tuple[Coefficient, ...]]:
        """The same: every step draws x_s from a Gaussian of mean a x_t + b s and standard deviation c."""
        return self.plan(process, grid)

    def advance(
        self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, row: Any, memory: Any
    ) -> tuple[Tensor, Any]:
        """One evaluation."""
        a, b, c = row
        mean = process.score.linear(x, t, a, b)
        return (combine((1.0, mean), (c, noise.between(x, t, s))) if self.draws_noise(process) else mean), None


@dataclass(frozen=True)
class EulerMaruyama(OneStep):
    r"""x_s = x_t + drift (s - t) + η g(t) sqrt(t - s) z; Euler's method where η = 0.

    Strong order 1, not ½, because the noise of the reverse process is additive
    (Kloeden & Platen 1992, section 10.2).
    """

    order: ClassVar[int | None] = 1
    weak_order: ClassVar[float | None] = 1.0
    strong_order: ClassVar[float | None] = 1.0
    default_eta: ClassVar[float] = 1.0

    def coefficients(self, process: Reverse, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One evaluation a step."""
        length, rate = t - s, process.sde.g(t) ** 2
        of_x = 1 - process.sde.f(t) * length
        return of_x, 0.5 * (1 + process.eta**2) * rate * length, process.eta * root(rate * length)


@dataclass(frozen=True)
class ReverseDiffusion(OneStep):
    r"""The reverse-diffusion sampler: the forward transition x_t = r x_s + sqrt(v) z, reversed like the SDE::

        x_s = (2 - r) x_t + ½ (1 + η²) v s(x_t, t) + η sqrt(v) z

    Song et al. 2021 (arXiv:2011.13456), eq. 46 with η = 1: r = sqrt(1 - β_i), v = β_i on DDPM's chain, r = 1,
    v = σ_i² - σ_{i-1}² on SMLD's.
    """

    order: ClassVar[int | None] = 1
    weak_order: ClassVar[float | None] = 1.0
    strong_order: ClassVar[float | None] = 1.0
    default_eta: ClassVar[float] = 1.0

    def coefficients(self, process: Reverse, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One evaluation a step."""
        ratio, variance = process.sde.transition_coefficients(s, t)
        return 2 - ratio, 0.5 * (1 + process.eta**2) * variance, process.eta * root(variance)


@dataclass(frozen=True)
class Ancestral(OneStep):
    r"""DDPM's ancestral sampling: x_s ~ p(x_s | x_t, x_0 = E[x_0 | x_t]) (Ho et al. 2020, arXiv:2006.11239, Alg. 2).

    For any SDE. On the grid ``chain.times.flip(0)`` of ``ChainSDE(chain)``, with ``denoise=True`` as the last step, it
    is the textbook's algorithm to rounding.

    Args:
        variance: "posterior" draws with β̃ (eq. 7), the variance given x_0; "transition" with β, the larger choice of
            the same paper (section 3.2).
    """

    variance: Literal["posterior", "transition"] = "posterior"
    order: ClassVar[int | None] = None
    weak_order: ClassVar[float | None] = 1.0
    strong_order: ClassVar[float | None] = 1.0
    default_eta: ClassVar[float] = 1.0

    def check(self, process: Reverse) -> None:
        """η must be 1."""
        only_sde(self, process)

    def coefficients(self, process: Reverse, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One evaluation a step."""
        sde = process.sde
        ratio, variance = sde.transition_coefficients(s, t)
        # p(x_s | x_t, x_0) has mean (σ_s²/σ_t²) r x_t + (α_s v/σ_t²) x_0 and variance v σ_s²/σ_t²; with
        # x̂_0 = (x_t + σ_t² s)/α_t and α_s/α_t = 1/r the mean is (x_t + v s) / r
        drawn = variance if self.variance == "transition" else variance * (sde.sigma(s) / sde.sigma(t)) ** 2
        return 1 / ratio, variance / ratio, root(drawn)


@dataclass(frozen=True)
class DDIM(OneStep):
    r"""DDIM with stochasticity η (Song et al. 2021, arXiv:2010.02502, eq. 12 and 16)::

        x_s = α_s x̂_0 + sqrt(σ_s² - d²) ε̂ + d z        d² = η² (σ_s²/σ_t²) v

    with v the variance of the forward transition. η = 0 is the exponential Euler step of the probability-flow ODE,
    η = 1 ancestral sampling, and in the limit of small steps η is that of :class:`~scoresde.Reverse`.

    Args:
        eta: in place of the process's own η.

    Raises:
        ValueError: d > σ_s, which a large η brings about: use smaller steps, or EulerMaruyama.
    """

    eta: float | None = None
    order: ClassVar[int | None] = 1
    weak_order: ClassVar[float | None] = 1.0
    strong_order: ClassVar[float | None] = 1.0
    default_eta: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eta is not None:
            checks.not_negative(self.eta, name="eta")

    def _eta(self, process: Reverse) -> float:
        return process.eta if self.eta is None else self.eta

    def draws_noise(self, process: Reverse) -> bool:
        """Whether η > 0."""
        return self._eta(process) > 0

    def coefficients(self, process: Reverse, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One evaluation a step."""
        sde, eta = process.sde, self._eta(process)
        before, after = levels(sde, t), levels(sde, s)
        sigma_t, sigma_s, signal = before.sigma, after.sigma, after.alpha / before.alpha
        ratio, variance = sde.transition_coefficients(s, t)
        drawn = (eta * sigma_s / sigma_t) ** 2 * variance
        # σ_s² - d² with v = σ_t² - r² σ_s² put in: at η = 1 nothing cancels, however small s is
        kept = sigma_s**2 * ((1 - eta**2) + (eta * ratio * sigma_s / sigma_t) ** 2)
        if bool((too_much := ~(kept.detach() >= 0)).any()):
            i = int(too_much.nonzero()[0])
            raise ValueError(
                f"with eta = {eta:g} the step from t = {t[i]:g} to {s[i]:g} would draw more noise than x_s holds; take "
                "more steps, a smaller eta, or EulerMaruyama."
            )
        # α_s x̂_0 + sqrt(σ_s² - d²) ε̂, with x̂_0 = (x - σ_t ε̂)/α_t and ε̂ = -σ_t s
        return signal, sigma_t * (signal * sigma_t - root(kept)), root(drawn)
