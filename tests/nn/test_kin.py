"""What the U-Net's kin, MagnitudeUNet and DiT, share with it: shapes, conditions, config, gradients, files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import scoresde
from scoresde.models import ScoreModel
from scoresde.nn import ConditionalNetwork, DiT, MagnitudeUNet, presets
from scoresde.nn.dit import DiTBlock, from_patches, positions, to_patches
from scoresde.sde import VP

F64 = torch.float64
SIZES: dict[type[ConditionalNetwork], dict[str, Any]] = {
    MagnitudeUNet: {"width": 8, "multipliers": (1, 2), "blocks": 1, "head_width": 4},
    DiT: {"width": 16, "depth": 2, "head_width": 8},
}
TOLD: dict[str, Any] = {
    "num_classes": 3,
    "vectors": {"v": 2},
    "images": {"low": 1},
    "captions": {"text": {"vocabulary": 4, "length": 3, "width": 8, "layers": 1}},
    "embeddings": {"clip": 2},
    "sets": {"obs": {"size": 2, "width": 8, "layers": 1}},
    "series": {"path": {"size": 1, "width": 8, "layers": 1}},
}
kin = pytest.mark.parametrize("kind", list(SIZES))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def made(kind: type[ConditionalNetwork], *args: Any, **options: Any) -> Any:
    """With random weights in place of the zeros that a network starts with, which would hide everything."""
    torch.manual_seed(0)
    net = kind(*args, **{**SIZES[kind], **options}).double()
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return net


@kin
@pytest.mark.parametrize("sizes", [(5,), (8,), (5, 4), (7, 3), (3, 4, 5)])
def test_events_of_any_sizes(kind: type[ConditionalNetwork], sizes: tuple[int, ...]) -> None:
    net = made(kind, 2, len(sizes), out_channels=3)
    out = net(normal(2, 2, *sizes), normal(2))
    assert out.shape == (2, 3, *sizes)
    assert out.std() > 1e-3
    with pytest.raises(ValueError, match="channels"):
        net(normal(2, 1, *sizes), normal(2))
    with pytest.raises(ValueError, match="event_dims"):
        net(normal(2, 2), normal(2))


@kin
def test_every_pixel_of_the_output_depends_on_every_pixel_of_x(kind: type[ConditionalNetwork]) -> None:
    net = made(kind, 1, 1)
    x = normal(1, 1, 7)
    slope = torch.autograd.functional.jacobian(lambda x: net(x, torch.zeros(1, dtype=F64)), x)
    assert (slope.abs() > 0).all()


@kin
def test_each_condition_counts_and_its_null_is_the_same_as_leaving_it_out(kind: type[ConditionalNetwork]) -> None:
    net, x, c = made(kind, 1, 1, **TOLD), normal(2, 1, 6), normal(2, seed=1)
    given = {
        "label": torch.tensor([0, 2]),
        "v": normal(2, 2, seed=2),
        "low": normal(2, 1, 3, seed=3),
        "text": torch.tensor([[1, 2], [3, 0]]),
        "clip": normal(2, 2, 2, seed=4),
        "obs": normal(2, 3, 2, seed=5),
        "path": normal(2, 5, 1, seed=6),
    }
    assert set(given) == set(net.null_conditions)
    assert net.image_conditions == ("low",)
    without, full = net(x, c), net(x, c, **given)
    for name, value in given.items():
        alone = net(x, c, **{name: value})
        assert (alone - without).abs().max() > 1e-6, name
        null = torch.full_like(value, net.null_conditions[name])
        torch.testing.assert_close(net(x, c, **{name: null}), without, rtol=1e-9, atol=1e-10)
        # one sample's null is nobody else's
        some = torch.where(torch.tensor([True, False]).reshape(2, *[1] * (value.ndim - 1)), null, value)
        mixed = net(x, c, **{**given, name: some})
        torch.testing.assert_close(mixed[1], full[1], rtol=1e-9, atol=1e-10)
        assert not torch.allclose(mixed[0], full[0], rtol=1e-6, atol=1e-8), name


@kin
def test_samples_do_not_see_each_other(kind: type[ConditionalNetwork]) -> None:
    net, x, c = made(kind, 1, 2), normal(3, 1, 5, 5), normal(3, seed=1)
    torch.testing.assert_close(net(x, c)[1:2], net(x[1:2], c[1:2]), rtol=1e-10, atol=1e-11)


@kin
def test_config_builds_the_same_network_and_files_keep_it(kind: type[ConditionalNetwork], tmp_path: Path) -> None:
    net = made(kind, 1, 1, **TOLD, dropout=0.1).float()
    twin: Any = kind(**net.config)
    assert twin.config == net.config
    assert {n: p.shape for n, p in twin.named_parameters()} == {n: p.shape for n, p in net.named_parameters()}
    model = ScoreModel(net, VP(), "edm", sigma_data=1.0).eval()
    model.save_pretrained(tmp_path / "model")
    loaded = scoresde.ScoreModel.from_pretrained(tmp_path / "model")
    x, given = torch.randn(2, 1, 6), {"obs": torch.randn(2, 4, 2), "label": torch.tensor([1, 3])}
    assert torch.equal(model(x, 0.5, given), loaded(x, 0.5, given))


@kin
@pytest.mark.parametrize("event_dims", [1, 2])
def test_gradients_are_those_of_finite_differences(kind: type[ConditionalNetwork], event_dims: int) -> None:
    tiny = {"width": 4, "head_width": 2} if kind is DiT else {"width": 4, "multipliers": (1, 1), "head_width": 2}
    net = made(kind, 1, event_dims, **tiny, vectors={"v": 1})
    x, c, v = normal(1, 1, *[3] * event_dims), normal(1, seed=1), normal(1, 1, seed=2)
    inputs = [one.requires_grad_() for one in (x, c, v)]
    names, weights = zip(*net.named_parameters(), strict=True)
    some = [i for i, name in enumerate(names) if i % 7 == 0 or "gain" in name or "qkv" in name or "query" in name]

    def answer(x: Tensor, c: Tensor, v: Tensor, *chosen: Tensor) -> Tensor:
        changed = {names[i]: weight for i, weight in zip(some, chosen, strict=True)}
        return torch.func.functional_call(net, changed, (x, c), {"v": v})

    # one random direction through all inputs and weights together: gradcheck's fast mode
    chosen = [weights[i].detach().clone().requires_grad_() for i in some]
    assert torch.autograd.gradcheck(answer, (*inputs, *chosen), fast_mode=True)


@kin
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_computes_in_the_dtype_of_its_weights(kind: type[ConditionalNetwork], dtype: torch.dtype) -> None:
    net, x, c = made(kind, 2, 2), normal(2, 2, 6, 6), normal(2, seed=1)
    exact = net(x, c)
    out = net.to(dtype)(x.float(), c.float())
    assert out.dtype == torch.float32
    # some 30 roundings one after the other, each of relative size eps, of numbers of order one
    error = (out - exact).abs().max() / exact.abs().max()
    assert error < 30 * torch.finfo(dtype).eps


@kin
def test_it_compiles_as_one_graph(kind: type[ConditionalNetwork]) -> None:
    net, x, c = made(kind, 1, 1), normal(2, 1, 6), normal(2, seed=1)
    compiled: Callable[..., Tensor] = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, c), net(x, c), rtol=1e-12, atol=1e-12)


@kin
def test_channels_last_changes_nothing(kind: type[ConditionalNetwork]) -> None:
    net, x, c = made(kind, 2, 2), normal(2, 2, 6, 5), normal(2, seed=1)
    before = net(x, c)
    after = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), c)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-11)


# -- the transformer alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "patch"), [((6,), 2), ((7,), 3), ((5, 4), 2), ((4, 6), 1), ((3, 5, 4), 2)])
def test_patches_are_cut_and_joined(sizes: tuple[int, ...], patch: int) -> None:
    x = normal(2, 3, *sizes)
    patches, grid = to_patches(x, patch)
    assert grid == tuple(math.ceil(size / patch) for size in sizes)
    assert patches.shape == (2, math.prod(grid), 3 * patch ** len(sizes))
    assert torch.equal(from_patches(patches, grid, patch, sizes), x)
    # the last patch holds the last pixel of each channel, and zeros beyond
    assert patches[:, -1].count_nonzero() == 6 * math.prod(
        size - patch * (n - 1) for size, n in zip(sizes, grid, strict=True)
    )


def test_a_patch_holds_its_pixels() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert to_patches(x, 2)[0][0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_positions_tell_all_patches_apart_and_go_on() -> None:
    small, large = (positions(grid, torch.zeros(1, 1, 14, dtype=F64)) for grid in ((3, 4), (5, 4)))
    assert torch.equal(large[:12], small)  # those of a larger event begin with those of a smaller one
    apart = torch.cdist(large, large) + 9 * torch.eye(20)
    assert apart.min() > 0.1
    share = 6  # 14 channels: 6 for each axis, 2 left over
    assert torch.equal(small[0, share:12], small[4, share:12]) and not torch.equal(small[0, :share], small[4, :share])
    assert not small[:, 12:].any()
    k = torch.arange(4, dtype=F64)  # sin(k w), cos(k w), w = 1, 10000^(-1/3), 10000^(-2/3)
    w = 10_000.0 ** (-torch.arange(3, dtype=F64) / 3)
    torch.testing.assert_close(small[:4, share:12], torch.cat([(k[:, None] * w).sin(), (k[:, None] * w).cos()], 1))


def test_a_block_starts_as_the_identity_and_the_network_at_zero() -> None:
    """adaLN-Zero."""
    torch.manual_seed(0)
    block = DiTBlock(16, 16, 8, 0.0, 0).double()
    x, e = normal(2, 5, 16), normal(2, 16, seed=1)
    assert torch.equal(block(x, e), x)
    net = DiT(1, 1, **SIZES[DiT]).double()
    assert not net(normal(2, 1, 6), normal(2)).any()


def test_a_block_is_that_of_the_paper() -> None:
    """Against torch's own attention, with heads of its own and the modulation written out."""
    torch.manual_seed(0)
    block = DiTBlock(16, 12, 8, 0.0, 0).double()
    torch.nn.init.normal_(block.condition.weight)
    x, e = normal(2, 5, 16), normal(2, 12, seed=1)
    s1, t1, g1, s2, t2, g2 = block.condition(e)[:, None].chunk(6, 2)
    own = torch.nn.MultiheadAttention(16, 2, batch_first=True).double()
    with torch.no_grad():
        own.in_proj_weight.copy_(block.qkv.weight)
        own.in_proj_bias.copy_(block.qkv.bias)
        own.out_proj.weight.copy_(block.proj.weight)
        own.out_proj.bias.copy_(block.proj.bias)

    def norm(x: Tensor) -> Tensor:
        return (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True, correction=0) + 1e-6).sqrt()

    a = norm(x) * (1 + s1) + t1
    h = x + g1 * own(a, a, a)[0]
    m = block.linear1(norm(h) * (1 + s2) + t2)
    expected = h + g2 * block.linear2(torch.nn.functional.gelu(m, approximate="tanh"))
    torch.testing.assert_close(block(x, e), expected, rtol=1e-10, atol=1e-11)


def test_the_transformer_learns_a_gaussian() -> None:
    """As in test_magnitude: the loss of the best predictor is known, and that of the trivial one."""
    length, r, sigma, batch, steps = 4, 0.1, 0.5, 64, 120
    variances = torch.tensor([length + r**2] + [r**2] * (length - 1))
    best, trivial = (variances * sigma**2 / (variances + sigma**2)).sum().item(), variances.sum().item()
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = DiT(1, 1, patch=2, width=32, depth=2, head_width=8)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    c, scale = torch.tensor([math.log(sigma)]), math.sqrt(1 + r**2 + sigma**2)

    def error(n: int) -> Tensor:
        x0 = torch.randn(n, 1, 1, generator=generator) + r * torch.randn(n, 1, length, generator=generator)
        x = x0 + sigma * torch.randn(x0.shape, generator=generator)
        return (net(x / scale, c.expand(n)) - x0).square().sum((1, 2))

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        error(batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        errors = error(4000)
    mean, deviation = errors.mean().item(), errors.std().item() / math.sqrt(4000)
    assert best - 4 * deviation < mean < best + 0.03 * (trivial - best), (best, mean, trivial)


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "most"),
    [("digits_edm2", 8, 2e6), ("digits_dit", 8, 2e6), ("cifar_edm2", 32, 15e6), ("cifar_dit", 32, 15e6)],
)
def test_presets_have_the_documented_number_of_parameters(name: str, size: int, most: float) -> None:
    make = getattr(presets, name)
    with torch.device("meta"):
        net, classes = make(), make(num_classes=10)
    count = sum(p.numel() for p in net.parameters())
    assert f"{count:,}".replace(",", " ") in make.__doc__
    assert count < most
    width = net.config["width"]
    further = sum(p.numel() for p in classes.parameters()) - count
    assert further == 11 * (width if isinstance(net, DiT) else 4 * width)
    assert net.config["channels"] == (1 if size == 8 else 3)
