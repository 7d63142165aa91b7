"""Feynman-Kac weights for sums of scores: samples of the tilted density, where guidance alone departs from it::

    particles = tilted(classifier_free(model, {"label": y}, scale=3.0), (256, *event), steps=200)
    x = particles.draw(100, noise=0)

:func:`tilted` takes a :class:`~scoresde.guidance.LinearGuidance`, a sum of scores with constant weights, and any solver
that steps on the grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.lasting import without_graph
from scoresde.checks.later import answering
from scoresde.guidance import LinearGuidance, Part
from scoresde.guidance.parts import weighted_sum
from scoresde.models.combination import SCORE, Combination
from scoresde.models.evaluation import in_evaluation_mode
from scoresde.models.score import DerivedScore
from scoresde.particles.population import Particles
from scoresde.particles.start import ParticleOptions, ParticleRun, prepared, require_kind, takes_options
from scoresde.sde import SDE, signal_left
from scoresde.solvers import Solver, SpectralMultistep
from scoresde.solvers.wrapping import require_process, require_steps


@takes_options
def tilted(guidance: LinearGuidance, shape: tuple[int, ...], **options: Unpack[ParticleOptions]) -> Particles:
    r"""Weighted samples of π_0 ∝ Π_i p_i(x)^{a_i}, which guidance with S = Σ_i a_i s_i alone does not reach.

    Particles follow the η-process of the score S, and collect (Skreta et al. 2025, arXiv:2503.02819, for η = 1)::

        d log w / dτ = ½ g² (|S|² - Σ_i a_i |s_i|²) = -½ g² Σ_{i<j} a_i a_j |s_i - s_j|²,        τ = T - t

    which is the same for every η. For classifier-free guidance it is ½ g² w (w - 1) |s(x, t, y) - s(x, t, ∅)|². By the
    trapezoidal rule in the log-SNR λ, ½ g² dτ = ½ σ² dλ, at the evaluations that the solver makes anyway where it makes
    one at each time: order 2, so the law of the weighted particles converges with the solver's weak order up to 2, and
    with the square root of the number of particles. Groups are resampled on their own.

    Args:
        guidance: a score that is a sum with constant weights: of :func:`~scoresde.guidance.classifier_free`,
            :func:`~scoresde.guidance.classifier`, a composition. All p_i must have come to the SDE's prior at T.
        shape: (G·N, *event); rows g·N to g·N + N - 1 are group g. Conditions bound row by row must agree in a group.
        options: see :class:`~scoresde.particles.ParticleOptions`. The solver is one that takes the grid's steps,
            default :class:`~scoresde.SpectralMultistep`; take 50 ``steps`` or more for each unit of a large scale.
            ``eta`` is 2 by default: the more noise, the sooner particles forget where they came from, so that their
            weights differ less; 2 instead of 1 saves half of them or more, but wants steps twice as short. Without
            noise equal particles would never part: a solver that draws none needs ``threshold=0``. ``denoise`` is by
            S; the weights stay.

    Returns:
        :class:`Particles`; ``log_normalizer`` estimates log ∫ Π_i p_i(x, t)^{a_i} dx at the last time, and ``nfe`` is
        the solver's count, and one more where the last time has σ > 0.

    Raises:
        TypeError: a guidance that is no sum with constant weights.
        ValueError: bad options, scores of different schedules, a solver that does not take the grid's steps, weights
            that are NaN or all 0.
        FloatingPointError: particles that are not finite.

    Warns:
        CollapseWarning: an effective sample size below 2, or 2 % of N, at any time.
    """
    require_kind(
        guidance,
        LinearGuidance,
        "tilted needs a score that is a sum of scores with weights constant in time, a LinearGuidance such as "
        "classifier_free(...) or classifier(...)",
    )
    recorded = RecordedSum(guidance)
    run = prepared(recorded, shape, SpectralMultistep(), 2.0, **options)
    require_steps(run.solver, "so that there is no common time at which to weigh and resample the particles")
    require_process(run.solver, "so that weights collected there are not those of the process")
    run.solver.check(run.process)
    if run.threshold > 0 and not run.solver.draws_noise(run.process):
        raise ValueError(
            f"{type(run.solver).__name__} draws no noise on a process with eta = {checks.number(run.process.eta):g}, "
            "so the copies that resampling makes would never part. Take eta > 0 and a solver for it, or threshold=0 to "
            "weight the particles without resampling."
        )
    with without_graph():
        return _run(run, recorded)


@in_evaluation_mode("run", "recorded")
@answering()
def _run(run: ParticleRun, recorded: RecordedSum) -> Particles:
    process, solver, grid, noise = run.process, run.solver, run.grid, run.noise
    measure = quadrature(process.sde, grid)
    x, population = run.start()
    batch, last = len(x), len(grid) - 1
    x, state = solver.start(process, x, grid, noise)
    for i, (t, s) in enumerate(itertools.pairwise(grid.unbind())):
        recorded.await_at(x, t, measure[i])
        moved, state = solver.step(process, x, t, s, noise, state)
        population.weigh(recorded.log_factor(), t)
        x = moved
        # The weights at t say who goes on from s: what they are to be at s is known only by the next evaluation.
        rows = population.ancestors(last=i + 1 == last)
        if rows is not None:
            x, state = x[rows], _selected(solver, state, rows, batch)
    end = grid[-1]
    denoise = run.denoise and process.sde.sigma(end).item() > 0
    recorded.await_at(x, end, measure[-1])
    arrived = solver.denoised(process, x, end) if denoise else x
    population.weigh(recorded.log_factor(), end)
    population.ancestors(last=True)
    if not bool(torch.isfinite(arrived).all()):
        raise FloatingPointError(
            f"particles ended with NaN or infinite values after {recorded.nfe} evaluations: the score returned such "
            "values, or the steps are too long for the guidance's scale; take more steps."
        )
    way_out = "Take more particles, more steps (50 times the scale, or more), eta = 2, or a smaller scale."
    return population.arrived(arrived.to(run.dtype), grid, recorded.nfe, denoised=denoise, way_out=way_out)


def quadrature(sde: SDE, grid: Tensor) -> list[float]:
    """c_0 .. c_n such that Σ_i c_i q(t_i) is ∫ ½ g² q dτ along the grid: trapezoids in the log-SNR λ.

    ½ g² dτ = ½ σ² dλ. Where λ is infinite, nothing is asked of the score. The step to σ = 0 weighs ½ σ_t² q(t), exact
    for constant q and α. So does the step from α = 0, with the q(t) where it ends: σ² q ~ e^λ towards there, since the
    scores of two laws differ by α (m_i - m_j)/σ², and ½ ∫ e^λ dλ up to λ_t is ½ e^{λ_t}.
    """
    level, half = sde.log_snr(grid), 0.5 * sde.sigma(grid) ** 2
    finite = signal_left(sde.alpha(grid), sde.sigma(grid)) & level.isfinite()
    width = torch.where(finite[1:] & finite[:-1], level.diff(), 0.0)
    weights = torch.zeros_like(level)
    weights[:-1] += width / 2
    weights[1:] += width / 2
    weights = weights * half
    if not finite[0]:
        weights[1] += half[1]
    if not finite[-1] and finite[-2]:
        weights[-2] += half[-2]
    return torch.where(finite, weights, 0.0).tolist()


class RecordedSum(DerivedScore):
    """The guidance as a Score that counts evaluations, and works out -c Σ_{i<j} a_i a_j |s_i - s_j|² where it is told.

    A solver asks for the combination that it needs, a x + b s, in which a x is common to all parts, so that s_i - s_j
    is the difference of their values over b.
    """

    score: LinearGuidance

    def __init__(self, guidance: LinearGuidance) -> None:
        self.score, self.nfe = guidance, 0
        self._weights: tuple[float, ...] | None = None
        self._awaited: tuple[Tensor, Tensor] | None = None
        self._measure = 0.0
        self._found: Tensor | None = None

    def await_at(self, x: Tensor, t: Tensor, measure: float) -> None:
        """The state whose value is wanted next, and c = ``measure``."""
        self._awaited, self._measure, self._found = (x, t), measure, None

    def log_factor(self) -> Tensor:
        """Its value, (B,) float64; by an evaluation of its own where the solver has made none there."""
        assert self._awaited is not None
        x, t = self._awaited
        if not self._measure:
            return torch.zeros(len(x), dtype=torch.float64, device=x.device)
        if self._found is None:
            self.evaluate(x, t, SCORE)
        assert self._found is not None
        return -self._measure * self._found

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        self.nfe += 1
        parts = self._checked(self.score.parts(x, t, wanted), x)
        if self._is_awaited(x, t):
            of_score = torch.as_tensor(wanted.of_score(self.sde, t)[1], dtype=torch.float64)
            if bool((of_score != 0).all()):
                self._found = disagreement(parts) / checks.sent(of_score, x.device) ** 2
        return weighted_sum(parts).to(x.dtype)

    def _is_awaited(self, x: Tensor, t: Tensor) -> bool:
        if self._awaited is None or not self._measure:
            return False
        return x is self._awaited[0] and torch.equal(torch.as_tensor(t), self._awaited[1])

    def _checked(self, parts: Sequence[Part], x: Tensor) -> Sequence[Part]:
        weights = tuple(part.weight for part in parts)
        if weights == self._weights and all(part.value.shape == x.shape for part in parts):
            return parts
        name = type(self.score).__name__
        for part in parts:
            if not isinstance(part.value, Tensor) or part.value.shape != x.shape:
                got = tuple(part.value.shape) if isinstance(part.value, Tensor) else type(part.value).__name__
                raise ValueError(f"each part of {name} must be shaped like x, {tuple(x.shape)}; got {got}.")
        if self._weights is not None:
            raise ValueError(
                f"the weights of {name} must be the same at every time; they were {self._weights} and are {weights}. "
                "A weight that changes with time moves the density too, which these particle weights do not hold."
            )
        if not abs(sum(weights) - 1) <= 1e-6 * max(1.0, *map(abs, weights)):
            raise ValueError(
                f"the weights of {name}'s scores must sum to 1; got {weights}, which sum to {sum(weights):g}. Add the "
                "unconditional score with the weight that is missing."
            )
        self._weights = weights
        return parts


def disagreement(parts: Sequence[Part]) -> Tensor:
    """Σ_i a_i |v_i|² - |Σ_i a_i v_i|² = Σ_{i<j} a_i a_j |v_i - v_j|² of values v_i where Σ_i a_i = 1, (B,) float64.

    The second form loses no digits where the values are nearly the same, and is exactly 0 where one has all the weight.
    """
    x = parts[0].value
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for a, b in itertools.combinations(parts, 2):
        if (weight := a.weight * b.weight) != 0:
            difference = (a.value - b.value).flatten(1)
            total += weight * torch.linalg.vector_norm(difference, dim=1, dtype=torch.float64) ** 2
    return total


def _selected(solver: Solver, state: Any, rows: Tensor, batch: int) -> Any:
    """The solver's memory of the particles that go on."""

    def pick(t: Tensor) -> Tensor:
        return t[rows] if t.ndim and t.shape[0] == batch else t

    try:
        return solver.selected(state, pick)
    except TypeError as error:
        raise TypeError(
            "the solver's memory cannot be resampled along with the particles: it must be tensors, numbers and strings "
            f"in tuples, lists, dicts or dataclasses. ({error})"
        ) from error
