"""Several conditions at once: this and that, this and not that.

    compose(model, [(2.0, {"label": 3}), (1.0, {"caption": red}), (-1.0, {"label": 5})])

All terms share one network call; what a term leaves out is "not given" there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoresde.guidance.parts import LinearGuidance, Part, finite_scale
from scoresde.models.combination import Combination
from scoresde.models.model import Branches, ScoreModel, branches
from scoresde.models.score import DerivedScore, Score


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
    if isinstance(terms, Mapping) or not isinstance(terms, Sequence):
        raise TypeError(f"terms must be a list of (weight, conditions), {_EXAMPLE}; got {type(terms).__name__}.")
    for term in terms:
        if not (isinstance(term, Sequence) and len(term) == 2 and isinstance(term[1], Mapping)):
            raise TypeError(f"a term must be (weight, conditions), {_EXAMPLE}; got {term!r}.")
        weight, cond = term
        weight = finite_scale(weight, name="weight")
        if not cond:
            raise ValueError(f"a term needs a condition, {_EXAMPLE}; the score without any is there anyway.")
        pairs.append((weight, cond))
    if not pairs:
        raise ValueError(f"compose needs at least one term, {_EXAMPLE}.")
    every = branches(model, [{}, *(cond for _, cond in pairs)], null, what="compose")
    weights = tuple(w for w, _ in pairs)
    return Composed(every, (1 - sum(weights), *weights))


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

    def parts(self, x: Tensor, t: Tensor, wanted: Combination) -> list[Part]:
        """The branches whose weight is not 0, from one call."""
        used = [i for i, weight in enumerate(self.weights) if weight != 0]
        values = self.branches.evaluate(x, t, wanted, used)
        return [Part(self.weights[i], value) for i, value in zip(used, values, strict=True)]
