"""Networks: shapes, wiring and options, each against what the equations say or an invariance."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from scoresde.nn import (
    MLP,
    AttentionPool,
    FourierFeatures,
    NoiseClassifier,
    SelfAttention,
    SinusoidalFeatures,
    UNet,
    presets,
)
from scoresde.nn.blocks import BlockStyle, ResidualBlock, Upsample

SIZES: dict[int, tuple[int, ...]] = {1: (13,), 2: (7, 10), 3: (5, 4, 6)}
# In float64, the same sums in another order differ by a few thousand roundings of 2e-16 of numbers of order 1.
SAME = {"rtol": 1e-10, "atol": 1e-10}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def awake(net: nn.Module, seed: int = 0) -> Any:
    """Give a random value to every parameter, those that start at zero among them; in float64."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double()
    with torch.no_grad():
        for parameter in net.parameters():
            scale = 1 / math.sqrt(max(1, parameter[0].numel()))
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale)
    return net


def unet(event_dims: int = 2, **options: Any) -> UNet:
    return UNet(2, event_dims, **{"width": 8, "multipliers": (1, 2, 2), "blocks": 1, **options})


def example(event_dims: int = 2, batch: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    return randn(batch, 2, *SIZES[event_dims], seed=seed), torch.linspace(-6, 6, batch, dtype=torch.float64)


NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "unet1": (lambda: unet(1, num_classes=3), (2, 13)),
    "unet2": (lambda: unet(2, num_classes=3), (2, 7, 10)),
    "unet3": (lambda: unet(3, num_classes=3), (2, 5, 4, 6)),
    "unet2-add-fourier": (
        lambda: unet(num_classes=3, conditioning="add", time_features="fourier"),
        (2, 7, 10),
    ),
    "mlp": (lambda: MLP(5, 16, 2, 3), (5,)),
    "mlp-fourier": (lambda: MLP(5, 16, 2, 3, time_features="fourier"), (5,)),
    "classifier1": (lambda: NoiseClassifier(2, 4, 1, width=8, blocks=1), (2, 13)),
    "classifier2": (lambda: NoiseClassifier(2, 4, width=8, blocks=1, pool="mean"), (2, 7, 10)),
    "classifier3": (lambda: NoiseClassifier(2, 4, 3, width=8, blocks=1, multipliers=(1, 2)), (2, 5, 4, 6)),
}


@pytest.fixture(params=NETS)
def case(request: pytest.FixtureRequest) -> tuple[Any, tuple[int, ...]]:
    make, event = NETS[request.param]
    return make(), event


# --- all networks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_output_shape_and_zero_start(case: Any, batch: int) -> None:
    net, event = case
    out = net.train()(randn(batch, *event, dtype=torch.float32), torch.zeros(batch))
    assert out.shape == ((batch, 4) if isinstance(net, NoiseClassifier) else (batch, *event))
    assert torch.equal(out, torch.zeros_like(out))


def test_gradient_reaches_every_parameter_and_x(case: Any) -> None:
    net, event = case
    net = awake(net)
    x = randn(3, *event).requires_grad_()
    labels = {"label": torch.tensor([0, 2, 3])} if not isinstance(net, NoiseClassifier) else {}
    net(x, torch.tensor([-2.0, 0.0, 2.0]).double(), **labels).square().sum().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-9]
    assert not idle
    assert x.grad is not None and x.grad.abs().min() > 0


def test_samples_do_not_see_each_other(case: Any) -> None:
    net, event = case
    net = awake(net)
    x, c = randn(3, *event), torch.tensor([-3.0, 0.0, 4.0]).double()
    alone = torch.cat([net(x[i : i + 1], c[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, c), alone, **SAME)


def test_time_changes_the_output(case: Any) -> None:
    net, event = case
    net = awake(net)
    x = randn(1, *event).expand(3, *event)
    outs = net(x, torch.tensor([-7.0, 0.0, 7.0]).double())
    assert (outs[0] - outs[1]).abs().max() > 1e-3 and (outs[0] - outs[2]).abs().max() > 1e-3


def test_config_rebuilds_the_network(case: Any) -> None:
    net, event = case
    net = awake(net)
    config = json.loads(json.dumps(net.config))
    assert config == net.config
    twin = awake(type(net)(**config), seed=1)
    twin.load_state_dict(net.state_dict())
    x, c = randn(2, *event), torch.tensor([-1.0, 1.0]).double()
    assert torch.equal(net(x, c), twin(x, c))
    net.config.clear()  # a copy: nobody spoils the network's own
    assert net.config == config


def test_precisions(case: Any) -> None:
    net, event = case
    net = awake(net)
    x, c = randn(2, *event), torch.tensor([-3.3, 2.2]).double()
    exact = net(x, c)
    size = exact.detach().abs().max().item()
    net = net.float()
    mixed = net(x, c)  # float64 events and times, float32 weights
    assert mixed.dtype == torch.float64
    # float32 rounds to 6e-8, tens of times in a row, and norms can magnify it.
    torch.testing.assert_close(mixed, exact, rtol=0, atol=1e-4 * size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        auto = net(x.float(), c.float())
    assert auto.dtype == torch.float32
    half = net.bfloat16()(x.bfloat16(), c.float())
    assert half.dtype == torch.bfloat16
    # bfloat16 rounds to 4e-3, tens of times in a row, of independent signs.
    torch.testing.assert_close(auto.double(), exact, rtol=0, atol=0.1 * size)
    torch.testing.assert_close(half.double(), exact, rtol=0, atol=0.1 * size)


def test_no_device_is_read_back_and_no_value_is_needed(case: Any) -> None:
    """Meta tensors have no values: a network that runs on them never waits for a device."""
    net, event = case
    net = net.to("meta")
    labels = {"label": torch.zeros(2, dtype=torch.long, device="meta")}
    if isinstance(net, NoiseClassifier):
        labels = {}
    out = net(torch.zeros(2, *event, device="meta"), torch.zeros(2, device="meta"), **labels)
    assert len(out) == 2


@pytest.mark.parametrize("name", ["unet2", "mlp", "classifier1"])
def test_compiles_to_one_graph(name: str) -> None:
    make, event = NETS[name]
    net = awake(make())
    x, c = randn(2, *event), torch.tensor([-1.0, 1.0]).double()
    labels = {"label": torch.tensor([0, 3])} if not isinstance(net, NoiseClassifier) else {}
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, c, **labels), net(x, c, **labels), **SAME)


# --- labels and bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda k: unet(num_classes=k), lambda k: MLP(5, 16, 2, num_classes=k)])
def test_labels(make: Any) -> None:
    net = awake(make(3))
    x = randn(1, *((5,) if isinstance(net, MLP) else (2, 7, 10))).expand(4, *[-1] * (1 if isinstance(net, MLP) else 3))
    c = torch.zeros(4).double()
    outs = net(x, c, label=torch.tensor([0, 1, 2, 3]))
    for i in range(4):
        for j in range(i):
            assert (outs[i] - outs[j]).abs().max() > 1e-3
    assert net.null_conditions == {"label": 3}
    torch.testing.assert_close(net(x, c), outs[3:].expand_as(outs), **SAME)
    assert make(None).null_conditions == {}
    with pytest.raises(TypeError, match=r"unknown condition 'label': this network was built without any.*num_classes="):
        make(None).double()(x, c, label=torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize(
    ("label", "error", "message"),
    [
        (torch.tensor([0, 4]), ValueError, "from 0 to 4; expected 0 to 2, or 3"),
        (torch.tensor([-1, 0]), ValueError, "from -1 to 0"),
        (torch.tensor([0]), ValueError, r"shape \(1,\); expected \(2,\)"),
        (torch.tensor([[0, 1]]), ValueError, r"shape \(1, 2\)"),
        (torch.tensor([0.0, 1.0]), TypeError, "label.long"),
        (torch.tensor([0, 1], dtype=torch.int32), TypeError, "int64"),
        (1, TypeError, "label must be a tensor of 2 rows, got 1"),
    ],
)
@pytest.mark.parametrize("net", [unet(num_classes=3), MLP(5, 16, 1, 3)], ids=["unet", "mlp"])
def test_bad_labels(net: Any, label: Any, error: type[Exception], message: str) -> None:
    x = torch.zeros(2, 5) if isinstance(net, MLP) else torch.zeros(2, 2, 8, 8)
    with pytest.raises(error, match=message):
        net(x, torch.zeros(2), label=label)


@pytest.mark.parametrize(
    ("x", "c", "error", "message"),
    [
        (torch.zeros(2, 8, 8), torch.zeros(2), ValueError, r"shape \(2, 8, 8\).*expects \(B, 2, H, W\)"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1), ValueError, "3 channels.*channels=2"),
        (
            torch.zeros(1, 2, 8, 8, dtype=torch.long),
            torch.zeros(1),
            TypeError,
            "x must be a floating tensor, got torch.int64",
        ),
        (torch.zeros(1, 2, 2, 8), torch.zeros(1), ValueError, r"\(2, 8\), too small for 3 levels.*at least 3"),
        (torch.zeros(2, 2, 8, 8), torch.zeros(()), ValueError, r"c has shape \(\); expected \(2,\)"),
        (torch.zeros(2, 2, 8, 8), torch.zeros(2, 1), ValueError, r"c has shape \(2, 1\)"),
        (torch.zeros(2, 2, 8, 8), torch.zeros(3), ValueError, r"c has shape \(3,\)"),
        (torch.zeros(2, 2, 8, 8), torch.zeros(2).long(), TypeError, "c has dtype torch.int64"),
    ],
)
@pytest.mark.parametrize("net", [unet(), NoiseClassifier(2, 4, width=8)], ids=["unet", "classifier"])
def test_bad_events_and_times(net: Any, x: Tensor, c: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        net(x, c)


@pytest.mark.parametrize("value", [4.0, True, "4", None])
def test_sizes_are_whole_numbers(value: object) -> None:
    for build in (
        lambda: MLP(2, width=value),  # type: ignore[arg-type]
        lambda: MLP(2, num_classes=value or 4.0),  # type: ignore[arg-type]
        lambda: unet(width=value),
        lambda: unet(blocks=value),
        lambda: unet(head_width=value),
        lambda: NoiseClassifier(2, value, width=8),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=r"must be a whole number(?: of at least 1)?, got (4\.0|True|'4'|None)"):
            build()
    with pytest.raises(TypeError, match=r"multipliers\[1\] must be a whole number.*got 1\.5"):
        unet(multipliers=(1, 1.5))


def test_bad_vectors() -> None:
    net = MLP(5, 16, 1)
    with pytest.raises(ValueError, match=r"shape \(2, 4\).*expects \(B, 5\)"):
        net(torch.zeros(2, 4), torch.zeros(2))
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        net(torch.zeros(5), torch.zeros(5))
    with pytest.raises(TypeError, match="floating"):
        net(torch.zeros(2, 5, dtype=torch.long), torch.zeros(2))
    with pytest.raises(ValueError, match="c has shape"):
        net(torch.zeros(2, 5), torch.zeros(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: unet(event_dims=4), "event_dims must be a whole number from 1 to 3, got 4"),
        (lambda: unet(width=0), "width must be .* got 0"),
        (lambda: unet(blocks=0), "blocks must be .* got 0"),
        (lambda: unet(multipliers=()), "multipliers"),
        (lambda: unet(multipliers=(1, 0)), "multipliers"),
        (lambda: unet(attention_levels=(3,)), "attention_levels.*3 is none of them"),
        (lambda: unet(attention_levels=(-4,)), "attention_levels.*-4 is none of them"),
        (lambda: unet(head_width=0), "head_width must be .* got 0"),
        (lambda: unet(time_features="random"), "'sinusoidal', 'fourier'; got 'random'"),
        (lambda: unet(conditioning="film"), "'add', 'adaptive'; got 'film'"),
        (lambda: unet(num_classes=0), "num_classes must be .* got 0"),
        (lambda: unet(dropout=1.0), "dropout=1: expected"),
        (lambda: unet(out_channels=0), "out_channels must be .* got 0"),
        (lambda: UNet(0), "channels must be .* got 0"),
        (lambda: MLP(0), "dim must be .* got 0"),
        (lambda: MLP(2, 0), "width must be .* got 0"),
        (lambda: MLP(2, 8, 0), "depth must be .* got 0"),
        (lambda: MLP(2, 8, 1, 0), "num_classes must be .* got 0"),
        (lambda: MLP(2, 8, 1, dropout=-0.1), "dropout=-0.1"),
        (lambda: MLP(2, 8, 1, out_dim=0), "out_dim must be .* got 0"),
        (lambda: NoiseClassifier(1, 0), "num_classes must be .* got 0"),
        (lambda: NoiseClassifier(1, 2, pool="max"), "'attention', 'mean'; got 'max'"),
        (lambda: SinusoidalFeatures(3), "dim=3.*even"),
        (lambda: SinusoidalFeatures(4, slowest=2.0, fastest=1.0), "slowest=2.0"),
        (lambda: FourierFeatures(0), "dim must be a whole number from 1 to"),
        (lambda: FourierFeatures(4, scale=0.0), "scale must be positive"),
    ],
)
def test_bad_constructor_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- time features -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [SinusoidalFeatures(16), FourierFeatures(16)])
def test_features_are_waves(features: Any) -> None:
    c = torch.linspace(-7, 7, 29, dtype=torch.float64)
    phase = c[:, None] * features.frequencies.double()
    expected = math.sqrt(2) * torch.cat([phase.cos(), phase.sin()], dim=1)
    torch.testing.assert_close(features.double()(c), expected, **SAME)


def test_sinusoidal_features_tell_far_and_close_times_apart() -> None:
    features = SinusoidalFeatures(64).double()
    c = torch.linspace(-7, 7, 281, dtype=torch.float64)  # 0.05 apart: noise levels 5 % apart
    codes = features(c)
    assert (codes[:, 32].diff() > 0).all()  # the slowest sine alone is one-to-one
    # A wave's chord over a step d is sqrt(2) 2 |sin(w d / 2)| >= sqrt(2) (2 / pi) w d while w d <= pi: 0.36 at w = 8.
    assert codes.diff(dim=0).norm(dim=1).min() > 0.36
    assert features.frequencies.min() == pytest.approx(math.pi / 14)
    assert features.frequencies.max() == pytest.approx(8)
    custom = SinusoidalFeatures(6, slowest=1.0, fastest=4.0)
    torch.testing.assert_close(custom.frequencies, torch.tensor([1.0, 2.0, 4.0]))  # geometric


def test_fourier_features_are_drawn_from_their_seed_alone() -> None:
    state = torch.random.get_rng_state()
    a, b, other = FourierFeatures(8, seed=5), FourierFeatures(8, seed=5), FourierFeatures(8, seed=6)
    mine = FourierFeatures(8, seed=torch.Generator().manual_seed(5))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(a.frequencies, b.frequencies) and torch.equal(a.frequencies, mine.frequencies)
    assert not torch.equal(a.frequencies, other.frequencies)
    assert "frequencies" in a.state_dict() and not list(a.parameters())
    many = FourierFeatures(20_000, scale=0.7).frequencies
    # The standard deviation of n = 10000 normals is off by 1/sqrt(2 n) = 0.7 % at one sigma; five of them.
    assert many.std().item() == pytest.approx(2 * math.pi * 0.7, rel=0.035)


@pytest.mark.parametrize("features", [SinusoidalFeatures(32), FourierFeatures(32)])
def test_features_are_never_computed_in_half_precision(features: Any) -> None:
    c = torch.tensor([-6.5, 0.25, 3.0])  # exact in half precision
    exact = features(c)
    assert exact.dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float16):
        features = features.to(dtype)
        assert torch.equal(features(c), exact)
        assert torch.equal(features(c.to(dtype)), exact)
    assert features(c.double()).dtype == torch.float64


# --- blocks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioning", ["add", "adaptive"])
@pytest.mark.parametrize("outputs", [8, 12])
def test_residual_block_is_its_equation(conditioning: Any, outputs: int) -> None:
    block = awake(ResidualBlock(8, outputs, BlockStyle(2, 6, conditioning, 64, 0.0)))
    x, e = randn(3, 8, 5, 4), randn(3, 6, seed=1)
    p = dict(block.named_parameters())

    def norm(z: Tensor) -> Tensor:
        grouped = z.unflatten(1, (-1, 4))  # 8 and 12 channels: groups of 4
        mean = grouped.mean((2, 3, 4), keepdim=True)
        variance = (grouped - mean).square().mean((2, 3, 4), keepdim=True)
        return ((grouped - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)

    def channels(v: Tensor) -> Tensor:
        return v[..., None, None]

    h = F.silu(norm(x) * channels(p["norm1.weight"]) + channels(p["norm1.bias"]))
    h = F.conv2d(h, p["conv1.weight"], p["conv1.bias"], padding=1)
    told = e @ p["condition.weight"].T + p["condition.bias"]
    if conditioning == "add":
        h = norm(h + channels(told)) * channels(p["norm2.weight"]) + channels(p["norm2.bias"])
    else:
        h = norm(h) * channels(1 + told[:, :outputs]) + channels(told[:, outputs:])
    h = F.conv2d(F.silu(h), p["conv2.weight"], p["conv2.bias"], padding=1)
    shortcut = x if outputs == 8 else F.conv2d(x, p["shortcut.weight"], p["shortcut.bias"])
    torch.testing.assert_close(block(x, e), (shortcut + h) / math.sqrt(2), **SAME)


@pytest.mark.parametrize(("channels", "head_width", "heads"), [(8, 4, 2), (8, 64, 1), (12, 5, 2), (12, 1, 12)])
def test_self_attention_is_its_equation(channels: int, head_width: int, heads: int) -> None:
    block = awake(SelfAttention(channels, head_width))
    x = randn(2, channels, 3, 5)
    tokens = block.norm(x).flatten(2).transpose(1, 2)
    q, k, v = (tokens @ block.qkv.weight.T).chunk(3, dim=2)
    mixed = []
    for head in torch.arange(channels).chunk(heads):
        scores = q[..., head] @ k[..., head].transpose(1, 2) / math.sqrt(len(head))
        mixed.append(scores.softmax(2) @ v[..., head])
    out = torch.cat(mixed, 2) @ block.proj.weight.T + block.proj.bias
    torch.testing.assert_close(block(x), x + out.transpose(1, 2).reshape(x.shape), **SAME)


def test_attention_pool_is_its_equation() -> None:
    pool = awake(AttentionPool(8, 4))
    x = randn(2, 8, 3, 5)
    k, v = (x.flatten(2).transpose(1, 2) @ pool.kv.weight.T).chunk(2, dim=2)
    mixed = []
    for query, head in zip(pool.query, torch.arange(8).chunk(2), strict=True):
        weights = (query @ k[..., head].transpose(1, 2) / 2).softmax(2)  # sqrt(4 channels) = 2
        mixed.append((weights @ v[..., head])[:, 0])
    out = torch.cat(mixed, 1) @ pool.proj.weight.T + pool.proj.bias
    torch.testing.assert_close(pool(x), out, **SAME)


def test_attention_treats_positions_alike() -> None:
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    x = randn(2, 8, 15)
    attend, pool = awake(SelfAttention(8, 4)), awake(AttentionPool(8, 4))
    torch.testing.assert_close(attend(x[..., order]), attend(x)[..., order], **SAME)
    torch.testing.assert_close(pool(x[..., order]), pool(x), **SAME)
    assert (pool(x) - pool(x.mean(2, keepdim=True))).abs().max() > 1e-3  # it looks at where things are


def test_upsampling_repeats_pixels_up_to_any_size() -> None:
    up = awake(Upsample(3, 2, BlockStyle(1, 6, "add", 64, 0.0)))
    x = randn(2, 3, 4)
    # pixel i of 7 lies over pixel floor(4 i / 7) of 4
    torch.testing.assert_close(up(x, torch.Size([7])), up.conv(x)[..., [0, 0, 1, 1, 2, 2, 3]], **SAME)
    torch.testing.assert_close(up(x, torch.Size([8])), up.conv(x).repeat_interleave(2, dim=2), **SAME)


# --- U-Net -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event_dims", [1, 2, 3])
@pytest.mark.parametrize("size", [3, 5, 6, 9])
def test_every_size_above_the_smallest_works(event_dims: int, size: int) -> None:
    x = randn(1, 2, *[size] * event_dims, dtype=torch.float32)
    assert unet(event_dims, out_channels=5)(x, torch.zeros(1)).shape == (1, 5, *x.shape[2:])


def test_one_level_has_no_smallest_size() -> None:
    assert unet(multipliers=(1,))(torch.zeros(1, 2, 1, 1), torch.zeros(1)).shape == (1, 2, 1, 1)


@pytest.mark.parametrize(
    ("levels", "blocks", "expected"),
    [
        ((), 1, {}),
        ((0,), 1, {(7, 10): 2}),
        ((1,), 2, {(4, 5): 4}),
        ((2,), 1, {(2, 3): 3}),  # one of the two blocks in the middle too
        ((-1,), 2, {(2, 3): 5}),
        ((0, -2), 1, {(7, 10): 2, (4, 5): 2}),
    ],
)
def test_attention_is_where_it_was_asked_for(levels: Any, blocks: int, expected: Any) -> None:
    seen: Counter[tuple[int, ...]] = Counter()
    net = unet(attention_levels=levels, blocks=blocks)
    for module in net.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_hook(lambda _, inputs, __: seen.update([tuple(inputs[0].shape[2:])]))
    net(torch.zeros(1, 2, 7, 10), torch.zeros(1))
    assert seen == expected


@pytest.mark.parametrize("make", [unet, lambda **options: NoiseClassifier(2, 4, **options)])
def test_width_multipliers_blocks_and_head_width_are_honoured(make: Any) -> None:
    options = {"multipliers": (1, 3, 2), "blocks": 2, "attention_levels": (1,), "head_width": 12}
    net = make(width=8, **options)
    assert net.encoder.widths == [8, 24, 16]
    assert {m.heads for m in net.modules() if isinstance(m, SelfAttention)} == {2}
    shapes = [tuple(skip.shape[1:]) for skip in net.encoder(torch.zeros(1, 2, 7, 10), torch.zeros(1, 32))[1]]
    assert shapes == [(8, 7, 10)] * 2 + [(24, 4, 5)] * 2 + [(16, 2, 3)] * 2


@pytest.mark.parametrize(
    "make",
    [
        unet,
        lambda **options: NoiseClassifier(2, 4, width=8, **options),
        lambda **options: MLP(2, 8, 1, **options),
    ],
)
def test_time_features_conditioning_and_dropout_reach_the_parts(make: Any) -> None:
    assert isinstance(make().embedding.features, SinusoidalFeatures)
    assert isinstance(make(time_features="fourier").embedding.features, FourierFeatures)
    rates = {m.p for m in make(dropout=0.25).modules() if isinstance(m, nn.Dropout)}
    assert rates == {0.25} and {m.p for m in make().modules() if isinstance(m, nn.Dropout)} == {0.0}
    for conditioning in ("add", "adaptive") if not isinstance(make(), MLP) else ():
        blocks = [m for m in make(conditioning=conditioning).modules() if isinstance(m, ResidualBlock)]
        assert {block.adaptive for block in blocks} == {conditioning == "adaptive"}


def test_dropout_acts_in_training_only() -> None:
    classifier = NoiseClassifier(2, 4, width=8, dropout=0.5)
    for net in (awake(unet(dropout=0.5)), awake(MLP(5, 16, 2, dropout=0.5)), awake(classifier)):
        x, c = (randn(2, 5) if isinstance(net, MLP) else randn(2, 2, 8, 8)), torch.zeros(2).double()
        assert not torch.equal(net.train()(x, c), net(x, c))
        assert torch.equal(net.eval()(x, c), net(x, c))
        plain = type(net)(**{**net.config, "dropout": 0.0}).double()
        plain.load_state_dict(net.state_dict())
        assert torch.equal(plain.train()(x, c), net.eval()(x, c))


def test_derivatives_beyond_the_first() -> None:
    """<v, J u> by forward mode = <J^T v, u> by reverse mode, and gradcheck's second derivatives."""
    net = awake(UNet(1, 1, width=4, multipliers=(1, 2), blocks=1))
    x, u, v = (randn(2, 1, 4, seed=seed) for seed in range(3))
    c = torch.tensor([-1.0, 1.0]).double()
    _, pull = torch.func.vjp(lambda z: net(z, c), x)
    with sdpa_kernel(SDPBackend.MATH):
        _, forward = torch.func.jvp(lambda z: net(z, c), (x,), (u,))
        torch.testing.assert_close((v * forward).sum(), (pull(v)[0] * u).sum(), **SAME)
        z = x.requires_grad_()
        assert torch.autograd.gradcheck(lambda z: net(z, c), z)
        assert torch.autograd.gradgradcheck(lambda z: net(z, c), z)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar_small", "cifar_base", "image64"])
def test_presets_have_the_documented_parameters(name: str) -> None:
    make = getattr(presets, name)
    documented = re.search(r"([\d ]+) parameters for (\d) channel", make.__doc__)
    size = re.search(r"for (\d+)x\1 pictures", make.__doc__)
    assert documented and size
    with torch.device("meta"):  # no memory, no time
        net, classes = make(), make(num_classes=10, channels=2, dropout=0.3)
        out = classes(torch.zeros(1, 2, int(size[1]), int(size[1])), torch.zeros(1))
    assert sum(p.numel() for p in net.parameters()) == int(documented[1].replace(" ", ""))
    assert net.config["channels"] == int(documented[2])
    assert out.shape == (1, 2, int(size[1]), int(size[1]))
    assert (classes.null_conditions, classes.config["dropout"]) == ({"label": 10}, 0.3)
    plain = UNet(**{**classes.config, "num_classes": None})
    extra = sum(p.numel() for p in classes.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == 11 * 4 * net.config["width"]  # as the head of presets.py says


# --- MLP and classifier ------------------------------------------------------------------------------------


def test_mlp_options_are_honoured() -> None:
    net = MLP(3, 16, 4, out_dim=7)
    assert net(torch.zeros(2, 3), torch.zeros(2)).shape == (2, 7)
    assert len(net.blocks) == 4 and net.stem.weight.shape == (16, 3)


def test_classifier_pools_as_asked() -> None:
    x, c = example()
    mean, attention = (awake(NoiseClassifier(2, 4, width=8, pool=pool)) for pool in ("mean", "attention"))
    h, _ = mean.encoder(x, mean.embedding(c, {}))
    pooled = F.silu(mean.norm(h)).mean((2, 3))
    torch.testing.assert_close(mean(x, c), mean.head(pooled), **SAME)
    assert NoiseClassifier(2, 4, width=8, head_width=4).pool.heads == 4
    h, _ = attention.encoder(x, attention.embedding(c, {}))
    pooled = attention.pool(F.silu(attention.norm(h)))
    torch.testing.assert_close(attention(x, c), attention.head(pooled), **SAME)


def test_one_encoder_serves_unet_and_classifier() -> None:
    net, classifier = awake(unet()), awake(NoiseClassifier(2, 4, width=8, blocks=1), seed=1)
    classifier.encoder.load_state_dict(net.encoder.state_dict())
    x, e = randn(2, 2, 7, 10), randn(2, 32)
    assert torch.equal(net.encoder(x, e)[0], classifier.encoder(x, e)[0])


def test_classifier_and_unet_learn() -> None:
    """A few steps on two constant pictures bring both networks well below where they start."""
    torch.manual_seed(0)
    x = torch.cat([torch.ones(8, 2, 8, 8), -torch.ones(8, 2, 8, 8)]) + randn(16, 2, 8, 8, dtype=torch.float32)
    c, label = torch.zeros(16), torch.arange(16) // 8
    classifier, net = NoiseClassifier(2, 2, width=8, blocks=1), unet(num_classes=2)
    optimizer = torch.optim.Adam([*classifier.parameters(), *net.parameters()], lr=3e-3)
    for _ in range(30):
        entropy = F.cross_entropy(classifier(x, c), label)
        error = (net(x, c, label=label) - x.sign()).square().mean()
        optimizer.zero_grad()
        (entropy + error).backward()
        optimizer.step()
    # They start at log 2 = 0.69 and at 1 exactly, the outputs being zero.
    assert entropy < 0.2 and error < 0.5
