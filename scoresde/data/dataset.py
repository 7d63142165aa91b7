"""Dataset: tensors in memory, handed out in model units, and the checks on the way in.

:func:`from_tensors` checks the tensors and makes a :class:`Dataset`, which keeps them as they are stored and converts
a batch when it is asked for; :func:`random_flip` mirrors samples of a batch::

    dataset = from_tensors(x, label)                    # uint8 (N, C, H, W) -> [-1, 1]; floating data are standardised
    dataset = from_tensors(table)                       # (N, d): each column by its own mean and deviation
    dataset[:8]                                         # {"x": (8, C, H, W), "label": (8,)}
    training, held = dataset.subset(slice(0, 900)), dataset.subset(slice(900, None))
    ones = dataset.subset(dataset.label == 1)           # indexed as torch and NumPy do it

What else belongs to each sample is given by name, ``conditions={"size": size}``, and comes with every batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from scoresde import checks
from scoresde.data.condition_files import standardised
from scoresde.data.indexing import Index, several, which
from scoresde.data.labels import classes_of
from scoresde.data.scaling import Per, Scaling
from scoresde.data.source import Source, shown
from scoresde.data.statistics import finite_in_pieces
from scoresde.data.structure import Channels, arranged, holds_levels, in_words
from scoresde.data.units import check_condition_rounding, chosen_scaling, scalings_of_conditions
from scoresde.data.words import checked_vocabularies
from scoresde.models.conditions import stored_conditions


class Dataset(TorchDataset[dict[str, Tensor]]):
    """Samples in memory, as stored (uint8 images stay uint8), converted when a batch is asked for.

    Build one with ``from_tensors`` or ``load``. ``dataset[i]`` is one sample; ``dataset[2:5]``, ``dataset[:]``,
    ``dataset[[7, 1]]`` and ``dataset[dataset.label == 1]`` are batches, indexed as torch and NumPy do it: negative
    positions count from the end, booleans are a mask of all samples. A torch DataLoader works as well::

        {"x": float32 (B, *event), in model units, "label": int64 (B,), where there are labels,
         and each further condition by its name, (B, ...)}

    Attributes:
        data: (N, *event) as stored.
        label: (N,) int64 in [0, num_classes), or None.
        scaling: the map from ``data`` to x.
        class_names: a name for each class, or None without labels.
        conditions: what else belongs to each sample, by name: (N, ...) float32 or int64, in units of their own.
        condition_scalings: the map from conditions to the network's units, by name, for those that have one. ``train``
            gives it to the model, which then takes conditions in units of their own, here and wherever it is called.
        vocabularies: the words of tokens, a :class:`~scoresde.nn.Vocabulary` by the name of the condition, where they
            are known. ``train`` gives them to the model, and checkpoints keep them.
        source: what a reader understood of the files, and what it left out; None for tensors of one's own.
        mapped: whether ``data`` lie in a file that is mapped into memory, and come from there.
    """

    def __init__(
        self,
        data: Tensor,
        label: Tensor | None,
        scaling: Scaling,
        class_names: tuple[str, ...] | None,
        conditions: Mapping[str, Tensor] | None = None,
        condition_scalings: Mapping[str, Scaling] | None = None,
        vocabularies: Mapping[str, Any] | None = None,
    ) -> None:
        self.data = data
        self.label = label
        self.scaling = scaling
        self.class_names = class_names
        self.conditions: dict[str, Tensor] = dict(conditions or {})
        self.condition_scalings: dict[str, Scaling] = dict(condition_scalings or {})
        self.vocabularies: dict[str, Any] = dict(vocabularies or {})
        self.source: Source | None = None
        self.mapped = False

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """What could not be read and was left out: pairs of a name and the reason."""
        return () if self.source is None else self.source.skipped

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

    def batch(self, indices: Index) -> dict[str, Tensor]:
        """The samples at ``indices`` as one batch: one gather and one conversion for all.

        Raises:
            TypeError: neither positions nor a mask nor a slice; a single number, for which see ``dataset[i]``.
            IndexError: positions out of range, a mask of another length, more axes than one.
        """
        return self._taken(several(indices, len(self), name="indices"))

    def gather(self, places: Tensor) -> dict[str, Tensor]:
        """The samples at ``places``, (n,) int64 from 0 to N - 1, which are not looked at: for a loop that made them."""
        return self._taken(places)

    def __getitem__(self, index: int | Index) -> dict[str, Tensor]:
        # to torch and NumPy a tuple is the axes of an array, of which there is one
        if isinstance(index, tuple) and len(index) != 1:
            raise TypeError(f"dataset[{', '.join(map(str, index))}] has several axes: write dataset[[...]].")
        where = which(index, len(self))
        if isinstance(where, int):
            return {name: value[0] for name, value in self._taken(slice(where, where + 1)).items()}
        return self._taken(where)

    def _taken(self, where: slice | Tensor) -> dict[str, Tensor]:
        batch = {"x": self.scaling.to_model(self.data[where]).float()}
        if self.label is not None:
            batch["label"] = self.label[where]
        batch.update({name: value[where] for name, value in self.conditions.items()})
        return batch

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        """The same samples one by one, as a torch DataLoader wants to collate them."""
        batch = self.batch(indices)
        return [{name: value[i] for name, value in batch.items()} for i in range(len(indices))]

    def subset(self, indices: Index) -> Dataset:
        """A data set of some of the samples, with the same scaling, classes and conditions: for held-out data.

        Raises:
            TypeError, IndexError: as of :meth:`batch`. ValueError: no samples.
        """
        where = several(indices, len(self), name="indices")
        data = self.data[where]
        if not len(data):
            raise ValueError("the subset would be empty.")
        label = None if self.label is None else self.label[where]
        conditions = {name: value[where] for name, value in self.conditions.items()}
        told = self.condition_scalings, self.vocabularies
        part = Dataset(data, label, self.scaling, self.class_names, conditions, *told)
        part.source = self.source
        part.mapped = self.mapped and isinstance(where, slice)  # other samples are copied
        return part

    def with_conditions(
        self,
        conditions: Mapping[str, Tensor],
        condition_scalings: Mapping[str, Scaling | None] | None = None,
        *,
        from_files: bool = False,
    ) -> Dataset:
        """The same samples with further conditions, and the numbers of none copied.

        Args:
            conditions, condition_scalings: as in ``from_tensors``.
            from_files: standardise all floating vectors among them, not only those far from unit size.

        Raises:
            TypeError, ValueError: as ``from_tensors``; a condition that the data set has already.
        """
        if isinstance(conditions, Mapping):
            check_condition_rounding(conditions)
        others = stored_conditions(conditions, len(self))
        twice = [name for name in others if name in self.conditions or (name == "label" and self.label is not None)]
        if twice:
            raise ValueError(f"the data set has the condition {twice[0]!r} already; leave one of the two out.")
        scalings = scalings_of_conditions(others, condition_scalings)
        if checks.flag(from_files, name="from_files"):
            scalings = standardised(others, scalings, condition_scalings)
        both = {**self.conditions, **others}, {**self.condition_scalings, **scalings}
        found = Dataset(self.data, self.label, self.scaling, self.class_names, *both)
        found.source = self.source
        return found

    def __str__(self) -> str:
        """What the data were understood to be, in words."""
        parts = [f"{len(self)} {in_words(self.event_shape)}"]
        if self.class_names is not None:
            names = self.class_names
            some = ", ".join(map(shown, names[:10])) + (", ..." if len(names) > 10 else "")
            parts.append(f"{len(names)} class{'es' if len(names) > 1 else ''} ({some})")
        parts += [f"{name} {tuple(value.shape[1:])}" for name, value in self.conditions.items()]
        levels = self.scaling.levels
        if levels is not None and self.scaling == Scaling.to_unit_range(levels):
            parts.append(f"{levels} levels to [-1, 1]")
        else:
            parts.append(str(self.scaling))
        return ", ".join(parts) + ("" if self.source is None else f"; {self.source}")

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
    channels: Channels | None = None,
    levels: int | None = None,
    scaling: Scaling | Per | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    conditions: Mapping[str, Tensor] | None = None,
    condition_scalings: Mapping[str, Scaling | None] | None = None,
    vocabularies: Mapping[str, Any] | None = None,
    mapped: bool = False,
) -> Dataset:
    """A data set from tensors.

    Without ``scaling``: uint8 data are 256 levels mapped to [-1, 1]; with ``levels`` the data, integer or
    floating, are the whole numbers 0 ... levels - 1 mapped to [-1, 1]; other floating data are standardised: vectors
    (N, d), the rows of a table, column by column, and with a warning by quartiles, where a few far numbers make a
    column's deviation (more than 10 times that of the quartiles, or of the quantiles of 1/20 and 19/20 where half of
    the numbers or more are nearly the same); signals, images and volumes by one mean and
    deviation, which keeps their contrasts, unless a channel would be lost in it (its deviation below 1/10 of the
    largest): then, with a warning, each channel by its own. A warning tells of pixels or moments that would be lost in
    their channel, of uint8 that fill fewer than 32 levels, and of uint8 tables with columns of unequal range.

    Args:
        data: (N, *event), integer or floating: vectors (N, d), or (N, C, ...) with the channels in the second place.
            float64 is kept, and centred before it is narrowed to float32.
        label: (N,) integers in [0, num_classes).
        channels: where the channels are: "first" takes the data as they are, "last" moves the last axis to the second
            place, "none" puts in an axis of length 1. By default they are taken as they are where their shape has no
            other likely meaning, and refused where it has, as (N, 32, 32, 3) and whole numbers (N, 28, 28) have.
        levels: number of levels of quantised data, up to 2**24.
        scaling: the map to model units, instead of the rules above: "tensor", "channel" or "coordinate" for
            ``Scaling.standardise(data, per=scaling)``, or a :class:`Scaling`, such as
            ``Scaling.standardise(data, "coordinate", robust=True)`` for all columns by quartiles.
        num_classes: by default the number of class names, else of the values that occur: where these are not
            0 ... K - 1 they are numbered anew, in increasing order, and a warning says so. At most 100,000.
        class_names: by default the labels themselves, "0", "1", ....
        conditions: what else the network is told of each sample, by the name of its keyword: vectors (N, d), tokens
            (N, L), images (N, C, H, W). Floating ones are stored in float32 and integers in int64, both as they are.
            Vectors are brought to the network's units by the model, see ``condition_scalings``; bring images there
            yourself, ``Scaling.to_unit_range(256).to_model(image)``. uint8 is refused, since it does not say whether
            it holds levels to be scaled or numbers of tokens. NaN in the whole row of a sample says that its condition
            is not given, and in a whole token of embeddings (N, L, E) that this is padding.
        condition_scalings: by name, the :class:`Scaling` by which a model trained on these data brings a condition to
            its network's units, or None to hand it on as it is. By default floating vectors (N, d) and numbers (N,)
            whose root mean square is above 10, or deviation below 1/50 or a tenth of it, are standardised column by
            column, by quartiles where a few far numbers make the deviation, and no other condition; of others far from
            unit size a warning tells. Whoever calls the model gives conditions in their own units:
            ``model.bind(income=50_000.0)``.
        vocabularies: by name, the :class:`~scoresde.nn.Vocabulary` that encoded the tokens of a condition.
        mapped: data lie in a file that is mapped into memory, as that of ``numpy.memmap``, and are to stay there: they
            are gone through, and nothing is copied.

    Raises:
        TypeError: not tensors, complex or boolean data or conditions, labels that are not integers, uint8 conditions.
        ValueError: no samples, non-finite numbers, values that are not the stated levels, integers whose
            levels are not stated, axes that can be understood in more than one way, labels out of range or of another
            length, names of another number; conditions of another length, called x or c or by no identifier, or with
            infinite values or NaN in part of a row or token; numbers or differences that float32 cannot hold; scalings
            that do not fit.
    """
    if not isinstance(data, Tensor):
        raise TypeError(
            f"data must be a torch.Tensor (N, *event), got {type(data).__name__}; use torch.as_tensor(data)."
        )
    if data.is_complex() or data.dtype == torch.bool:
        raise TypeError(f"data must be integer or real floating, got {data.dtype}; use data.float().")
    if data.layout is not torch.strided:
        raise TypeError(f"data must be a dense tensor, got one of {data.layout}; use data.to_dense().")
    if data.is_meta:
        raise ValueError(f"data must hold values, got {checks.got(data)} of the meta device.")
    if data.ndim > 1 or channels is not None:
        data = arranged(data, channels, whole=holds_levels(data, levels, scaling), name="data")
    if data.ndim < 2 or data.numel() == 0:
        raise ValueError(f"data must be (N, *event) with at least one sample, got shape {tuple(data.shape)}.")
    mapped = checks.flag(mapped, name="mapped")
    if mapped:
        _refuse_conversion(data, levels)
    data = _signed(data.detach().cpu())
    if data.is_floating_point():
        finite_in_pieces(data, hint="Drop them.")
    if levels is not None:
        levels = checks.count(levels, name="levels", least=2)
    scaling = chosen_scaling(data, levels, scaling)
    if scaling.levels is not None:
        data = _quantised(data, scaling.levels)
    elif data.dtype in (torch.float16, torch.bfloat16) and not mapped:
        data = data.float()
    label, names = classes_of(data.shape[0], label, num_classes, class_names)
    if isinstance(conditions, Mapping):
        check_condition_rounding(conditions)
    others = stored_conditions(conditions, data.shape[0])
    if label is not None and "label" in others:
        raise ValueError("label is given twice, by label= and in conditions; class numbers go into label=.")
    scalings = scalings_of_conditions(others, condition_scalings)
    words = checked_vocabularies(vocabularies, others)
    made = Dataset(data if mapped else data.contiguous(), label, scaling, names, others, scalings, words)
    made.mapped = mapped
    return made


def random_flip(x: Tensor, u: Tensor) -> Tensor:
    """Mirror the samples with u < 1/2 along the last axis (left to right for images).

    Args:
        x: (B, ..., W).
        u: (B,) uniforms in [0, 1): the randomness is an argument.
    """
    if not isinstance(x, Tensor) or x.layout is not torch.strided:
        raise TypeError(f"x must be a dense tensor (B, ..., W), got {_kind(x)}.")
    if not isinstance(u, Tensor) or not u.is_floating_point() or u.layout is not torch.strided:
        raise TypeError(f"u must be a floating dense tensor (B,) of uniforms, got {_kind(u)}.")
    if u.shape != x.shape[:1] or x.ndim < 2:
        raise ValueError(
            f"u must hold one uniform per sample of x (B, ..., W); got {tuple(u.shape)} for x {tuple(x.shape)}."
        )
    return torch.where((u < 0.5).reshape(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)


def _kind(value: object) -> str:
    return f"{value.dtype}, {value.layout}" if isinstance(value, Tensor) else checks.got(value)


def _refuse_conversion(data: Tensor, levels: int | None) -> None:
    """Raise ValueError where data that are to stay where they are would be stored in another dtype."""
    kept = (torch.uint8,) if levels is not None and levels <= 256 else (torch.int32,)
    if data.device.type != "cpu" or data.dtype in (torch.uint16, torch.uint32, torch.uint64):
        raise ValueError(f"mapped data must lie on the CPU in a dtype with sign, or uint8; got {checks.got(data)}.")
    if levels is not None and data.dtype not in kept:
        raise ValueError(
            f"levels={levels} are stored in {kept[0]}, and mapped data are not converted; got {data.dtype}: write the "
            f"file in {kept[0]}."
        )


def _signed(data: Tensor) -> Tensor:
    """Integers of 16 to 64 bits without sign, in which torch computes little, as int64."""
    if data.dtype == torch.uint64 and bool((data.long() < 0).any()):
        raise ValueError("data of torch.uint64 hold values of 2**63 and above; subtract an offset from them first.")
    return data.long() if data.dtype in (torch.uint16, torch.uint32, torch.uint64) else data


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
