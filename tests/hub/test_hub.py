"""The real client of the hub against a small one on this machine: what is pushed, what is fetched, what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from local_hub import TOKEN, LocalHub
from torch import Tensor, nn

import scoresde as ss
from scoresde.hub import locate, push_to_hub
from scoresde.nn import MLP
from scoresde.train import EMA, CheckpointError, describe, load_model
from scoresde.train import folder as folders

ID = "owner/model"


def mlp(seed: int = 0) -> ss.ScoreModel:
    torch.manual_seed(seed)
    model = ss.ScoreModel(MLP(2, width=8, depth=1), ss.VP(), predicts="edm")
    model.event_shape = (2,)
    return model


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]) for name, value in ours.items())


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a model with two sets of weights."""
    folder = tmp_path_factory.mktemp("models") / "saved"
    return files_of(mlp(seed=1).save_pretrained(folder, ema=EMA(mlp(seed=2)), licence="mit"))


# -- there and back ------------------------------------------------------------------------------------------------


def test_a_model_goes_there_and_back(hub: LocalHub, tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n...")
    model = mlp(seed=1)
    address = model.push_to_hub(
        ID, licence="mit", figures={"energy": 0.5}, picture=picture, token=TOKEN, private=True, message="First"
    )
    repo = hub.repos[ID]
    assert address == f"{hub.url}/{ID}/commit/{repo.branches['main']}"
    assert repo.private and repo.messages == ["initial commit", "First"]  # all files in one commit
    pushed = repo.commits[repo.branches["main"]]
    assert sorted(pushed) == [".gitattributes", "README.md", "config.json", "model.safetensors", "samples.png"]
    card = huggingface_hub.ModelCard(pushed["README.md"].decode())
    assert (card.data.license, card.data.library_name) == ("mit", "scoresde")
    assert f'from_pretrained("{ID}")' in card.text and "# model\n" in card.text

    hub.requests.clear()
    loaded = ss.ScoreModel.from_pretrained(ID, token=TOKEN)
    assert_equal(loaded, model)
    assert loaded.event_shape == (2,)
    assert hub.fetched() == ["config.json"] and sum(path.startswith("/lfs/") for _, path in hub.requests) == 1

    hub.requests.clear()
    assert_equal(ss.ScoreModel.from_pretrained(ID, token=TOKEN), model)  # from the cache, if it is still the latest
    assert hub.fetched() == [] and not [path for _, path in hub.requests if path.startswith("/lfs/")]

    hub.requests.clear()
    assert_equal(ss.ScoreModel.from_pretrained(ID, local_files_only=True), model)
    assert not hub.requests


def test_a_later_push_replaces_all_of_an_earlier_one(hub: LocalHub) -> None:
    mlp(seed=1).push_to_hub(ID, ema=EMA(mlp(seed=2)), token=TOKEN)
    first = hub.repos[ID].branches["main"]
    assert_equal(ss.ScoreModel.from_pretrained(ID), mlp(seed=2))
    mlp(seed=3).push_to_hub(ID, token=TOKEN)
    repo = hub.repos[ID]
    assert sorted(repo.commits[repo.branches["main"]]) == [
        ".gitattributes", "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    assert_equal(ss.ScoreModel.from_pretrained(ID), mlp(seed=3))
    assert_equal(ss.ScoreModel.from_pretrained(ID, revision=first), mlp(seed=2))  # the history stays
    assert_equal(ss.ScoreModel.from_pretrained(ID, revision=first, ema=False), mlp(seed=1))


def test_branches_and_proposals(hub: LocalHub) -> None:
    mlp(seed=1).push_to_hub(ID, token=TOKEN)
    for seed in (2, 3):  # made the first time, there the second
        mlp(seed=seed).push_to_hub(ID, token=TOKEN, revision="wide")
    address = mlp(seed=4).push_to_hub(ID, pull_request=True, token="hf_of_somebody")
    assert address == f"{hub.url}/{ID}/discussions/1"
    for revision, seed in ((None, 1), ("wide", 3), ("refs/pr/1", 4)):
        assert_equal(ss.ScoreModel.from_pretrained(ID, revision=revision), mlp(seed=seed))


def test_classifiers_and_parts_of_ones_own(hub: LocalHub) -> None:
    torch.manual_seed(0)
    classifier = ss.ClassifierModel(MLP(2, 8, 1, out_dim=3), ss.VP())
    classifier.push_to_hub("owner/classifier", token=TOKEN)
    assert_equal(ss.ClassifierModel.from_pretrained("owner/classifier"), classifier)
    with pytest.raises(CheckpointError, match="holds a classifier"):
        ss.ScoreModel.from_pretrained("owner/classifier")
    own = ss.ScoreModel(nn.Linear(2, 2), ss.VP(), predicts="v")
    push_to_hub(own, "owner/own", token=TOKEN)
    with pytest.raises(CheckpointError, match=r"network of its own, torch.*net=Linear\(\.\.\.\)"):
        ss.ScoreModel.from_pretrained("owner/own")
    assert_equal(ss.ScoreModel.from_pretrained("owner/own", net=nn.Linear(2, 2)), own)


def test_only_the_weights_that_are_wanted_are_fetched(hub: LocalHub, saved: dict[str, bytes], tmp_path: Path) -> None:
    """No card, no picture, and nothing that could run."""
    hub.add(ID, {**saved, "evil.py": b"import os", "pytorch_model.bin": b"\x80", "samples.png": b""})
    place = locate(ID, ema=False, cache_dir=tmp_path / "last")
    assert sorted(path.name for path in place.iterdir()) == ["config.json", "model.safetensors"]
    assert_equal(load_model(place, ema=False), mlp(seed=1))
    both = locate(ID, cache_dir=tmp_path / "both")
    assert sorted(path.name for path in both.iterdir()) == ["config.json", "ema.safetensors", "model.safetensors"]
    assert_equal(ss.ScoreModel.from_pretrained(both), mlp(seed=2))
    assert describe(both).step == 0


def test_a_folder_of_that_name_wins(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlp(seed=1).push_to_hub(ID, token=TOKEN)
    monkeypatch.chdir(tmp_path)
    mlp(seed=2).save_pretrained(ID)
    hub.requests.clear()
    assert_equal(ss.ScoreModel.from_pretrained(ID), mlp(seed=2))
    with pytest.raises(CheckpointError, match="there is no folder"):
        ss.ScoreModel.from_pretrained(Path("owner/other"))  # a path is never an id
    assert not hub.requests


# -- what is not given ---------------------------------------------------------------------------------------------


def test_repositories_that_hold_something_else(hub: LocalHub) -> None:
    hub.add("a/pipeline", {"model_index.json": b"{}", "unet/config.json": b"{}"})
    hub.add("a/unet", {"config.json": b'{"_class_name": "UNet2DModel"}', "diffusion_pytorch_model.safetensors": b""})
    hub.add("a/bert", {"config.json": b'{"model_type": "bert", "architectures": ["B"]}'})
    hub.add("a/pickles", {"model.bin": b"", "run.py": b""})
    hub.add("a/data", {"data.csv": b""})
    hub.add("a/broken", {"config.json": b"{"})
    hub.add("a/other", {"config.json": b'{"a": 1}'})
    hub.add("a/deep", {"config.json": b"[" * 10_000})
    for name, match in (
        ("pipeline", r"a/pipeline holds a pipeline of diffusers.*from_diffusers\('a/pipeline/unet', scheduler\)"),
        ("unet", r"a/unet holds a UNet2DModel of diffusers.*from_diffusers\('a/unet', scheduler\)"),
        ("bert", "a/bert holds a model of transformers"),
        ("pickles", r"a/pickles holds model\.bin: pickles, which run code"),
        ("data", r"a/data on the hub has no config\.json, so that it is no model of scoresde; it holds data\.csv"),
        ("broken", r"config\.json is damaged: the file is not JSON"),
        ("other", r"config\.json is damaged: its SHA-256 is not the one written"),
        ("deep", r"config\.json is damaged"),
    ):
        with pytest.raises(CheckpointError, match=match):
            ss.ScoreModel.from_pretrained(f"a/{name}")
    assert not [path for _, path in hub.requests if path.startswith("/lfs/")]  # no weights were fetched


def test_who_may_not_and_what_is_not_there(hub: LocalHub, saved: dict[str, bytes]) -> None:
    hub.add("a/gated", saved, gated=True)
    hub.add("a/private", saved, private=True)
    hub.add(ID, saved)
    for name, options, match in (
        ("a/gated", {}, "a/gated is gated.*Accept them on its page, and give a token"),
        (
            "a/private",
            {"token": "hf_wrong"},
            "no repository of that name on the hub; if it is a private one, give",
        ),
        ("nobody/nothing", {}, "there is no folder nobody/nothing here, and no repository of that name"),
        (ID, {"revision": "v9"}, "owner/model on the hub has no revision 'v9'"),
        ("owner/a--b", {}, "no folder owner/a--b here, and it is no id of a hub"),
    ):
        with pytest.raises(CheckpointError, match=match):
            ss.ScoreModel.from_pretrained(name, **options)  # type: ignore[arg-type]
    for name in ("a/gated", "a/private"):
        ss.ScoreModel.from_pretrained(name, token=TOKEN)


@pytest.mark.parametrize("how", ["down", "offline", "gone"])
def test_without_a_hub_the_cache_serves(
    how: str, hub: LocalHub, saved: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(ID, saved)
    ss.ScoreModel.from_pretrained(ID, ema=False)
    hub.add(ID, {"config.json": b"{}"})  # a later commit, which is not seen
    if how == "down":
        hub.down = True
    elif how == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert_equal(ss.ScoreModel.from_pretrained(ID, ema=False), mlp(seed=1))
    with pytest.raises(CheckpointError, match=r"the hub cannot be reached .*ema\.safetensors of owner/model .*cache"):
        ss.ScoreModel.from_pretrained(ID)
    with pytest.raises(CheckpointError, match=r"folder owner/other here, the hub cannot be reached .*not in the cache"):
        ss.ScoreModel.from_pretrained("owner/other")
    with pytest.raises(CheckpointError, match=r"asks no hub.*not in the cache"):
        ss.ScoreModel.from_pretrained("owner/other", local_files_only=True)
    with pytest.raises(CheckpointError, match=r"could not be pushed to owner/model: \w+: "):
        mlp().push_to_hub(ID, token=TOKEN)


def test_sizes_are_known_before_anything_large_is_fetched(hub: LocalHub, saved: dict[str, bytes]) -> None:
    hub.add(ID, saved)
    size = len(saved["model.safetensors"])
    with pytest.raises(CheckpointError, match=r"have \d+ bytes, and max_bytes is 10: it must be"):
        ss.ScoreModel.from_pretrained(ID, max_bytes=10)
    hub.claims["model.safetensors"] = 10**12
    with pytest.raises(CheckpointError, match=rf"has {10**12} bytes, and its config\.json says {size}.*not fetched"):
        ss.ScoreModel.from_pretrained(ID)
    hub.claims["config.json"] = 10**9
    with pytest.raises(CheckpointError, match=r"config\.json of owner/model has 1000000000 bytes; the limit is"):
        ss.ScoreModel.from_pretrained("owner/model", revision="main")
    assert not [path for _, path in hub.requests if path.startswith("/lfs/")]


def test_weights_that_are_not_those_described_are_found(hub: LocalHub, saved: dict[str, bytes]) -> None:
    hub.add(ID, saved)
    hub.spoil.add("model.safetensors")
    told = r"safetensors is damaged: its SHA-256 is not the one written\. It is in the cache of a hub: remove (\S+),"
    with pytest.raises(CheckpointError, match=told) as caught:
        ss.ScoreModel.from_pretrained(ID)
    hub.spoil.clear()  # the damage was done on the way: what the message says mends it
    shutil.rmtree(re.search(told, str(caught.value))[1])  # type: ignore[index]
    assert_equal(ss.ScoreModel.from_pretrained(ID, ema=False), mlp(seed=1))


def test_names_in_a_strangers_config_reach_no_other_file(hub: LocalHub, saved: dict[str, bytes]) -> None:
    """What config.json lists is not what is fetched: only files of known names are."""
    config = json.loads(saved["config.json"])
    config["files"]["../../../evil"] = {"bytes": 1, "sha256": "0" * 64}
    hub.add(ID, {**saved, "config.json": json.dumps(folders.sealed(config)).encode()})
    assert_equal(ss.ScoreModel.from_pretrained(ID), mlp(seed=2))
    assert not [path for _, path in hub.requests if "evil" in path]


# -- what is not taken ---------------------------------------------------------------------------------------------


def test_who_may_not_write_is_told_so_and_nothing_changes(hub: LocalHub, saved: dict[str, bytes]) -> None:
    before = hub.add(ID, saved)
    for name, token in ((ID, None), (ID, "hf_of_somebody"), ("owner/new", "hf_of_somebody")):
        with pytest.raises(CheckpointError, match="token"):
            mlp().push_to_hub(name, token=token)
    assert list(hub.repos) == [ID] and hub.repos[ID].branches == {"main": before}


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"repo_id": 3}, TypeError, "repo_id must be a text"),
        ({"repo_id": "model"}, ValueError, "repo_id must be 'owner/name'"),
        ({"repo_id": "a/b/c"}, ValueError, "repo_id must be 'owner/name'"),
        ({"repo_id": "owner/.."}, ValueError, "by the rules of the hub"),
        ({"repo_id": "a/b--c"}, ValueError, "by the rules of the hub"),
        ({"revision": ""}, ValueError, "revision must be"),
        ({"private": "yes"}, TypeError, "private"),
        ({"pull_request": 1}, TypeError, "pull_request"),
        ({"revision": 3}, TypeError, "revision must be"),
        ({"token": 3}, TypeError, "token must be"),
        ({"message": 3}, TypeError, "message must be"),
        ({"figures": {"a": float("nan")}}, ValueError, "figures"),
        ({"max_bytes": 10}, ValueError, "max_bytes must be at least"),
    ],
)
def test_wrong_arguments_are_refused_before_the_hub_is_asked(
    given: dict[str, Any], error: Any, match: str, hub: LocalHub
) -> None:
    with pytest.raises(error, match=match):
        push_to_hub(mlp(), **{"repo_id": ID, "token": TOKEN, **given})
    assert not hub.requests


@pytest.mark.parametrize("name", ["revision", "token", "cache_dir", "local_files_only", "max_bytes", "ema"])
def test_wrong_options_of_loading_are_refused_before_the_hub_is_asked(name: str, hub: LocalHub) -> None:
    wrong = {"cache_dir": 3, "max_bytes": 0}.get(name, 1.5)
    with pytest.raises((TypeError, ValueError), match=name):
        ss.ScoreModel.from_pretrained(ID, **{name: wrong})  # type: ignore[arg-type]
    assert not hub.requests


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("huggingface_hub", "huggingface_hub.errors"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda: ss.ScoreModel.from_pretrained(ID), lambda: mlp().push_to_hub(ID)):
        with pytest.raises(ModuleNotFoundError, match=r'pip install "scoresde\[hub\]"'):
            call()
    ss.pretrained("digits")  # needs none


# -- the environment -----------------------------------------------------------------------------------------------


@pytest.fixture
def environment(hub: LocalHub, tmp_path: Path) -> Iterator[dict[str, str]]:
    yield {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip


def test_another_process_finds_the_hub_by_its_environment(hub: LocalHub, environment: dict[str, str]) -> None:
    """HF_ENDPOINT, HF_TOKEN and HF_HOME, as on anybody's machine; nothing of the client is patched.

    Before that, in the same process: pictures need no network and no optional package but safetensors.
    """
    code = (
        "import socket, sys, scoresde as ss\n"
        "def none(*a, **k): raise OSError('no network')\n"
        "connect, socket.socket.connect = socket.socket.connect, none\n"
        "x = ss.sample(ss.pretrained('digits').bind(label=3), (1, 1, 8, 8), steps=4).data\n"
        "heavy = ['huggingface_hub', 'accelerate', 'matplotlib', 'diffusers', 'tyro', 'yaml', 'PIL']\n"
        "assert x.shape == (1, 1, 8, 8) and not [name for name in heavy if name in sys.modules]\n"
        "socket.socket.connect = connect\n"
        "ss.pretrained('digits').push_to_hub('owner/digits', licence='mit', private=True)\n"
        "model = ss.ScoreModel.from_pretrained('owner/digits')\n"
        "print(sum(p.double().sum().item() for p in model.parameters()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    expected: Tensor = sum(p.double().sum() for p in ss.pretrained("digits").parameters())  # type: ignore[assignment]
    assert float(done.stdout) == expected.item()
    assert hub.repos["owner/digits"].private
