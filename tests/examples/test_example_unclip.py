"""clip.py and dalle2.py with tiny settings, their captions and figures, and the prior where the truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import clip
import dalle2
import scoresde as ss
from scoresde.data import Scaling, from_tensors
from shared.conditional.captioned import COLOURS, DIGITS, PLACES, Attributes
from shared.digits import load
from shared.unclip import asked, prior, sentences
from shared.unclip.flags import Dalle2Flags
from shared.unclip.sentences import Captions

TINY: dict[str, Any] = {"encoder_steps": 3, "encoder_batch": 8, "encoder_width": 8, "size": 8, "cpu": True}
TINY2: dict[str, Any] = {
    **TINY, "prior_steps": 3, "prior_batch": 8, "prior_width": 8, "steps": 3, "batch_size": 8, "width": 8,
    "samples": 20, "draws": 2, "choices": 2, "sampling_steps": 2,
}  # fmt: skip


# -- captions ----------------------------------------------------------------------------------------------------------


def test_sentences_say_what_they_are_told_and_nothing_else() -> None:
    assert [sentences.sentence((3, 0, 0), k) for k in range(3)] == [
        "a red three, top left", "top left: a three in red", "the three at the top left is red",
    ]  # fmt: skip
    assert [sentences.sentence((3, None, None), k) for k in range(3)] == ["a three", "a three", "the three"]
    assert [sentences.sentence((None, 1, 3), k) for k in range(3)] == [
        "a green digit, bottom right", "bottom right: a digit in green", "the digit at the bottom right is green",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["words", "bytes"])
def test_every_sentence_has_tokens(name: Any) -> None:
    tell = Captions(sentences.tokenizer_of(name))
    every = sentences.every_attribute()
    assert len(every) == 240
    for template in range(3):
        for said in ([True, True, True], [True, False, True], [False, True, False]):
            texts = sentences.sentences(every, torch.tensor([said] * 240), torch.full((240,), template))
            tokens = tell(texts)
            assert tokens.shape[1] == tell.condition["length"] and 0 < int(tokens.max()) <= tell.condition["vocabulary"]
            assert len({tuple(row) for row in tokens.tolist()}) == len(set(texts))
    assert tell.prompts("colour").shape == (6, 3, tell.condition["length"])


def test_captions_of_training_are_true_leave_things_out_and_never_show_the_pairs_kept() -> None:
    training, held = load(0)
    found = sentences.pictures_of(training.subset(slice(60)), Captions(sentences.tokenizer_of("words")), 0)
    assert not bool(found.attributes.unseen.any()) and len(found.dataset) == 60 * 5 * 4
    texts = found.dataset.vocabularies["caption"].decode(found.dataset.conditions["caption"])
    for text, d, c, p, said in zip(
        texts, *map(Tensor.tolist, (found.attributes.digit, found.attributes.colour, found.attributes.place)),
        found.said.tolist(), strict=True,
    ):  # fmt: skip
        words = set(text.split())
        assert (DIGITS[d] in words) == said[0] and len(words & set(DIGITS)) == said[0]
        assert (list(COLOURS)[c] in words) == said[1] and len(words & set(COLOURS)) == said[1]
        assert (PLACES[p] in text) == said[2] and len(words & {"top", "bottom"}) == said[2]
    shares = found.said.double()
    # half say all; of the others each is said by a coin, and by chance one of the three for sure: 1/2 + 1/2 · 2/3
    assert shares.mean(0).tolist() == pytest.approx([0.5 + 0.5 * (1 / 2 + 1 / 6)] * 3, abs=4 * 0.5 / 1200**0.5)
    assert bool(found.said.any(1).all())
    those = Attributes(torch.arange(10).repeat(4), torch.arange(40) % 6, torch.arange(40) % 4)
    pictures = sentences.held_out(held, those, 0)
    assert held.label is not None
    known = {digit.numpy().tobytes(): int(k) for digit, k in zip(held.data, held.label, strict=True)}
    grey = pictures.reshape(40, 3, 2, 8, 2, 8).permute(0, 2, 4, 1, 3, 5).amax((1, 2, 3))[:, None]
    assert [known[one.numpy().tobytes()] for one in grey.contiguous()] == those.digit.tolist()


# -- the prior ---------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_prior_draws_the_law_and_the_regression_answers_its_mean(tmp_path: Path) -> None:
    """Embeddings that are Gaussian for each caption: their means and their covariance are known."""
    draw = torch.Generator().manual_seed(0)
    means = torch.tensor([[1.0, -0.5], [-1.0, 0.5]])
    factor = torch.tensor([[0.5, 0.0], [0.3, 0.2]])
    tell = Captions(sentences.tokenizer_of("words"))
    texts = tell(["a three", "a four"])
    which = torch.arange(2048) % 2
    x = means[which] + torch.randn(2048, 2, generator=draw) @ factor.T
    dataset = from_tensors(
        x[:, :, None], channels="first", scaling=Scaling(0.0, 1.0),
        conditions={"caption": texts[which], "sentence": means[which]},
    )  # fmt: skip
    flags = Dalle2Flags(size=2, prior_steps=300, prior_width=32, prior_batch=128, lr=8e-3, cpu=True)
    for kind in ("prior", "regression"):
        model = prior.learn(flags, tell, dataset, tmp_path / kind, kind=kind)  # type: ignore[arg-type]
        for k in range(2):
            told = {"caption": texts[k : k + 1].expand(800, -1), "sentence": means[k : k + 1].expand(800, -1)}
            if kind == "prior":
                found = ss.sample(model.bind(**told), (800, 2, 1), steps=20, seed=1).x[:, :, 0]
                # after so short a training; of 800 draws the covariance is known to 0.02
                assert (torch.cov(found.T) - factor @ factor.T).abs().max() < 0.1
            else:
                noise = model.sde.prior_sample((800, 2, 1), 1)
                with torch.no_grad():
                    found = model.bind(**told).denoise(noise, model.sde.T)[:, :, 0]
                assert found.std(0).max() < 0.1  # it knows no more than the caption
            assert (found.mean(0) - means[k]).abs().max() < 0.15


# -- figures -----------------------------------------------------------------------------------------------------------


class Reads:
    """What :func:`asked.variety` needs of a system: pictures that tell what they show by their first pixels."""

    def read(self, x: Tensor) -> Attributes:
        return Attributes(*(x[:, 0, 0, k].long() for k in range(3)))


def test_variety_counts_pairs_of_pictures_of_a_caption() -> None:
    x = torch.zeros(2, 2, 3, 16, 16)  # two draws of two captions
    x[0, 0, 0, 0, 1] = 3  # of the first caption, which says the digit alone: another colour, the same place
    x[1, 1, 0, 0, 0] = 5  # of the second, which says digit and place: another digit, which is wrong
    wanted = Attributes(torch.tensor([0, 0]), torch.tensor([0, 0]), torch.tensor([0, 0]))
    said = torch.tensor([[True, False, False], [True, False, True]])
    found = asked.variety(Reads(), x, wanted, said)  # type: ignore[arg-type]
    assert found["right"] == pytest.approx(3 / 4)
    # unsaid are colour and place of the first and colour of the second; of these the first differs
    assert found["differ"] == pytest.approx(1 / 3)
    # root mean squares over 768 numbers, of 3 and of 5
    assert found["apart"] == pytest.approx((3 + 5) / 2 / 768**0.5, rel=1e-5)


# -- the scripts -------------------------------------------------------------------------------------------------------


def test_both_scripts_with_tiny_settings(tmp_path: Path) -> None:
    first = clip.main(clip.Config(**TINY, tokenizer="bytes", out=tmp_path / "clip"))
    assert {path.name for path in (tmp_path / "clip").iterdir()} == {"clean", "noisy", "noise.png", "report.json"}
    for reads in ("clean", "noisy"):
        for pairs in ("seen", "unseen"):
            figures = first[reads]["clean"][pairs]
            assert set(figures) == {
                "caption_at_1", "caption_at_5", "picture_at_1", "picture_at_5", "digit", "colour", "place",
            }  # fmt: skip
            assert all(0 <= value <= 1 for value in figures.values())
    config = dalle2.Config(**TINY2, tokenizer="bytes", clip=tmp_path / "clip", out=tmp_path / "dalle2")
    second = dalle2.main(config)
    assert set(second["captions"]["unseen"]) == {"real", *asked.WAYS}
    assert second["captions"]["seen"]["real"]["all"] > 0.9  # digits that the reader has not seen
    assert second["open_captions"]["real"]["right"] > 0.9
    assert set(second["interpolation"]) == {f"weight {w:g}" for w in (0, 0.25, 0.5, 0.75, 1)}
    pictures = {path.name for path in (tmp_path / "dalle2").glob("*.png")}
    assert {"variations.png", "interpolation.png", "differences.png", "open-prior.png"} <= pictures
    written = json.loads((tmp_path / "dalle2" / "report.json").read_text(encoding="utf-8"))
    assert written["variations"] == second["variations"]
    with pytest.raises(ValueError, match="encoders of other captions"):
        dalle2.main(dalle2.Config(**TINY2, clip=tmp_path / "clip", out=tmp_path / "other"))


def test_bad_flags_are_refused_before_any_work(tmp_path: Path) -> None:
    for bad, message in (
        ({"choices": 1}, "--choices"),
        ({"guidance": float("nan")}, "--guidance must be a finite number"),
        ({"clip": tmp_path / "none"}, "no run at"),
        ({"encoder_batch": 1}, "--encoder-batch"),
        ({"dropout": 1.0}, "--dropout"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            dalle2.main(dalle2.Config(**{**TINY2, **bad, "out": tmp_path / "out"}))
    assert not (tmp_path / "out").exists()
