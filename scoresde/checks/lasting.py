"""Tensors that are made when they are first wanted and kept: they belong to no mode of whoever asked first.

What is made under ``torch.inference_mode`` cannot be saved for a gradient later, what is made under autograd keeps a
graph that is gone after one backward pass, and under ``torch.device(...)`` it would lie on that device. So whatever is
kept is made by one of these::

    @lru_cache
    @lasting
    def nodes(points: int) -> Tensor: ...

    class Blur:
        @lasting_property                         # a cached_property
        def _spectrum(self) -> Tensor: ...

    y = outlasting(y)                             # a tensor that is given, without the mode it was made under
    y = kept_at(y, x.device, x.dtype)             # y.to(...), whose copy is kept for the next time
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, ParamSpec, TypeVar, overload

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from scoresde.checks.tensors import followed, sent

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def without_graph() -> Iterator[None]:
    """Neither autograd nor inference mode: what is made inside can take part in gradients later."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def lasting(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function whose answer is kept: it runs in no mode, and makes its tensors on the CPU by default."""

    @functools.wraps(function)
    def made(*args: P.args, **kwargs: P.kwargs) -> R:
        with without_graph(), torch.device("cpu"):
            return function(*args, **kwargs)

    return made


class lasting_property(Generic[R]):
    """A ``functools.cached_property`` of tensors, kept unless a gradient flows through them, and then made anew.

    So nothing is lost where the object's own tensors require a gradient, and nobody meets a graph that is used up.
    """

    def __init__(self, function: Callable[[Any], R]) -> None:
        self._function, self._name = function, function.__name__
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> lasting_property[R]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> R: ...
    def __get__(self, instance: object | None, owner: type) -> Any:
        if instance is None:
            return self
        kept = vars(instance)  # found there first from now on: this is no data descriptor
        with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
            value = self._function(instance)
        parts = value if isinstance(value, tuple) else (value,)
        if any(isinstance(part, Tensor) and part.requires_grad for part in parts):
            return self._function(instance)
        kept[self._name] = value
        return value


_copies: Any = WeakTensorKeyDictionary()
"""By the tensor: the number of changes that it had seen in place when it was copied, and the copies."""


def kept_at(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """``x.to(device, dtype)`` for what every step of a run asks for: the copy of a tensor that lies elsewhere is kept.

    For as long as the tensor lives, and until it is changed in place. Where a derivative is taken of x nothing is kept.
    """
    dtype = x.dtype if dtype is None else dtype
    if x.device == device or followed(x) or x.is_inference():
        return sent(x, device, dtype)
    version, copies = _copies.get(x, (None, None))
    if version != x._version:
        version, copies = x._version, {}
        _copies[x] = version, copies
    if (device, dtype) not in copies:
        with without_graph():
            copies[device, dtype] = sent(x, device, dtype)
    return copies[device, dtype]


def outlasting(x: Tensor) -> Tensor:
    """``x``, or a copy of a tensor that was made under ``torch.inference_mode``, which takes part in gradients."""
    if not x.is_inference():
        return x
    with torch.inference_mode(False):
        return x.clone()
