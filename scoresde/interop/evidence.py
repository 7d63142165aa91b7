r"""A bound on the likelihood of data by a model of their latents::

    nats = evidence_bound(latent, x)                        # (B,), at most log p(x)
    bits = -(nats / size + math.log(bin_width)) / math.log(2)

The autoencoder must have a posterior and a law of its errors, as :class:`~scoresde.nn.Autoencoder` with a
:class:`~scoresde.nn.KLBottleneck` has.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.interop.autoencoder import Autoencoding
from scoresde.likelihood import log_prob
from scoresde.models import Score, evaluating
from scoresde.models.score import check_score
from scoresde.noise import Noise, as_noise


def evidence_bound(
    latent: Score, x: Tensor, *, draws: int = 1, noise: Noise | torch.Generator | int = 0, **keywords: Any
) -> Tensor:
    r"""A lower bound on log p(x) in nats, (B,), of the law in which z is drawn by the model and x decoded from it::

        E_{q(z|x)} [log p(x | z) + log p(z) - log q(z | x)]  <=  log p(x) = log ∫ p(x | z) p(z) dz

    (Kingma & Welling 2013, arXiv:1312.6114, equation 3; Vahdat et al. 2021, arXiv:2106.05931, with p(z) by a diffusion
    model), by the mean of ``draws`` draws of q, each of which is an unbiased estimate of the bound. log p(z) is that of
    the probability-flow ODE (:func:`~scoresde.log_prob`), with what the units of latents change; p(x | z) is the
    autoencoder's ``log_likelihood(x, decode(z))``. All of it is worked out and answered in float32 or wider.

    It says something of the data only where the autoencoder was trained on its bound, or close to it: with a small
    penalty of its KL divergence q is narrow, and -log q(z | x) small.

    Args:
        latent: a :class:`~scoresde.interop.Latent`, or one that is bound to conditions or guided.
        x: (B, \*event), in the units of the autoencoder. Of quantised data add the noise of their bins first.
        draws: of q for each x.
        noise: of the draws (stream "encode"), and of the divergence where it is estimated.
        keywords: of :func:`~scoresde.log_prob`: divergence, solver and more.

    Raises:
        TypeError, ValueError: no Latent; an autoencoder without a posterior or a ``log_likelihood``; bad x; or as
            ``log_prob``.
    """
    check_score(latent, name="latent")
    coding = latent.scaling
    if not isinstance(coding, Autoencoding):
        raise TypeError(
            f"latent must be a Latent, or one that is bound or guided, got {checks.got(latent)}, which has no "
            "autoencoder: Latent(model, autoencoder)."
        )
    checks.state(x, values=True)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    draws, autoencoder = checks.count(draws, name="draws"), coding.autoencoder
    likelihood = getattr(autoencoder, "log_likelihood", None)
    if not callable(likelihood):
        raise TypeError(
            f"the autoencoder must have log_likelihood(x, decoded), the law of x around what is decoded, which "
            f"scoresde.nn.Autoencoder has; got {checks.got(autoencoder)}."
        )
    source, total = as_noise(noise, "encode"), torch.zeros((), dtype=torch.float64)
    with evaluating(latent):
        mean, std = coding.posterior(x)
        more = coding.log_det(tuple(mean.shape[1:]))
        for _ in range(draws):
            eps = source.normal(mean)
            raw = mean + std * eps
            z = coding.to_units(raw)
            prior = log_prob(latent, z, noise=noise, **keywords) + more
            own = (-0.5 * eps.square() - std.log() - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)
            seen = likelihood(x, coding.decode(z))
            total = total.to(prior.device) + (seen + prior - own)
    return (total / draws).to(x.dtype)
