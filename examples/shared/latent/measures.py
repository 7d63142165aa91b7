"""What latent.py measures: reconstructions, and samples in a feature space that neither model has seen.

judge = Judge(training, held, flags, out / "features")
judge(samples)                                          # Fréchet and energy distance to the training pictures
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoresde as ss
from scoresde.data import Dataset
from scoresde.interop import Latent
from scoresde.metrics import energy_distance, frechet_distance, load_features, save_features, train_features
from shared.measures import psnr

CHUNK = 128
"""Pictures that are drawn, encoded or decoded at once."""


class Judge:
    """Distances to the training pictures in the last hidden layer of a network that learned their classes, or views.

    Args:
        training: what the models learned.
        folder: of the features, which are trained once.
        steps: of their training.
        most: training pictures that are compared with.
        seed: of their weights.
    """

    def __init__(self, training: Dataset, folder: Path, *, steps: int, most: int, seed: int) -> None:
        if not (folder / "config.json").exists():
            save_features(train_features(training, steps=steps, seed=seed + 1), folder)
        self.features = load_features(folder)
        rows = torch.linspace(0, len(training) - 1, min(most, len(training)), dtype=torch.float64).long()
        self.real = self.seen(training[rows]["x"])

    def seen(self, x: Tensor) -> Tensor:
        """Features of pictures in model units."""
        return torch.cat([self.features(part) for part in torch.split(x, CHUNK)])

    def __call__(self, x: Tensor) -> dict[str, float]:
        seen = self.seen(x.clamp(-1, 1))
        return {
            "frechet": frechet_distance(seen, self.real),
            "energy": energy_distance(seen, self.real, unbiased=True),
        }


def reconstructed(latent: Latent, x: Tensor) -> Tensor:
    """Each picture encoded and decoded."""
    with torch.no_grad():
        return torch.cat([latent.decode(latent.encode(part)) for part in torch.split(x, CHUNK)])


def reconstruction(latent: Latent, x: Tensor, judge: Judge) -> dict[str, float]:
    """How far decoded pictures are from those that were encoded."""
    back = reconstructed(latent, x)
    return {"psnr_db": psnr(back, x), **judge(back)}


def draw(
    model: ss.ScoreModel, event: tuple[int, ...], *, count: int, steps: int, seed: int
) -> tuple[Tensor, dict[str, Any]]:
    """Pictures in model units, on the CPU, and what each took: of a :class:`Latent` they are decoded."""
    device = next(model.parameters()).device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    latent = model if isinstance(model, Latent) else None
    pieces, nfe, start = [], 0, clock()
    for first in range(0, count, CHUNK):
        shape: Any = (min(CHUNK, count - first), *event)
        shape = shape if latent is None else latent.latent_shape(shape)
        solution = ss.sample(model.bind(), shape, steps=steps, noise=ss.PerSampleNoise(seed, first=first))
        pieces.append((solution.x if latent is None else solution.data).cpu())
        nfe = solution.nfe
    seconds = clock() - start
    return torch.cat(pieces), {"nfe": nfe, "seconds_per_picture": seconds / count}
