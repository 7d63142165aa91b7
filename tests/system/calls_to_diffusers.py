"""Bad calls of the scheduler that steps by a solver."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from bad_calls import COUNT, LITERAL, NOT_NEGATIVE, POSITIVE, SHAPE, SOLVER, TENSOR, TIME, Call, Kind, Odd
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor

from scoresde import DDIM, VP, EulerMaruyama, ScoreModel
from scoresde.interop import to_diffusers


def theirs() -> Any:
    return DDIMScheduler(num_train_timesteps=50, clip_sample=False)


def ours() -> Any:
    return to_diffusers(DDIM(eta=1.0), theirs())


def after(scheduler: Any) -> Tensor:
    """What it makes of a run of two evaluations."""
    scheduler.set_timesteps(2)
    x = torch.ones(2, 3)
    for t in scheduler.timesteps:
        x = scheduler.step(0.5 * x, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
    return x


def set_timesteps(**options: Any) -> list[float]:
    scheduler = ours()
    scheduler.set_timesteps(**options)
    return scheduler.times.tolist()  # type: ignore[no-any-return]


def set_begin_index(begin_index: Any) -> Any:
    scheduler = ours()
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(begin_index)
    return scheduler.begin_index


def step(model_output: Any, timestep: Any, sample: Any, generator: Any) -> Tensor:
    scheduler = ours()
    scheduler.set_timesteps(4)
    found: Tensor = scheduler.step(model_output, timestep, sample, generator=generator).prev_sample
    return found


def add_noise(original_samples: Any, noise: Any, timesteps: Any) -> Tensor:
    found: Tensor = ours().add_noise(original_samples, noise, timesteps)
    return found


def scale_model_input(timestep: Any) -> Tensor:
    found: Tensor = to_diffusers(DDIM(), {"_class_name": "EDMEulerScheduler"}).scale_model_input(
        torch.ones(2, 3), timestep
    )
    return found


SCHEDULE = Kind(
    {
        "None": lambda right: None,
        "a number": lambda right: 3,
        "a list": lambda right: ["a"],
        "a class": lambda right: DDIMScheduler,
        "an empty config": lambda right: {},
        "a config of something else": lambda right: {"vocabulary": 3},
        "no such folder": lambda right: "nowhere/at/all",
        "a distilled model's": lambda right: LCMScheduler(),
        "a model": lambda right: ScoreModel(lambda x, c: x, VP()),
        "an object": lambda right: Odd(),
    },
    {"its config": lambda right: right.config, "one of ours": lambda right: ours()},
)
NUMBERS = Kind(
    {
        "a number": lambda right: 3.0,
        "a text": lambda right: "30, 10",
        "texts": lambda right: ["a", "b"],
        "None inside": lambda right: [right[0], None],
        "nan": lambda right: [float("nan"), 1.0],
        "empty": lambda right: [],
        "rising": lambda right: [1.0, 2.0],
        "negative": lambda right: [1.0, -2.0],
        "huge": lambda right: [1e9, 1.0],
        "two axes": lambda right: torch.ones(2, 2),
        "an object": lambda right: Odd(),
    },
    {
        "a tensor": lambda right: torch.tensor(right, dtype=torch.float64),
        "an array": lambda right: np.array(right),
        "a tuple": lambda right: tuple(right),
    },
)
GENERATOR = Kind(
    {
        "a seed": lambda right: 3,
        "a text": lambda right: "seed",
        "numpy's": lambda right: np.random.default_rng(0),
        "an empty list": lambda right: [],
        "a list of one": lambda right: [torch.Generator()],
        "a list of seeds": lambda right: [1, 2],
        "an object": lambda right: Odd(),
    }
)
TIMESTEP = Kind(
    {
        "None": lambda right: None,
        "a text": lambda right: "49",
        "nan": lambda right: float("nan"),
        "another": lambda right: 30.5,
        "one for each": lambda right: torch.full((2,), 49.0),
        "complex": lambda right: 1j,
        "an object": lambda right: Odd(),
    },
    {"a tensor": lambda right: torch.tensor(right), "numpy": lambda right: np.float32(right)},
)
RULE = Kind(
    {
        "another text": lambda right: "leading",
        "a number": lambda right: 10,
        "a class": lambda right: VP,
        "a tensor": lambda right: torch.ones(2),
        "an object": lambda right: Odd(),
    }
)
STATE = TENSOR.but("nan", "infinite")

CALLS = [
    Call(
        to_diffusers,
        lambda: {
            "solver": EulerMaruyama(),
            "schedule": theirs(),
            "eta": 0.5,
            "grid": "uniform",
            "denoise": True,
            "integer_timesteps": False,
            "shape": (3,),
            "sigma_data": 1.0,
            "prediction_type": "epsilon",
        },
        kinds={
            "solver": SOLVER,
            "schedule": SCHEDULE,
            "eta": NOT_NEGATIVE.but("None"),
            "grid": RULE,
            "shape": SHAPE.but("None"),
            "sigma_data": POSITIVE.but("None"),
            "prediction_type": LITERAL.but("None"),
        },
        named={"schedule": "schedule|scheduler"},
        answer=after,
    ),
    Call(
        to_diffusers,
        lambda: {"solver": DDIM(), "schedule": VP(), "prediction_type": "sample", "num_train_timesteps": 100},
        kinds={
            "schedule": Kind({"a class": lambda right: VP}),
            "prediction_type": LITERAL.but("None"),
            "num_train_timesteps": COUNT.but("None"),
        },
        answer=after,
        name="to_diffusers of an SDE",
    ),
    Call(set_timesteps, lambda: {"num_inference_steps": 3, "device": "cpu"}, kinds={"num_inference_steps": COUNT}),
    Call(set_timesteps, lambda: {"timesteps": [49.0, 20.0]}, kinds={"timesteps": NUMBERS}, name="timesteps"),
    Call(set_timesteps, lambda: {"sigmas": [0.8, 0.5]}, kinds={"sigmas": NUMBERS}, name="sigmas"),
    Call(set_begin_index, lambda: {"begin_index": 1}, kinds={"begin_index": COUNT.but("zero", huge=lambda right: 4)}),
    Call(
        step,
        lambda: {
            "model_output": 0.5 * torch.ones(2, 3),
            "timestep": 49.0,
            "sample": torch.ones(2, 3),
            "generator": torch.Generator().manual_seed(0),
        },
        kinds={
            "model_output": STATE.but(another_shape=lambda right: torch.ones(2, 4)),
            "timestep": TIMESTEP,
            "sample": STATE.but(another_shape=lambda right: torch.ones(2, 4)),
            "generator": GENERATOR,
        },
    ),
    Call(
        add_noise,
        lambda: {"original_samples": torch.ones(2, 3), "noise": torch.ones(2, 3), "timesteps": torch.tensor([3, 40])},
        kinds={
            "original_samples": STATE.but(another_shape=lambda right: torch.ones(2, 4)),
            "noise": STATE.but(another_shape=lambda right: torch.ones(2, 4)),
            "timesteps": Kind(
                {
                    "beyond": lambda right: torch.tensor([3, 50]),
                    "negative": lambda right: torch.tensor([-1, 3]),
                    "nan": lambda right: torch.tensor([float("nan"), 3.0]),
                    "of three": lambda right: torch.tensor([1, 2, 3]),
                    "a text": lambda right: "3",
                    "an object": lambda right: Odd(),
                },
                {"a list": lambda right: right.tolist(), "floats": lambda right: right.float()},
            ),
        },
    ),
    Call(
        scale_model_input,
        lambda: {"timestep": 0.5},
        kinds={"timestep": TIME.but("negative", "two axes", far=lambda right: 9.0)},
    ),
]
NOT_CALLED: dict[str, str] = {}
