"""Feynman-Kac weights for sums of scores: samples of the tilted density, where guidance alone departs from it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.guidance import LinearGuidance, NonlinearGuidance, Part, TwistedGuidance
from scoresde.guidance.parts import weighted_sum
from scoresde.noise import Noise
from scoresde.particles.population import Particles
from scoresde.particles.resample import Resampling
from scoresde.particles.start import Named, prepared
from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.solvers import AnnealedLangevin, Solver
from scoresde.solvers.carried import mapped
from scoresde.solvers.defaults import chosen_solver, default_grid, steps_on_the_grid
from scoresde.solvers.fitted import Fitted
from scoresde.solvers.planned import Place


def tilted(
    sde: SDE,
    guidance: LinearGuidance,
    shape: tuple[int, ...],
    *,
    groups: int = 1,
    solver: Solver | None = None,
    steps: int = 100,
    grid: Tensor | Callable[[SDE, int], Tensor] | None = None,
    eta: float = 2.0,
    threshold: float = 0.5,
    resampling: Named | Resampling = "systematic",
    seed: int | None = None,
    noise: Noise | torch.Generator | None = None,
    denoise: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Particles:
    r"""Weighted samples of π_0 ∝ Π_i p_i(x)^{a_i}, which guidance with S = Σ_i a_i s_i alone does not reach.

    Particles follow the η-process of the score S, and collect (Skreta et al. 2025, arXiv:2503.02819, for η = 1)::

        d log w / dτ = ½ g² (|S|² - Σ_i a_i |s_i|²) = -½ g² Σ_{i<j} a_i a_j |s_i - s_j|²,        τ = T - t

    which is the same for every η. For classifier-free guidance it is ½ g² w (w - 1) |s(x, t, y) - s(x, t, ∅)|². By the
    trapezoidal rule in the log-SNR λ, ½ g² dτ = ½ σ² dλ, at the evaluations that the solver makes anyway where it makes
    one at each time: order 2, so the law of the weighted particles converges with the solver's weak order up to 2, and
    with the square root of the number of particles. Groups are resampled on their own.

    Args:
        sde: the SDE whose prior is drawn from; all p_i must have come to it at T.
        guidance: a score that is a sum with constant weights: of :func:`~scoresde.classifier_free`,
            :func:`~scoresde.classifier`, a composition.
        shape: (G·N, *event); rows g·N to g·N + N - 1 are group g. Conditions bound row by row must agree in a group.
        groups: G.
        solver: one that takes the grid's steps; default :class:`~scoresde.VelocityMultistep`.
        steps: number of steps; 50 times the guidance scale or more where that is large. Ignored where ``grid`` is a
            tensor of times.
        grid: times, or one of :mod:`scoresde.grids`; default :func:`~scoresde.grids.balanced` for the default solver
            and :func:`~scoresde.grids.karras` for others.
        eta: the dial of :class:`~scoresde.Reverse`. The more noise, the sooner particles forget where they came from,
            so that their weights differ less: 2 instead of 1 saves half of them or more, but wants steps twice as
            short. Without noise equal particles would never part: a solver that draws none needs ``threshold=0``.
        threshold: resample a group where its effective sample size falls below this share of N; 0 never.
        resampling: "systematic", "stratified", "multinomial", "residual", or a function as in
            :mod:`scoresde.particles.resample`.
        seed: default 0; excludes ``noise``. A group depends on the seed and its rows alone, not on other groups.
        noise: any other source.
        denoise: end with (x + σ² S) / α at the last time; the weights stay.
        dtype: of the particles.
        device: default that of the guidance's parameters, else the CPU.

    Returns:
        :class:`Particles`; ``log_normalizer`` estimates log ∫ Π_i p_i(x, t)^{a_i} dx at the last time, and ``nfe`` is
        the solver's count, and one more where the last time has σ > 0.

    Raises:
        TypeError: a guidance that is no sum with constant weights.
        ValueError: bad arguments, a solver that does not take the grid's steps, weights that are NaN or all 0.
        FloatingPointError: particles that are not finite.

    Warns:
        CollapseWarning: an effective sample size below 2, or 2 % of N, at any time.
    """
    _linear(guidance)
    solver = chosen_solver(solver)
    _follows_the_process(solver)
    times = default_grid(solver) if grid is None else grid
    begun = prepared(
        sde, guidance, shape, groups=groups, times=times, steps=steps, threshold=threshold, resampling=resampling,
        seed=seed, noise=noise, dtype=dtype, device=device,
    )  # fmt: skip
    recorded = Recorded(guidance)
    process = Reverse(sde, recorded, eta)
    solver.check(process)
    if threshold > 0 and not solver.draws_noise(process):
        raise ValueError(
            f"{type(solver).__name__} draws no noise on a process with eta = {checks.number(eta):g}, so the copies "
            "that resampling makes would never part. Take eta > 0 and a solver for it, or threshold=0 to weight "
            "the particles without resampling."
        )
    with torch.no_grad():
        return _run(solver, process, recorded, begun.x, begun.grid, begun.noise, begun.population, denoise=denoise)


def _run(
    solver: Solver, process: Reverse, recorded: Recorded, x: Tensor, grid: Tensor, noise: Noise, population: Any,
    *, denoise: bool,
) -> Particles:  # fmt: skip
    measure = quadrature(process.sde, grid)
    batch, last = len(x), len(grid) - 1
    x, state = solver.start(process, x, grid, noise)
    for i, (t, s) in enumerate(itertools.pairwise(grid.unbind())):
        recorded.expect(x, t)
        moved, state = solver.step(process, x, t, s, noise, state)
        population.weigh(_factor(recorded, measure[i], x), t)
        x = moved
        # The weights at t say who goes on from s: what they are to be at s is known only by the next evaluation.
        rows = population.ancestors(last=i + 1 == last)
        if rows is not None:
            x, state = x[rows], _taken(state, rows, batch)
    end = grid[-1]
    clean = process.sde.sigma(end).item() == 0
    recorded.expect(x, end)
    denoise = denoise and not clean
    arrived = process.denoise(x, end) if denoise else x
    population.weigh(_factor(recorded, measure[-1], x), end)
    population.ancestors(last=True)
    if not bool(torch.isfinite(arrived).all()):
        raise FloatingPointError(
            f"particles ended with NaN or infinite values after {recorded.nfe} evaluations: the score returned such "
            "values, or the steps are too long for the guidance's scale; take more steps."
        )
    way_out = "Take more particles, more steps (50 times the scale, or more), eta = 2, or a smaller scale."
    return population.arrived(arrived, grid, recorded.nfe, denoised=denoise, way_out=way_out)


def _factor(recorded: Recorded, measure: float, x: Tensor) -> Tensor:
    if not measure:
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)
    return -measure * recorded.spread()


def quadrature(sde: SDE, grid: Tensor) -> list[float]:
    """c_0 .. c_n such that Σ_i c_i q(t_i) is ∫ ½ g² q dτ along the grid: trapezoids in the log-SNR λ.

    ½ g² dτ = ½ σ² dλ. The step to σ = 0, where λ is infinite, weighs ½ σ_t² q(t), exact for constant q and α,
    and nothing is asked of the score at that end.
    """
    level, half = sde.log_snr(grid), 0.5 * sde.sigma(grid) ** 2
    width = level.diff()
    clean = bool(level[-1].isinf())
    width = torch.where(width.isfinite(), width, 0.0)
    weights = torch.zeros_like(level)
    weights[:-1] += width / 2
    weights[1:] += width / 2
    weights = weights * half
    if clean:
        weights[-2] += half[-2]
    return weights.tolist()


class Recorded:
    """The guidance as a Score that counts, and keeps Σ_{i<j} a_i a_j |s_i - s_j|² of one state when it passes it."""

    def __init__(self, guidance: LinearGuidance) -> None:
        self.guidance, self.nfe = guidance, 0
        self._weights: tuple[float, ...] | None = None
        self._awaited: tuple[Tensor, Tensor] | None = None
        self._spread: Tensor | None = None

    def expect(self, x: Tensor, t: Tensor) -> None:
        """The state whose value is wanted next."""
        self._awaited, self._spread = (x, t), None

    def spread(self) -> Tensor:
        """Its value, (B,) float64; by an evaluation of its own where the solver has made none there."""
        if self._spread is None:
            assert self._awaited is not None
            self(*self._awaited)
        assert self._spread is not None
        return self._spread

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.nfe += 1
        parts = self._checked(self.guidance.parts(x, t), x)
        if self._awaited is not None and x is self._awaited[0] and torch.equal(torch.as_tensor(t), self._awaited[1]):
            self._spread = spread_of(parts)
        return weighted_sum(parts).to(x.dtype)

    def _checked(self, parts: Sequence[Part], x: Tensor) -> Sequence[Part]:
        weights = tuple(part.weight for part in parts)
        if weights == self._weights and all(part.score.shape == x.shape for part in parts):
            return parts
        name = type(self.guidance).__name__
        for part in parts:
            if not isinstance(part.score, Tensor) or part.score.shape != x.shape:
                got = tuple(part.score.shape) if isinstance(part.score, Tensor) else type(part.score).__name__
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


def spread_of(parts: Sequence[Part]) -> Tensor:
    """Σ_i a_i |s_i|² - |Σ_i a_i s_i|² = Σ_{i<j} a_i a_j |s_i - s_j|² where Σ_i a_i = 1, (B,) float64.

    The second form loses no digits where the scores are nearly the same, and is exactly 0 where one has all the weight.
    """
    x = parts[0].score
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for a, b in itertools.combinations(parts, 2):
        if (weight := a.weight * b.weight) != 0:
            difference = (a.score - b.score).flatten(1)
            total += weight * torch.linalg.vector_norm(difference, dim=1, dtype=torch.float64) ** 2
    return total


def _taken(state: Any, rows: Tensor, batch: int) -> Any:
    """The solver's memory of the particles that go on."""

    def pick(t: Tensor) -> Tensor:
        return t[rows] if t.ndim and t.shape[0] == batch else t

    if isinstance(state, Place):  # its plan belongs to the grid, not to samples
        return state._replace(memory=_taken(state.memory, rows, batch))
    try:
        return mapped(state, pick)
    except TypeError as error:
        raise TypeError(
            "the solver's memory cannot be resampled along with the particles: it must be tensors, numbers and strings "
            f"in tuples, lists, dicts or dataclasses. ({error})"
        ) from error


def _linear(guidance: object) -> None:
    if isinstance(guidance, LinearGuidance):
        return
    name = type(guidance).__name__
    if isinstance(guidance, TwistedGuidance):
        raise TypeError(f"{name} is a score with a known twist, not a sum of scores: use twisted(...) for it.")
    if isinstance(guidance, NonlinearGuidance):
        raise TypeError(
            f"{name} cannot be corrected from scores alone: {guidance.reason}. Take a "
            "constant scale without interval, rescale or projection."
        )
    raise TypeError(
        f"tilted needs a score that is a sum of scores with weights constant in time, a LinearGuidance such as "
        f"classifier_free(...) or classifier(...); got {name}. A plain score needs no correction: sample with it. A "
        "function that adds scores itself hides them: make it a LinearGuidance, with the scores as its parts."
    )


def _follows_the_process(solver: Solver) -> None:
    steps_on_the_grid(solver, "so that there is no common time at which to weigh and resample the particles")
    if isinstance(solver, (AnnealedLangevin, Fitted)):
        raise ValueError(
            f"the states of {type(solver).__name__} between its ends do not follow the process, so weights "
            "collected there are not those of the process. Take one of the process, such as VelocityMultistep() or "
            "DDIM()."
        )
