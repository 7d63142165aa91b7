"""Checks of plain values: numbers, whole numbers, flags, seeds, dtypes, devices, shapes, and fields of dataclasses.

Python's numbers, NumPy's and tensors of shape () are taken alike, everywhere; each check that changes the kind of what
it was given returns the plain value, which the caller goes on with.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

Wanted = TypeVar("Wanted")

MOST_NUMBERS = 2**48
"""In one tensor: a thousand times the memory of any machine."""


def got(value: object) -> str:
    """What came in, in words for a message: shape and dtype of a tensor or array, else the value, cut where long."""
    if isinstance(value, (Tensor, np.ndarray)):
        if isinstance(value, Tensor) and value.is_nested:
            return f"a nested tensor of {value.dtype} (Tensor)"  # which has no shape
        kind = "a tensor" if isinstance(value, Tensor) else "an array"
        return f"{kind} {tuple(value.shape)} of {value.dtype}{_content(value)}"
    if isinstance(value, torch.nn.Module):  # whose repr lists its layers
        return f"a module ({type(value).__name__})"
    try:
        text = repr(value)
    except Exception:  # a repr of somebody else may fail: the message must not
        text = "an object without a repr"
    short = text if len(text) <= 80 else text[:77] + "..."
    return short if isinstance(value, (str, int, float, bool, type(None))) else f"{short} ({type(value).__name__})"


def _content(value: Any) -> str:
    if value.ndim:
        return ""
    try:
        return f" holding {value.item()!r}"
    except (RuntimeError, NotImplementedError):  # of no memory, or inside a transform
        return ""


def number(value: object, *, name: str = "a parameter") -> float:
    """A parameter's value: a number of Python or NumPy, or a tensor () that may require a gradient.

    Raises:
        TypeError: no real number. Booleans and texts are none.
    """
    if isinstance(value, (float, int)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    if isinstance(value, Tensor) and _holds_number(value):
        return float(value.detach())
    if (
        isinstance(value, (np.number, np.ndarray))
        and not value.ndim
        and value.dtype.kind in "iuf"
        and not masked(value)
    ):
        return float(value)
    raise TypeError(f"{name} must be a real number or a tensor of shape (), got {got(value)}.")


def masked(value: object) -> bool:
    """Whether it is a masked array of NumPy: what stands under its mask is no number, though it reads as one."""
    return isinstance(value, np.ma.MaskedArray)


def _holds_number(value: Tensor) -> bool:
    """Whether a tensor is one real number that can be read."""
    return not (value.ndim or value.is_complex() or value.dtype == torch.bool or value.is_meta)


def positive(value: object, *, name: str) -> float:
    """A parameter that must be a finite number above zero, as a float."""
    given = number(value, name=name)
    if not (math.isfinite(given) and given > 0):
        raise ValueError(f"{name} must be positive and finite, got {given:g}.")
    return given


def not_negative(value: object, *, name: str) -> float:
    """A parameter that must be a finite number of at least zero, as a float."""
    given = number(value, name=name)
    if not (math.isfinite(given) and given >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {given:g}.")
    return given


def fraction(value: object, *, name: str) -> float:
    """A number from 0 to 1, as a float."""
    given = number(value, name=name)
    if not 0 <= given <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {given:g}.")
    return given


def whole(value: object, *, name: str, least: int | None = None, most: int | None = None) -> int:
    """A whole number of Python or NumPy, or a tensor () of one, as an int, from ``least`` to ``most``, both included.

    Raises:
        TypeError: no whole number; 3.0 is none, nor is True.
        ValueError: out of range; without ``most``, beyond the 64 bits that a tensor or an array can hold.
    """
    found = _integer(value)
    if found is None:
        raise TypeError(f"{name} must be a whole number{_range(least, most)}, got {got(value)}.")
    if (least is not None and found < least) or (most is not None and found > most):
        raise ValueError(f"{name} must be a whole number{_range(least, most)}, got {got(found)}.")
    if most is None and not -(2**63) <= found < 2**63:
        raise ValueError(f"{name} must be a whole number of 64 bits, got {got(found)}.")
    return found


def _integer(value: object) -> int | None:
    """A whole number of Python, NumPy or torch as an int; None for all else."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, (Tensor, np.ndarray)) and not value.ndim and _of_whole_numbers(value):
        return int(value.item())
    return None


def count(value: object, *, name: str, least: int = 1, most: int | None = None) -> int:
    """A whole number of at least ``least``, as an int. Raises as :func:`whole`."""
    return whole(value, name=name, least=least, most=most)


def _of_whole_numbers(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iu" and not masked(value)
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool or value.is_meta)


def _range(least: int | None, most: int | None) -> str:
    if most is None:
        return "" if least is None else f" of at least {least}"
    return f" of at most {most}" if least is None else f" from {least} to {most}"


def seed(value: object, *, name: str = "seed") -> int:
    """A seed: a whole number of 64 bits.

    Two that differ give different draws, so none is cut off to fit, as torch and a generator of 64 bits would.

    Raises:
        TypeError: no whole number. ValueError: below 0, or 2**64 or above.
    """
    found = _integer(value)
    if found is None:
        raise TypeError(f"{name} must be a whole number, got {got(value)}.")
    if not 0 <= found < 2**64:
        raise ValueError(f"{name} must be a whole number from 0 to 2**64 - 1, got {got(found)}.")
    return found


def flag(value: object, *, name: str) -> bool:
    """True or False, of Python or NumPy or as a tensor (); texts and numbers are neither, whatever their truth.

    Raises:
        TypeError: something else.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, np.ndarray) and not value.ndim and value.dtype == np.bool_:
        return bool(value)
    if isinstance(value, Tensor) and not value.ndim and value.dtype == torch.bool and not value.is_meta:
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {got(value)}.")


def dtype(value: object, *, name: str = "dtype") -> torch.dtype:
    """A real floating dtype of torch.

    Raises:
        TypeError: no torch.dtype, or one of whole or complex numbers.
    """
    if not isinstance(value, torch.dtype) or not value.is_floating_point or value.itemsize < 2:
        raise TypeError(f"{name} must be a floating dtype of torch such as torch.float32, got {got(value)}.")
    return value


def device(value: object, *, name: str = "device") -> torch.device:
    """A device that is there.

    Raises:
        TypeError: neither a torch.device nor the name or number of one.
        ValueError: torch knows no such device, or there is none on this machine.
    """
    number = whole(value, name=name, least=0) if isinstance(value, (np.integer, int)) else value
    if not isinstance(number, (torch.device, str, int)):
        raise TypeError(f'{name} must be a torch.device or its name, such as "cpu" or "cuda:0", got {got(value)}.')
    try:
        found = torch.device(number)
        if found.type != "cpu":
            torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name} must be a device of this machine, got {got(value)}: {reason}") from error
    if found.type == "meta":
        raise ValueError(f"{name} must be a device that holds values, got {got(value)}.")
    return found


def path(value: object, *, name: str = "path") -> Path:
    """The path of a file or folder, with the home folder for a ``~`` at its start, as a shell reads it.

    Raises:
        TypeError: neither a text nor a path. ValueError: an empty text, or one that no file can be called.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be the path of a file or folder, a text or pathlib.Path; got {got(value)}.")
    text = os.fspath(value)
    if not isinstance(text, str):
        raise TypeError(f"{name} must be the path of a file or folder, a text or pathlib.Path; got {got(value)}.")
    if not text or "\0" in text:
        raise ValueError(f"{name} must be the path of a file or folder, got {got(value)}; '.' is the present folder.")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~name of a user whom this machine does not have: a file may be called so
        return Path(text)


def instance(value: object, kind: Callable[..., Wanted], *, name: str, hint: str = "") -> Wanted:
    """``value``, which must be a ``kind``, a class that may be abstract.

    Raises:
        TypeError: it is not; ``hint`` says how one is made.
    """
    cls: Any = kind
    if not isinstance(value, cls):
        first = cls.__name__[:2]  # of an acronym its first letter is said: an SDE, an EMA, a VP
        word = "an" if first[0] in ("AEFHILMNORSX" if first.isupper() else "AEIOU") else "a"
        if isinstance(value, type) and issubclass(value, cls):
            hint = f"It is a class: call it, {value.__name__}(...)."
        raise TypeError(f"{name} must be {word} {cls.__name__}, got {got(value)}.{' ' + hint if hint else ''}")
    return cast("Wanted", value)


def numbers(values: object, *, name: str, what: str = "a list of numbers") -> tuple[float, ...]:
    """Real numbers in a list, tuple, array or tensor of one axis, as floats; ``what`` says which are meant.

    Raises:
        TypeError: something else. ValueError: NaN.
    """
    if not isinstance(values, (tuple, list, np.ndarray, Tensor)) or getattr(values, "ndim", 1) != 1:
        raise TypeError(f"{name} must be {what}; got {got(values)}.")
    try:
        found = tuple(number(value, name="an entry") for value in values)
    except TypeError as error:
        raise TypeError(f"{name} must be {what}; got {got(values)}.") from error
    if any(map(math.isnan, found)):
        raise ValueError(f"{name} must be {what}; got {got(values)}, with NaN.")
    return found


def function(value: object, *, name: str, what: str, takes: int = 0) -> None:
    """Something that can be called; ``what`` says with what, and what it answers.

    Args:
        value: what may be one.
        name: of the argument.
        what: for the message.
        takes: with how many arguments it will be called, where that is to be tried on its signature.

    Raises:
        TypeError: it cannot; or it is a class, whose call would make an object and no answer.
    """
    if not callable(value):
        raise TypeError(f"{name} must be a function {what}, got {got(value)}.")
    if isinstance(value, type):
        mend = "add its parentheses" if any("__call__" in base.__dict__ for base in value.__mro__) else "call no class"
        raise TypeError(f"{name} must be a function {what}, got the class {value.__name__}: {mend}.")
    if takes:
        try:
            signature = inspect.signature(value)
        except (TypeError, ValueError):  # of some functions written in C
            return
        try:
            signature.bind(*[None] * takes)
        except TypeError as error:
            raise TypeError(f"{name} must be a function {what}, got {got(value)}: {error}.") from error


def one_of(value: object, allowed: Iterable[object], *, name: str) -> Any:
    """One of a few texts or other plain values, which is answered; NumPy's texts and whole numbers are taken, too.

    Raises:
        ValueError: something else.
    """
    among = tuple(allowed)
    plain = value
    if isinstance(value, (np.integer, np.str_, np.bool_)) or (
        isinstance(value, (Tensor, np.ndarray)) and not value.ndim and _of_whole_numbers(value)
    ):
        plain = value.item()
    if isinstance(plain, (str, int, float, type(None))) or callable(plain):
        for one in among:
            if type(plain) is type(one) and plain == one:
                return one
    raise ValueError(f"{name} must be one of {', '.join(map(repr, among))}; got {got(value)}.")


def shape(sizes: object, *, what: str = "(B, *event)", name: str = "shape") -> tuple[int, ...]:
    """A shape of whole numbers, Python's or NumPy's, with a first axis, as a tuple of ints.

    Raises:
        TypeError: no sequence of whole numbers.
        ValueError: empty, or with a negative size.
    """
    if not isinstance(sizes, (tuple, list, np.ndarray, Tensor)) or getattr(sizes, "ndim", 1) != 1:
        raise TypeError(f"{name} must be {what}, a tuple of whole numbers; got {got(sizes)}.")
    try:
        found = tuple(whole(size, name="a size", least=0) for size in sizes)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} must be {what}, whole numbers of at least 0; got {got(sizes)}.") from error
    if not found:
        raise ValueError(f"{name} must be {what}, with a first axis at least; got {got(sizes)}.")
    if math.prod(found) > MOST_NUMBERS:
        raise ValueError(f"{name} must be {what}, of at most 2**48 numbers in all; got {got(sizes)}.")
    return found


def fields(options: Any) -> None:
    """Bring the fields of a frozen dataclass to the plain numbers and flags that their annotations name.

    A field of int takes a whole number, one of float a real number or tensor () that is not NaN, one of bool True or
    False, one of Literal one of its values, one of Callable what can be called, one of Mapping a mapping, and one of a
    class an object of it; with ``| None`` also None. NumPy's scalars become Python's. Ranges are the class's own.

    Raises:
        TypeError, ValueError: a field of another kind, none of the values of its Literal, or NaN.
    """
    if torch.compiler.is_compiling():  # a graph holds what was checked when it was not
        return
    cls: Any = type(options)
    for name, (check, optional) in _checked_fields(cls).items():
        value = getattr(options, name)
        if value is None and optional:
            continue
        plain = check(value, name.removeprefix("_"))
        if plain is not value:
            object.__setattr__(options, name, plain)


def _real_field(value: Any, name: str) -> object:
    given = number(value, name=name)
    if math.isnan(given):
        raise ValueError(f"{name} must be a number, got {got(value)}.")
    if math.isinf(given) and isinstance(value, int):
        raise ValueError(f"{name} must be a number that a float can hold, got {got(value)}.")
    return unboxed(value)


def unboxed(value: Any) -> Any:
    """NumPy's scalar as Python's, with which a tensor can be multiplied; all else, tensors too, as it is."""
    return value.item() if isinstance(value, (np.number, np.ndarray)) else value


def _function_field(value: Any, name: str) -> object:
    if not callable(value):  # a class may be what makes an object, too
        raise TypeError(f"{name} must be a function or another object that can be called, got {got(value)}.")
    return value


@functools.cache
def _checked_fields(cls: type[Any]) -> dict[str, tuple[Callable[[Any, str], object], bool]]:
    """For each field of which an annotation says enough: its check, and whether it may be None."""
    found = {}
    for field in dataclasses.fields(cls):
        hint = _hint(cls, field)
        parts = typing.get_args(hint) if _is_union(hint) else (hint,)
        kinds = [part for part in parts if part is not type(None)]
        check = _check_of(kinds[0]) if len(kinds) == 1 else None
        if check is not None and field.init:
            found[field.name] = (check, len(parts) > 1)
    return found


def _check_of(kind: Any) -> Callable[[Any, str], object] | None:
    """The check of a field by its annotation; None where that says too little."""
    plain: dict[Any, Callable[[Any, str], object]] = {
        int: lambda value, name: whole(value, name=name),
        bool: lambda value, name: flag(value, name=name),
        float: _real_field,
    }
    origin = typing.get_origin(kind)
    if origin is collections.abc.Callable:
        return _function_field
    if origin is typing.Literal:
        return lambda value, name: one_of(value, typing.get_args(kind), name=name)
    if kind in plain:
        return plain[kind]
    asked = origin if origin is collections.abc.Mapping else kind
    if asked in (Any, type(None)) or not isinstance(asked, type) or getattr(asked, "_is_protocol", False):
        return None
    return lambda value, name: instance(value, asked, name=name)


def _hint(cls: type[Any], field: dataclasses.Field[Any]) -> Any:
    """What a field is annotated with, read where the class stands that says it; None where that cannot be read."""
    owner = next(base for base in cls.__mro__ if field.name in inspect.get_annotations(base))
    alone = types.SimpleNamespace(__annotations__={field.name: field.type})
    try:
        return typing.get_type_hints(alone, vars(sys.modules[owner.__module__]))[field.name]
    except (NameError, KeyError, AttributeError, TypeError):  # of a class inside a function, or for type checkers alone
        return None


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
