"""65536 Brownian bridges, of which each cell of a path picks one for each element.

A bridge of 64 pieces needs 127 standard normals: one for each of its 63 inner nodes, and one inside each piece. Here
each takes 16 values, and shape number i is a word of an orthogonal array of strength 3 with 16^4 words: any three of
the 127 are jointly independent, and the array is closed under negation. Covariances, all moments of odd order, and
those of fourth order of up to three different normals are therefore exactly those of a Brownian bridge.

The array is the linear code over GF(16) whose columns are points of an elliptic quadric in PG(3, 16), of which no three
lie on a line (Bose 1947, Sankhyā 8; Hedayat, Sloane & Stufken 1999, Orthogonal Arrays, chapter 5).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.lasting import lasting
from scoresde.noise.counter import absorb, atoms

DEPTH = 6
PIECES = 2**DEPTH
_SALT = 42  # of 1..59, the one with the smallest excess kurtosis of increments


def _times(a: int, b: int) -> int:
    """a b in GF(16) = GF(2)[x] / (x⁴ + x + 1), each given by the bits of its polynomial."""
    product = 0
    for bit in range(4):
        product ^= a * (b >> bit & 1)
        a = a << 1 if a < 8 else a << 1 ^ 0b10011
    return product


def _columns(count: int) -> list[tuple[int, int, int, int]]:
    """Points (1, x, y, x² + x y + λ y²) of the quadric, z² + z + λ without a root: no three are on a line."""
    free = min(set(range(16)) - {_times(z, z) ^ z for z in range(16)})
    points = [(x, y, _times(x, x) ^ _times(x, y) ^ _times(free, _times(y, y))) for x in range(16) for y in range(16)]
    return [(1, *point) for point in points[:count]]


def _scrambled(values: Tensor, column: int) -> Tensor:
    """The 16 values in an order of the column's own, still with opposite ones at c and c ^ 15.

    Columns of which one is the sum of three others would otherwise have products of one sign.
    """
    order = sorted(range(8), key=lambda c: absorb(column, _SALT, c))
    signs = [1 if absorb(column, _SALT, 8 + c) > 0 else -1 for c in range(8)]
    half = torch.stack([sign * values[c] for c, sign in zip(order, signs, strict=True)])
    return torch.cat([half, -half.flip(0)])


def normals() -> Tensor:
    """(2 PIECES - 1, 65536) float64, the 127 normals of each shape; shape i ^ 15 is minus shape i."""
    rows = []
    for number, column in enumerate(_columns(2 * PIECES - 1)):
        parts = [torch.tensor([_times(factor, digit) for digit in range(16)]) for factor in column]
        high = (parts[3][:, None] ^ parts[2]).flatten()  # the word's digits, highest first
        low = (parts[1][:, None] ^ parts[0]).flatten()
        rows.append(_scrambled(atoms(16), number)[high[:, None] ^ low].flatten())
    return torch.stack(rows)


@lru_cache(maxsize=4)
@lasting
def library(device: torch.device) -> tuple[Tensor, Tensor]:
    """The shapes: values (PIECES + 1, 65536) at the nodes of bridges on [0, 1]; normals (PIECES, 65536) for the pieces.

    float32 for every path, so that a path is the same in all dtypes.
    """
    z = normals()
    nodes = torch.zeros(PIECES + 1, z.shape[1], dtype=torch.float64)
    width, taken = PIECES, 0
    while width > 1:  # the middle of [a, b] given its ends: variance (b - a) / 4
        for left in range(0, PIECES, width):
            spread = math.sqrt(width / PIECES / 4)
            nodes[left + width // 2] = 0.5 * (nodes[left] + nodes[left + width]) + spread * z[taken]
            taken += 1
        width //= 2
    return checks.sent(nodes, device, torch.float32), checks.sent(z[taken:], device, torch.float32)
