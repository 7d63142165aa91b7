"""Bad calls of what makes models of other people's networks, and of latents."""

from __future__ import annotations

import math
from typing import Any

import torch
from bad_calls import (
    COUNT,
    DTYPE,
    FLAG,
    FREE,
    FUNCTION,
    LITERAL,
    MAPPING,
    NUMBER,
    OPEN_TENSOR,
    POSITIVE,
    SCORE,
    SDE,
    SHAPE,
    STATE,
    Call,
    Kind,
    Odd,
)
from right_values import score
from torch import Tensor

from scoresde import EDM, VP, RectifiedFlow, ScoreModel
from scoresde.interop import (
    Autoencoding,
    ForeignModel,
    ForeignNetwork,
    Latent,
    from_denoiser,
    from_noise,
    from_score_sde,
    from_velocity,
)


def network(x: Tensor, told: Tensor, **conditions: Any) -> Tensor:
    return x.tanh() * 0.5


class Half:
    """An autoencoder of (B, 3)."""

    def encode(self, x: Tensor) -> Tensor:
        return 0.5 * x

    def decode(self, z: Tensor) -> Tensor:
        return 2 * z


X = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]])
NETWORK = FUNCTION.but(a_class=lambda right: ScoreModel)
NAMED = MAPPING.but(no_name=lambda right: {3: 1})
OPTIONS = {"null_conditions": NAMED.but(own=lambda right: {"x": 0}), "keywords": NAMED}
GIVEN: dict[str, Any] = {"null_conditions": {"y": 0.0}, "keywords": {}}
BETAS = Kind(
    {
        "None": lambda right: None,
        "a text": lambda right: "linear",
        "a number": lambda right: 0.02,
        "an object": lambda right: Odd(),
        "two axes": lambda right: right[None],
        "none": lambda right: right[:0],
        "one": lambda right: right[:1],
        "zero": lambda right: right * torch.tensor([0.0, 1.0]),
        "above": lambda right: right + 1,
        "no signal": lambda right: torch.tensor([0.1, 1.0]),
        "negative": lambda right: -right,
        "nan": lambda right: right * math.nan,
        "complex": lambda right: right.to(torch.complex64),
        "bool": lambda right: right > 0,
        "a dict": lambda right: {0: 0.1},
        "falling products": lambda right: torch.tensor([0.9, 0.8, 0.2]),
    },
    {"a list": lambda right: right.tolist(), "numpy": lambda right: right.numpy()},
)
AUTOENCODER = Kind(
    {
        "None": lambda right: None,
        "a text": lambda right: "vae",
        "a function": lambda right: network,
        "a class": lambda right: Half,
        "a tensor": lambda right: torch.ones(2),
        "an object": lambda right: Odd(),
        "a layer": lambda right: torch.nn.Linear(2, 2),
    }
)
FACTOR = NUMBER.but(  # a list and a tensor are one for each channel
    "None",
    "a list",
    "a tensor (2,)",
    infinite=lambda right: math.inf,
    two_axes=lambda right: torch.ones(2, 2),
    texts=lambda right: ["1", "2"],
)
SCALE = FACTOR.but(zero=lambda right: 0.0)
CODING = {"autoencoder": AUTOENCODER, "scaling_factor": SCALE, "shift_factor": FACTOR, "chunk": COUNT.but("None")}
UNITS = {"units": FREE}


def noise(model: ScoreModel) -> Tensor:
    return model.noise(X, 0.5)


def of_latent(latent: Latent) -> list[Tensor]:
    return [latent.decode(X), latent(X, 0.5)]


CALLS = [
    Call(
        from_denoiser,
        lambda: {"D": network, "sigma_min": 0.1, "sigma_max": 10.0, "sigma_data": 0.5, "dtype": torch.float32, **GIVEN},
        {"D": NETWORK, "sigma_min": POSITIVE.but("None"), "sigma_max": POSITIVE.but("None", above=lambda r: 0.05)}
        | {"sigma_data": POSITIVE.but("None"), "dtype": DTYPE.but("None"), **OPTIONS},
        noise,
    ),
    Call(
        from_score_sde,
        lambda: {"net": network, "sde": VP(), "continuous": True, "time_scale": 10.0, "sigma_data": 0.5, **GIVEN},
        {"net": NETWORK, "sde": SDE.but(another=lambda right: EDM()), "continuous": FLAG}
        | {"time_scale": POSITIVE.but("None"), "sigma_data": POSITIVE.but("None"), **OPTIONS},
        noise,
    ),
    Call(
        from_score_sde,
        lambda: {"net": network, "sde": VP(), "continuous": False, "n": 50, "between": "nearest"},
        {"net": NETWORK, "sde": SDE.but(another=lambda right: EDM(), shorter=lambda right: VP(T=0.5))}
        | {"n": COUNT.but("None", few=lambda right: 3), "between": LITERAL.but("None")},
        noise,
        name="from_score_sde, discrete",
        named={"sde": "sde", "n": "n"},
    ),
    Call(
        from_velocity,
        lambda: {"v": network, "data_at": 1, "time_scale": 2.0, "time_first": False, "sigma_data": 0.5, **GIVEN},
        {"v": NETWORK, "data_at": LITERAL.but(another=lambda right: 2, true=lambda right: True)}
        | {"time_scale": POSITIVE, "sigma_data": POSITIVE.but("None"), **OPTIONS},
        noise,
    ),
    Call(
        from_noise,
        lambda: (
            {"net": network, "betas": torch.tensor([0.1, 0.2]), "whole": True, "learned_variance": False}
            | {"sigma_data": 0.5, **GIVEN}
        ),
        {"net": NETWORK, "betas": BETAS, "whole": FLAG.but("None"), "sigma_data": POSITIVE.but("None"), **OPTIONS},
        noise,
    ),
    Call(
        ForeignNetwork,
        lambda: {"net": network, "name": "net", "what": "(x, told)", **GIVEN},
        {"net": NETWORK, "name": FREE, "what": FREE, **OPTIONS},
        lambda net: net.ask(X, X),
    ),
    Call(
        ForeignModel,
        lambda: (
            {"net": network, "sde": RectifiedFlow(), "predicts": "velocity", "sigma_data": 0.5}
            | {"spectrum": None, "takes": torch.float32}
        ),
        {"net": NETWORK, "predicts": Kind({}), "sigma_data": POSITIVE.but("None"), "spectrum": SCORE.but("None")}
        | {"takes": DTYPE.but("None")},
        noise,
    ),
    Call(
        Autoencoding,
        lambda: {"autoencoder": Half(), "scaling_factor": 2.0, "shift_factor": 0.5, "chunk": 1, "units": None},
        CODING | UNITS,
        lambda coding: coding.encode(X),
    ),
    Call(
        Latent,
        lambda: {"model": score(), "autoencoder": Half(), "scaling_factor": 2.0, "shift_factor": 0.5, "chunk": 1},
        {"model": SCORE, **CODING},
        of_latent,
    ),
    Call(
        Latent,
        lambda: {"model": from_velocity(network), "autoencoder": Half(), "scaling_factor": 2.0, "shift_factor": 0.5},
        {"model": FREE, **CODING},
        of_latent,
        name="Latent of a model",
    ),
    *(
        Call(getattr(coding, method), lambda given=given: given, kinds, name=f"Autoencoding.{method}")  # type: ignore
        for coding in [Autoencoding(Half(), 2.0)]
        for method, given, kinds in [
            ("encode", {"x": X}, {"x": STATE}),
            ("decode", {"z": X}, {"z": OPEN_TENSOR}),
            ("latent_shape", {"shape": (2, 3)}, {"shape": SHAPE}),
            ("data_shape", {"shape": (2, 3)}, {"shape": SHAPE}),
        ]
    ),
    Call(
        Latent(score(), Half(), scaling_factor=2.0).through,
        lambda: {"operator": torch.tanh},
        {"operator": FUNCTION.but(a_class=lambda right: ScoreModel)},
        lambda operator: operator(X),
    ),
]

NOT_CALLED: dict[str, str] = {}
