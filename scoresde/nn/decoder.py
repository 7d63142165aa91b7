"""The going-up half of an autoencoder: the mirror image of an `Encoder`, without its skips, told nothing::

decoder = Decoder(shape, latent_channels=4)             # shape: an `Architecture`
x = decoder(z)                                          # (B, 4, 8, 8) to (B, 3, 32, 32) for three levels
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from scoresde.nn.attention import group_norm
from scoresde.nn.blocks import ResidualStage, Upsample
from scoresde.nn.encoder import Architecture
from scoresde.nn.norms import group_normed, in_fast_format


class Decoder(nn.Module):
    """(B, latent_channels, *latent) to (B, channels, *spatial), each size twice as large at each level but the first.

    A convolution, two residual blocks, the first with attention where the coarsest level has it, then the blocks of
    each level, coarsest first, as many as the encoder has there.

    Args:
        shape: channels, levels and blocks.
        latent_channels: of what it decodes.
    """

    def __init__(self, shape: Architecture, latent_channels: int) -> None:
        super().__init__()
        style, attention, widths = replace(shape.style(), embedding=0), shape.attention, shape.widths
        last, coarsest = widths[-1], len(widths) - 1
        self.stem = style.conv(latent_channels, last)
        self.middle = nn.ModuleList(
            [ResidualStage(last, last, style, coarsest in attention), ResidualStage(last, last, style, False)]
        )
        self.levels = nn.ModuleList(  # coarsest first, in the order of use
            nn.ModuleList(ResidualStage(n, n, style, i in attention) for _ in range(shape.depths[i]))
            for i, n in reversed(list(enumerate(widths)))
        )
        self.ups = nn.ModuleList(
            Upsample(coarse, fine, style) for fine, coarse in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.norm = group_norm(widths[0])
        self.head = style.conv(widths[0], shape.channels)

    @property
    def last_weight(self) -> Tensor:
        """The weights of the last convolution, by which terms of a loss are balanced."""
        weight: Tensor = self.head.weight  # type: ignore[assignment]
        return weight

    def forward(self, z: Tensor) -> Tensor:
        """Decode z, in the dtype of the weights."""
        h = self.stem(in_fast_format(z))
        nothing = h.new_zeros(len(h), 0)
        for stage in self.middle:
            h = stage(h, nothing)
        for i, level in enumerate(self.levels):
            if i > 0:
                h = self.ups[i - 1](h, tuple(2 * size for size in h.shape[2:]))
            for stage in level:  # type: ignore[attr-defined]
                h = stage(h, nothing)
        out: Tensor = self.head(group_normed(self.norm, h, silu=True))
        return out.contiguous() if z.is_contiguous() else out
