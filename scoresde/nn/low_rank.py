"""Layers to whose weight a product of two thin matrices is added: what :func:`scoresde.nn.lora` makes of plain ones.

A layer becomes another class in its place, and back: its own parameters keep their names and their memory, and whoever
holds it sees the change. Kernels that do the work of a layer without calling it ask here what to add::

    if as_linear(layer):                                    # nothing steps in that they would pass by
        y = added_to(layer, fast(layer.weight, x), x)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.nn.norms import untouched


class Factors(nn.Module):
    r"""One adapter in one layer, ΔW = s B A with s = scale · α / r; W (out, in, \*kernel).

    Args:
        down: A (r, in, \*kernel).
        up: B (out, r).
        rank: by which α is divided: r, or more where the layer has no such rank.
        alpha: α.

    Attributes:
        strength: s, a buffer of its own dtype: captured and compiled networks read it anew.
        on: whether it is added.
        merged: whether it is in W already.
        adds: whether a call of the layer adds it: on, and not merged.
    """

    strength: Tensor

    def __init__(self, down: Tensor, up: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.rank, self.alpha, self.scale = rank, alpha, 1.0
        self.on, self.merged, self.adds = True, False, True
        self.register_buffer("strength", torch.zeros((), device=up.device), persistent=False)
        self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Bring the strength in line with scale, α and rank, and ``adds`` with on and merged."""
        self.adds = self.on and not self.merged
        exact = torch.promote_types(self.up.dtype, torch.float32)
        if self.strength.dtype != exact or self.strength.device != self.up.device:
            self.strength = torch.zeros((), dtype=exact, device=self.up.device)
        self.strength.fill_(self.scale * self.alpha / self.rank)  # in place: a graph has its address

    def scaled_up(self, dtype: torch.dtype) -> Tensor:
        """s B, multiplied before it is narrowed."""
        return (self.up * self.strength).to(dtype)

    def delta(self) -> Tensor:
        """ΔW, at least float32, of the shape of W."""
        wide = torch.promote_types(self.up.dtype, torch.float32)
        product = (self.up.to(wide) * self.strength) @ self.down.to(wide).flatten(1)
        return product.unflatten(1, self.down.shape[1:])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Factors:
        super()._apply(fn, recurse)
        self.settle()  # net.bfloat16() would round it
        return self


def active(layer: Any) -> list[Factors]:
    """The adapters of a layer that are to be added when it is called."""
    return [one for one in layer.adapters.values() if one.adds]


class AdaptedLinear(nn.Linear):
    """A linear map with W + Σ s B A, the products applied one after the other."""

    plain = nn.Linear
    adapters: nn.ModuleDict

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out)."""
        return self.plus(super().forward(x), x)

    def plus(self, y: Tensor, x: Tensor) -> Tensor:
        """y (..., out), what W and the bias make of x (..., in), and what the adapters do."""
        for one in active(self):
            y = y + F.linear(F.linear(x, one.down.to(x.dtype)), one.scaled_up(x.dtype))
        return y


def as_linear(layer: nn.Module) -> bool:
    """Whether another kernel may do what a linear map does, and `added_to` be asked for the rest."""
    return untouched(layer, nn.Linear) or untouched(layer, AdaptedLinear)


def added_to(layer: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    """y (..., out), what the weight and the bias of a linear map make of x (..., in), with all that is added to it."""
    return layer.plus(y, x) if type(layer) is AdaptedLinear else y


def _with_factors(layer: Any, y: Tensor, x: Tensor, convolved: Callable[..., Tensor]) -> Tensor:
    """y, what a convolution makes of x, with what its adapters do: down with its own kernel and stride, then up."""
    padding, sides = layer.padding, _sides(layer)
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, sides, mode=layer.padding_mode), 0
    options = {"stride": layer.stride, "padding": padding, "dilation": layer.dilation, "groups": layer.groups}
    for one in active(layer):
        if layer.groups > 1:  # a product of two convolutions is no grouped one
            y = y + convolved(x, one.delta().to(x.dtype), **options)
            continue
        narrow, up = convolved(x, one.down.to(x.dtype), **options), one.scaled_up(x.dtype)
        y = y + convolved(narrow, up.reshape(*up.shape, *[1] * (layer.weight.ndim - 2)))
    return y


def _sides(layer: Any) -> list[int]:
    """How far a convolution reaches over each end, the last axis first, as `F.pad` takes it."""
    reach = [dilation * (size - 1) for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    named = {"same": [(one // 2, one - one // 2) for one in reach], "valid": [(0, 0)] * len(reach)}
    ends = named[layer.padding] if isinstance(layer.padding, str) else [(one, one) for one in layer.padding]
    return [end for pair in reversed(ends) for end in pair]


class AdaptedConv1d(nn.Conv1d):
    """A convolution over one axis with W + Σ s B A."""

    plain = nn.Conv1d

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, in, L)."""
        return _with_factors(self, super().forward(x), x, F.conv1d)


class AdaptedConv2d(nn.Conv2d):
    """A convolution over two axes with W + Σ s B A."""

    plain = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, in, H, W)."""
        return _with_factors(self, super().forward(x), x, F.conv2d)


class AdaptedConv3d(nn.Conv3d):
    """A convolution over three axes with W + Σ s B A."""

    plain = nn.Conv3d

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, in, D, H, W)."""
        return _with_factors(self, super().forward(x), x, F.conv3d)


def drawn_factors(
    weight: Tensor, rank: int, alpha: float, generator: torch.Generator | None, *, dtype: torch.dtype | None = None
) -> Factors:
    """A ~ N(0, 1 / fan-in) and B = 0 for a weight (out, in, *kernel), of rank at most what the weight can have.

    Args:
        weight: W.
        rank: r.
        alpha: α.
        generator: that A is drawn from; None leaves it zero, to be read from a file.
        dtype: of A and B; that of W unless given, and at least float32, in which they are trained.
    """
    inputs = math.prod(weight.shape[1:])
    least = min(rank, weight.shape[0], inputs)
    dtype = torch.promote_types(weight.dtype, torch.float32) if dtype is None else dtype
    shape: Sequence[int] = (least, *weight.shape[1:])
    place: dict[str, Any] = {"dtype": dtype, "device": weight.device}
    if generator is None:
        down = torch.zeros(shape, **place)
    else:
        down = (torch.randn(shape, generator=generator, device="cpu") / math.sqrt(inputs)).to(**place)
    return Factors(down, torch.zeros(weight.shape[0], least, **place), rank, alpha)
