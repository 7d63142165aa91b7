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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MemberDescriptorType, ModuleType

import torch
from torch import Tensor, nn

from scoresde.sde import SDE

# Where an object that is no dataclass may hold a module; the last four are functools.partial's and a bound method's.
_HOLDERS = ("score", "model", "net", "log_prob", "classifier", "func", "args", "keywords", "__self__")

_PLAIN = (Tensor, SDE, torch.Generator, str, bytes, int, float, complex, ModuleType)
_LISTS = (tuple, list, set, frozenset, deque)
# What a module has of torch: its children are asked for, its tensors and options hold no module. Hooks may.
_OF_MODULES = frozenset(
    name
    for module in (nn.Module(), nn.Linear(1, 1), nn.Conv2d(1, 1, 1), nn.GroupNorm(1, 1), nn.Dropout())
    for name in vars(module)
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# Whose functions and classes name no network of a user's; to go through all that theirs name takes half a second.
_LIBRARIES = frozenset(
    ("torch", "scoresde", "numpy", "accelerate", "diffusers", "huggingface_hub", "peft", "transformers")
)
_MOST = 10_000  # entries of a container that may hold a module; longer ones are data
_SEEN_AT_MOST = 50_000  # objects that are no modules, half a second; the nearest come first


def modules_of(score: object) -> tuple[nn.Module, ...]:
    """Every module behind a score: its model's, a classifier's, through bound conditions and guidance.

    Looks into the fields of dataclasses (such as the library's own guidances), ``functools.partial``, bound methods,
    containers, and attributes called score, model, net, log_prob or classifier. Not seen: what a plain function or a
    lambda has closed over; make such a function an ``nn.Module``, or an object with one of these attributes.
    """
    # depth first: a model's own modules come before those of its guidance
    return _found([score], _inside, lambda waiting, more: waiting.extendleft(reversed(more)))


def modules_used(*parts: object) -> tuple[nn.Module, ...]:
    """Every module that calling any of ``parts`` may run, and those inside them.

    Besides those of :func:`modules_of` these are what functions and lambdas have closed over, name among their globals
    or have as defaults; what objects hold in any attribute or slot, and their classes; and what a module holds
    unregistered, in a list or a dict of its own, or calls in a hook. Not seen: what only an iterator or compiled code
    holds, and what is further away than some ten thousand other objects, as whoever holds a whole program reaches.
    """
    return _found(parts, _anywhere_inside, deque.extend)  # the nearest first


def _found(
    parts: Iterable[object],
    inside: Callable[[object], Iterator[object]],
    wait: Callable[[deque[object], list[object]], None],
) -> tuple[nn.Module, ...]:
    """The modules among the parts and what is inside them, in the order in which what is inside waits."""
    found: dict[int, nn.Module] = {}
    seen: dict[int, object] = {}  # held, so that no number is given to another object meanwhile
    waiting = deque(parts)
    while waiting and len(seen) - len(found) < _SEEN_AT_MOST:
        part = waiting.popleft()
        if part is None or isinstance(part, _PLAIN) or id(part) in seen:
            continue
        seen[id(part)] = part
        if isinstance(part, nn.Module):
            found[id(part)] = part
        wait(waiting, list(inside(part)))
    return tuple(found.values())


def _inside(part: object) -> Iterator[object]:
    """What an object holds where a score is to hold it."""
    if isinstance(part, (Mapping, *_LISTS)):
        if len(part) <= _MOST:
            yield from part.values() if isinstance(part, Mapping) else part
        return
    for name in (*_fields(part), *_HOLDERS):
        yield getattr(part, name, None)


def _fields(part: object) -> list[str]:
    return [field.name for field in dataclasses.fields(part)] if dataclasses.is_dataclass(part) else []


def _anywhere_inside(part: object) -> Iterator[object]:
    """What an object holds and may call."""
    if isinstance(part, (dict, *_LISTS)):  # another mapping may read its values from a file when asked for them
        if len(part) <= _MOST:
            yield from part.values() if isinstance(part, dict) else part
    elif isinstance(part, FunctionType):
        yield from _closed_over(part)
    elif isinstance(part, type):
        if not _is_librarys(part.__module__):
            yield from vars(part).values()
            yield from (*part.__mro__[1:], type(part))
    elif isinstance(part, nn.Module):
        yield from part.children()
        own = vars(part)
        yield from [own[name] for name in own.keys() - _OF_MODULES]
        for name in _HOOKS:
            yield from (own.get(name) or {}).values()
        yield type(part)
    else:
        # of a stranger no attribute is asked for that it does not have: it might make one up
        own = _own(part)
        for name in (*_fields(part), *_HOLDERS, "__func__", "fget"):
            if name in own or hasattr(type(part), name):
                yield getattr(part, name, None)
        yield from list(own.values())
        yield type(part)


def _own(part: object) -> dict[str, object]:
    """The attributes that are stored on an object, in its ``__dict__`` and its slots."""
    try:
        own = dict(object.__getattribute__(part, "__dict__"))
    except AttributeError:
        own = {}
    for cls in type(part).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if isinstance(cls.__dict__.get(name), MemberDescriptorType) and hasattr(part, name):
                own[name] = getattr(part, name)
    return own


def _is_librarys(module: object) -> bool:
    """Whether a function or class of this module calls no network of a user's; of a descriptor it may be anything."""
    top = module.partition(".")[0] if isinstance(module, str) else ""
    return top in _LIBRARIES or top in sys.stdlib_module_names - {"__main__"}


def _closed_over(function: FunctionType) -> Iterator[object]:
    """What a function of a user's can reach: its cells, its defaults, and what it names among its globals."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not yet assigned
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    if _is_librarys(function.__module__):
        return
    names = set(_names(function.__code__))
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        if isinstance(value, ModuleType):
            if not _is_librarys(value.__name__):
                yield from [vars(value)[other] for other in names & vars(value).keys()]
        else:
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
