"""Pictures moved by affine maps: low-passed, with the picture going on beyond its borders as in mirrors.

    y = warped(x, matrix, shift)             # x (B, C, H, W): what was at p is at matrix p + shift, from the centre
    y = moved(x, dx, dy)                     # by whole pixels, exactly

Beyond a border there is the mirror image with the border's pixels twice, ... b a | a b c | c b ...
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

LOBES = 3  # of the Lanczos window
_MARGIN = 2 * LOBES  # of fine pixels that the filter downwards sees beyond a border


def warped(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """x with each point p moved to ``matrix`` p + ``shift``, in pixels from the centre, x to the right and y down.

    The picture is enlarged twice by a Lanczos filter, looked up by linear interpolation at twice the resolution, and
    brought back by the same filter, as in Karras et al. 2020 (arXiv:2006.06676, appendix B), who take a wavelet's: no
    aliasing where it shrinks to half, and little blur.

    Args:
        x: (B, C, H, W).
        matrix: (B, 2, 2), invertible.
        shift: (B, 2).
    """
    height, width = x.shape[2:]
    exact = torch.promote_types(x.dtype, torch.float32)
    fine = _filtered(x.to(exact), (height, width), upwards=True)
    rows, columns = (  # of the result and of what its filter sees beyond it, in pixels from the centre
        (torch.arange(-_MARGIN, 2 * n + _MARGIN, device=x.device, dtype=exact) + 0.5) / 2 - n / 2
        for n in (height, width)
    )
    places = torch.stack(torch.broadcast_tensors(columns[None], rows[:, None]), -1)  # (rows, columns, 2), as (x, y)
    inverse = _inverse(matrix.to(exact))
    source = (places - shift.to(exact)[:, None, None]) @ inverse.transpose(1, 2)[:, None]
    source = torch.stack([source[..., 0] * (2 / width), source[..., 1] * (2 / height)], -1)
    looked_up = F.grid_sample(fine, source, mode="bilinear", padding_mode="reflection", align_corners=False)
    return _filtered(looked_up, (height, width), upwards=False).to(x.dtype)


def moved(x: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """x (B, C, H, W) with what was at column j at column j + dx, and likewise down, for whole numbers (B,)."""
    height, width = x.shape[2:]
    rows = mirrored(torch.arange(height, device=x.device) - dy[:, None], height)
    columns = mirrored(torch.arange(width, device=x.device) - dx[:, None], width)
    sample = torch.arange(len(x), device=x.device)
    return x.transpose(0, 1)[:, sample[:, None, None], rows[:, :, None], columns[:, None]].transpose(0, 1)


def mirrored(index: Tensor, size: int) -> Tensor:
    """Whole numbers beyond 0 ... size - 1 as the pixels of which they are the mirror images."""
    period = index.remainder(2 * size)
    return torch.minimum(period, 2 * size - 1 - period)


def _inverse(matrix: Tensor) -> Tensor:
    a, b, c, d = matrix.flatten(1).unbind(1)
    return torch.stack([d, -b, -c, a], 1).unflatten(1, (2, 2)) / (a * d - b * c)[:, None, None]


def _filtered(x: Tensor, sizes: tuple[int, int], *, upwards: bool) -> Tensor:
    """x between pictures of these sizes and fine ones, of twice as many pixels; from these with a margin."""
    down, across = (_lanczos(n, upwards, x.dtype, x.device) for n in sizes)
    return down @ x @ across.T


@functools.lru_cache(maxsize=64)
def _lanczos(size: int, upwards: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The filter from ``size`` pixels to twice as many, with mirrors at its borders; or back from these and a margin.

    (2 size, size), or (size, 2 size + 2 margins). Pixel j of the finer row lies at (j + 1/2)/2 - 1/2 of the coarser
    one. Weights are sinc(d) sinc(d / 3) of distances d in coarser pixels, and sum to 1.
    """
    fine = (torch.arange(2 * size, dtype=torch.float64) + 0.5) / 2 - 0.5
    coarse = torch.arange(size, dtype=torch.float64)
    if upwards:
        near = fine.round().long()[:, None] + torch.arange(-LOBES, LOBES + 1)
        distance = fine[:, None] - near
        matrix, place = torch.zeros(2 * size, size, dtype=torch.float64), mirrored(near, size)
    else:
        near = 2 * torch.arange(size)[:, None] + torch.arange(-_MARGIN, _MARGIN + 2)
        distance = coarse[:, None] - ((near + 0.5) / 2 - 0.5)
        matrix, place = torch.zeros(size, 2 * (size + _MARGIN), dtype=torch.float64), near + _MARGIN
    weight = torch.sinc(distance) * torch.sinc(distance / LOBES) * (distance.abs() < LOBES)
    matrix.scatter_add_(1, place, weight / weight.sum(1, keepdim=True))
    return matrix.to(device, dtype)


def rotation(cosine: Tensor, sine: Tensor) -> Tensor:
    """The matrices (B, 2, 2) that turn by an angle, from x (right) towards y (down): clockwise to the eye."""
    return torch.stack([cosine, -sine, sine, cosine], 1).unflatten(1, (2, 2))


def stretching(u: Tensor, v: Tensor, rate: float) -> Tensor:
    """exp(rate [[u, v], [v, -u]]), (B, 2, 2): stretches by exp(rate r) along one axis, and back across it.

    r^2 = u^2 + v^2, and the axis is at half the angle of (u, v).
    """
    size = torch.hypot(u, v)
    k = rate * size
    even, odd = torch.cosh(k), rate * torch.where(size > 0, torch.sinh(k) / k.where(size > 0, torch.ones_like(k)), 1.0)
    return torch.stack([even + odd * u, odd * v, odd * v, even - odd * u], 1).unflatten(1, (2, 2))


def octaves(scale: float) -> float:
    """log 2 times ``scale``: from powers of 2 to powers of e."""
    return math.log(2) * scale
