"""Orders from errors over halved steps, by fixed rules: where to begin, when the order shows, when to stop.

:func:`follow_errors` takes a function from a number of steps to errors by name, doubles that number until
:func:`settled` says that the order shows, and answers one :class:`Slope` for each name::

    (slope,) = follow_errors(lambda n: {"error": abs((1 + 1 / n) ** n - math.e)})
    slope.order, slope.settled                  # about 1.0, True

The order is extrapolated to small steps; errors below 1e-12 count as rounding. All measurements of this package that
halve steps go through it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scoresde import checks, rules

FEWEST_STEPS, MOST_STEPS, FLOOR, CLOSE = 4, 2048, 1e-12, 0.15


@dataclass(frozen=True)
class Slope:
    """How an error falls as the steps are halved.

    Attributes:
        of: what the error is an error of.
        steps: the numbers of steps, each twice the one before.
        errors: the error at each.
        order: the slope extrapolated to small steps: slopes s_n and s_2n deviate from the order by c/n and c/2n, so
            2 s_2n - s_n is free of c. NaN where fewer than three errors could be measured.
        settled: whether the order shows at these steps.
    """

    of: str
    steps: tuple[int, ...]
    errors: tuple[float, ...]
    order: float
    settled: bool

    def __str__(self) -> str:
        points = ", ".join(f"{n}: {e:.1e}" for n, e in zip(self.steps, self.errors, strict=True))
        return f"{self.of}: {self.order:.2f}{'' if self.settled else ' (not settled)'} from errors {points}"


def slopes(errors: tuple[float, ...]) -> list[float]:
    """log2 of the ratio of neighbouring errors; infinite where an error is 0."""
    return [math.log2(a / b) if a > 0 and b > 0 else math.inf for a, b in itertools.pairwise(errors)]


def extrapolated(errors: tuple[float, ...]) -> list[float]:
    """2 s_2n - s_n for each neighbouring pair of slopes."""
    return [2 * fine - coarse for coarse, fine in itertools.pairwise(slopes(errors))]


def settled(errors: tuple[float, ...], close: float = CLOSE) -> bool:
    """Whether the order shows: three extrapolated slopes agree to 0.05, the last with its plain slope to ``close``.

    A method that looks like third order or more is also followed down to errors of 1e-6 of the first, or to 64 times
    its first number of steps, since a start-up of lower order caps it by a term whose constant may be small.
    """
    orders = extrapolated(errors)
    last = orders[-3:]
    if len(last) < 3 or not all(map(math.isfinite, last)):
        return False
    if max(last) - min(last) > 0.05 or abs(slopes(errors)[-1] - orders[-1]) > close:
        return False
    return orders[-1] < 2.5 or errors[-1] < 1e-6 * errors[0] or len(errors) > 6


def follow_errors(
    errors: Callable[[int], Mapping[str, float]],
    *,
    first: int = FEWEST_STEPS,
    most: int = MOST_STEPS,
    floor: float = FLOOR,
    close: float = CLOSE,
) -> list[Slope]:
    """Halve the steps until every error shows its order, meets the floor of rounding, or ``most`` steps are reached.

    Args:
        errors: the errors by name after so many steps. It may raise ValueError or FloatingPointError where so few
            steps are too few for the method; such counts are left out.
        first: the fewest steps.
        most: the most steps.
        floor: errors below it are rounding and left out.
        close: see :func:`settled`.

    Raises:
        ValueError, FloatingPointError: what ``errors`` raised, where every count raises.
    """
    first = checks.count(first, name="first, the fewest steps,", most=rules.MOST_STEPS)
    most = checks.count(most, name="most, the most steps,", least=first, most=rules.MOST_STEPS)
    found: dict[str, dict[int, float]] = {}
    refused: ValueError | FloatingPointError | None = None
    n = first
    while n <= most:
        try:
            measured = errors(n)
        except (ValueError, FloatingPointError) as error:
            if found:
                raise
            refused = error
        else:
            for name, value in measured.items():
                if math.isfinite(value):
                    found.setdefault(name, {})[n] = value
            if found and all(_done(each, floor, close) for each in found.values()):
                break
        n *= 2
    if not found:
        raise refused or ValueError("no error was measured: every run ended in NaN or infinite values.")
    return [_slope(name, each, floor, close) for name, each in found.items()]


def _above(each: Mapping[int, float], floor: float) -> dict[int, float]:
    """The errors before the first that is rounding."""
    return dict(itertools.takewhile(lambda pair: pair[1] > floor, each.items()))


def _done(each: Mapping[int, float], floor: float, close: float) -> bool:
    kept = _above(each, floor)
    return len(kept) < len(each) or settled(tuple(kept.values()), close)


def _slope(name: str, each: Mapping[int, float], floor: float, close: float) -> Slope:
    kept = _above(each, floor)
    errors = tuple(kept.values())
    orders = extrapolated(errors)
    # the floor may be met before a method of high order has been followed as far as ``settled`` asks
    shown = settled(errors, close) or (len(kept) < len(each) and len(orders) > 1 and abs(orders[-1] - orders[-2]) < 0.1)
    return Slope(name, tuple(kept), errors, orders[-1] if orders else math.nan, shown)
