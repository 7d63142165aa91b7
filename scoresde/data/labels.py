"""Classes from labels: their numbers, 0 ... K - 1, and their names::

    classes_of(4, torch.tensor([0, 2, 1, 0]), None, None)      # as they are, named "0", "1", "2"
    classes_of(3, torch.tensor([5, 70000, 5]), None, None)     # 0, 1, 0, named "5" and "70000": a warning says so
    classes_of(3, torch.tensor([5, 7, 5]), 10, None)           # as they are; a warning names those without samples

:data:`MOST_CLASSES` bounds their number, since a network has a vector for each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from scoresde import checks
from scoresde.data.source import listed
from scoresde.warning import warn_user

MOST_CLASSES = 100_000
"""Classes of one data set at most: a network has a vector for each."""


def classes_of(
    count: int, label: Tensor | None, num_classes: int | None, class_names: Sequence[str] | None
) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Labels as (N,) int64 in [0, K), and a name for each of the K classes; None and None without labels.

    The classes are those that ``num_classes`` or ``class_names`` counts; labels then are class numbers and stay as they
    are. Otherwise the classes are the values that occur, in increasing order: where these are not 0 ... K - 1, labels
    are numbered anew, and the classes named by the values.

    Raises:
        TypeError: labels that are no tensor of whole numbers, or other things for numbers and names of classes.
        ValueError: labels of another length or out of range, more than ``MOST_CLASSES`` classes, names of another
            number, or classes without labels.
    """
    if label is None:
        if num_classes is not None or class_names is not None:
            raise ValueError("classes are given but there are no labels; give label (N,) or leave the classes out.")
        return None, None
    if not isinstance(label, Tensor):
        raise TypeError(f"label must be a torch.Tensor (N,), got {checks.got(label)}; use torch.as_tensor(label).")
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {label.dtype}; class numbers convert by label.long().")
    if label.shape != (count,):
        raise ValueError(f"label must be one integer per sample, ({count},), got shape {tuple(label.shape)}.")
    if num_classes is not None:
        num_classes = checks.count(num_classes, name="num_classes", most=MOST_CLASSES)
    names = None if class_names is None else _names(class_names, num_classes)
    label = label.detach().cpu().long()
    total = num_classes if names is None else len(names)
    low, high = (int(v) for v in label.aminmax())
    if low < 0 or (total is not None and high >= total):
        raise ValueError(
            f"labels must lie in [0, {'number of classes' if total is None else total}), got values in [{low}, {high}]."
            " Negative labels usually mean 'unknown': drop those samples, or leave label out."
        )
    values = label.unique()
    if total is None:
        if len(values) > MOST_CLASSES:
            raise ValueError(
                f"label holds {len(values)} different values; at most {MOST_CLASSES} classes are supported. "
                "If they number the samples, or are amounts, they are no classes: leave label out, or give them as "
                "floating conditions."
            )
        return _numbered(label, values)
    if len(values) < total:
        present = set(values.tolist())
        absent = [str(i) if names is None else f"{i} ({names[i]})" for i in range(total) if i not in present]
        warn_user(f"classes without a sample, of which nothing can be learnt, {listed(absent)}.")
    return label, tuple(map(str, range(total))) if names is None else names


def _names(given: Sequence[str], num_classes: int | None) -> tuple[str, ...]:
    if isinstance(given, (str, bytes)) or not isinstance(given, (Sequence, np.ndarray)):
        raise TypeError(f"class_names must be a sequence of names, got {checks.got(given)}.")
    count = len(given)
    if num_classes is not None and count != num_classes:
        raise ValueError(
            f"class_names must be one for each class: got {list(given)!r:.80} for num_classes={num_classes}."
        )
    if not 1 <= count <= MOST_CLASSES:
        raise ValueError(f"class_names must hold from 1 to {MOST_CLASSES} names, got {count}.")
    return tuple(map(str, given))


def _numbered(label: Tensor, values: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    names = tuple(map(str, values.tolist()))
    if int(values[-1]) == len(values) - 1:  # different, from 0 on: 0 ... K - 1
        return label, names
    warn_user(
        f"labels are not 0 ... K - 1: the {len(values)} values that occur were numbered from 0 on, in their order, and "
        f"name the classes ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''}). If they are class numbers, of "
        "which some have no sample, give num_classes."
    )
    return torch.searchsorted(values, label), names
