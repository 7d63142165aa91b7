"""`scoresde train --held-out`: a share, or data of its own of every kind that --data may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scoresde.cli import train

COUNT = 36  # at least 32 are asked for


def written(kind: str, folder: Path, seed: int, count: int = COUNT) -> Path:
    """Data of a kind: bright pictures with labels 0, dark ones with 1, or vectors far from zero."""
    draw = np.random.default_rng(seed)
    label = np.arange(count) % 2
    x = draw.integers(0, 100, (count, 3, 6, 6), dtype=np.uint8) + 100 * label[:, None, None, None].astype(np.uint8)
    folder.mkdir()
    if kind == "folder":
        for i, (k, picture) in enumerate(zip(label, x, strict=True)):
            (folder / str(k)).mkdir(exist_ok=True)
            Image.fromarray(picture.transpose(1, 2, 0)).save(folder / str(k) / f"{i}.png")
        return folder
    if kind == "npz":
        np.savez(folder / "x.npz", x=x, label=label)
        return folder / "x.npz"
    np.save(folder / "x.npy", 50 + 3 * draw.normal(size=(count, 2)))
    return folder / "x.npy"


def config(kind: str, tmp_path: Path, **flags: Any) -> train.TrainConfig:
    data = written(kind, tmp_path / "data", 0)
    small: dict[str, Any] = {"width": 8, "steps": 2, "batch_size": 8, "cpu": True, "progress": False}
    small |= {"depth": 1} if kind == "npy" else {"multipliers": (1,), "blocks": 1, "attention_levels": ()}
    return train.TrainConfig(data=data, out=tmp_path / "run", **{**small, **flags})


@pytest.mark.parametrize("kind", ["folder", "npz", "npy"])
def test_data_of_its_own_is_read_in_the_units_of_the_data(kind: str, tmp_path: Path) -> None:
    train.main(config(kind, tmp_path, held_out=written(kind, tmp_path / "held", 1)))
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    # The same law as that of training: no network worse than 1 by more than a factor, if the units are those; vectors
    # left at 50 ± 3 where the others have a deviation of 1 give thousands.
    assert 0 < last["held_out"]["loss"] < 10


def test_pictures_held_out_are_decoded_beside_those_of_training(tmp_path: Path) -> None:
    held = written("folder", tmp_path / "held", 1, COUNT + 2)
    train.main(config("folder", tmp_path, held_out=held, decoded=tmp_path / "fast.npy"))
    assert [len(np.load(tmp_path / f"{name}.npy")) for name in ("fast", "fast-held-out")] == [COUNT, COUNT + 2]


def test_what_a_file_of_its_own_would_lack_is_said_before_any_work(tmp_path: Path) -> None:
    held = written("npy", tmp_path / "held", 1)
    np.save(tmp_path / "label.npy", np.arange(COUNT) % 2)
    with pytest.raises(ValueError, match="would need its own --label"):
        train.main(config("npy", tmp_path, held_out=held, label=tmp_path / "label.npy"))
    assert not list(tmp_path.rglob("step-*"))
