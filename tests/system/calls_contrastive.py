"""Bad calls of contrastive models: their loss, network, training, retrieval, and byte pairs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from bad_calls import (
    COUNT,
    FUNCTION,
    LITERAL,
    MAPPING,
    OPEN_TENSOR,
    SCORE,
    TENSOR,
    TIME_BESIDE_X,
    Call,
    Kind,
    Odd,
)
from calls_nn import ENCODER, OF_CAPTIONS, SMALL, TEXTS, TOKEN_TENSOR
from calls_train import CHOICE, DATA

from scoresde import VP
from scoresde.data import Dataset, Scaling, from_tensors
from scoresde.losses import contrastive_loss, information_bound
from scoresde.metrics import recall_at
from scoresde.models import ContrastiveModel, Similarity, ZeroShot
from scoresde.nn import MLP, BytePairs, DualEncoder
from scoresde.train import TrainOptions, load_contrastive, save, train_contrastive

_KEPT = tempfile.TemporaryDirectory(prefix="scoresde-bad-calls-")  # goes with the process
FOLDER = Path(_KEPT.name)
LOGITS, SAME = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), torch.eye(3, dtype=torch.bool)
TOKENS = torch.tensor([[1, 2], [3, 0]])
X, C = torch.linspace(-1, 1, 8).reshape(2, 1, 4), torch.tensor([0.5, -0.5])
CAPTION = {"text": {"vocabulary": 4, "length": 2, "width": 8, "layers": 1}}
PAIRS = BytePairs.of(["a red three", "a blue three"], 270)


def net() -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(1, 1, captions=CAPTION, size=4, width=8, **SMALL).eval()  # type: ignore[arg-type]


def model() -> ContrastiveModel:
    return ContrastiveModel(net(), VP(), 0.5).eval()


def dataset() -> Dataset:
    return from_tensors(X, channels="first", scaling=Scaling(0.0, 1.0), conditions={"text": TOKENS})


save(FOLDER / "kept", model(), step=1, dataset=dataset())

MATRIX = OPEN_TENSOR.but(oblong=lambda m: m[:2], three_axes=lambda m: m[None])
SAMES = Kind(
    {
        "a text": lambda right: "x",
        "a number": lambda right: 1.0,
        "a list": lambda right: right.tolist(),
        "fractions": lambda right: right.float(),
        "whole numbers": lambda right: right.long(),
        "another batch": lambda right: right[:2],
        "none of itself": lambda right: ~right,
        "sparse": lambda right: right.to_sparse(),
        "an object": lambda right: Odd(),
    }
)
TOKEN = TOKEN_TENSOR.but(above=lambda t: t + 9, negative=lambda t: t - 5, long=lambda t: t.repeat(1, 4))
EVENT = OPEN_TENSOR.but(another_event=lambda x: x.repeat(1, 5, 1), none=lambda x: x[0])
NET = FUNCTION.but(of_scores=lambda right: MLP(3), a_function=lambda right: torch.tanh)
STATES = {"x": EVENT, "t": TIME_BESIDE_X.but("None"), "tokens": TOKEN}


def arguments(**given: Any) -> Any:
    return lambda: {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in given.items()}


CALLS = [
    Call(contrastive_loss, arguments(logits=LOGITS, same=SAME), kinds={"logits": MATRIX, "same": SAMES}),
    Call(
        information_bound,
        arguments(loss=LOGITS[0], same=SAME),
        kinds={"loss": OPEN_TENSOR.but(two_axes=lambda loss: loss[None], none=lambda loss: loss[:0]), "same": SAMES},
    ),
    Call(
        recall_at,
        arguments(similarity=LOGITS, right=SAME, k=2),
        kinds={
            "similarity": TENSOR.but(one_axis=lambda s: s[0], none=lambda s: s[:0]),
            "right": SAMES.but("none of itself", "sparse", nothing=lambda r: r & False),
            "k": COUNT,
        },
    ),
    Call(
        DualEncoder,
        lambda: {
            "channels": 1,
            "event_dims": 1,
            "captions": CAPTION,
            "size": 4,
            "width": 8,
            "pool": "mean",
            **SMALL,
            "time_features": "fourier",
            "conditioning": "add",
            "dropout": 0.1,
            "checkpoint": True,
        },
        kinds={
            **ENCODER,
            "pool": LITERAL,
            "captions": OF_CAPTIONS.but(none=lambda right: {}, two=lambda right: {**right, "more": right["text"]}),
        },
        answer=lambda net: net.config,
    ),
    Call(net().caption, arguments(tokens=TOKENS), kinds={"tokens": TOKEN}, name="DualEncoder.caption",
         named={"tokens": "tokens|text"}),
    Call(
        ContrastiveModel,
        lambda: {"net": net(), "sde": VP(), "sigma_data": 0.5},
        kinds={"net": NET},
        answer=lambda made: made(X, 0.5, TOKENS),
    ),
    Call(model().forward, arguments(x=X, t=0.5, tokens=TOKENS), kinds=STATES, name="ContrastiveModel.forward",
         named={"tokens": "tokens|text"}),
    Call(
        model().image,
        arguments(x=X, t=0.5),
        kinds={"x": EVENT, "t": TIME_BESIDE_X.but("None")},
        name="ContrastiveModel.image",
    ),
    Call(
        model().similarity,
        arguments(tokens=TOKENS),
        kinds={"tokens": TOKEN.but(none=lambda t: t[:0])},
        answer=lambda made: made(X, 0.5),
        name="ContrastiveModel.similarity",
        named={"tokens": "tokens|text"},
    ),
    Call(
        model().zero_shot,
        arguments(prompts=TOKENS),
        kinds={"prompts": TOKEN.but(none=lambda t: t[:0])},
        answer=lambda made: made(X, 0.5),
        name="ContrastiveModel.zero_shot",
        named={"prompts": "prompts|tokens|text"},
    ),
    *(
        Call(made, arguments(x=X, t=0.5), kinds={"x": EVENT, "t": TIME_BESIDE_X.but("None")}, name=name)
        for name, made in (("Similarity", model().similarity(TOKENS)), ("ZeroShot", model().zero_shot(TOKENS)))
    ),
    Call(
        train_contrastive,
        lambda: {
            "model": model(),
            "dataset": dataset(),
            "options": TrainOptions(steps=1, batch_size=2, progress=False),
        },
        kinds={"model": SCORE, "dataset": DATA, "options": MAPPING},
        answer=None,
    ),
    Call(load_contrastive, lambda: {"folder": FOLDER / "kept", "ema": False}, kinds={"ema": CHOICE}, answer=None),
    Call(
        BytePairs,
        lambda: {"words": list(PAIRS.words), "merges": list(PAIRS.merges)},
        kinds={
            "words": TEXTS.but(twice=lambda w: [*w, w[0]], none=lambda w: []),
            "merges": TEXTS.but(of_nothing=lambda m: ["neither nor"], one=lambda m: ["a"]),
        },
    ),
    Call(
        BytePairs.of,
        lambda: {"texts": ["a red", "three"], "size": 260},
        kinds={"texts": TEXTS, "size": COUNT.but(few=lambda size: 255)},
        name="BytePairs.of",
    ),
    Call(PAIRS.encode, lambda: {"texts": ["a red", "three"], "length": 9}, kinds={"texts": TEXTS, "length": COUNT},
         name="BytePairs.encode"),
    Call(
        PAIRS.decode,
        lambda: {"tokens": torch.tensor([[1, 2, 0]])},
        kinds={"tokens": TOKEN_TENSOR.but(above=lambda t: t + 999)},
        name="BytePairs.decode",
    ),
]  # fmt: skip
NOT_CALLED = {
    f"{Similarity.__module__}.Similarity": "made by ContrastiveModel.similarity",
    f"{ZeroShot.__module__}.ZeroShot": "made by ContrastiveModel.zero_shot",
}
