"""Calls with one argument spoilt: what the table of bad calls is generated from.

A :class:`Call` is a public function with arguments that are right. Each argument has a :class:`Kind`, found by its name
(one thing has one name everywhere), by its annotation, or said by the call; the kind knows values that are wrong and
other ways to write a right one. :func:`spoilt` makes of a call one case for each wrong value and each other way::

    Call(sample, lambda: {"score": score(), "shape": (2, 3), "steps": 2}, answer=lambda solution: solution.x)

:func:`check_refused` says what a refusal must be like: a TypeError, a ValueError or one of our errors, raised by a line
of the library, that names the argument and says what came in and what was expected. :func:`check_same` asks that the
other ways of writing give the same answer.
"""

from __future__ import annotations

import dataclasses
import decimal
import fractions
import inspect
import math
import re
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import scoresde

HOME = str(Path(scoresde.__file__).parent)
Make = Callable[[Any], Any]
"""Of the right value of an argument: another value."""


@dataclass(frozen=True)
class Kind:
    """What an argument may not be, and how else its right value may be written.

    Attributes:
        wrong: by a word for the case, a function of the right value to a wrong one.
        same: by a word, a function of the right value to another way of writing it.
    """

    wrong: Mapping[str, Make]
    same: Mapping[str, Make] = field(default_factory=dict)

    def but(self, *without: str, **more: Make) -> Kind:
        """The same kind without some of its wrong values, and with others (underscores are blanks)."""
        unknown = set(without) - set(self.wrong)
        assert not unknown, f"no such cases: {unknown}"
        kept = {word: make for word, make in self.wrong.items() if word not in without}
        return Kind({**kept, **{word.replace("_", " "): make for word, make in more.items()}}, self.same)

    def only(self, *words: str) -> Kind:
        """The same kind with these other ways of writing alone."""
        return Kind(self.wrong, {word: make for word, make in self.same.items() if word in words})


class Odd:
    """An object that is nothing anybody asks for."""

    def __repr__(self) -> str:
        return "Odd()"


def _is(value: Any) -> Make:
    return lambda right: value


NOT_A_NUMBER: dict[str, Make] = {
    "None": _is(None),
    "a text": _is("1"),
    "True": _is(True),
    "complex": _is(1j),
    "a list": _is([1.0]),
    "a tensor (2,)": lambda right: torch.ones(2),
    "an empty tensor": lambda right: torch.ones(0),
    "a tensor without values": lambda right: torch.empty((), device="meta"),
    "bytes": _is(b"1"),
    "a set": _is({1}),
    "a dict": _is({}),
    "a Decimal": _is(decimal.Decimal("0.5")),
    "a Fraction": _is(fractions.Fraction(1, 2)),
    "a class": _is(float),
    "an object": lambda right: Odd(),
    "masked": _is(np.ma.masked),
}
NUMBERS: dict[str, Make] = {
    "numpy float64": lambda right: np.float64(right),
    "an array ()": lambda right: np.array(float(right)),
    "a tensor ()": lambda right: torch.tensor(float(right), dtype=torch.float64),
}
NUMBER = Kind({**NOT_A_NUMBER, "nan": _is(float("nan"))}, NUMBERS)
POSITIVE = NUMBER.but(beyond_floats=_is(10**400), zero=_is(0.0), negative=_is(-1.0), infinite=_is(float("inf")))
NOT_NEGATIVE = NUMBER.but(beyond_floats=_is(10**400), negative=_is(-1.0), infinite=_is(float("inf")))
FRACTION = NUMBER.but(beyond_floats=_is(10**400), negative=_is(-0.1), above=_is(1.5))
WHOLE = Kind(
    {
        **{word: make for word, make in NOT_A_NUMBER.items() if word != "a list"},
        "a fraction": _is(1.5),
        "a whole float": _is(2.0),
        "nan": _is(float("nan")),
        "a list": _is([3]),
        "huge": _is(10**30),
    },
    {
        "numpy int64": lambda right: np.int64(right),
        "numpy unsigned": lambda right: np.min_scalar_type(right).type(right),
        "an array ()": lambda right: np.array(right),
        "a tensor ()": lambda right: torch.tensor(right),
    },
)
COUNT = WHOLE.but(zero=_is(0), negative=_is(-1))
COUNT_FROM_0 = WHOLE.but(negative=_is(-1))
SEED = WHOLE.but("huge", negative=_is(-1), too_large=_is(2**64))
FLAG = Kind(
    {
        "None": _is(None),
        "a text": _is("no"),
        "one": _is(1),
        "zero": _is(0),
        "a float": _is(0.0),
        "an empty list": _is([]),
        "bytes": _is(b""),
        "a class": _is(bool),
        "a dict": _is({}),
        "a tensor (2,)": lambda right: torch.ones(2, dtype=torch.bool),
        "an object": lambda right: Odd(),
    },
    {"numpy": lambda right: np.bool_(right), "a tensor ()": lambda right: torch.tensor(right)},
)
LITERAL = Kind(
    {
        "None": _is(None),
        "another text": _is("nonsense"),
        "a number": _is(3.5),
        "a list": lambda right: [right],
        "a tensor": lambda right: torch.ones(2),
        "bytes": _is(b"nonsense"),
        "a class": _is(str),
        "texts": lambda right: np.array(["nonsense", "more"]),
        "an object": lambda right: Odd(),
    }
)
DTYPE = Kind(
    {
        "None": _is(None),
        "a text": _is("float32"),
        "numpy": _is(np.float32),
        "python": _is(float),
        "whole": _is(torch.int64),
        "complex": _is(torch.complex64),
        "bool": _is(torch.bool),
        "a number": _is(32),
        "eight bits": _is(torch.float8_e4m3fn),
        "an object": lambda right: Odd(),
    }
)
DEVICE = Kind(
    {
        "unknown": _is("gpu"),
        "empty": _is(""),
        "a fraction": _is(1.5),
        "a list": _is(["cpu"]),
        "bytes": _is(b"cpu"),
        "without values": _is("meta"),
        "an object": lambda right: Odd(),
        **({} if torch.cuda.is_available() else {"cuda": _is("cuda"), "cuda:0": lambda right: torch.device("cuda:0")}),
    },
    {"a text": _is("cpu"), "a device": lambda right: torch.device("cpu")},
)
SHAPE = Kind(
    {
        "None": _is(None),
        "a number": _is(3),
        "a text": _is("22"),
        "empty": _is(()),
        "fractions": lambda right: tuple(float(n) for n in right),
        "True": lambda right: (True, *right[1:]),
        "negative": lambda right: (-1, *right[1:]),
        "None inside": lambda right: (None, *right[1:]),
        "nested": lambda right: [list(right)],
        "nan": lambda right: (float("nan"), *right[1:]),
        "huge": lambda right: (10**30, *right[1:]),
        "large in all": lambda right: (2**40, 2**40),
        "a set": lambda right: set(right),
        "bytes": _is(b"22"),
        "a generator": lambda right: (n for n in right),
        "a dict": _is({2: 2}),
        "an object": lambda right: Odd(),
    },
    {
        "a list": lambda right: list(right),
        "torch.Size": lambda right: torch.Size(right),
        "numpy ints": lambda right: tuple(np.int64(n) for n in right),
        "an array": lambda right: np.array(right),
        "tensors ()": lambda right: tuple(torch.tensor(n) for n in right),
    },
)
TENSOR = Kind(  # (B, *event), floating and finite
    {
        "None": _is(None),
        "a number": _is(1.0),
        "a text": _is("x"),
        "a list": lambda right: right.tolist(),
        "numpy": lambda right: right.detach().numpy(),
        "whole numbers": lambda right: torch.ones(right.shape, dtype=torch.int64),
        "bool": lambda right: torch.ones(right.shape, dtype=torch.bool),
        "complex": lambda right: right.to(torch.complex64),
        "no axis": lambda right: right.flatten()[0],
        "sparse": lambda right: right.detach().to_sparse(),
        "bytes": _is(b"x"),
        "a dict": lambda right: {"x": right},
        "a class": _is(torch.Tensor),
        "nan": lambda right: torch.full_like(right, float("nan")),
        "infinite": lambda right: torch.full_like(right, float("inf")),
        "without values": lambda right: right.to("meta"),
    },
    {"other strides": lambda right: right.movedim(0, -1).contiguous().movedim(-1, 0)},
)
STATE = TENSOR.but(**{"eight bits": lambda right: right.to(torch.float8_e4m3fn)})
OPEN_TENSOR = TENSOR.but(
    "nan", "infinite", "without values"
)  # of a step: its values are not looked at, and what is NaN comes out as NaN
TIME = Kind(
    {
        "None": _is(None),
        "a text": _is("1"),
        "True": _is(True),
        "complex": _is(1j),
        "an object": lambda right: Odd(),
        "nan": _is(float("nan")),
        "negative": _is(-0.5),
        "infinite": _is(float("inf")),
        "two axes": lambda right: torch.full((2, 1), float(right)),
        "a tensor of bool": _is(torch.tensor(True)),
        "bytes": _is(b"1"),
        "a set": _is({0.5}),
        "a dict": _is({}),
        "a Decimal": _is(decimal.Decimal("0.5")),
        "a class": _is(float),
        "masked": _is(np.ma.masked),
    },
    NUMBERS,
)
TIME_BESIDE_X = TIME.but(another_batch=lambda right: torch.full((7,), float(right)))
SCORE = Kind(
    {
        "None": _is(None),
        "a function": _is(lambda x, t: -x),
        "an SDE": lambda right: scoresde.VP(),
        "a text": _is("score"),
        "a class": _is(scoresde.ScoreModel),
        "a tensor": lambda right: torch.ones(2),
    }
)
SDE = Kind(
    {
        "None": _is(None),
        "a class": _is(scoresde.VP),
        "a text": _is("vp"),
        "a number": _is(1.0),
        "a score": lambda right: scoresde.Gaussian(torch.zeros(2), torch.eye(2)).score(scoresde.VP()),
    }
)
SOLVER = Kind(
    {
        "a text": _is("heun"),
        "a class": _is(scoresde.Heun),
        "a number": _is(2),
        "a function": _is(lambda x: x),
        "an object": lambda right: Odd(),
    }
)
GRID = Kind(
    {
        "a text": _is("karras"),
        "a number": _is(10),
        "one time": lambda right: torch.tensor([0.5], dtype=torch.float64),
        "rising": lambda right: torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64),
        "repeated": lambda right: torch.tensor([0.9, 0.5, 0.5], dtype=torch.float64),
        "out of range": lambda right: torch.tensor([1e6, 0.5], dtype=torch.float64),
        "nan": lambda right: torch.tensor([1.0, float("nan")], dtype=torch.float64),
        "two axes": lambda right: torch.tensor([[1.0, 0.5]], dtype=torch.float64),
        "complex": lambda right: torch.tensor([1.0, 0.5], dtype=torch.complex64),
        "a list with None": _is([1.0, None]),
        "a list with True": _is([True, 0.5]),
        "bytes": _is(b"10"),
        "a set": _is({1.0, 0.5}),
        "an empty tensor": lambda right: torch.ones(0),
        "without values": lambda right: torch.ones(2, device="meta"),
        "a class": _is(scoresde.VP),
        "a function of nothing": lambda right: lambda: None,
        "an object": lambda right: Odd(),
    }
)
NOISE = Kind(
    {
        "a text": _is("seed"),
        "a fraction": _is(0.5),
        "True": _is(True),
        "negative": _is(-1),
        "a tensor": lambda right: torch.ones(2, 3),
        "a class": _is(scoresde.PerSampleNoise),
        "numpy generator": lambda right: np.random.default_rng(0),
        "bytes": _is(b"0"),
        "an object": lambda right: Odd(),
    }
)
FUNCTION = Kind(
    {
        "None": _is(None),
        "a number": _is(1.0),
        "a text": _is("f"),
        "a tensor": lambda right: torch.ones(2),
        "an object": lambda right: Odd(),
    }
)
OPTIONAL_FUNCTION = FUNCTION.but("None")
MAPPING = Kind(
    {
        "a text": _is("label"),
        "a number": _is(3),
        "a list": _is(["label"]),
        "a tensor": lambda right: torch.ones(2),
        "an object": lambda right: Odd(),
    }
)
PATH = Kind(
    {
        "a number": _is(3),
        "a list": _is(["a"]),
        "a tensor": lambda right: torch.ones(2),
        "an object": lambda right: Odd(),
    }
)
FREE = Kind({})
"""An argument that can be anything."""

KINDS: dict[str, Kind] = {
    "score": SCORE,
    "sde": SDE,
    "solver": SOLVER,
    "grid": GRID,
    "noise": NOISE,
    "seed": SEED,
    "shape": SHAPE,
    "dtype": DTYPE,
    "device": DEVICE,
    "x": STATE,
    "x0": STATE,
    "eps": TENSOR,
    "z": STATE,
    "t": TIME,
    "s": TIME,
    "t_start": TIME,
    "t_end": TIME,
    "steps": COUNT,
    "eta": NOT_NEGATIVE,
    "sigma_data": POSITIVE,
    "callback": OPTIONAL_FUNCTION,
    "conditions": MAPPING.but(another_name=lambda right: {None: 1}),
    "folder": PATH,
    "path": PATH,
}
"""By the name of the argument: one thing has one name everywhere."""


@dataclass(frozen=True)
class Call:
    """A public function, arguments that are right, and what is known of them.

    Attributes:
        function: the function, class or bound method.
        arguments: makes the right arguments, by name, anew for each call. Those left out have their defaults; name one
            with its default where its kind shall be tried.
        kinds: kinds of this call's own, by name; ``FREE`` for what can be anything.
        answer: what two calls are compared by: tensors, numbers, or whatever compares by ==; None: not compared.
        works: cases "argument: word" of a kind that are right here after all, and must pass.
        name: for the report, where the function's own does not tell enough.
        named: how messages call an argument, where not by its name; "a|b" where they may say either.
    """

    function: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    answer: Callable[[Any], Any] | None = lambda result: result
    works: frozenset[str] = frozenset()
    name: str = ""
    named: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What it is called in a report."""
        function = self.function
        module = getattr(function, "__module__", type(function).__module__).removeprefix("scoresde.")
        return self.name or f"{module}.{getattr(function, '__qualname__', type(function).__name__)}"

    def kind(self, name: str) -> Kind:
        """The kind of an argument: said, by name, or by annotation."""
        if name in self.kinds:
            return self.kinds[name]
        parameter = inspect.signature(self.function).parameters.get(name)
        kind = KINDS.get(name) or _by_annotation(self.function, name)
        assert kind is not None, f"{self.title}: of what kind is {name}? Say so in kinds."
        optional = parameter is not None and parameter.default is None
        return kind.but("None") if optional and "None" in kind.wrong else kind

    def call(self, **changes: Any) -> Any:
        """The right call, with changes; positional-only arguments and those of *args are given in their place."""
        given = {**self.arguments(), **changes}
        plain: list[Any] = []
        rest: dict[str, Any] = {}
        for name, parameter in inspect.signature(self.function).parameters.items():
            if name not in given:
                continue
            if parameter.kind is parameter.POSITIONAL_ONLY:
                plain.append(given.pop(name))
            elif parameter.kind is parameter.VAR_POSITIONAL:
                plain += given.pop(name)
            elif parameter.kind is parameter.VAR_KEYWORD:
                rest = given.pop(name)
        return self.function(*plain, **given, **rest)


def _by_annotation(function: Callable[..., Any], name: str) -> Kind | None:
    target = function
    if isinstance(function, type) and not dataclasses.is_dataclass(function):
        target = function.__init__  # type: ignore[misc]
    try:
        hint = typing.get_type_hints(target)[name]
    except (NameError, KeyError, TypeError):
        return None
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = [part for part in parts if part is not type(None)]
    optional = len(kinds) < len(parts)
    found = None
    if len(kinds) == 1:
        found = {int: COUNT, float: NUMBER, bool: FLAG}.get(kinds[0])
        if typing.get_origin(kinds[0]) is Literal:
            found = LITERAL
        if typing.get_origin(kinds[0]) is Callable:
            found = FUNCTION
    return found.but("None") if found is not None and optional else found


@dataclass(frozen=True)
class Case:
    """One call with one argument changed."""

    call: Call
    argument: str
    word: str
    make: Make
    right: bool

    @property
    def title(self) -> str:
        """For the report."""
        return f"{self.call.title}({self.argument}: {self.word})"

    def run(self) -> Any:
        """The call, as it is written here."""
        arguments = self.call.arguments()
        return self.call.call(**{self.argument: self.make(arguments[self.argument])})


def spoilt(call: Call) -> Iterator[Case]:
    """All cases of a call: each of its arguments in turn."""
    for argument in call.arguments():
        kind = call.kind(argument)
        for word, make in kind.wrong.items():
            yield Case(call, argument, word, make, right=f"{argument}: {word}" in call.works)
        for word, make in kind.same.items():
            yield Case(call, argument, word, make, right=True)


EXPECTED = re.compile(
    r"\b(must|expected|expects|needs?|give|pass|takes?|one of|lies?|should|write|call|use|drop|make|build|wrap"
    r"|bring)\b",
    re.I,
)


def check_refused(case: Case) -> None:
    """Raise AssertionError unless the call is refused as it should be."""
    try:
        answer = case.run()
    except (TypeError, ValueError, FileNotFoundError, IndexError, KeyError) as error:
        problem = _fault(case, error)
        assert not problem, f"{case.title}: {type(error).__name__}({error}) {problem}"
        return
    except Exception as error:
        raise AssertionError(f"{case.title}: obscure {type(error).__name__}: {error}") from error
    raise AssertionError(f"{case.title}: nothing was said; it answered {str(answer)[:200]}")


def _fault(case: Case, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames[-1].filename.startswith(HOME):
        return f"was not raised by the library, but in {frames[-1].filename}:{frames[-1].lineno}"
    text = str(error)
    names = case.call.named.get(case.argument, case.argument).split("|")
    if not any(re.search(rf"\b{re.escape(name)}\b", text) for name in names):
        return f"does not name {' or '.join(names)}"
    if not EXPECTED.search(text):
        return "does not say what was expected"
    if not any(word in text for word in _words(case)):
        return f"does not say what came in (one of {_words(case)})"
    return ""


def _words(case: Case) -> list[str]:
    """How a message may tell the value that came in."""
    return [word for word in _words_of(case.make(case.call.arguments()[case.argument])) if word]


def _words_of(value: Any) -> list[str]:
    found = [repr(value)[:40], str(value)[:40], type(value).__name__]
    if getattr(value, "layout", torch.strided) is not torch.strided:
        return [*found, str(value.layout)]
    if isinstance(value, (Tensor, np.ndarray)):
        found += [str(tuple(value.shape)), str(value.dtype), "NaN", "nan", "infinit"]
        values = [] if getattr(value, "is_meta", False) else value.flatten().tolist()
        found += [f"{len(value)} "] if value.ndim else []
        if values and isinstance(values[0], int):
            found += [f"{min(values)} to {max(values)}", f"[{min(values)}, {max(values)}]"]
        found += [f"{entry:g}" for entry in values[:6] if isinstance(entry, float)]
    if isinstance(value, float):
        found += [f"{value:g}", *([] if math.isfinite(value) else ["NaN", "infinit"])]
    if isinstance(value, int) and abs(value) > 10**308:
        found += ["inf"]  # as a float
    if isinstance(value, type):
        found += [value.__name__]
    if isinstance(value, (tuple, list, Mapping)) and not value:
        found += ["empty", "none"]
    if isinstance(value, (tuple, list)):
        found += [word for item in value for word in _words_of(item)]
    if isinstance(value, Mapping):
        found += [word for pair in value.items() for word in _words_of(pair)]
    return found


def check_same(case: Case) -> None:
    """Raise AssertionError unless the call answers what the plainly written one does."""
    got = case.run()
    if case.call.answer is None:
        return
    expected, found = case.call.answer(case.call.call()), case.call.answer(got)
    assert same(expected, found), f"{case.title}: {found} instead of {expected}"


def same(a: Any, b: Any) -> bool:
    """Whether two answers agree: tensors to float32's rounding, all else by ==."""
    if isinstance(a, Tensor):
        return (
            isinstance(b, Tensor)
            and a.shape == b.shape
            and torch.allclose(a, b.to(a.dtype), rtol=1e-5, atol=1e-6, equal_nan=True)
        )
    if isinstance(a, (tuple, list)):
        return isinstance(b, (tuple, list)) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return bool(a == b)
