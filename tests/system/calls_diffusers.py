"""Bad calls of what takes networks and schedulers of diffusers."""

from __future__ import annotations

import torch
from bad_calls import FLAG, FUNCTION, LITERAL, MAPPING, NOT_NEGATIVE, Call, Kind, Odd
from diffusers import DDIMScheduler
from right_values import model, state
from torch import Tensor

from scoresde.interop import DPMSolver2M, diffusers_grid, diffusers_sampling, from_diffusers


def network(x: Tensor, timestep: Tensor, shift: float = 0.0) -> Tensor:
    """Of any shape."""
    return 0.1 * x + shift


def scheduler() -> DDIMScheduler:
    """A chain of 50 levels."""
    return DDIMScheduler(num_train_timesteps=50, clip_sample=False)


SCHEDULER = Kind(
    {
        "a number": lambda right: 3,
        "a list": lambda right: ["a"],
        "a tensor": lambda right: torch.ones(2),
        "a class": lambda right: DDIMScheduler,
        "an empty config": lambda right: {},
        "a config of something else": lambda right: {"vocabulary": 3},
        "a config of no class": lambda right: {"_class_name": "Nonsense"},
        "no such folder": lambda right: "nowhere/at/all",
        "bytes": lambda right: b"scheduler",
        "an object": lambda right: Odd(),
    },
    {"its config": lambda right: right.config},
)
CALLS = [
    Call(
        from_diffusers,
        lambda: {"net": network, "scheduler": scheduler(), "timesteps": "rounded", "fixed": {"shift": 0.2}},
        kinds={
            "net": FUNCTION.but(a_model=lambda right: model(), no_such_folder=lambda right: "nowhere/at/all"),
            "scheduler": SCHEDULER.but(the_wrong_kind=lambda right: DDIMScheduler(trained_betas=[0.0, 0.0])),
            "timesteps": LITERAL.but("None"),
            "fixed": MAPPING.but(another_name=lambda right: {"lift": 1.0}),
        },
        named={"net": "net", "scheduler": "scheduler|alphas_cumprod"},
        answer=lambda found: found.denoise(state(), 0.5),
    ),
    Call(
        diffusers_grid,
        lambda: {"scheduler": scheduler(), "steps": 5},
        kinds={"scheduler": SCHEDULER},
    ),
    Call(
        diffusers_sampling,
        lambda: {"scheduler": scheduler(), "steps": 5, "eta": 0.5},
        kinds={"scheduler": SCHEDULER, "eta": NOT_NEGATIVE.but("None")},
        answer=lambda found: (found["solver"], found["grid"], found["denoise"], found["eta"]),
    ),
    Call(
        DPMSolver2M,
        lambda: {"solver_type": "heun", "last_first_order": True},
        kinds={"solver_type": LITERAL, "last_first_order": FLAG},
    ),
]
NOT_CALLED: dict[str, str] = {}
