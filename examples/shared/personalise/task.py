"""What the tasks of personalise.py have in common: flags, the base model, pictures of subject and class, measuring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoresde as ss
from scoresde import metrics
from scoresde.cli.flags import PictureFlags, as_flag, at_least
from scoresde.cli.trained import checkpoints_in, device_for
from scoresde.data import Dataset, Scaling
from scoresde.models.conditions import nulls_of
from scoresde.nn import Vocabulary
from scoresde.train import load_model, prior_set
from shared.conditional import caption
from shared.conditional.captioned import LENGTH, Questions, questions, training_set, vocabulary
from shared.conditional.task import Flags as CaptionFlags
from shared.conditional.task import draw, fit
from shared.digits import load
from shared.personalise.subject import (
    MOST_WORDS,
    WORD,
    Asked,
    SubjectReader,
    everything,
    in_words,
    new_words,
    read_subject,
    save_subject,
    shown,
)

RUNS = ("base/checkpoints", "caption/checkpoints", "checkpoints")
EVENT = (3, 16, 16)


@dataclass(frozen=True, kw_only=True)
class Flags(PictureFlags):
    """Settings of every task."""

    model: Path | None = None
    """Folder of a run of conditional.py, task caption, or of an earlier run of this; without it one is trained here."""
    subject: Path | None = None
    """Folder of pictures of a subject of your own, 16x16, at least two, in folders that are named as their captions,
    such as "a sks three, top left"; by default bold orange digits are made, which the model never saw."""
    pictures: int = 5
    """Pictures of the subject that are made, 2 to 10."""
    width: int = 24
    """Channels of the base model at its finest level, where it is trained here."""
    base_steps: int = 2500
    """Training steps of the base model, where it is trained here."""
    like: str = "yellow"
    """Known words at whose mean vector the new word begins."""
    vectors: int = 2
    """Textual inversion: vectors of the new word, 1 to 3."""
    inversion_steps: int = 400
    """Textual inversion: training steps."""
    inversion_lr: float = 2e-2
    """Textual inversion: peak learning rate."""
    tuning_steps: int = 300
    """DreamBooth and LoRA: training steps."""
    tuning_batch: int = 32
    """Pictures in a training step of all three."""
    tuning_lr: float = 5e-4
    """Full tuning: peak learning rate."""
    lora_lr: float = 5e-3
    """LoRA: peak learning rate."""
    ranks: tuple[int, ...] = (1, 4, 16)
    """LoRA: the ranks that are compared."""
    prior: int = 200
    """Pictures of the class that the model draws before it is tuned."""
    prior_weight: float = 1.0
    """Weight of their loss, beside 1 for that of the subject."""
    samples: int = 80
    """Captions that are asked about, of the subject and of the class."""
    guidance: float = 2.0
    """Scale of classifier-free guidance at which pictures are drawn."""
    sampling_steps: int = 25
    """Steps of the library's default solver."""
    seed: int = 0
    """Of everything."""

    def check(self) -> None:
        at_least(self, width=1, base_steps=1, inversion_steps=1, tuning_steps=1, tuning_batch=1, prior=1, samples=10,
                 sampling_steps=1)  # fmt: skip
        if not 2 <= self.pictures <= 10:
            raise ValueError(
                f"--pictures must be from 2 to 10, got {self.pictures}: of one a model learns all that is on it, and "
                "there are ten digits."
            )
        if not 1 <= self.vectors <= MOST_WORDS:
            raise ValueError(
                f"--vectors must be from 1 to {MOST_WORDS}, as captions hold {LENGTH} words; got {self.vectors}."
            )
        for name in ("inversion_lr", "tuning_lr", "lora_lr", "prior_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{as_flag(name)} must be above 0, got {getattr(self, name)}.")
        if not self.ranks or min(self.ranks) < 1:
            raise ValueError(f"--ranks must be whole numbers of at least 1, got {self.ranks}.")
        vocabulary().encode([self.like], LENGTH)  # refuses words that are none of it
        if self.subject is not None:
            _, texts = read_subject(self.subject)
            words = new_words(self.vectors)
            Vocabulary([*vocabulary().words, *words]).encode(in_words(texts, " ".join(words)), LENGTH)

    @property
    def captions(self) -> CaptionFlags:
        """The flags of conditional.py by which the base model is trained and all are drawn."""
        same = {name: getattr(self, name) for name in ("sde", "resume", "lr", "width", "dropout", "cpu", "seed")}
        return CaptionFlags(steps=self.base_steps, sampling_steps=self.sampling_steps, **same)


@dataclass(frozen=True)
class Bench:
    """The model before it is tuned, the subject, what it draws of the class, and who reads."""

    model: ss.ScoreModel
    scaling: Scaling
    reader: SubjectReader
    pictures: Tensor
    own: tuple[str, ...] | None
    shown: Asked | None
    prior: Dataset
    asked: Asked
    of_class: Questions
    real: dict[str, float]

    @property
    def parameters(self) -> int:
        """Of the model."""
        return sum(p.numel() for p in self.model.parameters())

    def captions(self, phrase: str) -> list[str]:
        """Those of the pictures of the subject, with the phrase that stands for it."""
        if self.own is not None:
            return in_words(self.own, phrase)
        assert self.shown is not None
        return self.shown.captions(phrase)


def base_model(flags: Flags, training: Dataset, out: Path) -> ss.ScoreModel:
    """The model given, or one trained here, in evaluation mode."""
    if flags.model is None:
        wanted = flags.captions
        net = caption.reading_network(wanted)
        data = training_set(training, flags.seed)
        return fit(wanted, net, data, out / "base", steps=flags.base_steps, mean=caption.MEAN_LOG_SIGMA)
    model = load_model(checkpoints_in(flags.model, *RUNS))
    words = model.vocabularies.get("caption")
    if list(nulls_of(model.net)) != ["caption"] or words is None or model.event_shape != EVENT:
        raise ValueError(
            f"--model {flags.model} must hold the caption model of `examples/conditional.py --task caption`, and holds "
            f"one of events {model.event_shape} that takes {', '.join(nulls_of(model.net)) or 'no conditions'}."
        )
    return model.to(device_for(cpu=flags.cpu)).eval()


def make_bench(flags: Flags, out: Path) -> Bench:
    """Train or load the base model, make or read the subject, and have the model draw its class."""
    training, held = load(flags.seed)
    model = base_model(flags, training, out)
    if model.vocabularies.get("caption") is None:  # of a run that was not loaded
        model.vocabularies = {"caption": vocabulary()}
    reader = SubjectReader(training)
    if flags.subject is None:
        pictures, on_them = shown(training, flags.pictures, flags.seed)
        own = None
        save_subject(out / "subject", pictures, on_them.captions(WORD))
    else:
        pictures, texts = read_subject(flags.subject)
        own, on_them = tuple(texts), None
    known = questions(training, held, flags.prior, flags.seed + 1, unseen=False)
    prior = prior_set(
        model,
        {"caption": known.tokens},
        score=lambda rows: ss.classifier_free(model, rows, scale=flags.guidance),
        steps=flags.sampling_steps,
        seed=flags.seed + 1,
    )
    asked = everything(flags.samples)
    of_class = questions(training, held, flags.samples, flags.seed + 2, unseen=False)
    real, real_asked = shown_of(held, flags.samples, flags.seed)
    return Bench(
        model=model,
        scaling=prior.scaling,
        reader=reader,
        pictures=pictures,
        own=own,
        shown=on_them,
        prior=prior,
        asked=asked,
        of_class=of_class,
        real=reader.of_subject(real, real_asked),
    )


def shown_of(held: Dataset, count: int, seed: int) -> tuple[Tensor, Asked]:
    """Real pictures of the subject of held-out digits: what a perfect model would draw."""
    parts = [shown(held, 10, seed + k) for k in range(-(-count // 10))]
    digit = torch.cat([asked.digit for _, asked in parts])[:count]
    place = torch.cat([asked.place for _, asked in parts])[:count]
    return torch.cat([pictures for pictures, _ in parts])[:count], Asked(digit, place)


def measure(flags: Flags, bench: Bench, model: ss.ScoreModel, phrase: str, words: Any) -> tuple[dict[str, Any], Tensor]:
    """The figures of a model, of the subject and of its class; and what it draws of the subject, in levels."""

    def drawn(captions: list[str], first: int) -> Tensor:
        tokens = words.encode(captions, LENGTH)
        x = draw(flags.captions, model, EVENT, {"caption": tokens}, scale=flags.guidance, first=first)
        return bench.scaling.to_data(x).round().clamp(0, 16)

    pictures = drawn(bench.asked.captions(phrase), 0)
    of_class, attributes = drawn(bench.of_class.captions, 10_000), bench.of_class.attributes
    to_model = bench.scaling.to_model
    distance = metrics.energy_distance(to_model(of_class), to_model(bench.of_class.real.float()))
    figures = bench.reader.of_class(of_class, attributes.digit, attributes.colour, attributes.place)
    return {
        "subject": bench.reader.of_subject(pictures, bench.asked),
        "class": {**figures, "energy_distance": distance},
    }, pictures
