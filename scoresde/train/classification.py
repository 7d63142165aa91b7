"""Training of a noise-conditional classifier: cross-entropy on x_t.

:class:`Classification` is the :class:`~scoresde.train.objective.Objective` that
:func:`~scoresde.train.train_classifier` hands to the loop; it takes x and label from each batch::

    objective = Classification(ClassifierModel(NoiseClassifier(1, 10), sde, sigma_data=1.0))
    objective.check_data(dataset)                           # raises where there are no labels, or one class only
    objective.per_sample(x0, t, eps, {"label": label})      # (B,), in nats

The number of logits is compared with the classes of the data at the first call.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde import checks
from scoresde.models import ClassifierModel
from scoresde.models.conditions.kinds import check_classes
from scoresde.train.batches import Batch, MapDataset
from scoresde.train.describe import CLASSIFIER
from scoresde.train.objective import Objective


class Classification(Objective[ClassifierModel]):
    """The cross-entropy -log p(label | x_t) in nats, x_t = α x_0 + σ ε, averaged over samples.

    Its minimiser is the exact classifier of x_t at every t (Dhariwal & Nichol 2021, arXiv:2105.05233, section 4; Song
    et al. 2021, arXiv:2011.13456, appendix I).

    Args:
        model: in training.

    Raises:
        TypeError: not a ClassifierModel.
    """

    kind = CLASSIFIER

    def __init__(self, model: ClassifierModel) -> None:
        if not isinstance(model, ClassifierModel):
            raise TypeError(
                f"model must be a ClassifierModel, got {checks.got(model)}; wrap a network that answers logits: "
                "ClassifierModel(NoiseClassifier(channels, K), sde, sigma_data)."
            )
        super().__init__(model, ("label",), {}, ())
        self._data_classes: int | None = None  # what the data set says
        self._net_classes: int | None = None  # what the network answers, known after the first call

    def per_sample(self, x0: Tensor, t: Tensor, eps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        mean, std = self.model.sde.marginal(x0, t)
        logits = self.model.logits(mean + std * eps, t)
        self._check_logits(logits, len(x0))
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(wide, given["label"].long(), reduction="none")

    def check_data(self, dataset: MapDataset) -> None:
        sample = dataset[0]
        if "label" not in sample:
            raise ValueError(
                f"a classifier learns from labels, but samples hold only {sorted(sample)}. Give the data set labels: "
                "from_tensors(x, label)."
            )
        label = torch.as_tensor(sample["label"])
        if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool or label.ndim:
            raise TypeError(
                f"a label must be one whole number for each sample, got {label.dtype} {tuple(label.shape)}; class "
                "numbers convert by label.long()."
            )
        classes = getattr(dataset, "num_classes", None)
        if isinstance(classes, int):
            if classes < 2:
                raise ValueError("there is one class only, and nothing to tell apart; give labels of two or more.")
            self._data_classes = classes

    def check_batch(self, batch: Batch, step: int) -> None:
        if self._net_classes is not None:
            check_classes(batch["label"], self._net_classes, what=f"labels of the batch of step {step}")

    def _check_logits(self, logits: Tensor, batch: int) -> None:
        data = self._data_classes
        if logits.ndim != 2 or logits.shape[0] != batch or not logits.is_floating_point():
            raise ValueError(
                f"the network of a classifier must answer floating logits ({batch}, K); it answered {logits.dtype} "
                f"{tuple(logits.shape)}. NoiseClassifier(channels, K) does, and MLP(dim, out_dim=K) for vectors."
            )
        if data is not None and logits.shape[1] != data:
            raise ValueError(
                f"the data have {data} classes but the network answers {logits.shape[1]} logits; build it for {data}: "
                f"NoiseClassifier(channels, {data}) or MLP(dim, out_dim={data}). If some classes have no sample, say "
                f"how many there are: from_tensors(..., num_classes={logits.shape[1]})."
            )
        self._net_classes = logits.shape[1]
