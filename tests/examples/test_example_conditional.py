"""conditional.py with tiny settings, its data, and its judges: they must know what they judge."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import conditional
from scoresde.data import Dataset, from_tensors
from scoresde.nn import UNet
from shared import measures
from shared.conditional import TASKS, caption, caption_reader, captioned, classifier, images, label, segments, task
from shared.conditional.captioned import Attributes
from shared.digits import load
from shared.training import of_each_class

TINY: dict[str, Any] = {
    "steps": 3, "batch_size": 8, "width": 8, "samples": 20, "draws": 2, "sampling_steps": 4, "guidance": (1.0, 2.0),
    "cpu": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def real() -> tuple[Dataset, Dataset]:
    return load(0)


def attributes(count: int, seed: int = 0) -> Attributes:
    draw = torch.Generator().manual_seed(seed)
    return Attributes(*(torch.randint(high, (count,), generator=draw) for high in (10, 6, 4)))


# -- composed pictures and their captions ------------------------------------------------------------------------------


def test_a_picture_holds_its_digit_in_its_colour_in_its_place(real: tuple[Dataset, Dataset]) -> None:
    digits, those = real[0].data[:200], attributes(200)
    parts = captioned.quadrants(captioned.compose(digits, those.colour, those.place))
    colours = list(captioned.COLOURS.values())
    for i in range(200):
        for place in range(4):
            for channel, lit in enumerate(colours[those.colour[i]]):
                wanted = digits[i, 0] if lit and place == those.place[i] else torch.zeros(8, 8)
                assert torch.equal(parts[i, place, channel], wanted)
    # quadrants in the order of their names
    corner = captioned.compose(torch.full((4, 1, 8, 8), 16), torch.zeros(4, dtype=torch.int64), torch.arange(4))
    assert corner[0, 0, 0, 0] == corner[1, 0, 0, 15] == corner[2, 0, 15, 0] == corner[3, 0, 15, 15] == 16
    assert captioned.PLACES == ("top left", "top right", "bottom left", "bottom right")


def test_captions_say_what_is_there_in_words_that_the_vocabulary_has() -> None:
    one = Attributes(torch.tensor([3, 3, 3]), torch.tensor([0, 0, 0]), torch.tensor([0, 0, 0]))
    assert one.captions(torch.arange(3)) == [
        "a red three, top left", "top left: a three in red", "the three at the top left is red",
    ]  # fmt: skip
    everything = [torch.tensor(k) for k in np.ndindex(10, 6, 4)]
    digit, colour, place = torch.stack(everything).unbind(1)
    texts = [t for k in range(3) for t in Attributes(digit, colour, place).captions(torch.full_like(digit, k))]
    tokens = captioned.vocabulary().encode(texts, captioned.LENGTH)
    assert tokens.shape == (720, captioned.LENGTH) and len(set(map(tuple, tokens.tolist()))) == 720
    # as many tokens as words: nothing is cut off, and no comma stands for a word
    assert (tokens != 0).sum(1).tolist() == [len(t.split()) for t in texts]
    assert int((tokens != 0).sum(1).max()) == captioned.LENGTH
    assert int(tokens.max()) == len(captioned.WORDS)


def test_training_lacks_ten_pairs_and_nothing_else(real: tuple[Dataset, Dataset]) -> None:
    training, _ = real
    few = training.subset(slice(40))
    dataset = captioned.training_set(few, 0)
    assert len(dataset) == 40 * 5 * 4  # each digit lacks one of six colours
    names, tokens = ["", *captioned.vocabulary().words], dataset[:]["caption"]
    assert few.label is not None
    pairs = set()
    for row in tokens:
        words = {names[k] for k in row.tolist()}
        pairs.add(
            tuple(next(i for i, w in enumerate(kind) if w in words) for kind in (captioned.DIGITS, captioned.COLOURS))
        )
    assert len({digit for digit, _ in pairs}) == 10 == len(set(few.label.tolist()))
    assert pairs == {(d, c) for d in range(10) for c in range(6) if d % 6 != c}
    # captions belong to their pictures: the reader, fitted to all training digits, knows those by heart
    words_of = [{names[k] for k in row.tolist()} for row in tokens]
    read = caption_reader.CaptionReader(training)(dataset.data)
    for said, d, c, p in zip(words_of, *map(Tensor.tolist, (read.digit, read.colour, read.place)), strict=True):
        assert {captioned.DIGITS[d], list(captioned.COLOURS)[c], *captioned.PLACES[p].split()} <= said
    # sentences are drawn: all three occur, and another seed draws others
    assert not torch.equal(tokens, captioned.training_set(few, 1)[:]["caption"])
    assert {"in", "is"} <= set().union(*words_of) and sum("is" in w for w in words_of) < 400


def test_questions_are_about_what_they_say(real: tuple[Dataset, Dataset]) -> None:
    training, held = real
    for unseen in (False, True):
        those = captioned.questions(training, held, 60, 0, unseen=unseen)
        assert those.attributes.unseen.tolist() == [unseen] * 60 and len(those.captions) == 60
        assert those.attributes.digit.tolist() == list(range(10)) * 6
        for pictures, source in ((those.real, held), (those.others, training)):
            grey = captioned.quadrants(pictures).amax((1, 2))
            known = {digit.numpy().tobytes() for digit in source.data}
            assert all(digit.numpy().tobytes() in known for digit in grey)
        again = captioned.questions(training, held, 60, 1, unseen=unseen)
        assert not torch.equal(again.attributes.place, those.attributes.place)


# -- judges ------------------------------------------------------------------------------------------------------------


def test_the_reader_of_captions_knows_real_pictures_and_each_kind_of_mistake(real: tuple[Dataset, Dataset]) -> None:
    training, held = real
    reader = caption_reader.CaptionReader(training)
    assert held.label is not None
    n = len(held)
    those = dataclasses.replace(attributes(n), digit=held.label)
    pictures = captioned.compose(held.data, those.colour, those.place)
    right = reader.figures(pictures, those)
    assert right["colour"] == right["place"] == 1.0
    assert right["all"] == right["digit"] >= 0.98  # support vector machines read 99 % of held-out digits
    noisy = pictures + 2 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    assert reader.figures(noisy, those)["all"] > 0.9
    for name, classes in (("digit", 10), ("colour", 6), ("place", 4)):
        asked = dataclasses.replace(those, **{name: (getattr(those, name) + 1) % classes})
        wrong = reader.figures(pictures, asked)
        assert wrong[name] <= 0.02 and wrong["all"] <= 0.02  # what is misread may be read as the next
        assert all(wrong[other] == right[other] for other in ("digit", "colour", "place") if other != name)
    assert caption_reader.CHANCE["all"] == pytest.approx(1 / 240)


def test_measured_pictures_of_the_real_ones_are_at_no_distance(real: tuple[Dataset, Dataset]) -> None:
    training, held = real
    those = captioned.questions(training, held, 40, 0, unseen=True)
    scaling = captioned.captioned(those.real, those.captions).scaling
    floor = caption.real_distance(scaling, those)
    reader = caption_reader.CaptionReader(training)
    figures = caption.measure(scaling.to_model(those.real), scaling, those, reader, floor)
    assert (
        figures["energy_distance"] == 0
        and figures["place"] == 1
        and set(figures["by_sentence"]) == set(captioned.TEMPLATES)
    )
    others = caption.measure(scaling.to_model(those.others), scaling, those, reader, floor)
    assert others["energy_distance_over_real"] == pytest.approx(1)


def test_clutter_is_as_bright_as_the_digit(real: tuple[Dataset, Dataset]) -> None:
    training, _ = real
    those = segments.clutter(training, 1, 0)
    n = len(training)
    where = images.quadrant_of(those.place)
    assert torch.equal(segments.ink(training.data), those.masks[where].reshape(n, 1, 8, 8))
    assert int(those.masks[~where].sum()) == 0
    light = segments.brightness(those.pictures)
    inside = light[where].reshape(n, -1).mean(1)
    outside = light[~where].reshape(n, -1).mean(1)
    # Means over 64 and 192 pixels of the same kind, over n pictures.
    error = float((inside - outside).std()) / n**0.5
    assert abs(float((inside - outside).mean())) < 4 * error
    share = float(where.double().mean())
    assert share == 0.25
    # A threshold finds three times as much clutter as digit, however it is chosen.
    threshold = images.best_threshold(light, those.masks)
    assert float(measures.iou(light >= threshold, those.masks).mean()) < 0.35
    # but in the right quadrant the ink is there to be found
    assert float(measures.iou((light >= threshold) & where, those.masks).mean()) > 0.75
    assert not torch.equal(segments.clutter(training, 1, 1).pictures, those.pictures)
    assert len(segments.clutter(training.subset(slice(5)), 3, 0)) == 15


def test_iou() -> None:
    a = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    b = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    assert measures.iou(a, b).tolist() == pytest.approx([1 / 3, 1, 0])


def test_psnr_and_consistency_in_closed_form() -> None:
    truth = torch.zeros(2, 1, 4, 4)
    assert measures.psnr(truth + 0.2, truth) == pytest.approx(10 * np.log10(4 / 0.04), rel=1e-5)  # float32
    assert measures.psnr(truth + 5, truth) == pytest.approx(10 * np.log10(4), rel=1e-5)  # clamped to 1
    low = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(images.pool(measures.upsized(low, 2), 2), low)


@pytest.mark.parametrize("wide", [0.5, 1.0, 2.0])
def test_spread_over_error_is_one_for_draws_from_the_posterior(wide: float) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = wide * torch.randn(4, 20_000, 1, generator=generator)
    truth = torch.randn(20_000, 1, generator=generator)
    # E |mean - truth|² = 1 + wide²/4, and the spread says (1 + 1/4) wide²; 2 % is 4 standard errors of 20 000 squares
    wanted = (1.25 * wide**2 / (1 + wide**2 / 4)) ** 0.5
    assert measures.spread_over_error(draws, truth) == pytest.approx(wanted, rel=0.02)


def test_correlation_and_ink(real: tuple[Dataset, Dataset]) -> None:
    a, b = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert measures.correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert measures.correlation(a, 0 * b) == 0
    ink = label.amount(real[0].data)
    told = label.InkScale(real[0])(ink)
    assert told.shape == (len(ink), 1) and abs(float(told.mean())) < 1e-5 and float(told.std()) == pytest.approx(1)
    assert float(ink[0]) == pytest.approx(float(real[0].data[0].double().mean()))


def test_as_many_of_each_class(real: tuple[Dataset, Dataset]) -> None:
    some = of_each_class(real[1], 45)
    assert some.label is not None and some.label.tolist() == list(range(10)) * 4
    most = of_each_class(real[1], 10_000).label
    assert most is not None and len(set(torch.bincount(most).tolist())) == 1


# -- training and drawing ----------------------------------------------------------------------------------------------


def fitted(folder: Path, **flags: Any) -> Tensor:
    """Three pictures that depend on all that a flag of training and drawing can change."""
    given = task.Flags(**{**TINY, "steps": 6, "lr": 0.05, **flags})
    draw = torch.Generator().manual_seed(0)
    data = from_tensors(
        torch.randint(17, (16, 1, 4, 4), generator=draw),
        levels=17,
        conditions={"size": torch.randn(16, 2, generator=draw)},
    )
    torch.manual_seed(given.seed)
    net = UNet(
        1,
        width=given.width,
        multipliers=(1,),
        blocks=1,
        attention_levels=(),
        dropout=given.dropout,
        vectors={"size": 2},
    )
    model = task.fit(given, net, data, folder, steps=4)
    return task.draw(given, model, (1, 4, 4), {"size": torch.ones(3, 2)})


CHANGES: dict[str, Any] = {
    "sde": "ve", "steps": None, "batch_size": 4, "lr": 0.01, "dropout": 0.5, "condition_dropout": 0.9,
    "sampling_steps": 5, "seed": 1, "width": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return fitted(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("name", CHANGES)
def test_every_flag_of_training_and_drawing_tells(name: str, plain: Tensor, tmp_path: Path) -> None:
    assert not torch.equal(fitted(tmp_path, **{name: CHANGES[name]}), plain)
    assert (tmp_path / "checkpoints").is_dir() and (tmp_path / "loss.png").exists()


def test_drawing_in_pieces_draws_the_same(plain: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "CHUNK", 2)
    # other batch sizes sum in other orders
    torch.testing.assert_close(fitted(tmp_path), plain, rtol=1e-3, atol=1e-3)


def test_a_condition_that_decides_the_picture_is_obeyed_and_can_be_hidden(tmp_path: Path) -> None:
    """White pictures are told 1, black ones -1; noise of a tenth makes them a law with a density."""
    draw = torch.Generator().manual_seed(0)
    told = torch.tensor([1.0, -1.0]).repeat(32)
    x = told.reshape(-1, 1, 1, 1) + 0.1 * torch.randn(64, 1, 4, 4, generator=draw)
    flags = task.Flags(**{**TINY, "batch_size": 32, "lr": 0.01, "draws": 3, "sampling_steps": 8, "steps": None})
    torch.manual_seed(0)
    net = UNet(1, width=8, multipliers=(1,), blocks=1, attention_levels=(), vectors={"side": 1})
    model = task.fit(flags, net, from_tensors(x, conditions={"side": told}), tmp_path, steps=150)
    asked = {"side": told[:20]}
    answers = task.draw_many(flags, model, (1, 4, 4), asked)
    assert answers.shape == (3, 20, 1, 4, 4) and not torch.equal(answers[0], answers[1])
    assert (answers.mean((2, 3, 4)).sign() == told[:20]).float().mean() >= 0.95
    assert torch.equal(answers[2], task.draw(flags, model, (1, 4, 4), asked, first=40))
    hidden = task.draw(flags, model, (1, 4, 4), asked, scale=0.0)
    assert torch.equal(hidden, task.draw(flags, model, (1, 4, 4), {"side": -told[:20]}, scale=0.0))
    # Each side by a coin: all 20 as asked, or all but one, once in 25 000 seeds each way.
    assert 2 <= int((hidden.mean((1, 2, 3)).sign() == told[:20]).sum()) <= 18
    guided = task.draw(flags, model, (1, 4, 4), asked, scale=3.0)
    assert not torch.equal(guided, answers[0])


# -- end to end --------------------------------------------------------------------------------------------------------

FILES = {
    "caption": {"real.png", *(f"{a}-{b}.png" for a in ("seen", "unseen") for b in ("hidden", "scale-1", "scale-2"))},
    "superresolution": {"superresolution.png"},
    "mask": {"mask.png"},
    "segment": {"segment.png", "reliability.png"},
    "label": {"hidden.png", "label-scale-1.png", "label-scale-2.png", "ink.png", "label-and-ink.png"},
    "classifier": {
        "calibration.png",
        "scale-0.png",
        *(f"scale-{w}{kind}.png" for w in (1, 2) for kind in ("", "-calibrated")),
    },
}


def test_all_tasks_write_everything_and_go_on(
    tmp_path: Path, real: tuple[Dataset, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = (real[0].subset(slice(200)), real[1])  # of each task's data, so that this takes seconds
    for module in (caption, classifier, images, label):
        monkeypatch.setattr(module, "load", lambda seed: few)
    reports = conditional.main(conditional.Config(out=tmp_path, **TINY))
    assert list(reports) == list(FILES) == list(TASKS)
    for name, files in FILES.items():
        folder = tmp_path / name
        assert {p.name for p in folder.iterdir()} == {*files, "loss.png", "report.json", "checkpoints"} | (
            {"classifier"} if name == "classifier" else set()
        )
        for picture in folder.glob("*.png"):
            Image.open(picture).verify()
        assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(reports[name]))
        assert reports[name]["config"]["samples"] == 20

    captions = reports["caption"]
    assert captions["pictures"] == 200 * 20 and set(captions["generated"]) == {"seen", "unseen"}
    for kind in ("seen", "unseen"):
        assert set(captions["generated"][kind]) == {"hidden", "scale 1", "scale 2"}
        assert captions["real"][kind]["place"] == 1.0
        for figures in captions["generated"][kind].values():
            assert {"digit", "colour", "place", "all", "energy_distance", "energy_distance_over_real"} < set(figures)
    answers = reports["superresolution"]["answers"]
    assert set(answers) == {"nearest", "bilinear", "mean", "one_draw", "hidden"}
    assert answers["nearest"]["consistency_levels"] < 1e-5 < answers["one_draw"]["consistency_levels"]
    assert answers["nearest"]["psnr_db"] < 40 and reports["superresolution"]["factor"] == 2
    assert set(reports["mask"]["generated"]) == {"given", "hidden"}
    segmented = reports["segment"]["answers"]
    assert segmented["threshold_in_the_right_quadrant"]["ink_in_the_right_quadrant"] == 1.0
    for name, found in segmented.items():
        assert found["iou"] <= found["dice"] <= 1, name  # Dice is 2 IoU / (1 + IoU) of each
    share = reports["segment"]["calibration"]["share"]
    assert 0 <= share["ece"] <= 1 and len(share["forecast"]) == len(share["frequency"]) == len(share["pixels"])
    assert sum(share["pixels"]) == 16 * 16 * reports["segment"]["config"]["samples"]
    assert segmented["threshold"]["iou"] < segmented["threshold_in_the_right_quadrant"]["iou"]
    assert set(reports["label"]["generated"]) == {"hidden", "label, scale 1", "label, scale 2", "ink", "label and ink"}

    steered = reports["classifier"]
    assert [row["sigma_over_alpha"] for row in steered["calibration"]] == list(classifier.LEVELS)
    assert all(0 <= row["accuracy"] <= 1 and row["temperature"] > 0 for row in steered["calibration"])
    assert set(steered["generated"]) == {
        "scale 0",
        *(f"scale {w}{kind}" for w in (1, 2) for kind in ("", ", calibrated")),
    }

    # what is trained is not trained again, and what was asked is asked again; without --resume nothing is overwritten
    again = conditional.main(conditional.Config(out=tmp_path, resume=True, task="mask", **TINY))
    assert again["mask"]["generated"] == reports["mask"]["generated"]
    with pytest.raises(ValueError, match="holds checkpoints already"):
        conditional.main(conditional.Config(out=tmp_path, task="mask", **TINY))


def test_superresolution_of_own_pictures(tmp_path: Path) -> None:
    (tmp_path / "album").mkdir()
    draw = np.random.default_rng(0)
    for i in range(30):
        Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "album" / f"{i}.png")
    flags = {**TINY, "samples": 10}
    asked = {"task": "superresolution", "data": tmp_path / "album", "factor": 4}
    report = conditional.main(conditional.Config(out=tmp_path / "out", **asked, **flags))["superresolution"]
    assert report["factor"] == 4 and "accuracy" not in report["answers"]["mean"] and report["real"] == {}
    held = images.own_pictures(tmp_path / "album", 10, 4, 0)[1][:]["x"]
    up = F.avg_pool2d(held, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert report["answers"]["nearest"]["psnr_db"] == pytest.approx(measures.psnr(up, held))
    with pytest.raises(ValueError, match=r"30 pictures, and --samples 30 of them"):
        conditional.main(conditional.Config(out=tmp_path / "b", **asked, **{**flags, "samples": 30}))
    np.save(tmp_path / "odd.npy", draw.integers(0, 255, (20, 3, 6, 6), dtype=np.uint8))
    np.save(tmp_path / "points.npy", draw.normal(size=(20, 2)))
    for name, message in (("odd.npy", "--factor 4 does not divide"), ("points.npy", "takes images of whole levels")):
        with pytest.raises(ValueError, match=message):
            conditional.main(conditional.Config(out=tmp_path / "c", **{**asked, "data": tmp_path / name}, **flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"width": 0}, "--width must be at least 1"),
        ({"samples": 9}, "--samples must be at least 10"),
        ({"draws": 1}, "--draws must be at least 2"),
        ({"sampling_steps": 0}, "--sampling-steps must be at least 1"),
        ({"dropout": 1.0}, "--dropout must be at least 0 and below 1"),
        ({"condition_dropout": 1.0}, "--condition-dropout must be at least 0 and below 1"),
        ({"condition_dropout": 0.0}, "--condition-dropout must be above 0"),
        ({"guidance": ()}, "--guidance takes finite numbers"),
        ({"guidance": (1.0, -1.0)}, "--guidance takes finite numbers"),
        ({"threads": -1}, "--threads must be at least 0"),
        ({"data": Path("x"), "task": "mask"}, "--data is for --task superresolution alone"),
        ({"data": Path("nowhere"), "task": "superresolution"}, "no data at nowhere"),
        ({"factor": 4, "task": "label"}, "--factor is for --task superresolution"),
        ({"out": Path(__file__) / "out"}, "cannot write into"),
    ],
    ids=str,
)
def test_conditional_refuses_before_it_starts(flags: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        conditional.main(conditional.Config(**{"out": tmp_path / "out", **flags}))
    assert not any(tmp_path.rglob("*.png"))
