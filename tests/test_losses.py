"""Denoising score matching: its minimiser, its special cases in the papers, its weightings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DEFAULTS, DTYPES, EVENTS, ZERO_TERMINAL, draw_times, members, name, normal, rescaled_ddpm
from torch import Tensor, nn

import scoresde.checks
from scoresde import losses
from scoresde.losses import WEIGHTINGS, Weighting, dsm_loss
from scoresde.models import PREDICTIONS, ScoreModel
from scoresde.problems import Gaussian
from scoresde.sde import EDM, SDE, VE, VP, ChainSDE, Cosine, RectifiedFlow
from scoresde.times import LevelTime

EPS = torch.finfo(torch.float64).eps


def net(x: Tensor, c: Tensor) -> Tensor:
    """Some smooth function of both arguments, as good as a network here."""
    c = c.reshape(-1, *[1] * (x.ndim - 1))
    return torch.tanh(x + 0.3 * c) - 0.1 * x.flip(-1) + 0.2 * c if x.ndim > 1 else torch.tanh(x + 0.3 * c)


# -- the definition ------------------------------------------------------------------------------------------------


@given(
    sde=members(),
    key=st.sampled_from(sorted(WEIGHTINGS)),
    predicts=st.sampled_from(sorted(PREDICTIONS)),
    data=st.data(),
)
def test_loss_is_the_weighted_error_of_the_score(sde: SDE, key: str, predicts: str, data: Any) -> None:
    """w |s_θ(x_t, t) - ∇ log p(x_t | x_0)|², summed over the event, by autograd from the conditional density."""
    batch, event, dtype = 3, data.draw(EVENTS), torch.float64
    x0, eps = normal(batch, *event, dtype=dtype), normal(batch, *event, seed=1, dtype=dtype)
    t = draw_times(data, sde, batch)
    model = ScoreModel(net, sde, predicts)
    mean, std = sde.marginal(x0, t)
    x = (mean + std * eps).requires_grad_()
    log_prob = -0.5 * ((x - mean) / std).square().sum()
    (target,) = torch.autograd.grad(log_prob, x)
    weight = losses.edm(0.5)(sde, t) if key == "edm" else WEIGHTINGS[key](sde, t)
    expected = weight * (model(x, t) - target).detach().square().reshape(batch, -1).sum(1)
    got = dsm_loss(model, x0, t, eps, key)
    assert got.shape == (batch,) and got.dtype == dtype
    # x - mean loses log10(|mean|/σ) digits of ε, at most 5 for these SDEs; prediction "x0" likewise
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-12 * expected.max().item())


@given(sde=members(), event=EVENTS, dtype=DTYPES, data=st.data())
def test_one_time_for_all_is_the_same_for_each(sde: SDE, event: tuple[int, ...], dtype: torch.dtype, data: Any) -> None:
    x0, eps = normal(4, *event, dtype=dtype), normal(4, *event, seed=1, dtype=dtype)
    t = draw_times(data, sde, 1)[0]
    model = ScoreModel(net, sde, "v")
    for weighting in ("simple", "likelihood"):
        one, each = (dsm_loss(model, x0, time, eps, weighting) for time in (t, t.expand(4)))
        assert one.shape == each.shape == (4,) and one.dtype == each.dtype == dtype
        # each coefficient is rounded to x's dtype where it is per sample; σ/α up to 400 multiplies that
        torch.testing.assert_close(one, each, rtol=1e4 * torch.finfo(dtype).eps, atol=1e-30)
        assert torch.equal(dsm_loss(model, x0, float(t), eps, weighting), one)
    assert dsm_loss(model, x0[:0], t, eps[:0]).shape == dsm_loss(model, x0[:0], t.expand(0), eps[:0]).shape == (0,)


def test_gradients_reach_parameters_data_times_and_the_sde() -> None:
    top = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.2, 0.7], dtype=torch.float64, requires_grad=True)
    x0, eps = normal(2, 3).requires_grad_(), normal(2, 3, seed=1).requires_grad_()
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def loss(top: Tensor, t: Tensor, x0: Tensor, eps: Tensor, a: Tensor) -> Tensor:
        model = ScoreModel(lambda x, c: a * torch.tanh(x + c[:, None]), VP(beta_max=top), "v")  # type: ignore[arg-type]
        return dsm_loss(model, x0, t, eps, "likelihood")

    assert torch.autograd.gradcheck(loss, (top, t, x0, eps, a))  # gradcheck's own tolerances


def test_conditions_reach_the_network() -> None:
    seen: dict[str, Any] = {}

    def conditional(x: Tensor, c: Tensor, label: Tensor, scale: float) -> Tensor:
        seen.update(label=label, scale=scale)
        return x * scale

    label, x0 = torch.tensor([1, 0]), normal(2, 3)
    model = ScoreModel(conditional, VP())
    assert not torch.equal(
        dsm_loss(model, x0, 0.5, x0, conditions={"label": label, "scale": 2.0}),
        dsm_loss(model, x0, 0.5, x0, conditions={"label": label, "scale": 3.0}),
    )
    assert seen["label"] is label and seen["scale"] == 3.0
    with pytest.raises(TypeError):
        dsm_loss(model, x0, 0.5, x0, conditions={"lable": label, "scale": 2.0})  # misspelt


# -- the minimiser -------------------------------------------------------------------------------------------------


def gauss_hermite(dimensions: int) -> tuple[Tensor, Tensor]:
    """Nodes (n, D) and weights (n,) that integrate polynomials of degree 5 against N(0, I) exactly."""
    x, w = np.polynomial.hermite_e.hermegauss(3)
    nodes = torch.tensor(list(itertools.product(x, repeat=dimensions)), dtype=torch.float64)
    weights = torch.tensor(list(itertools.product(w / w.sum(), repeat=dimensions)), dtype=torch.float64).prod(1)
    return nodes, weights


@pytest.mark.parametrize("sde", [*DEFAULTS, ChainSDE(VP().discretize(30))], ids=name)
@pytest.mark.parametrize("predicts", sorted(PREDICTIONS))
def test_minimiser_on_a_gaussian_is_the_exact_score(sde: SDE, predicts: str) -> None:
    """For an affine network the expected loss is quadratic: one Newton step from anywhere finds the minimiser."""
    mixing = torch.tensor([[0.8, 0.0], [0.5, 0.3]], dtype=torch.float64)
    mean = torch.tensor([0.4, -1.1], dtype=torch.float64)
    problem = Gaussian(mean, mixing @ mixing.T)
    nodes, weights = gauss_hermite(4)
    x0, eps = mean + nodes[:, :2] @ mixing.T, nodes[:, 2:]
    for t in (sde.t_min + 0.1 * (sde.T - sde.t_min), 0.6 * sde.T):
        for key in WEIGHTINGS:

            def expected_loss(theta: Tensor, t: float = t, key: str = key) -> Tensor:
                matrix, offset = theta[:4].reshape(2, 2), theta[4:]
                model = ScoreModel(lambda x, c, m=matrix, b=offset: x @ m.T + b, sde, predicts)
                return (weights * dsm_loss(model, x0, t, eps, key)).sum()

            start = torch.zeros(6, dtype=torch.float64)
            gradient = torch.func.grad(expected_loss)(start)
            hessian = torch.func.hessian(expected_loss)(start)
            scale = hessian.diag().rsqrt()  # x and 1 differ in size by up to σ = 50
            theta = -scale * torch.linalg.solve(scale[:, None] * hessian * scale, scale * gradient)
            matrix, offset = theta[:4].reshape(2, 2), theta[4:]
            best = ScoreModel(lambda x, c, m=matrix, b=offset: x @ m.T + b, sde, predicts)
            noisy = sde.alpha(t) * x0[::7] + sde.sigma(t) * eps[::7]
            exact = problem.score(sde)(noisy, torch.tensor(t, dtype=torch.float64))
            # a linear solve whose condition number reaches 1e5, then "x0" divides by σ²
            torch.testing.assert_close(best(noisy, t), exact, rtol=1e-7, atol=1e-7 * exact.abs().max().item())


def test_likelihood_weighting_is_the_rate_of_information() -> None:
    """Half the integral of the g²-weighted loss is an entropy: Song et al. 2021 (arXiv:2101.09258), theorem 3.

    For the exact score, H(x_0) = H(x_T) + ½ ∫ (E[loss] - E[g² |ε/σ|²] - 2 f d) dt, here for d = 1 and from t_min.
    """
    nodes, weights = gauss_hermite(2)
    level, step = np.polynomial.legendre.leggauss(200)
    for sde in (VP(), VE(), EDM(), RectifiedFlow(T=0.9)):
        mean, variance = 0.3, 0.6
        score = Gaussian(torch.tensor([mean]).double(), torch.tensor(variance).double()).score(sde)
        model = ScoreModel(lambda x, c, sde=sde, score=score: score(x, sde.t_of_log_snr(-2 * c)), sde, predicts="score")
        x0, eps = mean + math.sqrt(variance) * nodes[:, :1], nodes[:, 1:]
        # λ = log-SNR as the variable of integration: dt = -σ²/g² dλ
        first, last = sde.log_snr(sde.t_min).item(), sde.log_snr(sde.T).item()
        total = 0.0
        for x, w in zip(level, step, strict=True):
            t = sde.t_of_log_snr(first + (last - first) * (x + 1) / 2)
            loss = (weights * dsm_loss(model, x0, t, eps, "likelihood")).sum()
            rate = loss - (sde.g(t) / sde.sigma(t)) ** 2 - 2 * sde.f(t)
            total += float(0.5 * w * 0.5 * (first - last) * rate * (sde.sigma(t) / sde.g(t)) ** 2)
        entropy = [0.5 * math.log(float(sde.alpha(t) ** 2 * variance + sde.sigma(t) ** 2)) for t in (sde.t_min, sde.T)]
        # Gauss-Legendre of a smooth integrand: rounding
        assert entropy[0] == pytest.approx(entropy[1] + total, rel=1e-9), sde


# -- special cases -------------------------------------------------------------------------------------------------


def test_ddpm_discrete_loss() -> None:
    """Ho et al. 2020, algorithm 1, in numpy, for t = 1 .. T on its own chain."""
    beta = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - beta)
    level = torch.tensor([1, 2, 10, 500, 999, 1000])
    x0, eps = normal(6, 3), normal(6, 3, seed=1)
    chain = VP().discretize(1000)
    sde = ChainSDE(chain)
    model = ScoreModel(net, sde, predicts="noise")
    u = (level - 0.5).double() / 1000
    times = LevelTime(chain).sample(sde, u)
    torch.testing.assert_close(times.t, chain.time(level), rtol=1e-10, atol=0)  # bisection, and rounding

    kept = torch.from_numpy(bar)[level - 1][:, None]
    x_t = kept.sqrt() * x0 + (1 - kept).sqrt() * eps
    c = 0.5 * ((1 - kept) / kept).log()[:, 0]  # what the network is told of t
    textbook = (eps - net(x_t, c)).square().sum(1)
    got = times.weight * dsm_loss(model, x0, times.t, eps)
    torch.testing.assert_close(got, textbook, rtol=1e-9, atol=0.0)  # 1 - ᾱ_1 = 1e-4 loses 4 digits in the textbook
    # its variational bound, eq. 12 with σ_t² = β_t, is a weighting like any other
    bound = beta**2 / (2 * beta * (1 - beta) * (1 - bar))
    ratio = torch.from_numpy(bound)[level - 1]
    vlb = dsm_loss(model, x0, times.t, eps, lambda sde, t: ratio * sde.sigma(t) ** 2)
    torch.testing.assert_close(vlb, ratio * textbook, rtol=1e-9, atol=0.0)


def test_ncsn_sum_over_noise_levels() -> None:
    """Song & Ermon 2019, eq. 5-6: 1/L Σ_i σ_i² ½ E|s(x̃, σ_i) + (x̃ - x)/σ_i²|²."""
    ve = VE(0.01, 50.0)
    chain = ve.discretize(10)
    sigmas = np.geomspace(0.01, 50.0, 10)
    x, z = normal(4, 3), normal(4, 3, seed=1)

    def score(x: Tensor, sigma: float) -> Tensor:
        return torch.tanh(x) / (1 + sigma)

    textbook = torch.zeros(4, dtype=torch.float64)
    for sigma in sigmas:
        noisy = x + sigma * z
        error = score(noisy, sigma) + (noisy - x) / sigma**2
        textbook += sigma**2 * 0.5 * error.square().sum(1) / len(sigmas)

    # log(σ/α) is what the network sees, and SMLD's levels are the times of the chain
    sde = ChainSDE(chain)
    model = ScoreModel(lambda x, c: torch.tanh(x) / (1 + c.exp()[:, None]), sde, predicts="score")
    times = LevelTime(chain).sample(sde, (torch.arange(10) + 0.5) / 10)
    ours = sum(0.5 * w * dsm_loss(model, x, t, z, losses.ncsn) / 10 for t, w in zip(*times, strict=True))
    assert isinstance(ours, Tensor)
    torch.testing.assert_close(ours, textbook, rtol=1e-9, atol=0.0)  # (x̃ - x)/σ² loses 2 digits at σ = 0.01
    # the members of the family pass through the same levels at other times
    model.sde = ve
    at = ve.t_of_log_snr(-2 * torch.from_numpy(sigmas).log())
    again = torch.stack([0.5 * dsm_loss(model, x, t, z, losses.ncsn) / 10 for t in at]).sum(0)
    torch.testing.assert_close(again, textbook, rtol=1e-9, atol=0.0)


# -- weightings ----------------------------------------------------------------------------------------------------

Formula = Callable[[SDE, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
# papers state each as a weight of one residual: of the score, of ε, or of x_0; SNR = α²/σ²
PAPERS: dict[str, tuple[Weighting | str, Formula]] = {
    "DDPM's simple": (losses.simple, lambda sde, t, snr, score, noise, data: noise),
    "NCSN's σ²": (losses.ncsn, lambda sde, t, snr, score, noise, data: sde.sigma(t) ** 2 * score),
    "SNR": (losses.snr, lambda sde, t, snr, score, noise, data: snr * data),
    "likelihood": (losses.likelihood, lambda sde, t, snr, score, noise, data: sde.g(t) ** 2 * score),
    "x0": (losses.x0, lambda sde, t, snr, score, noise, data: data),
    "truncated": (losses.truncated_snr, lambda sde, t, snr, score, noise, data: snr.clamp_min(1) * data),
    "min-SNR 5": ("min_snr", lambda sde, t, snr, score, noise, data: snr.clamp_max(5) * data),
    "min-SNR 2": (losses.min_snr(2.0), lambda sde, t, snr, score, noise, data: snr.clamp_max(2) * data),
    "EDM": (losses.edm(0.7), lambda sde, t, snr, score, noise, data: (1 / snr + 0.49) / (0.49 / snr) * data),
}


@pytest.mark.parametrize(("weighting", "formula"), PAPERS.values(), ids=PAPERS)
@pytest.mark.parametrize("sde", [VP(), VE(), Cosine(), EDM()], ids=name)
def test_weightings_are_their_papers(weighting: Weighting | str, formula: Formula, sde: SDE) -> None:
    t = torch.tensor([0.02, 0.3, 0.5, 0.98], dtype=torch.float64) * sde.T
    x0, eps = normal(4, 3), normal(4, 3, seed=1)
    model = ScoreModel(net, sde)
    mean, std = sde.marginal(x0, t)
    x = mean + std * eps
    score = (model(x, t) + eps / std).square().sum(1)
    noise = (model.noise(x, t) - eps).square().sum(1)
    data = (model.denoise(x, t) - x0).square().sum(1)
    snr = (sde.alpha(t) / sde.sigma(t)) ** 2
    expected = formula(sde, t, snr, score, noise, data)
    got = dsm_loss(model, x0, t, eps, weighting)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0.0)  # x̂_0 - x_0 cancels by up to α/σ = 1e2, squared


@pytest.mark.parametrize("sde", [EDM(), VP(), VE()], ids=name)
@pytest.mark.parametrize("sigma_data", [None, 0.5, 1.3])
def test_edm_weighting_is_a_unit_regression(sde: SDE, sigma_data: float | None) -> None:
    """λ |D - x_0|² = |F - (x_0 - c_skip x̃)/c_out|²: the loss of the raw network (Karras et al. 2022, eq. 8)."""
    s = sigma_data or 0.5
    t = torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64) * sde.T
    x0, eps = normal(3, 4), normal(3, 4, seed=1)
    model = ScoreModel(net, sde, "edm", sigma_data)
    ratio = (sde.sigma(t) / sde.alpha(t))[:, None]
    noisy = x0 + ratio * eps
    skip, out, scale = s**2 / (ratio**2 + s**2), ratio * s / (ratio**2 + s**2).sqrt(), (ratio**2 + s**2).rsqrt()
    target = (x0 - skip * noisy) / out
    expected = (net(scale * noisy, ratio[:, 0].log()) - target).square().sum(1)
    for weighting in ("edm", losses.edm(s)):  # by name it takes the model's own sigma_data
        got = dsm_loss(model, x0, t, eps, weighting)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=0.0)  # c_out divides a small difference at low σ


def test_weightings_are_finite_where_noise_begins_and_ends() -> None:
    """In terms of σ and α alone: no infinite SNR times a vanishing weight, which would be NaN."""
    t = torch.tensor([0.0, 1e-12, 1e-5, 1.0], dtype=torch.float64)
    for sde in (VP(), Cosine(), EDM(), RectifiedFlow()):
        for weighting in WEIGHTINGS.values():
            end = t.clamp_max(sde.T)
            assert bool((weighting(sde, end).isfinite() & (weighting(sde, end) >= 0)).all())


# -- zero terminal SNR ---------------------------------------------------------------------------------------------

SAYS_X0 = ("x0", "v", "velocity", "edm")
"""Predictions that say x_0 where α = 0."""


@pytest.mark.parametrize("key", sorted(WEIGHTINGS))
@pytest.mark.parametrize("predicts", SAYS_X0)
@pytest.mark.parametrize("sde", ZERO_TERMINAL.values(), ids=ZERO_TERMINAL)
def test_losses_where_no_signal_is_left_are_the_limits_before_it(sde: SDE, predicts: str, key: str) -> None:
    near = sde.t_of_log_snr(-2 * math.log(1e5)).item()
    x0, eps = normal(3, 4), normal(3, 4, seed=1)
    model = ScoreModel(lambda x, c: torch.tanh(x), sde, predicts)  # no c, which at T stands for σ/α = 1e8
    t = torch.tensor([sde.T, 0.4, sde.T], dtype=torch.float64)
    loss = dsm_loss(model, x0, t, eps, key)
    expected = dsm_loss(model, x0, torch.where(t == sde.T, near, t), eps, key)
    if key == "likelihood":  # w α²/σ⁴ falls like α: 4e-5 at the one, 4e-7 at the other
        assert bool((loss[[0, 2]] < 1e-4).all()) and loss[1] == expected[1]
        return
    # the law of x_t moves by α = 1e-5; errors of the noise by α²
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-8)
    assert loss[0] == pytest.approx(dsm_loss(model, x0, sde.T, eps, key)[0].item(), rel=1e-12)
    x_hat = model.denoise(sde.sigma(sde.T) * eps, sde.T)
    if key in ("x0", "truncated_snr"):
        assert loss[0].item() == pytest.approx((x_hat - x0)[0].square().sum().item(), rel=1e-6)
    if key in ("simple", "min_snr"):
        assert loss[0].item() < 1e-12  # the score is known there: no x_0 in it


@pytest.mark.parametrize("key", sorted(WEIGHTINGS))
@pytest.mark.parametrize("sde", [*ZERO_TERMINAL.values(), VP()], ids=[*ZERO_TERMINAL, "VP"])
def test_losses_at_times_that_cannot_be_read(sde: SDE, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the values of t are not looked at: the answers must not hang on it."""
    model = ScoreModel(lambda x, c: torch.tanh(x), sde, "v")
    x0, eps, t = normal(3, 4), normal(3, 4, seed=1), torch.tensor([sde.T, 0.4, sde.T], dtype=torch.float64)
    read = dsm_loss(model, x0, t, eps, key)
    monkeypatch.setattr(scoresde.checks, "readable", lambda value: value.ndim == 0)  # of a batch, as on a GPU
    assert torch.equal(dsm_loss(model, x0, t, eps, key), read) and bool(read.isfinite().all())


def test_the_loss_of_half_precision_data_is_computed_in_float32() -> None:
    model = ScoreModel(lambda x, c: torch.tanh(x), VP(), "v")
    x0, eps, t = normal(64, 40).bfloat16(), normal(64, 40, seed=1).bfloat16(), torch.linspace(0.1, 0.9, 64)
    loss, exact = dsm_loss(model, x0, t, eps), dsm_loss(model, x0.double(), t, eps.double())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)  # 40 terms, eps of float32 6e-8 each


def test_zero_terminal_snr_training_of_lin_et_al() -> None:
    """arXiv:2305.08891: v-prediction on the rescaled chain, |v - v_θ|² at every level, the last included."""
    chain = rescaled_ddpm(40)
    sde = ChainSDE(chain)
    times = LevelTime(chain).sample(sde, (torch.arange(40) + 0.5) / 40)
    torch.testing.assert_close(times.t, chain.times, rtol=1e-10, atol=0.0)
    x0, eps = normal(40, 3), normal(40, 3, seed=1)
    model = ScoreModel(lambda x, c: torch.tanh(x), sde, predicts="v")
    alpha, sigma = chain.alpha[:, None], chain.sigma[:, None]
    textbook = (alpha * eps - sigma * x0 - torch.tanh(alpha * x0 + sigma * eps)).square().sum(1)
    # the squared error of v is SNR + 1 of that of x_0, which is EDM's weighting at σ_data = 1
    torch.testing.assert_close(dsm_loss(model, x0, times.t, eps, losses.edm(1.0)), textbook, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("predicts", ["noise", "score"])
def test_what_a_prediction_of_noise_can_be_trained_on_there(predicts: str) -> None:
    sde, x0, eps = RectifiedFlow(T=1.0), normal(3, 4), normal(3, 4, seed=1)
    model = ScoreModel(net, sde, predicts)
    t = torch.tensor([1.0, 0.4, 1.0], dtype=torch.float64)
    loss = dsm_loss(model, x0, t, eps)
    expected = (model.noise(eps, 1.0) - eps).square().sum(1)
    torch.testing.assert_close(loss[[0, 2]], expected[[0, 2]], rtol=1e-12, atol=0.0)
    for key in ("x0", "edm", "truncated_snr", "likelihood"):
        with pytest.raises(ValueError, match="says nothing of x_0 where α"):
            dsm_loss(model, x0, t, eps, key)


def test_any_function_is_a_weighting() -> None:
    model, x = ScoreModel(net, VP()), normal(3, 2)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    mine = dsm_loss(model, x, t, x, lambda sde, t: 3 * t * sde.sigma(t) ** 2)
    torch.testing.assert_close(mine, 3 * t * dsm_loss(model, x, t, x), rtol=8 * EPS, atol=0.0)  # three products
    assert set(WEIGHTINGS) == {"simple", "snr", "ncsn", "likelihood", "x0", "truncated_snr", "min_snr", "edm"}


# -- bad input -----------------------------------------------------------------------------------------------------


def test_bad_input() -> None:
    calls = 0

    class Counting(nn.Module):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return x

    model, x = ScoreModel(Counting(), VP()), torch.zeros(3, 2)
    bad: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        ((x, 0.5, x[:2]), ValueError, "x0 and eps must have the same shape"),
        ((x, 0.5, x[:1]), ValueError, "x0 and eps must have the same shape"),
        ((x.long(), 0.5, x), TypeError, "x0 must be a floating tensor"),
        ((x, 0.5, x.long()), TypeError, "eps must be a floating tensor"),
        ((x.numpy(), 0.5, x), TypeError, "x0 must be a torch.Tensor"),
        ((x, 0.5, None), TypeError, "eps must be a torch.Tensor"),
        ((x, 1.5, x), ValueError, "t must lie in"),
        ((x, math.nan, x), ValueError, "t must lie in"),
        ((x, None, x), TypeError, "t must be a real number"),
        ((x, torch.zeros(2), x), ValueError, "2 entries but x has 3"),
        ((x, torch.full((3, 1), 0.5), x), ValueError, "one per sample"),
        ((x, 0.0, x), ValueError, "no noise where"),
        ((x, 0.5, x, "uniform"), ValueError, "weighting must be one of simple, snr"),
        ((x, 0.5, x, losses.edm), TypeError, r"losses\.edm makes a weighting: call it"),
        ((x, 0.5, x, losses.min_snr), TypeError, r"losses\.min_snr makes a weighting: call it"),
    ]
    for arguments, error, message in bad:
        with pytest.raises(error, match=message):
            dsm_loss(model, *arguments)
    assert calls == 0  # before any work
    for make in (losses.min_snr, losses.edm):
        for value in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="must be positive"):
                make(value)


def test_bad_values_and_weightings_are_refused_before_the_network() -> None:
    def never(x: Tensor, c: Tensor) -> Tensor:
        raise AssertionError("the network was called")

    model, x, t = ScoreModel(never, VP()), normal(4, 3), torch.linspace(0.1, 0.9, 4)
    for bad in (math.nan, math.inf):
        broken = x.clone()
        broken[2, 1] = bad
        with pytest.raises(ValueError, match=r"x0 must be finite, but holds 1 values.*samples \[2\]"):
            dsm_loss(model, broken, t, x)
        with pytest.raises(ValueError, match="eps must be finite, but holds 1 values"):
            dsm_loss(model, x, t, broken)
    for wrong in (lambda sde, t: torch.ones(3), lambda sde, t: t[:, None], lambda sde, t: torch.ones(4, 3)):
        with pytest.raises(ValueError, match=r"one number for each time, \(4,\)"):
            dsm_loss(model, x, t, x, wrong)
    working = ScoreModel(net, VP())
    one = dsm_loss(working, x, t, normal(4, 3, seed=1), lambda sde, t: torch.ones(()))
    torch.testing.assert_close(one, dsm_loss(working, x, t, normal(4, 3, seed=1), lambda sde, t: torch.ones_like(t)))


def test_three_names_of_one_loss() -> None:
    assert WEIGHTINGS["simple"] is WEIGHTINGS["snr"] is WEIGHTINGS["ncsn"]
