"""One network under several sets of conditions, evaluated in one call: what classifier-free guidances share."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.score import ScoreModel


@dataclass(frozen=True, eq=False)
class Branches:
    """A ScoreModel and what each branch gives it. What one branch gives and another does not is the latter's null.

    Args:
        model: the model.
        given: for each branch, its conditions by name: tensors (B, ...), (1, ...), or a number for the whole batch.
        nulls: what stands for "not given", by name, of a shape that broadcasts to the condition's.
    """

    model: ScoreModel
    given: tuple[Mapping[str, Any], ...]
    nulls: Mapping[str, Any]

    def __call__(self, x: Tensor, t: Tensor, which: Sequence[int]) -> list[Tensor]:
        """Scores of some branches, from one call.

        Args:
            x: (B, *event).
            t: () or (B,).
            which: the branches; for each its index, for all samples.

        Returns:
            one score (B, *event) for each.
        """
        return self.some(x, t, dict.fromkeys(which))

    def some(self, x: Tensor, t: Tensor, rows: Mapping[int, Tensor | None]) -> list[Tensor]:
        """The same for the samples ``rows[i]`` of branch i alone, an index (n_i,), or None for all: (n_i, *event)."""
        conditions, time = self.conditions(x), torch.as_tensor(t)

        def joined(parts: list[Tensor]) -> Tensor:
            taken = [p if i is None else p[i.to(p.device)] for p, i in zip(parts, rows.values(), strict=True)]
            return taken[0] if len(taken) == 1 else torch.cat(taken)

        n = len(rows)
        stacked = joined([x] * n)
        scores = self.model(
            stacked,
            joined([time] * n) if time.ndim else time,
            **{name: joined([conditions[i][name] for i in rows]) for name in conditions[0]},
        )
        return list(scores.split([len(x) if i is None else len(i) for i in rows.values()]))

    def conditions(self, x: Tensor) -> list[dict[str, Tensor]]:
        """The conditions of each branch, with a row for each sample of x."""
        found: list[dict[str, Tensor]] = [{} for _ in self.given]
        for name in dict.fromkeys(name for given in self.given for name in given):
            rows = {
                i: _rows(name, given[name], self.nulls.get(name), x)
                for i, given in enumerate(self.given)
                if name in given
            }
            like = next(iter(rows.values()))
            for other in rows.values():
                if other.shape != like.shape:
                    raise ValueError(
                        f"condition {name!r} must have one shape in all terms to share a network call; got "
                        f"{tuple(like.shape)} and {tuple(other.shape)}. Pad or resize them to one."
                    )
            for i, branch in enumerate(found):
                branch[name] = rows[i] if i in rows else _null_rows(name, self.nulls[name], like)
        return found


def branches(model: ScoreModel, given: Sequence[Mapping[str, Any]], null: Any, *, what: str) -> Branches:
    """:class:`Branches` after all checks that need no x.

    Raises:
        TypeError: not a ScoreModel.
        ValueError: no condition, one that the network does not take, a null condition missing or of another kind.
    """
    if not isinstance(model, ScoreModel):
        raise TypeError(f"{what} needs a ScoreModel, not bound, to give it several conditions; got {type(model)}.")
    names = list(dict.fromkeys(name for one in given for name in one))
    if not names:
        raise ValueError(f"{what} needs a condition, e.g. label=y.")
    wanted = [name for name in names if any(name not in one for one in given)]
    _known(model, names)
    nulls = _nulls(model, null, wanted, names, what)
    for one in given:
        for name, value in one.items():
            _fits(name, value, nulls.get(name))
    return Branches(model, tuple(dict(one) for one in given), nulls)


def _nulls(model: ScoreModel, null: Any, wanted: list[str], names: list[str], what: str) -> Mapping[str, Any]:
    if null is None:
        null = getattr(model.net, "null_conditions", None)
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
        raise ValueError(f"no null condition for {', '.join(missing)}; null has {', '.join(null) or 'none'}.")
    return {name: null[name] for name in names if name in null}


def _known(model: ScoreModel, names: list[str]) -> None:
    """Each name is one that the network takes, as far as that can be read: its null_conditions, or its signature."""
    parameters = _parameters(model)
    if parameters is None:
        return
    known = taken_by(model)
    unknown = [name for name in names if name not in known]
    # With **conditions a network's null_conditions say which; a plain function's names are not to be known.
    own = isinstance(getattr(model.net, "null_conditions", None), Mapping)
    if unknown and (known if own else not any(p.kind in _STARS for p in parameters)):
        raise ValueError(f"the network takes no condition {', '.join(unknown)}; it takes {', '.join(known) or 'none'}.")


def taken_by(model: ScoreModel) -> list[str]:
    """The names of the network's conditions, as far as they can be read: its null_conditions and its signature."""
    own = getattr(model.net, "null_conditions", None)
    known = list(own) if isinstance(own, Mapping) else []
    further = (p.name for p in _parameters(model) or () if p.kind not in _STARS)
    return known + [name for name in further if name not in known]


def _parameters(model: ScoreModel) -> list[inspect.Parameter] | None:
    """Those of the network after (x, c)."""
    try:
        return list(inspect.signature(getattr(model.net, "forward", model.net)).parameters.values())[2:]
    except (TypeError, ValueError):
        return None


_STARS = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def _fits(name: str, value: Any, null: Any) -> None:
    """A condition is numbers, and of the kind of its null: a null of NaN marks floats, a whole number integers."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"condition {name!r} must be a tensor (B, ...) or a number, got {type(value).__name__}. Encode words "
            "first, e.g. Vocabulary(words).encode(sentences, length)."
        ) from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"condition {name!r} must be real numbers, got {tensor.dtype}; call .float() or .long().")
    if isinstance(null, int) and not isinstance(null, bool) and tensor.is_floating_point():
        raise ValueError(
            f"condition {name!r} must be whole numbers, as its null {null} is; got {tensor.dtype}. Call .long()."
        )
    if _is_nan(null) and not tensor.is_floating_point() and isinstance(value, Tensor):
        raise ValueError(
            f"condition {name!r} must be floating: its null is NaN, which {tensor.dtype} cannot hold. Call .float()."
        )


def _is_nan(null: Any) -> bool:
    return isinstance(null, float) and math.isnan(null)


def _rows(name: str, value: Any, null: Any, x: Tensor) -> Tensor:
    dtype = x.dtype if _is_nan(null) and not isinstance(value, Tensor) else None  # Python's 3 among floats is 3.0
    tensor, batch = torch.as_tensor(value, dtype=dtype, device=x.device), len(x)
    if tensor.ndim == 0:
        return tensor.expand(batch)
    if tensor.shape[0] == 1 and batch != 1:
        return tensor.expand(batch, *tensor.shape[1:])
    if tensor.shape[0] != batch:
        raise ValueError(
            f"condition {name!r} has {tensor.shape[0]} rows but x has {batch} samples; give one row each, (B, ...), or "
            "a single one for all, (1, ...)."
        )
    return tensor


def _null_rows(name: str, null: Any, like: Tensor) -> Tensor:
    null = torch.as_tensor(null, device=like.device).to(like.dtype)
    try:
        return null.expand(like.shape)
    except RuntimeError as error:
        raise ValueError(
            f"the null of {name!r} has shape {tuple(null.shape)}, which does not fit conditions {tuple(like.shape)}."
        ) from error
