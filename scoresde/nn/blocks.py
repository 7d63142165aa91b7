"""The pieces of the U-Net: convolutions for any number of axes, residual blocks, changes of resolution::

    style = BlockStyle(event_dims=2, embedding=256, conditioning="adaptive", head_width=64, dropout=0.0)
    stage = ResidualStage(64, 128, style, attention=True)
    h = stage(h, embedding)                              # (B, 64, H, W) and (B, 256) to (B, 128, H, W)
    h = Upsample(128, 64, style)(h, size)                # to (B, 64, *size)

What all blocks of one network share is a :class:`BlockStyle`, so that an option of blocks is one field of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from scoresde import checks
from scoresde.nn.attention import Context, CrossAttention, SelfAttention, group_norm, maps_are_edited
from scoresde.nn.low_rank import added_to, as_linear
from scoresde.nn.network import check_dropout
from scoresde.nn.norms import group_normed

Conditioning = Literal["add", "adaptive"]


@dataclass(frozen=True)
class BlockStyle:
    """What all blocks of one network share.

    Attributes:
        event_dims: number of spatial axes, 1, 2 or 3.
        embedding: size of the conditioning vector; 0 where there is none, and blocks are told nothing.
        conditioning: how that vector enters a block, "add" or "adaptive".
        head_width: least number of channels per attention head.
        dropout: probability of dropping an activation inside a block.
        context: width of the tokens to attend to; 0 where there are none.
        checkpoint: keep only the input of each block for the backward pass, and run the block again there.
    """

    event_dims: int
    embedding: int
    conditioning: Conditioning
    head_width: int
    dropout: float
    context: int = 0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if self.event_dims not in (1, 2, 3):
            raise ValueError(f"event_dims={self.event_dims}: expected 1 (signal), 2 (image) or 3 (volume).")
        if self.conditioning not in ("add", "adaptive"):
            raise ValueError(f"conditioning={self.conditioning!r}: expected 'add' or 'adaptive'.")
        checks.count(self.head_width, name="head_width")
        check_dropout(self.dropout)

    def conv(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
        """Return a convolution over event_dims axes that keeps sizes n, or makes them ceil(n / stride)."""
        layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.event_dims - 1]
        return layer(inputs, outputs, kernel, stride=stride, padding=kernel // 2)

    def zero_conv(self, inputs: int, outputs: int) -> nn.Module:
        """Return a convolution that starts at zero, so that what it ends starts as if absent."""
        layer = self.conv(inputs, outputs)
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
        return layer


class ResidualBlock(nn.Module):
    """Pre-activation residual block, told the time and the class by a conditioning vector.

        h   = conv1(silu(norm1(x)))
        h   = norm2(h + A e)                   conditioning="add" (Ho et al. 2020)
        h   = norm2(h) * (1 + S e) + T e       conditioning="adaptive" (Dhariwal and Nichol 2021, section 3)
        out = (x + conv2(dropout(silu(h)))) / sqrt(2)

    with e the conditioning vector and conv2 starting at zero; where there is none, h = norm2(h). The factor keeps the
    variance from growing with depth (Song et al. 2021, appendix H). x is projected by a 1x1 convolution where the
    number of channels changes. (B, inputs, *spatial) and (B, embedding) -> (B, outputs, *spatial).
    """

    def __init__(self, inputs: int, outputs: int, style: BlockStyle) -> None:
        super().__init__()
        told = style.embedding > 0
        self.adaptive = told and style.conditioning == "adaptive"
        self.norm1 = group_norm(inputs)
        self.conv1 = style.conv(inputs, outputs)
        self.condition = nn.Linear(style.embedding, 2 * outputs if self.adaptive else outputs) if told else None
        self.norm2 = group_norm(outputs, affine=not self.adaptive)
        self.dropout = nn.Dropout(style.dropout)
        self.conv2 = style.zero_conv(outputs, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else style.conv(inputs, outputs, kernel=1)

    def forward(self, x: Tensor, embedding: Tensor, told: Tensor | None = None) -> Tensor:
        """Map x (B, inputs, *spatial) and embedding (B, E) to (B, outputs, *spatial).

        ``told``, if given, is what this block's linear map makes of the embedding, see `told_to_all`.
        """
        h = self.conv1(group_normed(self.norm1, x, silu=True))
        if told is None and self.condition is not None:
            told = self.condition(embedding)
        if told is None:
            h = group_normed(self.norm2, h, silu=True)
        elif self.adaptive:
            scale, shift = told.chunk(2, dim=1)
            h = group_normed(self.norm2, h, scale, shift, silu=True)
        else:
            h = group_normed(self.norm2, h + told.reshape(told.shape + (1,) * (x.ndim - 2)), silu=True)
        return (self.shortcut(x) + self.conv2(self.dropout(h))) * math.sqrt(0.5)


def told_to_all(blocks: Sequence[ResidualBlock], embedding: Tensor) -> list[Tensor | None]:
    """What the embedding (B, E) tells each block, all in one matrix product; None: the block is to ask for itself.

    That is where a map has been replaced, somebody looks on, or its weights are not all here but with other processes.
    """
    every = [block.condition for block in blocks]
    maps = [one for one in every if one is not None and _whole(one)]
    if len(maps) < len(every) or len({(one.weight.dtype, one.weight.device) for one in maps}) > 1:
        return [None] * len(every)
    weight, bias = torch.cat([one.weight for one in maps]), torch.cat([one.bias for one in maps])
    told = F.linear(embedding, weight, bias).split([one.out_features for one in maps], dim=1)
    return [added_to(one, part, embedding) for one, part in zip(maps, told, strict=True)]


def _whole(linear: nn.Module) -> bool:
    if not isinstance(linear, nn.Linear) or not as_linear(linear) or type(linear.weight) is not nn.Parameter:
        return False
    return linear.bias is not None and linear.weight.shape == (linear.out_features, linear.in_features)


class ResidualStage(nn.Module):
    """A residual block and, where asked for, self-attention and then cross-attention to tokens after it."""

    def __init__(self, inputs: int, outputs: int, style: BlockStyle, attention: bool, cross: bool = False) -> None:
        super().__init__()
        self.block = ResidualBlock(inputs, outputs, style)
        self.attention = SelfAttention(outputs, style.head_width) if attention else nn.Identity()
        self.cross = CrossAttention(outputs, style.context, style.head_width) if cross else None
        self.checkpoint = style.checkpoint

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        context: Context | None = None,
        *,
        skip: Tensor | None = None,
        told: Tensor | None = None,
    ) -> Tensor:
        """Map x (B, inputs, *spatial), embedding (B, E) and, where there is one, context to (B, outputs, *spatial).

        ``skip``, if given, is joined to x along the channels, which make up the inputs together; for ``told`` see
        `told_to_all`.
        """
        inputs = x, skip, embedding, context, told
        # torch.func knows no checkpointing, and maps that are recorded must not be recorded again.
        wrapped = not torch.compiler.is_compiling() and _functorch.is_functorch_wrapped_tensor(x)
        if not self.checkpoint or not torch.is_grad_enabled() or wrapped or maps_are_edited():
            return self._run(*inputs)
        drops = self.training and self.block.dropout.p > 0
        return checkpoint(self._run, *inputs, use_reentrant=False, preserve_rng_state=drops)

    def _run(
        self, x: Tensor, skip: Tensor | None, embedding: Tensor, context: Context | None, told: Tensor | None
    ) -> Tensor:
        x = x if skip is None else torch.cat([x, skip], dim=1)
        h = self.attention(self.block(x, embedding, told))
        return h if self.cross is None else self.cross(h, context)


class Upsample(nn.Module):
    """A 1x1 convolution, then nearest-neighbour upsampling to a given size.

    The convolution comes first because it commutes with nearest-neighbour upsampling and is four times cheaper
    (in 2-D) on the small side; the 3x3 convolution of the next block smooths the blocks of equal pixels.
    """

    def __init__(self, inputs: int, outputs: int, style: BlockStyle) -> None:
        super().__init__()
        self.conv = style.conv(inputs, outputs, kernel=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """Map x (B, inputs, *spatial) to (B, outputs, *size)."""
        return F.interpolate(self.conv(x), size=size, mode="nearest")
