"""Prompt-to-prompt on the caption model of conditional.py: one word changed, the rest of the picture kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

import scoresde as ss
from scoresde import editing
from scoresde.cli.sheets import SheetRow, draw_rows
from scoresde.data import Dataset, Scaling
from shared.conditional.caption_reader import CaptionReader
from shared.conditional.captioned import COLOURS, LENGTH, Attributes, Questions, questions, vocabulary
from shared.measures import rms_distance

UNTIL = (0.0, 0.4, 0.8, 1.0)


@dataclass(frozen=True)
class Captions:
    """The caption model, real pictures with captions, and who reads them."""

    model: ss.ScoreModel
    scaling: Scaling
    reader: CaptionReader
    asked: Questions
    steps: int
    guidance: float
    seed: int


def bench(
    model: ss.ScoreModel, scaling: Scaling, training: Dataset, held: Dataset, *, count: int, **rest: Any
) -> Captions:
    """Captions of ``count`` held-out digits in colours and places."""
    asked = questions(training, held, count, rest["seed"], unseen=False)
    return Captions(model, scaling, CaptionReader(training), asked, **rest)


def prompt_to_prompt(captions: Captions, out: Path) -> dict[str, Any]:
    """Another digit, or another colour, by the caption: from noise, and for real pictures from their latents."""
    asked, model = captions.asked, captions.model
    device = next(model.parameters()).device
    changes = {
        "digit": replace(asked.attributes, digit=(asked.attributes.digit + 5) % 10),
        "colour": replace(asked.attributes, colour=(asked.attributes.colour + 1) % len(COLOURS)),
    }
    source = {"caption": asked.tokens.to(device)}
    real = captions.scaling.to_model(asked.real.float()).to(device)
    noise = model.sde.prior_sample(tuple(real.shape), captions.seed, device=device)
    options: dict[str, Any] = {"steps": captions.steps}
    found = editing.invert(model.bind(**source), real, iterations=10, memory=3, tolerance=1e-4, **options)
    report: dict[str, Any] = {"round_trip_mean": float(found.round_trip.mean())}
    for name, wish in changes.items():
        target = {"caption": vocabulary().encode(wish.captions(asked.template), LENGTH).to(device)}
        for kind in ("generated", "real"):
            figures: dict[str, Any] = {}
            rows: list[SheetRow] = []
            for until in UNTIL:
                if kind == "generated":
                    both = editing.prompt_to_prompt(
                        model, noise, source, target, until=until,
                        scale=captions.guidance, seed=captions.seed, **options,
                    )  # fmt: skip
                else:
                    both = editing.prompt_to_prompt(
                        model, found.x, source, target, until=until,
                        grid=found.grid, solver=ss.DDIM(), denoise=False,
                    )  # fmt: skip
                rows = rows or [("source", both.source)]
                rows.append((f"until {until:g}", both.x))
                figures[f"{until:g}"] = measure(captions, both, wish)
            report[f"{name}, {kind}"] = figures
            title = f"Prompt-to-prompt: another {name}, {kind}"
            were, are = ((one.digit if name == "digit" else one.colour).tolist() for one in (asked.attributes, wish))
            names = list(map(str, range(10))) if name == "digit" else list(COLOURS)
            heads = [f"{names[a]} → {names[b]}" for a, b in zip(were, are, strict=True)]
            draw_rows(out / f"prompt-{name}-{kind}.png", rows, heads, captions.scaling, title)
    return report


def measure(captions: Captions, both: editing.PromptToPrompt, wish: Attributes) -> dict[str, float]:
    """What is read in the new pictures, and how far they are from the old ones."""

    def levels(x: Tensor) -> Tensor:
        return captions.scaling.to_data(x.cpu()).round().clamp(0, 16)

    figures = {f"read_{name}": share for name, share in captions.reader.figures(levels(both.x), wish).items()}
    return {**figures, "distance": float(rms_distance(both.x, both.source).mean()), "nfe": float(both.nfe)}
