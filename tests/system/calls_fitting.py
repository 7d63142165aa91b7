"""Bad calls of samplers and grids fitted to a score."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from bad_calls import (
    COUNT,
    COUNT_FROM_0,
    DEVICE,
    DTYPE,
    PATH,
    POSITIVE,
    SEED,
    SHAPE,
    SOLVER,
    STATE,
    Call,
)
from right_values import score

from scoresde import DDIM
from scoresde.fitting import fit
from scoresde.grids import adapted
from scoresde.solvers import AdaptiveODE

_KEPT = tempfile.TemporaryDirectory(prefix="scoresde-bad-calls-")  # goes with the process
FOLDER = Path(_KEPT.name)
# a fit takes a second: other ways of writing are tried where a call costs less
SOLVERS = SOLVER.but(**{"an empty list": lambda right: [], "a list with a text": lambda right: [DDIM(), "heun"]})

CALLS = [
    Call(
        fit,
        lambda: {
            "score": score(),
            "steps": 1,
            "solver": DDIM(),
            "shape": (3, 3),
            "batch": 1,
            "seed": 0,
            "iterations": 0,
            "budget": 1.0,
            "dtype": torch.float32,
            "device": "cpu",
            "callback": None,
        },
        kinds={
            "solver": SOLVERS,
            "steps": COUNT.only(),
            "batch": COUNT.but(**{"too many": lambda right: 2}).only(),
            "iterations": COUNT_FROM_0.only(),
            "budget": POSITIVE.only(),
            "seed": SEED.only("numpy int64"),
            "dtype": DTYPE.only(),
            "device": DEVICE.only(),
            "shape": SHAPE.but("None", **{"too few": lambda right: (2, 3)}).only("an array"),
        },
        answer=lambda fitted: fitted.times,
    ),
    Call(
        fit,
        lambda: {
            "score": score(),
            "steps": 1,
            "solver": [DDIM()],
            "starts": torch.ones(3, 3),
            "batch": 1,
            "iterations": 0,
        },
        kinds={
            "starts": STATE.but("None").only(),
            "solver": SOLVERS,
            "steps": COUNT.only(),
            "batch": COUNT.only(),
            "iterations": COUNT_FROM_0.only(),
        },
        answer=lambda fitted: fitted.times,
        name="fit from starts",
    ),
    Call(
        adapted,
        lambda: {
            "score": score(),
            "shape": (22, 3),
            "solver": DDIM(),
            "evaluations": 1000,
            "seed": 0,
            "cache": FOLDER / "adapted.json",
            "dtype": torch.float32,
            "device": "cpu",
            "callback": None,
        },
        kinds={
            "shape": SHAPE.but(**{"too few": lambda right: (2, 3)}),
            "evaluations": COUNT.but(),
            "cache": PATH.but(bytes=lambda right: b"a", empty=lambda right: ""),
            "solver": SOLVER.but(**{"its own steps": lambda right: AdaptiveODE()}),
        },
        answer=lambda rule: rule.logs,
    ),
]
NOT_CALLED: dict[str, str] = {"scoresde.fitting.gauss_newton.Iteration": "what a callback is given"}
