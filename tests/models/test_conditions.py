"""The home of conditions: kinds and their checks, what a network tells, dropping; and that a new kind is two places."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import scoresde
from scoresde.data import Scaling, from_tensors
from scoresde.guidance import classifier_free
from scoresde.losses import edm
from scoresde.models import ScoreModel
from scoresde.models.conditions import (
    Caption,
    Condition,
    Conditions,
    Embedding,
    Image,
    Label,
    Vector,
    check_droppable,
    check_name,
    check_values,
    drop_conditions,
    dropped_rows,
    kinds_of,
    names_of,
    nulls_for,
    nulls_of,
    split_absent,
    stored_conditions,
)
from scoresde.nn import MLP, ConditionalNetwork, UNet
from scoresde.sde import VP
from scoresde.train import train

NAN = math.nan
ALL = Conditions(
    {"label": Label(3), "size": Vector(2), "low": Image(1), "text": Caption(5, length=4), "clip": Embedding(6)}
)


def uniforms(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# -- kinds and what a network says of them -----------------------------------------------------------------------------


def test_the_home_knows_no_sde_and_no_network_and_networks_know_nothing_else() -> None:
    root = Path(scoresde.__file__).parent
    allowed = {
        "scoresde.checks",
        "scoresde.checks.lasting",
        "scoresde.checks.written",
        "scoresde",
        "scoresde.extras",
        "scoresde.models.conditions",
        "scoresde.warning",
    }
    for folder, own in (("models/conditions", "scoresde.models.conditions"), ("nn", "scoresde.nn")):
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                for name in names:
                    ours = name == "scoresde" or name.startswith("scoresde.")
                    assert not ours or name.startswith(own) or name in allowed, (path, name)
                if isinstance(node, ast.ImportFrom) and node.module == "scoresde":
                    assert {alias.name for alias in node.names} <= {"checks"}, path


def test_arguments_of_a_network_and_conditions_say_the_same() -> None:
    groups = (
        Label.named(3),
        Vector.named({"size": 2}),
        Image.named({"low": 1}),
        Caption.named({"text": {"vocabulary": 5, "length": 4}}),
        Embedding.named({"clip": 6}),
    )
    joined = Conditions.joined(*groups)
    assert joined == ALL and list(joined) == list(ALL)
    assert joined.config == {
        "num_classes": 3,
        "vectors": {"size": 2},
        "images": {"low": 1},
        "captions": {"text": {"vocabulary": 5, "length": 4, "width": 64, "layers": 2}},
        "embeddings": {"clip": 6},
    }
    assert json.loads(json.dumps(joined.config)) == joined.config
    net = UNet(1, width=8, multipliers=(1,), blocks=1, attention_levels=(), **joined.config)
    assert net.conditions == ALL and kinds_of(net) == dict(ALL)
    assert (
        str(net.null_conditions)
        == str(joined.nulls)
        == str({"label": 3, "size": NAN, "low": NAN, "text": 0, "clip": NAN})
    )
    assert joined.of_kind(Vector) == {"size": Vector(2)} and Conditions().config == {}
    assert Conditions.joined(Vector.named(None), {}) == Conditions()


def test_a_call_is_read_in_the_order_of_the_network_with_a_row_for_each_sample() -> None:
    x = torch.zeros(3, 1, 4, 4)
    given = ALL.read({"clip": torch.zeros(3, 2, 6), "size": torch.ones(3, 2)}, x)
    assert list(given) == list(ALL) and given["low"] is None
    shapes = {name: tuple(value.shape) for name, value in given.items() if value is not None}
    assert shapes == {"label": (3,), "size": (3, 2), "text": (3, 0), "clip": (3, 2, 6)}
    assert given["label"] is not None and given["label"].tolist() == [3, 3, 3]
    assert given["text"] is not None and given["text"].dtype == torch.long
    age = Conditions({"age": Vector(1)}).read({"age": torch.ones(3)}, x)["age"]
    assert age is not None and age.shape == (3, 1)
    nothing = ALL.read({}, x)
    assert [name for name, value in nothing.items() if value is None] == ["size", "low"]
    assert nothing["clip"] is not None and nothing["clip"].shape == (3, 0, 6)


@pytest.mark.parametrize("name", ["t", "label", "model", "scale", "null", "net", "class", "x0", "_private", "größe"])
def test_names_that_a_condition_may_have(name: str) -> None:
    check_name(name)
    assert list(Conditions({name: Vector(1)})) == [name]
    net = MLP(2, 8, 1, vectors={name: 1})
    assert net(torch.zeros(2, 2), torch.zeros(2), **{name: torch.zeros(2)}).shape == (2, 2)


@pytest.mark.parametrize("name", ["x", "c", "self", "two words", "", "1st", "a-b", 3, None])
def test_names_that_python_cannot_take_are_refused(name: Any) -> None:
    for refuse in (check_name, lambda n: Conditions({n: Vector(1)}), lambda n: MLP(2, 8, 1, vectors={n: 1})):
        with pytest.raises(ValueError, match=r"must be a word|own argument in net\(x, c, ...\)"):
            refuse(name)


def test_what_any_network_tells() -> None:
    def function(x: Tensor, c: Tensor, size: Tensor, label: Tensor | None = None) -> Tensor:
        return x

    assert (nulls_of(function), names_of(function), kinds_of(function)) == ({}, ["size", "label"], {})
    function.null_conditions = {"label": 4}  # type: ignore[attr-defined]
    assert nulls_of(function) == {"label": 4} and names_of(function) == ["label", "size"]
    assert kinds_of(function) == {"label": Label(4)}  # a whole number is the number of classes
    for null in (NAN, True, "none", 0):
        function.null_conditions = {"label": null}  # type: ignore[attr-defined]
        assert kinds_of(function) == {}
    function.conditions = Conditions({"size": Vector(2)})  # type: ignore[attr-defined]
    assert kinds_of(function) == {"size": Vector(2)}
    function.conditions = {"size": 2}  # type: ignore[attr-defined]  # something else of the user's
    assert kinds_of(function) == {}


def test_a_number_is_bound_as_what_its_null_says() -> None:
    net = MLP(2, 8, 1, num_classes=3, vectors={"size": 1})
    for i, parameter in enumerate(net.parameters()):  # a new network's last layers are 0
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))
    model = ScoreModel(net, VP())
    x, t = uniforms(3, 2), torch.tensor(0.5)
    each = model(x, t, {"label": torch.full((3,), 2), "size": torch.full((3,), 4.0)})
    assert torch.equal(model.bind(label=2, size=4)(x, t), each)  # a class stays whole, a size becomes 4.0
    assert not torch.equal(model.bind(label=2, size=5)(x, t), each)


def test_a_network_without_conditions_is_told_so_by_guidance() -> None:
    for net, takes in ((MLP(2, 8, 1), "none"), (MLP(2, 8, 1, vectors={"size": 1}), "size")):
        with pytest.raises(ValueError, match=f"takes no condition label; it takes {takes}"):
            nulls_for(net, [{}, {"label": 1}], {"label": 0}, what="guidance")


def test_values_of_a_batch_are_looked_at_where_they_say_something() -> None:
    good = {"label": torch.tensor([0, 3]), "text": torch.tensor([[0, 5]]), "size": torch.full((2, 2), NAN), "more": 1}
    check_values(ALL, good, "step 1")
    for name, values, message in (
        ("label", torch.tensor([0, 4]), r"labels of step 1 run from 0 to 4.*0 to 2, or 3.*num_classes=5"),
        ("label", torch.tensor([-1, 0]), "labels of step 1 run from -1 to 0"),
        (
            "text",
            torch.tensor([[6, 0]]),
            r"tokens of text in step 1 run from 0 to 6.*1 to 5 for words.*'vocabulary': 6",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            check_values(ALL, {name: values}, "step 1")
        check_values(ALL, {name: values.float()}, "step 1")  # no whole numbers: the network says what it wants
        check_values(ALL, {name: values.to("meta")}, "step 1")  # not in main memory
        check_values(ALL, {name: values[:0]}, "step 1")


# -- rows --------------------------------------------------------------------------------------------------------------


def test_rows_of_nan_are_told_from_what_was_given() -> None:
    value = uniforms(4, 3, 2)
    value[1], value[2, 0] = NAN, NAN
    known, absent = split_absent(value)
    assert absent.tolist() == [False, True, False, False] and not known[1].any()
    assert torch.equal(known[[0, 3]], value[[0, 3]]) and bool(known[2, 0].isnan().all())
    known, absent = split_absent(value, 2)
    assert absent.sum() == 4 and bool(absent[1].all()) and bool(absent[2, 0]) and not bool(known.isnan().any())
    assert torch.equal(known[~absent], value[~absent])


def test_stored_conditions_are_checked_copies_of_two_dtypes() -> None:
    given = {"a": torch.arange(3, dtype=torch.int16), "b": uniforms(3, 2).double().requires_grad_()}
    stored = stored_conditions(given, 3)
    assert {name: value.dtype for name, value in stored.items()} == {"a": torch.int64, "b": torch.float32}
    assert not stored["b"].requires_grad and stored_conditions(None, 3) == {}


# -- dropping ----------------------------------------------------------------------------------------------------------


def test_rows_are_dropped_together_or_each_on_its_own() -> None:
    together, own = uniforms(50), {name: uniforms(50, seed=i) for i, name in enumerate("abc", start=1)}
    rows = dropped_rows(0.3, ["a", "b"], together=together, alone=own.__getitem__)
    assert list(rows) == ["a", "b"] and all(torch.equal(where, together < 0.3) for where in rows.values())
    assert dropped_rows(0.0, ["a"], together=together, alone=own.__getitem__) == {}
    rows = dropped_rows({"a": 0.5, "b": 0.0, "c": 0.2}, ["a", "b", "c"], together=together, alone=own.__getitem__)
    assert list(rows) == ["a", "c"]
    assert torch.equal(rows["a"], own["a"] < 0.5) and torch.equal(rows["c"], own["c"] < 0.2)
    told = drop_conditions({"a": torch.ones(50, 2), "c": torch.ones(50).long()}, {"a": NAN, "c": 9}, rows)
    assert torch.equal(told["a"].isnan().all(1), rows["a"]) and torch.equal(told["c"] == 9, rows["c"])


@pytest.mark.parametrize(
    ("dropout", "names", "message"),
    [
        ({"b": 0.1}, ["a"], r"condition_dropout names 'b', but the conditions in training are \['a'\]"),
        ({"b": 0.1}, ["a", "b"], "needs a null value for b"),
        (0.1, ["b"], "needs a null value for b"),
        (0.1, [], "needs a null value for label"),
    ],
)
def test_what_cannot_be_dropped_is_refused(dropout: Any, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_droppable(dropout, names, {"a": 0})
    for fine in (None, 0.0, {}, {"a": 0.5}, 0.5):
        check_droppable(fine, ["a", "b"], {"a": 0})


# -- a kind of one's own: its class, and the network that uses it ------------------------------------------------------


@dataclass(frozen=True)
class Angle(Condition):
    """An angle in turns, (B,); NaN is not given."""

    argument: ClassVar[str] = "angles"
    example: ClassVar[Any] = {}

    def check(self, name: str, value: Tensor, x: Tensor) -> Tensor:
        if value.shape != (len(x),):
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected ({len(x)},), turns.")
        return value

    def absent(self, x: Tensor) -> Tensor:
        return x.new_full((len(x),), NAN)


class Turned(ConditionalNetwork):
    """Points in the plane, told an angle."""

    def __init__(self, width: int, angles: Mapping[str, Any] | None = None) -> None:
        super().__init__({"width": width}, Conditions.joined(Angle.named(angles)))
        self.body = nn.Sequential(nn.Linear(5, width), nn.SiLU(), nn.Linear(width, 2))

    def check_x(self, x: Tensor) -> None:
        assert x.shape[1:] == (2,)

    def compute(self, x: Tensor, c: Tensor, given: Mapping[str, Tensor | None]) -> Tensor:
        (turns,) = given.values()
        assert turns is not None
        phase = 2 * math.pi * turns
        told = torch.stack([phase.cos(), phase.sin()], 1).nan_to_num(0.0)
        return self.body(torch.cat([x, c[:, None], told], 1).to(self.body[0].weight.dtype))


def test_a_kind_of_ones_own_goes_through_data_training_and_guidance() -> None:
    torch.manual_seed(0)
    net = Turned(16, angles={"turn": {}})
    assert net.config == {"width": 16, "angles": {"turn": {}}} and str(net.null_conditions) == "{'turn': nan}"
    assert Turned(**net.config).conditions == net.conditions
    turn = uniforms(64)
    data = from_tensors(
        torch.stack([(2 * math.pi * turn).cos(), (2 * math.pi * turn).sin()], 1),
        scaling=Scaling(0.0, 1.0),
        conditions={"turn": turn},
    )
    model = ScoreModel(net, VP(), "x0", sigma_data=0.7)
    options: dict[str, Any] = {"lr": 1e-2, "ema": 0.9, "weighting": edm(0.7), "condition_dropout": 0.2}
    run = train(model, data, steps=200, batch_size=64, progress=False, cpu=True, **options)
    losses = [float(step.loss) for step in run]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    trained = run.ema_model().eval()
    x, t = torch.zeros(2, 2), torch.tensor(0.9)
    one = trained.denoise(x, t, {"turn": torch.tensor([0.0, 0.5])})
    assert one[0, 0] > 0.5 and one[1, 0] < -0.5  # told where to look
    guided = classifier_free(trained, {"turn": 0.25}, 2.0)
    none, told = trained(x, t), trained(x, t, {"turn": torch.full((2,), 0.25)})
    torch.testing.assert_close(guided(x, t), none + 2 * (told - none))
    with pytest.raises(ValueError, match=r"turn has shape \(2, 1\).*turns"):
        net(x, torch.zeros(2), turn=torch.zeros(2, 1))
