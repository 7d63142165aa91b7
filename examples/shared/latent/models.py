"""The networks of latent.py, as large together as the one they are compared with, and what a step of each costs.

sizes = Sizes.of(flags, event)
net = sizes.autoencoder()                               # and a U-Net of its latents,
control = sizes.pixels()                                # with as many parameters as both
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from torch import nn

import scoresde as ss
from scoresde.cli.choices import SDES, SDEName
from scoresde.data import Dataset
from scoresde.files import write_json
from scoresde.nn import Autoencoder, KLBottleneck, UNet, VQBottleneck
from scoresde.train import AutoencoderRun, train, train_autoencoder
from shared.training import edm_options, trained

TIMED, FIRST = 7, 2
"""Steps of each run whose cost is measured, and those before them that are not."""


class Flags(Protocol):
    """What is asked of the flags of latent.py."""

    @property
    def sde(self) -> SDEName: ...
    @property
    def width(self) -> int: ...
    @property
    def autoencoder_width(self) -> int: ...
    @property
    def latent_channels(self) -> int: ...
    @property
    def bottleneck(self) -> str: ...
    @property
    def codes(self) -> int: ...
    @property
    def dropout(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def cpu(self) -> bool: ...
    @property
    def resume(self) -> bool: ...


def parameters(net: nn.Module) -> int:
    """Their number."""
    return sum(p.numel() for p in net.parameters())


def levels(side: int) -> tuple[int, ...]:
    """Multipliers of a U-Net for pictures of this side: down to 2, three at most."""
    return (1, 2, 2)[: max(1, min(3, side.bit_length() - 1))]


@dataclass(frozen=True)
class Sizes:
    """The networks of a run.

    Attributes:
        flags: their widths.
        event: shape of a picture.
        latent_width: of the U-Net of latents: the largest multiple of 8 with which it and the autoencoder have no more
            parameters than the U-Net of pixels.
    """

    flags: Flags
    event: tuple[int, ...]
    latent_width: int

    @classmethod
    def of(cls, flags: Flags, event: tuple[int, ...]) -> Sizes:
        """Those of these flags.

        Raises:
            ValueError: the autoencoder alone is as large as the U-Net of pixels.
        """
        with torch.device("meta"):
            sizes = cls(flags, event, 8)
            most, own = parameters(sizes.pixels()), parameters(sizes.autoencoder())
            width = 0
            while own + parameters(cls(flags, event, width + 8).latents()) <= most:
                width += 8
        if not width:
            raise ValueError(
                f"--autoencoder-width {flags.autoencoder_width} makes an autoencoder of {own} parameters, beside which "
                f"no U-Net of latents fits into the {most} of --width {flags.width}: take less, or more of that."
            )
        return cls(flags, event, width)

    def autoencoder(self) -> Autoencoder:
        """With initial weights of the seed."""
        flags = self.flags
        kind = VQBottleneck(flags.codes) if flags.bottleneck == "vq" else KLBottleneck()
        torch.manual_seed(flags.seed)
        return Autoencoder(
            self.event[0],
            latent_channels=flags.latent_channels,
            width=flags.autoencoder_width,
            multipliers=(1, 2, 2),
            bottleneck=kind,
        )

    def latents(self) -> UNet:
        """The U-Net of latents, likewise."""
        with torch.device("meta"):
            side = min(self.autoencoder().latent_shape((1, *self.event))[2:])
        return self._unet(self.flags.latent_channels, self.latent_width, side)

    def pixels(self) -> UNet:
        """The U-Net of pixels, likewise."""
        return self._unet(self.event[0], self.flags.width, min(self.event[1:]))

    def _unet(self, channels: int, width: int, side: int) -> UNet:
        torch.manual_seed(self.flags.seed)
        return UNet(channels, width=width, multipliers=levels(side), attention_levels=(), dropout=self.flags.dropout)


def autoencoder_run(flags: Flags, net: Autoencoder, training: Dataset, *, steps: int, **options: Any) -> AutoencoderRun:
    """The training of the autoencoder."""
    return train_autoencoder(
        net,
        training,
        steps=steps,
        batch_size=flags.batch_size,
        lr=flags.lr,
        warmup=min(50, steps),
        seed=flags.seed,
        cpu=flags.cpu,
        **options,
    )


def fit(flags: Flags, net: UNet, dataset: Dataset, *, steps: int, folder: Path) -> ss.ScoreModel:
    """The model of these data with averaged weights."""
    model, sigma_data = untrained(flags, net, dataset)
    options = edm_options(flags, sigma_data)
    return trained(train, model, dataset, steps=steps, folder=folder, resume=flags.resume, **options)


def untrained(flags: Flags, net: UNet, dataset: Dataset) -> tuple[ss.ScoreModel, float]:
    """A model and the deviation of its data."""
    some = torch.linspace(0, len(dataset) - 1, min(len(dataset), 4096), dtype=torch.float64).long()
    sigma_data = float(dataset[some]["x"].std())
    return ss.ScoreModel(net, SDES[flags.sde](), predicts="edm", sigma_data=sigma_data), sigma_data


def costs(flags: Flags, sizes: Sizes, training: Dataset, latents: Dataset, plan: Path) -> Mapping[str, float]:
    """Seconds of a step of each of the three trainings: measured in turn, once for a folder, so that a resumed run has
    as many steps; of the processor's time where that is what computes.
    """
    if plan.exists():
        found: dict[str, float] = json.loads(plan.read_text("utf-8"))
        return found
    count = TIMED + FIRST
    on_gpu = torch.cuda.is_available() and not flags.cpu
    clock = time.perf_counter if on_gpu else time.process_time

    def diffusion(net: UNet, dataset: Dataset) -> Iterator[Any]:
        model, sigma_data = untrained(flags, net, dataset)
        return train(model, dataset, steps=count, progress=False, **edm_options(flags, sigma_data))

    runs: dict[str, Iterator[Any]] = {
        "autoencoder": autoencoder_run(flags, sizes.autoencoder(), training, steps=count),
        "latents": diffusion(sizes.latents(), latents),
        "pixels": diffusion(sizes.pixels(), training),
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(count):
        for name, run in runs.items():
            start = clock()
            float(next(run).loss)
            taken[name].append(clock() - start)
    found = {name: median(values[FIRST:]) for name, values in taken.items()}
    write_json(plan, found)
    return found
