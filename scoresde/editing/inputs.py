"""What every edit asks of its arguments."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from scoresde import checks, grids
from scoresde.noise import Noise, chosen_noise
from scoresde.sde import SDE, Time
from scoresde.sde.base import root
from scoresde.solvers.defaults import GridRule, chosen_grid


def rms(x: Tensor) -> Tensor:
    """The root of the mean square of each sample, (B,); differentiable at 0, where the gradient is 0."""
    return root(x.reshape(len(x), math.prod(x.shape[1:])).square().mean(1))


def graph(gradients: bool) -> AbstractContextManager[Any]:
    """Where an edit runs: without autograd, or in the caller's mode where gradients are asked for."""
    if not isinstance(gradients, bool):
        raise TypeError(f"gradients must be True or False, got {gradients!r}.")
    return nullcontext() if gradients else torch.no_grad()


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
    """The grid: given, or by its rule from ``t`` (default T) to t_min; without a graph where none is kept.

    Raises:
        TypeError: a grid's name. ValueError: both a tensor of times and t.
    """
    if isinstance(grid, Tensor) and t is not None:
        raise ValueError("a grid of times starts where it starts: give grid or t, not both.")
    start = None if t is None else edit_time(sde, t)
    made = chosen_grid(sde, default if grid is None else grid, steps, start=start)
    return made if torch.is_grad_enabled() else made.detach()


def source_of(seed: int | None, noise: Noise | torch.Generator | None) -> Noise:
    """The noise of an edit. A seed means streams of its own, for the picture may have been made from the same seed.

    Raises:
        ValueError: both.
    """
    return chosen_noise(seed, noise, "edit")


def as_mask(mask: Tensor, x: Tensor) -> Tensor:
    """A mask that broadcasts to x, in x's dtype and device: 1 where the edit happens, 0 where x is kept.

    Raises:
        TypeError: neither boolean nor floating. ValueError: values outside [0, 1], a shape that does not fit, or 0
            everywhere.
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
    if x.numel() and not bool(values.any()):
        raise ValueError(
            f"mask is {'False' if mask.dtype == torch.bool else '0'} everywhere, so there is nothing to edit; it is "
            "True (or 1) where the edit happens. If it says what to keep, turn it round: ~mask, or 1 - mask."
        )
    return mask.to(device=x.device, dtype=x.dtype)


def blend(mask: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """mask · inside + (1 - mask) · outside, exactly one of the two where the mask is 1 or 0."""
    mixed = outside + mask * (inside - outside)
    return torch.where(mask == 0, outside, torch.where(mask == 1, inside, mixed))
