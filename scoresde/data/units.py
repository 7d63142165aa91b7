"""Which units a data set is given to a network in, where the user does not say, and what those that he says would lose.

    scaling = chosen_scaling(data, levels=None, asked=None)         # per coordinate for tables, one for images
    scalings = scalings_of_conditions({"income": income}, None)         # of those that are far from unit size

A network is right to about a hundredth of the largest numbers that it makes. A column whose deviation is below
1/10 of these is lost, however low the loss: it comes back as noise, uncorrelated with the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.data.scaling import PER, Scaling, check_integers
from scoresde.data.statistics import HEAVY, Spread, bulk, moments
from scoresde.warning import warn_user

_LOST = 1 / 10
"""A channel whose deviation is below so much of the largest root mean square is lost under one scale for all."""

_POSITION = 1 / 100
"""A pixel or moment whose numbers lie closer together than so much of its channel's deviation is lost in it."""

_FEW_LEVELS = 32
"""uint8 data that fill fewer levels than these are likely to have fewer than 256."""

_ROUNDED = 1e-3
"""What rounding to float32 may add to a column, of its deviation."""

_ENOUGH = 16
"""Samples from which the range of one position can be told."""

_UNIT = (1 / 50, 10.0)
"""A condition needs no scaling whose deviation is not below, and whose root mean square not above, and which is not
``_LOST`` beside its mean."""


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
        _check_bytes(data)
        return Scaling.to_unit_range(256)
    if data.is_floating_point():
        found = _of_channels(data)
        scaling = _suited(data, found)
        _check_kept(data, scaling, found)
        return scaling
    raise ValueError(
        f"data of {data.dtype} hold values in [{data.min()}, {data.max()}], but how many levels they have is "
        "not known. Give levels, or scaling=Scaling.to_unit_range(levels), for values 0 ... levels - 1, or call "
        "data.double() for continuous data."
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
    warn_user(
        f"{' '.join(_told(lost, found, data))} would be lost under one scale for all channels, so that each channel is "
        'standardised by itself: scaling="channel" says so, scaling="tensor" keeps one scale.'
    )
    return Scaling.standardise(data, "channel")


def _of_table(data: Tensor, found: Spread) -> Scaling:
    """Each column by mean and deviation, or, where a few numbers make the deviation, by its quartiles."""
    scaling = Scaling.standardise(data, "coordinate")
    which = _heavy(data, found)
    if not len(which):
        return scaling
    shift, scale = _as_tensor(scaling.shift).clone(), _as_tensor(scaling.scale).clone()
    shift[which], scale[which] = bulk(data[:, which])
    warn_user(
        f"{_told(which.tolist(), found, data)[0]}: a few far numbers make more than {HEAVY:g} times the deviation "
        "that the quartiles have, so that these decide the scale, and the bulk is of unit size; the far tails come "
        'out roughly. scaling="coordinate" takes mean and deviation all the same.'
    )
    return Scaling(shift, scale)


def _heavy(data: Tensor, found: Spread) -> Tensor:
    """The columns of (N, d) of which a few far numbers make the deviation."""
    looked_at = bulk(data[:: 1 + len(data) // 2**17])[1]
    return ((looked_at > 0) & (found.deviation[0] > HEAVY * looked_at)).nonzero().flatten()


def _check_bytes(data: Tensor) -> None:
    """Warn of uint8 that are likely to be no pictures of 256 levels: few of them, or columns of unequal range."""
    low, high = (int(end) for end in data.aminmax())
    if 0 < high - low < _FEW_LEVELS:
        warn_user(
            f"data of uint8 are taken for 256 levels and hold values in [{low}, {high}] only, which fill little of "
            f"[-1, 1]: give levels={high + 1} if there are no more, or levels=256 if they are dark pictures."
        )
    if data.ndim == 2 and data.shape[1] > 1:
        found = moments(data, (0,))
        span = found.largest - found.least
        # rarely another number, as a pixel at the border of flat pictures, is no column of its own scale
        lost = (span > 0) & (span < _LOST * span.max()) & (found.deviation > span / 5)
        if bool(lost.any()):
            which = lost[0].nonzero().flatten().tolist()
            warn_user(
                f"data of uint8 are taken for 256 levels, in which {' '.join(_told(which, found, data))} would be "
                "lost. For a table give data.float(), which standardises each column by itself."
            )


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
        if data.ndim > 2 and len(data) >= _ENOUGH:
            _check_positions(data, found)
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
            warn_user(
                f"{' '.join(_told(lost, found, data))} would be lost under {scaling}: a deviation of less than "
                f"{_LOST:g} of the largest numbers in model units a network does not learn. "
                'scaling="channel" standardises each by itself.'
            )


def _check_positions(data: Tensor, found: Spread) -> None:
    """Warn where a tenth of the positions of channels (N, C, ...) or more would be lost beside the others."""
    span = (data.amax(0).double() - data.amin(0).double()).unsqueeze(0)
    varies = span > 0
    lost = varies & (span < _POSITION * found.deviation)
    if int(lost.sum()) * 10 >= max(1, int(varies.sum())):
        places = [str(tuple(place[1:])) for place in lost.nonzero()[:5].tolist()]
        warn_user(
            f"{int(lost.sum())} of {data[0].numel()} positions of a sample, {', '.join(places)}, ..., vary by less "
            f"than {_POSITION:g} of the deviation of their channel, and would be lost under one scale for it: "
            'scaling="coordinate" standardises each by itself.'
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
        one = given[name] if name in given else _of_condition(name, values)
        if one is not None:
            _check_condition(name, values, one)
            found[name] = one
    return found


def _of_condition(name: str, values: Tensor) -> Scaling | None:
    """None for what is no vector, or of about unit size already."""
    known = _known_rows(values)
    if not values.is_floating_point() or not known.numel():
        return None
    if values.ndim > 2:
        _warn_unless_unit(name, values)
        return None
    columns = known.reshape(len(known), -1)
    spread = moments(columns, (0,))
    size = (spread.deviation**2 + spread.centre**2).sqrt()
    varies = spread.deviation > 0
    heavy = _heavy(columns, spread)
    far = (size > _UNIT[1]) | (varies & (spread.deviation < (_LOST * size).clamp(min=_UNIT[0])))
    if not bool(far.any()) and not len(heavy):
        return None
    # what holds one number tells nothing; it is centred, and not blown up
    shift, scale = spread.centre[0].clone(), torch.where(varies, spread.deviation, size.clamp(min=1.0))[0]
    if len(heavy):
        shift[heavy], scale[heavy] = bulk(columns[:, heavy])
        warn_user(
            f"condition {name!r}, {_told(heavy.tolist(), spread, columns)[0]}: a few far numbers make more than "
            f"{HEAVY:g} times the deviation that the quartiles have, so that these decide the scale. The network gets "
            "the far ones as large numbers: where all are positive, give the logarithm."
        )
    return Scaling(shift.item(), scale.item()) if values.ndim == 1 else Scaling(shift, scale)


def _warn_unless_unit(name: str, values: Tensor) -> None:
    """Warn of a condition with axes of its own, which is handed on as it is, where that is far from unit size."""
    known = values[~values.isnan()].double()
    size, largest = float(known.square().mean().sqrt()), float(known.abs().max())
    if size > _UNIT[1] or 0 < largest < _UNIT[0]:
        warn_user(
            f"condition {name!r} {tuple(values.shape)} has a root mean square of {size:.3g}, and the network gets it "
            f"as it is, far from unit size: bring it there by condition_scalings={{{name!r}: Scaling(...)}}, or say "
            f"that it is meant so by condition_scalings={{{name!r}: None}}."
        )


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
