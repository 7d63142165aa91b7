"""Figures of pictures against held-out ones, in a feature space that is trained on real pictures alone, and in pixels.

    judge = Judge.trained(training, held, folder, steps=2000, seed=0, device=cpu)      # or read from the folder
    judge(x)                            # {"frechet": ..., "kernel x 1000": ..., "precision": ..., ...}

Nobody else's network is needed: the space is that of a small classifier of the training pictures (of two views of each
where there are no labels), and its name and fingerprint stand beside the figures. They compare rows of one table, and
not with published ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scoresde import metrics
from scoresde.data import Dataset

AT_ONCE = 256


@dataclass(frozen=True)
class Judge:
    """What pictures are compared with.

    Attributes:
        features: the feature space.
        held: features of the held-out pictures, (m, d) float64.
        training: as many training pictures, in model units: what real ones score.
    """

    features: metrics.Features
    held: Tensor
    training: Tensor

    @classmethod
    def trained(
        cls, training: Dataset, held: Dataset, folder: Path, *, steps: int, seed: int, device: torch.device
    ) -> Judge:
        """The feature space of the folder, trained on ``training`` first where there is none yet.

        Args:
            training: real pictures, none of the held-out ones.
            held: what samples are compared with.
            folder: for the feature space.
            steps: of its training.
            seed: of its weights and order.
            device: where features are computed.
        """
        if not folder.exists():
            learned = metrics.train_features(training, steps=steps, seed=seed, device=device)
            print(f"the judge: {learned}, {learned.trained}", flush=True)
            partial = folder.with_name(f"{folder.name}.part")  # a kill leaves no half of it under its name
            shutil.rmtree(partial, ignore_errors=True)
            metrics.save_features(learned, partial).rename(folder)
        features = metrics.load_features(folder, device=device)
        count = min(len(held), len(training))
        rows = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))[:count]
        measured = cls(features, torch.empty(0), training[rows]["x"])
        return cls(features, measured.of(held[: len(held)]["x"]), measured.training)

    @property
    def name(self) -> str:
        """The feature space, for a table."""
        return str(self.features)

    def of(self, x: Tensor) -> Tensor:
        """Features of pictures in model units, (n, d) float64 on the CPU."""
        place = getattr(self.features, "device", torch.device("cpu"))
        return torch.cat([self.features(part.to(place)).cpu() for part in torch.split(x, AT_ONCE)])

    def __call__(self, x: Tensor) -> dict[str, float]:
        """The figures of pictures in model units."""
        found = self.of(x)
        kernel = metrics.kernel_distance(found, self.held)
        near = metrics.precision_recall(found, self.held)
        inside = metrics.density_coverage(found, self.held)
        return {
            "frechet": metrics.frechet_distance(found, self.held),
            "kernel x 1000": 1000 * kernel.value,
            "precision": near.precision,
            "recall": near.recall,
            "density": inside.density,
            "coverage": inside.coverage,
        }

    def told(self, figures: Mapping[str, float]) -> str:
        """A line of figures."""
        return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
