"""The checks themselves: what each takes, what it answers, and what it says of the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde import SDE, VP, Reverse, Solver, checks
from scoresde.noise import Noise

if TYPE_CHECKING:
    from somewhere import Unknown  # type: ignore[import-not-found]


class Own:
    """A class of a user's."""


@dataclass(frozen=True)
class Halving(Solver):
    """A solver of a user's own, which says nothing of checks."""

    steps: int = 3
    share: float = 0.5
    quick: bool = False
    kind: Literal["a", "b", 3] = "a"
    function: Callable[[Tensor], Tensor] | None = None
    table: Mapping[str, int] | None = None
    own: Own | None = None
    unknown: Unknown | None = None
    anything: Any = None

    def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """Half of it."""
        return 0.5 * x, None


def test_fields_become_plain_by_their_annotations() -> None:
    solver = Halving(np.int64(4), np.float32(0.25), np.bool_(True), torch.tensor(3), torch.tanh, {"a": 1}, Own(), 5, 6)  # type: ignore[arg-type]
    assert [type(value) for value in (solver.steps, solver.share, solver.quick, solver.kind)] == [int, float, bool, int]
    assert (solver.steps, solver.share, solver.quick, solver.kind) == (4, 0.25, True, 3)


def test_a_tensor_stays_where_it_has_a_gradient() -> None:
    share = torch.tensor(0.25, requires_grad=True)
    assert Halving(share=share).share is share  # type: ignore[arg-type, comparison-overlap]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("steps", 2.5, TypeError),
        ("steps", True, TypeError),
        ("steps", None, TypeError),
        ("share", "0.5", TypeError),
        ("share", math.nan, ValueError),
        ("quick", "no", TypeError),
        ("quick", 1, TypeError),
        ("kind", "c", ValueError),
        ("kind", True, ValueError),
        ("function", 3, TypeError),
        ("table", [1], TypeError),
        ("own", Own, TypeError),
    ],
)
def test_a_field_of_another_kind_is_refused_by_name(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^{name} must be .*{'nan' if value != value else ''}"):
        Halving(**{name: value})  # type: ignore[arg-type]


def test_a_class_inside_a_function_hides_only_its_own_field() -> None:
    class Inner:
        pass

    @dataclass(frozen=True)
    class Local(Halving):
        inner: Inner | None = None
        more: int = 1

    assert Local(inner=Inner(), more=np.int8(2)).more == 2  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^more must be a whole number"):
        Local(more=2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^steps must be a whole number"):
        Local(steps="3")  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [(1, 2.5), [1, 2.5], np.array([1, 2.5]), torch.tensor([1, 2.5])], ids=repr)
def test_numbers_of_any_sequence_are_floats(values: Any) -> None:
    found = checks.numbers(values, name="values")
    assert found == (1.0, 2.5)
    assert all(type(value) is float for value in found)


@pytest.mark.parametrize(
    "values", ["12", 3.0, None, {1.0}, [None], [True], ["1"], [math.nan], [[1.0]], b"12"], ids=repr
)
def test_what_is_no_list_of_numbers_is_refused(values: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^values must be a list of numbers; got"):
        checks.numbers(values, name="values")


@pytest.mark.parametrize("value", ["a/b.json", Path("a/b.json")], ids=repr)
def test_a_path_is_a_text_or_a_path(value: Any) -> None:
    assert checks.path(value) == Path("a/b.json")


@pytest.mark.parametrize("value", [None, 3, b"a", ["a"], "", "a\0b"], ids=repr)
def test_what_is_no_path_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^path must be the path of a file"):
        checks.path(value)


def test_a_choice_is_answered_plainly() -> None:
    assert type(checks.one_of(np.int64(2), (1, 2), name="n")) is int
    assert type(checks.one_of(np.str_("a"), ("a", "b"), name="n")) is str
    for wrong in (True, 2.0, "2", None, torch.ones(2), [2], b"2"):
        with pytest.raises(ValueError, match=r"^n must be one of 1, 2; got"):
            checks.one_of(wrong, (1, 2), name="n")


def test_a_class_in_place_of_its_object_is_told_from_others() -> None:
    with pytest.raises(TypeError, match=r"sde must be an SDE, got .*call it, VP\(\.\.\.\)"):
        checks.instance(VP, SDE, name="sde")
    sde = VP()
    assert checks.instance(sde, SDE, name="sde") is sde


def test_a_class_is_no_function() -> None:
    with pytest.raises(TypeError, match=r"callback must be a function of x, got the class Own"):
        checks.function(Own, name="callback", what="of x")
    with pytest.raises(TypeError, match=r"got the class Identity: add its parentheses"):
        checks.function(torch.nn.Identity, name="callback", what="of x")
    checks.function(torch.nn.Identity(), name="callback", what="of x")


def test_tensors_of_odd_layouts_are_refused_in_words() -> None:
    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for check in (lambda x: checks.state(x, name="x"), lambda x: checks.real(x, name="x")):
        with pytest.raises(TypeError, match=r"^x must be a dense tensor, got a nested tensor"):
            check(ragged)
        with pytest.raises(TypeError, match=r"^x must be a dense tensor, got one of torch.sparse_coo"):
            check(torch.ones(2, 3).to_sparse())
    with pytest.raises(TypeError, match=r"^x must be a floating tensor, got torch.float8"):
        checks.state(torch.ones(2, 3).to(torch.float8_e4m3fn), name="x")


def test_what_holds_no_values_is_refused_and_not_read() -> None:
    empty = torch.ones((), device="meta")
    for check in (checks.number, checks.whole, checks.flag):
        with pytest.raises(TypeError, match=r"^x must be"):
            check(empty, name="x")  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"^x must hold values"):
        checks.state(torch.ones(2, 3, device="meta"), values=True)
    with pytest.raises(ValueError, match=r"^device must be a device that holds values"):
        checks.device("meta")


@pytest.mark.parametrize(
    ("times", "error", "told"),
    [
        (10, ValueError, "got 10"),
        ([1.0, None], TypeError, "None"),
        ([True, 0.5], TypeError, "True"),
        (b"10", TypeError, "b'10'"),
        ([0.1, 0.5], ValueError, "entry 0 is 0.1"),
        ([2.0, 0.5], ValueError, r"in \[0.5, 2\]"),
        (torch.ones(0), ValueError, r"\(0,\)"),
        (torch.ones(2, device="meta"), ValueError, "meta"),
    ],
    ids=repr,
)
def test_a_grid_says_what_came(times: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=rf"\bgrid must .*{told}"):
        checks.grid(times, 1.0)


def test_counts_are_bounded() -> None:
    with pytest.raises(ValueError, match=r"^n must be a whole number"):
        checks.count(10**30, name="n")
    with pytest.raises(ValueError, match=r"^shape must be .* at most"):
        checks.shape((2**40, 2**40))


def test_a_function_is_tried_on_what_it_will_be_called_with() -> None:
    for wrong in (lambda: None, lambda x: None, lambda x, y, z: None):
        with pytest.raises(TypeError, match=r"^f must be a function of two, got .*argument"):
            checks.function(wrong, name="f", what="of two", takes=2)
    for right in (lambda x, y: None, lambda *x: None, lambda x, y, z=3: None, max, torch.nn.Identity()):
        checks.function(right, name="f", what="of two", takes=2)
