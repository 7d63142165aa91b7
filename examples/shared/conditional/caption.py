"""Pictures by caption: trained on composed digits, asked for pairs that training has shown and for pairs it has not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde import metrics
from scoresde.cli.outputs import file_name, show
from scoresde.cli.pictures import new_figure, save_figure, tile
from scoresde.data import Scaling
from scoresde.nn import UNet
from shared.conditional.caption_reader import CHANCE, CaptionReader
from shared.conditional.captioned import (
    COLOURS,
    LENGTH,
    SIDE,
    TEMPLATES,
    Questions,
    questions,
    training_set,
    vocabulary,
)
from shared.conditional.task import Flags, draw, fit, network
from shared.digits import load

STEPS = 3000
# What a caption says is decided where noise hides all else: pictures of two places or digits are 5 to 10 apart, so from
# sigma = 2 on. The default for the deviation of mostly black pictures, -1.6, shows one sample in twenty there.
MEAN_LOG_SIGMA = 0.0
EVENT = (3, 2 * SIDE, 2 * SIDE)


def reading_network(flags: Flags) -> UNet:
    """16, 8, 4, attending to the words of the caption at the coarsest level and in the middle."""
    words = {"vocabulary": len(vocabulary().words), "length": LENGTH, "width": 64, "layers": 2}
    return network(flags, 3, blocks=1, attention_levels=(-1,), captions={"caption": words})


def run(flags: Flags, out: Path) -> dict[str, Any]:
    """Train, draw, measure; the figures."""
    training, held = load(flags.seed)
    dataset = training_set(training, flags.seed)
    reader = CaptionReader(training)
    asked = {
        "seen": questions(training, held, flags.samples, flags.seed, unseen=False),
        "unseen": questions(training, held, flags.samples, flags.seed + 1, unseen=True),
    }
    report: dict[str, Any] = {
        "pictures": len(dataset),
        "pairs_kept_from_training": 10,
        "pairs": 10 * len(COLOURS),
        "chance": CHANCE,
        "real": {},
        "generated": {},
    }
    for name, those in asked.items():
        figures = reader.figures(those.real, those.attributes)
        report["real"][name] = {**figures, "energy_distance": real_distance(dataset.scaling, those)}
        show(f"real, {name}", report["real"][name])
    model = fit(flags, reading_network(flags), dataset, out, steps=STEPS, mean=MEAN_LOG_SIGMA)
    for name, those in asked.items():
        floor = report["real"][name]["energy_distance"]
        results = report["generated"][name] = {}
        for scale in dict.fromkeys((0.0, *flags.guidance)):  # 0: captions hidden, the control
            x = draw(flags, model, EVENT, {"caption": those.tokens}, scale=scale)
            kind = "hidden" if scale == 0 else f"scale {scale:g}"
            results[kind] = measure(x, dataset.scaling, those, reader, floor)
            show(f"{name}, {kind}", {key: value for key, value in results[kind].items() if key != "by_sentence"})
            title = f"captions of {name} pairs, {kind}"
            draw_captioned(out / file_name(f"{name} {kind}", ".png"), dataset.scaling.to_uint8(x), those, title)
    draw_captioned(out / "real.png", dataset.scaling.to_uint8(dataset.scaling.to_model(asked["seen"].real)),
                   asked["seen"], "held-out real digits, composed")  # fmt: skip
    report["parameters"] = sum(p.numel() for p in model.parameters())
    return report


def real_distance(scaling: Scaling, those: Questions) -> float:
    """Energy distance of training digits to held-out ones, in the same colours and places."""
    return metrics.energy_distance(scaling.to_model(those.others.float()), scaling.to_model(those.real.float()))


def measure(x: Tensor, scaling: Scaling, those: Questions, reader: CaptionReader, floor: float) -> dict[str, Any]:
    """The figures of one set of pictures, x in model units."""
    levels = scaling.to_data(x).round().clamp(0, 16)
    figures: dict[str, Any] = dict(reader.figures(levels, those.attributes))
    distance = metrics.energy_distance(scaling.to_model(levels), scaling.to_model(those.real.float()))
    figures.update(energy_distance=distance, energy_distance_over_real=distance / floor)
    figures["by_sentence"] = {
        template: reader.figures(levels[rows], those.attributes[rows])["all"]
        for k, template in enumerate(TEMPLATES)
        if len(rows := torch.where(those.template == k)[0])
    }
    return figures


def draw_captioned(path: Path, pixels: Tensor, those: Questions, title: str, count: int = 40) -> None:
    """A PNG of the first pictures, each under its caption."""
    save_titled(path, pixels[:count], those.captions[:count], title)


def save_titled(path: Path, pixels: Tensor, titles: Sequence[str], title: str, columns: int = 8) -> None:
    """A PNG of uint8 (N, 3, H, W), each under a title of its own."""
    zoom, room = max(1, 64 // pixels.shape[-1]), 8  # room for a title, in pixels of the pictures
    padded = F.pad(pixels, (2, 2, room, 0), value=255)
    sheet = tile(padded, columns, gap=0, zoom=zoom)
    figure, axes = new_figure(1, 1, size=1)
    figure.set_size_inches(sheet.shape[1] / 60, sheet.shape[0] / 60 + 0.4)
    axes[0, 0].imshow(sheet, interpolation="nearest")
    axes[0, 0].set_axis_off()
    height, width = (zoom * side for side in padded.shape[-2:])
    for i, text in enumerate(titles):
        at = ((i % columns + 0.5) * width, i // columns * height + zoom * room / 2)
        axes[0, 0].text(*at, _wrapped(text), fontsize=6, ha="center", va="center")
    figure.suptitle(title, fontsize=9)
    save_figure(path, figure)


def _wrapped(text: str) -> str:
    middle = text.find(" ", len(text) // 2)
    return text if middle < 0 else text[:middle] + "\n" + text[middle + 1 :]
