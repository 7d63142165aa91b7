"""Order of a solver in law, exactly where the data are Gaussian, by coupled Monte Carlo where they are not.

The error is that of the law of the end given the start::

    weak_order(EulerMaruyama(), LAW["SubVP"], eta=1.0).order            # about 1; mean and variance, exactly
    weak_order_sampled(EulerMaruyama(), LAW["SubVP"], eta=1.0)          # a SampledOrder on a mixture: order, low, high

:func:`weak_order` needs steps that are affine on Gaussian data and raises :class:`~scoresde.certify.NotAffine`
otherwise; ``marginal=True`` compares with p_t alone. :func:`weak_order_sampled` takes any solver and answers an
interval of 95 per cent confidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks, rules
from scoresde.certify.affine import affine
from scoresde.certify.cases import GAUSSIAN, MOST_SAMPLES, SMOOTH, Grid, PlainScore, check_case, process_for
from scoresde.certify.slopes import FEWEST_STEPS, Slope, follow_errors
from scoresde.noise import BrownianNoise
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.sde import SDE
from scoresde.solvers import Solver

_MOST = 512


def law(data: Gaussian, sde: SDE, t: float) -> tuple[Tensor, Tensor]:
    """Mean and variance (D,) of x_t on each axis."""
    mean, covariance = data.moments(sde, t)
    return mean, covariance.diagonal()


def conditional(data: Gaussian, sde: SDE, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    r"""The law of x at t_min given x at T, of the process with this η: N(a + b x_T, v), as (a, b, v), each (D,).

    With V = α² λ + σ² the variance of x_t, the drift's linear part integrates to::

        b = sqrt(V_0 / V_T) (V_0 / α_0²)^{η²/2} / (V_T / α_T²)^{η²/2}        a = m_0 - b m_T        v = V_0 - b² V_T
    """
    (mean_t, before), (mean_0, after) = law(data, sde, sde.T), law(data, sde, sde.t_min)
    ratio = (after / sde.alpha(sde.t_min) ** 2) / (before / sde.alpha(sde.T) ** 2)
    slope = (after / before).sqrt() * ratio ** (eta**2 / 2)
    return mean_0 - slope * mean_t, slope, after - slope**2 * before


def weak_order(
    solver: Solver,
    sde: SDE,
    eta: float,
    grid: Grid = rules.uniform,
    *,
    marginal: bool = False,
    first: int = FEWEST_STEPS,
    most: int = _MOST,
) -> Slope:
    """The slope of the error in law, without Monte Carlo (:func:`~scoresde.certify.affine.affine`).

    The law is that of the end given the start, known exactly (:func:`conditional`): the error is the root mean square
    over starting points of that of the mean, together with that of the variance.

    Args:
        solver: takes this η.
        sde: see :func:`~scoresde.certify.ode_order`.
        eta: the stochasticity of :class:`~scoresde.Reverse`.
        grid: one of :mod:`scoresde.grids`, or any function of (sde, steps).
        marginal: compare mean and variance of p_t instead, the same for all η, for methods that leave p_t right but are
            not that process: churn, or DDIM with an η of its own.
        first: the fewest steps.
        most: the most steps.

    Raises:
        ValueError: the solver does not take this η.
        NotAffine: its steps are not affine on Gaussian data.
    """
    check_case(solver, sde, grid)
    marginal = checks.flag(marginal, name="marginal")
    process = process_for(solver, PlainScore(GAUSSIAN, sde), eta)
    start, end = law(GAUSSIAN, sde, sde.T), law(GAUSSIAN, sde, sde.t_min)
    exact = conditional(GAUSSIAN, sde, eta)

    def errors(n: int) -> dict[str, float]:
        offset, slope, noises = affine(solver, process, grid(sde, n), len(start[0]))
        if marginal:
            mean = offset + slope * start[0] - end[0]
            variance = slope**2 * start[1] + noises.square().sum(0) - end[1]
            return {"marginal law": math.hypot(float(mean.norm()), float(variance.norm()))}
        mean = (offset - exact[0]) + (slope - exact[1]) * start[0]
        spread = (slope - exact[1]) * start[1].sqrt()
        variance = noises.square().sum(0) - exact[2]
        return {"law": math.hypot(float(mean.norm()), float(spread.norm()), float(variance.norm()))}

    (slope,) = follow_errors(errors, first=first, most=most)
    return slope


@dataclass(frozen=True)
class SampledOrder:
    """An order by Monte Carlo: the estimate, and the interval that holds it with 95 per cent confidence."""

    order: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.order:.2f} (95 %: {self.low:.2f} to {self.high:.2f})"


def weak_order_sampled(
    solver: Solver,
    sde: SDE,
    eta: float,
    grid: Grid = rules.uniform,
    *,
    steps: int = 8,
    samples: int = 4096,
    batches: int = 16,
    seed: int = 0,
    problem: GaussianMixture = SMOOTH,
) -> SampledOrder:
    r"""Order in law on nonlinear data: how expectations of x, x² and cos x differ between n, 2n and 4n steps.

    The three runs of a sample share x_T and one Brownian path, which leaves of the Monte Carlo error that of a
    difference. With D_n = E φ(X_n) - E φ(X_2n), a vector over φ and axes, the order is log2 of D_n · D_n over D_2n ·
    D_n; it deviates from the order in the limit by c/n, which the confidence interval knows nothing of. That comes from
    the batches, by the jackknife and Student's t.

    Args:
        solver: takes this η.
        sde: see :func:`~scoresde.certify.ode_order`.
        eta: the stochasticity, above 0.
        grid: one of :mod:`scoresde.grids`, or any function of (sde, steps), whose times nest.
        steps: n.
        samples: in each batch.
        batches: at least 8, for the interval.
        seed: of data and paths.
        problem: the data.

    Raises:
        ValueError: the differences drown in Monte Carlo error: take more samples or fewer steps.
    """
    check_case(solver, sde, grid)
    steps = checks.count(steps, name="steps", most=rules.MOST_STEPS)
    samples = checks.count(samples, name="samples", most=MOST_SAMPLES)
    batches = checks.count(batches, name="batches", least=8, most=MOST_SAMPLES)
    seed = checks.seed(seed)
    checks.instance(problem, GaussianMixture, name="problem")
    process = process_for(solver, problem.score(sde), eta)
    alpha, sigma = sde.alpha(sde.T), sde.sigma(sde.T)
    differences = []
    for batch in range(batches):
        first = batch * samples
        path = BrownianNoise(seed, sde.T, first=first, levels=30)
        clean = problem.sample(samples, seed + batch).double()
        x = alpha * clean + sigma * path.initial(tuple(clean.shape), dtype=torch.float64, device=clean.device)
        ends = [solver.solve(process, x, grid(sde, n), path).x for n in (steps, 2 * steps, 4 * steps)]
        values = [torch.cat([end, end**2, end.cos()], 1).mean(0) for end in ends]
        differences.append(torch.stack([values[0] - values[1], values[1] - values[2]]))
    pairs = torch.stack(differences)  # (batches, 2, φ)
    # leave one batch out: the estimates' spread, times (batches - 1), is that of the whole
    left = [_order((pairs.sum(0) - pair) / (batches - 1)) for pair in pairs]
    order, kept = _order(pairs.mean(0)), torch.tensor(left, dtype=torch.float64)
    error = math.sqrt((batches - 1) * float(kept.var(unbiased=False)))
    reach = _student(batches - 1) * error
    if not reach < 1:
        raise ValueError(
            f"the order of {type(solver).__name__} drowns in Monte Carlo error: {order:.2f} ± {reach:.2f}. Take more "
            f"samples than {batches} x {samples}, or fewer steps than {steps}, where the error to measure is larger."
        )
    return SampledOrder(order, order - reach, order + reach)


def _order(pair: Tensor) -> float:
    coarse, fine = pair.unbind()
    ratio = float((coarse @ coarse) / (fine @ coarse))
    return math.log2(ratio) if ratio > 0 else math.nan


def _student(freedom: int) -> float:
    """The 97.5 per cent quantile of Student's t, to 1 per cent for 7 degrees of freedom or more (Hill's expansion)."""
    z = 1.959964
    terms: Sequence[float] = (
        z,
        (z**3 + z) / (4 * freedom),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2),
    )
    return sum(terms)
