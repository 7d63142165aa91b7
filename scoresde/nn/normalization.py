"""Group norm, with a number of groups that suits the number of channels."""

from __future__ import annotations

from torch import nn


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """Group norm (Wu and He 2018) with the most groups, up to 32, of at least 4 channels each."""
    groups = max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 4))
    return nn.GroupNorm(groups, channels, affine=affine)
