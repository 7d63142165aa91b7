"""Linear measurements: what is kept, averaged, blurred, weighed or projected.

    Mask(known, event)                                   # inpainting
    Downsample(4, (3, 64, 64))                           # super-resolution
    Blur(gaussian_kernel(9, 2.0), (3, 64, 64))           # deblurring
    Grayscale((3, 64, 64))                               # colourisation
    Matrix.gaussian(256, (3, 64, 64), noise=0)           # compressed sensing
    Identity((3, 64, 64))                                # denoising

Each has its adjoint, and systems with A Aᵀ in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.lasting import kept_at, lasting_property
from scoresde.inverse.operators import LinearOperator, as_event
from scoresde.noise import Noise, as_noise
from scoresde.noise.base import Shape

__all__ = ["REC_709", "Blur", "Downsample", "Grayscale", "Identity", "Mask", "Matrix", "gaussian_kernel"]

_MOST_WIDTH = 1_000_001

REC_709 = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue in luma (Recommendation ITU-R BT.709)."""


@dataclass(frozen=True)
class Identity(LinearOperator):
    r"""A x = x: the sample itself, with noise.

    Args:
        event: the shape of one sample.
    """

    event: Shape

    def __post_init__(self) -> None:
        object.__setattr__(self, "event", as_event(self.event))

    @property
    def measured(self) -> Shape:
        return self.event

    def apply(self, x: Tensor) -> Tensor:
        return x

    def transpose(self, y: Tensor) -> Tensor:
        return y

    @property
    def gram(self) -> float:
        return 1.0


@dataclass(frozen=True, eq=False)
class Mask(LinearOperator):
    r"""A x = the entries of x where ``mask`` is True, in row-major order, (B, m): inpainting.

    Args:
        mask: bool, (\*event), or what broadcasts to ``event``, such as (1, H, W). True is measured.
        event: by default the shape of the mask.

    Raises:
        TypeError: the mask is not boolean.
        ValueError: it does not broadcast to the event, or keeps nothing.
    """

    mask: Tensor
    event: Shape = ()

    def __post_init__(self) -> None:
        if not isinstance(self.mask, Tensor) or self.mask.dtype != torch.bool:
            raise TypeError(
                f"mask must be a boolean tensor, True where x is measured; got {checks.got(self.mask)}. "
                "Write mask > 0.5."
            )
        event = as_event(_said(self.event) or tuple(self.mask.shape))
        try:
            mask = self.mask.expand(event)
        except RuntimeError as error:
            raise ValueError(
                f"mask must broadcast to the event; {tuple(self.mask.shape)} does not broadcast to event = {event}."
            ) from error
        if not bool(mask.any()):
            raise ValueError(
                f"mask must be True where x is measured; got {checks.got(self.mask)} that keeps nothing: it is "
                "False everywhere."
            )
        object.__setattr__(self, "event", event)
        object.__setattr__(self, "mask", mask)

    @lasting_property
    def _kept(self) -> Tensor:
        return self.mask.flatten().nonzero().flatten()

    @property
    def measured(self) -> Shape:
        return (len(self._kept),)

    def apply(self, x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, kept_at(self._kept, x.device))

    def transpose(self, y: Tensor) -> Tensor:
        size = math.prod(self.event)
        full = y.new_zeros(len(y), size).index_copy(1, kept_at(self._kept, y.device), y)
        return full.reshape(len(y), *self.event)

    @property
    def gram(self) -> float:
        return 1.0


@dataclass(frozen=True)
class Downsample(LinearOperator):
    r"""A x = averages over blocks of the last axes: super-resolution.

    Args:
        factor: the block's edge along the last two axes (the last one of a vector), or one for each of the last axes,
            such as (4,) for a sequence with channels.
        event: the shape of one sample, such as (3, 32, 32).

    Raises:
        ValueError: a size that the factor does not divide.
    """

    factor: int | tuple[int, ...]
    event: Shape

    def __post_init__(self) -> None:
        event = as_event(self.event)
        several = tuple(self.factor) if isinstance(self.factor, (tuple, list)) else (self.factor,) * min(2, len(event))
        factors = tuple(checks.count(factor, name="factor") for factor in several)
        if not 0 < len(factors) <= len(event):
            raise ValueError(f"factor must have one entry for each of the last axes of {event}, got {self.factor!r}.")
        if any(size % factor for size, factor in zip(event[-len(factors) :], factors, strict=True)):
            raise ValueError(
                f"factor must divide the last sizes of the event {event}, got {factors}: let them be multiples, crop "
                "or pad the sample first."
            )
        object.__setattr__(self, "event", event)
        object.__setattr__(self, "factor", factors)

    @property
    def _factors(self) -> tuple[int, ...]:
        assert isinstance(self.factor, tuple)
        return self.factor

    @property
    def measured(self) -> Shape:
        n = len(self._factors)
        return self.event[:-n] + tuple(s // f for s, f in zip(self.event[-n:], self._factors, strict=True))

    def apply(self, x: Tensor) -> Tensor:
        n = len(self._factors)
        split = [size for pair in zip(self.measured[-n:], self._factors, strict=True) for size in pair]
        return x.reshape(*x.shape[:-n], *split).mean(tuple(range(-1, -2 * n, -2)))

    def transpose(self, y: Tensor) -> Tensor:
        for i, factor in enumerate(reversed(self._factors)):
            y = y.repeat_interleave(factor, y.ndim - 1 - i)
        return y / math.prod(self._factors)

    @property
    def gram(self) -> float:
        return 1.0 / math.prod(self._factors)


@dataclass(frozen=True, eq=False)
class Blur(LinearOperator):
    r"""(A x)_i = Σ_j k_j x_{i + j - c} along the last axes, each channel alone, c the kernel's centre: deblurring.

    The boundary is circular, so that A is diagonal in Fourier space, and A Aᵀ with it.

    Args:
        kernel: real, with as many axes as are blurred; its centre is at size // 2. See :func:`gaussian_kernel`.
        event: the shape of one sample.

    Raises:
        ValueError: the kernel has more axes than the event, or is longer than it.
    """

    kernel: Tensor
    event: Shape

    def __post_init__(self) -> None:
        event = as_event(self.event)
        kernel = checks.state(self.kernel, name="kernel", values=True)
        n = kernel.ndim
        if not kernel.numel() or n > len(event) or any(k > s for k, s in zip(kernel.shape, event[-n:], strict=True)):
            raise ValueError(
                f"kernel must be one that fits into the event {event}; {tuple(kernel.shape)} does not fit into its "
                "last axes."
            )
        object.__setattr__(self, "event", event)

    @property
    def measured(self) -> Shape:
        return self.event

    @lasting_property
    def _spectrum(self) -> Tensor:
        """Eigenvalues of A, in float64: x -> irfft(rfft(x) spectrum)."""
        sizes = self.event[-self.kernel.ndim :]
        padded = torch.zeros(sizes, dtype=torch.float64)
        padded[tuple(slice(0, k) for k in self.kernel.shape)] = self.kernel.detach().double().cpu()
        centred = padded.roll([-(k // 2) for k in self.kernel.shape], list(range(self.kernel.ndim)))
        return torch.fft.rfftn(centred).conj()

    @lasting_property
    def _square(self) -> Tensor:
        """Eigenvalues of A Aᵀ, in float64."""
        return self._spectrum.abs().square()

    def _there(self, x: Tensor) -> Tensor:
        """The spectrum beside x, and as wide."""
        return kept_at(self._spectrum, x.device, torch.promote_types(x.dtype, torch.complex64))

    def _filter(self, x: Tensor, spectrum: Tensor) -> Tensor:
        if not len(x):  # some libraries transform no empty batch
            return x
        axes = tuple(range(-self.kernel.ndim, 0))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # there is no transform in half precision
        return torch.fft.irfftn(torch.fft.rfftn(wide, dim=axes) * spectrum, s=self.event[axes[0] :], dim=axes).to(x)

    def apply(self, x: Tensor) -> Tensor:
        return self._filter(x, self._there(x))

    def transpose(self, y: Tensor) -> Tensor:
        return self._filter(y, self._there(y).conj())

    @property
    def closed_form(self) -> bool:
        return True

    def solve_system(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        square = kept_at(self._square, v.device, torch.promote_types(v.dtype, torch.float32))
        total = a * square + b
        # frequencies that A leaves out but for rounding; they matter where b = 0
        lost = total <= float(self._square.max()) * a * (torch.finfo(v.dtype).eps * math.prod(self.event)) ** 2
        return self._filter(v, torch.where(lost, 0, 1 / total.masked_fill(lost, 1)))


@dataclass(frozen=True, eq=False)
class Grayscale(LinearOperator):
    r"""A x = Σ_c w_c x_c over the first axis of the event, which is kept with size 1: colourisation.

    Args:
        event: (C, ...), the channels first.
        weights: one for each channel; by default those of luma for red, green and blue.
    """

    event: Shape
    weights: tuple[float, ...] = REC_709

    def __post_init__(self) -> None:
        event, weights = as_event(self.event), checks.numbers(self.weights, name="weights", what="one for each channel")
        if len(weights) != event[0] or not all(map(math.isfinite, weights)) or not any(weights):
            raise ValueError(
                f"weights must be finite, not all 0, and one for each of the {event[0]} channels; got {weights}."
            )
        object.__setattr__(self, "event", event)
        object.__setattr__(self, "weights", weights)

    @property
    def measured(self) -> Shape:
        return (1, *self.event[1:])

    @lasting_property
    def _numbers(self) -> Tensor:
        return torch.tensor(self.weights, dtype=torch.float64)

    def _weights(self, x: Tensor) -> Tensor:
        return kept_at(self._numbers, x.device, x.dtype).reshape(-1, *[1] * (len(self.event) - 1))

    def apply(self, x: Tensor) -> Tensor:
        return (self._weights(x) * x).sum(1, keepdim=True)

    def transpose(self, y: Tensor) -> Tensor:
        return self._weights(y) * y

    @property
    def gram(self) -> float:
        return sum(w * w for w in self.weights)


@dataclass(frozen=True, eq=False)
class Matrix(LinearOperator):
    r"""A given as a matrix: compressed sensing, or any small operator.

    Args:
        values: (m, D), finite.
        event: the shape of one sample, of D numbers; by default (D,).
    """

    values: Tensor
    event: Shape = ()

    def __post_init__(self) -> None:
        values = checks.state(self.values, name="values", values=True)
        if values.ndim != 2 or not values.numel():
            raise ValueError(f"values must be a floating matrix (m, D), got {checks.got(values)}.")
        event = as_event(_said(self.event) or (values.shape[1],))
        if math.prod(event) != values.shape[1]:
            raise ValueError(
                f"event must hold as many numbers as values has columns; values has {values.shape[1]} columns, but the "
                f"event {event} holds {math.prod(event)} numbers."
            )
        object.__setattr__(self, "event", event)

    @classmethod
    def gaussian(cls, m: int, event: Shape, noise: Noise | torch.Generator | int) -> Matrix:
        r"""m random projections with entries N(0, 1/m), which keep lengths in the mean: E|A x|² = |x|²."""
        m = checks.count(m, name="m", most=2**31)
        event = as_event(event)
        source = as_noise(noise, "operator")
        drawn = source.initial((m, math.prod(event)), dtype=torch.float64, device=torch.device("cpu"))
        return cls(drawn / math.sqrt(m), event)

    @property
    def measured(self) -> Shape:
        return (len(self.values),)

    def apply(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ kept_at(self.values, x.device, x.dtype).mT

    def transpose(self, y: Tensor) -> Tensor:
        return (y @ kept_at(self.values, y.device, y.dtype)).reshape(len(y), *self.event)

    @lasting_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (m,) and eigenvectors (m, m) of A Aᵀ, in float64."""
        values = self.values.detach().to("cpu", torch.float64)
        left, singular, _ = torch.linalg.svd(values, full_matrices=True)
        rest = values.new_zeros(len(values) - len(singular))
        return torch.cat([singular.square(), rest]), left

    @property
    def closed_form(self) -> bool:
        return True

    def solve_system(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        square, axes = (kept_at(part, v.device, v.dtype) for part in self._axes)
        total = a * square + b
        lost = total <= float(self._axes[0].max()) * a * (torch.finfo(v.dtype).eps * max(self.values.shape)) ** 2
        return torch.where(lost, 0, (v @ axes) / total.masked_fill(lost, 1)) @ axes.mT


def _said(event: Shape) -> Shape | None:
    """The event, where one was given: the default is ()."""
    return None if isinstance(event, tuple) and not event else checks.shape(event, name="event")


def gaussian_kernel(width: int, sigma: float, dims: int = 2) -> Tensor:
    """A Gaussian of ``dims`` axes, ``width`` points and standard deviation ``sigma`` points on each; float64, sum 1.

    Raises:
        ValueError: width even, which would have no centre, or sigma not positive.
    """
    width = checks.count(width, name="width", most=_MOST_WIDTH)
    dims = checks.count(dims, name="dims", most=8)
    sigma = checks.positive(sigma, name="sigma")
    if width % 2 == 0:
        raise ValueError(f"width must be odd, so that the kernel has a centre; got {width}.")
    line = torch.exp(-0.5 * ((torch.arange(width, dtype=torch.float64) - width // 2) / sigma) ** 2)
    kernel = line
    for _ in range(dims - 1):
        kernel = kernel[..., None] * line
    return kernel / kernel.sum()
