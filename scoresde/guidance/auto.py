"""Autoguidance: a score pushed away from a weaker version of itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.guidance.nonlinear import parts_of
from scoresde.guidance.parts import LinearGuidance, Part, finite_scale
from scoresde.score import Score


def autoguidance(score: Score, weak: Score, scale: float = 1.0) -> Score:
    r"""Autoguidance: weak(x, t) + scale · (score(x, t) - weak(x, t)).

    The weak score is that of a smaller or shorter-trained model under the same conditions (Karras et al. 2024,
    arXiv:2406.02507). Scale 1 is the score itself, 0 the weak one; each is evaluated only where needed.

    Args:
        score: any Score, such as ``model.bind(label=y)`` or a guided one.
        weak: the other, under the same SDE.
        scale: their w.

    Raises:
        TypeError: not a function.
        ValueError: a scale that is not finite.
    """
    scale = finite_scale(scale)
    for name, given in (("score", score), ("weak", weak)):
        if not callable(given):
            raise TypeError(f"{name} must be a function (x, t) -> score, got {type(given).__name__}.")
    return Autoguided(score, weak, scale)


@dataclass(frozen=True, eq=False)
class Autoguided(LinearGuidance):
    """A Score made by :func:`autoguidance`; its fields are that function's arguments."""

    score: Score
    weak: Score
    scale: float

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if self.scale in (0, 1):
            return (self.score if self.scale else self.weak)(x, t)
        return torch.lerp(self.weak(x, t), self.score(x, t), self.scale)

    def parts(self, x: Tensor, t: Tensor) -> list[Part]:
        """Those of the weak score times 1 - scale, and those of the score times scale."""
        weights = ((self.weak, 1 - self.scale), (self.score, self.scale))
        return [Part(w * part.weight, part.score) for score, w in weights for part in parts_of(score, x, t)]
