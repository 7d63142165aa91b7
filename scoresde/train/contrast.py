"""Training of a contrastive model: InfoNCE of x_t and captions, in both directions.

:class:`Contrast` is the :class:`~scoresde.train.objective.Objective` that
:func:`~scoresde.train.train_contrastive` hands to the loop; it takes x and the caption from each batch::

    objective = Contrast(ContrastiveModel(DualEncoder(3, captions={"caption": {...}}), sde), options)
    objective.check_data(dataset)                           # raises where there are no captions
    objective.per_sample(x0, t, eps, {"caption": tokens})   # (B,), in nats
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from scoresde import checks
from scoresde.losses import contrastive_loss
from scoresde.models import ContrastiveModel
from scoresde.models.conditions import check_values, kinds_of, nulls_of
from scoresde.train.batches import Batch, MapDataset
from scoresde.train.conditions import check_all_values, check_conditions
from scoresde.train.describe import CONTRASTIVE
from scoresde.train.objective import Objective
from scoresde.train.options import TrainOptions


class Contrast(Objective[ContrastiveModel]):
    """:func:`~scoresde.losses.contrastive_loss` of x_t = α x_0 + σ ε and captions, each time at its own t.

    The others of a batch are the negatives, except where their caption is the same. Where a batch is worked off in
    parts (``accumulate``, processes), those are the others of a part.

    Args:
        model: in training.
        options: of which batch_size and accumulate are looked at.

    Raises:
        TypeError: not a ContrastiveModel.
        ValueError: parts of one sample, which have no negatives.
    """

    kind = CONTRASTIVE

    def __init__(self, model: ContrastiveModel, options: TrainOptions) -> None:
        if not isinstance(model, ContrastiveModel):
            raise TypeError(
                f"model must be a ContrastiveModel, got {checks.got(model)}; wrap a network of two encoders: "
                "ContrastiveModel(DualEncoder(channels, captions=...), sde, sigma_data)."
            )
        if options.batch_size < 2 * options.accumulate:
            raise ValueError(
                f"batch_size={options.batch_size} in accumulate={options.accumulate} parts leaves a caption nothing to "
                "be told from: give each part at least 2 samples, and better hundreds."
            )
        super().__init__(model, (model.caption_name,), nulls_of(model.net), ())
        self._kinds = {name: kind for name, kind in kinds_of(model.net).items() if name in self.names}

    def per_sample(self, x0: Tensor, t: Tensor, eps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        (tokens,) = given.values()
        mean, std = self.model.sde.marginal(x0, t)
        logits = self.model.pairs(mean + std * eps, t, tokens)
        if logits.shape != (len(x0), len(x0)) or not logits.is_floating_point():
            raise ValueError(
                f"the network of a contrastive model must answer floating logits {(len(x0), len(x0))} where it is "
                f"given captions; it answered {logits.dtype} {tuple(logits.shape)}."
            )
        return contrastive_loss(logits, equal_rows(tokens))

    def check_data(self, dataset: MapDataset) -> None:
        check_conditions(dataset, self.names, self.nulls, None)
        check_all_values(dataset, self._kinds)

    def check_batch(self, batch: Batch, step: int) -> None:
        check_values(self._kinds, batch, f"the batch of step {step}")


def equal_rows(tokens: Tensor) -> Tensor:
    """Which two rows of tokens (B, L) are the same, (B, B) bool, in memory of that size."""
    same = torch.ones(len(tokens), len(tokens), dtype=torch.bool, device=tokens.device)
    for column in tokens.unbind(1):
        same &= column[:, None] == column[None]
    return same
