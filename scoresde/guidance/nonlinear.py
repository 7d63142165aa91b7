"""Guidance that is no weighted sum with constant weights, and sums that look through other guidances."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from scoresde import checks
from scoresde.guidance.parts import LinearGuidance, Part
from scoresde.score import Score


class NonlinearGuidance(ABC):
    """A guided Score for which scores alone give no weights that would correct its samples.

    Its weights change with time, or it is no sum of scores at all. :func:`scoresde.particles.tilted` needs a
    :class:`LinearGuidance`; ``reason`` is what it can tell the user.
    """

    @property
    @abstractmethod
    def reason(self) -> str:
        """Why there are no weights, as part of a sentence."""

    @abstractmethod
    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The guided score."""


def parts_of(score: Score, x: Tensor, t: Tensor) -> list[Part]:
    """A score as a weighted sum: the parts of a LinearGuidance, any other score as one part of weight 1.

    Raises:
        TypeError: a NonlinearGuidance, which is none.
    """
    if isinstance(score, NonlinearGuidance):
        raise TypeError(
            f"{type(score).__name__} is no weighted sum of scores: {score.reason}. Samples of it cannot be weighted; "
            "take a constant scale without interval, rescale or projection."
        )
    return list(score.parts(x, t)) if isinstance(score, LinearGuidance) else [Part(1.0, score(x, t))]


def mixed(weak: Tensor, strong: Tensor, scale: Tensor) -> Tensor:
    """Weak + scale (strong - weak), with one scale () or one for each sample (B,)."""
    if scale.ndim == 0 and not scale.requires_grad and checks.readable(scale):
        return torch.lerp(weak, strong, scale.item())
    return torch.lerp(weak, strong, scale.to(strong).reshape(-1, *[1] * (strong.ndim - 1)))
