"""Denoising score matching, its weightings, and couplings of data and noise. Times are in :mod:`scoresde.times`::

    t, factor = LogNormalSigma().sample(model.sde, torch.rand(len(x0)))
    loss = dsm_loss(model, x0, t, torch.randn_like(x0), weighting="edm", conditions={"label": y})    # (B,)
    (factor * loss).mean().backward()

A weighting of your own is a function (sde, t) -> w(t); :class:`Uncertainty` is one that is learned along.
:func:`coupled_noise` chooses which noise meets which sample, and says what is lost by it. :func:`contrastive_loss` is
the loss of pairs, such as pictures and captions.
"""

from scoresde.losses.contrast import contrastive_loss, information_bound
from scoresde.losses.coupling import Coupling, OptimalTransport, coupled_noise
from scoresde.losses.score_matching import dsm_loss
from scoresde.losses.uncertainty import Uncertainty, UncertaintyNetwork
from scoresde.losses.weightings import (
    WEIGHTINGS,
    Weighting,
    edm,
    likelihood,
    min_snr,
    ncsn,
    simple,
    snr,
    truncated_snr,
    x0,
)

__all__ = [
    "WEIGHTINGS",
    "Coupling",
    "OptimalTransport",
    "Uncertainty",
    "UncertaintyNetwork",
    "Weighting",
    "contrastive_loss",
    "coupled_noise",
    "dsm_loss",
    "edm",
    "information_bound",
    "likelihood",
    "min_snr",
    "ncsn",
    "simple",
    "snr",
    "truncated_snr",
    "x0",
]
