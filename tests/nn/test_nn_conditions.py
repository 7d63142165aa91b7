"""Conditions of the networks: what each kind computes, what "not given" means, and what is refused."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch
from test_nn import SAME, awake, randn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from scoresde.guidance import classifier_free, compose, projected
from scoresde.models import ScoreModel
from scoresde.models.conditions import Caption, Conditions, Embedding
from scoresde.nn import (
    MLP,
    CaptionEncoder,
    Context,
    ContextEncoder,
    CrossAttention,
    EmbeddingEncoder,
    UNet,
    VectorEmbedding,
    Vocabulary,
    presets,
)
from scoresde.nn.context import TokenBlock
from scoresde.nn.unet import image_channels
from scoresde.sde import VP

NAN = math.nan
SIZES: dict[int, tuple[int, ...]] = {1: (12,), 2: (6, 8), 3: (4, 4, 6)}
HALF: dict[int, tuple[int, ...]] = {1: (4,), 2: (3, 4), 3: (2, 4, 2)}
KINDS: dict[str, Any] = {
    "num_classes": 3,
    "vectors": {"size": 2, "age": 1},
    "images": {"low": 3, "mask": 1},
    "captions": {"caption": {"vocabulary": 7, "length": 5, "width": 8, "layers": 2}},
    "embeddings": {"text": 6},
}
NULLS: dict[str, float] = {"label": 3, "size": NAN, "age": NAN, "low": NAN, "mask": NAN, "caption": 0, "text": NAN}


def unet(event_dims: int = 2, **options: Any) -> UNet:
    return UNet(2, event_dims, **{"width": 8, "multipliers": (1, 2), "blocks": 1, "head_width": 4, **options})


def inputs(event_dims: int = 2, batch: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    x, c = randn(batch, 2, *SIZES[event_dims], seed=seed), torch.linspace(-3, 3, batch, dtype=torch.float64)
    tokens = torch.tensor([[1, 2, 3, 0, 0], [7, 4, 0, 0, 0], [5, 5, 6, 1, 2]])[torch.arange(batch) % 3]
    given = {
        "label": torch.arange(batch) % 3,
        "size": randn(batch, 2, seed=seed + 1),
        "age": randn(batch, seed=seed + 2),
        "low": randn(batch, 3, *HALF[event_dims], seed=seed + 3),
        "mask": randn(batch, 1, *SIZES[event_dims], seed=seed + 4),
        "caption": tokens,
        "text": randn(batch, 4, 6, seed=seed + 5),
    }
    return x, c, given


def null(value: Tensor, name: str) -> Tensor:
    return torch.full_like(value, NULLS[name])


# --- the parts against their equations ---------------------------------------------------------------------


def test_cross_attention_is_its_equation() -> None:
    layer = awake(CrossAttention(8, 6, head_width=4))
    x, tokens = randn(3, 8, 2, 5), randn(3, 4, 6, seed=1)
    present = torch.tensor([[True, True, False, True], [True] * 4, [False, False, True, False]])
    q = layer.norm(x).flatten(2).transpose(1, 2) @ layer.query.weight.T
    k, v = (tokens @ layer.kv.weight.T).chunk(2, dim=2)
    mixed = []
    for head in torch.arange(8).chunk(2):
        weights = (q[..., head] @ k[..., head].transpose(1, 2) / 2).exp() * present[:, None]  # sqrt(4 channels) = 2
        mixed.append((weights / weights.sum(2, keepdim=True)) @ v[..., head])
    out = torch.cat(mixed, 2) @ layer.proj.weight.T + layer.proj.bias
    expected = x + out.transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x, Context(tokens, present)), expected, **SAME)
    fresh = CrossAttention(8, 6, head_width=4).double()
    assert torch.equal(fresh(x, Context(tokens, present)), x)  # it starts as the identity


def test_token_block_is_torchs_transformer_layer_with_norms_first() -> None:
    block = awake(TokenBlock(12, head_width=4))
    torchs = nn.TransformerEncoderLayer(
        12, 3, 48, dropout=0.0, activation=F.silu, batch_first=True, norm_first=True, dtype=torch.float64
    )
    names = {"qkv.weight": "self_attn.in_proj_weight", "proj.weight": "self_attn.out_proj.weight"}
    names["proj.bias"] = "self_attn.out_proj.bias"
    weights = {names.get(name, name): value for name, value in block.state_dict().items()}
    torchs.load_state_dict({**weights, "self_attn.in_proj_bias": torch.zeros(36).double()})
    x, present = randn(3, 5, 12), torch.arange(5) < torch.tensor([[5], [3], [1]])
    expected = torchs(x, src_key_padding_mask=~present)
    torch.testing.assert_close(block(x, present)[present], expected[present], **SAME)


def test_caption_encoder_is_its_equation() -> None:
    encode = awake(CaptionEncoder(Caption(vocabulary=7, length=5, width=8, layers=2), 6))
    tokens = torch.tensor([[3, 1, 0, 0]])
    h = torch.stack([encode.first, encode.words.weight[3] + encode.positions[0]])
    h = torch.cat([h, (encode.words.weight[1] + encode.positions[1])[None]])[None]
    for block in encode.blocks:
        h = block(h, torch.ones(1, 3, dtype=torch.bool))
    out = encode(tokens)
    assert out.present.tolist() == [[True, True, True, False, False]]
    torch.testing.assert_close(out.tokens[:, :3], encode.linear(encode.norm(h)), **SAME)
    assert len(encode.blocks) == 2 and out.tokens.shape == (1, 5, 6)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_caption_goes_through_as_many_blocks_as_asked_for(layers: int) -> None:
    net = unet(captions={"caption": {"vocabulary": 7, "length": 5, "width": 8, "layers": layers}})
    encode = awake(net).context.captions[0]  # type: ignore[union-attr]
    tokens = torch.tensor([[3, 1, 2, 4, 5]])
    h = torch.cat([encode.first[None], encode.words.weight[tokens[0]] + encode.positions])[None]
    blocks = [module for module in net.modules() if isinstance(module, TokenBlock)]
    assert len(blocks) == layers
    for block in blocks:
        h = block(h, torch.ones(1, 6, dtype=torch.bool))
    torch.testing.assert_close(encode(tokens).tokens, encode.linear(encode.norm(h)), **SAME)


def test_embedding_encoder_is_linear_with_nan_as_padding() -> None:
    encode = awake(EmbeddingEncoder(4, 6))
    value = randn(2, 3, 4)
    value[1, 2] = NAN
    out = encode(value)
    assert out.present.tolist() == [[True] * 4, [True, True, True, False]]
    torch.testing.assert_close(out.tokens[:, 0], encode.first.expand(2, 6), **SAME)
    torch.testing.assert_close(out.tokens[0, 1:], value[0] @ encode.linear.weight.T + encode.linear.bias, **SAME)
    assert out.tokens.isfinite().all()


def test_context_joins_captions_then_embeddings() -> None:
    conditions = Conditions({"text": Embedding(5), "first": Caption(3, 2, 8, 1), "second": Caption(4, 3, 4, 1)})
    encode = awake(ContextEncoder(conditions, 6))
    x, first, text = randn(2, 1), torch.tensor([[1, 0], [3, 2]]), randn(2, 2, 5)
    out = encode(conditions.read({"first": first, "text": text}, x))
    left_out = encode.captions[1](torch.zeros(2, 0, dtype=torch.long))
    parts = [encode.captions[0](first), left_out, encode.embeddings[0](text)]
    assert torch.equal(out.tokens, torch.cat([part.tokens for part in parts], 1))
    assert torch.equal(out.present, torch.cat([part.present for part in parts], 1))
    assert out.tokens.shape == (2, 3 + 1 + 3, 6)


def test_vector_embedding_is_its_equation() -> None:
    embed = awake(VectorEmbedding(2, 6))
    value = randn(3, 2)
    h = F.silu(value @ embed.linear1.weight.T + embed.linear1.bias) @ embed.linear2.weight.T + embed.linear2.bias
    torch.testing.assert_close(embed(value), h, **SAME)
    value[1] = NAN
    torch.testing.assert_close(embed(value), torch.stack([h[0], embed.absent, h[2]]), **SAME)


@pytest.mark.parametrize("event_dims", [1, 2, 3])
def test_pictures_are_enlarged_by_repeating_pixels(event_dims: int) -> None:
    x, image = randn(2, 1, *SIZES[event_dims]), randn(2, 3, *HALF[event_dims])
    out = image_channels(x, image, 3)
    for place in torch.cartesian_prod(*map(torch.arange, SIZES[event_dims])).reshape(-1, event_dims).tolist():
        factors = [size // half for size, half in zip(SIZES[event_dims], HALF[event_dims], strict=True)]
        source = [i // factor for i, factor in zip(place, factors, strict=True)]
        assert torch.equal(out[(slice(None), slice(3), *place)], image[(slice(None), slice(None), *source)])
    assert torch.equal(out[:, 3], torch.ones_like(x[:, 0]))  # the presence channel
    image[1] = NAN
    assert torch.equal(image_channels(x, image, 3)[0], out[0]) and not image_channels(x, image, 3)[1].any()
    assert not image_channels(x, None, 3).any() and image_channels(x, None, 3).shape == out.shape


def test_enlarging_is_exact_for_all_factors() -> None:
    """In single precision, n times 1/n is not always 1: indices made of it may fall one short."""
    for size in range(1, 70):
        x, image = torch.zeros(1, 1, 3 * size), torch.arange(3.0)[None, None]
        assert torch.equal(image_channels(x, image, 1)[0, 0], torch.arange(3.0).repeat_interleave(size))


# --- the networks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event_dims", [1, 2, 3])
def test_every_condition_is_used_and_null_means_left_out(event_dims: int) -> None:
    net = awake(unet(event_dims, **KINDS))
    x, c, given = inputs(event_dims)
    out = net(x, c, **given)
    assert out.shape == x.shape
    for name, value in given.items():
        others = {key: other for key, other in given.items() if key != name}
        without = net(x, c, **others)
        assert ((out - without).flatten(1).abs().amax(1) > 1e-4).all(), name
        torch.testing.assert_close(net(x, c, **others, **{name: null(value, name)}), without, **SAME)
        torch.testing.assert_close(net(x, c, **others, **{name: None}), without, **SAME)
        mixed = value.clone()
        mixed[1] = null(value, name)[1]
        rows = net(x, c, **others, **{name: mixed})
        torch.testing.assert_close(rows, torch.stack([out[0], without[1], out[2]]), **SAME)
    black = {**given, "mask": torch.zeros_like(given["mask"])}
    left_out = {**given, "mask": null(given["mask"], "mask")}
    assert (net(x, c, **black) - net(x, c, **left_out)).abs().max() > 1e-4  # not given is no black picture


@pytest.mark.parametrize("event_dims", [1, 2, 3])
def test_samples_do_not_see_each_other(event_dims: int) -> None:
    net = awake(unet(event_dims, **KINDS))
    x, c, given = inputs(event_dims)
    alone = [net(x[i : i + 1], c[i : i + 1], **{k: v[i : i + 1] for k, v in given.items()}) for i in range(3)]
    torch.testing.assert_close(net(x, c, **given), torch.cat(alone), **SAME)
    assert net(x[:0], c[:0], **{k: v[:0] for k, v in given.items()}).shape == x[:0].shape


def test_padding_changes_nothing() -> None:
    net = awake(unet(**KINDS))
    x, c, given = inputs()
    out = net(x, c, **given)
    short = {"caption": given["caption"][:2, :3], "text": given["text"][:2]}
    rest = {key: value[:2] for key, value in given.items() if key not in short}
    torch.testing.assert_close(net(x[:2], c[:2], **rest, **short), out[:2], **SAME)  # fewer columns of zeros
    padded = torch.cat([torch.full((3, 2, 6), NAN).double(), given["text"]], 1)
    for order in ([0, 1, 2, 3, 4, 5], [5, 0, 3, 1, 4, 2]):  # embeddings, padding among them, in any order
        torch.testing.assert_close(net(x, c, **{**given, "text": padded[:, order]}), out, **SAME)
    swapped = given["caption"].clone()
    swapped[:, :2] = swapped[:, :2].flip(1)
    assert ((net(x, c, **{**given, "caption": swapped}) - out).flatten(1).abs().amax(1) > 1e-5)[:2].all()


def test_one_number_may_come_without_its_axis() -> None:
    net = awake(unet(vectors={"age": 1}))
    x, c, given = inputs()
    assert torch.equal(net(x, c, age=given["age"]), net(x, c, age=given["age"][:, None]))


@pytest.mark.parametrize(
    ("levels", "expected"),
    [((), ["middle.0"]), ((0,), ["levels.0.0", "middle.0", "up.1.0"]), ((1,), ["levels.1.0", "middle.0", "up.0.0"])],
)
def test_cross_attention_follows_self_attention_and_is_in_the_middle(levels: Any, expected: list[str]) -> None:
    net = unet(embeddings={"text": 6}, attention_levels=levels)
    places = [name.removesuffix(".cross") for name, m in net.named_modules() if isinstance(m, CrossAttention)]
    assert [re.sub("^levels", "up", place).removeprefix("encoder.") for place in places] == expected
    assert all(m.kv.in_features == 32 for m in net.modules() if isinstance(m, CrossAttention))  # 4 * width


def test_gradients_reach_every_parameter_and_condition() -> None:
    net = awake(unet(**KINDS))
    x, c, given = inputs()
    floats = {key: value for key, value in given.items() if value.is_floating_point()}
    for value in floats.values():
        value[1] = NAN
        value.requires_grad_()
    x.requires_grad_()
    net(x, c, **given).square().sum().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-9]
    assert not idle
    assert all(p.grad.isfinite().all() for p in net.parameters())
    for value in floats.values():
        gradient = value.grad
        assert gradient is not None and not gradient[1].any()  # no gradient where nothing was given, and no NaN
        assert (gradient[[0, 2]].abs() > 0).all()


def test_derivatives_beyond_the_first() -> None:
    options: dict[str, Any] = {"vectors": {"size": 2}, "images": {"low": 1}, "embeddings": {"text": 3}}
    net = awake(UNet(1, 1, width=4, multipliers=(1, 2), blocks=1, **options))
    x, c = randn(2, 1, 4), torch.tensor([-1.0, 1.0]).double()
    floats = [x, randn(2, 2, seed=1), randn(2, 1, 2, seed=2), randn(2, 2, 3, seed=3)]

    def call(x: Tensor, size: Tensor, low: Tensor, text: Tensor) -> Tensor:
        return net(x, c, size=size, low=low, text=text)

    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradcheck(call, [value.requires_grad_() for value in floats])
        us = tuple(torch.ones_like(value) for value in floats)
        detached = tuple(value.detach() for value in floats)
        _, forward = torch.func.jvp(call, detached, us)
        _, pull = torch.func.vjp(call, *detached)
        v = randn(2, 1, 4, seed=9)
        backward = sum((g * u).sum() for g, u in zip(pull(v), us, strict=True))
        torch.testing.assert_close((v * forward).sum(), backward, **SAME)


def test_vmap_over_conditions() -> None:
    net = awake(unet(**KINDS))
    x, c, given = inputs()
    stacked = {key: torch.stack([value, null(value, key)]) for key, value in given.items()}
    with sdpa_kernel(SDPBackend.MATH):
        both = torch.vmap(lambda cond: net(x, c, **cond))(stacked)
    torch.testing.assert_close(both[0], net(x, c, **given), **SAME)
    torch.testing.assert_close(both[1], net(x, c), **SAME)


def test_precisions() -> None:
    net = awake(unet(**KINDS))
    x, c, given = inputs()
    given["size"][1] = NAN
    exact = net(x, c, **given)
    size = exact.detach().abs().max().item()
    mixed = net.float()(x, c, **given)
    assert mixed.dtype == torch.float64
    # float32 rounds to 6e-8, tens of times in a row, and norms can magnify it.
    torch.testing.assert_close(mixed, exact, rtol=0, atol=1e-4 * size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        auto = net(x.float(), c.float(), **given)
    half = {key: value.bfloat16() if value.is_floating_point() else value for key, value in given.items()}
    low = net.bfloat16()(x.bfloat16(), c.float(), **half)
    assert (auto.dtype, low.dtype) == (torch.float32, torch.bfloat16)
    # bfloat16 rounds to 4e-3, tens of times in a row, of independent signs.
    torch.testing.assert_close(auto.double(), exact, rtol=0, atol=0.15 * size)
    torch.testing.assert_close(low.double(), exact, rtol=0, atol=0.15 * size)


def test_no_value_is_needed() -> None:
    x, c, given = inputs()
    net = unet(**KINDS).to("meta")
    assert net(x.to("meta"), c.to("meta"), **{k: v.to("meta") for k, v in given.items()}).shape == x.shape


def test_compiles_to_one_graph() -> None:
    """All kinds of conditions, on the fewest levels."""
    net = awake(unet(**KINDS, multipliers=(1,)))
    x, c, given = inputs()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, c, **given), net(x, c, **given), **SAME)


@pytest.mark.parametrize("make", [lambda **o: unet(**o), lambda **o: MLP(5, 16, 2, **o)], ids=["unet", "mlp"])
def test_config_and_null_conditions(make: Any) -> None:
    kinds = KINDS if isinstance(make(), UNet) else {"num_classes": 3, "vectors": KINDS["vectors"]}
    net = make(**kinds)
    config = json.loads(json.dumps(net.config))
    assert config == net.config and {key: config[key] for key in kinds} == kinds
    twin = type(net)(**config)
    twin.load_state_dict(net.state_dict())
    known = [name for name in NULLS if name in ("label", "size", "age") or isinstance(net, UNet)]
    assert list(net.null_conditions) == known
    assert all(str(net.null_conditions[name]) == str(NULLS[name]) for name in known)  # NaN is not equal to itself
    if isinstance(net, UNet):
        assert net.image_conditions == ("low", "mask") and unet().image_conditions == ()


def test_without_conditions_nothing_is_added() -> None:
    for plain in (unet(), MLP(5, 16, 2)):
        assert not plain.config.keys() & {"vectors", "images", "captions", "embeddings"}
        assert not [name for name in plain.state_dict() if re.search("vectors|context|cross", name)]
        empty = type(plain)(**plain.config, vectors={})
        assert empty.config == plain.config and empty.state_dict().keys() == plain.state_dict().keys()


FREE = ("t", "label", "model", "scale", "null", "negative", "interval", "rescale", "parallel", "norm", "sde", "net")


@pytest.mark.parametrize("names", [("type", "float", "keys", "values", "training", "forward", "conditions"), FREE])
def test_names_of_any_kind_work(names: tuple[str, ...]) -> None:
    """Names that a module uses for itself, for parameters are held by position, and those of options of guidance."""
    net = awake(MLP(3, 8, 1, vectors=dict.fromkeys(names, 1)))
    x, c = randn(2, 3), torch.zeros(2).double()
    outs = [net(x, c, **{name: torch.ones(2).double()}) for name in names]
    assert all((a - b).abs().max() > 1e-6 for i, a in enumerate(outs) for b in outs[:i])


def test_mlp_vectors() -> None:
    net = awake(MLP(5, 16, 2, num_classes=3, vectors={"size": 2, "age": 1}))
    x, c, cond = randn(3, 5), torch.zeros(3).double(), {"size": randn(3, 2), "age": randn(3, seed=1)}
    label = torch.tensor([0, 1, 2])
    out = net(x, c, label=label, **cond)
    for name, value in cond.items():
        others = {key: other for key, other in cond.items() if key != name}
        without = net(x, c, label=label, **others)
        assert ((out - without).abs().amax(1) > 1e-4).all()
        torch.testing.assert_close(net(x, c, label=label, **others, **{name: null(value, name)}), without, **SAME)
    with pytest.raises(TypeError, match="unknown condition 'sise': this network takes label, size, age"):
        net(x, c, sise=cond["size"])
    with pytest.raises(ValueError, match=r"size has shape \(3,\); expected \(3, 2\)"):
        net(x, c, size=cond["age"])


@pytest.mark.parametrize("name", FREE)
def test_guidance_takes_conditions_of_any_name(name: str) -> None:
    net = awake(unet(vectors={name: 2, "size": 1}))
    x, _, given = inputs()
    model, t, value = ScoreModel(net, VP()), torch.tensor(0.5).double(), given["size"]
    told, none = model(x, t, {name: value}), model(x, t)
    assert (told - none).abs().max() > 1e-4
    torch.testing.assert_close(model.bind(**{name: value})(x, t), told, **SAME)
    expected = none + 2 * (told - none)
    for guided in (
        classifier_free(model, {name: value}, 2.0),
        projected(model, {name: value}, 2.0, parallel=1.0),
        compose(model, [(2.0, {name: value})]),
        classifier_free(model, {name: value}, 2.0, null={name: NAN}),
        classifier_free(model, {name: value}, 2.0, negative={name: torch.full((1, 2), NAN).double()}),
    ):
        torch.testing.assert_close(guided(x, t), expected, **SAME)


def test_guidance_finds_the_null_conditions() -> None:
    net = awake(unet(**KINDS))
    x, _, given = inputs()
    model, t = ScoreModel(net, VP()), torch.tensor(0.5).double()
    guided = classifier_free(model, {**given}, 2.0)(x, t)
    with_all, without = model(x, t, {**given}), model(x, t)
    torch.testing.assert_close(guided, without + 2 * (with_all - without), **SAME)


def test_captioned_preset_is_as_documented() -> None:
    documented = re.search(r"([\d ]+) parameters for 3 channels, 24 words", presets.captioned.__doc__ or "")
    with torch.device("meta"):
        net = presets.captioned(vocabulary=24, length=6, dropout=0.2)
        out = net(torch.zeros(1, 3, 16, 16), torch.zeros(1), caption=torch.ones(1, 6, dtype=torch.long))
    assert documented and sum(p.numel() for p in net.parameters()) == int(documented[1].replace(" ", ""))
    assert out.shape == (1, 3, 16, 16) and net.null_conditions == {"caption": 0}
    assert (net.config["dropout"], presets.captioned(1, vocabulary=3, length=2).config["channels"]) == (0.2, 1)
    heads = {m.heads for m in net.modules() if isinstance(m, CrossAttention)}
    assert heads == {2}


def test_a_caption_is_learned() -> None:
    """The words say which of two pictures, and where not given the best answer is their mean."""
    torch.manual_seed(0)
    words = Vocabulary(["light", "dark", "a"])
    tokens = words.encode(["a light", "dark", "", "light", "a dark", ""], 3)
    target = torch.tensor([1.0, -1.0, 0.0, 1.0, -1.0, 0.0])[:, None, None, None].expand(6, 2, 4, 4)
    net = unet(captions={"caption": {"vocabulary": 3, "length": 3, "width": 8, "layers": 1}})
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    x = randn(6, 2, 4, 4, dtype=torch.float32)
    for _ in range(60):
        error = (net(torch.zeros_like(x), torch.zeros(6), caption=tokens) - target).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error < 0.07  # a tenth of the 2/3 where it starts, the outputs being zero


# --- refusals ----------------------------------------------------------------------------------------------


def spoiled(value: Tensor, index: Any, number: float) -> Tensor:
    value = value.clone()
    value[index] = number
    return value


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"colour": lambda v: torch.zeros(3)}, TypeError, "unknown condition 'colour'.*takes label, size, age, low"),
        ({"size": lambda v: [1.0, 2.0]}, TypeError, "size must be a tensor of 3 rows, got"),
        ({"size": lambda v: v[:2]}, ValueError, r"size has shape \(2, 2\); expected \(3, 2\).*expand"),
        ({"size": lambda v: v[:, 0]}, ValueError, r"size has shape \(3,\); expected \(3, 2\)"),
        ({"age": lambda v: v[0]}, ValueError, r"age has shape \(\); expected \(3, 1\) or \(3,\)"),
        (
            {"age": lambda v: torch.arange(3)},
            TypeError,
            r"age must be a floating tensor, got torch.int64.*age\.float\(\)",
        ),
        ({"size": lambda v: spoiled(v, (1, 0), NAN)}, ValueError, r"size holds NaN in part of a row.*samples \[1\]"),
        ({"size": lambda v: spoiled(v, (2, 0), math.inf)}, ValueError, r"size holds infinite values.*samples \[2\]"),
        ({"age": lambda v: spoiled(v, 2, -math.inf)}, ValueError, "age holds infinite values"),
        ({"low": lambda v: v[:, :2]}, ValueError, r"low has shape \(3, 2, 3, 4\); expected \(3, 3, \*spatial\)"),
        ({"low": lambda v: v[0]}, ValueError, r"low has shape \(3, 3, 4\)"),
        ({"low": lambda v: v[..., :3]}, ValueError, r"\(3, 3\), which do not divide those of x, \(6, 8\).*interpolate"),
        ({"mask": lambda v: v.repeat(1, 1, 2, 2)}, ValueError, r"\(12, 16\), which do not divide"),
        ({"mask": lambda v: v[..., :0]}, ValueError, r"\(6, 0\), which do not divide"),
        ({"mask": lambda v: v > 0}, TypeError, r"mask must be a floating tensor, got torch.bool.*mask\.float\(\)"),
        ({"mask": lambda v: spoiled(v, (0, 0, 1), NAN)}, ValueError, "mask holds NaN in part of a row"),
        ({"caption": lambda v: v.double()}, TypeError, "caption has dtype torch.float64; expected torch.int64.*encode"),
        ({"caption": lambda v: v.int()}, TypeError, "torch.int32; expected torch.int64"),
        ({"caption": lambda v: v[0]}, ValueError, r"caption has shape \(5,\); expected \(3, L\)"),
        ({"caption": lambda v: v.repeat(1, 2)}, ValueError, r"shape \(3, 10\).*at most length=5"),
        ({"caption": lambda v: v[:2]}, ValueError, r"shape \(2, 5\); expected \(3, L\)"),
        ({"caption": lambda v: v + 1}, ValueError, "tokens of caption run from 1 to 8; expected 1 to 7.*0 for padding"),
        ({"caption": lambda v: v - 1}, ValueError, "run from -1 to 6"),
        ({"text": lambda v: v[:, 0]}, ValueError, r"text has shape \(3, 6\); expected \(3, L, 6\).*text\[:, None\]"),
        ({"text": lambda v: v[..., :5]}, ValueError, r"shape \(3, 4, 5\); expected \(3, L, 6\)"),
        ({"text": lambda v: v.long()}, TypeError, "text must be a floating tensor, got torch.int64"),
        ({"text": lambda v: spoiled(v, (1, 2, 3), NAN)}, ValueError, r"NaN in part of a token.*samples \[1\].*padding"),
        ({"text": lambda v: spoiled(v, (2, 0, 3), math.inf)}, ValueError, r"text holds infinite values.*samples \[2\]"),
        ({"label": lambda v: v + 2}, ValueError, "labels run from 2 to 4; expected 0 to 2, or 3"),
        ({"low": lambda v: v.to("meta")}, ValueError, r"low is on meta but x is on cpu; pass low.to\(x.device\)"),
        ({"label": lambda v: v.to("meta")}, ValueError, r"label is on meta but x is on cpu; pass label.to\(x.device"),
    ],
)
def test_bad_conditions(change: dict[str, Any], error: type[Exception], message: str) -> None:
    x, c, given = inputs()
    net = unet(**KINDS).double()
    bad = {name: make(given.get(name)) for name, make in change.items()}
    with pytest.raises(error, match=message):
        net(x, c, **{**given, **bad})


def test_a_network_without_conditions_says_so() -> None:
    with pytest.raises(TypeError, match=r"unknown condition 'size': this network was built without any.*vectors="):
        unet()(torch.zeros(1, 2, 4, 4), torch.zeros(1), size=torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"vectors": {"low": 2}, "images": {"low": 3}}, ValueError, "'low' is in vectors and in images"),
        ({"captions": {"a": KINDS["captions"]["caption"]}, "embeddings": {"a": 3}}, ValueError, "in captions and in"),
        (
            {"captions": {"label": KINDS["captions"]["caption"]}, "num_classes": 3},
            ValueError,
            "in num_classes and in captions",
        ),
        *(({"vectors": {name: 2}}, ValueError, f"must not be '{name}'.*own argument") for name in ("x", "c", "self")),
        ({"vectors": {"two words": 2}}, ValueError, "must be a word.*'two words'"),
        ({"vectors": {3: 2}}, ValueError, "vectors: .*got 3"),
        ({"vectors": {"size": 0}}, ValueError, r"vectors\['size'\]=0: expected positive whole numbers"),
        ({"images": {"low": 1.5}}, TypeError, r"images\['low'\]=1.5: expected positive whole numbers"),
        ({"embeddings": {"text": True}}, TypeError, r"embeddings\['text'\]=True: expected positive whole numbers"),
        ({"vectors": ["size"]}, TypeError, r"vectors=\['size'\]: expected a mapping by name"),
        ({"captions": {"a": 24}}, TypeError, r"captions\['a'\]=24: expected .*e.g. \{'vocabulary': 24, 'length': 6\}"),
        ({"captions": {"a": {"vocabulary": 24}}}, TypeError, "'vocabulary': 24, 'length': 6.*missing.*'length'"),
        ({"captions": {"a": {"vocabulary": 2, "length": 6, "heads": 2}}}, TypeError, "unexpected.*'heads'"),
        ({"captions": {"a": {"vocabulary": 0, "length": 6}}}, ValueError, "vocabulary must be .* got 0"),
        ({"captions": {"a": {"vocabulary": 2, "length": 6, "layers": 0}}}, ValueError, "layers must be .* got 0"),
        ({"num_classes": 0, "vectors": {"size": 2}}, ValueError, "num_classes must be .* got 0"),
    ],
)
def test_bad_descriptions(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        unet(**options)


# --- vocabulary --------------------------------------------------------------------------------------------


def test_vocabulary_encodes_and_decodes() -> None:
    words = Vocabulary.of(["A red three, top-left!", "the RED\tfour; it_is bottom right"])
    assert words.words == ("a", "bottom", "four", "is", "it", "left", "red", "right", "the", "three", "top")
    assert len(words) == 11 and Vocabulary(json.loads(json.dumps(words.words))) == words
    tokens = words.encode(["Red, three.", "", "the four"], 4)
    assert tokens.dtype == torch.long and tokens.tolist() == [[7, 10, 0, 0], [0, 0, 0, 0], [9, 3, 0, 0]]
    assert words.decode(tokens) == ["red three", "", "the four"]
    assert words.encode([], 4).shape == (0, 4)
    assert Vocabulary(["B", "a"]).encode(["a b"], 2).tolist() == [[2, 1]]  # the order of the words is kept


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda v: v.encode(["a rad three"], 4), ValueError, "'rad' is not among the 3 words.*did you mean 'red'"),
        (lambda v: v.encode(["zzz"], 4), ValueError, "'zzz' is not among.*known are a, red, three"),
        (lambda v: v.encode(["a red three"], 2), ValueError, "'a red three' has 3 words; expected at most length=2"),
        (lambda v: v.encode("a red", 4), TypeError, "expected a list of texts"),
        (lambda v: v.encode([3], 4), TypeError, "texts holds 3"),
        (lambda v: v.encode(["a"], 0), ValueError, "length must be .* got 0"),
        (lambda v: v.decode(torch.tensor([[4]])), ValueError, "tokens hold 4, which is out of range; expected 1 to 3"),
        (lambda v: v.decode(torch.tensor([[-1]])), ValueError, "tokens hold -1"),
        (lambda v: v.decode(torch.tensor([1])), ValueError, r"shape \(1,\); expected \(B, L\)"),
        (lambda v: v.decode(torch.tensor([[1.0]])), TypeError, "float32.*expected a dense tensor of torch.int64"),
        (lambda v: Vocabulary(["a", "A"]), ValueError, "words repeat: 'a'"),
        (lambda v: Vocabulary(["top left"]), ValueError, "'top left', which is not a single word.*Vocabulary.of"),
        (lambda v: Vocabulary([]), ValueError, "at least one word"),
        (lambda v: Vocabulary("abc"), TypeError, "list of texts"),
        (lambda v: Vocabulary.of("a red three"), TypeError, "texts is '.*expected a list of texts"),
        (lambda v: Vocabulary.of([1]), TypeError, "texts holds 1"),
    ],
)
def test_bad_texts(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(Vocabulary(["a", "red", "three"]))
