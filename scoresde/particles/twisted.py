"""The twisted diffusion sampler: particles that correct an approximate guidance exactly."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoresde import checks, grids
from scoresde.guidance import LinearGuidance, Twist, TwistedGuidance
from scoresde.noise import Noise
from scoresde.particles.moves import LangevinMoves, dot
from scoresde.particles.population import Particles
from scoresde.particles.resample import Resampling
from scoresde.particles.start import Named, Start, prepared
from scoresde.reverse import Reverse
from scoresde.sde import SDE
from scoresde.solvers import EulerMaruyama
from scoresde.solvers.linear import Coefficient, combine, rows
from scoresde.solvers.planned import OneStep

Plan = Sequence[tuple[Coefficient, ...]]
"""(a, b, c) of each step x_s = a x + b s + c z."""


def twisted(
    sde: SDE,
    guidance: TwistedGuidance,
    shape: tuple[int, ...],
    *,
    groups: int = 1,
    kernel: OneStep | None = None,
    steps: int = 50,
    grid: Tensor | Callable[[SDE, int], Tensor] = grids.karras,
    eta: float = 1.0,
    moves: int = 0,
    threshold: float = 0.5,
    resampling: Named | Resampling = "systematic",
    seed: int | None = None,
    noise: Noise | torch.Generator | None = None,
    denoise: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Particles:
    r"""Weighted samples of p(x_0) ψ_0(x_0), such as a posterior, for any positive ψ_t that leads there roughly.

    The twisted diffusion sampler (Wu et al. 2023, arXiv:2306.17775). With the kernel x_s = m(x_t) + c z of
    a one-step solver for the plain score, particles move by x_s = m(x_t) + c (u + z), u = c ∇ log ψ_t(x_t), which is
    the step of the conditioned process to first order in its length (the guided one at η = 1), and their weights are
    multiplied by::

        N(x_s; m, c²) / N(x_s; m + c u, c²) · ψ_s(x_s) / ψ_t(x_t) = exp(-u·z - ½ |u|²) ψ_s(x_s) / ψ_t(x_t)

    beginning with ψ_T(x_T). As the number of particles grows, they come to p^disc(x_0) ψ_0(x_0) exactly, with p^disc
    the law of the kernel's own samples, whatever ψ_t is for t > 0; a better one costs fewer particles. The bias of
    p^disc is that of the solver, and goes with the steps.

    Resampling makes copies, which at low noise the kernel's own noise no longer parts: what is left of N particles may
    be worth a tenth of them. ``moves`` Langevin steps at each time (Gilks & Berzuini 2001,
    doi:10.1111/1467-9868.00280), accepted or not so that p_t ψ_t is kept, part them from the score alone; see
    :class:`~scoresde.particles.moves.LangevinMoves`. They also draw the particles from p^disc towards p_t. The limit is
    then that of the steps, no longer p^disc ψ_0 exactly.

    Args:
        sde: the SDE whose prior is drawn from.
        guidance: a score with a known twist.
        shape: (G·N, *event); rows g·N to g·N + N - 1 are group g. Measurements given row by row must agree in a group.
        groups: G.
        kernel: a one-step solver that draws noise at ``eta``; default :class:`~scoresde.EulerMaruyama`,
            whose law is nearer to p than that of DDIM at equal steps. :class:`~scoresde.particles.VelocityStep` is
            nearer still, where sigma_data is known.
        steps: number of steps; ignored where ``grid`` is a tensor of times.
        grid: times, or one of :mod:`scoresde.grids`.
        eta: the dial of the kernel.
        moves: Langevin steps at each time between the first and the last, one evaluation each.
        threshold: resample a group where its effective sample size falls below this share of N; 0 never.
        resampling: "systematic", "stratified", "multinomial", "residual", or a function as in
            :mod:`scoresde.particles.resample`.
        seed: default 0; excludes ``noise``. A group depends on the seed and its rows alone, not on other groups.
        noise: any other source.
        denoise: end with E[x_0 | x] at the last time by the plain score, and weigh with ψ_0 there, at no cost. Without
            it, particles end at the last time and follow p ψ of that time.
        dtype: of the particles.
        device: default that of the guidance's parameters, else the CPU.

    Returns:
        :class:`Particles`; exp(``log_normalizer``) is an estimate of E[ψ_0(x_0)] over p^disc, the evidence where ψ_0 is
        a likelihood: without moves unbiased for any number of particles. ``nfe`` is steps + 1, or steps if the grid
        ends at σ = 0, and moves · (steps - 1) more.

    Raises:
        TypeError: a guidance without a twist, or a solver that is no one-step kernel.
        ValueError: bad arguments, a kernel without noise, weights that are NaN or all 0.
        FloatingPointError: particles that are not finite.

    Warns:
        CollapseWarning: an effective sample size below 2, or 2 % of N, at any time.
    """
    _has_twist(guidance)
    kernel = EulerMaruyama() if kernel is None else kernel
    _is_kernel(kernel)
    checks.count(moves, name="moves", least=0)
    begun = prepared(
        sde, guidance, shape, groups=groups, times=grid, steps=steps, threshold=threshold, resampling=resampling,
        seed=seed, noise=noise, dtype=dtype, device=device,
    )  # fmt: skip
    process = Reverse(sde, guidance, eta)
    kernel.check(process)
    keep, pull, spread = kernel.coefficients(process, begun.grid[:-1], begun.grid[1:])
    if not kernel.draws_noise(process) or not bool((spread[:-1] > 0).all()):
        raise ValueError(
            f"the kernel of {type(kernel).__name__} draws no noise at eta = {checks.number(eta):g}: it can neither be "
            "steered nor its copies parted. Take eta > 0, for example 1."
        )
    if denoise or not bool(sde.sigma(begun.grid[-1]) > 0):
        guidance.check()
    with torch.no_grad():
        return _run(guidance, sde, rows(keep, pull, spread), begun, moves, denoise=denoise)


def _run(guidance: TwistedGuidance, sde: SDE, plan: Plan, begun: Start, moves: int, *, denoise: bool) -> Particles:
    x, grid, population = begun.x, begun.grid, begun.population
    now, nfe = _evaluated(guidance, x, grid[0]), 1
    population.weigh(now.log_psi, grid[0])
    noisy = bool(sde.sigma(grid[-1]) > 0)
    denoise = denoise and noisy
    langevin = LangevinMoves(population.groups, x[0].numel(), x.device)
    for i, (t, s) in enumerate(itertools.pairwise(grid.unbind())):
        chosen = population.ancestors()
        if chosen is not None:
            x, now = x[chosen], Twist(*(part[chosen] for part in now))
        for _ in range(moves if i else 0):
            at_t = functools.partial(_evaluated, guidance, t=t)
            x, now = langevin(at_t, x, now, sde.sigma(t), begun.noise)
            nfe += 1
        keep, pull, spread = plan[i]
        moved = combine((keep, x), (pull, now.score))
        factor = -now.log_psi.double()
        if spread > 0:
            u = spread * now.gradient
            z = begun.noise.between(x, t, s)
            moved = combine((1.0, moved), (spread, u), (spread, z))
            factor = factor - dot(u, z) - 0.5 * dot(u, u)
        x = moved
        last = i + 2 == len(grid)
        if noisy or not last:
            now, nfe = _evaluated(guidance, x, s), nfe + 1
        if last and denoise:
            x = (x + sde.sigma(s) ** 2 * now.score) / sde.alpha(s)
        # at a point that the steps before determine, ψ of the last time cancels out
        at_data = last and (denoise or not noisy)
        factor = factor + (_potential(guidance, x) if at_data else now.log_psi.double())
        if not bool(torch.isfinite(x).all()):
            raise FloatingPointError(
                f"particles hold NaN or infinite values at t = {s.item():.4g}: the score or the twist returned such "
                "values, or the steps are too long; take more steps."
            )
        population.weigh(factor, s)
    population.ancestors(last=True)
    way_out = "Take more particles, more steps, or a better twist: one nearer to E[ψ_0(x_0) | x_t]."
    return population.arrived(x, grid, nfe, denoised=denoise, way_out=way_out)


def _evaluated(guidance: TwistedGuidance, x: Tensor, t: Tensor) -> Twist:
    score, log_psi, gradient = guidance.twist(x, t)
    name = type(guidance).__name__
    for part, value in (("score", score), ("gradient", gradient)):
        if value.shape != x.shape:
            raise ValueError(f"the {part} of {name}'s twist must be {tuple(x.shape)}; got {tuple(value.shape)}.")
    return Twist(score.to(x.dtype), _per_sample(log_psi, x, f"log_psi of {name}'s twist"), gradient.to(x.dtype))


def _potential(guidance: TwistedGuidance, x: Tensor) -> Tensor:
    return _per_sample(guidance.log_potential(x), x, f"{type(guidance).__name__}.log_potential").double()


def _per_sample(value: Tensor, x: Tensor, what: str) -> Tensor:
    if value.shape != x.shape[:1]:
        raise ValueError(f"{what} must be one number for each particle, ({len(x)},); got {tuple(value.shape)}.")
    return value


def _has_twist(guidance: object) -> None:
    if isinstance(guidance, TwistedGuidance):
        return
    name = type(guidance).__name__
    if isinstance(guidance, LinearGuidance):
        raise TypeError(f"{name} is a sum of scores, not a score with a known twist: use tilted(...) for it.")
    raise TypeError(
        f"twisted needs a score with a known twist, a TwistedGuidance such as dps(...) or pigdm(...); got {name}. "
        "Write its twist(x, t) and log_potential(x0)."
    )


def _is_kernel(kernel: object) -> None:
    if not isinstance(kernel, OneStep) or type(kernel).advance is not OneStep.advance:
        raise TypeError(
            "twisted weighs by the density of each step, so it needs a one-step solver whose steps are Gaussian: "
            f"DDIM(), Ancestral(), EulerMaruyama() or ReverseDiffusion(); got {kernel!r}."
        )
