"""The going-down half of the U-Net, shared by the U-Net and the noise-conditional classifier, and its options::

    shape = Architecture(channels=3, event_dims=2, width=64, multipliers=(1, 2, 2), attention_levels=(-1,))
    encoder = Encoder(shape)
    h, skips = encoder(x, shape.embedding(Conditions())(c, {}))    # x (B, 3, H, W), c = log(sigma/alpha) (B,)

An option of both networks is one field of :class:`Architecture` and one line of :class:`EncoderOptions`, its type for
callers; ``config`` and the signatures follow.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict, TypeVar

import numpy as np
from torch import Tensor, nn

from scoresde import checks
from scoresde.models.conditions import Conditions
from scoresde.nn.attention import Context
from scoresde.nn.blocks import BlockStyle, Conditioning, ResidualBlock, ResidualStage, told_to_all
from scoresde.nn.embeddings import ConditionEmbedding, TimeFeatures
from scoresde.nn.network import check_dropout
from scoresde.nn.shapes import check_event

Init = TypeVar("Init", bound=Callable[..., None])


class EncoderOptions(TypedDict, total=False):
    """The keywords of every network with an `Encoder`; defaults are those of `Architecture`.

    Attributes:
        multipliers: channels of each level, finest first, in units of width; each level halves the sizes.
        blocks: residual blocks per level, on the way down and, in a U-Net, again on the way up: one number for all
            levels, or one for each, finest first.
        attention_levels: levels with self-attention after every block: 0 is the finest, -1 the coarsest.
        head_width: least number of channels per attention head; one head where a level has fewer.
        time_features: "sinusoidal" or "fourier", see `SinusoidalFeatures` and `FourierFeatures`.
        conditioning: "adaptive" (scale and shift of a group norm) or "add", see `ResidualBlock`.
        dropout: probability of dropping an activation inside a residual block, while training.
        checkpoint: keep only the input of each residual block for the backward pass and run the block again there
            (Chen et al. 2016, arXiv:1604.06174): less than half the memory for a third more time, the same gradients.
            The weights know nothing of it.
    """

    multipliers: Sequence[int]
    blocks: int | Sequence[int]
    attention_levels: Sequence[int]
    head_width: int
    time_features: TimeFeatures
    conditioning: Conditioning
    dropout: float
    checkpoint: bool


def _whole_numbers(values: Any, name: str) -> tuple[int, ...]:
    """A tuple of whole numbers, of a list, tuple, array or tensor."""
    if not isinstance(values, (list, tuple, np.ndarray, Tensor)) or getattr(values, "ndim", 1) != 1:
        raise TypeError(f"{name} must be a list of whole numbers such as [1, 2], got {checks.got(values)}.")
    return tuple(checks.whole(value, name=f"{name}[{i}]") for i, value in enumerate(values))


def _per_level(blocks: Any, levels: int) -> int | tuple[int, ...]:
    """One positive whole number for all levels, or one for each."""
    if not isinstance(blocks, (list, tuple, np.ndarray, Tensor)) or getattr(blocks, "ndim", 1) != 1:
        return checks.count(blocks, name="blocks")
    found = _whole_numbers(blocks, "blocks")
    if len(found) != levels:
        raise ValueError(
            f"blocks has {len(found)} numbers, {list(found)}; expected one for all levels, or one for each of the "
            f"{levels} of multipliers."
        )
    return tuple(checks.count(count, name=f"blocks[{i}]") for i, count in enumerate(found))


@dataclass(frozen=True)
class Architecture:
    """The shape of an encoder for events (B, channels, *spatial) of ``event_dims`` spatial axes, see `EncoderOptions`.

    Raises:
        TypeError, ValueError: an argument is not a whole number where it should be, or out of its range.
    """

    channels: int
    event_dims: int
    width: int
    multipliers: Sequence[int] = (1, 2, 2)
    blocks: int | Sequence[int] = 2
    attention_levels: Sequence[int] = (-1,)
    head_width: int = 64
    time_features: TimeFeatures = "sinusoidal"
    conditioning: Conditioning = "adaptive"
    dropout: float = 0.0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        checks.fields(self)
        for name in ("channels", "width", "head_width"):
            checks.count(getattr(self, name), name=name)
        checks.whole(self.event_dims, name="event_dims", least=1, most=3)
        object.__setattr__(self, "dropout", check_dropout(self.dropout))
        for name in ("multipliers", "attention_levels"):
            object.__setattr__(self, name, _whole_numbers(getattr(self, name), name))
        if not self.multipliers:
            raise ValueError("multipliers=(): expected a positive whole number per level, e.g. (1, 2, 2).")
        for i, multiplier in enumerate(self.multipliers):
            checks.count(multiplier, name=f"multipliers[{i}]")
        levels = len(self.multipliers)
        object.__setattr__(self, "blocks", _per_level(self.blocks, levels))
        for level in self.attention_levels:
            if not -levels <= level < levels:
                raise ValueError(
                    f"attention_levels={list(self.attention_levels)}: there are {levels} levels (one per multiplier), "
                    f"0 the finest and {levels - 1} or -1 the coarsest; {level} is none of them, as each should be."
                )

    @property
    def config(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return {**values, **lists}

    @property
    def depths(self) -> list[int]:
        """Residual blocks of each level, finest first."""
        return [self.blocks] * len(self.multipliers) if isinstance(self.blocks, int) else list(self.blocks)

    @property
    def widths(self) -> list[int]:
        """Channels of each level, finest first."""
        return [self.width * multiplier for multiplier in self.multipliers]

    @property
    def attention(self) -> set[int]:
        """The levels with attention, counted from the finest."""
        return {level % len(self.multipliers) for level in self.attention_levels}

    def style(self, context: int = 0) -> BlockStyle:
        """What all blocks share, with tokens of width ``context`` to attend to, or none."""
        size, heads = 4 * self.width, self.head_width
        return BlockStyle(self.event_dims, size, self.conditioning, heads, self.dropout, context, self.checkpoint)

    def embedding(self, conditions: Conditions) -> ConditionEmbedding:
        """The conditioning vector, 4 width wide."""
        return ConditionEmbedding(2 * self.width, 4 * self.width, self.time_features, conditions)


def with_encoder_options(init: Init) -> Init:
    """Spell ``**encoder: Unpack[EncoderOptions]`` out in the signature, with defaults, for help() and inspect."""
    signature = inspect.signature(init)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    spelt = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(Architecture)
        if field.name in EncoderOptions.__annotations__
    ]
    init.__signature__ = signature.replace(parameters=[*own, *spelt])  # type: ignore[attr-defined]
    return init


class Encoder(nn.Module):
    """Residual blocks at falling resolutions: (B, channels, *spatial) to the coarsest features and all skips.

    Level i has `blocks`, or blocks[i], residual blocks of width * multipliers[i] channels at sizes ceil(n / 2^i), each
    with attention if i is in attention_levels. Two more blocks follow at the coarsest level, the first of them with
    attention if that level has it. Where there is a context, cross-attention to it follows each of these
    attentions, and in any case the first of those two blocks.

    Args:
        shape: channels, levels and blocks.
        context: width of the tokens to attend to; 0 where there are none.
        condition_channels: channels that x brings to the stem beyond its own.
        told: whether blocks are told the time and the conditions by a vector; without, ``embedding`` has no numbers.
    """

    def __init__(
        self, shape: Architecture, context: int = 0, condition_channels: int = 0, *, told: bool = True
    ) -> None:
        super().__init__()
        checks.instance(shape, Architecture, name="shape")
        context = checks.count(context, name="context", least=0)
        condition_channels = checks.count(condition_channels, name="condition_channels", least=0)
        self.channels, self.event_dims, self.widths = shape.channels, shape.event_dims, shape.widths
        style = shape.style(context) if checks.flag(told, name="told") else replace(shape.style(context), embedding=0)
        attention, cross = shape.attention, context > 0
        self.stem = style.conv(shape.channels + condition_channels, self.widths[0])
        self.levels = nn.ModuleList(
            nn.ModuleList(ResidualStage(n, n, style, i in attention, cross and i in attention) for _ in range(depth))
            for i, (n, depth) in enumerate(zip(self.widths, shape.depths, strict=True))
        )
        self.downs = nn.ModuleList(
            style.conv(fine, coarse, stride=2) for fine, coarse in zip(self.widths[:-1], self.widths[1:], strict=True)
        )
        last = self.widths[-1]
        self.middle = nn.ModuleList(
            [
                ResidualStage(last, last, style, attention=len(self.widths) - 1 in attention, cross=cross),
                ResidualStage(last, last, style, attention=False),
            ]
        )

    def check(self, x: Tensor) -> None:
        """Raise unless x is floating (B, channels, *spatial), large enough for every level to halve something."""
        check_event(x, self.channels, self.event_dims, levels=len(self.widths))

    @property
    def blocks(self) -> list[ResidualBlock]:
        """Its residual blocks, in the order of use."""
        return [stage.block for level in (*self.levels, self.middle) for stage in level]

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        context: Context | None = None,
        *,
        told: Sequence[Tensor | None] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the coarsest features and the output of every block of every level, finest first.

        ``told``, if given, is what the embedding tells each of `blocks`, see `told_to_all`.
        """
        each = iter(told_to_all(self.blocks, embedding) if told is None else told)
        h = self.stem(x)
        skips = []
        for i, level in enumerate(self.levels):
            if i > 0:
                h = self.downs[i - 1](h)
            for stage in level:  # type: ignore[attr-defined]
                h = stage(h, embedding, context, told=next(each))
                skips.append(h)
        for stage in self.middle:
            h = stage(h, embedding, context, told=next(each))
        return h, skips
