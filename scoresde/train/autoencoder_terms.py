r"""Terms of an autoencoder's loss beside log p(x | z) and the bottleneck's penalty::

    perceptual = Perceptual(features.compute, weight=0.1)   # features: of scoresde.metrics.train_features
    adversary = Adversary(weight=0.5, start=2000)
    run = train_autoencoder(net, dataset, steps=6000, perceptual=perceptual, adversary=adversary)

Both are what Rombach et al. 2022 (arXiv:2112.10752, appendix G) train with; without them pictures are right on average,
and smooth where they cannot be right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import checks
from scoresde.models import evaluating
from scoresde.nn import PatchDiscriminator

Seen = Tensor | Sequence[Tensor]
"""What a network sees in x: features (B, d), a map of them (B, d, *positions), or those of several layers."""

_LARGEST = 1e4
_LEAST = 1e-4
"""Of the ratio of two gradients, and of the one it is divided by (Esser et al. 2021)."""


@dataclass(frozen=True)
class Perceptual:
    r"""The distance of x and D(z) in what a network sees in them, averaged over positions p and summed over layers l::

        Σ_l mean_p |f_l(x)_p / |f_l(x)_p| - f_l(D(z))_p / |f_l(D(z))_p||²         Zhang et al. 2018 (arXiv:1801.03924)

    without the weights that they learn of people's judgements.

    Args:
        features: a function of x (B, \*event) in the units of the model, differentiable: a tensor (B, d) or (B, d,
            \*positions), or a list of them. Of a feature space of :mod:`scoresde.metrics` its ``compute``. Judge with
            another space than the one trained with.
        weight: of the term, beside nats per number of x.

    Raises:
        TypeError, ValueError: not a function, or a weight that is not positive.
    """

    features: Callable[[Tensor], Seen]
    weight: float = 0.1

    def __post_init__(self) -> None:
        checks.fields(self)
        checks.function(self.features, name="features", what="of a batch (B, *event), differentiable")
        checks.positive(self.weight, name="weight")

    def distance(self, x: Tensor, decoded: Tensor) -> Tensor:
        """That of each sample, (B,), differentiable in ``decoded``."""
        with evaluating(self.features):
            with torch.no_grad():
                real = _layers(self.features(x), len(x))
            made = _layers(self.features(decoded), len(x))
        each = [(_unit(a) - _unit(b)).square().sum(1).flatten(1).mean(1) for a, b in zip(made, real, strict=True)]
        return torch.stack(each).sum(0)

    def check(self, x: Tensor) -> None:
        """Raise unless it answers for x (B, *event), and can be differentiated.

        Raises:
            TypeError, ValueError: it does not.
        """
        with torch.enable_grad():
            if not self.distance(x, x.detach().clone().requires_grad_()).requires_grad:
                raise ValueError(
                    "features must be differentiable in x, and what they answered does not depend on it: of a feature "
                    "space of scoresde.metrics give features.compute."
                )


def _layers(seen: Seen, batch: int) -> list[Tensor]:
    layers = [seen] if isinstance(seen, Tensor) else list(seen)
    for one in layers:
        if not isinstance(one, Tensor) or one.ndim < 2 or len(one) != batch or not one.is_floating_point():
            raise ValueError(
                f"features must be floating ({batch}, d) or ({batch}, d, *positions), or a list of such, got "
                f"{checks.got(one)}."
            )
    if not layers:
        raise ValueError("features must answer at least one tensor, got an empty list.")
    return layers


def _unit(features: Tensor) -> Tensor:
    wide = features.to(torch.promote_types(features.dtype, torch.float32)).reshape(*features.shape[:2], -1)
    return F.normalize(wide, dim=1, eps=1e-6)


@dataclass(frozen=True)
class Adversary:
    r"""A `PatchDiscriminator` that learns to tell D(z) from x, and the term -mean d(D(z)) that learns to mislead it.

    The discriminator's loss is the hinge ½ E[max(0, 1 - d(x)) + max(0, 1 + d(D(z)))] (Lim & Ye 2017, arXiv:1705.02894).
    The term counts ``weight`` times the ratio of the gradients by the decoder's last layer, |∇ reconstruction| / |∇
    term|, at most 1e4 (Esser et al. 2021, arXiv:2012.09841, equation 7).

    Args:
        weight: of the term, beside the reconstruction.
        start: the step from which on there is a term, and the discriminator learns: when reconstructions are good.
        width, layers: of the discriminator.
        lr: its learning rate, as a multiple of the autoencoder's.

    Raises:
        TypeError, ValueError: an argument of another kind.
    """

    weight: float = 0.5
    start: int = 1000
    width: int = 32
    layers: int = 3
    lr: float = 1.0

    def __post_init__(self) -> None:
        checks.fields(self)
        for name in ("weight", "lr"):
            checks.positive(getattr(self, name), name=name)
        checks.count(self.start, name="start", least=0)
        for name in ("width", "layers"):
            checks.count(getattr(self, name), name=name)

    def discriminator(self, channels: int, event_dims: int) -> PatchDiscriminator:
        """A fresh one."""
        return PatchDiscriminator(channels, event_dims, width=self.width, layers=self.layers)

    @staticmethod
    def to_mislead(discriminator: nn.Module, decoded: Tensor) -> Tensor:
        """-mean d(D(z)), ()."""
        return -discriminator(decoded).mean()

    @staticmethod
    def to_tell(discriminator: nn.Module, x: Tensor, decoded: Tensor) -> Tensor:
        """The discriminator's loss, ()."""
        real, made = discriminator(x), discriminator(decoded.detach())
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + made).mean())

    @staticmethod
    def balance(reconstruction: Tensor, term: Tensor, last: Tensor) -> Tensor:
        """|∇ reconstruction| / |∇ term| by the weights ``last``, (), as a number."""
        (of_reconstruction,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
        (of_term,) = torch.autograd.grad(term, last, retain_graph=True)
        return (of_reconstruction.norm() / (of_term.norm() + _LEAST)).clamp(max=_LARGEST).detach()
