"""What every edit asks of its arguments, and how it runs: checks, and defaults that the edits share.

An edit of :mod:`scoresde.editing` begins by calling the functions here, each of which raises or answers what is used
from then on::

    check_scores(source=source, target=target)              # Scores, of one schedule
    times = edit_grid(score, grid, steps, t, solver, event) # from t, or T, down to t_min
    x, edited = widened(x0), as_mask(mask, x0)                # float32 at least; 1 where the edit happens
    with graph(gradients):                                  # autograd only where it was asked for
        z = source_of(seed, noise).normal(x)

:func:`blend` puts an edited and a known state together by a mask.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.lasting import without_graph
from scoresde.models.score import Score, check_score, same_sde
from scoresde.noise import Noise, chosen_noise
from scoresde.rules import Rule
from scoresde.sde import SDE, Time
from scoresde.sde.base import root
from scoresde.solvers.base import Solver
from scoresde.solvers.defaults import chosen_grid


def root_mean_square(x: Tensor) -> Tensor:
    """The root of the mean square of each sample, (B,); differentiable at 0, where the gradient is 0."""
    return root(x.reshape(len(x), math.prod(x.shape[1:])).square().mean(1))


def graph(gradients: bool) -> AbstractContextManager[Any]:
    """Where an edit runs: without autograd, or in the caller's mode where gradients are asked for.

    Without autograd it runs outside of any inference mode, too, so that latents, masks and maps can be used for
    gradients later.
    """
    return nullcontext() if checks.flag(gradients, name="gradients") else without_graph()


def widened(x: Tensor) -> Tensor:
    """x in float32 at least, in which every edit carries its states."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_scores(**scores: Score) -> None:
    """Raises TypeError unless all are Scores, ValueError unless they have one schedule."""
    same_sde({name: check_score(score, name=name).sde for name, score in scores.items()})


def edit_time(sde: SDE, t: Time, *, name: str = "t") -> Tensor:
    """A single time above t_min, float64 ().

    Raises:
        ValueError: one per sample, out of range, or at t_min, from where there is nothing to regenerate.
    """
    time = checks.time(t, sde.t_max, name=name, what=type(sde).__name__)
    if time.ndim:
        raise ValueError(
            f"{name} must be one time for the batch, got shape {tuple(time.shape)}; edit the samples apart."
        )
    if not bool(time > sde.t_min):
        raise ValueError(
            f"{name} must lie above t_min = {sde.t_min:g}, where the data are; got {time:g}, from where there is "
            f"nothing left to change. Up to T = {sde.T:g} more and more is made anew."
        )
    return time


def edit_grid(
    score: Score, grid: Tensor | Rule | None, steps: int, t: Time | None, solver: Solver, event: tuple[int, ...]
) -> Tensor:
    """The grid: given, or by a rule, default the solver's, from ``t`` (default T); without a graph where none is kept.

    Raises:
        TypeError: neither times nor a rule. ValueError: both a tensor of times and t.
    """
    if t is not None and grid is not None and not callable(grid):
        chosen_grid(score, grid, steps, solver, event)  # raises where it is none
        raise ValueError("a grid of times starts where it starts: give grid or t, not both.")
    start = None if t is None else edit_time(score.sde, t)
    times = chosen_grid(score, grid, steps, solver, event, start=start)
    return times if torch.is_grad_enabled() else times.detach()


def check_rule(grid: object, what: str) -> None:
    """Raises TypeError for a grid of times, of an edit that starts at a time of its own."""
    if isinstance(grid, Tensor):
        raise TypeError(
            f"{what} starts its grid at t: give a function of scoresde.grids, e.g. grids.karras, not times; got grid = "
            f"{checks.got(grid)}."
        )
    if grid is not None and (isinstance(grid, type) or not callable(grid)):
        raise TypeError(f"grid must be a function of scoresde.grids, e.g. grids.karras; got {checks.got(grid)}.")


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
        raise TypeError(f"mask must be a torch.Tensor, got {checks.got(mask)}.")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"mask must be boolean (True: edit here), or floating in [0, 1]; got {mask.dtype}. Call mask.bool()."
        )
    if mask.is_meta or mask.layout != torch.strided or mask.is_nested:
        raise TypeError(f"mask must be a dense tensor that holds values, got {checks.got(mask)}, {mask.layout}.")
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
            f"a floating mask must lie in [0, 1], 1 where the edit happens; it holds values in [{values.min():g}, "
            f"{values.max():g}]. For 8-bit masks divide by 255."
        )
    if x.numel() and not bool(values.any()):
        raise ValueError(
            f"mask must be True (or 1) where the edit happens, but {checks.got(mask)} is "
            f"{'False' if mask.dtype == torch.bool else '0'} everywhere, so there is nothing to edit. If it says "
            "what to keep, turn it round: ~mask, or 1 - mask."
        )
    return mask.to(device=x.device, dtype=x.dtype)


def blend(mask: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """mask · inside + (1 - mask) · outside, exactly one of the two where the mask is 1 or 0."""
    mixed = outside + mask * (inside - outside)
    return torch.where(mask == 0, outside, torch.where(mask == 1, inside, mixed))
