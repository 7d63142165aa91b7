"""What the particle methods ask before they begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scoresde import checks
from scoresde.noise import Noise, chosen_noise
from scoresde.particles.population import Population, share
from scoresde.particles.resample import Resampling, resampling_of
from scoresde.score import parameters_of
from scoresde.sde import SDE
from scoresde.solvers.defaults import chosen_grid

Named = Literal["systematic", "stratified", "multinomial", "residual"]


@dataclass(frozen=True)
class Start:
    """Particles at the first time, the times, the source of all randomness, and the weights."""

    x: Tensor
    grid: Tensor
    noise: Noise
    population: Population


def prepared(
    sde: SDE,
    guidance: object,
    shape: tuple[int, ...],
    *,
    groups: int,
    times: Callable[[SDE, int], Tensor] | Tensor,
    steps: int,
    threshold: float,
    resampling: Named | Resampling,
    seed: int | None,
    noise: Noise | torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Start:
    """All of it, from the prior.

    Raises:
        TypeError, ValueError: bad arguments.
    """
    if not isinstance(sde, SDE):
        raise TypeError(f"sde must be an SDE, got {type(sde).__name__}.")
    if isinstance(shape, int) or not len(shape) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"shape must be (particles of all groups together, *event), whole numbers; got {shape!r}.")
    checks.count(groups, name="groups")
    if shape[0] % groups or shape[0] < 2 * groups:
        raise ValueError(
            f"shape asks for {shape[0]} particles in {groups} group{'s' * (groups > 1)}; give a multiple of groups, at "
            "least 2 for each, such as shape=(groups * 64, *event)."
        )
    share(threshold)
    scheme = resampling_of(resampling)
    source = chosen_noise(seed, noise)
    if not dtype.is_floating_point:
        raise TypeError(f"particles need a floating dtype, got {dtype}.")
    grid = chosen_grid(sde, times, steps).detach()
    source.check(grid)
    parameters = parameters_of(guidance)
    where = torch.device(device) if device is not None else parameters[0].device if parameters else torch.device("cpu")
    x = source.initial(tuple(shape), dtype=dtype, device=where) * sde.sigma(grid[0])
    size = shape[0] // groups
    population = Population(groups, size, threshold, scheme, source, where)
    return Start(x, grid, source, population)
