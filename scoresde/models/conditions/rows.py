"""What a condition may be called and hold: names, rows of NaN, and the form in which a data set stores it.

Any identifier is a name, except the network's own arguments in ``net(x, c, name=...)``. A row of NaN, or in a sequence
of embeddings a token of NaN, says "not given"; everything else is finite::

    check_name("scale")                                        # fine: nothing else is reserved
    known, absent = split_absent(value)                        # (B, ...) without NaN, and which rows (B,) were NaN
    stored = stored_conditions({"size": torch.rand(100, 2)}, 100)    # checked, float32 or int64, on the CPU
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scoresde import checks

_OWN = ("self", "x", "c")


def check_name(name: object) -> None:
    """Raise ValueError unless ``name`` can be a keyword of net(x, c, ...): an identifier that is not x, c or self."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(
            "the name of a condition must be a word, an identifier, as in net(x, c, size=...); got "
            f"{checks.got(name)} among the conditions."
        )
    if name in _OWN:
        raise ValueError(
            f"the name of a condition must not be {name!r}, which is the network's own argument in net(x, c, ...). "
            f"Choose another name than {', '.join(_OWN)}."
        )


def as_given(conditions: object, *, name: str = "conditions") -> Mapping[str, Any]:
    """The conditions of a call, by name; an empty mapping for None.

    Raises:
        TypeError: no mapping. ValueError: names that are no texts.
    """
    if conditions is None:
        return {}
    if conditions.__class__ is not dict and not isinstance(conditions, Mapping):
        raise TypeError(f'{name} must be a mapping by name, such as {{"label": y}}, got {checks.got(conditions)}.')
    for key in conditions:
        if not isinstance(key, str):
            check_name(key)
    return conditions


def check_rows(values: Tensor, name: str, *, tokens: bool = False) -> None:
    """Raise ValueError unless each row (B, ...), or each token (B, L, E), is finite, or NaN throughout.

    Values are looked at in main memory only.
    """
    if not values.numel() or not checks.readable(values):
        return
    rows = values.detach().flatten(0, 1) if tokens else values.detach().reshape(len(values), -1)
    bad = ~(rows.isfinite().all(1) | rows.isnan().all(1))
    if bad.any():
        whole, absent = ("token", "padding") if tokens else ("row", "not given")
        kinds = "infinite values" if rows.isinf().any() else f"NaN in part of a {whole}"
        samples = bad.reshape(len(values), -1).any(1).nonzero().flatten()[:5].tolist()
        raise ValueError(
            f"{name} holds {kinds}, first in samples {samples}; expected finite numbers, or NaN in the whole {whole}, "
            f'which says that it is "{absent}". Repair or drop these samples, or fill such a {whole} with float("nan").'
        )


def split_absent(value: Tensor, rank: int = 1) -> tuple[Tensor, Tensor]:
    """``value`` with 0 in the rows of NaN, and which rows these are.

    Args:
        value: (B, ...), or for tokens (B, L, E).
        rank: axes that count the rows: 1, or 2 for tokens.

    Returns:
        A tensor like ``value``, and a bool tensor (B,), or (B, L).

    Raises:
        TypeError, ValueError: no floating tensor, or one without so many axes.
    """
    rank = checks.count(rank, name="rank", most=checks.state(value, name="value").ndim)
    absent = value.isnan().flatten(rank).all(rank)
    return value.masked_fill(absent.reshape(absent.shape + (1,) * (value.ndim - rank)), 0), absent


def stored_conditions(conditions: Mapping[str, Tensor] | None, count: int) -> dict[str, Tensor]:
    """Conditions of ``count`` samples as a data set holds them: (count, ...) float32 or int64, on the CPU.

    Raises:
        TypeError: not tensors by name, or complex, boolean or uint8 ones.
        ValueError: a name that cannot be a keyword of a network, another number of rows, infinite values, or NaN in
            part of a row or token.
    """
    given, count = as_given(conditions), checks.count(count, name="count", least=0)
    return {name: _stored(name, value, count) for name, value in given.items()}


def _stored(name: str, value: Any, count: int) -> Tensor:
    check_name(name)
    if not isinstance(value, Tensor):
        raise TypeError(f"condition {name!r} must be a torch.Tensor (N, ...), got {checks.got(value)}.")
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(
            f"condition {name!r} must be real floating or integer, got {value.dtype}; a mask converts by .float()."
        )
    if value.dtype == torch.uint8:
        raise TypeError(
            f"condition {name!r} is uint8, which says nothing of its units. Scale an image, "
            "Scaling.to_unit_range(256).to_model(image), and pass token or class numbers as .long()."
        )
    if value.ndim == 0 or value.shape[0] != count:
        raise ValueError(
            f"condition {name!r} must have one row for each of the {count} samples, ({count}, ...), got shape "
            f"{tuple(value.shape)}."
        )
    value = value.detach().cpu()
    value = value.float() if value.is_floating_point() else value.long()
    if value.is_floating_point():
        check_rows(value, f"condition {name!r}", tokens=value.ndim == 3)
    return value.contiguous()
