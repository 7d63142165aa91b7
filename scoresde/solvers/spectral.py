"""The default: the best linear multistep method for data of many scales.

sample(score, shape)                                          # SpectralMultistep, on grids.spectral
sample(score, shape, solver=SpectralMultistep(Spectrum.of(images)), steps=10)
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from scoresde import checks, rules
from scoresde.models.score import Score
from scoresde.reverse import Reverse
from scoresde.rules import between
from scoresde.solvers._best_linear import MOST, Prior, noisy_plan
from scoresde.solvers._best_linear import plan as best_plan
from scoresde.solvers._frames import Levels, X0Frame, levels
from scoresde.solvers._multistep import ExponentialMultistep, Form, Row
from scoresde.solvers._rows import rows
from scoresde.solvers.advice import advise
from scoresde.spectrum import Spectrum

__all__ = ["SpectralMultistep", "Tuning"]

# Fitted once, with those of grids.spectral: see docs/default.md.
_HISTORY = 5
_AGAIN = 2
_BOTTOM, _BOTTOM_BY_STEPS = 0.0717, -0.673
_LEAST_TOP, _TOP = 5.76, 1.086
_ROUGHNESS, _ROUGHNESS_BY_STEPS = 1.43e-3, -3.0
_SLACK, _SLACK_BY_STEPS = 2.09e-5, -2.0
_MEAN = 0.3

_PER_OCTAVE = 4  # nodes of the spectrum for each octave of λ
_PRIOR = 3.0  # σ/α, in units of the largest deviation, from where x says nearly all that is known
_FEWEST = 4  # steps from which the first may be free

# The estimate of the error: the corrections, times a share that falls with the number of steps; see docs/default.md.
_WHOLE, _SHARE_BY_STEPS, _LEAST_SHARE = 5.0, 1.7, 0.05
_TRUSTED = 0.5  # deviations of the data above which the estimate is a warning

# Guidance: amplification up to which nothing changes; n, by its root, from which weights may grow; their bound before.
_AMPLIFIED, _CALM, _CAUTIOUS = 4.0, 8.0, 2.0
_STRONG = 7.0  # beyond which several noisy values are too many for few steps

# With noise: values that enter a step, the least deviation assumed, for it is what is left in the finest directions
# that tells too few steps, and the least of the largest variances, for data wider than assumed come out wider still.
_NOISY, _NOISY_BOTTOM, _NOISY_TOP = 4, 0.01, 20.0


def prior_of(spectrum: Spectrum, n: int, bottom: float | None = None, least_top: float = _LEAST_TOP) -> Prior:
    """What is assumed where a run has n evaluations, in units of the scale: variance spread evenly over log λ.

    From ``bottom``, a deviation, in place of the fitted one, to ``least_top``, a variance, at least.
    """
    many = max(4, n) / 10
    low = (_BOTTOM * many**_BOTTOM_BY_STEPS if bottom is None else bottom) ** 2
    high = max(least_top, _TOP * (spectrum.largest / spectrum.scale) ** 2)
    m = int(_PER_OCTAVE * math.log2(high / low)) + 2
    variances = torch.linspace(math.log(low), math.log(high), m, dtype=torch.float64).exp()
    shares = torch.full((m,), 1 / m, dtype=torch.float64)
    slack = min(0.5, _SLACK * many**_SLACK_BY_STEPS)
    return Prior(variances, shares, _MEAN, _ROUGHNESS * many**_ROUGHNESS_BY_STEPS, slack)


def most_weights(amplification: float, n: int) -> float:
    """The bound on the weights, for a score that amplifies errors: few steps of it diverge where they extrapolate."""
    if amplification <= _AMPLIFIED:
        return MOST
    enough = _CALM * math.sqrt(amplification - 3)
    least = max(1.05, _CAUTIOUS * min(1.0, 15 / amplification))
    return min(MOST, max(least, _CAUTIOUS * (n / enough) ** 2))


@dataclass(frozen=True)
class Tuning:
    """Factors for what the default assumes, by the number of steps: what :func:`scoresde.grids.adapted` finds.

    Args:
        steps: for which they are known; between these they are interpolated, beyond them those of the nearest.
        logs: for each, the logarithms of the factors of the scale, the largest deviation and the roughness.

    Raises:
        ValueError: lengths that do not fit, steps that do not increase, factors beyond e^9.
    """

    steps: tuple[int, ...]
    logs: tuple[tuple[float, float, float], ...]

    def __post_init__(self) -> None:
        what = "one row for each of steps, of three logarithms of factors"
        object.__setattr__(self, "steps", checks.shape(self.steps, what="increasing numbers of steps", name="steps"))
        if not isinstance(self.logs, (tuple, list)):
            raise TypeError(f"logs must be {what}; got {checks.got(self.logs)}.")
        rows = [checks.numbers(row, name="logs", what=what) for row in self.logs]
        object.__setattr__(self, "logs", tuple(rows))
        increases = all(a < b for a, b in itertools.pairwise(self.steps))
        if not self.steps or len(self.steps) != len(rows) or self.steps[0] < 1 or not increases:
            raise ValueError(
                f"tuning must have a row for each of its increasing steps; got steps {self.steps} and logs {self.logs}."
            )
        if any(len(row) != 3 or not all(abs(v) <= 9 for v in row) for row in rows):
            raise ValueError(f"logs must be {what}, of at most 9; got {rows}.")

    def at(self, steps: int) -> tuple[float, float, float]:
        """The three factors for a number of steps."""
        steps = checks.count(steps, name="steps")
        scale, largest, roughness = between(self.steps, self.logs, steps)
        return math.exp(scale), math.exp(largest), math.exp(roughness)


@dataclass(frozen=True)
class SpectralMultistep(ExponentialMultistep):
    r"""The default: the best linear predictor of the ODE, given that the data vary on many scales.

    With x̃ = x/α, σ̃ = σ/α and D = E[x_0 | x_t], one evaluation a step, which also corrects the two steps before it::

        x̃_s = a x̃_t + Σ_j w_j D_j

    with the least squared error that weights shared by all directions can have, where the data are Gaussian, their
    variance spread evenly over the logarithms of λ, the variance along a direction, D has besides at each time a part
    of its own (a network's roughness) that shrinks with the number of steps, and five values of D enter a step, six its
    correction. See :mod:`~scoresde.solvers._best_linear`; its grid is :func:`~scoresde.grids.spectral`.

    No evaluation is spent on the first of 4 steps or more that starts at σ/α of 3 largest deviations, where x says what
    is known. The last step to an end with σ = 0 is predicted like every other. For η > 0 each step is one of the ODE,
    further down than it need go by the best weights for noisy values, four of them, and the noise of the forward
    process back up; made for η up to 1. Guidance that amplifies errors (:attr:`Score.amplification` above
    4) has smaller weights at few steps: larger ones let it diverge.

    ``Solution.error`` is an estimate of the error of each sample, from what each evaluation corrected: within a factor
    of 3 of the truth for most from 5 evaluations on (see docs/default.md), None below 2 and for η > 0. A warning is
    given where it is half the data's deviation.

    Prediction of a process from some of its values: Wiener 1949; weights of integrals by a Gaussian process: O'Hagan
    1991. The numbers of the rule were fitted once: see docs/default.md.

    Args:
        spectrum: deviations of the data; default the score's own, else what natural data of that shape have.
        tuning: of the weights to one score, by the number of steps: see :func:`scoresde.grids.adapted`.
    """

    spectrum: Spectrum | None = None
    tuning: Tuning | None = None

    order: ClassVar[int] = 3

    def form(self) -> Form:
        """Five values of x̂_0, corrected."""
        return Form(_HISTORY, correct=True)

    def plan(self, process: Reverse, grid: Tensor) -> Sequence[Any]:
        """Rows; the first without an evaluation where the run starts at the prior."""
        at, steps = levels(process.sde, grid), len(grid) - 1
        spectrum = self._known(process.score)
        ratio = at.sigma / at.alpha / spectrum.scale
        if process.eta != 0:
            return self._noisy(process, at, ratio, spectrum)
        free = steps >= _FEWEST and float(ratio[0].detach()) >= _PRIOR * spectrum.largest / spectrum.scale
        prior, unit = self._assumed(spectrum, steps, free)
        most = most_weights(process.score.amplification, steps - free)
        (a, w), correction = best_plan(prior, ratio / unit, _HISTORY, _AGAIN, free, most)
        units, evaluates = X0Frame(0.0).units(at.at(slice(0, -1)))
        linear, values = a * at.alpha[1:] / at.alpha[:-1], w.shape[1]
        units = units[(torch.arange(steps)[:, None] - torch.arange(values)).clamp_min(0)]
        columns = rows(linear, *(w * at.alpha[1:, None] * units).unbind(1))
        # what is wrong where there is noise is forgotten on the way to the data
        weigh = 1 / (1 + ratio[:-1])
        doubts = rows(weigh / at.alpha[:-1] * correction.a, *(weigh[:, None] * correction.w * units).unbind(1))
        known = [min(i + 1 - free, values) for i in range(steps)]
        return [
            Row(
                evaluates[i] if known[i] else None,
                c,
                tuple(row[: known[i]]),
                0.0,
                values - 1,
                doubt=tuple(doubt[: known[i] + 1]) if known[i] else None,
            )
            for i, ((c, *row), doubt) in enumerate(zip(columns, doubts, strict=True))
        ]

    def _noisy(self, process: Reverse, at: Levels, ratio: Tensor, spectrum: Spectrum) -> Sequence[Row]:
        """Rows of the reverse SDE."""
        steps = len(ratio) - 1
        amplification = process.score.amplification
        history = 1 if steps < _CALM * math.sqrt(max(0.0, amplification - _STRONG)) else _NOISY
        prior = prior_of(spectrum, steps, _NOISY_BOTTOM, _NOISY_TOP)
        a, w, c = noisy_plan(prior, ratio, process.eta, history, most_weights(amplification, steps))
        units, evaluates = X0Frame(process.eta).units(at.at(slice(0, -1)))
        units = units[(torch.arange(steps)[:, None] - torch.arange(history)).clamp_min(0)]
        alpha = at.alpha[1:]
        columns = rows(a * alpha / at.alpha[:-1], c * alpha * spectrum.scale, *(w * alpha[:, None] * units).unbind(1))
        return [
            Row(evaluates[i], linear, tuple(weights[: i + 1]), noise, history - 1)
            for i, (linear, noise, *weights) in enumerate(columns)
        ]

    def judged(self, process: Reverse, x: Tensor, state: Any) -> Tensor | None:
        """From the corrections of the run; with a warning where they are not small beside the data."""
        doubt = None if state is None or state.memory is None else state.memory.doubt
        if doubt is None:
            return None
        n = sum(isinstance(row, Row) and row.doubt is not None for row in state.rows[: state.done])
        if n < 2:  # hardly anything has been corrected
            return None
        error = doubt.squares.sqrt() * max(_LEAST_SHARE, min(1.0, (_WHOLE / n) ** _SHARE_BY_STEPS))
        scale = self._known(process.score).scale
        if checks.readable(error) and len(error) and bool(error.median() > _TRUSTED * scale):
            advise(
                f"{type(self).__name__} expects an error of {float(error.median()):.2g} a coordinate after {n} steps, "
                f"where the data's deviation is {scale:.2g}: the answer is not to be trusted. Take more steps, or "
                "another solver where the score is rough (Ancestral for posteriors); or tell sigma_data, if that "
                "deviation is wrong."
            )
        return error

    def default_grid(self, score: Score) -> rules.Rule:
        """:func:`~scoresde.grids.spectral`, of the same spectrum."""
        return partial(rules.spectral, spectrum=self._known(score))

    def made_for(self, score: Score, event: tuple[int, ...]) -> Self:
        """With the spectrum: its own, else the score's, else what data of that shape and ``sigma_data`` may have."""
        return dataclasses.replace(self, spectrum=self.spectrum or known_spectrum(score, event))

    def _assumed(self, spectrum: Spectrum, steps: int, free: bool) -> tuple[Prior, float]:
        """The prior, and its unit in scales of the data."""
        if self.tuning is None:
            return prior_of(spectrum, steps - free), 1.0
        scale, largest, roughness = self.tuning.at(steps)
        told = Spectrum(spectrum.scale * scale, max(spectrum.scale * scale, spectrum.largest * largest))
        prior = prior_of(told, steps - free)
        return prior._replace(roughness=prior.roughness * roughness), scale

    def _known(self, score: Score) -> Spectrum:
        return self.spectrum or known_spectrum(score, ())  # that of a single number, for want of a shape


def known_spectrum(score: Score, event: tuple[int, ...]) -> Spectrum:
    """The score's own, else what data of that shape and the score's ``sigma_data`` may have."""
    return score.spectrum or Spectrum.assumed(event, score.sigma_data)
