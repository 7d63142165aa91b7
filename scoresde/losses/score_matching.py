"""Denoising score matching, a loss for each sample, all randomness an argument::

    t, factor = LogNormalSigma().sample(model.sde, torch.rand(len(x0)))
    loss = dsm_loss(model, x0, t, torch.randn_like(x0), weighting="edm", conditions={"label": y})    # (B,)
    (factor * loss).mean().backward()

Times are drawn in :mod:`scoresde.times`, weightings are those of :mod:`~scoresde.losses.weightings`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.losses.weightings import WEIGHTINGS, Weighting, edm, min_snr, simple
from scoresde.models import ScoreModel
from scoresde.models.combination import NOISE, Expectation, combine
from scoresde.sde import NO_SIGNAL, SDE, Time, has_signal, signal_at, signal_left, spread


def dsm_loss(
    model: ScoreModel,
    x0: Tensor,
    t: Time,
    eps: Tensor,
    weighting: Weighting | str = simple,
    *,
    conditions: Mapping[str, Any] | None = None,
) -> Tensor:
    r"""Continuous denoising score matching, a loss for each sample, (B,)::

        w(t) |s_θ(x_t, t) - ∇ log p(x_t | x_0)|² = w(t) |s_θ(x_t, t) + ε/σ|²,   x_t = α x_0 + σ ε

    summed over the event, not averaged (Vincent 2011; Song et al. 2021, arXiv:2011.13456, eq. 7). All randomness
    comes in as arguments.

    Where α(t) = 0 the score is known, -x_t/σ², and a weighting that diverges there, such as :func:`x0`, is one of the
    squared error of x̂_0: w |s_θ + ε/σ|² = w α²/σ⁴ |x_0 - x̂_0|² in the limit.

    Args:
        model: a ScoreModel.
        x0: clean samples (B, *event).
        t: () or (B,), with σ(t) > 0.
        eps: N(0, I), shaped like x0.
        weighting: (sde, t) -> w(t), or one of the names in :data:`WEIGHTINGS`; "edm" takes the model's sigma_data.
        conditions: for the network, by name, e.g. {"label": y}.

    Raises:
        TypeError, ValueError: shapes that differ, integer data, NaN or infinity in x0 or eps (looked for on the
            CPU only), an unknown weighting or one that answers another shape than t, times out of range; a diverging
            weighting where α(t) = 0 for a model that says nothing of x_0 there.
    """
    if not isinstance(getattr(model, "sde", None), SDE):  # a compiled model is no ScoreModel by its class
        raise TypeError(
            f"model must be a ScoreModel(net, sde, predicts=...), got {checks.got(model)}; the order is "
            "dsm_loss(model, x0, t, eps), since a model knows its SDE."
        )
    given: object = weighting
    for maker in (edm, min_snr):
        if given is maker:
            raise TypeError(f"losses.{maker.__name__} makes a weighting: call it, losses.{maker.__name__}(...).")
    if isinstance(weighting, str) and weighting == "edm" and model.sigma_data is not None:
        weighting = edm(model.sigma_data)
    if isinstance(weighting, str):
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, or a function; got {weighting!r}.")
        weighting = WEIGHTINGS[weighting]
    checks.function(weighting, name="weighting", what=f"(sde, t) -> w(t), or one of {', '.join(WEIGHTINGS)}")
    checks.same_shape(checks.state(x0, name="x0"), checks.state(eps, name="eps"), names="x0 and eps")
    for name, values in {"x0": x0, "eps": eps}.items():
        if checks.readable(values) or values.is_meta:
            checks.state(values, name=name, values=True)
    time = checks.time(t, model.sde.t_max, what=type(model.sde).__name__)
    checks.same_batch(time, x0)
    if time.ndim:
        time = checks.time_beside(time, x0)
    working = torch.promote_types(x0.dtype, torch.float32)  # squares and sums of half precision are 2 % off
    x0, eps = x0.to(working), eps.to(working)
    alpha, sigma = model.sde.alpha(time), model.sde.sigma(time)
    mean, std = spread(alpha, x0) * x0, spread(sigma, x0)
    compared, weight = _compared(weighting, model.sde, time, alpha, sigma)
    target = eps if compared is NOISE else combine((compared.x0, x0), (compared.noise, eps))
    residual = model.evaluate(mean + std * eps, time, compared, conditions) - target
    total = residual.square().reshape(residual.shape[0], -1).sum(1) if residual.numel() else residual.new_zeros(len(x0))
    return total * spread(weight, total)


_NEARLY = 10 * NO_SIGNAL  # α/σ at which a weighting is asked in place of 0
_DIVERGES = NO_SIGNAL**-0.5  # weights of |ε - ε̂|² that are above it there grow without end


def _compared(weighting: Weighting, sde: SDE, time: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Expectation, Tensor]:
    """Of which prediction the squared error is taken, and its weight, shaped like the time or ().

    It is that of the noise, σ times that of the score, without a division by σ; where α = 0 and its weight w/σ² would
    be infinite, it is that of x̂_0, of weight w α²/σ⁴.
    """
    if has_signal(alpha, sigma) if checks.readable(time) else signal_at(sde, time):
        return NOISE, _weight(weighting, sde, time) / sigma**2
    signal = signal_left(alpha, sigma)
    asked = torch.where(signal, time, sde.t_of_log_snr(torch.full_like(time, 2 * math.log(_NEARLY))))
    alpha, sigma = sde.alpha(asked), sde.sigma(asked)
    of_noise = _weight(weighting, sde, asked) / sigma**2
    of_x0 = ~signal & (of_noise > _DIVERGES)
    weight = torch.where(of_x0, of_noise * (alpha / sigma) ** 2, of_noise)
    return Expectation(of_x0.double(), (~of_x0).double()), weight


def _weight(weighting: Weighting, sde: SDE, time: Tensor) -> Tensor:
    w = checks.real(weighting(sde, time), name="what a weighting answers").to(time.device)
    if checks.readable(w) and not bool((w >= 0).all()):  # NaN as well
        raise ValueError(f"a weighting must answer numbers of at least 0, got {w.detach().min():g} under {sde}.")
    if w.shape not in ((), time.shape):
        raise ValueError(
            f"a weighting answers one number for each time, {tuple(time.shape)} here, whatever the event; got "
            f"{tuple(w.shape)}."
        )
    return w
