"""Weightings of the loss over time: functions (sde, t) -> w(t), the weight of the squared error of the score::

    simple(sde, t), likelihood(sde, t)                      # one number for each time
    min_snr(gamma=5.0), edm(sigma_data=0.5)                 # these make one
    dsm_loss(model, x0, t, eps, weighting="truncated_snr")  # by a name of WEIGHTINGS

One of your own is any such function; :mod:`~scoresde.losses.uncertainty` learns one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.sde import SDE, Time

Weighting = Callable[[SDE, Tensor], Tensor]
"""(sde, t) -> w(t) > 0, shaped like t: the weight of the squared error of the score."""


def simple(sde: SDE, t: Time) -> Tensor:
    """w = σ². The loss is DDPM's L_simple = |ε - ε_θ|² (Ho et al. 2020, arXiv:2006.11239, eq. 14).

    It is also NCSN's σ² |s + ε/σ|² (Song & Ermon 2019, arXiv:1907.05600, eq. 5-6, without the factor ½) and the SNR
    weighting (α²/σ²) |x_0 - x̂_0|² of Salimans & Ho 2022 (arXiv:2202.00512, section 4): three names for one loss,
    because ε_θ = -σ s and x_0 - x̂_0 = (σ/α) (ε_θ - ε).
    """
    return checks.instance(sde, SDE, name="sde").sigma(t) ** 2


ncsn = snr = simple


def likelihood(sde: SDE, t: Time) -> Tensor:
    """w = g²: half the integral over t bounds -log p(x_0) up to a constant (Song et al. 2021, arXiv:2101.09258)."""
    return checks.instance(sde, SDE, name="sde").g(t) ** 2


def x0(sde: SDE, t: Time) -> Tensor:
    """w = σ⁴/α². The loss is |x_0 - x̂_0|²."""
    return checks.instance(sde, SDE, name="sde").sigma(t) ** 4 / sde.alpha(t) ** 2


def truncated_snr(sde: SDE, t: Time) -> Tensor:
    """The loss is max(SNR, 1) |x_0 - x̂_0|² (Salimans & Ho 2022, arXiv:2202.00512, section 4)."""
    return torch.maximum(simple(sde, t), x0(sde, t))


def min_snr(gamma: float = 5.0) -> Weighting:
    """The loss is min(SNR, γ) |x_0 - x̂_0|² (Hang et al. 2023, arXiv:2303.09556, section 3.4)."""
    gamma = checks.positive(gamma, name="gamma")
    return _MinSNR(gamma)


@dataclass(frozen=True)
class _MinSNR:
    """Made by :func:`min_snr`; an object, so that it pickles."""

    gamma: float

    def __repr__(self) -> str:
        return f"min_snr(gamma={self.gamma!r})"

    def __call__(self, sde: SDE, t: Time) -> Tensor:
        return torch.minimum(simple(sde, t), self.gamma * x0(sde, t))


def edm(sigma_data: float = 0.5) -> Weighting:
    """The loss is λ(σ̃) |x_0 - D|², λ = (σ̃² + σ_data²) / (σ̃ σ_data)², σ̃ = σ/α (Karras et al. 2022, table 1).

    With "edm" prediction it is |F - target|² with a target of unit variance at every t.
    """
    sigma_data = checks.positive(sigma_data, name="sigma_data")
    return _EDM(sigma_data)


@dataclass(frozen=True)
class _EDM:
    """Made by :func:`edm`."""

    sigma_data: float

    def __repr__(self) -> str:
        return f"edm(sigma_data={self.sigma_data!r})"

    def __call__(self, sde: SDE, t: Time) -> Tensor:
        return x0(sde, t) / self.sigma_data**2 + simple(sde, t)  # λ = 1/σ_data² + 1/σ̃²


WEIGHTINGS: Mapping[str, Weighting] = {
    "simple": simple,
    "snr": snr,
    "ncsn": ncsn,
    "likelihood": likelihood,
    "x0": x0,
    "truncated_snr": truncated_snr,
    "min_snr": min_snr(),
    "edm": edm(),
}
"""Those without parameters, by name."""
