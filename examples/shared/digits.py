"""scikit-learn's digits, held-out ones apart, and a small class-conditional model of them.

    training, held = load(seed=0)
    model = fit(DigitFlags(steps=2000), training, out)

A script whose work is another takes :class:`DigitPriorFlags`, by which it trains such a model unless it is given one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import scoresde as ss
from scoresde.cli.choices import SDES, SDEName
from scoresde.cli.flags import MachineFlags, PictureFlags
from scoresde.data import Dataset, from_tensors
from scoresde.nn import UNet, presets
from scoresde.train import train
from shared.training import edm_options, trained

EVENT = (1, 8, 8)
CLASSES = [str(k) for k in range(10)]


def load(seed: int) -> tuple[Dataset, Dataset]:
    """Training and held-out digits, stratified by class."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.uint8)[:, None]
    labels = torch.tensor(digits.target)
    everything = from_tensors(images, labels, levels=17)
    train_rows, held_rows = train_test_split(
        np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=seed
    )
    return everything.subset(torch.tensor(train_rows)), everything.subset(torch.tensor(held_rows))


@dataclass(frozen=True, kw_only=True)
class DigitFlags(PictureFlags):
    """How the model of digits is trained."""

    steps: int = 2000
    """Training steps."""
    batch_size: int = 128
    """Pictures in a training step."""
    lr: float = 1e-2
    """Peak learning rate of AdamW; it falls to 0 by a cosine."""
    dropout: float = 0.0
    """Dropout inside the U-Net."""
    seed: int = 0
    """Of everything: split, weights, training, sampling."""


def fit(flags: DigitFlags, training: Dataset, out: Path) -> ss.ScoreModel:
    """The trained model, with averaged weights; checkpoints in ``out``."""
    torch.manual_seed(flags.seed)  # the initial weights
    shape = {**presets.digits(num_classes=10, dropout=flags.dropout).config, "width": flags.width}
    sigma_data = float(training[:]["x"].std())
    return trained(
        train,
        ss.ScoreModel(UNet(**shape), SDES[flags.sde](), predicts="edm", sigma_data=sigma_data),
        training,
        steps=flags.steps,
        dequantize=True,
        folder=out / "checkpoints",
        resume=flags.resume,
        # Noise levels from a fifth of the finest grey level to well above the data's spread.
        **edm_options(flags, sigma_data, mean=-0.6),
    )


@dataclass(frozen=True, kw_only=True)
class DigitPriorFlags(MachineFlags):
    """For scripts that use a model of digits, trained there unless one is given."""

    sde: SDEName = "vp"
    """For a model trained here: the SDE."""
    train_steps: int = 600
    """For a model trained here: training steps."""
    resume: bool = False
    """For a model trained here: go on from the last checkpoint in the folder."""
    seed: int = 0
    """Of the split of digits and all noise; that of the run of digits.py, so that held-out digits are held out."""

    def trained_here(self, training: Dataset, out: Path) -> ss.ScoreModel:
        """The small model of digits."""
        same: dict[str, Any] = {name: getattr(self, name) for name in ("sde", "resume", "seed", "cpu")}
        return fit(DigitFlags(steps=self.train_steps, **same), training, out)

    def check_given(self, name: str, given: Path | None) -> None:
        """Raises ValueError for --resume beside a trained model, which the flag ``name`` brings."""
        if given is not None and self.resume:
            raise ValueError(f"--resume goes on with training, and --{name} brings a trained model: leave one out.")
