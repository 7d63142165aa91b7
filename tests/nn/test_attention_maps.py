"""Maps of cross-attention: recorded as the equation says, injected exactly, recombined, and always let go of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_nn import SAME, awake, randn
from torch import Tensor

from scoresde.models import ScoreModel
from scoresde.nn import (
    MLP,
    AttentionMaps,
    CrossAttention,
    UNet,
    Vocabulary,
    map_tokens,
    reweight_tokens,
    shared_tokens,
)
from scoresde.nn.attention import edited_maps
from scoresde.sde import VP

LAYERS = 5  # one block each way at levels 1 and 2, and the middle
WORDS = Vocabulary(["a", "red", "blue", "three", "big"])


def net(seed: int = 0, **options: Any) -> UNet:
    made: UNet = awake(
        UNet(
            1,
            **{
                "width": 8,
                "multipliers": (1, 2, 2),
                "blocks": 1,
                "attention_levels": (1, 2),
                "head_width": 8,
                "captions": {"caption": {"vocabulary": len(WORDS), "length": 4, "width": 8, "layers": 1}},
                **options,
            },
        ),
        seed,
    )
    return made


def inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    return randn(2, 1, 8, 8, seed=seed), torch.tensor([-1.0, 1.0]).double()


SOURCE, TARGET = WORDS.encode(["a red three", "a three"], 4), WORDS.encode(["a blue three", "a big three"], 4)


def untouched(network: torch.nn.Module) -> bool:
    """Whether no edit reaches the network's layers, in this thread; nothing is written into them in any case."""
    layers = [m for m in network.modules() if isinstance(m, CrossAttention)]
    assert all(set(vars(m)) - set(vars(torch.nn.Module())) == {"heads"} for m in layers)
    seen: list[int] = []
    with contextlib.suppress(RuntimeError), edited_maps({m: lambda own: own for m in layers}):
        seen.append(1)
    return bool(seen)


def test_recorded_maps_are_the_softmax_of_the_equation() -> None:
    network, (x, c) = net(), inputs()
    seen: list[tuple[CrossAttention, Tensor, Any]] = []
    hooks = [
        m.register_forward_hook(lambda m, args, _: seen.append((m, *args)))
        for m in network.modules()
        if isinstance(m, CrossAttention)
    ]
    maps = AttentionMaps()
    with maps.recording(network) as same:
        out = network(x, c, caption=SOURCE)
        network(x, c + 1, caption=TARGET)
    for hook in hooks:
        hook.remove()
    assert same is maps and maps.calls == 2 and len(maps.layers) == LAYERS
    assert [tuple(calls[0].shape) for calls in maps.layers] == [
        (2, 2, positions, 5)
        for positions in (16, 4, 4, 4, 16)  # 1 learned token and 4 of the caption
    ]
    for call in range(2):
        for layer in range(LAYERS):
            module, h, context = seen[call * LAYERS + layer]
            q = module.query(module.norm(h).flatten(2).transpose(1, 2))
            k = module.kv(context.tokens).chunk(2, dim=2)[0]
            for head in range(2):
                part = slice(8 * head, 8 * head + 8)
                weights = (q[..., part] @ k[..., part].transpose(1, 2) / 8**0.5).exp() * context.present[:, None]
                expected = weights / weights.sum(2, keepdim=True)
                torch.testing.assert_close(maps.layers[layer][call][:, head], expected, **SAME)
    assert not maps.layers[0][0].requires_grad
    assert not maps.layers[0][0][1, :, :, 3:].any()  # "a three": two words, then padding
    # The fused kernel sums in another order.
    torch.testing.assert_close(out, network(x, c, caption=SOURCE), **SAME)
    assert untouched(network)


def test_injecting_recorded_maps_gives_the_same_output_exactly() -> None:
    network, (x, c) = net(), inputs()
    maps = AttentionMaps()
    with maps.recording(network):
        outs = [network(x, c + k, caption=SOURCE) for k in range(3)]
    for _ in range(2):  # as often as one likes
        with maps.injecting(network):
            assert all(torch.equal(network(x, c + k, caption=SOURCE), outs[k]) for k in range(3))
    kept = AttentionMaps(maps.layers)
    with kept.injecting(network):
        assert torch.equal(network(x, c, caption=SOURCE), outs[0])


def test_injected_maps_are_used_for_their_layer_and_call() -> None:
    network, (x, c) = net(), inputs()
    own = network(x, c, caption=TARGET)
    maps = AttentionMaps()
    with maps.recording(network):
        network(x, c, caption=SOURCE)
    with maps.injecting(network):
        assert (network(x, c, caption=TARGET) - own).abs().max() > 1e-5
    seen: list[tuple[int, int]] = []

    def at(where: tuple[int, int]) -> Callable[[int, int, Tensor], Tensor]:
        def edit(layer: int, call: int, own: Tensor) -> Tensor:
            seen.append((layer, call))
            return torch.full_like(own, 0.2) if (layer, call) == where else own

        return edit

    for where in ((0, 0), (4, 0), (2, 1)):
        seen.clear()
        with AttentionMaps().injecting(network, at(where)):
            outs = [network(x, c, caption=TARGET) for _ in range(2)]
        assert seen == [(layer, call) for call in range(2) for layer in range(LAYERS)]
        for call, out in enumerate(outs):
            changed = (out - own).abs().max() > 1e-6
            assert changed if call == where[1] else not changed


def test_gradients_pass_through_an_edit() -> None:
    network, (x, c) = net(), inputs()
    factor = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    with AttentionMaps().injecting(network, lambda layer, call, own: own * factor):
        network(x, c, caption=SOURCE).sum().backward()
    assert factor.grad is not None and factor.grad.abs() > 1e-6
    assert all(m.query.weight.grad.abs().max() > 0 for m in network.modules() if isinstance(m, CrossAttention))


def test_half_precision_maps_are_injected_exactly() -> None:
    network, (x, c) = net().bfloat16(), inputs()
    maps = AttentionMaps()
    with maps.recording(network):
        out = network(x, c, caption=SOURCE)
    assert maps.layers[0][0].dtype == torch.float32
    with maps.injecting(network):
        assert torch.equal(network(x, c, caption=SOURCE), out)


def test_a_model_that_holds_the_network_will_do() -> None:
    model = ScoreModel(net(), VP())
    x, t, maps = inputs()[0], torch.tensor(0.3).double(), AttentionMaps()
    with maps.recording(model):
        out = model.bind(caption=SOURCE)(x, t)
    with maps.injecting(model.net):
        assert torch.equal(model(x, t, {"caption": SOURCE}), out)


def test_contexts_always_let_go() -> None:
    network, (x, c) = net(), inputs()
    for enter in (
        lambda: AttentionMaps().recording(network),
        lambda: AttentionMaps().injecting(network, lambda layer, call, own: own),
    ):
        with pytest.raises(KeyError), enter():
            assert not untouched(network)
            raise KeyError
        assert untouched(network)
    before = network(x, c, caption=SOURCE)
    with pytest.raises(ValueError, match="own"), AttentionMaps().injecting(network, lambda i, k, own: own[:1]):
        network(x, c, caption=SOURCE)
    assert untouched(network) and torch.equal(network(x, c, caption=SOURCE), before)


def test_two_networks_at_once() -> None:
    first, second, (x, c) = net(), net(1), inputs()
    a, b = AttentionMaps(), AttentionMaps()
    with a.recording(first), b.recording(second):
        first(x, c, caption=SOURCE)
        second(x, c, caption=SOURCE)
        second(x, c, caption=SOURCE)
    assert (a.calls, b.calls) == (1, 2) and not torch.equal(a.layers[0][0], b.layers[0][0])


@pytest.mark.parametrize("outer", ["recording", "injecting"])
@pytest.mark.parametrize("inner", ["recording", "injecting"])
def test_nested_contexts_are_refused(outer: str, inner: str) -> None:
    network = net()

    def enter(kind: str) -> Any:
        maps = AttentionMaps()
        return maps.recording(network) if kind == "recording" else maps.injecting(network, lambda i, k, own: own)

    with enter(outer):
        with pytest.raises(RuntimeError, match="recorded or injected already; leave that context first"), enter(inner):
            pass
        assert not untouched(network)  # the outer one still holds
    assert untouched(network)


def test_refusals() -> None:
    network, (x, c) = net(), inputs()
    maps = AttentionMaps()
    with maps.recording(network):
        network(x, c, caption=SOURCE)
    with pytest.raises(RuntimeError, match="hold 1 calls already"), maps.recording(network):
        pass
    with pytest.raises(RuntimeError, match="no maps are held"), AttentionMaps().injecting(network):
        pass
    with pytest.raises(ValueError, match=r"maps of 5 layers.*has 1 layers"), maps.injecting(net(attention_levels=())):
        pass
    with maps.injecting(network), pytest.raises(ValueError, match="more than the 1 times"):
        network(x, c, caption=SOURCE)
        network(x, c, caption=SOURCE)
    with maps.injecting(network), pytest.raises(ValueError, match=r"shape \(2, 2, 16, 5\).*own, \(1, 2, 16, 5\)"):
        network(x[:1], c[:1], caption=SOURCE[:1])
    with maps.injecting(network), pytest.raises(ValueError, match=r"own, \(2, 2, 16, 4\).*map_tokens"):
        network(x, c, caption=SOURCE[:, :3])
    wrong: Any = lambda layer, call, own: None  # noqa: E731
    with AttentionMaps().injecting(network, wrong), pytest.raises(TypeError, match="edit returned NoneType"):
        network(x, c, caption=SOURCE)
    with pytest.raises(TypeError, match="edit is 3"), maps.injecting(network, 3):  # type: ignore[arg-type]
        pass
    for without in (UNet(1, width=8, attention_levels=(-1,)), MLP(2, 8, 1)):
        for enter in (AttentionMaps().recording, maps.injecting):
            with pytest.raises(ValueError, match=r"no cross-attention.*captions="), enter(without):
                pass
    with pytest.raises(TypeError, match="of type function"), maps.injecting(lambda x: x):  # type: ignore[arg-type]
        pass
    with pytest.raises(ValueError, match=r"\[1, 0\] calls"):
        AttentionMaps([[torch.zeros(1)], []])


# --- prompt-to-prompt --------------------------------------------------------------------------------------


def test_map_tokens_takes_the_columns_named() -> None:
    source, own = randn(2, 3, 4, 5).softmax(3), randn(2, 3, 4, 6, seed=1).softmax(3)
    mixed = map_tokens(source, own, [(0, 0), (4, 2)])
    assert torch.equal(mixed[..., 0], source[..., 0]) and torch.equal(mixed[..., 2], source[..., 4])
    assert torch.equal(mixed[..., [1, 3, 4, 5]], own[..., [1, 3, 4, 5]])
    assert torch.equal(map_tokens(source, own, []), own)
    swap = map_tokens(source, source.flip(0), [(j, j) for j in range(5)])
    assert torch.equal(swap, source)
    one = map_tokens(source[:1], own, [(1, 1)])
    assert torch.equal(one[..., 1], source[:1, ..., 1].expand(2, 3, 4))


def test_reweighting_scales_the_columns_named() -> None:
    own = randn(2, 3, 4, 5).softmax(3)
    out = reweight_tokens(own, {1: 2.0, 4: -0.5})
    torch.testing.assert_close(out, own * torch.tensor([1, 2.0, 1, 1, -0.5]).double(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("source", "own", "words"),
    [
        ("a red three", "a blue three", [(0, 0), (2, 2)]),  # a word swap
        ("a three", "a big red three", [(0, 0), (1, 3)]),  # a refinement
        ("a red three", "a three", [(0, 0), (2, 1)]),
        ("red", "blue", []),
        ("", "a red three", []),
    ],
)
@pytest.mark.parametrize("first", [0, 6])
def test_shared_tokens_align_words_and_skip_padding(
    source: str, own: str, words: list[tuple[int, int]], first: int
) -> None:
    pairs = shared_tokens(*WORDS.encode([source, own], 5), first=first)
    assert pairs == [(first, first), *((first + 1 + i, first + 1 + j) for i, j in words)]


def test_prompt_to_prompt_of_equal_captions_is_the_source() -> None:
    """With all tokens shared, each row of the edited map is the source's: the edit reproduces it exactly."""
    network, (x, c) = net(), inputs()
    caption = WORDS.encode(["a big red three"] * 2, 4)
    source, pairs = AttentionMaps(), shared_tokens(caption[0], caption[0])
    with source.recording(network):
        out = network(x, c, caption=caption)
    with source.injecting(network, lambda i, k, own: map_tokens(source.layers[i][k], own, pairs)):
        assert torch.equal(network(x, c, caption=caption), out)
    with source.injecting(network, lambda i, k, own: reweight_tokens(own, {3: 1.0})):
        assert torch.equal(network(x, c, caption=caption), out)
    with source.injecting(network, lambda i, k, own: reweight_tokens(own, {3: 0.0})):
        assert (network(x, c, caption=caption) - out).abs().max() > 1e-5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: map_tokens(a, b, [(5, 0)]), r"pairs hold \(5, 0\): source has tokens 0 to 4 and own 0 to 5"),
        (lambda a, b: map_tokens(a, b, [(0, -1)]), r"pairs hold \(0, -1\)"),
        (lambda a, b: map_tokens(a, b, [(0, 1), (2, 1)]), "named twice"),
        (lambda a, b: map_tokens(a[:, :2], b, []), "same heads and positions"),
        (lambda a, b: map_tokens(a, b[:1], []), "as many samples"),
        (lambda a, b: map_tokens(a[0], b[0], []), r"expected \(B, heads"),
        (lambda a, b: reweight_tokens(b, {6: 2.0}), r"tokens \[6\]; the map has tokens 0 to 5"),
        (lambda a, b: shared_tokens(SOURCE, TARGET), r"tokens \(L,\), expected one caption; got a tensor \(2, 4\)"),
    ],
)
def test_bad_maps(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 6))
