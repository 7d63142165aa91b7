"""Bad calls of the networks, their parts, vocabularies and maps of attention."""

from __future__ import annotations

import torch
from bad_calls import (
    COUNT,
    FLAG,
    LITERAL,
    MAPPING,
    NUMBER,
    OPEN_TENSOR,
    POSITIVE,
    SEED,
    WHOLE,
    Call,
    Kind,
)

from scoresde.models.conditions import Caption, Conditions, Embedding, Label, Vector
from scoresde.nn import (
    MLP,
    Architecture,
    AttentionMaps,
    AttentionPool,
    CaptionEncoder,
    ConditionEmbedding,
    ContextEncoder,
    CrossAttention,
    DiT,
    EmbeddingEncoder,
    Encoder,
    FourierFeatures,
    MagnitudeUNet,
    NoiseClassifier,
    SelfAttention,
    SeriesEncoder,
    SetEncoder,
    SinusoidalFeatures,
    UNet,
    VectorEmbedding,
    Vocabulary,
    map_tokens,
    presets,
    reweight_tokens,
    shared_tokens,
)

SMALL = {"multipliers": (1,), "blocks": 1, "attention_levels": (), "head_width": 8}
SIGNAL = torch.ones(2, 1, 4)
C = torch.tensor([0.5, -0.5])
torch.manual_seed(0)
NETS = {
    "MLP": (MLP(3, 8, 1, num_classes=2), torch.ones(2, 3)),
    "UNet": (UNet(1, 1, width=8, num_classes=2, **SMALL), SIGNAL),  # type: ignore[arg-type]
    "NoiseClassifier": (NoiseClassifier(1, 2, 1, width=8, **SMALL), SIGNAL),  # type: ignore[arg-type]
}
LEVELS = Conditions({"label": Label(4), "v": Vector(2)})
TOKENS = Conditions({"text": Caption(4, 3, 8, 1), "clip": Embedding(2)})
VOCABULARY = Vocabulary(("a", "red", "three"))
MAPS = torch.rand(2, 1, 4, 3)

DIM = COUNT.but(odd=lambda right: 3)
SIZES = Kind(
    {
        "None": lambda right: None,
        "a number": lambda right: 2,
        "a text": lambda right: "12",
        "fractions": lambda right: (1.5,),
        "True": lambda right: (True,),
        "None inside": lambda right: (None,),
        "nan": lambda right: (float("nan"),),
        "a set": lambda right: {1},
        "a dict": lambda right: {1: 1},
        "bytes": lambda right: b"1",
        "out of range": lambda right: (-7,),
        "huge": lambda right: (10**30,),
        "nested": lambda right: ((1,),),
        "two axes": lambda right: torch.ones(1, 1, dtype=torch.long),
    },
    {"a list": list, "a tensor": lambda right: torch.tensor(right, dtype=torch.long)},
)
RATE = NUMBER.but(negative=lambda right: -0.1, one=lambda right: 1.0)
OF_NAMES = MAPPING.but(
    no_name=lambda right: {3: 2},
    own_name=lambda right: {"x": 2},
    a_fraction=lambda right: {"a": 1.5},
    zero=lambda right: {"a": 0},
    text=lambda right: {"a": "b"},
    huge=lambda right: {"a": 10**30},
)
OF_CAPTIONS = MAPPING.but(
    no_name=lambda right: {3: {"vocabulary": 3, "length": 2}},
    a_fraction=lambda right: {"a": {"vocabulary": 1.5, "length": 2}},
    missing=lambda right: {"a": {"vocabulary": 3}},
    unknown=lambda right: {"a": {"vocabulary": 3, "length": 2, "more": 1}},
)
ENCODER = {
    "pool": LITERAL,
    "conditioning": LITERAL,
    "time_features": LITERAL,
    "blocks": COUNT.but("a list", for_three_levels=lambda right: (1, 1, 1)),
    "checkpoint": FLAG,
    "head_width": COUNT,
    "multipliers": SIZES.but(empty=lambda right: ()),
    "attention_levels": SIZES,
    "dropout": RATE,
    "event_dims": COUNT.but(four=lambda right: 4),
    "num_classes": COUNT.but("None"),
    "out_channels": COUNT.but("None"),
    "vectors": OF_NAMES,
    "images": OF_NAMES,
    "embeddings": OF_NAMES,
    "captions": OF_CAPTIONS,
    "sets": OF_NAMES,
    "series": OF_NAMES,
    "patch": COUNT,
}
NET_X = OPEN_TENSOR.but(
    another_event=lambda x: x[:, :, None].repeat(1, 1, 7) if x.ndim == 2 else x.repeat(1, 5, 1), none=lambda x: x[0]
)
NET_C = OPEN_TENSOR.but(another_batch=lambda c: c[:1].repeat(7), two_axes=lambda c: c[:, None])
OBJECT = MAPPING.but(a_class=lambda right: Conditions, none=lambda right: None, a_dict=lambda right: {"a": 1})
TEXTS = Kind(
    {
        "None": lambda right: None,
        "a text": lambda right: "a red three",
        "a number": lambda right: 3,
        "numbers": lambda right: [1, 2],
        "None inside": lambda right: ["a", None],
        "bytes": lambda right: b"a",
        "of bytes": lambda right: [b"a"],
        "a tensor": lambda right: torch.ones(2),
        "an object": lambda right: object(),
    },
    {"a tuple": tuple},
)
TOKEN_TENSOR = OPEN_TENSOR.but("whole numbers", fractions=lambda right: right.float())
FOUR = OPEN_TENSOR.but(two_axes=lambda m: m[0, 0])
PAIRS = Kind(
    {
        "None": lambda right: None,
        "a number": lambda right: 3,
        "a text": lambda right: "ab",
        "numbers": lambda right: [1, 2],
        "fractions": lambda right: [(0.5, 1)],
        "triples": lambda right: [(0, 1, 2)],
        "out of range": lambda right: [(0, 7)],
        "twice": lambda right: [(0, 1), (1, 1)],
        "an object": lambda right: object(),
    }
)
FACTORS = MAPPING.but(
    text=lambda right: {1: "x"},
    out_of_range=lambda right: {9: 1.0},
    name=lambda right: {"a": 1.0},
    nan=lambda right: {1: float("nan")},
)

CALLS = [
    Call(
        MLP,
        lambda: {
            "dim": 3,
            "width": 8,
            "depth": 1,
            "num_classes": 4,
            "time_features": "fourier",
            "dropout": 0.1,
            "out_dim": 2,
            "vectors": {"a": 2},
            "sets": {"s": 2},
            "series": {"t": 2},
        },
        kinds={**ENCODER, "out_dim": COUNT.but("None")},
        answer=lambda net: net.config,
    ),
    Call(
        UNet,
        lambda: {
            "channels": 1,
            "event_dims": 1,
            "width": 8,
            "num_classes": 4,
            "out_channels": 2,
            "vectors": {"a": 2},
            "images": {"b": 1},
            "embeddings": {"e": 2},
            "captions": {"d": {"vocabulary": 3, "length": 2, "width": 8, "layers": 1}},
            "sets": {"s": 2},
            "series": {"t": 2},
            **SMALL,
            "time_features": "fourier",
            "conditioning": "add",
            "dropout": 0.1,
            "checkpoint": True,
            "attention_levels": (-1,),
        },
        kinds=ENCODER,
        answer=lambda net: net.config,
    ),
    Call(
        MagnitudeUNet,
        lambda: {
            "channels": 1,
            "event_dims": 1,
            "width": 8,
            "num_classes": 4,
            "out_channels": 2,
            "vectors": {"a": 2},
            "images": {"b": 1},
            "embeddings": {"e": 2},
            "captions": {"d": {"vocabulary": 3, "length": 2, "width": 8, "layers": 1}},
            "sets": {"s": 2},
            "series": {"t": 2},
            **SMALL,
            "dropout": 0.1,
            "attention_levels": (-1,),
        },
        kinds=ENCODER,
        answer=lambda net: net.config,
    ),
    Call(
        DiT,
        lambda: {
            "channels": 1,
            "event_dims": 1,
            "patch": 2,
            "width": 8,
            "depth": 1,
            "head_width": 4,
            "num_classes": 4,
            "out_channels": 2,
            "time_features": "fourier",
            "dropout": 0.1,
            "vectors": {"a": 2},
            "images": {"b": 1},
            "embeddings": {"e": 2},
            "captions": {"d": {"vocabulary": 3, "length": 2, "width": 8, "layers": 1}},
            "sets": {"s": 2},
            "series": {"t": 2},
        },
        kinds=ENCODER,
        answer=lambda net: net.config,
    ),
    Call(
        NoiseClassifier,
        lambda: {
            "channels": 1,
            "num_classes": 4,
            "event_dims": 1,
            "width": 8,
            "pool": "mean",
            **SMALL,
            "attention_levels": (0,),
            "time_features": "fourier",
            "conditioning": "add",
            "dropout": 0.1,
            "checkpoint": True,
        },
        kinds={**ENCODER, "num_classes": COUNT},
        answer=lambda net: net.config,
    ),
    Call(
        Architecture,
        lambda: {
            "channels": 1,
            "event_dims": 1,
            "width": 8,
            **SMALL,
            "attention_levels": (0,),
            "time_features": "fourier",
            "conditioning": "add",
            "dropout": 0.1,
            "checkpoint": True,
        },
        kinds=ENCODER,
        answer=lambda shape: shape.config,
    ),
    Call(
        Encoder,
        lambda: {"shape": Architecture(1, 1, 8, **SMALL), "context": 0, "condition_channels": 1},  # type: ignore[arg-type]
        kinds={
            "shape": OBJECT,
            "context": WHOLE.but(negative=lambda right: -1),
            "condition_channels": WHOLE.but(negative=lambda right: -1),
        },
        answer=None,
    ),
    *(
        Call(
            net.forward,
            lambda x=x, name=name: {
                "x": x,
                "c": C,
                **({"conditions": {"label": torch.tensor([0, 1])}} if name != "NoiseClassifier" else {}),
            },
            kinds={"x": NET_X, "c": NET_C, "conditions": Kind({"unknown": lambda right: {"colour": torch.ones(2)}})},
            named={"conditions": "condition"},
            name=f"{name}.forward",
        )
        for name, (net, x) in NETS.items()
    ),
    # -- parts ---------------------------------------------------------------------------------------------------------
    Call(SelfAttention, lambda: {"channels": 8, "head_width": 4}, answer=None),
    Call(CrossAttention, lambda: {"channels": 8, "context": 4, "head_width": 4}, kinds={"context": COUNT}, answer=None),
    Call(AttentionPool, lambda: {"channels": 8, "head_width": 4}, answer=None),
    Call(SetEncoder, lambda: {"size": 2, "width": 8, "hidden": 4, "layers": 1}, answer=None),
    Call(SeriesEncoder, lambda: {"size": 2, "width": 8, "hidden": 4, "layers": 1}, answer=None),
    Call(VectorEmbedding, lambda: {"size": 2, "width": 8}, answer=None),
    Call(
        CaptionEncoder,
        lambda: {"caption": Caption(4, 3, 8, 1), "context": 4},
        kinds={"caption": OBJECT, "context": COUNT},
        answer=None,
    ),
    Call(EmbeddingEncoder, lambda: {"size": 2, "context": 4}, kinds={"context": COUNT}, answer=None),
    Call(ContextEncoder, lambda: {"conditions": TOKENS, "width": 4}, kinds={"conditions": OBJECT}, answer=None),
    Call(
        ConditionEmbedding,
        lambda: {"features": 4, "width": 8, "kind": "fourier", "conditions": LEVELS},
        kinds={"features": DIM, "kind": LITERAL, "conditions": OBJECT},
        answer=None,
    ),
    Call(
        SinusoidalFeatures,
        lambda: {"dim": 4, "slowest": 0.5, "fastest": 4.0},
        kinds={"dim": DIM, "slowest": POSITIVE.but(above=lambda right: 9.0), "fastest": POSITIVE},
        answer=lambda features: features.frequencies,
    ),
    Call(
        FourierFeatures,
        lambda: {"dim": 4, "scale": 0.5, "seed": 3},
        kinds={"dim": DIM, "scale": POSITIVE, "seed": SEED},
        answer=lambda features: features.frequencies,
    ),
    # -- words and maps ------------------------------------------------------------------------------------------------
    Call(
        Vocabulary,
        lambda: {"words": ["a", "red", "three"]},
        kinds={"words": TEXTS.but(twice=lambda w: ["a", "a"], none=lambda w: [], two=lambda w: ["a b"])},
    ),
    Call(Vocabulary.of, lambda: {"texts": ["a red", "three"]}, kinds={"texts": TEXTS}, name="Vocabulary.of"),
    Call(
        VOCABULARY.encode,
        lambda: {"texts": ["a red", "three"], "length": 3},
        kinds={"texts": TEXTS},
        name="Vocabulary.encode",
    ),
    Call(
        VOCABULARY.decode,
        lambda: {"tokens": torch.tensor([[1, 2, 0]])},
        kinds={"tokens": TOKEN_TENSOR.but(above=lambda t: t + 9)},
        name="Vocabulary.decode",
    ),
    Call(
        AttentionMaps,
        lambda: {"layers": [[MAPS], [MAPS]]},
        answer=lambda maps: maps.calls,
        kinds={"layers": PAIRS.but("out of range", "twice", "fractions", "triples", uneven=lambda right: [[MAPS], []])},
    ),
    Call(
        map_tokens,
        lambda: {"source": MAPS, "own": 2 * MAPS, "pairs": [(0, 1)]},
        kinds={"source": FOUR, "own": FOUR, "pairs": PAIRS},
    ),
    Call(reweight_tokens, lambda: {"own": MAPS, "factors": {1: 2.0}}, kinds={"own": OPEN_TENSOR, "factors": FACTORS}),
    Call(
        shared_tokens,
        lambda: {"source": torch.tensor([1, 2, 0]), "own": torch.tensor([2, 1, 0]), "first": 0},
        kinds={
            "source": TOKEN_TENSOR.but(two=lambda t: t[None]),
            "own": TOKEN_TENSOR.but(two=lambda t: t[None]),
            "first": WHOLE.but(negative=lambda r: -1),
        },
    ),
    Call(
        presets.digits,
        lambda: {"channels": 1, "num_classes": 3, "dropout": 0.1},
        kinds={"num_classes": COUNT.but("None"), "dropout": RATE},
        answer=None,
    ),
]
NOT_CALLED = {
    "scoresde.nn.attention.Context": "a tuple",
    "scoresde.nn.encoder.EncoderOptions": "a description of keywords",
    "scoresde.nn.network.ConditionalNetwork": "abstract",
}
