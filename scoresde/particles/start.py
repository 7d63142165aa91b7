"""What :func:`~scoresde.particles.tilted` and :func:`~scoresde.particles.twisted` share before their first step.

Their keywords have one home: names and meaning in :class:`ParticleOptions`, defaults in :func:`prepared`. ::

    run = prepared(guidance, shape, EulerMaruyama(), 1.0, **options)
    x, population = run.start()
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

import torch
from torch import Tensor

from scoresde import checks
from scoresde.models.score import Score, check_independent, same_sde
from scoresde.noise import Noise, chosen_noise
from scoresde.particles.population import Population
from scoresde.particles.resample import Resampling, ResamplingName, resampling_of
from scoresde.reverse import Reverse
from scoresde.rules import Rule
from scoresde.sde import SDE
from scoresde.solvers import Solver
from scoresde.solvers.base import state_dtype
from scoresde.solvers.defaults import chosen_grid, prior_draw
from scoresde.solvers.wrapping import require_solver

Entry = TypeVar("Entry", bound=Callable[..., Any])


class ParticleOptions(TypedDict, total=False):
    """The keywords of every particle method.

    Attributes:
        groups: G, sets of particles that know nothing of each other but share each batch; default 1.
        solver: what moves the particles; the default is the method's own.
        steps: number of steps, default 100; ignored where ``grid`` is a tensor of times.
        grid: times, or one of :mod:`scoresde.grids`; default the solver's.
        eta: the stochasticity of :class:`~scoresde.Reverse`; default the method's own.
        threshold: resample a group where its effective sample size falls below this share of N, default ½; 0 never.
        resampling: "systematic" (the default), "stratified", "multinomial", "residual", or a function as in
            :mod:`scoresde.particles.resample`.
        seed: default 0; excludes ``noise``. A group depends on the seed and its rows alone, not on other groups.
        noise: any other source.
        denoise: end with E[x_0 | x] at the last time, by default; where σ = 0 there, that is x itself.
        dtype: of the particles that are returned; the run itself is in float32 at least, its weights in float64.
        device: default that of the guidance's parameters, else the CPU.
    """

    groups: int
    solver: Solver | None
    steps: int
    grid: Tensor | Rule | None
    eta: float | None
    threshold: float
    resampling: ResamplingName | Resampling
    seed: int | None
    noise: Noise | torch.Generator | None
    denoise: bool
    dtype: torch.dtype
    device: torch.device | str | None


@dataclass(frozen=True)
class ParticleRun:
    """Checked options: the process, the solver and the times of a run, and all that its first state needs."""

    process: Reverse
    solver: Solver
    grid: Tensor
    shape: tuple[int, ...]
    groups: int
    threshold: float
    resampling: Resampling
    noise: Noise
    denoise: bool
    dtype: torch.dtype
    device: torch.device | str | None

    def start(self) -> tuple[Tensor, Population]:
        """Particles (G·N, *event) from the prior, in the dtype of a run's state, and their equal weights."""
        score = self.process.score
        working = state_dtype(score.sde, self.grid, self.dtype)
        x = prior_draw(score.sde, self.grid[0], self.shape, self.noise, dtype=working, device=self.device, score=score)
        size = self.shape[0] // self.groups
        return x, Population(self.groups, size, self.threshold, self.resampling, self.noise, x.device)


def prepared(
    score: Score,
    shape: tuple[int, ...],
    default_solver: Solver,
    default_eta: float,
    *,
    groups: int = 1,
    solver: Solver | None = None,
    steps: int = 100,
    grid: Tensor | Rule | None = None,
    eta: float | None = None,
    threshold: float = 0.5,
    resampling: ResamplingName | Resampling = "systematic",
    seed: int | None = None,
    noise: Noise | torch.Generator | None = None,
    denoise: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> ParticleRun:
    """A run of the score, by the method's default solver and stochasticity unless others are given.

    Raises:
        TypeError, ValueError: bad options. Whether the solver will do is the method's to ask.
    """
    shape = checks.shape(shape, what="(particles of all groups together, *event)")
    groups = checks.count(groups, name="groups")
    if shape[0] % groups or shape[0] < 2 * groups:
        raise ValueError(
            f"shape has {shape[0]} particles for {groups} group{'s' * (groups > 1)}; give a multiple of groups, at "
            f"least 2 for each, such as shape=(groups * 64, *event); got shape = {shape}, groups = {groups}."
        )
    threshold = checks.fraction(threshold, name="threshold")
    denoise, dtype = checks.flag(denoise, name="denoise"), checks.dtype(dtype)
    if device is not None:
        device = checks.device(device)
    scheme = resampling_of(resampling)
    source = chosen_noise(seed, noise)
    solver = default_solver if solver is None else require_solver(solver)
    process = Reverse(score, default_eta if eta is None else eta)
    check_independent(score, what="a correction by particles")
    times = chosen_grid(score, grid, steps, solver, shape[1:]).detach()
    source.check(times)
    return ParticleRun(process, solver, times, shape, groups, threshold, scheme, source, denoise, dtype, device)


def require_kind(guidance: object, kind: type, wanted: str) -> None:
    """Asks that the guidance is of this kind, and that whatever scores it holds are of its own schedule.

    Raises:
        TypeError: another kind; says how that one is corrected, which a guidance declares as ``correction``. Or no SDE.
        ValueError: scores of different schedules.
    """
    name = type(guidance).__name__
    if not isinstance(guidance, kind):
        plain = (
            "a plain score needs no correction: sample with it. A function that adds scores itself hides them: write a "
            "LinearGuidance, with the scores as its parts, or a TwistedGuidance"
        )
        told = getattr(guidance, "correction", plain) if isinstance(guidance, Score) else plain
        raise TypeError(f"guidance: {wanted}; got {name}: {told}.")
    if not isinstance(sde := getattr(guidance, "sde", None), SDE):
        raise TypeError(f"{name} must have its SDE as the attribute sde; got {sde!r}.")
    fields = getattr(guidance, "__dict__", {})
    held = {f"its {field}": value.sde for field, value in fields.items() if isinstance(value, Score)}
    same_sde({name: sde, **held})


def takes_options(function: Entry) -> Entry:
    """The function, whose signature shows the keywords of :func:`prepared` in place of ``**options``."""
    own, shared = inspect.signature(function), inspect.signature(prepared)
    parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    parameters += [p for p in shared.parameters.values() if p.kind is p.KEYWORD_ONLY]
    function.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return function
