"""Autoguidance: a score pushed away from a weaker version of itself.

    autoguidance(model.bind(label=y), weak.bind(label=y), scale=2.0)

``weak`` is a smaller or shorter-trained model of the same SDE; one of another schedule is brought to it by
``weak.under(sde)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.guidance.nonlinear import parts_of
from scoresde.guidance.parts import LinearGuidance, Part, finite_scale
from scoresde.models.combination import Combination
from scoresde.models.score import DerivedScore, Score, check_score, same_sde


def autoguidance(score: Score, weak: Score, scale: float = 1.0) -> Score:
    r"""Autoguidance: weak(x, t) + scale · (score(x, t) - weak(x, t)).

    The weak score is that of a smaller or shorter-trained model under the same conditions (Karras et al. 2024,
    arXiv:2406.02507). Scale 1 is the score itself, 0 the weak one; each is evaluated only where needed.

    Args:
        score: any Score, such as ``model.bind(label=y)`` or a guided one.
        weak: the other, under the same SDE.
        scale: their w.

    Raises:
        TypeError: not a Score.
        ValueError: a scale that is not finite, or scores of two schedules.
    """
    scale = finite_scale(scale)
    same_sde({"the score": check_score(score).sde, "the weak score": check_score(weak, name="weak").sde})
    return Autoguided(score, weak, scale)


@dataclass(frozen=True, eq=False)
class Autoguided(DerivedScore, LinearGuidance):
    """A Score made by :func:`autoguidance`; its fields are that function's arguments."""

    score: Score
    weak: Score
    scale: float

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        if self.scale in (0, 1):
            return (self.score if self.scale else self.weak).evaluate(x, t, wanted)
        return torch.lerp(self.weak.evaluate(x, t, wanted), self.score.evaluate(x, t, wanted), self.scale)

    def parts(self, x: Tensor, t: Tensor, wanted: Combination) -> list[Part]:
        """Those of the weak score times 1 - scale, and those of the score times scale."""
        weights = ((self.weak, 1 - self.scale), (self.score, self.scale))
        return [Part(w * part.weight, part.value) for score, w in weights for part in parts_of(score, x, t, wanted)]
