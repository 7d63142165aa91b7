"""A classifier of noisy events, for classifier guidance."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.nn.attention import AttentionPool
from scoresde.nn.blocks import Conditioning, Style
from scoresde.nn.embeddings import ConditionEmbedding, TimeFeatures
from scoresde.nn.encoder import Encoder
from scoresde.nn.inputs import check_positive, check_time
from scoresde.nn.normalization import group_norm


class NoiseClassifier(nn.Module):
    """Logits of p(class | x_t) for events of 1, 2 or 3 spatial axes, (B, channels, *spatial) -> (B, num_classes).

    The encoder half of the `UNet`, then one vector per event, then a linear map, as in Dhariwal and Nichol 2021
    (section 4). The logits start at zero: all classes equally likely, which is also the truth where all is noise.
    For vectors use `MLP(dim, out_dim=num_classes)`.

    Weights start from torch's default generator, as for any nn.Module; seed it with torch.manual_seed.
    The network computes in the dtype of its weights and answers in the dtype of x.

    Args:
        channels: channels of the event.
        num_classes: number of classes.
        event_dims: number of spatial axes, 1, 2 or 3.
        width, multipliers, blocks, attention_levels, head_width, time_features, conditioning, dropout: as for
            `UNet`.
        pool: how the positions become one vector: "attention" (`AttentionPool`) or "mean".

    Raises:
        TypeError, ValueError: an argument is not a whole number where it should be, or out of its range.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        event_dims: int = 2,
        *,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention_levels: Sequence[int] = (-1,),
        head_width: int = 64,
        time_features: TimeFeatures = "sinusoidal",
        conditioning: Conditioning = "adaptive",
        dropout: float = 0.0,
        pool: Literal["attention", "mean"] = "attention",
    ) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, width=width)
        if pool not in ("attention", "mean"):
            raise ValueError(f"pool={pool!r}: expected 'attention' or 'mean'.")
        self._config: dict[str, Any] = {
            "channels": channels,
            "num_classes": num_classes,
            "event_dims": event_dims,
            "width": width,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention_levels": list(attention_levels),
            "head_width": head_width,
            "time_features": time_features,
            "conditioning": conditioning,
            "dropout": dropout,
            "pool": pool,
        }
        style = Style(event_dims, 4 * width, conditioning, head_width, dropout)
        self.encoder = Encoder(channels, style, width, multipliers, blocks, attention_levels)
        self.embedding = ConditionEmbedding(2 * width, 4 * width, time_features)
        last = self.encoder.widths[-1]
        self.norm = group_norm(last)
        self.pool = AttentionPool(last, head_width) if pool == "attention" else None
        self.head = nn.Linear(last, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON: `NoiseClassifier(**net.config)` has the same shape."""
        return copy.deepcopy(self._config)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Evaluate the logits.

        Args:
            x: events (B, channels, *spatial).
            c: log(sigma/alpha) of each sample's noise level, (B,).

        Returns:
            (B, num_classes), of x's dtype; log-probabilities are their log_softmax.

        Raises:
            ValueError, TypeError: a shape or dtype does not fit, see the messages.
        """
        self.encoder.check(x)
        check_time(c, len(x))
        h, _ = self.encoder(x.to(self.head.weight.dtype), self.embedding(c))
        h = F.silu(self.norm(h))
        h = h.flatten(2).mean(2) if self.pool is None else self.pool(h)
        return self.head(h).to(x.dtype)
