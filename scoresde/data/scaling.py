"""Scaling: the map between the numbers in a file and the numbers a model sees.

A :class:`Scaling` is a shift and a positive scale, one for all numbers or tensors that broadcast to a sample, and for
quantised data the number of levels::

    scaling = Scaling.to_unit_range(256)            # 0 ... 255 to [-1, 1]
    scaling = Scaling.standardise(table, per="coordinate")          # each column to mean 0 and deviation 1
    scaling = Scaling.standardise(table, per="coordinate", robust=True)     # by median and quartiles
    x = scaling.to_model(data)
    scaling.to_data(x), scaling.to_uint8(x)         # back, and as a picture
    scaling.bin_width                               # of a level in model units, for bits per dimension
    log_prob(score, x) - scaling.log_det(event)     # the density in the units of the data

Every :class:`~scoresde.data.Dataset` has one as ``scaling``, and checkpoints keep it by ``to_json``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from scoresde import checks
from scoresde.data.statistics import Spread, finite_in_pieces, moments, quartiles
from scoresde.warning import warn_user

Per = Literal["tensor", "channel", "coordinate"]
"""What has a shift and a scale of its own: all numbers together, each channel (N, C, ...), or each coordinate."""

PER: tuple[Per, ...] = ("tensor", "channel", "coordinate")

_MOST_LEVELS = 2**24
"""float32 tells no more than these apart in [-1, 1]."""

_WIDE = 2.0**8
"""Where |shift| is so many scales, numbers in data units need float64: float32 would keep no more than 16 of the 24
bits with which it holds those in model units."""


@dataclass(frozen=True, eq=False, repr=False)
class Scaling:
    """``x = (data - shift) / scale``: data in their own units, x in the model's.

    Attributes:
        shift: what becomes 0 in model units: a number, or a float64 tensor that broadcasts to a sample (*event), such
            as (d,) for the columns of a table or (C, 1, 1) for the channels of images.
        scale: what becomes 1 in model units; positive; likewise.
        levels: the data are the whole numbers 0 ... levels - 1; None for continuous data. Levels have one shift and one
            scale, so that bins are of one width and black is black in every channel.

    Raises:
        TypeError: not numbers.
        ValueError: numbers not finite, scale not positive, shapes that do not go together, levels not a whole number
            from 2 to 2**24, levels with several scales.
    """

    shift: float | Tensor
    scale: float | Tensor
    levels: int | None = None

    def __post_init__(self) -> None:
        shift, scale = _parameter(self.shift, "shift"), _parameter(self.scale, "scale")
        if not (_all(shift, math.isfinite) and _all(scale, lambda s: math.isfinite(s) and s > 0)):
            raise ValueError(
                f"Scaling needs finite numbers with scale > 0, got shift={_words(shift)}, scale={_words(scale)}."
            )
        levels = self.levels
        if levels is not None:
            levels = checks.count(levels, name="levels", least=2, most=_MOST_LEVELS)
            if isinstance(shift, Tensor) or isinstance(scale, Tensor):
                raise ValueError(
                    f"levels={levels} need one number for shift and one for scale, so that all bins have one width; "
                    f"got shift={_words(shift)}, scale={_words(scale)}. For scales that differ, take the data as "
                    "continuous: data.float(), and levels=None."
                )
        if isinstance(shift, Tensor) and isinstance(scale, Tensor) and not _go_together(shift, scale):
            raise ValueError(
                f"shift and scale must broadcast to one sample; got shapes {tuple(shift.shape)}, {tuple(scale.shape)}."
            )
        for name, value in (("shift", shift), ("scale", scale), ("levels", levels)):
            object.__setattr__(self, name, value)

    @classmethod
    def to_unit_range(cls, levels: int = 256) -> Scaling:
        """Whole numbers 0 ... levels - 1 to [-1, 1], ends included."""
        half = (checks.count(levels, name="levels", least=2, most=_MOST_LEVELS) - 1) / 2
        return cls(shift=half, scale=half, levels=levels)

    @classmethod
    def standardise(cls, data: Tensor, per: Per = "tensor", *, robust: bool = False) -> Scaling:
        """Mean 0 and standard deviation 1, or with ``robust`` median 0 and the quartiles of N(0, 1), of each group.

        One scale for all keeps the geometry of ``data``, but drowns a column that varies little beside one that varies
        much: a network is right to about a hundredth of the largest. A group of one number only, a constant column,
        has no scale: it becomes 0, with a scale so small that what a model makes of it goes back to that number, to
        2**-8 of its size times the model's error there; a warning names it.

        Args:
            data: (N, *event), real numbers.
            per: the groups: all numbers together ("tensor"), those of each channel, axis 1 ("channel"), or those of
                each coordinate of a sample ("coordinate"). The last two are one for vectors (N, d).
            robust: by the quartiles q of each group, shift = q_2 and scale = (q_3 - q_1)/1.349, which for normal data
                are mean and deviation, and do not see how far out the outermost few are: for heavy tails.

        Raises:
            TypeError: no tensor of real numbers, or a ``robust`` that is no flag.
            ValueError: another ``per``; no numbers, or NaN and infinite ones; the data are constant; with ``robust``
                a group of which half is one number.
        """
        checks.one_of(per, PER, name="per")
        robust = checks.flag(robust, name="robust")
        values = _numbers(data, per)
        axes = {"tensor": tuple(range(values.ndim)), "channel": (0, *range(2, values.ndim)), "coordinate": (0,)}[per]
        found = quartiles(values, axes) if robust else moments(values, axes)
        constant = found.least == found.largest
        if bool(constant.all()):
            held = f"every number is {found.least.item():g}" if per == "tensor" else f"each {per} holds one number"
            raise ValueError(f"the data are constant ({held}): they cannot be standardised. Give a Scaling.")
        point = (found.deviation <= 0) & ~constant
        if bool(point.any()):
            raise ValueError(
                f"half of the numbers or more are the same in {_named(point, per)}, so that quartiles give no scale: "
                "leave robust out, or give a Scaling of your own."
            )
        if bool(constant.any()):
            warn_user(
                f"{_named(constant, per)} of the data {_one_number(constant)}: nothing can be learnt there, and "
                "samples come back with that number. Leave it out of the data where it means nothing."
            )
        return cls(*_placed(found, constant, per))

    @property
    def bin_width(self) -> float | None:
        """Distance between neighbouring levels in model units; None for continuous data.

        What bits per dimension of quantised data need: log2 of the probability of a bin is the log-density of
        dequantised x plus log2(bin_width) per dimension.
        """
        return None if self.levels is None or isinstance(self.scale, Tensor) else 1.0 / self.scale

    def log_det(self, event_shape: Sequence[int]) -> float:
        """log |det d data / d x| = Σ log scale over the numbers of a sample (*event), in nats.

        A density in data units is log p(data) = log p(x) - ``log_det``.

        Raises:
            TypeError, ValueError: no shape, or one that the scaling does not fit.
        """
        none = isinstance(event_shape, (tuple, list)) and not event_shape
        event = () if none else checks.shape(event_shape, what="(*event)", name="event_shape")
        self.check_event(event)
        if isinstance(self.scale, Tensor):
            return float(self.scale.log().expand(event).sum())
        return math.prod(event) * math.log(self.scale)

    def check_event(self, event_shape: Sequence[int], *, name: str = "data") -> None:
        """Raise ValueError unless shift and scale broadcast to a sample of this shape (*event)."""
        event = tuple(event_shape)
        for what, value in (("shift", self.shift), ("scale", self.scale)):
            if isinstance(value, Tensor) and not _broadcasts(value, event):
                raise ValueError(
                    f"the {what} of this scaling has shape {tuple(value.shape)}, which does not broadcast to a sample "
                    f"of {name}, {event}: give one number for each column (d,), for each channel (C, 1, ...), or one "
                    "for all."
                )

    def spans_channels(self, rank: int) -> bool:
        """Whether all numbers of a channel (C, ...), of ``rank`` axes, have one shift and one scale."""
        tensors = (value for value in (self.shift, self.scale) if isinstance(value, Tensor))
        return all(value.numel() == 1 or (value.ndim == rank and len(value) == value.numel()) for value in tensors)

    def of_channel(self, index: int) -> Scaling:
        """The scaling of one channel, where :meth:`spans_channels`."""
        shift, scale = (
            float(value.flatten()[index if value.numel() > 1 else 0]) if isinstance(value, Tensor) else value
            for value in (self.shift, self.scale)
        )
        return Scaling(shift, scale, self.levels)

    def to_model(self, data: Tensor) -> Tensor:
        """(data - shift) / scale, float32 (float64 for float64 data).

        Continuous data are centred and scaled in float64, and narrowed after it: nothing is lost to a large mean.

        Raises:
            TypeError: no tensor of real numbers. ValueError: a shape that the scaling does not fit.
        """
        checked = self._checked(data, "data")
        wide = self.levels is None or data.dtype == torch.float64
        x = checks.brought(checked, torch.float64) if wide else checked.float()  # of levels float32 is exact
        x = (x - _beside(self.shift, x)) / _beside(self.scale, x)
        return x if data.dtype == torch.float64 else x.float().to(data.device)

    def to_data(self, x: Tensor) -> Tensor:
        """x * scale + shift: the inverse of ``to_model``, not rounded to levels.

        float32; float64 for x of float64, and where float32 cannot hold what comes out: some |shift| is more than 2**8
        scales, or numbers are outside float32's range: on the CPU where the device of x has no float64.
        """
        checked = self._checked(x, "x")
        wide = self.levels is None or x.dtype == torch.float64
        data = checks.brought(checked, torch.float64) if wide else checked.float()
        data = data * _beside(self.scale, data) + _beside(self.shift, data)
        return data if x.dtype == torch.float64 or self._needs_float64() else data.float().to(x.device)

    def to_uint8(self, x: Tensor) -> Tensor:
        """x as a picture: the nearest level, clamped to the range; 0 ... levels - 1 spread over 0 ... 255.

        Raises:
            ValueError: the data are continuous, so black and white are unknown.
        """
        if self.levels is None:
            raise ValueError(
                "continuous data have no black and white; choose them yourself, for instance "
                "((x - x.min()) / (x.max() - x.min()) * 255).to(torch.uint8)."
            )
        top = self.levels - 1
        level = self.to_data(x).round().clamp(0, top)
        return (level * (255 / top)).round().to(torch.uint8)

    def to_json(self) -> dict[str, Any]:
        """The three fields, tensors as nested lists of numbers, for ``from_json``; numbers come back bit for bit."""
        plain = {name: _plain(value) for name, value in (("shift", self.shift), ("scale", self.scale))}
        return {**plain, "levels": self.levels}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Scaling:
        """The inverse of ``to_json``.

        Raises:
            TypeError, ValueError: other fields, or what no Scaling can have.
        """
        if not isinstance(fields, Mapping) or not {"shift", "scale"} <= fields.keys() <= {"shift", "scale", "levels"}:
            raise ValueError(
                f"the fields of a scaling must be shift, scale and levels by name, got {checks.got(fields)}."
            )
        return cls(**fields)

    def __eq__(self, other: object) -> bool:
        return self.to_json() == other.to_json() if isinstance(other, Scaling) else NotImplemented

    def __hash__(self) -> int:
        return hash((np.shape(_plain(self.shift)), np.shape(_plain(self.scale)), self.levels))

    def __repr__(self) -> str:
        return f"Scaling(shift={_words(self.shift)}, scale={_words(self.scale)}, levels={self.levels})"

    def _checked(self, x: Tensor, name: str) -> Tensor:
        """``x``, of real numbers in a shape that the tensors of this scaling do not enlarge."""
        _check_real(x, name)
        for what, value in (("shift", self.shift), ("scale", self.scale)):
            if isinstance(value, Tensor) and not _broadcasts(value, tuple(x.shape)):
                raise ValueError(
                    f"{name} has shape {tuple(x.shape)}, to which the {what} of this scaling, {tuple(value.shape)}, "
                    "does not broadcast: it was made for samples of another shape."
                )
        return x

    def _needs_float64(self) -> bool:
        shift, scale = (torch.as_tensor(value, dtype=torch.float64) for value in (self.shift, self.scale))
        size, single = shift.abs(), torch.finfo(torch.float32)
        # 2**10 scales to each side leave room for every x that there is; 2**-24 of one must still be a normal number
        outside = (size + 2.0**10 * scale > single.max) | (scale * 2.0**-24 < single.tiny)
        return bool(((size > _WIDE * scale) | outside).any())


def check_integers(data: Tensor, *, name: str) -> None:
    """Raise ValueError where integers are beyond 2**53, which float64 does not tell apart."""
    if not data.is_floating_point() and data.numel():
        low, high = (int(end) for end in data.aminmax())
        if max(-low, high) > 2**53:
            raise ValueError(
                f"{name} hold whole numbers in [{low}, {high}], beyond 2**53, where float64 does not tell neighbours "
                f"apart: subtract an offset from them first, {name} - {name}.min()."
            )


def _numbers(data: Tensor, per: Per) -> Tensor:
    """The data, if they can be standardised."""
    _check_real(data, "data")
    if not data.numel():
        raise ValueError(f"data must hold some numbers to be standardised, got shape {tuple(data.shape)}.")
    if per != "tensor" and data.ndim < 2:
        raise ValueError(f"per={per!r} needs data (N, *event), at least two axes; got shape {tuple(data.shape)}.")
    finite_in_pieces(data, hint="Drop these samples.")
    check_integers(data, name="data")
    return data.detach()


def _check_real(x: object, name: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {checks.got(x)}; use torch.as_tensor({name}).")
    if x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name} must be real numbers, got {x.dtype}; use {name}.float().")
    if x.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of {x.layout}; call {name}.to_dense() first.")


def _placed(found: Spread, constant: Tensor, per: Per) -> tuple[Any, Any]:
    """Shift and scale of each group, where a constant one has 2**-8 of its number for a scale."""
    least = found.deviation[~constant].min()
    size = torch.where(found.least == 0, least, found.least.abs()) / _WIDE
    shift, scale = torch.where(constant, found.least, found.centre), torch.where(constant, size, found.deviation)
    return (shift.item(), scale.item()) if per == "tensor" else (shift[0], scale[0])


def _named(which: Tensor, per: Per) -> str:
    """The groups of a mask (1, ...), by number."""
    if per == "tensor":
        return "the data"
    places = which.flatten().nonzero().tolist() if per == "channel" else which[0].nonzero().tolist()
    word = "column" if which.ndim == 2 else per
    names = [str(place[0]) if len(place) == 1 else str(tuple(place)) for place in places[:8]]
    more = f" and {len(places) - 8} more" if len(places) > 8 else ""
    return f"{word}{'s' if len(places) > 1 else ''} {', '.join(names)}{more}"


def _one_number(which: Tensor) -> str:
    return "holds one number" if int(which.sum()) == 1 else "hold one number each"


def _parameter(value: Any, name: str) -> float | Tensor:
    """A number as a float; a tensor, array or nested list as a float64 tensor of its own on the CPU."""
    if isinstance(value, (list, tuple)) or (isinstance(value, (Tensor, np.ndarray)) and value.ndim):
        try:
            array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError, RuntimeError) as error:  # rows of different lengths; bfloat16
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise TypeError(f"{name} must be numbers in one shape, got {checks.got(value)}.") from error
            array = value.detach().cpu().double().numpy()
        if array.dtype.kind not in "iuf":
            raise TypeError(f"{name} must be real numbers, got {checks.got(value)}.")
        if not array.size:
            raise ValueError(f"{name} must hold a number at least, got shape {array.shape}.")
        return torch.tensor(array, dtype=torch.float64)
    return checks.number(value, name=name)


def _all(value: float | Tensor, holds: Any) -> bool:
    return all(map(holds, value.flatten().tolist())) if isinstance(value, Tensor) else bool(holds(value))


def _plain(value: float | Tensor) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def _words(value: float | Tensor) -> str:
    """For messages: a few numbers in full, of many the range."""
    if not isinstance(value, Tensor):
        return repr(value)
    if value.numel() <= 6:
        return f"({', '.join(f'{number:.6g}' for number in value.flatten().tolist())}) of shape {tuple(value.shape)}"
    return f"({value.min().item():.6g} ... {value.max().item():.6g}) of shape {tuple(value.shape)}"


def _go_together(one: Tensor, other: Tensor) -> bool:
    try:
        torch.broadcast_shapes(one.shape, other.shape)
    except RuntimeError:
        return False
    return True


def _broadcasts(value: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether ``value`` broadcasts to ``shape`` without enlarging it."""
    sizes = tuple(value.shape)
    return len(sizes) <= len(shape) and all(a in (1, b) for a, b in zip(reversed(sizes), reversed(shape), strict=False))


def _beside(value: float | Tensor, x: Tensor) -> float | Tensor:
    return checks.sent(value, x.device) if isinstance(value, Tensor) else value
