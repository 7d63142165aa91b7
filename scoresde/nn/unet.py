"""The U-Net for signals, images and volumes::

    net = UNet(3, width=64, multipliers=(1, 2, 2), num_classes=10)
    out = net(x, c, label=y)                 # x (B, 3, H, W), c = log(sigma/alpha) (B,), y (B,) -> (B, 3, H, W)
    net = UNet(1, event_dims=3, images={"low": 1}, captions={"text": {"vocabulary": 24, "length": 6}})
    out = net(x, c, low=z, text=tokens)      # volumes, with a smaller volume and a caption
    twin = UNet(**net.config)                # the same shape, with fresh weights

A new kind of condition enters as one more argument, and where its kind belongs: beside x, in the conditioning vector,
or among the tokens to attend to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.models.conditions import Caption, Conditions, Embedding, Image, Label, Series, Set, Vector, split_absent
from scoresde.nn.attention import group_norm
from scoresde.nn.blocks import ResidualStage, Upsample, told_to_all
from scoresde.nn.context import ContextEncoder
from scoresde.nn.encoder import Architecture, Encoder, EncoderOptions, with_encoder_options
from scoresde.nn.network import ConditionalNetwork
from scoresde.nn.norms import group_normed, in_fast_format


class UNet(ConditionalNetwork):
    """U-Net for events (B, channels, *spatial) of 1, 2 or 3 spatial axes of any sizes, odd ones too.

    The shape is that of Ronneberger et al. 2015 with the residual blocks and attention of Ho et al. 2020: an
    `Encoder` goes down, and its mirror image goes up again, block for block, each block fed with the output
    of the encoder's block of the same level beside its own. The output starts at zero.

    Conditions, each with a name of its own, are passed as net(x, c, name=...); each may be "not given" for some
    samples, by its value in `null_conditions`, or left out for all:

    * `num_classes`: label (B,) int64, a vector learned for each class; num_classes means "no class".
    * `vectors`: (B, d), or (B,) where d = 1, through a `VectorEmbedding`; a row of NaN is not given.
    * `images`: (B, k, *spatial), of x's sizes or enlarged to them by whole factors (nearest neighbour), as further
      channels beside x (Saharia et al. 2021, arXiv:2104.07636), and one channel of ones that says that it is there.
      A row of NaN is not given: zeros in all these channels.
    * `captions`: tokens (B, L) int64 through a `CaptionEncoder`; 0 is padding.
    * `embeddings`: (B, L, E) of another model, through a linear map; a token of NaN is padding.
    * `sets`, `series`: (B, N, d), a vector for each set of observations or time series, by a `SetEncoder` or
      `SeriesEncoder`; a member or step of NaN is padding.

    Captions and embeddings are looked at by `CrossAttention` (Rombach et al. 2022, arXiv:2112.10752) after each
    self-attention, and in any case in the middle: there alone where attention_levels is empty. Their context is 4 *
    width wide. How the network is called is said at `ConditionalNetwork.forward`.

    Args:
        channels: channels of the event.
        event_dims: number of spatial axes, 1, 2 or 3.
        width: channels at the finest level, for multiplier 1. Multiples of 16 are fast.
        num_classes: number of classes for a class-conditional network.
        out_channels: channels of the output; as many as of the event unless given.
        vectors: size d of each vector condition, by name.
        images: channels k of each condition that is a picture, by name.
        captions: each caption condition by name, as {"vocabulary": words, "length": most tokens, "width": 64,
            "layers": 2}; see `Caption`.
        embeddings: size E of each condition that is a sequence of embeddings, by name.
        sets, series: size of each condition that is a set of observations or a time series, by name.
        encoder: multipliers, blocks, attention_levels, head_width, time_features, conditioning, dropout, checkpoint,
            see `EncoderOptions`.

    Raises:
        TypeError, ValueError: an argument is not a whole number where it should be, or out of its range; two
            conditions of one name.
    """

    @with_encoder_options
    def __init__(
        self,
        channels: int,
        event_dims: int = 2,
        *,
        width: int = 64,
        num_classes: int | None = None,
        out_channels: int | None = None,
        vectors: Mapping[str, int] | None = None,
        images: Mapping[str, int] | None = None,
        captions: Mapping[str, Mapping[str, int]] | None = None,
        embeddings: Mapping[str, int] | None = None,
        sets: Mapping[str, int | Mapping[str, int]] | None = None,
        series: Mapping[str, int | Mapping[str, int]] | None = None,
        **encoder: Unpack[EncoderOptions],
    ) -> None:
        shape = Architecture(channels, event_dims, width, **encoder)
        out_channels = None if out_channels is None else checks.count(out_channels, name="out_channels")
        outputs = shape.channels if out_channels is None else out_channels
        conditions = Conditions.joined(
            Label.named(num_classes),
            Vector.named(vectors),
            Image.named(images),
            Caption.named(captions),
            Embedding.named(embeddings),
            Set.named(sets),
            Series.named(series),
        )
        super().__init__({**shape.config, "num_classes": num_classes, "out_channels": out_channels}, conditions)
        self.images = {name: image.channels for name, image in conditions.of_kind(Image).items()}
        attended = [*conditions.of_kind(Caption), *conditions.of_kind(Embedding)]
        context = 4 * shape.width if attended else 0
        style, attention = shape.style(context), shape.attention
        self.encoder = Encoder(shape, context, sum(channels + 1 for channels in self.images.values()))
        self.embedding = shape.embedding(conditions)
        widths = shape.widths
        self.levels = nn.ModuleList(  # coarsest first, in the order of use
            nn.ModuleList(
                ResidualStage(2 * n, n, style, i in attention, context > 0 and i in attention)
                for _ in range(shape.depths[i])
            )
            for i, n in reversed(list(enumerate(widths)))
        )
        self.ups = nn.ModuleList(
            Upsample(coarse, fine, style) for fine, coarse in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.norm = group_norm(widths[0])
        self.head = style.zero_conv(widths[0], outputs)
        self.context = ContextEncoder(conditions, context) if context else None

    def check_x(self, x: Tensor) -> None:
        """Raise unless x is (B, channels, *spatial)."""
        self.encoder.check(x)

    def compute(self, x: Tensor, c: Tensor, given: Mapping[str, Tensor | None]) -> Tensor:
        embedding = self.embedding(c, given)
        context = None if self.context is None else self.context(given)
        dtype: torch.dtype = self.head.weight.dtype  # type: ignore[assignment]
        images = [image_channels(x, given[name], channels) for name, channels in self.images.items()]
        joined = torch.cat([z.to(dtype) for z in (x, *images)], 1) if images else x.to(dtype)
        own = self.encoder.blocks
        others = [stage.block for level in self.levels for stage in level]  # type: ignore[attr-defined]
        told = told_to_all([*own, *others], embedding)
        h, skips = self.encoder(in_fast_format(joined), embedding, context, told=told[: len(own)])
        each = iter(told[len(own) :])
        for i, level in enumerate(self.levels):
            if i > 0:
                h = self.ups[i - 1](h, skips[-1].shape[2:])
            for stage in level:  # type: ignore[attr-defined]
                h = stage(h, embedding, context, skip=skips.pop(), told=next(each))
        out: Tensor = self.head(group_normed(self.norm, h, silu=True))
        return out.contiguous() if x.is_contiguous() else out


def image_channels(x: Tensor, image: Tensor | None, channels: int) -> Tensor:
    """Return what an image condition adds to x at the stem, (B, channels + 1, *spatial of x).

    The picture, each pixel repeated up to x's sizes, and a channel of ones; for rows of NaN, and for image=None, zeros.
    """
    if image is None:
        return x.new_zeros(len(x), channels + 1, *x.shape[2:])
    known, absent = split_absent(image)
    there = (~absent).to(image.dtype).reshape(-1, *[1] * (image.ndim - 1)).expand(-1, 1, *image.shape[2:])
    both = torch.cat([known, there], 1)
    for axis in range(2, x.ndim):
        if both.shape[axis] != x.shape[axis]:
            both = both.repeat_interleave(x.shape[axis] // both.shape[axis], dim=axis)
    return both
