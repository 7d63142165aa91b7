"""A judge of patches, for the adversarial term in the training of an autoencoder::

judge = PatchDiscriminator(3, width=32)
logits = judge(x)                                       # (B, 1, 4, 4) for 32x32: one for each patch, real above 0
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from scoresde import checks
from scoresde.nn.attention import group_norm
from scoresde.nn.shapes import check_event

_SLOPE = 0.2
"""Of leaky rectifiers where they are negative."""


class PatchDiscriminator(nn.Module):
    """Convolutions of stride 2 to a logit for each patch of x (B, channels, *spatial) (Isola et al. 2017,
    arXiv:1611.07004, section 3.2.2), with group normalisation in place of that of batches.

    Args:
        channels: of the event.
        event_dims: number of spatial axes, 1, 2 or 3.
        width: channels after the first convolution; each further one has twice as many.
        layers: convolutions of stride 2; an event must have 2^layers positions along each axis at least.

    Raises:
        TypeError, ValueError: an argument is not a whole number where it should be, or out of its range.
    """

    def __init__(self, channels: int, event_dims: int = 2, *, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        self.channels = checks.count(channels, name="channels")
        self.event_dims = checks.whole(event_dims, name="event_dims", least=1, most=3)
        width, self.layers = checks.count(width, name="width"), checks.count(layers, name="layers", most=12)
        conv: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.event_dims - 1]
        body: list[nn.Module] = [conv(self.channels, width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        for i in range(1, self.layers):
            wide = width * 2**i
            body += [conv(wide // 2, wide, 4, stride=2, padding=1), group_norm(wide), nn.LeakyReLU(_SLOPE)]
        self.body = nn.Sequential(*body)
        self.head = conv(width * 2 ** (self.layers - 1), 1, 3, padding=1)
        self._config = {"channels": self.channels, "event_dims": self.event_dims, "width": width, "layers": self.layers}

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return copy.deepcopy(self._config)

    def forward(self, x: Tensor) -> Tensor:
        """A logit for each patch, (B, 1, *patches).

        Raises:
            TypeError, ValueError: not such events, or too small ones.
        """
        check_event(x, self.channels, self.event_dims)
        if min(x.shape[2:]) < 2**self.layers:
            raise ValueError(
                f"x has spatial sizes {tuple(x.shape[2:])}, too small to be halved {self.layers} times: each must be "
                f"at least {2**self.layers}. Give fewer layers."
            )
        return self.head(self.body(x.to(self.head.weight.dtype))).to(x.dtype)
