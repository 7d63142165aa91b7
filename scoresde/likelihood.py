"""log p(x) by the instantaneous change of variables along the probability-flow ODE; encoding and decoding::

    log_prob(score, x, divergence="exact")          # nats, (B,)
    bits_per_dim(score, x, bin_width=2 / 255)
    z = encode(score, x); x = decode(score, z)

``score`` is any :class:`~scoresde.Score`: ``model.bind(label=y)``, a guided one (log p of what its ODE generates), an
exact one. It brings its SDE.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from scoresde import checks
from scoresde.models.modules import parameters_of
from scoresde.models.score import Score, check_score
from scoresde.noise import Noise, as_noise
from scoresde.reverse import Reverse
from scoresde.solvers.base import CountedScore
from scoresde.solvers.ode_backend import ProbabilityFlow, follow, integrated, spans


def log_prob(
    score: Score,
    x: Tensor,
    divergence: Literal["hutchinson", "exact"] = "hutchinson",
    *,
    noise: Noise | torch.Generator | int = 0,
    probes: int = 1,
    solver: ProbabilityFlow | None = None,
) -> Tensor:
    r"""log p(x) in nats, (B,), of the model's law at t_min::

        log p_{t_min}(x) = log π(x_T) + ∫_{t_min}^T ∇·v(x_t, t) dt,     dx = v dt = [f x - ½ g² s(x, t)] dt

    with π = N(0, σ_T² I), along the probability-flow ODE from x (Song et al. 2021, arXiv:2011.13456, eq. 39).
    Differentiable in x and the score's parameters; under ``torch.no_grad`` it keeps no graph of the whole path.

    Args:
        score: any Score, e.g. ``model.bind(label=y)``.
        x: (B, *event).
        divergence: "exact" takes one backward pass for each of the event's D entries; "hutchinson" estimates the
            trace without bias from ``probes`` Rademacher vectors, the same along the whole path (eq. 40).
        noise: source of those vectors; a seed's own stream "probe", independent of what it gives a sampler.
        probes: how many are averaged.
        solver: torchdiffeq's method and tolerances; default dopri5 at 1e-5.

    Raises:
        TypeError, ValueError: bad x, divergence, probes or solver, or a score that is not differentiable in x.
        RuntimeError: the ODE solver gave up. FloatingPointError: the path is not finite.
    """
    check_score(score)
    checks.state(x, values=True)
    if divergence not in ("hutchinson", "exact"):
        raise ValueError(f'divergence must be "hutchinson" or "exact", got {divergence!r}.')
    checks.count(probes, name="probes")
    solver = spans(solver or ProbabilityFlow())
    process = _flow(score)
    sde = score.sde
    directions: list[Tensor] = []
    if divergence == "hutchinson":
        draws = as_noise(noise, "probe")
        directions = [draws.normal(x).sign() for _ in range(probes)]

    asked = False

    def slope(x: Tensor, t: Tensor) -> Tensor:
        """The drift; at first taken apart, to see that the score itself can be differentiated."""
        nonlocal asked
        if asked:
            return process.drift(x, t)
        asked = True
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
            value = slope(leaf, t)
            if divergence == "exact":
                trace = _trace(value, leaf, graph)
            else:
                trace = torch.stack([_quadratic(value, leaf, v, graph) for v in directions]).mean(0)
        if not graph:
            value, trace = value.detach(), trace.detach()
        return value, trace

    times = torch.tensor([sde.t_min, sde.T], dtype=torch.float64)
    states, log_dets = integrated(solver, rate, (x, x.new_zeros(x.shape[0])), times, parameters=parameters_of(score))
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
    checks.positive(bin_width, name="bin_width")
    checks.state(x, values=True)
    if dequantize:
        x = x + bin_width * (torch.special.ndtr(as_noise(noise, "dequantize").normal(x)) - 0.5)
    size = math.prod(x.shape[1:])
    nats = log_prob(score, x, noise=noise, **keywords)
    return -(nats + size * math.log(bin_width)) / (size * math.log(2))


def encode(score: Score, x: Tensor, *, solver: ProbabilityFlow | None = None) -> Tensor:
    """The latent code of x: where the probability-flow ODE carries it from t_min to T, (B, *event)."""
    process = _flow(score)
    checks.state(x, values=True)
    times = torch.tensor([score.sde.t_min, score.sde.T], dtype=torch.float64)
    return _finite(follow(spans(solver or ProbabilityFlow()), process, x, times)[-1]).to(x.dtype)


def decode(score: Score, z: Tensor, *, solver: ProbabilityFlow | None = None) -> Tensor:
    """The inverse of :func:`encode`: from a latent code at T back to t_min, (B, *event)."""
    process = _flow(score)
    times = torch.tensor([score.sde.T, score.sde.t_min], dtype=torch.float64)
    return spans(solver or ProbabilityFlow()).solve(process, z, times).x


def _flow(score: Score) -> Reverse:
    """The probability-flow ODE of a score whose answers are checked."""
    return Reverse(CountedScore(check_score(score)), eta=0.0)
