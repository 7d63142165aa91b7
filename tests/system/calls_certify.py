"""Bad calls of the laboratory that measures solvers."""

from __future__ import annotations

import math
from typing import Any

import torch
from bad_calls import (
    COUNT,
    DTYPE,
    FLAG,
    FUNCTION,
    NOT_NEGATIVE,
    POSITIVE,
    SDE,
    SEED,
    SOLVER,
    Call,
    Kind,
    Odd,
)

from scoresde import VP, EulerMaruyama, PerSampleNoise, rules
from scoresde.certify import (
    FLOW,
    LAW,
    PATH,
    certify,
    costs,
    floors,
    ode_order,
    page,
    precision,
    strong_order,
    strong_order_sampled,
    tolerance_slope,
    weak_order,
    weak_order_sampled,
)
from scoresde.certify.cases import SMOOTH
from scoresde.noise import BrownianNoise
from scoresde.solvers import DDIM, AdaptiveODE

ASKED = SOLVER.but(**{"None": lambda right: None})
RULE = FUNCTION.but(**{"times": lambda right: [1.0, 0.5], "a class": lambda right: VP})
# what is measured takes a while: other ways of writing are tried where a call costs less
MEASURED: dict[str, Kind] = {
    "solver": ASKED,
    "sde": SDE,
    "grid": RULE,
    "eta": NOT_NEGATIVE.only(),
    "first": COUNT.only(),
    "most": COUNT.but("zero", below=lambda right: 1).only(),
    "samples": COUNT.only(),
    "batches": COUNT.only(),
    "seed": SEED.only(),
    "steps": COUNT.only(),
    "marginal": FLAG.only(),
    "thorough": FLAG.only(),
    "within": POSITIVE.only(),
}
SEVERAL = Kind(
    {
        "None": lambda right: None,
        "a number": lambda right: 8,
        "a text": lambda right: "8",
        "empty": lambda right: (),
        "texts": lambda right: ("8",) * len(right),
        "fractions": lambda right: tuple(n + 0.5 for n in right),
        "zeros": lambda right: (0,) * len(right),
        "nan": lambda right: (math.nan,) * len(right),
        "an object": lambda right: Odd(),
    }
)
TOLERANCES = SEVERAL.but("fractions", "zeros", negative=lambda right: (-1.0, 0.1, 0.2), two=lambda right: (0.1, 0.2))
NAMED = Kind(
    {
        "a list": lambda right: list(right.values()),
        "a text": lambda right: "VP",
        "an SDE": lambda right: VP(),
        "empty": lambda right: {},
        "names of names": lambda right: {"VP": "vp"},
        "a class inside": lambda right: {"VP": VP},
        "an object": lambda right: Odd(),
    }
)
DTYPES = Kind(
    {
        "None": lambda right: None,
        "one": lambda right: torch.float32,
        "texts": lambda right: ("float32",),
        "whole": lambda right: (torch.int64,),
        "without a bar": lambda right: (torch.float64,),
        "empty": lambda right: (),
    }
)
SLOPE = {"first": 4, "most": 8}


def certificate() -> Any:
    """Of a solver, quickly: nothing is claimed."""
    return CERTIFICATE


CERTIFICATE = certify(AdaptiveODE(rtol=0.1, atol=0.1), eta=1.0, sdes={"VP": FLOW["VP"]}, grids={"one": rules.uniform})

CALLS = [
    Call(
        certify,
        lambda: {
            "solver": AdaptiveODE(rtol=0.1, atol=0.1),
            "eta": 1.0,
            "sdes": {"VP": FLOW["VP"]},
            "grids": {"one": rules.uniform},
            "within": 0.1,
            "thorough": False,
        },
        kinds={**MEASURED, "sdes": NAMED, "grids": NAMED, "eta": NOT_NEGATIVE.but("None", "a list").only()},
        answer=None,
    ),
    Call(
        ode_order,
        lambda: {"solver": DDIM(), "sde": FLOW["VP"], "grid": rules.uniform, **SLOPE},
        kinds=MEASURED,
        answer=None,
    ),
    Call(
        weak_order,
        lambda: {
            "solver": EulerMaruyama(),
            "sde": LAW["EDM"],
            "eta": 1.0,
            "grid": rules.uniform,
            "marginal": False,
            **SLOPE,
        },
        kinds=MEASURED,
        answer=None,
    ),
    Call(
        weak_order_sampled,
        lambda: {
            "solver": EulerMaruyama(),
            "sde": LAW["EDM"],
            "eta": 1.0,
            "grid": rules.uniform,
            "steps": 2,
            "samples": 256,
            "batches": 8,
            "seed": 0,
            "problem": SMOOTH,
        },
        kinds={**MEASURED, "problem": SDE.but("a class", **{"another class": lambda right: type(right)})},
        answer=None,
    ),
    Call(
        strong_order,
        lambda: {"solver": EulerMaruyama(), "sde": PATH["VP"], "eta": 1.0, "grid": rules.uniform, **SLOPE},
        kinds=MEASURED,
        answer=None,
    ),
    Call(
        strong_order_sampled,
        lambda: {
            "solver": EulerMaruyama(),
            "sde": PATH["VP"],
            "eta": 1.0,
            "grid": rules.uniform,
            "path": BrownianNoise(0, PATH["VP"].T, levels=20),
            "samples": 4,
            "steps": (2, 4, 8),
        },
        kinds={
            **MEASURED,
            "steps": SEVERAL.but(unequal=lambda right: (2, 4, 9)),
            "path": SDE.but("None", noise=lambda right: PerSampleNoise(0)),
        },
        answer=None,
    ),
    Call(
        tolerance_slope,
        lambda: {"solver": AdaptiveODE(), "sde": FLOW["VP"], "tolerances": (0.1, 0.03, 0.01)},
        kinds={"solver": ASKED.but(**{"no tolerance": lambda right: DDIM()}), "tolerances": TOLERANCES},
        answer=None,
    ),
    Call(costs, lambda: {"solver": DDIM(), "sde": VP(), "eta": 0.0}, kinds=MEASURED, answer=None),
    Call(
        precision,
        lambda: {
            "solver": DDIM(),
            "dtype": torch.float32,
            "sdes": {"VP": VP()},
            "steps": (2,),
            "thorough": False,
            "samples": 4,
        },
        kinds={**MEASURED, "sdes": NAMED, "steps": SEVERAL, "dtype": DTYPE.but(double=lambda right: torch.float64)},
        answer=None,
    ),
    Call(
        floors,
        lambda: {"solver": DDIM(), "dtypes": (torch.float32,), "sdes": {"VP": VP()}, "steps": (2,), "samples": 4},
        kinds={**MEASURED, "sdes": NAMED, "steps": SEVERAL, "dtypes": DTYPES},
        named={"dtypes": "dtypes|dtype"},
        answer=None,
    ),
    Call(
        page,
        lambda: {"certificates": [certificate()]},
        kinds={
            "certificates": Kind(
                {
                    "None": lambda right: None,
                    "one": lambda right: certificate(),
                    "a text": lambda right: "certificate",
                    "texts": lambda right: ["a"],
                    "solvers": lambda right: [DDIM()],
                },
                {"a tuple": tuple, "a generator": iter},
            )
        },
    ),
    Call(
        certificate().__getitem__,
        lambda: {"name": "weak order"},
        kinds={
            "name": Kind({"None": lambda right: None, "another": lambda right: "speed", "a number": lambda right: 3})
        },
        named={"name": "row"},
        answer=None,
        name="Certificate.__getitem__",
    ),
]
NOT_CALLED: dict[str, str] = {
    f"scoresde.certify.{name}": "what a measurement answers"
    for name in (
        "certificate.Certificate",
        "certificate.CertificateRow",
        "counting.Costs",
        "ode.ToleranceSlope",
        "rounding.Floor",
        "rounding.FloorCell",
        "slopes.Slope",
        "weak.SampledOrder",
    )
} | {f"scoresde.certify.{name}": "an error" for name in ("affine.NotAffine", "certificate.NotCertified")}
