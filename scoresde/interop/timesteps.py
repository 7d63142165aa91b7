"""From c = log(σ/α), by which a model here tells its network the noise level, to the timestep of another library::

    timestep = ChainTimesteps(levels)               # a whole number at each level of a chain, fractions between them
    timestep(c)                                     # (B,)

One small frozen class for each way of counting: the index of a chain's level, the time of an SDE or of the straight
path times a number, log σ/4, 2/π atan σ, σ itself. Each is monotone in c, exact where the level is one of the grid,
and differentiable between.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scoresde.checks.lasting import kept_at
from scoresde.sde import NO_SIGNAL, SDE, Chain

TOP = -math.log(NO_SIGNAL)
"""c where α is 0 to rounding: models here hold it there."""

Rounding = Literal["fractional", "rounded", "truncated"]


class Timesteps(ABC):
    """A function from c (B,) to timesteps (B,), floating."""

    @abstractmethod
    def __call__(self, c: Tensor) -> Tensor:
        """The timesteps, in the dtype of c."""


@dataclass(frozen=True, eq=False)
class ChainTimesteps(Timesteps):
    """The timesteps of a chain's levels; between two of them linear in c, in σ/α, or in the time of ChainSDE.

    c comes in the precision of the network: what is a level to that precision is its whole number exactly. Outside the
    levels it is the nearest one's, which is what the other library does.

    Args:
        levels: (n,) float64, c of each level, increasing.
        linear_in: "log" for c, "sigma" for σ/α, "time" for the time of :class:`~scoresde.ChainSDE`, which is linear in
            (σ/α)² between levels with signal.
        counts: (n,) float64, the timestep of each level, increasing; default 0 ... n - 1.
    """

    levels: Tensor
    linear_in: Literal["log", "sigma", "time"] = "log"
    counts: Tensor | None = None

    @classmethod
    def of(
        cls, chain: Chain, linear_in: Literal["log", "sigma", "time"] = "log", counts: Tensor | None = None
    ) -> ChainTimesteps:
        """Those of a chain's own levels."""
        return cls((chain.sigma.log() - chain.alpha.clamp_min(1e-300).log()).clamp_max(TOP), linear_in, counts)

    def __call__(self, c: Tensor) -> Tensor:
        # MPS has no float64
        exact = torch.float32 if c.device.type == "mps" else torch.float64
        at, levels = c.to(exact), kept_at(self.levels, c.device, exact)
        if len(levels) == 1:
            return 0.0 * c
        i = torch.searchsorted(levels, at.detach().contiguous()).clamp(1, len(levels) - 1)
        low, high = levels[i - 1], levels[i]
        part = (_SHARE[self.linear_in](at - low) / _SHARE[self.linear_in](high - low)).clamp(0.0, 1.0)
        # rounding of c, and of levels that were computed in float32 on the way here, as other libraries' are
        near = 8 * max(torch.finfo(c.dtype).eps, 1e-15) * at.detach().abs().clamp_min(1.0)
        part = torch.where((at - low).abs() <= near, part - part.detach(), part)  # the slope stays
        part = torch.where((at - high).abs() <= near, part + (1 - part).detach(), part)
        if self.counts is None:
            return (i - 1 + part).to(c.dtype)
        counts = kept_at(self.counts, c.device, exact)
        return torch.lerp(counts[i - 1], counts[i], part).to(c.dtype)


_SHARE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "log": lambda c: c,
    "sigma": torch.expm1,
    "time": lambda c: torch.expm1(2 * c),
}


@dataclass(frozen=True)
class TimeTimesteps(Timesteps):
    """The time of an SDE, times a number."""

    sde: SDE
    scale: float

    def __call__(self, c: Tensor) -> Tensor:
        return self.scale * self.sde.t_of_log_snr(-2 * c)


@dataclass(frozen=True)
class StraightTimesteps(Timesteps):
    """Time t = σ/(α + σ) of the straight path, from 0 for data to 1 for noise, times a number; or of 1 - t."""

    scale: float
    data_at_end: bool = False

    def __call__(self, c: Tensor) -> Tensor:
        signed = -c if self.data_at_end else c  # the nearer end from its own side: times near 0 keep their digits
        noise = c.detach() >= TOP * (1 - 1e-6)  # no signal: t is 1, not 1 - 1e-8
        return self.scale * torch.where(noise, float(not self.data_at_end), signed.sigmoid())


@dataclass(frozen=True)
class QuarterLogTimesteps(Timesteps):
    """log(σ)/4, EDM's c_noise (Karras et al. 2022, arXiv:2206.00364, table 1)."""

    def __call__(self, c: Tensor) -> Tensor:
        return 0.25 * c


@dataclass(frozen=True)
class AngleTimesteps(Timesteps):
    """2/π atan σ."""

    def __call__(self, c: Tensor) -> Tensor:
        return c.exp().atan() * (2 / math.pi)


@dataclass(frozen=True)
class SigmaTimesteps(Timesteps):
    """σ itself, as NCSN++ is told."""

    def __call__(self, c: Tensor) -> Tensor:
        return c.exp()


def brought_to(rounding: Rounding, timestep: Tensor) -> Tensor:
    """Timesteps as they are, or as whole numbers, int64, for a network that looks them up in a table."""
    if rounding == "fractional":
        return timestep
    return (timestep.round() if rounding == "rounded" else timestep.floor()).long()
