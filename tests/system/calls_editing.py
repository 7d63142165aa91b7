"""Bad calls of editing: every edit with all of its options."""

from __future__ import annotations

import dataclasses
import math
from functools import cache

import torch
from bad_calls import (
    COUNT,
    COUNT_FROM_0,
    FLAG,
    FRACTION,
    GRID,
    LITERAL,
    MAPPING,
    NUMBER,
    OPTIONAL_FUNCTION,
    POSITIVE,
    SCORE,
    SOLVER,
    STATE,
    TIME,
    Call,
    Kind,
    Odd,
)
from right_values import grid, score, state

from scoresde import DDIM, VE, VP, Heun, Score, ScoreModel, grids, nn
from scoresde.editing import (
    Inversion,
    NullText,
    anomaly_map,
    counterfactual,
    diffedit,
    diffedit_mask,
    interpolate,
    invert,
    null_text,
    prompt_to_prompt,
    sdedit,
)
from scoresde.problems import Gaussian
from scoresde.solvers import ProbabilityFlow

SAME = SCORE.but(**{"another schedule": lambda right: score(VE())})
SCORES = {"score": SCORE, "source_score": SCORE, "target_score": SCORE}
START = TIME.but(**{"at the data": lambda right: 0.001, "each": lambda right: torch.full((2,), 0.5)})
RULE = GRID.but(times=lambda right: grid())  # times of one's own start where they start
MASK = Kind(
    {
        "a list": lambda right: right.tolist(),
        "numpy": lambda right: right.numpy(),
        "whole numbers": lambda right: right.long(),
        "complex": lambda right: right.to(torch.complex64),
        "a text": lambda right: "mask",
        "a number": lambda right: 1.0,
        "True": lambda right: True,
        "another shape": lambda right: torch.ones(2, 7, dtype=torch.bool),
        "nothing": torch.zeros_like,
        "above 1": lambda right: 255.0 * right,
        "negative": lambda right: right.float() - 2,
        "nan": lambda right: right.float() * math.nan,
        "without values": lambda right: right.to("meta"),
        "sparse": lambda right: right.float().to_sparse(),
        "an object": lambda right: Odd(),
    },
    {"floating": lambda right: right.float()},
)
FLOW = SOLVER.but(**{"a solver with steps": lambda right: DDIM()})
WAY = {
    "method": LITERAL,
    "iterations": COUNT_FROM_0,
    "memory": COUNT_FROM_0.but(),
    "tolerance": POSITIVE.but("None"),
    "solver": FLOW,
    "steps": COUNT,
    "grid": GRID,
    "trajectory": FLAG,
    "gradients": FLAG,
    "denoise": FLAG,
}
LATENT = STATE.but(**{"another shape": lambda right: torch.ones(2, 5), "another batch": lambda right: torch.ones(5, 3)})
INSIDE = FRACTION.but("None", zero=lambda right: 0.0, one=lambda right: 1.0)
WEIGHTS = TIME.but("negative", infinite=lambda right: math.inf)  # beyond 0 and 1 it extrapolates
CAPTION = MAPPING.but(
    **{
        "None": lambda right: None,
        "other names": lambda right: {"label": 1},
        "no names": lambda right: {},
        "a text inside": lambda right: {"caption": "a cat"},
        "None inside": lambda right: {"caption": None},
    }
)
QUICK = ProbabilityFlow("dopri5", 1e-2, 1e-2)


def other() -> Score:
    """Another score of the same schedule."""
    return OTHER


WORDS = {"vocabulary": 6, "length": 2, "width": 16, "layers": 1}
OTHER = Gaussian(torch.ones(3), torch.eye(3)).score(VP())


@cache
def captioned() -> ScoreModel:
    """A network of 2 × 4 × 4 images with cross-attention to captions of two words."""
    torch.manual_seed(0)
    net = nn.UNet(2, width=8, multipliers=(1,), blocks=1, attention_levels=(0,), captions={"caption": WORDS})
    return ScoreModel(net.eval(), VP())


def inverted() -> Inversion:
    """A picture's way up, with its states."""
    return invert(captioned().bind(**WORD), torch.ones(1, 2, 4, 4), steps=2, trajectory=True)


@cache
def nulls() -> NullText:
    """Those of a picture."""
    return null_text(captioned(), inverted(), WORD, 2.0, iterations=1)


WORD = {"caption": torch.tensor([[1, 2]])}
LEVELS = Kind(
    {
        "None": lambda right: None,
        "a number": lambda right: 0.5,
        "a text": lambda right: "0.5",
        "a text inside": lambda right: ["low"],
        "nothing": lambda right: [],
        "negative": lambda right: [-0.5],
        "zero": lambda right: [0.0],
        "beyond": lambda right: [1e9],
        "nan": lambda right: [math.nan],
        "an object": lambda right: Odd(),
    },
    {"a tuple": tuple, "a tensor": lambda right: torch.tensor(right, dtype=torch.float64)},
)
FOUND = Kind(
    {
        "None": lambda right: None,
        "a latent": lambda right: right.x,
        "without states": lambda right: dataclasses.replace(right, trajectory=None),
        "another schedule": lambda right: dataclasses.replace(right, sde=VE()),
        "an object": lambda right: Odd(),
    }
)
ONE_STEP = SOLVER.but(**{"of two evaluations": lambda right: Heun()})
NULLS = Kind(
    {
        "a latent": lambda right: right.x,
        "an object": lambda right: Odd(),
        "of another model": lambda right: dataclasses.replace(right, model=ScoreModel(right.model.net, VP())),
    },
    {},
)
OTHER_SCALE = NUMBER.but(infinite=lambda right: math.inf)

CALLS = [
    Call(
        sdedit,
        lambda: {
            "score": score(),
            "x0": state(),
            "t": 0.5,
            "solver": DDIM(),
            "steps": 2,
            "grid": grids.karras,
            "eta": 0.5,
            "seed": 0,
            "mask": torch.tensor([True, False, True]),
            "denoise": True,
            "trajectory": True,
            "gradients": False,
        },
        kinds={"t": START.but("None"), "grid": RULE, "mask": MASK},
        answer=lambda found: found.x,
    ),
    Call(
        sdedit,
        lambda: {"score": score(), "x0": state(), "level": 0.5, "steps": 2, "noise": 0},
        kinds={"level": POSITIVE.but("None")},
        answer=lambda found: found.x,
        name="sdedit to a level",
    ),
    Call(
        invert,
        lambda: {
            "score": score(),
            "x0": state(),
            "t": 0.5,
            "steps": 2,
            "grid": grids.karras,
            "method": "ddim",
            "iterations": 2,
            "tolerance": 1e-3,
            "memory": 2,
            "trajectory": True,
            "gradients": False,
        },
        kinds={**WAY, "t": START.but("None")},
        answer=lambda found: found.x,
    ),
    Call(
        invert,
        lambda: {"score": score(), "x0": state(), "grid": grid(), "method": "ode", "solver": QUICK},
        kinds=WAY,
        answer=lambda found: found.x,
        name="invert along the ODE",
    ),
    Call(
        invert(score(), state(), steps=2).decoded,
        lambda: {"score": other()},
        answer=lambda found: found.x,
        named={"score": "score"},
        kinds={"score": SAME},
    ),
    Call(
        counterfactual,
        lambda: {
            "source_score": score(),
            "target_score": other(),
            "x0": state(),
            "t": 0.5,
            "gradients": False,
            "steps": 2,
            "grid": grids.karras,
            "method": "ddim",
            "iterations": 2,
            "tolerance": 1e-3,
            "memory": 2,
        },
        kinds={**WAY, **SCORES, "t": START.but("None")},
        answer=lambda found: found.x,
    ),
    Call(
        diffedit_mask,
        lambda: {
            "source_score": score(),
            "target_score": other(),
            "x0": state(),
            "t": 0.5,
            "samples": 1,
            "threshold": 0.5,
            "clip": 3.0,
            "seed": 0,
            "gradients": False,
        },
        kinds={
            **SCORES,
            "t": START,
            "threshold": INSIDE,
            "clip": POSITIVE.but("infinite", "beyond floats", one=lambda right: 1.0),
        },
    ),
    Call(
        diffedit,
        lambda: {
            "source_score": score(),
            "target_score": other(),
            "x0": state(),
            "t": 0.5,
            "mask": torch.tensor([True, False, True]),
            "gradients": False,
            "steps": 2,
            "grid": grids.karras,
            "method": "ddim",
            "iterations": 1,
            "tolerance": 1e-3,
            "memory": 2,
        },
        kinds={**WAY, **SCORES, "t": START, "mask": MASK, "grid": RULE},
        answer=lambda found: found.x,
    ),
    Call(
        interpolate,
        lambda: {"a": state(), "b": state() + 1, "weights": 0.5, "path": "spherical", "gradients": False},
        kinds={"a": LATENT, "b": LATENT, "weights": WEIGHTS, "path": LITERAL},
    ),
    Call(
        prompt_to_prompt,
        lambda: {
            "model": captioned(),
            "x": torch.ones(1, 2, 4, 4),
            "source": {"caption": torch.tensor([[1, 2]])},
            "target": {"caption": torch.tensor([[3, 2]])},
            "edit": lambda a, b: a,
            "until": 0.5,
            "scale": 2.0,
            "solver": DDIM(),
            "steps": 2,
            "grid": grids.karras,
            "eta": 0.5,
            "seed": 0,
            "denoise": True,
            "gradients": False,
        },
        kinds={
            "model": SCORE,
            "source": CAPTION,
            "target": CAPTION,
            "edit": OPTIONAL_FUNCTION,
            "until": FRACTION,
            "scale": NUMBER.but("None", infinite=lambda right: math.inf),
        },
        named={"source": "source|caption|condition", "target": "target|caption|condition"},
        answer=lambda found: found.x,
    ),
    Call(
        prompt_to_prompt,
        lambda: {
            "model": captioned(),
            "x": nulls().x,
            "source": WORD,
            "target": {"caption": torch.tensor([[3, 2]])},
            "scale": 3.0,
            "null": nulls(),
            "grid": nulls().grid,
            "solver": DDIM(),
            "denoise": False,
        },
        kinds={
            "model": SCORE,
            "x": LATENT.but(**{"another batch": lambda right: torch.ones(5, 2, 4, 4)}),
            "source": CAPTION,
            "target": CAPTION,
            "scale": OTHER_SCALE.but("None", one=lambda right: 1.0),
            "null": NULLS,
        },
        named={"source": "source|caption|condition", "target": "target|caption|condition", "x": "x|pictures"},
        answer=lambda found: found.x,
        name="prompt_to_prompt with nulls",
    ),
    Call(
        null_text,
        lambda: {
            "model": captioned(),
            "found": inverted(),
            "conditions": WORD,
            "scale": 2.0,
            "null": None,
            "solver": DDIM(),
            "iterations": 1,
            "rate": 0.1,
            "tolerance": 1e-3,
            "start": 0.5,
            "progress": False,
        },
        kinds={
            "model": SCORE,
            "found": FOUND,
            "conditions": CAPTION,
            "scale": OTHER_SCALE.but(one=lambda right: 1.0),
            "null": Kind({"nan": lambda right: math.nan, "another name": lambda right: {"label": 0}}),
            "solver": ONE_STEP,
            "iterations": COUNT,
            "rate": POSITIVE,
            "tolerance": POSITIVE,
            "start": FRACTION,
            "progress": FLAG,
        },
        named={"conditions": "conditions|caption|condition"},
        answer=lambda found: found.reconstruction,
    ),
    Call(
        nulls().score,
        lambda: {"conditions": {"caption": torch.tensor([[3, 2]])}, "scale": 3.0},
        kinds={"conditions": CAPTION.but("None"), "scale": OTHER_SCALE.but("None")},
        named={"conditions": "conditions|caption|condition"},
        answer=None,
    ),
    Call(
        nulls().decoded,
        lambda: {"conditions": {"caption": torch.tensor([[3, 2]])}, "scale": 3.0},
        kinds={"conditions": CAPTION.but("None"), "scale": OTHER_SCALE.but("None")},
        named={"conditions": "conditions|caption|condition"},
        answer=lambda found: found.x,
    ),
    Call(
        anomaly_map,
        lambda: {
            "score": score(),
            "x0": state(),
            "levels": [0.5, 1.0],
            "samples": 1,
            "steps": 1,
            "solver": DDIM(),
            "grid": grids.karras,
            "eta": 0.5,
            "seed": 0,
            "gradients": False,
        },
        kinds={"levels": LEVELS, "samples": COUNT, "steps": COUNT_FROM_0, "grid": RULE, "gradients": FLAG},
        answer=lambda found: found.map,
    ),
]
NOT_CALLED: dict[str, str] = {
    f"scoresde.editing.{name}": "what an edit answers"
    for name in ("anomaly.Anomaly", "counterfactual.Counterfactual", "diffedit.DiffEdit", "inversion.Inversion",
                 "null_text.NullText", "prompt_to_prompt.PromptToPrompt")
} | {"scoresde.editing.inversion.Way": "names of keywords"}  # fmt: skip
