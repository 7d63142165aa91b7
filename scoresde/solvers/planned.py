"""Solvers that know all their coefficients before the first step: the schedule is asked once for the whole grid.

A solver of your own derives from :class:`Planned`, and gives a row for each step and what is done with it::

    @dataclass(frozen=True)
    class Mine(Planned):
        def plan(self, process, grid):
            return [(process.sde.alpha(s), process.sde.sigma(s)) for s in grid[1:]]

        def advance(self, process, x, t, s, noise, row, memory):
            return combine((row[0], process.score.denoise(x, t)), (row[1], process.score.noise(x, t))), None
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.models.combination import Coefficient, combine
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.sde import SDE, has_signal
from scoresde.solvers.base import Solver
from scoresde.solvers.carried import mapped


class Plan(NamedTuple):
    """The state of a planned solver: what each step needs, the steps done, what the method remembers, its times."""

    rows: Sequence[Any]
    done: int
    memory: Any
    times: Sequence[float]


class FromPrior(NamedTuple):
    """The step from a time without signal, α = 0, where x is noise: x_s = linear x + α_s x̂_0 + fresh z."""

    linear: Coefficient
    alpha: Coefficient
    fresh: Coefficient

    def take(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        """One evaluation, of x̂_0 at t."""
        terms = [(self.linear, x), (self.alpha, process.score.denoise(x, t))]
        if isinstance(self.fresh, Tensor):
            terms.append((self.fresh, noise.between(x, t, s)))
        return combine(*terms)


def from_prior(sde: SDE, t: Tensor, s: Tensor, *, draws: bool) -> FromPrior | None:
    """x_s = α_s x̂_0 + σ_s x_T/σ_T, or with fresh noise in place of x_T/σ_T where ``draws``; None where α(t) > 0."""
    if has_signal(sde.alpha(t), sde.sigma(t)):
        return None
    sigma = sde.sigma(s)
    return FromPrior(0.0 if draws else sigma / sde.sigma(t), sde.alpha(s), sigma if draws else 0.0)


@dataclass(frozen=True)
class Planned(Solver):
    """A solver that asks the schedule once, for all steps together, so that a step costs no more than its tensors.

    A subclass gives :meth:`plan` and :meth:`advance` in place of ``step``. Both see times with α > 0 only: a first step
    from α = 0, where x_T says nothing of x_0, goes to x_s = α_s x̂_0 + σ_s x_T/σ_T, with fresh noise in place of x_T/σ_T
    for a method that draws any; what a method remembers begins after it.
    """

    @abstractmethod
    def plan(self, process: Reverse, grid: Tensor) -> Sequence[Any]:
        """What each of the n steps of ``grid`` (n + 1,) needs, of a solver that is :meth:`made_for` them.

        Raises:
            ValueError: a step cannot be taken.
        """

    @abstractmethod
    def advance(
        self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, row: Any, memory: Any
    ) -> tuple[Tensor, Any]:
        """The step from t to s with its ``row`` of the plan; ``memory`` is what the last step returned, or None."""

    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        """The plan."""
        return x, Plan(self._planned(process, x, grid), 0, None, grid.tolist())

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """The next step of the plan that :meth:`start` made; without a state, or at other times, one on its own.

        Raises:
            ValueError: other times than the plan's, from a method that remembers past steps.
        """
        plan: Plan | None = state
        if plan is None or plan.times[plan.done : plan.done + 2] != [t.item(), s.item()]:
            if plan is not None and plan.memory is not None:
                raise ValueError(
                    f"{type(self).__name__} remembers the steps of its grid, of which none goes from t = {t:g} to "
                    f"{s:g} now. Call start with the times that you will take, or state None for a new beginning."
                )
            plan = Plan(self._planned(process, x, torch.stack([t, s])), 0, None, [t.item(), s.item()])
        row = plan.rows[plan.done]
        if isinstance(row, FromPrior):
            x, memory = row.take(process, x, t, s, noise), None
        else:
            x, memory = self.advance(process, x, t, s, noise, row, plan.memory)
        return x, Plan(plan.rows, plan.done + 1, memory, plan.times)

    def selected(self, state: Any, select: Callable[[Tensor], Tensor]) -> Any:
        """The plan belongs to the grid, not to samples."""
        return state._replace(memory=mapped(state.memory, select))

    def _planned(self, process: Reverse, x: Tensor, grid: Tensor) -> Sequence[Any]:
        first = from_prior(process.sde, grid[0], grid[1], draws=self.draws_noise(process))
        made = self.made_for(process.score, tuple(x.shape[1:]))
        if first is None:
            return made.plan(process, grid)
        return [first, *(made.plan(process, grid[1:]) if len(grid) > 2 else ())]
