"""Digits in styles, each a function of grey levels, with a sentence that names style and digit, or the style alone.

styled(levels, "bold")
dataset = training_set(training, seed=0)                # every digit in every style: "a bold three", "a bold digit"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde.data import Dataset, from_tensors
from scoresde.nn import Vocabulary

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LEVELS, LENGTH = 17, 3


def plain(levels: Tensor) -> Tensor:
    """As it is."""
    return levels


def bold(levels: Tensor) -> Tensor:
    """Each pixel the darkest ink of itself and its neighbours to the left and above: strokes a pixel wider."""
    return F.max_pool2d(F.pad(levels.float(), (1, 0, 1, 0)), 2, stride=1).to(levels.dtype)


def striped(levels: Tensor) -> Tensor:
    """Every second row with a quarter of its ink."""
    out = levels.clone()
    out[..., 1::2, :] = (out[..., 1::2, :].float() / 4).round().to(levels.dtype)
    return out


STYLES: Mapping[str, Callable[[Tensor], Tensor]] = {"plain": plain, "bold": bold, "striped": striped}


def vocabulary() -> Vocabulary:
    """The words of all sentences."""
    return Vocabulary(sorted({"a", "digit", *DIGITS, *STYLES}))


def sentences(style: str, label: Tensor | None, count: int) -> Tensor:
    """Tokens (count, LENGTH) of a style, with the digits (count,) where they are told."""
    names = ["digit"] * count if label is None else [DIGITS[k] for k in label.tolist()]
    return vocabulary().encode([f"a {style} {name}" for name in names], LENGTH)


def training_set(digits: Dataset, seed: int) -> Dataset:
    """Every training digit in every style, one in four with a sentence that does not say which digit."""
    assert digits.label is not None
    draw = torch.Generator().manual_seed(seed)
    pictures, tokens = [], []
    for style, change in STYLES.items():
        told, untold = (sentences(style, label, len(digits)) for label in (digits.label, None))
        hidden = torch.rand(len(digits), 1, generator=draw) < 0.25
        pictures.append(change(digits.data))
        tokens.append(torch.where(hidden, untold, told))
    words = {"caption": vocabulary()}
    return from_tensors(
        torch.cat(pictures), levels=LEVELS, conditions={"caption": torch.cat(tokens)}, vocabularies=words
    )
