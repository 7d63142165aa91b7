"""Flags of what is minimised and averaged: what they train with, and which weights a command then opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoresde.cli import convert, info, sample, train
from scoresde.cli.trained import open_checkpoint
from scoresde.models import ScoreModel
from scoresde.train import describe, load_model, reconstruct_ema, snapshot_steps

SMALL: dict[str, Any] = {"width": 8, "depth": 1, "steps": 6, "batch_size": 8, "cpu": True, "progress": False}


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    np.save(folder / "x.npy", rng.normal(size=(40, 2)).astype("float32"))
    np.save(folder / "y.npy", rng.normal(size=(40, 1)).astype("float32"))
    return folder


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    out = data / "run"
    flags = {"ema": (0.2, 0.5), "weighting": "uncertainty", "adaptive": True, "snapshot_every": 2}
    train.main(train.TrainConfig(data=data / "x.npy", out=out, **SMALL, **flags))
    return out


def test_what_the_flags_say_is_what_is_trained(run: Path) -> None:
    options = json.loads((describe(run).path / "training.json").read_text())["options"]
    assert options["weighting"].startswith("Uncertainty(base=edm(sigma_data=")
    assert options["times"].startswith("Stratified(density=AdaptiveTimes(density=LogNormalSigma(")
    assert options["ema"] == [0.2, 0.5] and snapshot_steps(run) == [2, 4, 6]
    told = info.main(info.InfoConfig(path=str(run), cost=False, cpu=True))
    assert told["weighting"].startswith("Uncertainty") and "coupling" not in told
    assert "0.2, 0.5" in told["averages"] and told["snapshots"].startswith("3, of steps 2 to 6")


def test_a_command_opens_the_average_that_it_is_told(run: Path, tmp_path: Path) -> None:
    wanted = {"decay": (0.5, load_model(run, ema=0.5)), "width": (0.07, reconstruct_ema(run, 0.07))}
    for name, (value, model) in wanted.items():
        found = open_checkpoint(run, ema=True, cpu=True, **{name: value}).model  # type: ignore[arg-type]
        assert torch.equal(weights(found), weights(model))
        out = tmp_path / name
        convert.main(convert.ConvertConfig(checkpoint=str(run), out=out, **{f"ema_{name}": value}))
        assert torch.equal(weights(ScoreModel.from_pretrained(out)), weights(model))
    plain = weights(open_checkpoint(run, ema=True, cpu=True).model)
    assert not any(torch.equal(plain, weights(model)) for _, model in wanted.values())
    flags: dict[str, Any] = {"samples": 2, "steps": 2, "cpu": True, "out": tmp_path / "out"}
    report = sample.main(sample.SampleConfig(checkpoint=str(run), ema_width=0.07, **flags))
    assert report["config"]["ema_width"] == 0.07


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"decay": 0.5, "width": 0.1}, "--ema-decay and --ema-width are of two averages"),
        ({"ema": False, "width": 0.1}, "--no-ema takes the weights of the last step"),
        ({"decay": 0.7}, r"ema must be one of 0\.2, 0\.5"),
        ({"width": 0.4}, "width must be at most"),
    ],
)
def test_averages_that_are_not_there_are_refused(flags: dict[str, Any], message: str, run: Path) -> None:
    with pytest.raises(ValueError, match=message):
        open_checkpoint(run, **{"ema": True, "cpu": True, **flags})


def test_a_coupling_is_told_and_its_weight_asked_for(data: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"data": data / "x.npy", "coupling": "optimal-transport", **SMALL}
    y = {"condition": (f"y={data / 'y.npy'}",)}
    with pytest.raises(ValueError, match="condition_weight must be given"):
        train.main(train.TrainConfig(out=tmp_path / "a", **flags, **y))
    train.main(train.TrainConfig(out=tmp_path / "b", condition_weight=5.0, **flags, **y))
    assert load_model(tmp_path / "b").coupling == "optimal transport"
    told = info.main(info.InfoConfig(path=str(tmp_path / "b"), cost=False, cpu=True))
    assert told["coupling"] == "optimal transport: for samplers of the ODE alone"
    with pytest.raises(ValueError, match="--condition-weight is of --coupling"):
        train.main(train.TrainConfig(out=tmp_path / "c", condition_weight=5.0, **{**flags, "coupling": "none"}))
    with pytest.raises(ValueError, match="draws noise"):
        sample.main(sample.SampleConfig(checkpoint=str(tmp_path / "b"), solver="euler-maruyama", eta=1.0, samples=2,
                                        steps=2, cpu=True, out=tmp_path / "out", condition=("y=0.5",)))  # fmt: skip
    assert not (tmp_path / "out").exists()  # before anything is written
