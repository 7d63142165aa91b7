"""Which samples an index means, as NumPy and torch read it: numbers, slices, ranges, sequences and masks::

    which(torch.tensor([True, False, True]), 3)     # tensor([0, 2])
    which([-1, 0], 3)                               # tensor([2, 0])
    which(slice(None, None, -1), 3)                 # tensor([2, 1, 0]), which a tensor by itself refuses
    which(np.int64(-1), 3)                          # 2, a number: one sample

What these two read differently, or not at all, is refused: bytes (to torch a mask, to NumPy numbers), floating numbers,
several axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scoresde import checks

Index = Tensor | npt.NDArray[Any] | Sequence[int] | Sequence[bool] | slice
"""Of several samples: positions (n,), negative ones counted from the end, a mask (N,), or a slice."""

_HOW = "give positions (n,) of integers, a mask (N,) of booleans, or a slice"


def which(index: object, count: int, *, name: str = "index") -> int | slice | Tensor:
    """The places, from 0 to count - 1, that ``index`` means: a number for one, else int64 (n,).

    A slice that goes forwards stays one, so that what it cuts out is not copied.

    Raises:
        TypeError: neither whole numbers nor booleans.
        IndexError: out of range, a mask of another length, more axes than one.
    """
    if isinstance(index, tuple) and len(index) == 1 and isinstance(index[0], (Tensor, np.ndarray)):
        index = index[0]  # what where() and nonzero() of NumPy and torch answer for one axis
    if isinstance(index, slice):
        part = _of_whole_numbers(index, name)
        forwards = part.step is None or part.step > 0
        return part if forwards else torch.tensor(range(count)[part], dtype=torch.int64)
    if isinstance(index, int) and not isinstance(index, bool) and not -count <= index < count:
        raise _outside(index, count, name)  # whatever its size: NumPy's numbers end at 64 bits
    if isinstance(index, (Tensor, np.ndarray)) or not isinstance(index, Sequence):
        array = _array(index, name)
    else:
        array = _of_sequence(index, name)
    if array.ndim > 1:
        raise IndexError(f"{name} has shape {array.shape}, and samples lie along one axis: {_HOW}.")
    if array.dtype.kind == "b":
        return torch.from_numpy(_mask(array, count, name).nonzero()[0])
    outside = (array < -count) | (array >= count)
    if outside.any():
        raise _outside(array[outside].flat[0] if array.ndim else array, count, name)
    places = np.where(array < 0, array.astype(np.int64) + count, array.astype(np.int64))
    return torch.from_numpy(places) if places.ndim else int(places)


def several(index: object, count: int, *, name: str = "index") -> slice | Tensor:
    """:func:`which`, of an index that may not be a single number.

    Raises:
        TypeError: also for a number, with which an axis would be lost.
    """
    places = which(index, count, name=name)
    if isinstance(places, int):
        raise TypeError(f"{name} must say which samples, got the number {places}: for one of them write [{places}].")
    return places


def _array(index: object, name: str) -> npt.NDArray[Any]:
    """A tensor, an array, a number, or what NumPy reads as one."""
    if isinstance(index, Tensor):
        if index.dtype == torch.uint8:
            raise TypeError(
                f"{name} is a tensor of uint8, to torch a mask and to NumPy positions: call .bool() or .long()."
            )
        if index.is_complex() or index.is_floating_point():
            raise TypeError(f"{name} holds {index.dtype}: {_HOW}; positions convert by .long().")
        array = index.detach().cpu().numpy()
    else:
        known = isinstance(index, (np.ndarray, np.generic, int)) or hasattr(index, "__array__")
        array = np.asarray(index if known else None)
    if array.dtype.kind not in "iub" or (array.dtype.kind == "b" and not array.ndim):
        raise TypeError(f"{name} cannot be {checks.got(index)}: {_HOW}.")
    return array


def _of_sequence(index: Any, name: str) -> npt.NDArray[Any]:
    """A list, tuple, range or the like, of numbers or of booleans."""
    if isinstance(index, (str, bytes)):
        raise TypeError(f"{name} cannot be {checks.got(index)}: {_HOW}.")
    if isinstance(index, range):
        return np.asarray(index, dtype=np.int64)
    try:
        masks = {isinstance(one, (bool, np.bool_)) or getattr(one, "dtype", None) == torch.bool for one in index}
        if masks == {True}:
            return np.array([checks.flag(one, name=name) for one in index], dtype=bool)
        # a mixture is refused: True among numbers is not sample 1
        return np.array([checks.whole(one, name=name) for one in index], dtype=np.int64)
    except TypeError as error:
        nested = any(np.ndim(one) for one in index if isinstance(one, (list, tuple, np.ndarray, Tensor)))
        if nested:
            raise IndexError(f"{name} is nested, and samples lie along one axis: {_HOW}.") from error
        raise TypeError(f"{name} cannot be {checks.got(index)}: {_HOW}.") from error
    except ValueError as error:
        raise IndexError(f"{name} holds numbers beyond 64 bits: {checks.got(index)}.") from error


def _outside(place: object, count: int, name: str) -> IndexError:
    return IndexError(f"{name} asks for sample {place} of a data set of {count}: expected {-count} to {count - 1}.")


def _mask(array: npt.NDArray[Any], count: int, name: str) -> npt.NDArray[Any]:
    if len(array) != count:
        raise IndexError(f"{name} is a mask of {len(array)} for a data set of {count}: expected one for each sample.")
    return array


def _of_whole_numbers(index: slice, name: str) -> slice:
    """The slice with Python's numbers, for NumPy's and tensors'."""
    parts = (index.start, index.stop, index.step)
    start, stop, step = (None if part is None else checks.whole(part, name=f"a part of {name}") for part in parts)
    if step == 0:
        raise ValueError(f"{name} is a slice with step 0; the step must be at least 1, or negative.")
    return slice(start, stop, step)
