"""Captioned digits whose captions may leave things out, and the prompts by which pictures are classified.

    "a red three, top left"     "a three"     "top left: a digit in red"     "the three is red"

Pictures are those of :mod:`shared.conditional.captioned`, ten pairs of digit and colour among them never shown. Half
of the captions say all of a picture; of the others each attribute is said or not by a coin. So each word is learned
without the others, and what a caption leaves open is open: "a three" is of any colour and anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scoresde.data import Dataset, from_tensors
from scoresde.nn import BytePairs, Vocabulary
from shared.conditional.captioned import COLOURS, DIGITS, LEVELS, PLACES, WORDS, Attributes, compose

KINDS = ("digit", "colour", "place")
COUNTS = (len(DIGITS), len(COLOURS), len(PLACES))
TEMPLATES = 3
LENGTH = 8  # words in the longest sentence, "the three at the top left is red"
BYTE_LENGTH = 12  # tokens in its byte pairs, the comma and the colon of others among them
PIECES = 320

Tokenizer = Vocabulary | BytePairs
TokenizerName = Literal["words", "bytes"]


def sentence(told: Sequence[int | None], template: int) -> str:
    """What a caption of this template says of a digit, a colour and a place; None is unsaid."""
    digit, colour, place = told
    noun = "digit" if digit is None else DIGITS[digit]
    hue = None if colour is None else list(COLOURS)[colour]
    where = None if place is None else PLACES[place]
    if template == 0:
        return f"a {hue + ' ' if hue else ''}{noun}{', ' + where if where else ''}"
    if template == 1:
        return f"{where + ': ' if where else ''}a {noun}{' in ' + hue if hue else ''}"
    return f"the {noun}{' at the ' + where if where else ''}{' is ' + hue if hue else ''}"


def sentences(attributes: Attributes, said: Tensor, template: Tensor) -> list[str]:
    """A caption for each: ``said`` (N, 3) bool, whether digit, colour and place are; ``template`` (N,)."""
    values = torch.stack([getattr(attributes, kind) for kind in KINDS], 1).tolist()
    return [
        sentence([value if told else None for value, told in zip(row, which, strict=True)], k)
        for row, which, k in zip(values, said.tolist(), template.tolist(), strict=True)
    ]


def every_attribute() -> Attributes:
    """All combinations, 240 of them."""
    return Attributes(*torch.cartesian_prod(*map(torch.arange, COUNTS)).unbind(1))


def tokenizer_of(name: TokenizerName) -> Tokenizer:
    """The words of all captions, or byte pairs learned from them."""
    if name == "words":
        return Vocabulary(sorted({*WORDS, "digit"}))
    every = every_attribute()
    texts = [
        text
        for template in range(TEMPLATES)
        for text in sentences(every, torch.ones(len(every), 3, dtype=torch.bool), torch.full((len(every),), template))
    ]
    return BytePairs.of([*texts, "a digit", "the digit"], PIECES)


def length_of(tokenizer: Tokenizer) -> int:
    """Tokens of the longest caption."""
    return LENGTH if isinstance(tokenizer, Vocabulary) else BYTE_LENGTH


@dataclass(frozen=True)
class Captions:
    """How captions are written and told.

    Attributes:
        tokenizer: that makes tokens of them.
    """

    tokenizer: Tokenizer

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Tokens (N, L) of texts."""
        return self.tokenizer.encode(list(texts), length_of(self.tokenizer))

    @property
    def condition(self) -> dict[str, int]:
        """What a network is built for."""
        return {"vocabulary": len(self.tokenizer), "length": length_of(self.tokenizer), "width": 64, "layers": 2}

    def prompts(self, kind: str) -> Tensor:
        """Of each value of an attribute the sentences that say it alone, (K, M, L)."""
        place = KINDS.index(kind)
        rows = [
            sentence([k if i == place else None for i in range(3)], template)
            for k in range(COUNTS[place])
            for template in range(TEMPLATES)
        ]
        return self(rows).reshape(COUNTS[place], TEMPLATES, -1)

    def full(self, attributes: Attributes, template: Tensor) -> Tensor:
        """Captions that say everything, (N, L)."""
        return self(sentences(attributes, torch.ones(len(attributes), 3, dtype=torch.bool), template))


@dataclass(frozen=True)
class Pictures:
    """Captioned pictures to learn from.

    Attributes:
        dataset: x and captions. attributes: what they show. said: (N, 3), which of it the captions say.
    """

    dataset: Dataset
    attributes: Attributes
    said: Tensor


def pictures_of(digits: Dataset, captions: Captions, seed: int) -> Pictures:
    """Each digit in each colour and place but for the pairs kept out, with a caption of its own."""
    assert digits.label is not None
    rows = torch.cartesian_prod(torch.arange(len(digits)), torch.arange(len(COLOURS)), torch.arange(len(PLACES)))
    row, colour, place = rows.unbind(1)
    attributes = Attributes(digits.label[row], colour, place)
    kept = ~attributes.unseen
    row, attributes = row[kept], attributes[kept]
    draw, count = torch.Generator().manual_seed(seed), len(row)
    said = torch.rand(count, 3, generator=draw) < 0.5
    # at least one, by chance which
    said[torch.arange(count), torch.randint(3, (count,), generator=draw)] = True
    said |= torch.rand(count, 1, generator=draw) < 0.5
    template = torch.randint(TEMPLATES, (count,), generator=draw)
    tokens = captions(sentences(attributes, said, template))
    dataset = from_tensors(
        compose(digits.data[row], attributes.colour, attributes.place),
        levels=LEVELS,
        conditions={"caption": tokens},
        vocabularies={"caption": captions.tokenizer},
    )
    return Pictures(dataset, attributes, said)


def held_out(digits: Dataset, attributes: Attributes, seed: int) -> Tensor:
    """Pictures (N, 3, 16, 16) in grey levels of these attributes, of held-out digits by chance, few of them twice."""
    assert digits.label is not None
    draw = torch.Generator().manual_seed(seed)
    found = torch.zeros(len(attributes), dtype=torch.long)
    for k in range(len(DIGITS)):
        group = torch.where(digits.label == k)[0]
        wanted = torch.where(attributes.digit == k)[0]
        rounds = -(-len(wanted) // len(group)) if len(wanted) else 0
        order = torch.cat([torch.randperm(len(group), generator=draw) for _ in range(rounds)] or [wanted])
        found[wanted] = group[order[: len(wanted)]]
    return compose(digits.data[found], attributes.colour, attributes.place)
