"""Edit real digits with a trained model: SDEdit, inversion, null-text, counterfactuals, DiffEdit, captions, and more.

    python examples/edit.py                                    # trains a small model first, writes runs/edit
    python examples/edit.py --digits runs/digits-vp            # the model of examples/digits.py
    python examples/edit.py --captions runs/conditional        # and by captions, with that of conditional.py

All pictures that are edited are held out. Each edit writes one picture; report.json says what share of the edits an
independent classifier reads as what was wished, and how far they are from the originals.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

import scoresde as ss
from scoresde.cli.command import command
from scoresde.cli.flags import at_least
from scoresde.cli.outputs import finish, told
from scoresde.cli.trained import checkpoints_in, device_for, open_checkpoint
from scoresde.data import Dataset, Scaling
from scoresde.models.conditions import nulls_of
from scoresde.train import describe, load_model
from shared.digits import CLASSES, EVENT, DigitPriorFlags, load
from shared.edits import EDITS, Bench, captions
from shared.readers import DigitReader

RUNS = ("caption/checkpoints", "checkpoints")  # where runs of conditional.py and digits.py keep their checkpoints

if TYPE_CHECKING:
    EditName = str
else:
    EditName = Literal[(*EDITS, "all")]


@dataclass(frozen=True, kw_only=True)
class Config(DigitPriorFlags):
    """Edit held-out digits, and measure what comes of it."""

    digits: Path | None = None
    """Folder of a run of examples/digits.py; without it a model is trained here."""
    captions: Path | None = None
    """Folder of a run of examples/conditional.py, task caption; without it prompt-to-prompt is left out."""
    out: Path = Path("runs/edit")
    """Folder for everything that is written."""
    edit: EditName = "all"
    """One edit, or all of them."""
    wish: int | None = None
    """The digit that all others should become; by default each becomes that five later."""
    source: int | None = None
    """Edit this digit alone, e.g. --source 3 --wish 8."""
    count: int = 100
    """Held-out digits that are edited."""
    steps: int = 40
    """Steps of inversion, and of every way down."""
    guidance: float = 2.0
    """Scale of classifier-free guidance towards the wish."""

    def check(self) -> None:
        at_least(self, count=2, steps=1, train_steps=1)
        for name in ("wish", "source"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 9:
                raise ValueError(f"--{name} is a digit from 0 to 9, got {value}.")
        if self.wish is not None and self.wish == self.source:
            raise ValueError(f"--source and --wish are both {self.wish}: there is nothing to change.")
        self.check_given("digits", self.digits)


def model_of(config: Config, training: Dataset, out: Path) -> ss.ScoreModel:
    """The model given, or one trained here."""
    if config.digits is None:
        return config.trained_here(training, out)
    found = open_checkpoint(checkpoints_in(config.digits, *RUNS), ema=True, cpu=config.cpu)
    if found.event != EVENT or found.classes is None or len(found.classes) != len(CLASSES):
        raise ValueError(
            f"{config.digits} holds a model of events {found.event}, not the class-conditional one of 8x8 digits that "
            "examples/digits.py trains."
        )
    return found.model


def caption_model(folder: Path, *, cpu: bool) -> tuple[ss.ScoreModel, Scaling]:
    """The caption model of a run of conditional.py, and the scaling of its pictures."""
    description = describe(checkpoints_in(folder, *RUNS))
    model = load_model(description.path, ema=True)
    conditions = list(nulls_of(model.net))
    if conditions != ["caption"] or description.scaling is None:
        raise ValueError(
            f"{folder} holds a model that takes {', '.join(conditions) or 'no conditions'}, not the captions of "
            "`examples/conditional.py --task caption`."
        )
    return model.to(device_for(cpu=cpu)).eval(), description.scaling


def choose(config: Config, held: Dataset) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures, labels and wishes; the first ones of each digit in turn."""
    batch = held[:]
    x, label = batch["x"], batch["label"]
    wish = (label + 5) % 10 if config.wish is None else torch.full_like(label, config.wish)
    keep = (wish != label) if config.source is None else (label == config.source)
    place = torch.zeros_like(label)  # how many of the same digit came before
    for k in range(10):
        place[label == k] = torch.arange(int((label == k).sum()))
    order = torch.argsort(place * 10 + label)
    rows = order[keep[order]][: config.count]
    if len(rows) < 2:
        raise ValueError("fewer than two held-out digits are left to edit: choose another --source or --wish.")
    return x[rows], label[rows], wish[rows]


def main(config: Config) -> dict[str, Any]:
    """Train or load, edit, measure, write."""
    start = time.perf_counter()
    out = config.begin(config.out)
    training, held = load(config.seed)
    captioned = None if config.captions is None else caption_model(config.captions, cpu=config.cpu)
    x, label, wish = choose(config, held)
    model = model_of(config, training, out)
    device = next(model.parameters()).device
    asked: dict[str, Any] = {"steps": config.steps, "guidance": config.guidance, "seed": config.seed}
    bench = Bench(
        model=model,
        reader=DigitReader(training),
        training=training,
        scaling=held.scaling,
        x=x.to(device),
        label=label.to(device),
        wish=wish.to(device),
        **asked,
    )
    report: dict[str, Any] = {
        "config": told(config, out),
        "sde": repr(model.sde),
        "edited": len(x),
        "originals_read_as_their_label": bench.read(bench.x, bench.label),
    }
    for name in EDITS if config.edit == "all" else [config.edit]:
        report[name] = EDITS[name](bench, out)
        show(name, report[name])
    if captioned is not None:
        those = captions.bench(*captioned, training, held, count=config.count, **asked)
        report["prompt_to_prompt"] = captions.prompt_to_prompt(those, out)
        show("prompt_to_prompt", report["prompt_to_prompt"])
    else:
        print(
            "prompt_to_prompt: left out, since it needs a model of captions. Train one with `python "
            "examples/conditional.py --task caption` and give its folder by --captions."
        )
    finish(report, out, start)
    return report


def show(name: str, figures: dict[str, Any]) -> None:
    """Print figures, one line for each group."""
    groups = {key: value for key, value in figures.items() if isinstance(value, dict)}
    plain = {key: value for key, value in figures.items() if key not in groups}
    if plain:
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in plain.items()), flush=True)
    for key, value in groups.items():
        show(f"{name}, {key}", value)


if __name__ == "__main__":
    command(main, Config)
