"""Weighted particles on their way, and where they have arrived.

:class:`Particles` is what :func:`~scoresde.particles.tilted` and :func:`~scoresde.particles.twisted` answer::

    particles = twisted(guidance, (512, *event), steps=100)
    particles.mean(), particles.std()                       # (G, *event), under the weights
    particles.draw(100, noise=0)                            # 100 samples of each group, equally weighted
    particles.effective.amin(0), particles.distinct         # (G,): how many particles it rests on

:class:`Population` keeps the weights during a run: ``weigh`` multiplies them, ``ancestors`` resamples, ``arrived``
makes the result and gives a :class:`CollapseWarning` where a few particles hold all weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.noise import Noise, as_noise
from scoresde.particles.resample import Resampling, normalised, systematic
from scoresde.warning import warn_user


class CollapseWarning(UserWarning):
    """Nearly all the weight of a group has come to lie on very few particles."""


@dataclass(frozen=True)
class Particles:
    r"""Weighted samples: Σ_n w_n h(x_n) estimates the expectation of h, group by group.

    Attributes:
        x: (G·N, *event) the particles, group after group.
        log_weights: (G, N) float64, normalised: their exponentials sum to 1 in each group.
        effective: (n + 1, G) effective sample size of the weights at each time, before any resampling there.
        resampled: (n + 1, G) whether the group was resampled there.
        log_normalizer: (G,) the logarithm of the product of mean weights: of an unbiased estimate of the normaliser.
        roots: (G, N) the number, within its group, of the particle at the first time from which each descends.
        nfe: evaluations of the guidance, each for all particles together.
        grid: (n + 1,) the times.
        denoised: whether a last denoising step was taken.
    """

    x: Tensor
    log_weights: Tensor
    effective: Tensor
    resampled: Tensor
    log_normalizer: Tensor
    roots: Tensor
    nfe: int
    grid: Tensor
    denoised: bool = False

    @property
    def weights(self) -> Tensor:
        """(G, N), each group's sum 1."""
        return self.log_weights.exp()

    @property
    def distinct(self) -> Tensor:
        """How many particles of the first time have descendants, (G,): the families that are left."""
        ordered = self.roots.sort(1).values
        return 1 + (ordered.diff(dim=1) != 0).sum(1)

    def mean(self) -> Tensor:
        """Σ_n w_n x_n, (G, *event)."""
        return self._average(self._grouped())

    def std(self) -> Tensor:
        """Standard deviation per coordinate under the weights, (G, *event); not corrected for N, so 0 for one."""
        x = self._grouped()
        return self._average((x - self._average(x)[:, None]).square()).sqrt()

    def draw(self, count: int, noise: Noise | torch.Generator | int) -> Tensor:
        """``count`` equally weighted samples of each group, (G·count, *event), by systematic resampling.

        As near to drawing without replacement as weights allow: particle n is taken ⌊count w_n⌋ or ⌈count w_n⌉ times,
        so none is repeated unless it holds more than 1/count of the weight. More than the effective sample size must
        repeat. Each is a draw from the weighted law; they come in the order of the particles and are not independent.

        Args:
            count: samples for each group.
            noise: where the one uniform for each group comes from.
        """
        count = checks.count(count, name="count")
        chosen = systematic(self.log_weights, as_noise(noise, "draw"), count)
        groups, n = self.log_weights.shape
        first = n * torch.arange(groups, device=chosen.device)[:, None]
        return self.x[(chosen + first).flatten()]

    def _grouped(self) -> Tensor:
        return self.x.reshape(*self.log_weights.shape, *self.x.shape[1:])

    def _average(self, values: Tensor) -> Tensor:
        return torch.einsum("gn,gn...->g...", self.weights.to(values.dtype), values)


class Population:
    """The weights of particles while they move; the particles themselves stay with the method.

    Args:
        groups: G.
        size: N, particles in each.
        threshold: a group is resampled where its effective sample size is below this share of N.
        resampling: how.
        noise: where its uniforms come from.
        device: that of the particles.
    """

    def __init__(
        self, groups: int, size: int, threshold: float, resampling: Resampling, noise: Noise, device: torch.device
    ) -> None:
        self.groups, self.size, self.threshold = groups, size, threshold
        self.resampling, self.noise = resampling, noise
        self.log_weights = torch.zeros(groups, size, dtype=torch.float64, device=device)
        self.log_normalizer = torch.zeros(groups, dtype=torch.float64, device=device)
        self.roots = torch.arange(size, device=device).repeat(groups, 1)
        self.effective: list[Tensor] = []
        self.resampled: list[Tensor] = []

    def weigh(self, log_factor: Tensor, t: Tensor) -> None:
        """Each particle's weight times exp(``log_factor``), (G·N,).

        Raises:
            ValueError: weights that are NaN, infinite, or all 0 in a group.
        """
        self.log_weights = self.log_weights + log_factor.double().reshape(self.groups, self.size)
        self._now = 1 / normalised(self.log_weights, where=f"at t = {t.item():.4g}").square().sum(1)

    def ancestors(self, *, last: bool = False) -> Tensor | None:
        """Rows (G·N,) that take the particles' places after a time of the grid; None where all stay.

        ``last``: none is resampled, since weighted particles tell more than resampled ones.
        """
        low = self._now < self.threshold * self.size
        low = torch.zeros_like(low) if last else low
        self.effective.append(self._now)
        self.resampled.append(low)
        if last or not self.threshold:
            return None
        # drawn whether needed or not: a group's uniforms may not depend on when another one is resampled
        chosen = self._checked(self.resampling(self.log_weights, self.noise))
        if checks.readable(low) and not bool(low.any()):  # on a device all are taken, each from where it is
            return None
        stay = torch.arange(self.size, device=low.device).expand(self.groups, -1)
        chosen = torch.where(low[:, None], chosen, stay)
        self.log_normalizer = self.log_normalizer + torch.where(low, self._mean_weight(), 0.0)
        self.log_weights = torch.where(low[:, None], 0.0, self.log_weights)
        self._now = torch.where(low, float(self.size), self._now)
        self.roots = self.roots.gather(1, chosen)
        return (chosen + self.size * torch.arange(self.groups, device=low.device)[:, None]).flatten()

    def _checked(self, chosen: Tensor) -> Tensor:
        """What a function of the user's own answered."""
        shape = (self.groups, self.size)
        whole = isinstance(chosen, Tensor) and chosen.dtype == torch.int64 and tuple(chosen.shape) == shape
        if not whole or (checks.readable(chosen) and not 0 <= int(chosen.amin()) <= int(chosen.amax()) < self.size):
            raise ValueError(
                f"resampling must answer ancestors, int64 {shape} from 0 to {self.size - 1}; it answered "
                f"{checks.got(chosen)}."
            )
        return chosen.to(self.log_weights.device)

    def _mean_weight(self) -> Tensor:
        return self.log_weights.logsumexp(1) - math.log(self.size)

    def arrived(self, x: Tensor, grid: Tensor, nfe: int, *, denoised: bool, way_out: str) -> Particles:
        """The result; warns of a collapse on the way, with the way out."""
        effective = torch.stack(self.effective)
        self._warn(effective, grid, way_out)
        return Particles(
            x,
            normalised(self.log_weights).log(),
            effective,
            torch.stack(self.resampled),
            self.log_normalizer + self._mean_weight(),
            self.roots,
            nfe,
            grid,
            denoised,
        )

    def _warn(self, effective: Tensor, grid: Tensor, way_out: str) -> None:
        limit = max(0.02 * self.size, min(2.0, 0.5 * (self.size + 1)))  # of two or three particles: nearly all on one
        least, step = effective.min(0)
        if not bool((least < limit).any()):
            return
        worst = int(least.argmin())
        warn_user(
            f"the weights have collapsed: at t = {grid[step[worst]].item():.3g} the effective sample size of group "
            f"{worst} was {least[worst].item():.2f} of {self.size} particles, and below {limit:.3g} in "
            f"{int((least < limit).sum())} of {self.groups} groups, so the result rests on very few samples. {way_out}",
            CollapseWarning,
        )
