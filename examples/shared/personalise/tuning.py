"""Three ways to teach a captioned model a subject, on the objects of the library: what is trained, and on which data.

Each returns the tuned model, with its new word, and how much it learned; :func:`tuned` trains any of them.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scoresde as ss
from scoresde import losses
from scoresde.data import mix
from scoresde.nn import LearnedWords, LoRA, Vocabulary, learn_words, lora
from scoresde.times import LogNormalSigma, Stratified
from scoresde.train import train
from shared.conditional.caption import MEAN_LOG_SIGMA
from shared.personalise.subject import new_words, subject_set
from shared.personalise.task import Bench, Flags
from shared.training import trained

WHERE = ("*attention*", "*cross*", "levels.2.0.block.conv?")
"""The layers of the caption model that get adapters: attention, and the last block of all, which draws strokes."""


@dataclass(frozen=True)
class Tuned:
    """A tuned model, the phrase that stands for the subject, how many numbers were learned and in how many seconds."""

    model: ss.ScoreModel
    phrase: str
    vocabulary: Vocabulary
    parameters: int
    seconds: float

    def figures(self, whole: int) -> dict[str, float]:
        """What it cost, for the report."""
        return {"parameters": self.parameters, "share": self.parameters / whole, "seconds": round(self.seconds, 1)}


def with_words(flags: Flags, model: ss.ScoreModel, count: int = 1) -> tuple[ss.ScoreModel, LearnedWords]:
    """A copy of the model with so many new words, which begin as the words of a class do; all else is frozen."""
    other = copy.deepcopy(model)
    net: Any = other.net
    return other, learn_words(net, new_words(count), model.vocabularies["caption"], like=flags.like, seed=flags.seed)


def untuned(flags: Flags, bench: Bench) -> Tuned:
    """The control: the word is there, and nothing was learned; it starts as the class word does."""
    model, words = with_words(flags, bench.model)
    return Tuned(model.eval(), words.phrase, words.vocabulary, 0, 0.0)


def inverted(flags: Flags, bench: Bench, out: Path, *, vectors: int | None = None) -> Tuned:
    """Textual inversion: the new vectors alone."""
    count = flags.vectors if vectors is None else vectors
    model, words = with_words(flags, bench.model, count)
    return tuned(flags, bench, model, words, out, steps=flags.inversion_steps, lr=flags.inversion_lr,
                 parameters=words.count)  # fmt: skip


def full(flags: Flags, bench: Bench, out: Path, *, preserve: bool) -> Tuned:
    """DreamBooth: all weights and the vector of a rare word, with or without pictures of the class."""
    model, words = with_words(flags, bench.model)
    model.requires_grad_(True)
    size = sum(p.numel() for p in model.parameters())
    return tuned(flags, bench, model, words, out, steps=flags.tuning_steps, lr=flags.tuning_lr, parameters=size,
                 preserve=preserve)  # fmt: skip


def adapted(flags: Flags, bench: Bench, out: Path, *, rank: int) -> Tuned:
    """The same by adapters of this rank and the vector of the word, all else frozen."""
    model, words = with_words(flags, bench.model)
    net: Any = model.net
    adapter: LoRA = lora(net, rank, WHERE, name="subject", seed=flags.seed)
    words.vectors.requires_grad_(True)
    return tuned(flags, bench, model, words, out, steps=flags.tuning_steps, lr=flags.lora_lr,
                 parameters=adapter.count + words.count, preserve=True)  # fmt: skip


def tuned(
    flags: Flags,
    bench: Bench,
    model: ss.ScoreModel,
    words: LearnedWords,
    out: Path,
    *,
    steps: int,
    lr: float,
    parameters: int,
    preserve: bool = False,
) -> Tuned:
    """Train what is free to move on the pictures of the subject, and on those of the class where they are preserved."""
    phrase, vocabulary = words.phrase, words.vocabulary
    data = subject_set(bench.pictures, bench.captions(phrase), vocabulary)
    if preserve:
        data = mix([data, bench.prior], [1.0, flags.prior_weight])
    sigma_data = model.sigma_data or 0.5
    start = time.perf_counter()
    ready = trained(
        train,
        model,
        data,
        steps=steps,
        batch_size=flags.tuning_batch,
        seed=flags.seed,
        resume=flags.resume,
        cpu=flags.cpu,
        lr=lr,
        betas=(0.9, 0.99),
        weighting=losses.edm(sigma_data),
        times=Stratified(LogNormalSigma(MEAN_LOG_SIGMA, 1.4)),
        condition_dropout={"caption": 0.1},
        folder=out / "checkpoints",
    )
    return Tuned(ready, phrase, vocabulary, parameters, time.perf_counter() - start)
