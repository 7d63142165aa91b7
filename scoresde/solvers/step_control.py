"""What adaptive methods share: errors per sample, in units that are the same under every schedule; limits on steps."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.sde import SDE, spread
from scoresde.solvers.frames import Levels, levels_at


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
class Limits:
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
                f"{self.shrink:g}, {self.grow:g}, {self.safety:g}."
            )

    def next(self, h: Tensor, factor: Tensor, accepted: Tensor) -> Tensor:
        """The next step's length, (B,); after a rejection it is shorter for sure."""
        factor = torch.where(accepted, factor.clamp(self.shrink, self.grow), factor.clamp(self.shrink, 0.9))
        return h * factor


def noisy_end(sde: SDE, grid: Tensor, name: str) -> None:
    """Adaptive methods compare the score along the way, so noise and signal must be left at both ends."""
    if not bool(sde.sigma(grid[-1]).detach() > 0):
        raise ValueError(
            f"{name} ends where noise is left, but σ = 0 at the grid's last time {grid[-1].item():g}: end at "
            "t_min > 0, and ask solve(..., denoise=True) for the last step to the data."
        )
    if not bool(sde.alpha(grid[0]).detach() > 0):
        raise ValueError(f"α = 0 at the grid's first time {grid[0].item():g}; start at T = {sde.T:g} at the latest.")


def options(rtol: float, atol: float, max_steps: int, first_step: float | None) -> None:
    """Raises TypeError, ValueError where these are not what adaptive methods take."""
    checks.positive(rtol, name="rtol")
    checks.positive(atol, name="atol")
    checks.count(max_steps, name="max_steps")
    if first_step is not None:
        checks.positive(first_step, name="first_step")


def schedule(sde: SDE, h: Tensor, ends: tuple[Tensor, Tensor]) -> Levels:
    """The schedule where log(α/σ) = ``h`` (any shape), with h held between its values at the ends of the grid."""
    inside = torch.minimum(torch.maximum(h, ends[0]), ends[1])
    return Levels(*(part.reshape(h.shape) for part in levels_at(sde, inside.flatten())))


def mixed(chosen: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Rows of ``a`` where ``chosen`` (B,), of ``b`` elsewhere."""
    return torch.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def scaled(coefficient: Tensor, x: Tensor) -> Tensor:
    """Rows of x times a coefficient (B,)."""
    return spread(coefficient, x) * x


def lost(name: str, rows: Tensor, t: Tensor, evaluations: str) -> FloatingPointError:
    """The score answered NaN or infinity, at times t of the samples ``rows``."""
    return FloatingPointError(
        f"{name} met NaN or infinite values {evaluations}, first in samples {rows[:5].tolist()} near t = "
        f"{t.max().item():.6g}, and shorter steps did not help: the score is not finite there. Look at the score at "
        "that time, in float32 or wider, or end at a larger t_min."
    )


def gave_up(name: str, left: int, batch: int, worst: float, max_steps: int, stuck: int) -> None:
    """The one warning of a run that did not reach the end."""
    why = f"max_steps = {max_steps} was reached"
    if stuck:
        why = (
            f"the step size of {stuck} of them shrank to nothing, as where the score jumps or its rounding exceeds the "
            "tolerance"
        )
    warnings.warn(
        f"{name}: {left} of {batch} samples did not reach the last time (the furthest behind is at t = {worst:.6g}): "
        f"{why}. The solution is partial: see its `complete` and `reached`. Loosen rtol and atol, or raise max_steps.",
        RuntimeWarning,
        stacklevel=6,
    )
