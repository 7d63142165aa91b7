"""The U-Net for signals, images and volumes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.nn.blocks import Conditioning, Stage, Style, Upsample
from scoresde.nn.conditions import Conditions
from scoresde.nn.context import ContextEncoder
from scoresde.nn.embeddings import ConditionEmbedding, TimeFeatures
from scoresde.nn.encoder import Encoder
from scoresde.nn.inputs import check_label, check_positive, check_time
from scoresde.nn.normalization import group_norm


class UNet(nn.Module):
    """U-Net for events (B, channels, *spatial) of 1, 2 or 3 spatial axes of any sizes, odd ones too.

    The shape is that of Ronneberger et al. 2015 with the residual blocks and attention of Ho et al. 2020: an
    `Encoder` goes down, and its mirror image goes up again, block for block, each block fed with the output
    of the encoder's block of the same level beside its own. The output starts at zero.

    Conditions, each with a name of its own, are passed as net(x, c, name=...); each may be "not given" for some
    samples, by its value in `null_conditions`, or left out for all:

    * `num_classes`: label (B,) int64, a vector learned for each class.
    * `vectors`: (B, d), or (B,) where d = 1, through a `VectorEmbedding`; a row of NaN is not given.
    * `images`: (B, k, *spatial), of x's sizes or enlarged to them by whole factors (nearest neighbour), as further
      channels beside x (Saharia et al. 2021, arXiv:2104.07636), and one channel of ones that says that it is there.
      A row of NaN is not given: zeros in all these channels.
    * `captions`: tokens (B, L) int64 through a `CaptionEncoder`; 0 is padding.
    * `embeddings`: (B, L, E) of another model, through a linear map; a token of NaN is padding.

    Captions and embeddings are looked at by `CrossAttention` (Rombach et al. 2022, arXiv:2112.10752) after each
    self-attention, and in any case in the middle: there alone where attention_levels is empty. Their context is 4 *
    width wide.

    Weights start from torch's default generator, as for any nn.Module; seed it with torch.manual_seed.
    The network computes in the dtype of its weights and answers in the dtype of x.

    Args:
        channels: channels of the event.
        event_dims: number of spatial axes, 1, 2 or 3.
        width: channels at the finest level, for multiplier 1. Multiples of 16 are fast.
        multipliers: channels of each level, finest first, in units of width; each level halves the sizes.
        blocks: residual blocks per level, on the way down and again on the way up.
        attention_levels: levels with self-attention after every block: 0 is the finest, -1 the coarsest.
        head_width: least number of channels per attention head; one head where a level has fewer.
        time_features: "sinusoidal" or "fourier", see `SinusoidalFeatures` and `FourierFeatures`.
        conditioning: "adaptive" (scale and shift of a group norm) or "add", see `ResidualBlock`.
        num_classes: number of classes for a class-conditional network; label num_classes means "no class".
        dropout: probability of dropping an activation inside a residual block, while training.
        out_channels: channels of the output; as many as of the event unless given.
        vectors: size d of each vector condition, by name.
        images: channels k of each image condition, by name.
        captions: for each caption condition, by name, {"vocabulary": words, "length": most tokens, "width": 64,
            "layers": 2}; see `Caption`.
        embeddings: size E of each condition that is a sequence of embeddings, by name.

    Raises:
        TypeError, ValueError: an argument is not a whole number where it should be, or out of its range; two
            conditions of one name.
    """

    def __init__(
        self,
        channels: int,
        event_dims: int = 2,
        *,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention_levels: Sequence[int] = (-1,),
        head_width: int = 64,
        time_features: TimeFeatures = "sinusoidal",
        conditioning: Conditioning = "adaptive",
        num_classes: int | None = None,
        dropout: float = 0.0,
        out_channels: int | None = None,
        vectors: Mapping[str, int] | None = None,
        images: Mapping[str, int] | None = None,
        captions: Mapping[str, Mapping[str, int]] | None = None,
        embeddings: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        outputs = channels if out_channels is None else out_channels
        check_positive(out_channels=outputs, width=width)
        self.conditions = Conditions.of(num_classes, vectors, images, captions, embeddings)
        self._config: dict[str, Any] = {
            "channels": channels,
            "event_dims": event_dims,
            "width": width,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention_levels": list(attention_levels),
            "head_width": head_width,
            "time_features": time_features,
            "conditioning": conditioning,
            "num_classes": num_classes,
            "dropout": dropout,
            "out_channels": out_channels,
            **self.conditions.config,
        }
        self.num_classes = num_classes
        context = 4 * width if self.conditions.tokens else 0
        style = Style(event_dims, 4 * width, conditioning, head_width, dropout, context)
        extra = self.conditions.stem_channels
        self.encoder = Encoder(channels, style, width, multipliers, blocks, attention_levels, extra)
        sizes = list(self.conditions.vectors.values())
        self.embedding = ConditionEmbedding(2 * width, 4 * width, time_features, num_classes, sizes)
        widths = self.encoder.widths
        attends = self.encoder.attention
        self.levels = nn.ModuleList(  # coarsest first, in the order of use
            nn.ModuleList(Stage(2 * n, n, style, i in attends, context > 0 and i in attends) for _ in range(blocks))
            for i, n in reversed(list(enumerate(widths)))
        )
        self.ups = nn.ModuleList(
            Upsample(coarse, fine, style) for fine, coarse in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.norm = group_norm(widths[0])
        self.head = style.zero_conv(widths[0], outputs)
        self.context = (
            ContextEncoder(self.conditions.captions.values(), self.conditions.embeddings.values(), context)
            if self.conditions.tokens
            else None
        )

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON: `UNet(**net.config)` has the same shape."""
        return copy.deepcopy(self._config)

    @property
    def null_conditions(self) -> dict[str, float]:
        """What means "not given": num_classes for the label, 0 (padding) for tokens, NaN for all other conditions."""
        return self.conditions.nulls

    @property
    def image_conditions(self) -> tuple[str, ...]:
        """The conditions that share the positions of x: what flips or crops x must do the same to them."""
        return tuple(self.conditions.images)

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None, **conditions: Tensor | None) -> Tensor:
        """Evaluate the network.

        Args:
            x: events (B, channels, *spatial).
            c: log(sigma/alpha) of each sample's noise level, (B,).
            label: int64 class of each sample, (B,), from 0 to num_classes; num_classes is the null label,
                which everybody gets if label is None.
            conditions: the others by name, with a row for each sample, see `UNet`; left out or None, a condition
                is not given for anybody.

        Returns:
            (B, out_channels, *spatial), of x's dtype.

        Raises:
            ValueError, TypeError: a shape, dtype or value does not fit, or a condition is unknown, see the messages.
        """
        self.encoder.check(x)
        check_time(c, len(x))
        label = check_label(label, len(x), self.num_classes, x.device)
        given = self.conditions.read(conditions, x)
        embedding = self.embedding(c, label, given.vectors)
        context = None if self.context is None else self.context(x, given.captions, given.embeddings)
        dtype: torch.dtype = self.head.weight.dtype  # type: ignore[assignment]
        images = [beside(x, image, n) for image, n in zip(given.images, self.conditions.images.values(), strict=True)]
        h, skips = self.encoder(torch.cat([z.to(dtype) for z in (x, *images)], 1), embedding, context)
        for i, level in enumerate(self.levels):
            if i > 0:
                h = self.ups[i - 1](h, skips[-1].shape[2:])
            for stage in level:  # type: ignore[attr-defined]
                h = stage(torch.cat([h, skips.pop()], dim=1), embedding, context)
        return self.head(F.silu(self.norm(h))).to(x.dtype)


def beside(x: Tensor, image: Tensor | None, channels: int) -> Tensor:
    """Return what an image condition adds to x at the stem, (B, channels + 1, *spatial of x).

    The picture, each pixel repeated up to x's sizes, and a channel of ones; for rows of NaN, and for image=None, zeros.
    """
    if image is None:
        return x.new_zeros(len(x), channels + 1, *x.shape[2:])
    absent = image.isnan().flatten(1).all(1).reshape(-1, *[1] * (image.ndim - 1))
    both = torch.cat([image.masked_fill(absent, 0), (~absent).to(image.dtype).expand(-1, 1, *image.shape[2:])], 1)
    for axis in range(2, x.ndim):
        if both.shape[axis] != x.shape[axis]:
            both = both.repeat_interleave(x.shape[axis] // both.shape[axis], dim=axis)
    return both
