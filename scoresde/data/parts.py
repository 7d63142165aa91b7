"""Data sets that torch made of others, ``Subset`` and ``ConcatDataset``: they tell nothing of units and classes, and
what they are made of does::

    training, held = random_split(from_tensors(x), [900, 100])
    chosen(training)                                        # a scoresde.data.Dataset of those samples
    teller(ConcatDataset([mine, others])).scaling           # that of all parts, if they agree

Without it a model that learned from a part would not know the units of its samples.
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import ConcatDataset, Subset
from torch.utils.data import Dataset as TorchDataset

from scoresde import checks
from scoresde.data.dataset import Dataset
from scoresde.data.huggingface import of_kind

TOLD = ("scaling", "event_shape", "class_names", "num_classes", "condition_scalings", "vocabularies")
"""What data sets tell of themselves."""


def chosen(data: Any) -> Any:
    """A ``Subset`` of a data set of ours, or of Hugging Face's, as a data set of that kind; all else as it is."""
    if type(data) is not Subset:
        return data
    whole = chosen(data.dataset)
    if type(whole) is Dataset:
        return whole.subset(list(data.indices))
    return whole.select(data.indices) if of_kind(whole, "Dataset") else data


def teller(data: Any) -> Any:
    """The data set that tells of the samples of ``data``: itself, or one of those that it is made of.

    Raises:
        ValueError: its parts are in different units, or have different classes.
    """
    if any(getattr(data, name, None) is not None for name in TOLD):
        return data
    if isinstance(data, Subset):
        return teller(data.dataset)
    if not isinstance(data, ConcatDataset) or not data.datasets:
        return data
    first, *others = [teller(part) for part in data.datasets]
    for other in others:
        for name in TOLD:
            mine, theirs = getattr(first, name, None) or None, getattr(other, name, None) or None
            if mine != theirs:
                raise ValueError(
                    f"the parts of a ConcatDataset tell of different {name}, {checks.got(mine)} and "
                    f"{checks.got(theirs)}: make one data set of all, from_tensors(torch.cat(...)), or give the second "
                    "the units of the first, from_tensors(..., scaling=first.scaling)."
                )
    return first


class Told(TorchDataset[Any]):
    """A data set with random access, and what its parts tell.

    Args:
        dataset: ``len(dataset)`` and ``dataset[i]``.
        source: tells.
    """

    def __init__(self, dataset: Any, source: Any) -> None:
        self._dataset = dataset
        for name in TOLD:
            if getattr(source, name, None) is not None:
                setattr(self, name, getattr(source, name))

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        many = getattr(self._dataset, "__getitems__", None)
        return [self._dataset[i] for i in indices] if many is None else list(many(indices))
