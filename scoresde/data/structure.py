"""Which axis is which: understood only where there is one way to understand it, else asked for::

    arranged(x, None, whole=True, name="data")              # (N, 3, 32, 32) as it is; (N, 32, 32, 3) is refused
    arranged(x, "last", whole=True, name="data")            # (N, 32, 32, 3) -> (N, 3, 32, 32)
    in_words((1, 8, 8))                                     # "grey images of 8x8"

Everything behind takes (N, C, ...) or vectors (N, d). An array of pictures with the channels last, or without an axis
for them, fits that too, as signals or pictures of 28 channels, and would train: so such shapes are not taken as they
are unless ``channels`` says so.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from scoresde import checks

Channels = Literal["first", "last", "none"]

CHANNELS: tuple[Channels, ...] = ("first", "last", "none")
_FEW = 4  # grey, grey and alpha, RGB, RGBA: an axis as short as this reads as channels
_LONG = 4  # a signal of more channels is longer than this many times their number


def holds_levels(data: Tensor, levels: int | None, scaling: object) -> bool:
    """Whether the values are whole numbers, as those of pictures are: by their dtype, or because somebody says so."""
    return not data.is_floating_point() or levels is not None or getattr(scaling, "levels", None) is not None


def arranged(data: Tensor, channels: Channels | None, *, whole: bool, name: str) -> Tensor:
    """``data`` as (N, C, ...) or vectors (N, d).

    Args:
        data: (N, ...).
        channels: "first" takes it as it is, "last" moves the last axis to the second place, "none" puts in an axis of
            length 1. None takes it as it is too, where nothing else is likely: vectors (N, d), up to 4 channels in
            the second place, and floating data whose axes do not look like another order.
        whole: the values are whole numbers, as those of pictures are, which have few channels.
        name: for messages.

    Raises:
        ValueError: more than one way to understand the axes and no ``channels``, or too few axes.
    """
    if channels is not None and not (isinstance(channels, str) and channels in CHANNELS):
        raise ValueError(f"channels must be 'first', 'last' or 'none', got {checks.got(channels)}.")
    shape = tuple(data.shape)
    if data.ndim < (1 if channels == "none" else 2):
        raise ValueError(
            f"{name} must be (N, *event) with at least one sample, got shape {shape}, channels {channels}. "
            "For single numbers pass channels='none'."
        )
    if channels == "last":
        return data.movedim(-1, 1)
    if channels == "none":
        return data.unsqueeze(1)
    if channels is None and data.numel():
        _refuse_ambiguous(shape, whole, name)
    return data


def in_words(event: tuple[int, ...]) -> str:
    """What samples of this shape are taken for, in the plural."""
    sizes = "x".join(map(str, event[1:]))
    if len(event) < 2:
        return f"vectors of {event[0] if event else 1} numbers"
    colour = {1: "grey ", 3: "RGB "}.get(event[0])
    if len(event) == 3:
        return f"{colour}images of {sizes}" if colour else f"images of {event[0]} channels, {sizes}"
    kind = {2: "signals", 4: "volumes"}.get(len(event), "samples")
    channels = f"{event[0]} channel{'s' if event[0] > 1 else ''}"
    return f"{kind} of {channels}, {'length ' if len(event) == 2 else ''}{sizes}"


def _refuse_ambiguous(shape: tuple[int, ...], whole: bool, name: str) -> None:
    others = _other_orders(shape, whole)
    if not others:
        return
    ways = {
        "last": f"'last' for {in_words((shape[-1], *shape[1:-1]))}",
        "none": f"'none' for {in_words((1, *shape[1:]))}",
        "first": f"'first' for {in_words(shape[1:])}",
    }
    raise ValueError(
        f"{name} has shape {shape}, which can be understood in more than one way. Say where its channels are, by "
        f"channels: {', '.join(ways[way] for way in (*others, 'first'))}."
    )


def _other_orders(shape: tuple[int, ...], whole: bool) -> tuple[str, ...]:
    """The orders of axes that are likely beside (N, C, ...)."""
    second, last = shape[1], shape[-1]
    if len(shape) < 3 or second == 1:
        return ()
    if second <= _FEW:  # channels are first, but for (N, 4, 4, 3), a small picture with channels last
        return ("last",) if len(shape) > 3 and last <= _FEW and len(set(shape[1:-1])) == 1 else ()
    if last <= _FEW:
        return ("last",)
    if whole:
        return ("none",) if len(shape) == 3 else ("last", "none")
    if len(shape) == 3:  # a signal is much longer than it has channels, and no picture is
        return ("last", "none") if last < _LONG * second else ()
    if len(set(shape[2:])) > 1 and len(set(shape[1:-1])) == 1:  # (N, 32, 32, 16)
        return ("last",)
    return ("last", "none") if len(set(shape[1:])) == 1 else ()  # (N, 32, 32, 32)
