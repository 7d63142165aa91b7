"""Solvers, SDEs and rules of this library as JSON, for configs of others, and back::

    as_json(DPMSolverPP(order=3))            # {"class": "DPMSolverPP", "order": 3}
    read_solver({"class": "DPMSolverPP", "order": 3})

Only what the library exports is built by name, and only from what stands in the file: no code is named by one.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from typing import Any

import scoresde.sde as sdes
import scoresde.solvers as solvers
from scoresde import checks, rules
from scoresde.sde import SDE
from scoresde.solvers import Solver
from scoresde.spectrum import Spectrum

RULES: Mapping[str, rules.Rule] = {
    "uniform": rules.uniform,
    "log_snr": rules.log_snr,
    "karras": rules.karras,
    "spectral": rules.spectral,
}
"""The rules of :mod:`scoresde.grids` that need nothing but the SDE and a number of steps."""

OPTIONS = ("eta", "grid", "denoise", "integer_timesteps", "shape", "sigma_data", "guidance_scale")
"""What stands under "solver_options" in a scheduler's config, beside "solver" and what the network was trained with."""

_PLAIN = (bool, int, float, str)


def _exported(package: Any) -> dict[str, type]:
    named = {name: getattr(package, name) for name in package.__all__}
    return {
        name: kind
        for name, kind in named.items()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and not inspect.isabstract(kind)
    }


_SOLVERS = {**_exported(solvers), "Spectrum": Spectrum}
_SDES = _exported(sdes)


def as_json(value: Any) -> Any:
    """A solver or an SDE as JSON.

    Raises:
        TypeError: it is, or holds, something that is not of this library, or that no number, text or list says.
    """
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, (tuple, list)):
        return [as_json(part) for part in value]
    kind = type(value)
    if kind not in (*_SOLVERS.values(), *_SDES.values()):
        raise TypeError(f"a {kind.__module__}.{kind.__qualname__} cannot be written to a config.")
    # by the constructor's own names: a class that holds functions has none for them among its fields
    names = [field.name for field in dataclasses.fields(value) if field.init]
    if set(names) != set(inspect.signature(kind).parameters):
        raise TypeError(f"a {kind.__qualname__} holds functions, which cannot be written to a config.")
    return {"class": kind.__name__, **{name: as_json(getattr(value, name)) for name in names}}


def read_solver(given: Any) -> Solver:
    """The solver that :func:`as_json` wrote.

    Raises:
        TypeError, ValueError: something else.
    """
    return checks.instance(_read(given, _SOLVERS, "solver"), Solver, name="solver")


def read_sde(given: Any) -> SDE:
    """The SDE that :func:`as_json` wrote.

    Raises:
        TypeError, ValueError: something else.
    """
    return checks.instance(_read(given, _SDES, "sde"), SDE, name="sde")


def _read(given: Any, known: Mapping[str, type], name: str) -> Any:
    if isinstance(given, (list, tuple)):
        return tuple(_read(part, known, name) for part in given)
    if not isinstance(given, Mapping):
        return given
    kind = known[checks.one_of(given.get("class"), known, name=f'the "class" of {name}')]
    options = {key: _read(value, known, name) for key, value in given.items() if key != "class"}
    takes = set(inspect.signature(kind).parameters)
    if not set(options) <= takes:
        raise ValueError(
            f"{kind.__name__} takes {', '.join(sorted(takes)) or 'nothing'}; the config of {name} gives it "
            f"{', '.join(sorted(set(options) - takes))} as well."
        )
    return typing.cast(Any, kind)(**options)


def rule_named(grid: object) -> rules.Rule:
    """A rule by its name, or one of these themselves.

    Raises:
        TypeError, ValueError: something else.
    """
    if isinstance(grid, str):
        return RULES[checks.one_of(grid, RULES, name="grid")]
    checks.function(grid, name="grid", what="(sde, steps), one of scoresde.grids, or its name")
    return typing.cast(rules.Rule, grid)


def name_of(rule: rules.Rule) -> str:
    """The name of a rule.

    Raises:
        TypeError: it has none.
    """
    for name, known in RULES.items():
        if rule is known:
            return name
    raise TypeError("a rule of one's own cannot be written to a config.")


def arguments_of(
    config: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What a scheduler's config says: what the network was trained with, the solver and its options; and what is left.

    Args:
        config: that of a scheduler of ours, or of theirs.
        changes: by name, in place of what stands there; those that belong to neither are what is left.

    Raises:
        ValueError: a solver, or a rule of the grid, that could not be written.
    """
    others = dict(changes)
    trained = {key: value for key, value in config.items() if key not in ("solver", "solver_options")}
    options = {"solver": config.get("solver"), **(config.get("solver_options") or {})}
    options |= {name: others.pop(name) for name in ("solver", *OPTIONS) if name in others}
    trained |= {key: others.pop(key) for key in [*others] if key in trained or key == "prediction_type"}
    for name, value in options.items():
        if isinstance(value, Mapping) and "unwritten" in value:
            raise ValueError(
                f"the {name} of this config, {value['unwritten']}, was not written, for it is none of scoresde's; give "
                f"it: from_config(config, {name}=...)."
            )
    if isinstance(options["solver"], Mapping):
        options["solver"] = read_solver(options["solver"])
    return trained, {name: value for name, value in options.items() if value is not None}, others
