"""From a time series to a vector, whatever its length::

    encode = SeriesEncoder(2, width=256)
    e = encode(obs)                              # obs (B, T, 2) to (B, 256); steps of NaN at the end are padding
    net = MLP(3, series={"obs": 2})              # a network that is told of such a series
    out = net(theta, c, obs=obs)                 # any T, another one in each call

Convolutions along time, of which each second one halves it, so that the cost is linear in T.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import checks
from scoresde.models.conditions import split_absent
from scoresde.nn.sets import PooledHead


def step_waves(steps: int, width: int, like: Tensor) -> Tensor:
    """Sines and cosines of the number of a step, (steps, width), computed and so there for any length.

    sin(k w), cos(k w) for angular frequencies w from 1 down to 1/10000 in geometric order (Vaswani et al. 2017,
    arXiv:1706.03762, section 3.5); an odd width ends in a zero.
    """
    exact = torch.promote_types(like.dtype, torch.float32)
    half = max(1, width // 2)
    exponents = torch.arange(half, dtype=exact, device=like.device) / half
    phase = torch.arange(steps, dtype=exact, device=like.device)[:, None] * torch.exp(-math.log(10_000.0) * exponents)
    return F.pad(torch.cat([phase.sin(), phase.cos()], 1), (0, width))[:, :width].to(like.dtype)


class SeriesBlock(nn.Module):
    """Residual convolution along time that halves the number of steps.

        h   = linear2(silu(conv(norm(x))))        conv of 3 steps and stride 2, linear2 starting at zero
        out = x[every second step] + h

    Beyond the last step there are zeros, as behind any convolution with padding; so a series and the same one with
    padding have the same result. (B, T, width) and there (B, T, 1) -> (B, ceil(T / 2), width), and there for these.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, 2 * width, 3, stride=2, padding=1)
        self.linear2 = nn.Linear(2 * width, width)
        nn.init.zeros_(self.linear2.weight)
        nn.init.zeros_(self.linear2.bias)

    def forward(self, x: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Map steps (B, T, width), of which those of the series are ``there`` (B, T, 1)."""
        h = self.conv((self.norm(x) * there).transpose(1, 2)).transpose(1, 2)
        return x[:, ::2] + self.linear2(F.silu(h)), there[:, ::2]


class SeriesEncoder(nn.Module):
    """A series (B, T, size) of any length T to one vector (B, width).

        h_k = linear([x_k, 1]) + waves(k), then blocks,    e = linear(silu(linear([mean h, max h, log(1 + T)])))

    The series ends with its last step that is not NaN; what follows is padding, and changes nothing. A step of NaN
    before is missing: zeros, and a 0 in place of the 1 beside it. A series without steps is a learned vector, "not
    given". Steps are taken to be evenly spaced; where they are not, the time is one more column of the series.

    Each block halves the steps, and what is pooled has seen 2^(layers + 1) - 1 neighbouring ones of the series: take
    more layers for dependences over longer times.

    Args:
        size: numbers in a step.
        width: of the vector.
        hidden: channels inside.
        layers: number of blocks.
    """

    def __init__(self, size: int, width: int, *, hidden: int = 64, layers: int = 2) -> None:
        super().__init__()
        size, width = checks.count(size, name="size"), checks.count(width, name="width")
        hidden, layers = checks.count(hidden, name="hidden"), checks.count(layers, name="layers")
        self.linear = nn.Linear(size + 1, hidden)
        self.blocks = nn.ModuleList(SeriesBlock(hidden) for _ in range(layers))
        self.head = PooledHead(hidden, width)

    @property
    def absent(self) -> Tensor:
        """The vector (width,) of a series without steps."""
        return self.head.absent

    def forward(self, value: Tensor) -> Tensor:
        """Map value (B, T, size) to (B, width)."""
        known, absent = split_absent(value, 2)
        dtype = self.linear.weight.dtype
        present = ~absent
        # a step belongs to the series if it or any later one is there
        within = present.flip(1).cummax(1).values.flip(1) if present.shape[1] else present
        h = self.linear(torch.cat([known, present[..., None].to(known.dtype)], 2).to(dtype))
        h = h + step_waves(h.shape[1], h.shape[2], h)
        there = within[..., None].to(dtype)
        for block in self.blocks if h.shape[1] else ():
            h, there = block(h, there)
        return self.head(h, there[..., 0] > 0)
