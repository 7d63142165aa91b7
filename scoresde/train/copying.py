"""A copy of a network that was in use, whatever it has come to hold::

    averaged = copied(model)                                # parameters and buffers of its own

:func:`copy.deepcopy` gives up at a feature that a forward pass left behind in an attribute, which is how weight
normalisation by hooks works, and at a lock. :func:`~scoresde.train.ema_model` copies by this.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

Copied = TypeVar("Copied", bound=nn.Module)


def copied(model: Copied, made: Mapping[int, Any] | None = None) -> Copied:
    """A deep copy. Tensors that a forward pass computed and left in it are detached; what no program can copy, a lock
    or an open file, is shared with the original.

    Args:
        model: the network.
        made: what stands for some parts of it in the copy, by the id of the original.

    Raises:
        TypeError: an attribute that cannot be copied and must not be shared, such as a generator; it is named.
    """
    try:
        return copy.deepcopy(model, dict(made or {}))
    except Exception:  # of whatever class of a user's own
        pass
    try:
        return copy.deepcopy(model, {**_made_already(model), **(made or {})})
    except Exception as error:
        raise TypeError(
            f"the network cannot be copied, as ema_model() must: {_culprit(model)} ({error}). Keep it outside of the "
            "network, make it when it is needed, or give its class a method __deepcopy__."
        ) from error


def _made_already(model: nn.Module) -> dict[int, Any]:
    """What ``deepcopy`` is not to make itself, by the id of the original."""
    made: dict[int, Any] = {}
    seen: set[int] = set()
    waiting: list[object] = [model]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, Tensor):
            if not part.is_leaf:
                made[id(part)] = part.detach().clone()
        elif isinstance(part, Mapping):
            waiting.extend(part.values())
        elif isinstance(part, (list, tuple, set, frozenset)):
            waiting.extend(part)
        elif _has_no_copy(part):
            made[id(part)] = part
        elif not isinstance(part, type):
            waiting.extend(getattr(part, "__dict__", {}).values())
    return made


def _has_no_copy(part: object) -> bool:
    """Whether it is no data: neither copied nor pickled by any means, and without a place that moves when it is used.

    An open file has such a place, but reads from where it is told to; a generator is used up.
    """
    if callable(part) or hasattr(part, "__deepcopy__") or (isinstance(part, Iterator) and not hasattr(part, "fileno")):
        return False
    try:
        part.__reduce_ex__(4)
    except TypeError:
        return True
    except Exception:  # then deepcopy says why
        return False
    return False


def _culprit(model: nn.Module) -> str:
    """The first attribute that cannot be copied on its own, in words."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                copy.deepcopy(value, _made_already_in(value))
            except Exception:
                return f"its attribute {f'{path}.{name}'.lstrip('.')} is a {type(value).__name__}"
    return f"{type(model).__name__} refuses"


def _made_already_in(value: object) -> dict[int, Any]:
    holder = nn.Module()
    holder.__dict__["value"] = value
    return _made_already(holder)
