"""From embeddings of pictures to pictures: a U-Net told the embedding, the caption, both or neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import scoresde as ss
from scoresde.cli.choices import SDES
from scoresde.data import Dataset, from_tensors
from scoresde.nn import UNet
from scoresde.train import train
from shared.training import edm_options, trained
from shared.unclip.flags import Dalle2Flags
from shared.unclip.prior import scaled
from shared.unclip.sentences import Captions

EVENT = (3, 16, 16)
CHUNK = 256  # pictures that are drawn at once
# Place and digit are decided from sigma = 2 on, where noise hides all else: see shared.conditional.caption.
MEAN_LOG_SIGMA = 0.0


def with_embeddings(pictures: Dataset, u: Tensor, captions: Captions) -> Dataset:
    """Pictures and captions with the embeddings (N, d) of the pictures."""
    return from_tensors(
        pictures.data, levels=pictures.scaling.levels, vocabularies={"caption": captions.tokenizer},
        conditions={"caption": pictures.conditions["caption"], "image": scaled(u)},
    )  # fmt: skip


def learn(flags: Dalle2Flags, captions: Captions, dataset: Dataset, folder: Path) -> ss.ScoreModel:
    """The decoder with averaged weights; checkpoints in ``folder``.

    Each condition is left out of a third of the pictures on its own, so that one network draws by embedding and
    caption, by one of the two, and by neither.
    """
    torch.manual_seed(flags.seed)
    net = UNet(
        3, width=flags.width, multipliers=(1, 2, 4), blocks=1, attention_levels=(-1,), dropout=flags.dropout,
        captions={"caption": captions.condition}, vectors={"image": flags.size},
    )  # fmt: skip
    sigma_data = float(dataset[:2048]["x"].std())
    return trained(
        train,
        ss.ScoreModel(net, SDES[flags.sde](), predicts="edm", sigma_data=sigma_data),
        dataset,
        steps=flags.steps,
        condition_dropout={"caption": 0.33, "image": 0.33},
        resume=flags.resume,
        folder=folder,
        **edm_options(flags, sigma_data, MEAN_LOG_SIGMA),
    )


def told_of(tokens: Tensor | None = None, u: Tensor | None = None) -> dict[str, Tensor]:
    """What the decoder is told: captions, embeddings, or both."""
    both = {"caption": tokens, "image": None if u is None else scaled(u)}
    return {name: value for name, value in both.items() if value is not None}


def draw(flags: Dalle2Flags, model: ss.ScoreModel, told: dict[str, Tensor], *, first: int = 0) -> Tensor:
    """A picture for each row, in model units on the CPU, at the scale of guidance; sample i by seed and first + i."""
    count = len(next(iter(told.values())))
    return drawn(flags, model, lambda part: ss.classifier_free(model, part, scale=flags.guidance), told, count, first)


def drawn(
    flags: Dalle2Flags,
    model: ss.ScoreModel,
    score_of: Callable[[dict[str, Tensor]], ss.Score],
    told: dict[str, Tensor],
    count: int,
    first: int = 0,
) -> Tensor:
    """A picture for each row of ``told``, by the score that is made of them."""
    device, pieces = next(model.parameters()).device, []
    for start in range(0, count, CHUNK):
        some = {name: value[start : start + CHUNK].to(device) for name, value in told.items()}
        size = min(CHUNK, count - start)
        noise = ss.PerSampleNoise(flags.seed, first=first + start)
        pieces.append(ss.sample(score_of(some), (size, *EVENT), steps=flags.sampling_steps, noise=noise).x.cpu())
    return torch.cat(pieces)
