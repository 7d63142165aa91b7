"""What the library offers, found by looking at it: SDEs, solvers, grids, time densities, networks, each by its name.

    build(SOLVERS, "heun", ["churn=40"])          # Heun(churn=40.0)
    grid_named("karras", ["rho=5"])               # a function (sde, steps) -> times

EulerMaruyama is spelled euler-maruyama, SubVP subvp. A solver that is added to scoresde.solvers is known to every
command from then on, with its options, which are written name=value; corrector.snr=0.1 reaches into a part.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType, NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import Tensor

import scoresde as ss
from scoresde import grids, losses, sde, times
from scoresde.extras import needs
from scoresde.models import PREDICTIONS
from scoresde.nn import DiT, MagnitudeUNet, UNet, presets
from scoresde.solvers import catalogue

with needs("cli"):
    import tyro

GridRule = Callable[[ss.SDE, int], Tensor]


def spelled(name: str) -> str:
    """EulerMaruyama as euler-maruyama, SubVP as subvp, log_snr as log-snr."""
    return re.sub(r"(?<=[a-zA-Z])(?=[A-Z][a-z])", "-", name).replace("_", "-").lower()


def _classes(module: ModuleType, wanted: Callable[[type], bool]) -> dict[str, type[Any]]:
    """The dataclasses of a module that can be made without arguments: each option has a default."""
    return {
        spelled(name): cls
        for name, cls in vars(module).items()
        if isinstance(cls, type)
        and dataclasses.is_dataclass(cls)
        and not name.startswith("_")
        and not inspect.isabstract(cls)
        and wanted(cls)
        and all(_has_default(field) for field in dataclasses.fields(cls))
    }


def _has_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _functions(module: ModuleType, *first: str) -> dict[str, Callable[..., Any]]:
    """The public functions of a module whose first parameters have these names, and no other needs a value."""
    found: dict[str, Callable[..., Any]] = {}
    for name, function in vars(module).items():
        if inspect.isfunction(function) and function.__module__.startswith("scoresde.") and not name.startswith("_"):
            parameters = inspect.signature(function).parameters
            rest = list(parameters.values())[len(first) :]
            if tuple(parameters)[: len(first)] == first and all(p.default is not p.empty for p in rest):
                found[spelled(name)] = function
    return found


SDES: Mapping[str, type[ss.SDE]] = _classes(sde, lambda cls: issubclass(cls, ss.SDE))
SOLVERS: Mapping[str, type[ss.Solver]] = dict(sorted((spelled(cls.__name__), cls) for cls in catalogue.classes()))
GRIDS: Mapping[str, Callable[..., Tensor]] = _functions(grids, "sde", "steps")
# Stratified and AdaptiveTimes wrap any of the others: switches of their own.
TIMES: Mapping[str, type[times.TimeDensity]] = _classes(
    times, lambda cls: hasattr(cls, "sample") and cls not in (times.Stratified, times.AdaptiveTimes)
)
# For events on a grid of any size and number of axes.
NETWORKS: Mapping[str, type[UNet | MagnitudeUNet | DiT]] = {"unet": UNet, "magnitude-unet": MagnitudeUNet, "dit": DiT}
PRESETS: Mapping[str, Callable[..., UNet | MagnitudeUNet | DiT]] = _functions(presets, "channels", "num_classes")
WEIGHTINGS: Mapping[str, losses.Weighting] = {spelled(name): value for name, value in losses.WEIGHTINGS.items()}
LEARNED = "uncertainty"
"""The weighting that is learned along, beside those of the table."""
COUPLINGS: Mapping[str, type[losses.OptimalTransport]] = {"optimal-transport": losses.OptimalTransport}

# For the command line each is a Literal of the names found; for type checkers, who cannot look, a str.
if TYPE_CHECKING:
    SDEName = str
    SolverName = str
    GridName = str
    TimesName = str
    WeightingName = str
    CouplingName = str
    PredictionName = str
    NetworkName = str
else:
    _literal = tyro.extras.literal_type_from_choices
    SDEName, SolverName, GridName, TimesName = map(_literal, (SDES, SOLVERS, GRIDS, TIMES))
    WeightingName, CouplingName = map(_literal, ([*WEIGHTINGS, LEARNED], ["none", *COUPLINGS]))
    PredictionName, NetworkName = map(_literal, (PREDICTIONS, ["auto", *NETWORKS, *PRESETS]))


def build(table: Mapping[str, type[Any]], name: str, options: Sequence[str] = ()) -> Any:
    """The class of this name, made with options such as ["churn=40"].

    Raises:
        ValueError: no such name or option, or a value that does not fit.
    """
    return _changed(_pick(table, name)(), _pairs(options))


def grid_named(name: str, options: Sequence[str] = ()) -> GridRule:
    """The grid of this name, with options such as ["rho=5"].

    Raises:
        ValueError: no such name or option, or a value that does not fit.
    """
    function = _pick(GRIDS, name)
    hints = get_type_hints(function)
    own = [name for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY]
    return functools.partial(function, **_values(name, {name: hints[name] for name in own}, {}, _pairs(options)))


def _pick(table: Mapping[str, Any], name: str) -> Any:
    if name not in table:
        raise ValueError(f"there is no {name!r}; choose one of {', '.join(table)}.")
    return table[name]


def _pairs(options: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not (name and equals):
            raise ValueError(f"an option is written name=value, without spaces; got {option!r}.")
        if name in pairs:
            raise ValueError(f"the option {name} is given twice.")
        pairs[name] = text
    return pairs


def _changed(whole: Any, options: Mapping[str, str]) -> Any:
    """A dataclass or mapping with some of its parts replaced."""
    if isinstance(whole, Mapping):
        return {**whole, **{name: _literal_value(text) for name, text in options.items()}}
    hints = get_type_hints(type(whole))
    own = [field.name for field in dataclasses.fields(whole) if field.init]
    parts = {name: getattr(whole, name) for name in own}
    values = _values(type(whole).__name__, {name: hints[name] for name in own}, parts, options)
    return dataclasses.replace(whole, **values)


def _values(
    owner: str, hints: Mapping[str, Any], parts: Mapping[str, Any], options: Mapping[str, str]
) -> dict[str, Any]:
    """The values of options, read by their type hints; a name with a dot changes a part."""
    values: dict[str, Any] = {}
    for name, text in options.items():
        head, dot, _ = name.partition(".")
        if head not in hints:
            raise ValueError(f"{owner} has no option {head!r}; it has {', '.join(hints) or 'none'}.")
        if not dot:
            values[name] = _read(f"{owner}'s {name}", text, hints[name])
    for head in dict.fromkeys(name.partition(".")[0] for name in options if "." in name):
        part = values.get(head, parts.get(head))
        if not (dataclasses.is_dataclass(part) or isinstance(part, Mapping)):
            raise ValueError(f"{owner}'s {head} has no parts to set: write {head}=value.")
        inner = {name[len(head) + 1 :]: text for name, text in options.items() if name.startswith(head + ".")}
        values[head] = _changed(part, inner)
    return values


def _read(name: str, text: str, hint: Any) -> Any:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in kinds:
        if kind is NoneType and text.lower() == "none":
            return None
        if kind is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        if kind is str or (get_origin(kind) is Literal and text in get_args(kind)):
            return text
        if isinstance(kind, type) and issubclass(kind, ss.Solver) and text in SOLVERS:
            return SOLVERS[text]()
    raise ValueError(f"{name} does not take {text!r}; it takes {_words(kinds)}.")


def _words(kinds: Sequence[Any]) -> str:
    words: list[str] = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            words += map(repr, get_args(kind))
        elif isinstance(kind, type) and issubclass(kind, ss.Solver):
            words += SOLVERS
        elif kind in (int, float, bool, NoneType):
            words.append({int: "a whole number", float: "a number", bool: "true or false", NoneType: "none"}[kind])
        elif kind is not Tensor:
            words.append("name.part=value for each of its parts")
    return " or ".join(words)


def _literal_value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
