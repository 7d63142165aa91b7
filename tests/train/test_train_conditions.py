"""Training with several conditions: what the network is told, dropout by name, mirrors, checkpoints, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scoresde.train.checkpoint as checkpoint_module
from scoresde.cli import sample
from scoresde.data import Dataset, Scaling, from_tensors, random_flip
from scoresde.models import ScoreModel
from scoresde.models.conditions import Caption, Conditions, drop_conditions
from scoresde.nn import MLP, UNet
from scoresde.sde import VP
from scoresde.train import CheckpointError, Run, describe, load_model, train
from scoresde.train.draws import DataOrder, Uniforms, named_uniforms, seeded

COUNT, CLASSES = 24, 3
NULLS = {"label": CLASSES, "size": math.nan, "low": math.nan, "caption": 0, "text": math.nan}


def dataset(count: int = COUNT, **changes: Tensor) -> Dataset:
    draw = torch.Generator().manual_seed(0)
    conditions = {
        "size": torch.randn(count, 2, generator=draw),
        "low": torch.randn(count, 1, 2, 2, generator=draw),
        "caption": torch.randint(1, 6, (count, 4), generator=draw),
        "text": torch.randn(count, 3, 6, generator=draw),
        **changes,
    }
    label = torch.randint(0, CLASSES, (count,), generator=draw)
    x = torch.randn(count, 1, 4, 4, generator=draw)
    return from_tensors(x, label, scaling=Scaling(0.0, 1.0), num_classes=CLASSES, conditions=conditions)


class Watch(nn.Module):
    """Takes everything, does next to nothing, and remembers what it was told in training."""

    null_conditions = NULLS
    image_conditions = ("low",)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor, c: Tensor, **cond: Tensor) -> Tensor:
        if self.training:
            self.seen.append({name: value.detach().clone() for name, value in cond.items()})
        return self.weight * x

    def told(self, name: str) -> Tensor:
        return torch.cat([step[name] for step in self.seen])


def watched(net: Watch | None = None, data: Any = None, **options: Any) -> Watch:
    """The network after a run."""
    net = Watch() if net is None else net
    given: dict[str, Any] = {"steps": 1, "batch_size": COUNT, "progress": False, "condition_dropout": 0.0, **options}
    for _ in train(ScoreModel(net, VP()), dataset() if data is None else data, **given):
        pass
    return net


def dropped(net: Watch) -> dict[str, Tensor]:
    """Rows that were told the null, by condition."""
    marks = {}
    for name, null in NULLS.items():
        value = net.told(name).flatten(1) if net.told(name).ndim > 1 else net.told(name)[:, None]
        marks[name] = (value.isnan() if math.isnan(null) else value == null).all(1)
    return marks


def unet(seed: int = 0) -> ScoreModel:
    with seeded(torch.device("cpu"), seed):
        net = UNet(
            1, width=8, multipliers=(1,), blocks=1, attention_levels=(), num_classes=CLASSES, vectors={"size": 2},
            images={"low": 1}, captions={"caption": {"vocabulary": 5, "length": 4, "width": 8, "layers": 1}},
            embeddings={"text": 6}, dropout=0.3,
        )  # fmt: skip
        for parameter in net.parameters():  # networks start with outputs of zero, which hides what they see
            nn.init.normal_(parameter, std=0.2)
    return ScoreModel(net, VP())


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def trained(model: ScoreModel | None = None, data: Dataset | None = None, **options: Any) -> Run[ScoreModel]:
    given: dict[str, Any] = {"steps": 4, "batch_size": 8, "progress": False, "ema": 0.5, **options}
    run = train(unet() if model is None else model, dataset() if data is None else data, **given)
    for _ in run:
        pass
    return run


# -- what reaches the network ------------------------------------------------------------------------------------------


def test_the_network_is_told_the_conditions_of_its_samples() -> None:
    data, net = dataset(), watched(steps=2, seed=3)
    for step, told in enumerate(net.seen):
        batch = data.batch(DataOrder(COUNT, COUNT, 3).indices(step))
        assert told.keys() == NULLS.keys()
        for name, value in told.items():
            assert torch.equal(value, batch[name]), name


def test_conditions_of_any_name_are_trained_dropped_and_loaded(tmp_path: Path) -> None:
    """Names of options of guidance and of training, and "label" for numbers."""
    names = ("t", "label", "model", "scale", "null", "negative", "steps", "seed", "folder", "weight", "eps")
    draw = torch.Generator().manual_seed(0)
    x, given = (torch.randn(COUNT, 2, generator=draw), {name: torch.randn(COUNT, 2, generator=draw) for name in names})
    data = from_tensors(x, scaling=Scaling(0.0, 1.0), conditions=given)
    with seeded(torch.device("cpu"), 0):
        model = ScoreModel(MLP(2, width=8, depth=1, vectors=dict.fromkeys(names, 2)), VP())
        for parameter in model.net.parameters():  # type: ignore[union-attr]
            nn.init.normal_(parameter, std=0.5)
    before = weights(model)
    run = trained(model, data, folder=tmp_path, condition_dropout={"label": 0.5, "scale": 0.5})
    assert not torch.equal(weights(run.model), before) and run.model.net.null_conditions.keys() == given.keys()
    back, t = load_model(tmp_path, ema=False), torch.tensor(0.4)
    assert torch.equal(back(x, t, given), run.model.eval()(x, t, given))
    for name in names:
        assert not torch.equal(back(x, t, {**given, name: given[name].flip(0)}), back(x, t, given)), name


def test_a_choice_of_conditions_leaves_the_others_out() -> None:
    assert watched(conditions=["size", "caption"]).seen[0].keys() == {"size", "caption"}


def test_floating_conditions_take_the_dtype_of_the_weights() -> None:
    net = watched(Watch().double())
    kinds = {name: value.dtype for name, value in net.seen[0].items()}
    whole = {"label", "caption"}
    assert kinds == {name: torch.int64 if name in whole else torch.float64 for name in NULLS}
    # a Python number of a data set of one's own collates to float64, which float32 weights could not take
    own = [{**dataset()[i], "size": 0.5} for i in range(COUNT)]
    assert watched(data=own).told("size").dtype == torch.float32


class Firm(Watch):
    """A network of anybody's that tells a kind and checks no token: as on a GPU, where none is looked at."""

    conditions = Conditions({"caption": Caption(5, length=4)})


def test_nan_for_not_given_goes_through_training() -> None:
    draw = torch.Generator().manual_seed(1)
    size, text = torch.randn(COUNT, 2, generator=draw), torch.randn(COUNT, 3, 6, generator=draw)
    size[::2], text[1::3], text[::4, 1:] = math.nan, math.nan, math.nan
    run = trained(data=dataset(size=size, text=text), steps=1, batch_size=COUNT, condition_dropout=0.0)
    assert bool(weights(run.model).isfinite().all()) and not torch.equal(weights(run.model), weights(unet()))
    told = watched(data=dataset(size=size, text=text)).seen[0]
    batch = dataset(size=size, text=text).batch(DataOrder(COUNT, COUNT, 0).indices(0))
    for name in ("size", "text"):
        torch.testing.assert_close(told[name], batch[name], rtol=0, atol=0, equal_nan=True)


def test_all_captions_of_a_data_set_are_looked_at_before_anything_starts(tmp_path: Path) -> None:
    for bad, text in ((6, "0 to 6.*'vocabulary': 6"), (-1, "-1 to 5.*1 to 5 for words and 0 for padding")):
        tokens = torch.full((COUNT, 4), 5)
        tokens[0], tokens[-1, 2] = 0, bad  # the first sample, which is tried at the start, is a good one
        with pytest.raises(ValueError, match=f"tokens of caption in the data set run from {text}"):
            train(ScoreModel(Firm(), VP()), dataset(caption=tokens), steps=1, batch_size=8, folder=tmp_path / "run")
        assert not (tmp_path / "run").exists()
        assert watched(Firm(), dataset(caption=tokens), conditions=["label"]).seen  # where they are not asked for
        assert watched(data=dataset(caption=tokens)).seen  # a network that tells no vocabulary
    assert watched(Firm(), dataset(caption=torch.full((COUNT, 4), 5))).seen


def test_captions_of_a_data_set_of_ones_own_are_looked_at_before_they_reach_the_device() -> None:
    samples = [dataset()[i] for i in range(COUNT)]
    samples[7] = {**samples[7], "caption": torch.tensor([1, 6, 0, 0])}
    net = Firm()
    with pytest.raises(ValueError, match=r"caption in the batch of step 1 run from 0 to 6.*vocabulary of 5.*Encode"):
        watched(net, samples)
    assert not net.seen  # in training; the trial with the first sample is not
    with pytest.raises(ValueError, match="caption in the batch of step 1 run from 0 to 6"):  # one of ours tells it, too
        trained(data=samples, batch_size=COUNT)  # type: ignore[arg-type]


# -- dropout by name ---------------------------------------------------------------------------------------------------


def test_a_number_drops_all_conditions_of_a_row_together() -> None:
    marks = dropped(watched(condition_dropout=0.4, seed=5))
    expected = Uniforms.draw(5, 0, COUNT).condition_dropout < 0.4
    assert 0 < int(expected.sum()) < COUNT
    assert all(torch.equal(mark, expected) for mark in marks.values())
    net = watched()  # rows that are kept hold no null
    assert not any(bool(mark.any()) for mark in dropped(net).values())


def test_a_mapping_drops_each_condition_by_draws_of_its_own() -> None:
    rates = {"label": 0.5, "caption": 0.25, "low": 0.4, "text": 0.0}
    marks = dropped(watched(condition_dropout=rates, seed=5))
    for name in NULLS:
        rate = rates.get(name, 0.0)
        assert torch.equal(marks[name], named_uniforms(5, 0, COUNT, f"label dropout of {name}") < rate), name
    assert not bool(marks["size"].any()) and not bool(marks["text"].any())


def test_the_draws_of_a_mapping_are_independent_at_the_rates_asked_for() -> None:
    steps, batch = 40, 100
    rates = {"label": 0.3, "caption": 0.2, "low": 0.5}
    net = watched(condition_dropout=rates, steps=steps, batch_size=batch)
    marks, n = dropped(net), steps * batch
    for name, rate in rates.items():
        assert abs(marks[name].double().mean().item() - rate) < 5 * math.sqrt(rate * (1 - rate) / n)
        for other, second in rates.items():
            if other != name:
                both = rate * second  # five standard deviations of a binomial share, here and above
                share = (marks[name] & marks[other]).double().mean().item()
                assert abs(share - both) < 5 * math.sqrt(both * (1 - both) / n), (name, other)


def test_dropout_by_name_changes_what_is_learnt() -> None:
    results = [
        weights(trained(condition_dropout=dropout).model)
        for dropout in (0.0, 0.5, {"label": 0.5}, {"label": 0.5, "caption": 0.5}, {"low": 0.5})
    ]
    assert len({tuple(result.tolist()) for result in results}) == len(results)
    assert torch.equal(weights(trained(condition_dropout={}).model), results[0])
    assert torch.equal(weights(trained().model), weights(trained(condition_dropout=0.1).model))


def test_accumulated_parts_drop_what_the_whole_batch_drops() -> None:
    rates = {"label": 0.5, "caption": 0.5}
    whole, parts = (dropped(watched(condition_dropout=rates, accumulate=a)) for a in (1, 4))
    assert all(torch.equal(whole[name], parts[name]) for name in NULLS)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "steps": 6, "save_every": 3, "batch_size": 8, "ema": 0.5, "progress": False, "flip": True,
        "condition_dropout": {"label": 0.4, "caption": 0.4, "low": 0.4, "size": 0.4, "text": 0.4},
    }  # fmt: skip
    whole = trained(folder=tmp_path / "whole", **options)
    for step in train(unet(), dataset(), folder=tmp_path / "parts", **options):
        if step.step == 5:
            break
    resumed = trained(unet(seed=1), folder=tmp_path / "parts", resume=True, **options)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    with pytest.warns(UserWarning, match="condition_dropout"):
        train(unet(), dataset(), folder=tmp_path / "parts", resume=True, **{**options, "condition_dropout": 0.4})


def test_nulls_take_the_place_of_the_rows_named() -> None:
    rows = torch.tensor([True, False, True])
    given = {
        "a": torch.arange(6).reshape(3, 2),
        "b": torch.ones(3, 2, 2),
        "c": torch.ones(3),
        "d": torch.ones(3, 2, dtype=torch.bfloat16),
    }
    nulls = {"a": 0, "b": torch.tensor([5.0, 6.0]), "c": math.nan, "d": math.nan}
    out = drop_conditions(given, nulls, rows)
    assert out["a"].tolist() == [[0, 0], [2, 3], [0, 0]]
    assert out["b"][0].tolist() == [[5, 6], [5, 6]] and torch.equal(out["b"][1], given["b"][1])
    assert out["c"].isnan().tolist() == [True, False, True]
    assert all(out[name].dtype == given[name].dtype for name in given)
    some = drop_conditions(given, nulls, {"c": ~rows})
    assert some["c"].isnan().tolist() == [False, True, False]
    assert all(torch.equal(some[name], given[name]) for name in "abd")


@pytest.mark.parametrize(
    ("value", "null", "message"),
    [
        (torch.ones(2, 3).long(), math.nan, "cannot hold that.*whole-number null"),
        (torch.ones(2).long(), 0.5, "the null of 'a' is 0.5, but its values are torch.int64"),
        (torch.ones(2, 3), torch.zeros(4), r"shape \(4,\), which does not fit one condition \(3,\)"),
        (torch.ones(2), torch.zeros(2, 2), r"does not fit one condition \(\)"),
    ],
)
def test_nulls_that_do_not_fit_are_refused(value: Tensor, null: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drop_conditions({"a": value}, {"a": null}, torch.tensor([True, False]))


# -- mirrored pictures -------------------------------------------------------------------------------------------------


def test_pictures_of_x_are_mirrored_with_it_and_nothing_else_is() -> None:
    data, net = dataset(), watched(flip=True, seed=2)
    batch = data.batch(DataOrder(COUNT, COUNT, 2).indices(0))
    coins = Uniforms.draw(2, 0, COUNT).flip
    assert 0 < int((coins < 0.5).sum()) < COUNT
    assert torch.equal(net.told("low"), random_flip(batch["low"], coins))
    for name in ("size", "caption", "text", "label"):
        assert torch.equal(net.told(name), batch[name]), name


def test_a_picture_told_of_x_stays_that_of_x() -> None:
    """The network is told x_0 itself: whatever the coin, x_t - α x_0 is noise of variance σ²."""

    class Compare(Watch):
        null_conditions = {"low": math.nan}  # noqa: RUF012
        gaps: list[Tensor]

        def forward(self, x: Tensor, c: Tensor, **cond: Tensor) -> Tensor:
            alpha = (1 + (2 * c).exp()).rsqrt()[:, None, None, None]  # of VP, where α² + σ² = 1
            self.gaps = [*getattr(self, "gaps", []), ((x - alpha * cond["low"]) / (1 - alpha**2).sqrt()).detach()]
            return self.weight * x

    x = 50 * torch.randn(COUNT, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    data = from_tensors(x, scaling=Scaling(0.0, 1.0), conditions={"low": x})
    net = watched(Compare(), data, flip=True)
    assert isinstance(net, Compare)
    # 24 x 16 standard normals, less than 6 each; a mirror missed would leave differences of 50 and more
    assert net.gaps[-1].abs().max() < 6


class Silent(Watch):
    image_conditions = property()  # type: ignore[assignment]  # as if it had none


def test_a_network_that_does_not_say_what_to_mirror_is_refused() -> None:
    with pytest.raises(ValueError, match=r"whether low would have to be .*image_conditions = \('low',\), or \(\)"):
        watched(Silent(), flip=True)
    assert watched(Silent(), flip=True, conditions=["label", "size", "text"]).seen
    assert watched(Silent()).seen  # without flips there is nothing to say


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_networks_with_conditions_are_rebuilt_from_their_files(tmp_path: Path) -> None:
    run = trained(folder=tmp_path / "unet")
    batch = dataset().batch(slice(4))
    x, cond, t = batch.pop("x"), batch, torch.tensor(0.4)
    # without gradients, as averages are: torch chooses kernels, which round otherwise, by whether one may be asked for
    back = load_model(tmp_path / "unet").requires_grad_(False)
    assert torch.equal(back(x, t, cond), run.ema_model()(x, t, cond))
    for name in cond:  # each is heard
        rest = {other: value for other, value in cond.items() if other != name}
        assert not torch.equal(back(x, t, rest), back(x, t, cond)), name

    with seeded(torch.device("cpu"), 0):
        net = MLP(16, width=8, depth=1, num_classes=CLASSES, vectors={"size": 2})
    flat = from_tensors(dataset().data.flatten(1), dataset().label, scaling=Scaling(0.0, 1.0),
                        conditions={"size": dataset().conditions["size"]})  # fmt: skip
    run = trained(ScoreModel(net, VP()), flat, folder=tmp_path / "mlp", condition_dropout={"size": 0.5})
    cond = {name: cond[name] for name in ("label", "size")}
    model = load_model(tmp_path / "mlp").requires_grad_(False)
    assert torch.equal(model(x.flatten(1), t, cond), run.ema_model()(x.flatten(1), t, cond))


def test_a_checkpoint_tells_its_conditions_and_resumes_with_the_same_only(tmp_path: Path) -> None:
    trained(folder=tmp_path)
    assert json.loads(json.dumps(describe(tmp_path).conditions))["caption"] == {"shape": [4], "dtype": "int64"}
    with pytest.raises(CheckpointError, match=r"another data set.*conditions.*'text'"):
        other = dataset(text=torch.zeros(COUNT, 2, 6))
        train(unet(), other, steps=8, batch_size=8, folder=tmp_path, resume=True, progress=False)


def test_checkpoints_of_before_there_were_conditions_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their config.json says nothing of conditions, nor of the kind of the model."""
    data = from_tensors(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))
    options: dict[str, Any] = {"batch_size": 4, "folder": tmp_path, "progress": False}

    def model() -> ScoreModel:
        return ScoreModel(MLP(2, width=4, depth=1), VP())

    def without(name: str, key: str) -> Any:
        full = getattr(checkpoint_module, name)
        return lambda given: {k: v for k, v in full(given).items() if k != key}

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "describe_data", without("describe_data", "conditions"))
        patch.setattr(checkpoint_module, "describe_model", without("describe_model", "kind"))
        first = train(model(), data, steps=2, **options)
        list(first)
    config = json.loads((describe(tmp_path).path / "config.json").read_text())
    assert "kind" not in config["model"] and "conditions" not in config["data"]
    assert torch.equal(weights(load_model(tmp_path, ema=False)), weights(first.model))
    resumed = train(model(), data, steps=3, resume=True, **options)
    list(resumed)
    assert resumed.step == 3


def test_the_command_line_says_what_it_cannot_fill_in(tmp_path: Path) -> None:
    trained(folder=tmp_path, steps=1, condition_dropout={"label": 0.1, "low": 0.1, "caption": 0.1, "text": 0.1})
    with pytest.raises(ValueError, match=r"was always told size: give it, --condition size="):
        sample.main(sample.SampleConfig(checkpoint=tmp_path, out=tmp_path / "out", cpu=True))
    assert not (tmp_path / "out").exists()


# -- what is refused ---------------------------------------------------------------------------------------------------


class WholeNull(Watch):
    null_conditions = {**NULLS, "caption": math.nan}  # noqa: RUF012


class NoNull(Watch):
    null_conditions = {"label": CLASSES}  # noqa: RUF012


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        (
            {"condition_dropout": {"captoin": 0.1}},
            ValueError,
            r"names 'captoin', but the conditions in training are \[",
        ),
        ({"condition_dropout": {"low": 0.1}, "conditions": ["label"]}, ValueError, "names 'low'"),
        ({"condition_dropout": {"label": 1.0}}, ValueError, r"condition_dropout\['label'\] must be a probability"),
        ({"condition_dropout": {"label": "often"}}, TypeError, r"condition_dropout\['label'\] must be a number"),
        ({"condition_dropout": "often"}, TypeError, "or numbers by the names of conditions"),
        ({"condition_dropout": True}, TypeError, "condition_dropout must be a number"),
        (
            {"net": NoNull(), "conditions": ["label", "low"], "condition_dropout": {"low": 0.1}},
            ValueError,
            "needs a null value for low",
        ),
        ({"net": WholeNull()}, ValueError, "the null of 'caption' is nan.*whole-number null"),
        ({"net": WholeNull(), "condition_dropout": {"caption": 0.1}}, ValueError, "the null of 'caption' is nan"),
        ({"conditions": "label"}, TypeError, r"a list of names, got 'label'; write \['label'\]"),
        ({"data": from_tensors(torch.randn(8, 1, 4, 4))}, ValueError, r"Give the data set labels, conditions=\{'size'"),
        ({"net": unet().net, "data": dataset(low=torch.zeros(COUNT, 2, 2, 2))}, ValueError, "low"),
        ({"net": unet().net, "data": dataset(caption=torch.full((COUNT, 4), 9))}, ValueError, "caption"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_bad_arguments_are_refused_before_training(
    option: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    arguments = {"steps": 1, "batch_size": 8, "progress": False, "folder": tmp_path / "run", "condition_dropout": 0.1}
    arguments.update(option)
    net, data = arguments.pop("net", None) or Watch(), arguments.pop("data", None) or dataset()
    with pytest.raises(error, match=message):
        train(ScoreModel(net, VP()), data, **arguments)
    assert not (tmp_path / "run").exists()
