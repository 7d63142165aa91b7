"""Bad calls of the solvers: every field of every class, what solves and steps, and what stands around them."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bad_calls import (
    COUNT,
    COUNT_FROM_0,
    FLAG,
    GRID,
    LITERAL,
    MAPPING,
    NOISE,
    NOT_NEGATIVE,
    NUMBER,
    OPTIONAL_FUNCTION,
    PATH,
    POSITIVE,
    SCORE,
    SDE,
    SHAPE,
    SOLVER,
    STATE,
    TIME,
    WHOLE,
    Call,
    Kind,
    Odd,
)
from right_values import grid, score, state

from scoresde import DDIM, VP, EulerMaruyama, Heun, Reverse, Spectrum
from scoresde.solvers import (
    AdaptiveODE,
    AdaptiveSDE,
    AdjustedLangevin,
    Fitted,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    Solver,
    SpectralMultistep,
    TorchSDE,
    Tuning,
    catalogue,
    only_ode,
    only_sde,
)
from scoresde.solvers.adapted import Adapted, AdaptedReport
from scoresde.solvers.fitted import FitReport, FittedLevels

TEXT = Kind(
    {
        "None": lambda right: None,
        "another": lambda right: "nonsense",
        "a number": lambda right: 3,
        "a list": lambda right: [right],
        "bytes": lambda right: b"rk4",
        "a class": lambda right: str,
        "a tensor": lambda right: torch.ones(2),
        "an object": lambda right: Odd(),
    }
)
CORRECTOR = Kind(
    {
        "None": lambda right: None,
        "a text": lambda right: "langevin",
        "a class": lambda right: Langevin,
        "a function": lambda right: lambda x: x,
        "a solver": lambda right: DDIM(),
    }
)
WHOLE_LITERAL = Kind({**LITERAL.wrong, "out of range": lambda right: 99, "True": lambda right: True}, WHOLE.same)
INSIDE = POSITIVE.but(above=lambda right: 1.5)  # of an open interval (0, 1)
ROWS = Kind(
    {
        "None": lambda right: None,
        "a number": lambda right: 3.0,
        "a text": lambda right: "12",
        "a text inside": lambda right: ("1", *right[1:]),
        "None inside": lambda right: (None, *right[1:]),
        "True inside": lambda right: (True, *right[1:]),
        "nan": lambda right: (math.nan, *right[1:]),
        "empty": lambda right: (),
        "one too many": lambda right: (*right, right[-1]),
        "a set": lambda right: {1.0},
        "an object": lambda right: Odd(),
    },
    {"a list": list, "a tensor": lambda right: torch.tensor(right, dtype=torch.float64)},
)
NESTED = Kind(
    {
        "None": lambda right: None,
        "a number": lambda right: 3.0,
        "a text": lambda right: "12",
        "a row of texts": lambda right: (("1",) * len(right[0]), *right[1:]),
        "no rows": lambda right: tuple(right[0]),
        "nan": lambda right: ((math.nan,) * len(right[0]), *right[1:]),
        "empty": lambda right: (),
        "one too many": lambda right: (*right, right[-1]),
        "an object": lambda right: Odd(),
    },
    {"lists": lambda right: [list(row) for row in right]},
)

KINDS: dict[str, Kind] = {
    "churn": NUMBER.but(negative=lambda right: -1.0),
    "churn_min": NOT_NEGATIVE,
    "churn_max": NUMBER.but(negative=lambda right: -1.0),
    "churn_noise": NOT_NEGATIVE,
    "eta": NOT_NEGATIVE,
    "history": COUNT.but(above=lambda right: 9),
    "max_order": COUNT.but(above=lambda right: 9),
    "rtol": POSITIVE,
    "atol": POSITIVE,
    "first_step": POSITIVE,
    "shrink": INSIDE,
    "safety": INSIDE,
    "grow": POSITIVE.but("infinite", below=lambda right: 0.9),
    "sigma_data": POSITIVE,
    "step_size": POSITIVE,
    "snr": INSIDE,
    "steps": COUNT,
    "nodes": COUNT_FROM_0.but(above=lambda right: 9),
    "options": MAPPING.but(**{"None": lambda right: None}),
    "predictor": SOLVER.but(**{"None": lambda right: None}),
    "corrector": CORRECTOR,
    "log_prob": OPTIONAL_FUNCTION,
    "method": TEXT.but("another"),  # known when it is first used: to load torchdiffeq takes a second
    "spectrum": SDE.but("None"),
    "tuning": SDE.but("None"),
}
GIVEN: dict[str, Any] = {
    "eta": 0.5,
    "first_step": 0.1,
    "sigma_data": 1.0,
    "step_size": 0.1,
    "spectrum": Spectrum(1.0, 1.0),
    "tuning": Tuning((5,), ((0.0, 0.0, 0.0),)),
}
"""Right values of fields that are None unless given."""


def of_class(kind: type[Any], **given: Any) -> Call:
    """All fields of a dataclass, with right values."""
    hints = typing.get_type_hints(kind)
    right, kinds = dict(given), {}
    for field in dataclasses.fields(kind):
        name = field.name
        if name not in right:
            made = field.default
            if made is dataclasses.MISSING:
                assert field.default_factory is not dataclasses.MISSING, name
                made = field.default_factory()
            right[name] = GIVEN[name] if made is None else made
        if typing.get_origin(hints[name]) is typing.Literal:
            kinds[name] = WHOLE_LITERAL if isinstance(right[name], int) else LITERAL
        elif name in KINDS:
            kinds[name] = KINDS[name]
            if field.default is None and "None" in kinds[name].wrong:
                kinds[name] = kinds[name].but("None")
    return Call(kind, lambda: dict(right), kinds=kinds)


def calls_of_classes() -> Iterator[Call]:
    for kind in catalogue.classes():
        if dataclasses.fields(kind):
            yield of_class(kind)
    yield of_class(Langevin)
    yield dataclasses.replace(
        of_class(AdjustedLangevin, log_prob=None, nodes=1),
        kinds={**KINDS, "snr": POSITIVE, "log_prob": OPTIONAL_FUNCTION, "nodes": KINDS["nodes"].but("None")},
    )


def fitted() -> Fitted:
    """DDIM's two steps as a fitted sampler of VP."""
    times, at = (1.0, 0.5, 0.001), (1.0, 0.5)
    report = FitReport("fixed", *[1.0] * 6, "DDIM", 1.0, "DDIM", 0.1, (3, 1, 1), (3,), 1, 1.0, 0)
    rows = ((0.5,), (0.2, 0.3))
    return Fitted(times, at, (1.0, 0.5, 0.1), rows, FittedLevels.of(VP(), (*times, *at)), report)


def adapted() -> Adapted:
    """The spectral rule itself, as an adapted one."""
    report = AdaptedReport("SpectralMultistep()", (0.1,), (0.1,), (0.1,), 0.01, (32, 3), 100, 1.0, 0, (0.0,))
    return Adapted((10,), ((0.0, 0.0),), (100.0, 0.01), Spectrum(1.0, 1.0), Tuning((5,), ((0.0, 0.0, 0.0),)), report)


_KEPT = tempfile.TemporaryDirectory(prefix="scoresde-bad-calls-")  # goes with the process
FOLDER = Path(_KEPT.name)


def saved(what: Any) -> Path:
    """A file of it."""
    return what.save(FOLDER / f"{type(what).__name__}.json")


PROCESS = Kind(
    {
        "None": lambda right: None,
        "a score": lambda right: score(),
        "an SDE": lambda right: VP(),
        "a text": lambda right: "reverse",
        "a class": lambda right: Reverse,
    }
)
CHECKPOINT = Kind(
    {
        "None": lambda right: None,
        "a text": lambda right: "yes",
        "a float": lambda right: 2.0,
        "negative": lambda right: -1,
        "a list": lambda right: [2],
        "bytes": lambda right: b"2",
        "huge": lambda right: 10**30,
        "an object": lambda right: Odd(),
    },
    {**FLAG.same, "a number": lambda right: 2, "numpy int64": lambda right: torch.tensor(2).numpy()[()]},
)
TIMES = Kind(
    {word: make for word, make in GRID.wrong.items() if word != "a function of nothing"}
    | {
        "None": lambda right: None,
        "a rule": lambda right: max,
    }
)
SAVED = PATH.but(**{"None": lambda right: None, "bytes": lambda right: b"a", "empty": lambda right: ""})
READ = SAVED.but(**{"no file": lambda right: right.with_name("none.json"), "a folder": lambda right: right.parent})


def solving(solver: Solver, eta: float, name: str, kinds: dict[str, Kind], **more: Any) -> Call:
    """All arguments of solve."""
    return Call(
        solver.solve,
        lambda: {
            "process": Reverse(score(), eta),
            "x": state(),
            "grid": grid(),
            "noise": 0,
            "denoise": True,
            "trajectory": True,
            "callback": lambda progress: None,
            **more,
        },
        kinds={"process": PROCESS, "x": STATE, "grid": TIMES, "noise": NOISE, **kinds},
        answer=lambda solution: (solution.x, solution.trajectory),
        name=name,
    )


CALLS = [
    *calls_of_classes(),
    solving(DDIM(), 0.0, "DDIM.solve", {"checkpoint": CHECKPOINT}, checkpoint=False),
    solving(EulerMaruyama(), 1.0, "EulerMaruyama.solve", {"checkpoint": CHECKPOINT}, checkpoint=2),
    solving(SpectralMultistep(), 0.0, "SpectralMultistep.solve", {}),
    solving(AdaptiveODE(rtol=0.1, atol=0.1), 0.0, "AdaptiveODE.solve", {}),
    solving(AdaptiveSDE(rtol=0.5, atol=0.5), 1.0, "AdaptiveSDE.solve", {}),
    solving(ProbabilityFlow("euler"), 0.0, "ProbabilityFlow.solve", {}),
    solving(TorchSDE(), 1.0, "TorchSDE.solve", {}),
    solving(PredictorCorrector(), 1.0, "PredictorCorrector.solve", {}),
    Call(
        only_ode,
        lambda: {"solver": Heun(), "process": Reverse(score(), 0.0)},
        kinds={"solver": SOLVER, "process": PROCESS},
    ),
    Call(
        only_sde,
        lambda: {"solver": Heun(), "process": Reverse(score(), 1.0)},
        kinds={"solver": SOLVER, "process": PROCESS},
    ),
    Call(
        Tuning,
        lambda: {"steps": (5, 9), "logs": ((0.0, 0.1, 0.2), (0.0, 0.0, 0.0))},
        kinds={"steps": SHAPE.only(), "logs": NESTED},
    ),
    Call(Tuning((5,), ((0.0, 0.0, 0.0),)).at, lambda: {"steps": 5}),
    Call(
        Fitted,
        lambda: {field.name: getattr(fitted(), field.name) for field in dataclasses.fields(Fitted)},
        kinds={
            "times": ROWS,
            "evaluated_at": ROWS,
            "of_start": ROWS,
            "weights": NESTED,
            "schedule": SCORE,
            "report": SCORE,
        },
    ),
    Call(fitted().save, lambda: {"path": FOLDER / "a.json"}, kinds={"path": SAVED}, answer=None),
    Call(Fitted.load, lambda: {"path": saved(fitted())}, kinds={"path": READ}),
    Call(
        Adapted,
        lambda: {field.name: getattr(adapted(), field.name) for field in dataclasses.fields(Adapted)},
        kinds={
            "steps": SHAPE.only(),
            "logs": NESTED,
            "ratios": ROWS,
            "spectrum": SCORE,
            "tuning": SCORE.but("None"),
            "report": SCORE,
        },
    ),
    Call(
        adapted(),
        lambda: {"sde": VP(), "steps": 3, "t_start": 0.9, "t_end": 0.1},
        kinds={"t_end": TIME.but("None"), "t_start": TIME.but("None")},
    ),
    Call(adapted().error, lambda: {"steps": 3}),
    Call(adapted().save, lambda: {"path": FOLDER / "b.json"}, kinds={"path": SAVED}, answer=None),
    Call(Adapted.load, lambda: {"path": saved(adapted())}, kinds={"path": READ}),
]
NOT_CALLED: dict[str, str] = {
    "scoresde.solvers.solution.Ending": "what integrate answers",
    "scoresde.solvers.incomplete.IncompleteWarning": "a warning",
    "scoresde.solvers.solution.Progress": "what a callback is given",
    "scoresde.solvers.solution.Solution": "what solve answers",
    "scoresde.solvers.metropolis.Move": "what a transition answers",
    "scoresde.solvers.adapted.AdaptedReport": "what a fit answers",
    "scoresde.solvers.planned.Planned": "abstract",
    "scoresde.solvers.base.Solver": "abstract",
    "scoresde.solvers.langevin.Corrector": "a protocol",
    "scoresde.solvers.one_step.EulerMaruyama": "has no options; its solve is called",
    "scoresde.solvers.one_step.OneStep": "abstract",
    "scoresde.solvers.one_step.ReverseDiffusion": "has no options",
    "scoresde.solvers.wrapping.Wrapping": "abstract",
}
