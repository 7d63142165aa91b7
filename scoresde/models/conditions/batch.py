"""Conditions brought to the batch: one for all samples expanded to a row for each, and sets of them completed.

Guidance compares a network under several sets of conditions in one call, so that all sets must have the same names and
shapes; what one set leaves out is its null there::

    sets = [{}, as_conditions({"label": 3}, what="classifier_free")]
    nulls = nulls_for(net, sets, None, what="classifier_free")      # {"label": 10}, the network's own
    none, some = completed(sets, nulls, x)                          # {"label": (B,)} twice: all 10, all 3
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.lasting import kept_at
from scoresde.models.conditions.described import (
    STARS,
    Conditions,
    check_values,
    kinds_of,
    names_of,
    nulls_of,
    parameters_after_c,
)
from scoresde.models.conditions.dropping import null_rows
from scoresde.models.conditions.rows import check_name


def expanded(net: object, conditions: Mapping[str, Any], x: Tensor) -> dict[str, Any]:
    """Conditions with a row for each sample of x, those that the network's ``null_conditions`` name.

    A number, a tensor () or one row (1, ...) is that of all samples; all else is passed on as it is.
    """
    known = nulls_of(net)
    return {
        name: _one_for_all(_number(value, known[name], x), x) if name in known else value
        for name, value in conditions.items()
    }


def given_names(net: object, conditions: Mapping[str, Any]) -> list[str]:
    """Names of the conditions that say something: not None, nor the network's null, a number or in all samples."""
    nulls = nulls_of(net)
    return [name for name, value in conditions.items() if value is not None and not _is(value, nulls.get(name))]


def check_bound(net: object, conditions: Mapping[str, Any]) -> None:
    """Raise where a network, as far as it tells, does not take such conditions: an unknown name, another kind of value.

    Raises:
        ValueError: see above.
    """
    _check_known(net, list(conditions))
    nulls, kinds = nulls_of(net), kinds_of(net)
    for name, value in conditions.items():
        if name in nulls and value is not None:
            _check_fits(name, value, nulls[name])
            if name in kinds:
                kinds[name].check_values(name, torch.as_tensor(value), f"bind({name}=...)")


def _check_range(net: object, conditions: Mapping[str, Any]) -> None:
    """Raise ValueError where a label or a token, a number or in main memory, is none of the network's."""
    kinds = kinds_of(net)
    for name, value in conditions.items():
        if name in kinds and isinstance(value, (int, np.integer, Tensor)) and not isinstance(value, bool):
            check_values({name: kinds[name]}, {name: torch.as_tensor(value)}, "")


def _is(value: Any, null: Any) -> bool:
    """Whether a condition is the null, as a number or, in main memory, throughout."""
    if isinstance(value, (Tensor, np.ndarray)) and isinstance(null, (int, float)):
        rows = torch.as_tensor(value)
        same = rows.isnan() if _is_nan(null) and rows.is_floating_point() else rows == null
        return checks.readable(rows) and bool(rows.numel()) and bool(same.all())
    if isinstance(value, (Tensor, bool)) or not isinstance(value, (int, float, np.number)):
        return False
    return bool(math.isnan(value)) if _is_nan(null) else isinstance(null, (int, float)) and bool(value == null)


def _number(value: Any, null: Any, x: Tensor) -> Any:
    """A number, Python's or NumPy's, or an array as a tensor; 3 is 3.0 where the null is NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number, np.ndarray)):
        return value
    given = torch.as_tensor(value)
    return checks.sent(given, x.device, torch.float32 if _is_nan(null) and not given.is_floating_point() else None)


def _one_for_all(value: Any, x: Tensor) -> Any:
    """One value, () or (1, ...), in a row for each sample of x; anything else as it is."""
    one = isinstance(value, Tensor) and (not value.ndim or len(value) == 1)
    return value.expand(len(x), *value.shape[1:]) if one else value


def as_conditions(given: object, *, what: str, name: str = "conditions") -> dict[str, Any]:
    """Conditions by name, at least one.

    Raises:
        TypeError: no mapping.
        ValueError: an empty one.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f'{name} must be a mapping by name, such as {{"label": y}}; got {checks.got(given)}.')
    for key in given:
        check_name(key)
    if not given:
        raise ValueError(f'{what} needs a condition, {name}={{"label": y}}; got an empty mapping.')
    return dict(given)


def nulls_for(net: object, sets: Sequence[Mapping[str, Any]], null: Any, *, what: str) -> dict[str, Any]:
    """The null values by which each set of conditions is completed to the names of all of them.

    Args:
        net: the network.
        sets: conditions by name; what one names and another does not is the latter's null.
        null: by name, or the value itself where there is one condition; None for the network's own.
        what: for the message.

    Raises:
        ValueError: no condition, one that the network does not take, a null missing or of another kind than the values,
            a label out of range.
    """
    names = list(dict.fromkeys(name for one in sets for name in one))
    if not names:
        raise ValueError(f'{what} needs a condition, e.g. {{"label": y}}.')
    _check_known(net, names)
    wanted = [name for name in names if any(name not in one for one in sets)]
    nulls = _chosen_nulls(net, null, wanted, names, what)
    if null is not None:
        own = nulls_of(net)
        for name, value in nulls.items():
            if not _is_nan(value) or not _is_nan(own.get(name, value)):
                _check_fits(name, value, own.get(name), "null")
    for one in sets:
        for name, value in one.items():
            _check_fits(name, value, nulls.get(name))
        _check_range(net, one)
    return nulls


def completed(sets: Sequence[Mapping[str, Any]], nulls: Mapping[str, Any], x: Tensor) -> list[dict[str, Tensor]]:
    """Each set with all names of all sets, and a row for each sample of x.

    Raises:
        ValueError: a condition of another number of rows than x, or of different shapes in two sets.
    """
    found: list[dict[str, Tensor]] = [{} for _ in sets]
    for name in dict.fromkeys(name for one in sets for name in one):
        rows = {i: _rows(name, one[name], nulls.get(name), x) for i, one in enumerate(sets) if name in one}
        like = next(iter(rows.values()))
        for other in rows.values():
            if other.shape != like.shape:
                raise ValueError(
                    f"condition {name!r} must have one shape in all terms to share a network call; got "
                    f"{tuple(like.shape)} and {tuple(other.shape)}. Pad or resize them to one."
                )
        for i, one in enumerate(found):
            one[name] = rows[i] if i in rows else null_rows(name, nulls[name], like)
    return found


def _chosen_nulls(net: object, null: Any, wanted: list[str], names: list[str], what: str) -> dict[str, Any]:
    if null is None:
        null = getattr(net, "null_conditions", None)
        if not isinstance(null, Mapping):
            if not wanted:
                return {}
            raise ValueError(
                f"{what} needs the null condition, the value by which the network was told 'no condition' in "
                f"training: pass null=..., e.g. null={{{wanted[0]!r}: 10}}."
            )
    elif not isinstance(null, Mapping):
        if len(names) > 1:
            raise ValueError(f"with several conditions, null must be a mapping by name; got {type(null).__name__}.")
        null = dict.fromkeys(names, null)
    missing = [name for name in wanted if name not in null]
    if missing:
        known = ", ".join(map(str, null)) or "none"
        raise ValueError(f"null must have a value for {', '.join(missing)}; it has {known}.")
    return {name: null[name] for name in names if name in null}


def _check_known(net: object, names: list[str]) -> None:
    """Each name is one that the network takes, as far as that can be read: its null_conditions, or its signature."""
    parameters = parameters_after_c(net)
    if parameters is None:
        return
    known = names_of(net)
    unknown = [name for name in names if name not in known]
    # With **conditions a network's own words say which; a plain function's names are not to be known.
    told = bool(nulls_of(net)) or isinstance(getattr(net, "conditions", None), Conditions)
    if unknown and (told or not any(p.kind in STARS for p in parameters)):
        given = ", ".join(map(str, unknown))
        raise ValueError(f"the network takes no condition {given}; it takes {', '.join(known) or 'none'}.")


def _check_fits(name: str, value: Any, null: Any, what: str = "condition") -> None:
    """A condition is numbers, and of the kind of its null: a null of NaN marks floats, a whole number integers."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{what} {name!r} must be a tensor (B, ...) or a number, got {checks.got(value)}. Encode words "
            "first, e.g. Vocabulary(words).encode(sentences, length)."
        ) from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{what} {name!r} must be real numbers, got {checks.got(value)}; call .float() or .long().")
    if isinstance(null, int) and not isinstance(null, bool) and tensor.is_floating_point():
        raise ValueError(
            f"{what} {name!r} must be whole numbers, as its null {null} is; got {checks.got(value)}. Call .long()."
        )
    if _is_nan(null) and not tensor.is_floating_point() and isinstance(value, Tensor):
        raise ValueError(
            f"condition {name!r} must be floating: its null is NaN, which {tensor.dtype} cannot hold. Call .float()."
        )


def _is_nan(null: Any) -> bool:
    return isinstance(null, float) and math.isnan(null)


def _rows(name: str, value: Any, null: Any, x: Tensor) -> Tensor:
    dtype = x.dtype if _is_nan(null) and not isinstance(value, Tensor) else None  # Python's 3 among floats is 3.0
    rows: Tensor = _one_for_all(kept_at(torch.as_tensor(value, dtype=dtype), x.device), x)
    if len(rows) != len(x):
        raise ValueError(
            f"condition {name!r} has {len(rows)} rows but x has {len(x)} samples; give one row each, (B, ...), or "
            "a single one for all, (1, ...)."
        )
    return rows
