"""Edit samples of your own with a trained model: towards a class, by noise and back, or from one to the next.

    scoresde edit --checkpoint runs/my-images --data my-cats --to dog                    # counterfactuals
    scoresde edit --checkpoint runs/my-images --data x.npy --method sdedit --level 1 --to dog
    scoresde edit --checkpoint runs/my-images --data x.npy --method interpolation

    counterfactual  up the noise under what a sample is, down under what it should be: keeps slant, weight, pose
    sdedit          noise to a level σ/α, then drawn anew under the class wished: little noise keeps, much is free
    interpolation   between the latents of each sample and the next

Written: edited.npy in the units of the data, edits.png, where each sample stands under its own class and
the one wished, report.json, config.yaml. :func:`main` takes the flags as an :class:`EditConfig`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import scoresde as ss
from scoresde import editing
from scoresde.cli.config import remember
from scoresde.cli.flags import CheckpointFlags, DataFlags, at_least
from scoresde.cli.likelihood import matching_data
from scoresde.cli.outputs import save_array, say, told
from scoresde.cli.sample import in_data_units
from scoresde.cli.sheets import SheetRow, draw_rows
from scoresde.cli.trained import Trained, trained_of
from scoresde.files import make_writable, write_json

WAY: dict[str, Any] = {"iterations": 10, "memory": 3, "tolerance": 1e-4}
"""Of inversions: implicit DDIM, exact there and back."""


@dataclass(frozen=True, kw_only=True)
class EditConfig(CheckpointFlags, DataFlags):
    """Edit samples with a model: edited.npy, edits.png, report.json."""

    method: Literal["counterfactual", "sdedit", "interpolation"] = "counterfactual"
    """How."""
    to: str | None = None
    """The class, by name or number, that samples should become; needed by counterfactual."""
    source: str | None = None
    """The class that all samples are, where the data do not say."""
    level: float = 1.0
    """Noise level σ/α of sdedit, for data of unit deviation: below 1 keeps much, above 2 little."""
    between: int = 7
    """Samples between two of interpolation."""
    steps: int = 40
    """Steps of every way."""
    guidance: float = 2.0
    """Scale of classifier-free guidance towards the class wished."""
    count: int = 10
    """Samples that are edited, the first ones."""
    out: Path | None = None
    """Folder for what is written; default edits in the run's folder."""
    seed: int = 0
    """Of all noise."""

    def check(self) -> None:
        at_least(self, steps=1, count=1, between=1)
        for name in ("level", "guidance"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"--{name} must be a finite number of at least 0, got {getattr(self, name)}.")
        if self.method == "counterfactual" and self.to is None:
            raise ValueError("--method counterfactual needs the class that samples should become: --to.")
        if self.method == "interpolation" and self.to is not None:
            raise ValueError("--method interpolation goes from each sample to the next; leave --to out.")


def main(config: EditConfig) -> dict[str, Any]:
    """Edit and write; returns what report.json holds."""
    start = time.perf_counter()
    config.ready()
    trained = trained_of(config)
    if trained.conditions:
        raise ValueError(f"the model in {trained.path} takes {', '.join(trained.conditions)}: edit in Python.")
    if trained.classes is None and (config.to is not None or config.source is not None):
        raise ValueError(f"--to and --source name classes, and the model in {trained.path} was trained without.")
    dataset = matching_data(config, trained)
    dataset = dataset.subset(slice(0, config.count))
    wish = None if config.to is None else trained.index(config.to)
    own = labels_of(config, trained, dataset.label, len(dataset))
    x = dataset[:]["x"].to(trained.device)
    if config.method == "interpolation" and len(x) < 2:
        raise ValueError("--method interpolation needs two samples at least.")
    if config.method == "counterfactual" and own is None:
        raise ValueError("--method counterfactual needs the class that samples are: labels in the data, or --source.")
    out = make_writable(trained.home / "edits" if config.out is None else config.out)
    remember(config, out)
    say(f"{len(x)} samples by {config.method}, {config.steps} steps each way")
    edited, rows, figures = METHODS[config.method](config, trained, x, own, wish)
    save_array(out / "edited.npy", in_data_units(edited.cpu(), trained.scaling))
    draw_rows(out / "edits.png", rows, heads_of(trained, own, wish, len(x)), trained.scaling, config.method)
    report = {
        "config": told(config, out),
        **trained.told(),
        "samples": len(x),
        "figures": figures,
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_json(out / "report.json", report)
    say(", ".join(f"{name} {value:.4g}" for name, value in figures.items()) + f"; all is in {out}")
    return report


def labels_of(config: EditConfig, trained: Trained, labels: Tensor | None, count: int) -> Tensor | None:
    """The class that each sample is; None where nobody says.

    Raises:
        ValueError: the data say, and --source too.
    """
    if config.source is None:
        return None if labels is None or trained.classes is None else labels
    if labels is not None:
        raise ValueError("the data have labels of their own; leave --source out, or read them with --classes none.")
    return torch.full((count,), trained.index(config.source), dtype=torch.int64)


def heads_of(trained: Trained, own: Tensor | None, wish: int | None, count: int) -> list[str]:
    """For each sample its own class, and where it goes."""
    names = trained.classes or ()
    heads = [names[k] for k in own.tolist()] if own is not None else [str(i) for i in range(count)]
    return heads if wish is None else [f"{head} → {names[wish]}" for head in heads]


def _under(config: EditConfig, trained: Trained, labels: Tensor | int | None, count: int, scale: float) -> ss.Score:
    """The score of a class, guided; without one that of all data."""
    if trained.classes is None:
        return trained.model
    if labels is None:
        labels, scale = trained.null, 1.0
    given = torch.full((count,), labels) if isinstance(labels, int) else labels
    return ss.classifier_free(trained.model, {"label": given.to(trained.device)}, scale=scale)


Edited = tuple[Tensor, list[SheetRow], dict[str, float]]


def by_sdedit(config: EditConfig, trained: Trained, x: Tensor, own: Tensor | None, wish: int | None) -> Edited:
    """Noised to a level and drawn anew, under the wish, or else under what each is."""
    target = wish if wish is not None else own
    score = _under(config, trained, target, len(x), config.guidance if wish is not None else 1.0)
    run = editing.sdedit(score, x, level=config.level, steps=config.steps, seed=config.seed)
    rows = [("original", x), ("edited", run.x), ("difference", run.x - x)]
    return run.x, rows, {"distance": _rms(run.x - x), "nfe": float(run.nfe)}


def by_counterfactual(config: EditConfig, trained: Trained, x: Tensor, own: Tensor | None, wish: int | None) -> Edited:
    """Up under what each is, down under what it should be."""
    source = _under(config, trained, own, len(x), 1.0)
    target = _under(config, trained, wish, len(x), config.guidance)
    edit = editing.counterfactual(source, target, x, steps=config.steps, **WAY)
    rows = [("original", x), ("edited", edit.x), ("difference", edit.difference)]
    trip = float(edit.inversion.round_trip.mean())
    return edit.x, rows, {"distance": _rms(edit.difference), "round_trip": trip, "nfe": float(edit.nfe)}


def by_interpolation(config: EditConfig, trained: Trained, x: Tensor, own: Tensor | None, wish: int | None) -> Edited:
    """Between the latents of each sample and the next, decoded without a class: (between + 2, N, *event)."""
    score = _under(config, trained, None, len(x), 1.0)
    found = editing.invert(score, x, steps=config.steps, **WAY)
    weights = torch.linspace(0, 1, config.between + 2, dtype=torch.float64, device=x.device)
    path = editing.interpolate(found.x, found.x.roll(-1, 0), weights)
    decoded = torch.stack(
        [ss.sample(score, tuple(z.shape), solver=found.solver, x=z, grid=found.grid, denoise=False).x for z in path]
    )
    rows = [(f"{w:.3g}", some) for w, some in zip(weights.tolist(), decoded, strict=True)]
    return decoded, rows, {"round_trip": float(found.round_trip.mean()), "ends_come_back": _rms(decoded[0] - x)}


METHODS = {"sdedit": by_sdedit, "counterfactual": by_counterfactual, "interpolation": by_interpolation}


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
