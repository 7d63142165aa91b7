"""Low-rank adapters: the layer with the weight W + s B A by hand, in every network of ours, whatever the kernels."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import VP, ScoreModel, classifier_free
from scoresde.models.captured import Replays
from scoresde.nn import MLP, DiT, LoRA, MagnitudeUNet, NoiseClassifier, UNet, adapters, lora
from scoresde.nn.low_rank import Factors, added_to, as_linear
from scoresde.nn.magnitude import MagnitudeConv

CAPTION = {"caption": {"vocabulary": 5, "length": 3, "width": 8, "layers": 1}}
SHAPE: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "blocks": 1, "head_width": 4}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """The same with parameters that are not zero, so that no layer is without effect."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=draw, dtype=torch.float64) / max(1, p[0].numel()) ** 0.5)
    for one in module.modules():
        getattr(one, "after_step", lambda: None)()
    return module


def learned(adapter: LoRA, seed: int = 3) -> LoRA:
    """With an A and B of size one, so that it matters."""
    with torch.no_grad():
        for i, p in enumerate(adapter.parameters):
            p.copy_(randn(*p.shape, seed=seed + i) / p[0].numel() ** 0.5)
    return adapter


NETS: dict[str, Callable[[], nn.Module]] = {
    "UNet": lambda: UNet(3, captions=CAPTION, num_classes=3, **SHAPE),
    "UNet, add, of signals": lambda: UNet(3, event_dims=1, captions=CAPTION, conditioning="add", **SHAPE),
    "UNet of volumes": lambda: UNet(3, event_dims=3, captions=CAPTION, vectors={"v": 2}, **SHAPE),
    "DiT": lambda: DiT(3, width=16, depth=2, head_width=8, captions=CAPTION, num_classes=3),
    "MagnitudeUNet": lambda: MagnitudeUNet(3, captions=CAPTION, num_classes=3, **SHAPE),
    "MLP": lambda: MLP(3, 8, 2, num_classes=3),
    "NoiseClassifier": lambda: NoiseClassifier(3, 4, **SHAPE),
}


def call(net: nn.Module, dtype: torch.dtype = torch.float32, **changes: Tensor) -> Tensor:
    """The answer of any of these networks, to pictures in channels-last."""
    config: Any = net.config
    dims = config.get("event_dims", 2)
    shape = (2, 3) if isinstance(net, MLP) else (2, 3, *[4] * dims)
    x = randn(*shape, dtype=dtype)
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    given: dict[str, Tensor] = {}
    if "captions" in config:
        given["caption"] = torch.tensor([[1, 2, 0], [5, 3, 4]])
    if "vectors" in config:
        given["v"] = randn(2, 2, seed=2)
    if config.get("num_classes") == 3:
        given["label"] = torch.tensor([0, 2])
    return net(x, randn(2, seed=1), **given, **changes)


# -- a layer -----------------------------------------------------------------------------------------------------------


LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(5, 4), (3, 5)),
    (nn.Linear(5, 4, bias=False), (2, 3, 5)),
    (nn.Conv1d(3, 4, 3, stride=2, padding=1), (2, 3, 7)),
    (nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=2), (2, 3, 7, 6)),
    (nn.Conv2d(4, 6, (3, 1), groups=2, padding="same", padding_mode="circular"), (2, 4, 5, 5)),
    (nn.Conv3d(3, 4, 3, padding=1), (2, 3, 4, 3, 5)),
    (MagnitudeConv(3, 4, 3, event_dims=2), (2, 3, 5, 5)),
    (MagnitudeConv(5, 4), (2, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
@pytest.mark.parametrize("rank", [1, 2, 40])
def test_an_adapted_layer_is_the_layer_with_w_plus_s_b_a(layer: nn.Module, shape: tuple[int, ...], rank: int) -> None:
    net = nn.Sequential(copy.deepcopy(layer)).double()
    by_hand, x = copy.deepcopy(net), randn(*shape, dtype=torch.float64)
    adapter = learned(lora(net, rank, alpha=3.0))
    factors = adapter.factors["0"]
    weight: Any = by_hand[0].weight
    # A layer of 4 x 5 has no rank of 40: A and B are as large as it can have.
    least = min(rank, weight.shape[0], weight[0].numel())
    assert factors.down.shape == (least, *weight.shape[1:]) and factors.up.shape == (weight.shape[0], least)
    adapter.scale = 0.5
    with torch.no_grad():
        for index in torch.cartesian_prod(*map(torch.arange, weight.shape)).tolist():
            out, rest = index[0], tuple(index[1:])
            total = sum(float(factors.up[out, k] * factors.down[(k, *rest)]) for k in range(least))
            weight[tuple(index)] += 0.5 * 3.0 / rank * total
    # float64: sums of at most 40 products in another order
    torch.testing.assert_close(net(x), by_hand(x), rtol=1e-12, atol=1e-12)
    adapter.alpha = 6.0
    adapter.scale = 0.25
    torch.testing.assert_close(net(x), by_hand(x), rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_product() -> None:
    """dL/dB = s dL/dW Aᵀ and dL/dA = s Bᵀ dL/dW, with dL/dW the gradient of a plain layer of that weight."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).double()
    adapter = learned(lora(net, 2, alpha=5.0))
    one, plain = adapter.factors["0"], nn.Conv2d(3, 4, 3, padding=1).double()
    with torch.no_grad():
        plain.weight.copy_(net[0].weight + one.delta())  # type: ignore[operator]
        plain.bias.copy_(net[0].bias)  # type: ignore[union-attr, arg-type]
    x = randn(2, 3, 5, 5, dtype=torch.float64)
    for layer in (net, plain):
        layer(x).pow(3).sum().backward()
    slope = plain.weight.grad.flatten(1)  # type: ignore[union-attr]
    torch.testing.assert_close(one.up.grad, 2.5 * slope @ one.down.flatten(1).T)
    torch.testing.assert_close(one.down.grad.flatten(1), 2.5 * one.up.T @ slope)  # type: ignore[union-attr]
    assert all(p.grad is None for p in net[0].parameters(recurse=False))


# -- a network ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETS)
def test_it_starts_at_the_networks_output_exactly(name: str, dtype: torch.dtype) -> None:
    net = filled(NETS[name]()).to(dtype).requires_grad_(False)  # by which torch chooses a kernel for signals
    before, weights = call(net), {key: value.clone() for key, value in net.state_dict().items()}
    adapter = lora(net, 2)
    assert torch.equal(call(net), before)  # the same kernels, and zero added
    call(net).square().sum().backward()
    for key, p in net.named_parameters():
        assert (p.grad is not None) == p.requires_grad == (".adapters." in key), key
    assert all(p.dtype == torch.float32 for p in adapter.parameters)  # in which they train
    after = net.state_dict()
    assert all(torch.equal(after[key], value) for key, value in weights.items())  # names and numbers as they were


@pytest.mark.parametrize("name", NETS)
def test_no_layer_is_passed_by(name: str) -> None:
    """Each layer alone: what an adapter does is what its W + s B A does, whatever kernel does the layer's work."""
    net = filled(NETS[name]()).requires_grad_(False)
    plain = call(net)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, MagnitudeConv)
    layers = [at for at, one in net.named_modules() if isinstance(one, kinds)]
    assert len(layers) > 5
    for at in layers:
        adapter = learned(lora(net, 1, where=at))
        assert list(adapter.factors) == [at]
        there = call(net).detach()
        weight: Any = net.get_submodule(at).weight
        own = weight.detach().clone()
        with torch.no_grad():
            weight += adapter.factors[at].delta()
            adapter.remove()
            by_hand = call(net)
            weight.copy_(own)
        # rounding of float32 through ten layers of size one
        torch.testing.assert_close(there, by_hand, rtol=1e-4, atol=1e-4)
        assert not torch.equal(there, plain), at


@pytest.mark.parametrize("name", ["UNet", "MagnitudeUNet"])
def test_two_add_up_and_each_is_switched(name: str) -> None:
    net = filled(NETS[name]()).double()
    base = call(net, torch.float64)
    one, two = learned(lora(net, 2, name="one")), learned(lora(net, 3, name="two"), seed=50)
    by_hand = filled(NETS[name]()).double()
    with torch.no_grad():
        for adapter in (one, two):
            for at, factors in adapter.factors.items():
                by_hand.get_submodule(at).weight += factors.delta()  # type: ignore[operator]
    assert list(adapters(net)) == ["one", "two"]
    close: dict[str, float] = {"rtol": 1e-9, "atol": 1e-9}  # float64 through ten layers
    torch.testing.assert_close(call(net, torch.float64), call(by_hand, torch.float64), **close)
    one.on = two.on = False
    assert torch.equal(call(net, torch.float64), base)
    two.on = True
    alone = filled(NETS[name]()).double()
    with torch.no_grad():
        for at, factors in two.factors.items():
            alone.get_submodule(at).weight += factors.delta()  # type: ignore[operator]
    torch.testing.assert_close(call(net, torch.float64), call(alone, torch.float64), **close)
    one.remove()
    torch.testing.assert_close(call(net, torch.float64), call(alone, torch.float64), **close)
    two.remove()
    assert torch.equal(call(net, torch.float64), base)
    assert net.state_dict().keys() == by_hand.state_dict().keys() and not adapters(net)
    assert [type(m) for m in net.modules()] == [type(m) for m in by_hand.modules()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_merged_it_is_the_same_and_comes_out_again(dtype: torch.dtype) -> None:
    net = filled(NETS["UNet"]()).to(dtype)
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    adapter = learned(lora(net, 2))
    adapter.scale = 0.3
    there = call(net)
    adapter.merge()
    # bfloat16 rounds each merged weight by up to 2^-9 of it, through ten layers
    close: dict[str, float] = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.2, "atol": 0.2}
    torch.testing.assert_close(call(net), there, **close)
    assert adapter.merged and all(as_linear(m) for m in net.modules() if isinstance(m, nn.Linear))
    with pytest.raises(RuntimeError, match="unmerge"):
        adapter.scale = 1.0
    with pytest.raises(RuntimeError, match="not merged to be merged"):
        adapter.merge()
    adapter.unmerge()
    eps = torch.finfo(dtype).eps
    for key, value in weights.items():
        # two roundings, of numbers no larger than |W| + |ΔW|, both of size below 4 here
        torch.testing.assert_close(net.state_dict()[key], value, rtol=0, atol=8 * eps)
    with pytest.raises(RuntimeError, match="must be merged"):
        adapter.unmerge()


def test_merged_and_removed_is_a_plain_network() -> None:
    net = filled(NETS["UNet"]())
    adapter = learned(lora(net, 2))
    there = call(net)
    adapter.merge()
    adapter.remove()
    torch.testing.assert_close(call(net), there, rtol=1e-4, atol=1e-4)  # rounding of float32
    twin: Any = UNet(**net.config)  # type: ignore[arg-type]
    twin.load_state_dict(net.state_dict())
    assert torch.equal(call(twin), call(net))


def test_copies_and_pickles_have_their_own() -> None:
    net = filled(NETS["DiT"]())
    adapter = learned(lora(net, 2))
    there = call(net)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(call(other), there)
        adapters(other)["lora"].scale = 0.0
        assert not torch.equal(call(other), there) and adapter.scale == 1.0
    assert torch.equal(call(net), there)


def test_the_strength_is_not_rounded_to_half_precision() -> None:
    net = filled(MLP(3, 8, 1))
    adapter = lora(net, 3, alpha=1.0)
    adapter.scale = 0.7
    net.bfloat16()
    assert all(float(one.strength) == pytest.approx(0.7 / 3, rel=1e-7) for one in adapter.factors.values())
    net.double()
    assert all(float(one.strength) == 0.7 / 3 for one in adapter.factors.values())


def test_channels_last_stays_and_blocks_are_checkpointed() -> None:
    x = randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    found = []
    for kept in (False, True):
        net = filled(UNet(3, **SHAPE, checkpoint=kept))
        adapter = learned(lora(net, 2))
        out = net(x, randn(2, seed=1))
        out.square().sum().backward()
        assert out.is_contiguous(memory_format=torch.channels_last)
        found.append([p.grad for p in adapter.parameters])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain)


def test_guidance_is_that_of_the_merged_network() -> None:
    net = filled(NETS["UNet"]()).eval()
    adapter = learned(lora(net, 2))
    model = ScoreModel(net, VP(), "noise")
    x, given = randn(2, 3, 4, 4), {"label": torch.tensor([0, 2]), "caption": torch.tensor([[1, 2, 0], [5, 3, 4]])}
    there = classifier_free(model, given, scale=2.0)(x, torch.tensor(0.5))
    adapter.merge()
    # float32 through ten layers, amplified by 1/σ and the scale
    again = classifier_free(model, given, scale=2.0)(x, torch.tensor(0.5))
    torch.testing.assert_close(again, there, rtol=1e-3, atol=1e-3)


def test_compiled_it_is_the_same_and_heeds_its_scale() -> None:
    net = filled(UNet(3, width=4, multipliers=(1,), blocks=1, attention_levels=()))
    adapter = learned(lora(net, 2))
    x, c = randn(2, 3, 4, 4), randn(2, seed=1)
    fast = torch.compile(net, backend="eager", fullgraph=True)
    for scale, on in ((1.0, True), (0.4, True), (0.4, False)):
        adapter.scale, adapter.on = scale, on
        torch.testing.assert_close(fast(x, c), net(x, c), rtol=1e-5, atol=1e-5)  # rounding of float32


def test_recordings_are_made_anew_where_one_is_switched_and_read_the_scale() -> None:
    net = filled(MLP(3, 8, 1)).requires_grad_(False)
    one, two = learned(lora(net, 2, name="one")), learned(lora(net, 2, name="two"), seed=9)
    net.requires_grad_(False)

    def recorder(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        return (lambda: None), work()  # a graph: whatever Python is told later, it answers what it did

    replays = Replays(net, torch.device("cpu"), recorder, network=net)
    x, c = randn(2, 3), randn(2, seed=1)
    for recorded, change in enumerate((None, one, two), start=1):  # one off, then both
        if change is not None:
            change.on = False
        assert torch.equal(replays(x, c), net(x, c)) and replays.recorded == recorded
    two.on = True
    addresses = [f.strength.data_ptr() for f in two.factors.values()]
    two.scale = 0.3  # a graph reads it where it was
    assert [f.strength.data_ptr() for f in two.factors.values()] == addresses


def test_autocast_computes_in_half_precision() -> None:
    net = filled(UNet(3, **SHAPE))
    learned(lora(net, 2))
    x, c = randn(2, 3, 4, 4), randn(2, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(x, c)
    exact = net(x, c)
    # bfloat16 through ten layers of size one; without the adapter it is as far off as the answer is large
    assert float(((rough - exact).norm() / exact.norm()).detach()) < 0.1


def test_a_hook_still_sees_what_a_layer_answers() -> None:
    """A layer that somebody looks on is called, adapted or not; see `as_linear`."""
    net = filled(UNet(3, **SHAPE))
    learned(lora(net, 2))
    seen: list[str] = []
    linear = {at: m for at, m in net.named_modules() if isinstance(m, nn.Linear)}
    for at, module in linear.items():
        module.register_forward_hook(lambda *_, at=at: seen.append(at))
    hooked = net(randn(2, 3, 4, 4), randn(2, seed=1))
    assert set(seen) == set(linear)
    for module in linear.values():
        module._forward_hooks.clear()
    torch.testing.assert_close(hooked, net(randn(2, 3, 4, 4), randn(2, seed=1)), rtol=1e-4, atol=1e-4)  # rounding


def test_added_to_asks_an_adapted_layer_alone() -> None:
    layer, x = nn.Linear(3, 2), randn(4, 3)
    assert added_to(layer, layer(x), x) is not None and torch.equal(added_to(layer, x, x), x)
    net = nn.Sequential(layer)
    learned(lora(net, 1))
    base = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(added_to(layer, base, x), layer(x))
    assert not torch.equal(base, layer(x))


# -- what is asked for -------------------------------------------------------------------------------------------------


def test_where_is_a_pattern_several_or_a_function() -> None:
    def layers(where: Any) -> list[str]:
        return list(lora(UNet(3, captions=CAPTION, **SHAPE), 1, where).layers)

    whole = layers(None)
    attention = layers("*attention*")
    assert attention == [at for at in whole if "attention" in at] != []
    assert layers(["*attention*", "*cross.kv"]) == [at for at in whole if "attention" in at or at.endswith("cross.kv")]
    assert layers(lambda name, layer: isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)) == ["encoder.downs.0"]


def test_where_torch_reads_weights_itself_nothing_is_put() -> None:
    net = nn.ModuleDict(
        {
            "inside": nn.TransformerEncoderLayer(8, 2, 8, batch_first=True),
            "beside": nn.Linear(8, 8),
            "q": nn.MultiheadAttention(8, 2),
        }
    )
    assert list(lora(net, 1).layers) == ["beside"]
    with pytest.raises(ValueError, match="fits none: those that can be adapted are beside"):
        lora(net, 1, "inside*", name="other")


def bad() -> Iterator[tuple[Callable[[], object], type[Exception], str]]:
    net = MLP(3, 8, 1)
    lora(net, 1, name="there")
    yield lambda: lora(net, 0), ValueError, "rank must be a whole number .* got 0"
    yield lambda: lora(net, 2.5), TypeError, "rank must be a whole number"  # type: ignore[arg-type]
    yield lambda: lora(lambda x: x, 2), TypeError, "net must be"  # type: ignore[arg-type]
    yield lambda: lora(net, 2, "*attention*"), ValueError, r"where='\*attention\*' must fit some layer .* stem"
    yield lambda: lora(nn.Sequential(nn.ReLU()), 2), ValueError, "no linear map or convolution at all"
    yield lambda: lora(net, 2, 3), TypeError, "where must be a pattern"  # type: ignore[arg-type]
    yield lambda: lora(net, 2, name="there"), ValueError, "has an adapter 'there' already"
    yield lambda: lora(net, 2, name="a.b"), ValueError, "name must be a word"
    yield lambda: lora(net, 2, alpha=0.0), ValueError, "alpha must be positive"
    yield lambda: LoRA(net, "style"), ValueError, "got 'style'; there: 'there'"
    yield lambda: setattr(adapters(net)["there"], "scale", float("nan")), ValueError, "scale must be a finite number"


@pytest.mark.parametrize(("make", "error", "message"), list(bad()))
def test_what_is_wrong_is_refused(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_shared_weight_is_not_merged_into() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    adapter = lora(net, 1, "0")
    with pytest.raises(ValueError, match="shares it"):
        adapter.merge()


def test_a_seed_draws_the_same_and_no_other_generator_is_touched() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    nets = [MLP(3, 8, 1) for _ in range(3)]
    torch.set_rng_state(state)
    a, b, c = (lora(net, 2, seed=seed) for net, seed in zip(nets, (1, 1, 2), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    same = [torch.equal(p, q) for p, q in zip(a.parameters, b.parameters, strict=True)]
    assert all(same) and not torch.equal(a.parameters[0], c.parameters[0])


def test_frozen_magnitudes_are_not_touched_by_after_step() -> None:
    net = filled(NETS["MagnitudeUNet"]())
    lora(net, 2)
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        for module in net.modules():
            getattr(module, "after_step", lambda: None)()
    assert all(torch.equal(net.state_dict()[key], value) for key, value in weights.items())


def test_parts_are_where_the_docstring_says(tmp_path: Path) -> None:
    net = MLP(3, 8, 1)
    adapter = lora(net, 2, "stem")
    assert isinstance(net.stem.adapters["lora"], Factors)  # type: ignore[index]
    assert set(adapter.state()) == {"stem.down", "stem.up"} and adapter.count == 2 * (3 + 8)
    assert repr(adapter) == "LoRA('lora', rank=2, 1 layers, 22 parameters)"
