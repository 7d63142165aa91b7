"""Digits by label and by amount of ink: a class and a number as conditions of one network, each alone or together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.cli.outputs import file_name, show
from scoresde.cli.pictures import save_grid
from scoresde.data import Dataset, Scaling, from_tensors
from shared.conditional.task import Flags, draw, fit, network
from shared.digits import CLASSES, EVENT, load
from shared.measures import correlation
from shared.readers import Judge
from shared.training import of_each_class

STEPS = 2000


def amount(levels: Tensor) -> Tensor:
    """The mean grey level of digits (N, 1, 8, 8), (N,)."""
    return levels.flatten(1).double().mean(1)


class InkScale:
    """Mean grey levels as numbers of mean 0 and deviation 1 over the training digits, which networks like."""

    def __init__(self, training: Dataset) -> None:
        values = amount(training.data)
        self.mean, self.std = float(values.mean()), float(values.std())

    def __call__(self, ink: Tensor) -> Tensor:
        """What the network is told, (N, 1)."""
        return ((ink - self.mean) / self.std).float()[:, None]


def run(flags: Flags, out: Path) -> dict[str, Any]:
    """Train, draw, measure; the figures."""
    training, held = load(flags.seed)
    held = of_each_class(held, flags.samples)
    judge, scale = Judge(training, held, flags.seed), InkScale(training)
    dataset = from_tensors(training.data, training.label, levels=17, conditions={"ink": scale(amount(training.data))})
    real = {"accuracy": judge.accuracy_real, "energy_distance": judge.floor}
    show("real", real)
    model = fit(flags, network(flags, 1, num_classes=10, vectors={"ink": 1}), dataset, out, steps=STEPS)
    labels, asked = judge.labels, amount(held.data)
    settings: dict[str, tuple[dict[str, Tensor], float]] = {"hidden": ({"label": labels}, 0.0)}
    for w in flags.guidance:
        settings[f"label, scale {w:g}"] = ({"label": labels}, w)
    settings["ink"] = ({"ink": scale(asked)}, 1.0)
    settings["label and ink"] = ({"label": labels, "ink": scale(asked)}, 1.0)
    generated = {}
    for name, (conditions, w) in settings.items():
        x = judge.levels(draw(flags, model, EVENT, conditions, scale=w))
        got = amount(judge.scaling.to_data(x).round())
        generated[name] = {
            **judge(x),
            "ink_correlation": correlation(asked, got),
            "ink_error_levels": float((asked - got).square().mean().sqrt()),
        }
        show(name, generated[name])
        pixels = judge.scaling.to_uint8(x[:80])
        save_grid(out / file_name(name, ".png"), pixels, CLASSES, name)
    from_little_to_much(flags, out, model, scale, asked)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "real": real,
        "ink_std_levels": float(asked.std()),
        "generated": generated,
    }


def from_little_to_much(flags: Flags, out: Path, model: Any, scale: InkScale, asked: Tensor) -> None:
    """A picture of each digit from little ink to much, from the same noise: rows from the 5 % to the 95 % quantile."""
    rows = torch.quantile(asked, torch.linspace(0.05, 0.95, 6, dtype=torch.float64))
    labels = torch.arange(10)
    x = [draw(flags, model, EVENT, {"label": labels, "ink": scale(row.expand(10))}) for row in rows]
    pixels = Scaling.to_unit_range(17).to_uint8(torch.cat(x))
    title = "ink from " + " to ".join(f"{float(row):.1f}" for row in (rows[0], rows[-1])) + " levels on average"
    save_grid(out / "ink.png", pixels, CLASSES, title)
