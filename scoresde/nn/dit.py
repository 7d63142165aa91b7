"""The diffusion transformer for signals, images, volumes and sequences::

    net = DiT(3, patch=2, width=256, depth=12, num_classes=10)
    out = net(x, c, label=y)                 # x (B, 3, H, W), c = log(sigma/alpha) (B,), y (B,) -> (B, 3, H, W)
    net = DiT(16, event_dims=1, patch=1)     # sequences of vectors: tokens (B, L, 16) are x = tokens.transpose(1, 2)
    twin = DiT(**net.config)                 # the same shape, with fresh weights

It has no notion of neighbours but what its positions tell, and every patch sees every other from the first block on: it
learns more slowly than a U-Net on few pictures, and scales further.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import checks
from scoresde.models.conditions import Caption, Conditions, Embedding, Image, Label, Series, Set, Vector
from scoresde.nn.attention import Context, CrossAttention, number_of_heads
from scoresde.nn.context import ContextEncoder
from scoresde.nn.embeddings import ConditionEmbedding, TimeFeatures
from scoresde.nn.network import ConditionalNetwork, check_dropout
from scoresde.nn.series import step_waves
from scoresde.nn.shapes import check_event
from scoresde.nn.unet import image_channels

_TIME_FEATURES = 256


class DiTBlock(nn.Module):
    """Transformer block told the time and the class by a vector e, which starts as the identity (adaLN-Zero).

        s1, t1, g1, s2, t2, g2 = linear(e)                                     starting at zero
        h   = x + g1 * attention(layer_norm(x) * (1 + s1) + t1)
        h   = cross_attention(h, context)                                      where there are tokens to look at
        out = h + g2 * linear2(dropout(gelu(linear1(layer_norm(h) * (1 + s2) + t2))))

    Peebles and Xie 2022 (arXiv:2212.09748, section 3.2 and figure 3). (B, N, width) and (B, E) -> (B, N, width).

    Args:
        width: of the tokens.
        embedding: size of the conditioning vector.
        head_width: least number of channels per attention head.
        dropout: probability of dropping an activation of the feed-forward part.
        context: width of the tokens to attend to; 0 where there are none.
    """

    def __init__(self, width: int, embedding: int, head_width: int, dropout: float, context: int) -> None:
        super().__init__()
        self.heads = number_of_heads(width, head_width)
        self.condition = nn.Linear(embedding, 6 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.cross = CrossAttention(width, context, head_width) if context else None
        self.linear1 = nn.Linear(width, 4 * width)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(4 * width, width)
        for layer in (self.qkv, self.proj, self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        _zero(self.condition)

    def forward(self, x: Tensor, embedding: Tensor, context: Context | None = None) -> Tensor:
        """Map tokens x (B, N, width), embedding (B, E) and, where there is one, context to (B, N, width)."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.condition(embedding)[:, None].chunk(6, dim=2)
        h = torch.addcmul(shift1, self.norm(x), 1 + scale1)
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, width / heads)
        x = torch.addcmul(x, gate1, self.proj(mixed.transpose(1, 2).flatten(2)))
        if self.cross is not None:
            x = self.cross(x.transpose(1, 2), context).transpose(1, 2)
        h = torch.addcmul(shift2, self.norm(x), 1 + scale2)
        return torch.addcmul(x, gate2, self.linear2(self.dropout(F.gelu(self.linear1(h), approximate="tanh"))))


class DiT(ConditionalNetwork):
    """Diffusion transformer for events (B, channels, *spatial) of 1, 2 or 3 spatial axes of any sizes.

    Patches of x become tokens by a linear map, each `DiTBlock` lets all look at all, and a last adaptive norm and
    linear map, which start at zero, make patches of the output of them (Peebles and Xie 2022, arXiv:2212.09748). Sizes
    that are no multiple of the patch are filled up with zeros, and the output is cut again. Positions are sines and
    cosines of the number of a patch along each axis, computed and so there for sizes that it was not trained on, too;
    what it makes of those is not known before it was.

    Conditions are those of `UNet`, each "not given" in the same way: `num_classes`, `vectors`, `sets` and `series` in
    the conditioning vector, `images` as further channels of the patches, `captions` and `embeddings` by
    `CrossAttention` in each block. How it is called is said at `ConditionalNetwork.forward`.

    The fused attention has first derivatives in reverse mode only, see `SelfAttention`.

    Args:
        channels: channels of the event.
        event_dims: number of spatial axes, 1, 2 or 3.
        patch: size of a patch along each axis. Half of it is four times the tokens in two dimensions.
        width: of the tokens. Multiples of head_width are meant.
        depth: number of blocks.
        head_width: least number of channels per attention head.
        num_classes: number of classes for a class-conditional network.
        out_channels: channels of the output; as many as of the event unless given.
        time_features: "sinusoidal" or "fourier", see `SinusoidalFeatures` and `FourierFeatures`.
        dropout: probability of dropping an activation inside a block, while training.
        vectors, images, captions, embeddings, sets, series: conditions by name, as for `UNet`.

    Raises:
        TypeError, ValueError: an argument is not a whole number where it should be, or out of its range; two
            conditions of one name.
    """

    def __init__(
        self,
        channels: int,
        event_dims: int = 2,
        *,
        patch: int = 2,
        width: int = 256,
        depth: int = 8,
        head_width: int = 64,
        num_classes: int | None = None,
        out_channels: int | None = None,
        time_features: TimeFeatures = "sinusoidal",
        dropout: float = 0.0,
        vectors: Mapping[str, int] | None = None,
        images: Mapping[str, int] | None = None,
        captions: Mapping[str, Mapping[str, int]] | None = None,
        embeddings: Mapping[str, int] | None = None,
        sets: Mapping[str, int | Mapping[str, int]] | None = None,
        series: Mapping[str, int | Mapping[str, int]] | None = None,
    ) -> None:
        channels = checks.count(channels, name="channels")
        event_dims = checks.whole(event_dims, name="event_dims", least=1, most=3)
        patch, width = checks.count(patch, name="patch"), checks.count(width, name="width")
        depth, head_width = checks.count(depth, name="depth"), checks.count(head_width, name="head_width")
        out_channels = None if out_channels is None else checks.count(out_channels, name="out_channels")
        dropout = check_dropout(dropout)
        if width < 2 * event_dims:
            raise ValueError(f"width={width}: positions along {event_dims} axes need at least {2 * event_dims}.")
        conditions = Conditions.joined(
            Label.named(num_classes),
            Vector.named(vectors),
            Image.named(images),
            Caption.named(captions),
            Embedding.named(embeddings),
            Set.named(sets),
            Series.named(series),
        )
        super().__init__(
            {
                "channels": channels,
                "event_dims": event_dims,
                "patch": patch,
                "width": width,
                "depth": depth,
                "head_width": head_width,
                "num_classes": num_classes,
                "out_channels": out_channels,
                "time_features": time_features,
                "dropout": dropout,
            },
            conditions,
        )
        self.channels, self.event_dims, self.patch = channels, event_dims, patch
        self.outputs = channels if out_channels is None else out_channels
        self.images = {name: image.channels for name, image in conditions.of_kind(Image).items()}
        attended = [*conditions.of_kind(Caption), *conditions.of_kind(Embedding)]
        context = width if attended else 0
        area = patch**event_dims
        self.embedding = ConditionEmbedding(_TIME_FEATURES, width, time_features, conditions)
        self.stem = nn.Linear(area * (channels + sum(count + 1 for count in self.images.values())), width)
        nn.init.xavier_uniform_(self.stem.weight)
        nn.init.zeros_(self.stem.bias)
        self.blocks = nn.ModuleList(DiTBlock(width, width, head_width, dropout, context) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.condition = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, area * self.outputs)
        _zero(self.condition)
        _zero(self.head)
        self.context = ContextEncoder(conditions, context) if context else None

    def check_x(self, x: Tensor) -> None:
        """Raise unless x is (B, channels, *spatial)."""
        check_event(x, self.channels, self.event_dims)

    def compute(self, x: Tensor, c: Tensor, given: Mapping[str, Tensor | None]) -> Tensor:
        embedding = self.embedding(c, given)
        context = None if self.context is None else self.context(given)
        dtype = self.head.weight.dtype
        images = [image_channels(x, given[name], channels) for name, channels in self.images.items()]
        patches, grid = to_patches(torch.cat([z.to(dtype) for z in (x, *images)], 1), self.patch)
        h = self.stem(patches)
        h = h + positions(grid, h)
        for block in self.blocks:
            h = block(h, embedding, context)
        scale, shift = self.condition(embedding)[:, None].chunk(2, dim=2)
        return from_patches(self.head(torch.addcmul(shift, self.norm(h), 1 + scale)), grid, self.patch, x.shape[2:])


def to_patches(x: Tensor, patch: int) -> tuple[Tensor, tuple[int, ...]]:
    """Cut x (B, C, *spatial) into patches (B, N, C patch^d), the last axis fastest; and their number along each axis.

    Sizes that are no multiple of the patch are filled up with zeros at their ends.
    """
    sizes = x.shape[2:]
    grid = tuple(-(-size // patch) for size in sizes)
    missing = [count * patch - size for count, size in zip(grid, sizes, strict=True)]
    if any(missing):
        x = F.pad(x, [end for gap in reversed(missing) for end in (0, gap)])
    axes = len(grid)
    for i, count in enumerate(grid):  # (B, C, n1, p, n2, p, ...)
        x = x.unflatten(2 + 2 * i, (count, patch))
    places, inside = [2 + 2 * i for i in range(axes)], [3 + 2 * i for i in range(axes)]
    return x.permute(0, *places, 1, *inside).flatten(1 + axes).flatten(1, axes), grid


def from_patches(tokens: Tensor, grid: Sequence[int], patch: int, sizes: Sequence[int]) -> Tensor:
    """The inverse of :func:`to_patches`: tokens (B, N, C patch^d) to (B, C, *sizes), without what was filled up."""
    axes = len(grid)
    x = tokens.unflatten(2, (-1, *[patch] * axes)).unflatten(1, tuple(grid))  # (B, *grid, C, *patch)
    x = x.permute(0, 1 + axes, *(axis for i in range(axes) for axis in (1 + i, 2 + axes + i)))
    for i in range(axes):
        x = x.flatten(2 + i, 3 + i)
    for i, size in enumerate(sizes):
        x = x.narrow(2 + i, 0, size)
    return x


def positions(grid: Sequence[int], like: Tensor) -> Tensor:
    """Sines and cosines of each patch's number along each axis, (N, width of ``like``).

    Each axis has an equal share of the channels, see `step_waves`; what is left over is zero.
    """
    axes, width = len(grid), like.shape[2]
    share = width // axes // 2 * 2
    parts = []
    for i, count in enumerate(grid):
        waves = step_waves(count, share, like)
        parts.append(waves.reshape([count if axis == i else 1 for axis in range(axes)] + [share]).expand(*grid, share))
    return F.pad(torch.cat(parts, -1).flatten(0, axes - 1), (0, width - share * axes))


def _zero(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
