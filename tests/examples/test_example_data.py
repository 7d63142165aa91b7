"""Data on the command line: what was understood is printed, what was left out is told, words are those of flags."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scoresde.cli import train
from scoresde.cli.command import command
from scoresde.cli.flags import DataFlags


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of four pictures, one of another file, and one damaged."""
    draw = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(4):
            image = Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8))
            image.save(tmp_path / "pictures" / name / f"{i}.png")
    (tmp_path / "pictures" / "ant" / "5.png").write_bytes(b"no image")
    (tmp_path / "pictures" / "notes.txt").write_text("of pictures")
    return tmp_path / "pictures"


SMALL: dict[str, Any] = {
    "steps": 1,
    "batch_size": 4,
    "width": 8,
    "multipliers": (1,),
    "attention_levels": (),
    "cpu": True,
}


def test_training_prints_what_was_understood(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match="1 of 9 images"):
        train.main(train.TrainConfig(data=pictures, out=tmp_path / "run", skip_bad=True, **SMALL))
    told = capsys.readouterr().out
    assert "8 grey images of 8x8, 2 classes (ant, bee), 256 levels to [-1, 1]" in told
    assert "sub-folders are classes" in told and "passed over 1: notes.txt" in told and "left out 1: " in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "pass --skip-bad to leave"),
        (["--skip-bad", "--channels", "last"], "--channels says nothing about"),
        (["--num-classes", "0"], "--num-classes says nothing about"),
    ],
)
def test_errors_speak_of_flags(
    words: list[str], message: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["train.py", "--data", str(pictures), "--out", str(tmp_path / "run"), "--cpu", *words]
    )
    with pytest.raises(SystemExit, match=message):
        command(train.main, train.TrainConfig)


def test_axes_are_asked_for_and_classes_counted(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((6, 8, 8, 3), np.uint8), label=np.array([0, 1, 3] * 2))
    with pytest.raises(ValueError, match="'last' for RGB images of 8x8"):
        DataFlags(data=tmp_path / "x.npz").load()
    with pytest.warns(UserWarning, match="without a sample"):
        dataset = DataFlags(data=tmp_path / "x.npz", channels="last", num_classes=4).load()
    assert dataset.num_classes == 4 and dataset.event_shape == (3, 8, 8)


def test_each_flag_of_data_is_an_option_of_a_reader() -> None:
    import inspect
    from dataclasses import fields

    from scoresde.data.readers import READERS

    known = {name for reader in READERS.values() for name in inspect.signature(reader).parameters}
    assert {field.name for field in fields(DataFlags)} - {"data"} <= known
