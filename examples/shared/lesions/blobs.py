"""Blobs pasted into pictures, with their true masks: lesions whose place is known.

ill = with_blobs(x, seed=0)
ill.x, ill.mask
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CONTRAST = 0.9  # how far a blob's value is from what it covers, at least, in model units: black to white is 2
SEEN = 3 / 8  # a pixel belongs to the mask that has changed by as much: three of the digits' 16 levels
RADIUS = (0.11, 0.21)  # of the picture's side


@dataclass(frozen=True)
class Ill:
    """Pictures x (N, C, H, W) with a blob each, in model units, and the mask (N, 1, H, W) of what it has changed."""

    x: Tensor
    mask: Tensor


def with_blobs(x: Tensor, seed: int, *, levels: int | None = None) -> Ill:
    """A disc with a soft edge of one pixel in each picture, at a random place, of a random radius and colour.

    Each channel of its colour is drawn from those in [-1, 1] that are at least CONTRAST away from the mean of what the
    disc covers there.

    Args:
        x: (N, C, H, W) healthy pictures, in [-1, 1].
        seed: of all draws.
        levels: whole levels of the pictures, to which the disc is rounded, too.
    """
    draw = torch.Generator().manual_seed(seed)
    n, channels, height, width = x.shape

    def some(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, 1, 1, generator=draw)

    side = min(height, width)
    radius = some(RADIUS[0] * side, RADIUS[1] * side, 1)
    middle = [some(1.0, size - 2.0, 1) for size in (height, width)]
    rows, columns = torch.arange(height).float()[:, None], torch.arange(width).float()
    distance = ((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2).sqrt()
    share = (radius + 0.5 - distance).clamp(0, 1)
    under = (share * x).sum((2, 3), keepdim=True) / share.sum((2, 3), keepdim=True)
    # of the two stretches [-1, under - CONTRAST] and [under + CONTRAST, 1] a point of their joint length
    below, above = (under - CONTRAST + 1).clamp_min(0), (1 - under - CONTRAST).clamp_min(0)
    at = some(0.0, 1.0, channels) * (below + above)
    colour = torch.where(at < below, at - 1, under + CONTRAST + at - below)
    ill = x + share * (colour - x)
    if levels is not None:
        ill = ((ill + 1) / 2 * (levels - 1)).round() / (levels - 1) * 2 - 1
    return Ill(ill, ((ill - x).abs().amax(1, keepdim=True) >= SEEN))
