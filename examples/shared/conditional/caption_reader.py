"""An independent judge of captioned pictures, which no model and no guidance ever sees."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.data import Dataset
from shared.conditional.captioned import COLOURS, LEVELS, PLACES, Attributes, quadrants
from shared.readers import DigitReader


class CaptionReader:
    """Reads digit, colour and place off composed pictures, in grey levels.

    The place is the quadrant with the most ink. The colour is the one of COLOURS whose direction lies nearest to that
    quadrant's mean (red, green, blue). The digit is what a DigitReader sees there in the mean of the colour's channels.
    """

    def __init__(self, training: Dataset) -> None:
        self._reader, self._scaling = DigitReader(training), training.scaling

    def __call__(self, pictures: Tensor) -> Attributes:
        """What pictures (N, 3, 16, 16) of levels 0 ... 16 show."""
        rows, parts = torch.arange(len(pictures)), quadrants(pictures.float().clamp(0, LEVELS - 1))
        place = parts.sum((2, 3, 4)).argmax(1)
        part = parts[rows, place]
        colours = torch.tensor(list(COLOURS.values()), dtype=part.dtype)
        unit = colours / colours.norm(dim=1, keepdim=True)
        colour = (part.mean((2, 3)) @ unit.T).argmax(1)
        lit = colours[colour][:, :, None, None]
        grey = (part * lit).sum(1, keepdim=True) / lit.sum(1, keepdim=True)
        return Attributes(self._reader(self._scaling.to_model(grey)), colour, place)

    def figures(self, pictures: Tensor, asked: Attributes) -> dict[str, float]:
        """Share of pictures that show the digit, the colour, the place asked for, and all three."""
        seen = self(pictures)
        right = {
            "digit": seen.digit == asked.digit,
            "colour": seen.colour == asked.colour,
            "place": seen.place == asked.place,
        }
        right["all"] = torch.stack(list(right.values())).all(0)
        return {name: float(value.double().mean()) for name, value in right.items()}


CHANCE = {"digit": 1 / 10, "colour": 1 / len(COLOURS), "place": 1 / len(PLACES)}
CHANCE["all"] = math.prod(CHANCE.values())
