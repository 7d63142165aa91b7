"""Saved folders: what comes back, in which dtype, what is refused, and that a folder is there whole or not at all."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import scoresde as ss
from scoresde.data import Scaling, from_tensors
from scoresde.hub import from_pretrained, locate, save_pretrained
from scoresde.hub import saving as saving_module
from scoresde.models.conditions import TrainedWith
from scoresde.nn import MLP, UNet, Vocabulary
from scoresde.sde import Chain, ChainSDE
from scoresde.train import (
    EMA,
    CheckpointError,
    checkpoint,
    describe,
    ema_model,
    load_classifier,
    load_model,
    save,
    train,
    train_classifier,
)
from scoresde.train import folder as folders

WORDS = Vocabulary(["a", "blue", "red", "three"])


def mlp(seed: int = 0, **options: Any) -> ss.ScoreModel:
    torch.manual_seed(seed)
    return ss.ScoreModel(MLP(2, width=8, depth=1, **options), ss.VP(), predicts="edm")


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]), name


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Three steps of training with a label and an income in euros: its folder, and the run."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    x, income = torch.randn(30, 2) * 3 + 1, 40_000 + 9_000 * torch.randn(30, 1)
    data = from_tensors(x, torch.arange(30) % 3, class_names=["ant", "bee", "cat"], conditions={"income": income})
    model = ss.ScoreModel(MLP(2, 8, 1, num_classes=3, vectors={"income": 1}), ss.VP(beta_max=10.0), predicts="v")
    model.spectrum = ss.Spectrum(0.5, 3.0)
    run = train(model, data, steps=3, batch_size=8, lr=0.1, ema=0.5, folder=folder / "checkpoints", progress=False)
    for _ in run:
        pass
    return folder, run


# -- what comes back -----------------------------------------------------------------------------------------------


def test_all_that_a_run_knows_comes_back_from_every_kind_of_folder(run: tuple[Path, Any], tmp_path: Path) -> None:
    folder, trained = run
    averaged = trained.ema_model()
    saved = averaged.save_pretrained(tmp_path / "saved")
    step = folders.checkpoints(folder / "checkpoints")[-1]
    for place in (folder, folder / "checkpoints", step, saved, str(saved), folder.parent / "." / folder.name):
        for model in (ss.ScoreModel.from_pretrained(place), from_pretrained(place), load_model(place)):
            assert_equal(model, averaged)
            assert not model.training and model.averaged is True
            assert model.sde == ss.VP(beta_max=10.0) and model.predicts == "v"
            assert model.spectrum == ss.Spectrum(0.5, 3.0)
            assert model.scaling == averaged.scaling == trained.model.scaling and model.scaling is not None
            assert model.condition_scalings == averaged.condition_scalings and "income" in model.condition_scalings
            assert (model.event_shape, model.class_names) == ((2,), ("ant", "bee", "cat"))
            assert model.condition_shapes == {"income": {"shape": [1], "dtype": "float32"}}
            assert model.trained_with == averaged.trained_with and model.trained_with is not None
        told = describe(place)
        assert told.conditions == {"income": {"shape": [1], "dtype": "float32"}}
        assert (told.event_shape, told.class_names) == ((2,), ("ant", "bee", "cat"))
        assert locate(place) == told.path
    x, given = torch.randn(3, 2), {"label": torch.tensor([0, 1, 2]), "income": torch.full((3, 1), 5e4)}
    loaded = ss.ScoreModel.from_pretrained(saved)
    assert torch.equal(loaded(x, 0.5, given), averaged(x, 0.5, given))


def test_which_weights_a_folder_holds(run: tuple[Path, Any], tmp_path: Path) -> None:
    folder, trained = run
    averaged, last = trained.ema_model(), trained.model
    assert_equal(load_model(folder, ema=False), load_model(folder, ema=False))
    assert_equal(load_model(folder, ema=False), last)
    assert load_model(folder, ema=False).averaged is None

    alone = averaged.save_pretrained(tmp_path / "averages")
    assert sorted(path.name for path in alone.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert describe(alone).averaged is True
    assert_equal(load_model(alone, ema=True), averaged)
    with pytest.raises(CheckpointError, match=r"averaged weights only.*ema=True"):
        load_model(alone, ema=False)

    both = last.save_pretrained(tmp_path / "both", ema=trained.ema)
    for ema, expected in ((None, averaged), (True, averaged), (False, last)):
        assert_equal(ss.ScoreModel.from_pretrained(both, ema=ema), expected)

    own = last.save_pretrained(tmp_path / "last")
    assert describe(own).averaged is None
    assert_equal(load_model(own), last)
    with pytest.raises(CheckpointError, match="no averaged weights; pass ema=False"):
        load_model(own, ema=True)


def test_averages_that_were_changed_are_no_averages() -> None:
    model = mlp()
    averaged = ema_model(model, EMA(model))
    assert averaged.averaged is True and model.averaged is None
    with torch.no_grad():
        next(averaged.parameters()).mul_(1.5)
    assert averaged.averaged is None


def test_training_on_a_loaded_average_makes_it_none(run: tuple[Path, Any]) -> None:
    model = ss.pretrained("digits")
    assert model.averaged
    data = from_tensors(torch.randint(0, 17, (4, 1, 8, 8)), torch.arange(4), levels=17, num_classes=10)
    train(model, data, steps=1, batch_size=2, progress=False)  # before its first step, too
    assert model.averaged is None


def test_words_come_along(tmp_path: Path) -> None:
    """From a data set into the model, its checkpoints, a saved folder, and back as a Vocabulary."""
    tokens = WORDS.encode(["a red three", "a blue three", "red"], length=3)
    data = from_tensors(torch.rand(3, 1, 4, 4), conditions={"caption": tokens}, vocabularies={"caption": WORDS})
    assert data.subset([0, 1]).vocabularies == {"caption": WORDS}
    caption = {"vocabulary": len(WORDS), "length": 3, "width": 8, "layers": 1}
    net = UNet(1, width=8, multipliers=(1,), blocks=1, attention_levels=(), captions={"caption": caption})
    options: dict[str, Any] = {"batch_size": 2, "folder": tmp_path / "run", "progress": False}
    run = train(ss.ScoreModel(net, ss.VP()), data, steps=1, **options)
    for _ in run:
        pass
    resumed = train(ss.ScoreModel(net, ss.VP()), data, steps=2, resume=True, **options)
    assert resumed.model.vocabularies == {"caption": WORDS}
    saved = run.ema_model().save_pretrained(tmp_path / "saved")
    for place in (tmp_path / "run", saved):
        assert load_model(place).vocabularies == {"caption": WORDS}
        assert describe(place).vocabularies == {"caption": WORDS.words}
    assert "text-to-image" in (saved / "README.md").read_text() and "blue" in (saved / "README.md").read_text()


def test_words_of_a_model_without_a_data_set_come_along(tmp_path: Path) -> None:
    model = mlp()
    model.vocabularies, model.event_shape, model.class_names = {"caption": WORDS}, (2,), ("one", "two")
    saved = model.save_pretrained(tmp_path / "saved")
    loaded = load_model(saved)
    assert loaded.vocabularies == {"caption": WORDS}
    assert (loaded.event_shape, loaded.class_names) == ((2,), ("one", "two"))
    assert loaded.under(ss.Cosine()).class_names == ("one", "two")
    model.vocabularies = {"caption": ["a", "b"]}
    with pytest.raises(TypeError, match=r"vocabularies\['caption'\] must be a Vocabulary"):
        model.save_pretrained(tmp_path / "other")


@pytest.mark.parametrize(
    ("vocabularies", "error", "match"),
    [
        ({"caption": WORDS.words}, TypeError, "must be a vocabulary"),
        ({"title": WORDS}, ValueError, r"no condition of that name holds tokens.*\['caption'\]"),
        ({"caption": Vocabulary(["a"])}, ValueError, "run from 1 to 4, and its vocabulary in vocabularies has 1 words"),
        ([WORDS], TypeError, "vocabularies must be a"),
    ],
)
def test_words_that_are_not_those_of_the_tokens_are_refused(vocabularies: Any, error: Any, match: str) -> None:
    tokens = WORDS.encode(["a red three"], length=3)
    with pytest.raises(error, match=match):
        from_tensors(torch.rand(1, 1, 4, 4), conditions={"caption": tokens}, vocabularies=vocabularies)


def test_a_classifier_comes_back_with_its_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = from_tensors(torch.randn(12, 2), torch.arange(12) % 3, class_names=["ant", "bee", "cat"])
    run = train_classifier(
        ss.ClassifierModel(MLP(2, 8, 1, out_dim=3), ss.VP()), data, steps=2, batch_size=4, folder=tmp_path / "run",
        progress=False,
    )  # fmt: skip
    for _ in run:
        pass
    saved = run.ema_model().save_pretrained(tmp_path / "saved", licence="mit")
    for model in (ss.ClassifierModel.from_pretrained(saved), load_classifier(tmp_path / "run")):
        assert_equal(model, run.ema_model())
        assert (model.class_names, model.event_shape, model.scaling) == (("ant", "bee", "cat"), (2,), data.scaling)
    with pytest.raises(CheckpointError, match="holds a classifier"):
        ss.ScoreModel.from_pretrained(saved)
    with pytest.raises(ValueError, match="predicts"):
        ss.ClassifierModel.from_pretrained(saved, predicts="v")


@pytest.mark.parametrize("last", [0.02, 1.0])  # with and without signal at the end
def test_a_chain_comes_back_level_by_level(last: float, tmp_path: Path) -> None:
    """Each of its numbers, bit for bit, without being passed; another chain that is passed is refused."""
    betas = torch.cat([torch.linspace(1e-4, 0.019, 30, dtype=torch.float64), torch.tensor([last], dtype=torch.float64)])
    sde = ChainSDE(Chain.from_betas(betas))
    model = ss.ScoreModel(MLP(2, 8, 1), sde, predicts="v")
    saved = model.save_pretrained(tmp_path / "saved", dtype=torch.float16)
    for loaded in (ss.ScoreModel.from_pretrained(saved), load_model(saved, sde=sde)):
        chain = loaded.sde.chain  # type: ignore[attr-defined]
        assert all(torch.equal(getattr(chain, name), getattr(sde.chain, name)) for name in chain.to_json())
    with pytest.raises(ValueError, match=r"trained under .*ChainSDE\(chain=Chain\(n=31, .*got sde=.*Chain\(n=30"):
        load_model(saved, sde=ChainSDE(Chain.from_betas(betas[:-1])))
    assert f"ChainSDE(chain={sde.chain})" in (saved / "README.md").read_text()
    written = (saved / "config.json").read_text()
    for change, match in (
        ({"class": "scoresde.sde.custom.ChainSDE", "fields": None}, "pass it: sde=ChainSDE"),  # as files of before have
        ({"fields": {"chain": {"times": [1.0]}}}, "the fields of a chain must be times, ratio and variance"),
        ({"fields": {"chain": {**sde.chain.to_json(), "variance": [-1.0] * 31}}}, "a chain needs variance >= 0"),
    ):
        config = json.loads(written)
        config["model"]["sde"] |= change
        (saved / "config.json").write_text(json.dumps(folders.sealed(config)))
        with pytest.raises(CheckpointError, match=match):
            load_model(saved)
        if config["model"]["sde"]["fields"] is None:
            assert load_model(saved, sde=sde).sde is sde
            with pytest.raises(ValueError, match="trained under"):
                load_model(saved, sde=ss.VP())


class Own(nn.Module):
    """A user's network: tied weights, and frequencies in a buffer."""

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.second.weight = self.first.weight
        self.register_buffer("frequencies", torch.tensor([100.1, 0.3]))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))) + self.frequencies.sum()


def test_a_network_of_ones_own_is_saved_by_name_and_given_again(tmp_path: Path) -> None:
    model = ss.ScoreModel(Own(), ss.LinearSDE(-0.5, 1.0), predicts="v")
    saved = model.save_pretrained(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"network of its own, .*Own.*net=Own\(\.\.\.\)"):
        ss.ScoreModel.from_pretrained(saved)
    loaded = ss.ScoreModel.from_pretrained(saved, net=Own(), sde=ss.LinearSDE(-0.5, 1.0))
    assert_equal(loaded, model)
    with pytest.raises(CheckpointError, match="do not fit the network"):
        ss.ScoreModel.from_pretrained(saved, net=Own(3), sde=ss.LinearSDE(-0.5, 1.0))


def test_a_model_without_weights_is_kept_by_name(tmp_path: Path) -> None:
    saved = ss.ScoreModel(_nothing, ss.VP()).save_pretrained(tmp_path / "saved", dtype=torch.float16)
    assert ss.ScoreModel.from_pretrained(saved, net=_nothing, dtype=torch.float16).net is _nothing


def _nothing(x: Tensor, c: Tensor) -> Tensor:
    return 0 * x


# -- dtypes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("own", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_are_rounded_once_and_computed_with_as_before(
    stored: torch.dtype, own: torch.dtype, tmp_path: Path
) -> None:
    """The dtype on the disk is the one asked for, the one in memory the network's; buffers are never rounded."""
    model = ss.ScoreModel(Own(), ss.VP(), predicts="v")
    model.net.to(own)  # type: ignore[union-attr]
    saved = model.save_pretrained(tmp_path / "saved", dtype=stored, ema=EMA(model))
    for ema, file in ((True, "ema.safetensors"), (False, "model.safetensors")):
        loaded = ss.ScoreModel.from_pretrained(saved, net=Own(), ema=ema)
        assert loaded.dtype == own
        for name, value in model.named_parameters():
            assert torch.equal(loaded.get_parameter(name), value.to(stored).to(own)), name
        assert torch.equal(loaded.net.frequencies, model.net.frequencies)  # type: ignore[union-attr]
        header = (saved / file).read_bytes()
        layout = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
        found = {one["dtype"] for name, one in layout.items() if name.startswith("net.first")}
        assert found == {{"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}[str(stored)[6:]]}


def test_the_dtype_to_compute_in_can_be_chosen(tmp_path: Path) -> None:
    saved = mlp().save_pretrained(tmp_path / "saved", dtype=torch.float16)
    assert ss.ScoreModel.from_pretrained(saved).dtype == torch.float32
    assert ss.ScoreModel.from_pretrained(saved, dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="dtype must be a floating dtype"):
        ss.ScoreModel.from_pretrained(saved, dtype=torch.int8)


def test_a_learned_schedule_is_not_rounded(tmp_path: Path) -> None:
    """Schedule arithmetic is float64: only what stands under ``net.`` is narrowed."""

    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(1.0001, dtype=torch.float64))

        def forward(self, t: Tensor) -> Tensor:
            return -self.slope * t

    slope = Slope()
    model = ss.ScoreModel(MLP(2, 8, 1), ss.LinearSDE(slope, 1.0))
    names = [name for name, p in model.named_parameters() if p is slope.slope]
    assert names and not names[0].startswith("net.")
    saved = model.save_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    again = Slope()
    again.slope.data.zero_()
    ss.ScoreModel.from_pretrained(saved, sde=ss.LinearSDE(again, 1.0))
    assert again.slope.item() == 1.0001


def test_weights_that_a_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = mlp()
    with torch.no_grad():
        next(model.net.parameters()).view(-1)[0] = 7e4  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"holds 70000, and dtype=torch\.float16 ends at 65504; take torch\.bfloat16"):
        model.save_pretrained(tmp_path / "saved", dtype=torch.float16)
    model.save_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    for wrong in (torch.int8, torch.complex64, "float16"):
        with pytest.raises(TypeError, match="dtype must be a floating dtype"):
            model.save_pretrained(tmp_path / "other", dtype=wrong)  # type: ignore[arg-type]
    model.net.head.double()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"weights of torch\.float32, torch\.float64"):
        model.save_pretrained(tmp_path / "other", dtype=torch.bfloat16)
    with torch.no_grad():
        next(model.net.parameters()).view(-1)[0] = float("nan")  # type: ignore[union-attr]
    with pytest.raises(FloatingPointError, match="is not finite in this model"):
        model.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_sizes_are_bounded_on_both_sides(tmp_path: Path) -> None:
    model = mlp()
    size = sum(4 * value.numel() for value in model.state_dict().values())
    with pytest.raises(ValueError, match=f"max_bytes must be at least {size}.*got {size - 1}; dtype=torch.float16"):
        model.save_pretrained(tmp_path / "saved", max_bytes=size - 1)
    saved = model.save_pretrained(tmp_path / "saved", max_bytes=size)
    listed = int(describe(saved).files["model.safetensors"]["bytes"])
    with pytest.raises(
        CheckpointError, match=f"{listed} bytes, and max_bytes is {listed - 1}: it must be at least {listed}"
    ):
        ss.ScoreModel.from_pretrained(saved, max_bytes=listed - 1)
    ss.ScoreModel.from_pretrained(saved, max_bytes=listed)


# -- one rule ------------------------------------------------------------------------------------------------------


def test_a_run_of_several_models_asks_which(tmp_path: Path) -> None:
    save(tmp_path / "run" / "label" / "checkpoints", mlp(seed=1), step=1)
    assert_equal(load_model(tmp_path / "run"), mlp(seed=1))
    save(tmp_path / "run" / "caption" / "checkpoints", mlp(seed=2), step=1)
    with pytest.raises(CheckpointError, match=r"checkpoints of 2 models, in caption, label: give .*caption\."):
        load_model(tmp_path / "run")
    assert_equal(load_model(tmp_path / "run" / "label"), mlp(seed=1))
    save(tmp_path / "run" / "checkpoints", mlp(seed=3), step=1)
    assert_equal(load_model(tmp_path / "run"), mlp(seed=3))


def test_folders_of_others_are_told_apart(tmp_path: Path) -> None:
    def folder(name: str, files: dict[str, str]) -> Path:
        for file, content in files.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / file).write_text(content)
        return tmp_path / name

    cases = {
        "pipeline": (
            {"model_index.json": "{}"},
            r"pipeline of diffusers, which .*from_diffusers\('.*/unet', sch",
        ),
        "unet": ({"config.json": '{"_class_name": "UNet2DModel"}'}, r"a UNet2DModel of diffusers.*from_diffusers"),
        "bert": (
            {"config.json": '{"model_type": "bert"}'},
            "a model of transformers .'bert'., which is no",
        ),
        "pickles": ({"model.bin": "", "a.pt": ""}, r"holds a\.pt, model\.bin: pickles, which run code"),
        "other": ({"notes.txt": ""}, r"holds no folder step-\.\.\. and no config\.json"),
        "broken": ({"config.json": '{"a": 1}'}, r"config\.json is damaged"),
    }
    for name, (files, match) in cases.items():
        for read in (load_model, describe, locate, ss.ScoreModel.from_pretrained):
            with pytest.raises(CheckpointError, match=match):
                read(folder(name, files))


def test_what_is_no_path_no_name_and_no_id_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("digit", "./owner/name", "a/b/c", "/nowhere", Path("owner/name"), "~/no such folder", "x" * 300):
        with pytest.raises(CheckpointError, match=r"there is no folder .*ships \('digits'\) or an id of a hub"):
            locate(place)
    with pytest.raises(ValueError, match=r"revision must be left out for a path or a name.*got 'v1'"):
        ss.ScoreModel.from_pretrained("digits", revision="v1")
    mlp().save_pretrained("digits")  # a path that exists wins
    assert ss.ScoreModel.from_pretrained("digits").event_shape is None
    assert ss.pretrained("digits").event_shape == (1, 8, 8)


def test_paths_are_read_as_a_shell_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The present folder, links and the home folder, by everything that takes a path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert mlp(seed=1).save_pretrained("~/saved") == tmp_path / "saved"
    save("~/run", mlp(seed=2), step=1)
    (tmp_path / "link").symlink_to(tmp_path / "saved")
    for place, seed in (("~/saved", 1), ("~/link", 1), ("~/run", 2)):
        monkeypatch.chdir(Path(place).expanduser())
        for given in (place, ".", "./"):
            assert_equal(load_model(given), mlp(seed=seed))
            assert locate(given).resolve() == describe(given).path.resolve()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for given in (".", "/", "~nobody that is here/x"):
        with pytest.raises(CheckpointError, match="no checkpoint in"):
            load_model(given)
    with pytest.raises(CheckpointError, match="Names of models that ship, and ids of a hub, are for ScoreModel"):
        load_model("digits")
    for place in (".", "..", tmp_path):  # whose replacement would leave the process in a folder without a name
        with pytest.raises(CheckpointError, match=r"the folder that this process works in.*'\./model'|which save_pre"):
            mlp().save_pretrained(place, overwrite=True)
    assert Path.cwd() == tmp_path / "empty" and list(Path.cwd().iterdir()) == []


def test_a_subclass_is_not_loaded_as_if_it_were_one(tmp_path: Path) -> None:
    class Mine(ss.ScoreModel):
        pass

    with pytest.raises(TypeError, match="got Mine: a file does not rebuild a subclass"):
        Mine.from_pretrained(mlp().save_pretrained(tmp_path / "saved"))


# -- hostile folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"stored": {"averaged": "yes"}}, r"stored\.averaged must be true or false"),
        ({"stored": {"computes_in": "int8"}}, r"stored\.computes_in must be one of float16"),
        ({"stored": 3}, "stored must be a JSON object"),
        ({"data.vocabularies": {"caption": ["a b"]}}, r"vocabularies\.caption: words holds 'a b'"),
        ({"data.vocabularies": {"caption": [3]}}, r"vocabularies\.caption\[0\] must be a text"),
        ({"data.vocabularies": {"caption": ["x" * 101]}}, "has 101 characters; the limit is 100"),
        ({"data.vocabularies": ["a"]}, "vocabularies must be a JSON object"),
    ],
)
def test_fields_of_strangers_are_checked(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    saved = mlp().save_pretrained(tmp_path / "saved")
    config = json.loads((saved / "config.json").read_text())
    for name, value in change.items():
        *path, last = name.split(".")
        (config[path[0]] if path else config)[last] = value
    (saved / "config.json").write_text(json.dumps(folders.sealed(config)))
    with pytest.raises(CheckpointError, match=match):
        describe(saved)


def test_a_changed_file_is_found(tmp_path: Path) -> None:
    saved = mlp().save_pretrained(tmp_path / "saved")
    content = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: its SHA-256 is not the one written"):
        load_model(saved)
    (saved / "model.safetensors").write_bytes(content)
    text = (saved / "config.json").read_text().replace('"beta_max": 20.0', '"beta_max": 21.0')
    (saved / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json is damaged: its SHA-256"):
        load_model(saved)


def test_the_card_may_be_edited(tmp_path: Path) -> None:
    saved = mlp().save_pretrained(tmp_path / "saved")
    (saved / "README.md").write_text("# Mine\n")
    load_model(saved)


# -- whole or not at all -------------------------------------------------------------------------------------------


def test_what_is_there_is_replaced_on_demand_and_nothing_else_is(tmp_path: Path) -> None:
    saved = mlp(seed=1).save_pretrained(tmp_path / "saved", ema=EMA(mlp(seed=2)))
    with pytest.raises(CheckpointError, match=r"README\.md, config\.json.*already; overwrite=True"):
        mlp(seed=3).save_pretrained(saved)
    assert_equal(load_model(saved), mlp(seed=2))
    mlp(seed=3).save_pretrained(saved, overwrite=True)
    assert_equal(load_model(saved), mlp(seed=3))
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]

    (saved / "notes.txt").write_text("mine")
    run, file, own = tmp_path / "run", tmp_path / "file", tmp_path / "own"
    save(run, mlp(), step=1)
    file.write_text("")
    own.mkdir()
    (own / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    for place, match in (
        (saved, r"holds notes\.txt, which save_pretrained did not write"),
        (run, "holds step-00000001, which"),
        (file, "is a file"),
        (own, "is damaged: its SHA-256"),
    ):
        with pytest.raises(CheckpointError, match=match):
            mlp().save_pretrained(place, overwrite=True)
    (tmp_path / "empty").mkdir()
    mlp().save_pretrained(tmp_path / "empty")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    mlp(seed=4).save_pretrained(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert_equal(load_model(tmp_path / "empty"), mlp(seed=4))
    mlp().save_pretrained(tmp_path / "new" / "below" / "this")


@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_anywhere_leaves_what_was_there(
    existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each operation on the disk fails in turn, until a save gets through; no file is left beside."""
    place = tmp_path / "saved"
    for point, home in (("rename", Path), ("fsync", os), ("mkdir", Path), ("flush", saving_module)):
        original = getattr(home, point)
        for fail_at in range(100):
            if existing:
                mlp(seed=1).save_pretrained(place, overwrite=True)
            elif place.exists():
                shutil.rmtree(place)
            calls = 0

            def failing(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == fail_at + 1:  # noqa: B023 - called in this round
                    raise OSError("the disk is full")
                return original(*args, **kwargs)  # noqa: B023

            with monkeypatch.context() as patched:
                patched.setattr(home, point, failing)
                if through := _saved(place):
                    assert_equal(load_model(place), mlp(seed=2))
            if not through:
                assert place.exists() == existing
                if existing:
                    assert_equal(load_model(place), mlp(seed=1))
            assert [path.name for path in tmp_path.iterdir()] == (["saved"] if place.exists() else [])
            if calls <= fail_at:
                break
        else:
            pytest.fail(f"{point} was called more than 100 times")


def _saved(place: Path) -> bool:
    try:
        mlp(seed=2).save_pretrained(place, overwrite=True)
    except CheckpointError as error:
        assert "the disk is full" in str(error)
        return False
    return True


def killed_while_saving(model: ss.ScoreModel, place: Path, moment: int) -> None:
    """In a process that is killed before the moment-th thing that must reach the disk in order, or when all is done."""
    count = 0

    def counted(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    child = os.fork()  # starting Python and torch anew would take a hundred times as long
    if child == 0:
        try:
            os.fsync, Path.rename = counted(os.fsync), counted(Path.rename)  # type: ignore[method-assign]
            model.save_pretrained(place, overwrite=True)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize("moment", [3, 6, 99])
def test_a_killed_process_leaves_one_model_or_the_other(moment: int, tmp_path: Path) -> None:
    """In the middle of the files, between the two names (the sixth: files, folder, the old one's name), and after."""
    place = tmp_path / "saved"
    mlp(seed=1).save_pretrained(place)
    killed_while_saving(mlp(seed=2), place, moment)
    left = [path for path in tmp_path.iterdir() if path.name != "saved"]
    expected = mlp(seed=2) if moment == 99 else mlp(seed=1)
    assert_equal(load_model(place), expected)  # also while its name is missing
    for path in left:
        os.utime(path, (0, 0))  # long ago
    mlp(seed=3).save_pretrained(place, overwrite=True)
    assert_equal(load_model(place), mlp(seed=3))
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_who_reads_during_a_replacement_gets_the_new_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved folder that is replaced, and a step that training removes, after config.json was read."""
    saved, run = mlp(seed=1).save_pretrained(tmp_path / "saved"), tmp_path / "run"
    save(run, mlp(seed=1), step=1)
    whole, steps = checkpoint.read_layout_of, []

    def later(description: Any, name: str) -> Any:
        if not steps:
            steps.append(description.path)
            mlp(seed=2).save_pretrained(saved, overwrite=True)
            save(run, mlp(seed=2), step=2, keep=1)
        return whole(description, name)

    monkeypatch.setattr(checkpoint, "read_layout_of", later)
    for place in (saved, run):
        steps.clear()
        assert_equal(load_model(place), mlp(seed=2))
        shutil.rmtree(saved)
        mlp(seed=1).save_pretrained(saved)
        shutil.rmtree(run)
        save(run, mlp(seed=1), step=1)
    steps.append(saved)
    (saved / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="has 0 bytes"):  # nothing replaced it: it is damaged
        load_model(saved)


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    partial = tmp_path / f"{folders.PARTIAL}0123abcd-saved"
    import fcntl

    partial.mkdir()
    held = os.open(partial, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    os.utime(partial, (0, 0))
    mlp().save_pretrained(tmp_path / "saved")
    assert partial.is_dir()
    os.close(held)
    mlp().save_pretrained(tmp_path / "saved", overwrite=True)
    assert not partial.exists()


# -- the card ------------------------------------------------------------------------------------------------------


def header(folder: Path) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", (folder / "README.md").read_text(), re.S)
    assert match is not None
    found: dict[str, Any] = yaml.safe_load(match[1])
    return found


@pytest.mark.parametrize(
    ("licence", "fields"),
    [
        (None, {}),
        ("mit", {"license": "mit"}),
        ("CC BY 4.0", {"license": "cc-by-4.0"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("no", {"license": "other", "license_name": "no"}),  # which YAML would read as false
        ("Our licence: of 2026 #1", {"license": "other", "license_name": "our-licence-of-2026-1"}),
    ],
)
def test_the_licence_is_in_the_header(licence: str | None, fields: dict[str, str], tmp_path: Path) -> None:
    """As the client of the hub reads it, too."""
    from huggingface_hub import ModelCard

    saved = mlp().save_pretrained(tmp_path / "saved", licence=licence)
    found = {name: value for name, value in header(saved).items() if name.startswith("license")}
    assert found == fields
    card = ModelCard.load(saved / "README.md")
    assert (card.data.license, card.data.library_name) == (fields.get("license"), "scoresde")
    stated = "No licence is stated" if licence is None else licence.split(":")[0]
    assert stated in card.text


def test_the_card_tells_what_the_model_is(run: tuple[Path, Any], tmp_path: Path) -> None:
    _, trained = run
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n...")
    figures = {"heun": {"accuracy": 0.98765, "NFE": 51}, "ddim": {"accuracy": True}}
    saved = trained.ema_model().save_pretrained(
        tmp_path / "saved", figures=figures, notes="For **tests**.", picture=picture, dtype=torch.bfloat16
    )
    card = (saved / "README.md").read_text()
    for text in (
        "For **tests**.", "![Samples](samples.png)", "VP(T=1.0, t\\_min=0.001, beta\\_min=0.1, beta\\_max=10.0)",
        "MLP(dim=2", "| Predicts | v |", "deviation 0.5, largest 3", "averaged over training", "computing in float32",
        "| Shape of a sample | (2,) |", "ant, bee, cat", "| Units of income |", "| Trained with | label, income;",
        "|  | accuracy | NFE |", "| heun | 0.9877 | 51 |", "| ddim | yes |  |",
    ):  # fmt: skip
        assert text in card, text
    assert (saved / "samples.png").read_bytes() == picture.read_bytes()
    assert f"| Parameters | {sum(p.numel() for p in trained.model.parameters()):,} |" in card


@pytest.mark.parametrize("name", ["label and income", "captions", "nothing", "classifier", "digits"])
def test_the_code_on_the_card_runs(name: str, run: tuple[Path, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    if name == "label and income":
        model: Any = run[1].ema_model()
    elif name == "captions":
        caption = {"vocabulary": len(WORDS), "length": 3, "width": 8, "layers": 1}
        net = UNet(1, width=8, multipliers=(1,), blocks=1, attention_levels=(), captions={"caption": caption})
        model = ss.ScoreModel(net, ss.VP())
        tokens = WORDS.encode(["a red three"] * 2, 3)
        data = from_tensors(torch.rand(2, 1, 4, 4), conditions={"caption": tokens}, vocabularies={"caption": WORDS})
        model = train(model, data, steps=1, batch_size=2, progress=False).ema_model()
    elif name == "nothing":
        model = mlp()
        model.event_shape, model.scaling = (2,), Scaling(1.0, 2.0)
    elif name == "classifier":
        model = ss.ClassifierModel(MLP(2, 8, 1, out_dim=3), ss.VP())
    else:
        model = ss.pretrained("digits")
    saved = model.save_pretrained(tmp_path / "saved")
    match = re.search(r"```python\n(.*?)```", (saved / "README.md").read_text(), re.S)
    assert match is not None
    scope: dict[str, Any] = {}
    exec(match[1], scope)
    assert_equal(scope["model"], model)
    if name != "classifier":
        assert scope["samples"].shape == (10, *model.event_shape) and scope["samples"].isfinite().all()


def test_names_from_data_do_not_write_the_card(tmp_path: Path) -> None:
    model = mlp()
    model.class_names = (
        "a | b",
        "<script>alert(1)</script>",
        "c\n# title\n---\n",
        "[x](http://e)",
        "`d`",
        "e" * 999,
    )
    model.event_shape = (2,)
    saved = model.save_pretrained(tmp_path / 'sa"ved', figures={"a|b\n| c |": "x\ny"}, licence='"quoted"', notes="n")
    card = (saved / "README.md").read_text()
    assert "<script>" not in card and "\n# title" not in card and "[x](http" not in card and "e" * 100 not in card
    assert "a \\| b" in card and "| a\\|b \\| c \\| | x y |" in card
    assert header(saved)["license_name"] == "quoted"
    assert header(saved)["library_name"] == "scoresde"


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"licence": 3}, TypeError, "licence must be a text"),
        ({"licence": " "}, ValueError, "licence must be the name"),
        ({"licence": "a\nb"}, ValueError, "licence must be the name"),
        ({"figures": [0.9]}, TypeError, "figures must be"),
        ({"figures": {"a": float("nan")}}, ValueError, r"figures\['a'\] must be finite"),
        ({"figures": {"a": None}}, TypeError, r"figures\['a'\]"),
        ({"figures": {"a": {"b": float("inf")}}}, ValueError, r"figures\['a'\]\['b'\] must be finite"),
        ({"figures": {"a": 1, "b": {"c": 1}}}, TypeError, "got 'a' beside mappings"),
        ({"figures": {1: 2}}, TypeError, "figures must have texts as names"),
        ({"notes": 3}, TypeError, "notes must be a text"),
        ({"picture": "no.png"}, ValueError, "picture no.png: .*there is no such file"),
        ({"picture": "no.txt"}, ValueError, "its name must end in one of"),
        ({"picture": __file__}, ValueError, "its name must end in one of"),
        ({"ema": 3}, TypeError, "ema must be an EMA"),
        ({"ema": EMA(nn.Linear(2, 2))}, ValueError, "ema holds the averages of another model"),
        ({"overwrite": 1}, TypeError, "overwrite"),
        ({"max_bytes": 0}, ValueError, "max_bytes"),
        ({"source": 3}, TypeError, "source must be a text"),
    ],
)
def test_what_cannot_stand_on_a_card_is_refused_before_anything_is_written(
    given: dict[str, Any], error: Any, match: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=match):
        save_pretrained(mlp(), tmp_path / "saved", **given)
    assert not list(tmp_path.iterdir())


class Units:
    """Of a user's own."""

    def to_model(self, x: Tensor) -> Tensor:
        return x

    def to_data(self, x: Tensor) -> Tensor:
        return x


def test_a_model_that_cannot_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    for wrong in (nn.Linear(2, 2), mlp().bind(), None):
        with pytest.raises(TypeError, match="model must be a ScoreModel, a ClassifierModel or a ContrastiveModel"):
            save_pretrained(wrong, tmp_path / "saved")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a view under another schedule"):
        mlp().under(ss.Cosine()).save_pretrained(tmp_path / "saved")
    with pytest.raises(TypeError, match="a view under another schedule"):
        mlp().under(ss.Cosine()).push_to_hub("owner/name")
    for name, value, kind, match in (
        ("event_shape", 5, TypeError, "the model's event_shape must be a tuple or None, got 5"),
        ("class_names", "ab", TypeError, "the model's class_names must be a tuple or None, got 'ab'"),
        (
            "class_names",
            (1, 2),
            ValueError,
            r"what the model tells of its data: class_names\[0\] must be a text, got 1",
        ),
        ("scaling", Units(), TypeError, "the model's scaling must be a Scaling.*another class are not kept"),
        ("condition_scalings", {"v": Units()}, TypeError, r"the model's condition_scalings\['v'\] must be a Scaling"),
        ("scaling", Scaling(torch.zeros(3), torch.ones(3)), ValueError, r"scaling: .*does not broadcast to .*\(2,\)"),
    ):
        model = mlp()
        model.event_shape = (2,)
        setattr(model, name, value)
        with pytest.raises(kind, match=match):
            model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="is on the device meta, without a value"):
        mlp().to("meta").save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"net\.weight has no shape yet: call the network once"):
        ss.ScoreModel(nn.LazyLinear(2), ss.VP()).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    (tmp_path / "fake.png").write_text("<svg/>")
    with pytest.raises(ValueError, match="its bytes are not those of a PNG file"):
        mlp().save_pretrained(tmp_path / "saved", picture=tmp_path / "fake.png")


def test_files_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        saved = mlp().save_pretrained(tmp_path / "saved")
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in saved.iterdir()} == dict.fromkeys(
        ["README.md", "config.json", "model.safetensors"], 0o640
    )


def test_trained_with_is_told_and_kept(tmp_path: Path) -> None:
    model = mlp(num_classes=3)
    model.trained_with, model.class_names, model.event_shape = TrainedWith(("label",), {}, True), ("a", "b", "c"), (2,)
    saved = model.save_pretrained(tmp_path / "saved")
    assert load_model(saved).trained_with == model.trained_with
    card = (saved / "README.md").read_text()
    assert "label; never left out" in card and "model.bind(**conditions)" in card and "classifier_free" not in card
    assert dataclasses.is_dataclass(describe(saved))


# -- one signature -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["save_pretrained", "from_pretrained", "push_to_hub"])
def test_methods_take_what_the_functions_behind_them_take(name: str) -> None:
    """Models are far below the hub, and say its options again: names and defaults are the same."""

    def options(function: Any) -> dict[str, Any]:
        parameters = inspect.signature(function).parameters
        return {p: value.default for p, value in parameters.items() if p not in ("self", "model", "kind")}

    assert options(getattr(ss.ScoreModel, name)) == options(getattr(ss.hub, name))
