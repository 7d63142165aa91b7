"""The magnitude-preserving U-Net (EDM2) for signals, images and volumes::

    net = MagnitudeUNet(3, width=64, multipliers=(1, 2, 2), num_classes=10)
    out = net(x, c, label=y)                 # x (B, 3, H, W), c = log(sigma/alpha) (B,), y (B,) -> (B, 3, H, W)
    twin = MagnitudeUNet(**net.config)       # the same shape, with fresh weights

x must have mean square 1, as it has where the model knows its ``sigma_data``: nothing here normalises it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import checks
from scoresde.models.conditions import Caption, Conditions, Embedding, Image, Label, Series, Set, Vector
from scoresde.nn.attention import Context
from scoresde.nn.context import ContextEncoder
from scoresde.nn.encoder import Architecture
from scoresde.nn.magnitude import (
    MagnitudeAttention,
    MagnitudeConv,
    MagnitudeEmbedding,
    mp_cat,
    mp_silu,
    mp_sum,
    unit_magnitude,
)
from scoresde.nn.network import ConditionalNetwork
from scoresde.nn.shapes import check_event
from scoresde.nn.unet import image_channels


class MagnitudeBlock(nn.Module):
    """Residual block, told the time and the class by a vector e, with attention after it.

        x   = unit_magnitude over channels(skip x)                      on the way down; else skip x below
        h   = conv2(dropout(mp_silu(conv1(mp_silu(x)) * (1 + gain * linear(e)))))
        out = mp_sum(skip x, h, 0.3)

    (arXiv:2312.02696, section 2.3), with skip a 1x1 convolution where the number of channels changes, and gain learned
    from 0. (B, inputs, *spatial) and (B, embedding) -> (B, outputs, *spatial).

    Args:
        inputs, outputs: channels.
        embedding: size of the conditioning vector.
        event_dims: number of spatial axes.
        down: on the way down, where the norm over channels keeps magnitudes from drifting.
        attention: positions look at each other.
        context: width of the tokens that positions look at; 0 for none.
        head_width: least number of channels per attention head.
        dropout: probability of dropping an activation.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        event_dims: int,
        *,
        down: bool,
        attention: bool,
        context: int,
        head_width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.down = down
        self.skip = None if inputs == outputs else MagnitudeConv(inputs, outputs, 1, event_dims)
        self.conv1 = MagnitudeConv(outputs if down else inputs, outputs, 3, event_dims)
        self.condition = MagnitudeConv(embedding, outputs)
        self.gain = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(dropout)
        self.conv2 = MagnitudeConv(outputs, outputs, 3, event_dims)
        self.attention = MagnitudeAttention(outputs, head_width, event_dims) if attention else None
        self.cross = MagnitudeAttention(outputs, head_width, event_dims, context) if context else None

    def forward(self, x: Tensor, embedding: Tensor, context: Context | None = None) -> Tensor:
        """Map x (B, inputs, *spatial), embedding (B, E) and, where there is one, context to (B, outputs, *spatial)."""
        skipped = x if self.skip is None else self.skip(x)
        if self.down:
            x = skipped = unit_magnitude(skipped, 1)
        scale = 1 + self.condition(embedding, self.gain)
        h = self.conv1(mp_silu(x)) * scale.reshape(scale.shape + (1,) * (x.ndim - 2))
        h = mp_sum(skipped, self.conv2(self.dropout(mp_silu(h))), 0.3)
        if self.attention is not None:
            h = self.attention(h)
        return h if self.cross is None else self.cross(h, context)


class MagnitudeUNet(ConditionalNetwork):
    """Magnitude-preserving U-Net for events (B, channels, *spatial) of 1, 2 or 3 spatial axes of any sizes.

    Configuration G of Karras et al. 2024 (arXiv:2312.02696, table 1): all weights normalised, and held so in training
    (`MagnitudeConv`), activations of magnitude 1 by construction at the start of training, no biases and no group
    norms, cosine attention, a constant channel beside x, and a learned gain of the output, which starts at 0. It is
    made for high learning rates that decay: 1e-2 in the paper.

    Conditions are those of `UNet`, each "not given" in the same way; captions and embeddings are looked at after each
    self-attention, and in any case in the middle. How it is called is said at `ConditionalNetwork.forward`.

    Args:
        channels: channels of the event.
        event_dims: number of spatial axes, 1, 2 or 3.
        width: channels at the finest level, for multiplier 1. Multiples of 16 are fast.
        multipliers: channels of each level, finest first, in units of width; each level halves the sizes.
        blocks: residual blocks per level on the way down, one number for all levels or one for each; on the way up
            there is one more.
        attention_levels: levels with self-attention after every block: 0 is the finest, -1 the coarsest.
        head_width: least number of channels per attention head.
        dropout: probability of dropping an activation inside a residual block, while training.
        num_classes: number of classes for a class-conditional network.
        out_channels: channels of the output; as many as of the event unless given.
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
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int | Sequence[int] = 2,
        attention_levels: Sequence[int] = (-1,),
        head_width: int = 64,
        dropout: float = 0.0,
        num_classes: int | None = None,
        out_channels: int | None = None,
        vectors: Mapping[str, int] | None = None,
        images: Mapping[str, int] | None = None,
        captions: Mapping[str, Mapping[str, int]] | None = None,
        embeddings: Mapping[str, int] | None = None,
        sets: Mapping[str, int | Mapping[str, int]] | None = None,
        series: Mapping[str, int | Mapping[str, int]] | None = None,
    ) -> None:
        shape = Architecture(
            channels, event_dims, width, multipliers, blocks, attention_levels, head_width, dropout=dropout
        )
        out_channels = None if out_channels is None else checks.count(out_channels, name="out_channels")
        conditions = Conditions.joined(
            Label.named(num_classes),
            Vector.named(vectors),
            Image.named(images),
            Caption.named(captions),
            Embedding.named(embeddings),
            Set.named(sets),
            Series.named(series),
        )
        said = ("channels", "event_dims", "width", "multipliers", "blocks", "attention_levels", "head_width", "dropout")
        own = {name: shape.config[name] for name in said}
        super().__init__({**own, "num_classes": num_classes, "out_channels": out_channels}, conditions)
        self.channels, self.event_dims = shape.channels, shape.event_dims
        self.images = {name: image.channels for name, image in conditions.of_kind(Image).items()}
        attended = [*conditions.of_kind(Caption), *conditions.of_kind(Embedding)]
        context, size, widths = 4 * shape.width if attended else 0, 4 * shape.width, shape.widths
        self.embedding = MagnitudeEmbedding(2 * shape.width, size, conditions)
        self.context = ContextEncoder(conditions, context) if context else None

        def block(inputs: int, outputs: int, level: int, *, down: bool, middle: bool | None = None) -> MagnitudeBlock:
            looks = level in shape.attention and middle is not False
            return MagnitudeBlock(
                inputs,
                outputs,
                size,
                shape.event_dims,
                down=down,
                attention=looks,
                context=context if looks or middle else 0,
                head_width=shape.head_width,
                dropout=shape.dropout,
            )

        extra = sum(count + 1 for count in self.images.values()) + 1  # the last for a constant channel
        self.stem = MagnitudeConv(shape.channels + extra, widths[0], 3, shape.event_dims)
        self.downs, self.levels_down = nn.ModuleList(), nn.ModuleList()
        skips = [widths[0]]
        for i, n in enumerate(widths):
            if i > 0:
                self.downs.append(block(widths[i - 1], n, i, down=True))
                skips.append(n)
            self.levels_down.append(nn.ModuleList(block(n, n, i, down=True) for _ in range(shape.depths[i])))
            skips += [n] * shape.depths[i]
        last = len(widths) - 1
        self.middle = nn.ModuleList(
            block(widths[-1], widths[-1], last, down=False, middle=first) for first in (True, False)
        )
        self.ups, self.levels_up = nn.ModuleList(), nn.ModuleList()  # coarsest first, in the order of use
        for i, n in reversed(list(enumerate(widths))):
            if i < last:
                self.ups.append(block(widths[i + 1], n, i, down=False))
            self.levels_up.append(
                nn.ModuleList(block(n + skips.pop(), n, i, down=False) for _ in range(shape.depths[i] + 1))
            )
        outputs = shape.channels if out_channels is None else out_channels
        self.head = MagnitudeConv(widths[0], outputs, 3, shape.event_dims)
        self.gain = nn.Parameter(torch.zeros(1))

    def check_x(self, x: Tensor) -> None:
        """Raise unless x is (B, channels, *spatial)."""
        check_event(x, self.channels, self.event_dims, levels=len(self.levels_down))

    def compute(self, x: Tensor, c: Tensor, given: Mapping[str, Tensor | None]) -> Tensor:
        embedding = self.embedding(c, given)
        context = None if self.context is None else self.context(given)
        images = [image_channels(x, given[name], channels) for name, channels in self.images.items()]
        constant = torch.ones_like(x[:, :1])
        h = self.stem(torch.cat([z.to(self.head.weight.dtype) for z in (x, *images, constant)], 1))
        skips = [h]
        for i, level in enumerate(self.levels_down):
            if i > 0:
                h = self.downs[i - 1](halved(h), embedding, context)
                skips.append(h)
            for block in level:  # type: ignore[attr-defined]
                h = block(h, embedding, context)
                skips.append(h)
        for block in self.middle:
            h = block(h, embedding, context)
        for i, level in enumerate(self.levels_up):
            if i > 0:
                h = self.ups[i - 1](F.interpolate(h, size=skips[-1].shape[2:], mode="nearest"), embedding, context)
            for block in level:  # type: ignore[attr-defined]
                h = block(mp_cat(h, skips.pop()), embedding, context)
        return self.head(h, self.gain)


def halved(x: Tensor) -> Tensor:
    """Means of two neighbours along each spatial axis; the last one of an odd number stays alone."""
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]
    return pool(x, 2, ceil_mode=True, count_include_pad=False)
