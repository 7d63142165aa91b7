"""Bad calls of particles: both methods with all of their options, resampling, and what they answer."""

from __future__ import annotations

import math
from typing import Any

import torch
from bad_calls import COUNT, COUNT_FROM_0, FLAG, FRACTION, NOISE, SHAPE, SOLVER, STATE, Call, Kind, Odd
from right_values import measurement, model, score

from scoresde import EulerMaruyama, SpectralMultistep, classifier_free, grids
from scoresde.inverse import pigdm
from scoresde.particles import (
    effective_sample_size,
    multinomial,
    residual,
    stratified,
    systematic,
    tilted,
    twisted,
)

SUM = Kind(
    {
        "None": lambda right: None,
        "a plain score": lambda right: score(),
        "a function": lambda right: lambda x, t: x,
        "a text": lambda right: "cfg",
        "a class": lambda right: type(right),
        "no sum": lambda right: classifier_free(model(), {"label": 1}, lambda t: 2.0),
        "an object": lambda right: Odd(),
    }
)
RESAMPLING = Kind(
    {
        "None": lambda right: None,
        "another text": lambda right: "nonsense",
        "a number": lambda right: 3,
        "a list": lambda right: ["systematic"],
        "bytes": lambda right: b"systematic",
        "a tensor": lambda right: torch.ones(2),
        "an object": lambda right: Odd(),
    },
    {"the function": lambda right: systematic},
)
PARTICLES = SHAPE.but(
    **{"too few": lambda right: (2, *right[1:]), "odd": lambda right: (7, *right[1:]), "none": lambda right: (0, 3)}
)
OPTIONS = {
    "groups": COUNT.but(**{"no divisor": lambda right: 3}),
    "solver": SOLVER,
    "threshold": FRACTION,
    "resampling": RESAMPLING,
    "shape": PARTICLES,
    "denoise": FLAG,
}
WEIGHTS = STATE.but(
    "infinite",
    **{
        "one axis": lambda right: right[0],
        "no particles": lambda right: right[:, :0],
        "all nothing": lambda right: torch.full_like(right, -math.inf),
        "plus infinity": lambda right: torch.full_like(right, math.inf),
    },
)
SEEDED = NOISE.but("a tensor", **{"None": lambda right: None, "a list": lambda right: [0]})


def options(**more: Any) -> dict[str, Any]:
    """All of them, with right values."""
    return {
        "groups": 2,
        "steps": 2,
        "grid": grids.karras,
        "eta": 1.0,
        "threshold": 0.5,
        "resampling": "systematic",
        "seed": 0,
        "denoise": True,
        "dtype": torch.float32,
        "device": "cpu",
        **more,
    }


RUN = tilted(classifier_free(model(), {"label": 1}, 2.0), (8, 3), groups=2, steps=2)

CALLS = [
    Call(
        tilted,
        lambda: {
            "guidance": classifier_free(model(), {"label": 1}, 2.0),
            "shape": (8, 3),
            "solver": SpectralMultistep(),
            **options(),
        },
        kinds={**OPTIONS, "guidance": SUM},
        answer=lambda found: found.x,
    ),
    Call(
        tilted,
        lambda: {
            "guidance": classifier_free(model(), {"label": 1}, 2.0),
            "shape": (8, 3),
            "steps": 2,
            "noise": 0,
            "grid": grids.karras(score().sde, 2),
        },
        kinds={**OPTIONS, "guidance": SUM, "shape": PARTICLES.but("too few", "odd")},  # of one group
        answer=lambda found: found.x,
        name="tilted on times",
    ),
    Call(
        twisted,
        lambda: {
            "guidance": pigdm(score(), measurement()),
            "shape": (8, 3),
            "moves": 1,
            "solver": EulerMaruyama(),
            **options(),
        },
        kinds={**OPTIONS, "guidance": SUM, "moves": COUNT_FROM_0},
        answer=lambda found: found.x,
    ),
    Call(effective_sample_size, lambda: {"log_weights": torch.zeros(2, 4)}, kinds={"log_weights": WEIGHTS}),
    *[
        Call(
            scheme,
            lambda: {"log_weights": torch.zeros(2, 4), "noise": 0, "count": 3},
            kinds={"log_weights": WEIGHTS, "noise": SEEDED},
        )
        for scheme in (systematic, stratified, multinomial, residual)
    ],
    Call(RUN.draw, lambda: {"count": 3, "noise": 0}, kinds={"noise": SEEDED}),
]
NOT_CALLED: dict[str, str] = {
    "scoresde.particles.population.CollapseWarning": "a warning",
    "scoresde.particles.population.Particles": "what the methods answer",
    "scoresde.particles.start.ParticleOptions": "names of keywords",
}
