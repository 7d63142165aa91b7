"""A learned schedule whose parameters lie on a device, as the host sees it while samples are drawn.

Solvers ask for α and σ as numbers, at every step. Worked out beside their parameters, each would have to be read back,
and host and device would wait for one another. So within a run, and outside of gradients, such an SDE is asked through
a copy in main memory, which is made in that run and forgotten when it ends. ::

    asked = twin(sde)
"""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.checks.lasting import without_graph
from scoresde.checks.later import of_this_run


def answered_elsewhere(sde: Any) -> None:
    """This SDE has answered from another device than it was asked from: in the rest of the run it has a `twin`."""
    kept = of_this_run()
    if kept is not None:
        kept.setdefault(_key(sde), (sde, None))


def twin(sde: Any) -> Any:
    """The copy in main memory of such an SDE; itself where it has none, or where gradients may be wanted of it."""
    kept = of_this_run()
    if not kept or _key(sde) not in kept:
        return sde
    if torch.is_grad_enabled() and any(one.requires_grad for one in _held(sde)):
        return sde
    _, made = kept[_key(sde)]
    if made is None:
        made = _copied(sde)
        kept[_key(sde)] = sde, made
    return made


def _key(sde: Any) -> tuple[str, int]:
    return "twin", id(sde)  # what is kept holds on to it, so that no other object has its id


def _copied(sde: Any) -> Any:
    """The copy; itself where it holds more than parameters, buffers and numbers, which a copy might miss."""
    if not _is_plain(sde):
        return sde
    held = list(_held(sde))
    memo: dict[int, Any] = {id(one): one.detach().cpu() for one in held}
    with without_graph():
        try:
            made = copy.deepcopy(sde, memo)
        except Exception:  # what cannot be copied is asked where it is
            return sde
    reached = [one for one in memo.get(id(memo), ()) if isinstance(one, Tensor)]
    return sde if any(one.requires_grad or not one.is_cpu for one in reached) else made


_PLAIN = (Tensor, nn.Module, int, float, str, type(None), types.FunctionType, types.BuiltinFunctionType, tuple)


def _is_plain(part: Any) -> bool:
    """Whether what it computes with is where `_held` looks: not so for a method of another object."""
    if dataclasses.is_dataclass(part) and not isinstance(part, (type, nn.Module)):
        return all(_is_plain(getattr(part, field.name, None)) for field in dataclasses.fields(part))
    return isinstance(part, _PLAIN) and getattr(part, "__self__", None) is None


def first_parameter(holder: Any) -> Tensor | None:
    """Of a module, or among the fields of a dataclass; None where there is none, which is asked of a dataclass once."""
    if not isinstance(holder, nn.Module) and not dataclasses.is_dataclass(holder):
        return None
    if _NONE in vars(holder):
        return None
    first = next(_held(holder), None)
    if first is None and not isinstance(holder, nn.Module):
        object.__setattr__(holder, _NONE, True)
    return first


_NONE = "_holds_no_parameter"


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
