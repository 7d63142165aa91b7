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
import functools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
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
# Whose functions and classes name no network of a user's, though their objects may be networks.
_LIBRARIES = frozenset(
    ("torch", "scoresde", "numpy", "accelerate", "diffusers", "huggingface_hub", "peft", "transformers")
)
_WHERE_INSTALLED = frozenset(("site-packages", "dist-packages"))
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
    unregistered, in a list or a dict of its own, or calls in a hook. Functions and classes of installed packages are
    not looked into, but for packages that a score's own functions and networks come from: all that a script has
    imported would take half a second. Not seen: what only an iterator or compiled code holds, and what is further away
    than some ten thousand other objects, as whoever holds a whole program reaches.
    """
    own = _owners(parts)
    return _found(parts, lambda part: _anywhere_inside(part, own), deque.extend)  # the nearest first


def _owners(parts: Iterable[object]) -> set[str]:
    """The packages that the functions and objects come from which scores hold where they are to hold them."""
    own: set[str] = set()

    def inside(part: object) -> Iterator[object]:
        own.add(_package(part if isinstance(part, (FunctionType, type)) else type(part)))
        yield from _inside(part)

    _found(parts, inside, deque.extend)
    return own


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


def _anywhere_inside(part: object, own: set[str]) -> Iterator[object]:
    """What an object holds and may call; packages of networks become ``own``."""
    if isinstance(part, (dict, *_LISTS)):  # another mapping may read its values from a file when asked for them
        if len(part) <= _MOST:
            yield from part.values() if isinstance(part, dict) else part
    elif isinstance(part, FunctionType):
        yield from _closed_over(part, own)
    elif isinstance(part, type):
        if not _is_librarys(part.__module__, own):
            yield from vars(part).values()
            yield from (*part.__mro__[1:], type(part))
    elif isinstance(part, nn.Module):
        yield from part.children()
        held = vars(part)
        yield from [held[name] for name in held.keys() - _OF_MODULES]
        for name in _HOOKS:
            yield from (held.get(name) or {}).values()
        own.add(_package(type(part)))
        yield type(part)
    else:
        # of a stranger no attribute is asked for that it does not have: it might make one up
        held = _stored(part)
        for name in (*_fields(part), *_HOLDERS, "__func__", "fget"):
            if name in held or hasattr(type(part), name):
                yield getattr(part, name, None)
        yield from list(held.values())
        yield type(part)


def _stored(part: object) -> dict[str, object]:
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


def _package(part: FunctionType | type) -> str:
    """The outermost package of a function or class; of a descriptor's module it may be anything."""
    module = part.__module__
    return module.partition(".")[0] if isinstance(module, str) else ""


def _is_librarys(module: object, own: set[str]) -> bool:
    """Whether a function or class of this module calls no network of a user's."""
    top = module.partition(".")[0] if isinstance(module, str) else ""
    return _is_known(top) or (top not in own and _installed(top))


def _is_known(package: str) -> bool:
    """Whether there is no network of a user's in it for sure."""
    return package in _LIBRARIES or package in sys.stdlib_module_names - {"__main__"}


@functools.cache
def _installed(package: str) -> bool:
    """Whether it lies where packages are installed, and not in a user's own folder."""
    file = getattr(sys.modules.get(package), "__file__", None)
    return file is not None and not _WHERE_INSTALLED.isdisjoint(Path(file).parts)


def _closed_over(function: FunctionType, own: set[str]) -> Iterator[object]:
    """What a function of a user's can reach: its cells, its defaults, and what it names among its globals."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not yet assigned
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    if _is_librarys(function.__module__, own):
        return
    names = set(_names(function.__code__))
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        if isinstance(value, ModuleType):
            if not _is_known(value.__name__.partition(".")[0]):  # what a user's function names there may be its network
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
