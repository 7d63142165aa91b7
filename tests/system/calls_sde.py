"""Bad calls of the SDEs: each member, its methods, what makes SDEs of functions and chains, and what looks at data."""

from __future__ import annotations

from typing import Any

import torch
from bad_calls import (
    COUNT,
    FUNCTION,
    MAPPING,
    NOT_NEGATIVE,
    NUMBER,
    OPEN_TENSOR,
    POSITIVE,
    TENSOR,
    TIME,
    TIME_BESIDE_X,
    WHOLE,
    Call,
    Kind,
)
from bad_calls import SDE as SDE_KIND

from scoresde import EDM, VE, VP, ChainSDE, Cosine, LinearSDE, RectifiedFlow, ScheduleSDE, SubVP
from scoresde.sde import Chain, has_signal, prior_mismatch, signal_at, signal_left, spread, suggest_sigma_max


def chain() -> Chain:
    return Chain(torch.tensor([0.3, 0.7, 1.0]), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0.2, 0.3, 0.4]))


def schedule() -> ScheduleSDE:
    return ScheduleSDE(lambda t: torch.cos(t), lambda t: torch.sin(t))


OBJECT = SDE_KIND.but("a score")
LIKE_NUMBERS = ("no axis", "whole numbers", "sparse", "a number", "a list", "numpy")
COEFFICIENT = Kind({w: m for w, m in OPEN_TENSOR.wrong.items() if w not in LIKE_NUMBERS})
LEVEL = WHOLE.but("a tensor (2,)", "an empty tensor", "a list", zero=lambda right: 0, above=lambda right: 4)

MEMBERS = {
    "VP": VP(),
    "SubVP": SubVP(),
    "VE": VE(),
    "EDM": EDM(T=1.0),
    "Cosine": Cosine(),
    "RectifiedFlow": RectifiedFlow(),
    "ChainSDE": ChainSDE(chain()),
    "ScheduleSDE": schedule(),
    "LinearSDE": LinearSDE(lambda t: -0.5 - t, 1.0),
}

ENDS = {"T": POSITIVE, "t_min": NOT_NEGATIVE}
FEW = Kind(  # all members check times in one place: of each a few
    {
        word: make
        for word, make in TIME.wrong.items()
        if word in ("None", "a text", "True", "nan", "negative", "two axes")
    },
    TIME.same,
)
SNR = TIME.but("negative", "infinite")
VECTOR = TENSOR  # of a chain: (n,)
X = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]])


def arguments(**given: Any) -> Any:
    return lambda: {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in given.items()}


def methods() -> Any:
    """Of every member."""
    for name, sde in MEMBERS.items():
        time = TIME if name == "VP" else FEW
        for function in ("alpha", "sigma", "f", "g", "log_snr", "derivatives", "t_of_log_snr"):
            given, kinds = (
                ({"log_snr": 0.5}, {"log_snr": SNR}) if function == "t_of_log_snr" else ({"t": 0.5}, {"t": time})
            )
            yield Call(getattr(sde, function), arguments(**given), kinds=kinds, name=f"{name}.{function}")
        for function in ("transition_coefficients", "transition"):
            given = {"s": 0.4, "t": 0.6} | ({"x_s": X} if function == "transition" else {})
            yield Call(
                getattr(sde, function),
                arguments(**given),
                kinds={"x_s": OPEN_TENSOR, "s": time, "t": time},
                name=f"{name}.{function}",
            )
    sde, every = VP(), dict.fromkeys(("x", "x0", "x_s", "x_t"), OPEN_TENSOR)
    every |= dict.fromkeys(("s", "t", "u"), TIME_BESIDE_X)
    for function, given in {
        "marginal": {"x0": X, "t": 0.5},
        "transition": {"x_s": X, "s": 0.4, "t": 0.6},
        "bridge": {"x_s": X, "x_t": X, "s": 0.4, "u": 0.5, "t": 0.6},
        "posterior": {"x0": X, "x_t": X, "s": 0.4, "t": 0.6},
        "prior_sample": {"shape": (2, 3), "noise": 0, "dtype": torch.float32, "device": "cpu"},
        "prior_log_prob": {"x": X},
    }.items():
        yield Call(getattr(sde, function), arguments(**given), kinds=every, name=f"SDE.{function}")
    for name in ("VP", "VE", "EDM"):
        yield Call(
            MEMBERS[name].discretize,
            arguments(n=30),
            kinds={"n": COUNT},
            answer=lambda chain: chain.variance,
            name=f"{name}.discretize",
        )


CALLS = [
    Call(
        VP,
        arguments(beta_min=0.1, beta_max=20.0, T=1.0, t_min=1e-3),
        kinds={"beta_min": POSITIVE, "beta_max": POSITIVE, **ENDS},
        answer=lambda sde: sde.alpha(0.5),
    ),
    Call(
        SubVP,
        arguments(beta_min=0.1, beta_max=20.0, T=1.0, t_min=1e-3),
        kinds={"beta_min": POSITIVE, "beta_max": POSITIVE, **ENDS},
        answer=lambda sde: sde.sigma(0.5),
    ),
    Call(
        VE,
        arguments(sigma_min=0.01, sigma_max=50.0, T=1.0, t_min=1e-5),
        kinds={"sigma_min": POSITIVE, "sigma_max": POSITIVE, **ENDS},
        answer=lambda sde: sde.sigma(0.5),
    ),
    Call(EDM, arguments(T=80.0, t_min=0.002), kinds=ENDS, answer=lambda sde: sde.g(0.5)),
    Call(Cosine, arguments(s=0.008, T=0.9, t_min=1e-3), kinds={"s": POSITIVE, **ENDS}, answer=lambda d: d.alpha(0.5)),
    Call(RectifiedFlow, arguments(T=0.9, t_min=1e-3), kinds=ENDS, answer=lambda sde: sde.g(0.5)),
    Call(
        ScheduleSDE,
        arguments(alpha=torch.cos, sigma=torch.sin, T=1.0, t_min=1e-3),
        kinds={"alpha": FUNCTION, "sigma": FUNCTION, **ENDS},
        answer=lambda sde: sde.f(0.5),
    ),
    Call(
        LinearSDE,
        arguments(f=-1.0, g=1.0, T=1.0, t_min=1e-3),
        kinds={"f": NUMBER.but("a class"), "g": POSITIVE.but("a class"), **ENDS},
        answer=lambda sde: sde.alpha(0.5),
    ),
    Call(ChainSDE, lambda: {"chain": chain()}, kinds={"chain": OBJECT}, answer=lambda sde: sde.alpha(0.5)),
    Call(
        Chain,
        lambda: {"times": chain().times, "ratio": chain().ratio, "variance": chain().variance},
        kinds={
            # lists, arrays and tensors of whole numbers are taken, too
            name: TENSOR.but(
                "a list", "numpy", "whole numbers", longer=lambda v: torch.cat([v, v]), none=lambda v: v[:0]
            )
            for name in ("times", "ratio", "variance")
        },
        answer=lambda chain: chain.sigma,
    ),
    Call(
        Chain.from_betas,
        lambda: {"betas": chain().variance, "times": chain().times},
        kinds={
            "betas": TENSOR.but(
                "a list", "numpy", "whole numbers", "a number", above=lambda v: 5 * v, none=lambda v: v[:0]
            ),
            "times": TENSOR.but("a list", "numpy", "whole numbers", "None", longer=lambda v: torch.cat([v, v])),
        },
        answer=lambda chain: chain.sigma,
        name="Chain.from_betas",
    ),
    Call(
        Chain.from_json,
        lambda: {"fields": chain().to_json()},
        kinds={"fields": MAPPING.but(unknown=lambda f: {**f, "more": 1}, missing=lambda f: {"times": f["times"]})},
        answer=lambda chain: chain.sigma,
        name="Chain.from_json",
    ),
    *(
        Call(chain().time, arguments(i=2), kinds={"i": LEVEL}, name="Chain.time"),
        Call(
            chain().posterior_mean,
            arguments(x0=X, x_i=X, i=2),
            kinds={"x0": OPEN_TENSOR, "x_i": OPEN_TENSOR, "i": LEVEL},
            name="Chain.posterior_mean",
        ),
    ),
    *methods(),
    Call(
        spread,
        arguments(coefficient=torch.tensor([0.5, 1.0]), x=X),
        kinds={"coefficient": COEFFICIENT, "x": OPEN_TENSOR},
    ),
    Call(
        signal_left,
        arguments(alpha=torch.tensor(0.5), sigma=torch.tensor(0.5)),
        kinds={"alpha": COEFFICIENT, "sigma": COEFFICIENT},
    ),
    Call(
        has_signal,
        arguments(alpha=torch.tensor(0.5), sigma=torch.tensor(0.5)),
        kinds={"alpha": COEFFICIENT, "sigma": COEFFICIENT},
    ),
    Call(signal_at, arguments(sde=VP(), time=torch.tensor(0.5)), kinds={"time": COEFFICIENT}),
    Call(suggest_sigma_max, arguments(x=X, chunk=5)),
    Call(prior_mismatch, arguments(sde=VP(), x=X), answer=tuple),
]
NOT_CALLED = {
    "scoresde.sde.base.SDE": "abstract: its members are called",
    "scoresde.sde.prior.PriorMismatch": "a tuple of results",
}
