"""The twisted diffusion sampler: particles that correct an approximate guidance exactly::

    particles = twisted(pigdm(score, measurement), (512, *event), steps=100, moves=2)
    x = particles.draw(100, noise=0)
    particles.log_normalizer        # log of the evidence

:func:`twisted` takes a :class:`~scoresde.guidance.TwistedGuidance`, and a solver whose steps are Gaussian.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.lasting import without_graph
from scoresde.checks.later import answering, later
from scoresde.guidance import Twist, TwistedGuidance
from scoresde.models.combination import Coefficient, Linear, combine
from scoresde.models.evaluation import in_evaluation_mode
from scoresde.particles.moves import LangevinMoves
from scoresde.particles.population import Particles
from scoresde.particles.start import ParticleOptions, ParticleRun, prepared, require_kind, takes_options
from scoresde.sde import has_signal
from scoresde.solvers import EulerMaruyama

_MOST_MOVES = 1_000_000


@takes_options
def twisted(
    guidance: TwistedGuidance, shape: tuple[int, ...], *, moves: int = 0, **options: Unpack[ParticleOptions]
) -> Particles:
    r"""Weighted samples of p(x_0) ψ_0(x_0), such as a posterior, for any positive ψ_t that leads there roughly.

    The twisted diffusion sampler (Wu et al. 2023, arXiv:2306.17775). With the Gaussian step x_s = m(x_t) + c z of
    a one-step solver for the plain score, particles move by x_s = m(x_t) + c (u + z), u = c ∇ log ψ_t(x_t), which is
    the step of the conditioned process to first order in its length (the guided one at η = 1), and their weights are
    multiplied by::

        N(x_s; m, c²) / N(x_s; m + c u, c²) · ψ_s(x_s) / ψ_t(x_t) = exp(-u·z - ½ |u|²) ψ_s(x_s) / ψ_t(x_t)

    beginning with ψ_T(x_T). As the number of particles grows, they come to p^disc(x_0) ψ_0(x_0) exactly, with p^disc
    the law of the solver's own samples, whatever ψ_t is for t > 0; a better one costs fewer particles. The bias of
    p^disc is that of the solver, and goes with the steps.

    Resampling makes copies, which at low noise the steps' own noise no longer parts: what is left of N particles may
    be worth a tenth of them. ``moves`` Langevin steps at each time (Gilks & Berzuini 2001,
    doi:10.1111/1467-9868.00280), accepted or not so that p_t ψ_t stays, part them from the score alone; see
    :class:`~scoresde.particles.moves.LangevinMoves`. They also draw the particles from p^disc towards p_t. The limit is
    then that of the steps, no longer p^disc ψ_0 exactly.

    Args:
        guidance: a score with a known twist.
        shape: (G·N, *event); rows g·N to g·N + N - 1 are group g. Measurements given row by row must agree in a group.
        moves: Langevin steps at each time between the first and the last, one evaluation each.
        options: see :class:`~scoresde.particles.ParticleOptions`. The solver is one whose steps are Gaussian, which it
            says by ``transitions``, and that draws noise at ``eta``; default
            :class:`~scoresde.solvers.EulerMaruyama`, whose law is nearer to p than that of DDIM at equal steps.
            ``Multistep(1, correct=False, predicts="v")`` on :func:`~scoresde.grids.spectral` is nearer still where
            ``sigma_data`` is known. ``eta`` is 1 by default: there the best ψ_t is E[ψ_0(x_0) | x_t], which methods
            approximate; elsewhere it is not, and weights differ more. ``denoise`` is by the plain score, at no cost,
            and weighs with ψ_0 there. Without it, particles end at the last time and follow p ψ of it.

    Returns:
        :class:`Particles`; exp(``log_normalizer``) is an estimate of E[ψ_0(x_0)] over p^disc, the evidence where ψ_0 is
        a likelihood: without moves unbiased for any number of particles. ``nfe`` is steps + 1, or steps if the grid
        ends at σ = 0, and moves · (steps - 1) more.

    Raises:
        TypeError: a guidance without a twist, or a solver without Gaussian steps.
        ValueError: bad options, scores of different schedules, a solver that remembers or draws no noise, weights that
            are NaN or all 0.
        FloatingPointError: particles that are not finite.

    Warns:
        CollapseWarning: an effective sample size below 2, or 2 % of N, at any time.
    """
    require_kind(
        guidance,
        TwistedGuidance,
        "twisted needs a score with a known twist, a TwistedGuidance such as dps(...) or pigdm(...)",
    )
    moves = checks.count(moves, name="moves", least=0, most=_MOST_MOVES)
    run = prepared(guidance, shape, EulerMaruyama(), 1.0, **options)
    with without_graph():
        steps = gaussian_steps(run)
        if run.denoise or not _noisy_end(run):
            guidance.check()
        return _run(guidance, run, steps, moves)


def gaussian_steps(run: ParticleRun) -> Sequence[tuple[Coefficient, Coefficient, float]]:
    """(A, B, c) of each step x_s = A x + B x̂_0 + c z.

    Of the solver's a x + b s, with s = (α x̂_0 - x)/σ² put in: A = a - b/σ², B = b α/σ², in float64. A first step from
    α = 0 draws x_s = α_s x̂_0 + σ_s z anew.

    Raises:
        TypeError: a solver without :meth:`transitions`.
        ValueError: a solver that remembers or does not take the process, or steps that draw no noise.
    """
    solver, sde, grid = run.solver, run.process.sde, run.grid
    transitions = getattr(solver, "transitions", None)
    if transitions is None:
        raise TypeError(
            "twisted weighs by the density of each step, so it needs a one-step solver whose steps are Gaussian: "
            'EulerMaruyama(), Multistep(1, correct=False, predicts="v"), DDIM(), Ancestral() or ReverseDiffusion(); '
            f"got {solver!r}."
        )
    solver.check(run.process)
    alpha, sigma = sde.alpha(grid), sde.sigma(grid)
    found: list[tuple[Coefficient, Coefficient, float]] = []
    if not has_signal(alpha[0], sigma[0]):
        found.append((0.0, float(alpha[1]), float(sigma[1])))
    if len(found) + 1 < len(grid):
        at = zip(alpha.tolist()[len(found) :], sigma.tolist()[len(found) :], strict=True)
        rows = transitions(run.process, grid[len(found) :])
        found += [(*Linear(a, b).of_x0(*levels), float(c)) for (a, b, c), levels in zip(rows, at, strict=False)]
    if not solver.draws_noise(run.process) or not all(c > 0 for _, _, c in found[:-1]):
        raise ValueError(
            f"the steps of {type(solver).__name__} draw no noise at eta = {checks.number(run.process.eta):g}: they can "
            "neither be steered nor part copies. Take eta > 0, for example 1."
        )
    return found


@in_evaluation_mode("guidance", "run")
@answering()
def _run(
    guidance: TwistedGuidance, run: ParticleRun, steps: Sequence[tuple[Coefficient, Coefficient, float]], moves: int
) -> Particles:
    sde, grid, noise = run.process.sde, run.grid, run.noise
    x, population = run.start()
    now, nfe = _evaluated(guidance, x, grid[0]), 1
    population.weigh(now.log_psi, grid[0])
    noisy = _noisy_end(run)
    denoise = run.denoise and noisy
    langevin = LangevinMoves(population.groups, x[0].numel(), x.device)
    for i, (t, s) in enumerate(itertools.pairwise(grid.unbind())):
        chosen = population.ancestors()
        if chosen is not None:
            x, now = x[chosen], Twist(*(part[chosen] for part in now))
        for _ in range(moves if i else 0):
            at_t = functools.partial(_evaluated, guidance, t=t)
            x, now = langevin(at_t, x, now, float(sde.alpha(t)), float(sde.sigma(t)), noise)
            nfe += 1
        of_x, of_x0, c = steps[i]
        terms, factor = [(of_x, x), (of_x0, now.x0)], -now.log_psi.double()
        if c > 0:
            u, z = c * now.gradient, noise.between(x, t, s)
            terms += [(c, u), (c, z)]
            factor = factor - (u * (z + 0.5 * u)).flatten(1).sum(1, dtype=torch.float64)
        x = combine(*terms)
        last = i + 2 == len(grid)
        if noisy or not last:
            now, nfe = _evaluated(guidance, x, s), nfe + 1
        if last and denoise:
            x = now.x0
        # at a point that the steps before determine, ψ of the last time cancels out
        at_data = last and (denoise or not noisy)
        factor = factor + (_potential(guidance, x) if at_data else now.log_psi.double())
        later(~torch.isfinite(x).all(), functools.partial(_lost, s))
        population.weigh(factor, s)
    population.ancestors(last=True)
    way_out = "Take more particles, more steps, or a better twist: one nearer to E[ψ_0(x_0) | x_t]."
    return population.arrived(x.to(run.dtype), grid, nfe, denoised=denoise, way_out=way_out)


def _lost(s: Tensor) -> None:
    raise FloatingPointError(
        f"particles hold NaN or infinite values at t = {s.item():.4g}: the score or the twist returned such values, or "
        "the steps are too long; take more steps."
    )


def _noisy_end(run: ParticleRun) -> bool:
    return bool(run.process.sde.sigma(run.grid[-1]) > 0)


def _evaluated(guidance: TwistedGuidance, x: Tensor, t: Tensor) -> Twist:
    x0, log_psi, gradient = guidance.twist(x, t)
    name = type(guidance).__name__
    for part, value in (("x0", x0), ("gradient", gradient)):
        if value.shape != x.shape:
            raise ValueError(f"the {part} of {name}'s twist must be {tuple(x.shape)}; got {tuple(value.shape)}.")
    return Twist(x0.to(x.dtype), _per_sample(log_psi, x, f"log_psi of {name}'s twist"), gradient.to(x.dtype))


def _potential(guidance: TwistedGuidance, x: Tensor) -> Tensor:
    return _per_sample(guidance.log_potential(x), x, f"{type(guidance).__name__}.log_potential").double()


def _per_sample(value: Tensor, x: Tensor, what: str) -> Tensor:
    if value.shape != x.shape[:1]:
        raise ValueError(f"{what} must be one number for each particle, ({len(x)},); got {tuple(value.shape)}.")
    return value
