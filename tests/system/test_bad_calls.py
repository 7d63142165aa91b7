"""The whole public API, called wrongly: each function with each argument spoilt in turn, generated from `calls_*.py`.

Every call either works rightly or is refused by a line of ours that names the argument, what came in and what was
expected; see bad_calls.py.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_calls import Call, Case, check_refused, check_same, spoilt

import scoresde

TABLES = sorted(path.stem for path in Path(__file__).parent.glob("calls_*.py"))
CALLS: list[Call] = [call for name in TABLES for call in importlib.import_module(name).CALLS]
NOT_CALLED: dict[str, str] = {
    name: why for table in TABLES for name, why in importlib.import_module(table).NOT_CALLED.items()
}
CASES: list[Case] = [case for call in CALLS for case in spoilt(call)]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.title)
def test_what_is_wrong_is_refused_in_words(call: Call) -> None:
    _all_hold(check_refused, [case for case in spoilt(call) if not case.right])


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.title)
def test_other_ways_of_writing_what_is_right_are_taken(call: Call) -> None:
    _all_hold(check_same, [case for case in spoilt(call) if case.right])


def _all_hold(check: Callable[[Case], None], cases: list[Case]) -> None:
    """All faults of a call at once; ten thousand tests of their own would take longer to collect than to run."""
    faults: list[str] = []
    for case in cases:
        try:
            check(case)
        except Exception as error:
            told = str(error) if isinstance(error, AssertionError) else f"{case.title}: {type(error).__name__}: {error}"
            faults.append(told)
    assert not faults, "\n".join([f"{len(faults)} of {len(cases)} cases:", *faults])


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.title)
def test_the_right_call_is_right(call: Call) -> None:
    call.call()


def public() -> dict[str, Any]:
    """All that the library shows: the root's names, and those of its public modules, by module and name."""
    modules = [
        scoresde,
        *(getattr(scoresde, name) for name in scoresde.__all__ if inspect.ismodule(getattr(scoresde, name))),
    ]
    found: dict[str, Any] = {}
    for module in modules:
        names = getattr(module, "__all__", None) or [
            name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__
        ]
        for name in names:
            value = getattr(module, name)
            if callable(value) and not name.startswith("_"):
                found.setdefault(
                    f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else name, value
                )
    return found


def test_every_public_function_and_class_is_in_the_table() -> None:
    called = {id(getattr(call.function, "__func__", call.function)) for call in CALLS}
    missing = sorted(n for n, value in public().items() if id(value) not in called and n not in NOT_CALLED)
    assert not missing, f"{len(missing)} public callables that the table of bad calls leaves out: {missing}"


def test_the_table_is_large_enough() -> None:
    assert len(CASES) >= 1500
