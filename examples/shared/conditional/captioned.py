"""Captioned pictures composed from real digits: one of scikit-learn's digits, a colour, a quadrant, and a sentence.

A picture is 16x16 in red, green and blue, black but for one 8x8 quadrant with a digit: each channel of the colour
carries its grey levels 0 ... 16, the others are 0. Three sentences say the same of it, in different orders of words:

    a red three, top left        top left: a three in red        the three at the top left is red

Ten pairs of digit and colour, one for each digit, are never shown in training: what a model makes of "a red zero" tells
whether it has learnt digits and colours, or only pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from scoresde.data import Dataset, from_tensors
from scoresde.nn import Vocabulary

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Each colour lights one or two channels, so that the grey levels of the digit stay whole numbers.
COLOURS = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "cyan": (0, 1, 1),
    "magenta": (1, 0, 1),
}
PLACES = ("top left", "top right", "bottom left", "bottom right")
TEMPLATES = ("a {colour} {digit}, {place}", "{place}: a {digit} in {colour}", "the {digit} at the {place} is {colour}")
LEVELS, SIDE = 17, 8  # of scikit-learn's digits
LENGTH = 8  # words in the longest sentence, "the three at the top left is red"

WORDS = sorted(
    set(" ".join(t.format(colour="", digit="", place="") for t in TEMPLATES).replace(",", "").replace(":", "").split())
    | {*DIGITS, *COLOURS}
    | set(" ".join(PLACES).split())
)


def vocabulary() -> Vocabulary:
    """The words of all captions."""
    return Vocabulary(WORDS)


@dataclass(frozen=True)
class Attributes:
    """What captions say: digit (0 to 9), colour and place as positions in COLOURS and PLACES; int64 (N,) each."""

    digit: Tensor
    colour: Tensor
    place: Tensor

    def __len__(self) -> int:
        return len(self.digit)

    def __getitem__(self, rows: Tensor | slice) -> Attributes:
        return Attributes(self.digit[rows], self.colour[rows], self.place[rows])

    def captions(self, template: Tensor) -> list[str]:
        """A sentence for each, by the template of each (N,)."""
        names = list(COLOURS)
        return [
            TEMPLATES[k].format(digit=DIGITS[d], colour=names[c], place=PLACES[p])
            for d, c, p, k in zip(*map(Tensor.tolist, (self.digit, self.colour, self.place, template)), strict=True)
        ]

    @property
    def unseen(self) -> Tensor:
        """Whether the pair of digit and colour is kept out of training, (N,)."""
        return self.digit % len(COLOURS) == self.colour


def compose(digits: Tensor, colour: Tensor, place: Tensor) -> Tensor:
    """Pictures (N, 3, 16, 16) from digits (N, 1, 8, 8), colours and places (N,); of the digits' dtype."""
    colours = torch.tensor(list(COLOURS.values()), dtype=digits.dtype)
    pictures = digits.new_zeros(len(digits), 3, 2, SIDE, 2, SIDE)
    rows = torch.arange(len(digits))
    pictures[rows, :, place // 2, :, place % 2] = digits * colours[colour][:, :, None, None]
    return pictures.reshape(len(digits), 3, 2 * SIDE, 2 * SIDE)


def quadrants(pictures: Tensor) -> Tensor:
    """Pictures (N, C, 16, 16) as (N, 4, C, 8, 8), in the order of PLACES."""
    n, channels = pictures.shape[:2]
    parts = pictures.reshape(n, channels, 2, SIDE, 2, SIDE).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(n, 4, channels, SIDE, SIDE)


def training_set(digits: Dataset, seed: int) -> Dataset:
    """Every training digit in every colour but the one kept from it, in every place, each with a sentence by chance.

    Args:
        digits: the real digits, with labels.
        seed: of the choice of sentences.
    """
    assert digits.label is not None
    combinations = torch.tensor(list(product(range(len(digits)), range(len(COLOURS)), range(len(PLACES)))))
    row, colour, place = combinations.unbind(1)
    attributes = Attributes(digits.label[row], colour, place)
    kept = ~attributes.unseen
    row, attributes = row[kept], attributes[kept]
    template = torch.randint(len(TEMPLATES), (len(row),), generator=torch.Generator().manual_seed(seed))
    return captioned(compose(digits.data[row], attributes.colour, attributes.place), attributes.captions(template))


def captioned(pictures: Tensor, captions: Sequence[str]) -> Dataset:
    """A data set of pictures, whole grey levels, with their captions as tokens."""
    tokens = vocabulary().encode(list(captions), LENGTH)
    words = {"caption": vocabulary()}
    return from_tensors(pictures, levels=LEVELS, conditions={"caption": tokens}, vocabularies=words)


@dataclass(frozen=True)
class Questions:
    """Captions to be drawn, and real pictures that answer them: held-out digits in colours and places by chance."""

    attributes: Attributes
    template: Tensor  # (N,)
    real: Tensor  # (N, 3, 16, 16) grey levels: of held-out digits
    others: Tensor  # the same attributes, of training digits: how far apart two sets of real pictures are

    @property
    def captions(self) -> list[str]:
        """What is asked for."""
        return self.attributes.captions(self.template)

    @property
    def tokens(self) -> Tensor:
        """The captions as the network reads them."""
        return vocabulary().encode(self.captions, LENGTH)


def questions(training: Dataset, held: Dataset, count: int, seed: int, *, unseen: bool) -> Questions:
    """``count`` questions with the digits in turn, about pairs that training has shown or about those it has not."""
    assert training.label is not None and held.label is not None
    draw = torch.Generator().manual_seed(seed)

    def some(high: int) -> Tensor:
        return torch.randint(high, (count,), generator=draw)

    digit = torch.arange(count) % 10
    secret = digit % len(COLOURS)
    colour = secret if unseen else (secret + 1 + some(len(COLOURS) - 1)) % len(COLOURS)
    attributes = Attributes(digit, colour, some(len(PLACES)))
    assert bool((attributes.unseen == unseen).all())
    pictures = []
    for digits in (held, training):
        assert digits.label is not None
        groups = [torch.where(digits.label == k)[0] for k in range(10)]
        # Without repetition as far as there are so many.
        orders = [group[torch.randperm(len(group), generator=draw)] for group in groups]
        rows = torch.tensor([int(orders[i % 10][i // 10 % len(orders[i % 10])]) for i in range(count)])
        pictures.append(compose(digits.data[rows], attributes.colour, attributes.place))
    return Questions(attributes, some(len(TEMPLATES)), *pictures)
