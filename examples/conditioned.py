"""What the tasks of conditional.py have in common: their flags, training, and drawing under conditions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from choices import SDES, SDEName
from pictures import save_curve
from torch import Tensor, nn

import scoresde as ss
from scoresde import losses
from scoresde.data import Dataset
from scoresde.times import LogNormalSigma, Stratified
from scoresde.train import train

CHUNK = 256  # pictures that are drawn at once


@dataclass(kw_only=True)
class Flags:
    """Settings of every task."""

    sde: SDEName = "vp"
    """The SDE that turns pictures into noise."""
    resume: bool = False
    """Go on from the last checkpoints in the folder; a finished training goes straight to drawing."""
    steps: int | None = None
    """Training steps; each task has its own number unless told."""
    batch_size: int = 64
    """Pictures in a training step."""
    lr: float = 2e-3
    """Peak learning rate of AdamW; it falls to 0 by a cosine."""
    width: int = 32
    """Channels of the U-Net at its finest level."""
    dropout: float = 0.1
    """Dropout inside the U-Net."""
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
    threads: int = 0
    """Threads of torch; 0 leaves its default."""
    cpu: bool = False
    """Stay on the CPU although there is a GPU."""

    def check(self) -> None:
        """Raise ValueError for a flag that would fail only after training."""
        least = {"batch_size": 1, "width": 1, "samples": 10, "draws": 2, "sampling_steps": 1}
        if self.steps is not None:
            least["steps"] = 1
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {value}, got {getattr(self, name)}.")
        for name in ("dropout", "condition_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at least 0 and below 1, got {getattr(self, name)}."
                )
        if self.condition_dropout == 0:
            raise ValueError(
                "--condition-dropout must be above 0: every figure is compared with that of hidden conditions, which "
                "the network would never have seen."
            )
        if not self.guidance or not all(math.isfinite(scale) and scale >= 0 for scale in self.guidance):
            raise ValueError(f"--guidance takes finite numbers of at least 0, got {self.guidance}.")


def fit(
    flags: Flags, net: nn.Module, dataset: Dataset, out: Path, *, steps: int, log_sigma: float | None = None
) -> ss.ScoreModel:
    """The model with averaged weights, trained on all conditions of ``net``; checkpoints and loss.png in ``out``.

    Args:
        flags: how.
        net: the network.
        dataset: pictures and conditions.
        out: the folder.
        steps: of training, where the flags do not say.
        log_sigma: mean of log(sigma/alpha) in training; by default log of the data's deviation - 0.5, as in Karras et
            al. 2022, who take -1.2 for a deviation of 0.5.
    """
    some = torch.linspace(0, len(dataset) - 1, min(len(dataset), 4096), dtype=torch.float64).long()
    sigma_data = float(dataset[some]["x"].std())
    model = ss.ScoreModel(net, SDES[flags.sde](), predicts="edm", sigma_data=sigma_data)
    steps = steps if flags.steps is None else flags.steps
    names = list(net.null_conditions)  # type: ignore[arg-type]
    run = train(
        model,
        dataset,
        steps=steps,
        batch_size=flags.batch_size,
        lr=flags.lr,
        betas=(0.9, 0.99),
        warmup=min(100, steps),
        decay="cosine",
        ema=0.999,
        weighting=losses.edm(sigma_data),
        times=Stratified(LogNormalSigma(math.log(sigma_data) - 0.5 if log_sigma is None else log_sigma, 1.4)),
        label_dropout=dict.fromkeys(names, flags.condition_dropout),
        seed=flags.seed,
        folder=out / "checkpoints",
        resume=flags.resume,
        save_every=250,
        log_every=25,
        cpu=flags.cpu,
    )
    for _ in run:
        pass
    lines = [json.loads(line) for line in (out / "checkpoints" / "log.jsonl").read_text().splitlines()]
    curve = ([line[name] for line in lines] for name in ("step", "loss"))
    save_curve(out / "loss.png", *curve, ylabel="denoising score matching loss")
    return run.ema_model().eval()


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
    solver = ss.VelocityMultistep(sigma_data=model.sigma_data or 1.0)
    pieces = []
    for start in range(0, count, CHUNK):
        some: dict[str, Any] = {name: value[start : start + CHUNK].to(device) for name, value in conditions.items()}
        solution = ss.sample(
            model.sde,
            ss.classifier_free(model, scale=scale, **some),
            (min(CHUNK, count - start), *event),
            solver=solver,
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


def of_each_class(dataset: Dataset, count: int) -> Dataset:
    """The first ``count`` samples, as far as there are so many, as many of each class as of any other."""
    assert dataset.label is not None and dataset.num_classes is not None
    groups = [torch.where(dataset.label == k)[0] for k in range(dataset.num_classes)]
    each = max(1, min(count // len(groups), *map(len, groups)))
    return dataset.subset(torch.stack([group[:each] for group in groups], dim=1).flatten())


def show(name: str, figures: Mapping[str, Any]) -> None:
    """One line of figures."""
    print(f"{name:34s}" + "  ".join(f"{key} {value:.4g}" for key, value in figures.items()), flush=True)
