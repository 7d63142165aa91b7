"""Bad calls of the sources of randomness, and of the methods that a solver asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from bad_calls import (
    COUNT,
    COUNT_FROM_0,
    FREE,
    FUNCTION,
    OPEN_TENSOR,
    POSITIVE,
    SEED,
    SHAPE,
    TIME,
    Call,
    Kind,
)
from torch import Tensor

from scoresde import BrownianNoise, IndependentNoise, Noise, PerSampleNoise
from scoresde.noise import as_noise, brownian_path, chosen_noise, counter_normal, drawn_seed

X = torch.zeros(2, 3)
GENERATOR = torch.Generator
SEED_OR_GENERATOR = SEED
# A key is whole numbers, any that there are.
KEY = Kind({w: m for w, m in SHAPE.wrong.items() if w not in ("negative", "huge", "large in all")})
PURPOSE = FUNCTION.but("a text", a_list=lambda right: ["data"])
POSITION = FUNCTION
MOMENT = TIME


def draws(noise: Noise) -> Tensor:
    return noise.initial((2, 3), dtype=torch.float32, device=torch.device("cpu"))


def methods() -> Iterator[Call]:
    for name, make in {
        "IndependentNoise": lambda: IndependentNoise(0),
        "PerSampleNoise": lambda: PerSampleNoise(0),
        "BrownianNoise": lambda: BrownianNoise(0, 1.0),
    }.items():
        for method, given, kinds in (
            ("initial", {"shape": (2, 3), "dtype": torch.float32, "device": torch.device("cpu")}, {}),
            ("normal", {"x": X}, {"x": OPEN_TENSOR}),
            ("between", {"x": X, "t": 0.5, "s": 0.25}, {"x": OPEN_TENSOR, "t": MOMENT, "s": MOMENT}),
            ("stream", {"purpose": "data"}, {"purpose": PURPOSE}),
            ("rewind", {"position": make().position()}, {"position": POSITION}),
        ):
            answer = {"stream": draws, "rewind": lambda nothing: 0}.get(method, lambda drawn: drawn)
            yield Call(
                Fresh(make, method),
                lambda given=given: dict(given),
                kinds=kinds,
                name=f"{name}.{method}",
                answer=answer,
            )
    path = BrownianNoise(0, 1.0)
    yield Call(
        path.increment, lambda: {"x": X, "t": 0.5, "s": 0.25}, kinds={"x": OPEN_TENSOR}, name="BrownianNoise.increment"
    )
    yield Call(path.w, lambda: {"x": X, "t": 0.5}, kinds={"x": OPEN_TENSOR}, name="BrownianNoise.w")
    yield Call(path.check, lambda: {"grid": torch.tensor([1.0, 0.5, 0.1])}, name="BrownianNoise.check")
    yield Call(path.covers, lambda: {"t": 0.5}, name="BrownianNoise.covers")


class Fresh:
    """A method of a new noise for each call, with the method's own signature."""

    def __init__(self, make: Any, method: str) -> None:
        self.make, self.method = make, method
        self.__signature__ = __import__("inspect").signature(getattr(make(), method))

    def __call__(self, **given: Any) -> Any:
        return getattr(self.make(), self.method)(**given)


CALLS = [
    Call(IndependentNoise, lambda: {"seed": 3}, kinds={"seed": SEED}, answer=draws),
    Call(PerSampleNoise, lambda: {"seed": 3, "first": 2}, kinds={"first": COUNT_FROM_0}, answer=draws),
    Call(
        BrownianNoise,
        lambda: {"seed": 3, "T": 1.0, "first": 2, "levels": 5},
        kinds={"T": POSITIVE, "first": COUNT_FROM_0, "levels": COUNT.but(above=lambda right: 41)},
        answer=lambda path: path.w(X, 0.5),
    ),
    Call(as_noise, lambda: {"noise": 3, "purpose": "data"}, kinds={"purpose": PURPOSE}, answer=draws),
    Call(
        chosen_noise,
        lambda: {"seed": 3, "noise": None, "purpose": "data"},
        kinds={"seed": SEED.but("None"), "noise": FREE, "purpose": PURPOSE},
        answer=draws,
    ),
    Call(
        chosen_noise,
        lambda: {"seed": None, "noise": PerSampleNoise(0)},
        kinds={"seed": FREE},
        name="chosen_noise(noise)",
        answer=draws,
    ),
    Call(
        brownian_path,
        lambda: {"noise": PerSampleNoise(0), "T": 1.0},
        kinds={"T": POSITIVE},
        answer=lambda p: p.w(X, 0.5),
    ),
    Call(drawn_seed, lambda: {"noise": PerSampleNoise(0)}),
    Call(
        counter_normal,
        lambda: {"shape": (2, 3), "key": (1, 2), "first": 0, "dtype": torch.float32, "device": torch.device("cpu")},
        kinds={"key": KEY, "first": COUNT_FROM_0},
    ),
    *methods(),
]
NOT_CALLED = {"scoresde.noise.base.Noise": "abstract: the methods of its kinds are called"}
