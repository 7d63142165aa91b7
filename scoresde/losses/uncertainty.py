r"""A weighting that is learned along: each noise level's loss divided by what it is expected to be::

    weighting = Uncertainty("edm")                          # an option of scoresde.train.train
    u = weighting.network(seed=0)                           # in a loop of your own: trained along, then dropped
    loss = dsm_loss(model, x0, t, eps, weighting.base) / x0[0].numel()
    u.weigh(loss, model.sde, t).mean().backward()           # mean of loss / exp(u(c)) + u(c), c = log(σ/α)

At a given c the mean of L e^{-u} + u is least at u* = log E[L | c], since its derivative is 1 - E[L | c] e^{-u} and its
second one positive. There every noise level contributes 1, and its gradient is that of log E[L | c]: no level drowns
another, whatever the base weighting was (Kendall et al. 2018, arXiv:1705.07115; Karras et al. 2024, arXiv:2312.02696,
eq. 14-15).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.losses.weightings import WEIGHTINGS, Weighting
from scoresde.sde import SDE, Time

_FARTHEST = 20.0  # |log(σ/α)| beyond which u is what it is there: where α or σ is 0 it has no end


@dataclass(frozen=True)
class Uncertainty:
    """Learned uncertainty weighting: L is replaced by L / exp(u(c)) + u(c), c = log(σ/α), u learned along.

    L is the loss under ``base``, divided by the size of an event. What ``base`` is matters little: u takes its place,
    for the least mean over u is 1 + log E[L | c], in which a factor of L is a constant. A base that keeps L
    near 1 at the start lets u start near its place.

    Args:
        base: a weighting (sde, t) -> w(t) or the name of one; "edm" takes the model's sigma_data.
        channels: Fourier features of c of which u is a linear function.

    Raises:
        TypeError, ValueError: no weighting, or an unknown name; fewer than one channel.
    """

    base: Weighting | str = "simple"
    channels: int = 128

    def __post_init__(self) -> None:
        if isinstance(self.base, str):
            checks.one_of(self.base, WEIGHTINGS, name="base")
        else:
            checks.function(self.base, name="base", what=f"(sde, t) -> w(t), or one of {', '.join(WEIGHTINGS)}")
        object.__setattr__(self, "channels", checks.count(self.channels, name="channels"))

    def __repr__(self) -> str:
        base = self.base if isinstance(self.base, str) else getattr(self.base, "__qualname__", repr(self.base))
        return f"Uncertainty(base={base}, channels={self.channels})"

    def network(self, *, seed: int = 0) -> UncertaintyNetwork:
        """u, which is 0 everywhere at first; on the CPU."""
        return UncertaintyNetwork(self.channels, seed=seed)


class UncertaintyNetwork(nn.Module):
    r"""u(c) = w · h(c), h_k = sqrt(2/C) cos(f_k c + φ_k): a linear function of random Fourier features of c = log(σ/α).

    f_k ~ N(0, (π/2)²) and φ_k ~ U[0, 2π) are drawn once (the features of Karras et al. 2024, arXiv:2312.02696,
    appendix B.2, whose input is c/4), and |h|² = 1 on average, so that the gradient for w is of the size of that for u.
    In w the loss L e^{-u} + u is convex: there is one minimum.

    Args:
        channels: C.
        seed: of f and φ.
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, channels: int = 128, *, seed: int = 0) -> None:
        super().__init__()
        channels = checks.count(channels, name="channels")
        generator = torch.Generator("cpu").manual_seed(checks.seed(seed))
        normal = torch.randn(channels, generator=generator, device="cpu")
        uniform = torch.rand(channels, generator=generator, device="cpu")
        self.register_buffer("frequency", 0.5 * math.pi * normal)
        self.register_buffer("phase", 2 * math.pi * uniform)
        self.weight = nn.Parameter(torch.zeros(channels))

    def forward(self, c: Tensor) -> Tensor:
        """u at c = log(σ/α), of any shape, in the dtype of the weights.

        Raises:
            TypeError: no real numbers.
        """
        level = checks.real(c, name="c").to(self.weight).clamp(-_FARTHEST, _FARTHEST)
        features = (level[..., None] * self.frequency + self.phase).cos()
        return math.sqrt(2 / len(self.weight)) * (features @ self.weight)

    def weigh(self, loss: Tensor, sde: SDE, t: Time) -> Tensor:
        """loss / exp(u(c)) + u(c) at the times of the losses, (B,).

        Args:
            loss: of each sample (B,), at least 0.
            sde: under which.
            t: () or (B,).

        Raises:
            TypeError, ValueError: no losses (B,), times out of range or of another shape.
        """
        loss = checks.real(loss, name="loss")
        if loss.ndim != 1:
            raise ValueError(f"loss must be that of each sample, (B,), got shape {tuple(loss.shape)}.")
        time = checks.time(t, checks.instance(sde, SDE, name="sde").t_max, what=type(sde).__name__)
        checks.same_batch(time, loss)
        u = self.at(sde, time)
        return loss * (-u).exp() + u

    def at(self, sde: SDE, t: Tensor) -> Tensor:
        """u at times of an SDE, shaped like t, beside the weights."""
        return self(-0.5 * sde.log_snr(t))
