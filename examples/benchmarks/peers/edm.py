"""EDM's deterministic Heun sampler, written from Karras et al. 2022 (arXiv:2206.00364), Algorithm 1, with σ(t) = t."""

from __future__ import annotations

from torch import Tensor

from peers.peer import Oracle, Peer, named


def heun(oracle: Oracle, y: Tensor, ratios: Tensor) -> Tensor:
    """Heun's steps; the last, which Algorithm 1 takes to σ = 0 by Euler, ends at the last ratio by Euler."""
    for i in range(len(ratios) - 1):
        sigma, target = ratios[i], ratios[i + 1]
        slope = (y - oracle(y, sigma)) / sigma
        moved = y + (target - sigma) * slope
        if i < len(ratios) - 2:
            slope = 0.5 * (slope + (moved - oracle(moved, target)) / target)
            moved = y + (target - sigma) * slope
        y = moved
    return y


def ode() -> dict[str, Peer]:
    """One sampler."""
    return named("EDM", [Peer("Heun", heun, per_step=2, last_free=1)])
