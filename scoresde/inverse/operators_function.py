"""Measurements that are functions: a user's own linear one, and the modulus of a Fourier transform.

    FunctionOperator(lambda x: x.cumsum(-1)[..., ::2], event=(3, 32, 32))     # its adjoint derived by autograd
    Measurement(y, PhaseRetrieval((1, 32, 32)), noise_std=0.05)               # not linear: for dps

A linear function is tried on random vectors when it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.inverse.operators import LinearOperator, as_event, fits
from scoresde.noise.base import Shape

_MOST_OVERSAMPLE = 1000


@dataclass(frozen=True, eq=False, init=False)
class FunctionOperator(LinearOperator):
    r"""A user's own linear A. It is compared with its adjoint on random vectors when it is made.

    Args:
        forward: (B, \*event) -> (B, \*measured), linear, each sample alone.
        adjoint: (B, \*measured) -> (B, \*event), Aᵀ. None derives it from ``forward`` by reverse-mode autograd.
        event: the shape of one sample.
        dtype: in which ``forward`` is tried here; give that of tensors it holds.
        device: where it is tried.

    Raises:
        TypeError: forward or adjoint is no function.
        ValueError: forward is not linear, or not differentiable where the adjoint is derived; or the adjoint is wrong.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor] | None
    event: Shape
    shape: Shape
    dtype: torch.dtype
    device: torch.device | str

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor] | None = None,
        *,
        event: Shape,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        checks.function(forward, name="forward", what="(B, *event) -> (B, *measured)", takes=1)
        if adjoint is not None:
            checks.function(adjoint, name="adjoint", what="(B, *measured) -> (B, *event)", takes=1)
        dtype, device = checks.dtype(dtype), checks.device(device)
        own = {"forward": forward, "backward": adjoint, "event": as_event(event), "dtype": dtype, "device": device}
        for name, value in own.items():
            object.__setattr__(self, name, value)
        with torch.no_grad():
            answer = forward(self.zeros(1))
        if not isinstance(answer, Tensor) or answer.ndim < 2 or len(answer) != 1 or not answer.is_floating_point():
            got = f"{answer.dtype} {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
            raise ValueError(f"forward must answer a floating (B, *measured); for one sample it answered {got}.")
        object.__setattr__(self, "shape", tuple(answer.shape[1:]))
        self.check()

    @property
    def measured(self) -> Shape:
        return self.shape

    def apply(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def transpose(self, y: Tensor) -> Tensor:
        if self.backward is not None:
            x = checks.instance(self.backward(y), Tensor, name="what adjoint answers")
            if x.shape != (len(y), *self.event):
                raise ValueError(
                    f"adjoint must answer {(len(y), *self.event)}, the event; it answered {tuple(x.shape)}."
                )
            return x
        further = torch.is_grad_enabled()
        with torch.enable_grad():
            # A linear A has the same derivative everywhere, so at 0.
            x = y.new_zeros(len(y), *self.event, requires_grad=True)
            ax = self.forward(x)
            if not ax.requires_grad:
                raise ValueError(
                    "the adjoint cannot be derived: the answer of forward does not depend on x for autograd (it is "
                    "detached inside, or computed outside torch). Give adjoint."
                )
            (aty,) = torch.autograd.grad(ax, x, y, create_graph=further, allow_unused=True)
        return torch.zeros_like(x) if aty is None else aty

    def zeros(self, n: int) -> Tensor:
        return torch.zeros(n, *self.event, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class PhaseRetrieval:
    r"""A(x) = |F P x|: the modulus of the orthonormal Fourier transform of x, padded with zeros on its last two axes.

    Chung et al. 2022 (arXiv:2209.14687, section 4). Not linear: for :func:`~scoresde.inverse.dps`. The phase is lost,
    so x and -x, and the picture turned by 180°, measure the same, and
    without padding (oversample = 1) circular shifts too.

    Args:
        event: (..., H, W).
        oversample: padded over original length, at least 1; 2 makes the measurement nearly determine x up to those.
    """

    event: Shape
    oversample: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "event", as_event(self.event))
        if len(self.event) < 2:
            raise ValueError(f"event must have at least the last two axes that are transformed; got {self.event}.")
        checks.fields(self)
        if not 1 <= checks.positive(self.oversample, name="oversample") <= _MOST_OVERSAMPLE:
            raise ValueError(f"oversample must be from 1 to {_MOST_OVERSAMPLE}, got {self.oversample!r}.")

    @property
    def measured(self) -> Shape:
        """(..., H', W') with H' = round(oversample · H)."""
        return self.event[:-2] + tuple(round(self.oversample * n) for n in self.event[-2:])

    def __call__(self, x: Tensor) -> Tensor:
        r"""(B, \*measured), at least float32."""
        fits(x, self.event, name="x", what="the event of PhaseRetrieval")
        if not len(x):  # some libraries transform no empty batch
            return x.new_zeros(0, *self.measured)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return torch.fft.fft2(wide, s=self.measured[-2:], norm="ortho").abs().to(x.dtype)
