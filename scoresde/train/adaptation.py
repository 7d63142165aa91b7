"""The density of times of a run, and what it has seen since it was refreshed, where it is one that learns from losses.

:class:`TimesInTraining` is the loop's; for densities that stay as they are it does nothing::

    times = TimesInTraining(options.times)
    t, weight = times.density.sample(sde, u)
    times.note(step, u, terms)                              # of the whole global batch, after the step was applied

Every process notes the losses of all, so that all draw from the same density; between refreshes sums stay on the device
of the losses. The sums are in the checkpoint, so that a resumed run goes on with the density it would have had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from scoresde import checks
from scoresde.times import TimeDensity
from scoresde.times.densities import Adapting


class TimesInTraining:
    """The present density of times.

    Args:
        times: of the options.

    Attributes:
        density: from which times are drawn now.
        adapts: whether losses are to be noted.
    """

    def __init__(self, times: TimeDensity) -> None:
        self.density = times
        self.adapts = bool(getattr(times, "adapts", False))
        self._since: Tensor | None = None

    def note(self, step: int, u: Tensor, terms: Tensor) -> None:
        """Add a batch's uniforms and weighted losses (B,), after step ``step`` (counted from 1); refresh where it is
        time.
        """
        density = cast(Adapting, self.density)
        seen = density.seen(u, terms)
        self._since = seen if self._since is None else self._since.to(seen) + seen
        if density.every is not None and step % density.every == 0:
            self.density, self._since = density.refreshed(self._since), None

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it, as JSON; empty for a density that stays as it is."""
        if not self.adapts:
            return {}
        since = None if self._since is None else self._since.double().tolist()
        return {"times": {"learned": cast(Adapting, self.density).learned(), "since": since}}

    def load_state(self, saved: Mapping[str, Any]) -> None:
        """The inverse of ``state``; a run whose density did not adapt before begins to.

        Raises:
            TypeError, ValueError: numbers that are none of this density's.
        """
        given = saved.get("times")
        if not self.adapts or given is None:
            return
        learned, since = _rows(given["learned"]), given["since"]
        density = cast(Adapting, self.density)
        self.density = density.with_learned(learned)
        self._since = None if since is None else torch.tensor(_rows(since), dtype=torch.float64)


def _rows(values: object) -> list[tuple[float, ...]]:
    """Two lists of finite numbers of one length."""
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != 2:
        raise ValueError(f"times: two lists of numbers are expected, got {checks.got(values)}.")
    rows = [checks.numbers(row, name="times") for row in values]
    if len(rows[0]) != len(rows[1]) or not all(0 <= one < float("inf") for row in rows for one in row):
        raise ValueError("times: two lists of as many finite numbers of at least 0 are expected.")
    return rows
