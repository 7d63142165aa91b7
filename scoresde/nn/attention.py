"""Attention of the positions of an event of any number of axes: to each other, to tokens, and pooling::

    look = SelfAttention(64, head_width=32)
    h = look(h)                                          # (B, 64, *spatial) to the same shape
    read = CrossAttention(64, context=256)
    h = read(h, Context(tokens, present))                # tokens (B, N, 256), present (B, N) bool
    vector = AttentionPool(64)(h)                        # (B, 64)

All start from :func:`group_norm`, which the residual blocks use as well. In channels-last, features are tokens already:
nothing is copied on the way in, in the kernel of attention, or on the way out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import checks
from scoresde.checks.written import as_written
from scoresde.nn.low_rank import added_to, as_linear
from scoresde.nn.norms import group_normed

MOST_CHANNELS = 2**20
"""Of a layer: more than any machine can hold the square of."""


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """Group norm (Wu and He 2018) with the most groups, up to 32, of at least 4 channels each."""
    groups = max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 4))
    return nn.GroupNorm(groups, channels, affine=affine)


def number_of_heads(channels: int, head_width: int) -> int:
    """Return the most heads of at least head_width channels each; one where there are fewer channels."""
    channels = checks.count(channels, name="channels", most=MOST_CHANNELS)
    head_width = checks.count(head_width, name="head_width")
    most = max(1, channels // head_width)
    return max(heads for heads in range(1, most + 1) if channels % heads == 0)


def to_tokens(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear map of the channels at each position: (B, C, *spatial) to (B, positions, out)."""
    # oneDNN's convolutions take channels-last as it is, and with some processors are twice as fast as matrix products.
    if x.device.type == "cpu" and x.ndim > 3 and as_linear(linear):
        return added_to(linear, _pointwise(linear, x).flatten(2).transpose(1, 2), x.flatten(2).transpose(1, 2))
    return linear(x.flatten(2).transpose(1, 2))


def from_tokens(linear: nn.Linear, tokens: Tensor, like: Tensor) -> Tensor:
    """The way back: (B, positions, C) to the shape of ``like``, (B, out, *spatial)."""
    if like.device.type == "cpu" and like.ndim > 3 and as_linear(linear):
        events = _pointwise(linear, tokens.transpose(1, 2).unflatten(2, like.shape[2:]))
        mapped = added_to(linear, events.flatten(2).transpose(1, 2), tokens)
    else:
        mapped = linear(tokens)
    return mapped.transpose(1, 2).unflatten(2, like.shape[2:])


def _pointwise(linear: nn.Linear, x: Tensor) -> Tensor:
    kernel = linear.weight.reshape(*linear.weight.shape, *[1] * (x.ndim - 2))
    return (F.conv2d if x.ndim == 4 else F.conv3d)(x, kernel, linear.bias)


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
        channels = checks.count(channels, name="channels")
        self.heads = number_of_heads(channels, head_width)
        self.norm = group_norm(channels)
        # No bias: a key's bias cancels in the softmax, and the norm before already adds one.
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, *spatial) to the same shape."""
        tokens = to_tokens(self.qkv, group_normed(self.norm, x)).chunk(3, dim=2)  # of (B, N, 3 C)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in tokens)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, C / heads)
        return x + from_tokens(self.proj, mixed.transpose(1, 2).flatten(2), x)


class Context(NamedTuple):
    """What positions attend to: tokens (B, N, width), and which of them count, present (B, N) bool."""

    tokens: Tensor
    present: Tensor


LayerEdit = Callable[[Tensor], Tensor]
"""The map of a layer -> the one to use."""

_edits: ContextVar[Mapping[int, Callable[[Any], Any]]] = ContextVar(
    "edits of attention maps"
)  # by id of the layer, of this thread
_counted = threading.Lock()
_contexts = _of_maps = 0
_anybody_edits = False  # in any thread: asked first, since a compiled network cannot ask for more without a break


@contextmanager
def edited_maps(edits: Mapping[nn.Module, Callable[[Any], Any]], *, maps: bool = True) -> Iterator[None]:
    """Inside, and in this thread alone, these layers let their maps be edited, and encoders what they make.

    Nothing is written to the layers, so other threads may use the same network meanwhile.

    Args:
        edits: by the layer.
        maps: False for encoders alone: blocks, which come after them, may be run again in a backward pass.

    Raises:
        RuntimeError: a layer's map is being edited in this thread already.
    """
    global _contexts, _of_maps, _anybody_edits
    outer = _edits.get({})
    if any(id(layer) in outer for layer in edits):
        raise RuntimeError(
            "the maps of this network are being recorded or injected already; leave that context first. To record "
            "edited maps, keep them in the edit function."
        )
    with _counted:
        _contexts, _of_maps = _contexts + 1, _of_maps + maps
        _anybody_edits = True
    token = _edits.set({**outer, **{id(layer): edit for layer, edit in edits.items()}})
    try:
        with as_written():  # a graph that is replayed asks for no edits
            yield
    finally:
        _edits.reset(token)
        with _counted:
            _contexts, _of_maps = _contexts - 1, _of_maps - maps
            _anybody_edits = _contexts > 0


def maps_are_edited() -> bool:
    """Whether attention maps are being recorded or edited, in any thread."""
    return _of_maps > 0


def edit_of(layer: nn.Module) -> Callable[[Any], Any] | None:
    """What this thread does to the layer's map, or to the encoding that it makes of conditions; None for nothing."""
    return _edits.get({}).get(id(layer)) if _anybody_edits else None


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
        channels = checks.count(channels, name="channels")
        self.heads = number_of_heads(channels, head_width)
        self.norm = group_norm(channels)
        self.query = nn.Linear(channels, channels, bias=False)
        self.kv = nn.Linear(checks.count(context, name="context"), 2 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map x (B, C, *spatial) to the same shape."""
        q = to_tokens(self.query, group_normed(self.norm, x)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = (z.unflatten(2, (self.heads, -1)).transpose(1, 2) for z in self.kv(context.tokens).chunk(2, dim=2))
        present = context.present[:, None, None, :]
        edit = edit_of(self) if _anybody_edits else None  # asked here, so that a compiled layer stays one graph
        if edit is None:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=present)  # (B, heads, P, C / heads)
        else:
            logits = (q @ k.transpose(2, 3)).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[3] ** -0.5
            attention = edit(logits.masked_fill(~present, -torch.inf).softmax(3))
            mixed = attention.to(v.dtype) @ v
        return x + from_tokens(self.proj, mixed.transpose(1, 2).flatten(2), x)


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
        channels = checks.count(channels, name="channels")
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
