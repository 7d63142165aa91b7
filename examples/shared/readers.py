"""Independent judges: classifiers fitted to real pictures alone, which no model and no guidance ever sees.

    DigitReader(training).accuracy(x, labels)
    Judge(training, held, seed=0)(x)

The first gives the share of pictures that are read as their label, the second that and two distances, of pictures that
were asked for by the labels of the held-out ones.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor

from scoresde import metrics
from scoresde.data import Dataset

QUANTILE = 0.05  # a generated digit is called memorised if it is closer to a training digit than 95 % of real ones are


class DigitReader:
    """Reads 8x8 digits in model units: a support vector machine on pixels, the standard strong classifier for them."""

    def __init__(self, training: Dataset) -> None:
        batch = training[:]
        self._svm = SVC(C=10, gamma=0.05).fit(batch["x"].flatten(1).numpy(), batch["label"].numpy())

    def __call__(self, x: Tensor) -> Tensor:
        """The digits read in x (N, 1, 8, 8), (N,) int64."""
        return torch.from_numpy(self._svm.predict(x.flatten(1).numpy())).long()

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Share of pictures that are read as their label."""
        return float((self(x) == labels).double().mean())


class Judge:
    """Measures generated digits against held-out ones, with a classifier that guidance never sees."""

    def __init__(self, training: Dataset, held: Dataset, seed: int) -> None:
        self.scaling, self.labels = held.scaling, held[:]["label"]
        self.train, self.held = training[:]["x"], held[:]["x"]
        self.reader = DigitReader(training)
        self.accuracy_real = self.accuracy(self.held)
        # What two sets of real digits score against each other: as many training digits with the held-out labels.
        generator = np.random.default_rng(seed)
        groups = [torch.where(training[:]["label"] == k)[0].numpy() for k in range(10)]
        counts = torch.bincount(self.labels, minlength=10).tolist()
        draws = [
            np.concatenate([generator.choice(g, n, replace=False) for g, n in zip(groups, counts, strict=True)])
            for _ in range(20)
        ]
        floors = [metrics.energy_distance(self.train[torch.tensor(rows)], self.held) for rows in draws]
        self.floor, self.floor_std = float(np.mean(floors)), float(np.std(floors))

    def levels(self, x: Tensor) -> Tensor:
        """x rounded to the grey levels that digits have, in model units."""
        top = (self.scaling.levels or 2) - 1
        return self.scaling.to_model(self.scaling.to_data(x).round().clamp(0, top))

    def accuracy(self, x: Tensor) -> float:
        """Share of pictures that the classifier reads as their label."""
        return self.reader.accuracy(x, self.labels)

    def __call__(self, x: Tensor) -> dict[str, float]:
        """The figures of one set of pictures with the held-out labels."""
        distance = metrics.energy_distance(x, self.held)
        return {
            "accuracy": self.accuracy(x),
            "energy_distance": distance,
            "energy_distance_over_real": distance / self.floor,
            "memorised_share": metrics.memorised_share(x, self.train, self.held, quantile=QUANTILE),
        }
