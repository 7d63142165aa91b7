"""Edit real digits with a trained model: SDEdit, inversion, counterfactuals, DiffEdit, interpolation, captions.

    python examples/edit.py                                    # trains a small model first, writes runs/edit
    python examples/edit.py --digits runs/digits-vp            # the model of examples/digits.py
    python examples/edit.py --captions runs/conditional        # and prompt-to-prompt with that of conditional.py

All pictures that are edited are held out. Each edit writes one picture; report.json says what share of the edits an
independent classifier reads as what was wished, and how far they are from the originals.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import caption_edits
import digits
import edits
import torch
from choices import SDES, SDEName
from command_line import command, use_threads
from outputs import make_folder, save_json
from readers import DigitReader
from trained import open_checkpoint

import scoresde as ss
from scoresde.data import Dataset, Scaling
from scoresde.train import describe, load_model


@dataclass
class Config:
    """Edit held-out digits, and measure what comes of it."""

    digits: Path | None = None
    """Folder of a run of examples/digits.py; without it a model is trained here."""
    captions: Path | None = None
    """Folder of a run of examples/conditional.py, task caption; without it prompt-to-prompt is left out."""
    out: Path = Path("runs/edit")
    """Folder for everything that is written."""
    edit: Literal["sdedit", "inversion", "counterfactual", "diffedit", "interpolation", "all"] = "all"
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
    sde: SDEName = "vp"
    """For a model trained here: the SDE."""
    train_steps: int = 600
    """For a model trained here: training steps."""
    resume: bool = False
    """For a model trained here: go on from the last checkpoint in the folder."""
    seed: int = 0
    """Of the split and all noise; that of the run of digits.py, so that held-out digits are held out."""
    threads: int = 0
    """Threads of torch; 0 leaves its default."""
    cpu: bool = False
    """Stay on the CPU although there is a GPU."""

    def check(self) -> None:
        """Raise ValueError for a flag that would fail only after training."""
        for name, least in {"count": 2, "steps": 1, "train_steps": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}.")
        for name in ("wish", "source"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 9:
                raise ValueError(f"--{name} is a digit from 0 to 9, got {value}.")
        if self.wish is not None and self.wish == self.source:
            raise ValueError(f"--source and --wish are both {self.wish}: there is nothing to change.")
        if self.digits is not None and self.resume:
            raise ValueError("--resume goes on with training, and --digits brings a trained model: leave one out.")


def model_of(config: Config, training: Dataset, out: Path) -> ss.ScoreModel:
    """The model given, or one trained here."""
    if config.digits is None:
        chosen = digits.Config(
            sde=config.sde, steps=config.train_steps, resume=config.resume, seed=config.seed, cpu=config.cpu
        )
        return digits.fit(chosen, SDES[config.sde](), training, out)
    found = open_checkpoint(_checkpoints(config.digits), ema=True, cpu=config.cpu)
    if found.event != (1, 8, 8) or found.classes is None or len(found.classes) != 10:
        raise ValueError(
            f"{config.digits} holds a model of events {found.event}, not the class-conditional one of 8x8 digits that "
            "examples/digits.py trains."
        )
    return found.model


def caption_model(folder: Path, *, cpu: bool) -> tuple[ss.ScoreModel, Scaling]:
    """The caption model of a run of conditional.py, and the scaling of its pictures."""
    description = describe(_checkpoints(folder.expanduser()))
    model = load_model(description.path, ema=True)
    conditions = list(getattr(model.net, "null_conditions", {}))
    if conditions != ["caption"] or description.scaling is None:
        raise ValueError(
            f"{folder} holds a model that takes {', '.join(conditions) or 'no conditions'}, not the captions of "
            "`examples/conditional.py --task caption`."
        )
    device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    return model.to(device).eval(), description.scaling


def _checkpoints(folder: Path) -> Path:
    """A run's folder of checkpoints, or the folder itself where it is one."""
    inside = (folder / "caption" / "checkpoints", folder / "checkpoints")
    return next((path for path in inside if path.is_dir()), folder)


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
    config.check()
    use_threads(config.threads)
    out = make_folder(config.out)
    training, held = digits.load(config.seed)
    captions = None if config.captions is None else caption_model(config.captions, cpu=config.cpu)
    x, label, wish = choose(config, held)
    model = model_of(config, training, out)
    device = next(model.parameters()).device
    reader = DigitReader(training)
    bench = edits.Bench(
        model,
        reader,
        training,
        held.scaling,
        x.to(device),
        label.to(device),
        wish.to(device),
        config.steps,
        config.guidance,
        config.seed,
    )
    every: dict[str, Callable[[edits.Bench, Path], dict[str, Any]]] = {
        "sdedit": edits.sdedit,
        "inversion": edits.inversion,
        "counterfactual": edits.counterfactual,
        "diffedit": edits.diffedit,
        "interpolation": edits.interpolation,
    }
    report: dict[str, Any] = {
        "config": {**asdict(config), "out": str(out)},
        "sde": repr(model.sde),
        "edited": len(x),
        "originals_read_as_their_label": bench.read(bench.x, bench.label),
    }
    for name, edit in every.items():
        if config.edit in (name, "all"):
            report[name] = edit(bench, out)
            show(name, report[name])
    if captions is not None:
        rest: dict[str, Any] = {"steps": config.steps, "guidance": config.guidance, "seed": config.seed}
        those = caption_edits.bench(*captions, training, held, count=config.count, **rest)
        report["prompt_to_prompt"] = caption_edits.prompt_to_prompt(those, out)
        show("prompt_to_prompt", report["prompt_to_prompt"])
    else:
        print(
            "prompt_to_prompt: left out, since it needs a model of captions. Train one with `python "
            "examples/conditional.py --task caption` and give its folder by --captions."
        )
    report["seconds"] = round(time.perf_counter() - start, 1)
    save_json(out / "report.json", report)
    print(f"{report['seconds']:.0f} s in all; pictures and report.json are in {out}")
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
