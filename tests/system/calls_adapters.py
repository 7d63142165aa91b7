"""Bad calls of adapters, learned words, and the sets that they are trained on."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from bad_calls import (
    COUNT,
    FUNCTION,
    LITERAL,
    MAPPING,
    PATH,
    POSITIVE,
    Call,
    Kind,
)

from scoresde import VP, ScoreModel
from scoresde.data import Dataset, Scaling, from_tensors, mix
from scoresde.nn import MLP, LearnedWords, LoRA, UNet, Vocabulary, adapters, learn_words, learned_words, lora
from scoresde.train import load_adapter, prior_set, save_adapter

_KEPT = tempfile.TemporaryDirectory(prefix="scoresde-bad-calls-")  # goes with the process
PLACE = Path(_KEPT.name)
WORDS = Vocabulary(("a", "red", "three"))
CAPTION = {"text": {"vocabulary": 3, "length": 3, "width": 8, "layers": 1}}
torch.manual_seed(0)
PLAIN = MLP(3, 4, 1, num_classes=2)
READER = UNet(1, 1, width=4, multipliers=(1,), blocks=1, attention_levels=(), head_width=4, captions=CAPTION)
ADAPTED, TAUGHT = copy.deepcopy(PLAIN), copy.deepcopy(READER)
STYLE, SKS = lora(ADAPTED, 2, name="style"), learn_words(TAUGHT, "sks", WORDS)
save_adapter(PLACE / "style", STYLE)

MODULE = Kind(
    {
        "None": lambda right: None,
        "a function": lambda right: lambda x: x,
        "a text": lambda right: "net",
        "a class": lambda right: type(right),
        "a tensor": lambda right: torch.ones(2),
        "an object": lambda right: object(),
    }
)
NAME = LITERAL.but("another text", points=lambda right: "a.b", empty=lambda right: "")
THERE = LITERAL.but(empty=lambda right: "")
WHERE = Kind(
    {
        "a number": lambda right: 3,
        "another text": lambda right: "nonsense",
        "others": lambda right: ["nonsense"],
        "none": lambda right: [],
        "numbers": lambda right: [3],
        "bytes": lambda right: b"stem",
        "a class": lambda right: type,
        "a tensor": lambda right: torch.ones(2),
        "never": lambda right: lambda name, layer: False,
        "an object": lambda right: object(),
    },
    {
        "a list": lambda right: [right],
        "a tuple": lambda right: (right,),
        "a function": lambda right: lambda name, layer: name == right,
    },
)
TEXT = Kind(
    {
        "None": lambda right: None,
        "a number": lambda right: 3,
        "numbers": lambda right: [3],
        "bytes": lambda right: b"sks",
        "empty": lambda right: "",
        "none": lambda right: [],
        "a tensor": lambda right: torch.ones(2),
        "an object": lambda right: object(),
    },
    {"a list": lambda right: [right], "a tuple": lambda right: (right,)},
)
VOCABULARY = Kind(
    {
        "None": lambda right: None,
        "words": lambda right: ["a", "red", "three"],
        "a text": lambda right: "a red three",
        "another size": lambda right: Vocabulary(("a", "red")),
        "an object": lambda right: object(),
    }
)
ADAPTER = Kind(
    {
        "None": lambda right: None,
        "a text": lambda right: "style",
        "a network": lambda right: PLAIN,
        "a class": lambda right: LoRA,
        "an object": lambda right: object(),
    }
)


def pictures(value: float) -> Dataset:
    return from_tensors(torch.full((2, 3), value) + torch.arange(2.0)[:, None], scaling=Scaling(0.0, 1.0))


SETS = Kind(
    {
        "None": lambda right: None,
        "one": lambda right: right[0],
        "none": lambda right: [],
        "a text": lambda right: "ab",
        "tensors": lambda right: [torch.ones(2, 3)] * 2,
        "another shape": lambda right: [right[0], from_tensors(torch.eye(4), scaling=Scaling(0.0, 1.0))],
        "a class": lambda right: Dataset,
    },
    {"a tuple": tuple},
)
WEIGHTS = Kind(
    {
        "None": lambda right: None,
        "a number": lambda right: 1.0,
        "a text": lambda right: "ab",
        "too few": lambda right: [1.0],
        "zero": lambda right: [1.0, 0.0],
        "negative": lambda right: [1.0, -1.0],
        "nan": lambda right: [1.0, float("nan")],
        "inf": lambda right: [1.0, float("inf")],
        "None inside": lambda right: [1.0, None],
        "far apart": lambda right: [1.0, 1e-12],
    },
    {"a tuple": tuple, "a tensor": torch.tensor},
)


def model() -> ScoreModel:
    made = ScoreModel(copy.deepcopy(PLAIN), VP())
    made.event_shape, made.scaling = (3,), Scaling(0.0, 1.0)
    return made


MODEL = MODULE.but(another=lambda right: PLAIN, bound=lambda right: right.bind(label=1))
ROWS = MAPPING.but(
    none=lambda right: {},
    no_rows=lambda right: {"label": torch.ones(0, dtype=torch.long)},
    a_number=lambda right: {"label": 1},
    of_another_length=lambda right: {**right, "more": torch.ones(5)},
)


def _state(found: Any) -> Any:
    return found.state()


CALLS: list[Call] = [
    Call(
        lora,
        lambda: {"net": copy.deepcopy(PLAIN), "rank": 2, "where": "stem", "name": "style", "alpha": 3.0, "seed": 1},
        answer=_state,
        kinds={
            "net": MODULE, "rank": COUNT.but(large=lambda right: 10**9), "where": WHERE, "name": NAME,
            "alpha": POSITIVE.but("None"),
        },
    ),
    Call(LoRA, lambda: {"net": ADAPTED, "name": "style"}, answer=_state, kinds={"net": MODULE, "name": THERE}),
    Call(adapters, lambda: {"net": ADAPTED}, answer=list, kinds={"net": MODULE}),
    Call(
        learn_words,
        lambda: {
            "net": copy.deepcopy(READER), "words": "sks", "vocabulary": WORDS, "condition": "text", "like": "a red",
            "longest": 1.0, "seed": 1,
        },
        answer=_state,
        kinds={
            "net": MODULE.but(without_captions=lambda right: PLAIN),
            "words": TEXT.but(known=lambda right: "red", two=lambda right: "two words"),
            "vocabulary": VOCABULARY,
            "condition": LITERAL.but("None"),
            "like": TEXT.but("None", unknown=lambda right: "blue", several=lambda right: ["a", "red"]),
            "longest": POSITIVE.but("None"),
        },
    ),
    Call(LearnedWords, lambda: {"net": TAUGHT, "name": "sks"}, answer=_state, kinds={"net": MODULE, "name": THERE}),
    Call(learned_words, lambda: {"net": TAUGHT}, answer=list, kinds={"net": MODULE}),
    Call(
        save_adapter,
        lambda: {"path": PLACE / "again", "adapter": STYLE},
        answer=None,
        kinds={"path": PATH, "adapter": ADAPTER},
    ),
    Call(
        load_adapter,
        lambda: {"path": PLACE / "style", "net": copy.deepcopy(PLAIN), "name": "other"},
        answer=_state,
        kinds={"path": PATH, "net": MODULE, "name": NAME.but("None")},
    ),
    Call(
        mix,
        lambda: {"datasets": [pictures(0.0), pictures(5.0)], "weights": [1.0, 2.0]},
        answer=lambda found: found.data,
        kinds={"datasets": SETS, "weights": WEIGHTS},
    ),
    Call(
        prior_set,
        lambda: {
            "model": model(), "conditions": {"label": torch.tensor([1, 0, 1])}, "score": None, "batch_size": 2,
            "seed": 1, "steps": 2,
        },
        answer=lambda found: found.data,
        kinds={"model": MODEL, "conditions": ROWS, "score": FUNCTION.but("None"), "batch_size": COUNT, "steps": COUNT},
    ),
]  # fmt: skip
NOT_CALLED: dict[str, str] = {}
