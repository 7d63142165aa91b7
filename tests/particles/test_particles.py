"""Resampling, weighted particles, and the twisted sampler against exact linear-Gaussian answers."""

from __future__ import annotations

import dataclasses
import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde import grids
from scoresde.certify import certify
from scoresde.guidance import LinearGuidance, Part, Twist, TwistedGuidance, classifier
from scoresde.inverse import Identity, Measurement, pigdm
from scoresde.models import Combination, Score, as_score
from scoresde.noise import BrownianNoise, IndependentNoise, Noise, PerSampleNoise
from scoresde.particles import CollapseWarning, ParticleOptions, Particles, effective_sample_size, tilted, twisted
from scoresde.particles.moves import LangevinMoves
from scoresde.particles.population import Population
from scoresde.particles.resample import RESAMPLING, residual, systematic
from scoresde.problems import GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sde import EDM, SDE, VE, VP, Cosine, RectifiedFlow, has_signal
from scoresde.solvers import (
    DDIM,
    Ancestral,
    EulerMaruyama,
    Heun,
    Multistep,
    ReverseDiffusion,
    Solver,
    SpectralMultistep,
)

F64 = torch.float64


def v_step(sigma_data: float = 1.0) -> Multistep:
    """One evaluation of v̂, taken for constant in the step."""
    return Multistep(1, correct=False, predicts="v", sigma_data=sigma_data)


# -- resampling ----------------------------------------------------------------------------------------------------


class Uniform(Noise):
    """A noise all of whose uniforms are ``u``."""

    def __init__(self, u: float) -> None:
        self.z = float(torch.special.ndtri(torch.tensor(u, dtype=F64)))

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.full(shape, self.z, dtype=dtype, device=device)

    def normal(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.z)


def counts(ancestors: Tensor, n: int) -> Tensor:
    return torch.stack([row.bincount(minlength=n) for row in ancestors])


@pytest.mark.parametrize("name", RESAMPLING)
@pytest.mark.parametrize("count", [None, 2, 8])
def test_resampling_is_unbiased_by_enumeration(name: str, count: int | None) -> None:
    """Weights are multiples of 1/20, so ancestors change only where u is a multiple of 1/20 (times 4/count): the mean
    over the middles of 40 equal cells of u is the expectation, exactly. Slots with uniforms of their own need no other
    enumeration, since the expected number of copies is a sum over slots."""
    w = torch.tensor([[1, 0, 3, 7, 9], [5, 5, 5, 5, 0]], dtype=F64) / 20
    m = 5 if count is None else count
    # 5 slots of mass 1/5 hold 4 cells each, 2 slots 10, 8 slots 2.5: all have their borders on 40 cells
    us = (torch.arange(40) + 0.5) / 40
    mean = torch.stack([counts(RESAMPLING[name](w.log(), Uniform(float(u)), count), 5) for u in us]).double().mean(0)
    assert mean.sum(1).tolist() == pytest.approx([m, m])
    torch.testing.assert_close(mean, m * w, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", RESAMPLING)
def test_the_spread_of_copies_is_as_documented(name: str) -> None:
    g, n = 200, 16
    log_w = 2 * torch.randn(g, n, generator=torch.Generator().manual_seed(0), dtype=F64)
    log_w[:, 3] = -math.inf
    got = counts(RESAMPLING[name](log_w, 1), n)
    expected = n * log_w.softmax(1)
    assert bool((got.sum(1) == n).all()) and not got[:, 3].any()
    if name == "systematic":
        assert bool(((got >= expected.floor()) & (got <= expected.ceil())).all())
    if name == "residual":
        assert bool((got >= expected.floor()).all())
    if name == "stratified":  # each slot contributes less than one to the difference at either end of an interval
        assert bool(((got - expected).abs() < 2).all())
    if name == "multinomial":
        assert bool(((got - expected).abs() > 2).any())


def test_the_schemes_are_four_and_groups_have_uniforms_of_their_own() -> None:
    log_w = torch.randn(1, 32, generator=torch.Generator().manual_seed(1), dtype=F64).repeat(2, 1)
    drawn = [scheme(log_w, 3) for scheme in RESAMPLING.values()]
    for i, a in enumerate(drawn):
        assert not torch.equal(a[0], a[1])
        assert not any(torch.equal(a, b) for b in drawn[i + 1 :])


@pytest.mark.parametrize("name", RESAMPLING)
def test_extremes_of_resampling(name: str) -> None:
    scheme, big = RESAMPLING[name], 4097
    one = torch.full((1, big), -math.inf, dtype=F64)
    one[0, 4000] = -1e300  # only differences count
    for u in (1e-300, 0.5, 1 - 2**-53):
        assert bool((scheme(one, Uniform(u)) == 4000).all())
    equal = scheme(torch.zeros(1, big), 0)
    if name != "multinomial":  # equal weights: nothing to choose, up to roundings of the cumulated sum
        assert float((equal[0] - torch.arange(big)).abs().max()) <= 1


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (torch.tensor([[0.0, math.nan]]), r"NaN or \+inf, first in groups \[0\]"),
        (torch.tensor([[0.0, 0.0], [math.inf, 0.0]]), r"NaN or \+inf, first in groups \[1\]"),
        (torch.full((2, 3), -math.inf), r"every particle of groups \[0, 1\] has weight 0"),
        (torch.zeros(3), r"one group is log_weights\[None\]"),
        (torch.zeros(3, 0), "must be"),
    ],
)
def test_weights_that_are_none(weights: Tensor, match: str) -> None:
    for function in (effective_sample_size, lambda w: RESAMPLING["systematic"](w, 0)):
        with pytest.raises(ValueError, match=match):
            function(weights)
    with pytest.raises(TypeError, match="floating"):
        effective_sample_size(torch.zeros(2, 2, dtype=torch.long))


def test_effective_sample_size() -> None:
    log_w = torch.tensor([[0.0, 0.0, 0.0, 0.0], [5.0, -math.inf, -math.inf, -math.inf], [0.0, math.log(3), -800, -900]])
    # 1 / (1/16 + 9/16) = 1.6; float32 logarithms round to 1e-7
    torch.testing.assert_close(
        effective_sample_size(log_w), torch.tensor([4.0, 1.0, 1.6], dtype=F64), rtol=1e-6, atol=0
    )


# -- the result ----------------------------------------------------------------------------------------------------


def particles(weights: list[list[float]]) -> Particles:
    log_w = torch.tensor(weights, dtype=F64).log()
    g, n = log_w.shape
    x = torch.arange(g * n * 2, dtype=torch.float32).reshape(g * n, 2)
    roots = torch.tensor([[0, 0, 2, 3], [1, 1, 1, 1]])
    effective = effective_sample_size(log_w)[None]
    return Particles(x, log_w, effective, effective > 99, torch.zeros(g), roots, 1, torch.ones(1))


def test_mean_std_and_families() -> None:
    p = particles([[0.5, 0.25, 0.25, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert p.mean().tolist() == [[1.5, 2.5], [14.0, 15.0]]
    # values 0, 2, 4: variance 0.25 * 4 + 0.25 * 16 - 1.5² = 2.75
    torch.testing.assert_close(p.std(), torch.tensor([[2.75**0.5] * 2, [0.0, 0.0]]))
    assert p.distinct.tolist() == [3, 1] and p.weights.tolist()[1] == [0, 0, 0, 1]


def test_draw_repeats_no_more_than_it_must() -> None:
    p = particles([[0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25]])
    four = p.draw(4, 0)
    assert four[:4, 0].tolist() == [0, 0, 2, 4] and four[4:, 0].tolist() == [8, 10, 12, 14]
    seen = {tuple(p.draw(2, seed)[:2, 0].tolist()) for seed in range(40)}
    assert seen == {(0, 2), (0, 4)}  # 2 w = (1, 1/2, 1/2, 0): the first always, one of the two others
    with pytest.raises(ValueError, match="count"):
        p.draw(0, 0)


# -- the twisted sampler -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Measured(TwistedGuidance):
    """Prior N(m, v), y = x_0 + N(0, r), and ψ_t = N(y; x̂_0, r + k Var[x_0 | x_t])^strength, exact where both are 1."""

    sde: SDE
    y: float | Tensor = 1.5
    k: float = 1.0
    strength: float = 1.0
    m: float = 0.5
    v: float = 0.6
    r: float = 0.2
    calls: list[int] = dataclasses.field(default_factory=list)

    def twist(self, x: Tensor, t: Tensor) -> Twist:
        self.calls.append(len(x))
        a, s2 = float(self.sde.alpha(t)), float(self.sde.sigma(t)) ** 2
        total = a * a * self.v + s2
        x0 = self.m + a * self.v / total * (x - a * self.m)
        off = self.y - x0
        var = self.r + self.k * self.v * s2 / total
        log_psi = -0.5 * off**2 / var - 0.5 * math.log(2 * math.pi * var)
        gradient = off / var * a * self.v / total
        return Twist(x0, self.strength * log_psi.flatten(1).sum(1), self.strength * gradient)

    def log_potential(self, x0: Tensor) -> Tensor:
        return (-0.5 * (self.y - x0) ** 2 / self.r - 0.5 * math.log(2 * math.pi * self.r)).flatten(1).sum(1)


def level(g: Measured, t: Tensor) -> tuple[float, float]:
    return float(g.sde.alpha(t)), float(g.sde.sigma(t))


def discrete(g: Measured, solver: Any, grid: Tensor, eta: float, denoise: bool) -> tuple[float, float, float]:
    """Of the solver's own law p^disc at the end, exactly: log ∫ p^disc ψ, and mean and variance of p^disc ψ."""
    sde = g.sde
    m, p, first = 0.0, float(sde.sigma(grid[0])) ** 2, 0
    if not has_signal(sde.alpha(grid[0]), sde.sigma(grid[0])):  # x_s = α_s x̂_0 + σ_s z
        m, p, first = float(sde.alpha(grid[1])) * g.m, float(sde.sigma(grid[1])) ** 2, 1
    for (a, b, c), t in zip(solver.transitions(Reverse(g, eta), grid[first:]), grid[first:-1], strict=True):
        alpha, total = float(sde.alpha(t)), float(sde.alpha(t) ** 2 * g.v + sde.sigma(t) ** 2)
        slope, shift = a - b / total, b * alpha * g.m / total
        m, p = slope * m + shift, slope**2 * p + c**2
    # ψ of x_end: a Gaussian likelihood of y with mean h x + h0 and variance var, to the power of the strength
    alpha, s2 = float(sde.alpha(grid[-1])), float(sde.sigma(grid[-1])) ** 2
    total = alpha**2 * g.v + s2
    h, h0 = alpha * g.v / total, s2 * g.m / total
    if denoise or s2 == 0:
        m, p, h, h0, var, power = h * m + h0, h * h * p, 1.0, 0.0, g.r, 1.0
    else:
        var, power = g.r + g.k * g.v * s2 / total, g.strength
    wide = var / power  # N(y; ., var)^power = N(y; ., var/power) · const
    constant = 0.5 * math.log(2 * math.pi * wide) - 0.5 * power * math.log(2 * math.pi * var)
    off, spread = g.y - h * m - h0, h * h * p + wide
    evidence = -0.5 * off**2 / spread - 0.5 * math.log(2 * math.pi * spread) + constant
    gain = p * h / spread
    return evidence, m + gain * off, p - gain * h * p


CASES: list[Any] = [
    (VP(), EulerMaruyama(), 12, 1.0, True, {}),
    (VP(), EulerMaruyama(), 25, 0.5, True, {}),
    (VP(), EulerMaruyama(), 20, 1.0, False, {"k": 3.0}),
    (VP(), DDIM(), 15, 1.0, True, {"k": 2.0}),
    (VP(), DDIM(eta=0.6), 15, 1.0, False, {}),
    (EDM(T=80.0, t_min=0.01), Ancestral(), 20, 1.0, True, {}),
    (EDM(T=80.0, t_min=0.01), ReverseDiffusion(), 20, 1.0, True, {"strength": 0.5}),
    (Cosine(), Ancestral(variance="transition"), 20, 1.0, False, {"strength": 0.7}),
    (RectifiedFlow(T=0.99, t_min=0.0), EulerMaruyama(), 20, 1.0, True, {}),
    (RectifiedFlow(T=0.99, t_min=0.0), DDIM(), 20, 1.0, True, {"k": 2.0}),
    (VP(), v_step(), 12, 1.0, True, {"k": 2.0}),
    (RectifiedFlow(T=0.99, t_min=0.0), v_step(0.5), 12, 0.7, True, {}),
    (RectifiedFlow(T=1.0, t_min=0.0), EulerMaruyama(), 20, 1.0, True, {"k": 2.0}),  # begins where α = 0
    (Cosine(T=1.0), v_step(), 20, 1.0, False, {}),
    (Cosine(T=1.0), DDIM(), 20, 1.0, True, {}),
]


def name_of(value: object) -> str:
    return type(value).__name__ if isinstance(value, (SDE, Solver)) else getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("sde", "solver", "steps", "eta", "denoise", "twist"), CASES, ids=name_of)
def test_twisted_reaches_its_own_exact_answer(
    sde: SDE, solver: Solver, steps: int, eta: float, denoise: bool, twist: dict[str, float]
) -> None:
    """Any ψ_t, exact or not, and any Gaussian steps, few of them: the answer is p^disc ψ_0 of these very steps."""
    guidance, groups, n = Measured(sde, **twist), 200, 256
    grid = grids.uniform(sde, steps) if float(sde.sigma(sde.t_min)) == 0 else grids.karras(sde, steps)
    got = twisted(
        guidance, (groups * n, 1), groups=groups, solver=solver, grid=grid, eta=eta, denoise=denoise, dtype=F64
    )
    evidence, mean, variance = discrete(guidance, solver, grid, eta, denoise)
    normaliser = (got.log_normalizer - evidence).exp()
    first, second = got.mean()[:, 0], got.mean()[:, 0] ** 2 + got.std()[:, 0] ** 2
    for values, truth in ((normaliser, 1.0), (first, mean), (second, mean**2 + variance)):
        # 4.5 standard errors of the mean over 200 independent groups; self-normalised means are biased by O(1/N), at
        # most about (standard deviation of one group)² relative to the truth's scale
        spread = float(values.std())
        bias = 0.0 if values is normaliser else 2 * spread**2
        assert abs(float(values.mean()) - truth) < 4.5 * spread / groups**0.5 + bias
        assert spread < 0.5  # else the test says little


def test_the_discrete_answer_goes_to_the_exact_one_with_the_steps() -> None:
    """p^disc has the solver's weak order, 1: the errors halve, and the exact posterior is the limit."""
    guidance = Measured(VP())
    s = guidance.v + guidance.r
    truth = (
        -0.5 * (guidance.y - guidance.m) ** 2 / s - 0.5 * math.log(2 * math.pi * s),
        guidance.m + guidance.v / s * (guidance.y - guidance.m),
        guidance.v * guidance.r / s,
    )
    for solver in (EulerMaruyama(), DDIM(), ReverseDiffusion(), v_step(0.5)):
        errors = []
        for steps in (200, 400):
            found = discrete(guidance, solver, grids.log_snr(guidance.sde, steps), 1.0, True)
            errors.append([abs(a - b) for a, b in zip(found, truth, strict=True)])
        for coarse, fine in zip(*errors, strict=True):
            assert fine < 0.03
            assert 1.6 < coarse / fine < 2.5 or coarse < 2e-3  # next order: a few per cent at 200 steps; prior mismatch


@pytest.mark.parametrize("name", RESAMPLING)
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_the_normaliser_is_unbiased_for_few_particles(name: Any, threshold: float) -> None:
    """Four particles, any scheme, any threshold: the mean over 4000 groups is the evidence (of p^disc)."""
    sde, groups = VP(), 4000
    grid, guidance = grids.karras(sde, 8), Measured(sde, k=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        got = twisted(
            guidance, (groups * 4, 1), groups=groups, solver=DDIM(), grid=grid, threshold=threshold, resampling=name,
            noise=IndependentNoise(3), dtype=F64,
        )  # fmt: skip
    evidence = discrete(guidance, DDIM(), grid, 1.0, True)[0]
    ratio = (got.log_normalizer - evidence).exp()
    error = float(ratio.std()) / groups**0.5
    assert error < 0.05
    assert abs(float(ratio.mean()) - 1) < 4.5 * error
    assert bool(got.resampled.any()) == (threshold > 0)
    if threshold == 1.0:  # every time but the last, unless weights are equal
        assert bool(got.resampled[:-1].all())
    assert not got.resampled[-1].any()


def test_the_guided_sampler_alone_is_off_where_particles_are_not() -> None:
    """What the weights are for: with a twist of half the strength, equally weighted particles miss the posterior."""
    sde = VP()
    guidance = Measured(sde, strength=0.5)
    grid = grids.karras(sde, 40)
    truth = discrete(guidance, EulerMaruyama(), grid, 1.0, True)[1]
    got = twisted(guidance, (20 * 1024, 1), groups=20, grid=grid, dtype=F64)
    plain = EulerMaruyama().solve(
        Reverse(guidance), got.x * 0 + sde.prior_sample((20 * 1024, 1), 1, dtype=F64), grid, 2
    )
    error = float(got.mean().std()) / 20**0.5
    assert abs(float(got.mean().mean()) - truth) < 4.5 * error
    assert abs(float(plain.x.mean()) - truth) > 30 * error


class Replayed(Noise):
    """Every draw is the next of a list."""

    def __init__(self, *draws: Tensor) -> None:
        self.draws = list(draws)

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.draws.pop(0)

    def normal(self, x: Tensor) -> Tensor:
        return self.draws.pop(0)


@dataclass(frozen=True, eq=False)
class Traced(Measured):
    seen: list[Tensor] = dataclasses.field(default_factory=list)

    def twist(self, x: Tensor, t: Tensor) -> Twist:
        self.seen.append(x)
        return super().twist(x, t)


@pytest.mark.parametrize(("sde", "first"), [(VP(), 0.9), (EDM(), 1.5), (RectifiedFlow(T=1.0), 1.0)], ids=name_of)
@pytest.mark.parametrize("solver", [EulerMaruyama(), DDIM(), v_step()], ids=name_of)
@pytest.mark.filterwarnings("ignore::scoresde.particles.CollapseWarning")
def test_steps_and_moves_are_their_formulas(sde: SDE, first: float, solver: Any) -> None:
    """Two steps, the second after a move, number for number: no statistics, so that a constant off by 1e-9 is seen."""
    z = torch.randn(5, 8, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    never = torch.full((8,), -40.0, dtype=F64)  # a uniform number of 0: every move is accepted
    guidance, grid = Traced(sde, k=2.0), torch.tensor([first, 0.5, 0.2], dtype=F64)
    noise = Replayed(z[0], z[1], z[2], never, z[3])
    got = twisted(
        guidance, (8, 3), solver=solver, grid=grid, moves=1, noise=noise, threshold=0.0, denoise=False, dtype=F64
    )
    assert not noise.draws
    plain = Measured(sde, k=2.0)

    def at(x: Tensor, t: Tensor) -> tuple[Twist, Tensor]:
        twist, (alpha, sigma) = plain.twist(x, t), level(plain, t)
        return twist, (alpha * twist.x0 - x) / sigma**2

    def stepped(x: Tensor, t: Tensor, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        twist, score = at(x, t)
        if not has_signal(sde.alpha(t), sde.sigma(t)):
            mean, c = sde.alpha(s) * twist.x0, float(sde.sigma(s))
        else:
            ((a, b, c),) = solver.transitions(Reverse(plain), torch.stack([t, s]))
            mean = a * x + b * score
        u = c * twist.gradient
        return mean + c * (u + z), -(u * z).sum(1) - 0.5 * (u * u).sum(1) - twist.log_psi

    x0 = float(sde.sigma(grid[0])) * z[0]
    x1, one = stepped(x0, grid[0], grid[1], z[1])
    twist, score = at(x1, grid[1])
    step = 0.5 * float(sde.sigma(grid[1])) ** 2  # in three dimensions ℓ = ½
    y = x1 + step * (score + twist.gradient) + math.sqrt(2 * step) * z[2]
    x2, two = stepped(y, grid[1], grid[2], z[3])
    for found, truth in zip(guidance.seen, (x0, x1, y, x2), strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)
    # the move leaves the weights alone: ψ of x1 before it, of y after it
    log_w = plain.twist(x0, grid[0]).log_psi + one + twist.log_psi + two + plain.twist(x2, grid[2]).log_psi
    torch.testing.assert_close(got.log_weights[0], log_w - log_w.logsumexp(0), rtol=1e-9, atol=1e-9)


def test_evaluations_are_steps_and_one() -> None:
    for sde, denoise, more in ((VP(), True, 1), (VP(), False, 1), (RectifiedFlow(T=0.99, t_min=0.0), True, 0)):
        guidance = Measured(sde)
        got = twisted(guidance, (32, 1), grid=grids.uniform(sde, 20), denoise=denoise)
        assert got.nfe == 20 + more == len(guidance.calls) and set(guidance.calls) == {32}
        assert got.denoised == (denoise and more == 1)
        assert got.effective.shape == (21, 1) == got.resampled.shape and got.x.shape == (32, 1)
        assert got.x.dtype == torch.float32 and got.log_weights.dtype == F64
        torch.testing.assert_close(got.log_weights.logsumexp(1), torch.zeros(1, dtype=F64), rtol=0, atol=1e-12)


def test_groups_know_nothing_of_each_other() -> None:
    """Group 0 of two, each with a measurement of its own, is the run of one group alone; each finds its posterior."""
    sde, n = VP(), 512
    y = torch.tensor([1.5, -1.0]).repeat_interleave(n)[:, None]
    both = twisted(Measured(sde, y=y, k=4.0), (2 * n, 1), groups=2, steps=30, seed=4, threshold=0.9)
    alone = twisted(Measured(sde, k=4.0), (n, 1), steps=30, seed=4, threshold=0.9)
    assert bool(both.resampled[:, 0].any()) and bool(both.resampled[:, 1].any())
    torch.testing.assert_close(both.x[:n], alone.x)
    torch.testing.assert_close(both.log_weights[0], alone.log_weights[0])
    torch.testing.assert_close(both.log_normalizer[0], alone.log_normalizer[0])
    assert torch.equal(both.roots[0], alone.roots[0]) and int(both.roots.max()) < n
    for row, value in ((0, 1.5), (1, -1.0)):
        exact = discrete(Measured(sde, y=value, k=4.0), EulerMaruyama(), both.grid, 1.0, True)
        # 5 standard errors at an effective size that resampling has left, at least a tenth of the particles
        assert abs(float(both.mean()[row, 0]) - exact[1]) < 5 * (exact[2] / (0.1 * n)) ** 0.5
    assert bool((both.distinct < n).all())


@pytest.mark.filterwarnings("ignore::scoresde.particles.CollapseWarning")  # six coordinates, ten steps
def test_noise_seed_and_event_shapes() -> None:
    sde = VP()
    run = lambda **k: twisted(Measured(sde), (64, 2, 3), steps=10, **k)  # noqa: E731
    a, b, c = run(seed=5), run(noise=PerSampleNoise(5)), run(seed=6)
    assert torch.equal(a.x, b.x) and not torch.equal(a.x, c.x) and a.mean().shape == (1, 2, 3)
    for noise in (IndependentNoise(0), torch.Generator().manual_seed(0), BrownianNoise(0, sde.T)):
        assert run(noise=noise).x.isfinite().all()
    assert run(resampling=RESAMPLING["residual"]).x.shape == (64, 2, 3)


def test_collapse_warns_with_the_way_out() -> None:
    sde = VP()
    with pytest.warns(
        CollapseWarning, match=r"sample size of group 0 was 1\.\d\d of 64 particles.*better twist"
    ) as seen:
        twisted(Measured(sde, y=6.0, r=1e-4, strength=0.02), (64, 1), steps=20)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twisted(Measured(sde), (64, 1), steps=20)


@dataclass(frozen=True, eq=False)
class Broken(TwistedGuidance):
    sde: SDE = dataclasses.field(default_factory=VP)
    x0: Any = None
    log_psi: Any = None
    gradient: Any = None
    potential: Any = None
    other: Score | None = None

    def twist(self, x: Tensor, t: Tensor) -> Twist:
        return Twist(
            0.5 * x if self.x0 is None else self.x0(x),
            x.flatten(1).sum(1) * 0 if self.log_psi is None else self.log_psi(x),
            0 * x if self.gradient is None else self.gradient(x),
        )

    def log_potential(self, x0: Tensor) -> Tensor:
        return 0 * x0[:, 0] if self.potential is None else self.potential(x0)


class Sum(LinearGuidance):
    sde = VP()

    def parts(self, x: Tensor, t: Tensor, wanted: Combination) -> list[Part]:
        raise AssertionError


@dataclass(frozen=True)
class Stays(Ancestral):
    """Whose draws_noise promises what its steps do not hold."""

    def coefficients(self, process: Reverse, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, c = super().coefficients(process, t, s)
        return a, b, 0 * c


GOOD = Measured(VP())


def run(guidance: Any = GOOD, shape: Any = (4, 1), **options: Any) -> Particles:
    return twisted(guidance, shape, **{"steps": 20, **options})


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: run(as_score(lambda x, t: -x, VP())), TypeError, "TwistedGuidance.*needs no correction"),
        (lambda: run(lambda x, t: -x), TypeError, "TwistedGuidance.*got function"),
        (lambda: run(Sum()), TypeError, r"sum of scores: use tilted\(\.\.\.\)"),
        (lambda: run(Broken("vp")), TypeError, "must have its SDE"),  # type: ignore[arg-type]
        (lambda: run(Broken(VP(), other=as_score(lambda x, t: -x, Cosine()))), ValueError, "its other has Cosine"),
        (lambda: run(solver=Heun()), TypeError, "one-step solver"),
        (lambda: run(solver="ddim"), TypeError, "must be a Solver"),
        (lambda: run(solver=SpectralMultistep()), TypeError, "one-step solver"),
        (lambda: run(solver=Multistep()), ValueError, "remembers past steps"),
        (lambda: run(solver=DDIM(), eta=0.0), ValueError, "draw no noise"),
        (lambda: run(solver=DDIM(eta=0.0)), ValueError, "draw no noise"),
        (lambda: run(solver=Stays()), ValueError, "draw no noise"),
        (lambda: run(solver=Ancestral(), eta=0.5), ValueError, "eta = 1"),
        (lambda: run(groups=3), ValueError, "multiple of groups"),
        (lambda: run(groups=4), ValueError, "at least 2"),
        (lambda: run(groups=0), ValueError, "groups"),
        (lambda: run(shape=4), TypeError, "shape"),
        (lambda: run(threshold=1.5), ValueError, "threshold"),
        (lambda: run(threshold=math.nan), ValueError, "threshold"),
        (lambda: run(moves=-1), ValueError, "moves"),
        (lambda: run(moves=1.5), TypeError, "moves"),
        (lambda: run(kernel=DDIM()), TypeError, "unexpected keyword argument 'kernel'"),
        (lambda: v_step(0.0), ValueError, "sigma_data"),
        (lambda: run(resampling="roulette"), ValueError, "resampling"),
        (lambda: run(seed=1, noise=IndependentNoise()), ValueError, "seed or noise"),
        (lambda: run(grid="karras"), TypeError, "grid"),
        (lambda: run(dtype=torch.long), TypeError, "floating"),
        (lambda: run(steps=0), ValueError, "steps"),
        (lambda: run(Broken(x0=lambda x: x[:1])), ValueError, "x0 of Broken's twist"),
        (lambda: run(Broken(gradient=lambda x: x[:1])), ValueError, "gradient of Broken's twist"),
        (lambda: run(Broken(log_psi=lambda x: x)), ValueError, "one number for each particle"),
        (lambda: run(Broken(potential=lambda x: x)), ValueError, "log_potential must be one number"),
        (lambda: run(Broken(log_psi=lambda x: x[:, 0] / 0)), ValueError, r"at t = 1 log_weights hold NaN"),
        (lambda: run(Broken(potential=lambda x: -math.inf + 0 * x[:, 0])), ValueError, "weight 0"),
        (lambda: run(Broken(x0=lambda x: x * math.nan)), FloatingPointError, "NaN or infinite"),
    ],
)
def test_refusals(build: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build()


def test_both_methods_have_one_signature_and_one_default_of_each() -> None:
    shown = {f: inspect.signature(f).parameters for f in (tilted, twisted)}
    names = {f: [name for name in found if name != "moves"] for f, found in shown.items()}
    assert names[tilted] == names[twisted] == ["guidance", "shape", *ParticleOptions.__annotations__]
    for name in ParticleOptions.__annotations__:
        assert shown[tilted][name].default == shown[twisted][name].default, name
    assert shown[twisted]["moves"].default == 0


# -- the step of v -------------------------------------------------------------------------------------------------


def moments(solver: Multistep, process: Reverse, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, b, c = (torch.tensor(column, dtype=F64) for column in zip(*solver.transitions(process, grid), strict=True))
    return a, b, c


@pytest.mark.parametrize("sde", [VP(), EDM(T=80.0, t_min=0.01), RectifiedFlow(T=0.99, t_min=0.01)], ids=name_of)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
def test_the_step_of_v_is_exact_on_gaussians_of_its_scale(sde: SDE, eta: float) -> None:
    """N(0, α² d² + σ²) at each time goes to the same at the next, however long the step."""
    d = 0.7
    grid = grids.uniform(sde, 3)
    a, b, c = moments(v_step(d), Reverse(Measured(sde), eta), grid)
    total = (sde.alpha(grid) * d) ** 2 + sde.sigma(grid) ** 2
    got = (a - b / total[:-1]) ** 2 * total[:-1] + c**2
    torch.testing.assert_close(got, total[1:], rtol=1e-10, atol=0)  # roundings, and 32 Gauss nodes
    other = moments(v_step(1.5), Reverse(Measured(sde), eta), grid)
    off = (other[0] - other[1] / total[:-1]) ** 2 * total[:-1] + other[2] ** 2
    assert not torch.allclose(off, total[1:], rtol=1e-3)  # sigma_data is heard
    assert bool((c > 0).all()) == bool((c > 0).any()) == (eta > 0)


@pytest.mark.parametrize("sde", [VP(), EDM(T=80.0, t_min=0.01), RectifiedFlow(T=0.99, t_min=0.01)], ids=name_of)
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("d", [0.5, 1.0])
def test_the_step_of_v_is_its_formula(sde: SDE, eta: float, d: float) -> None:
    """x_s / N_s = ρ x / N + (1 + η²) v̂ ∫ (cos θ / cos θ_s)^{η²} dθ + sqrt(1 - ρ²) z, v̂ = cos θ ε̂ - sin θ x̂_0 / d."""
    grid = grids.karras(sde, 12)
    alpha, sigma = sde.alpha(grid), sde.sigma(grid)
    size, angle = ((alpha * d) ** 2 + sigma**2).sqrt(), torch.atan2(sigma, alpha * d)
    (t, s), (n_t, n_s) = ((angle[:-1], angle[1:]), (size[:-1], size[1:]))
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(64))
    theta = t[:, None] + (s - t)[:, None] * (0.5 + 0.5 * nodes)
    turned = (s - t) * (0.5 * weights * (theta.cos() / s.cos()[:, None]) ** (eta**2)).sum(1)
    rho = (t.cos() / s.cos()) ** (eta**2)
    # ε̂ = -σ s and x̂_0 = (x + σ² s)/α in v̂
    of_x = -t.sin() / (d * alpha[:-1])
    of_s = -t.cos() * sigma[:-1] - t.sin() * sigma[:-1] ** 2 / (d * alpha[:-1])
    held = n_s * (1 + eta**2) * turned
    a, b, c = moments(v_step(d), Reverse(Measured(sde), eta), grid)
    torch.testing.assert_close(a, n_s / n_t * rho + held * of_x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(b, held * of_s, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(c, n_s * (1 - rho**2).clamp_min(0).sqrt(), rtol=1e-7, atol=1e-9)


# -- precision -----------------------------------------------------------------------------------------------------


NOISY: list[SDE] = [VP(), VE(sigma_max=1e6), RectifiedFlow(T=1 - 1e-6, t_min=1e-4), EDM(T=1e5, t_min=0.01)]


def in_both(sde: SDE, **options: Any) -> tuple[Particles, Particles]:
    """The same normals in float32 and float64, without resampling, so that particles can be compared one by one."""
    one, two = (
        twisted(Measured(sde), (64, 3), threshold=0.0, dtype=dtype, **options) for dtype in (torch.float32, F64)
    )
    assert one.x.dtype == torch.float32
    return one, two


def long_steps(sde: SDE, steps: int) -> Tensor:
    """From the first time to σ/α = 1, and on by factors."""
    level = torch.logspace(0, -1, steps, dtype=F64)
    return torch.cat([torch.tensor([sde.T], dtype=F64), sde.t_of_log_snr(-2 * level.log())])


@pytest.mark.parametrize(
    ("solver", "rule", "steps"),
    [
        (DDIM(), long_steps, 5),
        (Ancestral(), long_steps, 5),
        (v_step(), long_steps, 5),
        (EulerMaruyama(), grids.log_snr, 100),
        (ReverseDiffusion(), grids.log_snr, 100),
        (DDIM(), grids.spectral, 7),
        (Ancestral(), grids.spectral, 10),
        (v_step(), grids.spectral, 7),
        (v_step(), grids.spectral, 100),
    ],
    ids=name_of,
)
@pytest.mark.parametrize("sde", NOISY, ids=name_of)
@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.filterwarnings("ignore::scoresde.particles.CollapseWarning")  # few steps
def test_float32_loses_nothing_where_noise_is_large(
    sde: SDE, solver: Solver, rule: grids.Rule, steps: int, denoise: bool
) -> None:
    """Particles and weights to the rounding of float32; long steps on the bare score are off by eps σ/α = 0.1."""
    narrow, wide = in_both(sde, solver=solver, grid=rule, steps=steps, denoise=denoise)
    # a hundred roundings of 6e-8, and of log-weights of a size of 10
    torch.testing.assert_close(narrow.x.double(), wide.x, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(narrow.log_weights, wide.log_weights, rtol=0, atol=3e-4)


@pytest.mark.parametrize("sde", NOISY[1:], ids=name_of)
@pytest.mark.filterwarnings("ignore::scoresde.particles.CollapseWarning")
def test_denoising_loses_nothing_where_noise_is_large(sde: SDE) -> None:
    """At σ/α = 1e4, where (x + σ² s)/α of the score is off by 1e-3."""
    end = sde.t_of_log_snr(torch.tensor(-2 * math.log(1e4), dtype=F64))
    narrow, wide = in_both(sde, solver=DDIM(), grid=grids.log_snr(sde, 10, t_end=end))
    torch.testing.assert_close(narrow.x.double(), wide.x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sde", NOISY, ids=name_of)
def test_moves_in_float32_are_those_of_float64(sde: SDE) -> None:
    """At the first time, where σ is largest: proposals and acceptance, sample by sample."""
    g, t = Measured(sde), torch.tensor(sde.T, dtype=F64)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    z = torch.randn(200, 64, generator=torch.Generator().manual_seed(0), dtype=F64)
    found = []
    for dtype in (torch.float32, F64):
        x = (sigma * z).float().to(dtype)  # the same numbers
        now, langevin = g.twist(x, t), LangevinMoves(1, 64, x.device)
        x, _ = langevin(lambda v: g.twist(v, t), x, now, alpha, sigma, PerSampleNoise(0))
        found.append(x.double() / sigma)
    different = (found[0] - found[1]).abs().amax(1)
    assert float(different.median()) < 1e-6
    assert int((different > 1e-5).sum()) <= 1  # one in 200 may lie at the threshold of acceptance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_run_for_half_precision_is_one_in_float32(dtype: torch.dtype) -> None:
    seen = set()

    class Noted(Measured):
        def twist(self, x: Tensor, t: Tensor) -> Twist:
            seen.add(x.dtype)
            return super().twist(x, t)

    half, full = (twisted(Noted(VP()), (64, 2), steps=10, moves=1, dtype=d) for d in (dtype, torch.float32))
    assert seen == {torch.float32} and half.x.dtype == dtype
    assert torch.equal(half.x, full.x.to(dtype)) and torch.equal(half.log_weights, full.log_weights)


# -- moves ---------------------------------------------------------------------------------------------------------


def stationary(g: Measured, t: Tensor) -> tuple[float, float]:
    """Mean and variance of p_t ψ_t."""
    alpha, s2 = float(g.sde.alpha(t)), float(g.sde.sigma(t)) ** 2
    total = alpha**2 * g.v + s2
    h, h0, var = alpha * g.v / total, s2 * g.m / total, (g.r + g.k * g.v * s2 / total) / g.strength
    precision = 1 / total + h * h / var
    return (alpha * g.m / total + h * (g.y - h0) / var) / precision, 1 / precision


def test_the_ratio_of_moves_is_that_of_densities() -> None:
    """Detailed balance, on a Gaussian to rounding: log π(y) q(x|y) - log π(x) q(y|x) from the closed forms."""
    g, t = Measured(VP(), k=2.0, strength=0.7), torch.tensor(0.4, dtype=F64)
    mean, variance = stationary(g, t)
    x, y = torch.randn(2, 50, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    step = torch.linspace(0.01, 0.5, 50, dtype=F64)

    def log_pi(v: Tensor) -> Tensor:
        return -0.5 * (v[:, 0] - mean) ** 2 / variance

    def log_q(there: Tensor, here: Tensor) -> Tensor:
        centre = here[:, 0] - step * (here[:, 0] - mean) / variance
        return -((there[:, 0] - centre) ** 2) / (4 * step)

    truth = log_pi(y) - log_pi(x) + log_q(x, y) - log_q(y, x)
    got = LangevinMoves.log_ratio(x, g.twist(x, t), y, g.twist(y, t), step, *level(g, t))
    torch.testing.assert_close(got, truth, rtol=1e-9, atol=1e-9)


def test_moves_come_to_their_law_and_adapt_each_group_alone() -> None:
    g, t, groups, n = Measured(VP(), k=2.0), torch.tensor(0.4, dtype=F64), 2, 20000
    mean, variance = stationary(g, t)
    noise = IndependentNoise(0)
    x = noise.initial((groups * n, 1), dtype=F64, device=torch.device("cpu"))
    x[n:] = mean + variance**0.5 * x[n:]  # the second group begins where it is to stay
    now, langevin = g.twist(x, t), LangevinMoves(groups, 1, x.device)
    rejected = 0
    for _ in range(40):
        before = x
        x, now = langevin(lambda v: g.twist(v, t), x, now, *level(g, t), noise)
        rejected += int((x == before).sum())
        torch.testing.assert_close(now.log_psi, g.twist(x, t).log_psi, rtol=0, atol=0)
    assert rejected > 0
    for part in x.reshape(groups, n):
        # 4.5 standard errors; 40 moves of about the law's own width forget the start
        assert abs(float(part.mean()) - mean) < 4.5 * (variance / n) ** 0.5
        assert abs(float(part.var()) / variance - 1) < 4.5 * (2 / n) ** 0.5
    assert langevin.length.tolist() == [0.5, 0.5]  # in one dimension acceptance would allow more


def test_the_length_of_moves_begins_and_adapts_as_documented() -> None:
    g, t = Measured(VP()), torch.tensor(0.4, dtype=F64)
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0), dtype=F64)
    langevin = LangevinMoves(2, 64, x.device)
    start = (2.53 / 64) ** (1 / 3)
    assert langevin.length.tolist() == pytest.approx([start, start], rel=1e-12)
    langevin(lambda v: g.twist(v, t), x, g.twist(x, t), *level(g, t), IndependentNoise(0))
    for length, rate in zip(langevin.length.tolist(), langevin.acceptance.tolist(), strict=True):
        assert rate * 10 == pytest.approx(round(rate * 10))
        assert length == pytest.approx(min(0.5, start * math.exp(0.5 * (rate - 0.574))), rel=1e-12)
    assert LangevinMoves(1, 3, x.device).length.item() == 0.5


def test_the_length_of_moves_adapts_to_each_group() -> None:
    """From any start acceptance comes to 0.574, in 64 dimensions below the greatest length."""
    g, t, groups, n = Measured(VP()), torch.tensor(0.4, dtype=F64), 2, 500
    mean, variance = stationary(g, t)
    noise = IndependentNoise(0)
    x = mean + variance**0.5 * noise.initial((groups * n, 64), dtype=F64, device=torch.device("cpu"))
    now, langevin = g.twist(x, t), LangevinMoves(groups, 64, x.device)
    langevin.length[1] /= 4
    rates = []
    for _ in range(40):
        x, now = langevin(lambda v: g.twist(v, t), x, now, *level(g, t), noise)
        rates.append(langevin.acceptance)
    assert float(rates[0][1]) > 0.9  # the short steps were accepted
    # one rate scatters by 0.022; the mean of ten by less, the updates working against it
    assert bool(((torch.stack(rates[-10:]).mean(0) - 0.574).abs() < 0.03).all())
    assert not torch.equal(langevin.length[0], langevin.length[1])


def test_moves_mend_the_steps_and_cost_what_is_said() -> None:
    """Steps of DDIM too long for the variance: 12 moves at each time bring p^disc to p."""
    sde, n, groups = VP(), 2000, 8
    guidance, grid = Measured(sde), grids.log_snr(sde, 12)
    s = guidance.v + guidance.r
    truth = guidance.v * guidance.r / s
    found = {}
    for moves in (0, 12):
        guidance.calls.clear()
        got = twisted(
            guidance, (groups * n, 1), groups=groups, solver=DDIM(), grid=grid, moves=moves, denoise=False, dtype=F64
        )
        assert got.nfe == len(guidance.calls) == 13 + 11 * moves
        found[moves] = float((got.std() ** 2).mean())
    # the last step is the solver's alone; the law of its start is p's rather than p^disc's
    assert abs(found[12] - truth) < 0.5 * abs(found[0] - truth)


def test_moves_of_a_group_do_not_depend_on_others() -> None:
    sde = VP()
    y = torch.tensor([1.5, -2.0]).repeat_interleave(64)[:, None]
    run = lambda y, g: twisted(Measured(sde, y=y), (64 * g, 1), groups=g, steps=10, moves=2)  # noqa: E731
    one, two = run(y[:64], 1), run(y, 2)
    torch.testing.assert_close(one.x, two.x[:64], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "left"), [(2, 1), (3, 1), (4, 1), (5, 1), (64, 1), (1000, 10)])
def test_every_collapse_warns(size: int, left: int) -> None:
    """All weight on ``left`` of ``size`` particles: an effective sample size of ``left``."""
    for kept in (left, size):
        population = Population(1, size, 0.0, systematic, PerSampleNoise(0), torch.device("cpu"))
        t = torch.tensor([1.0, 0.5], dtype=torch.float64)
        population.weigh(torch.where(torch.arange(size) < kept, 0.0, -1e6), t[0])
        population.ancestors(last=True)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            population.arrived(torch.zeros(size, 1), t[:1], 1, denoised=False, way_out="")
        assert [w.category for w in seen] == ([CollapseWarning] if kept < size else [])


@pytest.mark.parametrize("size", range(1, 200))
def test_residual_copies_equal_weights_once(size: int) -> None:
    chosen = residual(torch.zeros(1, size, dtype=torch.float64), 0)
    assert chosen.tolist() == [list(range(size))]


def test_the_step_of_v_holds_what_it_claims() -> None:
    certify(v_step()).require()


@pytest.mark.parametrize("method", ["pigdm", "classifier"])
def test_a_potential_that_is_not_there_is_found_before_the_work(method: str) -> None:
    data, sde, calls = GaussianMixture(torch.ones(2), torch.tensor([[-1.0], [1.0]]), 0.1), VP(), []

    def score(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return data.score(sde)(x, t)

    guidance: Any
    if method == "pigdm":
        guidance = pigdm(as_score(score, sde), Measurement(torch.tensor([0.5]), Identity((1,)), 0.0))
    else:
        of_label = data.label_log_prob(sde)
        guidance = classifier(
            as_score(score, sde), lambda x, t: of_label(x, t), label=1
        )  # without a schedule of its own
    with pytest.raises(ValueError, match=r"noise_std > 0|t_end"):
        twisted(guidance, (8, 1), steps=4)
    assert not calls
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        twisted(guidance, (8, 1), steps=4, denoise=False)  # which asks nothing of clean samples
    assert calls
