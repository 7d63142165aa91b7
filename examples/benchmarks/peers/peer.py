"""What a peer is to the benchmark: a function from noise, noise levels and a counted exact denoiser to an end state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from contest.problems import Problem


class Oracle:
    """E[x_0 | x_t/α = y] at σ/α = ratio, counting its calls: the evaluations that a peer is charged for."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.calls = problem, 0

    def __call__(self, y: Tensor, ratio: float | Tensor) -> Tensor:
        self.calls += 1
        ratio = torch.as_tensor(ratio)
        return self.problem.denoise(y, ratio.flatten()[0] if ratio.ndim else ratio)


# (denoiser, y = x_T / α_T, decreasing σ/α) -> y where they end
Run = Callable[[Oracle, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Peer:
    """One sampler of a library with its options.

    Attributes:
        name: library and options.
        run: integrates x/α along σ/α.
        per_step: score evaluations a step.
        last_free: evaluations saved by a simpler last step.
        least: fewest steps it can take.
        any_grid: whether it takes any noise levels; False where it chooses its own between the ends.
    """

    name: str
    run: Run
    per_step: int = 1
    last_free: int = 0
    least: int = 1
    any_grid: bool = True

    def steps(self, nfe: int) -> int:
        """The most steps for at most ``nfe`` evaluations."""
        return (nfe + self.last_free) // self.per_step


def named(library: str, peers: Iterable[Peer]) -> dict[str, Peer]:
    """By full name."""
    return {f"{library} {peer.name}": peer for peer in peers}
