"""Independent judges of styled digits: support vector machines on real pixels alone, one for digits, one for styles.

judges = Judges(training)
judges.content(x, label), judges.style(x, "bold")
"""

from __future__ import annotations

import torch
from sklearn.svm import SVC
from torch import Tensor

from scoresde.data import Dataset, Scaling
from shared.styles.drawn import STYLES


class Judges:
    """Both read pictures in model units, and have seen every training digit in every style."""

    def __init__(self, training: Dataset) -> None:
        assert training.label is not None
        scaling: Scaling = training.scaling
        styled = [scaling.to_model(change(training.data)).flatten(1) for change in STYLES.values()]
        pixels = torch.cat(styled).numpy()
        style = torch.arange(len(STYLES)).repeat_interleave(len(training)).numpy()
        self._content = SVC(C=10, gamma=0.05).fit(pixels, training.label.repeat(len(STYLES)).numpy())
        self._style = SVC(C=10, gamma=0.05).fit(pixels, style)

    def content(self, x: Tensor, label: Tensor) -> float:
        """Share of pictures that are read as their digit."""
        return self._share(self._content, x, label)

    def style(self, x: Tensor, style: str) -> float:
        """Share of pictures that are read as of the style."""
        return self._share(self._style, x, torch.full((len(x),), list(STYLES).index(style)))

    @staticmethod
    def _share(machine: SVC, x: Tensor, wanted: Tensor) -> float:
        seen = torch.from_numpy(machine.predict(x.cpu().flatten(1).numpy())).long()
        return float((seen == wanted.cpu()).double().mean())
