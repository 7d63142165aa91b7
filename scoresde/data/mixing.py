"""One data set of several, each with its share of what training sees::

    both = mix([subject, prior], weights=[1.0, 1.0])      # 4 pictures of a subject, 200 of its class: half and half

The mean loss over such a set is Σ w_k (mean loss over set k) / Σ w_k, so that the weights are those of the losses: with
one of a subject and λ of generated pictures of its class, it is the loss with prior preservation of DreamBooth (Ruiz et
al. 2022, arXiv:2208.12242, equation 2) divided by 1 + λ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.data.dataset import Dataset

MOST_MIXED = 2**31
"""Samples of a mixed set."""


def mix(datasets: Sequence[Dataset], weights: Sequence[float]) -> Dataset:
    """All samples of several sets, those of each repeated until set k has the share w_k / Σ w of the whole.

    Each sample of a set occurs as often as any other of it, or once more; all occur at least once. Shares are met to
    one sample.

    Args:
        datasets: of samples of one shape, with the same scaling, classes, conditions and vocabularies. Of these one may
            go on where another ends, as after :func:`scoresde.nn.learn_words`; the mixed set has the longest.
        weights: w_k > 0, one for each.

    Raises:
        TypeError: no data sets, or no numbers.
        ValueError: another number of weights, a weight that is not positive, or sets that do not go together.
    """
    if not isinstance(datasets, (list, tuple)) or not datasets:
        raise TypeError(f"datasets must be a list of data sets, got {checks.got(datasets)}.")
    for i, one in enumerate(datasets):
        checks.instance(one, Dataset, name=f"datasets[{i}]", hint="scoresde.data.from_tensors makes one.")
    shares = [checks.positive(w, name=f"weights[{i}]") for i, w in enumerate(checks.numbers(weights, name="weights"))]
    if len(shares) != len(datasets):
        raise ValueError(f"weights must be one for each of the {len(datasets)} datasets, got {checks.got(weights)}.")
    first = datasets[0]
    for i, other in enumerate(datasets[1:], start=1):
        _check_together(first, other, i)
    total = max(len(one) / share for one, share in zip(datasets, shares, strict=True)) * sum(shares)
    if total > MOST_MIXED:
        raise ValueError(
            f"weights must lie nearer together: {shares} repeat samples until there are {total:.3g}; the most is "
            f"{MOST_MIXED}."
        )
    counts = [max(len(one), round(total * w / sum(shares))) for one, w in zip(datasets, shares, strict=True)]
    rows = [torch.arange(count) % len(one) for one, count in zip(datasets, counts, strict=True)]

    def joined(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part[row] for part, row in zip(parts, rows, strict=True)])

    label = None if first.label is None else joined([_labels(one) for one in datasets])
    conditions = {name: joined([one.conditions[name] for one in datasets]) for name in first.conditions}
    told: Any = first.condition_scalings, _vocabularies(datasets)
    return Dataset(joined([one.data for one in datasets]), label, first.scaling, first.class_names, conditions, *told)


def _labels(dataset: Dataset) -> Tensor:
    assert dataset.label is not None
    return dataset.label


def _vocabularies(datasets: Sequence[Dataset]) -> dict[str, Any]:
    """By the name of the condition the longest, which the others must be the beginning of: their tokens mean the same.

    Raises:
        ValueError: another one.
    """
    found: dict[str, Any] = {}
    for name in datasets[0].vocabularies:
        every = [one.vocabularies[name] for one in datasets]
        longest = max(every, key=lambda one: len(one.words))
        for i, one in enumerate(every):
            size, most = len(one.words), len(longest.words)
            if one != longest and (size == most or one.words != longest.words[:size]):
                raise ValueError(
                    f"datasets must go together, and the vocabulary of {name} in datasets[{i}], of {size} words, is "
                    f"not the beginning of the longest, of {most}: encode all captions by one vocabulary."
                )
        found[name] = longest
    return found


def _check_together(first: Dataset, other: Dataset, index: int) -> None:
    """Raise unless samples of both can be in one batch and mean the same there."""

    def kinds(one: Dataset) -> dict[str, Any]:
        return {name: (tuple(value.shape[1:]), value.dtype) for name, value in one.conditions.items()}

    told = {
        "event shape": (first.event_shape, other.event_shape),
        "stored dtype": (first.data.dtype, other.data.dtype),
        "scaling": (first.scaling, other.scaling),
        "class names": (first.class_names, other.class_names),
        "conditions": (kinds(first), kinds(other)),
        "condition scalings": (first.condition_scalings, other.condition_scalings),
        "vocabularies": (sorted(first.vocabularies), sorted(other.vocabularies)),
    }
    for what, (mine, theirs) in told.items():
        if mine != theirs:
            raise ValueError(
                f"datasets must go together, and datasets[{index}], {checks.got(other)}, has another {what} than the "
                f"first: {theirs}, expected {mine}."
            )
