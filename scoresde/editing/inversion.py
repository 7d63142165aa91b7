"""From a picture to the latent that makes it, and how well it does::

    found = invert(score, x0, steps=50, iterations=20)
    found.x, found.round_trip                       # the latent, and the error of the way up and down again
    found.decoded(other_score).x                    # the same latent under another score

:func:`invert` goes up the probability-flow ODE, by DDIM's steps backwards or by torchdiffeq, and answers an
:class:`Inversion`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.later import answering
from scoresde.editing.fixed_point import fixed_point
from scoresde.editing.inputs import check_scores, edit_grid, graph, root_mean_square, widened
from scoresde.models.combination import Coefficient, combine
from scoresde.models.evaluation import in_evaluation_mode
from scoresde.models.score import Score, check_score, same_sde
from scoresde.reverse import Reverse
from scoresde.rules import Rule
from scoresde.sde import SDE, Time, has_signal
from scoresde.solvers.base import Solver
from scoresde.solvers.incomplete import each, finite_rows, without
from scoresde.solvers.ode_backend import ProbabilityFlow, follow, spans
from scoresde.solvers.one_step import DDIM
from scoresde.solvers.solution import CountedScore, Solution

_MOST_ITERATIONS = 1_000_000
InversionMethod = Literal["ddim", "ode"]
_ADVICE = (
    "The score returned such values, or the steps are too long: look at the score near t_min and T, or take more steps."
)


class Way(TypedDict, total=False):
    """The options of :func:`invert` that say how the ODE is gone up and down; those of other edits, too."""

    steps: int
    grid: Tensor | Rule | None
    method: InversionMethod
    iterations: int
    tolerance: float | None
    memory: int
    solver: ProbabilityFlow | None


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
        solver: what leads back.
        sde: that of the score, whose schedule other scores must have.
    """

    x: Tensor
    grid: Tensor
    trajectory: Tensor | None
    reconstruction: Tensor
    round_trip: Tensor
    residual: Tensor | None
    nfe: int
    solver: Solver
    sde: SDE | None = None

    def decoded(self, score: Score) -> Solution:
        """Where the same solver leads from the latent to grid[-1] under another score of the same SDE."""
        if self.sde is not None:
            same_sde({"the inversion": self.sde, f"the score, a {type(score).__name__},": check_score(score).sde})
        return _down(self.solver, score, self.x, self.grid)


@in_evaluation_mode("score")
@answering()
def invert(
    score: Score,
    x0: Tensor,
    *,
    t: Time | None = None,
    steps: int = 50,
    grid: Tensor | Rule | None = None,
    method: InversionMethod = "ddim",
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

    for x_t, and by default takes ε̂(x_s, s) in its place, which is x_t = α_t x̂_0(x_s, s) + σ_t ε̂(x_s, s): an error of
    first order in the steps, in the latent and in the round trip. ``iterations`` > 0 solves it by fixed-point
    iterations from there (Pan et al. 2023, arXiv:2309.04907), one evaluation each, so that the round trip is exact up
    to ``tolerance`` and what the way back makes of it; ``memory`` accelerates them. The latent itself stays DDIM's,
    right to first order. Where α_t = 0, at the top of a schedule without signal, ε̂ is x_t/σ_t whatever x_t is; the
    equation is then solved as x_t = (σ_t/σ_s) (x_s - α_s x̂_0(x_t, t)).

    "ode" integrates with torchdiffeq's adaptive methods: right up to their tolerance, at any grid.

    x_0 is taken for the state at the grid's last time, t_min, as in ``likelihood.encode``. States are carried in
    float32 at least, whatever the dtype of x0.

    Args:
        score: the score whose ODE is gone up: unconditional, or of what the pictures are.
        x0: (B, *event).
        t: the time to go up to, default T.
        steps: steps of the grid.
        grid: times, decreasing, or a function of :mod:`scoresde.grids`; default :func:`~scoresde.grids.karras`.
        method: "ddim" or "ode".
        iterations: at most so many for each implicit step; 0 takes none, for "ddim" alone.
        tolerance: where they stop, RMS relative to sqrt(α_t² + σ_t²); default eps^(3/4) of the states' dtype.
        memory: differences that Anderson's acceleration looks at; 0 for none, else 2 to 5.
        solver: torchdiffeq's method and tolerances, for "ode" alone; default dopri5 at 1e-5.
        trajectory: keep the state at every time.
        gradients: keep the graph, in the caller's mode, so that the result can be differentiated, in x0, t, the
            grid and the score's parameters.

    Raises:
        TypeError, ValueError: bad input, or an option of the other method.
        RuntimeError: "ode" did not come to its end within the solver's max_steps.
        FloatingPointError: no sample's latent is finite.

    Warns:
        IncompleteWarning: names samples whose latent is not finite; they are NaN.
    """
    check_scores(score=score)
    checks.state(x0, name="x0", values=True)
    method = checks.one_of(method, ("ddim", "ode"), name="method")
    iterations = checks.count(iterations, name="iterations", least=0, most=_MOST_ITERATIONS)
    memory = checks.count(memory, name="memory", least=0)
    tolerance = None if tolerance is None else checks.positive(tolerance, name="tolerance")
    trajectory = checks.flag(trajectory, name="trajectory")
    _check_method(method, iterations, tolerance, memory, solver)
    flow = ProbabilityFlow() if solver is None else solver
    down: Solver = flow if method == "ode" else DDIM()
    with graph(gradients):
        times = edit_grid(score, grid, steps, t, down, tuple(x0.shape[1:]))
        counted, x = CountedScore(score), widened(x0)
        residual: Tensor | None = None
        if method == "ode":
            # without a trajectory no state in between is needed: better off without
            states = _along_the_ode(counted, x, times if trajectory else times[[0, -1]], flow)
        else:
            close = torch.finfo(x.dtype).eps ** 0.75 if tolerance is None else tolerance
            states, residual = _ddim_upwards(counted, x, times, iterations, close, memory, trajectory)
        latent = states[0].to(x0.dtype)
        finite = finite_rows(latent)
        whole = bool(finite.all())
        if not whole:
            latent = without(latent, finite, "the inversion ended with NaN or infinite values", _ADVICE)
        # nothing leads back from a latent that is not there
        back = _down(down, counted, latent if whole else latent.nan_to_num(0.0), times).x
        back = back if whole else torch.where(each(finite, back), back, torch.nan)
        return Inversion(
            x=latent,
            grid=times,
            trajectory=torch.stack(states).to(x0.dtype) if trajectory else None,
            reconstruction=back,
            round_trip=root_mean_square(widened(back) - x),
            residual=residual if iterations else None,
            nfe=counted.nfe,
            solver=down,
            sde=score.sde,
        )


def _down(solver: Solver, score: Score, x: Tensor, grid: Tensor) -> Solution:
    return solver.solve(Reverse(score, eta=0.0), x, grid if solver.steps_on_grid else grid[[0, -1]])


class UpwardStep(NamedTuple):
    """A step from s up to t: sqrt(α² + σ²), α and σ there, and x_t = of_x x_s + E[of_x0 x_0 + of_noise ε | x_t]."""

    size: float
    alpha: Coefficient
    sigma: Coefficient
    of_x: Coefficient
    of_x0: Coefficient
    of_noise: Coefficient


def _upward_steps(sde: SDE, up: Tensor) -> list[UpwardStep]:
    """Those along increasing times (n + 1,): numbers, unless gradients flow to them."""
    alpha, sigma = sde.alpha(up), sde.sigma(up)
    ratio = alpha[1:] / alpha[:-1]
    columns = [alpha[1:], sigma[1:], ratio, torch.zeros_like(ratio), sigma[1:] - ratio * sigma[:-1]]
    if not has_signal(alpha[-1], sigma[-1]):
        if not bool(sigma[-2] > 0):
            raise ValueError(
                f"one step from σ = 0 at t = {up[-2]:g} up to α = 0 at t = {up[-1]:g} leaves nothing of x_0: put times "
                "between the two into the grid."
            )
        growth = sigma[-1] / sigma[-2]
        last = (alpha[-1], sigma[-1], growth, -growth * alpha[-2], torch.zeros_like(growth))
        columns = [torch.cat([column[:-1], end.reshape(1)]) for column, end in zip(columns, last, strict=True)]
    differentiable = any(map(checks.followed, columns))
    parts = [list(column.unbind()) if differentiable else column.tolist() for column in columns]
    sizes = torch.hypot(alpha, sigma)[1:].detach().tolist()
    return [UpwardStep(*row) for row in zip(sizes, *parts, strict=True)]


def _ddim_upwards(
    score: Score, x: Tensor, grid: Tensor, iterations: int, tolerance: float, memory: int, trajectory: bool
) -> tuple[list[Tensor], Tensor]:
    """The states at the grid's times, or the first alone, and the largest relative residual (B,)."""
    up = grid.flip(0)
    noisy = (score.sde.sigma(up) > 0).tolist()
    states, worst = [x], x.new_zeros(len(x))
    for i, step in enumerate(_upward_steps(score.sde, up)):
        below = combine((step.of_x, x))

        def implicit(y: Tensor, below: Tensor = below, step: UpwardStep = step, t: Tensor = up[i + 1]) -> Tensor:
            return combine((1.0, below), (1.0, score.expect(y, t, step.of_x0, step.of_noise)))

        # where σ = 0 there is no score: ε̂ is that of the upper end at the scaled state
        x = score.expect(x, up[i], step.alpha, step.sigma) if noisy[i] else implicit(below)
        if iterations:
            found = fixed_point(implicit, x, iterations=iterations, tolerance=tolerance * step.size, memory=memory)
            x, worst = found.x, torch.maximum(worst, found.moved / step.size)
        states = [x, *states] if trajectory else [x]
    return states, worst


def _along_the_ode(score: Score, x: Tensor, grid: Tensor, solver: ProbabilityFlow) -> list[Tensor]:
    states = follow(solver, Reverse(score, eta=0.0), x, grid.flip(0))
    return [*states[1:].flip(0).unbind(), x]


def _check_method(
    method: InversionMethod, iterations: int, tolerance: float | None, memory: int, solver: ProbabilityFlow | None
) -> None:
    """Raises for options that do not go together, before any evaluation; see :func:`invert`."""
    if solver is not None:
        checks.instance(solver, ProbabilityFlow, name="solver", hint="Its methods run both ways.")
    if method == "ode" and (iterations or memory or tolerance is not None):
        raise ValueError(
            'iterations, tolerance and memory belong to method="ddim"; "ode" is as exact as its solver: '
            "solver=ProbabilityFlow(rtol=1e-7, atol=1e-7)."
        )
    if method == "ddim" and solver is not None:
        raise ValueError('solver belongs to method="ode"; "ddim" steps on the grid.')
    if not iterations and (memory or tolerance is not None):
        raise ValueError("memory and tolerance are those of the fixed-point iterations: ask for some, iterations=20.")
    if method == "ode":
        spans(ProbabilityFlow() if solver is None else solver)
