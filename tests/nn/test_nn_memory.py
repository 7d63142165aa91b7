"""What the U-Net copies, multiplies and keeps: memory formats, the told blocks, checkpointing, blocks per level."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from scoresde.nn import AttentionMaps, NoiseClassifier, UNet, norms
from scoresde.nn.blocks import ResidualBlock

# In float64, the same sums in another order differ by a few thousand roundings of 2e-16 of numbers of order 1.
SAME = {"rtol": 1e-10, "atol": 1e-10}
BATCH = 3
aten = torch.ops.aten


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def awake(net: nn.Module, seed: int = 0) -> Any:
    """Give a random value to every parameter, those that start at zero among them; in float64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.double().parameters():
            scale = 1 / math.sqrt(max(1, parameter[0].numel()))
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale)
    return net


CAPTIONED: dict[str, Any] = {"captions": {"text": {"vocabulary": 5, "length": 3, "width": 8, "layers": 1}}}


def unet(**options: Any) -> UNet:
    return UNet(2, **{"width": 8, "multipliers": (1, 2), "blocks": 1, **options})


@pytest.fixture(params=[0, norms.SMALL], ids=["large", "small"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Feature maps are treated as large ones are, and as small ones."""
    monkeypatch.setattr(norms, "SMALL", request.param)


# --- memory formats ----------------------------------------------------------------------------------------


class Copies(TorchDispatchMode):
    """Counts what copies a tensor of features into another memory format, in forward and backward passes."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.found = least, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (aten.copy_.default, aten.clone.default, aten._to_copy.default):
            source = args[1] if func is aten.copy_.default else args[0]
            features = source.ndim > 2 and len(source) == BATCH and source.numel() >= self.least
            if features and source.stride() != out.stride():
                self.found[f"{func} {tuple(source.shape)} {source.stride()} to {out.stride()}"] += 1
        return out


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize(
    "options", [{}, CAPTIONED, {"conditioning": "add"}, {"multipliers": (1, 2, 2), "dropout": 0.1}]
)
def test_channels_last_is_kept_from_stem_to_head(options: dict[str, Any]) -> None:
    net = unet(attention_levels=(0, 1), **options).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = randn(BATCH, 2, 16, 16, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    given = {"text": torch.tensor([[1, 2, 0], [0, 0, 0], [3, 4, 1]])} if "captions" in options else {}
    with Copies(least=BATCH * 8 * 16 * 16 // 2) as copies:
        net(x, torch.zeros(BATCH), **given).square().sum().backward()
    assert not copies.found


@pytest.mark.usefixtures("size")
def test_contiguous_pictures_are_copied_in_and_out_alone() -> None:
    """On the CPU; and the answer has the format of x."""
    net, x = unet(attention_levels=(0, 1)), randn(BATCH, 2, 16, 16, dtype=torch.float32)
    with Copies(least=BATCH * 8 * 16 * 16 // 2) as copies:
        out = net(x, torch.zeros(BATCH))
        out.square().sum().backward()
    assert not copies.found and out.is_contiguous()
    last = x.contiguous(memory_format=torch.channels_last)
    assert net(last, torch.zeros(BATCH)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("event_dims", [2, 3])
def test_plain_forward_derivatives_of_a_network(event_dims: int) -> None:
    """By dual tensors, of any memory format, as along a curve: (f(x + h u) - f(x - h u)) / 2h."""
    net = awake(UNet(1, event_dims, width=8, multipliers=(1, 2), blocks=1, attention_levels=()))
    x, u, c = randn(1, 1, *[4] * event_dims), randn(1, 1, *[4] * event_dims, seed=1), torch.zeros(1).double()
    wanted = (net(x + 1e-5 * u, c) - net(x - 1e-5 * u, c)) / 2e-5
    for form in (x, x.movedim(1, -1).contiguous().movedim(-1, 1)):
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(net(forward_ad.make_dual(form, u), c)).tangent
        # Differences err by h^2 times a third derivative and by 1e-16 / h: below 1e-8 of numbers of order 1.
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("size")
def test_formats_agree_in_values_and_gradients() -> None:
    net, x, c = awake(unet(attention_levels=(0, 1))), randn(2, 2, 7, 10), torch.tensor([-1.0, 1.0]).double()
    with torch.no_grad():
        plain = net(x, c)
    for last in (x, x.contiguous(memory_format=torch.channels_last)):
        net.zero_grad()
        out = net(last, c)
        out.square().sum().backward()
        torch.testing.assert_close(out, plain, **SAME)
    grads = {name: p.grad.clone() for name, p in net.named_parameters()}
    found = torch.func.grad(lambda w: torch.func.functional_call(net, w, (x, c)).square().sum())(
        dict(net.named_parameters())
    )
    for name, grad in grads.items():
        torch.testing.assert_close(found[name], grad, **SAME)


# --- told blocks -------------------------------------------------------------------------------------------


class Products(TorchDispatchMode):
    """Counts matrix products of a batch of 5."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += func in (aten.addmm.default, aten.mm.default) and out.shape[0] == 5
        return out


class Own(nn.Linear):
    """A linear map of another class, such as an adapter's."""


def test_all_blocks_are_told_in_one_product() -> None:
    net = awake(unet(attention_levels=(), blocks=2))
    x, c = randn(5, 2, 8, 8), torch.linspace(-1, 1, 5).double()
    with Products() as products, torch.no_grad():
        out = net(x, c)
    assert products.count == 3  # two of the embedding, and one
    blocks = [m for m in net.modules() if isinstance(m, ResidualBlock)]
    for block in blocks[:1]:  # one that is not plain: all are asked in turn
        own = Own(block.condition.in_features, block.condition.out_features).double()
        own.load_state_dict(block.condition.state_dict())
        block.condition = own
    with Products() as products, torch.no_grad():
        torch.testing.assert_close(net(x, c), out, **SAME)
    assert products.count == 2 + len(blocks)


def _hooked(module: nn.Module, seen: list[nn.Module]) -> None:
    module.register_forward_hook(lambda one, *_: seen.append(one))


def _hooked_before(module: nn.Module, seen: list[nn.Module]) -> None:
    module.register_forward_pre_hook(lambda one, *_: seen.append(one))


def _hooked_backwards(module: nn.Module, seen: list[nn.Module]) -> None:
    module.register_full_backward_hook(lambda one, *_: seen.append(one))


def _patched(module: nn.Module, seen: list[nn.Module]) -> None:
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.append(module)
        return own(*args, **kwargs)

    module.forward = forward  # type: ignore[method-assign]


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("step_in", [_hooked, _hooked_before, _hooked_backwards, _patched])
def test_who_looks_on_or_steps_in_sees_every_layer(step_in: Callable[[nn.Module, list[nn.Module]], None]) -> None:
    """Adapters, quantisers and offloading hook layers, or replace their forward: no faster way goes round them."""
    net, given = awake(unet(**CAPTIONED)), {"text": torch.tensor([[1, 2, 0], [0, 0, 0], [3, 4, 1]])}
    x, c = randn(BATCH, 2, 8, 8).requires_grad_(), torch.linspace(-1, 1, BATCH).double()
    plain = net(x, c, **given)
    seen: list[nn.Module] = []
    layers = [one for one in net.modules() if isinstance(one, (nn.Linear, nn.Conv2d, nn.GroupNorm))]
    for layer in layers:
        step_in(layer, seen)
    out = net(x, c, **given)
    torch.testing.assert_close(out, plain, **SAME)
    out.sum().backward()
    assert {id(one) for one in layers} == {id(one) for one in seen}


def test_hooks_of_all_modules_see_every_layer() -> None:
    net, seen = awake(unet(attention_levels=(0,))), set[int]()
    handle = nn.modules.module.register_module_forward_hook(lambda one, *_: seen.add(id(one)))
    try:
        net(randn(BATCH, 2, 8, 8), torch.zeros(BATCH).double())
    finally:
        handle.remove()
    assert {id(one) for one in net.modules() if isinstance(one, (nn.Linear, nn.GroupNorm))} <= seen


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("other", [nn.Identity(), nn.BatchNorm2d(8).double()])
def test_norms_and_maps_may_be_replaced(other: nn.Module) -> None:
    """By layers of another kind, and by a linear map without an offset."""
    net = awake(unet(attention_levels=(0,)))
    x, c = randn(BATCH, 2, 8, 8), torch.linspace(-1, 1, BATCH).double()
    block = net.encoder.levels[0][0].block
    block.norm1 = other
    called: list[int] = []
    other.register_forward_hook(lambda *_: called.append(1))
    plain = net(x, c)
    assert called
    old = block.condition
    block.condition = nn.Linear(old.in_features, old.out_features, bias=False).double()
    with torch.no_grad():
        block.condition.weight.copy_(old.weight)
    without = net(x, c)
    with torch.no_grad():
        old.bias.zero_()
    block.condition = old
    torch.testing.assert_close(net(x, c), without, **SAME)
    assert not torch.allclose(plain, without)


def test_the_classifier_is_told_in_one_product() -> None:
    net = NoiseClassifier(2, 4, width=8, blocks=2, attention_levels=())
    with Products() as products, torch.no_grad():
        net(randn(5, 2, 8, 8, dtype=torch.float32), torch.zeros(5))
    assert products.count == 2 + 1 + 2  # of the embedding, the blocks, and of pool and head


# --- checkpointing -----------------------------------------------------------------------------------------


@contextmanager
def kept() -> Iterator[Callable[[], int]]:
    """Counts the bytes that a forward pass keeps for the backward pass."""
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(value: Tensor) -> Tensor:
        alive.append(value)
        sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield lambda: sum(sizes.values())


def twins(make: Callable[..., Any] = unet, **options: Any) -> tuple[Any, Any]:
    plain, again = awake(make(**options)), awake(make(**options, checkpoint=True), seed=1)
    again.load_state_dict(plain.state_dict())
    return plain.train(), again.train()


def gradients(net: Any, x: Tensor, given: dict[str, Tensor], seed: int = 3) -> list[Tensor]:
    net.zero_grad()
    torch.manual_seed(seed)
    net(x, torch.linspace(-2, 2, len(x)).double(), **given).square().sum().backward()
    torch.rand(1)
    return [torch.rand(1), *(p.grad for p in net.parameters())]


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("options", [{"attention_levels": (0, 1)}, {"dropout": 0.4}, CAPTIONED], ids=str)
def test_checkpointing_changes_no_gradient(options: dict[str, Any]) -> None:
    plain, again = twins(**options)
    x = randn(3, 2, 7, 10).requires_grad_()
    given = {"text": torch.tensor([[1, 2, 0], [0, 0, 0], [3, 4, 1]])} if "captions" in options else {}
    expected = gradients(plain, x, given)
    (dx,) = [x.grad.clone()]  # type: ignore[union-attr]
    x.grad = None
    # The same operations on the same numbers; dropout draws the same and leaves the generator where it was.
    for one, other in zip(gradients(again, x, given), expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(x.grad, dx)


def test_checkpointing_the_classifier() -> None:
    plain, again = twins(lambda **options: NoiseClassifier(2, 4, width=8, **options), dropout=0.3)
    x = randn(3, 2, 8, 8)
    for one, other in zip(gradients(again, x, {}), gradients(plain, x, {}), strict=True):
        assert torch.equal(one, other)


def test_checkpointing_under_autocast_and_compiled() -> None:
    plain, again = (net.float() for net in twins(multipliers=(1,), blocks=1, attention_levels=(0,)))
    x, c = randn(2, 2, 8, 8, dtype=torch.float32), torch.zeros(2)
    grads = []
    for net in (plain, again, torch.compile(again, backend="aot_eager")):
        again.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            net(x, c).float().square().sum().backward()
        grads.append([p.grad.clone() for p in (plain if net is plain else again).parameters()])
    for one, other, compiled in zip(*grads, strict=True):
        assert torch.equal(one, other)
        # bfloat16 rounds to 2^-8, some tens of times, in another order when compiled.
        torch.testing.assert_close(compiled, one, rtol=0, atol=0.1 * float(one.abs().max()) + 1e-6)


def test_checkpointing_in_a_distributed_wrapper(tmp_path: Path) -> None:
    plain, again = twins(dropout=0.2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(again)
        x = randn(2, 2, 8, 8)
        for one, other in zip(gradients(wrapped, x, {}), gradients(plain, x, {}), strict=True):
            assert torch.equal(one, other)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("size")
def test_checkpointing_keeps_less_than_half() -> None:
    plain, again = twins(blocks=2, attention_levels=(1,), width=16)
    x, c = randn(4, 2, 16, 16), torch.zeros(4).double()
    with kept() as before:
        plain(x, c)
    with kept() as after:
        again(x, c)
    weights = sum(p.nbytes for p in plain.parameters())  # are kept as well, and are there in any case
    assert after() - weights < 0.5 * (before() - weights)


def test_torch_func_goes_without_checkpoints() -> None:
    plain, again = twins()
    x, c = randn(2, 2, 8, 8), torch.zeros(2).double()
    found, expected = (torch.func.grad(lambda x, net=net: net(x, c).square().sum())(x) for net in (again, plain))
    assert torch.equal(found, expected)


def test_maps_are_recorded_once() -> None:
    _, again = twins(**CAPTIONED)
    maps = AttentionMaps()
    x = randn(1, 2, 8, 8).requires_grad_()
    with maps.recording(again):
        again(x, torch.zeros(1).double(), text=torch.tensor([[1, 2, 0]])).sum().backward()
    assert maps.calls == 1


def test_checkpoint_is_no_part_of_the_weights() -> None:
    plain, again = twins()
    assert again.config == {**plain.config, "checkpoint": True}
    assert type(again)(**again.config).config == again.config
    assert plain.state_dict().keys() == again.state_dict().keys()
    with pytest.raises(TypeError, match="checkpoint"):
        unet(checkpoint="yes")


# --- blocks per level --------------------------------------------------------------------------------------


def test_each_level_may_have_blocks_of_its_own() -> None:
    net = unet(multipliers=(1, 2, 3), blocks=(1, 3, 2))
    assert [len(level) for level in net.encoder.levels] == [1, 3, 2]
    assert [len(level) for level in net.levels] == [2, 3, 1]  # coarsest first
    assert net(torch.zeros(1, 2, 9, 9), torch.zeros(1)).shape == (1, 2, 9, 9)
    assert net.config["blocks"] == [1, 3, 2] and UNet(**net.config).config == net.config
    same, one = awake(unet(blocks=(2, 2))), awake(unet(blocks=2), seed=1)
    one.load_state_dict(same.state_dict())
    x, c = randn(1, 2, 8, 8), torch.zeros(1).double()
    assert torch.equal(one(x, c), same(x, c))


@pytest.mark.parametrize(
    ("blocks", "message"),
    [((1, 2, 3), "each of the 2 of multipliers"), ((), "each of the 2"), ((1, 0), r"blocks\[1\] must be .* got 0")],
)
def test_blocks_that_fit_no_levels_are_refused(blocks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unet(blocks=blocks)
