"""Checkpoints: resuming is exact, files describe themselves, damage is named, and a kill at any moment does no harm."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import scoresde.train.folder as folder_module
import scoresde.train.owner as owner_module
from scoresde.data import Dataset, Scaling, from_tensors
from scoresde.models import ScoreModel
from scoresde.models.predictions import predicts_v
from scoresde.nn import MLP, UNet
from scoresde.sde import EDM, SDE, VE, VP, Cosine, LinearSDE, RectifiedFlow, SubVP
from scoresde.spectrum import Spectrum
from scoresde.train import EMA, CheckpointError, Run, TrainOptions, describe, load_classifier, load_model, save, train
from scoresde.train.contents import AVERAGE, MODEL, read_tensors
from scoresde.train.describe import NETS, SDES
from scoresde.train.draws import seeded
from scoresde.train.options import differences
from scoresde.train.owner import Owner, alive, claimed, started


def digits() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 17, (30, 1, 4, 4), generator=generator)
    label = torch.randint(0, 3, (30,), generator=generator)
    return from_tensors(data, label, levels=17, class_names=["one", "two", "three"])


def points() -> Dataset:
    return from_tensors(torch.randn(30, 2, generator=torch.Generator().manual_seed(0)))


def noisy(module: nn.Module, seed: int) -> None:
    """Every parameter random: networks start with zeros, which hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def unet(seed: int = 0, sde: SDE | None = None) -> ScoreModel:
    net = UNet(1, width=8, multipliers=(1,), blocks=1, attention_levels=(), num_classes=3, dropout=0.3)
    noisy(net, seed)
    return ScoreModel(net, VP() if sde is None else sde)


def mlp(seed: int = 0, **options: Any) -> ScoreModel:
    net = MLP(2, width=4, depth=1)
    noisy(net, seed)
    return ScoreModel(net, options.pop("sde", VP()), **options)


OPTIONS: dict[str, Any] = {
    "batch_size": 4,
    "lr": 1e-2,
    "warmup": 3,
    "decay": "cosine",
    "steps": 8,
    "ema": 0.5,
    "condition_dropout": 0.3,
    "flip": True,
    "log_every": 3,
    "save_every": 4,
    "progress": False,
}


def advance(run: Run, stop: int | None = None) -> Run:
    for step in run:
        if step.step == stop:
            break
    return run


def tensors(path: Path) -> dict[str, Tensor]:
    description = describe(path)
    return {
        f"{name}:{key}": value
        for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
        for key, value in read_tensors(description, name).items()
    }


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


# -- resuming ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [4, 6])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, stop: int, workers: int) -> None:
    """With dropout in the network, dropped labels, flips, a schedule, and a log window across the interruption."""
    whole = advance(train(unet(), digits(), folder=tmp_path / "whole", **OPTIONS))
    folder = tmp_path / "parts"
    advance(train(unet(), digits(), folder=folder, num_workers=workers, **OPTIONS), stop)
    other_weights = unet(seed=1)
    torch.manual_seed(stop)  # the default generator is in another state, too
    resumed = train(other_weights, digits(), folder=folder, resume=True, num_workers=workers, **OPTIONS)
    assert resumed.step == 4
    advance(resumed)
    assert resumed.step == whole.step == 8 and resumed.ema.updates == whole.ema.updates == 8
    assert_equal(tensors(folder), tensors(tmp_path / "whole"))
    assert len(tensors(folder)) > 3 * len(list(other_weights.parameters()))  # weights, averages, two moments
    logs = [
        [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
        for path in (folder, tmp_path / "whole")
    ]
    seconds = [[line.pop("seconds") for line in log] for log in logs]
    assert logs[0] == logs[1] and [line["step"] for line in logs[0]] == [3, 6, 8]
    assert seconds[0] == sorted(seconds[0])  # the clock goes on from the first session


def test_resuming_with_nothing_to_resume_starts_and_with_nothing_to_do_ends(tmp_path: Path) -> None:
    run = advance(train(unet(), digits(), folder=tmp_path, resume=True, **OPTIONS))
    assert run.step == 8
    again = train(unet(seed=1), digits(), folder=tmp_path, resume=True, **OPTIONS)
    assert list(again) == []
    assert_equal(again.ema_model().state_dict(), run.ema_model().state_dict())
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000004", "step-00000008"]


def test_more_steps_continue_a_finished_run(tmp_path: Path) -> None:
    options = {**OPTIONS, "decay": "constant", "save_every": None}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # with a constant rate the length of the run changes nothing
        advance(train(unet(), digits(), folder=tmp_path / "a", **{**options, "steps": 5}))
        advance(train(unet(), digits(), folder=tmp_path / "a", resume=True, **options))
    advance(train(unet(), digits(), folder=tmp_path / "b", **options))
    assert_equal(tensors(tmp_path / "a"), tensors(tmp_path / "b"))


def test_other_settings_are_warned_of(tmp_path: Path) -> None:
    advance(train(unet(), digits(), folder=tmp_path, **OPTIONS), 4)
    with pytest.warns(UserWarning, match=r"lr: 0\.01 -> 0\.005.*batch_size|batch_size.*lr: 0\.01 -> 0\.005"):
        train(unet(), digits(), folder=tmp_path, resume=True, **{**OPTIONS, "lr": 0.005, "batch_size": 5})


def before_conditions_could_be_dropped(folder: Path) -> None:
    """Rewrite the latest checkpoint as it was when only labels were spoken of."""
    path = describe(folder).path
    training, config = (json.loads((path / name).read_text()) for name in ("training.json", "config.json"))
    options = training["options"]
    training["options"] = {{"condition_dropout": "label_dropout"}.get(name, name): options[name] for name in options}
    assert training["options"].keys() - options.keys() == {"label_dropout"}
    folder_module.json_writer(training)(path / "training.json")
    content = (path / "training.json").read_bytes()
    config["files"]["training.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    folder_module.json_writer(folder_module.sealed(config))(path / "config.json")


@pytest.mark.parametrize("dropout", [0.3, {"label": 0.4}], ids=["number", "mapping"])
def test_runs_of_before_options_were_renamed_go_on_without_a_word(tmp_path: Path, dropout: Any) -> None:
    options = {**OPTIONS, "condition_dropout": dropout}
    whole = advance(train(unet(), digits(), folder=tmp_path / "whole", **options))
    advance(train(unet(), digits(), folder=tmp_path / "parts", **options), 5)
    before_conditions_could_be_dropped(tmp_path / "parts")
    with pytest.warns(UserWarning, match=r"other settings \(condition_dropout: .* -> 0\.1\)"):
        train(unet(), digits(), folder=tmp_path / "parts", resume=True, **{**options, "condition_dropout": 0.1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = advance(train(unet(seed=1), digits(), folder=tmp_path / "parts", resume=True, **options))
    assert resumed.step == whole.step == 8
    assert_equal(tensors(tmp_path / "parts"), tensors(tmp_path / "whole"))


def test_an_option_that_a_checkpoint_does_not_know_had_its_default() -> None:
    now = TrainOptions(steps=8, batch_size=4, clip=2.0).recorded("score")
    before = {name: value for name, value in now.items() if name not in ("clip", "flip")}
    assert differences(before, now) == ["clip: 1.0 -> 2.0"]
    assert differences({**before, "clip": 2.0, "gone": 3}, now) == []


def test_a_line_cut_short_is_dropped_from_the_log(tmp_path: Path) -> None:
    advance(train(unet(), digits(), folder=tmp_path, **OPTIONS), 7)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 9')
    advance(train(unet(), digits(), folder=tmp_path, resume=True, **OPTIONS))
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [3, 6, 8]


def test_a_run_is_not_mixed_with_another(tmp_path: Path) -> None:
    advance(train(unet(), digits(), folder=tmp_path, **OPTIONS), 4)
    with pytest.raises(CheckpointError, match=r"holds checkpoints already .*step-00000004.*resume=True"):
        train(unet(), digits(), folder=tmp_path, **OPTIONS)
    with pytest.raises(CheckpointError, match=r"another model; they differ in sde .*SubVP"):
        train(unet(sde=SubVP()), digits(), folder=tmp_path, resume=True, **OPTIONS)
    with pytest.raises(CheckpointError, match=r"past steps=3"):
        train(unet(), digits(), folder=tmp_path, resume=True, **{**OPTIONS, "steps": 3, "save_every": None})
    save(tmp_path / "model", unet(), step=1, dataset=digits())
    with pytest.raises(CheckpointError, match=r"has no training.json.*only a checkpoint written by train"):
        train(unet(), digits(), folder=tmp_path / "model", resume=True, **OPTIONS)
    run = advance(train(unet(), digits(), steps=1, batch_size=4, progress=False))
    with pytest.raises(ValueError, match="no folder"):
        run.save()


def test_other_data_of_the_same_length_are_refused(tmp_path: Path) -> None:
    def data(**change: Any) -> Dataset:
        same = digits()
        given: dict[str, Any] = {"scaling": same.scaling, "class_names": same.class_names, **change}
        return Dataset(given.get("data", same.data), same.label, given["scaling"], given["class_names"])

    advance(train(unet(), digits(), folder=tmp_path, **OPTIONS), 4)
    for message, other in (
        (r"data set; they differ in event_shape \(saved: \[1, 4, 4\], given: \[1, 4, 8\]\)", {"data": None}),
        (r"class_names .*'three'\], given: .*'six'", {"class_names": ("four", "five", "six")}),
        (r"scaling .*'scale': 8\.0.*'scale': 4\.0", {"scaling": Scaling(8.0, 4.0, 17)}),
    ):
        if "data" in other:
            other = {"data": digits().data.repeat(1, 1, 1, 2)}
        with pytest.raises(CheckpointError, match=message):
            train(unet(), data(**other), folder=tmp_path, resume=True, **OPTIONS)
    assert train(unet(), data(), folder=tmp_path, resume=True, **OPTIONS).step == 4


# -- who writes into a folder ------------------------------------------------------------------------------------------


# Where a child process finds this module, and the library.
BESIDE = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])}

_OTHER = """
import sys
from test_checkpoint import OPTIONS, digits, unet
from scoresde.train import train

run = train(unet(), digits(), folder=sys.argv[1], **OPTIONS)
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(os.name != "posix", reason="only there it can be known whether a process is alive")
def test_a_folder_in_use_is_refused_untouched_until_its_owner_is_gone(tmp_path: Path) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "run"
    script.write_text(_OTHER)
    command = [sys.executable, str(script), str(folder)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=BESIDE)
    assert child.stdout is not None and child.stdin is not None
    try:
        assert child.stdout.readline() == "ready\n"
        half = folder / ".partial-step-00000004"  # a checkpoint that the other process is writing
        half.mkdir()
        for attempt in (
            lambda: train(unet(), digits(), folder=folder, **OPTIONS),
            lambda: train(unet(), digits(), folder=folder, resume=True, **OPTIONS),
            lambda: save(folder, unet(), step=1),
        ):
            with pytest.raises(CheckpointError, match=f"in use: process {child.pid} "):
                attempt()
        assert half.is_dir()
        child.kill()  # dead, though not yet buried: nobody has asked for its exit status
        child.stdout.read()
        deadline = time.monotonic() + 30
        while alive(child.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        run = train(unet(), digits(), folder=folder, **OPTIONS)
        assert not half.exists()
        advance(run)
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
    assert {p.name for p in folder.iterdir()} == {"log.jsonl", "step-00000004", "step-00000008"}


def claims(folder: Path) -> int:
    return len(list(folder.glob(".owner*")))


@pytest.fixture(params=["locks", "no locks"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has locks, and one that has none."""
    if request.param == "no locks":
        monkeypatch.setattr(owner_module, "fcntl", None)


@pytest.mark.usefixtures("locks")
def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    first = Owner(tmp_path)
    with pytest.raises(CheckpointError, match=r"in use: another run of this process .*run\.close\(\)"):
        Owner(tmp_path)
    assert first.holds(tmp_path) and claims(tmp_path) == 1
    with claimed(tmp_path):  # a part of the same work
        assert claims(tmp_path) == 1
    first.release()
    first.release()
    assert claims(tmp_path) == 0 and not first.holds(tmp_path)
    second = Owner(tmp_path)
    first.release()
    assert second.holds(tmp_path)
    second.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("locks")
@pytest.mark.parametrize(
    "stale",
    [
        {"host": "elsewhere"},
        {"started": "0"},
        {"pid": 2**34},
        {"pid": 0},
        {"pid": -1, "started": None},
        {"pid": None},
        {"pid": os.getpid()},
        b"",
        b"\x00" * 5000,
        b"[" * 100_000,
        b"{" + b'"pid":' + b"9" * 5000 + b"}",
    ],
    ids=lambda v: "this process" if v == {"pid": os.getpid()} else str(v)[:20],
)
def test_a_stale_claim_does_not_count(tmp_path: Path, stale: Any) -> None:
    path = tmp_path / ".owner.json"
    mine = Owner(tmp_path)
    claim = {**json.loads(path.read_text()), "locked": False, "token": ""}
    mine.release()
    path.write_bytes(stale if isinstance(stale, bytes) else json.dumps({**claim, "pid": 1, **stale}).encode())
    again = Owner(tmp_path)
    assert again.holds(tmp_path) and json.loads(path.read_text())["pid"] == os.getpid()
    again.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("locks")
@pytest.mark.skipif(os.name != "posix", reason="only there it can be known whether a process is alive")
def test_a_claim_of_before_there_were_locks_holds_while_its_process_lives(tmp_path: Path) -> None:
    path = tmp_path / ".owner.json"
    parent = os.getppid()
    path.write_text(
        json.dumps({"pid": parent, "host": socket.gethostname(), "started": started(parent), "token": "their"})
    )
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"in use: process {parent} is training"):
            Owner(tmp_path)
        assert json.loads(path.read_text())["token"] == "their"


@pytest.mark.skipif(owner_module.fcntl is None, reason="there are no locks")
def test_a_lock_on_a_file_that_was_given_up_meanwhile_is_no_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is opened, then its owner gives it up, then it is locked: it has no name by then."""
    first, real = Owner(tmp_path), owner_module.fcntl.flock

    def slow(descriptor: int, how: int) -> None:
        first.release()
        real(descriptor, how)

    monkeypatch.setattr(owner_module.fcntl, "flock", slow)
    second = Owner(tmp_path)
    assert second.holds(tmp_path) and claims(tmp_path) == 1
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="in use"):
        Owner(tmp_path)
    second.release()


def test_without_locks_a_claim_made_meanwhile_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale claim is read, somebody else takes it over, and it is theirs that is moved away."""
    path, parent, real = tmp_path / ".owner.json", os.getppid(), os.rename
    path.write_text("{}")
    theirs = json.dumps({"pid": parent, "host": socket.gethostname(), "started": started(parent), "token": "their"})

    def slow(source: Any, target: Any) -> None:
        if source == path and path.read_text() == "{}":
            path.write_text(theirs)
        real(source, target)

    monkeypatch.setattr(owner_module, "fcntl", None)
    monkeypatch.setattr(os, "rename", slow)
    with pytest.raises(CheckpointError, match=f"in use: process {parent} "):
        Owner(tmp_path)
    assert path.read_text() == theirs and len(list(tmp_path.iterdir())) == 1


def test_a_run_holds_its_folder_until_it_is_closed_or_forgotten(tmp_path: Path) -> None:
    run = train(unet(), digits(), folder=tmp_path, **OPTIONS)
    assert claims(tmp_path) == 1
    with pytest.raises(CheckpointError, match="another run of this process"):
        train(unet(), digits(), folder=tmp_path, **OPTIONS)
    advance(run, 2)
    run.close()
    assert claims(tmp_path) == 0
    advance(run, 3)  # iterating takes it again
    assert claims(tmp_path) == 1
    run.ring = run  # only the collector of cycles forgets it, and is asked by who wants the folder
    del run
    assert claims(tmp_path) == 1
    other = train(unet(), digits(), folder=tmp_path, **OPTIONS)
    del other
    gc.collect()
    assert claims(tmp_path) == 0


def test_a_run_that_was_overtaken_while_it_was_closed_does_not_go_on(tmp_path: Path) -> None:
    options = {**OPTIONS, "folder": tmp_path, "save_every": None}
    first = train(unet(), digits(), **options)
    next(first)
    first.save()
    first.close()
    next(first)  # nobody was there: it goes on
    first.close()
    second = train(unet(), digits(), **{**options, "resume": True})
    next(second)
    next(second)
    saved = second.save()
    second.close()
    with pytest.raises(CheckpointError, match=rf"another run wrote .*{saved.name} while this one was closed"):
        next(first)
    next(second)


def test_a_run_that_could_not_start_does_not_hold_its_folder(tmp_path: Path) -> None:
    """Though the error, and with it the run, is still looked at, as a notebook does."""
    advance(train(unet(), digits(), folder=tmp_path, **OPTIONS), 5)
    log = (tmp_path / "log.jsonl").read_bytes()
    (tmp_path / "log.jsonl").unlink()
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"log\.jsonl cannot be kept: it is a folder") as caught:
        train(unet(), digits(), folder=tmp_path, resume=True, **OPTIONS)
    (tmp_path / "log.jsonl").rmdir()
    (tmp_path / "log.jsonl").write_bytes(log)
    assert train(unet(), digits(), folder=tmp_path, resume=True, **OPTIONS).step == 4
    assert caught.tb is not None


@pytest.mark.skipif(os.name != "posix", reason="needs pipes and links")
@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_an_owners_file_of_another_kind_is_refused_untouched(tmp_path: Path, kind: str) -> None:
    folder, target = tmp_path / "run", tmp_path / "precious"
    folder.mkdir()
    target.write_text("precious")
    path = folder / ".owner.json"
    {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda p: os.symlink(target, p)}[kind](path)
    with pytest.raises(CheckpointError, match=r"\.owner\.json is no regular file: remove it"):
        Owner(folder)
    assert target.read_text() == "precious" and path.lstat()


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_what_other_names_share_with_the_owners_file_is_not_written(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    os.link(target, tmp_path / ".owner.json")
    Owner(tmp_path).release()
    assert target.read_text() == "precious"


def test_frozen_parameters_stay_as_they_are(tmp_path: Path) -> None:
    def frozen(seed: int) -> ScoreModel:
        model = unet(seed)
        assert isinstance(model.net, UNet)
        model.net.embedding.requires_grad_(False)
        return model

    model = frozen(0)
    before = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    advance(train(model, digits(), folder=tmp_path, **OPTIONS), 4)
    resumed = frozen(1)
    advance(train(resumed, digits(), folder=tmp_path, resume=True, **OPTIONS))
    after = dict(resumed.named_parameters())
    assert before and all(torch.equal(value, after[name]) for name, value in before.items())


# -- what a checkpoint says of itself ----------------------------------------------------------------------------------


def test_a_checkpoint_describes_itself_and_holds_no_pickle(tmp_path: Path) -> None:
    run = advance(train(unet(), digits(), folder=tmp_path, **OPTIONS))
    description = describe(tmp_path)
    assert description.path == tmp_path / "step-00000008" == run.save() and description.step == 8
    assert description.event_shape == (1, 4, 4)
    assert description.class_names == ("one", "two", "three")
    assert description.scaling == Scaling.to_unit_range(17)
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds == {".safetensors", ".json", ".jsonl"}
    assert_equal(load_model(tmp_path).state_dict(), run.ema_model().state_dict())
    assert_equal(load_model(tmp_path, ema=False).state_dict(), run.model.state_dict())
    assert not load_model(tmp_path).training


@pytest.mark.parametrize(
    "sde",
    [
        VP(beta_min=0.2, beta_max=15.0, T=0.9, t_min=1e-2),
        SubVP(beta_max=12.0),
        VE(sigma_min=0.02, sigma_max=7.0),
        Cosine(s=0.01),
        EDM(T=50.0),
        RectifiedFlow(t_min=1e-2),
    ],
    ids=lambda sde: type(sde).__name__,
)
@pytest.mark.parametrize("build", [mlp, unet], ids=["mlp", "unet"])
def test_every_model_is_rebuilt_from_its_file(tmp_path: Path, sde: SDE, build: Callable[..., ScoreModel]) -> None:
    model = build(sde=sde).eval()
    save(tmp_path, model, step=0)
    state = torch.get_rng_state()
    loaded = load_model(tmp_path, ema=False)
    assert torch.equal(torch.get_rng_state(), state)  # loading draws nothing from the default generator
    assert loaded.sde == sde and type(loaded.net) is type(model.net)
    x = torch.randn(3, 2) if build is mlp else torch.randn(3, 1, 4, 4)
    assert torch.equal(loaded(x, torch.tensor(0.4)), model(x, torch.tensor(0.4)))


def test_what_can_be_rebuilt_is_found_in_the_packages() -> None:
    """An SDE made of numbers or a chain, and a network with a config, are known by being exported."""
    names = ("VP", "SubVP", "VE", "Cosine", "EDM", "RectifiedFlow", "ChainSDE")
    assert set(SDES) == {f"scoresde.sde.{name}" for name in names}
    assert {"scoresde.nn.UNet", "scoresde.nn.MLP", "scoresde.nn.NoiseClassifier"} <= set(NETS)
    for cls in NETS.values():
        assert isinstance(cls, type) and issubclass(cls, nn.Module) and hasattr(cls, "config")


# A folder as version 0.1.0 wrote it, in words: its config.json, the options of its training.json, its tensors' shapes.
_OLD_CONFIG: dict[str, Any] = {
    "format": 1,
    "version": "0.1.0",
    "step": 2,
    "model": {
        "kind": "score",
        "sde": {
            "class": "scoresde.sde.VE",
            "fields": {"T": 1.0, "t_min": 1e-05, "sigma_min": 0.01, "sigma_max": 10.0},
        },
        "net": {
            "class": "scoresde.nn.MLP",
            "config": {
                "dim": 2, "width": 2, "depth": 1, "num_classes": 3, "time_features": "sinusoidal", "dropout": 0.0,
                "out_dim": None,
            },
        },
        "predicts": "v",
        "sigma_data": 1.5,
    },
    "data": {
        "event_shape": [2],
        "class_names": ["0", "1", "2"],
        "scaling": {"shift": 0.5, "scale": 2.0, "levels": None},
        "conditions": {},
    },
}  # fmt: skip
_OLD_OPTIONS: dict[str, Any] = {
    "batch_size": 4, "lr": 0.001, "betas": [0.9, 0.999], "weight_decay": 0.0, "warmup": 0, "decay": "constant",
    "clip": 1.0, "ema": 0.9999, "ema_warmup": True, "times": "UniformTime()", "flip": False, "dequantize": False,
    "seed": 0, "mixed_precision": None, "accumulate": 1, "weighting": "simple", "label_dropout": {"label": 0.2},
    "conditions": None, "processes": 1, "samples": 30,
}  # fmt: skip
_OLD_SHAPES: dict[str, tuple[int, ...]] = {
    "net.blocks.0.condition.bias": (4,), "net.blocks.0.condition.weight": (4, 2), "net.blocks.0.linear1.bias": (4,),
    "net.blocks.0.linear1.weight": (4, 2), "net.blocks.0.linear2.bias": (2,), "net.blocks.0.linear2.weight": (2, 4),
    "net.embedding.classes.weight": (4, 2), "net.embedding.linear1.bias": (2,),
    "net.embedding.linear1.weight": (2, 64), "net.embedding.linear2.bias": (2,),
    "net.embedding.linear2.weight": (2, 2), "net.head.bias": (2,), "net.head.weight": (2, 2), "net.norm.bias": (2,),
    "net.norm.weight": (2,), "net.stem.bias": (2,), "net.stem.weight": (2, 2),
}  # fmt: skip


def test_a_folder_of_the_first_version_is_loaded_and_goes_on(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    parameters = {name: 0.3 * torch.randn(shape, generator=random) for name, shape in _OLD_SHAPES.items()}
    averages = {name: 0.3 * torch.randn(shape, generator=random) for name, shape in _OLD_SHAPES.items()}
    frequencies = MLP(2, width=2, depth=1, num_classes=3).state_dict()["embedding.features.frequencies"]
    assert frequencies.shape == (32,)
    moments = {
        f"{kind}/{name}": value.square() for kind in ("exp_avg", "exp_avg_sq") for name, value in averages.items()
    }
    counts = {f"step/{name}": torch.tensor(2.0) for name in parameters}
    training = {"ema_updates": 2, "seconds": 0.5, "loss_sum": 0.0, "loss_steps": 0, "options": _OLD_OPTIONS}

    def writer(tensors: dict[str, Tensor]) -> Callable[[Path], None]:
        return lambda path: save_file(tensors, path)

    folder_module.write(
        tmp_path,
        2,
        _OLD_CONFIG,
        {
            "model.safetensors": writer({**parameters, "net.embedding.features.frequencies": frequencies}),
            "ema.safetensors": writer(averages),
            "optimizer.safetensors": writer({**moments, **counts}),
            "training.json": folder_module.json_writer(training),
        },
    )
    for ema, saved in ((True, averages), (False, parameters)):
        loaded = load_model(tmp_path, ema=ema)
        assert loaded.sde == VE(0.01, 10.0) and (loaded.predicts, loaded.sigma_data) == ("v", 1.5)
        assert_equal(dict(loaded.named_parameters()), saved)
    description = describe(tmp_path)
    assert (description.step, description.version) == (2, "0.1.0") and description.scaling == Scaling(0.5, 2.0)
    x = torch.randn(30, 2, generator=random)
    data = from_tensors(x, torch.arange(30) % 3, scaling=Scaling(0.5, 2.0))
    model = ScoreModel(MLP(2, width=2, depth=1, num_classes=3), VE(0.01, 10.0), predicts="v", sigma_data=1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the options are the same, by another name
        run = train(
            model, data, steps=5, batch_size=4, folder=tmp_path, resume=True, condition_dropout={"label": 0.2},
            progress=False,
        )  # fmt: skip
    assert run.step == run.ema.updates == 2
    assert_equal(dict(model.named_parameters()), parameters)
    assert_equal(run.ema.state(), averages)
    advance(run)
    assert describe(tmp_path).step == 5
    assert float(read_tensors(describe(tmp_path), "optimizer.safetensors")["step/net.stem.bias"]) == 5


@pytest.mark.parametrize(("predicts", "sigma_data"), [("v", None), ("edm", 0.7), ("x0", 1.5)])
def test_prediction_and_scale_are_kept(tmp_path: Path, predicts: str, sigma_data: float | None) -> None:
    model = mlp(predicts=predicts, sigma_data=sigma_data)
    save(tmp_path, model, step=0)
    loaded = load_model(tmp_path, ema=False)
    assert (loaded.predicts, loaded.sigma_data) == (predicts, sigma_data)


def test_the_spectrum_is_kept(tmp_path: Path) -> None:
    model = mlp()
    model.spectrum = Spectrum(0.5, 3.0)
    save(tmp_path, model, step=0)
    assert load_model(tmp_path, ema=False).spectrum == Spectrum(0.5, 3.0)
    model.spectrum = None
    save(tmp_path, model, step=1)
    assert load_model(tmp_path, ema=False).spectrum is None


def test_weights_in_double_precision_come_back_in_double_precision(tmp_path: Path) -> None:
    model = mlp().double()
    save(tmp_path, model, step=0, ema=EMA(model))
    loaded = load_model(tmp_path)
    assert_equal(loaded.state_dict(), model.state_dict())
    assert {p.dtype for p in loaded.parameters()} == {torch.float64}


class Own(nn.Module):
    """A user's network, with tied weights and a buffer that is not contiguous."""

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.first = nn.Linear(dim, dim)
        self.second = nn.Linear(dim, dim)
        self.second.weight = self.first.weight
        self.register_buffer("turned", torch.randn(dim, 3, generator=torch.Generator().manual_seed(0)).T)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))) + self.turned.sum()


def test_parts_of_ones_own_are_given_when_loading(tmp_path: Path) -> None:
    def sde() -> SDE:
        return LinearSDE(-0.5, 1.0)

    model = ScoreModel(Own(), sde(), predicts=predicts_v)
    save(tmp_path, model, step=0)
    with pytest.raises(ValueError, match=r"network of its own, .*Own.*net=Own\(\.\.\.\)"):
        load_model(tmp_path, ema=False)
    with pytest.raises(ValueError, match=r"SDE of its own, .*LinearSDE.*sde=LinearSDE\(\.\.\.\)"):
        load_model(tmp_path, ema=False, net=Own())
    with pytest.raises(ValueError, match="prediction function of its own"):
        load_model(tmp_path, ema=False, net=Own(), sde=sde())
    with pytest.raises(
        CheckpointError, match=r"do not fit the network \(\d+ differ: .*saved \(2,\) float32, model \(3,\)"
    ):
        load_model(tmp_path, ema=False, net=Own(3), sde=sde(), predicts=predicts_v)
    loaded = load_model(tmp_path, ema=False, net=Own(), sde=sde(), predicts=predicts_v)
    assert_equal(loaded.state_dict(), model.state_dict())
    assert loaded.predicts is predicts_v


def test_averages_of_tied_parameters_come_back(tmp_path: Path) -> None:
    """A tied parameter has two names in the state of a model, but one average."""
    run = advance(train(ScoreModel(Own(), VP()), points(), folder=tmp_path, **{**OPTIONS, "condition_dropout": 0.0}))
    averaged = run.ema_model().state_dict()
    assert torch.equal(averaged["net.second.weight"], averaged["net.first.weight"])
    assert not torch.equal(averaged["net.second.weight"], run.model.state_dict()["net.second.weight"])
    assert_equal(load_model(tmp_path, net=Own()).state_dict(), averaged)


def test_each_tensor_takes_the_dtype_it_was_saved_in(tmp_path: Path) -> None:
    model = mlp()
    assert isinstance(model.net, MLP)
    model.net.head.double()
    save(tmp_path, model, step=0)
    dtypes = {name: value.dtype for name, value in load_model(tmp_path, ema=False).state_dict().items()}
    assert dtypes == {name: value.dtype for name, value in model.state_dict().items()}
    assert set(dtypes.values()) == {torch.float32, torch.float64}


def test_a_subclass_of_a_network_is_the_users_own(tmp_path: Path) -> None:
    namesake = type("MLP", (MLP,), {})
    save(tmp_path, ScoreModel(namesake(2, width=4, depth=1), VP()), step=0)
    with pytest.raises(ValueError, match="network of its own"):
        load_model(tmp_path, ema=False)


def test_parts_that_contradict_the_checkpoint_are_refused(tmp_path: Path) -> None:
    save(tmp_path, mlp(), step=0)
    assert load_model(tmp_path, ema=False, sde=VP(), predicts="noise").sde == VP()
    with pytest.raises(ValueError, match=r"beta_max=20.*got sde=.*beta_max=10.*\.under"):
        load_model(tmp_path, ema=False, sde=VP(beta_max=10.0))
    with pytest.raises(ValueError, match="trained to predict 'noise', got predicts='v'"):
        load_model(tmp_path, ema=False, predicts="v")
    with pytest.raises(CheckpointError, match="no averaged weights; pass ema=False"):
        load_model(tmp_path, ema=True)
    assert_equal(load_model(tmp_path).state_dict(), load_model(tmp_path, ema=False).state_dict())


def test_what_cannot_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="ScoreModel"):
        save(tmp_path, nn.Linear(2, 2), step=0)  # type: ignore[arg-type]
    wrapped = nn.Module()
    wrapped._orig_mod = MLP(2, width=4, depth=1)  # as torch.compile(net) does
    with pytest.raises(ValueError, match=r"net\.compile\(\)"):
        save(tmp_path, ScoreModel(wrapped, VP()), step=0)
    with pytest.raises(ValueError, match="must be a whole number of at least"):
        save(tmp_path, mlp(), step=0, keep=0)
    assert not list(tmp_path.iterdir())


# -- many checkpoints --------------------------------------------------------------------------------------------------


def test_the_last_ones_are_kept_and_the_latest_is_loaded(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save(tmp_path, mlp(seed=step), step=step, keep=2)
    save(tmp_path, mlp(seed=101), step=100, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000100", "step-00000100-2"]
    assert_equal(load_model(tmp_path, ema=False).state_dict(), mlp(seed=101).state_dict())
    older = load_model(tmp_path / "step-00000100", ema=False)
    assert_equal(older.state_dict(), mlp(seed=100).state_dict())


def test_a_checkpoint_of_an_earlier_step_is_kept_though_later_ones_are_there(tmp_path: Path) -> None:
    for step in (5, 6, 1):
        written = save(tmp_path, mlp(seed=step), step=step, keep=2)
        assert_equal(load_model(written, ema=False).state_dict(), mlp(seed=step).state_dict())
    assert [p.name for p in folder_module.checkpoints(tmp_path)] == [f"step-{n:08d}" for n in (1, 5, 6)]


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_of_a_checkpoint_that_was_moved_away_the_link_alone_is_removed(tmp_path: Path) -> None:
    run, store = tmp_path / "run", tmp_path / "store"
    save(run, mlp(), step=1).rename(store)
    (run / "step-00000001").symlink_to(store)
    (run / "step-00000002").symlink_to(tmp_path / "nowhere")
    load_model(run, ema=False)
    save(run, mlp(), step=2, keep=1)
    assert sorted(p.name for p in run.iterdir()) == ["step-00000002", "step-00000002-2"]
    load_model(store, ema=False)


def test_a_run_stays_in_its_folder_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = train(unet(), digits(), folder="run", **OPTIONS)
    next(run)
    monkeypatch.chdir(tmp_path / "elsewhere")
    advance(run)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert describe(tmp_path / "run").step == 8 and not (tmp_path / "run" / ".owner.json").exists()


def test_training_keeps_as_many_as_asked_for(tmp_path: Path) -> None:
    options = {**OPTIONS, "save_every": 1}
    advance(train(unet(), digits(), folder=tmp_path / "default", **options))
    advance(train(unet(), digits(), folder=tmp_path / "five", keep=5, **options))
    assert len(list((tmp_path / "default").glob("step-*"))) == 2
    assert len(list((tmp_path / "five").glob("step-*"))) == 5


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("intact")
    advance(train(unet(), digits(), folder=folder, **OPTIONS))
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)


FILES = ["config.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors", "training.json"]


def flip_a_bit_of_a_name(path: Path) -> None:
    content = bytearray(path.read_bytes())
    name = b"head" if path.suffix == ".safetensors" else b"sigma_data" if path.name == FILES[0] else b"seconds"
    content[content.index(name)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [(flip_a_bit_of_a_name, "damaged"), (cut, "cut short|damaged"), (flip_a_bit, "damaged"), (Path.unlink, "missing")],
)
def test_damage_is_named_with_what_to_do(
    intact: Path, tmp_path: Path, name: str, spoil: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(intact, folder)
    spoil(folder / "step-00000008" / name)
    pattern = rf"step-00000008/{name}.*({message}).*Remove step-00000008: step-00000004 beside it"
    with pytest.raises(CheckpointError, match=pattern):
        train(unet(), digits(), folder=folder, resume=True, **OPTIONS)
    if name in FILES[:3]:
        with pytest.raises(CheckpointError, match=pattern):
            load_model(folder)
    else:  # generating needs no optimizer
        load_model(folder)
    shutil.rmtree(folder / "step-00000008")
    assert describe(folder).step == 4
    assert train(unet(), digits(), folder=folder, resume=True, **OPTIONS).step == 4


def test_a_lonely_damaged_checkpoint_says_so(tmp_path: Path) -> None:
    cut(save(tmp_path, mlp(), step=1) / "model.safetensors")
    with pytest.raises(CheckpointError, match="no other checkpoint beside it"):
        load_model(tmp_path, ema=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=99), r"format 99.*reads format 1"),
        (lambda c: c.pop("model"), r"config\.json is damaged: the field model is missing"),
        (lambda c: c["model"].pop("net"), r"damaged: the field model\.net is missing"),
        (lambda c: c.update(files=[]), "damaged"),
        (lambda c: c["model"]["sde"]["fields"].update(gamma=1.0), r"cannot build the scoresde\.sde\.VP.*gamma"),
        (lambda c: c["model"]["sde"]["fields"].update(beta_min=-1.0), r"cannot build the scoresde\.sde\.VP.*beta_min"),
        (lambda c: c["model"]["net"]["config"].update(width=-4), r"cannot build the scoresde\.nn\.MLP"),
        (lambda c: c["model"]["net"]["config"].update(width=8), "do not fit the network"),
        (lambda c: c["model"]["net"]["config"].update(width=10**8), r"config\.width is 100000000; the limit is 4096"),
        (lambda c: c["model"]["net"]["config"].update(width=4096), "do not fit the network"),
        (lambda c: c["model"]["net"]["config"].update(depth=4000), "more parameters than the 17 tensors .* the limit"),
        (lambda c: c["model"]["net"]["config"].update(width=10**12), r"config\.width is 1000000000000; the limit"),
        (
            lambda c: c["model"]["net"]["config"].update(width=4.0),
            r"config\.json: .*width must be a whole number .*4\.0",
        ),
        (lambda c: c.update(step="x"), r"config\.json is damaged"),
        (
            lambda c: c["data"].update(scaling={"shift": 0.0, "scale": -1}),
            r"damaged: data\.scaling.*scale > 0",
        ),
        (lambda c: c["model"].update(sde=3), r"config\.json is damaged"),
        (
            lambda c: c["model"]["sde"].update(fields=3),
            r"damaged: model\.sde\.fields must be a JSON object",
        ),
        (lambda c: c["model"].update(predicts="foo"), r"damaged: model\.predicts .*'foo'"),
        (lambda c: c["model"].update(sigma_data=-1), r"damaged: model\.sigma_data"),
        (lambda c: c["model"].update(spectrum={"scale": 1.0}), r"damaged: .*model\.spectrum"),
        (
            lambda c: c["model"].update(spectrum={"scale": 2.0, "largest": 1.0}),
            r"damaged: model\.spectrum\.largest .*at least",
        ),
        (
            lambda c: c["model"].update(spectrum={"scale": "1", "largest": True}),
            r"damaged: .*model\.spectrum",
        ),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = save(tmp_path, mlp(), step=1) / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(folder_module.sealed(config)))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path, ema=False)


def sealed_again(path: Path, name: str) -> None:
    """Make all hashes right after a change of a file."""
    config, content = json.loads((path / "config.json").read_text()), (path / name).read_bytes()
    config["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "config.json").write_text(json.dumps(folder_module.sealed(config)))


def resealed(path: Path, name: str, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a file, and make all hashes right."""
    held = {key: value.clone() for key, value in load_file(path / name).items()}
    change(held)
    save_file(held, path / name)
    sealed_again(path, name)


OF_ALL: dict[str, Callable[[Tensor], Tensor]] = {
    "one number": lambda v: v.reshape(-1)[:1].clone(),
    "no number": lambda v: v.reshape(-1)[:0].clone(),
    "other dtype": lambda v: v.to(torch.float16),
    "whole numbers": lambda v: v.to(torch.int32),
    "NaN": lambda v: torch.full_like(v, float("nan")),
    "infinity": lambda v: torch.full_like(v, float("inf")),
    "one axis more": lambda v: v[None].clone(),
}


@pytest.mark.parametrize("how", OF_ALL)
@pytest.mark.parametrize(
    ("name", "kind"),
    [(FILES[1], ""), (FILES[2], ""), (FILES[3], "exp_avg/"), (FILES[3], "exp_avg_sq/"), (FILES[3], "step/")],
)
def test_tensors_of_another_shape_or_kind_are_refused_though_all_hashes_are_right(
    intact: Path, tmp_path: Path, name: str, kind: str, how: str
) -> None:
    """The kernels of AdamW trust sizes: one number in the place of many is a crash, or foreign memory."""

    def change(held: dict[str, Tensor]) -> None:
        held.update({key: OF_ALL[how](value) for key, value in held.items() if key.startswith(kind)})

    folder = tmp_path / "run"
    shutil.copytree(intact, folder)
    resealed(folder / "step-00000008", name, change)
    with pytest.raises(CheckpointError, match=rf"step-00000008/{name}"):
        train(unet(), digits(), folder=folder, resume=True, **OPTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update({"exp_avg_sq/net.head.bias": -h["exp_avg_sq/net.head.bias"] - 1}), "must be .*at least 0"),
        (lambda h: h.update({"step/net.head.bias": torch.tensor(-1.0)}), "step/net.head.bias must be .*at least 0"),
        (lambda h: h.update({"step/net.head.bias": torch.tensor(2.5)}), "step/net.head.bias must be a whole number"),
        (lambda h: h.update({"step/net.head.bias": torch.tensor(9.0)}), "step/net.head.bias must be .* from 1 to 8"),
        (lambda h: h.update({"step/net.head.bias": torch.tensor(0.0)}), "step/net.head.bias must be .* from 1 to 8"),
        (lambda h: h.clear(), "there is no state, but there have been 8 steps"),
        (lambda h: h.pop("exp_avg/net.head.bias"), r"exp_avg/net.head.bias must be \(1,\), torch.float32, got nothing"),
        (lambda h: h.update({"exp_avg/more": torch.zeros(1)}), "state for more, which is not trained now"),
        (lambda h: h.update({"more/net.head.bias": torch.zeros(1)}), "more/net.head.bias is nothing that AdamW has"),
    ],
)
def test_a_state_that_adamw_cannot_have_is_refused(
    intact: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(intact, folder)
    resealed(folder / "step-00000008", FILES[3], change)
    with pytest.raises(CheckpointError, match=rf"optimizer\.safetensors: .*{message}"):
        train(unet(), digits(), folder=folder, resume=True, **OPTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(ema_updates=-1), "ema_updates must be a whole number from 0 to 8, got -1"),
        (lambda t: t.update(ema_updates=9), "ema_updates must be a whole number from 0 to 8, got 9"),
        (lambda t: t.update(ema_updates=10**400), "ema_updates is a whole number of more than 64 bits"),
        (lambda t: t.update(seconds=-0.5), "seconds must be"),
        (lambda t: t.update(seconds=True), "seconds must be"),
        (lambda t: t.update(loss_sum=None), "loss_sum must be"),
        (lambda t: t.update(loss_steps=1.0), "loss_steps must be"),
        (lambda t: t.update(options=[]), "options must be a JSON object"),
        (lambda t: t.update(options={f"o{i}": 1 for i in range(2000)}), "options has 2000 fields; the limit is 1000"),
        (lambda t: t.pop("loss_steps"), "the field loss_steps is missing"),
    ],
)
def test_counters_out_of_range_are_refused(
    intact: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(intact, folder)
    path = folder / "step-00000008" / FILES[4]
    training = json.loads(path.read_text())
    change(training)
    path.write_text(json.dumps(training))
    sealed_again(path.parent, FILES[4])
    with pytest.raises(CheckpointError, match=rf"training\.json is damaged: {message}"):
        train(unet(), digits(), folder=folder, resume=True, **OPTIONS)


def test_numbers_of_the_optimizer_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """They could not be read again: the error comes while there is a checkpoint to go back to."""
    model = mlp()
    with pytest.raises(FloatingPointError, match=r"exp_avg_sq/net\.head\.bias is not finite after step 1"):
        save(tmp_path, model, step=1, optimizer={"exp_avg_sq/net.head.bias": torch.tensor([float("inf")])})
    assert not list(tmp_path.iterdir())


def test_a_changed_digit_of_the_config_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path, mlp(), step=1) / "config.json"
    text = path.read_text()
    load_model(tmp_path, ema=False)
    for changed in (
        text.replace('"beta_max": 20', '"beta_max": 30'),
        text.replace('"step": 1', '"step": 2'),
        text.replace('"shift"', '"sha256": "", "shift"').replace('  "sha256": "', '  "sha256": "0'),
        json.dumps({key: value for key, value in json.loads(text).items() if key != "sha256"}),
    ):
        assert changed != text
        path.write_text(changed)
        with pytest.raises(CheckpointError, match=r"config\.json is damaged: its SHA-256"):
            load_model(tmp_path, ema=False)
    path.write_text(json.dumps(json.loads(text), indent=None))  # other white space is no other content
    load_model(tmp_path, ema=False)


def test_a_score_that_is_called_a_classifier_is_refused(tmp_path: Path) -> None:
    """Its network's answers would come back as logits."""
    path = save(tmp_path, mlp(), step=1) / "config.json"
    config = json.loads(path.read_text())
    config["model"]["kind"] = "classifier"
    path.write_text(json.dumps(folder_module.sealed(config)))
    with pytest.raises(CheckpointError, match=r"model\.predicts: a classifier model predicts no part of a score"):
        load_classifier(tmp_path, ema=False)


def test_a_file_cannot_name_other_code(tmp_path: Path) -> None:
    path = save(tmp_path, mlp(), step=1) / "config.json"
    config = json.loads(path.read_text())
    config["model"]["net"] = {"class": "os.system", "config": {"command": "false"}}
    path.write_text(json.dumps(folder_module.sealed(config)))
    with pytest.raises(ValueError, match=r"network of its own, os\.system"):
        load_model(tmp_path, ema=False)


@pytest.mark.parametrize("name", [MODEL, AVERAGE])
def test_sizes_are_compared_before_values_are_read_though_the_network_is_ones_own(tmp_path: Path, name: str) -> None:
    """A file of 16 GB, all of them zeros that take no room, would be read for long."""
    model = ScoreModel(Own(), VP())
    path = save(tmp_path, model, step=0, ema=EMA(model))
    head = json.dumps({"net.first.bias": {"dtype": "F32", "shape": [2**32], "data_offsets": [0, 2**34]}}).encode()
    with (path / name).open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + 2**34)
    config = json.loads((path / "config.json").read_text())
    config["files"][name] = {"bytes": 8 + len(head) + 2**34, "sha256": "0" * 64}
    (path / "config.json").write_text(json.dumps(folder_module.sealed(config)))
    with pytest.raises(CheckpointError, match=rf"{name} do not fit the network"):
        load_model(tmp_path, net=Own())


def test_a_file_in_the_place_of_a_folder_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors: it is a file\. Give the folder"):
        load_model(save(tmp_path, mlp(), step=0) / MODEL)


@pytest.mark.parametrize("name", ["absent", "empty", "step-00000001"])
def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=f"no checkpoint in .*{name}"):
        load_model(tmp_path / name)


# -- interruption ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["mkdir", "flush", "fsync", "sha256", "rename", "save_file"])
@pytest.mark.filterwarnings("ignore:.*could not be removed")
def test_a_failure_anywhere_in_a_save_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Each operation on the disk fails in turn, the first time, the second time, ...: until a save gets through."""
    import safetensors.torch

    homes = {"mkdir": Path, "rename": Path, "save_file": safetensors.torch, "fsync": os}
    owner: Any = homes.get(point, folder_module)
    original = getattr(owner, point)
    model = unet()
    save(tmp_path, model, step=1, ema=EMA(model), keep=1)
    failures = 0
    for fail_at in range(100):
        calls = 0

        def failing(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fail_at + 1:  # noqa: B023
                raise OSError(28, "No space left on device")
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, point, failing)
        try:
            save(tmp_path, unet(seed=5), step=2, ema=EMA(unet(seed=5)), keep=1)
            break
        except CheckpointError as error:
            failures += 1
            assert "No space left" in str(error)
        finally:
            monkeypatch.setattr(owner, point, original)
        latest = load_model(tmp_path, ema=False)
        assert_equal(latest.state_dict(), unet(seed=5 if describe(tmp_path).step == 2 else 0).state_dict())
    assert failures >= 1
    save(tmp_path, model, step=3, ema=EMA(model), keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]  # nothing half-written is left lying about


def test_a_removal_cut_short_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, *args: Any, **kwargs: Any) -> None:
        next(iter(path.iterdir())).unlink()
        raise OSError("interrupted")

    save(tmp_path, mlp(seed=1), step=1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        with pytest.warns(UserWarning, match=r"step-00000002 is written, but .*step-00000001 .*interrupted"):
            save(tmp_path, mlp(seed=2), step=2, keep=1)
    for path in tmp_path.glob("step-*"):
        load_model(path, ema=False)
    assert describe(tmp_path).step == 2
    save(tmp_path, mlp(seed=3), step=3, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


_KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from test_checkpoint import unet
from scoresde.train import EMA, describe, load_model, save


def save_and_die(folder, model, last):
    # Save steps 1 and 2 and be killed at operation number `last` on the file system.
    count = 0

    def watch(event, args):
        nonlocal count
        # what writes: files opened (also by fsync), folders made, names given and taken away
        reads = event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR)
        writes = event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and not reads
        if writes and str(folder) in str(args[0]):
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    for step in range(1, 3):  # weights that tell their step
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(step)
        save(folder, model, step=step, ema=EMA(model))
    os._exit(0)


root = Path(sys.argv[1])
inside, last, killed = 0, 0, True
while killed:
    last += 1
    folder = root / str(last)
    model = unet()
    save(folder, model, step=0, ema=EMA(model))
    child = os.fork()
    if child == 0:
        save_and_die(folder, model, last)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    inside += any(p.name.startswith(".partial") for p in folder.iterdir())
    loaded, step = load_model(folder), describe(folder).step
    assert step == 0 or all(bool((p == step).all()) for p in loaded.parameters())
    load_model(folder, ema=False)
    assert killed or step == 2
print(last, inside)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment_leaves_a_loadable_checkpoint(tmp_path: Path) -> None:
    """Before each operation on the file system in turn, through two saves and the removal of old checkpoints."""
    script = tmp_path / "script.py"
    script.write_text(_KILLED)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=BESIDE,
    )
    assert done.returncode == 0, done.stderr
    last, inside = map(int, done.stdout.split())
    assert last > inside > last / 2  # most operations are inside a save


_TRAINING = """
import sys, time
import torch
torch.set_num_threads(1)
from test_checkpoint import OPTIONS, digits, unet
from scoresde.train import train

for step in train(unet(), digits(), folder=sys.argv[1], resume=True, **{**OPTIONS, "steps": 40}):
    print(step.step, flush=True)
    if step.step == 21:
        time.sleep(60)
"""


def test_a_killed_run_resumes_to_the_same_end(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_TRAINING)
    command = [sys.executable, str(script), str(tmp_path / "killed")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=BESIDE)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) == 21:
            break
    child.kill()
    child.wait()
    child.stdout.close()
    options = {**OPTIONS, "steps": 40}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the child: sums over threads round differently
    try:
        resumed = train(unet(seed=1), digits(), folder=tmp_path / "killed", resume=True, **options)
        assert resumed.step == 20
        advance(resumed)
        advance(train(unet(), digits(), folder=tmp_path / "whole", **options))
    finally:
        torch.set_num_threads(threads)
    assert_equal(tensors(tmp_path / "killed"), tensors(tmp_path / "whole"))


def test_seeds_do_not_leak_out_of_a_failing_block() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"), seeded(torch.device("cpu"), 3):
        raise RuntimeError("inside")
    assert torch.equal(torch.get_rng_state(), before)
