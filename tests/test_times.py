"""Densities of training times: each is the distribution it names, and its weights undo it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, norm, truncnorm
from strategies import DEFAULTS, ZERO_TERMINAL, generator, members, name, rescaled_ddpm
from torch import Tensor

from scoresde.sde import EDM, SDE, VE, VP, ChainSDE, RectifiedFlow
from scoresde.times import (
    LevelTime,
    LogitNormalTime,
    LogNormalSigma,
    LogSNRTime,
    Stratified,
    TimeDensity,
    UniformTime,
)

DENSITIES: list[TimeDensity] = [UniformTime(), LogNormalSigma(), LogNormalSigma(0.5, 2.0), LogitNormalTime()]
DENSITIES += [LogitNormalTime(-0.4, 0.7), LogSNRTime(), LogSNRTime(unbiased=False)]
U = torch.linspace(0.001, 0.999, 41, dtype=torch.float64)


def distribution(density: TimeDensity, sde: SDE, t: Tensor) -> np.ndarray:
    """P(time <= t) as the density's own docstring defines it, by scipy."""
    part = ((t - sde.t_min) / (sde.T - sde.t_min)).numpy()
    if isinstance(density, UniformTime):
        return part
    if isinstance(density, LogitNormalTime):
        return norm.cdf((np.log(part) - np.log1p(-part) - density.mean) / density.std)
    level, ends = (-0.5 * sde.log_snr(v) for v in (t, torch.tensor([sde.t_min, sde.T], dtype=torch.float64)))
    if isinstance(density, LogNormalSigma):
        low, high = ((ends - density.mean) / density.std).tolist()
        return truncnorm.cdf(level, low, high, loc=density.mean, scale=density.std)
    assert isinstance(density, LogSNRTime)
    return ((level - ends[0]) / (ends[1] - ends[0])).numpy()


@given(sde=members(), density=st.sampled_from(DENSITIES))
def test_times_invert_their_distribution_function(sde: SDE, density: TimeDensity) -> None:
    t = density.sample(sde, U).t
    assert t.dtype == torch.float64 and bool((t.diff() > 0).all())
    # λ and t are inverted to roundings of numbers below 30; ndtr and ndtri are good to 1e-13 of them
    np.testing.assert_allclose(distribution(density, sde, t), U, rtol=0, atol=1e-9)


@pytest.mark.parametrize("density", DENSITIES, ids=repr)
@pytest.mark.parametrize("sde", DEFAULTS, ids=name)
def test_random_times_follow_their_distribution(sde: SDE, density: TimeDensity) -> None:
    drawn = density.sample(sde, torch.rand(4000, generator=generator(11))).t
    # a right sampler fails one seed in a thousand; this seed is fixed
    assert kstest(distribution(density, sde, drawn), "uniform").pvalue > 1e-3


@given(sde=members(), density=st.sampled_from([*DENSITIES, Stratified(LogSNRTime()), Stratified()]))
def test_times_stay_between_the_ends(sde: SDE, density: TimeDensity) -> None:
    for u in (torch.tensor([0.0, 1e-12, 1 - 1e-8, 1.0]), torch.tensor([0.0, 1.0]).double(), torch.zeros(0)):
        t, weight = density.sample(sde, u)
        assert t.shape == weight.shape == u.shape and t.dtype == weight.dtype == torch.float64
        slack = 1e-9 * sde.T  # the ends return from log-SNR a few roundings away
        assert bool(((t >= sde.t_min - slack) & (t <= sde.T + slack) & (weight > 0)).all())


@pytest.mark.parametrize("sde", DEFAULTS, ids=name)
def test_a_narrow_density_stays_inside_where_its_tails_underflow(sde: SDE) -> None:
    """At 50 deviations the distribution function is 0 and its inverse infinite; the end is meant."""
    t = LogNormalSigma(0.0, 0.05).sample(sde, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).t
    ratio = (sde.sigma(t) / sde.alpha(t)).log()
    ends = (sde.sigma(sde.t_min) / sde.alpha(sde.t_min)).log(), (sde.sigma(sde.T) / sde.alpha(sde.T)).log()
    expected = torch.stack([ends[0], torch.zeros(()), ends[1]])
    torch.testing.assert_close(ratio, expected, rtol=1e-9, atol=1e-9)  # roundings of λ


@given(sde=members(), power=st.floats(0, 3))
def test_log_snr_times_are_unbiased(sde: SDE, power: float) -> None:
    """∫ weight(u) h(t(u)) du = 1/(T - t_min) ∫ h(t) dt, both by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    half = torch.from_numpy((nodes + 1) / 2)

    def h(t: Tensor) -> Tensor:
        return (t / sde.T) ** power + torch.cos(3 * t / sde.T)

    t, weight = LogSNRTime().sample(sde, half)
    weighted = float((torch.from_numpy(weights / 2) * weight * h(t)).sum())
    uniform = float((torch.from_numpy(weights / 2) * h(sde.t_min + (sde.T - sde.t_min) * half)).sum())
    # 400 nodes integrate h itself to 1e-8 (t^power has a kink near 0); the weights vary over e^20 in u, smoothly
    assert weighted == pytest.approx(uniform, rel=1e-6, abs=1e-6)


@given(sde=members())
def test_log_snr_times_have_the_density_of_importance_sampling(sde: SDE) -> None:
    """p(t) = (g²/σ²)/Z: here dt/du = Z σ²/g², Z the range of λ; the weight is 1/((T - t_min) p)."""
    u = U.clone().requires_grad_()
    t, weight = LogSNRTime().sample(sde, u)
    (slope,) = torch.autograd.grad(t.sum(), u)
    z = sde.log_snr(sde.t_min) - sde.log_snr(sde.T)
    expected = z * (sde.sigma(t) / sde.g(t)) ** 2
    torch.testing.assert_close(slope, expected.detach(), rtol=1e-9, atol=0.0)  # roundings magnified by dt/dλ
    torch.testing.assert_close(weight, expected / (sde.T - sde.t_min), rtol=1e-9, atol=0.0)
    assert bool((LogSNRTime(unbiased=False).sample(sde, U).weight == 1).all())
    assert all(bool((d.sample(sde, U).weight == 1).all()) for d in DENSITIES[:5])


# -- levels and strata ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_levels_are_equally_likely(n: int) -> None:
    chain = VP(0.1, 0.5).discretize(n)
    sde = VP(0.1, 0.5)
    for offset in (1e-9, 0.5, 1 - 1e-9):  # anywhere in the i-th of n cells is level i
        u = (torch.arange(n).double() + offset) / n
        # where ChainSDE, whose log-SNR is inverted by bisection, has the levels: rounding of log and exp
        torch.testing.assert_close(LevelTime(chain).sample(ChainSDE(chain), u).t, chain.times, rtol=1e-10, atol=0)
    drawn = LevelTime(chain).sample(ChainSDE(chain), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(drawn.t, chain.times[[0, -1]], rtol=1e-10, atol=0)
    assert bool((drawn.weight == 1).all())
    counts = torch.bincount(
        (LevelTime(chain).sample(sde, torch.rand(20 * n, generator=generator(2))).t * n).round().long()
    )
    # 20 expected in each of up to 1000 levels, Poisson: none outside 20 ± 20 but once in 1e3 runs; the seed is fixed
    assert counts.max() <= 40 or n == 1


@given(batch=st.integers(1, 33), seed=st.integers(0, 1000), density=st.sampled_from(DENSITIES[:5]))
def test_strata_cover_every_cell(batch: int, seed: int, density: TimeDensity) -> None:
    sde, u = RectifiedFlow(), torch.rand(batch, generator=generator(seed))
    drawn = Stratified(density).sample(sde, u)
    inside = (distribution(density, sde, drawn.t) * batch - np.arange(batch)).astype(float)
    np.testing.assert_allclose(inside, u, atol=1e-6)  # one in each cell, at u_i of the way; u is float32
    assert Stratified().density == UniformTime()


def test_strata_lower_the_variance_of_the_mean() -> None:
    sde = VP()
    plain, strata = (
        torch.stack([d.sample(sde, torch.rand(16, generator=generator(k))).t.mean() for k in range(200)])
        for d in (UniformTime(), Stratified(UniformTime()))
    )
    # B cells of width 1/B leave the variance of the mean at 1/B² of independent draws: 1/256
    assert strata.var() < plain.var() / 100
    assert strata.mean().item() == pytest.approx(0.5005, abs=5 * 0.29 / 16 / math.sqrt(16 * 200))  # five deviations


def test_strata_of_weighted_times_keep_the_weights() -> None:
    u = torch.rand(8, generator=generator(0))
    cells = (torch.arange(8) + u.double()) / 8
    for ours, theirs in zip(Stratified(LogSNRTime()).sample(VE(), u), LogSNRTime().sample(VE(), cells), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_times_under_other_sdes() -> None:
    """A chain's SDE has no closed inverse; a derived one is bisected."""
    sde = ChainSDE(VP().discretize(50))
    for density in DENSITIES:
        t = density.sample(sde, U).t
        np.testing.assert_allclose(distribution(density, sde, t), U, rtol=0, atol=1e-9)  # as above


def test_karras_et_al_train_at_these_noise_levels() -> None:
    """log σ ~ N(-1.2, 1.2²) for EDM, whose [0.002, 80] cuts off 1e-5 of it."""
    sigma = EDM().sigma(LogNormalSigma().sample(EDM(), torch.tensor([0.1587, 0.5, 0.8413])).t)
    assert sigma.log().tolist() == pytest.approx([-2.4, -1.2, 0.0], abs=1e-3)  # 0.1587: Φ(-1) to four digits


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogNormalSigma(std=0.0), "std must be positive"),
        (lambda: LogNormalSigma(std=math.nan), "std must be a number"),
        (lambda: LogitNormalTime(std=-1.0), "std must be positive"),
        (lambda: LogitNormalTime(mean=math.nan), "mean must be a number"),
        (lambda: LogitNormalTime(mean=math.inf), "mean must be finite"),
    ],
)
def test_bad_parameters(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("density", [*DENSITIES, LevelTime(VP().discretize(30)), Stratified()], ids=repr)
def test_bad_uniforms(density: TimeDensity) -> None:
    for bad in (torch.tensor([1.5]), torch.tensor([-0.1]), torch.tensor([0.5, math.nan])):
        with pytest.raises(ValueError, match=r"u must lie in \[0, 1\]"):
            density.sample(VP(), bad)
    for shape in ((), (3, 1)):
        with pytest.raises(ValueError, match=r"u must be uniforms \(B,\)"):
            density.sample(VP(), torch.zeros(shape))
    with pytest.raises(TypeError, match="u must be a tensor"):
        density.sample(VP(), [0.5])  # type: ignore[arg-type]


@pytest.mark.parametrize("density", DENSITIES, ids=repr)
def test_no_time_where_there_is_no_noise(density: TimeDensity) -> None:
    with pytest.raises(ValueError, match="t_min > 0"):
        density.sample(VP(t_min=0.0), U)
    density.sample(VE(t_min=0.0), U)  # σ(0) = σ_min


@pytest.mark.parametrize("density", [*DENSITIES, Stratified(), LevelTime(rescaled_ddpm(30))], ids=repr)
@pytest.mark.parametrize("sde", ZERO_TERMINAL.values(), ids=ZERO_TERMINAL)
def test_times_up_to_where_no_signal_is_left(sde: SDE, density: TimeDensity) -> None:
    """Every density but that of a uniform log-SNR, which has no end there even if rounding leaves some α."""
    u = torch.cat([U, torch.ones(1, dtype=torch.float64)])
    if isinstance(density, LogSNRTime):
        with pytest.raises(ValueError, match=r"α\(T = 1\) = 0.*UniformTime"):
            density.sample(sde, u)
        return
    t, weight = density.sample(sde, u)
    assert bool(((t >= sde.t_min) & (t <= sde.T) & (weight == 1)).all())
    assert t[-1].item() == pytest.approx(sde.T, rel=1e-12)
    if isinstance(density, (UniformTime, LogNormalSigma, LogitNormalTime)):
        np.testing.assert_allclose(distribution(density, sde, t[:-1]), U, rtol=0, atol=1e-9)  # as above


@pytest.mark.parametrize("mean", [50.0, -50.0])
def test_a_density_without_mass_on_the_sde(mean: float) -> None:
    """Its truncation would put every time at one end."""
    with pytest.raises(ValueError, match="no mass between"):
        LogNormalSigma(mean, 1.0).sample(VP(), U)


def test_levels_are_met_under_any_sde() -> None:
    """The time drawn for level i is where σ/α is that of the level, unless that lies beyond the SDE's ends."""
    chain = VP().discretize(1000)
    level = torch.arange(1, 1001)
    u = (level - 0.5).double() / 1000
    for sde in (VP(), EDM(), VE(), ChainSDE(chain)):
        t = LevelTime(chain).sample(sde, u).t
        ends = (-0.5 * sde.log_snr(torch.tensor([0.0, sde.T], dtype=torch.float64))).exp()
        expected = (chain.sigma / chain.alpha).clamp(*ends.tolist())
        got = sde.sigma(t) / sde.alpha(t)
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=0)  # bisection, and e^λ magnifies its rounding
        inside = (chain.sigma / chain.alpha < ends[1]) & (chain.sigma / chain.alpha > ends[0])
        assert int(inside.sum()) > 900 if not isinstance(sde, VE) else int(inside.sum()) > 700
