"""The pictures that latent.py learns: digits of 16x16, or a user's own.

training, held = pictures(None, seed=0, limit=10_000, held=360)
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde.data import Dataset, from_tensors
from scoresde.data import load as load_data
from shared.digits import load

FACTOR = 4
"""By which the autoencoder makes pictures smaller."""


def enlarged(digits: Dataset) -> Dataset:
    """scikit-learn's digits, 8x8 of 17 levels, as 16x16 of 256 levels, bilinear."""
    x: Tensor = F.interpolate(digits.data.float(), scale_factor=2, mode="bilinear", align_corners=False)
    return from_tensors((x * (255 / 16)).round().to(torch.uint8), digits.label, class_names=digits.class_names)


def pictures(data: Path | None, *, seed: int, limit: int, held: int) -> tuple[Dataset, Dataset]:
    """What is trained on and what is not: digits, or of a file at most ``limit`` and ``held`` pictures.

    Raises:
        FileNotFoundError, ValueError: no images, not levels, sizes that are no multiples of ``FACTOR``, or too few.
    """
    if data is None:
        training, others = load(seed)
        return enlarged(training), enlarged(others)
    dataset = load_data(data)
    shape = dataset.event_shape
    if len(shape) != 3 or dataset.scaling.levels is None:
        raise ValueError(f"--data must be images of whole levels, and {data} holds {dataset}.")
    if shape[1] % FACTOR or shape[2] % FACTOR:
        raise ValueError(
            f"--data must be pictures whose sides are multiples of {FACTOR}, by which the autoencoder makes them "
            f"smaller, and those of {data} are {shape[1]}x{shape[2]}."
        )
    if len(dataset) <= 2 * held:
        raise ValueError(
            f"{data} holds {len(dataset)} pictures, and --held {held} of them are kept from training; ask for fewer."
        )
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return dataset.subset(order[held : held + limit]), dataset.subset(order[:held])
