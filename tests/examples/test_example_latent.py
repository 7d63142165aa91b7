"""examples/latent.py in process, with tiny settings: what it writes, what resuming changes, what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import latent
from scoresde.nn import Autoencoder
from scoresde.train import load_autoencoder, load_model
from shared.latent.models import Sizes, levels, parameters
from shared.latent.pictures import pictures

SMALL: dict[str, Any] = {
    "width": 16, "autoencoder_width": 4, "autoencoder_steps": 2, "steps": 2, "pixel_steps": 1, "feature_steps": 1,
    "batch_size": 8, "samples": 70, "sampling_steps": 1, "cpu": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour pictures of 8x8 in a folder."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(150):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_it_trains_measures_and_goes_on(bottleneck: Any, images: Path, tmp_path: Path) -> None:
    config = latent.Config(out=tmp_path, data=images, held=70, bottleneck=bottleneck, codes=4, **SMALL)
    report = latent.main(config)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["reconstruction"]["psnr_db"] == pytest.approx(report["reconstruction"]["psnr_db"])
    for name in ("latent", "pixel"):
        assert report[name]["nfe"] == 2 and report[name]["frechet"] >= 0
    assert report["parameters"]["autoencoder"] + report["parameters"]["latents"] <= report["parameters"]["pixels"]
    assert (tmp_path / "latent.png").read_bytes()[:4] == b"\x89PNG"
    net = load_autoencoder(tmp_path / "autoencoder")
    assert net.config["latents_std"] is not None and net.config["bottleneck"].get("codes", 4) == 4
    assert load_model(tmp_path / "latent-checkpoints").event_shape == (4, 2, 2)
    again = latent.main(dataclasses.replace(config, resume=True))  # all is there: the same figures
    for name in ("real", "reconstruction"):
        assert again[name] == report[name]
    assert again["latent"]["frechet"] == report["latent"]["frechet"]


def test_the_control_has_as_many_parameters_and_as_much_time(tmp_path: Path) -> None:
    config = latent.Config()
    with torch.device("meta"):
        sizes = Sizes.of(config, (3, 32, 32))
        both = parameters(sizes.autoencoder()) + parameters(sizes.latents())
        assert 0.6 * parameters(sizes.pixels()) < both <= parameters(sizes.pixels())
        wider = dataclasses.replace(sizes, latent_width=sizes.latent_width + 8)
        assert parameters(wider.latents()) + parameters(sizes.autoencoder()) > parameters(sizes.pixels())
    assert [levels(side) for side in (32, 8, 4, 2)] == [(1, 2, 2), (1, 2, 2), (1, 2), (1,)]


def test_digits_are_enlarged() -> None:
    training, held = pictures(None, seed=0, limit=10, held=10)
    assert training.event_shape == held.event_shape == (1, 16, 16) and training.scaling.levels == 256
    assert training.num_classes == 10 and int(training.data.max()) == 255
    with torch.no_grad():
        assert Autoencoder(1, width=4).encode(training[:2]["x"]).shape == (2, 4, 4, 4)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"steps": 0}, "--steps"),
        ({"samples": 3}, "--samples"),
        ({"dropout": 1.0}, "--dropout"),
        ({"autoencoder_width": 64, "width": 8}, "--autoencoder-width 64"),
    ],
)
def test_bad_flags(flags: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        latent.main(latent.Config(out=tmp_path, **flags))


def test_bad_data(images: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no data"):
        latent.main(latent.Config(out=tmp_path, data=tmp_path / "nothing"))
    with pytest.raises(ValueError, match="ask for fewer"):
        latent.main(latent.Config(out=tmp_path, data=images, held=90))
    odd = tmp_path / "odd"
    odd.mkdir()
    for i in range(30):
        Image.new("L", (6, 8), i).save(odd / f"{i}.png")
    with pytest.raises(ValueError, match="multiples of 4"):
        latent.main(latent.Config(out=tmp_path, data=odd, held=12))
