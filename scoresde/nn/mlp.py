"""The network for vectors: points in the plane, tables, latents."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.nn.conditions import Conditions
from scoresde.nn.embeddings import ConditionEmbedding, TimeFeatures
from scoresde.nn.inputs import check_label, check_positive, check_probability, check_time, check_vector


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


class MLP(nn.Module):
    """Residual network for vectors (B, dim), time-conditioned at each block; its output starts at zero.

    With out_dim = the number of classes, its output serves as the logits of a noise-conditional classifier of
    vectors, see `NoiseClassifier` for images.

    Weights start from torch's default generator, as for any nn.Module; seed it with torch.manual_seed.
    The network computes in the dtype of its weights and answers in the dtype of x.

    Args:
        dim: size of the vectors.
        width: size of the residual stream; each block is twice as wide inside.
        depth: number of residual blocks.
        num_classes: number of classes for a class-conditional network; label num_classes means "no class".
        time_features: "sinusoidal" or "fourier", see `SinusoidalFeatures` and `FourierFeatures`.
        dropout: probability of dropping an activation inside a block, while training.
        out_dim: size of the output; dim unless given.
        vectors: size d of each condition (B, d), by name; (B,) will do where d = 1. A row of NaN means "not given",
            see `VectorEmbedding`.

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
    ) -> None:
        super().__init__()
        outputs = dim if out_dim is None else out_dim
        check_positive(dim=dim, width=width, depth=depth, out_dim=outputs)
        check_probability(dropout=dropout)
        self.conditions = Conditions.of(num_classes, vectors)
        self._config: dict[str, Any] = {
            "dim": dim,
            "width": width,
            "depth": depth,
            "num_classes": num_classes,
            "time_features": time_features,
            "dropout": dropout,
            "out_dim": out_dim,
            **self.conditions.config,
        }
        self.dim = dim
        self.num_classes = num_classes
        sizes = list(self.conditions.vectors.values())
        self.embedding = ConditionEmbedding(64, width, time_features, num_classes, sizes)
        self.stem = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(MLPBlock(width, width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON: `MLP(**net.config)` has the same shape."""
        return copy.deepcopy(self._config)

    @property
    def null_conditions(self) -> dict[str, float]:
        """What means "not given": num_classes for the label, NaN for vectors."""
        return self.conditions.nulls

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None, **conditions: Tensor | None) -> Tensor:
        """Evaluate the network.

        Args:
            x: vectors (B, dim).
            c: log(sigma/alpha) of each sample's noise level, (B,).
            label: int64 class of each sample, (B,), from 0 to num_classes; num_classes is the null label,
                which everybody gets if label is None.
            conditions: the vector conditions by name, each (B, d); left out or None, not given for anybody.

        Returns:
            (B, out_dim), of x's dtype.

        Raises:
            ValueError, TypeError: a shape, dtype or value does not fit, or a condition is unknown, see the messages.
        """
        check_vector(x, self.dim)
        check_time(c, len(x))
        label = check_label(label, len(x), self.num_classes, x.device)
        embedding = self.embedding(c, label, self.conditions.read(conditions, x).vectors)
        h = self.stem(x.to(self.head.weight.dtype))
        for block in self.blocks:
            h = block(h, embedding)
        return self.head(F.silu(self.norm(h))).to(x.dtype)
