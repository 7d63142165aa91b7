"""Pictures with clutter, and the masks of what is in them: a digit to be told from ink without shape.

A picture is 16x16 in colour. One quadrant holds a real digit, the other three hold the pixels of other real digits,
each shuffled: as much ink, in the same colour, as bright. Noise lies over it all. Brightness cannot tell one from the
other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.data import Dataset
from shared.conditional.captioned import COLOURS, LEVELS, SIDE, compose

INK = (LEVELS - 1) / 2  # a pixel with as many levels or more belongs to the stroke
NOISE = 2.0  # levels, standard deviation


@dataclass(frozen=True)
class Cluttered:
    """Pictures (N, 3, 16, 16) in levels, not rounded; masks (N, 1, 16, 16) of 0 and 1; places of the digits (N,)."""

    pictures: Tensor
    masks: Tensor
    place: Tensor

    def __len__(self) -> int:
        return len(self.place)


def ink(grey: Tensor) -> Tensor:
    """The mask of what is ink: 1 where the grey level is at least 8, of grey's shape, uint8."""
    return (grey >= INK).to(torch.uint8)


def clutter(digits: Dataset, copies: int, seed: int) -> Cluttered:
    """Each digit ``copies`` times, in colours, places and clutter by chance."""
    draw = torch.Generator().manual_seed(seed)
    grey = digits.data.repeat(copies, 1, 1, 1).float()
    n = len(grey)
    colour = torch.randint(len(COLOURS), (n,), generator=draw)
    place = torch.randint(4, (n,), generator=draw)
    picture = compose(grey, colour, place)
    for turn in (1, 2, 3):  # the other quadrants
        others = grey[torch.randint(n, (n,), generator=draw)].flatten(1)
        order = torch.rand(others.shape, generator=draw).argsort(1)
        shuffled = others.gather(1, order).reshape(n, 1, SIDE, SIDE)
        picture += compose(shuffled, colour, (place + turn) % 4)
    picture += NOISE * torch.randn(picture.shape, generator=draw)
    white = torch.zeros_like(colour)  # any one colour: its first channel is the mask
    masks = compose(ink(grey), white, place)[:, :1]
    return Cluttered(picture, masks, place)


def brightness(pictures: Tensor) -> Tensor:
    """The brightest channel of each pixel, (N, 1, 16, 16): what a threshold has to go by."""
    return pictures.amax(1, keepdim=True)
