"""Edits by the caption model of conditional.py: one word changed, weighed or masked, the rest of the picture kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoresde as ss
from scoresde import editing
from scoresde.cli.outputs import file_name
from scoresde.cli.sheets import SheetRow, draw_rows
from scoresde.data import Dataset, Scaling
from scoresde.nn import map_tokens, reweight_tokens, shared_tokens
from shared.conditional.caption_reader import CaptionReader
from shared.conditional.captioned import COLOURS, LENGTH, Attributes, Questions, quadrants, questions, vocabulary
from shared.measures import rms_distance

UNTIL = (0.0, 0.4, 0.8, 1.0)
FACTORS = (0.0, 0.5, 2.0)  # by which the maps of a word are multiplied
SCALE = 5.0  # of guidance, at which round trips are compared
MASK_LEVEL = 2.0  # σ/α of DiffEdit's mask and latent


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


@dataclass(frozen=True)
class Real:
    """Real pictures with captions, what they should become, and their ways up.

    Attributes:
        x: (N, 3, 16, 16) in model units. source: what they are, as the network takes it.
        found: the implicit inversion under that, without guidance, with its states.
        null: the nulls by which guided steps lead back.
        changes: for each change what the pictures should become, and the caption of it.
    """

    x: Tensor
    source: dict[str, Tensor]
    found: editing.Inversion
    null: editing.NullText
    changes: dict[str, tuple[Attributes, dict[str, Tensor]]]


def prepared(captions: Captions) -> Real:
    """The captions' real pictures, inverted, with their nulls at the captions' guidance scale."""
    asked, model = captions.asked, captions.model
    device = next(model.parameters()).device
    wishes = {
        "digit": replace(asked.attributes, digit=(asked.attributes.digit + 5) % 10),
        "colour": replace(asked.attributes, colour=(asked.attributes.colour + 1) % len(COLOURS)),
    }
    source = {"caption": asked.tokens.to(device)}
    real = captions.scaling.to_model(asked.real.float()).to(device)
    implicit: dict[str, Any] = {"iterations": 10, "memory": 3, "tolerance": 1e-4, "trajectory": True}
    found = editing.invert(model.bind(**source), real, steps=captions.steps, **implicit)
    null = editing.null_text(model, found, source, captions.guidance)
    changes = {
        name: (wish, {"caption": vocabulary().encode(wish.captions(asked.template), LENGTH).to(device)})
        for name, wish in wishes.items()
    }
    return Real(real, source, found, null, changes)


@torch.no_grad()
def prompt_to_prompt(captions: Captions, out: Path) -> dict[str, Any]:
    """Another digit, or another colour, by the caption: from noise, and for real pictures from their latents."""
    asked, model, scale = captions.asked, captions.model, captions.guidance
    made = prepared(captions)
    noise = model.sde.prior_sample(tuple(made.x.shape), captions.seed, device=made.x.device)
    way: dict[str, Any] = {"grid": made.found.grid, "solver": ss.DDIM(), "denoise": False}
    kinds: dict[str, tuple[Tensor, dict[str, Any]]] = {
        "generated": (noise, {"scale": scale, "seed": captions.seed, "steps": captions.steps}),
        "real": (made.found.x, way),
        "real, guided": (made.found.x, {"scale": scale, **way}),
        "real, guided by nulls": (made.found.x, {"null": made.null, **way}),
    }
    report: dict[str, Any] = {"round_trip_mean": float(made.found.round_trip.mean())}
    for name, (wish, target) in made.changes.items():
        were, are = ((one.digit if name == "digit" else one.colour).tolist() for one in (asked.attributes, wish))
        names = list(map(str, range(10))) if name == "digit" else list(COLOURS)
        heads = [f"{names[a]} → {names[b]}" for a, b in zip(were, are, strict=True)]
        for kind, (x, options) in kinds.items():
            figures: dict[str, Any] = {}
            rows: list[SheetRow] = []
            for until in UNTIL:
                both = editing.prompt_to_prompt(model, x, made.source, target, until=until, **options)
                rows = rows or [("source", both.source)]
                rows.append((f"until {until:g}", both.x))
                figures[f"{until:g}"] = measure(captions, both, wish)
                if kind != "generated":
                    figures[f"{until:g}"]["distance_of_source"] = float(rms_distance(both.source, made.x).mean())
            report[f"{name}, {kind}"] = figures
            title = f"Prompt-to-prompt: another {name}, {kind}"
            draw_rows(out / file_name(f"prompt {name} {kind}", ".png"), rows, heads, captions.scaling, title)
    report["words"] = words(captions, made)
    report["null_text"] = round_trips(captions, made)
    report["diffedit"] = diffedit(captions, made, out)
    return report


def words(captions: Captions, made: Real) -> dict[str, Any]:
    """Only the words in common keep their maps (refinement), and one word counts more or less (reweighting)."""
    model, (wish, target) = captions.model, made.changes["colour"]
    options: dict[str, Any] = {"null": made.null, "grid": made.found.grid, "solver": ss.DDIM(), "denoise": False}
    # the learned token of the caption is the first; sentences of one template differ in the same places
    colours = {vocabulary().token(name) for name in COLOURS}
    report: dict[str, Any] = {}
    tokens = made.source["caption"].cpu()
    for template in range(int(captions.asked.template.max()) + 1):
        rows = torch.where(captions.asked.template == template)[0]
        if not len(rows):
            continue
        some = {key: value[rows] for key, value in (("source", tokens), ("target", target["caption"].cpu()))}
        shared = shared_tokens(some["source"][0], some["target"][0])
        changed = [j for j in range(tokens.shape[1]) if int(tokens[rows[0], j]) in colours]
        edits: dict[str, Any] = {"refined": lambda source, own, pairs=shared: map_tokens(source, own, pairs)}
        for factor in FACTORS:
            weights = {1 + j: factor for j in changed}
            edits[f"colour times {factor:g}"] = lambda source, own, w=weights: reweight_tokens(own, w)
        for name, edit in edits.items():
            null = part(made.null, rows.to(made.x.device))
            both = editing.prompt_to_prompt(
                model,
                null.x,
                {"caption": made.source["caption"][rows]},
                {"caption": target["caption"][rows]},
                edit=edit,
                until=1.0,
                **{**options, "null": null},
            )
            report.setdefault(name, {})[captions.asked.captions[int(rows[0])]] = measure(captions, both, wish[rows])
    return report


def part(null: editing.NullText, rows: Tensor) -> editing.NullText:
    """The nulls of some pictures."""
    return replace(
        null,
        conditions={name: value[rows] for name, value in null.conditions.items()},
        x=null.x[rows],
        nulls={name: value[:, rows] for name, value in null.nulls.items()},
        present={name: value[rows] for name, value in null.present.items()},
        reconstruction=null.reconstruction[rows],
        round_trip=null.round_trip[rows],
        plain=null.plain[rows],
        residual=null.residual[:, rows],
    )


def round_trips(captions: Captions, made: Real) -> dict[str, float]:
    """Guided steps back with the plain null and with nulls learned for each picture, at the bar's scale."""
    plain = editing.invert(captions.model.bind(**made.source), made.x, steps=captions.steps, trajectory=True)
    report = {}
    for name, found in (("ddim", plain), ("implicit", made.found)):
        for start in (0.0, 1.0):
            null = editing.null_text(captions.model, found, made.source, SCALE, start=start)
            report[f"{name}, plain null"] = float(null.plain.mean())
            report[f"{name}, null-text from {'the null' if start == 0 else 'the caption'}"] = float(
                null.round_trip.mean()
            )
    return report


def diffedit(captions: Captions, made: Real, out: Path) -> dict[str, Any]:
    """Masks from the pair of captions: what is changed inside, and that nothing is outside."""
    model, report = captions.model, {}
    t = model.sde.t_of_log_snr(-2 * math.log(MASK_LEVEL))
    options: dict[str, Any] = {"steps": captions.steps, "iterations": 10, "memory": 3, "tolerance": 1e-4}
    for name, (wish, target) in made.changes.items():
        aim = ss.classifier_free(model, target, captions.guidance)
        edit = editing.diffedit(model.bind(**made.source), aim, made.x, t=t, seed=captions.seed, **options)
        mask = edit.mask.expand_as(made.x)
        outside = (edit.x - made.x)[~mask]
        read = captions.reader.figures(captions.scaling.to_data(edit.x.cpu()).round().clamp(0, 16), wish)
        report[name] = {
            **{f"read_{key}": value for key, value in read.items()},
            "mask_area": float(mask.double().mean()),
            "mask_in_the_right_quadrant": in_quadrant(edit.mask.cpu(), captions.asked.attributes.place),
            "largest_change_outside": float(outside.abs().max()) if len(outside) else 0.0,
        }
        rows = [("source", made.x), ("mask", edit.mask.float()), ("as wished", edit.x)]
        heads = [str(k) for k in captions.asked.attributes.digit.tolist()]
        draw_rows(out / f"diffedit-{name}.png", rows, heads, captions.scaling, f"DiffEdit by captions: another {name}")
    return report


def in_quadrant(mask: Tensor, place: Tensor) -> float:
    """Share of the masks' pixels in the quadrant that the captions name."""
    parts = quadrants(mask.double()).sum((2, 3, 4))
    return float(parts[torch.arange(len(place)), place].sum() / parts.sum().clamp_min(1))


def measure(captions: Captions, both: editing.PromptToPrompt, wish: Attributes) -> dict[str, float]:
    """What is read in the new pictures, and how far they are from the old ones."""

    def levels(x: Tensor) -> Tensor:
        return captions.scaling.to_data(x.cpu()).round().clamp(0, 16)

    figures = {f"read_{name}": share for name, share in captions.reader.figures(levels(both.x), wish).items()}
    return {**figures, "distance": float(rms_distance(both.x, both.source).mean()), "nfe": float(both.nfe)}
