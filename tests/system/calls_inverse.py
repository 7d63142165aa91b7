"""Bad calls of inverse problems: operators and all that they answer, measurements, posterior scores, solvers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from bad_calls import (
    COUNT,
    FLAG,
    FRACTION,
    FUNCTION,
    LITERAL,
    NOISE,
    NOT_NEGATIVE,
    NUMBER,
    POSITIVE,
    SHAPE,
    SOLVER,
    STATE,
    Call,
    Kind,
    Odd,
)
from right_values import grid, measurement, score, state

from scoresde import DDIM, Reverse
from scoresde.inverse import (
    Blur,
    DiffPIR,
    Downsample,
    FunctionOperator,
    Grayscale,
    Identity,
    LinearOperator,
    Mask,
    Matrix,
    Measurement,
    PhaseRetrieval,
    RePaint,
    Replacement,
    dps,
    gaussian_kernel,
    moment_matching,
    pigdm,
)
from scoresde.inverse.operators import Composition

EVENT = SHAPE.but(zero=lambda right: (0, *right[1:]))
SCALE = NUMBER.but(infinite=lambda right: math.inf)
MASK = Kind(
    {
        "None": lambda right: None,
        "a list": lambda right: right.tolist(),
        "numpy": lambda right: right.numpy(),
        "floating": lambda right: right.float(),
        "whole numbers": lambda right: right.long(),
        "a text": lambda right: "mask",
        "nothing kept": torch.zeros_like,
        "another shape": lambda right: torch.ones(7, dtype=torch.bool),
        "an object": lambda right: Odd(),
    }
)
KERNEL = STATE.but("no axis", **{"too long": lambda right: torch.ones(9), "no numbers": lambda right: torch.ones(0)})
MATRIX = STATE.but("no axis", **{"one axis": lambda right: right[0], "no rows": lambda right: right[:0]})
FACTOR = COUNT.but(
    "a list", **{"no divisor": lambda right: 3, "fractions": lambda right: (1.5,), "empty": lambda right: ()}
)
EACH = NOT_NEGATIVE.but("a list", "an empty tensor", "a tensor (2,)", **{"another batch": lambda right: torch.ones(3)})
WEIGHTS = Kind(
    {
        "None": lambda right: None,
        "a text": lambda right: "abc",
        "a number": lambda right: 1.0,
        "texts": lambda right: ("1",) * len(right),
        "nan": lambda right: (math.nan,) * len(right),
        "infinite": lambda right: (math.inf,) * len(right),
        "zeros": lambda right: (0.0,) * len(right),
        "too few": lambda right: right[:1],
        "an object": lambda right: Odd(),
    },
    {"a list": list, "a tensor": lambda right: torch.tensor(right, dtype=torch.float64)},
)
PARTS = FUNCTION.but(**{"another shape": lambda right: Identity((7,)), "a class": lambda right: Identity})
EVENT_STATE = STATE.but("nan", "infinite", "without values", **{"another event": lambda right: torch.ones(2, 5)})
OPERATOR = FUNCTION.but(another=lambda right: Identity((7,)), a_class=lambda right: Identity)
MEASUREMENT = Kind(
    {
        "None": lambda right: None,
        "a tensor": lambda right: torch.zeros(2),
        "an operator": lambda right: right.operator,
        "a text": lambda right: "y",
        "a class": lambda right: Measurement,
        "an object": lambda right: Odd(),
    }
)
LINEAR = MEASUREMENT.but(
    **{"a function": lambda right: Measurement(torch.zeros(3), lambda x: x, 0.1)}  # which has no adjoint
)
NOISY = LINEAR.but(**{"without noise": lambda right: measurement(0.0)})

OPERATORS: list[LinearOperator] = [
    Identity((3,)),
    Mask(torch.tensor([True, True, False])),
    Downsample(2, (4,)),
    Blur(torch.tensor([0.25, 0.5, 0.25]), (4,)),
    Grayscale((3, 2)),
    Matrix(torch.eye(2, 3)),
    FunctionOperator(lambda x: x.cumsum(-1), event=(3,)),
    Downsample(2, (4,)) @ Blur(torch.tensor([0.25, 0.5, 0.25]), (4,)),
]


def calls_of_operators() -> Iterator[Call]:
    for operator in OPERATORS:
        x, y = torch.ones(2, *operator.event), torch.ones(2, *operator.measured)
        name = type(operator).__name__
        yield Call(operator, lambda x=x: {"x": x}, kinds={"x": EVENT_STATE}, name=f"{name}.__call__")
        if operator not in OPERATORS[1::2]:  # what all have from the base class is tried on some
            continue
        yield Call(operator.adjoint, lambda y=y: {"y": y}, kinds={"y": EVENT_STATE}, name=f"{name}.adjoint")
        yield Call(
            operator.solve,
            lambda y=y: {"v": y, "a": 1.0, "b": 0.5},
            kinds={"v": EVENT_STATE, "a": EACH, "b": EACH},
            name=f"{name}.solve",
        )
        yield Call(
            operator.pseudo_inverse, lambda y=y: {"y": y}, kinds={"y": EVENT_STATE}, name=f"{name}.pseudo_inverse"
        )
        yield Call(
            operator.project,
            lambda x=x, y=y: {"x": x, "y": y},
            kinds={"x": EVENT_STATE, "y": EVENT_STATE},
            name=f"{name}.project",
        )


def fields_of(kind: type[Any], **given: Any) -> dict[str, Any]:
    """The defaults, and what is given."""
    found = {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    return {**found, **given}


def at(made: Any) -> torch.Tensor:
    """What a posterior score answers."""
    return made(state(), 0.5)  # type: ignore[no-any-return]


def solved(solver: Any) -> torch.Tensor:
    """Where a solver ends."""
    return solver.solve(Reverse(score(), 1.0), state(), grid(), 0).x  # type: ignore[no-any-return]


CALLS = [
    Call(Identity, lambda: {"event": (3, 2)}, kinds={"event": EVENT}),
    Call(
        Mask,
        lambda: {"mask": torch.tensor([True, False]), "event": (3, 2)},
        kinds={"mask": MASK, "event": EVENT.but("empty")},
        answer=lambda m: m.measured,
    ),
    Call(Downsample, lambda: {"factor": 2, "event": (2, 4)}, kinds={"factor": FACTOR, "event": EVENT}),
    Call(
        Downsample,
        lambda: {"factor": (2,), "event": (3, 4)},
        kinds={"factor": FACTOR.only(), "event": EVENT},
        name="Downsample of one axis",
    ),
    Call(
        Blur,
        lambda: {"kernel": torch.tensor([0.25, 0.5, 0.25]), "event": (2, 4)},
        kinds={"kernel": KERNEL, "event": EVENT},
        answer=lambda a: a(torch.ones(1, 2, 4)),
    ),
    Call(
        Grayscale,
        lambda: {"event": (3, 2), "weights": (0.2, 0.3, 0.5)},
        kinds={"event": EVENT, "weights": WEIGHTS},
        answer=lambda a: a(torch.ones(1, 3, 2)),
    ),
    Call(
        Matrix,
        lambda: {"values": torch.ones(2, 6), "event": (3, 2)},
        kinds={"values": MATRIX, "event": EVENT.but("empty")},
        answer=lambda a: a(torch.ones(1, 3, 2)),
    ),
    Call(
        Matrix.gaussian,
        lambda: {"m": 2, "event": (3, 2), "noise": 0},
        kinds={"m": COUNT, "event": EVENT, "noise": NOISE.but("a tensor", None_=lambda right: None)},
        answer=lambda a: a.values,
    ),
    Call(
        gaussian_kernel,
        lambda: {"width": 3, "sigma": 1.0, "dims": 1},
        kinds={"width": COUNT.but(even=lambda right: 4), "sigma": POSITIVE},
    ),
    Call(
        FunctionOperator,
        lambda: {
            "forward": lambda x: 2 * x,
            "adjoint": lambda y: 2 * y,
            "event": (3,),
            "dtype": torch.float64,
            "device": "cpu",
        },
        kinds={"forward": FUNCTION, "adjoint": FUNCTION.but("None"), "event": EVENT},
        answer=lambda a: a(torch.ones(1, 3)),
    ),
    Call(
        PhaseRetrieval,
        lambda: {"event": (3, 2), "oversample": 2.0},
        kinds={"event": EVENT.but(one_axis=lambda right: (3,)), "oversample": POSITIVE.but(below=lambda right: 0.5)},
    ),
    Call(
        PhaseRetrieval((3, 2)),
        lambda: {"x": torch.ones(2, 3, 2)},
        kinds={"x": EVENT_STATE},
        name="PhaseRetrieval.__call__",
    ),
    *calls_of_operators(),
    Call(
        Composition,
        lambda: {"outer": Identity((3,)), "inner": Identity((3,))},
        kinds={"outer": PARTS, "inner": PARTS},
        named={"outer": "outer|A", "inner": "inner|B"},
        answer=None,
    ),
    Call(
        Measurement,
        lambda: {"y": torch.ones(2), "operator": Mask(torch.tensor([True, True, False])), "noise_std": 0.1},
        kinds={"y": STATE.but(other=lambda right: torch.ones(5)), "operator": OPERATOR, "noise_std": NOT_NEGATIVE},
        answer=lambda m: m.residual(state()),
    ),
    Call(
        Measurement.simulate,
        lambda: {"x0": state(), "operator": Mask(torch.tensor([True, True, False])), "noise_std": 0.1, "noise": 0},
        kinds={
            "x0": STATE.but(event=lambda right: torch.ones(2, 5)),
            "operator": OPERATOR,
            "noise_std": NOT_NEGATIVE,
            "noise": NOISE.but("a tensor"),
        },
        answer=lambda m: m.y,
    ),
    Call(measurement().check, lambda: {"x": state()}, kinds={"x": EVENT_STATE}),
    Call(measurement().residual, lambda: {"x0": state()}, kinds={"x0": EVENT_STATE}, named={"x0": "x0|x"}),
    Call(measurement().log_prob, lambda: {"x0": state()}, kinds={"x0": EVENT_STATE}, named={"x0": "x0|x"}),
    Call(
        dps,
        lambda: {"score": score(), "measurement": measurement(), "scale": 1.0, "step": "likelihood"},
        kinds={"measurement": MEASUREMENT, "scale": SCALE, "step": LITERAL},
        answer=at,
    ),
    Call(
        pigdm,
        lambda: {"score": score(), "measurement": measurement(), "sigma_data": 1.0},
        kinds={"measurement": LINEAR, "sigma_data": POSITIVE.but("None")},
        answer=at,
    ),
    Call(
        moment_matching,
        lambda: {
            "score": score(),
            "measurement": measurement(),
            "covariance": "exact",
            "full_gradient": False,
            "chunk": 2,
            "tolerance": 1e-3,
            "iterations": 3,
        },
        kinds={"measurement": NOISY, "covariance": LITERAL, "full_gradient": FLAG, "tolerance": POSITIVE},
        answer=at,
    ),
    Call(
        DiffPIR,
        lambda: fields_of(DiffPIR, measurement=measurement()),
        kinds={"measurement": LINEAR, "regularisation": POSITIVE, "zeta": FRACTION},
        answer=solved,
    ),
    Call(
        Replacement,
        lambda: {"measurement": measurement(), "solver": DDIM()},
        kinds={"measurement": LINEAR, "solver": SOLVER.but(**{"None": lambda right: None})},
        answer=solved,
    ),
    Call(
        RePaint,
        lambda: {"measurement": measurement(), "solver": DDIM(), "resamplings": 2, "jump": 1},
        kinds={"measurement": LINEAR, "solver": SOLVER.but(**{"None": lambda right: None})},
        answer=solved,
    ),
]
NOT_CALLED: dict[str, str] = {
    "scoresde.inverse.likelihood_score.LikelihoodScore": "abstract",
    "scoresde.inverse.measured_solver.MeasuredSolver": "abstract",
    "scoresde.inverse.operators.LinearOperator": "abstract",
}
