"""How a Brownian path divides its time: octaves towards 0, cells, pieces.

A :class:`Division` of [0, T] says where a time lies, as a :class:`Place`; :func:`beside` says whether two times lie
strictly inside one piece, between which the path has no increment of its own::

    division = Division(1.0, 11)                            # T, and the levels of BrownianNoise
    a, b = division.place(0.3), division.place(0.25)
    beside(a, b), division.piece(a)                         # False, and the length of the piece at 0.3

:class:`~scoresde.noise.BrownianNoise` alone uses it: the place of a time is its way down the tree, and the length of a
piece is the shortest step that the path resolves. :meth:`Division.places` and :func:`all_beside` do the same for (B,).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.noise.shapes import DEPTH

OCTAVES = 24
NEAR = 16


class Place(NamedTuple):
    """Where a time lies. ``way`` below counts from an octave's upper end, 0, to its lower one, 1.

    Attributes:
        octave: k where T 2^-(k+1) <= t < T 2^-k; OCTAVES for all of [0, T 2^-OCTAVES).
        zone: for octave 0, j where 2^-(j+1) <= way < 2^-j, at most NEAR (0 below 4 levels); NEAR + k for octave k.
        piece: number of the piece, counted from the octave's upper end.
        inside: how much of the piece lies above t, 0 to 1.
    """

    octave: int
    zone: int
    piece: int
    inside: float


class Places(NamedTuple):
    """A :class:`Place` for each of several times, its fields (B,) on the CPU."""

    octave: Tensor
    zone: Tensor
    piece: Tensor
    inside: Tensor


class Division:
    """The division of [0, T]. In every zone an octave is halved ``tree`` times into cells of 2**``fine`` pieces.

    Pieces are T / 2**levels long in the first octaves and 2**-(levels - 4) of an octave later on. Within T/16 of T they
    shrink with the distance from T, as they do with t towards 0: log-SNR grids of some schedules crowd at both ends.
    """

    def __init__(self, T: float, levels: int) -> None:
        self.T = T
        graded = levels >= 4
        self.near = NEAR if graded else 0  # the last zone in use for octave 0
        self.tree, self.fine = [], []
        for zone in range(NEAR + OCTAVES + 1):
            if zone > NEAR:
                depth = max(levels - 1 - (zone - NEAR), levels - 4, 0)
                fine = depth
            else:  # cells must end where zones do: at ways of 1/8 and of 2**-zone
                depth = max(levels - 1, zone + levels - 3) if graded else levels - 1
                fine = depth - max(zone + 1, 3) if graded else depth
            self.fine.append(min(fine, DEPTH))
            self.tree.append(depth - self.fine[-1])
        self.trees, self.fines = torch.tensor(self.tree), torch.tensor(self.fine)

    def length(self, octave: int) -> float:
        """Of an octave."""
        return self.T * 2.0 ** -min(octave + 1, OCTAVES)

    def piece(self, place: Place) -> float:
        """Length of the piece there."""
        return self.length(place.octave) / 2 ** (self.tree[place.zone] + self.fine[place.zone])

    def place(self, t: float) -> Place:
        """Of a time in [0, T]; one beyond is taken for the end."""
        fraction, power = math.frexp(min(max(t / self.T, 0.0), 1.0))
        octave = min(-power, OCTAVES) if fraction else OCTAVES
        way = 1 - math.ldexp(fraction, power + OCTAVES) if octave == OCTAVES else 2 - 2 * fraction
        if octave < 0:  # t = T
            octave, way = 0, 0.0
        zone = NEAR + octave if octave else min(max(-math.frexp(way)[1], 0), self.near)
        pieces = 1 << (self.tree[zone] + self.fine[zone])
        piece = min(int(way * pieces), pieces - 1)
        return Place(octave, zone, piece, way * pieces - piece)

    def places(self, times: Tensor) -> Places:
        """:meth:`place` of times (B,), float64 on the CPU, by the same arithmetic."""
        part = (times / self.T).clamp(0, 1)
        fraction, power = torch.frexp(part)
        octave = torch.where(fraction > 0, -power.long(), OCTAVES).clamp(max=OCTAVES)
        way = torch.where(octave == OCTAVES, 1 - part * 2.0**OCTAVES, 2 - 2 * fraction)
        way, octave = torch.where(octave < 0, 0.0, way), octave.clamp(min=0)
        near = (-torch.frexp(way)[1].long()).clamp(0, self.near)
        zone = torch.where(octave > 0, NEAR + octave, near)
        pieces = 1 << (self.trees + self.fines)[zone]
        piece = torch.minimum((way * pieces).long(), pieces - 1)
        return Places(octave, zone, piece, way * pieces - piece)


def beside(a: Place, b: Place) -> bool:
    """Whether two times lie strictly inside one piece."""
    return a.zone == b.zone and a.piece == b.piece and 0 < a.inside < 1 and 0 < b.inside < 1


def all_beside(a: Places, b: Places) -> Tensor:
    """:func:`beside`, (B,)."""
    strictly = (a.inside > 0) & (a.inside < 1) & (b.inside > 0) & (b.inside < 1)
    return (a.zone == b.zone) & (a.piece == b.piece) & strictly
