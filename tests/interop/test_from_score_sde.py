"""Networks of Song et al. 2021: their score at every time, and their samplers' steps at the levels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from published import Listed
from torch import Tensor, nn

from scoresde import VE, VP, ChainSDE, Cosine, ScoreModel, SubVP, sample
from scoresde.interop import from_score_sde
from scoresde.solvers import Ancestral

F64 = torch.float64
SHAPE = (4, 3)
TIMES = torch.tensor([1e-3, 0.1234, 0.5, 1.0], dtype=F64)


class Net(nn.Module):
    """Sines of the labels; writes down what it is told."""

    def __init__(self, scale: float = 100.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.scale = nn.Linear(3, 3), scale
        self.told: list[Tensor] = []

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        self.told.append(labels)
        return (self.layer(x) + (labels.to(x.dtype) / self.scale).sin()[:, None]).tanh()


def state(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, dtype=F64, generator=torch.Generator().manual_seed(seed))


def log_mean(t: Tensor, low: float = 0.1, high: float = 20.0) -> Tensor:
    """Song et al. 2021, appendix B, eq. 33: log of the mean's coefficient."""
    return -0.25 * t**2 * (high - low) - 0.5 * t * low


def std(sde: Any, t: Tensor) -> Tensor:
    """Eq. 33 and 34: of the perturbation kernels of VP and sub-VP."""
    variance = 1 - (2 * log_mean(t)).exp()
    return variance if isinstance(sde, SubVP) else variance.sqrt()


@pytest.mark.parametrize("sde", [VP(), SubVP()], ids=repr)
def test_continuous_vp_and_subvp(sde: Any) -> None:
    net, x = Net().double(), state()
    model = from_score_sde(net, sde)
    expected = -net(x, 999 * TIMES) / std(sde, TIMES)[:, None]
    # 1 - exp(-2 ∫β) cancels to 1e-4 at t = 0.001 and is a square there for sub-VP: eps over that
    torch.testing.assert_close(model(x, TIMES), expected, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(net.told[1], 999 * TIMES, rtol=1e-12, atol=0)
    for t in TIMES:
        torch.testing.assert_close(model(x, t), -net(x, 999 * t.expand(4)) / std(sde, t), rtol=1e-8, atol=1e-11)
    scaled = from_score_sde(net, sde, time_scale=1.0)
    torch.testing.assert_close(scaled.noise(x, 0.5), net(x, torch.full((4,), 0.5, dtype=F64)), rtol=1e-12, atol=1e-12)


def test_continuous_ve() -> None:
    net, x = Net(3.0).double(), state()
    model = from_score_sde(net, VE(sigma_min=0.02, sigma_max=60.0))
    sigma = 0.02 * 3000.0**TIMES
    torch.testing.assert_close(model(x, TIMES), net(x, sigma), rtol=1e-12, atol=1e-12)  # σ to a few eps
    torch.testing.assert_close(net.told[0], sigma, rtol=1e-13, atol=0)
    torch.testing.assert_close(model.denoise(x, 0.5), x + 0.02**2 * 3000 * model(x, 0.5), rtol=1e-12, atol=1e-12)


# -- discrete ------------------------------------------------------------------------------------------------------


def vp_levels(n: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
    """β_i from β_min/n to β_max/n, sqrt(ᾱ_i) and sqrt(1 - ᾱ_i), i = 0 ... n - 1."""
    beta = torch.linspace(0.1 / n, 20.0 / n, n, dtype=F64)
    bar = (1 - beta).cumprod(0)
    return beta, bar.sqrt(), (1 - bar).sqrt()


@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize("between", [None, "chain", "nearest", "below"])
def test_discrete_vp_at_its_levels(n: int, between: Any) -> None:
    """labels = t (N - 1), s = -net / sqrt_1m_alphas_cumprod[labels]."""
    net, x = Net().double(), state()
    model = from_score_sde(net, VP(), continuous=False, n=n, between=between)
    _, alpha, sigma = vp_levels(n)
    for i in (1, 2, 17, n // 2, n - 1):
        t = i / (n - 1)
        expected = -net(x, torch.full((4,), i)) / sigma[i]
        torch.testing.assert_close(model(x, t), expected, rtol=1e-10, atol=1e-10)  # ᾱ and its inverse: 1e-12
        assert net.told[-1].tolist() == [i] * 4 and net.told[-1].dtype == torch.int64
        torch.testing.assert_close(model.sde.alpha(t), alpha[i], rtol=1e-11, atol=0)
    first = model.sde.t_min
    torch.testing.assert_close(model(x, first), -net(x, torch.zeros(4)) / sigma[0], rtol=1e-10, atol=1e-10)
    assert first <= 1e-5 and isinstance(model.sde, ChainSDE)


def test_discrete_vp_between_its_levels() -> None:
    net, x = Net().double(), state()
    n, (_, _, sigma) = 1000, vp_levels()
    t = torch.tensor([0.1, 0.25, 0.5017, 0.7], dtype=F64)
    labels = t * (n - 1)
    model = from_score_sde(net, VP(), continuous=False)
    # the network is told what their code tells it; the deviation is the chain's, between those of the neighbours
    torch.testing.assert_close(model.noise(x, t), net(x, labels), rtol=1e-10, atol=1e-10)
    assert bool(((model.sde.sigma(t) > sigma[labels.long()]) & (model.sde.sigma(t) < sigma[labels.long() + 1])).all())
    # their code to the letter: labels = t (N - 1), and sqrt_1m_alphas_cumprod[labels.long()]
    below = from_score_sde(net, VP(), continuous=False, between="below")
    expected = -net(x, labels) / sigma[labels.long()][:, None]
    torch.testing.assert_close(below(x, t), expected, rtol=1e-10, atol=1e-10)
    # rounded, both are the nearest level's, at a tie the even one's
    t = torch.tensor([0.1, 0.5, 0.5017, 0.7], dtype=F64)
    level = (t * (n - 1)).round().long()
    assert level[1] == 500
    rounded = from_score_sde(net, VP(), continuous=False, between="nearest")
    torch.testing.assert_close(rounded(x, t), -net(x, level) / sigma[level][:, None], rtol=1e-10, atol=1e-10)
    assert net.told[-2].dtype == torch.int64
    single = -net(x, level[2].expand(4)) / sigma[level[2]]
    torch.testing.assert_close(rounded(x, t[2]), single, rtol=1e-10, atol=1e-10)


def test_ancestral_sampling_of_a_discrete_vp_network_is_theirs() -> None:
    """Appendix F, eq. 4 there written on the score: x_i-1 = (x_i + β_i s)/sqrt(1 - β_i) + sqrt(β_i) z."""
    n, net = 60, Net(10.0).double()
    beta, _, sigma = vp_levels(n)
    z = [state(seed) for seed in range(n)]
    x = z[0]
    with torch.no_grad():
        for i in reversed(range(n)):
            score = -net(x, torch.full((4,), i)) / sigma[i]
            x = (x + beta[i] * score) / (1 - beta[i]).sqrt()
            x = x + beta[i].sqrt() * z[n - i] if i else x
    model = from_score_sde(net, VP(), continuous=False, n=n)
    grid = model.sde.chain.times.flip(0)
    got = sample(model, SHAPE, solver=Ancestral("transition"), grid=grid, x=z[0], noise=Listed(z[1:]), dtype=F64)
    torch.testing.assert_close(got.x, x, rtol=1e-10, atol=1e-10)  # rounding of 60 steps that expand by e^5 in all


def test_discrete_ve_indexes_a_falling_list() -> None:
    """labels = round((T - t) (N - 1)) among σ_max (σ_min/σ_max)^(i/(N-1)); the network divides by σ itself."""
    n, x = 50, state()
    falling = 30.0 * (0.01 / 30.0) ** (torch.arange(n, dtype=F64) / (n - 1))

    class Divides(Net):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return super().forward(x, labels) / falling[labels.long()][:, None]

    net = Divides(9.0).double()
    model = from_score_sde(net, VE(sigma_min=0.01, sigma_max=30.0), continuous=False, n=n)
    t = torch.tensor([1e-5, 0.3, 0.5, 1.0], dtype=F64)
    expected = net(x, ((1 - t) * (n - 1)).round().long())
    torch.testing.assert_close(model(x, t), expected, rtol=1e-15, atol=1e-15)  # σ times 1/σ
    assert net.told[-1].dtype == torch.int64 and net.told[-1].tolist() == [49, 34, 24, 0]
    for i in range(n):
        j = n - 1 - i
        torch.testing.assert_close(model.sde.sigma(j / (n - 1)), falling[i], rtol=1e-12, atol=0)
        model(x, j / (n - 1))
        assert net.told[-1].tolist() == [i] * 4


# -- as a model, and what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", [VP(), SubVP(), VE()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_in_float32_and_half(sde: Any, dtype: torch.dtype) -> None:
    net = Net().to(dtype)
    model = from_score_sde(net, sde, sigma_data=0.5)
    assert isinstance(model, ScoreModel) and model.sigma_data == 0.5 and model.sde == sde
    x = sample(model, SHAPE, steps=30, solver=Ancestral()).x
    assert x.dtype == torch.float32 and bool(x.isfinite().all())
    assert {t.dtype for t in net.told} == {torch.float32}


@pytest.mark.parametrize(
    ("sde", "options", "match"),
    [
        (Cosine(), {}, r"sde must be one that their code trains under, VP\(\), SubVP\(\), VE\(\)"),
        (3, {}, "sde must be an SDE"),
        (SubVP(), {"continuous": False}, "continuous must be True for SubVP"),
        (VP(), {"n": 100}, "n must be left out for a continuous network"),
        (VP(), {"between": "below"}, "between must be left out for a continuous network"),
        (VE(), {"time_scale": 2.0}, "time_scale must be left out for VE"),
        (VP(), {"continuous": False, "time_scale": 2.0}, "time_scale must be left out for a discrete network"),
        (VE(), {"continuous": False, "between": "chain"}, "between must be 'nearest'"),
        (VP(), {"continuous": False, "between": "above"}, "between must be one of 'chain', 'nearest', 'below'"),
        (VP(T=0.9), {"continuous": False}, "sde must run to T = 1"),
        (VP(), {"continuous": False, "n": 1}, "n must be a whole number"),
        (VP(), {"continuous": 1}, "continuous must be True or False"),
        (VP(), {"sigma_data": -1.0}, "sigma_data must be positive"),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused(sde: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        from_score_sde(Net(), sde, **options)
