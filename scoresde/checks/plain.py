"""Checks of plain values: numbers, whole numbers, flags, seeds, dtypes, devices, shapes, and fields of dataclasses.

Python's numbers, NumPy's and tensors of shape () are taken alike, everywhere; each check that changes the kind of what
it was given returns the plain value, which the caller goes on with.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Wanted = TypeVar("Wanted")


def got(value: object) -> str:
    """What came in, in words for a message: shape and dtype of a tensor or array, else the value, cut where long."""
    if isinstance(value, (Tensor, np.ndarray)):
        kind = "a tensor" if isinstance(value, Tensor) else "an array"
        text = f" holding {value.item()!r}" if not value.ndim and not getattr(value, "is_meta", False) else ""
        return f"{kind} {tuple(value.shape)} of {value.dtype}{text}"
    try:
        text = repr(value)
    except Exception:  # a repr of somebody else may fail: the message must not
        text = "an object without a repr"
    short = text if len(text) <= 80 else text[:77] + "..."
    return short if isinstance(value, (str, int, float, bool, type(None))) else f"{short} ({type(value).__name__})"


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
    if isinstance(value, Tensor) and not value.ndim and not value.is_complex() and value.dtype != torch.bool:
        return float(value.detach())
    if isinstance(value, (np.number, np.ndarray)) and not value.ndim and value.dtype.kind in "iuf":
        return float(value)
    raise TypeError(f"{name} must be a real number or a tensor of shape (), got {got(value)}.")


def positive(value: object, *, name: str) -> None:
    """A parameter that must be a finite number above zero."""
    given = number(value, name=name)
    if not (math.isfinite(given) and given > 0):
        raise ValueError(f"{name} must be positive and finite, got {given:g}.")


def not_negative(value: object, *, name: str) -> None:
    """A parameter that must be a finite number of at least zero."""
    given = number(value, name=name)
    if not (math.isfinite(given) and given >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {given:g}.")


def fraction(value: object, *, name: str) -> None:
    """A number from 0 to 1."""
    given = number(value, name=name)
    if not 0 <= given <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {given:g}.")


def whole(value: object, *, name: str, least: int | None = None, most: int | None = None) -> int:
    """A whole number of Python or NumPy, or a tensor () of one, as an int, from ``least`` to ``most``, both included.

    Raises:
        TypeError: no whole number; 3.0 is none, nor is True.
        ValueError: out of range.
    """
    found: int | None = None
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        found = int(value)
    elif isinstance(value, (Tensor, np.ndarray)) and not value.ndim and _of_whole_numbers(value):
        found = int(value.item())
    if found is None:
        raise TypeError(f"{name} must be a whole number{_range(least, most)}, got {got(value)}.")
    if (least is not None and found < least) or (most is not None and found > most):
        raise ValueError(f"{name} must be a whole number{_range(least, most)}, got {got(found)}.")
    return found


def count(value: object, *, name: str, least: int = 1, most: int | None = None) -> int:
    """A whole number of at least ``least``, as an int. Raises as :func:`whole`."""
    return whole(value, name=name, least=least, most=most)


def _of_whole_numbers(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iu"
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)


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
    found = whole(value, name=name)
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
    if isinstance(value, (Tensor, np.ndarray)) and not value.ndim and value.dtype in (torch.bool, np.bool_):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {got(value)}.")


def dtype(value: object, *, name: str = "dtype") -> torch.dtype:
    """A real floating dtype of torch.

    Raises:
        TypeError: no torch.dtype, or one of whole or complex numbers.
    """
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
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
        if found.type not in ("cpu", "meta"):
            torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name} must be a device of this machine, got {got(value)}: {reason}") from error
    return found


def instance(value: object, kind: type[Wanted], *, name: str, hint: str = "") -> Wanted:
    """``value``, which must be a ``kind``.

    Raises:
        TypeError: it is not; ``hint`` says how one is made.
    """
    if not isinstance(value, kind):
        word = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise TypeError(f"{name} must be {word} {kind.__name__}, got {got(value)}.{' ' + hint if hint else ''}")
    return value


def function(value: object, *, name: str, what: str) -> None:
    """Something that can be called; ``what`` says with what, and what it answers.

    Raises:
        TypeError: it cannot.
    """
    if not callable(value):
        raise TypeError(f"{name} must be a function {what}, got {got(value)}.")


def one_of(value: object, allowed: Iterable[object], *, name: str) -> None:
    """One of a few texts or other plain values.

    Raises:
        ValueError: something else.
    """
    among = tuple(allowed)
    plain = isinstance(value, (str, int, float, type(None))) or callable(value)
    if not plain or not any(type(value) is type(one) and value == one for one in among):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, among))}; got {got(value)}.")


def shape(sizes: object, *, what: str = "(B, *event)", name: str = "shape") -> tuple[int, ...]:
    """A shape of whole numbers, Python's or NumPy's, with a first axis, as a tuple of ints.

    Raises:
        TypeError: no sequence of whole numbers.
        ValueError: empty, or with a negative size.
    """
    if not isinstance(sizes, (tuple, list, np.ndarray, Tensor)) or len(np.shape(sizes)) != 1:
        raise TypeError(f"{name} must be {what}, a tuple of whole numbers; got {got(sizes)}.")
    try:
        found = tuple(whole(size, name="a size", least=0) for size in sizes)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} must be {what}, whole numbers of at least 0; got {got(sizes)}.") from error
    if not found:
        raise ValueError(f"{name} must be {what}, with a first axis at least; got {got(sizes)}.")
    return found


def fields(options: Any) -> None:
    """Bring the fields of a frozen dataclass to the plain numbers and flags that their annotations name.

    A field of int takes a whole number, one of float a real number or tensor (), one of bool True or False, and one of
    Literal one of its values; with ``| None`` also None. NumPy's scalars become Python's. Ranges are the class's own.

    Raises:
        TypeError, ValueError: a field of another kind, or none of the values of its Literal.
    """
    cls: Any = type(options)
    for name, (kind, optional) in _plain_fields(cls).items():
        value = getattr(options, name)
        if value is None and optional:
            continue
        plain: object = value
        if kind is int:
            plain = whole(value, name=name)
        elif kind is bool:
            plain = flag(value, name=name)
        elif kind is float:
            number(value, name=name)
            plain = value.item() if isinstance(value, (np.number, np.ndarray)) else value
        else:
            one_of(value, kind, name=name)
        if plain is not value:
            object.__setattr__(options, name, plain)


@functools.cache
def _plain_fields(cls: type[Any]) -> dict[str, tuple[Any, bool]]:
    """For each field that is a number, a flag or a choice: which, and whether it may be None."""
    hints, found = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        parts = typing.get_args(hints[field.name]) if _is_union(hints[field.name]) else (hints[field.name],)
        kinds = [part for part in parts if part is not type(None)]
        if len(kinds) != 1:
            continue
        (kind,) = kinds
        if kind in (int, float, bool):
            found[field.name] = (kind, len(parts) > 1)
        elif typing.get_origin(kind) is typing.Literal:
            found[field.name] = (typing.get_args(kind), len(parts) > 1)
    return found


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
