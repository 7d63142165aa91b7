"""On which times a solver is driven: by a number of steps, by timesteps or noise levels, or from the middle of a run::

planner = RoutePlanner(solver, reading, schedule, eta=0.0, denoise=True, event=(3, 32, 32))
route = planner.by_steps(20)                    # 20 evaluations of a method with one a step
route = planner.by_times(timesteps=[999, 500, 10])
planner.tail(route, 5)                          # the run from its sixth evaluation on
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde import rules
from scoresde.interop.diffusers_sampling import diffusers_grid
from scoresde.interop.diffusers_schedules import Schedule
from scoresde.interop.driven import Course, Evaluation, Reading
from scoresde.interop.times_of import grid_of_sigmas, grid_of_timesteps, numbers_listed, timestep_of, whole_timesteps
from scoresde.models import Score
from scoresde.solvers import Solver
from scoresde.solvers.defaults import chosen_grid


class Route(NamedTuple):
    """What a run follows, and when it evaluates the network."""

    course: Course
    evaluations: list[Evaluation]


@dataclass(frozen=True, eq=False)
class RoutePlanner:
    """The routes of a solver.

    Args:
        solver: made for the score.
        reading: how outputs of the network are read.
        schedule: its SDE, and how its timesteps are counted.
        eta: the stochasticity.
        denoise: whether the last evaluation ends the run with E[x_0 | x].
        event: shape of a sample, or of one that does in its place.
        rule: of the grid; None for the solver's own.
        theirs: the scheduler whose own times are taken in place of a rule.
        shifted: the scheduler of flow matching that shifts the noise levels given.
        whole: whether the network is told whole timesteps alone.
    """

    solver: Solver
    reading: Reading
    schedule: Schedule
    eta: float
    denoise: bool
    event: tuple[int, ...]
    rule: rules.Rule | None = None
    theirs: Any = None
    shifted: Any = None
    whole: bool = False

    def on(self, grid: Tensor) -> Route:
        """That on a grid."""
        course = Course(self.solver, self.reading, self.eta, grid, self.denoise)
        return Route(course, course.evaluations(self.event))

    def by_steps(self, n: int, mu: float | None = None) -> Route:
        """That of n steps, the denoising step among them; one more where the first of them asks for nothing.

        Raises:
            ValueError: a number that the solver, its grid or whole timesteps do not allow.
        """
        steps = n - self.denoise
        route = self.on(self._ruled(steps, mu))
        silent = route.evaluations[0].part - 1 if route.evaluations else 0
        return self._checked(self.on(self._ruled(steps + silent, mu)) if silent > 0 else route)

    def by_times(self, timesteps: Any = None, sigmas: Any = None, mu: float | None = None) -> Route:
        """That on the times of these timesteps, or noise levels.

        Raises:
            TypeError, ValueError: not decreasing numbers, or beyond those that the network was trained for.
        """
        if timesteps is not None:
            return self._checked(self.on(grid_of_timesteps(self.schedule, timesteps, denoise=self.denoise)))
        if self.shifted is not None:
            options = {} if mu is None else {"mu": mu}
            grid = diffusers_grid(self.shifted, None, sigmas=numbers_listed(sigmas, "sigmas").tolist(), **options)
            grid = grid if self.denoise else torch.cat([grid, grid.new_zeros(1)])
        else:
            grid = grid_of_sigmas(self.schedule, sigmas, denoise=self.denoise)
        return self._checked(self.on(whole_timesteps(self.schedule, grid) if self.whole else grid))

    def tail(self, route: Route, begin: int) -> Course:
        """The run from an evaluation on: on the rest of the grid.

        Raises:
            ValueError: not the first evaluation of a step, or a solver that starts otherwise there.
        """
        if begin == 0:
            return route.course
        grid, near = route.course.grid, 1e-9 * self.reading.sde.T
        wanted = route.evaluations[begin:]
        place = int((grid > wanted[0].t + near).sum())
        why = ""
        # where the first step asks for nothing, the run begins a step above
        for start in (place, place - 1):
            if not 0 <= start < len(grid):
                continue
            try:
                tail = self.on(grid[start:])
                tail.course.lead(self.event)
            except ValueError as error:
                why = f" ({error})"
                continue
            same = len(tail.evaluations) == len(wanted)
            if same and all(abs(a.t - b.t) <= near for a, b in zip(tail.evaluations, wanted, strict=True)):
                return tail.course
        starts = [i for i, e in enumerate(route.evaluations) if not i or e.part != route.evaluations[i - 1].part]
        at = timestep_of(self.schedule, torch.tensor([wanted[0].t], dtype=torch.float64)).item()
        raise ValueError(
            f"{type(self.solver).__name__} cannot begin at evaluation {begin} of {len(route.evaluations)}, at "
            f"timestep {at:g}: a run from there would ask the network at other times than those of "
            f"timesteps[{begin}:]{why}. Begin at the first evaluation of a step, {', '.join(map(str, starts[:5]))}, "
            "...; a method whose start takes evaluations of its own, or whose steps depend on how many there are, "
            "begins at 0 only."
        )

    def _score(self) -> Score:
        return self.reading.score(lambda x, c: torch.zeros_like(x))

    def _ruled(self, steps: int, mu: float | None) -> Tensor:
        """Times by the rule; of no step, T alone."""
        if self.theirs is not None:
            options = {} if mu is None else {"mu": mu}
            grid = diffusers_grid(self.theirs, steps + self.denoise, **options)
            if self.denoise:
                grid = grid[: steps + 1]
            elif len(grid) <= steps:  # theirs ends clean
                grid = torch.cat([grid, grid.new_zeros(1)])
        elif steps == 0:
            return torch.tensor([self.reading.sde.T], dtype=torch.float64)
        else:
            grid = chosen_grid(self._score(), self.rule, steps, self.solver, self.event)
        if len(grid) != steps + 1:
            least = len(grid) - 1 + self.denoise
            raise ValueError(
                f"num_inference_steps must be {least} here, as {type(self.solver).__name__} or its grid knows its own "
                f"times only; got {steps + self.denoise}."
            )
        return whole_timesteps(self.schedule, grid) if self.whole else grid

    def _checked(self, route: Route) -> Route:
        """One that can be driven, and whose evaluations are at whole timesteps where they must be."""
        route.course.lead(self.event)
        on_grid = set(route.course.grid.tolist())
        between = [e.t for e in route.evaluations if self.whole and e.t not in on_grid]
        if between:
            raise ValueError(
                f"{type(self.solver).__name__} evaluates between the times of the grid, as at t = {between[0]:g}, "
                "which is no whole timestep. Leave out integer_timesteps, or take Heun or a solver with one evaluation "
                "a step."
            )
        return route
