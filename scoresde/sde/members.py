"""The family: each member is α(t), σ(t), and closed forms where they are faster than the derivation.

    VP(beta_min=0.1, beta_max=20.0), SubVP()        # α = exp(-½ ∫β)
    VE(sigma_min=0.01, sigma_max=50.0), EDM()       # α = 1
    Cosine(), RectifiedFlow(T=1.0)                  # α falls to 0, at T itself if asked

Members are frozen dataclasses: ``dataclasses.replace(sde, T=0.9)`` is another one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scoresde import checks
from scoresde.sde.base import SDE, Time, chain_times, root
from scoresde.sde.chain import Chain

__all__ = ["EDM", "VE", "VP", "Cosine", "RectifiedFlow", "SubVP"]


@dataclass(frozen=True)
class _LinearBeta(SDE):
    """α(t) = exp(-½ ∫β), β(t) = β_min + t (β_max - β_min): what VP and SubVP share."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self.beta_min, name="beta_min")
        checks.positive(self.beta_max, name="beta_max")
        if not checks.number(self.beta_max) >= checks.number(self.beta_min):
            raise ValueError(f"beta_max must be at least beta_min, got {self.beta_max} < {self.beta_min}.")

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return self._log_alpha(t).exp()

    def f(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return -0.5 * self._beta(t)

    def _t_of_minus_log_alpha(self, c: Tensor) -> Tensor:
        """The positive root of ¼ (β_max - β_min) t² + ½ β_min t = c, in the form without cancellation."""
        quarter, half = 0.25 * (self.beta_max - self.beta_min), 0.5 * self.beta_min
        return 2 * c / (half + (half**2 + 4 * quarter * c) ** 0.5)


@dataclass(frozen=True)
class VP(_LinearBeta):
    r"""Variance preserving, the limit of DDPM: ``dx = -½ β(t) x dt + sqrt(β(t)) dw``, β linear in t.

    α = exp(-¼ t² (β_max - β_min) - ½ t β_min), σ² = 1 - α²  (Song et al. 2021, arXiv:2011.13456, eq. 11, 33).
    """

    def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return root(-torch.expm1(2 * self._log_alpha(t)))

    def g(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return self._beta(t).sqrt()

    def t_of_log_snr(self, log_snr: Time) -> Tensor:
        target = self._reachable(log_snr)
        # α² = sigmoid(λ); softplus's own threshold of 20 would leave an error of e^-20
        time = self._t_of_minus_log_alpha(0.5 * torch.nn.functional.softplus(-target, threshold=40.0))
        return time.to(checks.result_dtype(log_snr))

    def discretize(self, n: int) -> Chain:
        """DDPM's chain: β_i from β_min/n to β_max/n in n equal steps (Song et al. 2021, appendix C)."""
        n, times = chain_times(n, self.T)
        position = torch.linspace(0, 1, n, dtype=torch.float64)
        beta = (self.beta_min + position * self.T * (self.beta_max - self.beta_min)) * self.T / n
        if bool((beta >= 1).any()):
            least = math.floor(float(self._beta(torch.tensor(self.T))) * self.T) + 1
            raise ValueError(f"β_n = {float(beta.max()):g} is not below 1: this schedule needs n >= {least}, got {n}.")
        return Chain(times=times, ratio=(1 - beta).sqrt(), variance=beta)


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    r"""Sub-variance preserving: α as in VP, σ = 1 - α²  (Song et al. 2021, arXiv:2011.13456, eq. 12, 34)."""

    def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return -torch.expm1(2 * self._log_alpha(t))

    def g(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return root(self._beta(t) * -torch.expm1(4 * self._log_alpha(t)))

    def t_of_log_snr(self, log_snr: Time) -> Tensor:
        target = self._reachable(log_snr)
        # α / (1 - α²) = e^{λ/2} is a quadratic in α, whose root is -log α = asinh(e^{-λ/2} / 2)
        time = self._t_of_minus_log_alpha(torch.asinh(0.5 * (-0.5 * target).exp()))
        return time.to(checks.result_dtype(log_snr))


@dataclass(frozen=True)
class VE(SDE):
    r"""Variance exploding, the limit of SMLD/NCSN: α = 1, σ = σ_min (σ_max/σ_min)^{t/T}.

    Song et al. 2021, arXiv:2011.13456, eq. 9 and 30. σ(0) = σ_min, not 0: the data are taken to lie before t = 0.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = field(default=1e-5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self.sigma_min, name="sigma_min")
        checks.positive(self.sigma_max, name="sigma_max")
        if not checks.number(self.sigma_max) > checks.number(self.sigma_min):
            raise ValueError(f"sigma_max must exceed sigma_min, got {self.sigma_max} <= {self.sigma_min}.")

    def _log_ratio(self) -> Tensor:
        return torch.as_tensor(self.sigma_max / self.sigma_min, dtype=torch.float64).log()

    def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return self.sigma_min * (t / self.T * self._log_ratio()).exp()

    def f(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return torch.zeros_like(t)

    def g(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return self.sigma_min * (t / self.T * self._log_ratio()).exp() * (2 * self._log_ratio() / self.T).sqrt()

    def t_of_log_snr(self, log_snr: Time) -> Tensor:
        target = self._reachable(log_snr)
        smallest = torch.as_tensor(self.sigma_min, dtype=torch.float64).log()
        return (self.T * (-0.5 * target - smallest) / self._log_ratio()).to(checks.result_dtype(log_snr))

    def discretize(self, n: int) -> Chain:
        """SMLD's chain: σ_i from σ_min to σ_max, n levels in geometric progression (Song et al. 2021, eq. 8)."""
        n, times = chain_times(n, self.T, least=2)
        sigma = self.sigma(torch.linspace(0, self.T, n, dtype=torch.float64))
        before = torch.cat([torch.zeros_like(sigma[:1]), sigma[:-1]])
        return Chain(times=times, ratio=torch.ones_like(sigma), variance=sigma**2 - before**2)


@dataclass(frozen=True)
class EDM(SDE):
    r"""α = 1, σ(t) = t from ``t_min`` 0.002 to ``T`` 80 (Karras et al. 2022, arXiv:2206.00364, table 1)."""

    T: float = field(default=80.0, kw_only=True)
    t_min: float = field(default=0.002, kw_only=True)

    def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return t

    def f(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return torch.zeros_like(t)

    def g(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return root(2 * t)

    def t_of_log_snr(self, log_snr: Time) -> Tensor:
        target = self._reachable(log_snr)
        return (-0.5 * target).exp().to(checks.result_dtype(log_snr))


@dataclass(frozen=True)
class Cosine(SDE):
    r"""α = cos(a(t)) / cos(a(0)), a(t) = (π/2) (t + s) / (1 + s), σ² = 1 - α².

    Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17. α and σ are defined up to t = 1, where α = 0 and f diverges; the
    process starts at T = 0.999 (log-SNR about -13) unless told otherwise. T = 1 is for models whose prediction says x_0
    there: x0, v, velocity, edm.
    """

    s: float = 0.008
    T: float = field(default=0.999, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self.s, name="s")

    @property
    def t_max(self) -> float:
        return 1.0

    def _start(self) -> Tensor:
        return torch.as_tensor(0.5 * math.pi * self.s / (1 + self.s), dtype=torch.float64)

    def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
        # cos a as sin(π/2 - a): exactly 0 at t = 1
        return torch.sin(0.5 * math.pi * (1 - t) / (1 + self.s)) / self._start().cos()

    def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
        # cos² a_0 - cos² a = sin(a - a_0) sin(a + a_0): no cancellation near t = 0
        start, turned = self._start(), 0.5 * math.pi * t / (1 + self.s)
        return root(torch.sin(turned) * torch.sin(turned + 2 * start)) / start.cos()

    def f(self, t: Tensor) -> Tensor:  # type: ignore[override]
        rate = 0.5 * math.pi / (1 + self.s)
        return -rate / torch.tan(rate * (1 - t))

    def g(self, t: Tensor) -> Tensor:  # type: ignore[override]
        # σ² = 1 - α² makes g² = -2 f, as for every variance-preserving schedule
        rate = 0.5 * math.pi / (1 + self.s)
        return (2 * rate / torch.tan(rate * (1 - t))).sqrt()

    def t_of_log_snr(self, log_snr: Time) -> Tensor:
        target = self._reachable(log_snr)
        # cos a = α cos a_0, and sin² a = sin² a_0 + σ² cos² a_0 without cancellation near t = 0
        start = self._start()
        cosine = target.sigmoid().sqrt() * start.cos()
        sine = (start.sin() ** 2 + (-target).sigmoid() * start.cos() ** 2).sqrt()
        time = torch.atan2(sine, cosine) * 2 / math.pi * (1 + self.s) - self.s
        return time.clamp(0.0, 1.0).to(checks.result_dtype(log_snr))


@dataclass(frozen=True)
class RectifiedFlow(SDE):
    r"""The straight path x_t = (1 - t) x_0 + t ε of flow matching: α = 1 - t, σ = t.

    Liu et al. 2023, arXiv:2209.03003; Lipman et al. 2023, arXiv:2210.02747. f = -1/(1 - t) and
    g² = 2t/(1 - t) diverge at t = 1; the process starts at T = 0.999 unless told otherwise. T = 1 is for models whose
    prediction says x_0 there: velocity, x0, v, edm.
    """

    T: float = field(default=0.999, kw_only=True)

    @property
    def t_max(self) -> float:
        return 1.0

    def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return t

    def f(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return -1 / (1 - t)

    def g(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return root(2 * t / (1 - t))

    def t_of_log_snr(self, log_snr: Time) -> Tensor:
        target = self._reachable(log_snr)
        return torch.sigmoid(-0.5 * target).to(checks.result_dtype(log_snr))
