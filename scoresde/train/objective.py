"""What a run minimises: a model and its loss as one module, with what that asks of the data.

The loop, the averages and the checkpoints are the same for all; a subclass of :class:`Objective` says what is trained,
and by which loss. :class:`Denoising` is denoising score matching, what :func:`~scoresde.train.train` minimises::

    objective = Denoising(model, TrainOptions(steps=2000, batch_size=128))
    loss = objective(x0, t, eps, weight, {"label": label})  # (), averaged over samples and coordinates

The other is :class:`~scoresde.train.classification.Classification`. One of your own writes ``per_sample``,
``check_data`` and ``check_batch``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.data import Augmentation, Dataset
from scoresde.data.augmentation import NAME as AUGMENT
from scoresde.losses import WEIGHTINGS, Coupling, Uncertainty, UncertaintyNetwork, Weighting, dsm_loss, edm
from scoresde.models import ClassifierModel, ScoreModel
from scoresde.models.conditions import Dropout, TrainedWith, Vector, check_values, dropped_rows, kinds_of, nulls_of
from scoresde.train.batches import Batch, MapDataset
from scoresde.train.conditions import check_all_values, check_conditions
from scoresde.train.contents import describe_data
from scoresde.train.describe import SCORE, Model
from scoresde.train.draws import derive, draws_itself, is_of_ours, named_uniforms
from scoresde.train.option_checks import words
from scoresde.train.options import TrainOptions
from scoresde.warning import warn_user


class Objective(nn.Module, ABC, Generic[Model]):
    """A model and its loss as a module, so that data-parallel wrappers see one forward call.

    Attributes:
        kind: of training, as options and checkpoints call it.
        of_squares: whether ``at_levels`` is a squared error in units of sigma_data.
        model: in training.
        names: entries of a batch that the loss takes besides x.
        mirrored: those of them that are pictures of x, and are mirrored with it.
        nulls: what stands for "not given", by name, for those that can be dropped.
        droppable: those of ``names`` that some rows are trained without.
        autocast: compute the network in bfloat16.
        weighting: of the loss over time, (sde, t) -> w(t); None for one without.
        companion: what is trained along with the model and not kept in it, a learned weighting; None for nothing.
        draws: whether the loss may draw from torch's default generators: the network by dropout, say.
    """

    kind: ClassVar[str]
    of_squares: ClassVar[bool] = False

    def __init__(self, model: Model, names: Sequence[str], nulls: Mapping[str, Any], mirrored: Sequence[str]) -> None:
        super().__init__()
        self.model: Model = model
        self.names, self.nulls, self.mirrored = list(names), dict(nulls), list(mirrored)
        self.droppable: list[str] = []
        self.autocast = False
        self.weighting: Weighting | None = None
        self.companion: UncertaintyNetwork | None = None

    @property
    def draws(self) -> bool:
        return not (self.weighting is None or is_of_ours(self.weighting)) or draws_itself(self.model)

    def forward(self, x0: Tensor, t: Tensor, eps: Tensor, weight: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """The mean loss of a micro-batch, ().

        Args:
            x0: data (B, *event).
            t: times (B,).
            eps: N(0, I), shaped like x0.
            weight: factor of each sample (B,), from the density of t.
            given: the entries ``names`` of the batch.
        """
        return self.with_terms(x0, t, eps, weight, given)[0]

    def with_terms(
        self, x0: Tensor, t: Tensor, eps: Tensor, weight: Tensor, given: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The same mean, (), and what of each sample's contribution to it has a gradient for the model, (B,), without
        its graph.
        """
        with torch.autocast(x0.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            per_sample = self.per_sample(x0, t, eps, given)
        weight = weight.to(per_sample.dtype)
        if self.companion is None:
            terms = per_sample * weight
            return terms.mean() / self.divisor(x0), terms.detach() / self.divisor(x0)
        u = self.companion.at(self.model.sde, t)
        terms = weight * (per_sample / self.divisor(x0)) * (-u).exp()
        return (terms + weight * u).mean(), terms.detach()

    @abstractmethod
    def per_sample(self, x0: Tensor, t: Tensor, eps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """The loss of each sample, (B,)."""

    def at_levels(self, x0: Tensor, t: Tensor, eps: Tensor, given: Mapping[str, Tensor], sigma_data: float) -> Tensor:
        """The loss of each sample (B,) in units in which noise levels compare, whatever the weighting; unless
        overridden that of training.
        """
        return self.per_sample(x0, t, eps, given) / self.divisor(x0)

    def divisor(self, x0: Tensor) -> int:
        """What the loss of a sample is divided by; 1 unless overridden."""
        return 1

    @abstractmethod
    def check_data(self, dataset: MapDataset) -> None:
        """Raise unless the samples hold what the loss takes; called before anything starts."""

    def told(self, dataset: MapDataset) -> None:
        """Let the model know what the data set tells of itself; called before the first evaluation."""
        self.model.averaged = None
        scaling = getattr(dataset, "scaling", None)
        if scaling is not None:
            if self.model.scaling not in (None, scaling):
                warn_user(
                    f"the model comes from data in units of {self.model.scaling}, and learns in those of these data, "
                    f"{scaling}, from now on: from_tensors(..., scaling=model.scaling) would keep them."
                )
            self.model.scaling = scaling
        for name in ("event_shape", "class_names"):
            value = getattr(dataset, name, None)
            if value is not None:
                setattr(self.model, name, tuple(value))
        shapes = describe_data(dataset)["conditions"]
        self.model.condition_shapes = shapes or dict(self.model.condition_shapes)
        vocabularies = getattr(dataset, "vocabularies", None)
        if isinstance(vocabularies, Mapping):
            self.model.vocabularies = {**self.model.vocabularies, **vocabularies}

    @abstractmethod
    def check_batch(self, batch: Batch, step: int) -> None:
        """Raise unless a batch, still on the CPU, is in the network's range; ``step`` is counted from 1."""

    def dropped(self, uniforms: Tensor, *, seed: int, step: int) -> dict[str, Tensor]:
        """Which rows (batch_size,) of the global batch lose which entry; none unless overridden."""
        return {}

    def mark(self, dataset: MapDataset) -> None:
        """Note on the model what it is trained with, so that what uses it later knows; nothing unless overridden."""


class Denoising(Objective[ScoreModel]):
    """Denoising score matching, averaged over samples and over the numbers of an event.

    Dividing by the size of the event makes losses, and gradient norms for clipping, comparable between data.

    Args:
        model: in training.
        options: of which weighting, condition_dropout and conditions act here.

    Raises:
        TypeError: not a ScoreModel.
    """

    kind = SCORE
    of_squares = True

    def __init__(self, model: ScoreModel, options: TrainOptions) -> None:
        if not isinstance(model, ScoreModel):
            known = isinstance(model, ClassifierModel)
            hint = "train it with train_classifier" if known else "wrap the network: ScoreModel(net, sde)"
            raise TypeError(f"model must be a ScoreModel, got {checks.got(model)}; {hint}.")
        nulls = nulls_of(model.net)
        names = list(nulls if options.conditions is None else options.conditions)
        if options.augment is not None:  # which the loop gives, and the data set does not hold
            _check_told(model.net, options.augment)
            names = [name for name in names if name != AUGMENT]
        mirrored = [name for name in names if name in tuple(getattr(model.net, "image_conditions", ()))]
        super().__init__(model, names, nulls, mirrored)
        base, self._asked = options.weighting, options.condition_dropout
        self._named = base if isinstance(base, str) else words(base)[:1000]
        if isinstance(base, Uncertainty):
            self.companion = base.network(seed=derive(options.seed, "weighting"))
            base = base.base
        self._coupling = None if options.coupling is None else told_coupling(options.coupling)
        self._weighting: Weighting | str = base
        self.weighting = WEIGHTINGS[base] if isinstance(base, str) else base
        self._kinds = {name: kind for name, kind in kinds_of(model.net).items() if name in names}
        able = [name for name in names if name in nulls]
        self._dropout: Dropout = (0.1 if able else 0.0) if self._asked is None else self._asked
        if isinstance(self._dropout, Mapping):
            self.droppable = [name for name, probability in self._dropout.items() if probability > 0]
        elif self._dropout > 0:
            self.droppable = able

    def per_sample(self, x0: Tensor, t: Tensor, eps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return dsm_loss(self.model, x0, t, eps, self._weighting, conditions=given)

    def at_levels(self, x0: Tensor, t: Tensor, eps: Tensor, given: Mapping[str, Tensor], sigma_data: float) -> Tensor:
        return dsm_loss(self.model, x0, t, eps, edm(sigma_data), conditions=given) / self.divisor(x0)

    def divisor(self, x0: Tensor) -> int:
        return math.prod(x0.shape[1:])

    def check_data(self, dataset: MapDataset) -> None:
        check_conditions(dataset, self.names, self.nulls, self._asked)
        check_all_values(dataset, self._kinds)

    def told(self, dataset: MapDataset) -> None:
        """The units of conditions, too: the model's own where it has been trained, else the data set's."""
        super().told(dataset)
        given = getattr(dataset, "condition_scalings", None)
        if isinstance(given, Mapping):
            wanted = {name: one for name, one in given.items() if name in self.names}
            fixed = {name for name in wanted if not _is_nan(self.nulls.get(name, math.nan))}
            if fixed:
                warn_user(
                    f'the network says "not given" of {", ".join(sorted(fixed))} by a number, which no scaling may '
                    "touch, so that the network gets them as they are, far from unit size as they may be: scale them "
                    "yourself, or let the network's null be NaN."
                )
            kept = {name: one for name, one in wanted.items() if name not in fixed}
            self.model.condition_scalings = {**kept, **self.model.condition_scalings}

    def check_batch(self, batch: Batch, step: int) -> None:
        check_values(self._kinds, batch, f"the batch of step {step}")

    def dropped(self, uniforms: Tensor, *, seed: int, step: int) -> dict[str, Tensor]:
        def alone(name: str) -> Tensor:
            # The stream has its name from when there were labels only: runs of then are continued with its numbers.
            return named_uniforms(seed, step, len(uniforms), f"label dropout of {name}")

        return dropped_rows(self._dropout, self.droppable, together=uniforms, alone=alone)

    def mark(self, dataset: MapDataset) -> None:
        told = TrainedWith.of(self.names, self._dropout, self.droppable)
        held = {name: share for name in self.names if (share := self._absent(dataset, name)) > 0}
        if held:  # the data themselves hold samples without it, each on its own
            either = {name: max(told.dropout.get(name, 0.0), held.get(name, 0.0)) for name in self.names}
            told = TrainedWith.of(self.names, either, self.droppable)
        self.model.trained_with = replace(told, weighting=self._named, coupling=self._coupling)

    def _absent(self, dataset: MapDataset, name: str) -> float:
        """The share of samples whose condition is null, of data in memory."""
        null = self.nulls.get(name)
        if not isinstance(dataset, Dataset) or not isinstance(null, (int, float)) or not len(dataset):
            return 0.0
        values = dataset.label if name == "label" else dataset.conditions.get(name)
        if values is None:
            return 0.0
        null_entries = values.isnan() if math.isnan(null) and values.is_floating_point() else values == null
        return null_entries.reshape(len(values), -1).all(1).double().mean().item()


def told_coupling(coupling: Coupling) -> str:
    """A coupling in words."""
    return str(getattr(coupling, "name", None) or words(coupling))[:1000]


def _check_told(net: object, augmentation: Augmentation) -> None:
    """Raise unless a network can be told of an augmentation.

    Raises:
        ValueError: it has no condition "augment", or one of another size.
    """
    kind, size = kinds_of(net).get(AUGMENT), augmentation.size
    if AUGMENT not in nulls_of(net) or (kind is not None and kind != Vector(size)):
        had = "no such condition" if kind is None else f"{kind} for it"
        raise ValueError(
            f"augment tells the network what was done to each picture, a vector {AUGMENT!r} of {size} numbers, and it "
            f"has {had}: build it with vectors={{{AUGMENT!r}: Augmentation.size}}, or leave augment out."
        )


def _is_nan(null: Any) -> bool:
    return isinstance(null, float) and math.isnan(null)
