"""Adapters and words under training, in checkpoints, and in files of their own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import scoresde as ss
from scoresde.data import Dataset, Scaling, from_tensors, mix
from scoresde.nn import (
    MLP,
    LearnedWords,
    LoRA,
    MagnitudeUNet,
    UNet,
    Vocabulary,
    adapters,
    learn_words,
    learned_words,
    lora,
)
from scoresde.nn.attached import attached, fingerprint
from scoresde.train import CheckpointError, describe, load_adapter, load_model, prior_set, save_adapter, train

WORDS = Vocabulary(["a", "red", "blue", "three"])
SHAPE: dict[str, Any] = {"width": 8, "multipliers": (1,), "blocks": 1, "head_width": 4}
SHAPE["captions"] = {"text": {"vocabulary": 4, "length": 4, "width": 8, "layers": 1}}


def network(kind: Any = UNet, **changes: Any) -> Any:
    torch.manual_seed(0)
    net = kind(1, **{**SHAPE, **changes})
    for p in net.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.3)
    return net


def model_of(net: nn.Module) -> ss.ScoreModel:
    return ss.ScoreModel(net, ss.VP(), "edm", sigma_data=0.5)


def subject(vocabulary: Vocabulary, text: str, n: int = 4) -> Dataset:
    x = torch.randint(0, 17, (n, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    tokens = vocabulary.encode([text] * n, 4)
    return from_tensors(x, levels=17, conditions={"text": tokens}, vocabularies={"text": vocabulary})


def trained(net: nn.Module, dataset: Dataset, **options: Any) -> ss.ScoreModel:
    run = train(model_of(net), dataset, batch_size=4, lr=0.05, progress=False, cpu=True, ema=0.5, **options)
    for _ in run:
        pass
    return run.ema_model()


def answer(net: Any, vocabulary: Vocabulary, text: str) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    net = copy.deepcopy(net).requires_grad_(False)  # by which torch chooses kernels
    x, c = torch.randn(3, 1, 4, 4, generator=draw), torch.randn(3, generator=draw)
    with torch.no_grad():
        return net(x, c, text=vocabulary.encode([text] * 3, 4))


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [UNet, MagnitudeUNet])
def test_training_moves_the_adapter_alone_and_its_checkpoint_comes_back(kind: Any, tmp_path: Path) -> None:
    net = network(kind)
    own = {name: value.clone() for name, value in net.state_dict().items()}
    adapter = lora(net, 2, ["*attention*", "*cross*"], name="style", alpha=3.0)
    adapter.scale = 0.5
    before = [p.detach().clone() for p in adapter.parameters]
    averaged = trained(net, subject(WORDS, "a red three"), steps=3, folder=tmp_path)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in own.items())
    assert all(torch.equal(averaged.net.state_dict()[name], value) for name, value in own.items())  # type: ignore[union-attr]
    moved = [not torch.equal(p, q) for p, q in zip(adapter.parameters, before, strict=True)]
    assert all(moved)
    loaded = load_model(tmp_path)
    found = adapters(loaded.net)["style"]  # type: ignore[arg-type]
    assert (found.rank, found.alpha, found.scale, found.on) == (2, 3.0, 0.5, True)
    assert torch.equal(answer(loaded.net, WORDS, "a red"), answer(averaged.net, WORDS, "a red"))
    assert not torch.equal(answer(loaded.net, WORDS, "a red"), answer(net, WORDS, "a red"))  # the average's own A, B


@pytest.mark.parametrize("how", ["off", "merged"])
def test_an_adapter_that_is_not_added_is_not_trained_in_silence(how: str) -> None:
    net = network()
    adapter = lora(net, 2)
    if how == "off":
        adapter.on = False
    else:
        adapter.merge()
    with pytest.raises(ValueError, match="is its adapter off or merged"):
        trained(net, subject(WORDS, "a red three"), steps=1)


def test_a_run_of_a_new_word_is_resumed(tmp_path: Path) -> None:
    whole, parts, vectors = tmp_path / "whole", tmp_path / "parts", []
    for folder, steps in ((whole, (6,)), (parts, (3, 6))):
        for last in steps:
            net = network()
            word = learn_words(net, "sks", WORDS, like="red")
            data = subject(word.vocabulary, "a sks three")
            run = train(model_of(net), data, steps=6, batch_size=4, lr=0.05, ema=0.5, folder=folder, resume=True,
                        save_every=3, progress=False, cpu=True)  # fmt: skip
            for step in run:
                if step.step == last:
                    break
            run.close()
        vectors.append(word.vectors.detach().clone())
    assert torch.equal(*vectors) and not torch.equal(vectors[0][0], network().context.captions[0].words.weight[2])
    loaded = load_model(whole)
    words = learned_words(loaded.net)["sks"]  # type: ignore[arg-type]
    assert loaded.vocabularies["text"] == words.vocabulary == word.vocabulary
    with pytest.raises(CheckpointError, match="another model"):
        trained(network(), subject(WORDS, "a red three"), steps=6, folder=whole, resume=True)


def test_what_a_stranger_writes_of_attached_parts_is_refused(tmp_path: Path) -> None:
    from scoresde.train.folder import sealed  # as in test_checkpoint

    net = network()
    lora(net, 2, "*cross*")
    trained(net, subject(WORDS, "a red three"), steps=1, folder=tmp_path)
    path = describe(tmp_path).path / "config.json"
    written = json.loads(path.read_text("utf-8"))
    for change in (
        {"rank": 10**9},
        {"layers": ["nowhere"]},
        {"kind": "code"},
        {"layers": 3},
        {"alpha": None},
        {"on": 2},
    ):
        told = json.loads(json.dumps(written))
        told["model"]["net"]["attached"][0].update(change)
        path.write_text(json.dumps(sealed(told)), "utf-8")
        with pytest.raises(CheckpointError):
            load_model(tmp_path)
    told["model"]["net"]["attached"] = "all"
    path.write_text(json.dumps(sealed(told)), "utf-8")
    with pytest.raises(CheckpointError, match="attached"):
        describe(tmp_path)


# -- files -------------------------------------------------------------------------------------------------------------


def both(net: Any) -> tuple[LoRA, LearnedWords]:
    words = learn_words(net, ["sks", "tok"], WORDS, seed=3)
    adapter = lora(net, 2, name="style", seed=1)
    with torch.no_grad():
        for p in adapter.parameters:
            p.add_(0.1)
    return adapter, words


def test_files_hold_the_parts_alone_and_bring_them_back(tmp_path: Path) -> None:
    net = network()
    adapter, words = both(net)
    adapter.scale = 0.7
    there = answer(net, words.vocabulary, "a sks tok")
    own = {name: value.clone() for name, value in net.state_dict().items() if name in network().state_dict()}
    adapter.merge()  # it is written as it was learned
    for one in (adapter, words):
        path = save_adapter(tmp_path / one.name, one)
        # the numbers, and beside them what it is: names and shapes of layers, some 250 bytes for each
        assert 4 * one.count <= path.stat().st_size <= 4 * one.count + 1000 + 250 * len(one.state())
        assert set(load_file(path)) == set(one.state())
    again = network()
    again.load_state_dict(own)
    loaded = [load_adapter(tmp_path / name, again) for name in ("sks", "style")]
    assert torch.equal(answer(again, words.vocabulary, "a sks tok"), there)
    assert loaded[0].vocabulary == words.vocabulary and list(attached(again)) == ["style", "sks"]  # type: ignore[union-attr]
    twice = load_adapter(tmp_path / "style", again, name="other")
    assert twice.name == "other" and list(adapters(again)) == ["style", "other"]


def test_that_of_another_network_is_refused(tmp_path: Path) -> None:
    adapter, words = both(network())
    for one in (adapter, words):
        save_adapter(tmp_path / one.name, one)
    for other in (network(width=16), network(captions={"text": {**SHAPE["captions"]["text"], "width": 16}}), MLP(2)):
        state = {name: value.clone() for name, value in other.state_dict().items()}
        for one in (adapter, words):
            with pytest.raises(CheckpointError, match="of another network than this"):
                load_adapter(tmp_path / one.name, other)
        assert other.state_dict().keys() == state.keys() and not attached(other)
    with pytest.raises(CheckpointError, match=r"stem is \(16, 1, 3, 3\) and was \(8, 1, 3, 3\)"):
        load_adapter(tmp_path / "style", network(width=16))
    same = network()
    load_adapter(tmp_path / "style", same)
    with pytest.raises(ValueError, match="has an adapter 'style' already"):
        load_adapter(tmp_path / "style", same)
    with pytest.raises(ValueError, match="name must be left out for learned words"):
        load_adapter(tmp_path / "sks", same, name="other")


def test_the_fingerprint_is_of_the_network_and_not_of_what_was_put_into_it() -> None:
    plain = fingerprint(network())
    net = network()
    both(net)
    assert fingerprint(net) == plain == fingerprint(network().bfloat16())
    assert len({plain, fingerprint(network(width=16)), fingerprint(MLP(2))}) == 3


def test_what_is_no_adapter_or_damaged_is_refused(tmp_path: Path) -> None:
    net = network()
    adapter, _ = both(net)
    path = save_adapter(tmp_path / "style", adapter)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    first = next(iter(tensors))
    changed = {**tensors, first: tensors[first] + 1}
    told = json.loads(metadata["told"])
    cases: list[tuple[dict[str, Tensor], dict[str, str], str]] = [
        (changed, metadata, "damaged or was changed"),
        (tensors, {**metadata, "told": json.dumps({**told, "alpha": 9.0})}, "damaged or was changed"),
        (tensors, {}, "must hold an adapter"),
        ({**tensors, first: tensors[first] * float("nan")}, metadata, "NaN"),
    ]
    for values, beside, message in cases:
        save_file(values, path, beside)
        with pytest.raises(CheckpointError, match=message):
            load_adapter(path, network())
    path.write_bytes(b"no such thing")
    with pytest.raises(CheckpointError, match=r"cannot be read|claims"):
        load_adapter(path, network())
    with pytest.raises(CheckpointError, match="there is none at"):
        load_adapter(tmp_path / "nowhere", network())
    with pytest.raises(TypeError, match="adapter must be what lora"):
        save_adapter(path, net)
    with torch.no_grad():
        adapter.parameters[0].fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        save_adapter(tmp_path / "bad", adapter)
    assert not (tmp_path / "bad").exists()


# -- prior preservation ------------------------------------------------------------------------------------------------


def test_mixed_sets_have_the_shares_of_their_weights() -> None:
    few, many = subject(WORDS, "a red three", n=3), subject(WORDS, "a blue three", n=50)
    for weight in (0.25, 1.0, 3.0):
        both = mix([few, many], [1.0, weight])
        of_many = (both.conditions["text"][:, 1] == WORDS.token("blue")).sum().item()
        of_few = len(both) - of_many
        # met to one sample
        assert abs(of_few - len(both) / (1 + weight)) <= 1 and of_many >= 50 and of_few >= 3
    seen = torch.unique(both.data[:of_few].flatten(1), dim=0, return_counts=True)[1]
    assert int(seen.max() - seen.min()) <= 1
    assert both.vocabularies == few.vocabularies and both.scaling == few.scaling


def test_the_mean_loss_over_a_mixed_set_is_the_weighted_one() -> None:
    """E over the mix = (E over the subject + λ E over the prior) / (1 + λ), for any function of a sample."""
    few, many, weight = subject(WORDS, "a red", n=4), subject(WORDS, "a blue", n=40), 0.5

    def mean(dataset: Dataset) -> float:
        return float(dataset[:]["x"].double().pow(2).sum((1, 2, 3)).mean())

    expected = (mean(few) + weight * mean(many)) / (1 + weight)
    assert mean(mix([few, many], [1.0, weight])) == pytest.approx(expected, rel=1e-6)  # float32 samples


def test_a_set_of_more_words_goes_with_that_of_the_first_ones() -> None:
    """A prior is drawn before the new word is learned: its tokens mean the same."""
    more = Vocabulary([*WORDS.words, "sks"])
    mine, prior = subject(more, "a sks three", n=1), subject(WORDS, "a blue", n=5)
    for sets in ([mine, prior], [prior, mine]):
        both = mix(sets, [1.0, 1.0])
        assert both.vocabularies == {"text": more} and len(both) == 10
        assert sorted(set(more.decode(both.conditions["text"]))) == ["a blue", "a sks three"]
    for other in (Vocabulary(["a", "blue", "red", "three", "sks"]), Vocabulary(["blue", "a", "red", "three"])):
        with pytest.raises(ValueError, match=r"vocabulary of text in datasets\[\d\], of 4 words, is not the beginning"):
            mix([subject(other, "a blue"), subject(WORDS, "a blue")], [1.0, 1.0])


def test_sets_that_do_not_go_together_are_refused() -> None:
    few = subject(WORDS, "a red")
    other = from_tensors(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), levels=17)
    with pytest.raises(ValueError, match="another conditions"):
        mix([few, other], [1, 1])
    with pytest.raises(ValueError, match="one for each of the 2"):
        mix([few, few], [1.0])
    with pytest.raises(ValueError, match=r"weights\[1\] must be positive"):
        mix([few, few], [1.0, 0.0])
    with pytest.raises(TypeError, match="datasets must be a list"):
        mix(few, [1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weights must lie nearer together"):
        mix([few, few], [1.0, 1e-12])


def test_a_prior_set_is_what_the_model_draws_for_each_row() -> None:
    model = model_of(network().eval())
    model.event_shape, model.scaling = (1, 4, 4), Scaling.to_unit_range(17)
    model.vocabularies = {"text": WORDS}
    tokens = WORDS.encode(["a red three", "a blue", "three", "red", "blue three"], 4)
    prior = prior_set(model, {"text": tokens}, batch_size=2, seed=4, steps=3)
    drawn = ss.sample(model.bind(text=tokens), (5, 1, 4, 4), steps=3, seed=4)
    levels = drawn.data.round().clamp(0, 16)
    assert torch.equal(prior.data, levels.to(torch.uint8)) and torch.equal(prior.conditions["text"], tokens)
    assert len(mix([subject(WORDS, "a red three"), prior], [1.0, 1.0])) == 10
    guided = prior_set(model, {"text": tokens}, score=lambda rows: ss.classifier_free(model, rows, scale=3.0), steps=3)
    assert not torch.equal(guided.data, prior.data)
    with pytest.raises(ValueError, match="as many rows each"):
        prior_set(model, {"text": tokens[:0]})
    with pytest.raises(ValueError, match="noise must be left out"):
        prior_set(model, {"text": tokens}, noise=None)
    model.scaling = None
    with pytest.raises(ValueError, match="must know the shape and the units"):
        prior_set(model, {"text": tokens})
