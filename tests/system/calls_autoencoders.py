"""Bad calls of autoencoders, of their training and of what is done with their latents."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch
from bad_calls import (
    COUNT,
    COUNT_FROM_0,
    FUNCTION,
    LITERAL,
    MAPPING,
    NOISE,
    NOT_NEGATIVE,
    NUMBER,
    OPEN_TENSOR,
    PATH,
    POSITIVE,
    SCORE,
    SEED,
    Call,
    Kind,
)
from calls_nn import SIZES
from calls_train import BETAS, DATA

from scoresde import VP, Gaussian, Score
from scoresde.data import Dataset, from_tensors
from scoresde.interop import Latent, evidence_bound, latent_dataset, standardise_latents
from scoresde.nn import (
    Autoencoder,
    KLBottleneck,
    LaplaceErrors,
    NormalErrors,
    PatchDiscriminator,
    VQBottleneck,
)
from scoresde.train import (
    Adversary,
    AutoencoderOptions,
    Perceptual,
    load_autoencoder,
    save_autoencoder,
    train_autoencoder,
)

_KEPT = tempfile.TemporaryDirectory(prefix="scoresde-bad-calls-")  # goes with the process
FOLDER = Path(_KEPT.name)
X = torch.linspace(-1, 1, 16).reshape(2, 1, 8)
Z = torch.linspace(-1, 1, 16).reshape(2, 2, 4)
SMALL: dict[str, Any] = {"event_dims": 1, "width": 8, "multipliers": (1, 2), "latent_channels": 2}


def net(**options: Any) -> Autoencoder:
    torch.manual_seed(0)
    made = Autoencoder(1, **{**SMALL, **options}).eval()
    made.describe_latents([0.0, 0.5], [1.0, 2.0])
    return made


def dataset() -> Dataset:
    return from_tensors(X, channels="first", scaling="tensor")


def of_halves(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1)[:, ::2]


def prior() -> Score:
    return Gaussian(torch.zeros(2, 4), 1.0).score(VP())


save_autoencoder(FOLDER / "ae", net())
_NUMBERS = itertools.count()
RATE = NUMBER.but(negative=lambda right: -0.1, one=lambda right: 1.0)
OBJECT = MAPPING.but(a_class=lambda right: Autoencoder, none=lambda right: None, a_dict=lambda right: {"a": 1})
EVENTS = OPEN_TENSOR.but(another_event=lambda x: x[..., :-1], four_axes=lambda x: x[..., None])
LATENTS = EVENTS.but("another event", one_channel=lambda z: z[:, :1])
LISTED = Kind(
    {
        "a number": lambda right: 0.5,
        "a text": lambda right: "ab",
        "texts": lambda right: ["a", "b"],
        "None inside": lambda right: [None, 1.0],
        "nan": lambda right: [float("nan"), 1.0],
        "inf": lambda right: [1.0, float("inf")],
        "three": lambda right: [1.0, 1.0, 1.0],
    },
    {"a tuple": tuple},
)
TRAINING = {
    "lr": POSITIVE,
    "betas": BETAS,
    "weight_decay": NOT_NEGATIVE,
    "warmup": COUNT_FROM_0,
    "decay": LITERAL,
    "clip": POSITIVE.but("None"),
    "penalty": NOT_NEGATIVE.but("None"),
    "perceptual": OBJECT.but("none"),
    "adversary": OBJECT.but("none"),
    "ema": RATE,
    "seed": SEED,
    "save_every": COUNT.but("None"),
    "folder": PATH,
}

CALLS = [
    Call(
        Autoencoder,
        lambda: {
            "channels": 1,
            **SMALL,
            "blocks": 1,
            "attention_levels": (-1,),
            "head_width": 8,
            "dropout": 0.1,
            "checkpoint": True,
            "bottleneck": VQBottleneck(5),
            "errors": LaplaceErrors(),
            "latents_mean": [0.0, 1.0],
            "latents_std": [1.0, 2.0],
        },
        kinds={
            "event_dims": COUNT.but(four=lambda right: 4),
            "multipliers": SIZES.but(empty=lambda right: ()),
            "attention_levels": SIZES,
            "blocks": COUNT.but("a list"),
            "dropout": RATE,
            "bottleneck": OBJECT,
            "errors": OBJECT,
            "latents_mean": LISTED,
            "latents_std": LISTED.but(zero=lambda right: [0.0, 1.0]),
        },
        answer=lambda made: made.config,
    ),
    Call(net().encode, lambda: {"x": X}, kinds={"x": EVENTS}, name="Autoencoder.encode"),
    Call(net().decode, lambda: {"z": Z}, kinds={"z": LATENTS}, name="Autoencoder.decode"),
    Call(net().posterior, lambda: {"x": X}, kinds={"x": EVENTS}, name="Autoencoder.posterior", answer=lambda q: q.mean),
    Call(
        net().log_likelihood,
        lambda: {"x": X, "decoded": 0.5 * X},
        kinds={"x": EVENTS, "decoded": EVENTS},
        name="Autoencoder.log_likelihood",
    ),
    Call(
        net().describe_latents,
        lambda: {"mean": [0.0, 1.0], "std": [1.0, 2.0]},
        kinds={"mean": LISTED, "std": LISTED.but(zero=lambda right: [0.0, 1.0])},
        named={"mean": "latents_mean", "std": "latents_std"},
        name="Autoencoder.describe_latents",
        answer=None,
    ),
    Call(
        KLBottleneck,
        lambda: {"log_std_limit": 5.0},
        kinds={"log_std_limit": POSITIVE.but(large=lambda right: 100.0)},
    ),
    Call(
        VQBottleneck,
        lambda: {"codes": 5, "commitment": 0.5, "decay": 0.5, "revive": 0.25},
        kinds={
            "codes": COUNT.but(one=lambda right: 1),
            "commitment": NOT_NEGATIVE,
            "decay": RATE,
            "revive": RATE.but(zero=lambda right: 0.0),
        },
    ),
    Call(NormalErrors, lambda: {"std": 0.5}, kinds={"std": POSITIVE.but("None")}),
    Call(LaplaceErrors, lambda: {"scale": 0.5}, kinds={"scale": POSITIVE.but("None")}),
    Call(
        PatchDiscriminator,
        lambda: {"channels": 1, "event_dims": 1, "width": 4, "layers": 2},
        kinds={"event_dims": COUNT.but(four=lambda right: 4)},
        answer=lambda made: made.config,
    ),
    # -- training --------------------------------------------------------------------------------------------------
    Call(
        AutoencoderOptions,
        lambda: {
            "steps": 3,
            "batch_size": 2,
            "lr": 0.5,
            "warmup": 2,
            "decay": "cosine",
            "betas": (0.5, 0.75),
            "weight_decay": 0.5,
            "clip": 1.0,
            "penalty": 0.5,
            "perceptual": Perceptual(of_halves),
            "adversary": Adversary(layers=2),
            "ema": 0.5,
            "flip": False,
            "seed": 3,
            "folder": FOLDER / "run",
            "resume": False,
            "save_every": 2,
            "keep": 2,
            "log_every": 5,
            "mixed_precision": "no",
            "cpu": True,
        },
        kinds=TRAINING,
        answer=lambda made: made.recorded(),
    ),
    Call(
        Perceptual,
        lambda: {"features": of_halves, "weight": 0.5},
        kinds={"features": FUNCTION, "weight": POSITIVE},
        answer=lambda made: made.weight,
    ),
    Call(
        Adversary,
        lambda: {"weight": 0.5, "start": 3, "width": 4, "layers": 2, "lr": 0.5},
        kinds={"weight": POSITIVE, "start": COUNT_FROM_0, "lr": POSITIVE},
    ),
    Call(
        train_autoencoder,
        lambda: {"net": net(), "dataset": dataset(), "options": AutoencoderOptions(steps=1, batch_size=2, cpu=True)},
        kinds={"net": SCORE, "dataset": DATA, "options": MAPPING},
        answer=None,
    ),
    Call(save_autoencoder, lambda: {"folder": FOLDER / "saved" / str(next(_NUMBERS)), "net": net()},
         kinds={"net": SCORE}, answer=None),
    Call(load_autoencoder, lambda: {"folder": FOLDER / "ae", "ema": False}, kinds={"ema": Kind(
        {"a text": lambda right: "no", "one": lambda right: 1, "an object": lambda right: object()})}, answer=None),
    # -- latents ---------------------------------------------------------------------------------------------------
    Call(
        standardise_latents,
        lambda: {"net": net(), "dataset": dataset(), "batch_size": 1},
        kinds={"net": SCORE, "dataset": DATA},
        answer=None,
    ),
    Call(
        latent_dataset,
        lambda: {"autoencoder": net(), "dataset": dataset(), "batch_size": 1},
        kinds={"autoencoder": SCORE, "dataset": DATA},
        answer=lambda made: made[:]["x"],
    ),
    Call(
        evidence_bound,
        lambda: {"latent": Latent(prior(), net()), "x": X, "draws": 2, "noise": 3},
        kinds={"latent": SCORE, "x": OPEN_TENSOR, "noise": NOISE},
    ),
]  # fmt: skip
NOT_CALLED = {
    "scoresde.nn.bottlenecks.LatentPosterior": "what an autoencoder answers",
    "scoresde.train.autoencoder.AutoencoderRun": "made by train_autoencoder",
    "scoresde.train.autoencoder.AutoencoderStep": "what a run yields",
}
