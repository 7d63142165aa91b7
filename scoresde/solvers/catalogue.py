"""Every solver of the package, found and not listed: what measures, tests or times all of them asks here.

    for solver in catalogue.variants():
        sample(score, shape, solver=solver)

A solver joins by being named in ``scoresde.solvers.__all__``. It stands above that package, which does not import it.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import typing
from collections.abc import Mapping
from typing import Any

import scoresde.solvers as package
from scoresde.solvers.base import Solver


def classes() -> list[type[Solver]]:
    """The public solver classes that need no argument but choices among a few, in the order of ``__all__``."""
    public = (getattr(package, name) for name in package.__all__)
    return [kind for kind in public if isinstance(kind, type) and issubclass(kind, Solver) and _starts(kind)]


def variants() -> list[Solver]:
    """Each of :func:`classes` with every choice of its options that are a Literal; the others keep their defaults."""
    found: list[Solver] = []
    for kind in classes():
        options = literals(kind)
        found += [kind(**dict(zip(options, taken, strict=True))) for taken in itertools.product(*options.values())]
    return found


def literals(kind: type[Solver]) -> Mapping[str, tuple[Any, ...]]:
    """The options of a class that are a choice among a few, each with its values."""
    hints = typing.get_type_hints(kind)
    return {
        field.name: typing.get_args(hints[field.name])
        for field in dataclasses.fields(kind)
        if typing.get_origin(hints[field.name]) is typing.Literal
    }


def label(solver: Solver) -> str:
    """The class of a solver, and its :func:`literals`: ``DEIS(order=2, interpolates='time')``."""
    options = (f"{name}={getattr(solver, name)!r}" for name in literals(type(solver)))
    return f"{type(solver).__name__}({', '.join(options)})"


def _starts(kind: type[Solver]) -> bool:
    if inspect.isabstract(kind):
        return False
    missing, free = dataclasses.MISSING, literals(kind)
    return all(
        not field.init or field.name in free or field.default is not missing or field.default_factory is not missing
        for field in dataclasses.fields(kind)
    )
