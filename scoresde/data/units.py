"""Which units a data set is given to a network in, where the user does not say, and what those that he says would lose.

    scaling = chosen_scaling(data, levels=None, asked=None)         # per coordinate for tables, one for images
    scalings = scalings_of_conditions({"income": income}, None)         # of those that are far from unit size

A network is right to about a hundredth of the largest numbers that it makes. A column whose deviation is below
1/10 of these is lost, however low the loss: it comes back as noise, uncorrelated with the others.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.data.scaling import PER, Scaling, check_integers
from scoresde.data.statistics import Spread, moments, quartiles

_LOST = 1 / 10
"""A channel whose deviation is below so much of the largest root mean square is lost under one scale for all."""

_HEAVY = 10.0
"""A column whose deviation is above so many times that of its quartiles has heavy tails."""

_ROUNDED = 1e-3
"""What rounding to float32 may add to a column, of its deviation."""

_UNIT = (1 / 50, 10.0)
"""A condition needs no scaling whose deviation is not below, and whose root mean square not above."""


def chosen_scaling(data: Tensor, levels: int | None, asked: Scaling | str | None) -> Scaling:
    """The scaling that is asked for, or that suits the data; with a warning where it would lose a channel.

    Raises:
        TypeError, ValueError: no such scaling, one that contradicts ``levels`` or does not fit a sample, integers of
            which it is not known how many levels they have, constant data; numbers that float32 cannot hold in model
            units, or of integers float64; a channel whose differences round away.
    """
    if isinstance(asked, Scaling):
        if levels is not None and asked.levels != levels:
            raise ValueError(f"levels={levels} contradicts scaling={asked}; give one of them.")
        asked.check_event(tuple(data.shape[1:]))
        if asked.levels is None:
            check_integers(data, name="data")
            _check_kept(data, asked, _of_channels(data))
        return asked
    if asked is not None:
        if not isinstance(asked, str) or asked not in PER:
            kind = ValueError if isinstance(asked, str) else TypeError
            raise kind(f"scaling must be a Scaling or one of {', '.join(map(repr, PER))}, got {checks.got(asked)}.")
        if levels is not None:
            raise ValueError(f"levels={levels} contradicts scaling={asked!r}; give one of them.")
        scaling = Scaling.standardise(data, asked)
        _check_kept(data, scaling, _of_channels(data))
        return scaling
    if levels is not None:
        return Scaling.to_unit_range(levels)
    if data.dtype == torch.uint8:
        return Scaling.to_unit_range(256)
    if data.is_floating_point():
        found = _of_channels(data)
        scaling = _suited(data, found)
        _check_kept(data, scaling, found)
        return scaling
    raise ValueError(
        f"data of {data.dtype} hold values in [{data.min()}, {data.max()}], but how many levels they have is "
        "not known. Give levels (values 0 ... levels - 1), or call data.double() for continuous data."
    )


def _suited(data: Tensor, found: Spread) -> Scaling:
    """Each column of a table by itself, all else by one scale, unless that would lose a channel."""
    if bool((found.least == found.largest).all()):  # such as a single row
        return Scaling.standardise(data)
    if data.ndim == 2:
        return _of_table(data, found)
    scaling = Scaling.standardise(data)
    lost = _lost(found, scaling)
    if not lost:
        return scaling
    warnings.warn(
        f"{' '.join(_told(lost, found, data))} would be lost under one scale for all channels, so that each channel is "
        'standardised by itself: scaling="channel" says so, scaling="tensor" keeps one scale.',
        stacklevel=4,
    )
    return Scaling.standardise(data, "channel")


def _of_table(data: Tensor, found: Spread) -> Scaling:
    """Each column by mean and deviation, or, where a few numbers make the deviation, by its quartiles."""
    scaling = Scaling.standardise(data, "coordinate")
    looked_at = quartiles(data[:: 1 + len(data) // 2**17], (0,)).deviation
    heavy = (looked_at > 0) & (found.deviation > _HEAVY * looked_at)
    if not bool(heavy.any()):
        return scaling
    which = heavy[0].nonzero().flatten()
    exact = quartiles(data[:, which], (0,))
    shift, scale = _as_tensor(scaling.shift).clone(), _as_tensor(scaling.scale).clone()
    shift[which], scale[which] = exact.centre[0], exact.deviation[0]
    warnings.warn(
        f"{_told(which.tolist(), found, data)[0]}: a few far numbers make more than {_HEAVY:g} times the deviation "
        "that the quartiles have, so that these decide the scale, and the bulk is of unit size; the far tails come "
        'out roughly. scaling="coordinate" takes mean and deviation all the same.',
        stacklevel=5,
    )
    return Scaling(shift, scale)


def _check_kept(data: Tensor, scaling: Scaling, found: Spread) -> None:
    """Raise ValueError where float32 cannot hold the data in model units; warn where one scale would lose a channel."""
    low, high = (scaling.to_model(end.squeeze(0).expand(data.shape[1:])) for end in (found.least, found.largest))
    reach = torch.maximum(low.abs(), high.abs())
    if bool((reach > torch.finfo(torch.float32).max).any()):
        raise ValueError(
            f"in units of {scaling} the data reach {float(reach.max()):.3g}, which float32 cannot hold: "
            "leave scaling out, or give one that brings them to unit size."
        )
    if scaling.spans_channels(data.ndim - 1):
        spread = found.deviation.squeeze(0) / _as_tensor(scaling.scale)
        # of a rounding to 24 bits, uniform over half a unit in the last place to each side, at the outermost number
        each = reach.flatten(1).amax(1).reshape(spread.shape) if reach.ndim > 1 else reach
        rounded = each * 2.0**-24 / math.sqrt(3)
        gone = ((rounded > _ROUNDED * spread) & (spread > 0)).flatten().nonzero().flatten().tolist()
        gone = [i for i in gone if _rounds_away(data.select(1, i), scaling.of_channel(i), float(spread.flatten()[i]))]
        if gone:
            raise ValueError(
                f"{_told(gone, found, data)[0]} would round away in float32 under {scaling}: leave scaling out, so "
                'that the data are centred, or give Scaling.standardise(data, per="channel").'
            )
        lost = _lost(found, scaling) if _as_tensor(scaling.scale).numel() == 1 else []
        if lost:
            warnings.warn(
                f"{' '.join(_told(lost, found, data))} would be lost under {scaling}: a deviation of less than "
                f"{_LOST:g} of the largest numbers in model units a network does not learn. "
                'scaling="channel" standardises each by itself.',
                stacklevel=4,
            )


def _rounds_away(column: Tensor, scaling: Scaling, spread: float) -> bool:
    """Whether rounding to float32 adds more to a channel than its deviation allows; measured."""
    x = scaling.to_model(column.double())
    return float((x.float().double() - x).square().mean().sqrt()) > _ROUNDED * spread


def _of_channels(data: Tensor) -> Spread:
    return moments(data, (0, *range(2, data.ndim)))


def _lost(found: Spread, scaling: Scaling) -> list[int]:
    """The channels that vary, but by less than 1/10 of the largest numbers in model units."""
    shift, scale = _as_tensor(scaling.shift), _as_tensor(scaling.scale)
    deviation, mean = found.deviation.squeeze(0) / scale, (found.centre.squeeze(0) - shift) / scale
    largest = (deviation**2 + mean**2).sqrt().max()
    return ((deviation > 0) & (deviation < _LOST * largest)).flatten().nonzero().flatten().tolist()


def _told(which: list[int], found: Spread, data: Tensor) -> tuple[str, str]:
    """The channels with mean and deviation, and the largest beside them."""
    word = "column" if data.ndim == 2 else "channel"
    mean, deviation = found.centre.flatten().tolist(), found.deviation.flatten().tolist()
    names = [f"{word} {i} ({mean[i]:.6g} ± {deviation[i]:.3g})" for i in which[:5]]
    more = f" and {len(which) - 5} more" if len(which) > 5 else ""
    largest = max(range(len(deviation)), key=deviation.__getitem__)
    beside = f"beside {word} {largest} ({mean[largest]:.6g} ± {deviation[largest]:.3g})" if largest not in which else ""
    return ", ".join(names) + more, beside


def _as_tensor(value: float | Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def scalings_of_conditions(
    conditions: Mapping[str, Tensor], asked: Mapping[str, Scaling | None] | None
) -> dict[str, Scaling]:
    """The map to network units of each condition that has one: those asked for, and vectors far from unit size.

    Args:
        conditions: by name, floating or integer, (N, ...); rows of NaN are left out.
        asked: by name; None for a condition that is to be left as it is.

    Raises:
        TypeError, ValueError: names of no condition, no Scaling, one that does not fit, of a condition of integers.
    """
    if asked is not None and not isinstance(asked, Mapping):
        raise TypeError(f"condition_scalings must be a mapping by name, got {checks.got(asked)}.")
    given = dict(asked or {})
    unknown = [name for name in given if name not in conditions]
    if unknown:
        known = ", ".join(conditions) or "none"
        raise ValueError(f"condition_scalings name {', '.join(map(str, unknown))}, and the conditions are {known}.")
    found: dict[str, Scaling] = {}
    for name, values in conditions.items():
        one = given[name] if name in given else _of_condition(values)
        if one is not None:
            _check_condition(name, values, one)
            found[name] = one
    return found


def _of_condition(values: Tensor) -> Scaling | None:
    """None for what is no vector, or of about unit size already."""
    known = _known_rows(values)
    if not values.is_floating_point() or values.ndim > 2 or not known.numel():
        return None
    columns = known.reshape(len(known), -1)
    spread = moments(columns, (0,))
    size = (spread.deviation**2 + spread.centre**2).sqrt()
    varies = spread.deviation > 0
    far = (size > _UNIT[1]) | (varies & (spread.deviation < _UNIT[0]))
    if not bool(far.any()):
        return None
    # what holds one number tells nothing; it is centred, and not blown up
    scale = torch.where(varies, spread.deviation, size.clamp(min=1.0))
    if values.ndim == 1:
        return Scaling(spread.centre.item(), scale.item())
    return Scaling(spread.centre[0], scale[0])


def _known_rows(values: Tensor) -> Tensor:
    """The rows that are not NaN, which stands for "not given"."""
    return values[~values.reshape(len(values), -1).isnan().any(1)] if values.is_floating_point() else values


def _check_condition(name: str, values: Tensor, scaling: Any) -> None:
    checks.instance(scaling, Scaling, name=f"condition_scalings[{name!r}]", hint="Or None, to leave it as it is.")
    if not values.is_floating_point():
        raise ValueError(f"condition {name!r} holds whole numbers, tokens or classes, which have no scale.")
    if scaling.levels is None:
        scaling.check_event(tuple(values.shape[1:]), name=f"condition {name!r}")


def check_condition_rounding(conditions: Mapping[str, Any]) -> None:
    """Raise ValueError where a condition (N, ...) of float64 loses its differences in float32, in which it is kept."""
    for name, values in conditions.items():
        if not isinstance(values, Tensor) or values.dtype != torch.float64 or not values.ndim or values.ndim > 2:
            continue
        known = _known_rows(values)
        columns = known.reshape(len(known), -1)
        if not columns.numel() or not bool(columns.float().isfinite().all()):
            continue  # stored_conditions says so
        rounded, spread = columns.float().double() - columns, moments(columns, (0,)).deviation[0]
        gone = (rounded.square().mean(0).sqrt() > _ROUNDED * spread) & (spread > 0)
        if bool(gone.any()):
            raise ValueError(
                f"the differences in condition {name!r} round away in float32, where it is kept, since its mean is "
                f"large beside its deviation, {float(spread[gone].min()):.3g}: centre it, {name} - {name}.mean(0)."
            )
