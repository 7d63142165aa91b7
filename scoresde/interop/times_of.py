"""Between the times of an SDE and what a network of another library is told of them, both ways::

    found = schedule_of(scheduler)
    timestep_of(found, grid)                        # (n,) timesteps of times
    time_of_timestep(found, torch.tensor([999, 0]))          # times of timesteps
    whole_timesteps(found, grid)                              # the grid moved to whole timesteps

A network is told only of noise levels that it was trained with: what is beyond is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.interop.diffusers_schedules import Schedule
from scoresde.sde import NO_SIGNAL, Time

_HALVINGS = 64
_ROUNDING = 1e-6  # of timesteps in float32, relative
_BEYOND = 1e-3  # by how much a published list of noise levels may be above the largest, for it was rounded


def timestep_of(schedule: Schedule, times: Tensor) -> Tensor:
    """What the network is told at these times (n,), float64."""
    alpha, sigma = schedule.sde.alpha(times), schedule.sde.sigma(times)
    return schedule.timesteps(sigma.log() - torch.maximum(alpha, NO_SIGNAL * sigma).log())


def time_of_timestep(schedule: Schedule, timesteps: Time, *, name: str = "timesteps") -> Tensor:
    """The times, float64 on the CPU, of timesteps () or (n,).

    Raises:
        TypeError, ValueError: no numbers, or beyond those that the network was trained for.
    """
    wanted = checks.real(timesteps, name=name).detach().cpu()
    sde = schedule.sde
    ends = torch.tensor([sde.t_min, sde.T], dtype=torch.float64)
    first, last = timestep_of(schedule, ends).tolist()
    slack = _ROUNDING * max(1.0, abs(first), abs(last))
    outside = ~((wanted >= min(first, last) - slack) & (wanted <= max(first, last) + slack))
    if bool(outside.any()):
        raise ValueError(
            f"{name} must be what the network was trained for, {min(first, last):g} to {max(first, last):g}; got "
            f"{wanted[outside].flatten()[0].item():g} in {checks.got(timesteps)}."
        )
    chain = getattr(sde, "chain", None)
    if chain is not None and bool((wanted == wanted.round()).all()):
        return chain.times[wanted.long().clamp(0, chain.n - 1)]
    sign = 1.0 if last > first else -1.0
    low, high = (torch.full_like(wanted, end) for end in ends.tolist())
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        below = sign * timestep_of(schedule, middle.flatten()).reshape(middle.shape) < sign * wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    high = torch.where(sign * wanted <= sign * first, ends[0], high)
    return torch.where(sign * wanted >= sign * last, ends[1], high)


def whole_timesteps(schedule: Schedule, grid: Tensor) -> Tensor:
    """The times of a grid (n,) moved to the nearest whole timesteps that still decrease.

    Raises:
        ValueError: more times than there are whole timesteps.
    """
    ends = timestep_of(schedule, torch.tensor([schedule.sde.t_min, schedule.sde.T], dtype=torch.float64))
    sign = 1.0 if bool(ends[1] > ends[0]) else -1.0
    low, high = sorted((sign * ends).tolist())
    least, most = round(low) if abs(low - round(low)) < 1e-6 else int(low // 1) + 1, int((high + 1e-6) // 1)
    n = len(grid)
    if most - least + 1 < n:
        raise ValueError(
            f"integer_timesteps leaves {most - least + 1} whole timesteps, too few for a grid of {n} times: take fewer "
            "steps, or leave integer_timesteps out."
        )
    found = [round(v) for v in (sign * timestep_of(schedule, grid)).tolist()]
    for i in reversed(range(n)):  # from the data up: each at least one above the next, with room for those above
        floor = least + (n - 1 - i) if i == n - 1 else found[i + 1] + 1
        found[i] = min(max(found[i], floor, least), most - i)
    for i in range(1, n):  # a crowd at the upper end makes room downwards
        found[i] = min(found[i], found[i - 1] - 1)
    return time_of_timestep(schedule, sign * torch.tensor(found, dtype=torch.float64))


def grid_of_timesteps(schedule: Schedule, timesteps: Any, *, denoise: bool) -> Tensor:
    """Times by a list of timesteps; two at least without a denoising step.

    Raises:
        TypeError, ValueError: no list of decreasing numbers, or beyond those that the network was trained for.
    """
    wanted = numbers_listed(timesteps, "timesteps", 1 if denoise else 2)
    return _decreasing(time_of_timestep(schedule, wanted), wanted, "timesteps")


def grid_of_sigmas(schedule: Schedule, sigmas: Any, *, denoise: bool) -> Tensor:
    """Times by a list of σ/α. A last 0 is the denoising step, or without one the end of the grid at t = 0.

    Raises:
        TypeError, ValueError: no list of decreasing numbers, or beyond the levels that the network was trained for.
    """
    wanted, sde = numbers_listed(sigmas, "sigmas", 1 if denoise else 2), schedule.sde
    clean = bool(wanted[-1] == 0)
    levels = wanted[:-1] if clean else wanted
    if not len(levels) or not bool((levels > 0).all()):
        raise ValueError(f"sigmas must be positive, but for a last 0; got {checks.got(sigmas)}.")
    ends = torch.tensor([sde.t_min, sde.T], dtype=torch.float64)
    low, top = (sde.sigma(ends) / sde.alpha(ends).clamp_min(1e-300)).tolist()
    if bool((levels > top * (1 + _BEYOND)).any()) or bool((levels < low * (1 - _BEYOND)).any()):
        raise ValueError(
            f"sigmas must be at least {low:g} and at most {top:g}, the noise levels trained for; got "
            f"{float(levels.min()):g} to {float(levels.max()):g}."
        )
    inside = levels.clamp(max(low, top * 1e-300), min(top, 1e300))
    times = sde.t_of_log_snr(-2 * inside.log())
    times = torch.where(levels >= top, ends[1], torch.where(levels <= low, ends[0], times))
    if clean and not denoise:
        times = torch.cat([times, times.new_zeros(1)])
    return _decreasing(times, wanted, "sigmas")


def numbers_listed(values: Any, name: str, least: int = 1) -> Tensor:
    """A list of numbers, float64, of so many at least."""
    numbers = values.tolist() if isinstance(values, Tensor) or hasattr(values, "tolist") else values
    found = torch.tensor(checks.numbers(numbers, name=name), dtype=torch.float64)
    if len(found) < least:
        raise ValueError(f"{name} must hold at least {least}; got {checks.got(values)}.")
    return found


def _decreasing(times: Tensor, given: Tensor, name: str) -> Tensor:
    if bool((times.diff() >= 0).any()):
        raise ValueError(f"{name} must lead from noise to data, without repeats; got {given.tolist()[:6]}.")
    return times
