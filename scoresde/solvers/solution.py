"""What a run comes to, and what is told on the way: :class:`Solution`, :class:`Progress`, and counted evaluations.

solution = sample(score, shape)
solution.x, solution.nfe, solution.data                 # samples, evaluations, samples in the units of the data
solution.complete, solution.finite                      # whether all arrived; which are finite
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from scoresde.models.combination import Combination
from scoresde.models.evaluation import AllModules
from scoresde.models.score import Score, Units, shaped_like
from scoresde.sde import SDE

Report = Callable[[int, Tensor], None]
"""(steps done, state): what is told after each step."""


class Progress(NamedTuple):
    """What a callback sees after each step: ``step`` of ``steps`` done, the time ``t`` reached, the state ``x``.

    Where a method chooses its own steps and there is no grid, as in a likelihood, ``steps`` is the most it will try.
    """

    step: int
    steps: int
    t: Tensor
    x: Tensor


@dataclass(frozen=True)
class Ending:
    """What the steps come to: the state, and the fields of :class:`Solution` that only some methods know.

    Samples that a method lost, to a score that answered NaN or infinity, are NaN in ``x``. ``complete`` is whether all
    others reached the last time; the method itself warns where they did not.
    """

    x: Tensor
    complete: bool = True
    nfe_per_sample: Tensor | None = None
    reached: Tensor | None = None
    error: Tensor | None = None


@dataclass(frozen=True)
class Solution:
    """Where a run ended.

    Attributes:
        x: (B, *event) the state at the last time of the grid, or E[x_0 | that state] if ``denoised``.
        nfe: score evaluations used, each for the whole batch.
        grid: (n + 1,) the times.
        trajectory: (n + 1, B, *event) the states at those times, if asked for; never denoised.
        denoised: whether a last denoising step was taken: asked for, and σ > 0 at the last time.
        complete: whether every sample reached the last time and is finite. Methods that choose their steps stop short
            of the last time at their step limit; :class:`~scoresde.solvers.IncompleteWarning` says so, and which
            samples are not finite.
        nfe_per_sample: (B,) evaluations that each sample needed, from methods whose samples step on their own.
        reached: (B,) float64, the time that each sample reached, from methods that choose their own steps.
        error: (B,) float64, what a method that judges itself expects the error of a coordinate of each sample to be,
            root mean square, in units of x_0: see :class:`~scoresde.SpectralMultistep`. None around another solver, and
            where steps are done again for gradients (``checkpoint``).
        finite: (B,) bool, whether each sample is finite; those that are not are NaN throughout, and in no way change
            the others.
        scaling: the map from x to the units of the data, where the score knows it.
    """

    x: Tensor
    nfe: int
    grid: Tensor
    trajectory: Tensor | None = None
    denoised: bool = False
    complete: bool = True
    nfe_per_sample: Tensor | None = None
    reached: Tensor | None = None
    error: Tensor | None = None
    finite: Tensor | None = None
    scaling: Units | None = None

    @property
    def data(self) -> Tensor:
        """The samples in the units of the data, ``scaling.to_data(x)``: (B, *event), not rounded to levels.

        float64 where float32 cannot hold them.

        Raises:
            ValueError: the score did not know its scaling.
        """
        if self.scaling is None:
            raise ValueError(
                "the score does not know the units of its data: a model knows them that train() made from a data set "
                "with a scaling, or load_model from its checkpoint; else set model.scaling = dataset.scaling, or take "
                "dataset.scaling.to_data(solution.x)."
            )
        return self.scaling.to_data(self.x)


class CountedScore(Score):
    """Another score, which counts its evaluations, tells ``asked`` of them and refuses an answer of another shape."""

    def __init__(self, score: Score, asked: Callable[[Tensor], None] | None = None) -> None:
        self.score, self.nfe, self._asked = score, 0, asked
        self.sigma_data, self.spectrum = score.sigma_data, score.spectrum
        self.coupling = score.coupling
        self.scaling, self.rough = score.scaling, score.rough
        self._behind = AllModules([score])

    @property
    def sde(self) -> SDE:  # type: ignore[override]
        return self.score.sde

    @property
    def amplification(self) -> float:  # type: ignore[override]
        return self.score.amplification  # asked of the score only by who needs it: a schedule's is a search

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        self.nfe += 1
        if self._asked is not None:
            self._asked(t)
        if not self._behind.evaluated():  # in a backward pass that evaluates once more
            with self._behind.evaluating():
                return shaped_like(self.score.evaluate(x, t, wanted), x, "the score")
        return shaped_like(self.score.evaluate(x, t, wanted), x, "the score")


def unheard(step: int, x: Tensor) -> None:
    """The report of a run whose inner states nobody asked for: methods need not work them out."""
