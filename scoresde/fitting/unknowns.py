"""The numbers that a fit moves: coefficients, and the half log-SNR of the evaluations.

An :class:`Unknowns` translates between a method and one vector θ, and differentiates the error at the end by θ, for
every sample on its own::

    unknowns, theta = Unknowns.of(sde, method)              # θ float64, all numbers of a LinearMethod
    unknowns.method(theta)                                  # and back
    rows = unknowns.derivatives(score, theta, x, end, signs=None)
    rows.error, rows.gradient, rows.sketch                  # ErrorDerivatives of one block

:func:`~scoresde.fitting.gauss_newton.descend` is what asks for them. Times stay in the range where the score is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.fitting.recorded import run
from scoresde.models import Score
from scoresde.sde import NO_SIGNAL, SDE
from scoresde.solvers.fitted import LinearMethod

_LEAST_SIGNAL = -math.log(1000.0)


@dataclass(frozen=True)
class Unknowns:
    """θ = (a, w row by row, h), float64: n + 1 + n(n+1)/2 + n numbers.

    Attributes:
        sde: gives t of h = log(α/σ).
        steps: n.
        low, high: the range of h, in which the score is known; from α/σ = 1/1000 where α(T) = 0.
    """

    sde: SDE
    steps: int
    low: float
    high: float

    @staticmethod
    def of(sde: SDE, method: LinearMethod) -> tuple[Unknowns, Tensor]:
        """The unknowns, and their values in ``method``."""
        h = 0.5 * sde.log_snr(torch.tensor(method.evaluated_at, dtype=torch.float64))
        low, high = (0.5 * float(sde.log_snr(t)) for t in (sde.T, sde.t_min))
        if math.isinf(high):  # σ = 0 at t_min: stay within a factor e of the lowest noise evaluated at so far
            high = float(h.max()) + 1.0
        if low < math.log(NO_SIGNAL):  # no signal at T: no lower than where the rules for grids begin
            low = _LEAST_SIGNAL
        coefficients = [*method.of_start, *(w for row in method.weights for w in row)]
        unknowns = Unknowns(sde, len(method.evaluated_at), low, high)
        return unknowns, unknowns.inside(torch.cat([torch.tensor(coefficients, dtype=torch.float64), h]))

    @property
    def linear(self) -> int:
        """How many of θ are coefficients."""
        return self.steps + 1 + self.steps * (self.steps + 1) // 2

    def inside(self, theta: Tensor) -> Tensor:
        """θ with its h moved into their range."""
        return torch.cat([theta[: self.linear], theta[self.linear :].clamp(self.low, self.high)])

    def method(self, theta: Tensor) -> LinearMethod:
        """As numbers."""
        times = self.sde.t_of_log_snr(2 * theta[self.linear :]).clamp(self.sde.t_min, self.sde.T).tolist()
        return _shaped(times, theta[: self.linear].tolist())

    def derivatives(
        self, score: Score, theta: Tensor, x: Tensor, end: Tensor, signs: Tensor | None
    ) -> ErrorDerivatives:
        """Error and derivatives on one block; the derivative of every sample by itself at the cost of one backward.

        Each sample gets coefficients of its own, all equal: the gradient of Σ_b u_b · e_b with respect to them has
        u_b · ∂e_b/∂θ in its b-th column.

        Args:
            score, theta: where.
            x: (B, *event) starts.
            end: the same, where they should lead.
            signs: (K, *event) directions u, shared by the samples; None for all coordinates of the event.
        """
        h = theta[self.linear :].clone().requires_grad_()
        with torch.enable_grad():
            times = self.sde.t_of_log_snr(2 * h)
            (slope,) = torch.autograd.grad(times.sum(), h)
            each = (1, len(x))
            at = times.detach().clamp(self.sde.t_min, self.sde.T)[:, None].repeat(each).requires_grad_()
            free = theta[: self.linear, None].to(x).repeat(each).requires_grad_()
            error = run(_shaped(list(at.unbind()), list(free.unbind())), score, x) - end

        def along(direction: Tensor) -> Tensor:
            """(B, P): direction · ∂e/∂θ of each sample."""
            by_free, by_time = torch.autograd.grad(error, (free, at), direction, retain_graph=True, allow_unused=True)
            by_time = torch.zeros_like(at) if by_time is None else by_time  # a score that is piecewise constant in t
            return torch.cat([by_free.double().cpu(), by_time.cpu() * slope[:, None]]).T

        value = error.detach()
        if signs is None:
            basis = torch.eye(value[0].numel(), dtype=x.dtype, device=x.device)
            sketch = torch.stack([along(u.reshape(value[0].shape).expand_as(value)) for u in basis])
            gradient = torch.einsum("kbp,bk->bp", sketch, value.double().flatten(1).cpu())
        else:
            gradient = along(value)
            sketch = torch.stack([along(u.to(x).expand_as(value)) for u in signs]) / math.sqrt(len(signs))
        return ErrorDerivatives(value, gradient, sketch)


@dataclass(frozen=True)
class ErrorDerivatives:
    """On a block of B trajectories.

    Attributes:
        error: (B, *event) e.
        gradient: (B, P) eᵀ ∂e/∂θ.
        sketch: (K, B, P) whose squares sum to (∂e/∂θ)ᵀ (∂e/∂θ), exactly or on average over random signs.
    """

    error: Tensor
    gradient: Tensor
    sketch: Tensor


def _shaped(times: list[Any], coefficients: list[Any]) -> LinearMethod:
    n = len(times)
    rows, first = [], n + 1
    for i in range(1, n + 1):
        rows.append(coefficients[first : first + i])
        first += i
    return LinearMethod(times, coefficients[: n + 1], rows)
