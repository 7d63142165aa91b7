"""What every edit asks of its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from scoresde import checks, grids
from scoresde.noise import Noise, PerSampleNoise, as_noise
from scoresde.sde import SDE, Time
from scoresde.sde.base import root
from scoresde.solvers import Solver, VelocityMultistep
from scoresde.solvers.fitted import Fitted

GridRule = Callable[..., Tensor]
"""(sde, steps, t_start=...) -> times, as those of :mod:`scoresde.grids`."""


def rms(x: Tensor) -> Tensor:
    """The root of the mean square of each sample, (B,); differentiable at 0, where the gradient is 0."""
    return root(x.reshape(len(x), math.prod(x.shape[1:])).square().mean(1))


def check_process(sde: SDE, **scores: object) -> None:
    """Raises TypeError unless the SDE is one and the scores can be called."""
    if not isinstance(sde, SDE):
        raise TypeError(f"sde must be an SDE, got {type(sde).__name__}; the order is (sde, score, x0).")
    for name, score in scores.items():
        if not callable(score):
            raise TypeError(f"{name} must be a function (x, t) -> score, got {type(score).__name__}.")


def edit_time(sde: SDE, t: Time, *, name: str = "t") -> Tensor:
    """A single time above t_min, float64 ().

    Raises:
        ValueError: one per sample, out of range, or at t_min, from where there is nothing to regenerate.
    """
    time = checks.time(t, sde.t_max, name=name, what=type(sde).__name__)
    if time.ndim:
        raise ValueError(f"{name} is one time for the batch, got shape {tuple(time.shape)}; edit the samples apart.")
    if not bool(time > sde.t_min):
        raise ValueError(
            f"{name} must lie above t_min = {sde.t_min:g}, where the data are; got {time:g}, from where there is "
            f"nothing left to change. Up to T = {sde.T:g} more and more is made anew."
        )
    return time


def times(
    sde: SDE, grid: Tensor | GridRule | None, steps: int, t: Time | None, *, default: GridRule = grids.karras
) -> Tensor:
    """The grid: given, or by its rule from ``t`` (default T) to t_min.

    Raises:
        TypeError: a grid's name. ValueError: both a tensor of times and t.
    """
    if isinstance(grid, Tensor):
        if t is not None:
            raise ValueError("a grid of times starts where it starts: give grid or t, not both.")
        return checks.grid(grid, sde.t_max)
    if grid is not None and not callable(grid):
        raise TypeError(f"grid must be times or a function of scoresde.grids such as grids.karras, got {grid!r}.")
    rule = default if grid is None else grid
    made = rule(sde, steps) if t is None else rule(sde, steps, t_start=edit_time(sde, t))
    return checks.grid(made, sde.t_max)


def rule_of(solver: Solver) -> GridRule:
    """The grid that goes with a solver."""
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a Solver such as Heun(), got {solver!r}.")
    if isinstance(solver, VelocityMultistep):
        return partial(grids.balanced, sigma_data=solver.sigma_data)
    if isinstance(solver, Fitted):
        raise ValueError(
            "a fitted sampler knows only its own times, which start at T; edits start in between. Take "
            "VelocityMultistep() or another solver."
        )
    return grids.karras


def source_of(seed: int | None, noise: Noise | torch.Generator | None) -> Noise:
    """The noise of an edit. A seed means streams of its own, for the picture may have been made from the same seed.

    Raises:
        ValueError: both.
    """
    if seed is not None and noise is not None:
        raise ValueError("give seed or noise, not both.")
    if noise is None:
        return as_noise(PerSampleNoise(0 if seed is None else seed), "edit")
    return as_noise(noise)


def as_mask(mask: Tensor, x: Tensor) -> Tensor:
    """A mask that broadcasts to x, in x's dtype and device: 1 where the edit happens, 0 where x is kept.

    Raises:
        TypeError: neither boolean nor floating. ValueError: values outside [0, 1], or a shape that does not fit.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a torch.Tensor, got {type(mask).__name__}.")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"mask must be boolean (True: edit here), or floating in [0, 1]; got {mask.dtype}. Call mask.bool()."
        )
    try:
        fits = torch.broadcast_shapes(mask.shape, x.shape) == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"mask must broadcast to x0, {tuple(x.shape)}, e.g. the same for all samples, (1, "
            f"{', '.join(map(str, x.shape[1:]))}); got {tuple(mask.shape)}."
        )
    values = mask.detach().float()
    if mask.numel() and not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(
            f"a floating mask must lie in [0, 1], 1 where the edit happens; got values in [{values.min():g}, "
            f"{values.max():g}]. For 8-bit masks divide by 255."
        )
    return mask.to(device=x.device, dtype=x.dtype)


def blend(mask: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """mask · inside + (1 - mask) · outside, exactly one of the two where the mask is 1 or 0."""
    mixed = outside + mask * (inside - outside)
    return torch.where(mask == 0, outside, torch.where(mask == 1, inside, mixed))
