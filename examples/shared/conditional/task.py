"""What the tasks of conditional.py have in common: their flags, training, and drawing under conditions.

    model = fit(flags, network(flags, 1, num_classes=10), dataset, out, steps=1500)
    x = draw(flags, model, (1, 8, 8), {"label": labels}, scale=2.0)

A scale of 0 hides the conditions: every figure stands beside that control.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import scoresde as ss
from scoresde import losses
from scoresde.cli.choices import SDES
from scoresde.cli.flags import PictureFlags, as_flag, at_least
from scoresde.cli.pictures import save_losses
from scoresde.cli.train import log_sigma
from scoresde.data import Dataset
from scoresde.models.conditions import nulls_of
from scoresde.nn import UNet
from scoresde.times import LogNormalSigma, Stratified
from scoresde.train import train
from shared.training import trained

CHUNK = 256  # pictures that are drawn at once


@dataclass(frozen=True, kw_only=True)
class Flags(PictureFlags):
    """Settings of every task."""

    data: Path | None = None
    """Superresolution: images of your own, a folder or a Parquet file, instead of scikit-learn's digits."""
    factor: Literal[2, 4] = 2
    """Superresolution: the side of the squares of pixels of which only the mean is known."""
    steps: int | None = None
    """Training steps; each task has its own number unless told."""
    batch_size: int = 64
    """Pictures in a training step."""
    condition_dropout: float = 0.1
    """Probability that a condition is hidden in training, each condition on its own."""
    guidance: tuple[float, ...] = (1.0, 2.0, 3.0)
    """Scales of classifier-free guidance at which captions and labels are drawn: 1 is conditional, larger is guided."""
    samples: int = 360
    """Captions, labels or held-out pictures that are asked about."""
    draws: int = 8
    """Pictures drawn for each question of superresolution, mask and segment: their mean and spread are measured."""
    sampling_steps: int = 25
    """Steps of the library's default solver, one network evaluation each and one to end with."""
    seed: int = 0
    """Of everything: split, sentences, weights, training, drawing."""

    def check(self) -> None:
        at_least(self, batch_size=1, width=1, samples=10, draws=2, sampling_steps=1, steps=1)
        for name in ("dropout", "condition_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{as_flag(name)} must be at least 0 and below 1, got {getattr(self, name)}.")
        if self.condition_dropout == 0:
            raise ValueError(
                "--condition-dropout must be above 0: every figure is compared with that of hidden conditions, which "
                "the network would never have seen."
            )
        if not self.guidance or not all(math.isfinite(scale) and scale >= 0 for scale in self.guidance):
            raise ValueError(f"--guidance takes finite numbers of at least 0, got {self.guidance}.")


def network(flags: Flags, channels: int, **changes: Any) -> UNet:
    """A U-Net of three levels without attention, but for the ``changes``; its initial weights are those of the seed."""
    torch.manual_seed(flags.seed)
    shape = {"multipliers": (1, 2, 2), "attention_levels": (), **changes}
    return UNet(channels, width=flags.width, dropout=flags.dropout, **shape)


def fit(
    flags: Flags, net: nn.Module, dataset: Dataset, out: Path, *, steps: int, mean: float | None = None
) -> ss.ScoreModel:
    """The model with averaged weights, trained on all conditions of ``net``; checkpoints and loss.png in ``out``.

    Args:
        flags: how.
        net: the network.
        dataset: pictures and conditions.
        out: the folder.
        steps: of training, where the flags do not say.
        mean: of log(sigma/alpha) in training; by default what suits the data's deviation.
    """
    some = torch.linspace(0, len(dataset) - 1, min(len(dataset), 4096), dtype=torch.float64).long()
    sigma_data = float(dataset[some]["x"].std())
    model = trained(
        train,
        ss.ScoreModel(net, SDES[flags.sde](), predicts="edm", sigma_data=sigma_data),
        dataset,
        **training_options(flags, steps),
        lr=flags.lr,
        betas=(0.9, 0.99),
        weighting=losses.edm(sigma_data),
        times=Stratified(LogNormalSigma(log_sigma(sigma_data) if mean is None else mean, 1.4)),
        condition_dropout=dict.fromkeys(nulls_of(net), flags.condition_dropout),
        folder=out / "checkpoints",
    )
    save_losses(out / "loss.png", out / "checkpoints" / "log.jsonl")
    return model


def training_options(flags: Flags, steps: int) -> dict[str, Any]:
    """What every training of a task takes from its flags."""
    return {
        "steps": steps if flags.steps is None else flags.steps,
        "batch_size": flags.batch_size,
        "seed": flags.seed,
        "resume": flags.resume,
        "cpu": flags.cpu,
    }


def draw(
    flags: Flags,
    model: ss.ScoreModel,
    event: tuple[int, ...],
    conditions: Mapping[str, Tensor],
    *,
    scale: float = 1.0,
    first: int = 0,
) -> Tensor:
    """One picture for each row of the conditions, on the CPU; scale 0 hides the conditions.

    Sample i depends on the seed, ``first`` + i and its conditions alone.
    """
    device = next(model.parameters()).device
    count = len(next(iter(conditions.values())))
    pieces = []
    for start in range(0, count, CHUNK):
        some = {name: value[start : start + CHUNK].to(device) for name, value in conditions.items()}
        solution = ss.sample(
            ss.classifier_free(model, some, scale=scale),
            (min(CHUNK, count - start), *event),
            steps=flags.sampling_steps,
            noise=ss.PerSampleNoise(flags.seed, first=first + start),
        )
        pieces.append(solution.x.cpu())
    return torch.cat(pieces)


def draw_many(
    flags: Flags, model: ss.ScoreModel, event: tuple[int, ...], conditions: Mapping[str, Tensor], *, scale: float = 1.0
) -> Tensor:
    """``flags.draws`` independent pictures for each row of the conditions, (draws, N, *event)."""
    count = len(next(iter(conditions.values())))
    return torch.stack(
        [draw(flags, model, event, conditions, scale=scale, first=k * count) for k in range(flags.draws)]
    )
