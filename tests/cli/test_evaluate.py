"""`scoresde evaluate`: what its flags choose, in which feature spaces, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scoresde import metrics
from scoresde.cli import evaluate, spaces, train


def sums(x: Tensor) -> Tensor:
    return torch.stack([x.flatten(1).sum(1), x.flatten(1).square().sum(1)], 1)


class Sums(nn.Module):
    """A user's module."""

    def forward(self, x: Tensor) -> Tensor:
        return sums(x)


def make() -> metrics.Features:
    return metrics.ModuleFeatures(Sums().eval(), "sums", range=(0.0, 1.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images 4 x 4 in the levels 0 to 255, and others with twice the contrast."""
    place = tmp_path_factory.mktemp("sets")
    draw = np.random.default_rng(0)
    for name, scale in (("data", 20), ("training", 20), ("same", 20), ("other", 40)):
        levels = 128 + scale * draw.normal(size=(90, 1, 4, 4))
        np.save(place / f"{name}.npy", levels.round().clip(0, 255).astype(np.uint8))
    return place


def run(folder: Path, out: Path, samples: str = "same", **flags: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"splits": 2, "permutations": 19, "cpu": True, "figures": ("energy", "kernel"), **flags}
    return evaluate.main(
        evaluate.EvaluateConfig(samples=folder / f"{samples}.npy", data=folder / "data.npy", out=out, **given)
    )


def test_flags_choose_figures(folder: Path, tmp_path: Path) -> None:
    report = run(folder, tmp_path, permutations=0)
    assert set(report["figures"]) == {"energy_distance", "kernel_distance"} and report["left_out"] == {}
    assert not any("p_value" in one for one in report["figures"].values())
    assert "ratio" in report["figures"]["energy_distance"] and "ratio" not in report["figures"]["kernel_distance"]
    assert report["features"]["pixels"]["numbers"] == 16
    assert json.loads((tmp_path / "report.json").read_text())["figures"] == report["figures"]


def test_equal_laws_are_not_found_and_others_are(folder: Path, tmp_path: Path) -> None:
    every = tuple(name for name in evaluate.ALL if "sliced" not in name)  # seconds of permutations
    same, other = (run(folder, tmp_path / name, name, figures=every, permute_all=True) for name in ("same", "other"))
    assert all(one["p_value"] > 0.01 for name, one in same["figures"].items() if "p_value" in one)
    # all that is asked for a p-value has one: Vendi looks at one set
    assert {name for name, one in other["figures"].items() if "p_value" not in one} == {"vendi_score"}
    for name in ("energy_distance", "mmd", "frechet_distance", "std_off", "precision"):
        assert other["figures"][name]["p_value"] == 0.05, name  # the least of 19
    assert other["figures"]["classifier_accuracy"]["p_value"] < 0.01
    assert set(other["left_out"]) == set()
    few = run(folder, tmp_path / "few", figures=("frechet", "classifier", "energy"), most=30)
    assert set(few["left_out"]) == {"frechet", "classifier"} and "needs more samples" in few["left_out"]["frechet"]


def test_figures_say_in_which_space_they_are(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    words = ("pixels", "learned", "test_evaluate:make", "test_evaluate:Sums")
    report = run(folder, tmp_path, features=words, features_steps=2, training=folder / "training.npy")
    names = {name.rpartition("/")[0] for name in report["figures"]}
    assert names == {"", "learned-views", "sums", "Sums"} == {"" if n == "pixels" else n for n in report["features"]}
    for name, one in report["figures"].items():
        space = name.rpartition("/")[0] or "pixels"
        assert one["features"] == f"{space} ({report['features'][space]['fingerprint']})"
    # a module gets what a Features with its defaults makes of it: another range, another fingerprint
    assert report["features"]["sums"]["fingerprint"] != report["features"]["Sums"]["fingerprint"]
    assert "learned-views/energy_distance" in capsys.readouterr().out
    # the learned space is kept, and used again from there
    kept = metrics.load_features(tmp_path / "features")
    assert kept.fingerprint == report["features"]["learned-views"]["fingerprint"]
    again = run(folder, tmp_path / "b", features=(str(tmp_path / "features"),), figures=("energy",))
    assert list(again["figures"]) == ["learned-views/energy_distance"]
    expected = report["figures"]["learned-views/energy_distance"]["value"]
    assert again["figures"]["learned-views/energy_distance"]["value"] == pytest.approx(expected, rel=1e-6)


def test_what_is_refused_trains_nothing_and_leaves_no_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spaces, "train_features", lambda *_, **__: pytest.fail("was trained"))
    for features, message in (
        (("learned", "nowhere"), "there is no such folder"),
        (("learned", "no_such:make"), "that Python can import"),
    ):
        with pytest.raises(ValueError, match=message):
            run(folder, tmp_path / "out", features=features, training=folder / "training.npy")
    with pytest.raises(ValueError, match="are of the weights of a --checkpoint"):
        run(folder, tmp_path / "out", ema_width=0.1)
    assert not (tmp_path / "out").exists()


def test_copies_are_found(folder: Path, tmp_path: Path) -> None:
    report = run(folder, tmp_path, "training", training=folder / "training.npy", figures=("energy",))
    assert report["figures"]["memorised_share"]["value"] == 1.0 and report["figures"]["authenticity"]["value"] == 0.0
    assert 0.2 < report["figures"]["authenticity"]["real"] < 0.8


def test_seeds_draw_a_model_anew(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 2)))
    tiny: dict[str, Any] = {"steps": 3, "width": 8, "depth": 1, "batch_size": 8, "cpu": True}
    train.main(train.TrainConfig(data=tmp_path / "x.npy", out=tmp_path / "run", **tiny))
    given: dict[str, Any] = {
        "checkpoint": str(tmp_path / "run"), "data": tmp_path / "x.npy", "steps": 2, "splits": 2, "permutations": 0,
        "figures": ("energy",), "cpu": True,
    }  # fmt: skip
    single = [evaluate.main(evaluate.EvaluateConfig(**given, seed=seed, out=tmp_path / f"o{seed}")) for seed in (0, 1)]
    other = evaluate.main(evaluate.EvaluateConfig(**given, ema=False, out=tmp_path / "last"))["figures"]
    assert other["energy_distance"]["value"] != single[0]["figures"]["energy_distance"]["value"]  # other weights
    both = evaluate.main(evaluate.EvaluateConfig(**given, seeds=2, out=tmp_path / "both"))["figures"]["energy_distance"]
    # the same splits of the data for both draws, those of seed 0
    assert both["std_over_seeds"] > 0 and "std_over_seeds" not in single[0]["figures"]["energy_distance"]
    first = single[0]["figures"]["energy_distance"]["value"]
    assert abs(both["value"] - first) == pytest.approx(both["std_over_seeds"] / 2**0.5, rel=1e-9)  # of two numbers


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"features": ("learned",)}, "trained on --training"),
        ({"features": ("nowhere",)}, "must be pixels, learned, a folder"),
        ({"features": ("test_evaluate:nothing",)}, "that Python can import"),
        ({"features": ("test_evaluate:Path",)}, "must be a scoresde.metrics.Features"),
        ({"features": ()}, "must name one each"),
        ({"figures": ()}, "must name one each"),
        ({"seeds": 2}, "--seeds draws from a model"),
        ({"permute_all": True, "permutations": 0}, "of which there are 0"),
        ({"permutations": -1}, "--permutations must be at least 0"),
    ],
)
def test_what_is_wrong_is_said(
    folder: Path, tmp_path: Path, flags: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with pytest.raises(ValueError, match=match):
        run(folder, tmp_path, **flags)
