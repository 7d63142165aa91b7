"""The whole system, trained: encoders, prior, regression and decoder, with the judge of its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import scoresde as ss
from scoresde.cli.trained import device_for
from scoresde.data import Dataset, Scaling
from scoresde.models import ContrastiveModel
from scoresde.train import load_contrastive
from shared.conditional.caption_reader import CaptionReader
from shared.conditional.captioned import Attributes
from shared.unclip import decoder, encoder, prior
from shared.unclip.flags import Dalle2Flags
from shared.unclip.sentences import Captions, Pictures, pictures_of, tokenizer_of


@dataclass(frozen=True)
class System:
    """What draws, and what measures.

    Attributes:
        flags: of the run. captions: how they are told.
        clean, noisy: the encoders of clean pictures and of noisy ones, both frozen.
        prior, regression: from captions to embeddings. decoder: from these to pictures.
        scaling: of pictures. reader: which no model ever sees. held: digits that none was trained on.
    """

    flags: Dalle2Flags
    captions: Captions
    clean: ContrastiveModel
    noisy: ContrastiveModel
    prior: ss.ScoreModel
    regression: ss.ScoreModel
    decoder: ss.ScoreModel
    scaling: Scaling
    reader: CaptionReader
    held: Dataset

    def sentence_vectors(self, tokens: Tensor) -> Tensor:
        """Unit vectors (N, d) of captions."""
        return encoder.read_captions(self.clean, tokens)

    def imagined(self, tokens: Tensor, *, first: int = 0) -> Tensor:
        """Embeddings (N, d) that the prior draws for captions."""
        return prior.drawn(self.flags, self.prior, prior.told_of(tokens, self.sentence_vectors(tokens)), first=first)

    def expected(self, tokens: Tensor) -> Tensor:
        """Embeddings (N, d) that the regression predicts for captions."""
        return prior.regressed(self.flags, self.regression, prior.told_of(tokens, self.sentence_vectors(tokens)))

    def draw(self, tokens: Tensor | None = None, u: Tensor | None = None, *, first: int = 0) -> Tensor:
        """Pictures of captions, embeddings or both, in model units."""
        return decoder.draw(self.flags, self.decoder, decoder.told_of(tokens, u), first=first)

    def levels(self, x: Tensor) -> Tensor:
        """Pictures in grey levels."""
        return self.scaling.to_data(x).round().clamp(0, 16)

    def read(self, x: Tensor) -> Attributes:
        """What pictures in model units show."""
        return self.reader(self.levels(x))

    def figures(self, x: Tensor, asked: Attributes) -> dict[str, float]:
        """Share of pictures in model units that show each attribute asked for, and all."""
        return self.reader.figures(self.levels(x), asked)

    def fit(self, x: Tensor, tokens: Tensor) -> Tensor:
        """How well each picture fits its caption, the cosine of the clean encoder, (N,)."""
        return (encoder.read_pictures(self.clean, x) * self.sentence_vectors(tokens)).sum(1)


def built(flags: Dalle2Flags, training: Dataset, held: Dataset, out: Path) -> System:
    """Train what is not given."""
    captions = Captions(tokenizer_of(flags.tokenizer))
    pictures = pictures_of(training, captions, flags.seed)
    clean, noisy = encoders(flags, captions, pictures, out)
    dataset, tokens = pictures.dataset, pictures.dataset.conditions["caption"]
    u = encoder.read_pictures(clean, dataset[:]["x"])
    pairs = prior.embeddings_of(u, encoder.read_captions(clean, tokens), tokens)
    return System(
        flags,
        captions,
        clean,
        noisy,
        prior.learn(flags, captions, pairs, out / "prior", kind="prior"),
        prior.learn(flags, captions, pairs, out / "regression", kind="regression"),
        decoder.learn(flags, captions, decoder.with_embeddings(dataset, u, captions), out / "decoder"),
        dataset.scaling,
        CaptionReader(training),
        held,
    )


def encoders(
    flags: Dalle2Flags, captions: Captions, pictures: Pictures, out: Path
) -> tuple[ContrastiveModel, ContrastiveModel]:
    """Of clean and of noisy pictures: those of a run of clip.py, or trained here."""
    if flags.clip is None:
        return (
            encoder.learn(flags, captions, pictures, out / "clean", reads="clean"),
            encoder.learn(flags, captions, pictures, out / "noisy", reads="noisy"),
        )
    clean, noisy = (load_contrastive(flags.clip / name).to(device_for(cpu=flags.cpu)) for name in ("clean", "noisy"))
    for model in (clean, noisy):
        if model.vocabularies.get("caption") != captions.tokenizer:
            raise ValueError(
                f"{flags.clip} holds encoders of other captions: run clip.py and dalle2.py with the same --tokenizer."
            )
        size = int(model.image(torch.zeros(1, 3, 16, 16, device=device_for(cpu=flags.cpu))).shape[1])
        if size != flags.size:
            raise ValueError(f"{flags.clip} holds encoders of --size {size}, and this is --size {flags.size}.")
    return clean, noisy
