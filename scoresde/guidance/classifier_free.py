"""Classifier-free guidance: one network, with and without its conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.guidance.parts import LinearGuidance, Part, finite_scale
from scoresde.score import Score, ScoreModel


def classifier_free(
    model: ScoreModel, scale: float = 1.0, *, null: Mapping[str, Any] | Any = None, **cond: Any
) -> Score:
    r"""Classifier-free guidance: s(x, t, ∅) + scale · (s(x, t, y) - s(x, t, ∅)).

    scale 0 is unconditional, 1 conditional, above 1 guided. (Ho & Salimans 2022, arXiv:2207.12598, eq. 6 write w for
    scale - 1.) Both branches are evaluated in one network call on a batch of 2B; at 0 and 1 only the one needed.

    Args:
        model: a ScoreModel trained with its conditions dropped at random.
        scale: the guidance scale.
        null: what stands for "no condition": a mapping by name, or the value itself where there is one condition.
            Default: the network's own ``null_conditions``.
        cond: the conditions, e.g. ``label=y``: tensors (B, ...), or a number for the whole batch.

    Raises:
        ValueError: no condition, no null condition for one of them, or shapes that differ.
    """
    finite_scale(scale)
    if not isinstance(model, ScoreModel):
        raise TypeError(
            f"classifier_free needs a ScoreModel, not bound, to give it both conditions; got {type(model)}."
        )
    if not cond:
        raise ValueError("classifier_free needs a condition, e.g. classifier_free(model, scale=3.0, label=y).")
    return ClassifierFree(model, scale, cond, _nulls(model, null, cond))


@dataclass(frozen=True, eq=False)
class ClassifierFree(LinearGuidance):
    """A Score made by :func:`classifier_free`: the model, the scale, its conditions and what stands for none."""

    model: ScoreModel
    scale: float
    cond: Mapping[str, Any]
    nulls: Mapping[str, Any]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if self.scale in (0, 1):
            with_cond, without = self._conditions(x)
            return self.model(x, t, **(with_cond if self.scale else without))
        (_, unconditional), (_, conditional) = self.parts(x, t)
        return torch.lerp(unconditional, conditional, self.scale)

    def parts(self, x: Tensor, t: Tensor) -> list[Part]:
        """The unconditional score with weight 1 - scale, the conditional one with weight scale, from one call."""
        with_cond, without = self._conditions(x)
        time = torch.as_tensor(t)
        both = self.model(
            torch.cat([x, x]),
            torch.cat([time, time]) if time.ndim else time,
            **{name: torch.cat([with_cond[name], without[name]]) for name in with_cond},
        )
        conditional, unconditional = both.chunk(2)
        return [Part(1 - self.scale, unconditional), Part(self.scale, conditional)]

    def _conditions(self, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with_cond = {name: _rows(name, value, len(x), x) for name, value in self.cond.items()}
        return with_cond, {name: _null_rows(name, self.nulls[name], value) for name, value in with_cond.items()}


def _nulls(model: ScoreModel, null: Any, cond: Mapping[str, Any]) -> Mapping[str, Any]:
    if null is None:
        null = getattr(model.net, "null_conditions", None)
        if not isinstance(null, Mapping):
            raise ValueError(
                "classifier_free needs the null condition, the value by which the network was told 'no condition' in "
                f"training: pass null=..., e.g. null={{{next(iter(cond))!r}: 10}}."
            )
    elif not isinstance(null, Mapping):
        if len(cond) > 1:
            raise ValueError(f"with several conditions, null must be a mapping by name; got {type(null).__name__}.")
        null = dict.fromkeys(cond, null)
    missing = [name for name in cond if name not in null]
    if missing:
        raise ValueError(f"no null condition for {', '.join(missing)}; null has {', '.join(null) or 'none'}.")
    return null


def _rows(name: str, value: Any, batch: int, x: Tensor) -> Tensor:
    value = torch.as_tensor(value, device=x.device)
    if value.ndim == 0:
        return value.expand(batch)
    if value.shape[0] != batch:
        raise ValueError(f"condition {name!r} has {value.shape[0]} rows but x has {batch} samples.")
    return value


def _null_rows(name: str, null: Any, like: Tensor) -> Tensor:
    null = torch.as_tensor(null, device=like.device).to(like.dtype)
    try:
        return null.expand(like.shape)
    except RuntimeError as error:
        raise ValueError(
            f"the null of {name!r} has shape {tuple(null.shape)}, which does not fit conditions {tuple(like.shape)}."
        ) from error
