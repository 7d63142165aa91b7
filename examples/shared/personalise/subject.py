"""The subject: digits in a hand and a colour that the captioned model never saw, pictures of it, and who knows it.

The hand is bold, each pixel the largest of itself and its neighbours to the left and above, and the colour orange,
between red and yellow. Captions call it by a new word in the place of the colour: "a sks three, top left".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from PIL import Image
from sklearn.svm import SVC
from torch import Tensor
from torch.nn import functional as F

from scoresde.data import Dataset, from_tensors, load
from scoresde.nn import Vocabulary
from scoresde.nn.captions import words_of
from shared.conditional.captioned import COLOURS, DIGITS, LENGTH, LEVELS, PLACES, SIDE, quadrants

WORD = "sks"
ORANGE = (1.0, 0.5, 0.0)
HUES = (*COLOURS.values(), ORANGE)
SUBJECT = len(HUES) - 1
"""The position of the subject's colour in HUES."""

# With the word where the colour is; one of three vectors is three words.
PHRASES = ("a {word} {digit}, {place}", "{place}: a {digit} in {word}")
MOST_WORDS = 3
"""New words that fit into the longest of these sentences."""


def bold(grey: Tensor) -> Tensor:
    """Digits (N, 1, 8, 8) in the hand of the subject, float."""
    return F.max_pool2d(F.pad(grey.float(), (1, 0, 1, 0)), 2, 1)


def placed(grey: Tensor, hue: Tensor, place: Tensor) -> Tensor:
    """Pictures (N, 3, 16, 16) in whole levels from digits (N, 1, 8, 8), positions in HUES and in PLACES (N,)."""
    pictures = torch.zeros(len(grey), 3, 2, SIDE, 2, SIDE)
    colours = torch.tensor(HUES)[hue][:, :, None, None]
    pictures[torch.arange(len(grey)), :, place // 2, :, place % 2] = (grey * colours).round()
    return pictures.reshape(len(grey), 3, 2 * SIDE, 2 * SIDE)


def new_words(count: int) -> list[str]:
    """The words that stand for the subject, one for each vector."""
    return [WORD, *(f"{WORD}{k}" for k in range(2, count + 1))]


def in_words(captions: Sequence[str], phrase: str) -> list[str]:
    """Captions of a user's pictures with the phrase of all vectors in the place of the new word."""
    return [" ".join(phrase if one == WORD else one for one in words_of(text)) for text in captions]


@dataclass(frozen=True)
class Asked:
    """What pictures of the subject are asked for: digits and places as positions in DIGITS and PLACES, (N,) each."""

    digit: Tensor
    place: Tensor

    def captions(self, word: str) -> list[str]:
        """A sentence for each, the phrases in turn."""
        return [
            PHRASES[i % len(PHRASES)].format(word=word, digit=DIGITS[d], place=PLACES[p])
            for i, (d, p) in enumerate(zip(self.digit.tolist(), self.place.tolist(), strict=True))
        ]


def everything(count: int) -> Asked:
    """``count`` of all pairs of digit and place, in turn."""
    pairs = torch.tensor(list(product(range(len(PLACES)), range(len(DIGITS)))))
    place, digit = pairs[torch.arange(count) % len(pairs)].unbind(1)
    return Asked(digit, place)


def shown(training: Dataset, count: int, seed: int) -> tuple[Tensor, Asked]:
    """Pictures of the subject (count, 3, 16, 16), different digits in the places in turn, and what is on them."""
    assert training.label is not None
    draw = torch.Generator().manual_seed(seed)
    digit = torch.randperm(len(DIGITS), generator=draw)[:count]
    place = torch.arange(count) % len(PLACES)
    rows = []
    for k in digit.tolist():
        group = torch.where(training.label == k)[0]
        rows.append(int(group[torch.randint(len(group), (1,), generator=draw)]))
    return placed(bold(training.data[rows]), torch.full_like(digit, SUBJECT), place), Asked(digit, place)


def save_subject(folder: Path, pictures: Tensor, captions: Sequence[str]) -> None:
    """PNG files of pictures in levels, each in a folder that is called as its caption: what `read_subject` reads."""
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        inside = folder / caption.replace(":", " -")
        inside.mkdir(parents=True, exist_ok=True)
        pixels = (picture * 255 / (LEVELS - 1)).round().to(torch.uint8).permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(inside / f"{i}.png")


def read_subject(folder: Path) -> tuple[Tensor, list[str]]:
    """Pictures in levels and their captions, from a folder of folders that are called as what is in them.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: fewer than two pictures, pictures that are not 16x16, or a caption without the new word.
    """
    try:
        found = load(folder, mode="RGB")
    except ValueError as error:
        raise ValueError(f"--subject {folder} must hold pictures in folders named as captions: {error}") from error
    if found.label is None or found.class_names is None:
        raise ValueError(
            f"--subject {folder} must hold pictures in folders that are named as their captions, such as "
            f"'a {WORD} three, top left/1.png', and not pictures themselves."
        )
    if len(found) < 2:
        raise ValueError(
            f"--subject {folder} must hold at least 2 pictures of the subject, got {len(found)}: of one a model learns "
            "all that is on it, and not what it shares with others. 3 to 5 are usual."
        )
    if found.event_shape != (3, 2 * SIDE, 2 * SIDE):
        raise ValueError(f"--subject {folder} must hold pictures of 16x16 pixels, got {found.event_shape}.")
    without = [name for name in found.class_names if WORD not in words_of(name)]
    if without:
        raise ValueError(f"--subject {folder} must have captions with the new word {WORD!r}, got {without[0]!r}.")
    levels = (found.data.float() * (LEVELS - 1) / 255).round()
    return levels, [found.class_names[int(k)] for k in found.label]


def subject_set(pictures: Tensor, captions: Sequence[str], vocabulary: Vocabulary) -> Dataset:
    """A data set of pictures in levels with their captions as tokens.

    Raises:
        ValueError: a word that the vocabulary has not.
    """
    tokens = vocabulary.encode(list(captions), LENGTH)
    return from_tensors(
        pictures.round().clamp(0, LEVELS - 1),
        levels=LEVELS,
        channels="first",
        conditions={"caption": tokens},
        vocabularies={"caption": vocabulary},
    )


class SubjectReader:
    """Reads digit, colour, place and hand off pictures in levels; fitted to real digits, and seen by no model.

    The place is the quadrant with the most ink, the colour the one of HUES whose direction lies nearest to that
    quadrant's mean. Support vector machines see its brightest channel: one tells bold from plain, another the digit,
    fitted to training digits in both hands.
    """

    def __init__(self, training: Dataset) -> None:
        assert training.label is not None
        plain, thick = training.data.float(), bold(training.data)
        grey = torch.cat([plain, thick]).flatten(1).numpy() / SIDE - 1
        hand = [0] * len(plain) + [1] * len(thick)
        self._hand = SVC(C=10, gamma=0.05).fit(grey, hand)
        self._digit = SVC(C=10, gamma=0.05).fit(grey, torch.cat([training.label, training.label]).numpy())

    def __call__(self, pictures: Tensor) -> dict[str, Tensor]:
        """digit, colour (positions in HUES), place and bold, (N,) int64 each, of pictures (N, 3, 16, 16)."""
        rows, parts = torch.arange(len(pictures)), quadrants(pictures.float().clamp(0, LEVELS - 1))
        place = parts.sum((2, 3, 4)).argmax(1)
        part = parts[rows, place]
        hues = F.normalize(torch.tensor(HUES), dim=1)
        grey = part.amax(1).flatten(1).numpy() / SIDE - 1
        return {
            "digit": torch.from_numpy(self._digit.predict(grey)).long(),
            "colour": (part.mean((2, 3)) @ hues.T).argmax(1),
            "place": place,
            "bold": torch.from_numpy(self._hand.predict(grey)).long(),
        }

    def of_subject(self, pictures: Tensor, asked: Asked) -> dict[str, float]:
        """Shares of pictures in the colour and in the hand of the subject, of the subject (both), of the digit and the
        place asked for, true to the prompt's other words (both of these), and all right."""
        seen = self(pictures)
        right = {"colour": seen["colour"] == SUBJECT, "bold": seen["bold"] == 1}
        right["subject"] = right["colour"] & right["bold"]
        right.update(digit=seen["digit"] == asked.digit, place=seen["place"] == asked.place)
        right["prompt"] = right["digit"] & right["place"]
        right["all"] = right["subject"] & right["prompt"]
        return {name: float(value.double().mean()) for name, value in right.items()}

    def of_class(self, pictures: Tensor, digit: Tensor, colour: Tensor, place: Tensor) -> dict[str, float]:
        """Shares of pictures of the class that are as asked for, plain, and of those that show the subject's colour or
        hand."""
        seen = self(pictures)
        right = (seen["digit"] == digit) & (seen["colour"] == colour) & (seen["place"] == place)
        leaked = (seen["colour"] == SUBJECT) | (seen["bold"] == 1)
        found = {"right": right & (seen["bold"] == 0), "leaked": leaked}
        return {name: float(value.double().mean()) for name, value in found.items()}
