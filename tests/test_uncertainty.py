"""The weighting that is learned along: its optimum in closed form, and that it finds it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from scoresde.losses import Uncertainty, UncertaintyNetwork, dsm_loss, edm
from scoresde.models import ScoreModel
from scoresde.sde import EDM, VP, Cosine
from scoresde.times import LogNormalSigma, Stratified

S, KAPPA = 2.0, 0.3  # of the data, and of a network that answers ε̂ = κ x / sqrt(...)


class Shrink(nn.Module):
    """ε̂ = κ x_t."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return KAPPA * x


def expected(sde: VP, t: Tensor) -> Tensor:
    """E|ε - κ (α x_0 + σ ε)|² for x_0 ~ N(0, s²): (1 - κσ)² + κ² α² s²."""
    return (1 - KAPPA * sde.sigma(t)) ** 2 + (KAPPA * S * sde.alpha(t)) ** 2


def test_it_learns_the_logarithm_of_the_expected_loss() -> None:
    """u* = log E[L | c], in closed form on a Gaussian, over the noise levels that are trained."""
    sde, model = VP(), ScoreModel(Shrink(), VP())
    density = Stratified(LogNormalSigma(0.0, 1.2))
    u = Uncertainty("simple").network(seed=1)
    assert not bool(u(torch.linspace(-5, 5, 11)).any())
    optimizer = torch.optim.Adam(u.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    steps = 300
    for step in range(steps):
        t, weight = density.sample(sde, torch.rand(512, generator=generator, dtype=torch.float64))
        x0 = S * torch.randn(512, 4, generator=generator)
        loss = dsm_loss(model, x0, t, torch.randn(512, 4, generator=generator)) / 4
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        optimizer.zero_grad()
        (weight * u.weigh(loss, sde, t)).mean().backward()
        optimizer.step()
    t = density.sample(sde, torch.linspace(0.05, 0.95, 19, dtype=torch.float64)).t
    found = u.at(sde, t).double()
    truth = expected(sde, t).log()
    # 150,000 losses of relative deviation sqrt(2/4) each over about 10 effective levels, weighed late: 1-2 %
    torch.testing.assert_close(found, truth, rtol=0, atol=0.06)
    assert truth.max() - truth.min() > 0.7  # which is more than the tolerance by far


def test_the_optimum_is_where_the_gradient_vanishes() -> None:
    """For every u, the mean of L e^{-u} + u is least at log E[L], where every level contributes 1."""
    u = UncertaintyNetwork(16)
    sde, t = VP(), torch.full((4000,), 0.3, dtype=torch.float64)
    loss = torch.rand(4000, generator=torch.Generator().manual_seed(0)) * 5
    with torch.no_grad():
        features = u(torch.zeros(())) * 0 + math.log(float(loss.mean()))
        values = [float((loss * (-v).exp() + v).mean()) for v in (features - 0.1, features, features + 0.1)]
    assert values[1] < min(values[0], values[2]) and values[1] == pytest.approx(1 + math.log(float(loss.mean())))
    assert u.weigh(loss, sde, t).detach().equal(loss)  # u = 0 at first: L itself


def test_the_gradient_for_the_weights_has_the_size_of_that_for_u() -> None:
    """|h|² averages to 1 over levels, whatever the number of features: clipping sees no large gradient of u."""
    c = torch.linspace(-6, 6, 4001)
    for channels in (32, 128, 512):
        u = UncertaintyNetwork(channels)
        rows = torch.stack([torch.autograd.grad(u(one), u.weight)[0] for one in c[::40]])
        assert float(rows.square().sum(1).mean()) == pytest.approx(1, abs=0.15)  # of 32 random features: 1/sqrt(64)


@pytest.mark.parametrize("sde", [VP(), EDM(), Cosine(T=1.0)])
def test_it_is_finite_at_every_time(sde: VP) -> None:
    """Also where α(t) = 0 and log σ/α has no end."""
    u = UncertaintyNetwork(8, seed=3)
    nn.init.normal_(u.weight)
    t = torch.tensor([sde.t_min, 0.5 * sde.T, sde.T], dtype=torch.float64)
    assert bool(u.weigh(torch.ones(3), sde, t).isfinite().all())


def test_the_features_are_those_of_edm2() -> None:
    """cos(2 pi f c/4 + phase), f ~ N(0, 1): frequencies of deviation pi/2 to 4/sqrt(2 C), and phases all around."""
    u = UncertaintyNetwork(4096, seed=3)
    assert float(u.frequency.square().mean().sqrt()) == pytest.approx(math.pi / 2, rel=4 / math.sqrt(2 * 4096))
    assert 0 <= float(u.phase.min()) < 0.01 and 2 * math.pi - 0.01 < float(u.phase.max()) <= 2 * math.pi


def test_seeds_and_names() -> None:
    same = [Uncertainty().network(seed=5).frequency for _ in range(2)]
    assert torch.equal(*same) and not torch.equal(same[0], Uncertainty().network(seed=6).frequency)
    assert repr(Uncertainty(edm(0.7))) == "Uncertainty(base=edm(sigma_data=0.7), channels=128)"
    assert "0x" not in repr(Uncertainty(lambda sde, t: t))


def test_what_makes_no_sense_is_refused() -> None:
    u = Uncertainty().network()
    with pytest.raises(ValueError, match="base"):
        Uncertainty("best")
    with pytest.raises(ValueError, match=r"\(B,\)"):
        u.weigh(torch.ones(2, 2), VP(), torch.full((2,), 0.5))
    with pytest.raises(ValueError, match="t"):
        u.weigh(torch.ones(2), VP(), torch.full((3,), 0.5))
    with pytest.raises(TypeError, match="weighting"):
        dsm_loss(ScoreModel(Shrink(), VP()), torch.ones(2, 1), 0.5, torch.ones(2, 1), Uncertainty())  # type: ignore[arg-type]
