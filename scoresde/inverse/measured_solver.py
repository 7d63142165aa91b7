"""Solvers that know a measurement: what they end with agrees with it, whatever the score alone would say.

:class:`~scoresde.inverse.DiffPIR` is one; :class:`~scoresde.inverse.Replacement` and
:class:`~scoresde.inverse.RePaint` are such solvers around another one. One of your own is a frozen dataclass that
writes ``step`` and ``denoised``::

    @dataclass(frozen=True)
    class Projected(MeasuredSolver):
        def denoised(self, process, x, t):
            return self.operator.project(process.score.denoise(x, t), self.measurement_of(x))

        def step(self, process, x, t, s, noise, state):
            x0 = self.denoised(process, x, t)
            return process.sde.alpha(s) * x0 + process.sde.sigma(s) * noise.between(x, t, s), state
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from scoresde import checks
from scoresde.checks.lasting import kept_at
from scoresde.inverse.measurement import HOW, Measurement
from scoresde.inverse.operators import LinearOperator
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.solvers.base import Solver


@dataclass(frozen=True)
class MeasuredSolver(Solver):
    """A solver that knows a linear measurement y = A x_0 + N(0, σ_y² I), and takes its last denoising step by it.

    Args:
        measurement: with a :class:`~scoresde.inverse.LinearOperator`; y for all samples or one for each.

    Raises:
        TypeError: no measurement, or one whose A has no adjoint.
    """

    measurement: Measurement
    follows_process: ClassVar[bool] = False  # its states follow the measurement, too

    def __post_init__(self) -> None:
        checks.instance(self.measurement, Measurement, name="measurement", hint=HOW)
        super().__post_init__()
        self.measurement.need_linear(type(self).__name__)

    @property
    def operator(self) -> LinearOperator:
        """A."""
        return self.measurement.need_linear(type(self).__name__)

    @abstractmethod
    def denoised(self, process: Reverse, x: Tensor, t: Tensor) -> Tensor:
        """The x_0 (B, *event) to return for x at the last time, from one evaluation of the score."""

    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        """Raises ValueError, before any work, where the measurement is none of x."""
        self.measurement_of(x)
        return super().start(process, x, grid, noise)

    def measurement_of(self, x: Tensor) -> Tensor:
        r"""y (B, \*measured) for the samples x, in their dtype.

        Raises:
            ValueError: x is no event of A, or y holds another number of samples.
        """
        self.measurement.check(x)
        return kept_at(self.measurement.y, x.device, x.dtype).expand(len(x), *self.operator.measured)
