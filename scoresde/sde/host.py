"""A learned schedule whose parameters lie on a device, as the host sees it while samples are drawn.

Solvers ask for α and σ as numbers, at every step. Worked out beside their parameters, each would have to be read back,
and host and device would wait for one another. So outside of gradients such an SDE is asked through a copy in main
memory, which is made when it is first asked, and anew when a parameter has changed::

    asked = twin(sde) if where(sde) else sde
"""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.checks.lasting import without_graph

Seen = tuple[tuple[int, int], ...]

_twins: dict[int, tuple[weakref.ref[Any], Seen, Any]] = {}
"""By the identity of an SDE whose answers came from elsewhere: the SDE, its parameters as they were, and its copy."""


def answered_elsewhere(sde: Any) -> None:
    """This SDE has answered from another device than it was asked from: from now on it has a :func:`twin`."""
    key = id(sde)
    if key not in _twins:
        _twins[key] = weakref.ref(sde, lambda _: _twins.pop(key, None)), (), None


def twin(sde: Any) -> Any:
    """The copy in main memory of a remembered SDE; itself where it is none, or where gradients may be wanted of it."""
    if not _twins or id(sde) not in _twins:
        return sde
    held = list(_held(sde))
    if torch.is_grad_enabled() and any(one.requires_grad for one in held):
        return sde
    whose, before, made = _twins[id(sde)]
    seen = tuple((one.data_ptr(), one._version) for one in held)
    if made is None or seen != before:
        with without_graph():
            made = copy.deepcopy(sde, {id(one): one.detach().cpu() for one in held})
        _twins[id(sde)] = whose, seen, made
    return made


def first_parameter(holder: Any) -> Tensor | None:
    """Of a module, or among the fields of a dataclass; None where there is none, which is asked of a dataclass once."""
    if not isinstance(holder, nn.Module) and not dataclasses.is_dataclass(holder):
        return None
    if _PLAIN in vars(holder):
        return None
    first = next(_held(holder), None)
    if first is None and not isinstance(holder, nn.Module):
        object.__setattr__(holder, _PLAIN, True)
    return first


_PLAIN = "_holds_no_parameter"


def _held(part: Any) -> Iterator[Tensor]:
    """Parameters and buffers of a module, and of what the fields of a dataclass hold, and dataclasses there."""
    if isinstance(part, nn.Module):
        yield from part.parameters()
        yield from part.buffers()
    elif isinstance(part, Tensor):
        yield part
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        for field in dataclasses.fields(part):
            yield from _held(getattr(part, field.name, None))
