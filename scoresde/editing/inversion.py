"""From a picture to the latent that makes it, and how well it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scoresde import checks
from scoresde.editing.fixed_point import fixed_point
from scoresde.editing.inputs import check_process, graph, rms, times
from scoresde.reverse import Reverse
from scoresde.score import Score, parameters_of
from scoresde.sde import SDE, Time
from scoresde.solvers import DDIM, ProbabilityFlow, Solver
from scoresde.solvers.base import CountedScore
from scoresde.solvers.defaults import GridRule
from scoresde.solvers.frames import levels
from scoresde.solvers.linear import combine, rows
from scoresde.solvers.ode_backend import integrate, spans

Method = Literal["ddim", "ode"]


@dataclass(frozen=True)
class Inversion:
    """Where a picture came from.

    Attributes:
        x: (B, *event) the latent, the state at grid[0].
        grid: (n + 1,) the times, decreasing, as a solver takes them.
        trajectory: (n + 1, B, *event) the states at those times, the last x_0 itself; None where not asked for.
        reconstruction: (B, *event) where the same method leads from the latent back to grid[-1].
        round_trip: (B,) the root of the mean square of reconstruction - x_0 of each sample, in units of x.
        residual: (B,) the largest error left in an implicit step, relative to sqrt(α² + σ²); None where none is solved.
        nfe: score evaluations, those of the reconstruction included.
        decoder: the solver that leads back: ``decoder.solve(process, x, grid)``, for other scores too.
    """

    x: Tensor
    grid: Tensor
    trajectory: Tensor | None
    reconstruction: Tensor
    round_trip: Tensor
    residual: Tensor | None
    nfe: int
    decoder: Solver


def invert(
    sde: SDE,
    score: Score,
    x0: Tensor,
    *,
    t: Time | None = None,
    steps: int = 50,
    grid: Tensor | GridRule | None = None,
    method: Method = "ddim",
    iterations: int = 0,
    tolerance: float | None = None,
    memory: int = 0,
    solver: ProbabilityFlow | None = None,
    trajectory: bool = False,
    gradients: bool = False,
) -> Inversion:
    r"""The latent x_t from which the probability-flow ODE leads to x_0, by going up it.

    "ddim" takes DDIM's steps backwards (Song et al. 2021, arXiv:2010.02502, section 4.3; Dhariwal & Nichol 2021,
    arXiv:2105.05233). A step from s up to t has to solve, with r = α_t/α_s,

        x_t = r x_s + (σ_t - r σ_s) ε̂(x_t, t)

    for x_t, and by default takes ε̂(x_s, s) in its place: an error of first order in the steps, in the latent and in
    the round trip. ``iterations`` > 0 solves it by fixed-point iterations from there (Pan et al. 2023,
    arXiv:2309.04907), one evaluation each, so that the round trip is exact up to ``tolerance`` and what the way back
    makes of it; ``memory`` accelerates them. The latent itself stays DDIM's, right to first order.

    "ode" integrates with torchdiffeq's adaptive methods: right up to their tolerance, at any grid.

    x_0 is taken for the state at the grid's last time, t_min, as in ``likelihood.encode``.

    Args:
        sde: the SDE of the score.
        score: the score whose ODE is gone up: unconditional, or of what the pictures are.
        x0: (B, *event).
        t: the time to go up to, default T.
        steps: steps of the grid.
        grid: times, decreasing, or a function of :mod:`scoresde.grids`; default :func:`~scoresde.grids.karras`.
        method: "ddim" or "ode".
        iterations: at most so many for each implicit step; 0 takes none, for "ddim" alone.
        tolerance: where they stop, RMS relative to sqrt(α_t² + σ_t²); default eps^(3/4) of x0's dtype.
        memory: differences that Anderson's acceleration looks at; 0 for none, else 2 to 5.
        solver: torchdiffeq's method and tolerances, for "ode" alone; default dopri5 at 1e-5.
        trajectory: keep the state at every time.
        gradients: keep the graph, in the caller's mode, so that the result can be differentiated, in x0, t, the
            grid and the score's parameters.

    Raises:
        TypeError, ValueError: bad input, or an option of the other method.
        FloatingPointError: the latent is not finite.
    """
    check_process(sde, score=score)
    checks.state(x0, name="x0", values=True)
    check_method(method, iterations, tolerance, memory, solver)
    with graph(gradients):
        times_down = times(sde, grid, steps, t)
        counted = CountedScore(score)
        process = Reverse(sde, counted, eta=0.0)
        residual: Tensor | None = None
        decoder: Solver
        way_back = times_down
        if method == "ode":
            # without a trajectory, and on the way back, no state in between is needed: better off without
            way_back = times_down[[0, -1]]
            decoder = solver or ProbabilityFlow()
            path = _along_the_ode(process, x0, times_down if trajectory else way_back, decoder)
        else:
            decoder = DDIM()
            close = torch.finfo(x0.dtype).eps ** 0.75 if tolerance is None else tolerance
            path, residual = _ddim_upwards(process, x0, times_down, iterations, close, memory, trajectory)
        _finite(path[0])
        back = decoder.solve(process, path[0], way_back).x
        return Inversion(
            x=path[0],
            grid=times_down,
            trajectory=torch.stack(path) if trajectory else None,
            reconstruction=back,
            round_trip=rms(back - x0),
            residual=residual if iterations else None,
            nfe=counted.nfe,
            decoder=decoder,
        )


def decode(inversion: Inversion, sde: SDE, score: Score) -> tuple[Tensor, int]:
    """Where the inversion's own solver leads from its latent under another score, and the evaluations that takes."""
    adaptive = isinstance(inversion.decoder, ProbabilityFlow)
    grid = inversion.grid[[0, -1]] if adaptive else inversion.grid
    solution = inversion.decoder.solve(Reverse(sde, score, eta=0.0), inversion.x, grid)
    return solution.x, solution.nfe


def _ddim_upwards(
    process: Reverse, x0: Tensor, grid: Tensor, iterations: int, tolerance: float, memory: int, keep: bool
) -> tuple[list[Tensor], Tensor]:
    """The states at the grid's times, or the first alone, and the largest relative residual (B,)."""
    up = grid.flip(0)
    at = levels(process.sde, up)
    ratio = at.alpha[1:] / at.alpha[:-1]
    # ε̂ = -σ s of the lower end, of the upper end
    gain = at.sigma[1:] - ratio * at.sigma[:-1]
    plan = rows(ratio, -gain * at.sigma[:-1], -gain * at.sigma[1:])
    size = (at.alpha**2 + at.sigma**2).sqrt().detach().tolist()
    noisy = (at.sigma > 0).tolist()
    x, states, worst = x0, [x0], x0.new_zeros(len(x0))
    for i, (r, low, high) in enumerate(plan):
        t = up[i + 1]
        kept = combine((r, x))

        def implicit(y: Tensor, kept: Tensor = kept, high: float | Tensor = high, t: Tensor = t) -> Tensor:
            return combine((1.0, kept), (high, process.score(y, t)))

        # where σ = 0 there is no score: ε̂ is that of the upper end at the scaled state
        x = combine((1.0, kept), (low, process.score(x, up[i]))) if noisy[i] else implicit(kept)
        if iterations:
            found = fixed_point(implicit, x, iterations=iterations, tolerance=tolerance * size[i + 1], memory=memory)
            x, worst = found.x, torch.maximum(worst, found.moved / size[i + 1])
        states = [x, *states] if keep else [x]
    return states, worst


def _along_the_ode(process: Reverse, x0: Tensor, grid: Tensor, solver: ProbabilityFlow) -> list[Tensor]:
    (states,) = integrate(
        solver,
        lambda t, x: process.drift(x, t),
        (x0,),
        grid.flip(0),
        parameters=parameters_of(process.score),
    )
    return [*states[1:].flip(0).to(x0.dtype).unbind(), x0]


def _finite(latent: Tensor) -> None:
    if not bool(latent.detach().isfinite().all()):
        raise FloatingPointError(
            "the inversion ended with NaN or infinite values: the score returned such values, or the steps are too "
            "long. Look at the score near t_min and T, or take more steps."
        )


def check_method(
    method: Method, iterations: int, tolerance: float | None, memory: int, solver: ProbabilityFlow | None
) -> None:
    """Raises for options that do not go together, before any evaluation; see :func:`invert`."""
    if method not in ("ddim", "ode"):
        raise ValueError(f'method must be "ddim" or "ode", got {method!r}.')
    checks.count(iterations, name="iterations", least=0)
    checks.count(memory, name="memory", least=0)
    if tolerance is not None:
        checks.positive(tolerance, name="tolerance")
    if method == "ode" and (iterations or memory or tolerance is not None):
        raise ValueError(
            'iterations, tolerance and memory belong to method="ddim"; "ode" is as exact as its solver: '
            "solver=ProbabilityFlow(rtol=1e-7, atol=1e-7)."
        )
    if method == "ddim" and solver is not None:
        raise ValueError('solver belongs to method="ode"; "ddim" steps on the grid.')
    if solver is not None and not isinstance(solver, ProbabilityFlow):
        raise TypeError(f"solver must be a ProbabilityFlow, whose methods run both ways; got {solver!r}.")
    if not iterations and (memory or tolerance is not None):
        raise ValueError("memory and tolerance are those of the fixed-point iterations: ask for some, iterations=20.")
    if method == "ode":
        spans(solver or ProbabilityFlow())
