"""Samples of others in our words: which of their entries is x, the label, a condition, and what numbers they become::

    columns = Columns({"x": "image", "label": "y"})             # ours: theirs
    columns({"image": picture, "y": 3, "url": "..."})           # {"x": (3, H, W) in [-1, 1], "label": 3}
    Columns({"x": 0, "label": 1})((picture, 3))                 # of tuples, by position
    Columns(None, Scaling(2.0, 0.5))({"x": row, "size": 1.5})   # named as ours already; x in units of its own

Pictures (of Pillow) and uint8 are 256 levels, as everywhere here, and become [-1, 1]; other numbers are taken to be in
the model's units unless a scaling says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from scoresde import checks
from scoresde.data.scaling import Scaling
from scoresde.data.structure import arranged
from scoresde.warning import warn_user

_FAR = 10.0
"""A root mean square above which numbers are hardly in a model's units."""

Names = Mapping[str, str | int]
"""Ours by theirs: what an entry is called here, and the name or position it has there."""


def check_columns(columns: object, *, name: str = "columns") -> dict[str, str | int]:
    """``columns`` as a dict, of identifiers to names or positions, x among them.

    Raises:
        TypeError: no mapping, or of other things. ValueError: no x, or a name that is no identifier.
    """
    if not isinstance(columns, Mapping):
        raise TypeError(
            f'{name} must map our names to theirs, {{"x": "image", "label": "y"}}, or {{"x": 0, "label": 1}} for '
            f"tuples; got {checks.got(columns)}."
        )
    for ours, theirs in columns.items():
        if not isinstance(ours, str) or not isinstance(theirs, (str, int)) or isinstance(theirs, bool):
            raise TypeError(
                f"{name} must map our names (texts) to their names (texts) or positions (whole numbers); got "
                f"{checks.got(ours)}: {checks.got(theirs)}."
            )
        if not ours.isidentifier() or ours == "c":
            raise ValueError(f"{name} names {ours!r}, which is no keyword that a network could take.")
    if "x" not in columns:
        known = ", ".join(f"{ours!r}: {theirs!r}" for ours, theirs in columns.items()) or "nothing"
        raise ValueError(
            f'{name} must say which of their entries is x, {name}={{"x": ..., ...}}; got {known}. Our names come '
            "first, theirs second."
        )
    return dict(columns)


class Columns:
    """Turns one sample, or one batch, of others into a dict of x, label and conditions.

    Args:
        names: ours by theirs; None where a sample is a mapping with "x" and conditions already.
        scaling: of x; by default [-1, 1] for pictures and uint8, and nothing for floating numbers.
        known: which entries a sample has, where that is known before one is read: for messages.

    Attributes:
        scaling: that of x, known after the first sample; None where x came in the model's units.
    """

    def __init__(self, names: Names | None, scaling: Scaling | None = None) -> None:
        self._names = None if names is None else check_columns(names)
        self._asked = None if scaling is None else checks.instance(scaling, Scaling, name="scaling")
        self._levels: bool | None = None
        self.scaling: Scaling | None = self._asked

    def __call__(self, sample: Any, *, what: str = "a sample", batch: bool = False) -> dict[str, Any]:
        """The entries of a sample by our names: tensors and numbers.

        Args:
            sample: a mapping, or a tuple or list where ``names`` holds positions.
            what: it is, for messages.
            batch: of tensors (B, ...), as a DataLoader yields.

        Raises:
            TypeError, ValueError: an entry is missing, or is nothing that a network could be given.
        """
        chosen = self._chosen(sample, what)
        made = {"x": self._of_x(chosen.pop("x"), what, batch)}
        for name, value in chosen.items():
            if self._names is not None or name == "label" or _is_numeric(value):  # texts that nobody asked for stay out
                made[name] = _of_condition(name, value, what)
        return made

    def units(self, source: object) -> Any:
        """The scaling of x, once a sample was read: its own, or what a data set tells, whose x is in model units.

        Raises:
            ValueError: both.
        """
        told = getattr(source, "scaling", None)
        if self._asked is not None and told is not None:
            raise ValueError(
                f"scaling={self._asked} cannot be given with {type(source).__name__}, which tells of a scaling of its "
                f"own, {told}, and whose x is in the model's units: leave scaling out."
            )
        return told if self.scaling is None else self.scaling

    def _chosen(self, sample: Any, what: str) -> dict[str, Any]:
        if self._names is None:
            if isinstance(sample, Mapping) and "x" in sample:
                return dict(sample)
            raise TypeError(no_sample(sample, what))
        found: dict[str, Any] = {}
        for ours, theirs in self._names.items():
            if theirs in getattr(sample, "_fields", ()):  # of a named tuple
                found[ours] = getattr(sample, str(theirs))
                continue
            try:
                if isinstance(sample, (Mapping, Sequence)) and not isinstance(sample, (str, bytes)):
                    found[ours] = sample[theirs]  # type: ignore[index]
                    continue
            except (KeyError, IndexError, TypeError):
                pass
            raise ValueError(
                f"columns={self._names} takes {theirs!r} for {ours}, and {what} has no such entry: it is "
                f"{_entries(sample)}."
            )
        return found

    def _of_x(self, value: Any, what: str, batch: bool) -> Tensor:
        x = _numbers(value, "x", what)
        levels = x.dtype == torch.uint8
        if self._levels is None:
            self._levels = levels
            if self._asked is None and levels:
                self.scaling = Scaling.to_unit_range(256)
            elif self._asked is None:
                warn_unless_unit(x, what)
        elif self._levels is not levels:
            raise ValueError(
                f"x of {what} is {x.dtype}, and others before it were {'' if self._levels else 'not '}uint8, so that "
                "their units differ: give all samples one dtype."
            )
        if not is_picture(value) and (levels or not isinstance(value, Tensor)):
            _check_axes(x if batch else x[None], what)
        if self.scaling is None:
            if not x.is_floating_point():
                raise ValueError(
                    f"x of {what} is {x.dtype}, and how many levels it has is not known: give "
                    "scaling=Scaling.to_unit_range(levels), or floating numbers in the model's units."
                )
            return x
        event = tuple(x.shape[1:] if batch else x.shape)
        self.scaling.check_event(event, name=what)
        top = self.scaling.levels
        if top is not None and x.numel() and not are_levels(x, top):
            low, high = (float(end) for end in x.aminmax())
            raise ValueError(
                f"x of {what} must be one of {top} levels, whole numbers from 0 to {top - 1}, as its scaling says; got "
                f"values in [{low:g}, {high:g}]."
            )
        return self.scaling.to_model(x).float()


class Renamed(TorchDataset[dict[str, Any]]):
    """A map data set of somebody else's, each sample by our names.

    Args:
        dataset: theirs, with ``len(dataset)`` and ``dataset[i]``.
        columns: how a sample is read.
        class_names: where it tells them.

    Attributes:
        scaling, class_names, event_shape: as those of :class:`~scoresde.data.Dataset`; None where unknown.
    """

    def __init__(self, dataset: Any, columns: Columns, class_names: Sequence[str] | None = None) -> None:
        self._dataset, self._columns = dataset, columns
        first = columns(dataset[0], what="dataset[0]")
        self.scaling: Any = columns.units(dataset)
        given = getattr(dataset, "class_names", None) if class_names is None else class_names
        self.class_names = None if given is None else tuple(map(str, given))
        self.num_classes = getattr(dataset, "num_classes", None) if given is None else len(given)
        self.event_shape = tuple(first["x"].shape)
        self.condition_scalings: Any = getattr(dataset, "condition_scalings", {})

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._columns(self._dataset[index], what=f"dataset[{index}]")

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        many = getattr(self._dataset, "__getitems__", None)
        samples = [self._dataset[i] for i in indices] if many is None else many(indices)
        return [self._columns(s, what=f"dataset[{i}]") for i, s in zip(indices, samples, strict=True)]


def is_picture(value: object) -> bool:
    """Whether ``value`` is an image of Pillow, which need not be installed to ask."""
    return any(kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(value).__mro__)


def _numbers(value: Any, name: str, what: str) -> Tensor:
    """A picture, array, list, number or tensor as a tensor: uint8 (C, H, W) of a picture."""
    if isinstance(value, Tensor):
        found = value
    elif is_picture(value):
        if value.mode not in ("L", "RGB"):
            raise ValueError(
                f"{name} of {what} is a picture of mode {value.mode}; expected L (grey) or RGB: convert all of them, "
                "picture.convert('RGB')."
            )
        pixels = torch.from_numpy(np.array(value))
        return pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0)
    else:
        array = _array(value)
        if array is None:
            raise TypeError(f"{name} of {what} must be numbers or a picture, got {checks.got(value)}.{_hint(value)}")
        if array.dtype.kind in "iu" and array.dtype != np.uint8:
            array = array.astype(np.int64)
        elif array.dtype in (np.longdouble, np.float64) and not isinstance(value, np.ndarray):
            array = array.astype(np.float32)  # of Python's numbers
        found = torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)
    if found.is_complex() or found.dtype == torch.bool or found.layout is not torch.strided:
        raise TypeError(f"{name} of {what} must be dense real numbers, got {checks.got(value)}.")
    return found


def _array(value: Any) -> np.ndarray[Any, Any] | None:
    """Numbers of NumPy's or Python's as an array; None for what is neither."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        return None
    return None if array.dtype.kind not in "iufb" or isinstance(value, (bytes, bytearray)) else array


def _is_numeric(value: Any) -> bool:
    return isinstance(value, Tensor) or is_picture(value) or _array(value) is not None


def _of_condition(name: str, value: Any, what: str) -> Any:
    """Whole numbers stay what they are, floating ones become float32, pictures [-1, 1]."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, Tensor) and not value.is_complex() and value.dtype not in (torch.bool, torch.uint8):
        return value
    found = _numbers(value, name, what)
    if is_picture(value):
        return Scaling.to_unit_range(256).to_model(found)
    if found.dtype == torch.uint8 and found.ndim:
        raise TypeError(
            f"{name} of {what} is uint8, which does not say whether it holds levels to be scaled or whole numbers: "
            "give float or int64."
        )
    return found.float() if found.is_floating_point() else found.long()


def are_levels(x: Tensor, levels: int) -> bool:
    """Whether all numbers are whole and from 0 to levels - 1."""
    low, high = (float(end) for end in x.aminmax())
    whole = not x.is_floating_point() or bool((x == x.round()).all())
    return whole and low >= 0 and high <= levels - 1


def warn_unless_unit(x: Tensor, what: str) -> None:
    """Tell of numbers that are hardly in a model's units."""
    size = float(x.detach().cpu().double().square().mean().sqrt()) if x.is_floating_point() and x.numel() else 0.0
    if size > _FAR:
        warn_user(
            f"x of {what} has a root mean square of {size:.3g}, and is taken to be in the model's units, of about unit "
            "size: give scaling=Scaling(mean, deviation) for numbers in units of their own."
        )


def _check_axes(x: Tensor, what: str) -> None:
    """Refuse arrays whose axes look like another order than (C, ...)."""
    try:
        arranged(x[:1], None, whole=x.dtype == torch.uint8, name="x")
    except ValueError as error:
        shape = tuple(x.shape[1:])
        raise ValueError(
            f"x of {what} has shape {shape}, and the channels must come first, (C, ...): move them there "
            "(array.transpose(2, 0, 1) for (H, W, C); array[None] for (H, W)), or, of data that fit into memory, say "
            "where they are by scoresde.data.from_tensors(..., channels=...)."
        ) from error


def no_sample(sample: Any, what: str) -> str:
    """What is wrong with a sample, or a batch, in which no x can be seen, and what may be done."""
    found, way = _entries(sample), _way(sample)
    if isinstance(sample, Mapping) and "x" in sample:
        found = f"'x' of type {type(sample['x']).__name__}"
        way = 'Make it a tensor, or say columns={"x": "x", ...}, which reads numbers and pictures.'
    return f"{what} must be a dict with a tensor 'x' (and conditions such as 'label'), got {found}. {way}"


def _entries(sample: Any) -> str:
    if isinstance(sample, Mapping):
        return f"a mapping with {', '.join(map(repr, list(sample)[:12])) or 'no entries'}"
    if isinstance(sample, (tuple, list)):
        return f"a {type(sample).__name__} of {len(sample)}"
    return f"of type {type(sample).__name__}"


def _way(sample: Any) -> str:
    if isinstance(sample, Mapping):
        return f'Say which entry is which: columns={{"x": {next(iter(sample), "...")!r}, ...}}, our names first.'
    if isinstance(sample, (tuple, list)):
        return 'Say which position is which: columns={"x": 0, "label": 1}.'
    return "scoresde.data.from_tensors(x, label) makes a data set of such."


def _hint(value: Any) -> str:
    if isinstance(value, str):
        return " Class names become numbers first (in datasets by class_encode_column)."
    return ""
