"""The conditions of a batch: whether the network knows them, and which rows are trained without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.data import Dataset
from scoresde.train.batches import MapDataset
from scoresde.train.draws import named_uniforms

Dropout = float | Mapping[str, float]
"""Probability of a null condition: a number for all of a row together, or one by name for each on its own."""


def check_conditions(
    dataset: MapDataset, conditions: Sequence[str], nulls: Mapping[str, Any], label_dropout: Dropout | None
) -> None:
    """Raise unless the samples hold the network's conditions, within its range of classes.

    Raises:
        ValueError: a condition is missing, there are too many classes, or what label_dropout is to drop is not there
            or has no null value.
    """
    sample = dataset[0]
    missing = [name for name in conditions if name not in sample]
    if missing:
        raise ValueError(f"the network takes the conditions {list(conditions)}, but samples hold only {sorted(sample)}."
                         f" {_way_out(missing, conditions)}")  # fmt: skip
    _check_dropped(conditions, nulls, label_dropout)
    classes, null = getattr(dataset, "num_classes", None), nulls.get("label")
    if "label" in conditions and isinstance(classes, int) and isinstance(null, int) and classes > null:
        raise ValueError(
            f"the data have {classes} classes but the network was built for {null}; give it num_classes={classes}."
        )


def _way_out(missing: Sequence[str], conditions: Sequence[str]) -> str:
    if list(missing) == ["label"] == list(conditions):
        return "Give the data set labels, or build the network without them (num_classes=None)."
    given = ", ".join("labels" if name == "label" else f"conditions={{{name!r}: ...}}" for name in missing)
    fewer = [name for name in conditions if name not in missing]
    return f"Give the data set {given} (from_tensors), or train without: conditions={fewer}."


def _check_dropped(conditions: Sequence[str], nulls: Mapping[str, Any], label_dropout: Dropout | None) -> None:
    if isinstance(label_dropout, Mapping):
        unknown = [name for name in label_dropout if name not in conditions]
        if unknown:
            raise ValueError(
                f"label_dropout names {', '.join(map(repr, unknown))}, but the conditions in training are "
                f"{list(conditions)}. Correct the name, or leave it out."
            )
        without = [name for name, probability in label_dropout.items() if probability and name not in nulls]
    elif label_dropout and not any(name in nulls for name in conditions):
        without = list(conditions) or ["label"]
    else:
        without = []
    if without:
        raise ValueError(
            f"label_dropout={label_dropout} needs a null value for {', '.join(without)}: give the network an attribute "
            "null_conditions such as {'label': num_classes, 'low': float('nan')}, or leave label_dropout out."
        )


def check_labels(labels: Tensor, classes: object, step: int, *, null: bool) -> None:
    """Raise unless labels on the CPU lie in the range of the network: on a GPU they would stop it without a word.

    Args:
        labels: of one batch.
        classes: their number; nothing is checked where it is not a number.
        step: for the message, counted from 1.
        null: whether the number after the last class is one, too: "no class".

    Raises:
        ValueError: some do not.
    """
    if not isinstance(classes, int) or labels.device.type != "cpu" or labels.is_floating_point() or not labels.numel():
        return
    low, high = (int(end) for end in labels.aminmax())
    if low < 0 or high > classes - (not null):
        raise ValueError(
            f"the labels of step {step} run from {low} to {high}, but the network was built for {classes} classes, 0 "
            f"to {classes - 1}. Correct the data set, or build the network with num_classes={max(high, 0) + 1}."
        )


def vocabularies(net: object, names: Sequence[str]) -> dict[str, int]:
    """How many words each of these conditions may use, where they are captions and the network tells.

    It tells by ``net.conditions.captions``, a mapping of names to what has a whole number ``vocabulary``.
    """
    captions = getattr(getattr(net, "conditions", None), "captions", None)
    if not isinstance(captions, Mapping):
        return {}
    sizes = {name: getattr(captions[name], "vocabulary", None) for name in names if name in captions}
    return {name: size for name, size in sizes.items() if isinstance(size, int)}


def check_captions(given: Mapping[str, Tensor], words: Mapping[str, int], where: str) -> None:
    """Raise unless tokens on the CPU lie in the network's vocabularies: on a GPU they would stop it without a word.

    Args:
        given: tensors by name, captions among them.
        words: size of each vocabulary, by the names of the captions.
        where: for the message.

    Raises:
        ValueError: some do not.
    """
    for name, most in words.items():
        tokens = given.get(name)
        if tokens is None or tokens.device.type != "cpu" or tokens.is_floating_point() or not tokens.numel():
            continue
        low, high = (int(end) for end in tokens.aminmax())
        if low < 0 or high > most:
            raise ValueError(
                f"the tokens of {name} in {where} run from {low} to {high}, but the network was built for a vocabulary "
                f"of {most}: 1 to {most} for words and 0 for padding. Encode the captions with the Vocabulary that the "
                f"network was built for, or build it for the data's: captions={{{name!r}: {{'vocabulary': "
                f"{max(high, 1)}, ...}}}}."
            )


def check_all_captions(dataset: MapDataset, words: Mapping[str, int]) -> None:
    """``check_captions`` for all samples of a data set that has them in memory; of others the batches are checked."""
    if isinstance(dataset, Dataset):
        check_captions(dataset.conditions, words, "the data set")


def dropped_rows(
    label_dropout: Dropout, names: Sequence[str], uniforms: Tensor, *, seed: int, step: int
) -> dict[str, Tensor]:
    """Which rows (batch_size,) of the global batch lose which condition.

    Args:
        label_dropout: a number drops all ``names`` of a row together; a mapping drops each on its own.
        names: of the conditions that have a null value.
        uniforms: (batch_size,), what a number is compared with.
        seed, step: a mapping is compared with uniforms of its own, which belong to (seed, step, name, row).
    """
    if not isinstance(label_dropout, Mapping):
        return dict.fromkeys(names, uniforms < label_dropout) if label_dropout > 0 else {}
    return {
        name: named_uniforms(seed, step, len(uniforms), f"label dropout of {name}") < probability
        for name, probability in label_dropout.items()
        if probability > 0
    }


def drop_conditions(
    conditions: Mapping[str, Tensor], nulls: Mapping[str, Any], dropped: Tensor | Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The conditions with null values in the rows where ``dropped`` (B,) is true.

    Ho & Salimans 2022 (arXiv:2207.12598), algorithm 1: one network learns the conditional and the unconditional score.

    Args:
        conditions: (B, ...) each.
        nulls: what stands for "not given", by name: a number, or what expands to the condition's shape. NaN for
            floating conditions. Conditions that are not here are left as they are.
        dropped: one for all conditions of a row together, or by name; a name that is missing loses none.

    Raises:
        ValueError: a null that is a fraction or NaN for a condition of integers, or one of another shape.
    """
    by_name = dropped if isinstance(dropped, Mapping) else dict.fromkeys(nulls, dropped)
    return {
        name: _with_null(name, value, nulls[name], by_name[name]) if name in nulls and name in by_name else value
        for name, value in conditions.items()
    }


def _with_null(name: str, value: Tensor, null: Any, rows: Tensor) -> Tensor:
    """One condition with its null in some rows, in its own dtype."""
    mask = rows.reshape(-1, *[1] * (value.ndim - 1))
    given = torch.as_tensor(null)
    converted = given.to(value.dtype)
    if given.is_floating_point() and not value.is_floating_point() and not bool((given == converted).all()):
        raise ValueError(
            f"the null of {name!r} is {null}, but its values are {value.dtype}, which cannot hold that. Whole-number "
            "conditions need a whole-number null in the network's null_conditions (0 for tokens), or store "
            f"{name!r} as floats."
        )
    if converted.ndim == 0:
        return value.masked_fill(mask, converted.item())
    try:
        return torch.where(mask, converted.to(value.device).expand(value.shape), value)
    except RuntimeError as error:
        raise ValueError(
            f"the null of {name!r} has shape {tuple(given.shape)}, which does not expand to one condition "
            f"{tuple(value.shape[1:])}."
        ) from error
