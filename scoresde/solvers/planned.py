"""Solvers whose coefficients are worked out for the whole grid before the first step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.solvers.base import Solver
from scoresde.solvers.linear import Coefficient, combine, rows


class Place(NamedTuple):
    """The state of a planned solver: what each step needs, the steps done, what the method remembers, its times."""

    plan: Sequence[Any]
    done: int
    memory: Any
    times: Sequence[float]


@dataclass(frozen=True)
class Planned(Solver):
    """A solver that asks the schedule once, for all steps together, so that a step costs no more than its tensors.

    A subclass gives :meth:`plan` and :meth:`advance` in place of ``step``.
    """

    @abstractmethod
    def plan(self, process: Reverse, grid: Tensor) -> Sequence[Any]:
        """What each of the n steps of ``grid`` (n + 1,) needs; raises ValueError where a step cannot be taken."""

    @abstractmethod
    def advance(
        self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, row: Any, memory: Any
    ) -> tuple[Tensor, Any]:
        """The step from t to s with its ``row`` of the plan; ``memory`` is what the last step returned, or None."""

    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        """The plan."""
        return x, Place(self.plan(process, grid), 0, None, grid.tolist())

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """The next step of the plan that :meth:`start` made; without a state, or at other times, one on its own.

        Raises:
            ValueError: other times than the plan's, from a method that remembers past steps.
        """
        place: Place | None = state
        if place is None or place.times[place.done : place.done + 2] != [t.item(), s.item()]:
            if place is not None and place.memory is not None:
                raise ValueError(
                    f"{type(self).__name__} remembers the steps of its grid, of which none goes from t = {t:g} to "
                    f"{s:g} now. Call start with the times that you will take, or state None for a new beginning."
                )
            place = Place(self.plan(process, torch.stack([t, s])), 0, None, [t.item(), s.item()])
        x, memory = self.advance(process, x, t, s, noise, place.plan[place.done], place.memory)
        return x, place._replace(done=place.done + 1, memory=memory)


@dataclass(frozen=True)
class OneStep(Planned):
    """x_s = a x_t + b s(x_t, t) + c z: one evaluation, nothing remembered. A subclass gives a, b and c."""

    @abstractmethod
    def coefficients(self, process: Reverse, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(a, b, c), each (n,), float64, for the steps from t (n,) to s (n,)."""

    def plan(self, process: Reverse, grid: Tensor) -> Sequence[tuple[Coefficient, ...]]:
        """a, b and c for each step."""
        return rows(*self.coefficients(process, grid[:-1], grid[1:]))

    def advance(
        self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, row: Any, memory: Any
    ) -> tuple[Tensor, Any]:
        """One evaluation."""
        keep, pull, spread = row
        terms = [(keep, x), (pull, process.score(x, t))]
        if self.draws_noise(process):
            terms.append((spread, noise.between(x, t, s)))
        return combine(*terms), None
