"""Classifier-free guidance: one network, with and without its conditions.

    classifier_free(model, {"label": y}, scale=3.0)
    classifier_free(model, {"label": y}, lambda t: 1 + 4 * t, interval=(0.2, 3.0), rescale=0.7)
    classifier_free(model, {"caption": words}, scale=5.0, negative={"caption": blurry})

Scale 0 is unconditional, 1 conditional; other conventions by :func:`~scoresde.guidance.to_scale`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from scoresde import checks
from scoresde.guidance.parts import LinearGuidance, Part, finite_scale
from scoresde.guidance.scheduled import ScheduledGuidance, checked_interval
from scoresde.models.combination import Combination
from scoresde.models.conditions import as_conditions
from scoresde.models.model import Branches, ScoreModel, branches
from scoresde.models.score import DerivedScore, Score


def classifier_free(
    model: ScoreModel,
    conditions: Mapping[str, Any],
    scale: float | Callable[[Tensor], Tensor | float] = 1.0,
    *,
    null: Mapping[str, Any] | Any = None,
    negative: Mapping[str, Any] | Any = None,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Score:
    r"""Classifier-free guidance: s(x, t, ∅) + scale · (s(x, t, y) - s(x, t, ∅)).

    scale 0 is unconditional, 1 conditional, above 1 guided (Ho & Salimans 2022, arXiv:2207.12598, eq. 6, write w for
    scale - 1; :func:`to_scale` knows other conventions). Both branches are evaluated in one network call on a batch of
    2B; samples whose scale is exactly 0 or 1 cost the one branch that they need (with ``rescale``, which asks for the
    conditional branch at scale 0 too, only 1).

    With a constant scale and nothing else it is a :class:`LinearGuidance`; with a schedule, an interval or rescaling a
    :class:`NonlinearGuidance`, which particles cannot correct.

    Args:
        model: a ScoreModel trained with its conditions dropped at random.
        conditions: by name, e.g. ``{"label": y}``: tensors (B, ...), one row for all (1, ...), or a number.
        scale: the guidance scale, a number or a function of t, () or (B,), asked at every evaluation. Of a tensor ()
            the value is taken, without its gradient; write ``lambda t: scale`` to differentiate by it.
        null: what stands for "no condition": a mapping by name, or the value itself where there is one condition.
            Default: the network's own ``null_conditions``, and a warning where the model is known
            (``model.trained_with``) never to have been trained without these conditions, as after
            ``condition_dropout=0``, and the scale asks for it.
        negative: conditions in the place of ∅, which samples are pushed away from at scales above 1; a mapping by
            name, or the value itself where there is one condition. Not together with ``null``.
        interval: (low, high), guide only where low < σ/α <= high and be conditional elsewhere, at the price of one
            evaluation (Kynkäänniemi et al. 2024, arXiv:2404.07724).
        rescale: φ from 0 to 1, the share in which the guided x̂_0 is brought back to the standard deviation that the
            conditional x̂_0 has over each event: x̂_0 (φ std(x̂_0(y)) / std(x̂_0) + 1 - φ) (Lin et al. 2023,
            arXiv:2305.08891, eq. 15-16, there applied to the network's output, whatever it predicts). 0 leaves it
            untouched.

    Raises:
        TypeError: the model is no ScoreModel, the conditions no mapping.
        ValueError: no condition, one that the network does not know, no null condition for one of them, shapes or
            dtypes that do not fit, a scale that is not finite, a bad interval or rescale, null and negative together.
    """
    scale = number_or_schedule(scale)
    if interval is not None:
        interval = checked_interval(interval)
    rescale = checks.fraction(rescale, name="rescale")
    both = pair(model, conditions, null, negative, what="classifier_free")
    alone = not callable(scale) and scale in (0, 1) and interval is None and rescale == 0
    asked = [int(cast(float, scale))] if alone else [0, 1]
    both.warn_unless_trained([i for i in asked if i or null is None], what="classifier_free")
    if callable(scale) or interval is not None or rescale > 0:
        return ScheduledGuidance(both, scale, interval, rescale)
    return ClassifierFree(both, scale)


def number_or_schedule(scale: float | Callable[[Tensor], Tensor | float]) -> float | Callable[[Tensor], Tensor | float]:
    """A schedule as it is, a number as a float.

    Raises:
        ValueError: it is no finite number.
    """
    if callable(scale) and not isinstance(scale, type):
        return scale
    return finite_scale(scale, hint="Make it a function of t for one scale each.")  # type: ignore[arg-type]


def pair(model: ScoreModel, conditions: Mapping[str, Any], null: Any, negative: Any, *, what: str) -> Branches:
    """The branches without conditions, or with the negative ones, and with them."""
    conditions = as_conditions(conditions, what=what)
    if negative is None:
        return branches(model, [{}, conditions], null, what=what)
    if null is not None:
        raise ValueError("give null or negative, not both: negative conditions take the place of null ones.")
    if not isinstance(negative, Mapping):
        if len(conditions) > 1:
            raise ValueError(
                f"with several conditions, negative must be a mapping by name; got {checks.got(negative)}."
            )
        negative = dict.fromkeys(conditions, negative)
    if not negative:
        raise ValueError(
            f"negative must name a condition, got {checks.got(negative)}; leave it out to guide away from 'no "
            "condition'."
        )
    return branches(model, [negative, conditions], None, what=what)


@dataclass(frozen=True, eq=False)
class ClassifierFree(DerivedScore, LinearGuidance):
    """A Score made by :func:`classifier_free` with a constant scale."""

    branches: Branches
    scale: float

    @property
    def score(self) -> ScoreModel:  # type: ignore[override]
        """The model."""
        return self.branches.model

    @property
    def amplification(self) -> float:  # type: ignore[override]
        return abs(self.scale) + abs(1 - self.scale)

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        if self.scale in (0, 1):
            return self.branches.evaluate(x, t, wanted, [int(self.scale)])[0]
        unconditional, conditional = self.branches.evaluate(x, t, wanted, [0, 1])
        return torch.lerp(unconditional, conditional, self.scale)

    def parts(self, x: Tensor, t: Tensor, wanted: Combination) -> list[Part]:
        """The unconditional score with weight 1 - scale, the conditional one with weight scale, from one call."""
        unconditional, conditional = self.branches.evaluate(x, t, wanted, [0, 1])
        return [Part(1 - self.scale, unconditional), Part(self.scale, conditional)]
