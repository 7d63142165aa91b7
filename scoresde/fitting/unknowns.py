"""The numbers that a fit moves: coefficients, and the half log-SNR at which the score is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.fitting.recorded import run
from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.sde.base import spread
from scoresde.solvers.fitted import Method


@dataclass(frozen=True)
class Unknowns:
    """θ = (a, w row by row, h), float64: n + 1 + n(n+1)/2 + n numbers.

    Attributes:
        sde: gives t of h = log(α/σ).
        steps: n.
        low, high: the range of h, in which the score is known.
    """

    sde: SDE
    steps: int
    low: float
    high: float

    @staticmethod
    def of(sde: SDE, method: Method) -> tuple[Unknowns, Tensor]:
        """The unknowns, and their values in ``method``."""
        h = 0.5 * sde.log_snr(torch.tensor(method.asks, dtype=torch.float64))
        low, high = (0.5 * float(sde.log_snr(t)) for t in (sde.T, sde.t_min))
        if math.isinf(high):  # σ = 0 at t_min: stay within a factor e of the lowest noise asked so far
            high = float(h.max()) + 1.0
        coefficients = [*method.keep, *(w for row in method.weights for w in row)]
        unknowns = Unknowns(sde, len(method.asks), low, high)
        return unknowns, torch.cat([torch.tensor(coefficients, dtype=torch.float64), h])

    @property
    def linear(self) -> int:
        """How many of θ are coefficients."""
        return self.steps + 1 + self.steps * (self.steps + 1) // 2

    def inside(self, theta: Tensor) -> Tensor:
        """θ with its h moved into their range."""
        return torch.cat([theta[: self.linear], theta[self.linear :].clamp(self.low, self.high)])

    def method(self, theta: Tensor) -> Method:
        """As numbers."""
        asks = self.sde.t_of_log_snr(2 * theta[self.linear :]).clamp(self.sde.t_min, self.sde.T).tolist()
        return _shaped(asks, theta[: self.linear].tolist())

    def rows(self, process: Reverse, theta: Tensor, x: Tensor, end: Tensor, signs: Tensor | None) -> Rows:
        """Error and derivatives on one block; the derivative of every sample by itself at the cost of one backward.

        Each sample gets coefficients of its own, all equal: the gradient of Σ_b u_b · e_b with respect to them has
        u_b · ∂e_b/∂θ in its b-th column.

        Args:
            process, theta: where.
            x: (B, *event) starts.
            end: the same, where they should lead.
            signs: (K, *event) directions u, shared by the samples; None for all coordinates of the event.
        """
        h = theta[self.linear :].clone().requires_grad_()
        with torch.enable_grad():
            times = self.sde.t_of_log_snr(2 * h)
            (slope,) = torch.autograd.grad(times.sum(), h)
            b = len(x)
            asks = times.detach().clamp(self.sde.t_min, self.sde.T)[:, None].repeat(1, b).requires_grad_()
            free = theta[: self.linear, None].to(x).repeat(1, b).requires_grad_()
            method = _shaped(list(asks.unbind()), [spread(c, x) for c in free.unbind()])
            error = run(method, process, x) - end

        def pull(direction: Tensor) -> Tensor:
            """(B, P): direction · ∂e/∂θ of each sample."""
            by_free, by_asks = torch.autograd.grad(error, (free, asks), direction, retain_graph=True, allow_unused=True)
            by_asks = torch.zeros_like(asks) if by_asks is None else by_asks  # a score that is piecewise constant in t
            return torch.cat([by_free.double().cpu(), by_asks.cpu() * slope[:, None]]).T

        value = error.detach()
        if signs is None:
            basis = torch.eye(value[0].numel(), dtype=x.dtype, device=x.device)
            sketch = torch.stack([pull(u.reshape(value[0].shape).expand_as(value)) for u in basis])
            gradient = torch.einsum("kbp,bk->bp", sketch, value.double().flatten(1).cpu())
        else:
            gradient = pull(value)
            sketch = torch.stack([pull(u.to(x).expand_as(value)) for u in signs]) / math.sqrt(len(signs))
        return Rows(value, gradient, sketch)


@dataclass(frozen=True)
class Rows:
    """On a block of B trajectories.

    Attributes:
        error: (B, *event) e.
        gradient: (B, P) eᵀ ∂e/∂θ.
        sketch: (K, B, P) whose squares sum to (∂e/∂θ)ᵀ (∂e/∂θ), exactly or on average over random signs.
    """

    error: Tensor
    gradient: Tensor
    sketch: Tensor


def _shaped(asks: list[Any], coefficients: list[Any]) -> Method:
    n = len(asks)
    rows, first = [], n + 1
    for i in range(1, n + 1):
        rows.append(coefficients[first : first + i])
        first += i
    return Method(asks, coefficients[: n + 1], rows)
