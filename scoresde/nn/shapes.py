"""What networks for events on a grid, (B, channels, *spatial) of 1, 2 or 3 spatial axes, ask of x.

What was expected is said where x is something else::

    check_event(x, channels=3, event_dims=2, levels=3)      # raises unless x is (B, 3, H, W), with H, W of at least 3
"""

from __future__ import annotations

from torch import Tensor

from scoresde import checks


def check_event(x: Tensor, channels: int, event_dims: int, *, levels: int = 1) -> None:
    """Raise unless x is floating (B, channels, *spatial), large enough for every level to halve something.

    Args:
        x: what a network was given.
        channels: of the events it was built for.
        event_dims: their number of spatial axes.
        levels: resolutions, each half of the one before.

    Raises:
        TypeError: no floating tensor.
        ValueError: another shape.
    """
    checks.state(x)
    spatial = ["H", "H, W", "D, H, W"][event_dims - 1]
    if x.ndim != event_dims + 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; this network was built with event_dims={event_dims} and expects "
            f"(B, {channels}, {spatial}). Add the missing batch or channel axis, or change event_dims."
        )
    if x.shape[1] != channels:
        raise ValueError(
            f"x has {x.shape[1]} channels (shape {tuple(x.shape)}), but this network was built with "
            f"channels={channels}. Channels come second: expected (B, {channels}, {spatial})."
        )
    smallest = 2 ** (levels - 2) + 1 if levels > 1 else 1
    if min(x.shape[2:]) < smallest:
        raise ValueError(
            f"x has spatial sizes {tuple(x.shape[2:])}, too small for {levels} levels: each must "
            f"be at least {smallest} to be halved {levels - 1} times. Give fewer multipliers, or pad x."
        )
