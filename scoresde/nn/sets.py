"""From several observations of one thing to a vector, whatever their order and number::

    encode = SetEncoder(2, width=256)
    e = encode(obs)                              # obs (B, N, 2) to (B, 256); members of NaN are padding
    net = MLP(1, sets={"obs": 2})                # a network that is told of such a set
    out = net(theta, c, obs=obs)                 # any N, another one in each call

The order is lost because members are only ever summed over, and what is not there is a zero in each of these sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import checks
from scoresde.models.conditions import split_absent


class Pooled(NamedTuple):
    """What is left of rows (B, N, width) when their order is gone: mean and largest of each channel, and their number.

    Attributes:
        mean, largest: (B, width); 0 where there are no rows.
        number: of rows, (B, 1), in their dtype.
    """

    mean: Tensor
    largest: Tensor
    number: Tensor

    @property
    def features(self) -> Tensor:
        """(B, 2 width + 1): mean, largest, log(1 + number)."""
        return torch.cat([self.mean, self.largest, self.number.log1p()], 1)


def pooled(rows: Tensor, present: Tensor) -> Pooled:
    """Pool rows (B, N, width) over those that are present (B, N), summing in at least float32."""
    exact = torch.promote_types(rows.dtype, torch.float32)
    count = present.sum(1, keepdim=True)
    there = present[..., None]
    mean = rows.masked_fill(~there, 0).sum(1, dtype=exact) / count.clamp(min=1)
    if rows.shape[1]:
        largest = rows.masked_fill(~there, -torch.inf).amax(1).masked_fill(count == 0, 0)
    else:
        largest = rows.new_zeros(len(rows), rows.shape[2])
    return Pooled(mean.to(rows.dtype), largest, count.to(rows.dtype))


class SetBlock(nn.Module):
    """Residual block of one set: each member on its own, and beside it the mean of all.

        out_i = h_i + linear2(silu(linear1(norm(h_i)) + mixed(mean_j norm(h_j))))

    the permutation-equivariant layer of Zaheer et al. 2017 (arXiv:1703.06114, equation 4) as a residual block, with
    linear2 starting at zero. (B, N, width) and present (B, N) -> (B, N, width).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, 2 * width)
        self.mixed = nn.Linear(width, 2 * width, bias=False)
        self.linear2 = nn.Linear(2 * width, width)
        nn.init.zeros_(self.linear2.weight)
        nn.init.zeros_(self.linear2.bias)

    def forward(self, h: Tensor, present: Tensor) -> Tensor:
        """Map members (B, N, width) to the same shape."""
        normed = self.norm(h)
        return h + self.linear2(F.silu(self.linear1(normed) + self.mixed(pooled(normed, present).mean)[:, None]))


class SetEncoder(nn.Module):
    """A set (B, N, size) to one vector (B, width), invariant under permutations of its members, of which any number.

        h_i = blocks(linear(x_i)),    e = linear(silu(linear([mean_i h_i, max_i h_i, log(1 + n)])))

    Deep sets (Zaheer et al. 2017, arXiv:1703.06114, theorem 2) with members that see the mean of all in each
    `SetBlock`. n, the number of members, is told apart: n copies of one observation say more than one of them. A
    member of NaN is padding: it changes nothing. A set without members is a learned vector, "not given". Members are
    pooled without a norm before, so that means of the observations themselves are among the features.

    Args:
        size: numbers in a member.
        width: of the vector.
        hidden: channels inside.
        layers: number of blocks.
    """

    def __init__(self, size: int, width: int, *, hidden: int = 64, layers: int = 2) -> None:
        super().__init__()
        size, width = checks.count(size, name="size"), checks.count(width, name="width")
        hidden, layers = checks.count(hidden, name="hidden"), checks.count(layers, name="layers")
        self.linear = nn.Linear(size, hidden)
        self.blocks = nn.ModuleList(SetBlock(hidden) for _ in range(layers))
        self.head = PooledHead(hidden, width)

    @property
    def absent(self) -> Tensor:
        """The vector (width,) of a set without members."""
        return self.head.absent

    def forward(self, value: Tensor) -> Tensor:
        """Map value (B, N, size) to (B, width)."""
        known, absent = split_absent(value, 2)
        h = self.linear(known.to(self.linear.weight.dtype))
        for block in self.blocks:
            h = block(h, ~absent)
        return self.head(h, ~absent)


class PooledHead(nn.Module):
    """Rows (B, N, hidden), of which those are present (B, N), to a vector (B, width); a learned one where none is."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(2 * hidden + 1, width)
        self.linear2 = nn.Linear(width, width)
        self.absent = nn.Parameter(torch.randn(width))

    def forward(self, rows: Tensor, present: Tensor) -> Tensor:
        """Map rows (B, N, hidden) to (B, width)."""
        h = self.linear2(F.silu(self.linear1(pooled(rows, present).features)))
        return torch.where(present.any(1, keepdim=True), h, self.absent.to(h.dtype))
