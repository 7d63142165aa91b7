"""The going-down half of the U-Net, shared by the U-Net and the noise-conditional classifier."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from scoresde.nn.attention import Context
from scoresde.nn.blocks import Stage, Style
from scoresde.nn.inputs import check_event, check_positive


def resolve_levels(attention_levels: Sequence[int], levels: int) -> set[int]:
    """Return attention_levels as a set of indices 0 ... levels - 1; negative ones count from the coarsest."""
    for level in attention_levels:
        if not -levels <= level < levels:
            raise ValueError(
                f"attention_levels={list(attention_levels)}: there are {levels} levels (one per multiplier), "
                f"0 the finest and {levels - 1} or -1 the coarsest; {level} is none of them."
            )
    return {level % levels for level in attention_levels}


class Encoder(nn.Module):
    """Residual blocks at falling resolutions: (B, channels, *spatial) to the coarsest features and all skips.

    Level i has `blocks` residual blocks of width * multipliers[i] channels at sizes ceil(n / 2^i), each with
    attention if i is in attention_levels. Two more blocks follow at the coarsest level, the first of them with
    attention if that level has it. Where the style has a context, cross-attention to it follows each of these
    attentions, and in any case the first of those two blocks.

    Args:
        channels: channels of the event.
        style: what all blocks share.
        width: channels of the finest level, for multiplier 1.
        multipliers: channels of each level, finest first, in units of width.
        blocks: residual blocks per level.
        attention_levels: levels with attention; negative ones count from the coarsest.
        condition_channels: channels that x brings to the stem beyond its own.

    Raises:
        ValueError: a number that should be positive is not, or attention_levels names a level that is not
            there.
    """

    def __init__(
        self,
        channels: int,
        style: Style,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention_levels: Sequence[int],
        condition_channels: int = 0,
    ) -> None:
        super().__init__()
        check_positive(channels=channels, width=width, blocks=blocks)
        if not multipliers or min(multipliers) < 1:
            raise ValueError(
                f"multipliers={list(multipliers)}: expected a positive whole number per level, e.g. (1, 2, 2)."
            )
        check_positive(**{f"multipliers[{i}]": multiplier for i, multiplier in enumerate(multipliers)})
        self.channels = channels
        self.event_dims = style.event_dims
        self.widths = [width * multiplier for multiplier in multipliers]
        self.attention = resolve_levels(attention_levels, len(multipliers))
        self.stem = style.conv(channels + condition_channels, self.widths[0])
        cross = bool(style.context)
        self.levels = nn.ModuleList(
            nn.ModuleList(Stage(n, n, style, i in self.attention, cross and i in self.attention) for _ in range(blocks))
            for i, n in enumerate(self.widths)
        )
        self.downs = nn.ModuleList(
            style.conv(fine, coarse, stride=2) for fine, coarse in zip(self.widths[:-1], self.widths[1:], strict=True)
        )
        last = self.widths[-1]
        self.middle = nn.ModuleList(
            [
                Stage(last, last, style, attention=len(self.widths) - 1 in self.attention, cross=cross),
                Stage(last, last, style, attention=False),
            ]
        )

    def check(self, x: Tensor) -> None:
        """Raise unless x is (B, channels, *spatial), large enough for every level to halve something."""
        check_event(x, self.channels, self.event_dims)
        smallest = 2 ** (len(self.widths) - 2) + 1 if len(self.widths) > 1 else 1
        if min(x.shape[2:]) < smallest:
            raise ValueError(
                f"x has spatial sizes {tuple(x.shape[2:])}, too small for {len(self.widths)} levels: each must "
                f"be at least {smallest} to be halved {len(self.widths) - 1} times. Give fewer multipliers, or "
                "pad x."
            )

    def forward(self, x: Tensor, embedding: Tensor, context: Context | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return the coarsest features and the output of every block of every level, finest first."""
        h = self.stem(x)
        skips = []
        for i, level in enumerate(self.levels):
            if i > 0:
                h = self.downs[i - 1](h)
            for stage in level:  # type: ignore[attr-defined]
                h = stage(h, embedding, context)
                skips.append(h)
        for stage in self.middle:
            h = stage(h, embedding, context)
        return h, skips
