"""A finite Markov chain of noise levels: what DDPM and SMLD train on, and what an SDE becomes when discretised.

    chain = VP().discretize(1000)                   # DDPM's
    chain.alpha_bar, chain.beta, chain.posterior_variance, chain.posterior_mean(x0, x_i, i)
    sde = ChainSDE(chain)                           # back in continuous time, through the same levels

A chain of your own: ``Chain.from_betas(torch.linspace(1e-4, 0.02, 1000))``, or ``Chain(times, ratio, variance)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    @classmethod
    def from_betas(cls, betas: Tensor, *, times: Tensor | None = None) -> Chain:
        """DDPM's chain of these β_i: x_i = sqrt(1 - β_i) x_{i-1} + sqrt(β_i) z_i (Ho et al. 2020, eq. 2).

        Args:
            betas: (n,) β_1 ... β_n, each in (0, 1); the last may be 1, which leaves no signal (zero terminal SNR).
            times: (n,) where :class:`~scoresde.sde.ChainSDE` puts the levels; i/n unless told.

        Raises:
            TypeError, ValueError: no numbers (n,), or numbers that are no variances of such a chain.
        """
        beta = checks.real(betas, name="betas")
        if beta.ndim != 1 or not len(beta):
            raise ValueError(f"betas must be n numbers, one for each level, (n,); got shape {tuple(beta.shape)}.")
        checks.finite(beta, name="betas")
        if bool((beta <= 0).any()) or bool((beta[:-1] >= 1).any()) or bool(beta[-1] > 1):
            low, high = (value.item() for value in beta.detach().aminmax())
            raise ValueError(
                f"betas must lie in (0, 1), and the last alone may be 1; got values in [{low:g}, {high:g}]. They are "
                "the variances that the levels add, not the products ᾱ_i."
            )
        if len(beta) > 2 and bool(beta[0] > 0.5) and bool((beta.diff() < 0).all()):
            raise ValueError(
                f"betas fall from {beta[0].item():g} to {beta[-1].item():g}, as the products ᾱ_i do: give the "
                "variances β_i = 1 - ᾱ_i / ᾱ_{i-1} that the levels add. If these are variances, write "
                "Chain(times, (1 - betas).sqrt(), betas)."
            )
        if times is None:
            times = torch.arange(1, len(beta) + 1, dtype=torch.float64) / len(beta)
        return cls(times=times, ratio=(1 - beta).sqrt(), variance=beta)

    def to_json(self) -> dict[str, list[float]]:
        """The three arrays by name, as lists of numbers, for :meth:`from_json`; numbers come back bit for bit."""
        return {name: getattr(self, name).tolist() for name in ("times", "ratio", "variance")}

    @classmethod
    def from_json(cls, fields: Mapping[str, Sequence[float]]) -> Chain:
        """The inverse of :meth:`to_json`.

        Raises:
            TypeError, ValueError: other fields, or what no chain can have.
        """
        if not isinstance(fields, Mapping) or fields.keys() != {"times", "ratio", "variance"}:
            raise ValueError(
                f"the fields of a chain must be times, ratio and variance by name, got {checks.got(fields)}."
            )
        return cls(**fields)  # type: ignore[arg-type]  # lists of numbers are read, too

    def __repr__(self) -> str:
        """In one line: a chain has a thousand levels."""
        first, last = (f"{v:.4g}" for v in (self.times[0].item(), self.times[-1].item()))
        ends = [(self.sigma[i] / self.alpha[i]).item() for i in (0, -1)]
        return f"Chain(n={self.n}, times={first}...{last}, sigma/alpha={ends[0]:.4g}...{ends[1]:.4g})"

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
