"""A classifier of noisy events, for classifier guidance.

It sees x_t and c = log(sigma/alpha), as every network here, and answers logits::

    net = NoiseClassifier(1, num_classes=10, width=32, attention_levels=())
    logits = net(x, c)                                   # x (B, 1, *spatial), c (B,) -> (B, 10)
    model = ClassifierModel(net, sde, sigma_data=1.0)    # train it by scoresde.train.train_classifier
    guided = classifier(score, model, scale=2.0, label=3)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Unpack

from torch import Tensor, nn

from scoresde import checks
from scoresde.models.conditions import Conditions
from scoresde.nn.attention import AttentionPool, group_norm
from scoresde.nn.encoder import Architecture, Encoder, EncoderOptions, with_encoder_options
from scoresde.nn.network import ConditionalNetwork
from scoresde.nn.norms import group_normed, in_fast_format


class NoiseClassifier(ConditionalNetwork):
    """Logits of p(class | x_t) for events of 1, 2 or 3 spatial axes, (B, channels, *spatial) -> (B, num_classes).

    The encoder half of the `UNet`, then one vector per event, then a linear map, as in Dhariwal and Nichol 2021
    (section 4). The logits start at zero: all classes equally likely, which is also the truth where all is noise.
    For vectors use `MLP(dim, out_dim=num_classes)`. Log-probabilities are the log_softmax of the output.

    Args:
        channels: channels of the event.
        num_classes: number of classes.
        event_dims: number of spatial axes, 1, 2 or 3.
        width: channels at the finest level.
        pool: how the positions become one vector: "attention" (`AttentionPool`) or "mean".
        encoder: multipliers, blocks, attention_levels, head_width, time_features, conditioning, dropout, checkpoint,
            see `EncoderOptions`.

    Raises:
        TypeError, ValueError: an argument is not a whole number where it should be, or out of its range.
    """

    @with_encoder_options
    def __init__(
        self,
        channels: int,
        num_classes: int,
        event_dims: int = 2,
        *,
        width: int = 32,
        pool: Literal["attention", "mean"] = "attention",
        **encoder: Unpack[EncoderOptions],
    ) -> None:
        num_classes = checks.count(num_classes, name="num_classes")
        pool = checks.one_of(pool, ("attention", "mean"), name="pool")
        shape = Architecture(channels, event_dims, width, **encoder)
        super().__init__({**shape.config, "num_classes": num_classes, "pool": pool}, Conditions())
        self.encoder = Encoder(shape)
        self.embedding = shape.embedding(self.conditions)
        last = shape.widths[-1]
        self.norm = group_norm(last)
        self.pool = AttentionPool(last, shape.head_width) if pool == "attention" else None
        self.head = nn.Linear(last, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def check_x(self, x: Tensor) -> None:
        """Raise unless x is (B, channels, *spatial)."""
        self.encoder.check(x)

    def compute(self, x: Tensor, c: Tensor, given: Mapping[str, Tensor | None]) -> Tensor:
        h, _ = self.encoder(in_fast_format(x.to(self.head.weight.dtype)), self.embedding(c, given))
        h = group_normed(self.norm, h, silu=True)
        return self.head(h.flatten(2).mean(2) if self.pool is None else self.pool(h))
