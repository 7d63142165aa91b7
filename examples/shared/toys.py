"""Laws in the plane whose density and score are known exactly at every time, under every SDE."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from scoresde import SDE, GaussianMixture, Noise, Score, as_score
from scoresde.noise import as_noise


class Toy(Protocol):
    """A law in the plane."""

    def sample(self, n: int, noise: Noise | torch.Generator | int) -> Tensor:
        """n points (n, 2)."""
        ...

    def log_prob(self, x: Tensor, sde: SDE, t: float | Tensor) -> Tensor:
        """log p_t(x) in nats, (B,)."""
        ...

    def score(self, sde: SDE) -> Score:
        """∇ log p_t."""
        ...


class Checkerboard:
    """Uniform on the eight dark unit squares of [-2, 2]². With [a, b] the sides of a square along an axis::

    p_t(x) = 1/8 Σ_squares Π_axes [Φ((α b - x)/σ) - Φ((α a - x)/σ)] / α
    """

    def __init__(self) -> None:
        corners = [(i - 2.0, j - 2.0) for i in range(4) for j in range(4) if (i + j) % 2 == 0]
        self.corners = torch.tensor(corners, dtype=torch.float64)

    def sample(self, n: int, noise: Noise | torch.Generator | int) -> Tensor:
        source = as_noise(noise, "data")
        uniform = torch.special.ndtr(source.initial((n, 3), dtype=torch.float64, device=torch.device("cpu")))
        square = (uniform[:, 2] * len(self.corners)).long().clamp_max(len(self.corners) - 1)
        points: Tensor = self.corners[square] + uniform[:, :2]
        return points.float()

    def _squares(self, x: Tensor, sde: SDE, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """log of each square's share of p_t(x), (B, 8), and the slope (B, 8, 2) of that log."""
        time = torch.as_tensor(t, dtype=torch.float64)
        alpha, sigma = (value.reshape(-1, 1, 1) for value in (sde.alpha(time), sde.sigma(time)))
        low = (alpha * self.corners - x.double()[:, None]) / sigma
        high = low + alpha / sigma
        # Above 0 the difference of two Φ near 1 would lose all digits: there it is taken between the mirror images.
        a, b = torch.where(low > 0, -high, low), torch.where(low > 0, -low, high)
        log_mass = torch.special.log_ndtr(b)
        log_mass = log_mass + torch.log(-torch.expm1(torch.special.log_ndtr(a) - log_mass))
        bell = [(-0.5 * edge**2 - 0.5 * math.log(2 * math.pi) - log_mass).exp() for edge in (low, high)]
        log_share = log_mass.sum(2) - 2 * alpha[:, 0].log() - math.log(len(self.corners))
        return log_share, (bell[0] - bell[1]) / sigma

    def log_prob(self, x: Tensor, sde: SDE, t: float | Tensor) -> Tensor:
        return self._squares(x, sde, t)[0].logsumexp(1).to(x.dtype)

    def score(self, sde: SDE) -> Score:
        def score(x: Tensor, t: Tensor) -> Tensor:
            log_share, slope = self._squares(x, sde, t)
            return (log_share.softmax(1)[:, :, None] * slope).sum(1).to(x.dtype)

        return as_score(score, sde)


def blurred_curve(points: Tensor, blur: float) -> GaussianMixture:
    """Points of a curve with Gaussian noise of deviation ``blur``. Points closer than that are as good as the curve."""
    return GaussianMixture(torch.ones(len(points)), points, blur**2)


def _along(n: int) -> Tensor:
    return (torch.arange(n) + 0.5) / n


def moons() -> Toy:
    """Two interleaved half circles."""
    angle = math.pi * _along(200)
    outer = torch.stack([angle.cos(), angle.sin()], dim=1)
    inner = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1)
    return blurred_curve(1.4 * (torch.cat([outer, inner]) - torch.tensor([0.5, 0.25])), 0.1)


def spiral() -> Toy:
    """Two arms of one and a half turns."""
    part = _along(250).sqrt()
    angle = 3 * math.pi * part
    arm = 2 * part[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return blurred_curve(torch.cat([arm, -arm]), 0.07)


def swiss_roll() -> Toy:
    """A roll of one and a half turns, seen from its side."""
    angle = 1.5 * math.pi * (1 + 2 * _along(600))
    return blurred_curve((angle / 7)[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1), 0.07)


def mixture() -> Toy:
    """Six unequal Gaussians on a ring, each drawn out along it."""
    angle = math.pi / 3 * torch.arange(6)
    radial = torch.stack([angle.cos(), angle.sin()], dim=1)
    along = torch.stack([-angle.sin(), angle.cos()], dim=1)
    covariances = sum(torch.einsum("ki,kj->kij", axis, axis) for axis in (0.15 * radial, 0.35 * along))
    return GaussianMixture(torch.tensor([1.0, 2, 3, 1, 2, 3]), 1.5 * radial, covariances)


TOYS: Mapping[str, Callable[[], Toy]] = {
    "moons": moons,
    "checkerboard": Checkerboard,
    "spiral": spiral,
    "swiss-roll": swiss_roll,
    "mixture": mixture,
}
if TYPE_CHECKING:
    ToyName = str
else:
    ToyName = Literal[tuple(TOYS)]
