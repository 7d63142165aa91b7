"""Discrete chains: DDPM's and SMLD's to the letter, their limits, and the SDE through a chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DEFAULTS, name, normal, rescaled_ddpm
from torch import Tensor

from scoresde.noise import IndependentNoise
from scoresde.problems import Gaussian
from scoresde.reverse import Reverse
from scoresde.sde import EDM, SDE, VE, VP, Chain, ChainSDE, Cosine, SubVP
from scoresde.solvers import Ancestral

EPS = torch.finfo(torch.float64).eps


def textbook_ddpm(n: int = 1000, low: float = 1e-4, high: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """β and ᾱ as Ho et al. 2020, section 4 define them, in numpy."""
    beta = np.linspace(low, high, n)
    return beta, np.cumprod(1 - beta)


# -- DDPM and SMLD -------------------------------------------------------------------------------------------------


def test_vp_discretises_to_ddpm() -> None:
    chain = VP(0.1, 20.0).discretize(1000)
    beta, bar = textbook_ddpm()
    assert chain.n == 1000
    np.testing.assert_allclose(chain.beta, beta, rtol=4 * EPS)  # the same line by another order of operations
    assert (chain.beta[0].item(), chain.beta[-1].item()) == pytest.approx((1e-4, 0.02), rel=EPS, abs=0.0)
    np.testing.assert_allclose(chain.alpha_bar, bar, rtol=3000 * EPS)  # a product of 1000 factors
    np.testing.assert_allclose(chain.alpha_bar, chain.alpha**2, rtol=0)
    np.testing.assert_allclose(chain.sigma, np.sqrt(1 - bar), rtol=1e-9)  # 1 - ᾱ_1 = 1e-4 loses 4 digits here
    np.testing.assert_allclose(chain.times, np.arange(1, 1001) / 1000, rtol=EPS)


def test_ddpm_posterior_is_the_papers() -> None:
    """β̃_t and μ̃_t, Ho et al. 2020, eq. 7."""
    chain = VP(0.1, 20.0).discretize(1000)
    beta, bar = textbook_ddpm()
    before = np.append(1.0, bar[:-1])
    tilde = (1 - before) / (1 - bar) * beta
    np.testing.assert_allclose(chain.posterior_variance, tilde, rtol=1e-9)  # 1 - ᾱ loses 4 digits in this form
    x0, x_t = normal(5, 3), normal(5, 3, seed=1)
    level = torch.tensor([1, 2, 17, 500, 1000])
    i = level.numpy() - 1
    mean = (np.sqrt(before[i]) * beta[i] / (1 - bar[i]))[:, None] * x0.numpy() + (
        np.sqrt(1 - beta[i]) * (1 - before[i]) / (1 - bar[i])
    )[:, None] * x_t.numpy()
    got = chain.posterior_mean(x0, x_t, level)
    np.testing.assert_allclose(got, mean, rtol=1e-9, atol=1e-11)  # the same loss
    for row, one in enumerate(level.tolist()):  # one level for all = per sample
        torch.testing.assert_close(chain.posterior_mean(x0, x_t, one)[row], got[row], rtol=EPS, atol=1e-16)
    assert chain.posterior_mean(x0.float(), x_t.float(), level).dtype == torch.float32
    torch.testing.assert_close(chain.time(level), level / 1000.0, rtol=1e-7, atol=0.0, check_dtype=False)


@pytest.mark.parametrize("n", [2, 10, 50])
def test_ve_discretises_to_smld(n: int) -> None:
    ve = VE(0.01, 50.0, T=2.0)
    chain = ve.discretize(n)
    expected = np.geomspace(0.01, 50.0, n)  # Song et al. 2021, below eq. 8
    np.testing.assert_allclose(chain.sigma, expected, rtol=1e-13)  # sums of n squares, exponents up to 8.5
    np.testing.assert_allclose(chain.alpha, 1.0, rtol=0)
    np.testing.assert_allclose(chain.variance, np.diff(np.append(0.0, expected**2)), rtol=1e-12)  # the same
    assert chain.times[-1].item() == 2.0
    with pytest.raises(ValueError, match="from 2 to"):
        ve.discretize(1)


@pytest.mark.parametrize("sde", [SubVP(), EDM(), Cosine(), VP(0.1, 0.2)], ids=name)
def test_other_chains_are_exact_at_their_levels(sde: SDE) -> None:
    chain = SDE.discretize(sde, 20)
    # cumulative products and sums of 20 terms, each a difference of squares
    torch.testing.assert_close(chain.alpha, sde.alpha(chain.times), rtol=1e-13, atol=0.0)
    torch.testing.assert_close(chain.sigma, sde.sigma(chain.times), rtol=1e-12, atol=0.0)
    ratio, variance = sde.transition_coefficients(chain.times[:-1], chain.times[1:])
    torch.testing.assert_close(chain.ratio[1:], ratio, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(chain.variance[1:], variance, rtol=1e-12, atol=0.0)
    x0, x_t = normal(19, 2), normal(19, 2, seed=1)
    mean, std = sde.posterior(x0, x_t, chain.times[:-1], chain.times[1:])
    torch.testing.assert_close(chain.posterior_mean(x0, x_t, torch.arange(2, 21)), mean, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(chain.posterior_variance[1:], std[:, 0] ** 2, rtol=1e-11, atol=0.0)
    assert type(sde) is VP or type(sde).discretize is SDE.discretize


@pytest.mark.parametrize("sde", [VP(), VP(0.5, 12.0, T=1.3), VE(), VE(0.05, 20.0, T=0.7)], ids=repr)
def test_chains_converge_to_the_sde_at_first_order(sde: SDE) -> None:
    counts = [250, 500, 1000, 2000]
    errors = []
    for n in counts:
        chain = sde.discretize(n)
        late = chain.times > 0.2 * sde.T  # a fixed range of times, away from the first level, where σ ~ sqrt(1/n)
        t = chain.times[late]
        off = (chain.alpha[late] / sde.alpha(t)).log().abs() + (chain.sigma[late] / sde.sigma(t)).log().abs()
        errors.append(off.max().item())
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    # error c/n + O(1/n²): at n = 250 the second term still bends the slope by some c/250, c <= 20
    assert slope == pytest.approx(-1.0, abs=0.1)
    # one step per level: chain_i over [t_{i-1}, t_i] has drift f and rate g² of the SDE there
    chain = sde.discretize(2000)
    step, middle = sde.T / 2000, chain.times[1:] - 0.5 * sde.T / 2000
    # relative O(β/n) = 0.02, and β rises by 20/n = 0.01 from level to level
    torch.testing.assert_close((chain.ratio[1:] - 1) / step, sde.f(middle), rtol=0.02, atol=0.01)
    torch.testing.assert_close(chain.variance[1:] / step, sde.g(middle) ** 2, rtol=0.02, atol=0.01)


# -- the SDE through a chain ---------------------------------------------------------------------------------------

CHAINS: dict[str, Callable[[], Chain]] = {
    "DDPM": lambda: VP().discretize(100),
    "SMLD": lambda: VE().discretize(10),
    "EDM": lambda: EDM().discretize(7),
    "uneven": lambda: Chain(torch.tensor([0.1, 0.5, 0.6, 4.0]), torch.tensor([1.0, 0.3, 0.9, 1.1]), torch.ones(4)),
}


ENDLESS: dict[str, Callable[[], Chain]] = {
    "zero terminal SNR": lambda: rescaled_ddpm(100),
    "one level": lambda: Chain(torch.tensor([2.0]), torch.zeros(1), torch.tensor([0.7])),
    "two levels": lambda: Chain(torch.tensor([0.5, 2.0]), torch.tensor([1.3, 0.0]), torch.tensor([0.7, 1.9])),
    # what rounding leaves of a last ratio of 0
    "rounded": lambda: Chain(torch.tensor([0.5, 2.0]), torch.tensor([0.8, 6e-17]), torch.tensor([0.7, 1.9])),
}
"""Chains that end without signal."""


@pytest.mark.parametrize("make", {**CHAINS, **ENDLESS}.values(), ids=[*CHAINS, *ENDLESS])
def test_sde_through_a_chain_is_the_chain_at_its_levels(make: Callable[[], Chain]) -> None:
    chain = make()
    sde, t = ChainSDE(chain), chain.times
    assert (sde.T, sde.t_min) == (t[-1].item(), t[0].item() if chain.n > 1 else 0.0)
    # log and exp of α, and of σ²/α² < 1e9 by interpolation: roundings, of 1 where α = 0
    torch.testing.assert_close(sde.alpha(t), chain.alpha, rtol=1e-14, atol=1e-16)
    torch.testing.assert_close(sde.sigma(t), chain.sigma, rtol=1e-14, atol=0.0)
    ratio, variance = sde.transition_coefficients(t[:-1], t[1:])
    torch.testing.assert_close(ratio, chain.ratio[1:], rtol=1e-13, atol=1e-16)
    # σ_i² - r² σ_{i-1}² cancels down to the variance that one level adds
    torch.testing.assert_close(variance, chain.variance[1:], rtol=0.0, atol=1e-13 * chain.sigma.max().item() ** 2)
    n = chain.n - 1
    x0, x_t = normal(n, 2), normal(n, 2, seed=1)
    mean, std = sde.posterior(x0, x_t, t[:-1], t[1:])
    expected = chain.posterior_mean(x0, x_t, torch.arange(2, chain.n + 1))
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-10)  # the same cancellation, relative 1e-11
    torch.testing.assert_close(std[:, 0] ** 2, chain.posterior_variance[1:], rtol=1e-9, atol=0.0)
    torch.testing.assert_close(sde.t_of_log_snr(sde.log_snr(t)), t, rtol=1e-10, atol=0.0)  # dt/dλ times roundings


@given(part=st.floats(0.01, 0.99), level=st.integers(2, 20))
def test_between_levels_the_logarithm_of_alpha_and_the_noise_ratio_are_linear(part: float, level: int) -> None:
    chain = VP(0.1, 8.0).discretize(20)
    sde = ChainSDE(chain)
    low, high = chain.times[level - 2], chain.times[level - 1]
    t = low + part * (high - low)
    for function in (lambda t: sde.alpha(t).log(), lambda t: (sde.sigma(t) / sde.alpha(t)) ** 2):
        expected = (1 - part) * function(low) + part * function(high)
        torch.testing.assert_close(function(t), expected, rtol=1e-12, atol=1e-14)  # roundings
    width = (high - low).item()
    rise = chain.ratio[level - 1].log().item()
    assert sde.f(t).item() == pytest.approx(rise / width, rel=1e-9)  # the slope, by differences of log α
    noise = (chain.sigma / chain.alpha) ** 2
    growth = (noise[level - 1] - noise[level - 2]).item() / width
    assert sde.g(t).item() == pytest.approx(sde.alpha(t).item() * math.sqrt(growth), rel=1e-9)


@pytest.mark.parametrize("make", CHAINS.values(), ids=CHAINS)
def test_coefficients_at_a_level_are_those_of_the_step_that_ends_there(make: Callable[[], Chain]) -> None:
    """A reverse step from level i to i - 1 takes its drift and rate at i."""
    chain = make()
    sde, t = ChainSDE(chain), chain.times
    width = torch.cat([t[:1], t.diff()])
    noise = (chain.sigma / chain.alpha) ** 2
    growth = torch.cat([noise[:1], noise.diff()]) / width
    torch.testing.assert_close(sde.f(t), chain.ratio.log() / width, rtol=1e-9, atol=1e-12)  # differences of log α
    torch.testing.assert_close(sde.g(t), chain.alpha * growth.sqrt(), rtol=1e-9, atol=0.0)
    assert sde.f(0.0).item() == pytest.approx(chain.ratio[0].log().item() / t[0].item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("make", ENDLESS.values(), ids=ENDLESS)
def test_the_way_to_a_level_without_signal(make: Callable[[], Chain]) -> None:
    """x_u = (1 - ρ) x + sqrt(1 - (1 - ρ)²) sqrt(v_n) z, ρ linear in t: continuous, of rising noise, differentiable."""
    chain = make()
    sde = ChainSDE(chain)
    before = chain.times[-2] if chain.n > 1 else torch.zeros((), dtype=torch.float64)
    alpha, sigma = (value[-1] for value in chain.before)
    rho = torch.linspace(0, 1, 33, dtype=torch.float64)
    t = before + rho * (sde.T - before)
    torch.testing.assert_close(sde.alpha(t), (1 - rho) * alpha, rtol=1e-14, atol=1e-15)
    variance = ((1 - rho) * sigma) ** 2 + (1 - (1 - rho) ** 2) * chain.variance[-1]
    torch.testing.assert_close(sde.sigma(t) ** 2, variance, rtol=1e-13, atol=1e-15)
    assert bool((sde.sigma(t[:-1]) / sde.alpha(t[:-1])).diff().gt(0).all())
    assert sde.log_snr(sde.T).item() == -math.inf and sde.t_of_log_snr(-math.inf).item() == pytest.approx(sde.T)
    with pytest.raises(ValueError, match="f has no finite value"):
        sde.f(sde.T)
    for key in ("alpha", "sigma"):
        times = t[1:].clone().requires_grad_()  # the last is T, where a grid begins
        (slope,) = torch.autograd.grad(getattr(sde, key)(times).sum(), times)
        short = 1e-6 * sde.T
        lower, upper = (getattr(sde, key)(t[1:-1] + sign * short) for sign in (-1, 1))
        torch.testing.assert_close(slope[:-1], (upper - lower) / (2 * short), rtol=1e-6, atol=1e-6)  # O(short²)
        end = (getattr(sde, key)(t[-1]) - getattr(sde, key)(t[-1] - short)) / short
        torch.testing.assert_close(slope[-1], end, rtol=1e-4, atol=1e-5)  # one-sided: O(short)


def test_gradients_at_the_last_time_of_an_ordinary_chain() -> None:
    """A grid that is differentiated begins at T."""
    t = torch.tensor([0.3, 1.0], dtype=torch.float64, requires_grad=True)
    sde = ChainSDE(VP().discretize(100))
    for key in ("alpha", "sigma", "log_snr"):
        assert torch.autograd.gradcheck(getattr(sde, key), (t.detach().mul(0.999).requires_grad_(),))
        (slope,) = torch.autograd.grad(getattr(sde, key)(t).sum(), t)
        assert bool((slope.isfinite() & (slope != 0)).all())


def test_ancestral_sampling_from_zero_terminal_snr_is_the_textbooks() -> None:
    """Lin et al. 2024, arXiv:2305.08891: the chain's posterior at its last level, whose mean is α_{n-1} x̂_0."""
    chain = rescaled_ddpm(100)
    assert (chain.ratio[-1].item(), chain.alpha[-1].item(), chain.sigma[-1].item()) == (0.0, 0.0, 1.0)
    sde, problem = ChainSDE(chain), Gaussian(torch.tensor([0.5, -1.0]).double(), 0.3)
    score, x = problem.score(sde), normal(4, 2)
    torch.testing.assert_close(score.denoise(x, sde.T), problem.means.expand(4, 2), rtol=1e-12, atol=1e-14)
    solution = Ancestral().solve(Reverse(score, 1.0), x, chain.times.flip(0)[:2], IndependentNoise(0))
    z = IndependentNoise(0).between(x, chain.times[-1], chain.times[-2])
    mean = chain.posterior_mean(score.denoise(x, sde.T), x, chain.n)
    torch.testing.assert_close(solution.x, mean + chain.posterior_variance[-1].sqrt() * z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mean, chain.alpha[-2] * problem.means.expand(4, 2), rtol=1e-12, atol=1e-14)


def test_a_chain_of_ones_own_in_float32() -> None:
    """Kept in float64: a thousand float32 factors would leave ᾱ with four digits."""
    beta = torch.linspace(1e-4, 0.02, 1000)
    chain = Chain(torch.arange(1, 1001) / 1000, (1 - beta.double()).sqrt(), beta)
    sde = ChainSDE(chain)
    assert chain.alpha.dtype == chain.times.dtype == torch.float64
    bar = np.cumprod(1 - beta.double().numpy())
    np.testing.assert_allclose(chain.alpha_bar, bar, rtol=3000 * EPS)  # a product of 1000 factors
    t = torch.tensor([0.25, 1.0])
    assert sde.alpha(t).dtype == torch.float32
    x = normal(2, 3)
    assert bool(sde.marginal(x, t)[0].isfinite().all())


def test_a_chain_carries_gradients() -> None:
    top = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    sde = ChainSDE(VP(beta_max=top).discretize(100))  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(
        lambda b: ChainSDE(VP(beta_max=b).discretize(100)).sigma(torch.tensor([0.333, 1.0]).double()),
        (top,),
    )
    assert sde.alpha(0.5).requires_grad


BAD_CHAINS: list[tuple[Any, Any, Any, str]] = [
    (torch.arange(1, 4), torch.ones(2), torch.ones(3), "one shape"),
    (torch.ones(0), torch.ones(0), torch.ones(0), "one shape"),
    (torch.ones(3, 1), torch.ones(3, 1), torch.ones(3, 1), "one shape"),
    (torch.tensor([1.0, 1.0]), torch.ones(2), torch.ones(2), "must increase"),
    (torch.tensor([2.0, 1.0]), torch.ones(2), torch.ones(2), "must increase"),
    (torch.arange(1, 3), torch.tensor([1.0, -1.0]), torch.ones(2), "ratio > 0"),
    (torch.arange(1, 3), torch.tensor([0.0, 1.0]), torch.ones(2), "ratio > 0"),  # only the last may be 0
    (torch.arange(1, 3), torch.tensor([0.0, 0.0]), torch.ones(2), "ratio > 0"),
    (torch.arange(1, 3), torch.ones(2), torch.tensor([1.0, -0.1]), "variance >= 0"),
    (
        torch.arange(1, 3),
        torch.tensor([1.0, math.nan]),
        torch.ones(2),
        "ratio must be finite, but holds 1 values that are NaN",
    ),
    (torch.arange(1, 3), torch.ones(2), torch.tensor([1.0, math.inf]), "variance must be finite, but holds 1 values"),
]


@pytest.mark.parametrize(("times", "ratio", "variance", "message"), BAD_CHAINS)
def test_bad_chains(times: Tensor, ratio: Tensor, variance: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Chain(times, ratio, variance)


def test_chains_no_sde_runs_through() -> None:
    for times, variance in [(torch.tensor([0.0, 1.0]), torch.ones(2)), (torch.arange(1, 3), torch.tensor([1.0, 0.0]))]:
        with pytest.raises(ValueError, match="positive times and a positive variance"):
            ChainSDE(Chain(times, torch.ones(2), variance))


def test_bad_levels() -> None:
    chain, x = VP().discretize(100), normal(2, 3)
    for bad in (0, -1, 101, 1.5, torch.tensor([1, 101]), torch.tensor([1.0, 2.0])):
        with pytest.raises((TypeError, ValueError), match=r"whole numbers? from 1 to 100"):
            chain.time(bad)  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError), match=r"whole numbers? from 1 to 100"):
            chain.posterior_mean(x, x, bad)  # type: ignore[arg-type]
    for sde in DEFAULTS:
        for bad in (0, -3, 2.0, True, None):
            with pytest.raises((TypeError, ValueError), match="number of a chain's levels, must be a whole number"):
                sde.discretize(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"β_n = 2 is not below 1: this schedule needs n >= 21, got 10"):
        VP().discretize(10)
    assert VP().discretize(21).n == 21  # the message's own advice


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_levels_may_live_on_another_device() -> None:
    chain, level = VP().discretize(10), torch.tensor([1, 5, 10])
    x0, x_i = normal(3, 2), normal(3, 2, seed=1)
    assert torch.equal(chain.time(level.cuda()), chain.time(level))
    got = chain.posterior_mean(x0.cuda(), x_i.cuda(), level.cuda())
    torch.testing.assert_close(got.cpu(), chain.posterior_mean(x0, x_i, level))  # rounding of another device


@pytest.mark.parametrize("fades", [False, True])
def test_the_inverse_of_log_snr_is_that_of_the_search(fades: bool) -> None:
    """Levels, between them, on the way to a level without signal, and the gradient; beyond any signal it is T."""
    plain = VP(beta_max=12.0).discretize(40)
    ratio, variance = plain.ratio.clone(), plain.variance.clone()
    if fades:
        ratio[-1], variance[-1] = 0.0, 1.0
    sde = ChainSDE(Chain(times=plain.times, ratio=ratio, variance=variance))
    times = torch.cat([plain.times, torch.linspace(1e-4, sde.T, 301, dtype=torch.float64)])
    levels = sde.log_snr(times)[: None if not fades else -1].requires_grad_()
    found, searched = sde.t_of_log_snr(levels), SDE.t_of_log_snr(sde, levels)
    torch.testing.assert_close(found, searched, rtol=1e-12, atol=1e-14)  # spacing of float64
    # off the kinks, where the slope is not unique
    inside = (levels.detach()[:, None] - sde.log_snr(plain.times)).abs().min(1).values > 1e-6
    slopes = [torch.autograd.grad(value.sum(), levels)[0][inside] for value in (found, searched)]
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=0)
    assert sde.t_of_log_snr(levels.detach().float()).dtype == torch.float32
    assert not fades or (sde.t_of_log_snr(-math.inf) == sde.T and abs(sde.t_of_log_snr(-60.0) / sde.T - 1) < 1e-12)


@pytest.mark.parametrize("n", [1, 2])
def test_the_ends_of_a_short_chain_without_signal(n: int) -> None:
    last = torch.tensor([0.9, 0.0][-n:], dtype=torch.float64), torch.tensor([0.19, 1.0][-n:], dtype=torch.float64)
    sde = ChainSDE(Chain(times=torch.tensor([0.5, 1.0][-n:], dtype=torch.float64), ratio=last[0], variance=last[1]))
    levels = torch.tensor([math.inf, 2.0, -800.0, -math.inf], dtype=torch.float64, requires_grad=True)
    found = sde.t_of_log_snr(levels)
    assert found[0] == 0 and found[2] == found[3] == sde.T
    torch.testing.assert_close(sde.log_snr(found[1]), levels[1], rtol=1e-12, atol=0)
    (slopes,) = torch.autograd.grad(found.sum(), levels)
    assert bool(slopes.isfinite().all()) and slopes[1] < 0


# -- chains of betas, in a line, and without kinks -------------------------------------------------------------------


@pytest.mark.parametrize("betas", [torch.linspace(1e-4, 0.02, 1000), [0.1, 0.5, 0.3], np.array([0.2]), [0.3, 1.0]])
def test_a_chain_of_betas_is_ddpms(betas: Any) -> None:
    chain = Chain.from_betas(betas)
    beta = np.asarray(betas, dtype=np.float64)
    np.testing.assert_allclose(chain.beta, beta, rtol=0)
    np.testing.assert_allclose(chain.alpha_bar, np.cumprod(1 - beta), rtol=4 * len(beta) * EPS)  # so many roundings
    # variance preserving; the sum in it has as many terms
    np.testing.assert_allclose(chain.alpha_bar + chain.sigma**2, 1.0, rtol=0, atol=4 * len(beta) * EPS)
    np.testing.assert_allclose(chain.times, np.arange(1, len(beta) + 1) / len(beta), rtol=EPS)
    assert Chain.from_betas([0.1, 0.2], times=[1.0, 3.0]).times.tolist() == [1.0, 3.0]
    assert ChainSDE(chain).T == 1.0


def test_betas_that_are_none() -> None:
    cumulative = VP().discretize(30).alpha_bar
    for bad in (
        [0.0, 0.1],
        [0.1, -0.1],
        [1.0, 0.5],
        [0.5, 1.5],
        [],
        0.3,
        [[0.1, 0.2]],
        [0.1, math.nan],
        "linear",
        cumulative,
    ):
        with pytest.raises((TypeError, ValueError), match="betas"):
            Chain.from_betas(bad)
    with pytest.raises(ValueError, match="times"):
        Chain.from_betas([0.1, 0.2], times=[1.0])  # type: ignore[arg-type]
    assert Chain.from_betas([0.9, 0.1]).n == 2


def test_a_chain_is_told_in_a_line() -> None:
    sde = ChainSDE(VP().discretize(1000))
    # σ/α of the textbook's first and last level
    assert repr(sde) == "ChainSDE(Chain(n=1000, times=0.001...1, sigma/alpha=0.01...157.4))"
    assert "inf" in repr(ChainSDE(rescaled_ddpm(30)))


@pytest.mark.parametrize("make", {**CHAINS, **ENDLESS}.values(), ids=[*CHAINS, *ENDLESS])
def test_the_smooth_sde_has_the_same_range_of_noise(make: Callable[[], Chain]) -> None:
    sde = ChainSDE(make())
    smooth = sde.smooth()
    if sde.t_min == 0:  # a chain of one level starts without noise: it is followed as it is
        assert smooth is sde
        return
    for mine, other in ((sde.t_min, smooth.t_min), (sde.T, smooth.T)):
        # σ/(α + σ) is the other's time, and its σ/α is t/(1 - t): a rounding of t counts for 1/(1 - t) times as much
        share = sde.sigma(mine) / (sde.alpha(mine) + sde.sigma(mine))
        torch.testing.assert_close(share.item(), other, rtol=4 * EPS, atol=0.0)
    assert VP().smooth() == VP()  # what has no kinks stays


def test_gradients_by_the_levels_need_the_chain_itself() -> None:
    beta = torch.full((10,), 0.3, dtype=torch.float64, requires_grad=True)
    sde = ChainSDE(Chain.from_betas(beta))
    assert sde.smooth() is sde
