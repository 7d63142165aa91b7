"""What a linear measurement is: A, its adjoint, and systems with A Aᵀ.

    a = Mask(known) @ Blur(gaussian_kernel(5, 1.0), event)       # A(B x)
    a(x), a.adjoint(y), a.solve(v, 1.0, 0.1), a.pseudo_inverse(y), a.project(x, y)

An operator of your own says ``event`` and ``measured``, and writes ``apply`` and ``transpose``; where A Aᵀ = c I it
says c as ``gram``. ``check()`` tries it on random vectors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.inverse.conjugate_gradients import System, conjugate_gradients
from scoresde.noise import PerSampleNoise
from scoresde.noise.base import Shape
from scoresde.sde import spread


class LinearOperator(ABC):
    r"""A linear A from events (B, \*event) to measurements (B, \*measured), with its adjoint; both follow x's dtype.

    A subclass says its two shapes, :meth:`apply` and :meth:`transpose`. Where systems with A Aᵀ have a closed form it
    says so: by :attr:`gram`, or by :attr:`closed_form` and :meth:`solve_system`. A measurement that is only a function:
    :class:`FunctionOperator`.
    """

    @property
    @abstractmethod
    def measured(self) -> Shape:
        """The shape of one answer, without the batch."""

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        r"""A x, of x (B, \*event) that has been checked."""

    @abstractmethod
    def transpose(self, y: Tensor) -> Tensor:
        r"""Aᵀ y, of y (B, \*measured) that has been checked."""

    @property
    def gram(self) -> float | None:
        """c where A Aᵀ = c I; else None."""
        return None

    @property
    def closed_form(self) -> bool:
        """Whether :meth:`solve_system` needs no iterations."""
        return self.gram is not None

    event: Shape
    """The shape of one x, without the batch."""

    def __call__(self, x: Tensor) -> Tensor:
        r"""A x, (B, \*measured)."""
        return self.apply(fits(x, self.event, name="x", what=f"the event of {type(self).__name__}"))

    def adjoint(self, y: Tensor) -> Tensor:
        r"""Aᵀ y, (B, \*event)."""
        return self.transpose(fits(y, self.measured, name="y", what=f"what {type(self).__name__} measures"))

    def solve(self, v: Tensor, a: float | Tensor, b: float | Tensor) -> Tensor:
        r"""(a A Aᵀ + b I)⁻¹ v; where that is singular (b = 0), its pseudo-inverse applied to v.

        In closed form where A Aᵀ has one, else by conjugate gradients on each sample.

        Args:
            v: (B, \*measured).
            a: at least 0; a number, () or (B,).
            b: at least 0; the same. a + b must be positive.

        Raises:
            ValueError: v, a or b of a wrong shape or range.

        Warns:
            RuntimeWarning: conjugate gradients did not converge.
        """
        fits(v, self.measured, name="v", what=f"what {type(self).__name__} measures")
        factors = checks.real(a, name="a"), checks.real(b, name="b")
        for name, factor in zip("ab", factors, strict=True):
            if factor.ndim > 1 or (factor.ndim and len(factor) != len(v)):
                raise ValueError(f"{name} must be a number, () or ({len(v)},); got shape {tuple(factor.shape)}.")
            if factor.is_meta:
                raise ValueError(f"{name} must hold values, got {checks.got(factor)}.")
            if checks.readable(factor) and not bool((factor >= 0).all()):
                raise ValueError(f"{name} must be at least 0, got {factor.detach().min():g}.")
            if checks.readable(factor) and not bool(factor.isfinite().all()):
                raise ValueError(f"{name} must be finite, got {factor.detach().max():g}.")
        if all(map(checks.readable, factors)) and not bool((factors[0] + factors[1] > 0).all()):
            raise ValueError("a + b must be positive: with both 0 there is nothing to solve.")
        return self.solve_system(v, spread(factors[0], v), spread(factors[1], v))

    def solve_system(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        r"""The same for v (B, \*measured) that has been checked, and a and b that broadcast against it."""
        if self.gram is not None:
            return v / (a * self.gram + b)
        singular = b == 0
        if bool(singular.any()):  # K u = v need not have a solution; with v projected onto the range of A it has
            v = torch.where(singular, self.apply(self._least_squares(v)), v)
        return self._iterated(lambda u: a * self.apply(self.transpose(u)) + b * u, v)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        r"""A⁺ y = Aᵀ (A Aᵀ)⁺ y, (B, \*event): of the x whose A x is nearest to y, the one of least norm."""
        fits(y, self.measured, name="y", what=f"what {type(self).__name__} measures")
        return self.adjoint(self.solve(y, 1.0, 0.0)) if self.closed_form else self._least_squares(y)

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        r"""x + A⁺ (y - A x), (B, \*event): of the x' whose A x' is nearest to y, the one nearest to x."""
        answer = self(x)
        fits(y, self.measured, name="y", what=f"what {type(self).__name__} measures")
        if len(y) not in (1, len(x)):
            raise ValueError(f"y must have a row for each sample of x, {len(x)}; got {tuple(y.shape)}.")
        return x + self.pseudo_inverse(y - answer)

    def _least_squares(self, y: Tensor) -> Tensor:
        """The x of least norm with Aᵀ A x = Aᵀ y, which always has a solution."""
        return self._iterated(lambda x: self.transpose(self.apply(x)), self.transpose(y))

    def _iterated(self, system: System, v: Tensor) -> Tensor:
        remedy = "A is ill-conditioned: solve in float64, or give A as a Matrix, which solves in closed form."
        return conjugate_gradients(system, v, remedy=remedy)

    def matrix(self) -> Tensor:
        """A as a dense (m, D), from D applications: for small events."""
        size = math.prod(self.event)
        return self.apply(self.zeros(size).flatten(1).fill_diagonal_(1).reshape(size, *self.event)).flatten(1).mT

    def zeros(self, n: int) -> Tensor:
        r"""Zeros (n, \*event), of the dtype and on the device where :meth:`check` and :meth:`matrix` try A."""
        return torch.zeros(n, *self.event, dtype=torch.float64)

    def __matmul__(self, inner: LinearOperator) -> LinearOperator:
        """The composition x -> A(B x)."""
        return Composition(self, inner) if isinstance(inner, LinearOperator) else NotImplemented

    def check(self) -> None:
        """Compares A(2x - 3z) with 2 A x - 3 A z, and <A x, y> with <x, Aᵀ y>, on random vectors.

        Raises:
            ValueError: A is not linear, mixes the samples of a batch, or the adjoint is not its own.
        """
        noise, name = PerSampleNoise(0), type(self).__name__
        x, z = (noise.normal(self.zeros(2)) for _ in range(2))
        with torch.no_grad():
            ax, az, both, zero = (self(v) for v in (x, z, 2 * x - 3 * z, 0 * x))
            if len(ax) != len(x):
                raise ValueError(
                    f"{name} must keep the batch axis, (B, *event) to (B, *measured): of {len(x)} samples it answers "
                    f"{len(ax)} rows. To take part of an event, leave the first axis alone: x[:, :1]."
                )
            # sums of as many terms as an event has numbers, rounded each
            tolerance = 100 * torch.finfo(x.dtype).eps * (x.numel() + ax.numel()) ** 0.5
            if float(zero.abs().max()) > 0:
                raise ValueError(
                    f"{name} is not linear: A(0) is not 0 (largest {zero.abs().max():.3g}). Subtract A(0) from A and y."
                )
            off = (both - (2 * ax - 3 * az)).abs().max() / (2 * ax.abs() + 3 * az.abs()).max().clamp_min(1e-30)
            if not float(off) <= tolerance:
                raise ValueError(
                    f"{name} is not linear: A(2x - 3z) differs from 2 A x - 3 A z by {off:.1g} (relative). A nonlinear "
                    "function goes into Measurement as it is, and dps() takes it."
                )
            if not float((self(x[:1]) - ax[:1]).abs().max()) <= tolerance * float(ax.abs().max()):
                raise ValueError(f"{name} mixes samples: A of a batch differs from A of its first sample alone.")
            y = noise.normal(ax)
            aty = self.adjoint(y)
            left, right = (ax * y).flatten(1).sum(1), (x * aty).flatten(1).sum(1)
            scale = ax.norm() * y.norm() + x.norm() * aty.norm()
            if not float((left - right).abs().max()) <= tolerance * float(scale):
                raise ValueError(
                    f"the adjoint of {name} is not that of A: <A x, y> = {left[0]:.6g} but <x, Aᵀ y> = {right[0]:.6g}. "
                    "Correct it; FunctionOperator(forward, event=...) derives it from a differentiable A."
                )


@dataclass(frozen=True, eq=False)
class Composition(LinearOperator):
    """x -> outer(inner(x)), made by ``outer @ inner``."""

    outer: LinearOperator
    inner: LinearOperator

    def __post_init__(self) -> None:
        checks.fields(self)
        if self.inner.measured != self.outer.event:
            raise ValueError(
                f"A @ B needs B to answer what A takes: B, {type(self.inner).__name__}, measures {self.inner.measured} "
                f"and A, {type(self.outer).__name__}, takes {self.outer.event}."
            )

    @property
    def event(self) -> Shape:  # type: ignore[override]
        return self.inner.event

    @property
    def measured(self) -> Shape:
        return self.outer.measured

    def apply(self, x: Tensor) -> Tensor:
        return self.outer.apply(self.inner.apply(x))

    def transpose(self, y: Tensor) -> Tensor:
        return self.inner.transpose(self.outer.transpose(y))

    @property
    def gram(self) -> float | None:
        outer, inner = self.outer.gram, self.inner.gram
        return None if outer is None or inner is None else outer * inner

    @property
    def closed_form(self) -> bool:
        return self.inner.gram is not None and self.outer.closed_form

    def solve_system(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        if self.inner.gram is not None:  # A (c I) Aᵀ
            return self.outer.solve_system(v, a * self.inner.gram, b)
        return super().solve_system(v, a, b)

    def zeros(self, n: int) -> Tensor:
        return self.inner.zeros(n)


def fits(x: Tensor, shape: Shape, *, name: str, what: str) -> Tensor:
    """``x`` as it is, if it is a floating (B, *shape).

    Raises:
        TypeError, ValueError: it is not.
    """
    checks.state(x, name=name)
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"{name} must be (B, {', '.join(map(str, shape))}), {what}; got {tuple(x.shape)}.")
    return x


def as_event(event: object) -> Shape:
    """A shape of whole numbers of at least 1, without the batch.

    Raises:
        TypeError, ValueError: it is none.
    """
    what = "the shape of one sample without the batch, such as (3, 32, 32)"
    sizes = checks.shape(event, what=what, name="event")
    if 0 in sizes:
        raise ValueError(f"event must be {what}, with no size 0; got {sizes}.")
    return sizes
