"""The step-size rules that the peers offer, as decreasing σ/α with the same exact ends for everybody.

Formulas of k-diffusion's get_sigmas_*, diffusers' use_*_sigmas and azula's schedules with their linear times, computed
in float64 and ended at t_min, where the libraries by default append σ = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from contest.problems import Problem

Warp = Callable[[Tensor], Tensor]


def warped(forward: Warp, inverse: Warp, problem: Problem, steps: int) -> Tensor:
    """Equal steps in ``forward(σ/α)``, (steps + 1,) float64, the ends exact."""
    first, last = (torch.tensor(r, dtype=torch.float64) for r in problem.ratios)
    a, b = forward(first), forward(last)
    ratios = inverse(a + (b - a) * torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    ratios[0], ratios[-1] = first, last
    return ratios


def karras(problem: Problem, steps: int, *, rho: float) -> Tensor:
    """k-diffusion and diffusers: equal steps in the rho-th root."""
    return warped(lambda r: r ** (1 / rho), lambda u: u**rho, problem, steps)


def exponential(problem: Problem, steps: int) -> Tensor:
    """k-diffusion, diffusers (also its "lu" rule), azula's VESchedule: equal steps in log(σ/α)."""
    return warped(torch.log, torch.exp, problem, steps)


def vp(problem: Problem, steps: int) -> Tensor:
    """k-diffusion's get_sigmas_vp, diffusers' linear betas with "linspace": equal steps in the time of VP(0.1, 20)."""
    return warped(
        lambda r: (-0.1 + (0.01 + 4 * 9.95 * (r**2).log1p()).sqrt()) / 19.9,
        lambda t: torch.expm1(19.9 * t**2 / 2 + 0.1 * t).sqrt(),
        problem,
        steps,
    )


def cosine(problem: Problem, steps: int) -> Tensor:
    """azula's CosineSchedule: equal steps in the angle whose tangent is σ/α."""
    return warped(torch.atan, torch.tan, problem, steps)


def flow(problem: Problem, steps: int, *, shift: float) -> Tensor:
    """diffusers' flow sigmas and flow_shift, azula's RectifiedSchedule (shift 1): equal steps in σ/(shift α + σ)."""
    return warped(lambda r: r / (shift + r), lambda u: shift * u / (1 - u), problem, steps)


def decay(problem: Problem, steps: int, *, gamma: float = 0.1) -> Tensor:
    """azula's DecaySchedule: rectified flow with geometrically shrinking steps."""
    return warped(
        lambda r: (1 - (1 - gamma) * r / (1 + r)).log(),
        lambda u: (1 - u.exp()) / (u.exp() - gamma),
        problem,
        steps,
    )


def beta(problem: Problem, steps: int) -> Tensor:
    """diffusers' beta sigmas: quantiles of Beta(0.6, 0.6), stretched to [σ/α at t_min, at T]."""
    from scipy.stats import beta as law

    first, last = problem.ratios
    ramp = 1 - torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return last + torch.from_numpy(law.ppf(ramp.numpy(), 0.6, 0.6)) * (first - last)


# The rules at the parameters that the libraries give them.
SHIPPED: dict[str, Callable[[Problem, int], Tensor]] = {
    "karras": partial(karras, rho=7.0),
    "exponential": exponential,
    "vp": vp,
    "cosine": cosine,
    "flow": partial(flow, shift=1.0),
    "decay": decay,
    "beta": beta,
}
# The rules with parameters changed to suit these problems: what a user who tunes a peer by hand could reach.
TUNED: dict[str, Callable[[Problem, int], Tensor]] = {
    "karras rho=5": partial(karras, rho=5.0),
    "karras rho=3": partial(karras, rho=3.0),
    "flow shift=0.3": partial(flow, shift=0.3),
    "flow shift=3": partial(flow, shift=3.0),
}
GRIDS = SHIPPED | TUNED
