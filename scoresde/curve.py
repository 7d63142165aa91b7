r"""The loss of a denoiser at each noise level, with its standard errors: what a run measured on held-out samples::

    curve = model.loss_curve                                # where training measured one; checkpoints keep it
    curve.levels, curve.loss, curve.standard_error          # at log(σ/α), increasing
    curve.at(c), curve.x0_error(c)                          # between them, c = log(σ/α) of any shape

The loss of a score model is that of Karras et al. 2022 (arXiv:2206.00364, table 1), for each number of a sample::

    (1/σ_data² + α²/σ²) E|x_0 - x̂_0|² / d

1 is what the best denoiser reaches that knows σ_data alone, x̂_0 ∝ x_t; 0 is to know x_0. So levels are comparable with
each other, and so are data. The loss of a classifier is its cross-entropy, in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor

from scoresde import checks

MOST_LEVELS = 10_000
_TOLD = 5


@dataclass(frozen=True)
class LossCurve:
    """A loss at noise levels.

    Args:
        levels: log(σ/α), increasing.
        loss: the mean loss at each, of a score model in units of the best denoiser that knows σ_data alone.
        standard_error: of each mean.
        count: losses that each is the mean of.
        sigma_data: deviation of the data by which the losses are normalised; None for a cross-entropy in nats.
        step: optimizer steps after which it was measured.

    Raises:
        TypeError, ValueError: lists of different lengths, or none; levels that do not increase; a number that is not
            finite, an error or a loss of a score model below 0, a count below 1.
    """

    levels: tuple[float, ...]
    loss: tuple[float, ...]
    standard_error: tuple[float, ...]
    count: tuple[int, ...]
    sigma_data: float | None = None
    step: int = 0

    def __post_init__(self) -> None:
        for name in ("levels", "loss", "standard_error"):
            values = checks.numbers(getattr(self, name), name=name)
            if not all(map(math.isfinite, values)):
                raise ValueError(f"{name} must be finite numbers, got {checks.got(values)}.")
            object.__setattr__(self, name, values)
        counted = checks.numbers(self.count, name="count", what="a list of whole numbers")
        if any(n < 1 or n != n // 1 for n in counted):
            raise ValueError(f"count must be whole numbers of at least 1, got {checks.got(self.count)}.")
        object.__setattr__(self, "count", tuple(map(int, counted)))
        sizes = {name: len(getattr(self, name)) for name in ("levels", "loss", "standard_error", "count")}
        if len(set(sizes.values())) > 1 or not 1 <= len(self.levels) <= MOST_LEVELS:
            told = ", ".join(f"{name}: {size}" for name, size in sizes.items())
            raise ValueError(f"levels and what belongs to them must be 1 to {MOST_LEVELS} of each, got {told}.")
        if any(low >= high for low, high in pairwise(self.levels)):
            raise ValueError(f"levels must increase, got {checks.got(self.levels)}.")
        if min(self.standard_error) < 0:
            raise ValueError(f"standard_error must be at least 0, got {min(self.standard_error):g}.")
        if self.sigma_data is not None:
            object.__setattr__(self, "sigma_data", checks.positive(self.sigma_data, name="sigma_data"))
        if self.sigma_data is not None and min(self.loss) < 0:
            raise ValueError(f"loss must be at least 0, a mean of squares, got {min(self.loss):g}.")
        object.__setattr__(self, "step", checks.count(self.step, name="step", least=0))

    def at(self, level: Tensor) -> Tensor:
        """The loss at ``level`` = log(σ/α), of any shape, in float64: linear between levels, constant beyond the ends.

        Raises:
            TypeError: no real numbers.
        """
        level = checks.real(level, name="level").double()
        levels, loss = torch.tensor((self.levels, self.loss), dtype=torch.float64, device=level.device)
        if len(levels) == 1:
            return loss[0].expand(level.shape).clone()
        right = torch.searchsorted(levels, level.detach().contiguous()).clamp(1, len(levels) - 1)
        low, high = levels[right - 1], levels[right]
        part = ((level - low) / (high - low)).clamp(0, 1)
        return loss[right - 1] + part * (loss[right] - loss[right - 1])

    def x0_error(self, level: Tensor) -> Tensor:
        """E|x_0 - x̂_0|²/d at ``level`` = log(σ/α), in the units of x_0, of any shape, in float64.

        Raises:
            TypeError: no real numbers. ValueError: a curve of cross-entropies.
        """
        return self.at(level) / (self._of_data() ** -2 + (-2 * checks.real(level, name="level").double()).exp())

    def noise_error(self, level: Tensor) -> Tensor:
        """E|ε - ε̂|²/d at ``level`` = log(σ/α), of any shape, in float64.

        Raises:
            TypeError: no real numbers. ValueError: a curve of cross-entropies.
        """
        return self.at(level) / (1 + (2 * checks.real(level, name="level").double()).exp() / self._of_data() ** 2)

    def _of_data(self) -> float:
        if self.sigma_data is None:
            raise ValueError("this is a curve of cross-entropies, in nats: it tells no error of x_0 or of the noise.")
        return self.sigma_data

    def to_json(self) -> dict[str, Any]:
        """As JSON; :meth:`from_json` is the inverse."""
        return {
            "levels": list(self.levels),
            "loss": list(self.loss),
            "standard_error": list(self.standard_error),
            "count": list(self.count),
            "sigma_data": self.sigma_data,
            "step": self.step,
        }

    @classmethod
    def from_json(cls, given: Any) -> Self:
        """From JSON of anybody's.

        Raises:
            TypeError, ValueError: it is none that :meth:`to_json` writes.
        """
        names = ("levels", "loss", "standard_error", "count", "sigma_data", "step")
        if not isinstance(given, dict) or set(given) != set(names):
            raise ValueError(f"expected {', '.join(names)}, got {checks.got(given)}")
        return cls(**given)


def curve_in_words(curve: LossCurve) -> str:
    """The loss at a few levels, from one end to the other, and what it is measured in."""
    checks.instance(curve, LossCurve, name="curve")
    last = len(curve.levels) - 1
    some = sorted({round(k * last / (_TOLD - 1)) for k in range(_TOLD)})
    told = ", ".join(f"{curve.loss[i]:.3g} ± {curve.standard_error[i]:.1g} at {curve.levels[i]:.1f}" for i in some)
    unit = "nats" if curve.sigma_data is None else f"of the best that knows sigma_data = {curve.sigma_data:.3g} alone"
    return f"{told} = log σ/α ({unit}; after step {curve.step})"
