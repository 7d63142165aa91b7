"""A finite Markov chain of noise levels: what DDPM and SMLD train on, and what an SDE becomes when discretised.

    chain = VP().discretize(1000)                   # DDPM's
    chain.alpha_bar, chain.beta, chain.posterior_variance, chain.posterior_mean(x0, x_i, i)
    sde = ChainSDE(chain)                           # back in continuous time, through the same levels

A chain of your own: ``Chain(times, ratio, variance)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.lasting import lasting_property


@dataclass(frozen=True, eq=False)
class Chain:
    r"""Levels i = 1 .. n of ``x_i = r_i x_{i-1} + sqrt(v_i) z_i``, z_i ~ N(0, I), starting from data x_0.

    Entry i - 1 of each array belongs to level i, as papers count. DDPM (Ho et al. 2020, arXiv:2006.11239, eq. 2)
    has r_i = sqrt(1 - β_i), v_i = β_i; SMLD (Song et al. 2021, arXiv:2011.13456, eq. 8) has r_i = 1,
    v_i = σ_i² - σ_{i-1}², σ_0 = 0.

    Attributes:
        times: (n,) where ``ChainSDE`` puts each level, float64, increasing. The SDE that was discretised has these
            levels there only up to O(1/n) where its chain is DDPM's or SMLD's; see ``times.LevelTime``.
        ratio: (n,) r_i.
        variance: (n,) v_i.

    Raises:
        ValueError: arrays of different lengths, times that do not increase, v_i < 0, r_i <= 0 (but the last may be 0:
            zero terminal SNR), or not finite.
    """

    times: Tensor
    ratio: Tensor
    variance: Tensor

    def __post_init__(self) -> None:
        for name in ("times", "ratio", "variance"):  # float64: a product of a thousand ratios in float32 loses digits
            object.__setattr__(self, name, checks.real(getattr(self, name), name=name))
        shapes = [tuple(v.shape) for v in (self.times, self.ratio, self.variance)]
        if len(set(shapes)) > 1 or len(shapes[0]) != 1 or shapes[0][0] < 1:
            raise ValueError(f"a chain needs times, ratio and variance of one shape (n,), n >= 1; got {shapes}.")
        for name in ("times", "ratio", "variance"):
            checks.finite(getattr(self, name), name=name)
        if bool((self.times.diff() <= 0).any()):
            raise ValueError("the times of a chain must increase; flip a chain that counts from noise to data.")
        if bool((self.ratio[:-1] <= 0).any()) or bool(self.ratio[-1] < 0) or bool((self.variance < 0).any()):
            raise ValueError("a chain needs variance >= 0 and ratio > 0 at each level; the last ratio alone may be 0.")

    @property
    def n(self) -> int:
        """Number of levels."""
        return self.times.shape[0]

    @property
    def beta(self) -> Tensor:
        """(n,) variance added by each level: DDPM's β_i for its chain."""
        return self.variance

    @lasting_property
    def alpha(self) -> Tensor:
        """(n,) signal scale of x_i given x_0: sqrt(ᾱ_i) in DDPM, 1 in SMLD."""
        return self.ratio.cumprod(0)

    @property
    def alpha_bar(self) -> Tensor:
        """(n,) DDPM's ᾱ_i = α_i², the product of 1 - β."""
        return self.alpha**2

    @lasting_property
    def sigma(self) -> Tensor:
        """(n,) noise scale of x_i given x_0: sqrt(1 - ᾱ_i) in DDPM, SMLD's σ_i."""
        # σ_i² / α_i² is the running sum of v_j / α_j²: the recursion σ_i² = r_i² σ_{i-1}² + v_i, solved.
        sigma = self.alpha * (self.variance / self.alpha**2).cumsum(0).sqrt()
        return sigma if bool(self.alpha[-1] > 0) else torch.cat([sigma[:-1], self.variance[-1:].sqrt()])

    @property
    def before(self) -> tuple[Tensor, Tensor]:
        """α and σ, each (n,), of the level before each: 1 and 0 before the first."""
        one = torch.ones_like(self.alpha[:1])
        return torch.cat([one, self.alpha[:-1]]), torch.cat([0 * one, self.sigma[:-1]])

    @property
    def posterior_variance(self) -> Tensor:
        """(n,) β̃_i, the variance of x_{i-1} given x_i and x_0 (Ho et al. 2020, eq. 7): v_i σ_{i-1}² / σ_i²."""
        return self.variance * (self.before[1] / self.sigma) ** 2

    def posterior_mean(self, x0: Tensor, x_i: Tensor, i: int | Tensor) -> Tensor:
        """μ̃_i(x_i, x_0), the mean of x_{i-1} given x_i and x_0 (Ho et al. 2020, eq. 7).

        Args:
            x0: (B, *event).
            x_i: (B, *event).
            i: level 1 .. n, one for all or (B,).

        Raises:
            TypeError, ValueError: tensors that do not fit, or a level that is no whole number in 1 .. n.
        """
        checks.same_shape(checks.state(x0, name="x0"), checks.state(x_i, name="x_i"), names="x0 and x_i")
        level = self._level(i)
        checks.same_batch(level, x0, name="i")
        alpha, sigma = self.before
        weight_0 = alpha[level] * self.variance[level] / self.sigma[level] ** 2
        weight_i = self.ratio[level] * (sigma[level] / self.sigma[level]) ** 2
        shape = (-1, *[1] * (x0.ndim - 1)) if level.ndim else ()
        weight_0, weight_i = (w.to(x0).reshape(shape) for w in (weight_0, weight_i))
        return weight_0 * x0 + weight_i * x_i

    def time(self, i: int | Tensor) -> Tensor:
        """``times`` at level i = 1 .. n, for one level or many."""
        return self.times[self._level(i)]

    def _level(self, i: int | Tensor) -> Tensor:
        return checks.integers(i, name="the level i", least=1, most=self.n).to(self.times.device) - 1
