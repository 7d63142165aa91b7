"""Weighted sums of scores: of a model and a weaker one, and of one model under several conditions.

    autoguidance(model.bind(label=y), weak.bind(label=y), scale=2.0)
    compose(model, [(2.0, {"label": 3}), (1.0, {"caption": red}), (-1.0, {"label": 5})])     # this and that, and not

``weak`` is a smaller or shorter-trained model of the same SDE; one of another schedule is brought to it by
``weak.under(sde)``. All terms of ``compose`` share one network call; what a term leaves out is "not given" there.
A sum of your own stands here as well: its name in ``__all__`` makes it public.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.guidance.parts import LinearGuidance, Part, finite_scale, parts_of
from scoresde.models.combination import Combination
from scoresde.models.model import Branches, ScoreModel, branches
from scoresde.models.score import DerivedScore, Score, check_score, same_sde

__all__ = ["autoguidance", "compose"]


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

    @property
    def coupling(self) -> str | None:  # type: ignore[override]
        return self.score.coupling or self.weak.coupling

    @property
    def amplification(self) -> float:  # type: ignore[override]
        return abs(self.scale) * self.score.amplification + abs(1 - self.scale) * self.weak.amplification

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        if self.scale in (0, 1):
            return (self.score if self.scale else self.weak).evaluate(x, t, wanted)
        return torch.lerp(self.weak.evaluate(x, t, wanted), self.score.evaluate(x, t, wanted), self.scale)

    def parts(self, x: Tensor, t: Tensor, wanted: Combination) -> list[Part]:
        """Those of the weak score times 1 - scale, and those of the score times scale."""
        weights = ((self.weak, 1 - self.scale), (self.score, self.scale))
        return [Part(w * part.weight, part.value) for score, w in weights for part in parts_of(score, x, t, wanted)]


def compose(
    model: ScoreModel, terms: Sequence[tuple[float, Mapping[str, Any]]], *, null: Mapping[str, Any] | Any = None
) -> Score:
    r"""Conditions joined by "and" and "not": s(x, t, ∅) + Σ_i w_i (s(x, t, y_i) - s(x, t, ∅)).

    Positive weights ask for a condition, negative ones for its absence (Liu et al. 2022, arXiv:2206.01714). It
    is the score of p_t(x) Π_i p_t(y_i | x)^{w_i}: with all weights 1, of the joint condition where the y_i are
    independent given x_t. All branches are evaluated in one network call, on a batch of (n + 1) B, without those of
    weight 0. One term is :func:`classifier_free`. ::

        compose(model, [(2.0, {"label": 3}), (1.0, {"caption": red}), (-1.0, {"label": 5})])

    Args:
        model: a ScoreModel trained with each condition dropped on its own.
        terms: (w_i, conditions by name); a condition that a term leaves out is not given there.
        null: what stands for "not given", by name, or the value itself where all terms share one condition. Default:
            the network's own ``null_conditions``.

    Raises:
        TypeError: the model is no ScoreModel, or a term no pair of a number and a mapping.
        ValueError: no terms, a term without conditions, a weight that is not finite, and as for classifier_free.
    """
    pairs: list[tuple[float, Mapping[str, Any]]] = []
    if isinstance(terms, (str, bytes)) or not isinstance(terms, Sequence):
        raise TypeError(f"terms must be a list of (weight, conditions), {_EXAMPLE}; got {checks.got(terms)}.")
    for term in terms:
        if not (isinstance(term, Sequence) and len(term) == 2 and isinstance(term[1], Mapping)):
            raise TypeError(f"each of terms must be (weight, conditions), {_EXAMPLE}; got {checks.got(term)}.")
        weight, cond = term
        weight = finite_scale(weight, name="each weight of terms")
        if not cond:
            raise ValueError(
                f"each of terms needs a condition, {_EXAMPLE}, got {checks.got(term)}; the score without any is there "
                "anyway."
            )
        pairs.append((weight, cond))
    if not pairs:
        raise ValueError(f"terms must hold at least one term, {_EXAMPLE}; got {checks.got(terms)}.")
    every = branches(model, [{}, *(cond for _, cond in pairs)], null, what="compose")
    weights = tuple(w for w, _ in pairs)
    weights = (1 - sum(weights), *weights)
    every.warn_unless_trained([i for i, w in enumerate(weights) if w and (i or null is None)], what="compose")
    return Composed(every, weights)


_EXAMPLE = 'e.g. [(2.0, {"label": 3}), (-1.0, {"label": 5})]'


@dataclass(frozen=True, eq=False)
class Composed(DerivedScore, LinearGuidance):
    """A Score made by :func:`compose`: its branches, the first without conditions, and the weight of each."""

    branches: Branches
    weights: tuple[float, ...]

    @property
    def score(self) -> ScoreModel:  # type: ignore[override]
        """The model."""
        return self.branches.model

    @property
    def amplification(self) -> float:  # type: ignore[override]
        return sum(abs(weight) for weight in self.weights)

    def parts(self, x: Tensor, t: Tensor, wanted: Combination) -> list[Part]:
        """The branches whose weight is not 0, from one call."""
        used = [i for i, weight in enumerate(self.weights) if weight != 0]
        values = self.branches.evaluate(x, t, wanted, used)
        return [Part(self.weights[i], value) for i, value in zip(used, values, strict=True)]
