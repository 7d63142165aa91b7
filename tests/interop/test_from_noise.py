"""ε-networks on integer steps: DDPM's Algorithm 2 on the same noises, and which steps a network is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from published import Listed
from torch import Tensor, nn

from scoresde import DDIM, VP, ChainSDE, ScoreModel, classifier_free, sample
from scoresde.interop import from_noise
from scoresde.solvers import Ancestral

F64 = torch.float64
SHAPE = (3, 2, 4)
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=F64)


def normals(n: int) -> list[Tensor]:
    return list(torch.randn(n, *SHAPE, dtype=F64, generator=torch.Generator().manual_seed(2)))


class Net(nn.Module):
    """Sines of the step, and a class; writes down the steps that it is told."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.told: list[Tensor] = []

    def forward(self, x: Tensor, step: Tensor, y: Tensor | None = None) -> Tensor:
        self.told.append(step)
        h = self.layer(x) + (step.to(x.dtype) / 50).sin()[:, None, None]
        return h.tanh() if y is None else (h + y[:, None, None]).tanh()


class Table(nn.Module):
    """Looks its steps up."""

    def __init__(self, n: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Embedding(n, 4)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        return (x + self.rows(step)[:, None]).sin()


def algorithm_2(net: nn.Module, betas: Tensor, z: Sequence[Tensor], *, larger: bool = False) -> Tensor:
    """Ho et al. 2020, Algorithm 2 with eq. 11; the paper's t = n ... 1 are the network's n - 1 ... 0."""
    n, draws, bar = len(betas), list(z), (1 - betas).cumprod(0)
    x = draws.pop(0)
    for i in reversed(range(n)):
        eps = net(x, torch.full((len(x),), i))
        mean = (x - betas[i] / (1 - bar[i]).sqrt() * eps) / (1 - betas[i]).sqrt()
        if i > 0:
            variance = betas[i] if larger else betas[i] * (1 - bar[i - 1]) / (1 - bar[i])
            mean = mean + variance.sqrt() * draws.pop(0)
        x = mean
    return x


@pytest.mark.parametrize("variance", ["posterior", "transition"])
@pytest.mark.parametrize("n", [30, 200])
@pytest.mark.parametrize("kind", [Net, Table])
def test_ancestral_steps_on_the_chain_are_algorithm_2(n: int, variance: Any, kind: Any) -> None:
    betas, z = torch.linspace(1e-3, 0.05, n, dtype=F64), normals(n)
    net = (kind(n) if kind is Table else kind()).double()
    with torch.no_grad():
        # x_n ~ N(0, I) there; the prior of the chain is N(0, 1 - ᾱ_n)
        start = z[0] * (1 - (1 - betas).prod()).sqrt()
        expected = algorithm_2(net, betas, [start, *z[1:]], larger=variance == "transition")
    model = from_noise(net, betas)
    grid = model.sde.chain.times.flip(0)
    got = sample(model, SHAPE, solver=Ancestral(variance), grid=grid, noise=Listed(z), dtype=F64)
    assert got.nfe == n and got.denoised
    # two ways to write each step: some eps, of which 1/sqrt(1 - β) makes more, 160 times at most after 200 of them
    torch.testing.assert_close(got.x, expected, rtol=1e-11, atol=1e-11)


def test_the_longest_chain_in_use_in_float32() -> None:
    """DDPM's own, n = 1000: every step is told, and the samples agree to float32's rounding of 1000 steps."""
    net, z = Net(), normals(1000)
    with torch.no_grad():
        start = z[0] * (1 - (1 - BETAS).prod()).sqrt()
        exact = algorithm_2(Net().double(), BETAS, [start, *z[1:]])
    model = from_noise(net, BETAS)
    got = sample(model, SHAPE, solver=Ancestral(), grid=model.sde.chain.times.flip(0), noise=Listed(z))
    assert [int(step[0]) for step in net.told] == [*reversed(range(1000))]
    assert {step.dtype for step in net.told} == {torch.int64}
    # x of size up to 4 rounds to 2e-7 in each of 1000 steps, of which x_0 forgets most
    torch.testing.assert_close(got.x, exact.float(), rtol=1e-4, atol=1e-4)


def test_ddim_on_every_tenth_level() -> None:
    """Song et al. 2021 (arXiv:2010.02502), eq. 12 with σ = 0."""
    net, z = Net().double(), normals(1)[0]
    model = from_noise(net, BETAS)
    levels = [*range(999, 0, -111), 0]
    bar = (1 - BETAS).cumprod(0)
    with torch.no_grad():
        x = z
        for i, j in zip(levels, [*levels[1:], -1], strict=True):
            eps = net(x, torch.full((3,), i))
            x0 = (x - (1 - bar[i]).sqrt() * eps) / bar[i].sqrt()
            x = x0 if j < 0 else bar[j].sqrt() * x0 + (1 - bar[j]).sqrt() * eps
    got = sample(model, SHAPE, solver=DDIM(), grid=model.sde.chain.times[levels], x=z)
    torch.testing.assert_close(got.x, x, rtol=1e-11, atol=1e-11)  # rounding of ten steps


# -- what the network is told --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    "betas",
    [BETAS, torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64) ** 2, torch.full((4000,), 1e-6), BETAS[:2]],
    ids=["linear", "scaled linear", "4000 tiny", "two"],
)
def test_each_level_is_told_as_its_own_whole_number(betas: Tensor, dtype: torch.dtype) -> None:
    """c as the network's own call would have it, in float32 too."""
    model = from_noise(lambda x, step: x, betas)
    chain = model.sde.chain
    c = (chain.sigma / chain.alpha).log().to(dtype)
    torch.testing.assert_close(model.net.timesteps(c), torch.arange(len(betas), dtype=dtype), rtol=0, atol=0)


def test_between_levels_a_step_is_a_fraction_linear_in_time() -> None:
    net = Net().double()
    model, x = from_noise(net, BETAS), normals(1)[0]
    times = torch.tensor([0.5, 0.50025, 1.0], dtype=F64)
    model.noise(x, times)
    torch.testing.assert_close(net.told[-1], 1000 * times - 1, rtol=1e-12, atol=0)  # c and back
    assert net.told[-1].dtype == F64
    model.noise(x, model.sde.chain.times[[3, 500, 999]])
    assert net.told[-1].dtype == torch.int64 and net.told[-1].tolist() == [3, 500, 999]
    below = torch.full((3,), 1e-5, dtype=F64)  # nearer to the data than any level: the first
    model.noise(x, below)
    assert net.told[-1].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("whole", "told", "dtype"), [(True, [500, 999], torch.int64), (False, [499.75, 999.0], F64)])
def test_networks_of_one_kind_of_steps_alone(whole: bool, told: list[float], dtype: torch.dtype) -> None:
    net = Net().double()
    model = from_noise(net, BETAS, whole=whole)
    model.noise(normals(1)[0][:2], torch.tensor([0.50075, 1.0], dtype=F64))
    assert net.told[-1].dtype == dtype
    assert net.told[-1].tolist() == pytest.approx(told, rel=1e-12)


def test_a_table_serves_every_solver_when_steps_are_whole() -> None:
    model = from_noise(Table(1000), BETAS, whole=True)
    assert sample(model, SHAPE, steps=25, solver=DDIM()).x.isfinite().all()
    with pytest.raises((RuntimeError, IndexError)) as caught:  # torch's own: a fraction is no index
        sample(from_noise(Table(1000), BETAS), SHAPE, steps=5)
    assert "say whole=True" in caught.value.__notes__[0]


def test_half_of_the_channels_may_be_a_variance() -> None:
    x = normals(1)[0]
    plain, both = (from_noise(n, BETAS, learned_variance=v) for n, v in ((_noise, False), (_with_variance, True)))
    torch.testing.assert_close(plain.noise(x, 0.3), both.noise(x, 0.3), rtol=0, atol=0)
    with pytest.raises(ValueError, match="twice the channels"):
        from_noise(_noise, BETAS, learned_variance=True).noise(x, 0.3)
    with pytest.raises(ValueError, match="shaped like x"):
        from_noise(_with_variance, BETAS).noise(x, 0.3)


def _noise(x: Tensor, step: Tensor) -> Tensor:
    return x.tanh()


def _with_variance(x: Tensor, step: Tensor) -> Tensor:
    return torch.cat([x.tanh(), x], 1)


# -- as a model ----------------------------------------------------------------------------------------------------


def test_it_is_a_model_like_any_other() -> None:
    net = Net().double()
    model, x = from_noise(net, BETAS, null_conditions={"y": 0.0}), normals(1)[0]
    assert isinstance(model, ScoreModel) and isinstance(model.sde, ChainSDE)
    assert list(map(id, model.parameters())) == list(map(id, net.parameters()))
    y = torch.tensor([1.0, -1.0, 2.0], dtype=F64)
    guided = classifier_free(model, {"y": y}, scale=2.0).noise(x, 0.5)
    zero = torch.zeros(3, dtype=F64)
    expected = torch.lerp(net(x, torch.full((3,), 499), zero), net(x, torch.full((3,), 499), y), 2.0)
    torch.testing.assert_close(guided, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="takes no condition label"):
        model.bind(label=1)
    # the same network in continuous time; ᾱ of the chain and of its limit differ by O(1/n) at equal t, not at equal c
    vp = model.under(VP(t_min=2e-3, T=0.99))
    t = vp.sde.t_of_log_snr(model.sde.log_snr(0.5))
    torch.testing.assert_close(vp.noise(x, t), model.noise(x, 0.5), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("betas", [BETAS.tolist(), BETAS.numpy(), tuple(BETAS.tolist()), BETAS.float()], ids=type)
def test_betas_come_in_any_dress(betas: Any) -> None:
    chain = from_noise(_noise, betas).sde.chain
    rtol = 1e-7 if isinstance(betas, Tensor) else 0  # float32's rounding of β
    torch.testing.assert_close(chain.beta, BETAS, rtol=rtol, atol=0)


@pytest.mark.parametrize(
    ("betas", "match"),
    [
        (0.02, "betas must be"),
        ("linear", "betas must be"),
        (torch.full((3,), 1.5), r"betas must lie in \(0, 1\)"),
        (torch.tensor([0.1, 0.0]), r"betas must lie in \(0, 1\)"),
        (torch.tensor([0.1, 1.0]), "betas must leave some signal"),
        (torch.tensor([0.1, math.nan]), "betas must be finite"),
        (torch.full((3, 3), 0.1), "betas must be numbers β_i in one axis"),
        (np.array([]), "betas must be numbers β_i in one axis"),
        ([0.1], "betas must be numbers β_i in one axis"),
    ],
    ids=str,
)
def test_what_are_no_betas_is_refused(betas: Any, match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        from_noise(_noise, betas)
