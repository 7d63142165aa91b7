"""The U-Net for signals, images and volumes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.nn.blocks import Conditioning, Stage, Style, Upsample
from scoresde.nn.embeddings import ConditionEmbedding, TimeFeatures
from scoresde.nn.encoder import Encoder
from scoresde.nn.inputs import check_label, check_positive, check_time
from scoresde.nn.normalization import group_norm


class UNet(nn.Module):
    """U-Net for events (B, channels, *spatial) of 1, 2 or 3 spatial axes of any sizes, odd ones too.

    The shape is that of Ronneberger et al. 2015 with the residual blocks and attention of Ho et al. 2020: an
    `Encoder` goes down, and its mirror image goes up again, block for block, each block fed with the output
    of the encoder's block of the same level beside its own. The output starts at zero.

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

    Raises:
        TypeError, ValueError: an argument is not a whole number where it should be, or out of its range.
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
    ) -> None:
        super().__init__()
        outputs = channels if out_channels is None else out_channels
        check_positive(out_channels=outputs, width=width)
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
        }
        self.num_classes = num_classes
        style = Style(event_dims, 4 * width, conditioning, head_width, dropout)
        self.encoder = Encoder(channels, style, width, multipliers, blocks, attention_levels)
        self.embedding = ConditionEmbedding(2 * width, 4 * width, time_features, num_classes)
        widths = self.encoder.widths
        self.levels = nn.ModuleList(  # coarsest first, in the order of use
            nn.ModuleList(Stage(2 * n, n, style, i in self.encoder.attention) for _ in range(blocks))
            for i, n in reversed(list(enumerate(widths)))
        )
        self.ups = nn.ModuleList(
            Upsample(coarse, fine, style) for fine, coarse in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.norm = group_norm(widths[0])
        self.head = style.zero_conv(widths[0], outputs)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON: `UNet(**net.config)` has the same shape."""
        return copy.deepcopy(self._config)

    @property
    def null_conditions(self) -> dict[str, int]:
        """The conditions that mean "unconditional": {"label": num_classes}, or none without classes."""
        return {} if self.num_classes is None else {"label": self.num_classes}

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: events (B, channels, *spatial).
            c: log(sigma/alpha) of each sample's noise level, (B,).
            label: int64 class of each sample, (B,), from 0 to num_classes; num_classes is the null label,
                which everybody gets if label is None.

        Returns:
            (B, out_channels, *spatial), of x's dtype.

        Raises:
            ValueError, TypeError: a shape, dtype or label does not fit, see the messages.
        """
        self.encoder.check(x)
        check_time(c, len(x))
        label = check_label(label, len(x), self.num_classes, x.device)
        embedding = self.embedding(c, label)
        h, skips = self.encoder(x.to(self.head.weight.dtype), embedding)  # type: ignore[arg-type]
        for i, level in enumerate(self.levels):
            if i > 0:
                h = self.ups[i - 1](h, skips[-1].shape[2:])
            for stage in level:  # type: ignore[attr-defined]
                h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.head(F.silu(self.norm(h))).to(x.dtype)
