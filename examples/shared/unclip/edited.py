"""Pictures by embeddings of pictures: variations of one, between two, and along the difference of two captions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde import editing
from scoresde.cli.outputs import show
from scoresde.cli.sheets import SheetRow, draw_rows
from shared.conditional.captioned import COLOURS, Attributes
from shared.measures import rms_distance
from shared.unclip import encoder
from shared.unclip.asked import Asked, asked_for
from shared.unclip.sentences import COUNTS, KINDS, held_out
from shared.unclip.system import System

VARIATIONS = 4
ANGLES = (0.25, 0.5)  # of the way to a difference of captions, as in the paper
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def edits(system: System, out: Path) -> dict[str, Any]:
    """All three, of held-out pictures."""
    flags = system.flags
    asked = asked_for(system, max(20, flags.samples // 2), flags.seed + 2, unseen=False)
    x = system.scaling.to_model(held_out(system.held, asked.attributes, flags.seed + 2).float())
    u = encoder.read_pictures(system.clean, x)
    report = {
        "variations": variations(system, asked, x, u, out),
        "interpolation": interpolation(system, asked, x, u, out),
        "differences": differences(system, asked, x, u, out),
    }
    for name, found in report.items():
        for key, one in found.items():
            show(f"{name}, {key}", one)
    return report


def variations(system: System, asked: Asked, x: Tensor, u: Tensor, out: Path) -> dict[str, dict[str, float]]:
    """Encoded and decoded with other noise: what stays, and what does not."""
    count = len(x)
    drawn = torch.stack([system.draw(u=u, first=k * count) for k in range(VARIATIONS)])
    other = system.scaling.to_model(held_out(system.held, asked.attributes, system.flags.seed + 3).float())
    rows: list[SheetRow] = [("original", x), *((f"variation {k + 1}", one) for k, one in enumerate(drawn))]
    draw_rows(out / "variations.png", rows, heads_of(asked.attributes), system.scaling, "Variations of a picture")
    apart = [rms_distance(a, b) for a, b in zip(drawn, drawn.roll(1, 0), strict=True)]
    kept = [system.figures(one, asked.attributes) for one in drawn]
    return {
        "real": {**system.figures(x, asked.attributes), "apart": float(rms_distance(other, x).mean())},
        "drawn": {
            **{name: sum(one[name] for one in kept) / VARIATIONS for name in kept[0]},
            "from_original": float(torch.stack([rms_distance(one, x) for one in drawn]).mean()),
            "apart": float(torch.stack(apart).mean()),
        },
    }


def interpolation(system: System, asked: Asked, x: Tensor, u: Tensor, out: Path) -> dict[str, dict[str, float]]:
    """From each picture to the next, on the arc between their embeddings, all of one noise."""
    other = x.roll(-1, 0)
    ends = asked.attributes, Attributes(*(getattr(asked.attributes, kind).roll(-1, 0) for kind in KINDS))
    between = editing.interpolate(u, u.roll(-1, 0), torch.tensor(WEIGHTS))
    found: dict[str, dict[str, float]] = {}
    rows: list[SheetRow] = [("from", x)]
    for weight, one in zip(WEIGHTS, between, strict=True):
        drawn = system.draw(u=one)
        rows.append((f"{weight:g}", drawn))
        read = system.read(drawn)
        seen = {kind: getattr(read, kind) for kind in KINDS}
        first, second = ({kind: seen[kind] == getattr(end, kind) for kind in KINDS} for end in ends)
        found[f"weight {weight:g}"] = {
            "as_first": float(torch.stack([first[kind].double() for kind in KINDS]).mean()),
            "as_second": float(torch.stack([second[kind].double() for kind in KINDS]).mean()),
            "as_either": float(torch.stack([(first[kind] | second[kind]).double() for kind in KINDS]).mean()),
        }
    rows.append(("to", other))
    draw_rows(
        out / "interpolation.png", rows, heads_of(asked.attributes), system.scaling, "From each picture to the next"
    )
    return found


def differences(system: System, asked: Asked, x: Tensor, u: Tensor, out: Path) -> dict[str, dict[str, float]]:
    """Turned towards the difference of two captions: one attribute becomes another, the others stay."""
    found: dict[str, dict[str, float]] = {}
    v = system.sentence_vectors(asked.tokens)
    rows: list[SheetRow] = [("original", x)]
    for i, kind in enumerate(KINDS):
        value = getattr(asked.attributes, kind)
        wish = replace(asked.attributes, **{kind: (value + (5 if kind == "digit" else 1)) % COUNTS[i]})
        towards = system.sentence_vectors(system.captions.full(wish, asked.template)) - v
        towards = towards / towards.norm(dim=1, keepdim=True)
        for angle in ANGLES:
            drawn = system.draw(u=editing.interpolate(u, towards, angle))
            read = system.read(drawn)
            right = {name: getattr(read, name) == getattr(wish, name) for name in KINDS}
            kept = torch.stack([right[name] for name in KINDS if name != kind]).all(0)
            found[f"{kind}, {angle:g} of the way"] = {
                "as_wished": float(right[kind].double().mean()),
                "others_kept": float(kept.double().mean()),
            }
        rows.append((f"another {kind}", drawn))
    draw_rows(
        out / "differences.png", rows, heads_of(asked.attributes), system.scaling, "Along a difference of captions"
    )
    return found


def heads_of(attributes: Attributes) -> list[str]:
    """Digit and colour of each, in short."""
    names = list(COLOURS)
    return [f"{d} {names[c]}" for d, c in zip(attributes.digit.tolist(), attributes.colour.tolist(), strict=True)]
