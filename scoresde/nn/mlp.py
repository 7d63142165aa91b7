"""The network for vectors: points in the plane, tables, latents.

It is called like every network here, and rebuilt from its ``config``::

    net = MLP(2, width=128, depth=3, num_classes=10, vectors={"size": 2})
    out = net(x, c, label=y, size=s)          # x (B, 2), c = log(sigma/alpha) (B,), y (B,), s (B, 2) -> (B, 2)
    net = MLP(2, out_dim=10)                  # logits of ten classes: the network of a ClassifierModel
    twin = MLP(**net.config)                  # the same shape, with fresh weights
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import checks
from scoresde.models.conditions import Conditions, Label, Series, Set, Vector
from scoresde.nn.embeddings import ConditionEmbedding, TimeFeatures
from scoresde.nn.network import ConditionalNetwork, check_dropout


class MLPBlock(nn.Module):
    """Residual block for vectors, told the time and the class by a conditioning vector e.

        h   = layer_norm(x) * (1 + S e) + T e
        out = x + linear2(dropout(silu(linear1(h))))

    the feed-forward block of Peebles and Xie 2023 (adaptive layer norm), with linear2 starting at zero.
    (B, width) and (B, embedding) -> (B, width).
    """

    def __init__(self, width: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.condition = nn.Linear(embedding, 2 * width)
        self.linear1 = nn.Linear(width, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(2 * width, width)
        nn.init.zeros_(self.linear2.weight)
        nn.init.zeros_(self.linear2.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map x (B, width) and embedding (B, E) to (B, width)."""
        scale, shift = self.condition(embedding).chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm(x), 1 + scale)
        return x + self.linear2(self.dropout(F.silu(self.linear1(h))))


class MLP(ConditionalNetwork):
    """Residual network for vectors (B, dim) -> (B, out_dim), time-conditioned at each block; its output starts at zero.

    With out_dim = the number of classes, its output serves as the logits of a noise-conditional classifier of
    vectors, see `NoiseClassifier` for images. How it is called is said at `ConditionalNetwork.forward`.

    Args:
        dim: size of the vectors.
        width: size of the residual stream; each block is twice as wide inside.
        depth: number of residual blocks.
        num_classes: number of classes of a condition "label" (B,) int64; label num_classes means "no class".
        time_features: "sinusoidal" or "fourier", see `SinusoidalFeatures` and `FourierFeatures`.
        dropout: probability of dropping an activation inside a block, while training.
        out_dim: size of the output; dim unless given.
        vectors: size d of each condition (B, d), by name; (B,) will do where d = 1. A row of NaN means "not given",
            see `VectorEmbedding`.
        sets: size d of each condition (B, N, d) that is a set of any number of observations, by name; a member of NaN
            is padding, see `SetEncoder`. {"size": d, "width": 64, "layers": 2} says how large its encoder is.
        series: likewise of each condition (B, T, d) that is a time series of any length, see `SeriesEncoder`.

    Raises:
        TypeError, ValueError: an argument is not a whole number where it should be, or out of its range.
    """

    def __init__(
        self,
        dim: int,
        width: int = 128,
        depth: int = 3,
        num_classes: int | None = None,
        *,
        time_features: TimeFeatures = "sinusoidal",
        dropout: float = 0.0,
        out_dim: int | None = None,
        vectors: Mapping[str, int] | None = None,
        sets: Mapping[str, int | Mapping[str, int]] | None = None,
        series: Mapping[str, int | Mapping[str, int]] | None = None,
    ) -> None:
        dim, width = checks.count(dim, name="dim"), checks.count(width, name="width")
        depth = checks.count(depth, name="depth")
        out_dim = None if out_dim is None else checks.count(out_dim, name="out_dim")
        outputs = dim if out_dim is None else out_dim
        dropout = check_dropout(dropout)
        super().__init__(
            {
                "dim": dim,
                "width": width,
                "depth": depth,
                "num_classes": num_classes,
                "time_features": time_features,
                "dropout": dropout,
                "out_dim": out_dim,
            },
            Conditions.joined(Label.named(num_classes), Vector.named(vectors), Set.named(sets), Series.named(series)),
        )
        self.dim = dim
        self.embedding = ConditionEmbedding(64, width, time_features, self.conditions)
        self.stem = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(MLPBlock(width, width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def check_x(self, x: Tensor) -> None:
        """Raise unless x is a floating tensor (B, dim)."""
        checks.state(x)
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this network was built with dim={self.dim} and expects (B, {self.dim})."
            )

    def compute(self, x: Tensor, c: Tensor, given: Mapping[str, Tensor | None]) -> Tensor:
        embedding = self.embedding(c, given)
        h = self.stem(x.to(self.head.weight.dtype))
        for block in self.blocks:
            h = block(h, embedding)
        return self.head(F.silu(self.norm(h)))
