"""RePaint: replacement, with each stretch of the way gone again from where forward noise leads back to.

    sample(score, shape, solver=RePaint(measurement, resamplings=10), steps=100)

The evaluations are ``resamplings`` times those of the solver inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde import checks
from scoresde.inverse.replacement import Replacement
from scoresde.noise import Noise
from scoresde.reverse import Reverse


class RePaintState(NamedTuple):
    """State of the solver inside, steps done and all of them, and the steps to be gone again: (t, s, state before)."""

    inside: Any
    done: int
    total: int
    again: tuple[tuple[Tensor, Tensor, Any], ...] = ()


@dataclass(frozen=True)
class RePaint(Replacement):
    r"""Replacement in which each stretch of ``jump`` steps is gone ``resamplings`` times (Lugmayr et al. 2022,
    arXiv:2201.09865, Alg. 1 at jump = 1, section 4.2 for longer ones; the last step is repeated too).

    Between two passes the forward transition x_t ~ p(x_t | x_s) carries x, measured part and all, from the end of the
    stretch back to its beginning: what was left free can so come to agree with what is known. The evaluations are
    ``resamplings`` times those of the solver inside.

    **Known bias.** That of :class:`Replacement` at resamplings = 1. More of them bring the free part to equilibrium
    with the measured part as drawn at that noise level; at the end, where the noise is small, that is nearly the
    posterior, if the passes suffice to move there: they are a random walk, the slower the smaller the steps.

    Args:
        measurement: y, a linear A and σ_y.
        solver: the solver inside, stochastic at best; none that remembers past steps, which would be those of another
            pass.
        resamplings: passes over each stretch, at least 1.
        jump: its steps; the last stretch may be shorter.

    Raises:
        TypeError, ValueError: see :class:`Replacement`; resamplings or jump below 1; a solver with a memory.
    """

    resamplings: int = 10
    jump: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.count(self.resamplings, name="resamplings")
        checks.count(self.jump, name="jump")
        if self.solver.has_memory:
            raise ValueError(
                f"{type(self.solver).__name__} remembers past steps, and a pass gone again is not what came before it; "
                "take one that does not, such as Ancestral(), DDIM(), Heun() or DPMSolver()."
            )

    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        """That of replacement; the number of steps tells where the last stretch ends."""
        x, inside = super().start(process, x, grid, noise)
        return x, RePaintState(inside, 0, len(grid) - 1)

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """A step of the first pass; where it ends a stretch, the other passes too. A step alone is a stretch."""
        before: RePaintState = RePaintState(None, 0, 1) if state is None else state
        x, inside = super().step(process, x, t, s, noise, before.inside)
        again, done = (*before.again, (t, s, before.inside)), before.done + 1
        if len(again) < self.jump and done < before.total:
            return x, RePaintState(inside, done, before.total, again)
        fresh = _Fresh(noise)
        for _ in range(self.resamplings - 1):
            mean, std = process.sde.transition(x, s, again[0][0])
            x = mean + std * noise.normal(x)
            for begin, end, earlier in again:
                x, inside = super().step(process, x, begin, end, fresh, earlier)
        return x, RePaintState(inside, done, before.total)

    def selected(self, state: Any, select: Callable[[Tensor], Tensor]) -> Any:
        """The same of each state of the solver inside."""
        again = tuple((t, s, super(RePaint, self).selected(before, select)) for t, s, before in state.again)
        return state._replace(inside=super().selected(state.inside, select), again=again)


class _Fresh(Noise):
    """Another noise's normals, new ones whenever an interval is asked for: a path would repeat the first pass's."""

    def __init__(self, noise: Noise) -> None:
        self._noise = noise

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._noise.initial(shape, dtype=dtype, device=device)

    def normal(self, x: Tensor) -> Tensor:
        return self._noise.normal(x)

    def stream(self, purpose: str) -> Noise:
        return self._noise.stream(purpose)
