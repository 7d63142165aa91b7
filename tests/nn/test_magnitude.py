"""The magnitude-preserving U-Net: each operation keeps E[y^2] = 1, and weights act by their direction alone."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde.data import from_tensors
from scoresde.models import ScoreModel
from scoresde.nn import MagnitudeUNet
from scoresde.nn.attention import Context
from scoresde.nn.magnitude import (
    SILU_MAGNITUDE,
    MagnitudeAttention,
    MagnitudeConv,
    MagnitudeEmbedding,
    MagnitudeVector,
    mp_cat,
    mp_silu,
    mp_sum,
    unit_magnitude,
)
from scoresde.nn.magnitude_unet import halved
from scoresde.sde import VP
from scoresde.train import EMA, Run, train

F64 = torch.float64
SMALL: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "blocks": 1, "head_width": 4}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def small(*args: Any, seed: int = 0, **options: Any) -> MagnitudeUNet:
    """With gains that are not 0, so that everything is seen in the output."""
    torch.manual_seed(seed)
    net = MagnitudeUNet(*args, **{**SMALL, **options}).double()
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):
            torch.nn.init.constant_(parameter, 0.7)
    return net


# -- operations --------------------------------------------------------------------------------------------------------


def test_silu_has_magnitude_one_for_normals() -> None:
    # the trapezoidal rule on an analytic function that decays like a Gaussian is exact to rounding
    x = torch.linspace(-12, 12, 4001, dtype=F64)
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    second_moment = torch.trapezoid(mp_silu(x) ** 2 * density, x).item()
    assert abs(second_moment - 1) < 1e-9  # SILU_MAGNITUDE has ten digits
    assert f"{SILU_MAGNITUDE:.3f}" == "0.596"  # equation 81


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_sums_have_magnitude_one_exactly(t: float) -> None:
    """Of orthogonal vectors of magnitude 1: E of the cross term is 0 in general, and is 0 here without chance."""
    a, b = torch.tensor([1.0, 1.0], dtype=F64), torch.tensor([1.0, -1.0], dtype=F64)
    both = mp_sum(a, b, t)
    assert abs(both.square().mean().item() - 1) < 1e-15
    assert abs((both @ a).item() * t - (both @ b).item() * (1 - t)) < 1e-15  # shares are as 1 - t to t


@pytest.mark.parametrize(("n", "m"), [(3, 3), (2, 7), (5, 1)])
def test_concatenations_have_magnitude_one_and_equal_shares(n: int, m: int) -> None:
    a, b = (unit_magnitude(normal(2, k, 4, seed=k), 0, 1, 2) for k in (n, m))
    both = mp_cat(a, b)
    of_a, of_b = both[:, :n].square().sum().item(), both[:, n:].square().sum().item()
    assert abs(of_a / of_b - 1) < 1e-3  # 1e-4 is added to magnitudes in unit_magnitude, for a and b alike
    assert abs(both.square().mean().item() - 1) < 3e-4  # likewise: (1 + 1e-4)^-2


def test_unit_magnitude_divides_by_the_root_mean_square() -> None:
    x = 7 * normal(3, 5, 4)
    expected = x / (1e-4 + x.square().mean((1, 2), keepdim=True).sqrt())
    torch.testing.assert_close(unit_magnitude(x, 1, 2), expected, rtol=1e-14, atol=0)
    assert torch.equal(unit_magnitude(torch.zeros(2, 3), 1), torch.zeros(2, 3))
    half = unit_magnitude(torch.full((1, 4096), 300.0, dtype=torch.float16), 1)  # whose squares are infinite in float16
    torch.testing.assert_close(half, torch.ones_like(half), rtol=2e-3, atol=0)


@pytest.mark.parametrize("event_dims", [0, 1, 2, 3])
def test_a_convolution_of_white_noise_has_magnitude_one(event_dims: int) -> None:
    """Var y_j = |w_j|^2 / |w_j|^2 = 1 inside; at a border the part of the kernel that lies within."""
    torch.manual_seed(1)
    kernel = 3 if event_dims else 1
    conv = MagnitudeConv(5, 4, kernel, event_dims).double()
    with torch.no_grad():
        conv.weight.mul_(torch.tensor([0.1, 1.0, 3.0, 100.0], dtype=F64).reshape(-1, *[1] * (conv.weight.ndim - 1)))
    # exactly: the response to each unit vector of the input has the weights as entries, whose squares sum to 1
    size = 3
    inputs = torch.eye(5 * size**event_dims, dtype=F64).reshape(-1, 5, *[size] * event_dims)
    center = (slice(None), slice(None), *[1] * event_dims)
    power = conv(inputs)[center].square().sum(0)
    torch.testing.assert_close(power, torch.ones(4, dtype=F64), rtol=1e-13, atol=0)


def test_the_embedding_has_magnitude_one() -> None:
    from scoresde.models.conditions import Conditions, Label, Set, Vector

    torch.manual_seed(0)
    kinds = Conditions({"label": Label(3), "v": Vector(2), "obs": Set(2)})
    embed = MagnitudeEmbedding(64, 512, kinds).double()
    x, c = normal(400, 1), torch.linspace(-3, 3, 400, dtype=F64)
    given = {"label": torch.arange(400) % 4, "v": normal(400, 2, seed=1), "obs": normal(400, 3, 2, seed=2)}
    given["v"][::5] = torch.nan
    e = embed(c, kinds.read(given, x))
    # before mp_silu: 512 channels of a sum of independent parts; a mean of 400 x 512 squares over parts drawn once. The
    # weights' own chance dominates: about sqrt(2 / 512) for each of the three random maps.
    assert abs(e.square().mean().item() - 1) < 0.2
    absent = embed(c, kinds.read({}, x))
    assert abs(absent.square().mean().item() - 1) < 0.2
    assert not torch.allclose(e, absent)
    vector = MagnitudeVector(3, 4096).double()  # the brackets are of magnitude 1, given or not
    v = unit_magnitude(normal(2, 3), 1) * (1 + 1e-4)
    v[1] = torch.nan
    # mean square over 4096 outputs, each the square of about N(0, 1): 4 sqrt(2 / 4096) = 0.09, twice in a row
    assert (vector(v).square().mean(1) - 1).abs().max().item() < 0.2


def test_magnitudes_do_not_drift_with_depth() -> None:
    """All activations of a deep network, at its start, are of magnitude 1: what enters each weight is."""
    torch.manual_seed(0)
    net = MagnitudeUNet(4, 1, width=64, multipliers=(1, 1), blocks=8, attention_levels=())
    torch.nn.init.ones_(net.gain)
    seen: list[float] = []
    for block in (*net.middle, *(b for level in net.levels_up for b in level)):
        block.register_forward_hook(lambda m, args, out: seen.append(out.square().mean().item()))
    out = net(torch.randn(4, 4, 256), torch.zeros(4))
    assert len(seen) == 20
    # Each block mixes sqrt(0.58)^-1 (0.7 x + 0.3 h): h adds 9/58 of the mean square, with a relative chance of about
    # sqrt(2 / 64) for the directions of 64 weights, and what is beyond Gaussian in mp_silu. Without normalisation (the
    # usual initial weights have 1/3 of the variance) 20 blocks would fall to (49/58)^20 = 0.03.
    assert all(0.75 < value < 1.25 for value in seen), seen
    assert 0.5 < out.square().mean().item() < 1.6  # the mean of 4 channels, each with a direction of its own


def test_attention_is_by_cosines() -> None:
    """Queries and keys of any length give the same map, which is that of the formula."""
    torch.manual_seed(0)
    layer = MagnitudeAttention(8, 4, 1, context=6).double()
    x, tokens = normal(2, 8, 5), normal(2, 3, 6, seed=1)
    present = torch.tensor([[True, True, False], [True, True, True]])
    out = layer(x, Context(tokens, present))
    assert torch.equal(out[0], layer(x, Context(tokens.where(present[..., None], torch.tensor(9.0)), present))[0])
    q = unit_magnitude(layer.query(x.transpose(1, 2)).unflatten(2, (2, 4)), 3)
    k, v = (unit_magnitude(one, 3) for one in layer.kv(unit_magnitude(tokens, 2)).unflatten(2, (2, 2, 4)).unbind(2))
    cosine = torch.einsum("bphc,bnhc->bhpn", q, k) / math.sqrt(4)
    weights = cosine.masked_fill(~present[:, None, None], -torch.inf).softmax(3)
    mixed = torch.einsum("bhpn,bnhc->bphc", weights, v).flatten(2)
    torch.testing.assert_close(out, mp_sum(x, layer.proj(mixed).transpose(1, 2), 0.3), rtol=1e-12, atol=1e-13)
    assert cosine.abs().max().item() <= 2.0  # sqrt(4): no logit can be larger


def test_halving_keeps_a_constant_and_the_last_of_an_odd_number() -> None:
    assert torch.equal(halved(torch.ones(1, 1, 5, 4)), torch.ones(1, 1, 3, 2))
    assert halved(torch.arange(5.0)[None, None]).tolist() == [[[0.5, 2.5, 4.0]]]


# -- weights -----------------------------------------------------------------------------------------------------------


def rms_of(net: torch.nn.Module) -> Tensor:
    """Root mean square of each w_j."""
    convs = [m for m in net.modules() if isinstance(m, MagnitudeConv)]
    return torch.cat([m.weight.detach().flatten(1).square().mean(1).sqrt() for m in convs])


def test_the_output_does_not_depend_on_the_length_of_a_weight() -> None:
    net = small(2, 1, num_classes=3)
    x, c, label = normal(2, 2, 9), normal(2, seed=1), torch.tensor([0, 3])
    before = net(x, c, label=label)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, MagnitudeConv):
                module.weight.mul_(3.7)
    torch.testing.assert_close(net(x, c, label=label), before, rtol=1e-11, atol=1e-12)
    for module in net.modules():
        getattr(module, "after_step", lambda: None)()
    torch.testing.assert_close(net(x, c, label=label), before, rtol=1e-11, atol=1e-12)
    assert (rms_of(net) - 1).abs().max() < 1e-14


def test_gradients_are_orthogonal_to_weights() -> None:
    """d f(s w) / d s = 0, so that a plain step makes weights longer: |w - r g|^2 = |w|^2 + r^2 |g|^2."""
    net = small(2, 1)
    net(normal(2, 2, 9), normal(2, seed=1)).square().sum().backward()
    for module in net.modules():
        if isinstance(module, MagnitudeConv):
            assert module.weight.grad is not None
            w, g = module.weight.detach().flatten(1), module.weight.grad.flatten(1)
            assert ((w * g).sum(1).abs() <= 1e-12 * (w.norm(dim=1) * g.norm(dim=1)).clamp(min=1)).all()


def a_run(steps: int, seed: int = 0, **options: Any) -> Run[ScoreModel]:
    """Of a network of signals that starts with gains other than 0."""
    x = torch.randn(64, 1, 8, generator=torch.Generator().manual_seed(3))
    net = small(1, 1, seed=seed).float()
    model = ScoreModel(net, VP(), "edm", sigma_data=1.0)
    return train(model, from_tensors(x), steps=steps, batch_size=8, lr=3e-2, progress=False, cpu=True, **options)


def test_weights_keep_their_length_in_training_and_averages_do_not_need_it() -> None:
    run = a_run(5, ema=0.5, ema_warmup=False)
    started = copy.deepcopy(run.model.state_dict())
    list(run)
    net: Any = run.model.net
    assert (rms_of(net) - 1).abs().max() < 1e-6  # float32
    assert any(not torch.equal(value, started[name]) for name, value in run.model.state_dict().items())
    averaged: Any = run.ema_model().net
    assert (rms_of(averaged) < 1 - 1e-4).any()  # a mean of directions is shorter, and acts by its own
    x, c = torch.randn(2, 1, 8), torch.zeros(2)
    before = averaged(x, c)
    for module in averaged.modules():
        getattr(module, "after_step", lambda: None)()
    torch.testing.assert_close(averaged(x, c), before, rtol=1e-4, atol=1e-5)


def test_the_rate_of_learning_does_not_depend_on_the_length_of_weights() -> None:
    """The gradient of s w is 1/s of that of w, so that without ``after_step`` a step of rate r turns w by r / s^2.

    With it, weights that start five times as long go the same way: s is 1 before each step but the first, which the
    test takes of both from s = 1.
    """
    net, x, c = small(1, 1), normal(2, 1, 8), normal(2, seed=1)
    grown = copy.deepcopy(net)
    with torch.no_grad():
        for module in grown.modules():
            if isinstance(module, MagnitudeConv):
                module.weight.mul_(5.0)
    for one in (net, grown):
        one(x, c).square().sum().backward()
    for (name, a), b in zip(net.named_parameters(), grown.parameters(), strict=True):
        if not name.endswith("gain"):
            torch.testing.assert_close(b.grad, a.grad / 5, rtol=1e-9, atol=1e-12)
    for one in (net, grown):
        optimizer = torch.optim.SGD(one.parameters(), 0.01)
        for _ in range(3):
            for module in one.modules():
                getattr(module, "after_step", lambda: None)()
            optimizer.zero_grad()
            one(x, c).square().sum().backward()
            optimizer.step()
    for a, b in zip(net.parameters(), grown.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-8, atol=1e-10)


def test_resumed_training_equals_uninterrupted_training(tmp_path: Any) -> None:
    whole = a_run(6)
    list(whole)
    first = a_run(3, folder=tmp_path, decay="constant")
    list(first)
    second = a_run(6, seed=1, folder=tmp_path, resume=True)
    list(second)
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_loop_of_ones_own_with_averages() -> None:
    net = small(1, 1)
    ema, optimizer = EMA(net, 0.9), torch.optim.Adam(net.parameters(), 0.1)
    for _ in range(2):
        net(normal(2, 1, 8), normal(2)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        for module in net.modules():
            getattr(module, "after_step", lambda: None)()
        ema.update()
    assert (rms_of(net) - 1).abs().max() < 1e-14


def test_functional_calls_and_derivatives() -> None:
    """torch.func takes weights as arguments; nothing is written to them in a call."""
    net = small(1, 1, attention_levels=())
    x, c = normal(2, 1, 6), normal(2, seed=1)
    parameters = {name: value.detach().clone() for name, value in net.named_parameters()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(net, weights, (x, c)).square().sum()

    gradient = torch.func.grad(loss)(parameters)
    loss(dict(net.named_parameters())).backward()
    for name, value in net.named_parameters():
        torch.testing.assert_close(gradient[name], value.grad, rtol=1e-9, atol=1e-12)
        assert torch.equal(parameters[name], value)
    torch.func.vmap(lambda one: net(one[None], c[:1]))(x)


# -- training ----------------------------------------------------------------------------------------------------------


def test_it_learns_a_gaussian() -> None:
    """x_0 ~ N(0, s^2 11^T + r^2 I): the best predictor is linear, and its loss has a closed form.

    With x = x_0 + sigma eps, the error of E[x_0 | x] is the trace of the posterior covariance; one along 1 with
    variance a = L s^2 + r^2, and L - 1 of r^2: sum of v sigma^2 / (v + sigma^2). The trivial predictor E[x_0] = 0 loses
    the trace of the covariance itself.
    """
    length, s, r, sigma, batch = 4, 1.0, 0.1, 0.5, 64
    variances = torch.tensor([length * s**2 + r**2] + [r**2] * (length - 1))
    best = (variances * sigma**2 / (variances + sigma**2)).sum().item()
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> Tensor:
        common = s * torch.randn(n, 1, 1, generator=generator)
        return common + r * torch.randn(n, 1, length, generator=generator)

    net = small(1, 1, blocks=1, multipliers=(1,), attention_levels=(-1,)).float()
    rate = 0.03
    optimizer = torch.optim.Adam(net.parameters(), rate, betas=(0.9, 0.99))
    scale = math.sqrt(s**2 + r**2 + sigma**2)
    c = torch.full((batch,), math.log(sigma))

    def error(n: int) -> Tensor:
        x0 = draw(n)
        x = x0 + sigma * torch.randn(x0.shape, generator=generator)
        return (net(x / scale, c[:1].expand(n)) - x0).square().sum((1, 2))

    for step in range(100):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / 100)
        error(batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        for module in net.modules():
            getattr(module, "after_step", lambda: None)()
    with torch.no_grad():
        errors = error(4000)
    mean, deviation = errors.mean().item(), errors.std().item() / math.sqrt(4000)
    trivial = variances.sum().item()
    # never below the best by more than chance, and within 3 % of the way from there to the trivial one
    assert best - 4 * deviation < mean < best + 0.03 * (trivial - best), (best, mean, trivial)
