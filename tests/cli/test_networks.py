"""The U-Net's kin, sets and series, and augmentation from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoresde.cli import posterior, sample, train
from scoresde.cli.networks import NetworkFlags, network
from scoresde.nn import MLP, DiT, MagnitudeUNet
from scoresde.train import load_model

QUICK: dict[str, Any] = {"steps": 2, "batch_size": 8, "cpu": True, "progress": False, "width": 8}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """theta ~ N(0, 1), and 1 to 5 observations N(100 + 50 theta, 50^2) of each: far from unit size."""
    folder, draw = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    theta = draw.normal(size=(300, 1))
    x = 100 + 50 * (theta[:, None] + draw.normal(size=(300, 5, 1)))
    x[np.arange(5) >= draw.integers(1, 6, 300)[:, None]] = np.nan
    np.save(folder / "theta.npy", theta)
    np.save(folder / "x.npy", x)
    np.save(folder / "two.npy", np.array([[100.0], [150.0]]))
    np.save(folder / "three.npy", np.stack([x[0, [0, 0, 0, 0]], x[1, [0, 0, 0, 0]], x[2, [0, 0, 0, 0]]]))
    return folder


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("album") / "x.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (24, 1, 6, 6), dtype=np.uint8))
    return path


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [("dit", DiT, {"patch": 3, "depth": 2, "width": 16}), ("magnitude-unet", MagnitudeUNet, {"blocks": 1, "width": 8})],
)
@pytest.mark.parametrize("event", [(2, 7), (1, 6, 5), (1, 3, 4, 4)])
def test_networks_by_name(name: str, kind: type[Any], options: dict[str, Any], event: tuple[int, ...]) -> None:
    made: Any = network(NetworkFlags(network=name, **options), event, 3)
    assert type(made) is kind and made.config["event_dims"] == len(event) - 1 and made.config["num_classes"] == 3
    assert {key: made.config[key] for key in options} == options
    assert made(torch.zeros(2, *event), torch.zeros(2)).shape == (2, *event)
    with pytest.raises(ValueError, match="signals, images and volumes"):
        network(NetworkFlags(network=name), (3,), None)
    with pytest.raises(ValueError, match="conditioning"):
        network(NetworkFlags(network=name, conditioning="add"), event, None)


def test_presets_by_name() -> None:
    made: Any = network(NetworkFlags(network="digits-dit", depth=1), (1, 8, 8), 10)
    assert type(made) is DiT and made.config["depth"] == 1 and made.config["num_classes"] == 10


def test_a_transformer_trains_and_samples(album: Path, tmp_path: Path) -> None:
    train.main(train.TrainConfig(data=album, out=tmp_path / "run", network="dit", depth=1, **QUICK))
    assert isinstance(load_model(tmp_path / "run").net, DiT)
    sample.main(sample.SampleConfig(checkpoint=str(tmp_path / "run"), out=tmp_path / "s", samples=2, steps=2, cpu=True))
    assert (tmp_path / "s" / "samples.npy").exists() or list((tmp_path / "s").iterdir())


def test_augmentation_is_a_flag(album: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"data": album, "multipliers": (1,), "blocks": 1, "attention_levels": (), **QUICK}
    train.main(train.TrainConfig(out=tmp_path / "a", augment=0.5, **flags))
    model = load_model(tmp_path / "a")
    assert model.net.config["vectors"] == {"augment": 13}  # type: ignore[union-attr]
    train.main(train.TrainConfig(out=tmp_path / "b", augment=0.2, **flags))
    a, b = (torch.cat([p.flatten() for p in load_model(tmp_path / name).parameters()]) for name in "ab")
    assert not torch.equal(a, b)
    # sampling tells the network nothing, and warns of nothing
    sample.main(sample.SampleConfig(checkpoint=str(tmp_path / "a"), out=tmp_path / "s", samples=2, steps=2, cpu=True))


@pytest.mark.parametrize("kind", ["sets", "series"])
def test_conditions_of_any_length(kind: str, pairs: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"data": pairs / "theta.npy", "condition": (f"obs={pairs / 'x.npy'}",), "depth": 1, **QUICK}
    train.main(train.TrainConfig(out=tmp_path / "run", **{kind: ("obs",)}, **flags))
    model = load_model(tmp_path / "run")
    assert model.net.config[kind] == {"obs": {"size": 1, "width": 64, "layers": 2}}  # type: ignore[union-attr]
    x = np.load(pairs / "x.npy")
    scaling: Any = model.condition_scalings["obs"]
    known = x[~np.isnan(x)]  # standardised by all members that are there
    assert scaling.shift.item() == pytest.approx(known.mean()) and scaling.scale.item() == pytest.approx(known.std())
    shared: dict[str, Any] = {"checkpoint": str(tmp_path / "run"), "samples": 3, "steps": 2, "cpu": True}
    asked = {"a": "100,150", "b": str(pairs / "two.npy"), "c": str(pairs / "three.npy"), "d": "150,100"}
    drawn = {}
    for name, words in asked.items():
        sample.main(sample.SampleConfig(condition=(f"obs={words}",), out=tmp_path / name, **shared))
        drawn[name] = np.load(tmp_path / name / "samples.npy")
    assert np.array_equal(drawn["a"], drawn["b"]) and not np.array_equal(drawn["a"], drawn["c"])
    with pytest.raises(ValueError, match="any number of members of 1"):
        np.save(tmp_path / "wide.npy", np.ones((3, 2)))
        sample.main(sample.SampleConfig(condition=(f"obs={tmp_path / 'wide.npy'}",), out=tmp_path / "e", **shared))


def test_what_is_not_said_is_a_series_and_what_cannot_be_is_refused(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags: dict[str, Any] = {"data": pairs / "theta.npy", "condition": (f"obs={pairs / 'x.npy'}",), "depth": 1, **QUICK}
    train.main(train.TrainConfig(out=tmp_path / "run", **flags))
    assert "series" in load_model(tmp_path / "run").net.config  # type: ignore[operator]
    said = capsys.readouterr()
    assert "--sets takes them without their order" in said.out + said.err
    for wrong, words in [
        ({"sets": ("other",)}, "expected the name of a --condition"),
        ({"sets": ("obs",), "series": ("obs",)}, "say one of them"),
    ]:
        with pytest.raises(ValueError, match=words):
            train.main(train.TrainConfig(out=tmp_path / "other", **wrong, **flags))  # type: ignore[arg-type]
    x = np.load(pairs / "x.npy").repeat(2, 2)
    x[3, 0, 0] = np.nan  # half of a member
    np.save(tmp_path / "half.npy", x)
    with pytest.raises(ValueError, match="NaN or infinity in 1 rows"):
        bad: Any = {**flags, "condition": (f"obs={tmp_path / 'half.npy'}",)}
        train.main(train.TrainConfig(out=tmp_path / "other", **bad))


@pytest.mark.parametrize("kind", ["set", "series"])
def test_posteriors_given_several_observations(kind: Any, pairs: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"train_steps": 30, "draws": 8, "calibration_draws": 10, "sampling_steps": 2, "cpu": True}
    flags |= {"theta": pairs / "theta.npy", "x": pairs / "x.npy", "observations": kind, "width": 8, "depth": 1}
    posterior.main(posterior.PosteriorConfig(observed=pairs / "two.npy", out=tmp_path / "a", **flags))
    assert np.load(tmp_path / "a" / "posterior.npy").shape == (8, 1)
    posterior.main(posterior.PosteriorConfig(observed=pairs / "three.npy", out=tmp_path / "b", **flags))
    assert np.load(tmp_path / "b" / "posterior.npy").shape == (3, 8, 1)
    net: Any = load_model(tmp_path / "a").net
    assert isinstance(net, MLP) and ("sets" if kind == "set" else "series") in net.config
    assert json.loads((tmp_path / "a" / "report.json").read_text())["training"]["pairs"] == 240
    np.save(tmp_path / "many.npy", np.full((9, 1), 100.0))
    with pytest.warns(UserWarning, match="9 members, and in the simulations there are 5"):
        posterior.main(posterior.PosteriorConfig(observed=tmp_path / "many.npy", out=tmp_path / "c", **flags))
    np.save(tmp_path / "flat.npy", np.ones(4))
    with pytest.raises(ValueError, match="of any length L"):
        posterior.main(posterior.PosteriorConfig(observed=tmp_path / "flat.npy", out=tmp_path / "d", **flags))
    with pytest.raises(ValueError, match=r"\(N, L, d\)"):
        wrong: Any = {**flags, "x": pairs / "theta.npy"}
        posterior.main(posterior.PosteriorConfig(out=tmp_path / "e", **wrong))
