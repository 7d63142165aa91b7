"""Metropolis-adjusted Langevin: a corrector whose stationary law is p_t itself::

    sample(score, shape, solver=PredictorCorrector(EulerMaruyama(), AdjustedLangevin()), steps=50)

:class:`AdjustedLangevin` accepts or rejects each Langevin step, sample by sample. With ``log_prob`` p_t is kept
exactly; from the score alone, up to the quadrature of a line integral. Its ``transition`` is one
:class:`Move` of the chain.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde import checks
from scoresde.noise import Noise
from scoresde.reverse import Reverse

__all__ = ["AdjustedLangevin", "Move"]


class Move(NamedTuple):
    """One step of a Metropolis chain for each sample.

    Attributes:
        x: (B, *event) where the samples are now.
        accepted: (B,) bool, whether each went to its proposal.
        log_ratio: (B,) log of the acceptance ratio, float32 or wider; accepted with probability min(1, e^it).
        score: (B, *event) s(x, t), for the next step.
        log_prob: (B,) log p(x, t) up to a constant, where the method asks for it.
    """

    x: Tensor
    accepted: Tensor
    log_ratio: Tensor
    score: Tensor
    log_prob: Tensor | None


@dataclass(frozen=True)
class AdjustedLangevin:
    r"""Langevin steps that are accepted or rejected, each sample on its own, so that p_t is kept::

        y = x + τ s(x, t) + sqrt(2τ) z        τ = 2 (r σ(t))²
        log ratio = log p(y) - log p(x) - ½ (y - x)·(s_x + s_y) + ¼ τ (|s_x|² - |s_y|²)

    MALA (Roberts & Tweedie 1996, doi:10.2307/3318418). With ``log_prob`` the chain satisfies detailed
    balance with respect to p_t at every step size. From the score alone, log p(y) - log p(x) = ∫_0^1 s(x + u d)·d du,
    d = y - x, by Gauss-Lobatto quadrature with ``nodes`` inner points: exact where s is a polynomial of degree up to
    2 nodes + 1 along the line, so on every Gaussian even without inner points, which cost nothing; elsewhere the
    stationary law is off by O(τ^{nodes + 1}), and without inner points by O(τ), as the unadjusted chain's, only less.

    On a Gaussian N(0, c I) in d dimensions the mean acceptance tends to
    2 Φ(-½ sqrt(d τ³ / (2 c³))) for large d (Roberts & Rosenthal 1998, doi:10.1111/1467-9868.00123); 0.57 is the most
    efficient. A step of ``steps`` costs 1 + nodes evaluations (1 with ``log_prob``), and one more before the first.

    The derivative of a run is that along the moves which it made: the choice itself has none, so it is not that of an
    expectation over chains.

    Args:
        log_prob: (x, t) -> (B,), log p_t(x) up to a constant for each t, of which the process's score must be the
            gradient for good acceptance; whatever the score, the law kept is that of ``log_prob``.
        snr: the signal-to-noise ratio r; any positive value keeps p_t, large ones are mostly rejected.
        steps: Langevin steps at each correction.
        nodes: inner points of the line integral, 1 by default; only without ``log_prob``.
    """

    log_prob: Callable[[Tensor, Tensor], Tensor] | None = None
    snr: float = 0.16
    steps: int = 1
    nodes: int | None = None

    def __post_init__(self) -> None:
        if self.log_prob is not None:
            checks.function(self.log_prob, name="log_prob", what="(x, t) -> log p_t(x), (B,)", takes=2)
        checks.fields(self)
        checks.positive(self.snr, name="snr")
        checks.count(self.steps, name="steps")
        if self.nodes is not None:
            checks.count(self.nodes, name="nodes", least=0)
            if self.log_prob is not None:
                raise ValueError(
                    "nodes belong to the line integral of the score; with log_prob there is none: drop one."
                )
            if self.nodes > 8:
                raise ValueError(f"nodes must be at most 8, whose error is below rounding; got {self.nodes}.")

    def step_size(self, process: Reverse, t: Tensor) -> Tensor:
        """τ = 2 (r σ(t))²."""
        return 2 * (self.snr * process.sde.sigma(t)) ** 2

    def correct(self, process: Reverse, x: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """``steps`` moves at time t; where σ = 0 none."""
        if self.step_size(process, t).item() == 0:
            return x
        move: Move | None = None
        for _ in range(self.steps):
            move = self.transition(process, x, t, noise, move)
            x = move.x
        return x

    def transition(self, process: Reverse, x: Tensor, t: Tensor, noise: Noise, last: Move | None = None) -> Move:
        """One move from x (B, *event) at a time t () with σ(t) > 0, and whether each sample took it.

        Args:
            process: gives score and schedule.
            x: the states.
            t: the time.
            noise: one normal for each element, and one for each sample.
            last: the move that led to x, which spares its score (and log_prob) a second evaluation.
        """
        size = self.step_size(process, t)
        score = process.score(x, t) if last is None else last.score
        density = self._density(x, t) if last is None else last.log_prob
        proposal = x + size * score + (2 * size).sqrt() * noise.normal(x)
        ahead = process.score(proposal, t)
        if self.log_prob is None:
            there, gain = None, self._line_integral(process, x, proposal, t, score, ahead)
        else:
            there = self._density(proposal, t)
            assert there is not None and density is not None
            gain = there - density
        log_ratio = gain + proposal_log_ratio(_wide(proposal - x), size, _wide(score), _wide(ahead))
        accepted = accepts(noise, log_ratio)
        taken = _each(accepted, x)
        return Move(
            torch.where(taken, proposal, x),
            accepted,
            log_ratio,
            torch.where(taken, ahead, score),
            None if there is None else torch.where(accepted, there, density),  # type: ignore[arg-type]
        )

    def _density(self, x: Tensor, t: Tensor) -> Tensor | None:
        if self.log_prob is None:
            return None
        value = self.log_prob(x, t)
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"log_prob must return one value for each sample, ({len(x)},); it returned {got}.")
        return _wide(value)

    def _line_integral(self, process: Reverse, x: Tensor, y: Tensor, t: Tensor, score: Tensor, ahead: Tensor) -> Tensor:
        """∫_0^1 s(x + u (y - x))·(y - x) du, (B,)."""
        places, weights, end = _lobatto(1 if self.nodes is None else self.nodes)
        mean = end * (_wide(score) + _wide(ahead))
        for u, w in zip(places, weights, strict=True):
            mean = mean + w * _wide(process.score(torch.lerp(x, y, u), t))
        return dot(_wide(y - x), mean)


@functools.cache
def _lobatto(inner: int) -> tuple[list[float], list[float], float]:
    """Inner nodes on [0, 1], their weights, and the weight of each end; exact for polynomials of degree 2 inner + 1.

    Nodes ±1 and the zeros of P'_m, weights 2 / (m (m + 1) P_m²), m = inner + 1, on [-1, 1].
    """
    legendre = np.polynomial.legendre.Legendre.basis(inner + 1)
    nodes = np.real(legendre.deriv().roots())
    total = (inner + 1) * (inner + 2)
    return ((nodes + 1) / 2).tolist(), (1 / (total * legendre(nodes) ** 2)).tolist(), 1 / total


def proposal_log_ratio(d: Tensor, size: Tensor, here: Tensor, ahead: Tensor) -> Tensor:
    """log q(x|y)/q(y|x), (B,), of Langevin proposals y = x + d, d = τ s(x) + sqrt(2τ) z.

    Args:
        d: (B, *event).
        size: τ, () or (B,).
        here: (B, *event) the score by which the proposal was made.
        ahead: the score at the proposal.
    """
    return -0.5 * dot(d, here + ahead) + 0.25 * size * (dot(here, here) - dot(ahead, ahead))


def accepts(noise: Noise, log_ratio: Tensor) -> Tensor:
    """(B,) bool, true with probability min(1, e^log_ratio), from one normal for each sample; NaN is never accepted."""
    with torch.no_grad():  # a uniform number is Φ of a normal one
        return torch.special.log_ndtr(noise.normal(log_ratio.detach())) < log_ratio.detach()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ over the event, (B,)."""
    product = a * b
    return product if product.ndim == 1 else product.sum(tuple(range(1, product.ndim)))


def _wide(x: Tensor) -> Tensor:
    """At least float32: sums over the event are compared with one another."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _each(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (x.ndim - 1))
