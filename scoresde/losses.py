"""Denoising score matching: one loss and its weightings. Times are drawn in :mod:`scoresde.times`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.score import ScoreModel
from scoresde.sde import SDE, Time, spread

Weighting = Callable[[SDE, Tensor], Tensor]
"""(sde, t) -> w(t) > 0, shaped like t: the weight of the squared error of the score."""


def simple(sde: SDE, t: Time) -> Tensor:
    """w = σ². The loss is DDPM's L_simple = |ε - ε_θ|² (Ho et al. 2020, arXiv:2006.11239, eq. 14).

    It is also NCSN's σ² |s + ε/σ|² (Song & Ermon 2019, arXiv:1907.05600, eq. 5-6, without the factor ½) and the SNR
    weighting (α²/σ²) |x_0 - x̂_0|² of Salimans & Ho 2022 (arXiv:2202.00512, section 4): three names for one loss,
    because ε_θ = -σ s and x_0 - x̂_0 = (σ/α) (ε_θ - ε).
    """
    return sde.sigma(t) ** 2


ncsn = snr = simple


def likelihood(sde: SDE, t: Time) -> Tensor:
    """w = g²: half the integral over t bounds -log p(x_0) up to a constant (Song et al. 2021, arXiv:2101.09258)."""
    return sde.g(t) ** 2


def x0(sde: SDE, t: Time) -> Tensor:
    """w = σ⁴/α². The loss is |x_0 - x̂_0|²."""
    return sde.sigma(t) ** 4 / sde.alpha(t) ** 2


def truncated_snr(sde: SDE, t: Time) -> Tensor:
    """The loss is max(SNR, 1) |x_0 - x̂_0|² (Salimans & Ho 2022, arXiv:2202.00512, section 4)."""
    return torch.maximum(simple(sde, t), x0(sde, t))


def min_snr(gamma: float = 5.0) -> Weighting:
    """The loss is min(SNR, γ) |x_0 - x̂_0|² (Hang et al. 2023, arXiv:2303.09556, section 3.4)."""
    checks.positive(gamma, name="gamma")

    def weighting(sde: SDE, t: Time) -> Tensor:
        return torch.minimum(simple(sde, t), gamma * x0(sde, t))

    return weighting


def edm(sigma_data: float = 0.5) -> Weighting:
    """The loss is λ(σ̃) |x_0 - D|², λ = (σ̃² + σ_data²) / (σ̃ σ_data)², σ̃ = σ/α (Karras et al. 2022, table 1).

    With "edm" prediction it is |F - target|² with a target of unit variance at every t.
    """
    checks.positive(sigma_data, name="sigma_data")

    def weighting(sde: SDE, t: Time) -> Tensor:
        return x0(sde, t) / sigma_data**2 + simple(sde, t)  # λ = 1/σ_data² + 1/σ̃²

    return weighting


WEIGHTINGS: Mapping[str, Weighting] = {
    "simple": simple,
    "snr": snr,
    "ncsn": ncsn,
    "likelihood": likelihood,
    "x0": x0,
    "truncated_snr": truncated_snr,
    "min_snr": min_snr(),
    "edm": edm(),
}


def dsm_loss(
    model: ScoreModel, x0: Tensor, t: Time, eps: Tensor, weighting: Weighting | str = simple, **cond: Any
) -> Tensor:
    r"""Continuous denoising score matching, a loss for each sample, (B,)::

        w(t) |s_θ(x_t, t) - ∇ log p(x_t | x_0)|² = w(t) |s_θ(x_t, t) + ε/σ|²,   x_t = α x_0 + σ ε

    summed over the event, not averaged (Vincent 2011; Song et al. 2021, arXiv:2011.13456, eq. 7). All randomness
    comes in as arguments.

    Args:
        model: a ScoreModel.
        x0: data (B, *event).
        t: () or (B,), with σ(t) > 0.
        eps: N(0, I), shaped like x0.
        weighting: (sde, t) -> w(t), or one of the names in :data:`WEIGHTINGS`; "edm" takes the model's sigma_data.
        cond: conditions for the network.

    Raises:
        TypeError, ValueError: shapes that differ, integer data, NaN or infinity in x0 or eps (looked for on the
            CPU only), an unknown weighting or one that answers another shape than t, times out of range.
    """
    given: object = weighting
    for maker in (edm, min_snr):
        if given is maker:
            raise TypeError(f"losses.{maker.__name__} makes a weighting: call it, losses.{maker.__name__}(...).")
    if weighting == "edm" and model.sigma_data is not None:
        weighting = edm(model.sigma_data)
    if isinstance(weighting, str):
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, or a function; got {weighting!r}.")
        weighting = WEIGHTINGS[weighting]
    checks.same_shape(checks.state(x0, name="x0"), checks.state(eps, name="eps"), names="x0 and eps")
    for name, values in {"x0": x0, "eps": eps}.items():
        if checks.readable(values):
            checks.finite(values, name=name)
    time = checks.time(t, model.sde.t_max, what=type(model.sde).__name__)
    if time.ndim and time.device != x0.device:
        time = time.to(x0.device)
    mean, std = model.sde.marginal(x0, time)
    w = torch.as_tensor(weighting(model.sde, time), device=time.device)
    if w.shape not in ((), time.shape):
        raise ValueError(
            f"a weighting answers one number for each time, {tuple(time.shape)} here, whatever the event; got "
            f"{tuple(w.shape)}."
        )
    # The residual of the noise is σ times that of the score, and is computed without dividing by σ.
    residual = model.noise(mean + std * eps, time, **cond) - eps
    weight = w / model.sde.sigma(time) ** 2
    total = residual.square().reshape(residual.shape[0], -1).sum(1) if residual.numel() else residual.new_zeros(len(x0))
    return total * spread(weight, total)
