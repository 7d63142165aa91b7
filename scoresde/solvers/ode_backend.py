"""The probability-flow ODE through torchdiffeq::

    sample(score, shape, solver=ProbabilityFlow("dopri5", rtol=1e-5, atol=1e-5))

:class:`ProbabilityFlow` takes any method of torchdiffeq, fixed-step or adaptive, at η = 0. :func:`integrated` solves
any ODE by its method, forwards or backwards, for likelihoods and inversion.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.models.modules import parameters_of
from scoresde.models.rescheduled import Rescheduled, same_level, size
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.solvers._watched import Heard, Parts, StopRun, Watched
from scoresde.solvers.base import Solver, arrived, only_ode
from scoresde.solvers.incomplete import each, gave_up, shrank
from scoresde.solvers.solution import Ending, Report, unheard


@dataclass(frozen=True)
class ProbabilityFlow(Solver):
    """dx/dt = f x - ½ g² s(x, t) by any method of torchdiffeq, fixed-step or adaptive.

    Fixed-step methods step exactly on the grid; adaptive ones choose their own steps between its ends, one step size
    for the whole batch: the samples share an error norm, so an adaptive result depends on its batch within the
    tolerance. Under a schedule with kinks, :class:`~scoresde.sde.ChainSDE`, they follow ``sde.smooth()`` in its place,
    at a tenth of the evaluations. Their states at the inner times of the grid are interpolated. A sample for which the
    score is NaN or infinite, however short the steps, is left out from there on; the others go on as without it.

    Args:
        method: a name in ``torchdiffeq._impl.odeint.SOLVERS``, e.g. "dopri5", "dopri8", "bosh3", "rk4", "midpoint".
        rtol: relative tolerance of adaptive methods; at least a tenth of a rounding of the state, which is carried in
            float32 or wider.
        atol: absolute tolerance of adaptive methods, in units of x.
        options: further options of the method, as torchdiffeq takes them, e.g. {"max_num_steps": 1000} (which it
            counts between neighbouring times of the grid).
        max_steps: of adaptive methods, rejected steps included, and of fixed ones with a step_size; of "scipy_solver",
            which does not tell its steps, evaluations. At this limit, or where steps shrink to nothing, a run ends with
            a warning and a partial solution: ``complete`` is False, ``reached`` says how far it came, and a trajectory
            repeats the last state. A step is at most 13 evaluations (of "dopri8"; 6 of "dopri5").
        adjoint: gradients by the adjoint ODE, in memory independent of the number of steps. They reach x and the
            parameters of every module behind the score (:func:`~scoresde.models.modules_of`), but not those that a
            plain function has closed over, nor tensors in the SDE.

    Raises:
        ValueError: unknown method, an option that the method does not know, rtol below what the state resolves, more
            than max_steps steps of a given size, or a grid of unequal steps for an Adams method, whose coefficients in
            torchdiffeq are those of equal steps.
        RuntimeError: "scipy_solver" did not come to its end, or an adjoint ODE.
        FloatingPointError: the score answered NaN or infinity for all samples.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    options: Mapping[str, Any] = field(default_factory=dict)
    adjoint: bool = False
    max_steps: int = 2000
    default_eta: ClassVar[float] = 0.0
    steps_on_grid: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self.rtol, name="rtol")
        checks.positive(self.atol, name="atol")
        checks.count(self.max_steps, name="max_steps")

    def check(self, process: Reverse) -> None:
        """η must be 0, and the method known."""
        only_ode(self, process)
        _implementation(self)

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """From t to s.

        Raises:
            RuntimeError: it did not reach s.
        """
        return arrived(self, self.integrate(process, x, torch.stack([t, s]), noise, unheard), t, s), None

    def integrate(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise, report: Report) -> Ending:
        """All at once."""
        if "adams" in self.method and not {"step_size", "grid_constructor"} & set(self.options):
            steps = grid.detach().diff()
            if bool(((steps / steps.mean() - 1).abs() > 1e-6).any()):
                raise ValueError(
                    f"{self.method} has coefficients for equal steps, but the grid's lie between {-steps.max():g} and "
                    f"{-steps.min():g}: take grids.uniform or another method."
                )
        path = along_flow(self, process, x, grid)
        for i in range(1, len(grid)):
            report(i, path.states[0][i])
        reached = path.reached
        if path.why:
            gave_up(self, ~path.lost, reached, path.why)
        return Ending(path.states[0][-1], not path.why, reached=reached)


class FlowPath(NamedTuple):
    """What :func:`integrated` found.

    Attributes:
        states: for each part of the state, its values at each of the times, (n + 1, B, ...); NaN at the last time for
            lost samples. Times that were not reached have the last state.
        lost: (B,) bool, samples for which the slope was NaN or infinite.
        reached: (B,) float64, the time to which each sample came.
        why: the reason if the run stopped short of the last time, else empty.
        steps: tried.
    """

    states: Parts
    lost: Tensor
    reached: Tensor
    why: str
    steps: int


def integrated(
    solver: ProbabilityFlow,
    field: Callable[..., Any],
    state: Parts,
    times: Tensor,
    *,
    parameters: tuple[nn.Parameter, ...] = (),
    heard: Heard | None = None,
) -> FlowPath:
    """Each part of ``state`` at each of ``times`` (monotone), under d(state)/dt = field(t, *state).

    ``field`` answers a tensor for a state of one part, a tuple otherwise. The answer is at least float32.

    Raises:
        ValueError: rtol is below what the state resolves, or a step size makes too many steps.
        RuntimeError: scipy's solver did not come to the end.
        FloatingPointError: no sample is left.
    """
    import torchdiffeq

    checks.refuse_without_float64(state[0], "torchdiffeq", "take a solver that steps on a grid, such as DPMSolverPP()")
    method = _implementation(solver)
    state = tuple(part.to(torch.promote_types(part.dtype, torch.float32)) for part in state)
    _check_tolerance(solver, state[0].dtype)
    device, batch = state[0].device, len(state[0])
    if not state[0].numel():  # an error norm needs samples
        states = tuple(part.expand(len(times), *part.shape) for part in state)
        none = torch.zeros(batch, dtype=torch.bool, device=device)
        return FlowPath(states, none, times[-1].detach().to(device).expand(batch), "", 0)
    most, judges = _most_steps(solver, method, times), _adaptive(method)
    # torchdiffeq mixes times into arithmetic with x: they must share a device
    times = times.to(device)
    tells = judges or _fixed(method)

    def slopes(t: Tensor, *parts: Tensor) -> Parts:
        out = field(t, *parts)
        return (out,) if len(parts) == 1 else tuple(out)

    run = Watched(
        slopes, state, times, judges=judges, tells=tells, most=most, heard=heard, keep=most is not None and tells
    )
    options = dict(solver.options)
    if judges:
        # adaptive methods otherwise step past the end and interpolate back
        options.setdefault("step_t", times[-1:].detach())
        options.setdefault("norm", run.norm)
    keywords: dict[str, Any] = {"rtol": solver.rtol, "atol": solver.atol, "method": solver.method, "options": options}
    if solver.adjoint:
        keywords["adjoint_params"] = parameters
    solve = torchdiffeq.odeint_adjoint if solver.adjoint else torchdiffeq.odeint
    why = ""
    try:
        out = solve(run, run.start[0] if len(state) == 1 else run.start, times, **keywords)
        states = (out,) if len(state) == 1 else tuple(out)
        if len(states[0]) < len(times):  # scipy's solver gave up and says so by answering less
            raise _stopped(solver, "it failed, as where the score is not finite or the tolerance out of reach")
    except (StopRun, AssertionError) as error:
        if run.outside:
            raise
        run.lose_the_attempt()
        why = _explain(solver, str(error))
        if not tells:
            raise _stopped(solver, why) from error
        states = _so_far(run, len(times))
    if bool(run.lost.all()):
        raise FloatingPointError(
            f"torchdiffeq's {solver.method} met NaN or infinite values near t = {run.lost_at.max().item():.6g}: the "
            "score is not finite there. Look at the score at that time, in float32 or wider, or end at a larger t_min."
        )
    end = run.t.detach() if why else times[-1].detach()
    reached = torch.where(run.lost, run.lost_at, end)
    states = tuple(_marked(part, run.lost) for part in states)
    if heard is not None and not why:
        heard(run.steps, times[-1].detach(), tuple(part[-1] for part in states))
    return FlowPath(states, run.lost, reached, why, run.steps)


def _so_far(run: Watched, count: int) -> Parts:
    """The states of a run that stopped short, at each of ``count`` times."""
    seen = [*run.passed, *[run.state] * (count - len(run.passed))]
    return tuple(torch.stack(parts) for parts in zip(*seen, strict=True))


def _marked(part: Tensor, lost: Tensor) -> Tensor:
    """NaN at the last time for lost samples."""
    bad = torch.zeros(len(part), dtype=torch.bool, device=part.device)
    bad[-1] = True
    return torch.where(each(bad, part) & each(lost, part[0]), torch.nan, part)


class Smoothed(NamedTuple):
    """A probability-flow ODE as an adaptive method had better follow it: under a schedule without kinks.

    Attributes:
        process: the ODE.
        times: its times, (n,), for those asked for.
        factors: (n,) float64, by which its states are larger.
        back: a time of its own -> the time asked for.
    """

    process: Reverse
    times: Tensor
    factors: Tensor
    back: Callable[[Tensor], Tensor]


def smoothed(solver: ProbabilityFlow, process: Reverse, times: Tensor) -> Smoothed:
    """The ODE under ``process.sde.smooth()``; as it is where that is itself, or the steps are given in its time."""
    own = process.sde
    sde = own.smooth()
    if sde is own or _fixed(_implementation(solver)):
        return Smoothed(process, times, torch.ones_like(times), lambda t: t)
    wide = times.to(torch.float64)
    inner = same_level(own, wide, sde)
    return Smoothed(
        Reverse(Rescheduled(process.score, sde), process.eta),
        inner,
        size(sde, inner) / size(own, wide),
        lambda t: same_level(sde, t.to(torch.float64), own).to(t),
    )


def along_flow(solver: ProbabilityFlow, process: Reverse, x: Tensor, times: Tensor) -> FlowPath:
    """x at each of ``times``, monotone, along the probability-flow ODE, which has one part."""
    parameters = parameters_of(process.score)
    smooth = smoothed(solver, process, times)
    start = (stretched(x, smooth.factors[0]),)
    path = integrated(solver, lambda t, y: smooth.process.drift(y, t), start, smooth.times, parameters=parameters)
    if smooth.process is process:
        return path
    states = stretched(path.states[0], 1 / smooth.factors)
    return path._replace(states=(states,), reached=smooth.back(path.reached))


def stretched(x: Tensor, factor: Tensor) -> Tensor:
    """x times a float64 factor, () or one for each row, in the dtype of x."""
    return x * factor.to(x).reshape(-1, *[1] * (x.ndim - 1)) if factor.ndim else x * factor.to(x)


def follow(solver: ProbabilityFlow, process: Reverse, x: Tensor, times: Tensor) -> Tensor:
    """x at each of ``times``, monotone, along the probability-flow ODE: (n + 1, B, *event).

    Raises:
        RuntimeError: it did not come to the last of them.
    """
    return complete(solver, along_flow(solver, process, x, times), times).states[0]


def complete(solver: ProbabilityFlow, path: FlowPath, times: Tensor) -> FlowPath:
    """The path, which came to the last of the times.

    Raises:
        RuntimeError: it did not; says how far it came and what to do.
    """
    if path.why:
        at = path.reached[~path.lost][0].item()
        raise _stopped(
            solver, f"at t = {at:.6g}, of {times[0]:g} to {times[-1]:g}, after {path.steps} steps, {path.why}"
        )
    return path


def _stopped(solver: ProbabilityFlow, why: str) -> RuntimeError:
    return RuntimeError(
        f"torchdiffeq's {solver.method} (rtol {solver.rtol:g}, atol {solver.atol:g}) did not come to its end: {why}. "
        f"Loosen rtol and atol, raise max_steps: ProbabilityFlow(max_steps={10 * solver.max_steps}), take fixed steps: "
        'ProbabilityFlow("rk4", options={"step_size": 0.01}), integrate in float64, or stop at a larger t_min.'
    )


def _check_tolerance(solver: ProbabilityFlow, dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    if solver.rtol < 0.1 * eps:
        raise ValueError(
            f"rtol = {solver.rtol:g} is finer than the state's {dtype} resolves, {eps:.1g}: no step could meet it. "
            f"Take rtol of at least {4 * eps:.1g}{', or x in float64' if dtype != torch.float64 else ''}."
        )


def _most_steps(solver: ProbabilityFlow, method: type, times: Tensor) -> int | None:
    """The limit on steps tried; None for those of a grid.

    Raises:
        ValueError: a step size makes more.
    """
    if not _fixed(method):
        return solver.max_steps
    if "step_size" in solver.options:
        way, size = float((times[-1] - times[0]).abs()), float(solver.options["step_size"])
        if not way <= size * solver.max_steps:
            raise ValueError(
                f"options['step_size'] = {size:g} makes more steps of the way from t = {times[0]:g} to {times[-1]:g} "
                f"than max_steps = {solver.max_steps}. Take longer steps, or raise max_steps."
            )
    return max(solver.max_steps, len(times) - 1) if "grid_constructor" in solver.options else None


def _implementation(solver: ProbabilityFlow) -> type:
    """torchdiffeq's class for this method, which must know each of the options."""
    from torchdiffeq._impl.odeint import SOLVERS  # loaded at first use: it costs a second

    if solver.method not in SOLVERS:
        raise ValueError(f"method must be one of {', '.join(SOLVERS)}; got {solver.method!r}.")
    method: type = SOLVERS[solver.method]
    starts = [vars(part)["__init__"] for part in method.__mro__ if "__init__" in vars(part)]
    known = {name for start in starts for name in inspect.signature(start).parameters} | {"norm"}
    known -= {"self", "func", "y0", "rtol", "atol", "args", "kwargs", "unused_kwargs"}
    unknown = sorted(map(str, set(solver.options) - known))
    if unknown:
        raise ValueError(
            f"torchdiffeq's {solver.method} has no option {', '.join(unknown)}; it takes {', '.join(sorted(known))}."
        )
    return method


def _adaptive(method: type) -> bool:
    from torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver

    return issubclass(method, RKAdaptiveStepsizeODESolver)


def _fixed(method: type) -> bool:
    from torchdiffeq._impl.solvers import FixedGridODESolver

    return issubclass(method, FixedGridODESolver)


def spans(solver: ProbabilityFlow) -> ProbabilityFlow:
    """The solver, if it finds its own steps between two distant times.

    Raises:
        ValueError: a fixed-step method without a step size would take one step over all of it.
    """
    if _fixed(_implementation(solver)) and not {"step_size", "grid_constructor"} & set(solver.options):
        raise ValueError(
            f"solver must find its own steps, but {solver!r} has fixed ones, and there is no grid here: give it one, "
            f'ProbabilityFlow("{solver.method}", options={{"step_size": 0.01}}), or take an adaptive method.'
        )
    return solver


def _explain(solver: ProbabilityFlow, message: str) -> str:
    """Why it gave up, from the message of torchdiffeq's assertion; none from our own limit."""
    if not message:
        return f"max_steps = {solver.max_steps} was reached"
    if "underflow" in message:
        return shrank()
    if "max_num_steps" in message:
        return f"options['max_num_steps'] = {solver.options.get('max_num_steps')} was reached"
    if "non-finite" in message:
        return "the state became NaN or infinite"
    return f"torchdiffeq refused it [{message}]"
