"""Classifier-free guidance: one network, with and without its conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.guidance.branches import Branches, branches, taken_by
from scoresde.guidance.parts import LinearGuidance, Part, finite_scale
from scoresde.guidance.scheduled import ScheduledGuidance, checked_interval, fraction
from scoresde.score import Score, ScoreModel


def classifier_free(
    model: ScoreModel,
    scale: float | Callable[[Tensor], Tensor | float] = 1.0,
    *,
    null: Mapping[str, Any] | Any = None,
    negative: Mapping[str, Any] | Any = None,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    **cond: Any,
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
        scale: the guidance scale, a number or a function of t, () or (B,), asked at every evaluation. Of a tensor ()
            the value is taken, without its gradient; write ``lambda t: scale`` to differentiate by it.
        null: what stands for "no condition": a mapping by name, or the value itself where there is one condition.
            Default: the network's own ``null_conditions``.
        negative: conditions in the place of ∅, which samples are pushed away from at scales above 1; a mapping by
            name, or the value itself where there is one condition. Not together with ``null``.
        interval: (low, high), guide only where low < σ/α <= high and be conditional elsewhere, at the price of one
            evaluation (Kynkäänniemi et al. 2024, arXiv:2404.07724).
        rescale: φ from 0 to 1, the share in which the guided x̂_0 is brought back to the standard deviation that the
            conditional x̂_0 has over each event: x̂_0 (φ std(x̂_0(y)) / std(x̂_0) + 1 - φ) (Lin et al. 2023,
            arXiv:2305.08891, eq. 15-16, there applied to the network's output, whatever it predicts). 0 leaves it
            untouched.
        cond: the conditions, e.g. ``label=y``: tensors (B, ...), one row for all (1, ...), or a number. A condition
            that is called like an argument here (model, scale, null, negative, interval, rescale) cannot be given;
            :func:`compose` takes any name: ``compose(model, [(w, {"scale": v})])``.

    Raises:
        TypeError: the model is no ScoreModel.
        ValueError: no condition, one that the network does not know, no null condition for one of them, shapes or
            dtypes that do not fit, a scale that is not finite, a bad interval or rescale, null and negative together,
            an option where the network has a condition of that name.
    """
    unambiguous(model, "classifier_free", null=(null, None), negative=(negative, None), interval=(interval, None),
                rescale=(rescale, 0.0))  # fmt: skip
    scale = number_or_schedule(scale)
    if interval is not None:
        interval = checked_interval(interval)
    fraction(rescale, name="rescale")
    both = pair(model, cond, null, negative, what="classifier_free")
    if callable(scale) or interval is not None or rescale > 0:
        return ScheduledGuidance(both, scale, interval, float(rescale))
    return ClassifierFree(both, scale)


def by_compose(name: str) -> str:
    """What to write for a condition whose name is taken."""
    return f'write compose(model, [(w, {{"{name}": v}})]), which takes conditions of any name.'


def number_or_schedule(scale: float | Callable[[Tensor], Tensor | float]) -> float | Callable[[Tensor], Tensor | float]:
    """A schedule as it is, a number as a float.

    Raises:
        ValueError: it is no finite number.
    """
    hint = f"Make it a function of t for one scale each. If scale is a condition: {by_compose('scale')}"
    return scale if callable(scale) else finite_scale(scale, hint=hint)


def unambiguous(model: ScoreModel, what: str, **options: tuple[Any, Any]) -> None:
    """Raises ValueError where an option (value, default) was given that the network has a condition of the name of.

    A mapping by condition names can only be the option.
    """
    taken = taken_by(model) if isinstance(model, ScoreModel) else []
    for name, (value, default) in options.items():
        unsaid = value is default or (isinstance(value, (int, float)) and value == default)
        if name in taken and not (unsaid or isinstance(value, Mapping)):
            option = f"; for the option give a mapping, {name}={{...}}" if name in ("null", "negative") else ""
            raise ValueError(
                f"the network takes a condition {name!r}, and {what} an option of that name, so that {name}=... does "
                f"not say which{option}. For the condition {by_compose(name)}"
            )


def pair(model: ScoreModel, cond: Mapping[str, Any], null: Any, negative: Any, *, what: str) -> Branches:
    """The branches without conditions, or with the negative ones, and with them."""
    if isinstance(model, ScoreModel) and not cond:
        raise ValueError(
            f"{what} needs a condition, e.g. {what}(model, scale=3.0, label=y). If one has the name of an option, such "
            f"as null: {by_compose('null')}"
        )
    if negative is None:
        return branches(model, [{}, cond], null, what=what)
    if null is not None:
        raise ValueError("give null or negative, not both: negative conditions take the place of null ones.")
    if not isinstance(negative, Mapping):
        if len(cond) > 1:
            raise ValueError(
                f"with several conditions, negative must be a mapping by name; got {type(negative).__name__}."
            )
        negative = dict.fromkeys(cond, negative)
    if not negative:
        raise ValueError("negative names no condition; leave it out to guide away from 'no condition'.")
    return branches(model, [negative, cond], None, what=what)


@dataclass(frozen=True, eq=False)
class ClassifierFree(LinearGuidance):
    """A Score made by :func:`classifier_free` with a constant scale."""

    branches: Branches
    scale: float

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if self.scale in (0, 1):
            return self.branches(x, t, [int(self.scale)])[0]
        unconditional, conditional = self.branches(x, t, [0, 1])
        return torch.lerp(unconditional, conditional, self.scale)

    def parts(self, x: Tensor, t: Tensor) -> list[Part]:
        """The unconditional score with weight 1 - scale, the conditional one with weight scale, from one call."""
        unconditional, conditional = self.branches(x, t, [0, 1])
        return [Part(1 - self.scale, unconditional), Part(self.scale, conditional)]
