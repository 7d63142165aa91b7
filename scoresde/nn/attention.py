"""Attention of the positions of an event of any number of axes: to each other, to tokens, and pooling::

    look = SelfAttention(64, head_width=32)
    h = look(h)                                          # (B, 64, *spatial) to the same shape
    read = CrossAttention(64, context=256)
    h = read(h, Context(tokens, present))                # tokens (B, N, 256), present (B, N) bool
    vector = AttentionPool(64)(h)                        # (B, 64)

All start from :func:`group_norm`, which the residual blocks use as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import checks


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """Group norm (Wu and He 2018) with the most groups, up to 32, of at least 4 channels each."""
    groups = max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 4))
    return nn.GroupNorm(groups, channels, affine=affine)


def number_of_heads(channels: int, head_width: int) -> int:
    """Return the most heads of at least head_width channels each; one where there are fewer channels."""
    checks.count(head_width, name="head_width")
    most = max(1, channels // head_width)
    return max(heads for heads in range(1, most + 1) if channels % heads == 0)


class SelfAttention(nn.Module):
    """x + proj(attention(norm(x))), every position looking at every other; (B, C, *spatial) to the same shape.

    Multi-head scaled dot-product attention (Vaswani et al. 2017, equation 1) with the group norm and the
    residual form of Ho et al. 2020. The last linear map starts at zero, so the block starts as the identity.

    torch's fused attention kernels know first-order reverse-mode derivatives only. For a Jacobian-vector
    product or a second derivative, call the network inside
    `torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)`.

    Args:
        channels: number of channels C.
        head_width: least number of channels per head; a single head where C is smaller.

    Raises:
        ValueError: head_width is not positive.
    """

    def __init__(self, channels: int, head_width: int = 64) -> None:
        super().__init__()
        self.heads = number_of_heads(channels, head_width)
        self.norm = group_norm(channels)
        # No bias: a key's bias cancels in the softmax, and the norm before already adds one.
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, *spatial) to the same shape."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, C)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, C / heads)
        out = self.proj(mixed.transpose(1, 2).flatten(2))
        return x + out.transpose(1, 2).reshape(x.shape)


class Context(NamedTuple):
    """What positions attend to: tokens (B, N, width), and which of them count, present (B, N) bool."""

    tokens: Tensor
    present: Tensor


class CrossAttention(nn.Module):
    """x + proj(attention(norm(x) -> tokens)), each position looking at each token; (B, C, *spatial) to the same shape.

        Q = W_Q norm(x),   K = W_K tokens,   V = W_V tokens,   M = softmax(Q Kᵀ / sqrt(d)),   out = x + proj(M V)

    with d channels per head, and M zero on tokens that are not present: Rombach et al. 2022 (arXiv:2112.10752,
    section 3.3). At least one token of each sample must be present. The last linear map starts at zero. M is the
    map (B, heads, positions, tokens) that `AttentionMaps` records and replaces; otherwise the fused kernel never
    forms it, see `SelfAttention` for its derivatives.

    Args:
        channels: number of channels C.
        context: width of the tokens.
        head_width: least number of channels per head; a single head where C is smaller.
    """

    def __init__(self, channels: int, context: int, head_width: int = 64) -> None:
        super().__init__()
        self.heads = number_of_heads(channels, head_width)
        self.norm = group_norm(channels)
        self.query = nn.Linear(channels, channels, bias=False)
        self.kv = nn.Linear(context, 2 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)
        # Set and removed by AttentionMaps: takes the map, returns the one to use.
        self.edit: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map x (B, C, *spatial) to the same shape."""
        positions = self.norm(x).flatten(2).transpose(1, 2)  # (B, P, C)
        q = self.query(positions).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context.tokens).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        present = context.present[:, None, None, :]
        if self.edit is None:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=present)  # (B, heads, P, C / heads)
        else:
            logits = (q @ k.transpose(2, 3)).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[3] ** -0.5
            attention = self.edit(logits.masked_fill(~present, -torch.inf).softmax(3))
            mixed = attention.to(v.dtype) @ v
        out = self.proj(mixed.transpose(1, 2).flatten(2))
        return x + out.transpose(1, 2).reshape(x.shape)


class AttentionPool(nn.Module):
    """One vector per event by attention from a learned query, (B, C, *spatial) -> (B, C).

    Pooling by attention with one learned seed (Lee et al. 2019, equation 11): any number of positions is
    welcome, and the pool learns where to look, which depends on where the noise has left something to see.

    Args:
        channels: number of channels C.
        head_width: least number of channels per head, each head with its own query.
    """

    def __init__(self, channels: int, head_width: int = 64) -> None:
        super().__init__()
        self.heads = number_of_heads(channels, head_width)
        self.query = nn.Parameter(torch.randn(self.heads, 1, channels // self.heads))
        self.kv = nn.Linear(channels, 2 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, *spatial) to (B, C)."""
        tokens = x.flatten(2).transpose(1, 2)
        k, v = self.kv(tokens).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        query = self.query.to(k.dtype).expand(len(x), -1, -1, -1)
        mixed = F.scaled_dot_product_attention(query, k, v)  # (B, heads, 1, C / heads)
        return self.proj(mixed.flatten(1))
