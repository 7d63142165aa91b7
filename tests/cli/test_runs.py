"""`scoresde train`, `sample` and `likelihood` in process, with tiny settings: what they write, what flags do, what they
refuse."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

import scoresde as ss
from scoresde import grids, solvers, times
from scoresde.cli import choices, likelihood, sample, train
from scoresde.cli.command import command
from scoresde.cli.flags import use_threads
from scoresde.cli.networks import network
from scoresde.cli.trained import open_checkpoint
from scoresde.cli.training_flags import ASKED_OTHERWISE, FOUND
from scoresde.nn import presets
from scoresde.train import TrainOptions, compiled, load_model

# -- data and checkpoints that several tests use -----------------------------------------------------------------------

# Two classes of points far apart in units of their own, so that labels and scalings show in every figure.
CENTRES = np.array([[10.0, 0.0], [30.0, 5.0]])
MLP: dict[str, Any] = {"width": 16, "depth": 1, "batch_size": 32, "cpu": True}
UNET: dict[str, Any] = {"width": 8, "multipliers": (1,), "blocks": 1, "attention_levels": (), "cpu": True}


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Points of two classes, and their labels."""
    folder = tmp_path_factory.mktemp("points")
    draw = np.random.default_rng(0)
    label = np.arange(300) % 2
    np.save(folder / "x.npy", CENTRES[label] + draw.normal(size=(300, 2)))
    np.save(folder / "label.npy", label)
    return folder / "x.npy", folder / "label.npy"


@pytest.fixture(scope="module")
def vectors(points: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional checkpoint of the points."""
    out = tmp_path_factory.mktemp("vectors") / "run"
    train.main(train.TrainConfig(data=points[0], label=points[1], out=out, steps=250, lr=1e-2, ema=0.9, **MLP))
    return out


@pytest.fixture(scope="module")
def plain(points: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the points without labels."""
    out = tmp_path_factory.mktemp("plain") / "run"
    train.main(train.TrainConfig(data=points[0], out=out, steps=5, **MLP))
    return out


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of grey pictures 6 high and 4 wide: bright cats, dark dogs."""
    folder = tmp_path_factory.mktemp("album")
    draw = np.random.default_rng(0)
    for name, low, high in (("cat", 150, 250), ("dog", 0, 100)):
        (folder / name).mkdir()
        for i in range(12):
            Image.fromarray(draw.integers(low, high, (6, 4), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def images(album: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional checkpoint of the pictures."""
    out = tmp_path_factory.mktemp("images") / "run"
    train.main(train.TrainConfig(data=album, out=out, steps=60, batch_size=16, lr=5e-3, ema=0.9, **UNET))
    return out


def drawn(checkpoint: Path, out: Path, **flags: Any) -> np.ndarray[Any, Any]:
    """The samples that `scoresde sample` writes, by Heun on Karras' grid unless told."""
    usual = {"samples": 12, "steps": 4, "solver": "heun", "grid": "karras"}
    sample.main(sample.SampleConfig(checkpoint=str(checkpoint), out=out, **{**usual, **flags}))
    array: np.ndarray[Any, Any] = np.load(out / "samples.npy")
    return array


def weights(run: Path, *, ema: bool = True) -> torch.Tensor:
    """All parameters of a run's last checkpoint as one vector."""
    return torch.cat([p.detach().flatten() for p in load_model(run, ema=ema).parameters()])


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_bad_input_on_the_command_line_ends_in_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sample.py", "--checkpoint", "nowhere", "--cpu"])
    with pytest.raises(SystemExit, match=r"^error: there is no folder nowhere, and --checkpoint must be"):
        command(sample.main, sample.SampleConfig)


def test_what_the_library_has_is_found_by_name() -> None:
    public = {vars(solvers)[name] for name in solvers.__all__}
    concrete = {c for c in public if isinstance(c, type) and issubclass(c, ss.Solver) and not c.__abstractmethods__}
    assert concrete - {solvers.Fitted} == set(choices.SOLVERS.values())  # which is made by a fit, not by options
    assert choices.SOLVERS["euler-maruyama"] is ss.EulerMaruyama
    assert set(choices.SDES.values()) == {ss.VP, ss.SubVP, ss.VE, ss.Cosine, ss.EDM, ss.RectifiedFlow}
    assert set(choices.GRIDS.values()) == {grids.spectral, grids.uniform, grids.log_snr, grids.karras}
    assert times.LogNormalSigma in choices.TIMES.values()
    assert times.Stratified not in choices.TIMES.values()
    assert "digits" in choices.PRESETS


def test_every_option_of_training_is_a_flag() -> None:
    flags = {field.name for field in dataclasses.fields(train.TrainConfig)}
    options = {field.name for field in dataclasses.fields(TrainOptions)}
    objects = {"optimizer", "callbacks", "columns"}  # of Python; columns of files are named by flags of the readers
    assert options - flags == {"conditions", "folder", "snapshots"} | objects  # labels; --out; --snapshot-every
    assert set(FOUND) == options - ASKED_OTHERWISE


def test_options_are_read_by_the_types_of_their_fields() -> None:
    ve = choices.build(choices.SDES, "ve", ["sigma_min=60", "sigma_max=1e2"])  # each alone would be refused
    assert ve == ss.VE(sigma_min=60.0, sigma_max=100.0)
    solver = choices.build(
        choices.SOLVERS, "predictor-corrector", ["predictor=ddim", "predictor.eta=0.5", "corrector.steps=2"]
    )
    assert solver == ss.PredictorCorrector(ss.DDIM(0.5), solvers.Langevin(steps=2))
    flow = choices.build(choices.SOLVERS, "probability-flow", ["method=rk4", "options.step_size=0.1", "adjoint=true"])
    assert flow == solvers.ProbabilityFlow("rk4", options={"step_size": 0.1}, adjoint=True)
    assert choices.build(choices.SOLVERS, "annealed-langevin", ["step_size=none"]) == solvers.AnnealedLangevin()
    grid = choices.grid_named("karras", ["rho=3", "t_end=0.1"])(ss.VP(), 5)
    assert torch.equal(grid, grids.karras(ss.VP(), 5, rho=3.0, t_end=0.1))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nothing", [], "choose one of adaptiveode"),
        ("heun", ["churn"], "written name=value"),
        ("heun", ["churn=1", "churn=2"], "given twice"),
        ("heun", ["churns=1"], "no option 'churns'; it has churn, churn_min"),
        ("heun", ["churn=much"], "it takes a number"),
        ("heun", ["churn.much=1"], "no parts to set"),
        ("ancestral", ["variance=large"], "'posterior' or 'transition'"),
        ("annealed-langevin", ["steps=1.5"], "it takes a whole number"),
        ("predictor-corrector", ["corrector=langevin"], "name.part=value"),
        ("heun", ["churn=-1"], "churn >= 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(name: str, options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choices.build(choices.SOLVERS, name, options)


# -- train.py ----------------------------------------------------------------------------------------------------------


def test_training_writes_a_folder_that_describes_itself(vectors: Path, images: Path) -> None:
    for run in (vectors, images):
        names = {p.name for p in run.iterdir() if p.is_file()}
        assert names == {"config.yaml", "log.jsonl", "loss.png"}
        Image.open(run / "loss.png").verify()
    assert "steps: 250" in (vectors / "config.yaml").read_text().splitlines()
    assert type(load_model(vectors).net).__name__ == "MLP" and type(load_model(images).net).__name__ == "UNet"


@pytest.mark.parametrize(("shape", "channels", "dims"), [((20, 8), "none", 1), ((20, 4, 4, 4), "none", 3)])
def test_signals_and_volumes(shape: tuple[int, ...], channels: Any, dims: int, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=shape))
    run = tmp_path / "run"
    train.main(train.TrainConfig(data=tmp_path / "x.npy", channels=channels, out=run, steps=2, batch_size=4, **UNET))
    assert load_model(run).net.config["event_dims"] == dims
    x = drawn(run, tmp_path / "out", samples=3)
    assert x.shape == (3, 1, *shape[1:])
    Image.open(tmp_path / "out" / "samples.png").verify()


CHANGES: dict[str, Any] = {
    "sde": "ve",
    "sde_options": ("beta_max=10",),
    "predicts": "noise",
    "sigma_data": 0.3,
    "scaling": "tensor",
    "width": 24,
    "depth": 2,
    "time_features": "fourier",
    "dropout": 0.5,
    "weighting": "simple",
    "times": "uniform-time",
    "times_options": ("std=0.5",),
    "stratified": False,
    "condition_dropout": 0.9,
    "conditional": False,
    "steps": 6,
    "batch_size": 24,
    "lr": 1e-3,
    "weight_decay": 0.5,
    "warmup": 0,
    "decay": "constant",
    "clip": 1e-3,
    "ema": 0.05,
    "accumulate": 4,
    "mixed_precision": "bf16",
    "seed": 1,
}


@pytest.fixture(scope="module")
def short(points: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """The weights after a short training."""
    out = tmp_path_factory.mktemp("short") / "run"
    train.main(train.TrainConfig(data=points[0], label=points[1], out=out, **{**MLP, "steps": 20}))
    return weights(out)


@pytest.mark.parametrize("name", list(CHANGES))
def test_every_flag_of_training_changes_the_weights(
    name: str, points: tuple[Path, Path], short: torch.Tensor, tmp_path: Path
) -> None:
    flags = {**MLP, "steps": 20, name: CHANGES[name]}
    train.main(train.TrainConfig(data=points[0], label=points[1], out=tmp_path / "run", **flags))
    other = weights(tmp_path / "run")
    assert other.shape != short.shape or not torch.equal(other, short)


@pytest.mark.parametrize(
    "change", [{"flip": True}, {"dequantize": False}, {"mode": "RGB"}, {"conditioning": "add"}],
    ids=lambda c: next(iter(c)),
)  # fmt: skip
def test_flags_of_image_training_change_the_weights(change: dict[str, Any], album: Path, tmp_path: Path) -> None:
    found = []
    for name, flags in (("a", {}), ("b", change)):
        train.main(train.TrainConfig(data=album, out=tmp_path / name, steps=3, batch_size=8, **{**UNET, **flags}))
        found.append(weights(tmp_path / name))
    assert found[0].shape != found[1].shape or not torch.equal(*found)


def test_presets_and_what_changes_them() -> None:
    changes: dict[str, Any] = {
        "width": 16,
        "multipliers": (1, 1),
        "blocks": 1,
        "attention_levels": (0,),
        "dropout": 0.2,
    }
    net = network(train.TrainConfig(data=Path(), network="mnist", **changes), (3, 28, 28), 5)
    changes.update(multipliers=[1, 1], attention_levels=[0])  # JSON has no tuples
    assert net.config == {**presets.mnist(3, num_classes=5).config, **changes}


def test_arrays_with_levels_and_channels_last(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 17, (20, 4, 6, 3)))
    flags: dict[str, Any] = {"channels": "last", "levels": 17, "steps": 1, "batch_size": 4}
    train.main(train.TrainConfig(data=tmp_path / "x.npy", out=tmp_path / "run", **{**UNET, **flags}))
    x = drawn(tmp_path / "run", tmp_path / "out")
    assert x.shape == (12, 3, 4, 6) and x.dtype == np.uint8 and 8 < x.max() <= 16
    Image.open(tmp_path / "out" / "samples.png").verify()


def test_columns_of_parquet_by_name(album: Path, tmp_path: Path) -> None:
    files = [*sorted(album.glob("cat/*"))[:4], *sorted(album.glob("dog/*"))[:4]]
    pictures = [{"bytes": file.read_bytes(), "path": None} for file in files]
    other = [{"bytes": b"", "path": None}] * 8
    table = {"image": other, "picture": pictures, "label": [0] * 8, "kind": [0] * 4 + [1] * 4}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "x.parquet")
    flags: dict[str, Any] = {"data": tmp_path / "x.parquet", "image_column": "picture", "label_column": "kind"}
    train.main(train.TrainConfig(out=tmp_path / "run", steps=1, batch_size=4, **UNET, **flags))
    assert load_model(tmp_path / "run").net.config["num_classes"] == 2


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    use_threads(before + 1)
    assert torch.get_num_threads() == before + 1
    use_threads(0)
    assert torch.get_num_threads() == before + 1
    use_threads(before)


def test_how_often_things_are_written(points: tuple[Path, Path], tmp_path: Path) -> None:
    flags = {**MLP, "steps": 12, "save_every": 5, "keep": 3, "log_every": 4}
    train.main(train.TrainConfig(data=points[0], out=tmp_path, **flags))
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000005", "step-00000010", "step-00000012"]
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [4, 8, 12]


def test_resumed_training_equals_uninterrupted_training(points: tuple[Path, Path], tmp_path: Path) -> None:
    flags = {"data": points[0], "label": points[1], "steps": 8, **MLP}
    train.main(train.TrainConfig(out=tmp_path / "whole", **flags))
    train.main(train.TrainConfig(out=tmp_path / "parts", max_seconds=1e-6, **flags))  # over after its first step
    assert [p.name for p in (tmp_path / "parts").glob("step-*")] == ["step-00000001"]
    with pytest.raises(ValueError, match="holds checkpoints already"):
        train.main(train.TrainConfig(out=tmp_path / "parts", **flags))
    train.main(train.TrainConfig(out=tmp_path / "parts", resume=True, **flags))
    for ema in (True, False):
        assert torch.equal(weights(tmp_path / "whole", ema=ema), weights(tmp_path / "parts", ema=ema))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"data": "nowhere"}, "no data at nowhere"),
        ({"data": "empty"}, "holds no images"),
        ({"data": "text.npy"}, "cannot read .*text.npy as NumPy data"),
        ({"data": "deep.npy"}, "--channels none"),
        ({"data": "album", "channels": "last"}, "--channels says nothing about .*load_folder"),
        ({"data": "album", "depth": 2}, "--depth says nothing about the UNet"),
        ({"data": "album", "sde": "ve", "sde_options": ("sigma_max=0",)}, "sigma_max must be positive"),
        ({"data": "album", "save_every": 0}, "save_every must be a whole number of at least 1"),
        ({"data": "album", "lr": -1.0}, "lr must be finite and above 0"),
        ({"data": "album", "threads": -1}, "--threads"),
        ({"data": "album", "out": "text.npy"}, "cannot write into"),
        ({"data": "x.npy", "multipliers": (1, 2)}, "--multipliers says nothing about the MLP"),
        ({"data": "x.npy", "network": "digits"}, "the preset digits is for images"),
        ({"data": "x.npy", "flip": True}, "samples here are vectors"),
        ({"data": "x.npy", "dequantize": True}, "dequantize"),
        ({"data": "x.npy", "condition_dropout": 0.2}, "there are none to learn"),
        ({"data": "x.npy", "mode": "L"}, "--mode says nothing"),
        ({"data": "x.npy", "levels": 4}, "outside 0 ... 3"),
        ({"data": "x.npy", "label": "label.npy", "label_column": "y"}, "--label-column says nothing"),
        ({"data": "x.npy", "times_options": ("mean=100",)}, "choose a mean inside"),
        ({"data": "album", "augment": 1.5}, "--augment must be a probability"),
        ({"data": "x.npy", "snapshot_every": 0}, "--snapshot-every must be at least 1"),
        ({"data": "x.npy", "snapshot_dtype": "float16"}, "--snapshot-dtype does nothing without --snapshot-every"),
        ({"data": "x.npy", "held_out": 0.2, "tolerance": 0.1}, "--tolerance does nothing without --early-stopping"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_training_refuses_before_it_starts(
    flags: dict[str, Any], message: str, points: tuple[Path, Path], album: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "deep.npy", np.zeros((3, 1, 2, 2, 2, 2)) + np.arange(3).reshape(-1, 1, 1, 1, 1, 1))
    places = {"x.npy": points[0], "label.npy": points[1], "album": album, "nowhere": Path("nowhere")}
    paths = {"data", "label", "out"}
    given = {k: places.get(v, tmp_path / v) if k in paths else v for k, v in flags.items()}
    given = {"out": tmp_path / "run", "cpu": True, **given}
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        train.main(train.TrainConfig(**given))
    assert not list(tmp_path.rglob("step-*")) and not (tmp_path / "run").exists()


def test_a_missing_compiler_is_an_error_in_one_line(
    points: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise OSError("no g++")

    compiled.check_compiler.cache_clear()
    monkeypatch.setattr(torch, "compile", absent)
    words = ["--data", str(points[0]), "--out", str(tmp_path / "run"), "--compile", "--cpu", "--steps", "1"]
    with pytest.raises(SystemExit, match=r"error: --compile: .*no g\+\+.*leave compile out"):
        command(train.main, train.TrainConfig, words)
    compiled.check_compiler.cache_clear()


# -- sample.py ---------------------------------------------------------------------------------------------------------


def test_samples_of_a_class_look_like_it(vectors: Path, tmp_path: Path) -> None:
    x = drawn(vectors, tmp_path, samples=40, steps=20)
    label = np.load(tmp_path / "labels.npy")
    assert np.array_equal(label, np.arange(40) % 2)
    # In the data's own units the classes are 20 apart, with deviation 1: less than 8 from its centre is right.
    assert (np.linalg.norm(x - CENTRES[label], axis=1) < 8).mean() > 0.9
    Image.open(tmp_path / "samples.png").verify()
    report = read(tmp_path / "report.json")
    assert report["nfe"] == 41 and report["step"] == 250 and report["samples"] == 40 and report["seconds"] > 0
    assert report["sde"].startswith("VP(") and report["solver"].startswith("Heun(")


def test_pictures_come_back_as_pictures(images: Path, album: Path, tmp_path: Path) -> None:
    x = drawn(images, tmp_path / "a", labels=("dog", "cat"), samples=20, steps=10, guidance=2.0)
    assert x.shape == (20, 1, 6, 4) and x.dtype == np.uint8
    assert np.array_equal(np.load(tmp_path / "a" / "labels.npy"), np.array([1, 0] * 10))
    # Cats are bright and dogs dark, by 150 levels on average.
    assert x[1::2].mean() > x[::2].mean() + 50
    by_number = drawn(images, tmp_path / "b", labels=("1", "0"), samples=20, steps=10, guidance=2.0)
    assert np.array_equal(x, by_number)
    # What sample.py writes, likelihood.py and train.py read.
    report = likelihood.main(
        likelihood.LikelihoodConfig(
            checkpoint=images, data=tmp_path / "a" / "samples.npy", label=tmp_path / "a" / "labels.npy",
            out=tmp_path / "c", first=4, rtol=1e-2, atol=1e-2, cpu=True,
        )
    )  # fmt: skip
    assert report["samples"] == 4 and report["unit"] == "bits per dimension"


@pytest.mark.parametrize("name", list(choices.SOLVERS))
def test_every_solver_gives_the_same_samples_in_any_batch_size(name: str, vectors: Path, tmp_path: Path) -> None:
    options = {"heun": ("churn=2",), "annealed-langevin": ("steps=2",)}.get(name, ())
    whole = drawn(vectors, tmp_path / "a", solver=name, solver_options=options)
    parts = drawn(vectors, tmp_path / "b", solver=name, solver_options=options, batch_size=5)
    # float32 sums in another order, 1e-6 relative; the adaptive ODE solver is good to 1e-5 with either error norm, and
    # the score stretches that by less than a hundred.
    assert np.allclose(whole, parts, rtol=0, atol=2e-2 if name == "probability-flow" else 2e-3)
    assert len(np.unique(whole, axis=0)) == 12


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"steps": 5}, {"labels": ("1",)}, {"guidance": 3.0}, {"guidance": 0.0}, {"solver": "ddim"},
        {"solver_options": ("churn=3",)}, {"grid": "uniform"}, {"grid_options": ("rho=3",)}, {"denoise": False},
        {"ema": False}, {"sde": "ve", "sde_options": ("sigma_max=20",)}, {"sde": "subvp"},
        {"solver": "euler-maruyama"}, {"solver": "euler-maruyama", "eta": 0.5},
        {"solver": "euler-maruyama", "noise": "brownian"}, {"solver": "torchsde"},
        {"solver": "torchsde", "noise": "brownian"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*runs over log-SNR")
def test_every_flag_of_sampling_changes_the_samples(change: dict[str, Any], vectors: Path, tmp_path: Path) -> None:
    *rest, last = change.items()
    before, after = (drawn(vectors, tmp_path / str(i), **dict(c)) for i, c in enumerate((rest, [*rest, last])))
    assert not np.allclose(before, after)


def test_a_path_is_the_same_for_any_number_of_steps(vectors: Path, tmp_path: Path) -> None:
    flags = {"solver": "euler-maruyama", "grid": "log-snr", "noise": "brownian"}
    fine, coarse = (drawn(vectors, tmp_path / str(n), steps=n, **flags) for n in (128, 64))
    fresh = drawn(vectors, tmp_path / "fresh", steps=64, **{**flags, "noise": "per-sample"})
    # One path: a discretisation error. Other noise: another sample.
    assert np.abs(fine - coarse).mean() < 0.2 * np.abs(fine - fresh).mean()


def test_only_some_samples_are_drawn(images: Path, tmp_path: Path) -> None:
    drawn(images, tmp_path / "few", steps=1, drawn=2)
    drawn(images, tmp_path / "all", steps=1)
    sizes = [Image.open(tmp_path / name / "samples.png").size for name in ("few", "all")]
    assert sizes[0] != sizes[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"checkpoint": Path("nowhere")}, "there is no folder nowhere"),
        ({"samples": 0}, "--samples must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"labels": ("cat",)}, "no class 'cat'; the model knows 2: 0, 1"),
        ({"labels": ("2",)}, "no class '2'"),
        ({"labels": ("-1",)}, "no class '-1'"),
        ({"labels": ("1",), "guidance": 0.0}, "--guidance 0 generates without labels"),
        ({"guidance": math.nan}, "--guidance must be a finite number"),
        ({"eta": -1.0}, "eta must be at least 0"),
        ({"eta": 1.0, "solver": "heun"}, "Heun integrates the probability-flow ODE"),
        ({"sde_options": ("T=0.5",)}, "name it by --sde"),
        ({"solver": "heun", "solver_options": ("order=2",)}, "Heun has no option 'order'"),
        ({"grid": "karras", "grid_options": ("rho=0",)}, "rho must be positive"),
        ({"solver_options": ("churn=1",)}, "name it by --solver"),
        ({"grid_options": ("rho=3",)}, "name it by --grid"),
        ({"fitted": Path("five.json"), "solver": "heun"}, "leave --solver out"),
        ({"condition": ("obs=1",)}, "--condition obs: .* takes none"),
        ({"graphs": True}, "--graphs are CUDA's"),
        ({"threads": -1}, "--threads"),
        ({"out": Path(__file__) / "out"}, "cannot write into"),
    ],
    ids=str,
)
def test_sampling_refuses_before_it_starts(flags: dict[str, Any], message: str, vectors: Path, tmp_path: Path) -> None:
    given = {"checkpoint": str(vectors), "out": tmp_path / "out", "cpu": True, **flags}
    with pytest.raises(ValueError, match=message):
        sample.main(sample.SampleConfig(**given))
    assert not list(tmp_path.iterdir())  # nothing half written


@pytest.mark.parametrize("flags", [{"labels": ("0",)}, {"guidance": 1.0}], ids=str)
def test_a_model_without_classes_takes_no_label(flags: dict[str, Any], plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a model that knows classes"):
        sample.main(sample.SampleConfig(checkpoint=plain, out=tmp_path, **flags))
    drawn(plain, tmp_path)
    assert not (tmp_path / "labels.npy").exists()


# -- likelihood.py -----------------------------------------------------------------------------------------------------


def test_nats_are_those_of_the_density_in_the_units_of_the_data(
    vectors: Path, points: tuple[Path, Path], tmp_path: Path
) -> None:
    flags: dict[str, Any] = {"checkpoint": vectors, "data": points[0], "label": points[1], "divergence": "exact"}
    report = likelihood.main(likelihood.LikelihoodConfig(out=tmp_path, first=200, batch_size=60, **flags))
    values = np.load(tmp_path / "likelihood.npy")
    assert values.shape == (200,) and report["unit"] == "nats per sample" and report["given_label"]
    assert report["mean"] == pytest.approx(values.mean())
    assert report["standard_error"] == pytest.approx(values.std(ddof=1) / math.sqrt(200))
    # Gibbs: no model beats the true density N(centre, I), of mean log-density -log 2πe, beyond the standard error.
    # A model that mistook the scale (11 here) in the density would be off by log 11² = 4.8.
    truth = -math.log(2 * math.pi * math.e)
    assert truth - 2 < report["mean"] < truth + 4 * report["standard_error"]
    # Without their labels the data are less likely, by up to log 2.
    alone = likelihood.main(likelihood.LikelihoodConfig(out=tmp_path, first=200, conditional=False, **flags))
    assert not alone["given_label"] and alone["mean"] < report["mean"]


def test_bits_are_those_of_the_library(images: Path, album: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"data": album, "checkpoint": images, "first": 6, "rtol": 1e-3, "atol": 1e-3, "seed": 3}
    report = likelihood.main(likelihood.LikelihoodConfig(out=tmp_path, probes=2, **flags))
    batch = likelihood.matching_data(likelihood.LikelihoodConfig(**flags), open_checkpoint(images, ema=True, cpu=True))[
        :6
    ]
    options: dict[str, Any] = {"probes": 2, "noise": ss.PerSampleNoise(3)}
    options["solver"] = solvers.ProbabilityFlow(rtol=1e-3, atol=1e-3)
    score = load_model(images).bind(label=batch["label"])
    with torch.no_grad():
        bits = ss.bits_per_dim(score, batch["x"], 2 / 255, **options)
    assert report["unit"] == "bits per dimension"
    assert np.array_equal(np.load(tmp_path / "likelihood.npy"), bits.double().numpy())


def test_classes_are_matched_by_name(images: Path, album: Path, tmp_path: Path) -> None:
    """A folder that lacks the first class would otherwise call its dogs cats."""
    (tmp_path / "dog").mkdir()
    shutil.copy(album / "dog" / "0.png", tmp_path / "dog")
    trained = open_checkpoint(images, ema=True, cpu=True)
    dataset = likelihood.matching_data(likelihood.LikelihoodConfig(checkpoint=images, data=tmp_path), trained)
    assert dataset.label is not None and dataset.label.tolist() == [1]


@pytest.mark.parametrize(
    "change",
    [{"divergence": "hutchinson"}, {"divergence": "hutchinson", "probes": 2}, {"divergence": "hutchinson", "seed": 1},
     {"method": "bosh3"}, {"rtol": 1e-2}, {"atol": 1e-2}, {"ema": False}],
    ids=str,
)  # fmt: skip
def test_every_flag_of_likelihood_changes_its_value(
    change: dict[str, Any], vectors: Path, points: tuple[Path, Path], tmp_path: Path
) -> None:
    *rest, last = change.items()
    both = []
    for flags in (rest, [*rest, last]):
        given = {"divergence": "exact", "first": 20, **dict(flags)}
        both.append(
            likelihood.main(likelihood.LikelihoodConfig(checkpoint=vectors, data=points[0], out=tmp_path, **given))
        )
    assert both[0]["mean"] != both[1]["mean"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"checkpoint": Path("nowhere")}, "there is no folder nowhere"),
        ({"data": "nowhere"}, "no data at"),
        ({"data": "wide.npy"}, r"not fit a model trained on \(2,\): .*\(3,\)"),
        ({"data": "album"}, r"shape \(1, 6, 4\)"),
        ({"label": "many.npy"}, "no class '5'"),
        ({"probes": 2, "divergence": "exact"}, "--probes belong to the estimate"),
        ({"probes": 0}, "--probes must be at least 1"),
        ({"first": 0}, "--first must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"rtol": 0.0}, "rtol must be positive"),
        ({"method": "best"}, "method must be one of"),
        ({"method": "rk4"}, "has fixed ones"),
        ({"mode": "L"}, "--mode says nothing"),
        ({"out": Path(__file__) / "out"}, "cannot write into"),
    ],
    ids=str,
)
def test_likelihood_refuses_before_it_starts(
    flags: dict[str, Any], message: str, vectors: Path, points: tuple[Path, Path], album: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "wide.npy", np.ones((3, 3)) * np.arange(3))
    np.save(tmp_path / "many.npy", np.full(300, 5))
    places = {"album": album, **{name: tmp_path / name for name in ("wide.npy", "many.npy", "nowhere")}}
    given = {"checkpoint": vectors, "data": points[0], "out": tmp_path / "out", **flags}
    given = {name: places.get(value, value) for name, value in given.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        likelihood.main(likelihood.LikelihoodConfig(**given))
    assert not list(tmp_path.rglob("likelihood.npy"))


def test_labels_for_a_model_without_classes_are_refused(plain: Path, points: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was trained without; leave it out"):
        likelihood.main(likelihood.LikelihoodConfig(checkpoint=plain, data=points[0], label=points[1], out=tmp_path))


def test_pictures_are_not_measured_by_a_model_of_other_units(
    album: Path, points: tuple[Path, Path], tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 1, 6, 4)))
    train.main(train.TrainConfig(data=tmp_path / "x.npy", out=tmp_path / "run", steps=1, batch_size=4, **UNET))
    with pytest.raises(ValueError, match="trained on data read as Scaling"):
        likelihood.main(likelihood.LikelihoodConfig(checkpoint=tmp_path / "run", data=album, out=tmp_path))
