"""The probability-flow ODE through torchdiffeq::

    sample(score, shape, solver=ProbabilityFlow("dopri5", rtol=1e-5, atol=1e-5))

:class:`ProbabilityFlow` takes any method of torchdiffeq, fixed-step or adaptive, at η = 0. :func:`integrated` solves
any ODE by its method, forwards or backwards, for likelihoods and inversion.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.models.modules import parameters_of
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.solvers.base import Ending, Report, Solver, only_ode, unheard


@dataclass(frozen=True)
class ProbabilityFlow(Solver):
    """dx/dt = f x - ½ g² s(x, t) by any method of torchdiffeq, fixed-step or adaptive.

    Fixed-step methods step exactly on the grid; adaptive ones choose their own steps between its ends, one step size
    for the whole batch: the samples share an error norm, so an adaptive result depends on its batch within the
    tolerance. Their states at the inner times of the grid are interpolated.

    Args:
        method: a name in ``torchdiffeq._impl.odeint.SOLVERS``, e.g. "dopri5", "dopri8", "bosh3", "rk4", "midpoint".
        rtol: relative tolerance of adaptive methods.
        atol: absolute tolerance of adaptive methods, in units of x.
        options: further options of the method, as torchdiffeq takes them, e.g. {"max_num_steps": 1000} (which it
            counts between neighbouring times of the grid).
        adjoint: gradients by the adjoint ODE, in memory independent of the number of steps. They reach x and the
            parameters of every module behind the score (:func:`~scoresde.models.modules_of`), but not those that a
            plain function has closed over, nor tensors in the SDE.

    Raises:
        ValueError: unknown method, an option that the method does not know, or a grid of unequal steps for an Adams
            method, whose coefficients in torchdiffeq are those of equal steps.
        RuntimeError: the method gave up; says why and what to change.
        FloatingPointError: the score answered NaN.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    options: Mapping[str, Any] = field(default_factory=dict)
    adjoint: bool = False
    default_eta: ClassVar[float] = 0.0
    steps_on_grid: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.positive(self.rtol, name="rtol")
        checks.positive(self.atol, name="atol")

    def check(self, process: Reverse) -> None:
        """η must be 0, and the method known."""
        only_ode(self, process)
        _implementation(self)

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """From t to s."""
        return self.integrate(process, x, torch.stack([t, s]), noise, unheard).x, None

    def integrate(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise, report: Report) -> Ending:
        """All at once."""
        if "adams" in self.method and not {"step_size", "grid_constructor"} & set(self.options):
            steps = grid.detach().diff()
            if bool(((steps / steps.mean() - 1).abs() > 1e-6).any()):
                raise ValueError(
                    f"{self.method} has coefficients for equal steps, but the grid's lie between {-steps.max():g} and "
                    f"{-steps.min():g}: take grids.uniform or another method."
                )
        states = follow(self, process, x, grid)
        for i in range(1, len(grid)):
            report(i, states[i])
        return Ending(states[-1])


def integrated(
    solver: ProbabilityFlow,
    field: Callable[..., Any],
    state: tuple[Tensor, ...],
    times: Tensor,
    *,
    parameters: tuple[nn.Parameter, ...] = (),
) -> tuple[Tensor, ...]:
    """Each part of ``state`` at each of ``times`` (monotone), under d(state)/dt = field(t, *state).

    ``field`` answers a tensor for a state of one part, a tuple otherwise. The answer is at least float32.
    """
    import torchdiffeq

    method = _implementation(solver)
    single = len(state) == 1
    state = tuple(part.to(torch.promote_types(part.dtype, torch.float32)) for part in state)
    if not state[0].numel():
        return tuple(part.expand(len(times), *part.shape) for part in state)  # an error norm needs samples
    low, high = times.detach().aminmax()
    last: tuple[Tensor, ...] = ()

    def rate(t: Tensor, y: Any) -> Any:
        nonlocal last
        if checks.readable(t) and t.isnan().item():
            raise FloatingPointError(_not_a_number(solver))
        t = t.clamp(low, high)  # the search for a first step may look past the end, where the SDE is not defined
        parts = (y,) if single else y
        out = field(t, *parts)
        last = tuple(part.to(parts[0].dtype) for part in ((out,) if single else out))
        return last[0] if single else last

    # torchdiffeq mixes times into arithmetic with x: they must share a device
    times, low, high = (v.to(state[0].device) for v in (times, low, high))
    options = dict(solver.options)
    if _adaptive(method):
        # adaptive methods otherwise step past the end and interpolate back
        options.setdefault("step_t", times[-1:].detach())
    keywords: dict[str, Any] = {"rtol": solver.rtol, "atol": solver.atol, "method": solver.method, "options": options}
    try:
        if solver.adjoint:
            out = torchdiffeq.odeint_adjoint(
                rate, state[0] if single else state, times, adjoint_params=parameters, **keywords
            )
        else:
            out = torchdiffeq.odeint(rate, state[0] if single else state, times, **keywords)
    except AssertionError as error:
        if any(bool(part.isnan().any()) for part in last):
            raise FloatingPointError(_not_a_number(solver)) from error
        raise RuntimeError(_explain(solver, str(error))) from error
    return (out,) if single else tuple(out)


def follow(solver: ProbabilityFlow, process: Reverse, x: Tensor, times: Tensor) -> Tensor:
    """x at each of ``times``, monotone, along the probability-flow ODE: (n + 1, B, *event)."""
    parameters = parameters_of(process.score)
    return integrated(solver, lambda t, y: process.drift(y, t), (x,), times, parameters=parameters)[0]


def _not_a_number(solver: ProbabilityFlow) -> str:
    return f"torchdiffeq's {solver.method} lost its step size: the score answered NaN."


def _implementation(solver: ProbabilityFlow) -> type:
    """torchdiffeq's class for this method, which must know each of the options."""
    from torchdiffeq._impl.odeint import SOLVERS  # loaded at first use: it costs a second

    if solver.method not in SOLVERS:
        raise ValueError(f"method must be one of {', '.join(SOLVERS)}; got {solver.method!r}.")
    method: type = SOLVERS[solver.method]
    starts = [vars(part)["__init__"] for part in method.__mro__ if "__init__" in vars(part)]
    known = {name for start in starts for name in inspect.signature(start).parameters} | {"norm"}
    known -= {"self", "func", "y0", "rtol", "atol", "args", "kwargs", "unused_kwargs"}
    unknown = sorted(set(solver.options) - known)
    if unknown:
        raise ValueError(
            f"torchdiffeq's {solver.method} has no option {', '.join(unknown)}; it takes {', '.join(sorted(known))}."
        )
    return method


def _adaptive(method: type) -> bool:
    from torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver

    return issubclass(method, RKAdaptiveStepsizeODESolver)


def spans(solver: ProbabilityFlow) -> ProbabilityFlow:
    """The solver, if it finds its own steps between two distant times.

    Raises:
        ValueError: a fixed-step method without a step size would take one step over all of it.
    """
    from torchdiffeq._impl.solvers import FixedGridODESolver

    if issubclass(_implementation(solver), FixedGridODESolver) and not {"step_size", "grid_constructor"} & set(
        solver.options
    ):
        raise ValueError(
            f"{solver.method} has fixed steps, and there is no grid here for it to step on: give it one, "
            f'ProbabilityFlow("{solver.method}", options={{"step_size": 0.01}}), or take an adaptive method.'
        )
    return solver


def _explain(solver: ProbabilityFlow, message: str) -> str:
    if "underflow" in message:
        reason = (
            "its step size shrank to nothing: the tolerance is below the rounding of the state, or the score diverges "
            "or jumps there. Loosen rtol and atol, integrate in float64, or stop at a larger t_min."
        )
    elif "max_num_steps" in message:
        reason = "it reached options['max_num_steps']. Allow more steps, or loosen rtol and atol."
    elif "non-finite" in message:
        reason = "the state became NaN or infinite. Check the score near the ends of the grid."
    else:
        reason = "torchdiffeq refused it."
    return f"torchdiffeq's {solver.method} (rtol {solver.rtol:g}, atol {solver.atol:g}) gave up: {reason} [{message}]"
