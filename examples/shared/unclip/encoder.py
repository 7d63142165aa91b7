"""The contrastive encoder of captioned digits: trained, and measured by retrieval and zero-shot classification."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import scoresde as ss
from scoresde import metrics
from scoresde.cli.choices import SDES
from scoresde.cli.flags import PictureFlags, at_least
from scoresde.data import Dataset, Scaling
from scoresde.models import ContrastiveModel
from scoresde.nn import DualEncoder
from scoresde.times import LogNormalSigma, Stratified
from scoresde.train import train_contrastive
from shared.conditional.captioned import Attributes
from shared.training import trained
from shared.unclip.sentences import (
    KINDS,
    TEMPLATES,
    Captions,
    Pictures,
    TokenizerName,
    every_attribute,
    held_out,
)

CHUNK = 256  # pictures that are read at once
LEVELS = (0.1, 0.5, 1.0, 2.0, 4.0)  # σ/α at which noisy pictures are read
ROUNDS = 3  # pictures of each combination that are searched


@dataclass(frozen=True, kw_only=True)
class ClipFlags(PictureFlags):
    """How the contrastive encoder is trained."""

    tokenizer: TokenizerName = "words"
    """Captions as whole words, or as byte pairs."""
    size: int = 64
    """Numbers in the common space of pictures and captions."""
    encoder_steps: int = 800
    """Training steps of the contrastive encoder."""
    encoder_width: int = 16
    """Channels of its image encoder at the finest level."""
    encoder_batch: int = 128
    """Pictures and captions that are told from each other in a training step."""
    seed: int = 0
    """Of everything: split, sentences, weights, training, drawing."""

    def check(self) -> None:
        at_least(self, size=2, encoder_steps=1, encoder_width=1, encoder_batch=2, width=1)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout must be at least 0 and below 1, got {self.dropout}.")


def learn(
    flags: ClipFlags, captions: Captions, pictures: Pictures, folder: Path, *, reads: Literal["clean", "noisy"]
) -> ContrastiveModel:
    """The encoder with averaged weights, of clean pictures or of all noise levels; checkpoints in ``folder``."""
    torch.manual_seed(flags.seed)
    net = DualEncoder(
        3, captions={"caption": captions.condition}, size=flags.size, width=flags.encoder_width,
        multipliers=(1, 2, 4), blocks=1, attention_levels=(), dropout=flags.dropout,
    )  # fmt: skip
    sde, some = SDES[flags.sde](), pictures.dataset[:1024]["x"]
    least = float(-0.5 * sde.log_snr(torch.tensor(sde.t_min, dtype=torch.float64)))
    return trained(
        train_contrastive,
        ContrastiveModel(net, sde, float(some.std())),
        pictures.dataset,
        steps=flags.encoder_steps,
        batch_size=flags.encoder_batch,
        lr=flags.lr,
        weight_decay=0.05,
        times=Stratified(LogNormalSigma(least, 0.1) if reads == "clean" else LogNormalSigma(-0.5, 1.6)),
        seed=flags.seed,
        resume=flags.resume,
        cpu=flags.cpu,
        folder=folder,
    )


def read_pictures(model: ContrastiveModel, x: Tensor, t: float | None = None) -> Tensor:
    """Unit vectors (N, d) of pictures in model units, on the CPU."""
    device = next(model.parameters()).device
    with torch.no_grad():
        return torch.cat([model.image(part.to(device), t).cpu() for part in torch.split(x, CHUNK)])


def read_captions(model: ContrastiveModel, tokens: Tensor) -> Tensor:
    """Unit vectors (N, d) of captions, on the CPU."""
    device = next(model.parameters()).device
    with torch.no_grad():
        return torch.cat([model.caption(part.to(device)).cpu() for part in torch.split(tokens, 8 * CHUNK)])


@dataclass(frozen=True)
class Gallery:
    """Held-out pictures of all combinations with their captions, to be searched.

    Attributes:
        x: in model units. shown: what they show. tokens: a caption of each combination. asked: what those say.
    """

    x: Tensor
    shown: Attributes
    tokens: Tensor
    asked: Attributes


def gallery_of(held: Dataset, captions: Captions, scaling: Scaling, seed: int) -> Gallery:
    """``ROUNDS`` held-out pictures of each of the 240 combinations, and one caption of each that says everything."""
    asked = every_attribute()
    shown = Attributes(*(getattr(asked, kind).repeat(ROUNDS) for kind in KINDS))
    template = torch.randint(TEMPLATES, (len(asked),), generator=torch.Generator().manual_seed(seed))
    x = scaling.to_model(held_out(held, shown, seed).float())
    return Gallery(x, shown, captions.full(asked, template), asked)


def figures(model: ContrastiveModel, gallery: Gallery, captions: Captions, seed: int) -> dict[str, Any]:
    """Retrieval both ways, zero-shot accuracy of each attribute, and both through noise."""
    v = read_captions(model, gallery.tokens)
    found: dict[str, Any] = {
        "chance": {"at_1": 1 / len(v), "at_5": 5 / len(v)},
        "scale": float(model.scale.detach()),
        "clean": of_vectors(model, read_pictures(model, gallery.x), v, gallery, captions),
    }
    sde, noise = model.sde, ss.PerSampleNoise(seed).normal(gallery.x)
    for level in LEVELS:
        t = sde.t_of_log_snr(-2 * torch.tensor(level, dtype=torch.float64).log())
        mean, std = sde.marginal(gallery.x, t)
        u = read_pictures(model, mean + std * noise, float(t))
        found[f"sigma/alpha {level:g}"] = of_vectors(model, u, v, gallery, captions)
    return found


def of_vectors(
    model: ContrastiveModel, u: Tensor, v: Tensor, gallery: Gallery, captions: Captions
) -> dict[str, dict[str, float]]:
    """The figures of the vectors of pictures, of seen and unseen pairs apart."""
    right = torch.stack(
        [getattr(gallery.shown, kind)[:, None] == getattr(gallery.asked, kind)[None] for kind in KINDS]
    ).all(0)
    similarity = u @ v.T
    classes = {kind: model.zero_shot(captions.prompts(kind).to(_device(model))).vectors.cpu() for kind in KINDS}
    results = {}
    for name, rows, columns in (
        ("seen", ~gallery.shown.unseen, ~gallery.asked.unseen),
        ("unseen", gallery.shown.unseen, gallery.asked.unseen),
    ):
        results[name] = {
            **{f"caption_at_{k}": metrics.recall_at(similarity[rows], right[rows], k) for k in (1, 5)},
            **{f"picture_at_{k}": metrics.recall_at(similarity.T[columns], right.T[columns], k) for k in (1, 5)},
            **{
                kind: float(((u[rows] @ one.T).argmax(1) == getattr(gallery.shown, kind)[rows]).double().mean())
                for kind, one in classes.items()
            },
        }
    return results


def _device(model: ContrastiveModel) -> torch.device:
    return next(model.parameters()).device
