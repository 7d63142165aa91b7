"""Dataset: tensors in memory, handed out in model units, and the checks on the way in.

:func:`from_tensors` checks the tensors and makes a :class:`Dataset`, which keeps them as they are stored and converts
a batch when it is asked for; :func:`random_flip` mirrors samples of a batch::

    dataset = from_tensors(x, label)                    # uint8 (N, C, H, W) -> [-1, 1]; floating data are standardised
    dataset[:8]                                         # {"x": (8, C, H, W), "label": (8,)}
    training, held = dataset.subset(slice(0, 900)), dataset.subset(slice(900, None))

What else belongs to each sample is given by name, ``conditions={"size": size}``, and comes with every batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from scoresde.data.scaling import Scaling
from scoresde.models.conditions import stored_conditions


class Dataset(TorchDataset[dict[str, Tensor]]):
    """Samples in memory, as stored (uint8 images stay uint8), converted when a batch is asked for.

    Build one with ``from_tensors`` or ``load``. ``dataset[i]`` is one sample, ``dataset[2:5]``,
    ``dataset[:]`` and ``dataset[[7, 1]]`` are batches; a torch DataLoader works as well::

        {"x": float32 (B, *event), in model units, "label": int64 (B,), where there are labels,
         and each further condition by its name, (B, ...)}

    Attributes:
        data: (N, *event) as stored.
        label: (N,) int64 in [0, num_classes), or None.
        scaling: the map from ``data`` to x.
        class_names: a name for each class, or None without labels.
        conditions: what else belongs to each sample, by name: (N, ...) float32 or int64, in the units of the network.
    """

    def __init__(
        self,
        data: Tensor,
        label: Tensor | None,
        scaling: Scaling,
        class_names: tuple[str, ...] | None,
        conditions: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.data = data
        self.label = label
        self.scaling = scaling
        self.class_names = class_names
        self.conditions: dict[str, Tensor] = dict(conditions or {})

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.data.shape[1:])

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None without labels."""
        return None if self.class_names is None else len(self.class_names)

    def __len__(self) -> int:
        return self.data.shape[0]

    def batch(self, indices: Tensor | Sequence[int] | slice) -> dict[str, Tensor]:
        """The samples at ``indices`` as one batch: one gather and one conversion for all."""
        where = indices if isinstance(indices, slice) else torch.as_tensor(indices, dtype=torch.int64)
        batch = {"x": self.scaling.to_model(self.data[where])}
        if self.label is not None:
            batch["label"] = self.label[where]
        batch.update({name: value[where] for name, value in self.conditions.items()})
        return batch

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> dict[str, Tensor]:
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"sample {index} of a data set of {len(self)}.")
            return {name: value[0] for name, value in self.batch([index]).items()}
        return self.batch(index)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        """The same samples one by one, as a torch DataLoader wants to collate them."""
        batch = self.batch(indices)
        return [{name: value[i] for name, value in batch.items()} for i in range(len(indices))]

    def subset(self, indices: Tensor | Sequence[int] | slice) -> Dataset:
        """A data set of some of the samples, with the same scaling, classes and conditions: for held-out data."""
        where = indices if isinstance(indices, slice) else torch.as_tensor(indices, dtype=torch.int64)
        data = self.data[where]
        if not len(data):
            raise ValueError("the subset would be empty.")
        label = None if self.label is None else self.label[where]
        conditions = {name: value[where] for name, value in self.conditions.items()}
        return Dataset(data, label, self.scaling, self.class_names, conditions)

    def __repr__(self) -> str:
        classes = "" if self.num_classes is None else f", {self.num_classes} classes"
        conditions = "".join(f", {name} {tuple(value.shape[1:])}" for name, value in self.conditions.items())
        return (
            f"Dataset({len(self)} samples {self.event_shape}, {self.data.dtype}{classes}{conditions}, {self.scaling})"
        )


def from_tensors(
    data: Tensor,
    label: Tensor | None = None,
    *,
    levels: int | None = None,
    scaling: Scaling | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    conditions: Mapping[str, Tensor] | None = None,
) -> Dataset:
    """A data set from tensors.

    Without ``scaling``: uint8 data are 256 levels mapped to [-1, 1]; with ``levels`` the data, integer or
    floating, are the whole numbers 0 ... levels - 1 mapped to [-1, 1]; other floating data are standardised.

    Args:
        data: (N, *event), integer or floating.
        label: (N,) integers in [0, num_classes).
        levels: number of levels of quantised data.
        scaling: the map to model units, instead of the rules above.
        num_classes: by default the number of class names, else the largest label plus 1.
        class_names: by default "0", "1", ....
        conditions: what else the network is told of each sample, by the name of its keyword: vectors (N, d), tokens
            (N, L), images (N, C, H, W). Floating ones are stored in float32 and integers in int64, both as they are:
            bring them to the network's units yourself, images by ``Scaling.to_unit_range(256).to_model(image)``.
            uint8 is refused, since it does not say whether it holds levels to be scaled or numbers of tokens.
            NaN in the whole row of a sample says that its condition is not given, and in a whole token of embeddings
            (N, L, E) that this is padding.

    Raises:
        TypeError: not tensors, complex or boolean data or conditions, labels that are not integers, uint8 conditions.
        ValueError: no samples, non-finite numbers, values that are not the stated levels, integers whose
            levels are not stated, labels out of range or of another length, names of another number; conditions of
            another length, called x or c or by no identifier, or with infinite values or NaN in part of a row or token.
    """
    if not isinstance(data, Tensor):
        raise TypeError(
            f"data must be a torch.Tensor (N, *event), got {type(data).__name__}; use torch.as_tensor(data)."
        )
    if data.is_complex() or data.dtype == torch.bool:
        raise TypeError(f"data must be integer or real floating, got {data.dtype}; use data.float().")
    if data.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch computes little in these
        data = data.long()
    if data.ndim < 2 or data.numel() == 0:
        raise ValueError(f"data must be (N, *event) with at least one sample, got shape {tuple(data.shape)}.")
    if data.is_floating_point():
        _check_finite(data)
    if levels is not None and scaling is not None and scaling.levels != levels:
        raise ValueError(f"levels={levels} contradicts scaling={scaling}; give one of them.")
    if scaling is None:
        scaling = _scaling(data, levels)
    if scaling.levels is not None:
        data = _quantised(data, scaling.levels)
    elif data.is_floating_point():
        data = data.float()
    label, names = _classes(data.shape[0], label, num_classes, class_names)
    others = stored_conditions(conditions, data.shape[0])
    if label is not None and "label" in others:
        raise ValueError("label is given twice, by label= and in conditions; class numbers go into label=.")
    return Dataset(data.detach().cpu().contiguous(), label, scaling, names, others)


def random_flip(x: Tensor, u: Tensor) -> Tensor:
    """Mirror the samples with u < 1/2 along the last axis (left to right for images).

    Args:
        x: (B, ..., W).
        u: (B,) uniforms in [0, 1): the randomness is an argument.
    """
    if u.shape != x.shape[:1] or x.ndim < 2:
        raise ValueError(
            f"u must hold one uniform per sample of x (B, ..., W); got {tuple(u.shape)} for x {tuple(x.shape)}."
        )
    return torch.where((u < 0.5).reshape(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)


def _scaling(data: Tensor, levels: int | None) -> Scaling:
    if levels is not None:
        return Scaling.to_unit_range(levels)
    if data.dtype == torch.uint8:
        return Scaling.to_unit_range(256)
    if data.is_floating_point():
        return Scaling.standardise(data)
    raise ValueError(
        f"data of {data.dtype} hold values in [{data.min()}, {data.max()}], but how many levels they have is "
        "not known. Give levels (values 0 ... levels - 1), or call data.float() for continuous data."
    )


def _quantised(data: Tensor, levels: int) -> Tensor:
    """``data`` in the smallest integer dtype, after a check that they are 0 ... levels - 1."""
    low, high = (v.item() for v in data.aminmax())
    if low < 0 or high > levels - 1:
        raise ValueError(
            f"data hold values in [{low}, {high}], outside 0 ... {levels - 1} (levels={levels}). "
            "Give the levels the data really have, or for continuous data pass data.float() without levels."
        )
    if data.is_floating_point() and not torch.equal(data, data.round()):
        raise ValueError(
            f"levels={levels} says that data are the whole numbers 0 ... {levels - 1}, but some are fractions."
            " Leave levels out for continuous data, or undo the scaling that was applied to them."
        )
    return data.to(torch.uint8 if levels <= 256 else torch.int32)


def _check_finite(data: Tensor) -> None:
    bad = ~torch.isfinite(data)
    count = int(bad.sum())
    if count:
        rows = bad.reshape(len(bad), -1).any(1).nonzero().flatten()[:5].tolist()
        raise ValueError(f"data hold {count} values that are NaN or infinite, first in samples {rows}. Drop them.")


def _classes(
    count: int, label: Tensor | None, num_classes: int | None, class_names: Sequence[str] | None
) -> tuple[Tensor | None, tuple[str, ...] | None]:
    if label is None:
        if num_classes is not None or class_names is not None:
            raise ValueError("classes are given but there are no labels; give label (N,) or leave the classes out.")
        return None, None
    if not isinstance(label, Tensor):
        raise TypeError(f"label must be a torch.Tensor (N,), got {type(label).__name__}; use torch.as_tensor.")
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {label.dtype}; class numbers convert by label.long().")
    if label.shape != (count,):
        raise ValueError(f"label must be one integer per sample, ({count},), got shape {tuple(label.shape)}.")
    if class_names is not None and num_classes is not None and len(class_names) != num_classes:
        raise ValueError(f"{len(class_names)} class names were given for num_classes={num_classes}.")
    label = label.detach().cpu().long()
    low, high = (int(v) for v in label.aminmax())
    if class_names is not None:
        num_classes = len(class_names)
    elif num_classes is None:
        num_classes = high + 1
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels must lie in [0, {num_classes}), got values in [{low}, {high}]. "
            "Negative labels usually mean 'unknown': drop those samples, or leave label out."
        )
    names = tuple(str(i) for i in range(num_classes)) if class_names is None else tuple(map(str, class_names))
    return label, names
