"""Byte pairs: what they learn, against the algorithm by hand; every text back; what is refused; kept in checkpoints."""

from __future__ import annotations

import itertools
import json
import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch

from scoresde.data import from_tensors
from scoresde.models import ScoreModel
from scoresde.nn import BytePairs, UNet
from scoresde.sde import VP
from scoresde.train import describe, load_model, save, train
from scoresde.train.folder import CheckpointError

TEXTS = ["a red three, top left", "a blue three, top right", "the three at the top left is red"] * 2
PAIRS = BytePairs.of(TEXTS, 300)


def test_merges_are_the_most_frequent_pairs_in_turn() -> None:
    """Sennrich et al. 2016, algorithm 1, as a loop over words; where two pairs are as frequent either may come."""
    words = Counter(tuple("Ġ" + word) for text in TEXTS for word in text.replace(",", " ,").split() if word != ",")
    words.update({(",",): sum(text.count(",") for text in TEXTS)})
    for merge in PAIRS.merges[:20]:
        counts: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                counts[pair] += count
        left, right = merge.split(" ")
        assert counts[left, right] == max(counts.values())
        joined: Counter[tuple[str, ...]] = Counter()
        for word, count in words.items():
            parts: list[str] = []
            for part in word:
                parts = [*parts[:-1], left + right] if parts[-1:] == [left] and part == right else [*parts, part]
            joined[tuple(parts)] += count
        words = joined


def test_a_frequent_word_is_one_token_and_any_text_comes_back() -> None:
    tokens = PAIRS.encode(["three", "a red three"], 4)
    assert tokens.dtype == torch.long and (tokens != 0).sum(1).tolist() == [1, 3]
    assert tokens[0, 0] == tokens[1, 2]  # the same at the beginning as within
    texts = ["a red three, top left", "never seen: straße, 東京 ☃!", "x" * 40, "", "  a  b "]
    assert PAIRS.decode(PAIRS.encode(texts, 64)) == [*texts[:4], "a  b"]
    assert PAIRS.decode(PAIRS.encode(["A Red THREE"], 4)) == ["a red three"]
    assert int(PAIRS.encode(texts, 64).max()) <= len(PAIRS)
    composed, apart = PAIRS.encode(["caf\u00e9", "cafe\u0301"], 8)  # two ways to write one text
    assert torch.equal(composed, apart)


def test_it_is_rebuilt_from_its_words_and_merges() -> None:
    twin = BytePairs(*json.loads(json.dumps([PAIRS.words, PAIRS.merges])))
    copied = pickle.loads(pickle.dumps(PAIRS))
    for other in (twin, copied):
        assert other == PAIRS
        assert torch.equal(other.encode(TEXTS, 20), PAIRS.encode(TEXTS, 20))


def test_bad_arguments_are_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="'a blue house' has 8 tokens; expected at most length=4"):
        PAIRS.encode(["a red three", "a blue house"], 4)
    with pytest.raises(TypeError, match="expected a list of texts"):
        PAIRS.encode("a red three", 4)
    with pytest.raises(TypeError, match="texts only"):
        BytePairs.of(["a", 3], 300)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="size"):
        BytePairs.of(TEXTS, 100)
    with pytest.raises(ValueError, match="lack 256 of the 256 single bytes"):
        BytePairs(["red"], [])
    with pytest.raises(ValueError, match="words repeat"):
        BytePairs(["red", "red"], [])
    with pytest.raises(ValueError, match="merges hold 'red blue'"):
        BytePairs(PAIRS.words, ["red blue"])
    with pytest.raises(ValueError, match="out of range"):
        PAIRS.decode(torch.tensor([[len(PAIRS) + 1]]))
    with pytest.raises(TypeError, match=r"torch\.int64"):
        PAIRS.decode(torch.zeros(1, 2))


def test_checkpoints_hold_them(tmp_path: Path) -> None:
    tokens, x = PAIRS.encode(TEXTS, 12), torch.linspace(-1, 1, 96).reshape(6, 1, 4, 4)
    dataset = from_tensors(x, channels="first", conditions={"text": tokens}, vocabularies={"text": PAIRS})
    net = UNet(
        1, width=8, multipliers=(1,), blocks=1, attention_levels=(),
        captions={"text": {"vocabulary": len(PAIRS), "length": 12, "width": 8, "layers": 1}},
    )  # fmt: skip
    model = ScoreModel(net, VP(), "v", sigma_data=1.0)
    for _ in train(model, dataset, steps=1, batch_size=4, folder=tmp_path, progress=False, cpu=True):
        pass
    loaded = load_model(tmp_path)
    assert loaded.vocabularies == {"text": PAIRS}
    assert describe(tmp_path).merges == {"text": PAIRS.merges}
    # and a model alone tells them, too; a run goes on with them
    assert load_model(save(tmp_path / "again", loaded, step=1)).vocabularies == {"text": PAIRS}
    again = {"steps": 2, "batch_size": 4, "folder": tmp_path, "progress": False, "cpu": True, "resume": True}
    assert [step.step for step in train(loaded, dataset, **again)] == [2]  # type: ignore[arg-type]
    other = BytePairs.of(["something else entirely"] * 3, len(PAIRS))
    changed = from_tensors(
        x, channels="first", conditions={"text": tokens.clamp(max=200)}, vocabularies={"text": other},
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="another data set; they differ in vocabularies"):
        train(loaded, changed, **{**again, "steps": 3})  # type: ignore[arg-type]
