"""Encoders of sets and series: what they must not see, what they must, and a posterior that is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde.data import from_tensors
from scoresde.losses import edm
from scoresde.models import ScoreModel
from scoresde.models.conditions import Conditions, Series, Set
from scoresde.nn import MLP, DiT, MagnitudeUNet, SeriesEncoder, SetEncoder, UNet
from scoresde.nn.series import SeriesBlock, step_waves
from scoresde.nn.sets import pooled
from scoresde.sde import EDM
from scoresde.times import LogNormalSigma, Stratified
from scoresde.train import train

F64 = torch.float64
NAN = float("nan")
both = pytest.mark.parametrize("kind", [SetEncoder, SeriesEncoder])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def encoder(kind: type[nn.Module], size: int = 2, **options: Any) -> Any:
    """With random weights throughout: blocks start as the identity, which would hide them."""
    torch.manual_seed(0)
    made = kind(size, 12, **{"hidden": 8, **options}).double()
    for name, parameter in made.named_parameters():
        if "linear2" in name and "head" not in name:
            nn.init.normal_(parameter, std=0.5)
    return made


def padded(value: Tensor, rows: int) -> Tensor:
    return torch.cat([value, value.new_full((len(value), rows, value.shape[2]), NAN)], 1)


# float64 sums of 9 numbers of order one in another order, through some ten layers: some 1e-15 each, and 1e-12 is room
EXACT: dict[str, float] = {"rtol": 1e-12, "atol": 1e-12}


def test_a_set_has_no_order() -> None:
    encode, value = encoder(SetEncoder), normal(3, 9, 2)
    value[1, 2] = NAN
    e = encode(value)
    for seed in range(3):
        order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(encode(value[:, order]), e, **EXACT)


def test_a_series_has_one() -> None:
    encode, value = encoder(SeriesEncoder), normal(3, 9, 2)
    for swapped in ([1, 0, *range(2, 9)], [*range(7), 8, 7], list(range(8, -1, -1))):
        assert ((encode(value[:, swapped]) - encode(value)).abs().amax(1) > 1e-3).all()
    # not even when all neighbours agree, as in blocks of one value: absolute places count
    steps = torch.zeros(2, 16, 2, dtype=F64)
    steps[0, 4:8], steps[1, 8:12] = 1.0, 1.0
    e = encode(steps)
    assert (e[0] - e[1]).abs().max() > 1e-3


@both
@pytest.mark.parametrize("count", [1, 4, 5])
def test_padding_changes_nothing(kind: type[nn.Module], count: int) -> None:
    encode, value = encoder(kind), normal(3, count, 2)
    for rows in (1, 2, 7):
        torch.testing.assert_close(encode(padded(value, rows)), encode(value), **EXACT)
    # of samples of different lengths in one batch each has what it has alone
    ragged = torch.cat([padded(value[:1], 6), normal(1, count + 6, 2, seed=1)])
    torch.testing.assert_close(encode(ragged)[:1], encode(value[:1]), **EXACT)


@both
def test_the_gradient_of_padding_is_zero(kind: type[nn.Module]) -> None:
    encode, value = encoder(kind), padded(normal(2, 3, 2), 2).requires_grad_()
    (slope,) = torch.autograd.grad(encode(value).square().sum(), value)
    assert not slope[:, 3:].any() and (slope[:, :3].abs().amax(2) > 0).all()


def test_padding_of_a_set_may_stand_anywhere_and_a_missing_step_is_told_of() -> None:
    value = normal(2, 6, 2)
    hole = value.clone()
    hole[:, 2] = NAN
    shorter = value[:, [0, 1, 3, 4, 5]]
    torch.testing.assert_close(encoder(SetEncoder)(hole), encoder(SetEncoder)(shorter), **EXACT)
    encode = encoder(SeriesEncoder)
    zero = value.clone()
    zero[:, 2] = 0
    assert (encode(hole) - encode(shorter)).abs().max() > 1e-3  # time went on
    assert (encode(hole) - encode(zero)).abs().max() > 1e-3  # and nothing was seen


@both
def test_the_number_counts(kind: type[nn.Module]) -> None:
    """n copies of one observation are more evidence than one: mean and largest are the same, and n is told."""
    encode = encoder(kind)
    one = normal(1, 1, 2)
    assert (encode(one.expand(1, 3, 2)) - encode(one)).abs().max() > 1e-3


@both
def test_nothing_is_a_learned_vector(kind: type[nn.Module]) -> None:
    encode = encoder(kind)
    nothing = torch.full((2, 4, 2), NAN, dtype=F64)
    assert torch.equal(encode(nothing), encode.absent.expand(2, -1))
    assert torch.equal(encode(nothing[:, :0]), encode.absent.expand(2, -1))
    encode(nothing).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encode.parameters())


@both
def test_gradients_are_those_of_finite_differences(kind: type[nn.Module]) -> None:
    encode, value = encoder(kind), normal(2, 5, 2).requires_grad_()
    assert torch.autograd.gradcheck(encode, value, fast_mode=True)
    hole = torch.tensor([[True] * 5, [True, False, True, False, False]])[..., None]
    assert torch.autograd.gradcheck(lambda v: encode(v.where(hole, NAN)), value, fast_mode=True)


def test_pooling_is_mean_largest_and_number() -> None:
    rows, present = normal(2, 3, 4), torch.tensor([[True, False, True], [False, False, False]])
    mean, largest, number = pooled(rows, present)
    torch.testing.assert_close(mean[0], (rows[0, 0] + rows[0, 2]) / 2)
    assert torch.equal(largest[0], torch.maximum(rows[0, 0], rows[0, 2]))
    assert number.tolist() == [[2.0], [0.0]] and not mean[1].any() and not largest[1].any()
    many = torch.full((1, 4096, 1), 1.0, dtype=torch.bfloat16)  # summed in bfloat16 this stays at 256
    assert pooled(many, torch.ones(1, 4096, dtype=torch.bool)).mean.item() == 1.0


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_waves_for_any_width_and_length(width: int) -> None:
    long = step_waves(7, width, torch.zeros(1, dtype=F64))
    assert long.shape == (7, width) and torch.equal(step_waves(3, width, long), long[:3])
    assert torch.equal(long[:, 0], torch.arange(7, dtype=F64).sin())


# -- as conditions of networks -----------------------------------------------------------------------------------------

TOLD: dict[str, Any] = {"sets": {"obs": {"size": 2, "width": 8, "layers": 1}}, "series": {"path": 3}}


@pytest.mark.parametrize(
    "make",
    [
        lambda: (MLP(2, 8, 1, **TOLD), (4, 2)),
        lambda: (UNet(1, 1, width=8, multipliers=(1,), blocks=1, **TOLD), (4, 1, 6)),
        lambda: (MagnitudeUNet(1, 1, width=8, multipliers=(1,), blocks=1, **TOLD), (4, 1, 6)),
        lambda: (DiT(1, 1, width=8, depth=1, **TOLD), (4, 1, 6)),
    ],
)
def test_networks_take_sets_and_series(make: Any) -> None:
    torch.manual_seed(0)
    net, shape = make()
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    assert net.config["sets"] == {"obs": {"size": 2, "width": 8, "layers": 1}}
    assert net.config["series"] == {"path": {"size": 3, "width": 64, "layers": 2}}
    type(net)(**net.config).load_state_dict(net.state_dict())
    x, c, obs = torch.randn(shape), torch.zeros(4), torch.randn(4, 5, 2)
    a = net(x, c, obs=obs, path=torch.randn(4, 2, 3))
    assert a.shape == x.shape and not torch.allclose(a, net(x, c, obs=obs), atol=1e-5)
    torch.testing.assert_close(net(x, c, obs=obs.flip(1)), net(x, c, obs=obs), rtol=1e-4, atol=1e-5)
    for bad, words in [(obs[0], "members"), (obs[:2], "members"), (torch.randn(4, 5, 3), "each of 2")]:
        with pytest.raises(ValueError, match=words):
            net(x, c, obs=bad)
    partly = obs.clone()
    partly[0, 0, 0] = NAN
    with pytest.raises(ValueError, match="part of a token"):
        net(x, c, obs=partly)
    with pytest.raises(TypeError, match="floating"):
        net(x, c, path=torch.ones(4, 2, 3, dtype=torch.long))


def test_the_two_kinds_describe_themselves() -> None:
    conditions = Conditions.joined(Set.named({"obs": 2}), Series.named({"path": {"size": 3, "layers": 4}}))
    again = Conditions.joined(*(kind.named(conditions.config[kind.argument]) for kind in (Set, Series)))
    assert dict(again) == dict(conditions) == {"obs": Set(2), "path": Series(3, 64, 4)}
    assert all(math.isnan(null) for null in conditions.nulls.values())
    with pytest.raises(ValueError, match="sets"):
        Set.named({"obs": 0})
    with pytest.raises(ValueError, match="in sets and in series"):
        Conditions.joined(Set.named({"obs": 2}), Series.named({"obs": 2}))


# -- a posterior that is known -----------------------------------------------------------------------------------------


def test_the_posterior_of_a_mean_given_any_number_of_observations() -> None:
    """theta ~ N(0, 1), obs_i ~ N(theta, s^2), i = 1 ... n: p(theta | obs) = N(n m / (n + s^2), s^2 / (n + s^2)).

    m is the mean of the observations. With theta_t = theta + sigma eps the posterior of theta is Gaussian of precision
    1 + n / s^2 + 1 / sigma^2 and mean (n m / s^2 + theta_t / sigma^2) over that: E[theta | theta_t, obs], which the
    model's ``denoise`` is to be. n is from 0 to 4, by padding; n = 0 is the prior.
    """
    s, most, count = 1.0, 4, 50_000
    theta = normal(count, 1, seed=1)
    obs = theta[:, None] + s * normal(count, most, 1, seed=2)
    n = torch.randint(0, most + 1, (count,), generator=torch.Generator().manual_seed(3))
    obs[torch.arange(most) >= n[:, None]] = NAN
    dataset = from_tensors(theta.float(), conditions={"obs": obs.float()}, scaling=None)
    torch.manual_seed(0)
    net = MLP(1, 64, 2, sets={"obs": {"size": 1, "width": 32, "layers": 1}})
    model = ScoreModel(net, EDM(), "edm", sigma_data=1.0)
    times = Stratified(LogNormalSigma(mean=-0.5, std=1.2))
    run = train(model, dataset, steps=600, batch_size=256, lr=6e-3, decay="cosine", warmup=20, ema=0.99, times=times,
                weighting=edm(1.0), condition_dropout=0.0, progress=False, cpu=True)  # fmt: skip
    list(run)
    trained = run.ema_model()
    units = trained.scaling
    assert units is not None
    # new pairs, with other numbers of observations in one batch than padding would have; and far more than ever seen
    for number in (0, 1, 4):
        new = normal(2000, 1, seed=10 + number)
        seen = new[:, None] + s * normal(2000, number, 1, seed=20 + number)
        for sigma in (0.3, 1.0, 3.0):
            noisy = new + sigma * normal(2000, 1, seed=30)
            precision = 1 + number / s**2 + 1 / sigma**2
            total = seen.sum(1) if number else torch.zeros(2000, 1, dtype=F64)
            exact = (total / s**2 + noisy / sigma**2) / precision
            x = units.to_model(noisy).float()  # standardised: theta has mean 0, deviation 1 but for chance
            scale = float(torch.as_tensor(units.scale).reshape(-1)[0])
            t = trained.sde.t_of_log_snr(torch.tensor(-2 * math.log(sigma / scale), dtype=F64))
            told = {"obs": seen.float()} if number else {}
            with torch.no_grad():
                found = units.to_data(trained.denoise(x, t, told)).double()
            error = (found - exact).square().mean().sqrt().item()
            # The loss of any predictor is that of the best, 1 / precision, plus this error squared: within 5 % of the
            # best. One that takes the mean of the observations and not their number (2 always) is 12 % above it at
            # sigma = 3, for 1 of them as for 4; one that is told nothing is 80 % and more above it there.
            assert error**2 * precision < 0.05, (number, sigma, error, precision**-0.5)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_series_block_sees_as_many_steps_as_is_said(layers: int) -> None:
    """2^(layers + 1) - 1: a convolution of 3 steps adds two, each of as many of the series as it has been halved to."""
    blocks = [SeriesBlock(4).double() for _ in range(layers)]
    x = torch.randn(1, 64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    h, there = x, torch.ones(1, 64, 1, dtype=torch.float64)
    for i, block in enumerate(blocks):
        torch.nn.init.normal_(block.linear2.weight, generator=torch.Generator().manual_seed(i))
        h, there = block(h, there)
    h[0, h.shape[1] // 2].sum().backward()
    assert x.grad is not None and int((x.grad.abs().sum(2) > 0).sum()) == 2 ** (layers + 1) - 1
