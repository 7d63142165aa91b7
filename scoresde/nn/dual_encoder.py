"""The network of a contrastive model: pictures and captions brought into one space, where those that belong together
point the same way::

    net = DualEncoder(3, captions={"caption": {"vocabulary": 24, "length": 8}}, size=64, width=32)
    u = net(x, c)                            # x (B, 3, H, W), c = log(sigma/alpha) (B,) -> unit vectors (B, 64)
    v = net.caption(tokens)                  # tokens (K, L) -> unit vectors (K, 64)
    logits = net(x, c, caption=tokens)       # (B, B): exp(log_scale) u v^T, for the loss
    model = ContrastiveModel(net, sde, sigma_data=0.5)   # train it by scoresde.train.train_contrastive
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import checks
from scoresde.models.conditions import Caption, Conditions
from scoresde.nn.attention import AttentionPool, group_norm
from scoresde.nn.context import CaptionEncoder
from scoresde.nn.encoder import Architecture, Encoder, EncoderOptions, with_encoder_options
from scoresde.nn.network import ConditionalNetwork
from scoresde.nn.norms import group_normed, in_fast_format

FIRST_SCALE, LARGEST_SCALE = 1 / 0.07, 100.0
"""What cosines are multiplied with at first, and at most (Radford et al. 2021, section 2.5)."""


class DualEncoder(ConditionalNetwork):
    r"""Events (B, channels, *spatial) and captions (B, L) to unit vectors of one space, and their logits.

        u = W_x pool(encoder(x, c)) / |·|,     v = W_y first(transformer(tokens)) / |·|,     s_ij = e^τ ⟨u_i, v_j⟩

    Radford et al. 2021 (arXiv:2103.00020, section 2.3 and figure 3). The image encoder is the going-down half of the
    `UNet`, told the noise level, so that it reads noisy events, too; the text encoder is the `CaptionEncoder` that
    networks attend to, of which the learned first token is the sentence. e^τ is learned, 1/0.07 at first, and is held
    at 100 by `after_step`, which training calls.

    `net(x, c)` answers u (B, size), `net(x, c, name=tokens)` the logits (B, B) of each event with each caption, and
    `caption(tokens)` v.

    Args:
        channels: channels of the event.
        event_dims: number of spatial axes, 1, 2 or 3.
        captions: the one caption condition by name, as {"vocabulary": words, "length": most tokens, "width": 64,
            "layers": 2}; see `Caption`.
        size: of the common space.
        width: channels at the finest level.
        pool: how the positions become one vector: "attention" (`AttentionPool`) or "mean".
        encoder: multipliers, blocks, attention_levels, head_width, time_features, conditioning, dropout, checkpoint,
            see `EncoderOptions`.

    Raises:
        TypeError, ValueError: an argument is not a whole number where it should be, or out of its range; no caption, or
            several.
    """

    @with_encoder_options
    def __init__(
        self,
        channels: int,
        event_dims: int = 2,
        *,
        captions: Mapping[str, Mapping[str, int]],
        size: int = 64,
        width: int = 32,
        pool: Literal["attention", "mean"] = "attention",
        **encoder: Unpack[EncoderOptions],
    ) -> None:
        size = checks.count(size, name="size", most=2**20)
        pool = checks.one_of(pool, ("attention", "mean"), name="pool")
        shape = Architecture(channels, event_dims, width, **encoder)
        named = Caption.named(captions)
        if len(named) != 1:
            raise ValueError(
                f"captions={captions!r}: expected the one caption that events are compared with, by name, e.g. "
                "{'caption': {'vocabulary': 24, 'length': 8}}."
            )
        super().__init__({**shape.config, "size": size, "pool": pool}, Conditions(named))
        ((self.caption_name, caption),) = named.items()
        self.encoder = Encoder(shape)
        self.embedding = shape.embedding(Conditions())
        last = shape.widths[-1]
        self.norm = group_norm(last)
        self.pool = AttentionPool(last, shape.head_width) if pool == "attention" else None
        self.head = nn.Linear(last, size)
        self.text = CaptionEncoder(caption, size)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    @property
    def scale(self) -> Tensor:
        """e^τ, what cosines are multiplied with, ()."""
        return self.log_scale.exp()

    def check_x(self, x: Tensor) -> None:
        """Raise unless x is (B, channels, *spatial)."""
        self.encoder.check(x)

    def compute(self, x: Tensor, c: Tensor, given: Mapping[str, Tensor | None]) -> Tensor:
        h, _ = self.encoder(in_fast_format(x.to(self.head.weight.dtype)), self.embedding(c, {}))
        h = group_normed(self.norm, h, silu=True)
        u = _unit(self.head(h.flatten(2).mean(2) if self.pool is None else self.pool(h)))
        tokens = given[self.caption_name]
        if tokens is None or not tokens.shape[1]:  # left out
            return u
        v = _unit(self._read(tokens))
        with torch.autocast(u.device.type, enabled=False):  # bfloat16 would round logits of up to 100 to halves
            return self.scale * (u @ v.T)

    def caption(self, tokens: Tensor) -> Tensor:
        """Map tokens (K, L) to unit vectors (K, size).

        Raises:
            TypeError, ValueError: no int64 (K, L), L above the network's length, or a token out of range.
        """
        if not isinstance(tokens, Tensor) or tokens.layout is not torch.strided:
            layout = f", {tokens.layout}" if isinstance(tokens, Tensor) else ""
            raise TypeError(f"tokens must be a dense tensor (K, L), got {checks.got(tokens)}{layout}.")
        own = self.head.weight
        if tokens.device != own.device:
            raise ValueError(f"tokens are on {tokens.device} but the network is on {own.device}; move them there.")
        if tokens.ndim != 2 or not tokens.shape[1]:
            raise ValueError(f"tokens must be (K, L), a row for each caption, got {checks.got(tokens)}.")
        kind = self.conditions[self.caption_name]
        return _unit(self._read(kind.check(self.caption_name, tokens, tokens)))

    def _read(self, tokens: Tensor) -> Tensor:
        return self.text(tokens).tokens[:, 0]

    def after_step(self) -> None:
        """Hold e^τ at 100: called by training after each step."""
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(LARGEST_SCALE))


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1, worked out in float32 at least."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)
