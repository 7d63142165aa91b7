"""Bad calls of scores, models and conditions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from bad_calls import (
    COUNT_FROM_0,
    FREE,
    FUNCTION,
    MAPPING,
    NUMBER,
    OPEN_TENSOR,
    SCORE,
    TIME_BESIDE_X,
    Call,
    Kind,
)
from torch import Tensor

from scoresde import VP, ClassifierModel, Gaussian, Score, ScoreModel, Spectrum, as_score
from scoresde.models import BoundScore, score_of_denoiser
from scoresde.models.conditions import (
    Caption,
    Conditions,
    Embedding,
    Image,
    Label,
    Vector,
    as_conditions,
    check_name,
    split_absent,
    stored_conditions,
)
from scoresde.nn import MLP

torch.manual_seed(0)
NET = MLP(3, width=8, depth=1)
TOLD = MLP(3, width=8, depth=1, num_classes=4, vectors={"v": 2})
X = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]])
Y = torch.tensor([1, 2])
MODEL, TOLD_MODEL = ScoreModel(NET, VP()), ScoreModel(TOLD, VP())
CLASSIFIER = ClassifierModel(MLP(3, width=8, depth=1, out_dim=4), VP())

# Another number of coordinates is refused by the networks; functions and exact scores of any event have no say.
OF_NET = OPEN_TENSOR.but(another_event=lambda x: torch.ones(2, 5))
OTHER_THAN_NUMBERS = ("a list", "a tensor (2,)", "an empty tensor", "a tensor without values")
COEFFICIENT = NUMBER.but(  # a tensor (B,) and a list of as many numbers are taken, too
    "a list",
    "a tensor (2,)",
    "a tensor without values",
    a_column=lambda right: torch.ones(2, 1),
    another_batch=lambda right: torch.ones(7),
)
PREDICTS = Kind(
    {
        "None": lambda right: None,
        "another text": lambda right: "nonsense",
        "a number": lambda right: 1.0,
        "a list": lambda right: ["v"],
        "bytes": lambda right: b"v",
        "a tensor": lambda right: torch.ones(2),
    }
)
SPECTRUM = SCORE.but("None")
NAMED = MAPPING.but(no_name=lambda right: {3: 1})
NAME = Kind({word: make for word, make in MAPPING.wrong.items() if word != "a text"}).but(
    blank=lambda right: "a b", own=lambda right: "x", empty=lambda right: ""
)


CONDITION = Kind(
    {
        "a text": lambda right: "x",
        "a number": lambda right: 1.5,
        "a list": lambda right: right.tolist(),
        "numpy": lambda right: right.numpy(),
        "complex": lambda right: right.to(torch.complex64),
        "bool": lambda right: right > 0,
        "another batch": lambda right: right[:1].repeat(7, *[1] * (right.ndim - 1)),
        "another event": lambda right: right[..., None].repeat(*[1] * right.ndim, 7),
        "no axis": lambda right: right.flatten()[0],
        "a dict": lambda right: {},
        "bytes": lambda right: b"1",
        "a class": lambda right: Tensor,
        "out of range": lambda right: right * torch.inf if right.is_floating_point() else right - 5,
        "of another dtype": lambda right: right.long() if right.is_floating_point() else right.float(),
    }
)
LABEL = Kind(
    {
        "a text": lambda right: "cat",
        "a fraction": lambda right: 1.5,
        "True": lambda right: True,
        "complex": lambda right: 1j,
        "negative": lambda right: -1,
        "above": lambda right: 9,
        "of fractions": lambda right: torch.tensor([1.0, 2.0]),
        "of bools": lambda right: torch.tensor([True, False]),
        "a dict": lambda right: {},
        "one above": lambda right: torch.tensor([1, 99]),
    },
    {"numpy": lambda right: np.int64(right), "a tensor ()": torch.tensor, "an array": lambda y: np.array([y, y])},
)


class OfBind:
    """``model.bind`` takes conditions by any name: one with the names of this table."""

    def __init__(self, model: ScoreModel) -> None:
        self.model = model

    def __call__(self, label: Any, v: Any) -> Tensor:
        return self.model.bind(label=label, v=v)(X, 0.5)


def arguments(**given: Any) -> Any:
    return lambda: {name: value.clone() if isinstance(value, Tensor) else value for name, value in given.items()}


def methods() -> Iterator[Call]:
    """Of scores of every make."""
    scores: dict[str, Score] = {
        "as_score": as_score(lambda x, t: -x, VP()),
        "score_of_denoiser": score_of_denoiser(lambda x, t: 0.5 * x, VP()),
        "MixtureScore": Gaussian(torch.zeros(3), torch.eye(3)).score(VP()),
        "BoundScore": TOLD_MODEL.bind(label=1),
        "ScoreModel": MODEL,
    }
    for name, score in scores.items():
        kinds = {"x": OPEN_TENSOR, "t": TIME_BESIDE_X} | dict.fromkeys(("a", "b", "x0", "noise"), COEFFICIENT)
        for method, given in {
            "__call__" if score is not MODEL else "forward": {},
            "linear": {"a": 0.5, "b": 0.25},
            "expect": {"x0": 0.5, "noise": 0.25},
            "denoise": {},
            "noise": {},
        }.items():
            yield Call(getattr(score, method), arguments(x=X, t=0.5, **given), kinds=kinds, name=f"{name}.{method}")


CALLS = [
    *methods(),
    *(
        Call(
            getattr(TOLD_MODEL, method),
            arguments(x=X, t=0.5, conditions={"label": Y}),
            kinds={"x": OF_NET, "t": TIME_BESIDE_X},
            name=f"ScoreModel.{method} with conditions",
        )
        for method in ("forward", "noise", "denoise")
    ),
    Call(OfBind(TOLD_MODEL), arguments(label=1, v=torch.ones(2)[None]), kinds={"label": LABEL, "v": FREE}, name="bind"),
    Call(
        MODEL.under, lambda: {"sde": VP(T=0.9, t_min=0.01)}, answer=lambda model: model(X, 0.5), name="ScoreModel.under"
    ),
    *(
        Call(
            getattr(CLASSIFIER, m),
            arguments(x=X, t=0.5),
            kinds={"x": OF_NET, "t": TIME_BESIDE_X},
            name=f"Classifier.{m}",
        )
        for m in ("forward", "logits")
    ),
    Call(
        ScoreModel,
        lambda: {"net": NET, "sde": VP(), "predicts": "v", "sigma_data": 0.5, "spectrum": Spectrum(0.5, 1.0)},
        kinds={"net": FUNCTION, "predicts": PREDICTS, "spectrum": SPECTRUM},
        answer=lambda model: model(X, 0.5),
    ),
    Call(
        ClassifierModel,
        lambda: {"net": CLASSIFIER.net, "sde": VP(), "sigma_data": 0.5},
        kinds={"net": FUNCTION},
        answer=lambda model: model(X, 0.5),
    ),
    Call(
        BoundScore,
        lambda: {"model": TOLD_MODEL, "conditions": {"label": Y}},
        kinds={"model": SCORE},
        answer=lambda score: score(X, 0.5),
    ),
    Call(
        as_score,
        lambda: {"function": lambda x, t: -x, "sde": VP(), "sigma_data": 0.5, "dtype": torch.float64},
        kinds={"function": FUNCTION},
        answer=lambda score: score(X, 0.5),
    ),
    Call(
        score_of_denoiser,
        lambda: {"denoiser": lambda x, t: x, "sde": VP(), "sigma_data": 0.5, "dtype": torch.float64},
        kinds={"denoiser": FUNCTION},
        answer=lambda score: score(X, 0.5),
    ),
    # -- conditions ----------------------------------------------------------------------------------------------------
    Call(Label, lambda: {"num_classes": 4}),
    Call(Vector, lambda: {"size": 2}),
    Call(Image, lambda: {"channels": 1}),
    Call(Embedding, lambda: {"size": 2}),
    Call(Caption, lambda: {"vocabulary": 4, "length": 3, "width": 8, "layers": 1}),
    Call(Conditions, lambda: {"named": {"label": Label(4)}}, kinds={"named": MAPPING}, answer=dict),
    Call(
        TOLD.conditions.read,
        lambda: {"given": {"label": Y}, "x": X},
        kinds={"given": MAPPING, "x": OPEN_TENSOR},
        name="Conditions.read",
    ),
    *(
        Call(
            kind.read,
            lambda value=value: {"name": "told", "value": value, "x": torch.ones(2, 3, 4)},
            kinds={"name": FREE, "value": CONDITION, "x": FREE},
            name=f"{type(kind).__name__}.read",
            named={"value": "told"},
        )
        for kind, value in {
            Label(4): Y,
            Vector(3): torch.ones(2, 3),
            Image(1): torch.ones(2, 1, 4),
            Caption(4, 3): torch.ones(2, 3, dtype=torch.long),
            Embedding(5): torch.ones(2, 3, 5),
        }.items()
    ),
    Call(
        as_conditions,
        lambda: {"given": {"label": Y}, "what": "this", "name": "told"},
        kinds={"given": MAPPING, "what": FREE, "name": FREE},
        named={"given": "told"},
    ),
    Call(check_name, lambda: {"name": "size"}, kinds={"name": NAME}),
    Call(split_absent, lambda: {"value": X, "rank": 1}, kinds={"value": OPEN_TENSOR}),
    Call(stored_conditions, lambda: {"conditions": {"label": Y}, "count": 2}, kinds={"count": COUNT_FROM_0}),
]
NOT_CALLED = {
    "scoresde.models.captured.captured": "of a CUDA device, which the tests have not; tests/models/test_captured.py",
    "scoresde.models.combination.Combination": "a protocol",
    "scoresde.models.evaluation.evaluating": "takes any object",
    "scoresde.models.score.Units": "a protocol",
    "scoresde.models.combination.Expectation": "a tuple, whose numbers are checked where they are given",
    "scoresde.models.combination.Linear": "a tuple, whose numbers are checked where they are given",
    "scoresde.models.modules.modules_of": "takes any object",
    "scoresde.models.modules.parameters_of": "takes any object",
    "scoresde.models.predictions.Affine": "a tuple of results",
    "scoresde.models.score.DerivedScore": "abstract",
    "scoresde.models.score.Score": "abstract: the methods of its kinds are called",
    "collections.abc.Callable": "a type",
}
