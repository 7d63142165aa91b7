"""Bad calls of what training minimises and averages: learned weightings, couplings, adaptive times, power averages."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from bad_calls import COUNT, DTYPE, FUNCTION, MAPPING, NOT_NEGATIVE, POSITIVE, SCORE, TENSOR, Call, Kind

from scoresde import VP, ScoreModel, nn
from scoresde.curve import LossCurve
from scoresde.losses import OptimalTransport, Uncertainty, UncertaintyNetwork, coupled_noise
from scoresde.times import AdaptiveTimes, UniformTime
from scoresde.train import (
    PowerEMA,
    Snapshots,
    exponent_of,
    fit_profile,
    reconstruct_ema,
    save,
    save_snapshot,
    snapshot_steps,
    width_of,
)

_KEPT = tempfile.TemporaryDirectory(prefix="scoresde-bad-calls-")  # goes with the process
FOLDER = Path(_KEPT.name)
X = torch.tensor([[0.5, -1.0], [1.5, 0.25], [0.0, 1.0]])


def model() -> ScoreModel:
    torch.manual_seed(0)
    return ScoreModel(nn.MLP(2, 4, 1), VP())


def averages(updates: int = 2) -> list[PowerEMA]:
    made = [PowerEMA(model(), width) for width in (0.05, 0.1)]
    for one in made:
        for _ in range(updates):
            one.update()
    return made


def curve() -> LossCurve:
    return LossCurve((-2.0, 0.0, 2.0), (0.1, 0.5, 0.9), (0.01, 0.02, 0.03), (10, 10, 10), 1.0, 5)


save(FOLDER, model(), step=2)
save_snapshot(FOLDER, averages(), step=2)

WIDTH = POSITIVE.but("infinite", too_wide=lambda right: 0.3)
LIST = Kind(
    {
        "None": lambda right: None,
        "a number": lambda right: 0.05,
        "a text": lambda right: "ab",
        "a text inside": lambda right: ["0.05", "0.1"],
        "an object": lambda right: object(),
    },
    {"a list": list},
)
WEIGHTING = FUNCTION.but(a_word=lambda right: "nothing")
DENSITY = FUNCTION.but(a_class=lambda right: UniformTime)

CALLS = [
    Call(
        coupled_noise,
        lambda: {
            "x0": X,
            "eps": 0.5 * X.flip(0),
            "conditions": {"y": X[:, :1]},
            "condition_weight": 0.5,
        },
        kinds={
            "x0": TENSOR,
            "eps": TENSOR,
            "conditions": MAPPING.but(values=lambda right: {"y": 3.0}, rows=lambda right: {"y": torch.ones(7)}),
            "condition_weight": NOT_NEGATIVE,
        },
        named={"x0": "x0", "eps": "eps|x0"},
    ),
    Call(
        OptimalTransport,
        lambda: {"condition_weight": 0.5},
        kinds={"condition_weight": NOT_NEGATIVE.but("None")},
        answer=lambda made: made.condition_weight,
    ),
    Call(
        Uncertainty,
        lambda: {"base": "edm", "channels": 8},
        kinds={"base": WEIGHTING.but("a text"), "channels": COUNT},
        answer=lambda made: made.network()(torch.zeros(2)),
    ),
    Call(Uncertainty().network, lambda: {"seed": 3}, name="Uncertainty.network", answer=lambda u: u.frequency),
    Call(UncertaintyNetwork, lambda: {"channels": 8, "seed": 3}, answer=lambda u: u.frequency),
    Call(
        AdaptiveTimes,
        lambda: {"density": UniformTime(), "cells": 4, "floor": 0.5, "every": 3, "memory": 0.5},
        kinds={
            "density": DENSITY,
            "cells": COUNT,
            "floor": NOT_NEGATIVE.but(zero=lambda right: 0.0, above=lambda right: 1.5),
            "every": COUNT.but("None"),
            "memory": NOT_NEGATIVE.but(one=lambda right: 1.0),
        },
        answer=lambda made: made.masses,
    ),
    Call(
        AdaptiveTimes.from_curve,
        lambda: {"curve": curve(), "sde": VP(), "density": UniformTime(), "cells": 4, "floor": 0.5, "every": 3},
        kinds={
            "curve": SCORE,
            "density": DENSITY.but("None"),
            "cells": COUNT,
            "floor": NOT_NEGATIVE.but(zero=lambda right: 0.0, above=lambda right: 1.5),
            "every": COUNT.but("None"),
        },
        answer=lambda made: made.masses,
    ),
    Call(
        PowerEMA,
        lambda: {"model": model(), "width": 0.1},
        kinds={"model": SCORE, "width": WIDTH.but(beyond_floats=lambda right: 10**400)},
        answer=lambda ema: ema.exponent,
    ),
    Call(width_of, lambda: {"exponent": 3.0}, kinds={"exponent": NOT_NEGATIVE.but(negative=lambda right: -1.5)}),
    Call(exponent_of, lambda: {"width": 0.1}, kinds={"width": WIDTH}),
    Call(
        fit_profile,
        lambda: {"steps": [2, 4], "widths": [0.05, 0.1], "step": 4, "width": 0.1},
        kinds={"steps": LIST, "widths": LIST, "step": COUNT, "width": WIDTH},
        named={"steps": "steps", "widths": "widths|width"},
        answer=lambda fit: fit.coefficients,
    ),
    Call(
        Snapshots,
        lambda: {"every": 3, "widths": (0.05, 0.1), "dtype": torch.float16},
        kinds={"every": COUNT, "widths": LIST, "dtype": DTYPE},
        answer=lambda made: (made.every, made.widths),
    ),
    Call(
        save_snapshot,
        lambda: {"folder": FOLDER / "own", "averages": averages(), "step": 2, "dtype": torch.float32},
        kinds={
            "averages": LIST.but("a text inside").only(),
            "step": COUNT.but(another=lambda right: 5),
            "dtype": DTYPE,
        },
        answer=None,
    ),
    Call(snapshot_steps, lambda: {"folder": FOLDER}),
    Call(
        reconstruct_ema,
        lambda: {"folder": FOLDER, "width": 0.1, "step": 2},
        kinds={"width": WIDTH, "step": COUNT.but("None", beyond=lambda right: 50)},
        answer=None,
    ),
]
NOT_CALLED = {
    "scoresde.losses.coupling.Coupling": "a type",
    "scoresde.train.profiles.ProfileFit": "what fit_profile answers",
}
