r"""A density of training times that goes where the loss is: importance sampling, learned as training goes on::

    density = Stratified(AdaptiveTimes(LogNormalSigma()))   # an option of scoresde.train.train
    density = AdaptiveTimes.from_curve(curve, sde)          # or fixed, from the held-out loss of an earlier run

    density = AdaptiveTimes(UniformTime())                  # in a loop of your own
    u = torch.rand(batch)
    t, weight = density.sample(sde, u)
    terms = weight * dsm_loss(model, x0, t, eps)
    density = density.refreshed(density.seen(u, terms.detach()))       # every 20 steps, of the sums since then

**The rule.** Another density, the base, has quantiles v in [0, 1]; they are drawn with a density h(v) instead of
evenly, and each loss L is multiplied by 1/h(v), so that its mean is that under the base whatever h is. The second
moment of what is averaged is ∫ E[L² | v] / h(v) dv, which is at least (∫ m)² with m(v) = E[L² | v]^½, by Cauchy and
Schwarz, and is that for h = m / ∫ m; drawn evenly it is ∫ m². So the variance of the mean of B losses falls by::

    (∫ m² - (∫ m)²) / B

Here h is constant in each of K cells, in proportion to the root of the mean square of the losses seen there, mixed with
a ``floor`` that bounds the weights by 1/floor: Nichol & Dhariwal 2021 (arXiv:2102.09672, section 3.3), with a running
mean in place of the last ten losses, and for any density. The gradient's variance, which matters, follows that of the
loss where gradients are about as large as losses; a weighting that levels the losses (``losses.Uncertainty``) leaves
little to win.

h is a function of quantiles, so that it works for every base and SDE, and :class:`Stratified` may wrap it: a batch is
then spread evenly over h. Densities are values: :meth:`AdaptiveTimes.refreshed` makes a new one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from scoresde import checks
from scoresde.curve import LossCurve
from scoresde.sde import SDE
from scoresde.times.densities import TimeDensity, Times, UniformTime, check_density, checked_uniforms

MOST_CELLS = 4096


@dataclass(frozen=True)
class AdaptiveTimes:
    """The quantiles of another density, drawn in proportion to the root mean square of the loss.

    Args:
        density: the base, under which the mean loss stays what it is.
        cells: K, of equal probability under the base.
        floor: part of the times drawn from the base itself, in (0, 1]; weights are at most 1/floor.
        every: steps of training between two refreshes; None for a density that stays as it is.
        memory: of the sums of before, kept at each refresh, in [0, 1).
        squares, counts: sums of the squares of the base's weighted losses by cell, and of how many they are; empty for
            none seen. Until each cell has been seen, the base is drawn from.

    Raises:
        TypeError, ValueError: no density, a number out of its range, sums of another number than of cells.
    """

    density: TimeDensity = field(default_factory=UniformTime)
    cells: int = 32
    floor: float = 0.2
    every: int | None = 20
    memory: float = 0.9
    squares: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_density(self.density)
        object.__setattr__(self, "cells", checks.count(self.cells, name="cells", most=MOST_CELLS))
        if not 0 < checks.number(self.floor, name="floor") <= 1:
            raise ValueError(f"floor must lie in (0, 1], got {self.floor}: at 0 a cell might never be drawn again.")
        if self.every is not None:
            object.__setattr__(self, "every", checks.count(self.every, name="every"))
        if not 0 <= checks.number(self.memory, name="memory") < 1:
            raise ValueError(f"memory must lie in [0, 1), got {self.memory}.")
        for name in ("floor", "memory"):
            object.__setattr__(self, name, checks.number(getattr(self, name), name=name))
        for name in ("squares", "counts"):
            values = checks.numbers(getattr(self, name), name=name)
            if len(values) not in (0, self.cells) or not all(0 <= one < math.inf for one in values):
                raise ValueError(f"{name} must be finite numbers of at least 0, one for each of {self.cells} cells.")
            object.__setattr__(self, name, values)
        if len(self.squares) != len(self.counts):
            raise ValueError("squares and counts must be given together, of the same cells.")

    @classmethod
    def from_curve(
        cls,
        curve: LossCurve,
        sde: SDE,
        *,
        density: TimeDensity | None = None,
        cells: int = 32,
        floor: float = 0.2,
        every: int | None = None,
    ) -> Self:
        """The density that suits a measured loss, for training under the weighting of the curve ("edm" for scores).

        The second moment of a loss at a noise level is the square of its mean plus that of its deviation, which the
        curve knows, too: standard_error² · count.

        Args:
            curve: of held-out losses.
            sde: under which training will be.
            density, cells, floor: as of the class.
            every: steps between refreshes, for one that goes on to adapt from there.

        Raises:
            TypeError, ValueError: no curve, a loss that is 0 everywhere, or the arguments of the class.
        """
        checks.instance(curve, LossCurve, name="curve", hint="Such as model.loss_curve after training.")
        base = cls(UniformTime() if density is None else density, cells, floor, every)
        rms = tuple(
            math.sqrt(mean**2 + n * error**2)
            for mean, error, n in zip(curve.loss, curve.standard_error, curve.count, strict=True)
        )
        of_squares = dataclasses.replace(curve, loss=rms)
        v = (torch.arange(_POINTS * base.cells, dtype=torch.float64) + 0.5) / (_POINTS * base.cells)
        t, weight = base.density.sample(checks.instance(sde, SDE, name="sde"), v)
        squares = (weight * of_squares.at(-0.5 * sde.log_snr(t))).square().reshape(base.cells, _POINTS).mean(1)
        if not bool((squares > 0).any()):
            raise ValueError("curve must have a loss above 0 somewhere among the times of the density.")
        many = sum(curve.count) / len(curve.count)
        return dataclasses.replace(base, squares=tuple((many * squares).tolist()), counts=(float(many),) * base.cells)

    @property
    def adapts(self) -> bool:
        """Whether training is to refresh it."""
        return self.every is not None

    @property
    def masses(self) -> Tensor:
        """The probability of each cell, (K,), float64: at least floor/K."""
        even = torch.full((self.cells,), 1 / self.cells, dtype=torch.float64)
        if not self.counts or min(self.counts) <= 0:
            return even
        squares, counts = torch.tensor((self.squares, self.counts), dtype=torch.float64)
        root = (squares / counts).sqrt()
        total = root.sum()
        return even if total == 0 else (1 - self.floor) * root / total + self.floor * even

    def sample(self, sde: SDE, u: Tensor) -> Times:
        """Times from uniforms u (B,); the weight is the base's over h."""
        u, masses = checked_uniforms(u), self.masses
        cell = self._cell(u, masses)
        masses = masses.to(u.device)
        left = masses.cumsum(0) - masses
        within = ((u - left[cell]) / masses[cell]).clamp(0, 1)
        t, weight = self.density.sample(sde, (cell + within) / self.cells)
        return Times(t, weight / (self.cells * masses[cell]))

    def seen(self, u: Tensor, terms: Tensor) -> Tensor:
        """Sums by cell of the squares of the base's weighted losses, and how many there were: (2, K).

        Args:
            u: uniforms (B,) from which the times of a batch were drawn.
            terms: the losses (B,) times the weights of :meth:`sample`, without a graph; the sums are beside them.

        Raises:
            TypeError, ValueError: no uniforms, or losses of another shape.
        """
        u, masses = checked_uniforms(u), self.masses
        terms = checks.real(terms, name="terms")
        if terms.shape != u.shape:
            raise ValueError(f"terms must be one loss for each of u, {tuple(u.shape)}; got {tuple(terms.shape)}.")
        work = torch.float64 if checks.has_float64(terms.device) else torch.float32
        cell = self._cell(u, masses)
        factor = (self.cells * masses.to(u.device)[cell]).to(terms.device, work)
        squares = (factor * terms.to(work)).square()
        # A product and no scattered addition: on a GPU, too, it has one order.
        place = torch.nn.functional.one_hot(checks.sent(cell, terms.device), self.cells).to(work)
        return torch.stack([squares, torch.ones_like(squares)]) @ place

    def refreshed(self, sums: Tensor) -> Self:
        """The density after these sums (2, K), what :meth:`seen` answered, added over steps.

        Raises:
            ValueError: sums of another shape, or negative.
        """
        sums = checks.real(sums, name="sums")
        if tuple(sums.shape) != (2, self.cells):
            raise ValueError(f"sums must be (2, {self.cells}), got {tuple(sums.shape)}.")
        new = sums.detach().double().cpu() if checks.has_float64(sums.device) else sums.detach().cpu().double()
        if self.counts:
            new = new + self.memory * torch.tensor((self.squares, self.counts), dtype=torch.float64)
        squares, counts = new.tolist()
        return dataclasses.replace(self, squares=tuple(squares), counts=tuple(counts))

    def learned(self) -> tuple[tuple[float, ...], ...]:
        """``squares`` and ``counts``, for a file."""
        return self.squares, self.counts

    def with_learned(self, learned: Sequence[tuple[float, ...]]) -> Self:
        """The same with ``squares`` and ``counts`` from a file.

        Raises:
            TypeError, ValueError: they are of another number of cells, or no such numbers.
        """
        squares, counts = learned
        return dataclasses.replace(self, squares=tuple(squares), counts=tuple(counts))

    def _cell(self, u: Tensor, masses: Tensor) -> Tensor:
        """In which cell each uniform lies, (B,) int64."""
        right = masses.cumsum(0)[:-1].to(u.device)
        return torch.searchsorted(right, u.contiguous(), right=True)


_POINTS = 16  # in each cell, at which a curve is read
