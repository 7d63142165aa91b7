"""Every warning points at the line of the user's that led to it, through decorators and libraries that call back."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import scoresde as ss
from scoresde.data import Scaling, from_tensors
from scoresde.guidance import classifier_free
from scoresde.likelihood import encode
from scoresde.models import ScoreModel, as_score
from scoresde.models.conditions import TrainedWith
from scoresde.nn import MLP
from scoresde.solvers import AdaptiveODE, Heun, ProbabilityFlow
from scoresde.train import train


def spoilt(x: Tensor, t: Tensor) -> Tensor:
    """A score that is NaN for the first sample."""
    return torch.where(torch.arange(len(x))[:, None] == 0, torch.nan, -x)


def always_told() -> ScoreModel:
    """A model that was never trained without its label."""
    model = ScoreModel(MLP(2, num_classes=3), ss.VP())
    model.trained_with = TrainedWith(("label",), {}, together=True)
    return model


BAD, GOOD, X = as_score(spoilt, ss.VP()), as_score(lambda x, t: -x, ss.VP()), torch.ones(4, 2)
TABLE = torch.stack([torch.linspace(0, 1, 50), torch.linspace(0, 1000, 50)], 1)
CONSTANT = torch.stack([torch.linspace(0, 1, 50), torch.full((50,), 3.0)], 1)
T = torch.tensor(0.5, dtype=torch.float64)


class Callback(nn.Module):
    """A user's module, which torch calls, and which calls a model."""

    def forward(self, x: Tensor) -> Tensor:
        return always_told()(x, 0.5)


def other_units() -> None:
    model = ScoreModel(MLP(2), ss.VP())
    model.scaling = Scaling(0.0, 7.0)
    train(model, from_tensors(torch.randn(8, 2, generator=torch.Generator().manual_seed(0))), steps=1, batch_size=4)


CASES: dict[str, Callable[[], object]] = {
    "a sample is NaN": lambda: ss.sample(BAD, (4, 2), solver=Heun(), steps=3, seed=0),
    "log_prob of one is NaN": lambda: ss.log_prob(BAD, X),
    "bits of one are NaN": lambda: ss.bits_per_dim(BAD, X, 0.1),
    "the code of one is NaN": lambda: encode(BAD, X),
    "torchdiffeq at its limit": lambda: ss.sample(GOOD, (4, 2), solver=ProbabilityFlow(max_steps=2), seed=0),
    "adaptive steps at their limit": lambda: ss.sample(GOOD, (4, 2), solver=AdaptiveODE(max_steps=2), seed=0),
    "a table under one scale": lambda: from_tensors(TABLE, scaling="tensor"),
    "a constant column": lambda: from_tensors(CONSTANT),
    "a constant column, standardised": lambda: Scaling.standardise(CONSTANT, "coordinate"),
    "labels from 1": lambda: from_tensors(X + torch.arange(4)[:, None], torch.arange(1, 5)),
    "bind without a label": lambda: always_told().bind(),
    "a call without a label": lambda: always_told()(X, T),
    "its noise": lambda: always_told().noise(X, T),
    "sampling without a label": lambda: ss.sample(always_told(), (4, 2), steps=2, seed=0),
    "torchdiffeq asks it": lambda: ss.log_prob(always_told(), X),
    "guidance against nothing": lambda: classifier_free(always_told(), {"label": 1}, scale=2.0),
    "under a wider schedule": lambda: always_told().under(ss.VE(1e-6, 1e4)),
    "a module that calls a model": lambda: Callback()(X),
    "training in other units": other_units,
}


@pytest.mark.parametrize("case", CASES)
def test_a_warning_points_at_the_line_of_the_user(case: str) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        CASES[case]()
    assert seen and {found.filename for found in seen} == {__file__}


def test_there_is_one_way_to_warn() -> None:
    root = Path(ss.__file__).parent
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "warnings.warn_explicit"):
                assert path == root / "warning.py", f"{path}:{node.lineno}: take scoresde.warning.warn_user"
