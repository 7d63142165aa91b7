"""The modules and parameters behind a score, wherever they are held.

:func:`modules_of` finds every ``nn.Module`` through bound conditions, guidances, dataclasses, partials and bound
methods; :func:`parameters_of` lists their parameters, each once, and :func:`dtype_behind` the dtype of the first::

    guided = classifier_free(model, {"label": y}, scale=2.0)
    modules_of(guided), parameters_of(guided)

Solvers use them to find the device of a score and the parameters of the adjoint method. What a plain function or a
lambda has closed over is not seen by them; :func:`modules_used` looks there as well.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType

import torch
from torch import Tensor, nn

from scoresde.sde import SDE

# Where an object that is no dataclass may hold a module; the last four are functools.partial's and a bound method's.
_HOLDERS = ("score", "model", "net", "log_prob", "classifier", "func", "args", "keywords", "__self__")

_PLAIN = (Tensor, SDE, torch.Generator, str, bytes, int, float, complex, ModuleType, type)
_MOST = 10_000  # entries of a container that may hold a module; longer ones are data


def modules_of(score: object) -> tuple[nn.Module, ...]:
    """Every module behind a score: its model's, a classifier's, through bound conditions and guidance.

    Looks into the fields of dataclasses (such as the library's own guidances), ``functools.partial``, bound methods,
    containers, and attributes called score, model, net, log_prob or classifier. Not seen: what a plain function or a
    lambda has closed over; make such a function an ``nn.Module``, or an object with one of these attributes.
    """
    return _found([score], everywhere=False)


def modules_used(*parts: object) -> tuple[nn.Module, ...]:
    """Every module that calling any of ``parts`` may run: those of :func:`modules_of`, and further ones.

    These are what functions and lambdas have closed over, name among their globals or have as defaults, and what other
    objects hold in any attribute.
    """
    return _found(parts, everywhere=True)


def _found(parts: Iterable[object], *, everywhere: bool) -> tuple[nn.Module, ...]:
    found: dict[int, nn.Module] = {}
    seen: dict[int, object] = {}  # held, so that no number is given to another object meanwhile
    stack = list(parts)[::-1]
    while stack:
        part = stack.pop()
        if part is None or isinstance(part, _PLAIN) or id(part) in seen:
            continue
        seen[id(part)] = part
        if isinstance(part, nn.Module):
            found[id(part)] = part
        stack.extend(list(_inside(part, everywhere))[::-1])
    return tuple(found.values())


def _inside(part: object, everywhere: bool) -> Iterator[object]:
    """What an object holds and may call."""
    if isinstance(part, (Mapping, tuple, list, set, frozenset)):
        if len(part) <= _MOST:
            yield from part.values() if isinstance(part, Mapping) else part
        return
    names = [field.name for field in dataclasses.fields(part)] if dataclasses.is_dataclass(part) else []
    own = getattr(part, "__dict__", {})
    for name in (*names, *_HOLDERS):
        # of a stranger no attribute is asked for that it does not have: it might make one up
        if not everywhere or isinstance(part, nn.Module) or name in own or hasattr(type(part), name):
            yield getattr(part, name, None)
    if not everywhere:
        return
    if isinstance(part, FunctionType):
        yield from _closed_over(part)
    elif isinstance(part, MethodType):
        yield part.__func__
    elif not isinstance(part, nn.Module):
        yield from list(own.values())


def _closed_over(function: FunctionType) -> Iterator[object]:
    """What a function of a user's can reach: its cells, its defaults, and what it calls among its globals."""
    top = (function.__module__ or "").partition(".")[0]
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not yet assigned
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    if top in ("torch", "scoresde", "numpy") or top in sys.stdlib_module_names - {"__main__"}:
        return
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        if callable(value):
            yield value


def _names(code: CodeType) -> Iterator[str]:
    """The names that a function looks up, those of functions inside it as well."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def parameters_of(score: object) -> tuple[nn.Parameter, ...]:
    """The parameters of :func:`modules_of`, each once."""
    return tuple({id(p): p for module in modules_of(score) for p in module.parameters()}.values())


def dtype_behind(function: object) -> torch.dtype | None:
    """That of the first floating parameter of :func:`parameters_of`; None where there is none."""
    return next((p.dtype for p in parameters_of(function) if p.is_floating_point()), None)
