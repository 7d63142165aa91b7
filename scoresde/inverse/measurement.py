"""A measurement of unknown samples: what came out, of which operator, with how much noise.

    measurement = Measurement(y, Mask(known), noise_std=0.1)
    measurement = Measurement.simulate(x0, Downsample(4, event), 0.05, noise=0)
    measurement.residual(x0), measurement.log_prob(x0)

The operator is linear, a :class:`~scoresde.inverse.LinearOperator`, or any function of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.lasting import kept_at
from scoresde.inverse.operators import LinearOperator, fits
from scoresde.noise import Noise, as_noise
from scoresde.noise.base import Shape


def _check_operator(operator: object) -> None:
    if not callable(operator) or isinstance(operator, type):
        raise TypeError(
            f"operator must be a LinearOperator such as Mask(...), or a function of x; got {checks.got(operator)}. The "
            "order is Measurement(y, operator, noise_std)."
        )


HOW = "Call Measurement(y, operator, noise_std)."
"""What to say where something else was given."""

Forward = Callable[[Tensor], Tensor]
r"""A: (B, \*event) -> (B, \*measured), each sample alone."""


@dataclass(frozen=True, eq=False)
class Measurement:
    r"""y = A(x_0) + N(0, noise_std² I).

    Args:
        y: floating and finite; (\*measured) for all samples, or (B, \*measured), one for each.
        operator: a :class:`~scoresde.inverse.LinearOperator`, or any function of (B, \*event), differentiable for
            :func:`~scoresde.inverse.dps`.
        noise_std: σ_y, at least 0. A density of y, and so dps with its step "likelihood", moment_matching and
            particles, needs it positive.

    Raises:
        TypeError, ValueError: y is not floating or not finite, or does not fit the operator; noise_std is negative.
    """

    y: Tensor
    operator: LinearOperator | Forward
    noise_std: float

    def __post_init__(self) -> None:
        if not isinstance(self.y, Tensor) or not self.y.is_floating_point():
            raise TypeError(
                f"y must be a floating tensor, got {checks.got(self.y)}; write torch.tensor([0.2]), or y.float()."
            )
        _check_operator(self.operator)
        checks.state(self.y, name="y", values=True)
        object.__setattr__(self, "noise_std", checks.not_negative(self.noise_std, name="noise_std"))
        measured = getattr(self.operator, "measured", None)
        if measured is not None:
            self._shared(measured)

    @classmethod
    def simulate(
        cls,
        x0: Tensor,
        operator: LinearOperator | Forward,
        noise_std: float,
        noise: Noise | torch.Generator | int,
    ) -> Measurement:
        r"""The measurement of known samples x0 (B, \*event): y = A(x0) + σ_y z, one for each."""
        checks.state(x0, name="x0", values=True)
        _check_operator(operator)
        noise_std = checks.not_negative(noise_std, name="noise_std")
        event = getattr(operator, "event", None)
        if event is not None:
            fits(x0, event, name="x0", what=f"the event of the operator {type(operator).__name__}")
        clean = operator(x0)
        if not isinstance(clean, Tensor) or not clean.is_floating_point() or len(clean) != len(x0):
            raise ValueError(
                f"operator must answer a floating tensor (B, *measured) with B = {len(x0)}; it answered "
                f"{checks.got(clean)}."
            )
        z = as_noise(noise, "measurement").initial(tuple(clean.shape), dtype=clean.dtype, device=clean.device)
        return cls(clean + noise_std * z, operator, noise_std)

    @property
    def event(self) -> Shape | None:
        """The shape of one x_0, where the operator says it."""
        return getattr(self.operator, "event", None)

    @property
    def linear(self) -> LinearOperator | None:
        """The operator, if it is a LinearOperator."""
        return self.operator if isinstance(self.operator, LinearOperator) else None

    def need_linear(self, what: str) -> LinearOperator:
        """The operator, for methods that use its adjoint.

        Raises:
            TypeError: it is only a function.
        """
        if isinstance(self.operator, LinearOperator):
            return self.operator
        raise TypeError(
            f"{what} needs a linear operator with an adjoint: measurement must be a Measurement of a LinearOperator; "
            f"its operator is a {type(self.operator).__name__}. If it is linear, write FunctionOperator(operator, "
            "event=...), which derives the adjoint; if not, take dps."
        )

    def check(self, x: Tensor) -> None:
        r"""Raises ValueError where x (B, \*event) cannot be what was measured, as far as the operator says."""
        checks.state(x)
        if self.event is not None:
            fits(x, self.event, name="x", what=f"the event of the measurement's {type(self.operator).__name__}")
        measured = getattr(self.operator, "measured", None)
        if measured is not None:
            self._for(x, measured)

    def residual(self, x0: Tensor) -> Tensor:
        r"""y - A(x_0), (B, \*measured).

        Raises:
            ValueError: x0 is not of the operator's event, or y is neither for all of its samples nor for each.
        """
        answer = self.operator(checks.state(x0, name="x0"))
        if not isinstance(answer, Tensor) or answer.ndim < 1 or len(answer) != len(x0):
            got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise ValueError(f"the operator must answer (B, *measured) with B = {len(x0)}; it answered {got}.")
        self._for(x0, tuple(answer.shape[1:]))
        return kept_at(self.y, answer.device, answer.dtype) - answer

    def log_prob(self, x0: Tensor) -> Tensor:
        """log N(y; A(x_0), σ_y² I), (B,), in nats.

        Raises:
            ValueError: noise_std is 0, with which y has no density; else as :meth:`residual`.
        """
        self.need_noise("log_prob")
        return self.log_normal(self.residual(x0))

    def log_normal(self, residual: Tensor) -> Tensor:
        """log N(residual; 0, σ_y² I), (B,)."""
        flat = residual.flatten(1) if residual.ndim > 1 else residual[:, None]
        norm = flat.shape[1] * (math.log(self.noise_std) + 0.5 * math.log(2 * math.pi))
        return -0.5 * (flat / self.noise_std).square().sum(1) - norm

    def need_noise(self, what: str) -> None:
        """Raises ValueError where noise_std is 0."""
        if self.noise_std == 0:
            raise ValueError(
                f"{what} needs noise_std > 0, got a Measurement with noise_std = {self.noise_std:g}: without noise y "
                "has no density. Give the measurement's noise, or a small number in place of it."
            )

    def _for(self, x: Tensor, measured: Shape) -> None:
        if not self._shared(measured) and len(self.y) != len(x):
            raise ValueError(
                f"y holds {len(self.y)} measurements, one for each sample, but x has {len(x)} samples. Give as many, "
                "or one y without the batch axis for all."
            )

    def _shared(self, measured: Shape) -> bool:
        """Whether y is one measurement for all samples."""
        shape = tuple(self.y.shape)
        if shape not in (measured, (*shape[:1], *measured)):
            raise ValueError(
                f"y must be {measured}, which is what the operator {type(self.operator).__name__} measures, or the "
                f"same with a batch axis before; got {shape}."
            )
        return shape == measured
