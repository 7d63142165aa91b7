"""What a run minimises: a model and its loss as one module, with what that asks of the data.

The loop, the averages and the checkpoints are the same for all; a subclass says what is trained, and by which loss.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from scoresde.guidance import ClassifierModel
from scoresde.losses import Weighting, dsm_loss
from scoresde.score import ScoreModel
from scoresde.train.batches import Batch, MapDataset
from scoresde.train.conditions import (
    Dropout,
    check_all_captions,
    check_captions,
    check_conditions,
    check_labels,
    dropped_rows,
    vocabularies,
)

Model = TypeVar("Model", ScoreModel, ClassifierModel)


class Objective(nn.Module, ABC, Generic[Model]):
    """A model and its loss as a module, so that data-parallel wrappers see one forward call.

    Attributes:
        model: in training.
        names: entries of a batch that the loss takes besides x.
        mirrored: those of them that are pictures of x, and are mirrored with it.
        nulls: what stands for "not given", by name, for those that can be dropped.
        droppable: those of ``names`` that some rows are trained without.
        autocast: compute the network in bfloat16.
    """

    def __init__(self, model: Model, names: Sequence[str], nulls: Mapping[str, Any], mirrored: Sequence[str]) -> None:
        super().__init__()
        self.model: Model = model
        self.names, self.nulls, self.mirrored = list(names), dict(nulls), list(mirrored)
        self.droppable: list[str] = []
        self.autocast = False

    def forward(self, x0: Tensor, t: Tensor, eps: Tensor, weight: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """The mean loss of a micro-batch, ().

        Args:
            x0: data (B, *event).
            t: times (B,).
            eps: N(0, I), shaped like x0.
            weight: factor of each sample (B,), from the density of t.
            given: the entries ``names`` of the batch.
        """
        with torch.autocast(x0.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            per_sample = self.per_sample(x0, t, eps, given)
        return (per_sample * weight.to(per_sample.dtype)).mean() / self.divisor(x0)

    @abstractmethod
    def per_sample(self, x0: Tensor, t: Tensor, eps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """The loss of each sample, (B,)."""

    def divisor(self, x0: Tensor) -> int:
        """What the loss of a sample is divided by; 1 unless overridden."""
        return 1

    @abstractmethod
    def check_data(self, dataset: MapDataset) -> None:
        """Raise unless the samples hold what the loss takes; called before anything starts."""

    @abstractmethod
    def check_batch(self, batch: Batch, step: int) -> None:
        """Raise unless a batch, still on the CPU, is in the network's range; ``step`` is counted from 1."""

    def dropped(self, uniforms: Tensor, *, seed: int, step: int) -> dict[str, Tensor]:
        """Which rows (batch_size,) of the global batch lose which entry; none unless overridden."""
        return {}


class Denoising(Objective[ScoreModel]):
    """Denoising score matching, averaged over samples and over the numbers of an event.

    Dividing by the size of the event makes losses, and gradient norms for clipping, comparable between data.

    Args:
        model: in training.
        weighting: see ``dsm_loss``.
        label_dropout, conditions: see ``train``.

    Raises:
        TypeError: not a ScoreModel.
    """

    def __init__(
        self,
        model: ScoreModel,
        weighting: Weighting | str,
        label_dropout: Dropout | None,
        conditions: Sequence[str] | None,
    ) -> None:
        if not isinstance(model, ScoreModel):
            known = isinstance(model, ClassifierModel)
            hint = "train it with train_classifier" if known else "wrap the network: ScoreModel(net, sde)"
            raise TypeError(f"expected a ScoreModel, got {type(model).__name__}; {hint}.")
        nulls = dict(getattr(model.net, "null_conditions", None) or {})
        names = list(nulls if conditions is None else conditions)
        mirrored = [name for name in names if name in tuple(getattr(model.net, "image_conditions", ()))]
        super().__init__(model, names, nulls, mirrored)
        self._weighting, self._asked = weighting, label_dropout
        self._words = vocabularies(model.net, names)
        able = [name for name in names if name in nulls]
        self._dropout: Dropout = (0.1 if able else 0.0) if label_dropout is None else label_dropout
        if isinstance(self._dropout, Mapping):
            self.droppable = [name for name, probability in self._dropout.items() if probability > 0]
        elif self._dropout > 0:
            self.droppable = able

    def per_sample(self, x0: Tensor, t: Tensor, eps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return dsm_loss(self.model, x0, t, eps, self._weighting, **given)

    def divisor(self, x0: Tensor) -> int:
        return math.prod(x0.shape[1:])

    def check_data(self, dataset: MapDataset) -> None:
        check_conditions(dataset, self.names, self.nulls, self._asked)
        check_all_captions(dataset, self._words)

    def check_batch(self, batch: Batch, step: int) -> None:
        if "label" in self.names:
            check_labels(batch["label"], self.nulls.get("label"), step, null=True)
        check_captions(batch, self._words, f"the batch of step {step}")

    def dropped(self, uniforms: Tensor, *, seed: int, step: int) -> dict[str, Tensor]:
        return dropped_rows(self._dropout, self.droppable, uniforms, seed=seed, step=step)
