"""What a solver costs, by counting: evaluations, states kept, draws of noise.

:func:`costs` runs a solver with 8 and with 16 steps; the difference is what a further step takes, the rest what is
spent once, on starting or ending::

    counted = costs(Heun(), VP(), eta=0.0)
    counted.evaluations, counted.once           # for each further step, and beyond that
    counted.states                              # tensors shaped like x kept between steps

:class:`Costs` says what each number means. :class:`CountingNoise` is the noise that counts its draws.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import rules
from scoresde.certify.cases import SMOOTH, check_case, process_for
from scoresde.noise import BrownianNoise, IndependentNoise
from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.solvers import Solver
from scoresde.solvers.carried import tensors

_STEPS = (8, 16)


@dataclass(frozen=True)
class Costs:
    """What a run of n steps takes.

    Attributes:
        evaluations: score evaluations for each further step; not a whole number for methods that choose their steps.
        once: evaluations beyond that, for starting or ending; negative where a step takes fewer.
        states: tensors shaped like x kept between steps, x itself included; None for methods with a loop of their own.
        increments: draws of the path, ``noise.between``, for each further step.
        normals: other draws, for each further step.
    """

    evaluations: float
    once: float
    states: int | None
    increments: float
    normals: float


class CountingNoise(BrownianNoise):
    """Independent normals that know how often they were asked for."""

    def __init__(self, T: float) -> None:
        super().__init__(0, T)
        self._source = IndependentNoise(0)
        self.increments = self.normals = 0

    def between(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        self.increments += 1
        return self._source.normal(x)

    def normal(self, x: Tensor) -> Tensor:
        self.normals += 1
        return self._source.normal(x)


def costs(solver: Solver, sde: SDE, eta: float) -> Costs:
    """Count on two runs whose numbers of steps differ by eight.

    Args:
        solver: takes this η.
        sde: any; the counts of fixed-step methods do not depend on it.
        eta: the stochasticity.
    """
    check_case(solver, sde)
    process, counts = process_for(solver, SMOOTH.score(sde), eta), []
    x = torch.linspace(-1, 1, 4, dtype=torch.float64).expand(3, 4) * sde.prior_std
    for n in _STEPS:
        noise = CountingNoise(sde.T)
        nfe = solver.solve(process, x, rules.log_snr(sde, n), noise).nfe
        counts.append((nfe, noise.increments, noise.normals))
    more = _STEPS[1] - _STEPS[0]
    evaluations, increments, normals = ((b - a) / more for a, b in zip(*counts, strict=True))
    once = counts[0][0] - _STEPS[0] * evaluations
    return Costs(evaluations, once, _states(solver, process, x), increments, normals)


def _states(solver: Solver, process: Reverse, x: Tensor) -> int | None:
    """The most tensors shaped like x that any step hands to the next."""
    if not solver.steps_on_grid:
        return None
    grid, noise = rules.log_snr(process.sde, _STEPS[0]), CountingNoise(process.sde.T)
    x, state = solver.start(process, x, grid, noise)
    most = 1
    for t, s in itertools.pairwise(grid.unbind()):
        x, state = solver.step(process, x, t, s, noise, state)
        kept = {tensor.data_ptr() for tensor in tensors(state) if tensor.shape == x.shape}
        most = max(most, len(kept | {x.data_ptr()}))
    return most
