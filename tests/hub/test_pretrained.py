"""The models that ship with the library: small, whole, and as good as their card says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import scoresde as ss
from scoresde.hub import locate
from scoresde.hub.shipped import SHIPPED, folder_of
from scoresde.train import CheckpointError, describe


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_is_small_and_loads_by_every_line(name: str) -> None:
    folder = folder_of(name)
    assert folder.is_relative_to(Path(ss.__file__).parent)  # package data
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2_000_000
    assert locate(name) == folder and describe(name if Path(name).exists() else folder).averaged
    models = [ss.pretrained(name), ss.ScoreModel.from_pretrained(name), ss.train.load_model(folder)]
    for model in models:
        assert model.dtype == torch.float32 and model.scaling is not None and model.class_names is not None
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), models[0].parameters(), strict=True))
    assert f"{sum(p.numel() for p in models[0].parameters()):,}" in SHIPPED[name]


@pytest.mark.parametrize("inside", ["", "samples.png", "cat/1.png"])
def test_a_folder_of_results_hides_no_model_that_ships(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command twice, with the name of the model for its results, too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits" / inside).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "digits").mkdir(exist_ok=True)
    if inside:
        (tmp_path / "digits" / inside).touch()
    assert locate("digits") == folder_of("digits")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        locate(tmp_path / "digits")


@pytest.mark.parametrize("inside", ["config.json", "checkpoints/.partial-1", "model/step-00000001/config.json"])
def test_a_run_of_the_same_name_is_never_passed_over(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged, or killed before its first checkpoint: an error, and no other model in its place."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits" / inside).parent.mkdir(parents=True)
    (tmp_path / "digits" / inside).touch()
    with pytest.raises(CheckpointError):
        locate("digits")


def test_what_there_is_is_told() -> None:
    assert ss.pretrained() == SHIPPED and "digits" in SHIPPED
    with pytest.raises(ValueError, match=r"got 'Digit'; there is 'digits' \(class-cond.*Did you mean 'digits'"):
        ss.pretrained("Digit")
    with pytest.raises(TypeError, match="name must be one of digits, got 3"):
        ss.pretrained(3)  # type: ignore[call-overload]


def test_digits_are_read_as_their_label() -> None:
    """By the reader of the main job, fitted to real digits alone.

    Its card says 0.99 and more of 360; of 60 that are read with this probability, fewer than 54 occur once in 10^6.
    """
    from shared.digits import load
    from shared.readers import DigitReader

    model, (training, _) = ss.pretrained("digits"), load(seed=0)
    assert model.scaling == training.scaling and model.event_shape == training.event_shape
    labels = torch.arange(60) % 10
    score = ss.classifier_free(model, {"label": labels}, scale=2.0)
    solution = ss.sample(score, (60, 1, 8, 8), solver=ss.DDIM(), steps=8, seed=0)
    assert DigitReader(training).accuracy(solution.x, labels) >= 0.9
    grey = solution.data
    assert grey.min() > -4 and grey.max() < 20  # levels 0 ... 16, and what a model errs


def test_the_card_has_the_figures_that_were_measured() -> None:
    card = (folder_of("digits") / "README.md").read_text()
    for text in ('license: "mit"', "![Samples](samples.png)", "| heun, guided |", "examples/digits.py", "float16"):
        assert text in card, text
