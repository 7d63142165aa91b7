"""Samplers as papers print them, and the noise that they and ours are given: what several tests compare with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from scoresde.noise import Noise


class Listed(Noise):
    """Hands out the given normals in order."""

    def __init__(self, draws: Iterable[Tensor]) -> None:
        self.left = list(draws)

    def normal(self, x: Tensor) -> Tensor:
        return self.left.pop(0).to(x.dtype)

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.left.pop(0).to(dtype)


def edm_sampler(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    times: Tensor,
    x: Tensor,
    draws: Listed,
    churn: float = 0.0,
    low: float = 0.0,
    high: float = math.inf,
    scale: float = 1.0,
) -> Tensor:
    """Algorithm 2 of Karras et al. 2022; ``times`` are t_0 .. t_N with t_N = 0."""
    n = len(times) - 1
    for i in range(n):
        t = times[i]
        gamma = min(churn / n, math.sqrt(2) - 1) if low <= t <= high else 0.0
        up = t + gamma * t
        if gamma > 0:
            x = x + (up**2 - t**2).sqrt() * scale * draws.normal(x)
        d = (x - denoiser(x, up)) / up
        after = x + (times[i + 1] - up) * d
        if times[i + 1] != 0:
            second = (after - denoiser(after, times[i + 1])) / times[i + 1]
            after = x + (times[i + 1] - up) * (0.5 * d + 0.5 * second)
        x = after
    return x


def edm_times(n: int) -> Tensor:
    """Eq. 5 with the values of table 1, and t_N = 0."""
    i, rho = torch.arange(n, dtype=torch.float64), 7
    t = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    return torch.cat([t, torch.zeros(1, dtype=torch.float64)])
