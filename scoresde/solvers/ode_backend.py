"""The probability-flow ODE through torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.solvers.base import Solver, only_ode


@dataclass(frozen=True)
class ProbabilityFlow(Solver):
    """dx/dt = f x - ½ g² s(x, t) by any method of torchdiffeq, fixed-step or adaptive.

    Fixed-step methods step exactly on the grid; adaptive ones choose their own steps between its ends, one step size
    for the whole batch: the samples share an error norm, so an adaptive result depends on its batch within the
    tolerance.

    Args:
        method: a name in ``torchdiffeq._impl.odeint.SOLVERS``, e.g. "dopri5", "dopri8", "bosh3", "rk4", "midpoint".
        rtol: relative tolerance of adaptive methods.
        atol: absolute tolerance of adaptive methods, in units of x.
        options: further options of the method, as torchdiffeq takes them, e.g. {"max_num_steps": 1000}.
        adjoint: gradients by the adjoint ODE, in memory independent of the number of steps. They reach x and the
            parameters of the score (which must then be an nn.Module, or a bound model).

    Raises:
        ValueError: unknown method.
        RuntimeError: the method gave up; says why and what to change.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    options: Mapping[str, Any] = field(default_factory=dict)
    adjoint: bool = False
    default_eta: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        checks.positive(self.rtol, name="rtol")
        checks.positive(self.atol, name="atol")

    def check(self, process: Reverse) -> None:
        """η must be 0, and the method known."""
        only_ode(self, process)
        from torchdiffeq._impl.odeint import SOLVERS  # loaded at first use: it costs a second

        if self.method not in SOLVERS:
            raise ValueError(f"method must be one of {', '.join(SOLVERS)}; got {self.method!r}.")

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """From t to s."""
        return self._run(process, x, torch.stack([t, s]), noise, lambda step, x: None), None

    def _run(
        self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise, report: Callable[[int, Tensor], None]
    ) -> Tensor:
        states = integrate(self, lambda t, x: process.drift(x, t), (x,), grid, parameters=_parameters(process))[0]
        for i in range(1, len(grid)):
            report(i, states[i])
        return states[-1]


def integrate(
    solver: ProbabilityFlow,
    field: Callable[..., Any],
    state: tuple[Tensor, ...],
    times: Tensor,
    *,
    parameters: tuple[nn.Parameter, ...] = (),
) -> tuple[Tensor, ...]:
    """Each part of ``state`` at each of ``times`` (monotone), under d(state)/dt = field(t, *state).

    ``field`` answers a tensor for a state of one part, a tuple otherwise.
    """
    import torchdiffeq
    from torchdiffeq._impl.odeint import SOLVERS
    from torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver

    single = len(state) == 1
    low, high = times.detach().aminmax()

    def rate(t: Tensor, y: Any) -> Any:
        t = t.clamp(low, high)  # the search for a first step may look past the end, where the SDE is not defined
        return field(t, y) if single else field(t, *y)

    # torchdiffeq mixes times into arithmetic with x: they must share a device
    times, low, high = (v.to(state[0].device) for v in (times, low, high))
    options = dict(solver.options)
    if issubclass(SOLVERS[solver.method], RKAdaptiveStepsizeODESolver):
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
        raise RuntimeError(_explain(solver, str(error))) from error
    return (out,) if single else tuple(out)


def _explain(solver: ProbabilityFlow, message: str) -> str:
    if "underflow" in message:
        reason = (
            "its step size shrank to nothing: the tolerance is below the rounding of the state, or the score is not "
            "finite or not smooth there. Loosen rtol and atol, integrate in float64, or stop at a larger t_min."
        )
    elif "max_num_steps" in message:
        reason = "it reached options['max_num_steps']. Allow more steps, or loosen rtol and atol."
    elif "non-finite" in message:
        reason = "the state became NaN or infinite. Check the score near the ends of the grid."
    else:
        reason = "torchdiffeq refused it."
    return f"torchdiffeq's {solver.method} (rtol {solver.rtol:g}, atol {solver.atol:g}) gave up: {reason} [{message}]"


def _parameters(process: Reverse) -> tuple[nn.Parameter, ...]:
    score = getattr(process.score, "score", process.score)  # under the counter
    module = getattr(score, "model", score)
    return tuple(module.parameters()) if isinstance(module, nn.Module) else ()
