r"""What the default sampler knows of the data: how much they vary, and how much of it lies in one direction.

    Spectrum.assumed((3, 32, 32), sigma_data=0.5)   # what natural data of that size have
    Spectrum.of(images)                             # measured
    ScoreModel(net, sde, "edm", 0.5, spectrum=Spectrum.of(images))    # known to every sampler of the model

E[x_0 | x_t] moves most where σ/α is about the deviation of the data *along a direction*, and natural data have
directions of very different deviations: half of the variance of CIFAR-10 lies in 4 of 3072 directions, with
deviations of 5 to 15 where a single value has 0.5. Steps are placed, and their weights chosen, for all of them: see
:func:`scoresde.grids.spectral` and :class:`scoresde.solvers.SpectralMultistep`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from scoresde import checks

_SHARE = 0.273
"""Share of the whole variance in the direction of most: 0.15 for scikit-learn's digits, 0.29 for CIFAR-10."""

_ROUNDS = 30  # of the power method, which errs by (λ_2/λ_1)^60


@dataclass(frozen=True)
class Spectrum:
    """Deviations of the data.

    Args:
        scale: of one coordinate, as ``sigma_data``: the root of the mean variance.
        largest: along the direction in which it is largest.

    Raises:
        ValueError: not positive, or the largest below the scale.
    """

    scale: float
    largest: float

    def __post_init__(self) -> None:
        for name in ("scale", "largest"):
            checks.positive(getattr(self, name), name=name)
            object.__setattr__(self, name, checks.number(getattr(self, name), name=name))
        if self.largest < self.scale:
            raise ValueError(
                f"the largest deviation along a direction is at least that of a coordinate; got {self.largest:g} and "
                f"{self.scale:g}."
            )

    @staticmethod
    def assumed(event: tuple[int, ...], sigma_data: float | None = None) -> Spectrum:
        """0.27 of the variance along one direction: half of sqrt(D) deviations of a coordinate, of which there are D.

        Args:
            event: shape of a sample.
            sigma_data: deviation of a coordinate, 1 unless known.
        """
        scale = 1.0 if sigma_data is None else checks.positive(sigma_data, name="sigma_data")
        sizes = (
            event
            if isinstance(event, tuple) and not event
            else checks.shape(event, name="event", what="the shape of a sample")
        )
        return Spectrum(scale, scale * math.sqrt(max(1.0, _SHARE * math.prod(sizes))))

    @staticmethod
    def of(x: Tensor) -> Spectrum:
        """That of samples x (B, *event), about their mean; the largest deviation by the power method.

        Raises:
            ValueError: fewer than two samples, values that are not finite, or samples that are all the same.
        """
        checks.state(x, values=True)
        if len(x) < 2:
            raise ValueError(f"x must hold at least two samples, got {checks.got(x)}.")
        flat = x.detach().reshape(len(x), -1).double()
        flat = flat - flat.mean(0)
        scale = float(flat.square().mean().sqrt())
        if bool((x == x[:1]).all()) or not scale:
            raise ValueError(f"x must hold samples that differ: these are all the same, got {checks.got(x)}.")
        along = flat[flat.square().sum(1).argmax()]
        for _ in range(_ROUNDS):
            along = flat.T @ (flat @ (along / along.norm()))
        largest = float((flat @ (along / along.norm())).square().mean().sqrt())
        return Spectrum(scale, max(largest, scale))
