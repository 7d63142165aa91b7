"""Conditions replaced by their null values in some rows: how a network learns to do without them.

One network learns the conditional and the unconditional score, which classifier-free guidance compares (Ho & Salimans
2022, arXiv:2207.12598, algorithm 1). The randomness is an argument::

    rows = dropped_rows({"label": 0.1, "caption": 0.2}, names, together=u, alone=lambda name: uniforms(name))
    told = drop_conditions({"label": y, "caption": tokens}, nulls_of(net), rows)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.checks.lasting import kept_at

Dropout = float | Mapping[str, float]
"""Probability of a null condition: a number for all of a row together, or one by name for each on its own."""


def check_droppable(dropout: Dropout | None, names: Sequence[str], nulls: Mapping[str, Any]) -> None:
    """Raise unless what ``condition_dropout`` is to drop is there and has a null value.

    Args:
        dropout: the probabilities; None for none in particular.
        names: of the conditions in training.
        nulls: what stands for "not given", by name.

    Raises:
        ValueError: a name that is not in training, or without a null value.
    """
    without: list[str] = []
    if isinstance(dropout, Mapping):
        unknown = [name for name in dropout if name not in names]
        if unknown:
            raise ValueError(
                f"condition_dropout names {', '.join(map(repr, unknown))}, but the conditions in training are "
                f"{list(names)}. Correct the name, or leave it out."
            )
        without = [name for name, probability in dropout.items() if probability and name not in nulls]
    elif dropout and not any(name in nulls for name in names):
        without = list(names) or ["label"]
    if without:
        raise ValueError(
            f"condition_dropout={dropout} needs a null value for {', '.join(without)}: give the network an attribute "
            "null_conditions such as {'label': num_classes, 'low': float('nan')}, or leave condition_dropout out."
        )


def dropped_rows(
    dropout: Dropout, names: Sequence[str], *, together: Tensor, alone: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """Which rows (B,) of a batch lose which condition.

    Args:
        dropout: a number drops all ``names`` of a row together; a mapping drops each on its own.
        names: of the conditions that have a null value.
        together: uniforms (B,) in [0, 1), what a number is compared with.
        alone: the uniforms (B,) that belong to one name, what a mapping is compared with.
    """
    if not isinstance(dropout, Mapping):
        return dict.fromkeys(names, together < dropout) if dropout > 0 else {}
    return {name: alone(name) < probability for name, probability in dropout.items() if probability > 0}


def drop_conditions(
    conditions: Mapping[str, Tensor], nulls: Mapping[str, Any], dropped: Tensor | Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The conditions with null values in the rows where ``dropped`` (B,) is true.

    Args:
        conditions: (B, ...) each.
        nulls: what stands for "not given", by name: a number, or what expands to the condition's shape. NaN for
            floating conditions. Conditions that are not here are left as they are.
        dropped: one for all conditions of a row together, or by name; a name that is missing loses none.

    Raises:
        ValueError: a null that is a fraction or NaN for a condition of integers, or one of another shape.
    """
    by_name = dropped if isinstance(dropped, Mapping) else dict.fromkeys(nulls, dropped)
    return {
        name: torch.where(_beside(by_name[name], value), null_rows(name, nulls[name], value), value)
        if name in nulls and name in by_name
        else value
        for name, value in conditions.items()
    }


def _beside(rows: Tensor, value: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (value.ndim - 1))


def null_rows(name: str, null: Any, like: Tensor) -> Tensor:
    """The null of a condition in every row: shaped like the condition (B, ...), in its dtype, on its device.

    Raises:
        ValueError: a null that is a fraction or NaN for a condition of integers, or one of another shape.
    """
    given = torch.as_tensor(null)
    rows = kept_at(given, like.device, like.dtype)
    if given.is_floating_point() and not like.is_floating_point() and not bool((given == given.to(like.dtype)).all()):
        raise ValueError(
            f"the null of {name!r} is {null}, but its values are {like.dtype}, which cannot hold that. Whole-number "
            "conditions need a whole-number null in the network's null_conditions (0 for tokens), or store "
            f"{name!r} as floats."
        )
    if isinstance(null, int | float):  # made there: a copy would wait for what the device is doing
        rows = torch.full((), null, dtype=like.dtype, device=like.device)
    try:
        return rows.to(like.device).expand(like.shape)
    except RuntimeError as error:
        raise ValueError(
            f"the null of {name!r} has shape {tuple(given.shape)}, which does not fit one condition "
            f"{tuple(like.shape[1:])}."
        ) from error
