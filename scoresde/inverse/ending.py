"""Samplers for measurements end with a clean x_0 that agrees with the measurement, whatever the score would say."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.inverse.measurement import Measurement
from scoresde.inverse.operators import LinearOperator
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.solvers import Progress, Solution, Solver


@dataclass(frozen=True)
class MeasuredSolver(Solver):
    """A solver that knows a linear measurement y = A x_0 + N(0, σ_y² I), and takes its last denoising step by it.

    Args:
        measurement: with a :class:`~scoresde.inverse.LinearOperator`; y for all samples or one for each.

    Raises:
        TypeError: no measurement, or one whose A has no adjoint.
    """

    measurement: Measurement

    def __post_init__(self) -> None:
        if not isinstance(self.measurement, Measurement):
            raise TypeError(
                f"{type(self).__name__} takes a Measurement first, got {type(self.measurement).__name__}; call "
                "Measurement(y, operator, noise_std)."
            )
        self.measurement.need_linear(type(self).__name__)

    @property
    def operator(self) -> LinearOperator:
        """A."""
        return self.measurement.need_linear(type(self).__name__)

    @abstractmethod
    def clean(self, process: Reverse, x: Tensor, t: Tensor) -> Tensor:
        """The x_0 (B, *event) to return for x at the last time, from one evaluation of the score."""

    def solve(
        self,
        process: Reverse,
        x: Tensor,
        grid: Tensor,
        noise: Noise | torch.Generator | int | None = None,
        *,
        denoise: bool = False,
        trajectory: bool = False,
        callback: Callable[[Progress], None] | None = None,
        checkpoint: bool | int = False,
    ) -> Solution:
        """As :meth:`Solver.solve`; ``denoise`` ends with :meth:`clean`, one evaluation more."""
        self.measurement_of(checks.state(x))
        solution = super().solve(
            process, x, grid, noise, trajectory=trajectory, callback=callback, checkpoint=checkpoint
        )
        end = solution.grid[-1]
        if not denoise or process.sde.sigma(end).item() == 0:
            return solution
        x = self.clean(process, solution.x, end)
        checks.finite(x, name="the denoised x", hint="The score returned such values at the last time.")
        return dataclasses.replace(solution, x=x, nfe=solution.nfe + 1, denoised=True)

    def measurement_of(self, x: Tensor) -> Tensor:
        """y (B, *measured) for the samples x, in their dtype.

        Raises:
            ValueError: x is no event of A, or y holds another number of samples.
        """
        self.measurement.check(x)
        return self.measurement.y.to(x).expand(len(x), *self.operator.measured)
