r"""What stands between the encoder and the decoder of an :class:`~scoresde.nn.Autoencoder`, and what it costs::

    net = Autoencoder(3, bottleneck=KLBottleneck())         # a diagonal Gaussian, drawn towards N(0, I)
    net = Autoencoder(3, bottleneck=VQBottleneck(512))      # the nearest of 512 codes

Both are frozen descriptions; the module that each makes answers the same questions, so that nothing else asks which of
the two it is: what ``encode`` answers, what the decoder gets in training and its penalty, what it gets later, and what
is learned without a gradient.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoresde import checks

_AT_ONCE = 2**24
"""Distances to codes that are held together."""


@dataclass(frozen=True, eq=False)
class LatentPosterior:
    r"""q(z | x) = N(mean, diag std²) of each sample, by an encoder.

    Attributes:
        mean: (B, C, \*latent), float32 or wider.
        std: the same shape, positive.
    """

    mean: Tensor
    std: Tensor

    def draw(self, eps: Tensor) -> Tensor:
        """mean + std eps, for eps ~ N(0, I) of their shape: differentiable in both (Kingma & Welling 2013)."""
        return self.mean + self.std * eps

    def kl(self) -> Tensor:
        r"""KL(q ‖ N(0, I)) of each sample in nats, (B,)::

        ½ Σ [μ² + s² - 1 - 2 log s]         Kingma & Welling 2013 (arXiv:1312.6114, appendix B)
        """
        each = 0.5 * (self.mean.square() + self.std.square() - 1) - self.std.log()
        return each.flatten(1).sum(1)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z | x) of each sample in nats, (B,)."""
        each = -0.5 * ((z - self.mean) / self.std).square() - self.std.log() - 0.5 * math.log(2 * math.pi)
        return each.flatten(1).sum(1)


class Bottleneck(nn.Module, ABC):
    """The module of a bottleneck; h is what the encoder's last convolution answers, (B, inputs, *latent).

    Attributes:
        inputs: channels that it wants of the encoder.
    """

    inputs: int

    @abstractmethod
    def settled(self, z: Tensor) -> Tensor:
        """What the decoder is given for latents z (B, C, *latent) of anybody."""

    @abstractmethod
    def encoded(self, h: Tensor) -> Tensor:
        """The latents of an event, without chance, (B, C, *latent)."""

    @abstractmethod
    def drawn(self, h: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """In training: what the decoder is given, for eps ~ N(0, I) of its shape, and the penalty (B,)."""

    def posterior(self, h: Tensor) -> LatentPosterior:
        """q(z | x).

        Raises:
            ValueError: there is none.
        """
        raise ValueError(
            "this autoencoder must have a posterior with a density to draw from, and codes have none: take encode(x) "
            "without noise, or bottleneck=KLBottleneck()."
        )

    def learn(self, h: Tensor, uniforms: Tensor) -> None:
        """What is learned of a batch without a gradient, if anything.

        Args:
            h: of the batch.
            uniforms: in [0, 1), (:attr:`draws`,) on the CPU.
        """

    @property
    def draws(self) -> int:
        """How many uniforms :meth:`learn` takes."""
        return 0


@dataclass(frozen=True)
class KLBottleneck:
    r"""A diagonal Gaussian q(z | x) = N(μ, s²) with the penalty KL(q ‖ N(0, I)) (Kingma & Welling 2013,
    arXiv:1312.6114; Rombach et al. 2022, arXiv:2112.10752, section 3.1).

    Latents are μ; the decoder is trained on draws.

    Args:
        log_std_limit: log s is kept within ± this, so that no s is 0 or infinite.

    Raises:
        TypeError, ValueError: no positive number.
    """

    log_std_limit: float = 10.0

    def __post_init__(self) -> None:
        checks.fields(self)
        if checks.positive(self.log_std_limit, name="log_std_limit") > 30:
            raise ValueError(f"log_std_limit must be at most 30, e^30 in float32, got {self.log_std_limit:g}.")

    @property
    def penalty(self) -> float:
        """The factor of the KL divergence in training unless told otherwise: small, as in Rombach et al., where the
        latents are to keep what can be seen; 1 bounds the likelihood.
        """
        return 1e-3

    def module(self, channels: int) -> Bottleneck:
        """For latents of so many channels."""
        return _Gaussian(channels, self)


class _Gaussian(Bottleneck):
    def __init__(self, channels: int, told: KLBottleneck) -> None:
        super().__init__()
        self.inputs, self.limit = 2 * channels, told.log_std_limit

    def settled(self, z: Tensor) -> Tensor:
        return z

    def encoded(self, h: Tensor) -> Tensor:
        return h.chunk(2, dim=1)[0]

    def drawn(self, h: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        law = self.posterior(h)
        return law.draw(eps.to(law.mean.dtype)).to(h.dtype), law.kl()

    def posterior(self, h: Tensor) -> LatentPosterior:
        mean, log_std = h.to(torch.promote_types(h.dtype, torch.float32)).chunk(2, dim=1)
        return LatentPosterior(mean, log_std.clamp(-self.limit, self.limit).exp())


@dataclass(frozen=True)
class VQBottleneck:
    r"""The nearest of K codes at each position (van den Oord et al. 2017, arXiv:1711.00937), with the penalty

    .. math::
        \beta \sum_p \lVert h_p - \mathrm{sg}(e_{k(p)}) \rVert^2, \qquad k(p) = \arg\min_k \lVert h_p - e_k \rVert^2

    The gradient passes straight from the code to h. Codes are the moving averages of the h that fall to them (there,
    appendix A.1): unlike a gradient they need no learning rate, and follow the encoder however large its outputs are. A
    code that takes less than ``revive`` of an even share of the positions is put where a position of the batch is
    (Dhariwal et al. 2020, arXiv:2005.00341, section 3.2); so all codes start, too.

    Latents of anybody, such as a diffusion model's, are brought to their nearest codes before they are decoded.

    Args:
        codes: K.
        commitment: β.
        decay: of the averages, for one step.
        revive: share of positions / K, averaged over steps, below which a code counts as dead.

    Raises:
        TypeError, ValueError: no whole number of codes from 2, decay outside [0, 1), revive outside (0, 1).
    """

    codes: int = 512
    commitment: float = 0.25
    decay: float = 0.99
    revive: float = 0.03

    def __post_init__(self) -> None:
        checks.fields(self)
        checks.count(self.codes, name="codes", least=2)
        checks.not_negative(self.commitment, name="commitment")
        if not 0 <= checks.number(self.decay, name="decay") < 1:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay:g}.")
        if checks.positive(self.revive, name="revive") >= 1:
            raise ValueError(f"revive must lie in (0, 1), got {self.revive:g}.")

    @property
    def penalty(self) -> float:
        """The factor of the penalty in training unless told otherwise; β is in it already."""
        return 1.0

    def module(self, channels: int) -> Bottleneck:
        """For latents of so many channels."""
        return _Codebook(channels, self)


class _Codebook(Bottleneck):
    """Codes (K, C), and of each the averaged count and sum of the positions that fell to it."""

    def __init__(self, channels: int, told: VQBottleneck) -> None:
        super().__init__()
        self.inputs, self.told = channels, told
        self.register_buffer("codes", torch.randn(told.codes, channels))
        self.register_buffer("counts", torch.zeros(told.codes))
        self.register_buffer("sums", torch.zeros(told.codes, channels))

    codes: Tensor
    counts: Tensor
    sums: Tensor

    @property
    def draws(self) -> int:
        return self.told.codes

    def settled(self, z: Tensor) -> Tensor:
        return _straight_through(z, self._quantised(z))

    def encoded(self, h: Tensor) -> Tensor:
        return _straight_through(h, self._quantised(h))

    def drawn(self, h: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        code = self._quantised(h)
        wide = torch.promote_types(h.dtype, torch.float32)
        penalty = self.told.commitment * (h.to(wide) - code.to(wide)).square().flatten(1).sum(1)
        return _straight_through(h, code), penalty

    @torch.no_grad()
    def learn(self, h: Tensor, uniforms: Tensor) -> None:
        """One step of the averages; then codes that are dead take the place of positions, by the uniforms."""
        rows = _positions(h.detach()).to(self.codes.dtype)
        nearest = self.nearest(rows)
        every, some = torch.arange(self.told.codes, device=rows.device)[:, None], self._at_once
        sums = torch.zeros_like(self.sums)
        for codes, part in zip(nearest.split(some), rows.split(some), strict=True):
            sums += (every == codes).to(part.dtype) @ part
        decay, even = self.told.decay, len(rows) / self.told.codes
        self.counts.lerp_(nearest.bincount(minlength=self.told.codes).to(self.counts.dtype), 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        dead = self.counts <= self.told.revive * even
        chosen = rows[checks.sent((uniforms * len(rows)).long().clamp(max=len(rows) - 1), rows.device)]
        self.counts.copy_(torch.where(dead, even, self.counts))
        self.sums.copy_(torch.where(dead[:, None], even * chosen, self.sums))
        self.codes.copy_(self.sums / self.counts[:, None])

    def nearest(self, rows: Tensor) -> Tensor:
        """The nearest code of each of (N, C), (N,) int64: argmin_k |e_k|²/2 - h·e_k, both seen from the mean code."""
        wide = torch.promote_types(rows.dtype, torch.float32)
        centre = self.codes.to(wide).mean(0)  # what all have in common would take the digits of what tells them apart
        codes = self.codes.to(wide) - centre
        half, parts = codes.square().sum(1) / 2, rows.split(self._at_once)
        with torch.autocast(rows.device.type, enabled=False):  # which of two is nearer is not for half precision
            return torch.cat([(half - (part.to(wide) - centre) @ codes.T).argmin(1) for part in parts])

    @property
    def _at_once(self) -> int:
        """Positions whose distances to all codes are held together."""
        return max(1, _AT_ONCE // self.told.codes)

    @torch.no_grad()
    def _quantised(self, h: Tensor) -> Tensor:
        code = self.codes[self.nearest(_positions(h))].to(h.dtype)
        return code.reshape(len(h), *h.shape[2:], h.shape[1]).movedim(-1, 1)


def _straight_through(h: Tensor, code: Tensor) -> Tensor:
    """The code, with the gradient of h; NaN where h is not finite, which has no nearest code."""
    return code + (h - h.detach())


def _positions(h: Tensor) -> Tensor:
    """(B, C, *latent) as (B positions, C)."""
    return h.movedim(1, -1).reshape(-1, h.shape[1])
