"""New words beside a frozen network: whose vectors they are, what they may be, and that nothing else moves."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde.nn import MLP, DiT, LearnedWords, MagnitudeUNet, UNet, Vocabulary, learn_words, learned_words

WORDS = Vocabulary(["a", "red", "blue", "three"])
CAPTION = {"vocabulary": 4, "length": 4, "width": 8, "layers": 1}
SHAPE: dict[str, Any] = {"width": 8, "multipliers": (1,), "blocks": 1, "head_width": 4, "captions": {"text": CAPTION}}


def net(seed: int = 0, kind: Callable[..., Any] = UNet, **changes: Any) -> Any:
    torch.manual_seed(seed)
    made = kind(1, **({**SHAPE, **changes}))
    for p in made.parameters():
        if not p.any():  # layers that start at zero
            nn.init.normal_(p, std=0.3)
    return made


def call(one: Any, *texts: str, vocabulary: Vocabulary = WORDS) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    x, c = torch.randn(len(texts), 1, 4, 4, generator=draw), torch.randn(len(texts), generator=draw)
    return one(x, c, text=vocabulary.encode(list(texts), 4))


@pytest.mark.parametrize("kind", [UNet, MagnitudeUNet])
def test_a_new_word_with_the_vector_of_an_old_one_is_that_word(kind: Callable[..., Any]) -> None:
    one = net(kind=kind).requires_grad_(False)  # by which torch chooses kernels
    old = call(one, "a red three", "blue")
    word = learn_words(one, "Sks", WORDS, like="red")
    assert word.words == ("sks",) and word.vocabulary.words == (*WORDS.words, "sks")
    assert torch.equal(call(one, "a red three", "blue"), old)
    assert torch.equal(call(one, "a sks three", "blue", vocabulary=word.vocabulary), old)


def test_it_is_the_network_built_with_a_larger_vocabulary() -> None:
    one = net()
    words = learn_words(one, ["sks", "tok"], WORDS, seed=4)
    larger = net(captions={"text": {**CAPTION, "vocabulary": 6}})
    weights = {k: v for k, v in one.state_dict().items() if ".learned." not in k}
    table = next(k for k in weights if k.endswith("words.weight"))
    weights[table] = torch.cat([weights[table], words.vectors])
    larger.load_state_dict(weights)
    texts = ("sks a tok", "red sks", "a")
    assert torch.equal(
        call(one, *texts, vocabulary=words.vocabulary), call(larger, *texts, vocabulary=words.vocabulary)
    )


def test_the_gradient_is_that_of_the_row_and_all_else_is_frozen() -> None:
    one = net()
    word = learn_words(one, "sks", WORDS, like="a blue")
    call(one, "a sks three", "red", vocabulary=word.vocabulary).square().sum().backward()
    assert [name for name, p in one.named_parameters() if p.grad is not None] == [
        "context.captions.0.words.learned.sks.vectors"
    ]
    at, step = word.vectors.detach().clone(), 1e-3
    slope = torch.zeros_like(at)
    for i in range(8):  # central differences of float32: error of order 1e-7 / step
        for sign in (1.0, -1.0):
            with torch.no_grad():
                word.vectors.copy_(at)
                word.vectors[0, i] += sign * step
                slope[0, i] += sign * call(one, "a sks three", "red", vocabulary=word.vocabulary).square().sum() / 2
    torch.testing.assert_close(word.vectors.grad, slope / step, rtol=2e-2, atol=2e-2)


def test_a_network_of_half_precision_learns_in_float32() -> None:
    one = net().bfloat16()
    word = learn_words(one, "sks", WORDS, like="red")
    assert word.vectors.dtype == torch.float32
    assert torch.equal(
        call(one, "a sks", vocabulary=word.vocabulary), call(one, "a red", vocabulary=word.vocabulary)
    )  # bfloat16 as float32 and back is itself


def test_no_vector_grows_longer_than_it_may() -> None:
    one = net()
    table = one.context.captions[0].words
    largest = float(table.weight[1:].detach().norm(dim=1).max())
    word = learn_words(one, ["sks", "tok"], WORDS, like=["red", "a"], longest=0.5)
    assert float(word.vectors.detach().norm(dim=1).max()) <= 0.5 * largest * (1 + 1e-6)
    with torch.no_grad():
        word.vectors[0] = 7.0
        short = word.vectors[1] = word.vectors[1] / 10
    for module in one.modules():
        getattr(module, "after_step", lambda: None)()
    assert float(word.vectors[0].detach().norm()) == pytest.approx(0.5 * largest, rel=1e-6)
    assert torch.equal(word.vectors[1], short) and bool((word.vectors[0] == word.vectors[0, 0]).all())
    free = learn_words(one, "far", word.vocabulary, longest=None)
    with torch.no_grad():
        free.vectors.fill_(50.0)
    for module in one.modules():
        getattr(module, "after_step", lambda: None)()
    assert bool((free.vectors == 50).all())
    word.vectors.requires_grad_(False).fill_(7.0)  # frozen, it stays as it is
    for module in one.modules():
        getattr(module, "after_step", lambda: None)()
    assert bool((word.vectors == 7).all())


def test_drawn_vectors_are_of_the_size_of_the_others() -> None:
    one = net(captions={"text": {**CAPTION, "width": 64}})
    words = learn_words(one, [f"new{k}" for k in range(40)], WORDS, longest=None)
    table = one.context.captions[0].words
    drawn, own = (float(part.detach().square().mean()) for part in (words.vectors, table.weight[1:]))
    # 2560 normals: their mean square is that of the table's to 1/sqrt(1280) = 2.8 %, five times that allowed
    assert drawn / own == pytest.approx(1, abs=0.14)


def test_words_come_and_go_and_copies_have_their_own() -> None:
    one = net().requires_grad_(False)  # by which torch chooses kernels
    old = call(one, "a red three")
    first = learn_words(one, "sks", WORDS)
    second = learn_words(one, ["tok", "tik"], first.vocabulary)
    assert list(learned_words(one)) == ["sks", "tok"] and second.phrase == "tok tik"
    both = second.vocabulary
    there = call(one, "sks tok tik", vocabulary=both)
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert torch.equal(call(other, "sks tok tik", vocabulary=both), there)
        assert learned_words(other)["tok"].vectors is not second.vectors
    alone = call(one, "tok tik", vocabulary=both)
    first.remove()
    assert second.vocabulary.words == (*WORDS.words, "tok", "tik")
    assert torch.equal(call(one, "tok tik", vocabulary=second.vocabulary), alone)
    with pytest.raises(ValueError, match="tokens of text"):
        call(one, "tik", vocabulary=both)  # one more than there are now
    second.remove()
    assert not learned_words(one) and torch.equal(call(one, "a red three"), old)
    assert one.state_dict().keys() == net().state_dict().keys() and one.conditions["text"].vocabulary == 4


def test_other_conditions_are_none_of_its_business() -> None:
    one = DiT(1, width=16, depth=1, head_width=8, embeddings={"clip": 3}, captions={"text": CAPTION, "note": CAPTION})
    word = learn_words(one, "sks", WORDS, condition="note")
    assert (
        word.condition == "note" and one.conditions["text"].vocabulary == 4 and one.conditions["note"].vocabulary == 5
    )  # type: ignore[attr-defined]
    assert one.config["captions"]["note"]["vocabulary"] == 4


def bad() -> Iterator[tuple[Callable[[], object], type[Exception], str]]:
    one = net()
    learn_words(one, "there", WORDS)
    now = learned_words(one)["there"].vocabulary
    two = DiT(1, width=16, depth=1, head_width=8, captions={"text": CAPTION, "note": CAPTION})
    yield lambda: learn_words(MLP(2), "sks", WORDS), TypeError, "which was built without any"
    yield lambda: learn_words(nn.Linear(2, 2), "sks", WORDS), TypeError, "net must be a ConditionalNetwork"  # type: ignore[arg-type]
    yield lambda: learn_words(one, "sks", WORDS), ValueError, "has 5 words, got a Vocabulary of 4"
    yield lambda: learn_words(one, "red", now), ValueError, "'red' is in the vocabulary already"
    yield lambda: learn_words(one, "there", now), ValueError, "'there' is in the vocabulary already"
    yield lambda: learn_words(one, "two words", now), ValueError, "words must be single words .* 'two words'"
    yield lambda: learn_words(one, [], now), TypeError, "words must be a new word or a list"
    yield lambda: learn_words(one, ["sks", "sks"], now), ValueError, "repeat"
    yield lambda: learn_words(one, "sks", ["a"]), TypeError, "vocabulary must be a Vocabulary"  # type: ignore[arg-type]
    yield lambda: learn_words(one, "sks", now, like="rde"), ValueError, "did you mean 'red'"
    yield lambda: learn_words(one, "sks", now, like=""), ValueError, "like must hold words"
    yield lambda: learn_words(one, "sks", now, like=["a", "red"]), ValueError, "each of the 1 new words, got"
    yield lambda: learn_words(one, "sks", now, longest=0), ValueError, "longest must be positive"
    yield lambda: learn_words(two, "sks", WORDS), ValueError, "one of the captions text, note"
    yield lambda: LearnedWords(one, "sks"), ValueError, "got 'sks'; there: 'there'"


@pytest.mark.parametrize(("make", "error", "message"), list(bad()))
def test_what_is_wrong_is_refused(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
