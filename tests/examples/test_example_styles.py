"""examples/styles.py in process, with tiny settings: styles, judges, what it writes and goes on from, and bad flags."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import styles
from shared.digits import load
from shared.styles.drawn import LENGTH, STYLES, bold, sentences, striped, training_set, vocabulary
from shared.styles.judges import Judges

SMALL: dict[str, Any] = {
    "steps": 1,
    "batch_size": 8,
    "width": 8,
    "count": 10,
    "edit_steps": 2,
    "levels": (1.0,),
    "cpu": True,
}


def test_styles_by_hand() -> None:
    levels = torch.tensor([[[[0, 16, 0], [8, 0, 0], [0, 0, 4]]]], dtype=torch.uint8)
    assert bold(levels).tolist() == [[[[0, 16, 16], [8, 16, 16], [8, 8, 4]]]]
    assert striped(levels).tolist() == [[[[0, 16, 0], [2, 0, 0], [0, 0, 4]]]]
    assert bold(levels).dtype == striped(levels).dtype == torch.uint8


def test_sentences_name_style_and_digit_or_the_style_alone() -> None:
    told = sentences("bold", torch.tensor([3, 0]), 2)
    assert told.shape == (2, LENGTH) and vocabulary().decode(told) == ["a bold three", "a bold zero"]
    assert vocabulary().decode(sentences("striped", None, 1)) == ["a striped digit"]
    training = load(0)[0].subset(slice(200))
    dataset = training_set(training, 0)
    assert len(dataset) == 200 * len(STYLES)
    some = vocabulary().decode(dataset.conditions["caption"])
    assert 0.15 < sum("digit" in one for one in some) / len(some) < 0.35
    assert all(one.split()[1] == style for one, style in zip(some[::200], STYLES, strict=True))


def test_judges_read_real_pictures() -> None:
    training, held = load(0)
    judges = Judges(training.subset(slice(600)))
    for style, change in STYLES.items():
        x = held.scaling.to_model(change(held.data))
        assert judges.content(x, held[:]["label"]) > 0.85 and judges.style(x, style) > 0.95


def test_it_edits_measures_and_goes_on(tmp_path: Path) -> None:
    config = styles.Config(out=tmp_path, **SMALL)
    report = styles.main(config)
    assert set(report["styles"]) == {"bold", "striped"}
    for style, figures in report["styles"].items():
        assert {"untouched", "two models", "SDEdit 1, style word", "SDEdit 1, no word"} < set(figures)
        assert figures["untouched"]["style"] < 0.2 and figures["another digit of the class"]["distance_to_truth"] >= 0
        assert (tmp_path / f"{style}.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "report.json").read_text())["edited"] == 10
    again = styles.main(dataclasses.replace(config, resume=True))
    assert again["styles"] == report["styles"]


@pytest.mark.parametrize(
    ("flags", "match"),
    [({"count": 5}, "--count"), ({"levels": (0.0,)}, "--levels"), ({"sde": "ve"}, "--sde must be vp")],
)
def test_bad_flags(flags: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        styles.main(styles.Config(out=tmp_path, **{**SMALL, **flags}))
