"""Bad calls of guidance: what makes a guided score, and the scores themselves."""

from __future__ import annotations

import math

import torch
from bad_calls import (
    COUNT,
    FUNCTION,
    GRID,
    LITERAL,
    MAPPING,
    NOISE,
    NOT_NEGATIVE,
    NUMBER,
    POSITIVE,
    SCORE,
    Call,
    Kind,
    Odd,
)
from right_values import grid, mixture, model, score, state

from scoresde import VP, classifier, classifier_free
from scoresde.guidance import autoguidance, calibration, cfg_plus_plus, compose, from_scale, projected, to_scale

SCALE = NUMBER.but(infinite=lambda right: math.inf)  # of either sign
SCHEDULE = SCALE
MODEL = Kind({**SCORE.wrong, "bound": lambda right: right.bind(label=0), "a guided score": lambda right: score()})
CONDITIONS = MAPPING.but(
    **{
        "None": lambda right: None,
        "empty": lambda right: {},
        "unknown": lambda right: {"caption": 3},
        "None inside": lambda right: {"label": None},
        "a text inside": lambda right: {"label": "cat"},
        "a fraction inside": lambda right: {"label": 0.5},
        "nan inside": lambda right: {"label": torch.tensor([math.nan, math.nan])},
        "a flag inside": lambda right: {"label": torch.tensor([True, False])},
        "an object inside": lambda right: {"label": Odd()},
    }
)
OTHER = CONDITIONS.but("None", "a number", "a tensor")  # the value itself stands for the only condition
INTERVAL = Kind(
    {
        "a number": lambda right: 0.5,
        "a text": lambda right: "01",
        "one end": lambda right: (0.2,),
        "three ends": lambda right: (0.2, 1.0, 2.0),
        "reversed": lambda right: (3.0, 0.2),
        "negative": lambda right: (-1.0, 2.0),
        "nan": lambda right: (math.nan, 2.0),
        "texts": lambda right: ("0", "1"),
        "True": lambda right: (False, True),
        "None inside": lambda right: (None, 2.0),
        "an object": lambda right: Odd(),
    },
    {"a list": list, "a tensor": lambda right: torch.tensor(right)},
)
LABEL = Kind(
    {
        "a text": lambda right: "1",
        "a fraction": lambda right: 1.5,
        "True": lambda right: True,
        "a tensor of fractions": lambda right: torch.ones(2),
        "a tensor of flags": lambda right: torch.tensor([True, False]),
        "two axes": lambda right: torch.ones(2, 1, dtype=torch.int64),
        "negative": lambda right: -1,
        "nan": lambda right: math.nan,
        "bytes": lambda right: b"1",
        "an object": lambda right: Odd(),
    },
    {"numpy int64": lambda right: torch.tensor(right).numpy()[()], "a list": lambda right: [right, right]},
)
LABELS = Kind(
    {
        **LABEL.wrong,
        "a list": lambda right: right.tolist(),
        "None": lambda right: None,
        "a number": lambda right: 1,
        "out of range": lambda right: right + 99,
        "too few": lambda right: right[:1],
    }
)
TERMS = Kind(
    {
        "None": lambda right: None,
        "a number": lambda right: 2.0,
        "a text": lambda right: "ab",
        "a mapping": lambda right: {"label": 0},
        "empty": lambda right: [],
        "a term of one": lambda right: [(2.0,)],
        "no mapping inside": lambda right: [(2.0, 3)],
        "no number inside": lambda right: [("2", {"label": 0})],
        "nan inside": lambda right: [(math.nan, {"label": 0})],
        "no condition": lambda right: [(2.0, {})],
        "unknown": lambda right: [(2.0, {"caption": 0})],
        "an object": lambda right: Odd(),
    },
    {"a tuple": tuple, "numpy": lambda right: [(torch.tensor(w), c) for w, c in right]},
)
NAMED = {
    # what is wrong inside a mapping is told by the name of the condition
    "conditions": "conditions|condition",
    "null": "null|condition",
    "negative": "negative|condition",
    "terms": "terms|condition",
}
CALLED = state()


def at(made: object) -> object:
    """What a guided score answers at a state, or another thing itself."""
    return made(CALLED, 0.5)  # type: ignore[operator]


def label_log_prob(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Of two classes."""
    return x[:, :2].log_softmax(1)


CALLS = [
    Call(
        classifier_free,
        lambda: {
            "model": model(),
            "conditions": {"label": torch.tensor([0, 1])},
            "scale": 2.0,
            "null": {"label": 4},
            "interval": (0.2, 3.0),
            "rescale": 0.5,
        },
        named=NAMED,
        kinds={
            "model": MODEL,
            "conditions": CONDITIONS,
            "scale": SCHEDULE,
            "null": OTHER,
            "interval": INTERVAL,
            "rescale": NUMBER.but(negative=lambda right: -0.1, above=lambda right: 1.5),
        },
        answer=at,
    ),
    Call(
        classifier_free,
        lambda: {"model": model(), "conditions": {"label": 1}, "negative": {"label": 2}, "scale": 2.0},
        named=NAMED,
        kinds={"model": MODEL, "conditions": CONDITIONS, "negative": OTHER, "scale": SCHEDULE},
        answer=at,
        name="classifier_free with negative",
    ),
    Call(
        projected,
        lambda: {
            "model": model(),
            "conditions": {"label": 1},
            "scale": 2.0,
            "parallel": 0.5,
            "norm": 1.0,
            "null": {"label": 4},
            "interval": (0.2, 3.0),
        },
        named=NAMED,
        kinds={
            "model": MODEL,
            "conditions": CONDITIONS,
            "scale": SCHEDULE,
            "null": OTHER,
            "interval": INTERVAL,
            "parallel": SCALE,
            "norm": POSITIVE.but("None"),
        },
        answer=at,
    ),
    Call(
        projected,
        lambda: {"model": model(), "conditions": {"label": 1}, "negative": {"label": 2}},
        named=NAMED,
        kinds={"model": MODEL, "conditions": CONDITIONS, "negative": OTHER},
        answer=at,
        name="projected with negative",
    ),
    Call(
        compose,
        lambda: {"model": model(), "terms": [(2.0, {"label": 0}), (-1.0, {"label": 1})], "null": {"label": 4}},
        named=NAMED,
        kinds={"model": MODEL, "terms": TERMS, "null": OTHER},
        answer=at,
    ),
    Call(
        autoguidance,
        lambda: {"score": score(), "weak": score(), "scale": 2.0},
        kinds={"weak": SCORE, "scale": SCALE},
        answer=at,
    ),
    Call(
        classifier,
        lambda: {
            "score": score(),
            "log_prob": label_log_prob,
            "scale": 2.0,
            "label": 1,
            "temperature": 1.5,
            "t_end": 0.01,
        },
        kinds={
            "log_prob": FUNCTION,
            "scale": SCALE,
            "label": LABEL,
            "temperature": POSITIVE,
            "t_end": NOT_NEGATIVE.but("None"),
        },
        answer=at,
    ),
    Call(
        classifier,
        lambda: {"score": score(), "log_prob": lambda x, t: x.sum(1), "label": None},
        kinds={"log_prob": FUNCTION, "label": Kind({})},
        answer=at,
        name="classifier without label",
    ),
    Call(to_scale, lambda: {"value": 2.0, "convention": "ho-salimans"}, kinds={"value": SCALE, "convention": LITERAL}),
    Call(from_scale, lambda: {"scale": 2.0, "convention": "imagen"}, kinds={"scale": SCALE, "convention": LITERAL}),
    Call(
        cfg_plus_plus,
        lambda: {"sde": VP(), "grid": grid(), "strength": 0.5},
        kinds={"grid": GRID.but(**{"None": lambda right: None}), "strength": SCALE},
        answer=lambda schedule: schedule(0.5),
    ),
    Call(cfg_plus_plus(VP(), grid(), 0.5), lambda: {"t": 0.5}, name="PlusPlus.__call__"),
    Call(
        calibration,
        lambda: {
            "log_prob": mixture().label_log_prob(VP()),
            "sde": VP(),
            "x0": torch.ones(2, 2),
            "label": torch.tensor([0, 1]),
            "times": [0.3, 0.6],
            "noise": 0,
            "bins": 3,
            "batch_size": 1,
        },
        kinds={
            "log_prob": FUNCTION,
            "label": LABELS,
            "bins": COUNT,
            "batch_size": COUNT,
            "noise": NOISE,
            "times": Kind({word: make for word, make in GRID.wrong.items() if word not in ("rising", "one time")}),
        },
        answer=lambda found: found.ece,
    ),
    Call(
        calibration(
            mixture().label_log_prob(VP()), VP(), torch.ones(2, 2), torch.tensor([0, 1]), [0.3, 0.6], 0
        ).temperature_at,
        lambda: {"t": 0.4},
    ),
]
NOT_CALLED: dict[str, str] = {
    "scoresde.guidance.calibration.Calibration": "what calibration answers",
    "scoresde.guidance.parts.LinearGuidance": "abstract",
    "scoresde.guidance.parts.NonlinearGuidance": "abstract",
    "scoresde.guidance.parts.TwistedGuidance": "abstract",
    "scoresde.guidance.parts.Part": "a named tuple, what parts answers",
    "scoresde.guidance.parts.Twist": "a named tuple, what twist answers",
    "scoresde.guidance.plus_plus.PlusPlus": "made by cfg_plus_plus",
}
