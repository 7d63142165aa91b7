"""examples/edit.py in process, with tiny settings: what it writes, what flags do, what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import edit
from scoresde.train import CheckpointError
from shared.conditional import caption, captioned, task
from shared.digits import load
from shared.edits import EDITS

SMALL: dict[str, Any] = {"count": 4, "steps": 2, "cpu": True}


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A caption model of one step, in the folder of a run of conditional.py."""
    out = tmp_path_factory.mktemp("conditional")
    flags = task.Flags(width=8, batch_size=8, cpu=True, steps=1)
    training, held = load(0)
    asked = captioned.questions(training, held, 16, 0, unseen=False)
    pictures = captioned.captioned(asked.real, asked.captions)
    task.fit(flags, caption.reading_network(flags), pictures, out / "caption", steps=1)
    return out


def test_all_edits_write_their_picture_and_figures(run: Path, captions: Path, tmp_path: Path) -> None:
    # two columns in each picture: drawing is most of the time here
    report = edit.main(edit.Config(digits=run, captions=captions, out=tmp_path, **{**SMALL, "count": 2}))
    names = ["sdedit", "inversion", "null_text", "counterfactual", "diffedit", "interpolation"]
    assert list(EDITS) == names and all(report[name] for name in names)
    for name in names:
        name = "null-text-5" if name == "null_text" else name
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    for name in ("digit", "colour"):
        for kind in ("generated", "real", "real-guided", "real-guided-by-nulls"):
            assert (tmp_path / f"prompt-{name}-{kind}.png").exists()
        assert (tmp_path / f"diffedit-{name}.png").exists()
        assert report["prompt_to_prompt"]["diffedit"][name]["largest_change_outside"] == 0
    assert json.loads((tmp_path / "report.json").read_text())["edited"] == 2
    assert report["diffedit"]["distance_outside_mask"] == 0
    # 2 steps up, 2 down; the implicit one tries up to ten more at each
    assert report["inversion"]["ddim"]["nfe"] == 4 < report["inversion"]["ddim, implicit"]["nfe"] <= 24
    trips = report["null_text"]["scale 5"]
    assert set(report["null_text"]) == {"scale 2", "scale 5"}
    assert trips["ddim, null-text"]["round_trip_mean"] <= trips["ddim"]["round_trip_mean"]
    assert set(report["prompt_to_prompt"]["words"]) == {"refined", *(f"colour times {k}" for k in (0, 0.5, 2))}
    swap = report["prompt_to_prompt"]["digit, generated"]
    assert set(swap) == {"0", "0.4", "0.8", "1"}


def test_one_edit_of_one_digit(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = edit.Config(digits=run, out=tmp_path, edit="counterfactual", source=3, wish=8, **SMALL)
    x, label, wish = edit.choose(config, load(0)[1])
    assert label.tolist() == [3] * 4 and wish.tolist() == [8] * 4 and x.shape == (4, 1, 8, 8)
    report = edit.main(config)
    assert "counterfactual" in report and "sdedit" not in report and "prompt_to_prompt" not in report
    assert "--captions" in capsys.readouterr().out  # what to do about the edit left out


def test_without_a_folder_it_trains_and_resumes(tmp_path: Path) -> None:
    config = edit.Config(out=tmp_path, edit="inversion", train_steps=1, **SMALL)
    first = edit.main(config)
    again = edit.main(dataclasses.replace(config, resume=True))
    assert first["inversion"]["ddim"] == again["inversion"]["ddim"]
    assert (tmp_path / "checkpoints").is_dir()


def test_digits_come_in_turn_and_never_as_their_own_wish() -> None:
    held = load(0)[1]
    _, label, wish = edit.choose(edit.Config(count=20), held)
    assert label.tolist() == [*range(10), *range(10)] and wish.tolist() == [(k + 5) % 10 for k in label.tolist()]
    _, label, wish = edit.choose(edit.Config(count=18, wish=8), held)
    assert 8 not in label.tolist() and set(wish.tolist()) == {8}


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"count": 1}, "--count"),
        ({"steps": 0}, "--steps"),
        ({"train_steps": 0}, "--train-steps"),
        ({"wish": 10}, "--wish is a digit"),
        ({"source": 3, "wish": 3}, "nothing to change"),
        ({"digits": Path("x"), "resume": True}, "leave one out"),
    ],
)
def test_bad_flags(flags: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        edit.main(edit.Config(**flags))


def test_another_model_is_refused(run: Path, captions: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the class-conditional one"):
        edit.main(edit.Config(digits=captions, out=tmp_path, **SMALL))
    with pytest.raises(ValueError, match="takes label, not the captions"):
        edit.main(edit.Config(captions=run, out=tmp_path, **SMALL))
    with pytest.raises(CheckpointError, match="checkpoint"):
        edit.main(edit.Config(digits=tmp_path, out=tmp_path, **SMALL))
