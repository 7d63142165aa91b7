"""The edits of digits: each takes a bench of held-out ones, answers figures and draws one picture.

    report = counterfactual(bench, out)

:class:`Bench` holds the model, the digits, and what they should become.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import scoresde as ss
from scoresde import editing, metrics
from scoresde.cli.sheets import SheetRow, draw_rows
from scoresde.data import Dataset, Scaling
from shared.measures import rms_distance
from shared.readers import DigitReader

LEVELS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # σ/α to which SDEdit noises, for data of standard deviation about 0.7
WEIGHTS = torch.linspace(0, 1, 9, dtype=torch.float64)
MASK_LEVEL = 2.0  # σ/α of DiffEdit's mask and latent
SCALE = 5.0  # of guidance, at which nulls are learned


@dataclass(frozen=True)
class Bench:
    """What every edit works with.

    Attributes:
        model: class-conditional, on ``device``.
        reader: a classifier that no model and no guidance ever sees.
        training: digits the model was trained on. scaling: theirs.
        x: (N, 1, 8, 8) held-out digits. label: (N,) what they are. wish: (N,) what they should be.
        steps: of every inversion and every way down. guidance: of every wish. seed: of all noise.
    """

    model: ss.ScoreModel
    reader: DigitReader
    training: Dataset
    scaling: Scaling
    x: Tensor
    label: Tensor
    wish: Tensor
    steps: int
    guidance: float
    seed: int

    @property
    def source(self) -> ss.Score:
        """The score of what the digits are."""
        return self.model.bind(label=self.label)

    @property
    def target(self) -> ss.Score:
        """The guided score of what they should be."""
        return ss.classifier_free(self.model, {"label": self.wish}, self.guidance)

    @property
    def heads(self) -> list[str]:
        """For each digit what it is, and what it should be."""
        return [f"{own} → {wish}" for own, wish in zip(self.label.tolist(), self.wish.tolist(), strict=True)]

    def read(self, x: Tensor, label: Tensor) -> float:
        """Share of pictures that are read as their label."""
        return self.reader.accuracy(x.cpu(), label.cpu())

    def distance(self, x: Tensor) -> float:
        """Mean over pictures of the RMS difference to the original, in model units (black to white is 2)."""
        return float(rms_distance(x, self.x).mean())


def sdedit(bench: Bench, out: Path) -> dict[str, Any]:
    """SDEdit to the wished label, from little noise (faithful) to much (free)."""
    rows: list[SheetRow] = [("original", bench.x)]
    report: dict[str, Any] = {}
    sde = bench.model.sde
    highest = float((sde.sigma(sde.T) / sde.alpha(sde.T)).item())
    for level in (level for level in LEVELS if level < highest):
        run = editing.sdedit(bench.target, bench.x, level=level, steps=bench.steps, seed=bench.seed)
        figures = {"read_as_wished": bench.read(run.x, bench.wish), "distance": bench.distance(run.x), "nfe": run.nfe}
        figures["read_as_before"] = bench.read(run.x, bench.label)
        report[f"{level:g}"] = figures
        rows.append((f"σ/α = {level:g}", run.x))
    draw_rows(out / "sdedit.png", rows, bench.heads, bench.scaling, "SDEdit: digits noised to σ/α, then made as wished")
    return report


def inversion(bench: Bench, out: Path) -> dict[str, Any]:
    """How well each inversion comes back, and at what price."""
    ways: dict[str, dict[str, Any]] = {
        "ddim": {"steps": bench.steps},
        "ddim, twice the steps": {"steps": 2 * bench.steps},
        "ddim, implicit": {"steps": bench.steps, "iterations": 10, "memory": 3, "tolerance": 1e-4},
        "ode": {"steps": bench.steps, "method": "ode"},
    }
    rows: list[SheetRow] = [("original", bench.x)]
    report: dict[str, Any] = {}
    for name, options in ways.items():
        found = editing.invert(bench.source, bench.x, **options)
        trip = found.round_trip
        report[name] = {
            "round_trip_mean": float(trip.mean()),
            "round_trip_worst": float(trip.max()),
            "latent_std": float((found.x / bench.model.sde.prior_std).std()),
            "nfe": found.nfe,
        }
        rows.append((name, found.reconstruction))
    draw_rows(
        out / "inversion.png", rows, list(map(str, bench.label.tolist())), bench.scaling, "Inverted to noise, and back"
    )
    return report


def counterfactual(bench: Bench, out: Path) -> dict[str, Any]:
    """The same digit as another: up under its label, down under the wish."""
    edit = editing.counterfactual(bench.source, bench.target, bench.x, **_inversion(bench))
    rows = [("original", bench.x), ("as wished", edit.x), ("difference", edit.difference)]
    draw_rows(out / "counterfactual.png", rows, bench.heads, bench.scaling, "Counterfactuals along the inverted path")
    return {
        "read_as_wished": bench.read(edit.x, bench.wish),
        "distance": bench.distance(edit.x),
        "distance_to_other_digits": _to_others(bench),
        "round_trip_mean": float(edit.inversion.round_trip.mean()),
        "nfe": edit.nfe,
    }


def null_text(bench: Bench, out: Path) -> dict[str, Any]:
    """Guided steps that lead back to the digit: how near, what edits by them are read as, and other ways there."""
    report: dict[str, Any] = {}
    for scale in dict.fromkeys((bench.guidance, SCALE)):
        rows: list[SheetRow] = [("original", bench.x)]
        figures = report[f"scale {scale:g}"] = {}
        for name, (back, edit, nfe) in _guided_ways(bench, scale).items():
            figures[name] = {
                "round_trip_mean": bench.distance(back),
                "read_as_wished": bench.read(edit, bench.wish),
                "distance": bench.distance(edit),
                "nfe": nfe,
            }
            rows += [(f"{name}: back", back), ("as wished", edit)]
        title = f"Guided at scale {scale:g}: back, and as wished"
        draw_rows(out / f"null-text-{scale:g}.png", rows, bench.heads, bench.scaling, title)
    return report


@torch.no_grad()
def _guided_ways(bench: Bench, scale: float) -> dict[str, tuple[Tensor, Tensor, int]]:
    """By each way the digit come back, the edited one, and the evaluations."""
    model, own, other = bench.model, {"label": bench.label}, {"label": bench.wish}

    def guided(label: dict[str, Tensor], **options: Any) -> ss.Score:
        return ss.classifier_free(model, label, scale, **options)

    plain = editing.invert(bench.source, bench.x, steps=bench.steps, trajectory=True)
    exact = editing.invert(bench.source, bench.x, trajectory=True, **_inversion(bench))
    at_scale = editing.invert(guided(own), bench.x, **_inversion(bench))
    nulls = {
        "ddim, null-text": (plain, editing.null_text(model, plain, own, scale)),
        "ddim, null-text from the label": (plain, editing.null_text(model, plain, own, scale, start=1.0)),
        "implicit, null-text": (exact, editing.null_text(model, exact, own, scale)),
    }
    back, edited = (plain.decoded(guided(label, negative=own)).x for label in (own, other))
    return {
        "ddim": (plain.decoded(guided(own)).x, plain.decoded(guided(other)).x, plain.nfe),
        "ddim, its own label as the negative": (back, edited, plain.nfe),
        "implicit": (exact.decoded(guided(own)).x, exact.decoded(guided(other)).x, exact.nfe),
        "implicit, up under guidance": (at_scale.reconstruction, at_scale.decoded(guided(other)).x, at_scale.nfe),
        **{name: (one.reconstruction, one.decoded(other).x, up.nfe + one.nfe) for name, (up, one) in nulls.items()},
    }


def diffedit(bench: Bench, out: Path) -> dict[str, Any]:
    """DiffEdit: the change kept inside the mask that the two labels' difference draws."""
    sde = bench.model.sde
    t = sde.t_of_log_snr(-2 * math.log(MASK_LEVEL))
    options = _inversion(bench)
    edit = editing.diffedit(bench.source, bench.target, bench.x, t=t, seed=bench.seed, **options)
    whole = editing.counterfactual(bench.source, bench.target, bench.x, t=t, **options)
    mask = edit.mask.expand_as(bench.x)
    rows = [("original", bench.x), ("mask", mask.to(bench.x)), ("as wished", edit.x), ("without mask", whole.x)]
    draw_rows(
        out / "diffedit.png", rows, bench.heads, bench.scaling, "DiffEdit: mask from the difference of two labels"
    )
    outside = ~mask
    return {
        "read_as_wished": bench.read(edit.x, bench.wish),
        "read_as_wished_without_mask": bench.read(whole.x, bench.wish),
        "mask_area": float(mask.double().mean()),
        "distance_outside_mask": _rms(edit.x - bench.x, outside),
        "distance_outside_mask_without_mask": _rms(whole.x - bench.x, outside),
        "distance": bench.distance(edit.x),
        "nfe": edit.nfe,
    }


def interpolation(bench: Bench, out: Path) -> dict[str, Any]:
    """Between the latents of two digits, decoded without a label."""
    sde, model = bench.model.sde, bench.model
    score = ss.classifier_free(model, {"label": bench.label}, scale=0.0)
    found = editing.invert(score, bench.x, **_inversion(bench))
    a, b = found.x, found.x.roll(-1, 0)
    ends = torch.stack([bench.label, bench.label.roll(-1, 0)]).cpu()
    report: dict[str, Any] = {}
    strip = None
    real = metrics.nearest_distance(bench.x.cpu(), bench.training[:]["x"]).mean()
    paths: tuple[Literal["spherical"], Literal["straight"]] = ("spherical", "straight")
    for path in paths:
        between = editing.interpolate(a, b, WEIGHTS.to(a.device), path=path)
        decoded = torch.stack(
            [
                ss.sample(score, tuple(x.shape), solver=found.solver, x=x, grid=found.grid, denoise=False).x
                for x in between
            ]
        )
        strip = decoded if strip is None else strip
        inner = decoded[1:-1]
        seen = torch.stack([bench.reader(x.cpu()) for x in inner])
        far = metrics.nearest_distance(inner.flatten(0, 1).cpu(), bench.training[:]["x"]).mean()
        report[path] = {
            "ends_come_back": float(rms_distance(decoded[0], bench.x).mean()),
            "read_as_one_of_the_ends": float(((seen == ends[0]) | (seen == ends[1])).double().mean()),
            "distance_to_training_over_real": float(far / real),
            "latent_std": float((between[len(between) // 2] / sde.prior_std).std()),
        }
    assert strip is not None
    rows = [(f"{w:.3g}", x) for w, x in zip(WEIGHTS.tolist(), strip, strict=True)]
    draw_rows(
        out / "interpolation.png",
        rows,
        list(map(str, bench.label.tolist())),
        bench.scaling,
        "From each digit to the next, on the arc",
    )
    return report


def _inversion(bench: Bench) -> dict[str, Any]:
    """Implicit DDIM: exact there and back."""
    return {"steps": bench.steps, "iterations": 10, "memory": 3, "tolerance": 1e-4}


def _rms(x: Tensor, where: Tensor) -> float:
    return float(x[where].square().mean().sqrt()) if bool(where.any()) else 0.0


def _to_others(bench: Bench) -> float:
    """How far a real digit of the wished class is on average: what an edit that forgets the original would score."""
    batch = bench.training[:]
    far = [
        rms_distance(batch["x"][batch["label"] == wish], x).mean()
        for x, wish in zip(bench.x.cpu(), bench.wish.tolist(), strict=True)
    ]
    return float(torch.stack(far).mean())
