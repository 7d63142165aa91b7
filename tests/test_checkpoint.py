"""Checkpoints: resuming is exact, files describe themselves, damage is named, and a kill at any moment does no harm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scoresde.train.folder as folder_module
from scoresde import EDM, SDE, VE, VP, Cosine, LinearSDE, RectifiedFlow, ScoreModel, SubVP
from scoresde.data import Dataset, Scaling, from_tensors
from scoresde.nn import MLP, UNet
from scoresde.score import predicts_v
from scoresde.train import EMA, CheckpointError, Run, describe, load_model, save, train
from scoresde.train.checkpoint import read_tensors
from scoresde.train.draws import seeded


def digits() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 17, (30, 1, 4, 4), generator=generator)
    label = torch.randint(0, 3, (30,), generator=generator)
    return from_tensors(data, label, levels=17, class_names=["one", "two", "three"])


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
    "label_dropout": 0.3,
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
    save(tmp_path / "model", unet(), step=1)
    with pytest.raises(CheckpointError, match=r"has no training.json.*only a checkpoint written by train"):
        train(unet(), digits(), folder=tmp_path / "model", resume=True, **OPTIONS)
    run = advance(train(unet(), digits(), steps=1, batch_size=4, progress=False))
    with pytest.raises(ValueError, match="no folder"):
        run.save()


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


@pytest.mark.parametrize(("predicts", "sigma_data"), [("v", None), ("edm", 0.7), ("x0", 1.5)])
def test_prediction_and_scale_are_kept(tmp_path: Path, predicts: str, sigma_data: float | None) -> None:
    model = mlp(predicts=predicts, sigma_data=sigma_data)
    save(tmp_path, model, step=0)
    loaded = load_model(tmp_path, ema=False)
    assert (loaded.predicts, loaded.sigma_data) == (predicts, sigma_data)


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
    with pytest.raises(CheckpointError, match=r"do not fit the network \(\d+ differ: .*saved \(2,\), model \(3,\)"):
        load_model(tmp_path, ema=False, net=Own(3), sde=sde(), predicts=predicts_v)
    loaded = load_model(tmp_path, ema=False, net=Own(), sde=sde(), predicts=predicts_v)
    assert_equal(loaded.state_dict(), model.state_dict())
    assert loaded.predicts is predicts_v


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
        load_model(tmp_path)


def test_what_cannot_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="ScoreModel"):
        save(tmp_path, nn.Linear(2, 2), step=0)  # type: ignore[arg-type]
    wrapped = nn.Module()
    wrapped._orig_mod = MLP(2, width=4, depth=1)  # as torch.compile(net) does
    with pytest.raises(ValueError, match=r"net\.compile\(\)"):
        save(tmp_path, ScoreModel(wrapped, VP()), step=0)
    with pytest.raises(ValueError, match="step >= 0 and keep >= 1"):
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


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("spoil", "message"), [(cut, "cut short|damaged"), (flip_a_bit, "damaged"), (Path.unlink, "missing")]
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
        (lambda c: c.pop("model"), r"damaged \(KeyError\('model'\)\)"),
        (lambda c: c["model"].pop("net"), r"damaged \(KeyError\('net'\)\)"),
        (lambda c: c.update(files=[]), "damaged"),
        (lambda c: c["model"]["sde"]["fields"].update(gamma=1.0), r"cannot build the scoresde\.sde\.VP.*gamma"),
        (lambda c: c["model"]["sde"]["fields"].update(beta_min=-1.0), r"cannot build the scoresde\.sde\.VP.*beta_min"),
        (lambda c: c["model"]["net"]["config"].update(width=-4), r"cannot build the scoresde\.nn\.MLP"),
        (lambda c: c["model"]["net"]["config"].update(width=8), "do not fit the network"),
    ],
    ids=["format", "no model", "no net", "no files", "unknown field", "bad field", "bad config", "other config"],
)
def test_a_config_that_makes_no_sense_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = save(tmp_path, mlp(), step=1) / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path, ema=False)


def test_a_file_cannot_name_other_code(tmp_path: Path) -> None:
    path = save(tmp_path, mlp(), step=1) / "config.json"
    config = json.loads(path.read_text())
    config["model"]["net"] = {"class": "os.system", "config": {"command": "false"}}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"network of its own, os\.system"):
        load_model(tmp_path, ema=False)


@pytest.mark.parametrize("name", ["absent", "empty", "step-00000001"])
def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=f"no checkpoint in .*{name}"):
        load_model(tmp_path / name)


# -- interruption ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["mkdir", "_flush", "_sha256", "rename", "rmtree", "save_file"])
def test_a_failure_anywhere_in_a_save_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Each operation on the disk fails in turn, the first time, the second time, ...: until a save gets through."""
    import safetensors.torch

    owner: Any = {"mkdir": Path, "rename": Path, "rmtree": shutil, "save_file": safetensors.torch}.get(
        point, folder_module
    )
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
        with pytest.raises(CheckpointError, match="interrupted"):
            save(tmp_path, mlp(seed=2), step=2, keep=1)
    for path in tmp_path.glob("step-*"):
        load_model(path, ema=False)
    assert describe(tmp_path).step == 2
    save(tmp_path, mlp(seed=3), step=3, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


_KILLED = """
import os, random, signal, sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from test_checkpoint import unet
from scoresde.train import EMA, describe, load_model, save

root, draw = Path(sys.argv[1]), random.Random(0)
inside = 0
for trial in range({trials}):
    folder = root / str(trial)
    model = unet()
    save(folder, model, step=0, ema=EMA(model))
    child = os.fork()
    if child == 0:
        step = 1
        while True:  # weights that tell their step
            with torch.no_grad():
                for p in model.parameters():
                    p.fill_(step)
            save(folder, model, step=step, ema=EMA(model))
            step += 1
    time.sleep(draw.uniform(0.0, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    inside += any(p.name.startswith(".partial") for p in folder.iterdir())
    loaded, step = load_model(folder), describe(folder).step
    assert step == 0 or all(bool((p == step).all()) for p in loaded.parameters())
    load_model(folder, ema=False)
print(inside)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment_leaves_a_loadable_checkpoint(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_KILLED.format(tests=str(Path(__file__).parent), trials=25))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0  # some of the kills fell into the middle of a save


_TRAINING = """
import sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_checkpoint import OPTIONS, digits, unet
from scoresde.train import train

for step in train(unet(), digits(), folder=sys.argv[1], resume=True, **{{**OPTIONS, "steps": 40}}):
    print(step.step, flush=True)
    if step.step == 21:
        time.sleep(60)
"""


def test_a_killed_run_resumes_to_the_same_end(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_TRAINING.format(tests=str(Path(__file__).parent)))
    child = subprocess.Popen([sys.executable, str(script), str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True)
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
