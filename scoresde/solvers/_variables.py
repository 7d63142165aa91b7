"""Monotone variables v(h), h = log(α/σ), in which methods take a prediction for a polynomial and place stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.sde import SDE


class Variable(NamedTuple):
    """v of h and h of v, elementwise, any shape."""

    of_h: Callable[[Tensor], Tensor]
    to_h: Callable[[Tensor], Tensor]


def _same(h: Tensor) -> Tensor:
    return h


LOG_SNR = Variable(_same, _same)
"""h itself, half the log-SNR."""

NOISE_LEVEL = Variable(lambda h: (-h).exp(), lambda v: -v.log())
"""σ̃ = σ/α."""

KARRAS = Variable(lambda h: (-h / 7).exp(), lambda v: -7 * v.log())
"""σ̃^(1/7)."""


def angle(sigma_data: float) -> Variable:
    """θ with tan θ = σ̃/σ_data."""
    return Variable(lambda h: torch.atan((-h).exp() / sigma_data), lambda v: -(sigma_data * v.tan()).log())


def time_of(sde: SDE) -> Variable:
    """The SDE's own t."""
    return Variable(
        lambda h: sde.t_of_log_snr(2 * h.reshape(-1)).reshape(h.shape),
        lambda v: 0.5 * sde.log_snr(v.reshape(-1)).reshape(v.shape),
    )
