"""Feynman-Kac weights of sums of scores: the tilted density, against exact answers."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde import grids
from scoresde.guidance import (
    LinearGuidance,
    NonlinearGuidance,
    Part,
    Twist,
    TwistedGuidance,
    autoguidance,
    classifier,
    classifier_free,
)
from scoresde.metrics import energy_distance
from scoresde.models import ClassifierModel, Combination, Expectation, Linear, ScoreModel, as_score
from scoresde.models.combination import combine
from scoresde.noise import IndependentNoise, Noise
from scoresde.particles import CollapseWarning
from scoresde.particles import tilted as tilted_at_its_default
from scoresde.particles.tilted import RecordedSum, disagreement, quadrature
from scoresde.problems import GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sde import EDM, SDE, VE, VP, Cosine, RectifiedFlow, SubVP, has_signal
from scoresde.solvers import (
    DDIM,
    AdaptiveODE,
    AdaptiveSDE,
    Ancestral,
    AnnealedLangevin,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    Multistep,
    OneStep,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    SASolver,
    Solver,
    SpectralMultistep,
    StochasticRungeKutta,
    TorchSDE,
)

F64 = torch.float64
tilted = functools.partial(tilted_at_its_default, eta=1.0)  # that of most exact answers here
Laws = tuple[tuple[float, float, float], ...]  # weight, mean, variance of each

CFG: Laws = ((-1.0, 0.0, 1.0), (2.0, 0.8, 0.5))  # p_∅^{-1} p_c^2
NEGATIVE: Laws = ((0.4, 0.0, 1.0), (1.4, 0.6, 0.5), (-0.8, -0.8, 1.4))  # a composition with a negative condition


@dataclass(frozen=True, eq=False)
class Gaussians(LinearGuidance):
    """Π_i N(m_i, v_i)^{a_i}, exactly, coordinate by coordinate."""

    sde: SDE
    laws: Laws = CFG
    calls: list[float] = field(default_factory=list)

    def parts(self, x: Tensor, t: Tensor, wanted: Combination) -> list[Part]:
        self.calls.append(float(t))
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        a, s2 = float(alpha), float(sigma) ** 2
        of_x, of_x0 = wanted.of_x0(alpha, sigma)
        clean = [m + a * v / (a * a * v + s2) * (x - a * m) for _, m, v in self.laws]
        return [Part(w, combine((of_x, x), (of_x0, x0))) for (w, _, _), x0 in zip(self.laws, clean, strict=True)]


def product(laws: Laws, sde: SDE, t: Tensor | float) -> tuple[float, float, float]:
    """log ∫ Π p_i(x, t)^{a_i} dx, and mean and variance of the normalised product, in closed form."""
    alpha, s2 = float(sde.alpha(t)), float(sde.sigma(t)) ** 2
    precision = weighted = constant = 0.0
    for w, m, v in laws:
        total = alpha**2 * v + s2
        precision += w / total
        weighted += w * alpha * m / total
        constant -= 0.5 * w * ((alpha * m) ** 2 / total + math.log(2 * math.pi * total))
    log_z = constant + 0.5 * weighted**2 / precision + 0.5 * math.log(2 * math.pi / precision)
    return log_z, weighted / precision, 1 / precision


def discrete(
    laws: Laws, sde: SDE, solver: OneStep, grid: Tensor, eta: float, weigh: bool = True
) -> tuple[float, float, float]:
    """The same of the weighted law of a one-step solver with its quadrature, with infinitely many particles: Gaussian
    through linear steps and potentials exp(quadratic)."""
    begins = has_signal(sde.alpha(grid[0]), sde.sigma(grid[0]))
    rows = solver.transitions(Reverse(Gaussians(sde, laws), eta), grid if begins else grid[1:])
    measure = quadrature(sde, grid)
    log_z, m, p = 0.0, 0.0, float(sde.sigma(grid[0])) ** 2
    if not begins:  # x_s = α_s x̂_0 + σ_s z
        rows = [(0.0, 0.0, 0.0), *rows]
        m, p = float(sde.alpha(grid[1])) * sum(w * m_i for w, m_i, _ in laws), float(sde.sigma(grid[1])) ** 2
    for i, t in enumerate(grid):
        if i == 0 and not begins:
            assert measure[0] == 0
            continue
        alpha, s2 = float(sde.alpha(t)), float(sde.sigma(t)) ** 2
        # s_i = u_i - k_i x
        k = [1 / (alpha**2 * v + s2) for _, _, v in laws]
        u = [alpha * m_i * k_i for (_, m_i, _), k_i in zip(laws, k, strict=True)]
        if weigh and measure[i]:
            # multiply N(m, p) by exp(-½ q x² + r x - ½ o)
            q = r = o = 0.0
            for (j, (wj, _, _)), (n, (wn, _, _)) in itertools.combinations(enumerate(laws), 2):
                strength = 2 * measure[i] * wj * wn
                dk, du = k[j] - k[n], u[j] - u[n]
                q, r, o = q + strength * dk**2, r + strength * dk * du, o + strength * du**2
            precision = 1 / p + q
            assert precision > 0
            mean = (m / p + r) / precision
            log_z += 0.5 * (precision * mean**2 - m**2 / p - o) - 0.5 * math.log(p * precision)
            m, p = mean, 1 / precision
        if i < len(rows):
            a, b, c = rows[i]
            weights = [w for w, _, _ in laws]
            slope = a - b * sum(w * k_i for w, k_i in zip(weights, k, strict=True))
            m = slope * m + b * sum(w * u_i for w, u_i in zip(weights, u, strict=True))
            p = slope**2 * p + c**2
    return log_z, m, p


def name_of(value: object) -> str:
    if isinstance(value, tuple):
        return "cfg" if value == CFG else "negative"
    return type(value).__name__ if isinstance(value, (SDE, Solver)) else getattr(value, "__name__", str(value))


# -- the formula ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", [VP(), SubVP(), VE(), Cosine(), RectifiedFlow(T=0.99)], ids=lambda s: type(s).__name__)
def test_the_rate_closes_the_fokker_planck_equation(sde: SDE) -> None:
    """∂_τ log π = (L* π)/π + rate for π = Π p_i^{a_i} and L of every η, by derivatives of densities."""
    one = GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.2], [1.0, 0.5]], dtype=F64), 0.3)
    two = GaussianMixture(torch.tensor([1.0, 3.0]), torch.tensor([[0.5, 1.0], [0.0, -1.0]], dtype=F64), 0.5)
    three = GaussianMixture(torch.ones(1), torch.tensor([[0.3, 0.0]], dtype=F64), 0.8)
    laws, weights = (one, two, three), (1.7, 0.4, -1.1)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    t = torch.tensor(0.4 * sde.T, dtype=F64, requires_grad=True)

    def log_pi(x: Tensor, t: Tensor) -> Tensor:
        return sum((a * p.log_prob(x, sde, t) for a, p in zip(weights, laws, strict=True)), torch.zeros(1, dtype=F64))

    by_time = torch.stack([torch.autograd.grad(v, t, retain_graph=True)[0] for v in log_pi(x, t)])
    score = torch.func.vmap(torch.func.grad(lambda x: log_pi(x[None], t.detach())[0]))
    total = score(x)
    divergence = torch.func.vmap(torch.func.jacrev(lambda x: score(x[None])[0]))(x).diagonal(dim1=1, dim2=2).sum(1)
    f, g2 = float(sde.f(t.detach())), float(sde.g(t.detach())) ** 2
    parts = [Part(a, p.score(sde)(x, t.detach())) for a, p in zip(weights, laws, strict=True)]
    rate = -0.5 * g2 * disagreement(parts)
    for eta in (0.0, 0.5, 1.0, 2.0):
        # -∇·(b π)/π + ½ η² g² Δπ/π with b = -f x + ½ (1 + η²) g² S
        square = total.square().sum(1)
        flow = 2 * f + f * (x * total).sum(1) - 0.5 * (1 + eta**2) * g2 * (divergence + square)
        flow = flow + 0.5 * eta**2 * g2 * (divergence + square)
        # derivatives of float64 densities, of size g²/σ²
        torch.testing.assert_close(-by_time, flow + rate, rtol=1e-8, atol=1e-8)


def test_the_two_forms_of_the_rate_agree() -> None:
    x = torch.randn(4, 6, 2, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    weights = (0.5, 2.0, -1.0, -0.5)
    parts = [Part(w, s) for w, s in zip(weights, x, strict=True)]
    total = sum(w * s for w, s in parts)
    expected = sum(w * s.square().flatten(1).sum(1) for w, s in parts) - total.square().flatten(1).sum(1)  # type: ignore[union-attr]
    torch.testing.assert_close(disagreement(parts), expected)
    guided = disagreement([Part(1 - 3.0, x[0]), Part(3.0, x[1])])
    torch.testing.assert_close(guided, -3.0 * 2.0 * (x[0] - x[1]).square().flatten(1).sum(1))


def test_quadrature_is_of_second_order_and_knows_both_ends() -> None:
    """∫ ½ g² q dτ of q = α^2, whose values on VP are known: ½ ∫ β α² dt = ½ (α²(t_min) - α²(T))."""
    sde = VP()
    exact = 0.5 * float(sde.alpha(sde.t_min) ** 2 - sde.alpha(sde.T) ** 2)
    errors = []
    for steps in (20, 40, 80):
        grid = grids.log_snr(sde, steps)
        weights = torch.tensor(quadrature(sde, grid), dtype=F64)
        errors.append(abs(float((weights * sde.alpha(grid) ** 2).sum()) - exact))
    for coarse, fine in itertools.pairwise(errors):
        assert 3.7 < coarse / fine < 4.3
    # to σ = 0: finite weights, nothing asked of the score there
    flow = RectifiedFlow(T=0.9, t_min=0.0)
    grid = torch.linspace(0.9, 0, 361, dtype=F64)
    weights = torch.tensor(quadrature(flow, grid), dtype=F64)
    assert weights[-1] == 0 and bool(weights.isfinite().all()) and bool((weights[:-1] > 0).all())
    # g² dt of this flow is 2 t / (1 - t) dt: with q = (1 - t)² it is ∫ t (1 - t) dt = 0.9²/2 - 0.9³/3, to second order
    assert float((weights * (1 - grid) ** 2).sum()) == pytest.approx(0.405 - 0.243, abs=1e-4)


def test_the_step_to_clean_data_is_exact_for_a_constant() -> None:
    """∫ ½ g² dτ of EDM from t to 0 is t²/2, of which no trapezoid in the log-SNR knows."""
    grid = torch.tensor([1.5, 0.0], dtype=F64)
    assert quadrature(EDM(t_min=0.0), grid) == pytest.approx([1.5**2 / 2, 0.0], rel=1e-12)


def test_the_step_from_pure_noise_is_exact_for_two_means() -> None:
    """q = (α Δ/σ²)² of two points: ∫ ½ g² q dτ from α = 0 to t is ½ Δ² α²/σ² there, in one step or many."""
    for sde in (RectifiedFlow(T=1.0, t_min=0.2), Cosine(T=1.0, t_min=0.2)):
        exact, errors = 0.5 * float((sde.alpha(sde.t_min) / sde.sigma(sde.t_min)) ** 2), []
        for grid in (torch.tensor([1.0, 0.2], dtype=F64), *(grids.log_snr(sde, n) for n in (40, 80))):
            weights = torch.tensor(quadrature(sde, grid), dtype=F64)
            assert weights[0] == 0  # nothing is asked of the score there
            errors.append(abs(float((weights * (sde.alpha(grid) / sde.sigma(grid) ** 2) ** 2).sum()) - exact))
        assert errors[0] < 1e-12 * exact
        assert 3.5 < errors[1] / errors[2] < 4.5 and errors[2] < 0.01 * exact


# -- what is read off the evaluations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "nfe"),
    [
        (Linear(0.0, 1.0), 1),
        (Linear(1.3, -0.4), 1),
        (Expectation(1.0, 0.0), 1),
        (Expectation(0.3, -2.0), 1),
        (Linear(1.0, 0.0), 2),
    ],
)
def test_any_combination_tells_the_weights(wanted: Combination, nfe: int) -> None:
    """a x + b s_i: a x is common, and b is divided out; where b = 0 the scores are evaluated."""
    sde, t = VP(), torch.tensor(0.4, dtype=F64)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    guidance = Gaussians(sde, NEGATIVE)
    truth = disagreement(guidance.parts(x, t, Linear(0.0, 1.0)))
    recorded = RecordedSum(guidance)
    recorded.await_at(x, t, 0.7)
    torch.testing.assert_close(recorded.evaluate(x, t, wanted), guidance.evaluate(x, t, wanted))
    recorded.evaluate(x + 1, t, wanted)  # another state
    recorded.evaluate(x, t + 0.1, wanted)  # another time
    torch.testing.assert_close(recorded.log_factor(), -0.7 * truth, rtol=1e-12, atol=0)
    assert recorded.nfe == nfe + 2
    recorded.await_at(x, t, 0.0)
    assert not recorded.log_factor().any() and recorded.nfe == nfe + 2


NOISY: list[SDE] = [VP(), VE(sigma_max=1e6), RectifiedFlow(T=1 - 1e-6, t_min=1e-4), EDM(T=1e5, t_min=0.01)]


def long_steps(sde: SDE, steps: int) -> Tensor:
    """From the first time to σ/α = 1, and on by factors."""
    level = torch.logspace(0, -1, steps, dtype=F64)
    return torch.cat([torch.tensor([sde.T], dtype=F64), sde.t_of_log_snr(-2 * level.log())])


@pytest.mark.parametrize(
    ("solver", "rule", "steps"),
    [
        (EulerMaruyama(), grids.log_snr, 60),
        (SpectralMultistep(), grids.spectral, 60),
        (SpectralMultistep(), long_steps, 6),
        (DDIM(), long_steps, 6),
        (SASolver(), long_steps, 6),
    ],
    ids=name_of,
)
@pytest.mark.parametrize("sde", NOISY, ids=name_of)
@pytest.mark.filterwarnings("ignore::scoresde.particles.CollapseWarning")  # few steps
def test_float32_loses_nothing_where_noise_is_large(
    sde: SDE, solver: Solver, rule: Callable[[SDE, int], Tensor], steps: int
) -> None:
    """The same normals in float32 and float64, without resampling: particles and weights to the rounding of float32.

    Long steps on the bare score are off by eps σ/α = 0.1.
    """
    options: dict[str, Any] = {"solver": solver, "grid": rule, "steps": steps, "threshold": 0.0}
    for denoise in (True, False):
        narrow, wide = (
            tilted(Gaussians(sde), (64, 2), denoise=denoise, dtype=d, **options) for d in (torch.float32, F64)
        )
        assert narrow.x.dtype == torch.float32
        # some tens of roundings of 6e-8; log-weights are sums of as many squares of size 0.1
        torch.testing.assert_close(narrow.x.double(), wide.x, rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(narrow.log_weights, wide.log_weights, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_run_for_half_precision_is_one_in_float32(dtype: torch.dtype) -> None:
    half, full = (tilted(Gaussians(VP()), (64, 2), steps=20, threshold=0.9, dtype=d) for d in (dtype, torch.float32))
    assert half.x.dtype == dtype and bool(half.resampled.any())
    assert torch.equal(half.x, full.x.to(dtype)) and torch.equal(half.log_weights, full.log_weights)


# -- the weighted law of one-step solvers, exactly -----------------------------------------------------------------

ONE_STEP: list[Any] = [
    (VP(), EulerMaruyama(), 1.0, CFG),
    (VP(), EulerMaruyama(), 0.6, NEGATIVE),
    (VP(), DDIM(), 1.0, CFG),
    (SubVP(), DDIM(), 0.7, CFG),
    (EDM(T=80.0, t_min=0.01), Ancestral(), 1.0, CFG),
    (EDM(T=80.0, t_min=0.01), ReverseDiffusion(), 1.0, NEGATIVE),
    (Cosine(), EulerMaruyama(), 1.0, CFG),
    (RectifiedFlow(T=0.99, t_min=0.0), DDIM(), 1.0, CFG),
    (RectifiedFlow(T=1.0, t_min=0.0), DDIM(), 1.0, CFG),  # begins where α = 0
    (Cosine(T=1.0), EulerMaruyama(), 1.0, NEGATIVE),
]


def close(got: Any, truth: tuple[float, float, float], slack: float = 0.0) -> None:
    """Evidence, mean and second moment of independent groups, within 4.5 standard errors of their means.

    Self-normalised means are biased by O(1/N): at most twice the variance of one group. ``slack``: of the steps.
    """
    log_z, mean, variance = truth
    first = got.mean()[:, 0]
    second = first**2 + got.std()[:, 0] ** 2
    for values, exact in (((got.log_normalizer - log_z).exp(), 1.0), (first, mean), (second, mean**2 + variance)):
        spread = float(values.std())
        assert spread < 0.3  # else it says little
        assert abs(float(values.mean()) - exact) < 4.5 * spread / len(values) ** 0.5 + 2 * spread**2 + slack


@pytest.mark.parametrize(("sde", "solver", "eta", "laws"), ONE_STEP, ids=name_of)
def test_one_step_solvers_reach_their_own_exact_answer(sde: SDE, solver: OneStep, eta: float, laws: Laws) -> None:
    grid = grids.uniform(sde, 40) if float(sde.sigma(sde.t_min)) == 0 else grids.log_snr(sde, 40)
    got = tilted(
        Gaussians(sde, laws),
        (100 * 512, 1),
        groups=100,
        solver=solver,
        grid=grid,
        eta=eta,
        denoise=False,
        threshold=0.9,
        dtype=F64,
    )
    truth = discrete(laws, sde, solver, grid, eta)
    close(got, truth)
    assert bool(got.resampled.any())
    # and that is not where the same steps without weights lead: 10 times the room that the test above has at most
    _, mean, variance = discrete(laws, sde, solver, grid, eta, weigh=False)
    error = float(got.mean().std()) / 10
    moved = abs(mean - truth[1]) + abs(mean**2 + variance - truth[1] ** 2 - truth[2])
    assert moved > 4.5 * error


@pytest.mark.parametrize("laws", [CFG, NEGATIVE], ids=["cfg", "negative"])
@pytest.mark.parametrize("solver", [EulerMaruyama(), DDIM(), ReverseDiffusion()], ids=name_of)
def test_that_answer_goes_to_the_tilted_law_with_order_one(solver: OneStep, laws: Laws) -> None:
    """Bias of the steps with infinitely many particles, without any sampling error."""
    sde = VP()
    truth = product(laws, sde, sde.t_min)
    errors = []
    for steps in (200, 400):
        found = discrete(laws, sde, solver, grids.log_snr(sde, steps), 1.0)
        errors.append([abs(a - b) for a, b in zip(found, truth, strict=True)])
    for coarse, fine in zip(*errors, strict=True):
        assert fine < 0.05
        # second-order terms are a few per cent at these steps; below 2e-3 the prior's mismatch shows, α_T = 7e-3
        assert 1.6 < coarse / fine < 2.5 or coarse < 2e-3


def test_the_rate_is_the_same_for_every_eta() -> None:
    """Infinitely many particles and fine steps: the weighted law is π whatever η, the law without weights is not."""
    sde = VP()
    truth, grid = product(CFG, sde, sde.t_min), grids.log_snr(sde, 1500)
    for eta in (0.0, 0.5, 1.0, 1.5):
        found = discrete(CFG, sde, EulerMaruyama(), grid, eta)
        # first order: a fifth of what the test above allows at 400 steps, growing with 1 + η²
        assert max(abs(a - b) for a, b in zip(found, truth, strict=True)) < 0.01 * (1 + eta**2)
        alone = discrete(CFG, sde, EulerMaruyama(), grid, eta, weigh=False)
        assert abs(alone[1] - truth[1]) + abs(alone[2] - truth[2]) > 0.05


# -- all other solvers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sde", "solver", "eta"),
    [
        (VP(), SpectralMultistep(), 1.0),
        (EDM(T=80.0, t_min=0.01), SpectralMultistep(), 1.0),
        (VP(), Multistep(), 1.0),
        (VP(), Multistep(), 0.5),
        (VP(), DPMSolverPP(), 1.0),
        (VP(), SASolver(), 1.0),
        (EDM(T=80.0, t_min=0.01), StochasticRungeKutta(), 1.0),
        (VP(), PredictorCorrector(), 1.0),
        (EDM(T=80.0, t_min=0.01), Heun(churn=10.0), 0.0),
    ],
    ids=name_of,
)
def test_other_solvers_reach_the_tilted_law(sde: SDE, solver: Solver, eta: float) -> None:
    steps = 120
    got = tilted(
        Gaussians(sde), (100 * 256, 1), groups=100, solver=solver, steps=steps, grid=grids.log_snr, eta=eta,
        denoise=False, dtype=F64,
    )  # fmt: skip
    truth = product(CFG, sde, sde.t_min)
    # what the steps cost: for weak order 1 as much as Euler-Maruyama's exact bias at as many, for order 2 a part of it
    euler = discrete(CFG, sde, EulerMaruyama(), grids.log_snr(sde, steps), 1.0)
    bias = max(abs(a - b) for a, b in zip(euler, truth, strict=True))
    close(got, truth, slack=(0.3 if solver.weak_order == 2 else 1.5) * bias)
    alone = discrete(CFG, sde, EulerMaruyama(), grids.log_snr(sde, 1500), 1.0, weigh=False)
    assert abs(float(got.mean().mean()) - alone[1]) > 0.5 * abs(truth[1] - alone[1])


def test_log_weights_on_the_ode_are_of_second_order() -> None:
    """η = 0, no resampling: weight and path of each particle are deterministic, and converge like h²."""
    sde, found = VP(), []
    for steps in (20, 40, 80, 640):
        grid = grids.log_snr(sde, steps)
        run = tilted(
            Gaussians(sde),
            (16, 1),
            solver=Heun(),
            grid=grid,
            eta=0.0,
            threshold=0.0,
            denoise=False,
            dtype=F64,
        )
        found.append(run.log_weights + run.log_normalizer[:, None] + math.log(16))
    errors = [float((a - found[-1]).abs().mean()) for a in found[:-1]]
    for coarse, fine in itertools.pairwise(errors):
        assert 3.4 < coarse / fine < 4.8  # 4, and the next orders
    # and the limit is the importance weight π/q of the end point: q is the law of the linear flow x_0 = c + m x_T
    x = torch.tensor([[0.0], [1.0]], dtype=F64)
    process = Reverse(Gaussians(sde), 0.0)
    c, end = Heun().solve(process, x * sde.sigma(sde.T), grids.log_snr(sde, 640)).x.flatten().tolist()
    log_z, mean, variance = product(CFG, sde, sde.t_min)
    m = end - c
    log_pi = log_z - 0.5 * (run.x[:, 0] - mean) ** 2 / variance - 0.5 * math.log(2 * math.pi * variance)
    log_q = -0.5 * ((run.x[:, 0] - c) / m) ** 2 - 0.5 * math.log(2 * math.pi * m * m)
    # 640 steps: 1000 times less than at 20; and the prior's mismatch of a mean, α_T · 1.6 = 1e-2 times x_T
    torch.testing.assert_close(found[-1][0], log_pi - log_q, rtol=0, atol=0.06)


# -- particles -----------------------------------------------------------------------------------------------------


def test_errors_fall_with_the_square_root_of_the_particles() -> None:
    sde, sizes, errors = VP(), (32, 128, 512), []
    grid = grids.log_snr(sde, 40)
    truth = discrete(CFG, sde, DDIM(), grid, 1.0)
    for n in sizes:
        got = tilted(
            Gaussians(sde),
            (150 * n, 1),
            groups=150,
            solver=DDIM(),
            grid=grid,
            denoise=False,
            dtype=F64,
            seed=n,
        )
        errors.append(float((got.mean() - truth[1]).square().mean().sqrt()))
    slope = math.log(errors[-1] / errors[0]) / math.log(sizes[-1] / sizes[0])
    # an r.m.s. over 150 groups is known to 1/sqrt(300) = 6 %: the slope over a factor 16 to 0.03 (one deviation); small
    # sets also have O(1/N) terms
    assert abs(slope + 0.5) < 0.12, errors


@functools.cache
def ring() -> GaussianMixture:
    angle = 2 * math.pi * torch.arange(5, dtype=F64) / 5
    return GaussianMixture(torch.ones(5), torch.stack([angle.cos(), angle.sin()], 1), 0.15)


@dataclass(frozen=True, eq=False)
class Guided(LinearGuidance):
    sde: SDE
    scale: float
    label: int = 0

    def parts(self, x: Tensor, t: Tensor, wanted: Combination) -> list[Part]:
        plain, conditional = ring().score(self.sde), ring().score(self.sde, self.label)
        return [
            Part(1 - self.scale, plain.evaluate(x, t, wanted)),
            Part(self.scale, conditional.evaluate(x, t, wanted)),
        ]


def guided(sde: SDE, scale: float, n: int, eta: float) -> Tensor:
    """Guidance alone."""
    process = Reverse(Guided(sde, scale), eta)
    start = sde.prior_sample((n, 2), 5, dtype=F64)
    return SpectralMultistep().solve(process, start, grids.spectral(sde, 100), 6, denoise=True).x


@pytest.mark.parametrize(("sde", "scale"), [(VP(), 3.0), (EDM(T=80.0, t_min=0.01), 3.0), (VP(), 0.5)], ids=name_of)
def test_on_a_mixture_guidance_departs_and_particles_do_not(sde: SDE, scale: float) -> None:
    """Three groups of 4000 at the method's own defaults; with w = 0.5 the weights have the other sign."""
    law, n = ring(), 2000
    exact = law.tilted_sample(0, scale, 2 * n, 0)
    floor = energy_distance(exact[:n], exact[n:])
    got = tilted_at_its_default(Guided(sde, scale), (3 * 4000, 2), groups=3, dtype=F64)
    ours = sum(energy_distance(x, exact[n:]) for x in got.draw(n, 0).split(n)) / 3
    # the floor is one draw of its own, known to a factor 2; draws of an effective size of n/4 or more are noisier
    assert ours < 5 * floor
    for eta in (0.0, 1.0):
        assert energy_distance(guided(sde, scale, n, eta), exact[n:]) > 4 * max(floor, ours)


# -- guidances -----------------------------------------------------------------------------------------------------


def exact_model(sde: SDE, seen: list[int]) -> ScoreModel:
    """The ring as a network: label 5 is none."""

    class Net(torch.nn.Module):
        null_conditions = {"label": 5}  # noqa: RUF012

        def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
            seen.append(len(x))
            t = sde.t_of_log_snr(-2 * c.double())
            one = ring().score(sde, label.clamp_max(4))(x, t)
            return torch.where((label == 5)[:, None], ring().score(sde)(x, t), one)

    return ScoreModel(Net(), sde, predicts="score")


def test_classifier_free_and_classifier_guidance_are_the_same_sum() -> None:
    sde, seen = VP(), []
    free = classifier_free(exact_model(sde, seen), {"label": 0}, 3.0)
    from_classifier = classifier(ring().score(sde), ring().label_log_prob(sde), 3.0, label=0)
    runs = [tilted(g, (64, 2), steps=20, dtype=F64) for g in (Guided(sde, 3.0), free, from_classifier)]
    for other in runs[1:]:
        # an autograd softmax, and times through log-SNR and back, against the component's own formula
        torch.testing.assert_close(other.x, runs[0].x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other.log_weights, runs[0].log_weights, rtol=1e-4, atol=1e-4)
    assert bool(runs[0].resampled.any())
    # one batched call for both branches at each of 20 times and at the end
    assert runs[1].nfe == 21 and seen == [128] * 21


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_scales_zero_and_one_have_no_weights(scale: float) -> None:
    got = tilted(Guided(VP(), scale), (64, 2), steps=20)
    assert bool((got.log_weights == -math.log(64)).all()) or float((got.log_weights + math.log(64)).abs().max()) < 1e-14
    assert not got.resampled.any() and got.distinct.tolist() == [64] and float(got.log_normalizer.abs()) < 1e-14
    torch.testing.assert_close(got.effective, torch.full((21, 1), 64.0, dtype=F64))


def test_conditions_may_differ_from_group_to_group() -> None:
    """Two labels in one batch, and group 0 is what it is alone."""
    sde, n = VP(), 256
    label = torch.tensor([0, 2]).repeat_interleave(n)
    both = tilted(
        classifier_free(exact_model(sde, []), {"label": label}, 2.0), (2 * n, 2), groups=2, steps=30, seed=3, dtype=F64
    )
    alone = tilted(classifier_free(exact_model(sde, []), {"label": 0}, 2.0), (n, 2), steps=30, seed=3, dtype=F64)
    torch.testing.assert_close(both.x[:n], alone.x, rtol=1e-4, atol=1e-4)
    for row, k in ((0, 0), (1, 2)):
        exact = ring().tilted_sample(k, 2.0, 4000, 1).double()
        # 5 standard errors at an effective size of a tenth of the particles, which resampling keeps
        assert bool(((both.mean()[row] - exact.mean(0)).abs() < 5 * exact.std(0) / (0.1 * n) ** 0.5).all())


# -- solvers and their memory --------------------------------------------------------------------------------------


def test_evaluations_are_the_solvers_own_and_one() -> None:
    sde = VP()
    for solver, steps, nfe in (
        (SpectralMultistep(), 20, 21),
        (DDIM(), 20, 21),
        (Multistep(), 20, 21),
        (StochasticRungeKutta(), 20, 41),
    ):
        for denoise in (True, False):
            guidance = Gaussians(sde)
            got = tilted(guidance, (64, 1), solver=solver, steps=steps, denoise=denoise)
            assert got.nfe == nfe == len(guidance.calls) and got.denoised == denoise
    flow = RectifiedFlow(T=0.99, t_min=0.0)
    assert tilted(Gaussians(flow), (64, 1), solver=DDIM(), grid=grids.uniform, steps=20).nfe == 20


@dataclass(frozen=True)
class Elsewhere(Solver):
    """Euler-Maruyama that evaluates at a copy of the state, and remembers its particles in a tree."""

    weak_order = 1.0

    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        return x, {"mine": (x, [torch.tensor(3.0)]), "other": "text"}

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        assert torch.equal(state["mine"][0], x), "the memory belongs to other particles"
        assert state["mine"][1][0] == 3.0
        a, b, c = EulerMaruyama().coefficients(process, t[None], s[None])
        x = a * x + b * process.score(x.clone(), t) + c * noise.between(x, t, s)
        return x, {"mine": (x, [torch.tensor(3.0)]), "other": "text"}


def test_memory_is_resampled_and_missing_evaluations_are_made() -> None:
    sde = VP()
    a, b = (
        tilted(Gaussians(sde), (256, 1), solver=s, steps=30, threshold=0.9, dtype=F64)
        for s in (Elsewhere(), EulerMaruyama())
    )
    assert bool(a.resampled.any())
    torch.testing.assert_close(a.x, b.x)
    torch.testing.assert_close(a.log_weights, b.log_weights)
    assert (a.nfe, b.nfe) == (61, 31)


@dataclass(frozen=True)
class Opaque(Elsewhere):
    def start(self, process: Reverse, x: Tensor, grid: Tensor, noise: Noise) -> tuple[Tensor, Any]:
        return x, object()

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        return x + process.score(x, t) * (t - s), state


def test_a_multistep_memory_goes_with_its_particles() -> None:
    """Resampling at every step, half of the particles: with memories left behind, the law would be another."""
    sde = VP()
    got = tilted(
        Gaussians(sde), (60 * 1024, 1), groups=60, solver=Multistep(), steps=60, grid=grids.log_snr, threshold=1.0,
        resampling="multinomial", denoise=False, dtype=F64,
    )  # fmt: skip
    euler = discrete(CFG, sde, EulerMaruyama(), grids.log_snr(sde, 60), 1.0)
    truth = product(CFG, sde, sde.t_min)
    close(got, truth, slack=0.3 * max(abs(a - b) for a, b in zip(euler, truth, strict=True)))
    assert bool(got.resampled[:-2].all())


def test_denoise_is_the_guided_one() -> None:
    sde = VP()
    guidance = Gaussians(sde)
    a, b = (tilted(guidance, (64, 1), steps=20, denoise=d, dtype=F64) for d in (True, False))
    torch.testing.assert_close(a.x, guidance.denoise(b.x, b.grid[-1]))
    # the last weight is read off values of x̂_0 in one, of the score in the other
    torch.testing.assert_close(a.log_weights, b.log_weights, rtol=1e-12, atol=1e-12)


def test_seed_eta_threshold_and_scheme_matter() -> None:
    sde = VP()
    base: dict[str, Any] = {"steps": 20, "seed": 1, "threshold": 0.9}
    first = tilted(Gaussians(sde), (64, 1), **base)
    assert torch.equal(first.x, tilted(Gaussians(sde), (64, 1), **base).x) and first.x.dtype == torch.float32
    changes: list[dict[str, Any]] = [
        {"seed": 2},
        {"eta": 0.7},
        {"threshold": 1.0},
        {"threshold": 0.0},
        {"resampling": "stratified"},
        {"steps": 21},
        {"grid": grids.karras},
        {"solver": DDIM()},
        {"noise": IndependentNoise(1), "seed": None},
    ]
    for change in changes:
        other = tilted(Gaussians(sde), (64, 1), **{**base, **change})
        assert not torch.equal(first.x, other.x), change
    assert not tilted(Gaussians(sde), (64, 1), **{**base, "threshold": 0.0}).resampled.any()


def test_collapse_warns() -> None:
    sde = VP()
    with pytest.warns(CollapseWarning, match="smaller scale") as seen:
        tilted(Guided(sde, 60.0), (64, 2), steps=20)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tilted(Guided(sde, 2.0), (64, 2), steps=20)


# -- refusals ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sum(LinearGuidance):
    """Weights, and functions for the values."""

    answer: Callable[[Tensor, Tensor], list[tuple[float, Tensor]]]
    sde: SDE = field(default_factory=VP)
    other: Any = None

    def parts(self, x: Tensor, t: Tensor, wanted: Combination) -> list[Part]:
        return [Part(w, v) for w, v in self.answer(x, t)]


class Bent(TwistedGuidance):
    sde = VP()

    def twist(self, x: Tensor, t: Tensor) -> Twist:
        raise AssertionError

    def log_potential(self, x0: Tensor) -> Tensor:
        raise AssertionError


class Switched(NonlinearGuidance):
    sde = VP()
    reason = "it is on in an interval only"

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        raise AssertionError


@pytest.mark.parametrize("other", [SubVP(), RectifiedFlow(T=0.99), VP(beta_max=19.0)], ids=name_of)
def test_parts_of_different_schedules_are_refused(other: SDE) -> None:
    """Before anything is evaluated; a part under the same schedule by other means is not refused."""
    law, sde = ring(), VP()
    builds: list[Callable[[SDE], Any]] = [
        lambda weak: autoguidance(law.score(sde, 0), law.score(weak), 2.0),
        lambda weak: classifier(law.score(sde), ClassifierModel(torch.nn.Identity(), weak), 2.0, label=0),
        lambda weak: Sum(lambda x, t: [(1.0, -x)], other=law.score(weak)),
    ]
    for build in builds:
        with pytest.raises(ValueError, match="means nothing under another schedule"):
            tilted(build(other), (8, 2), steps=5)
        build(VP())
    assert tilted(builds[0](VP()), (8, 2), steps=5).x.shape == (8, 2)


def run(guidance: Any = None, **options: Any) -> object:
    return tilted(Gaussians(VP()) if guidance is None else guidance, (8, 1), **{"steps": 5, **options})


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: run(lambda x, t: -x), TypeError, "LinearGuidance.*got function"),
        (lambda: run(as_score(lambda x, t: -x, VP())), TypeError, "LinearGuidance.*needs no correction"),
        (lambda: run(Bent()), TypeError, r"use twisted\(\.\.\.\)"),
        (lambda: run(Switched()), TypeError, "cannot be corrected from scores alone, since it is on in an interval"),
        (lambda: run(Sum(lambda x, t: [], sde="vp")), TypeError, "must have its SDE"),  # type: ignore[arg-type]
        (lambda: run(Sum(lambda x, t: [], other=ring().score(SubVP()))), ValueError, "its other has SubVP"),
        (lambda: run(solver=AdaptiveODE()), ValueError, "not made of the grid's steps"),
        (lambda: run(solver=AdaptiveSDE()), ValueError, "not made of the grid's steps"),
        (lambda: run(solver=ProbabilityFlow()), ValueError, "not made of the grid's steps"),
        (lambda: run(solver=TorchSDE()), ValueError, "not made of the grid's steps"),
        (lambda: run(solver=AnnealedLangevin()), ValueError, "do not follow the process"),
        (lambda: run(solver=PredictorCorrector(AnnealedLangevin())), ValueError, "do not follow the process"),
        (lambda: run(solver="ddim"), TypeError, "must be a Solver"),
        (lambda: run(solver=Heun(), eta=0.0), ValueError, "would never part"),
        (lambda: run(solver=DDIM(), eta=0.0), ValueError, "threshold=0"),
        (lambda: run(solver=Heun()), ValueError, "probability-flow ODE"),
        (lambda: run(eta=-1.0), ValueError, "eta"),
        (lambda: run(solver=Opaque(), threshold=1.0, steps=9), TypeError, "memory cannot be resampled"),
        (lambda: run(Sum(lambda x, t: [(0.5, x), (0.4, x)])), ValueError, "must sum to 1"),
        (lambda: run(Sum(lambda x, t: [(float(t), x), (1 - float(t), x)])), ValueError, "same at every time"),
        (lambda: run(Sum(lambda x, t: [(1.0, x[:1])])), ValueError, "shaped like x"),
        (
            lambda: run(Sum(lambda x, t: [(2.0, x * math.nan), (-1.0, x)])),
            ValueError,
            r"at t = 1 log_weights hold",
        ),
        (lambda: run(Sum(lambda x, t: [(1.0, x * math.nan)])), FloatingPointError, "NaN or infinite"),
        (lambda: run(groups=3), ValueError, "multiple of groups"),
        (lambda: run(resampling=None), ValueError, "resampling"),
        (lambda: run(threshold=-0.1), ValueError, "threshold"),
    ],
)
def test_refusals(build: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build()
