"""What all models of foreign networks share: exact scores of a Gaussian, likelihood, training, odd batches, dtypes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde import VE, VP, Gaussian, ScoreModel, SubVP, dsm_loss, log_prob, sample
from scoresde.interop import (
    ForeignModel,
    ForeignNetwork,
    from_denoiser,
    from_noise,
    from_score_sde,
    from_velocity,
)
from scoresde.interop.foreign import nearest
from scoresde.sde import SDE
from scoresde.train import EMA, ema_model

F64 = torch.float64
S = 0.7
"""Deviation of the data of the exact networks."""

BETAS = torch.linspace(1e-3, 0.06, 200, dtype=F64)


def column(t: Tensor, x: Tensor) -> Tensor:
    return t.to(x.dtype)[:, None]


class Gain(nn.Module):
    """A network x -> g(told) x, with one parameter, 1, that training may change."""

    def __init__(self, gain: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gain, self.factor = gain, nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        return self.factor * column(self.gain(told.double()), x) * x


def of_noise(alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[ε | x] = σ/(α² s² + σ²) x for data N(0, s² I)."""
    return sigma / ((alpha * S) ** 2 + sigma**2)


def of_step(step: Tensor, betas: Tensor = BETAS) -> Tensor:
    bar = torch.cat([(1 - betas).cumprod(0)])[step.long()]
    return of_noise(bar.sqrt(), (1 - bar).sqrt())


def of_time(t: Tensor) -> Tensor:
    log_alpha = -0.25 * t**2 * 19.9 - 0.05 * t
    return of_noise(log_alpha.exp(), (1 - (2 * log_alpha).exp()).sqrt())


def of_time_in_subvp(t: Tensor) -> Tensor:
    log_alpha = -0.25 * t**2 * 19.9 - 0.05 * t
    return of_noise(log_alpha.exp(), 1 - (2 * log_alpha).exp())


def of_flow(t: Tensor) -> Tensor:
    """x_0 - ε, the data at t = 1."""
    return (t * S**2 - (1 - t)) / ((t * S) ** 2 + (1 - t) ** 2)


MODELS: dict[str, Callable[[], ScoreModel]] = {
    "denoiser": lambda: from_denoiser(Gain(lambda s: S**2 / (S**2 + s**2)), sigma_data=S),
    "VP": lambda: from_score_sde(Gain(lambda labels: of_time(labels / 999)), VP()),
    "SubVP": lambda: from_score_sde(Gain(lambda labels: of_time_in_subvp(labels / 999)), SubVP()),
    "VE": lambda: from_score_sde(Gain(lambda s: -1 / (S**2 + s**2)), VE()),
    "discrete VP": lambda: from_score_sde(
        Gain(lambda i: of_step(i, torch.linspace(1e-3, 0.2, 100, dtype=F64))), VP(), continuous=False, n=100
    ),
    "noise": lambda: from_noise(Gain(of_step), BETAS, sigma_data=S),
    "data at 1": lambda: from_velocity(Gain(of_flow), sigma_data=S),
    "data at 0": lambda: from_velocity(Gain(lambda t: -of_flow(1 - t)), 0, sigma_data=S),
}
STEPS = ("discrete VP", "noise")
EVERY = pytest.mark.parametrize("name", MODELS)


def times(sde: SDE) -> Tensor:
    """Of a chain its levels, between which a table of the exact gains has none."""
    chain = getattr(sde, "chain", None)
    if chain is not None:
        return chain.times[[0, 5, 50, -1]]
    return torch.tensor([sde.t_min, 0.1 * sde.T, 0.5 * sde.T, 0.99 * sde.T], dtype=F64)


def state(n: int = 4) -> Tensor:
    return torch.randn(n, 3, dtype=F64, generator=torch.Generator().manual_seed(n))


@EVERY
def test_the_score_of_an_exact_network_is_the_exact_score(name: str) -> None:
    model, x = MODELS[name](), state()
    exact = Gaussian(torch.zeros(3, dtype=F64), S**2 * torch.eye(3, dtype=F64)).score(model.sde)
    t = times(model.sde)
    for ask in ("__call__", "denoise", "noise"):
        # some eps, of which σ = 0.01 makes 1/σ² in the score, and 1/σ of float64's rounding of an x̂_0 in the noise
        torch.testing.assert_close(getattr(model, ask)(x, t), getattr(exact, ask)(x, t), rtol=1e-8, atol=1e-9)
        for i in range(4):
            torch.testing.assert_close(
                getattr(model, ask)(x, t[i])[i], getattr(exact, ask)(x, t)[i], rtol=1e-8, atol=1e-9
            )


@pytest.mark.parametrize("name", [name for name in MODELS if name not in STEPS])
def test_samples_and_likelihood_of_an_exact_network(name: str) -> None:
    model, x = MODELS[name](), S * state()
    sde = model.sde
    exact = Gaussian(torch.zeros(3, dtype=F64), S**2 * torch.eye(3, dtype=F64))
    expected = exact.log_prob(x, sde, sde.t_min)
    # the prior leaves the data out: (α s/σ)² at T, 3 coordinates; and the tolerance of the ODE
    torch.testing.assert_close(log_prob(model, x, divergence="exact"), expected, rtol=1e-3, atol=3e-3)
    z = sample(model, (400, 3), steps=20, dtype=F64, seed=0).x
    assert float(z.std()) == pytest.approx(S, rel=4 / math.sqrt(2 * 1200))  # 4 standard errors


@EVERY
def test_training_goes_on_where_others_stopped(name: str) -> None:
    """The loss reaches the network's own parameters; averages and copies follow."""
    model, x0 = MODELS[name](), S * state()
    t = times(model.sde)
    loss = dsm_loss(model, x0, t, state(), conditions={}).mean()
    loss.backward()
    (parameter,) = model.parameters()
    assert parameter.grad is not None and bool(parameter.grad.isfinite()) and float(parameter.grad) != 0
    average = EMA(model, 0.5)
    with torch.no_grad():
        parameter.add_(1.0)
    average.update()
    averaged = ema_model(model, average)
    assert type(averaged) is type(model) and 1 < float(next(averaged.parameters())) <= 2
    copied = copy.deepcopy(model)
    copied.load_state_dict(model.state_dict())
    torch.testing.assert_close(copied(x0, t), model(x0, t), rtol=0, atol=0)


@EVERY
@pytest.mark.parametrize("n", [0, 1, 3])
def test_batches_of_any_size(name: str, n: int) -> None:
    model, x = MODELS[name](), state(4)[:n]
    for t in (times(model.sde)[1], times(model.sde)[1].expand(n)):
        assert model(x, t).shape == (n, 3)
    torch.testing.assert_close(model(x, times(model.sde)[1]), model(state(4), times(model.sde)[1])[:n])


@EVERY
def test_derivatives_and_transforms(name: str) -> None:
    model, x = MODELS[name](), state()
    t = times(model.sde)[2]
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: model.noise(row[None], t)[0]))(x)
    gain = model.noise(torch.ones(1, 3, dtype=F64), t)[0, 0]
    torch.testing.assert_close(jacobian.detach(), (gain * torch.eye(3, dtype=F64)).expand(4, 3, 3).detach())
    _, tangent = torch.func.jvp(lambda x: model.noise(x, t), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, gain.expand(4, 3))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_less_precision(name: str, dtype: torch.dtype) -> None:
    """Weights of that dtype, states in float32: what is lost is the rounding of the network, and of no time."""
    exact, model, x = MODELS[name](), MODELS[name]().to(dtype), state()
    t, eps = times(model.sde)[1:], torch.finfo(dtype).eps
    got, expected = model.noise(x[1:].float(), t), exact.noise(x[1:], t)
    assert got.dtype == torch.float32
    size = {"denoiser": 2.0}.get(name, 1.0)  # a denoiser's noise is x/σ - x̂_0/σ, at σ = 8 and above
    torch.testing.assert_close(got.double(), expected, rtol=8 * eps * size, atol=8 * eps * size)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_adapters_take_c_in_float32_too(dtype: torch.dtype) -> None:
    """As ``net(x, c)``, without the model."""
    model, x = MODELS["noise"](), state().to(dtype)
    chain = model.sde.chain
    c = (chain.sigma / chain.alpha).log()[[0, 5, 50, -1]].to(dtype)
    told: list[Tensor] = []
    model.net.net.register_forward_pre_hook(lambda module, given: told.append(given[1]))
    model.net(x, c)
    assert told[0].tolist() == [0, 5, 50, 199]
    # a tenth of a level off is a fraction: nothing but rounding is taken for a level
    off = c + 0.1 * (chain.sigma / chain.alpha).log().diff()[[0, 5, 50, -1]].to(dtype)
    assert all(0.05 < float(place) % 1 < 0.15 for place in model.net.timesteps(off)[:3])


def test_one_of_your_own() -> None:
    """As the page on it shows: a network that wants log-SNR."""

    class LogSNR(ForeignNetwork):
        def __init__(self, net: Any) -> None:
            super().__init__(net, what="(x, log_snr)")

        def forward(self, x: Tensor, c: Tensor, **conditions: Any) -> Tensor:
            return self.ask(x, -2 * c, **conditions)

    sde = VP()
    model = ForeignModel(LogSNR(lambda x, level: column(level, x) * x), sde, "noise")
    x = state()
    torch.testing.assert_close(model.noise(x, 0.3), sde.log_snr(0.3) * x, rtol=1e-13, atol=1e-13)


def test_ties_between_steps_go_to_the_even_one() -> None:
    """Also where the place is a rounding away from the tie."""
    places = torch.tensor([499.5, 499.5 + 1e-12, 499.5 - 1e-12, 500.5 + 1e-12, 500.5 - 1e-12], dtype=F64)
    assert nearest(places).tolist() == [500] * 5
    assert nearest(torch.tensor([499.49, 499.51], dtype=F64)).tolist() == [499, 500]


def test_options_of_a_call_are_given_once() -> None:
    model = from_velocity(lambda x, t, y=0.0: x, keywords={"y": 1.0})
    with pytest.raises(ValueError, match="y must be given once"):
        model.denoise(state(), 0.5, {"y": torch.ones(4)})
