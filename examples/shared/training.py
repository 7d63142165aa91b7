"""How the scripts train their small networks: until the end, into a folder or none, with averaged weights.

    model = trained(train, model, dataset, steps=2000, batch_size=128, folder=out / "checkpoints")

What the loss sees is up to the script; :func:`edm_options` is what most of them take.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

import scoresde as ss
from scoresde import losses
from scoresde.cli.train import log_sigma
from scoresde.data import Dataset
from scoresde.models import ContrastiveModel
from scoresde.times import LogNormalSigma, Stratified
from scoresde.train import Run

Model = TypeVar("Model", ss.ScoreModel, ss.ClassifierModel, ContrastiveModel)


def trained(
    start: Callable[..., Run[Model]],
    model: Model,
    dataset: Dataset,
    *,
    steps: int,
    folder: Path | None = None,
    **options: Any,
) -> Model:
    """The model with averaged weights, in evaluation mode.

    Args:
        start: ``scoresde.train.train``, ``train_classifier`` or ``train_contrastive``.
        model: with its initial weights.
        dataset: what it learns.
        steps: of training.
        folder: for checkpoints and log.jsonl.
        options: of ``start``, beside what is the same in all scripts: warm-up, cosine decay, the average's decay.
    """
    common: dict[str, Any] = {"warmup": min(100, steps), "decay": "cosine", "ema": 0.999}
    if folder is not None:
        common.update(folder=folder, save_every=250, log_every=25)
    run = start(model, dataset, steps=steps, **common, **options)
    for _ in run:
        pass
    return run.ema_model().eval()


class Flags(Protocol):
    """The flags of a training that :func:`edm_options` takes."""

    @property
    def batch_size(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def cpu(self) -> bool: ...


def edm_options(flags: Flags, sigma_data: float, mean: float | None = None) -> dict[str, Any]:
    """How the scripts train networks that predict EDM's F, but for steps, folder and what is left out or added.

    Args:
        flags: how large, how fast, by which seed and where.
        sigma_data: deviation of the data.
        mean: of log(sigma/alpha) in training; by default what suits that deviation.
    """
    return {
        "batch_size": flags.batch_size,
        "lr": flags.lr,
        "betas": (0.9, 0.99),
        "weighting": losses.edm(sigma_data),
        "times": Stratified(LogNormalSigma(log_sigma(sigma_data) if mean is None else mean, 1.4)),
        "seed": flags.seed,
        "cpu": flags.cpu,
    }


def of_each_class(dataset: Dataset, count: int) -> Dataset:
    """The first ``count`` samples, as far as there are so many, as many of each class as of any other."""
    assert dataset.label is not None and dataset.num_classes is not None
    groups = [torch.where(dataset.label == k)[0] for k in range(dataset.num_classes)]
    each = max(1, min(count // len(groups), *map(len, groups)))
    return dataset.subset(torch.stack([group[:each] for group in groups], dim=1).flatten())
