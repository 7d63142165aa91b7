"""log p(x) by the instantaneous change of variables along the probability-flow ODE; encoding and decoding."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from scoresde import checks
from scoresde.noise import Noise, as_noise
from scoresde.reverse import Reverse
from scoresde.score import BoundScore, Score, ScoreModel, parameters_of
from scoresde.sde import SDE
from scoresde.solvers.base import CountedScore
from scoresde.solvers.ode_backend import ProbabilityFlow, integrate, spans

Source = Reverse | ScoreModel | BoundScore


def _source(source: Source, cond: dict[str, Any]) -> tuple[SDE, Score]:
    if isinstance(source, ScoreModel):
        return source.sde, source.bind(**cond)
    if cond:
        raise ValueError(f"conditions ({', '.join(cond)}) are taken with a ScoreModel only; bind them before.")
    if isinstance(source, BoundScore):
        return source.model.sde, source
    if isinstance(source, Reverse):
        return source.sde, source.score
    raise TypeError(f"expected a Reverse, a ScoreModel or a bound model, got {type(source).__name__}.")


def log_prob(
    source: Source,
    x: Tensor,
    divergence: Literal["hutchinson", "exact"] = "hutchinson",
    *,
    noise: Noise | torch.Generator | int = 0,
    probes: int = 1,
    solver: ProbabilityFlow | None = None,
    **cond: Any,
) -> Tensor:
    r"""log p(x) in nats, (B,), of the model's law at t_min::

        log p_{t_min}(x) = log π(x_T) + ∫_{t_min}^T ∇·v(x_t, t) dt,     dx = v dt = [f x - ½ g² s(x, t)] dt

    with π = N(0, σ_T² I), along the probability-flow ODE from x (Song et al. 2021, arXiv:2011.13456, eq. 39).
    Differentiable in x and the score's parameters; under ``torch.no_grad`` it keeps no graph of the whole path.

    Args:
        source: a Reverse (its η plays no part), a ScoreModel, or a bound model.
        x: (B, *event).
        divergence: "exact" takes one backward pass for each of the event's D entries; "hutchinson" estimates the
            trace without bias from ``probes`` Rademacher vectors, the same along the whole path (eq. 40).
        noise: source of those vectors; a seed's own stream "probe", independent of what it gives a sampler.
        probes: how many are averaged.
        solver: torchdiffeq's method and tolerances; default dopri5 at 1e-5.
        cond: conditions, with a ScoreModel.

    Raises:
        TypeError, ValueError: bad x, divergence, probes or solver, or a score that is not differentiable in x.
        RuntimeError: the ODE solver gave up. FloatingPointError: the path is not finite.
    """
    checks.state(x, values=True)
    if divergence not in ("hutchinson", "exact"):
        raise ValueError(f'divergence must be "hutchinson" or "exact", got {divergence!r}.')
    checks.count(probes, name="probes")
    solver = spans(solver or ProbabilityFlow())
    sde, score = _source(source, cond)
    score = CountedScore(score)
    process = Reverse(sde, score, eta=0.0)
    size = math.prod(x.shape[1:])
    directions: list[Tensor] = []
    if divergence == "hutchinson":
        draws = as_noise(noise, "probe")
        directions = [draws.normal(x).sign() for _ in range(probes)]

    def rate(t: Tensor, state: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = state if graph and state.requires_grad else state.detach().requires_grad_(True)
            value = process.score(leaf, t)
            if not value.requires_grad:
                raise ValueError(
                    "log_prob differentiates the score in x, but the score's answer does not depend on x: it is "
                    "detached inside, or runs under torch.inference_mode (use torch.no_grad)."
                )
            if divergence == "exact":
                trace = _trace(value, leaf, graph)
            else:
                trace = torch.stack([_quadratic(value, leaf, v, graph) for v in directions]).mean(0)
        if not graph:
            value, trace = value.detach(), trace.detach()
        f, half = sde.f(t), 0.5 * sde.g(t) ** 2
        return f * state - half * value, f * size - half * trace

    times = torch.tensor([sde.t_min, sde.T], dtype=torch.float64)
    states, log_dets = integrate(solver, rate, (x, x.new_zeros(x.shape[0])), times, parameters=parameters_of(score))
    return _finite(sde.prior_log_prob(states[-1]) + log_dets[-1])


def _finite(value: Tensor) -> Tensor:
    if value.numel() and not bool(value.detach().isfinite().all()):
        raise FloatingPointError("the probability-flow ODE ended with NaN or infinite values: look at the score.")
    return value


def _quadratic(value: Tensor, x: Tensor, v: Tensor, graph: bool) -> Tensor:
    """vᵀ (∂value/∂x) v for each sample, (B,)."""
    (product,) = torch.autograd.grad(value, x, v, create_graph=graph, retain_graph=True)
    return (product * v).reshape(x.shape[0], -1).sum(1)


def _trace(value: Tensor, x: Tensor, graph: bool) -> Tensor:
    """tr(∂value/∂x) for each sample, (B,): samples do not mix, so one backward pass serves the whole batch."""
    flat = value.reshape(x.shape[0], -1)
    trace = torch.zeros_like(flat[:, 0])
    for i in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, i].sum(), x, create_graph=graph, retain_graph=True)
        trace = trace + row.reshape(x.shape[0], -1)[:, i]
    return trace


def bits_per_dim(
    source: Source,
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
        source: as in :func:`log_prob`.
        x: (B, *event), the centres of the bins, in the model's units.
        bin_width: Δ, the distance between neighbouring values in those units: 2/255 for 8-bit images in [-1, 1].
        noise: source of u (stream "dequantise") and of the Hutchinson vectors (stream "probe").
        dequantize: add u; leave it out where x carries it already.
        keywords: passed on to :func:`log_prob`.
    """
    checks.positive(bin_width, name="bin_width")
    checks.state(x, values=True)
    if dequantize:
        x = x + bin_width * (torch.special.ndtr(as_noise(noise, "dequantise").normal(x)) - 0.5)
    size = math.prod(x.shape[1:])
    nats = log_prob(source, x, noise=noise, **keywords)
    return -(nats + size * math.log(bin_width)) / (size * math.log(2))


def encode(source: Source, x: Tensor, *, solver: ProbabilityFlow | None = None, **cond: Any) -> Tensor:
    """The latent code of x: where the probability-flow ODE carries it from t_min to T, (B, *event)."""
    checks.state(x, values=True)
    sde, score = _source(source, cond)
    process = Reverse(sde, CountedScore(score), eta=0.0)
    times = torch.tensor([sde.t_min, sde.T], dtype=torch.float64)
    solver = spans(solver or ProbabilityFlow())
    (states,) = integrate(solver, lambda t, y: process.drift(y, t), (x,), times, parameters=parameters_of(score))
    return _finite(states[-1]).to(x.dtype)


def decode(source: Source, z: Tensor, *, solver: ProbabilityFlow | None = None, **cond: Any) -> Tensor:
    """The inverse of :func:`encode`: from a latent code at T back to t_min, (B, *event)."""
    sde, score = _source(source, cond)
    times = torch.tensor([sde.T, sde.t_min], dtype=torch.float64)
    return spans(solver or ProbabilityFlow()).solve(Reverse(sde, score, eta=0.0), z, times).x
