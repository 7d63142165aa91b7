"""The other commands in process, on tiny models: what they write, whether it is true, what they refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.cli import calibration, convert, costs, edit, evaluate, fit, info, inverse, main, posterior, sample, train
from scoresde.cli.conditions import asked_conditions, pairs_of
from scoresde.cli.trained import Trained, open_checkpoint
from scoresde.data import Scaling
from scoresde.files import make_writable
from scoresde.train import CheckpointError, load_model

SERIES: dict[str, Any] = {
    "width": 8, "multipliers": (1,), "blocks": 1, "attention_levels": (), "batch_size": 16, "ema": 0.9, "cpu": True,
    "progress": False,
}  # fmt: skip


def run_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "report.json").read_text())
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Series around 50 of two classes, and pairs of θ and x."""
    folder = tmp_path_factory.mktemp("files")
    draw = np.random.default_rng(0)
    label = np.arange(60) % 2
    series = 50 + 10 * np.sin(np.linspace(0, 6, 16) + 3 * label[:, None]) + draw.normal(size=(60, 16))
    np.save(folder / "series.npy", series[:, None])
    np.save(folder / "label.npy", label)
    theta = draw.normal(size=(300, 2)) * [1, 20] + [0, 100]
    np.save(folder / "theta.npy", theta)
    np.save(folder / "x.npy", theta @ [[1.0, 0.5], [0.05, 0.0]] + 0.5 * draw.normal(size=(300, 2)))
    np.save(folder / "observed.npy", np.array([5.0, 0.2]))
    return folder


@pytest.fixture(scope="module")
def series(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional model of the series."""
    out = tmp_path_factory.mktemp("series") / "run"
    train.main(
        train.TrainConfig(data=folder / "series.npy", label=folder / "label.npy", out=out, steps=30, lr=5e-3, **SERIES)
    )
    return out


@pytest.fixture(scope="module")
def given(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of θ given x."""
    out = tmp_path_factory.mktemp("given") / "run"
    train.main(
        train.TrainConfig(
            data=folder / "theta.npy", condition=(f"obs={folder / 'x.npy'}",), out=out, steps=150, width=32, depth=1,
            lr=1e-2, ema=0.9, cpu=True, progress=False,
        )
    )  # fmt: skip
    return out


# -- conditions --------------------------------------------------------------------------------------------------------


def test_conditions_are_standardised_and_kept(given: Path, folder: Path) -> None:
    trained = open_checkpoint(given, ema=True, cpu=True)
    x = torch.tensor(np.load(folder / "x.npy"))
    assert trained.condition_scalings["obs"] == Scaling.standardise(x.float(), "coordinate")
    assert trained.conditions["obs"]["shape"] == [2] or tuple(trained.conditions["obs"]["shape"]) == (2,)
    assert trained.trained_with is not None and trained.trained_with.dropout == {"obs": 0.1}


def test_samples_follow_their_condition(given: Path, folder: Path, tmp_path: Path) -> None:
    """θ_1 is 100 ± 20 and x_0 = θ_0 + θ_1 / 20 + noise: a large x_0 means a large θ_1."""
    np.save(tmp_path / "rows.npy", np.array([[2.0, 0.0], [8.0, 0.0]]))
    shared: dict[str, Any] = {"checkpoint": str(given), "samples": 64, "steps": 8, "cpu": True}
    sample.main(sample.SampleConfig(condition=(f"obs={tmp_path / 'rows.npy'}",), out=tmp_path / "a", **shared))
    x = np.load(tmp_path / "a" / "samples.npy")
    assert x[1::2, 1].mean() > x[::2, 1].mean() + 20  # rows in turn; 66 and 120 or so are the exact means
    sample.main(sample.SampleConfig(condition=("obs=2,0",), out=tmp_path / "b", **shared))
    # the same seed and condition: to rounding, since the other rows of the batch are others
    np.testing.assert_allclose(np.load(tmp_path / "b" / "samples.npy")[::2], x[::2], rtol=1e-3, atol=1e-2)
    sample.main(sample.SampleConfig(out=tmp_path / "c", **shared))  # obs was hidden in a tenth of training
    assert not np.allclose(np.load(tmp_path / "c" / "samples.npy"), x)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("obs",), "written name=value"),
        (("obs=1,2", "obs=3,4"), "given twice"),
        (("label=1",), "flags of their own"),
        (("x=1",), "must not be 'x'"),
        (("size=1,2",), "takes obs"),
        (("obs=1,2,3",), r"has shape \(3,\); the model was trained with obs of shape \(2,\)"),
        (("obs=nan,1",), "expected finite numbers"),
        (("obs=here",), "expected numbers with commas"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(words: tuple[str, ...], message: str, given: Path) -> None:
    trained = open_checkpoint(given, ema=True, cpu=True)
    with pytest.raises(ValueError, match=message):
        asked_conditions(words, trained, 4)


def test_a_model_that_was_always_told_is_not_asked_without(folder: Path, tmp_path: Path) -> None:
    train.main(
        train.TrainConfig(
            data=folder / "theta.npy", condition=(f"obs={folder / 'x.npy'}",), out=tmp_path / "run", steps=1, width=8,
            depth=1, condition_dropout=0.0, cpu=True, progress=False,
        )
    )  # fmt: skip
    with pytest.raises(ValueError, match="was always told obs: give it, --condition obs="):
        sample.main(sample.SampleConfig(checkpoint=str(tmp_path / "run"), cpu=True))


def test_rows_of_training_must_fit(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros((3, 2)))
    config = train.TrainConfig(
        data=folder / "theta.npy", condition=(f"obs={tmp_path / 'few.npy'}",), out=tmp_path / "o"
    )
    with pytest.raises(ValueError, match="one row for each of the 300 samples"):
        train.main(config)
    assert pairs_of(("a=b=c.npy",)) == {"a": "b=c.npy"}


# -- files of flags ----------------------------------------------------------------------------------------------------


def test_the_file_beside_a_run_repeats_it(series: Path, tmp_path: Path) -> None:
    main.main(["train", "--config", str(series / "config.yaml"), "--out", str(tmp_path / "again")])
    a, b = (
        torch.cat([p.detach().flatten() for p in load_model(path).parameters()])
        for path in (series, tmp_path / "again")
    )
    assert torch.equal(a, b)


def test_amounts_are_numbers_and_what_never_changes_is_refused(folder: Path, tmp_path: Path) -> None:
    """Whole numbers (N,) and floating ones are one number each; they are asked for in words, rows or an archive."""
    np.save(tmp_path / "count.npy", np.arange(300) % 7)
    np.savez(tmp_path / "all.npz", mass=np.linspace(1e3, 2e3, 300), other=np.zeros(2))
    conditions = f"count={tmp_path / 'count.npy'}", f"mass={tmp_path / 'all.npz'}"
    flags: dict[str, Any] = {"data": folder / "theta.npy", "steps": 1, "width": 8, "depth": 1, "cpu": True}
    train.main(train.TrainConfig(condition=conditions, out=tmp_path / "run", progress=False, **flags))
    trained = open_checkpoint(tmp_path / "run", ema=True, cpu=True)
    counts = torch.arange(300) % 7
    assert trained.condition_scalings["count"] == Scaling.standardise(counts.double(), "tensor")
    asked = asked_conditions(("count=3,4", conditions[1]), trained, 4)
    assert asked["count"].flatten().tolist() == [3, 4, 3, 4]
    torch.testing.assert_close(asked["mass"].flatten(), torch.linspace(1e3, 2e3, 300)[:4])
    sample.main(sample.SampleConfig(checkpoint=str(tmp_path / "run"), condition=("count=3", "mass=1500"), cpu=True))
    for name, values, message in (
        ("same", np.ones((300, 2)), "is the same for all samples"),
        ("words", np.arange(600).reshape(300, 2), "amounts are stored as floating"),
    ):
        np.save(tmp_path / f"{name}.npy", values)
        with pytest.raises(ValueError, match=message):
            train.main(
                train.TrainConfig(condition=(f"obs={tmp_path / name}.npy",), out=tmp_path / name, **flags)
            )  # fmt: skip


# -- pictures beside data, forecasts -----------------------------------------------------------------------------------


def test_vectors_are_drawn_beside_what_the_run_learned(
    given: Path, series: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = open_checkpoint(given, ema=True, cpu=True)
    theta = torch.tensor(np.load(folder / "theta.npy"))
    shown = sample.real_vectors(sample.SampleConfig(checkpoint=""), trained)
    assert shown is not None
    torch.testing.assert_close(trained.scaling.to_data(shown), theta.float(), rtol=1e-6, atol=1e-5)  # float32
    other = sample.SampleConfig(checkpoint="", data=folder / "x.npy")
    assert tuple(sample.real_vectors(other, trained).shape) == (300, 2)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"--data .*series\.npy"):
        sample.real_vectors(sample.SampleConfig(checkpoint="", data=folder / "series.npy"), trained)
    with pytest.raises(ValueError, match="are drawn beside vectors"):
        sample.real_vectors(other, open_checkpoint(series, ema=True, cpu=True))
    monkeypatch.setattr(sample, "flags_beside", lambda _: {"data": "gone.npy"})
    assert sample.real_vectors(sample.SampleConfig(checkpoint=""), trained) is None


def test_a_model_says_its_name_and_its_step(series: Path, tmp_path: Path) -> None:
    assert open_checkpoint(series, ema=True, cpu=True).name == "run, step 30"
    assert open_checkpoint("digits", ema=True, cpu=True).name == "digits"
    assert open_checkpoint("digits", ema=True, cpu=True).told()["step"] is None


def test_long_jobs_are_told_before(
    series: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = open_checkpoint(series, ema=True, cpu=True)
    clock = [0.0]
    monkeypatch.setattr(costs, "evaluation_seconds", lambda _, rows=16: 0.1 + 0.01 * rows)
    costs.expect(trained, 10, total=16, size=64)  # 2.6 s
    assert capsys.readouterr().out == ""
    costs.expect(trained, 10, total=640, size=64)  # ten batches of ten evaluations of 0.74 s
    assert capsys.readouterr().out == "10 evaluations of 640 samples: about 74 s on cpu\n"
    monkeypatch.setattr(costs.time, "perf_counter", lambda: clock[0])
    for _ in costs.in_batches(30, 10):
        clock[0] += 3.0
    assert capsys.readouterr().out == "the first 10 took 3 s: about 6 s for the 20 that are left\n"


# -- which model -------------------------------------------------------------------------------------------------------


def test_one_rule_for_all_that_is_a_model(series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = convert.main(convert.ConvertConfig(checkpoint=str(series), out=tmp_path / "saved", licence="mit", cpu=True))
    assert saved is not None and (saved / "README.md").is_file()
    inside = tmp_path / "run" / "checkpoints"
    inside.parent.mkdir()
    inside.symlink_to(series, target_is_directory=True)
    places = [series, next(series.glob("step-*")), saved, inside.parent, inside]
    found = [open_checkpoint(place, ema=True, cpu=True) for place in places]
    first = torch.cat([p.flatten() for p in found[0].model.parameters()])
    for one in found:
        assert torch.equal(first, torch.cat([p.flatten() for p in one.model.parameters()]))
        assert (one.event, one.scaling, one.classes) == (found[0].event, found[0].scaling, ("0", "1"))
    assert [one.home.name for one in found] == ["run", "run", "saved", "run", "run"]
    with pytest.raises(CheckpointError, match="nowhere"):
        open_checkpoint("nowhere", ema=True, cpu=True)
    with pytest.raises(ValueError, match="--out is the folder to write"):
        convert.main(convert.ConvertConfig(checkpoint=str(series)))


def test_a_pipeline_of_diffusers_is_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    pipeline = diffusers.DDPMPipeline(net, diffusers.DDPMScheduler(clip_sample=False, num_train_timesteps=50))
    pipeline.save_pretrained(tmp_path / "pipe")
    report = sample.main(
        sample.SampleConfig(checkpoint=str(tmp_path / "pipe"), samples=2, steps=8, out=tmp_path / "out", cpu=True)
    )
    x = np.load(tmp_path / "out" / "samples.npy")
    assert x.shape == (2, 1, 8, 8) and x.dtype == np.uint8 and report["step"] is None
    assert convert.main(convert.ConvertConfig(checkpoint=str(tmp_path / "pipe"), cpu=True)) is None
    assert "it works" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is a pipeline of diffusers, whose network"):
        convert.main(convert.ConvertConfig(checkpoint=str(tmp_path / "pipe"), out=tmp_path / "o"))
    index = tmp_path / "pipe" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "vae": ["diffusers", "AutoencoderKL"]}))
    with pytest.raises(ValueError, match="pipeline with a vae"):
        open_checkpoint(tmp_path / "pipe", ema=True, cpu=True)


def test_info_tells_what_things_are(
    series: Path, given: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = info.main(info.InfoConfig(path=str(series), cpu=True))
    assert (
        model["step"] == 30
        and model["sample"] == (1, 16)
        and model["classes"] == "0, 1"
        and "s a sample" in model["cost"]
    )
    told = info.main(info.InfoConfig(path=str(given), cost=False, as_json=True))
    assert "Scaling" in told["condition obs"] and told["trained with"] == "obs; hidden: obs in 10% of samples"
    assert json.loads("{" + capsys.readouterr().out.split("\n{", 1)[1])["classes"] == "none"
    data = info.main(info.InfoConfig(path=str(folder / "series.npy")))
    assert data["samples"] == 60 and data["read by"] == "load_array"
    with pytest.raises(CheckpointError, match="nowhere"):
        info.main(info.InfoConfig(path="nowhere"))


# -- posterior ---------------------------------------------------------------------------------------------------------

FEW: dict[str, Any] = {
    "train_steps": 40, "width": 16, "depth": 1, "draws": 50, "calibration_draws": 20, "sampling_steps": 5, "cpu": True,
}  # fmt: skip


def test_a_posterior_writes_all_it_promises(folder: Path, tmp_path: Path) -> None:
    files = {"theta": folder / "theta.npy", "x": folder / "x.npy", "observed": folder / "observed.npy"}
    report = posterior.main(posterior.PosteriorConfig(**files, out=tmp_path / "run", names=("a", "b"), **FEW))
    assert {p.name for p in (tmp_path / "run").iterdir() if p.is_file()} == {
        "posterior.npy", "pairs.png", "ranks.png", "loss.png", "log.jsonl", "report.json", "config.yaml",
    }  # fmt: skip
    for name in ("pairs.png", "ranks.png"):
        Image.open(tmp_path / "run" / name).verify()
    draws = np.load(tmp_path / "run" / "posterior.npy")
    assert draws.shape == (50, 2) and report["calibration"]["pairs"] == 30
    assert set(report["calibration"]["each"]) == {"a", "b"} == set(report["posterior"][0]["parameters"])
    assert report["posterior"][0]["parameters"]["b"]["mean"] == pytest.approx(draws[:, 1].mean())
    # what is kept is the step that did best on the pairs kept aside
    assert [p.name for p in (tmp_path / "run").glob("step-*")] == [f"step-{report['training']['best_step']:08d}"]
    # and it is a model like any other
    sample.main(
        sample.SampleConfig(checkpoint=str(tmp_path / "run"), condition=("obs=5,0.2",), samples=4, out=tmp_path / "s")
    )
    with pytest.raises(ValueError, match="holds a run already"):
        posterior.main(posterior.PosteriorConfig(**files, out=tmp_path / "run", **FEW))


def test_several_observations_and_shapes(folder: Path, tmp_path: Path) -> None:
    """Observations of any shape are flattened, and each has its own draws."""
    theta, x = np.load(folder / "theta.npy")[:, :1], np.load(folder / "x.npy")
    np.save(tmp_path / "theta.npy", theta[:, 0])
    np.save(tmp_path / "x.npy", x.reshape(300, 2, 1))
    np.save(tmp_path / "observed.npy", x[:3].reshape(3, 2, 1))
    files = {name: tmp_path / f"{name}.npy" for name in ("theta", "x", "observed")}
    posterior.main(posterior.PosteriorConfig(**files, out=tmp_path / "run", **FEW))
    assert np.load(tmp_path / "run" / "posterior.npy").shape == (3, 50, 1)


@pytest.mark.parametrize(
    ("theta", "x", "flags", "message"),
    [
        ((300, 2), (299, 2), {}, "expected what each of the simulations gave"),
        ((300, 2, 1), (300, 2), {}, r"expected \(N, d\)"),
        ((50, 2), (50, 2), {}, "Simulate more"),
        ((300, 2), (300, 3), {}, "expected one observation"),
        ((300, 2), (300, 2), {"names": ("a",)}, "1 names for 2 parameters"),
        ((300, 2), (300, 2), {"held_out": 0.5}, "--held-out is a share"),
        ((300, 2), (300, 2), {"draws": 0}, "--draws must be at least 1"),
        ((300, 2), (300, 2), {"sde_options": ("a=1",)}, "no option 'a'"),
    ],
)
def test_a_posterior_refuses_before_it_starts(
    theta: tuple[int, ...], x: tuple[int, ...], flags: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    np.save(tmp_path / "theta.npy", draw.normal(size=theta))
    np.save(tmp_path / "x.npy", draw.normal(size=x))
    files = {"theta": tmp_path / "theta.npy", "x": tmp_path / "x.npy", "observed": folder / "observed.npy"}
    with pytest.raises(ValueError, match=message):
        posterior.main(posterior.PosteriorConfig(**{**files, "out": tmp_path / "run", **FEW, **flags}))
    assert not list(tmp_path.rglob("step-*"))


def test_nan_and_observations_far_from_all_simulations_are_told(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "far.npy", np.array([1000.0, 0.0]))
    files = {"theta": folder / "theta.npy", "x": folder / "x.npy", "observed": tmp_path / "far.npy"}
    with pytest.warns(UserWarning, match="observation 0 has 1000 as its number 0"):
        posterior.main(posterior.PosteriorConfig(**files, out=tmp_path / "run", **FEW))
    np.save(tmp_path / "far.npy", np.array([np.nan, 0.0]))
    with pytest.raises(ValueError, match="holds NaN"):
        posterior.main(posterior.PosteriorConfig(**files, out=tmp_path / "other", **FEW))


def test_calibration_knows_right_narrow_and_wide_posteriors(tmp_path: Path) -> None:
    """μ ~ N(0, 1) seen as y = μ + N(0, 1): the posterior is N(y/2, 1/2)."""
    noise = torch.Generator().manual_seed(0)
    mu = torch.randn(2000, 1, generator=noise, dtype=torch.float64)
    y = mu + torch.randn(2000, 1, generator=noise, dtype=torch.float64)
    z = torch.randn(2000, 200, 1, generator=noise, dtype=torch.float64)
    verdicts = {}
    for width in (1.0, 0.5, 2.0):
        found = calibration.interval_coverage(y[:, None] / 2 + width * math.sqrt(0.5) * z, mu, (0.5, 0.9))
        verdicts[width] = found.verdict()
        if width == 1:
            # a share over 2000 cases: within four of its standard errors, which are those reported
            for share, level, error in zip(found.coverage, found.levels, found.errors, strict=True):
                assert error == pytest.approx(math.sqrt(level * (1 - level) / 2000))
                assert abs(share - level) < 4 * error
    assert verdicts[1.0] == ""
    assert "overconfident" in verdicts[0.5] and "too cautious" in verdicts[2.0]
    calibration.draw_ranks(tmp_path / "ranks.png", y[:, None] / 2 + z, mu, ["mu"])
    Image.open(tmp_path / "ranks.png").verify()


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["linear", "square"])
def test_the_posterior_command_is_calibrated(kind: str, tmp_path: Path) -> None:
    """The bar: coverage of 90 % intervals 0.87 to 0.93, on 2000 fresh pairs of a known law, from 2000 simulations."""
    mix = np.array([[1, 0.5, 0], [0, 1, -0.7], [0.3, 0, 1], [1, 1, 1]])

    def simulate(count: int, draw: np.random.Generator) -> tuple[Any, Any]:
        if kind == "linear":
            theta = draw.normal(size=(count, 3))
            return theta, theta @ mix.T + 0.5 * draw.normal(size=(count, 4))
        theta = draw.normal(size=(count, 2))
        noise = draw.normal(size=(count, 2)) * [0.2, 0.5]
        return theta, np.stack([theta[:, 0] ** 2, theta.sum(1)], 1) + noise

    theta, x = simulate(2000, np.random.default_rng(1))
    np.save(tmp_path / "theta.npy", theta)
    np.save(tmp_path / "x.npy", x)
    config = posterior.PosteriorConfig(
        theta=tmp_path / "theta.npy", x=tmp_path / "x.npy", out=tmp_path / "run", cpu=True
    )
    posterior.main(config)
    theta, x = simulate(2000, np.random.default_rng(2))
    draws = posterior.posterior_draws(config, load_model(tmp_path / "run"), torch.tensor(x), 50, 3)
    found = calibration.interval_coverage(draws, torch.tensor(theta), (0.9,))
    assert 0.87 <= found.coverage[0] <= 0.93
    if kind == "linear":  # N(C Aᵀ x / σ², C), C = (1 + AᵀA/σ²)⁻¹: means to a third of the posterior's deviation
        covariance = np.linalg.inv(np.eye(3) + mix.T @ mix / 0.25)
        off = (draws.mean(1).numpy() - x @ mix @ covariance / 0.25) / np.sqrt(np.diag(covariance))
        assert np.sqrt((off**2).mean()) < 1 / 3


# -- evaluate ----------------------------------------------------------------------------------------------------------


def test_figures_tell_equal_laws_from_others() -> None:
    noise = torch.Generator().manual_seed(0)
    real, same, other = (torch.randn(800, 3, generator=noise) for _ in range(3))
    other = other * torch.tensor([1.0, 1.0, 1.5]) + torch.tensor([0.5, 0.0, 0.0])
    equal, apart = (evaluate.compared(x, real, 6, 0) for x in (same, other))
    for name in ("energy_distance", "sliced_wasserstein", "mean_off"):
        # both are the same statistic of 400 and 400 draws of one law; 0.6 to 1.6 is far outside its spread over six
        assert 0.6 < equal[name]["ratio"] < 1.6 and apart[name]["ratio"] > 2, name
    # the mean is off by 0.5 of one deviation in one of three coordinates, the deviation by half of one
    assert apart["mean_off"]["value"] == pytest.approx(math.sqrt(0.25 / 3), rel=0.25)
    assert apart["std_off"]["value"] == pytest.approx(math.sqrt(0.25 / 3), rel=0.25)


def test_evaluation_of_files_and_of_a_model(series: Path, folder: Path, tmp_path: Path) -> None:
    data = {"data": folder / "series.npy"}
    samples = evaluate.main(
        evaluate.EvaluateConfig(samples=folder / "series.npy", out=tmp_path / "a", splits=2, **data)
    )
    assert samples["figures"]["energy_distance"]["ratio"] < 2  # the data themselves
    model = evaluate.main(
        evaluate.EvaluateConfig(
            checkpoint=str(series), label=folder / "label.npy", training=folder / "series.npy", out=tmp_path / "b",
            steps=2, splits=2, **data,
        )
    )  # fmt: skip
    asked = {value for name in evaluate.ALL for value in evaluate.FIGURES[name].values}
    # 16 numbers a sample: a half of the samples is too few for a covariance with parts
    assert {*model["figures"], "frechet_extrapolated"} == asked | {"memorised_share", "authenticity"}
    Image.open(tmp_path / "b" / "samples.png").verify()
    with pytest.raises(ValueError, match="and not both"):
        evaluate.main(evaluate.EvaluateConfig(**data))
    np.save(tmp_path / "wide.npy", np.random.default_rng(0).normal(size=(20, 1, 8)))
    with pytest.raises(ValueError, match=r"holds \(1, 8\), and --data \(1, 16\)"):
        evaluate.main(evaluate.EvaluateConfig(samples=tmp_path / "wide.npy", **data))
    figures = convert.figures_of(tmp_path / "b" / "report.json")
    assert figures["energy_distance"]["value"] == model["figures"]["energy_distance"]["value"]


# -- fit ---------------------------------------------------------------------------------------------------------------


def test_a_fitted_sampler_is_used_by_sample(series: Path, tmp_path: Path) -> None:
    few: dict[str, Any] = {"steps": 2, "samples": 12, "batch_size": 4, "iterations": 1, "cpu": True}
    fit.main(fit.FitConfig(checkpoint=str(series), out=tmp_path / "fitted", **few))
    report = sample.main(
        sample.SampleConfig(
            checkpoint=str(series), fitted=tmp_path / "fitted" / "sampler.json", samples=4, out=tmp_path / "s", cpu=True
        )
    )
    assert report["solver"].startswith("Fitted(") and report["nfe"] <= 3
    told = info.main(info.InfoConfig(path=str(tmp_path / "fitted" / "sampler.json")))
    assert told["sampler"] == "2 evaluations" and told["schedule"].startswith("VP(")
    with pytest.raises(ValueError, match="expected a multiple"):
        fit.main(fit.FitConfig(checkpoint=str(series), **{**few, "samples": 10}))


# -- edit --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["counterfactual", "sdedit", "interpolation"])
def test_edits_write_samples_in_units_of_the_data(method: Any, series: Path, folder: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"data": folder / "series.npy", "label": folder / "label.npy", "steps": 4, "count": 3}
    flags |= {} if method == "interpolation" else {"to": "1"}
    edit.main(edit.EditConfig(checkpoint=str(series), method=method, out=tmp_path, cpu=True, **flags))
    x = np.load(tmp_path / "edited.npy")
    assert x.shape == ((9, 3, 1, 16) if method == "interpolation" else (3, 1, 16))
    assert 30 < x.mean() < 70
    Image.open(tmp_path / "edits.png").verify()
    if method == "interpolation":  # implicit DDIM there and back is exact to its tolerance, 1e-4 of 7.5 or so
        np.testing.assert_allclose(x[0], np.load(folder / "series.npy")[:3], atol=0.3)


def test_an_edited_sample_stands_under_its_own_class(series: Path) -> None:
    trained = open_checkpoint(series, ema=True, cpu=True)
    own = torch.tensor([0, 1, 0])
    assert edit.heads_of(trained, own, 1, 3) == ["0 → 1", "1 → 1", "0 → 1"]
    assert edit.heads_of(trained, own, None, 3) == ["0", "1", "0"]
    assert edit.heads_of(trained, None, 1, 2) == ["0 → 1", "1 → 1"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "needs the class that samples should become: --to"),
        ({"to": "5"}, "no class '5'"),
        ({"to": "1", "label": None}, "needs the class that samples are"),
        ({"to": "1", "source": "0"}, "the data have labels of their own"),
        ({"method": "interpolation", "to": "1"}, "leave --to out"),
        ({"to": "1", "level": -1.0}, "--level must be"),
    ],
    ids=str,
)
def test_edits_refuse(flags: dict[str, Any], message: str, series: Path, folder: Path, tmp_path: Path) -> None:
    usual = {"checkpoint": str(series), "data": folder / "series.npy", "label": folder / "label.npy", "cpu": True}
    with pytest.raises(ValueError, match=message):
        edit.main(edit.EditConfig(**{**usual, "out": tmp_path, **flags}))
    assert not list(tmp_path.iterdir())


# -- inverse -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unconditional(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model of the series without classes."""
    out = tmp_path_factory.mktemp("plain") / "run"
    train.main(train.TrainConfig(data=folder / "series.npy", out=out, steps=5, **SERIES))
    return open_checkpoint(out, ema=True, cpu=True)


@pytest.mark.parametrize(
    "flags",
    [{"operator": "mask", "kept": 0.4}, {"operator": "downsample", "factor": 4}, {"operator": "mask", "hole": 0.5}],
    ids=str,
)  # fmt: skip
def test_measurements_come_in_the_units_of_the_data(
    flags: dict[str, Any], unconditional: Trained, folder: Path, tmp_path: Path
) -> None:
    """y = A data + noise, so that in model units it is A x + noise/scale: here without noise, against A x itself."""
    data = torch.tensor(np.load(folder / "series.npy")[:3])
    x = unconditional.scaling.to_model(data).float()
    config = inverse.InverseConfig(checkpoint="", measured=tmp_path / "y.npy", noise=2.0, **flags)
    operator = inverse.operator_of(config, unconditional.event)
    np.save(tmp_path / "y.npy", operator(data.float()).numpy())
    measurement, truth = inverse.measurement_of(config, unconditional, operator)
    # data near 50 in float32 are rounded to 4e-6, over a scale of 7
    torch.testing.assert_close(measurement.y, operator(x), rtol=0, atol=2e-6)
    assert truth is None and measurement.noise_std == pytest.approx(2.0 / unconditional.scaling.scale)


def test_answers_are_consistent_and_written(unconditional: Trained, folder: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"samples": 4, "steps": 5, "count": 2, "noise": 1.0, "cpu": True}
    run = str(unconditional.path)
    report = inverse.main(
        inverse.InverseConfig(checkpoint=run, data=folder / "series.npy", kept=0.5, out=tmp_path / "a", **flags)
    )
    x, mean, std = (np.load(tmp_path / "a" / f"{name}.npy") for name in ("samples", "mean", "std"))
    assert x.shape == (2, 4, 1, 16) and np.allclose(mean, x.mean(1), atol=1e-3)
    assert np.allclose(std, x.std(1, ddof=1), atol=1e-3)
    y = np.load(tmp_path / "a" / "measured.npy")
    kept = inverse.mask_of(inverse.InverseConfig(checkpoint="", kept=0.5), (1, 16)).numpy()
    rest = np.sqrt(((x[..., kept] - y[:, None]) ** 2).mean())
    assert report["figures"]["residual_over_noise"] == pytest.approx(rest, rel=1e-3)  # noise 1 in the data's units
    assert {"rms_error_of_mean", "coverage_90"} <= set(report["figures"])
    Image.open(tmp_path / "a" / "inverse.png").verify()
    # whole samples may stand for measurements of a mask, which takes what it measures
    report = inverse.main(
        inverse.InverseConfig(checkpoint=run, measured=folder / "series.npy", hole=0.5, out=tmp_path / "b", **flags)
    )
    assert report["measurements"] == 2 and "coverage_90" not in report["figures"]
    np.save(tmp_path / "a.npy", np.ones((1, 16)) / 16)
    np.save(tmp_path / "y.npy", np.array([50.0]))
    inverse.main(
        inverse.InverseConfig(
            checkpoint=run, measured=tmp_path / "y.npy", operator="matrix", matrix=tmp_path / "a.npy",
            out=tmp_path / "c", **flags,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"noise": 0.0}, "--noise is the standard deviation"),
        ({"kept": None}, "needs one of --mask FILE"),
        ({"kept": 1.5}, "--kept is a share"),
        ({"operator": "grey", "kept": None}, "three channels"),
        ({"operator": "blur"}, "--kept is of --operator mask"),
        ({"operator": "blur", "kept": None}, "is for images"),
        ({"operator": "matrix", "kept": None}, "go together"),
        ({"operator": "downsample", "kept": None, "factor": 3}, "factor must divide"),
        ({"data": None}, "and not both"),
        ({"method": "particles", "particles": 8}, "are fewer than --samples"),
    ],
    ids=str,
)
def test_inverse_refuses(
    flags: dict[str, Any], message: str, unconditional: Trained, folder: Path, tmp_path: Path
) -> None:
    usual = {
        "checkpoint": str(unconditional.path),
        "data": folder / "series.npy",
        "kept": 0.5,
        "noise": 1.0,
        "cpu": True,
    }
    with pytest.raises(ValueError, match=message):
        inverse.main(inverse.InverseConfig(**{**usual, "out": tmp_path / "out", **flags}))
    assert not (tmp_path / "out").exists()


def test_one_noise_needs_one_scale() -> None:
    assert inverse.one_scale(Scaling(0.0, 2.0)) == 2.0 == inverse.one_scale(Scaling([0.0, 1.0], [2.0, 2.0]))
    with pytest.raises(ValueError, match="--scaling tensor"):
        inverse.one_scale(Scaling([0.0, 0.0], [1.0, 2.0]))


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [(1,), (3,), (1, 9), (3, 9), (3, 6, 4), (1, 5, 4, 4)], ids=str)
def test_samples_of_any_shape_are_drawn(event: tuple[int, ...], tmp_path: Path) -> None:
    from scoresde.cli.pictures import draw_samples
    from scoresde.cli.sheets import draw_rows

    out = make_writable(tmp_path)
    x = torch.randn(5, *event, generator=torch.Generator().manual_seed(0))
    draw_samples(out / "samples.png", x, Scaling(1.0, 2.0), ["a", "b"], "title", data=x)
    Image.open(out / "samples.png").verify()
    draw_rows(out / "rows.png", [("original", x), ("difference", x)], list("abcde"), Scaling(1.0, 2.0), "title")
    Image.open(out / "rows.png").verify()


@pytest.mark.parametrize(("names", "leaning"), [(("0", "1", "2"), False), (("airplane", "automobile", "bird"), True)])
def test_names_wider_than_their_columns_lean(
    names: tuple[str, ...], leaning: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upright, none reaches into the next; at 45 degrees, lines are farther apart than they are high."""
    from scoresde.cli import pictures

    figures: list[Any] = []
    monkeypatch.setattr(pictures, "save_figure", lambda path, figure: figures.append(figure))
    pictures.save_grid(tmp_path / "sheet.png", torch.zeros(6, 1, 32, 32, dtype=torch.uint8), names, "title")
    figures[0].draw_without_rendering()
    labels = figures[0].axes[0].get_xticklabels()
    assert [label.get_rotation() for label in labels] == [45.0 if leaning else 0.0] * 3
    starts = [label.get_window_extent().x0 for label in labels]
    for label, start, following in zip(labels, starts, starts[1:], strict=False):
        height = label.get_fontsize() * figures[0].dpi / 72
        assert height < (following - start) * 0.5**0.5 if leaning else label.get_window_extent().x1 < following
