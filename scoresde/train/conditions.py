"""Whether a data set holds what a network is told: its conditions by name, within the network's range.

All else about conditions, their dropping in training among it, is in :mod:`scoresde.models.conditions`::

    check_conditions(dataset, ["label", "size"], nulls_of(net), dropout=0.1)   # they are there, and can be dropped
    check_all_values(dataset, kinds_of(net))                                   # labels and tokens are in range
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scoresde.data import Dataset
from scoresde.models.conditions import Condition, Dropout, check_droppable, check_values
from scoresde.train.batches import MapDataset


def check_conditions(
    dataset: MapDataset, names: Sequence[str], nulls: Mapping[str, Any], dropout: Dropout | None
) -> None:
    """Raise unless the samples hold the network's conditions, within its number of classes.

    Raises:
        ValueError: a condition is missing, there are too many classes, or what ``dropout`` is to drop is not there or
            has no null value.
    """
    sample = dataset[0]
    missing = [name for name in names if name not in sample]
    if missing:
        raise ValueError(f"the network takes the conditions {list(names)}, but samples hold only {sorted(sample)}."
                         f" {_way_out(missing, names)}")  # fmt: skip
    check_droppable(dropout, names, nulls)
    classes, null = getattr(dataset, "num_classes", None), nulls.get("label")
    if "label" in names and isinstance(classes, int) and isinstance(null, int) and classes > null:
        raise ValueError(
            f"the data have {classes} classes but the network was built for {null}; give it num_classes={classes}."
        )


def _way_out(missing: Sequence[str], names: Sequence[str]) -> str:
    if list(missing) == ["label"] == list(names):
        return "Give the data set labels, or build the network without them (num_classes=None)."
    given = ", ".join("labels" if name == "label" else f"conditions={{{name!r}: ...}}" for name in missing)
    fewer = [name for name in names if name not in missing]
    return f"Give the data set {given} (from_tensors), or train without: conditions={fewer}."


def check_all_values(dataset: MapDataset, kinds: Mapping[str, Condition]) -> None:
    """``check_values`` for all samples of a data set that has them in memory; of others the batches are checked."""
    if isinstance(dataset, Dataset):
        held = dataset.conditions if dataset.label is None else {**dataset.conditions, "label": dataset.label}
        check_values(kinds, held, "the data set")
