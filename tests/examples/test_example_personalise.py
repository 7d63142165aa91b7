"""personalise.py in process, with tiny settings: what it writes, its subject and its reader, what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import personalise
from scoresde.data import Dataset
from scoresde.nn import adapters, learned_words
from scoresde.train import load_adapter, load_model
from shared.conditional.captioned import COLOURS, DIGITS, PLACES, vocabulary
from shared.digits import load
from shared.personalise import TASKS, subject

TINY: dict[str, Any] = {
    "width": 8, "base_steps": 1, "inversion_steps": 2, "tuning_steps": 2, "tuning_batch": 4, "prior": 6, "samples": 10,
    "sampling_steps": 2, "ranks": (1,), "cpu": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def real() -> tuple[Dataset, Dataset]:
    return load(0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A run of everything."""
    out = tmp_path_factory.mktemp("personalise")
    return personalise.main(personalise.Config(out=out, **TINY)), out


def test_all_ways_write_their_figures_pictures_and_files(whole: tuple[dict[str, Any], Path]) -> None:
    report, out = whole
    assert list(TASKS) == ["textual_inversion", "dreambooth", "lora"]
    written = json.loads((out / "report.json").read_text("utf-8"))
    names = {
        "textual_inversion": {"untuned", "1 vector", "2 vectors"},
        "dreambooth": {"untuned", "without preservation", "with preservation"},
        "lora": {"full tuning", "rank 1"},
    }
    for task, those in names.items():
        assert set(written[task]) == set(report[task]) == those
        for one in written[task].values():
            assert 0 <= one["subject"]["all"] <= min(one["subject"]["subject"], one["subject"]["prompt"]) <= 1
    inversion, lora = written["textual_inversion"]["2 vectors"]["cost"], written["lora"]["rank 1"]["cost"]
    assert inversion["parameters"] == 2 * 64 and inversion["bytes_sks"] < 5000
    assert lora["share"] < 0.05 < written["lora"]["full tuning"]["cost"]["share"]
    for path in ("textual_inversion/untuned.png", "dreambooth/with-preservation.png", "lora/rank-1.png"):
        assert (out / path).read_bytes()[:4] == b"\x89PNG"


def test_what_was_learned_goes_into_the_base_model_again(whole: tuple[dict[str, Any], Path]) -> None:
    _, out = whole
    base: Any = load_model(out / "base" / "checkpoints").net
    tuned: Any = load_model(out / "lora" / "rank-1" / "checkpoints").net
    for path in sorted((out / "lora").glob("*.safetensors")):
        load_adapter(path, base)
    assert list(adapters(base)) == ["subject"] and list(learned_words(base)) == ["sks"]
    tokens = learned_words(base)["sks"].vocabulary.encode(["a sks three, top left"], 8)
    x, c = torch.randn(1, 3, 16, 16), torch.zeros(1)
    with torch.no_grad():
        torch.testing.assert_close(base(x, c, caption=tokens), tuned(x, c, caption=tokens))


def test_a_model_and_a_subject_of_ones_own(whole: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    _, out = whole
    config = personalise.Config(out=tmp_path, task="lora", model=out, subject=out / "subject", **TINY)
    report = personalise.main(config)
    assert report["subject_pictures"] == 5 and not (tmp_path / "base").exists()
    again = personalise.main(dataclasses.replace(config, resume=True))  # trainings are over: it goes on to drawing
    assert again["lora"]["rank 1"]["subject"] == report["lora"]["rank 1"]["subject"]


# -- the subject and its reader ----------------------------------------------------------------------------------------


def test_the_hand_is_the_largest_of_four_neighbours() -> None:
    grey = torch.randint(0, 17, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    found = subject.bold(grey)
    for row in range(8):
        for column in range(8):
            block = grey[:, :, max(0, row - 1) : row + 1, max(0, column - 1) : column + 1]
            assert torch.equal(found[:, :, row, column], block.amax((2, 3)).float())


def test_pictures_come_back_from_the_folder_that_was_written(real: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    pictures, asked = subject.shown(real[0], 5, 3)
    captions = asked.captions(subject.WORD)
    subject.save_subject(tmp_path, pictures, captions)
    found, texts = subject.read_subject(tmp_path)
    order = [texts.index(caption.replace(":", " -")) for caption in captions]
    assert torch.equal(found[order], pictures)
    words = subject.Vocabulary([*vocabulary().words, subject.WORD])
    assert torch.equal(words.encode([texts[i] for i in order], 8), words.encode(captions, 8))


def test_the_reader_knows_what_it_reads(real: tuple[Dataset, Dataset]) -> None:
    training, held = real
    assert held.label is not None
    reader = subject.SubjectReader(training)
    place = torch.arange(len(held)) % len(PLACES)

    def figures(grey: Tensor, hue: int) -> dict[str, float]:
        asked = subject.Asked(held.label, place)  # type: ignore[arg-type]
        return reader.of_subject(subject.placed(grey, torch.full_like(place, hue), place), asked)

    thick, plain = figures(subject.bold(held.data), subject.SUBJECT), figures(held.data.float(), subject.SUBJECT)
    # held-out digits, 360 of them: few are misread, in either hand
    assert thick["subject"] > 0.97 and thick["prompt"] > 0.95 and thick["all"] > 0.93
    assert plain["bold"] < 0.03 and plain["colour"] > 0.97 and plain["subject"] < 0.03
    for hue in range(len(COLOURS)):
        other = figures(subject.bold(held.data), hue)
        assert other["bold"] > 0.97 and other["colour"] < 0.03  # in another colour it is none


def test_everything_is_asked_for_in_turn() -> None:
    asked = subject.everything(40)
    assert len(set(zip(asked.digit.tolist(), asked.place.tolist(), strict=True))) == len(DIGITS) * len(PLACES)
    assert asked.captions("sks sks2")[:2] == ["a sks sks2 zero, top left", "top left: a one in sks sks2"]


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pictures": 1}, "--pictures must be from 2 to 10, got 1"),
        ({"ranks": (0,)}, "--ranks must be whole numbers of at least 1"),
        ({"vectors": 4}, "--vectors must be from 1 to 3"),
        ({"like": "orang"}, "'orang' is not among the"),
        ({"tuning_lr": 0.0}, "--tuning-lr must be above 0"),
        ({"prior_weight": -1.0}, "--prior-weight must be above 0"),
    ],
)
def test_flags_that_make_no_sense(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        personalise.main(personalise.Config(out=tmp_path / "out", **{**TINY, **changes}))
    assert not (tmp_path / "out").exists()


def test_subject_folders_that_do_not_do(real: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    pictures, asked = subject.shown(real[0], 2, 0)

    def message(folder: Path) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            personalise.main(personalise.Config(out=tmp_path / "out", subject=folder, **TINY))
        return str(caught.value)

    assert "nowhere" in message(tmp_path / "nowhere")
    (tmp_path / "none").mkdir()
    assert "must hold pictures in folders named as captions" in message(tmp_path / "none")
    subject.save_subject(tmp_path / "one", pictures[:1], asked.captions("sks")[:1])
    assert "at least 2 pictures of the subject, got 1" in message(tmp_path / "one")
    subject.save_subject(tmp_path / "wordless", pictures, asked.captions("red"))
    assert "captions with the new word 'sks'" in message(tmp_path / "wordless")
    subject.save_subject(tmp_path / "small", pictures[:, :, :8, :8], asked.captions("sks"))
    assert "pictures of 16x16 pixels" in message(tmp_path / "small")
    for name in ("1.png", "2.png"):
        inside = next((tmp_path / "one").iterdir()) / "0.png"
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / name).write_bytes(inside.read_bytes())
    assert "and not pictures themselves" in message(tmp_path / "flat")
    subject.save_subject(tmp_path / "strange", pictures, ["a sks thre, top left", "a sks nine, top right"])
    config = personalise.Config(out=tmp_path / "out", subject=tmp_path / "strange", **TINY)
    with pytest.raises(ValueError, match="did you mean 'three'"):
        personalise.main(config)
    assert not (tmp_path / "out").exists()  # before any work
