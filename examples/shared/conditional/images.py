"""Images as conditions: low resolution to high, mask to digit, and cluttered picture to mask.

Each question is answered several times. The mean of the answers is compared with baselines, and their spread with the
error that the mean really makes: for draws from the true posterior the two agree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde import metrics
from scoresde.cli.outputs import show
from scoresde.cli.pictures import new_figure, save_figure, save_grid
from scoresde.data import Dataset, Scaling, from_tensors
from scoresde.data import load as load_data
from shared.conditional.captioned import SIDE
from shared.conditional.segments import INK, brightness, clutter, ink
from shared.conditional.task import Flags, draw, draw_many, fit, network
from shared.digits import EVENT, load
from shared.measures import iou, psnr, spread_over_error, upsized
from shared.readers import DigitReader
from shared.training import of_each_class

STEPS = {"superresolution": 1500, "mask": 1500, "segment": 1500}
SHOWN = 8  # questions in a picture
DIGITS = Scaling.to_unit_range(17)


# -- low resolution to high --------------------------------------------------------------------------------------------


def pool(x: Tensor, factor: int) -> Tensor:
    """What a coarser sensor sees: the means of factor x factor pixels."""
    return F.avg_pool2d(x, factor)


def own_pictures(path: Path, held: int, factor: int, seed: int) -> tuple[Dataset, Dataset]:
    """The user's images, ``held`` of them kept from training.

    Raises:
        FileNotFoundError, ValueError: no images, not levels, sizes that the factor does not divide, or too few.
    """
    dataset = load_data(path)
    shape = dataset.event_shape
    if len(shape) != 3 or dataset.scaling.levels is None:
        raise ValueError(f"superresolution takes images of whole levels, and {path} holds {dataset}.")
    if shape[1] % factor or shape[2] % factor:
        raise ValueError(f"--factor {factor} does not divide the pictures of {path}, {shape[1]}x{shape[2]}.")
    if len(dataset) <= held:
        raise ValueError(
            f"{path} holds {len(dataset)} pictures, and --samples {held} of them are kept from training; ask for fewer."
        )
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return dataset.subset(order[held:]), dataset.subset(order[:held])


def superresolution(flags: Flags, out: Path) -> dict[str, Any]:
    """Train on pictures given their pooled ones, draw, measure; the figures."""
    data, factor = flags.data, flags.factor
    reader: DigitReader | None = None
    if data is None:
        training, held = load(flags.seed)
        reader, held = DigitReader(training), of_each_class(held, flags.samples)
    else:
        training, held = own_pictures(data, flags.samples, factor, flags.seed)
    scaling, event = training.scaling, training.event_shape
    # Piece by piece: the whole in float32 is four times what is stored.
    coarse = torch.cat([pool(scaling.to_model(some), factor) for some in torch.split(training.data, 4096)])
    dataset = from_tensors(training.data, levels=scaling.levels, conditions={"low": coarse})
    net = network(flags, event[0], blocks=1 if data else 2, images={"low": event[0]})
    model = fit(flags, net, dataset, out, steps=STEPS["superresolution"])
    truth = held[:]["x"]
    low = pool(truth, factor)
    answers = draw_many(flags, model, event, {"low": low})
    hidden = draw(flags, model, event, {"low": low}, scale=0.0)
    bilinear = F.interpolate(low, scale_factor=factor, mode="bilinear", align_corners=False)
    mean = answers.mean(0)
    ways = {
        "nearest": upsized(low, factor),
        "bilinear": bilinear,
        "mean": mean,
        "one_draw": answers[0],
        "hidden": hidden,
    }
    figures: dict[str, dict[str, float]] = {}
    for name, x in ways.items():
        # in levels: what the coarse sensor would see of the answer, against what it saw
        consistency = (scaling.scale * (pool(x, factor) - low)).square().mean().sqrt()
        figures[name] = {"psnr_db": psnr(x, truth), "consistency_levels": float(consistency)}
        if reader is not None:
            figures[name]["accuracy"] = reader.accuracy(x, held[:]["label"])
        show(name, figures[name])
    real = {} if reader is None else {"accuracy": reader.accuracy(truth, held[:]["label"])}
    spread = answers.std(0)
    parts = [upsized(low, factor), bilinear, truth, mean, spread / spread.amax() * 2 - 1, *answers[:4]]
    heads = ["given", "bilin.", "truth", "mean", "std", *numbers(answers[:4])]
    title = f"resolution x {factor}: baseline, mean and deviation of {flags.draws} draws, single draws"
    save_grid(out / "superresolution.png", scaling.to_uint8(side_by_side(parts)), heads, title)
    report = {
        "data": "scikit-learn digits" if data is None else str(data),
        "factor": factor,
        "real": real,
        "answers": figures,
        "spread_over_error": spread_over_error(answers, truth),
    }
    show("calibration", {"spread over error": report["spread_over_error"]})
    return report


# -- mask to digit -----------------------------------------------------------------------------------------------------


def mask(flags: Flags, out: Path) -> dict[str, Any]:
    """Train on grey digits given their masks of ink, draw, measure; the figures."""
    training, held = load(flags.seed)
    reader, held = DigitReader(training), of_each_class(held, flags.samples)
    dataset = from_tensors(training.data, levels=17, conditions={"mask": signs(ink(training.data))})
    model = fit(flags, network(flags, 1, images={"mask": 1}), dataset, out, steps=STEPS["mask"])
    truth, asked = held[:]["x"], ink(held.data)
    figures = {}
    pictures: dict[str, Tensor] = {}
    for name, scale in (("given", 1.0), ("hidden", 0.0)):
        answers = draw_many(flags, model, EVENT, {"mask": signs(asked)}, scale=scale)
        pictures[name], levels = answers, DIGITS.to_data(answers).round()
        stack = asked.expand_as(levels[0]).repeat(len(levels), 1, 1, 1)
        figures[name] = {
            "iou": float(iou(ink(levels.flatten(0, 1)), stack).mean()),
            "wrong_pixels": float((ink(levels.flatten(0, 1)) != stack).double().mean()),
            "accuracy": reader.accuracy(answers.flatten(0, 1), held[:]["label"].repeat(len(answers))),
            "spread_over_error": spread_over_error(answers, truth),
        }
        show(name, figures[name])
    answers = pictures["given"]
    spread = answers.std(0)
    parts = [signs(asked), truth, answers.mean(0), spread / spread.amax() * 2 - 1, *answers[:4]]
    heads = ["mask", "truth", "mean", "std", *numbers(answers[:4])]
    title = f"mask of ink to digit: mean and deviation of {flags.draws} draws, single draws"
    save_grid(out / "mask.png", DIGITS.to_uint8(side_by_side(parts)), heads, title)
    baseline = reader.accuracy(signs(asked), held[:]["label"])
    return {
        "real": {"accuracy": reader.accuracy(truth, held[:]["label"]), "accuracy_of_masks": baseline},
        "threshold_levels": INK,
        "generated": figures,
    }


def signs(mask: Tensor) -> Tensor:
    """0 and 1 as -1 and 1, float32."""
    return mask.float() * 2 - 1


# -- cluttered picture to mask -----------------------------------------------------------------------------------------


def segment(flags: Flags, out: Path, *, copies: int = 8) -> dict[str, Any]:
    """Train on masks given cluttered pictures, draw, measure; the figures."""
    training, held = load(flags.seed)
    seen = clutter(training, copies, flags.seed)
    asked = clutter(of_each_class(held, flags.samples), 1, flags.seed + 1)
    dataset = from_tensors(seen.masks, levels=2, conditions={"picture": DIGITS.to_model(seen.pictures)})
    net = network(flags, 1, blocks=1, attention_levels=(-1,), images={"picture": 3})
    model = fit(flags, net, dataset, out, steps=STEPS["segment"])
    event, pictures = (1, 2 * SIDE, 2 * SIDE), DIGITS.to_model(asked.pictures)
    answers = draw_many(flags, model, event, {"picture": pictures})
    hidden = draw(flags, model, event, {"picture": pictures}, scale=0.0)
    threshold = best_threshold(brightness(seen.pictures[:2000]), seen.masks[:2000])
    bright = brightness(asked.pictures) >= threshold
    where = quadrant_of(asked.place)
    share = (answers > 0).double().mean(0)  # of the draws in which a pixel belongs to the digit
    ways = {
        "threshold": bright,
        # what is left to find for somebody who knows the quadrant
        "threshold_in_the_right_quadrant": bright & where,
        "one_draw": answers[0] > 0,
        "majority_of_draws": share > 0.5,
        "hidden": hidden > 0,
    }
    figures = {}
    for name, found in ways.items():
        figures[name] = {
            "iou": float(iou(found, asked.masks).mean()),
            "dice": float(metrics.dice(found, asked.masks).mean()),
            "ink_in_the_right_quadrant": float((found & where).sum() / found.sum().clamp(min=1)),
        }
        show(name, figures[name])
    shown = [pictures, *(signs(x).expand(-1, 3, -1, -1) for x in (asked.masks, bright, *(answers[:3] > 0)))]
    doubt = 4 * share * (1 - share)  # 1 where half of the draws say yes: where the answer is not known
    shown += [(2 * one - 1).expand(-1, 3, -1, -1).float() for one in (share, doubt)]
    heads = ["given", "truth", "bright", *numbers(answers[:3]), "share", "doubt"]
    title = f"cluttered picture to mask: bright pixels, single draws, share of {flags.draws} draws, where they differ"
    save_grid(out / "segment.png", DIGITS.to_uint8(side_by_side(shown)), heads, title)
    maps = {
        "share": share,
        "one_draw": (answers[0] > 0).double(),
    }
    reliable = {name: metrics.reliability(one, asked.masks) for name, one in maps.items()}
    calibration = {name: calibration_figures(one) for name, one in reliable.items()}
    # are pixels in doubt those that the majority gets wrong?
    wrong = (share > 0.5) != asked.masks.bool()
    if bool(wrong.any()) and not bool(wrong.all()):
        calibration["doubt"] = {"auc_of_wrong_pixels": metrics.roc_auc(doubt, wrong)}
    for name, row in calibration.items():
        show(name, {key: value for key, value in row.items() if not isinstance(value, list)})
    draw_reliability(out / "reliability.png", reliable["share"], f"share of {flags.draws} draws")
    return {"threshold_levels": threshold, "calibration": calibration, "answers": figures}


def calibration_figures(found: metrics.Reliability) -> dict[str, Any]:
    """The figures of a map of probabilities, bins without a pixel left out."""
    filled = found.count > 0
    return {
        "ece": found.ece,
        "ece_floor": found.ece_floor,
        "brier": found.brier,
        "forecast": found.forecast[filled].tolist(),
        "frequency": found.frequency[filled].tolist(),
        "pixels": found.count[filled].tolist(),
    }


def draw_reliability(path: Path, found: metrics.Reliability, name: str) -> None:
    """How often pixels belong to the mask, over how often they are said to."""
    figure, axes = new_figure(1, 1, size=3.2)
    axis, filled = axes[0, 0], found.count > 0
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    axis.plot(found.forecast[filled], found.frequency[filled], marker="o")
    axis.set_xlabel(name, fontsize=8)
    axis.set_ylabel("share of such pixels in the mask", fontsize=8)
    axis.set_title(f"calibration error {found.ece:.3f}", fontsize=8)
    save_figure(path, figure)


def best_threshold(brightness: Tensor, masks: Tensor) -> float:
    """The whole level from which on pixels are called ink, with the best mean intersection over union."""
    scores = [float(iou(brightness >= level, masks).mean()) for level in range(1, 16)]
    return float(1 + max(range(15), key=scores.__getitem__))


def quadrant_of(place: Tensor) -> Tensor:
    """Which pixels lie in the quadrant, (N, 1, 16, 16) bool."""
    rows = torch.zeros(len(place), 2, SIDE, 2, SIDE, dtype=torch.bool)
    rows[torch.arange(len(place)), place // 2, :, place % 2] = True
    return rows.reshape(len(place), 1, 2 * SIDE, 2 * SIDE)


# -- pictures ----------------------------------------------------------------------------------------------------------


def side_by_side(parts: list[Tensor]) -> Tensor:
    """(N, C, H, W) each: the first of all of them, then the second of all, ..., for a grid with a column for each."""
    return torch.stack([part[:SHOWN] for part in parts], dim=1).flatten(0, 1)


def numbers(answers: Tensor) -> list[str]:
    """1, 2, ..., one for each."""
    return [str(k + 1) for k in range(len(answers))]
