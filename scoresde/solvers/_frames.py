"""The exact linear part: variables in which the reverse process has none, and the prediction left to interpolate."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from scoresde import checks
from scoresde.models.combination import Coefficient
from scoresde.models.score import Score
from scoresde.sde import SDE, has_signal, signal_left
from scoresde.sde.base import root
from scoresde.solvers._rows import rows

FAR = 160.0
"""σ/α up to which a prediction made of the values of x and s keeps three digits of float32; VP starts at 152."""


class Levels(NamedTuple):
    """The schedule at times of any shape, float64: α, σ and h = log(α/σ), half the log-SNR (infinite where σ = 0)."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    h: Tensor

    def at(self, index: slice | int) -> Levels:
        """Those of some times."""
        return Levels(*(part[index] for part in self))


def levels(sde: SDE, times: Tensor) -> Levels:
    """The schedule at ``times`` (n,).

    Raises:
        ValueError: α = 0 at one of them.
    """
    alpha, sigma = sde.alpha(times), sde.sigma(times)
    if not has_signal(alpha, sigma):
        where = times.detach()[~signal_left(alpha, sigma)][0].item()
        raise ValueError(
            f"α = 0 at t = {where:g}, where σ/α is infinite and x says nothing of x_0; only a first step starts there."
        )
    noisy = sigma > 0
    # log 0 is put in afterwards: its gradient would be infinite, and 0 times that NaN
    half = alpha.log() - torch.where(noisy, sigma, torch.ones_like(sigma)).log()
    return Levels(times, alpha, sigma, torch.where(noisy, half, torch.full_like(half, math.inf)))


def levels_at(sde: SDE, h: Tensor) -> Levels:
    """The schedule where log(α/σ) = ``h`` (n,)."""
    return levels(sde, sde.t_of_log_snr(2 * h))


@dataclass(frozen=True)
class Frame(ABC):
    r"""A quantity F = a x + b s(x, t) such that the reverse process is an integral of it, with nothing linear left::

        x_s = c x_t + ∫_{h_t}^{h_s} K(h) F dh + d z        h = log(α/σ), rising from t to s

    exactly, when F is followed along the path. A solver interpolates F and integrates K times the interpolant.
    """

    eta: float | Tensor

    @property
    def rests_on_noise(self) -> bool:
        """Whether F is x/σ less something small where σ/α is large, and x_s/σ_s nearly x_t/σ_t."""
        return False

    @abstractmethod
    def combination(self, at: Levels) -> tuple[Tensor, Tensor]:
        """(a, b) of F = a x + b s."""

    @abstractmethod
    def linear(self, t: Levels, s: Levels) -> Tensor:
        """c, for steps from t to s."""

    @abstractmethod
    def kernel(self, h: Tensor, s: Levels) -> Tensor:
        """K at ``h`` (n, Q), for steps that end at s (n,)."""

    @abstractmethod
    def noise(self, t: Levels, s: Levels) -> Tensor:
        """d, the exact standard deviation of what the Wiener process adds."""

    @abstractmethod
    def to_data(self, t: Levels, s: Levels) -> tuple[Tensor, Tensor]:
        """(c, w) of the step x_s = c x_t + w F_t = α_s E[x_0 | x_t], for an end s without noise (σ = 0)."""

    def units(self, at: Levels) -> tuple[Tensor, list[tuple[Coefficient, Coefficient]]]:
        """F as unit (x + b/a s), and as unit s where a = 0: units (n,), and the combinations to evaluate.

        A function score answers these in one pass over memory; the units go into the weights.
        """
        a, b = self.combination(at)
        if bool((a == 0).all()):
            return b, [(0.0, 1.0)] * len(b)
        return a, [(1.0, ratio) for (ratio,) in rows(b / a)]


@dataclass(frozen=True)
class X0Frame(Frame):
    r"""F = x̂_0 = (x + σ² s)/α. With k = 1 + η²::

        x_s = (σ_s/σ_t) e^{-η² Δ} x_t + α_s ∫ k e^{-k (h_s - h)} x̂_0 dh + σ_s sqrt(1 - e^{-2 η² Δ}) z,   Δ = h_s - h_t

    Lu et al. 2022 (arXiv:2211.01095), proposition 4.1 for η = 0, section 5 for η = 1; any η: Xue et al. 2023
    (arXiv:2309.05019), proposition 4.2, with τ = η.
    """

    def combination(self, at: Levels) -> tuple[Tensor, Tensor]:
        return 1 / at.alpha, at.sigma**2 / at.alpha

    def linear(self, t: Levels, s: Levels) -> Tensor:
        return s.sigma / t.sigma * (-(self.eta**2) * (s.h - t.h)).exp()

    def kernel(self, h: Tensor, s: Levels) -> Tensor:
        k = 1 + self.eta**2
        return s.alpha[:, None] * k * (-k * (s.h[:, None] - h)).exp()

    def noise(self, t: Levels, s: Levels) -> Tensor:
        return s.sigma * root(-torch.expm1(-2 * self.eta**2 * (s.h - t.h)))

    def to_data(self, t: Levels, s: Levels) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(s.alpha), s.alpha


@dataclass(frozen=True)
class NoiseFrame(Frame):
    r"""F = ε̂ = -σ s, with σ̃ = σ/α = e^{-h}::

        x_s = (α_s/α_t) x_t + (1 + η²) α_s ∫ ε̂ dσ̃ + η α_s sqrt(σ̃_t² - σ̃_s²) z

    Zhang & Chen 2023 (arXiv:2204.13902), section 3 for η = 0; any η from :class:`~scoresde.Reverse`, in
    which dx̃ = (1 + η²) ε̂ dσ̃ + η sqrt(dσ̃²/dt) dw̄ for x̃ = x/α.
    """

    @property
    def rests_on_noise(self) -> bool:
        """ε̂ = x/σ - (α/σ) x̂_0; x/σ is kept by the flow alone."""
        return bool(self.eta == 0)

    def combination(self, at: Levels) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(at.sigma), -at.sigma

    def linear(self, t: Levels, s: Levels) -> Tensor:
        return s.alpha / t.alpha

    def kernel(self, h: Tensor, s: Levels) -> Tensor:
        return -(1 + self.eta**2) * s.alpha[:, None] * (-h).exp()

    def noise(self, t: Levels, s: Levels) -> Tensor:
        return self.eta * s.alpha * root((t.sigma / t.alpha) ** 2 - (s.sigma / s.alpha) ** 2)

    def to_data(self, t: Levels, s: Levels) -> tuple[Tensor, Tensor]:
        return s.alpha / t.alpha, -s.alpha * t.sigma / t.alpha


@dataclass(frozen=True)
class VFrame(Frame):
    r"""F = v̂ = cos θ ε̂ - sin θ x̂_0/σ_data on the circle tan θ = σ̃/σ_data: v = α ε - σ x_0 where α² + σ² = 1 = σ_data::

        x_s / N_s = ρ x_t / N_t + (1 + η²) ∫ (cos θ / cos θ_s)^{η²} v̂ dθ + sqrt(1 - ρ²) z
        N = sqrt(α² σ_data² + σ²),    ρ = (cos θ_t / cos θ_s)^{η²}

    On data N(0, σ_data² I) v̂ is 0 at all times, and any solver in this frame is exact, at every η. Salimans & Ho 2022
    (arXiv:2202.00512), section 4 and appendix D, for η = 0, σ_data = 1 and α² + σ² = 1; the frame of EDM's network
    output, Karras et al. 2022 (arXiv:2206.00364), table 1. For η > 0 derived: with s = -(y + cot θ v̂)/N, y = x/N, the
    process is dy = [η² tan θ y + (1 + η²) v̂] dθ + η sqrt(2 tan θ) dw.
    """

    sigma_data: float = 1.0

    def size(self, at: Levels) -> Tensor:
        """N."""
        return ((at.alpha * self.sigma_data) ** 2 + at.sigma**2).sqrt()

    def _cosine(self, h: Tensor) -> Tensor:
        return (1 + ((-h).exp() / self.sigma_data) ** 2).rsqrt()

    def combination(self, at: Levels) -> tuple[Tensor, Tensor]:
        size, scale = self.size(at), self.sigma_data
        of_x = -at.sigma / (size * scale * at.alpha)
        return of_x, of_x * at.sigma**2 - at.sigma * at.alpha * scale / size

    def linear(self, t: Levels, s: Levels) -> Tensor:
        shrunk = (self._cosine(t.h) / self._cosine(s.h)) ** (self.eta**2)
        return self.size(s) / self.size(t) * shrunk

    def kernel(self, h: Tensor, s: Levels) -> Tensor:
        # θ = atan(e^{-h}/σ_data): dθ/dh = -1 / (e^{-h}/σ_data + σ_data e^{h})
        along = -1 / ((-h).exp() / self.sigma_data + self.sigma_data * h.exp())
        shrunk = (self._cosine(h) / self._cosine(s.h)[:, None]) ** (self.eta**2)
        return self.size(s)[:, None] * (1 + self.eta**2) * shrunk * along

    def noise(self, t: Levels, s: Levels) -> Tensor:
        # log of the cosines' ratio by log1p: no digits lost where both angles are small
        tangent_t, tangent_s = ((-level.h).exp() / self.sigma_data for level in (t, s))
        ratio = -0.5 * (torch.log1p(tangent_t**2) - torch.log1p(tangent_s**2))
        return self.size(s) * root(-torch.expm1(2 * self.eta**2 * ratio))

    def to_data(self, t: Levels, s: Levels) -> tuple[Tensor, Tensor]:
        square = self.size(t) ** 2
        scale = self.sigma_data**2
        return s.alpha * t.alpha * scale / square, -s.alpha * self.sigma_data * t.sigma / self.size(t)


Predicts = Literal["x0", "noise", "v"]


def frame_of(predicts: Predicts, eta: float | Tensor, sigma_data: float) -> Frame:
    """The frame by the name of its F."""
    if predicts == "x0":
        return X0Frame(eta)
    if predicts == "noise":
        return NoiseFrame(eta)
    return VFrame(eta, sigma_data)


def data_scale(own: float | None, score: Score) -> float:
    """σ_data: the solver's own option, else the score's, else 1."""
    if own is not None:
        return own
    return 1.0 if score.sigma_data is None else score.sigma_data


def check_data_scale(sigma_data: float | None) -> None:
    """Raises ValueError for a solver's option that is neither None nor positive."""
    if sigma_data is not None:
        checks.positive(sigma_data, name="sigma_data")
