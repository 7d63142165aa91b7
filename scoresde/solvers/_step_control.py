"""What adaptive methods share: errors per sample, in units that are the same under every schedule; limits on steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.sde import NO_SIGNAL, SDE, signal_left, spread
from scoresde.solvers._frames import Levels, levels_at


def rms(x: Tensor) -> Tensor:
    """Root mean square over the event, (B,), float64, without a graph."""
    flat = x.detach().reshape(x.shape[0], -1)
    return flat.square().mean(1).sqrt().to(torch.float64)


@dataclass(frozen=True)
class Tolerance:
    """The error that one step may make, atol + rtol |x|, for x in units of sqrt(α² + σ²/σ_data²).

    In these units a sample keeps its size from noise to data, and at the data they are those of x itself; an error
    made at any noise level shrinks or stays as it is carried to the end. The norm is the root mean square over the
    event of each sample alone.
    """

    rtol: float
    atol: float

    def of(self, x: Tensor) -> Tensor:
        """(B,), for a state in these units."""
        return self.atol + self.rtol * rms(x)

    def above_rounding(self, dtype: torch.dtype) -> Tolerance:
        """rtol no finer than a few roundings of ``dtype``: below them an error cannot be told from noise."""
        return Tolerance(max(self.rtol, 4 * torch.finfo(dtype).eps), self.atol)


@dataclass(frozen=True)
class StepLimits:
    """How a step follows from the last one: h times a factor of the error, within bounds.

    Args:
        shrink: the least factor.
        grow: the largest.
        safety: the factor aims at this fraction of the step that the tolerance would allow.
    """

    shrink: float
    grow: float
    safety: float

    def check(self) -> None:
        """Raises ValueError where these are no bounds."""
        if not (0 < self.shrink < 1 < self.grow and 0 < self.safety < 1):
            raise ValueError(
                "an adaptive method needs 0 < shrink < 1 < grow and 0 < safety < 1; got "
                f"{self.shrink}, {self.grow}, {self.safety}."
            )

    def next(self, h: Tensor, factor: Tensor, accepted: Tensor) -> Tensor:
        """The next step's length, (B,); after a rejection it is shorter for sure."""
        factor = torch.where(accepted, factor.clamp(self.shrink, self.grow), factor.clamp(self.shrink, 0.9))
        return h * factor


def ratios(sde: SDE, grid: Tensor, least: float, most: float) -> tuple[Tensor, bool]:
    """σ/α (n + 1,) at the times of a grid, finite and positive, and whether it ends at σ = 0.

    There the score is not defined: the run then ends at σ/α = ``least``, or half the first value if that is less. A run
    that starts where α = 0 starts with its x at σ/α = ``most``, or twice the last value if that is more. Inner times of
    less or more noise are taken for these.
    """
    alpha, sigma = sde.alpha(grid), sde.sigma(grid)
    signal = signal_left(alpha, sigma)
    ratio = sigma / torch.where(signal, alpha, torch.ones_like(alpha))
    if not bool(signal.all()):
        top = (2 * ratio[-1]).clamp_min(min(most, 0.1 / NO_SIGNAL))
        ratio = torch.minimum(torch.where(signal, ratio, top), top)
    if bool(ratio[-1].detach() > 0):
        return ratio, False
    return torch.maximum(ratio, (0.5 * ratio[0]).clamp_max(least)), True


def schedule(sde: SDE, h: Tensor, ends: tuple[Tensor, Tensor]) -> Levels:
    """The schedule where log(α/σ) = ``h`` (any shape), with h held between its values at the ends of the grid."""
    inside = torch.minimum(torch.maximum(h, ends[0]), ends[1])
    return Levels(*(part.reshape(h.shape) for part in levels_at(sde, inside.flatten())))


def held(t: Tensor, grid: Tensor) -> Tensor:
    """Times inside the grid: one computed back from log(α/σ) may pass an end by a rounding."""
    return torch.minimum(torch.maximum(t, grid[-1]), grid[0])


def mixed(chosen: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Rows of ``a`` where ``chosen`` (B,), of ``b`` elsewhere."""
    return torch.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def scaled(coefficient: Tensor, x: Tensor) -> Tensor:
    """Rows of x times a coefficient (B,)."""
    return spread(coefficient, x) * x


def lost(name: str, rows: Tensor, t: Tensor, evaluations: str) -> FloatingPointError:
    """The score answered NaN or infinity to all samples, at times t of the samples ``rows``."""
    return FloatingPointError(
        f"{name} met NaN or infinite values {evaluations}, first in samples {rows[:5].tolist()} near t = "
        f"{t.max().item():.6g}, and shorter steps did not help: the score is not finite there. Look at the score at "
        "that time, in float32 or wider, or end at a larger t_min."
    )
