"""Guidance that is no weighted sum with constant weights, and sums that look through other guidances.

A guidance of your own that changes with time, or bends what scores say, derives from :class:`NonlinearGuidance`:
solvers take it, particles refuse it by its :attr:`~NonlinearGuidance.reason`. :func:`parts_of` is for sums around
others.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from scoresde import checks
from scoresde.guidance.parts import LinearGuidance, Part
from scoresde.models.combination import Combination
from scoresde.models.score import Score
from scoresde.sde import spread


class NonlinearGuidance(Score):
    """A guided Score for which scores alone give no weights that would correct its samples.

    Its weights change with time, or it is no sum of scores at all. :func:`scoresde.particles.tilted` needs a
    :class:`LinearGuidance`; ``reason`` is what it can tell the user.
    """

    @property
    @abstractmethod
    def reason(self) -> str:
        """Why there are no weights, as part of a sentence."""

    @property
    def correction(self) -> str:
        """What to do about it, as part of a sentence."""
        return (
            f"it cannot be corrected from scores alone, since {self.reason}; take a constant scale without interval, "
            "rescale or projection"
        )


def parts_of(score: Score, x: Tensor, t: Tensor, wanted: Combination) -> list[Part]:
    """A score as a weighted sum: the parts of a LinearGuidance, any other score as one part of weight 1.

    Raises:
        TypeError: a NonlinearGuidance, which is none.
    """
    if isinstance(score, NonlinearGuidance):
        raise TypeError(f"{type(score).__name__} is no weighted sum of scores: {score.correction}.")
    if isinstance(score, LinearGuidance):
        return list(score.parts(x, t, wanted))
    return [Part(1.0, score.evaluate(x, t, wanted))]


def steered(weak: Tensor, strong: Tensor, scale: Tensor) -> Tensor:
    """Weak + scale (strong - weak), with one scale () or one for each sample (B,)."""
    if scale.ndim == 0 and not scale.requires_grad and checks.readable(scale):
        return torch.lerp(weak, strong, scale.item())
    return torch.lerp(weak, strong, spread(scale, strong) if scale.ndim else scale.to(strong))
