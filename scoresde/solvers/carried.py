"""What a run carries from step to step, as a tree: its tensors can be found and replaced, all else stays.

    state = {"past": (x, y), "count": 2}
    tensors(state)                             # [x, y]
    mapped(state, lambda t: t[rows])           # the same of some samples

For whoever handles the states of solvers from outside: checkpoints, particles that are copied and dropped, counts of
what is kept.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, enum.Enum, np.generic, torch.dtype,
          torch.device, torch.Size)  # fmt: skip


def mapped(node: Any, change: Callable[[Tensor], Tensor], fixed: Collection[int] = ()) -> Any:
    """The tree with each tensor t replaced by change(t), in a fixed order; containers are new ones.

    Args:
        node: tensors, numbers and strings in tuples, lists, deques, dicts and dataclasses.
        change: a function of a tensor.
        fixed: ids of the nodes that are left as they are, with all below them.

    Raises:
        TypeError: an object of another kind, which could hide a tensor.
    """
    if isinstance(node, _PLAIN) or id(node) in fixed:
        return node
    if isinstance(node, Tensor):
        return change(node)
    if isinstance(node, tuple):
        parts = [mapped(part, change, fixed) for part in node]
        return type(node)(*parts) if hasattr(node, "_fields") else tuple(parts)
    if isinstance(node, (list, deque)):
        parts = [mapped(part, change, fixed) for part in node]
        other = copy.copy(node)
        other.clear()
        other.extend(parts)
        return other
    if isinstance(node, dict):
        items = {key: mapped(part, change, fixed) for key, part in node.items()}
        twin = copy.copy(node)
        twin.update(items)
        return twin
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        whole = copy.copy(node)
        for field in dataclasses.fields(node):
            object.__setattr__(whole, field.name, mapped(getattr(node, field.name), change, fixed))
        return whole
    raise TypeError(
        f"the state that a step returned holds a {type(node).__name__}; with checkpoint, a state is tensors, numbers "
        "and strings in tuples, lists, dicts or dataclasses, so that its gradients can be followed."
    )


def tensors(node: Any, fixed: Collection[int] = ()) -> list[Tensor]:
    """The tensors of the tree, in the order of :func:`mapped`."""
    found: list[Tensor] = []

    def note(t: Tensor) -> Tensor:
        found.append(t)
        return t

    mapped(node, note, fixed)
    return found


def nodes(node: Any) -> list[Any]:
    """The node and all below it that :func:`mapped` would enter, objects of other kinds included."""
    below: list[Any] = []
    if isinstance(node, (tuple, list, deque)):
        below = list(node)
    elif isinstance(node, dict):
        below = list(node.values())
    elif dataclasses.is_dataclass(node) and not isinstance(node, type):
        below = [getattr(node, field.name) for field in dataclasses.fields(node)]
    return [node, *(found for part in below for found in nodes(part))]


def contents(node: Any) -> list[int]:
    """What can tell a change in place: lengths and members of all containers, versions of all tensors."""
    return [
        entry
        for part in nodes(node)
        for entry in ((id(part), part._version) if isinstance(part, Tensor) else (id(part),))
    ]
