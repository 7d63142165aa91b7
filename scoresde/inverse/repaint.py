"""RePaint: replacement, with each stretch of the way gone again from where forward noise leads back to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde import checks
from scoresde.inverse.replacement import Replacement
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.solvers import Solver
from scoresde.solvers.multistep import ExponentialMultistep
from scoresde.solvers.planned import Place


class Stretch(NamedTuple):
    """The inner solver's state, the steps done and all of them, and the steps to be gone again: (t, s, its state)."""

    inner: Any
    done: int
    total: int
    steps: tuple[tuple[Tensor, Tensor, Any], ...] = ()


@dataclass(frozen=True)
class RePaint(Replacement):
    r"""Replacement in which each stretch of ``jump`` steps is gone ``resamplings`` times (Lugmayr et al. 2022,
    arXiv:2201.09865, Alg. 1 at jump = 1, section 4.2 for longer ones; the last step is repeated too).

    Between two passes the forward transition x_t ~ p(x_t | x_s) carries x, measured part and all, from the end of the
    stretch back to its beginning: what was left free can so come to agree with what is known. The evaluations are
    ``resamplings`` times the inner solver's.

    **Known bias.** That of :class:`Replacement` at resamplings = 1. More of them bring the free part to equilibrium
    with the measured part as drawn at that noise level; at the end, where the noise is small, that is nearly the
    posterior, if the passes suffice to move there: they are a random walk, the slower the smaller the steps.

    Args:
        measurement: y, a linear A and σ_y.
        inner: the solver, stochastic at best; none that remembers past steps, which would be those of another pass.
        resamplings: passes over each stretch, at least 1.
        jump: its steps; the last stretch may be shorter.

    Raises:
        TypeError, ValueError: see :class:`Replacement`; resamplings or jump below 1; an inner with a memory.
    """

    resamplings: int = 10
    jump: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.count(self.resamplings, name="resamplings")
        checks.count(self.jump, name="jump")
        if isinstance(self.inner, ExponentialMultistep):
            _refuse(self.inner)

    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        """That of replacement; the number of steps tells where the last stretch ends."""
        x, inner = super().start(process, x, grid, noise)
        return x, Stretch(inner, 0, len(grid) - 1)

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """A step of the first pass; where it ends a stretch, the other passes too. A step alone is a stretch."""
        place = Stretch(None, 0, 1) if state is None else state
        x, inner = super().step(process, x, t, s, noise, place.inner)
        if isinstance(inner, Place) and inner.memory is not None:
            _refuse(self.inner)
        steps, done = (*place.steps, (t, s, place.inner)), place.done + 1
        if len(steps) < self.jump and done < place.total:
            return x, Stretch(inner, done, place.total, steps)
        fresh = _Fresh(noise)
        for _ in range(self.resamplings - 1):
            mean, std = process.sde.transition(x, s, steps[0][0])
            x = mean + std * noise.normal(x)
            for begin, end, before in steps:
                x, inner = super().step(process, x, begin, end, fresh, before)
        return x, Stretch(inner, done, place.total)


def _refuse(inner: Solver) -> None:
    raise ValueError(
        f"{type(inner).__name__} remembers past steps, and a pass gone again is not what came before it; take one that "
        "does not, such as Ancestral(), DDIM(), Heun() or DPMSolver()."
    )


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
