"""log p(x) by the instantaneous change of variables along the probability-flow ODE; encoding and decoding::

    log_prob(score, x, divergence="exact", progress=True)   # nats, (B,)
    bits_per_dim(score, x, bin_width=2 / 255)
    z = encode(score, x); x = decode(score, z)

``score`` is any :class:`~scoresde.Score`: ``model.bind(label=y)``, a guided one (log p of what its ODE generates), an
exact one. It brings its SDE.

All four end within ``ProbabilityFlow(max_steps=...)``, or raise RuntimeError that says how far they came. Samples for
which the score is NaN or infinite are NaN in the answer, with a warning that names them; only where all are it is an
error. A graph is kept where x requires a gradient, or ``differentiable=True`` asks for one, such as for the score's
parameters: without adjoint=True its memory grows with every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.later import answering
from scoresde.models.evaluation import in_evaluation_mode
from scoresde.models.modules import parameters_of
from scoresde.models.rescheduled import size
from scoresde.models.score import Score, check_score
from scoresde.noise import Noise, as_noise
from scoresde.reverse import Reverse
from scoresde.solvers.base import state_dtype
from scoresde.solvers.incomplete import finite_rows, without
from scoresde.solvers.ode_backend import ProbabilityFlow, complete, integrated, smoothed, spans, stretched
from scoresde.solvers.progress import Bar
from scoresde.solvers.solution import CountedScore, Progress

_CHUNK = 2**18  # numbers that the directions of one chunk hold together, unless told otherwise

FlowField = Callable[..., Any]

_MOST_PROBES = 1_000_000
"""All probes are held at once."""


@in_evaluation_mode("score")
@answering()
def log_prob(
    score: Score,
    x: Tensor,
    divergence: Literal["hutchinson", "exact"] = "hutchinson",
    *,
    noise: Noise | torch.Generator | int = 0,
    probes: int = 1,
    chunk: int | None = None,
    solver: ProbabilityFlow | None = None,
    differentiable: bool = False,
    progress: bool = False,
    callback: Callable[[Progress], None] | None = None,
) -> Tensor:
    r"""log p(x) in nats, (B,), of the model's law at t_min::

        log p_{t_min}(x) = log π(x_T) + ∫_{t_min}^T ∇·v(x_t, t) dt,     dx = v dt = [f x - ½ g² s(x, t)] dt

    with π = N(0, σ_T² I), along the probability-flow ODE from x (Song et al. 2021, arXiv:2011.13456, eq. 39).
    Differentiable in x, where x requires a gradient, and in the score's parameters, where it does or
    ``differentiable`` is set; in memory that does not grow with the steps by ``ProbabilityFlow(adjoint=True)``.

    Args:
        score: any Score, e.g. ``model.bind(label=y)``.
        x: (B, *event).
        divergence: "exact" takes the work of D backward passes for each of some hundred evaluations, D being the
            number of the event's entries: beyond some thousand, see how long it will be with ``progress``, or take
            "hutchinson", which estimates the trace without bias from ``probes`` Rademacher vectors, the same along
            the whole path (eq. 40).
        noise: source of those vectors; a seed's own stream "probe", independent of what it gives a sampler.
        probes: how many are averaged.
        chunk: directions of "exact" that go through one backward pass together, in as much more memory; default as
            many as 2^18 numbers hold, 1 for scores whose backward pass cannot be batched.
        solver: torchdiffeq's method, tolerances and limit; default dopri5 at 1e-5, at most 2000 steps.
        differentiable: keep a graph though x requires no gradient: for the score's parameters, or what it holds.
        progress: show a bar of the way in log-SNR.
        callback: called whenever a step is done, with :class:`~scoresde.solvers.Progress` of which ``steps`` is the
            most that will be tried. What it raises ends the run and comes out as it is.

    Raises:
        TypeError, ValueError: bad x, divergence, probes or solver, or a score that is not differentiable in x.
        RuntimeError: the ODE solver reached its limit or gave up. FloatingPointError: no sample's path is finite.

    Warns:
        IncompleteWarning: names samples whose path is not finite; they are NaN.
    """
    check_score(score)
    checks.state(x, values=True)
    divergence = checks.one_of(divergence, ("hutchinson", "exact"), name="divergence")
    probes = checks.count(probes, name="probes", most=_MOST_PROBES)
    chunk = max(1, _CHUNK // max(1, x.numel())) if chunk is None else checks.count(chunk, name="chunk")
    draws = as_noise(noise, "probe")
    directions: list[Tensor] = []
    if divergence == "hutchinson":
        directions = [draws.normal(x).sign() for _ in range(probes)]

    def slope(process: Reverse, bar: Bar) -> FlowField:
        trace = _Trace(directions, chunk, bar)
        asked = False

        def drift(x: Tensor, t: Tensor) -> Tensor:
            """At first taken apart, to see that the score itself can be differentiated."""
            nonlocal asked
            if asked:
                return process.drift(x, t)
            asked = True
            sde = process.sde
            bent = process.score.linear(x, t, 0.0, -0.5 * sde.g(t) ** 2)
            if not bent.requires_grad:
                raise ValueError(
                    "log_prob differentiates the score in x, but the score's answer does not depend on x: it is "
                    "detached inside, or runs under torch.inference_mode (use torch.no_grad)."
                )
            return sde.f(t) * x + bent

        def rate(t: Tensor, state: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
            graph = torch.is_grad_enabled()
            with torch.enable_grad():
                leaf = state if graph and state.requires_grad else state.detach().requires_grad_(True)
                value = drift(leaf, t)
                divergence = trace(value, leaf, graph)
            return (value, divergence) if graph else (value.detach(), divergence.detach())

        return rate

    state = (x, x.new_zeros(x.shape[0]))
    end, log_det = _carried("log_prob", score, state, slope, _Way(True, solver, differentiable, progress, callback))
    return _whole("log_prob", score.sde.prior_log_prob(end) + log_det)


class _Trace:
    """tr(∂v/∂x) of each sample, (B,), of a slope v(x): exact, or estimated from given directions.

    Args:
        directions: (B, *event) each, to estimate it from; none for the exact trace.
        chunk: how many rows of the Jacobian are taken together.
        bar: is told of them.
    """

    def __init__(self, directions: list[Tensor], chunk: int, bar: Bar) -> None:
        self.directions, self.chunk, self.bar = directions, chunk, bar

    def __call__(self, value: Tensor, x: Tensor, graph: bool) -> Tensor:
        """With a graph of the trace itself, or without."""
        if self.directions:
            return torch.stack([_quadratic(value, x, v, graph) for v in self.directions]).mean(0)
        batch, size = len(x), math.prod(x.shape[1:])
        trace, first = value.new_zeros(batch), 0
        while first < size:
            last = min(first + self.chunk, size)
            try:
                trace = trace + self._rows(value, x, first, last, graph)
            except RuntimeError:
                if last - first == 1:
                    raise
                self.chunk = 1  # a backward pass that cannot be batched, or not in this memory
                continue
            first = last
            if size > self.chunk:
                self.bar.note(f", direction {first} of {size}")
        return trace

    @staticmethod
    def _rows(value: Tensor, x: Tensor, first: int, last: int, graph: bool) -> Tensor:
        """Σ of the diagonal from ``first`` to ``last``: samples do not mix, so one pass serves the whole batch."""
        flat, count = value.reshape(len(x), -1), last - first
        if count == 1:
            (row,) = torch.autograd.grad(flat[:, first].sum(), x, create_graph=graph, retain_graph=True)
            return row.reshape(len(x), -1)[:, first]
        units = flat.new_zeros(count, 1, flat.shape[1])
        units.diagonal(first, 0, 2).fill_(1.0)
        units = units.expand(count, *flat.shape)
        (rows,) = torch.autograd.grad(flat, x, units, create_graph=graph, retain_graph=True, is_grads_batched=True)
        return rows.reshape(count, len(x), -1).diagonal(first, 0, 2).sum(1)


def _quadratic(value: Tensor, x: Tensor, v: Tensor, graph: bool) -> Tensor:
    """vᵀ (∂value/∂x) v for each sample, (B,)."""
    (product,) = torch.autograd.grad(value, x, v, create_graph=graph, retain_graph=True)
    return (product * v).reshape(x.shape[0], -1).sum(1)


def bits_per_dim(
    score: Score,
    x: Tensor,
    bin_width: float,
    *,
    noise: Noise | torch.Generator | int = 0,
    dequantize: bool = True,
    **keywords: Any,
) -> Tensor:
    r"""Bits per dimension of quantised data, (B,)::

        -[log p(x + u) + D log Δ] / (D log 2),     u ~ U(-Δ/2, Δ/2)^D

    which on average bounds from above the code length of the values under the model (Theis et al. 2016,
    arXiv:1511.01844, section 3.1). The scaling of the data enters through Δ alone, and in plain sight.

    Args:
        score: as in :func:`log_prob`.
        x: (B, *event), the centres of the bins, in the model's units.
        bin_width: Δ, the distance between neighbouring values in those units: 2/255 for 8-bit images in [-1, 1].
        noise: source of u (stream "dequantize") and of the Hutchinson vectors (stream "probe").
        dequantize: add u; leave it out where x carries it already.
        keywords: passed on to :func:`log_prob`.
    """
    check_score(score)
    bin_width = checks.positive(bin_width, name="bin_width")
    checks.state(x, values=True)
    size = math.prod(x.shape[1:])
    if not size:
        raise ValueError(f"x must have at least one number in each sample, (B, *event); got {tuple(x.shape)}.")
    if checks.flag(dequantize, name="dequantize"):
        x = x + bin_width * (torch.special.ndtr(as_noise(noise, "dequantize").normal(x)) - 0.5)
    nats = log_prob(score, x, noise=noise, **keywords)
    return -(nats + size * math.log(bin_width)) / (size * math.log(2))


@in_evaluation_mode("score")
@answering()
def encode(
    score: Score,
    x: Tensor,
    *,
    solver: ProbabilityFlow | None = None,
    differentiable: bool = False,
    progress: bool = False,
    callback: Callable[[Progress], None] | None = None,
) -> Tensor:
    """The latent code of x: where the probability-flow ODE carries it from t_min to T, (B, *event).

    Args:
        score: any Score.
        x: (B, *event).
        solver, differentiable, progress, callback: as in :func:`log_prob`.

    Raises and warns as :func:`log_prob`.
    """
    check_score(score)
    checks.state(x, values=True)
    way = _Way(True, solver, differentiable, progress, callback)
    return _whole("encode", _carried("encode", score, (x,), _drift, way)[0]).to(x.dtype)


@in_evaluation_mode("score")
@answering()
def decode(
    score: Score,
    z: Tensor,
    *,
    solver: ProbabilityFlow | None = None,
    differentiable: bool = False,
    progress: bool = False,
    callback: Callable[[Progress], None] | None = None,
) -> Tensor:
    """The inverse of :func:`encode`: from a latent code at T back to t_min, (B, *event); arguments as there."""
    check_score(score)
    checks.state(z, name="z", values=True)
    ends = torch.tensor([score.sde.T, score.sde.t_min], dtype=torch.float64)
    wide = z.to(state_dtype(score.sde, ends, z.dtype))
    way = _Way(False, solver, differentiable, progress, callback)
    return _whole("decode", _carried("decode", score, (wide,), _drift, way)[0]).to(z.dtype)


def _drift(process: Reverse, bar: Bar) -> FlowField:
    return lambda t, y: process.drift(y, t)


class _Way(NamedTuple):
    """Which way the ODE is followed, and how."""

    upward: bool
    solver: ProbabilityFlow | None
    differentiable: bool
    progress: bool
    callback: Callable[[Progress], None] | None


def _carried(
    what: str,
    score: Score,
    state: tuple[Tensor, ...],
    slope: Callable[[Reverse, Bar], FlowField],
    way: _Way,
) -> tuple[Tensor, ...]:
    """The parts of the state at the other end of the ODE; NaN in samples for which the score is.

    Raises:
        RuntimeError: the solver did not come there.
    """
    differentiable = checks.flag(way.differentiable, name="differentiable")
    progress, callback = checks.flag(way.progress, name="progress"), way.callback
    if callback is not None:
        checks.function(callback, name="callback", what="of one argument, Progress", takes=1)
    hint = "The ODE is integrated along with other quantities, and both ways: give torchdiffeq's method and tolerances."
    given = ProbabilityFlow() if way.solver is None else way.solver
    solver = spans(checks.instance(given, ProbabilityFlow, name="solver", hint=hint))
    sde = score.sde
    times = torch.tensor([sde.t_min, sde.T], dtype=torch.float64)
    times = times if way.upward else times.flip(0)
    graph = torch.is_grad_enabled() and (state[0].requires_grad or differentiable or solver.adjoint)

    def heard(step: int, t: Tensor, parts: tuple[Tensor, ...]) -> None:
        if callback is not None:
            at = smooth.back(t)
            factor = size(smooth.process.sde, t.double()) / size(sde, at.double())
            callback(Progress(step, solver.max_steps, at, stretched(parts[0], 1 / factor)))

    with Bar(progress, what, sde, times[0], times[1]) as bar, torch.set_grad_enabled(graph):
        process = Reverse(CountedScore(score, bar.asked if bar.over_evaluations else None), eta=0.0)
        smooth = smoothed(solver, process, times)
        first, last = smooth.factors
        path = integrated(
            solver,
            slope(smooth.process, bar),
            (stretched(state[0], first), *state[1:]),
            smooth.times,
            parameters=parameters_of(score),
            heard=None if callback is None else heard,
        )
        path = complete(solver, path._replace(reached=smooth.back(path.reached)), times)
        end, *others = (part[-1] for part in path.states)
        # ln |det| of both changes of scale, of each of the numbers of a sample
        change = (first / last).log() * math.prod(end.shape[1:])
        return stretched(end, 1 / last), *(part + change.to(part) for part in others)


def _whole(what: str, value: Tensor) -> Tensor:
    """The value (B, ...), with NaN and a warning for samples that are not finite."""
    finite = finite_rows(value)
    if bool(finite.all()):
        return value
    advice = "Look at the score near t_min and T, in float32 or wider."
    return without(value, finite, f"{what} ended with NaN or infinite values", advice)
