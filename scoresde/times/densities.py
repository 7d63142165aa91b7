"""Densities of training times in closed form, each a frozen dataclass of numbers::

    t, weight = LogNormalSigma(mean=-1.2, std=1.2).sample(sde, torch.rand(batch))
    loss = (weight * dsm_loss(model, x0, t, eps)).mean()

One of your own has a method ``sample``: see :class:`TimeDensity`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, Self, cast

import torch
from torch import Tensor

from scoresde import checks
from scoresde.sde import SDE, Chain, has_signal


class Times(NamedTuple):
    """Times (B,), float64, and the factor (B,) by which each sample's loss is multiplied."""

    t: Tensor
    weight: Tensor


class TimeDensity(Protocol):
    """How training times are drawn."""

    def sample(self, sde: SDE, u: Tensor) -> Times:
        """Times from uniforms u (B,) in [0, 1), by inverting the distribution function."""
        ...


class Adapting(TimeDensity, Protocol):
    """A density that learns from the losses of training: a value, of which each refresh makes a new one."""

    @property
    def adapts(self) -> bool:
        """Whether it is to be refreshed."""
        ...

    @property
    def every(self) -> int | None:
        """Steps between two refreshes."""
        ...

    def seen(self, u: Tensor, terms: Tensor) -> Tensor:
        """What it has to know of a batch with these uniforms and weighted losses (B,); added up over steps."""
        ...

    def refreshed(self, sums: Tensor) -> Adapting:
        """The density after these sums."""
        ...

    def learned(self) -> tuple[tuple[float, ...], ...]:
        """What it knows, for a file."""
        ...

    def with_learned(self, learned: Sequence[tuple[float, ...]]) -> Adapting:
        """The density with what a file knows."""
        ...


def check_density(density: object) -> None:
    """Raises TypeError for anything that is no density."""
    if isinstance(density, type) or not callable(getattr(density, "sample", None)):
        raise TypeError(f"density must be one of times, such as UniformTime(), got {checks.got(density)}.")


def checked_uniforms(u: Tensor) -> Tensor:
    """Uniforms (B,) in [0, 1], if they are."""
    if not isinstance(u, Tensor):
        raise TypeError(f"u must be a tensor of uniforms (B,), got {checks.got(u)}; draw it with torch.rand.")
    if u.ndim != 1:
        raise ValueError(f"u must be uniforms (B,), got shape {tuple(u.shape)}.")
    u = checks.real(u, name="u")
    if u.numel() and checks.readable(u) and not bool(((u >= 0) & (u <= 1)).all()):
        low, high = (end.item() for end in u.aminmax())
        raise ValueError(f"u must lie in [0, 1], got values in [{low:g}, {high:g}]: draw it with torch.rand.")
    return u


def _ends(sde: SDE) -> tuple[float, float]:
    """t_min and T; refuses an SDE with σ(t_min) = 0, since no score lives there."""
    low = checks.instance(sde, SDE, name="sde").t_min
    if not sde.sigma(low) > 0:
        raise ValueError(f"{type(sde).__name__} has σ(t_min = {low:g}) = 0; train on an SDE with t_min > 0.")
    return low, sde.T


@dataclass(frozen=True)
class UniformTime:
    """t ~ U[t_min, T]."""

    def sample(self, sde: SDE, u: Tensor) -> Times:
        """Times from uniforms u (B,); the weight is 1."""
        u, (low, high) = checked_uniforms(u), _ends(sde)
        return Times(low + (high - low) * u, torch.ones_like(u))


def _check_normal(density: LogNormalSigma | LogitNormalTime) -> None:
    """A finite mean, and a positive standard deviation."""
    checks.fields(density)
    checks.positive(density.std, name="std")
    if not math.isfinite(density.mean):
        raise ValueError(f"mean must be finite, got {density.mean}.")


@dataclass(frozen=True)
class LogNormalSigma:
    """log(σ/α) ~ N(mean, std²), truncated to [t_min, T] (Karras et al. 2022, arXiv:2206.00364, table 1: -1.2, 1.2)."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        _check_normal(self)

    def sample(self, sde: SDE, u: Tensor) -> Times:
        """Times from uniforms u (B,); the weight is 1."""
        u, (first, last) = checked_uniforms(u), _ends(sde)
        ends = -0.5 * sde.log_snr(torch.tensor((first, last), dtype=torch.float64, device=u.device))
        low, high = torch.special.ndtr((ends - self.mean) / self.std)
        if checks.readable(high) and not bool(high - low > 1e-9):  # NaN as well
            raise ValueError(
                f"log(σ/α) ~ N({self.mean:g}, {self.std:g}²) has no mass between {ends[0]:g} and {ends[1]:g}, the "
                f"values {type(sde).__name__} takes from t_min to T; choose a mean inside."
            )
        z = torch.special.ndtri(low + (high - low) * u)
        ratio = (self.mean + self.std * z).clamp(ends[0], ends[1])
        return Times(sde.t_of_log_snr(-2 * ratio), torch.ones_like(u))


@dataclass(frozen=True)
class LogitNormalTime:
    """(t - t_min)/(T - t_min) = sigmoid(z), z ~ N(mean, std²) (Esser et al. 2024, arXiv:2403.03206, eq. 19)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _check_normal(self)

    def sample(self, sde: SDE, u: Tensor) -> Times:
        """Times from uniforms u (B,); the weight is 1."""
        u, (low, high) = checked_uniforms(u), _ends(sde)
        part = torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))
        return Times(low + (high - low) * part, torch.ones_like(u))


@dataclass(frozen=True)
class LogSNRTime:
    r"""λ = log-SNR uniform between its ends; with ``unbiased`` the importance sampling of the likelihood weighting.

    The density of t is p(t) = (g²/σ²) / (λ(t_min) - λ(T)), because dλ/dt = -g²/σ²: exactly the proposal that Song et
    al. 2021 (arXiv:2101.09258, section 5.1) take for the weighting g², here in closed form for every SDE. The weight
    1 / ((T - t_min) p(t)) makes the mean loss that of uniform times; without ``unbiased`` it is 1.
    """

    unbiased: bool = True

    def __post_init__(self) -> None:
        checks.fields(self)

    def sample(self, sde: SDE, u: Tensor) -> Times:
        """Times from uniforms u (B,), with their weights."""
        u, (low, high) = checked_uniforms(u), _ends(sde)
        if not has_signal(sde.alpha(high), sde.sigma(high)):
            raise ValueError(
                f"{type(sde).__name__} has α(T = {high:g}) = 0, where the log-SNR is -inf: no uniform density reaches "
                "it. End at a smaller T, or take another density, such as UniformTime()."
            )
        first, last = sde.log_snr(low).item(), sde.log_snr(high).item()
        t = sde.t_of_log_snr(first + (last - first) * u)
        if not self.unbiased:
            return Times(t, torch.ones_like(u))
        rate = (sde.g(t) / sde.sigma(t)) ** 2
        return Times(t, (first - last) / ((high - low) * rate))


@dataclass(frozen=True)
class LevelTime:
    """The noise levels σ_i/α_i of a discrete chain, each equally likely: DDPM's i ∈ {1..n}, NCSN's sum over σ_i.

    A level's time is where the SDE has the level's log-SNR, so that the chain's levels are met under any SDE: for
    ``ChainSDE(chain)`` the chain's own times, for ``VP`` and ``VP.discretize(n)`` times within O(1/n) of i T / n. A
    level beyond the ends of [0, T], such as the last of DDPM's chain under VP by O(1/n), becomes that end.
    """

    chain: Chain

    def __post_init__(self) -> None:
        checks.fields(self)

    def sample(self, sde: SDE, u: Tensor) -> Times:
        """Times from uniforms u (B,); the weight is 1."""
        u = checked_uniforms(u)
        checks.instance(sde, SDE, name="sde")
        level = (u * self.chain.n).long().clamp_max(self.chain.n - 1)
        levels = 2 * (self.chain.alpha.log() - self.chain.sigma.log())
        ends = sde.log_snr(torch.tensor([sde.T, 0.0], dtype=torch.float64)).tolist()
        times = sde.t_of_log_snr(levels.clamp(*ends).to(u.device)[level])
        return Times(times.clamp(0.0, sde.T), torch.ones_like(u))  # a closed form may end a rounding past T


@dataclass(frozen=True)
class Stratified:
    """Another density fed one uniform in each of B equal cells: a batch covers all times, at lower variance.

    The low-discrepancy sampler of Kingma et al. 2021 (arXiv:2107.00630, appendix I.1) with independent offsets.
    Sample i of the batch has a time from the i-th cell, so batches must be in random order, as they are in training.
    """

    density: TimeDensity = field(default_factory=UniformTime)

    def __post_init__(self) -> None:
        check_density(self.density)

    def sample(self, sde: SDE, u: Tensor) -> Times:
        """Times from uniforms u (B,): the density's own at (i + u_i) / B."""
        return self.density.sample(sde, self._spread(u))

    @property
    def adapts(self) -> bool:
        """Whether the density is one that training refreshes, and this one with it."""
        return bool(getattr(self.density, "adapts", False))

    @property
    def every(self) -> int | None:
        """Steps between its refreshes; None where there are none."""
        return getattr(self.density, "every", None)

    def seen(self, u: Tensor, terms: Tensor) -> Tensor:
        """What the density makes of a batch: see :meth:`AdaptiveTimes.seen`."""
        return cast(Adapting, self.density).seen(self._spread(u), terms)

    def refreshed(self, sums: Tensor) -> Self:
        """The same with the density refreshed: see :meth:`AdaptiveTimes.refreshed`."""
        return replace(self, density=cast(Adapting, self.density).refreshed(sums))

    def learned(self) -> tuple[tuple[float, ...], ...]:
        """What the density knows: see :meth:`AdaptiveTimes.learned`."""
        return cast(Adapting, self.density).learned()

    def with_learned(self, learned: Sequence[tuple[float, ...]]) -> Self:
        """The same with a density that knows this: see :meth:`AdaptiveTimes.with_learned`."""
        return replace(self, density=cast(Adapting, self.density).with_learned(learned))

    def _spread(self, u: Tensor) -> Tensor:
        u = checked_uniforms(u)
        return (torch.arange(len(u), device=u.device) + u) / max(len(u), 1)
