"""What inverse.py says of answers: figures against the truth and against what was measured, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from scoresde.cli.pictures import new_figure, save_figure, tile
from scoresde.cli.posteriors import Answers, MethodName
from scoresde.data import Scaling
from scoresde.inverse import Measurement
from scoresde.metrics import calibration_error, coverage
from shared.inverse.tasks import Task
from shared.measures import psnr, spread_over_error
from shared.readers import DigitReader

ROWS = 6  # pictures shown of each method
DRAWS = 5  # and samples of each
LEAST = 96  # points on a picture's side when drawn


def answer_figures(
    answers: Answers,
    truth: Tensor,
    task: Task,
    measurement: Measurement,
    scaling: Scaling,
    reader: DigitReader | None,
    labels: Tensor | None,
) -> dict[str, float]:
    """Figures of the answers (N, S, C, H, W) of one method.

    Error and spread, coverage and calibration are over the pixels that were not measured, where some were. They look
    at samples rounded to the levels that pictures have, since the truth has no others.
    """
    x = answers.x
    rounded = scaling.to_model(scaling.to_data(x).round().clamp(0, (scaling.levels or 2) - 1))
    mean, draws, wanted = x.mean(1), rounded, truth
    if task.hidden is not None:
        draws, wanted = rounded[..., task.hidden], truth[..., task.hidden]
    figures = {
        "psnr_mean_db": psnr(mean, truth),
        "psnr_sample_db": psnr(x[:, 0], truth),
        "residual_over_noise": residual(x, measurement),
        "coverage_50": coverage(draws, wanted, 0.5),
        "coverage_90": coverage(draws, wanted, 0.9),
        "calibration_error": calibration_error(draws, wanted),
        "spread_over_error": spread_over_error(draws.transpose(0, 1), wanted),
    }
    if reader is not None and labels is not None:
        figures["accuracy_mean"] = reader.accuracy(mean, labels)
        figures["accuracy_sample"] = reader.accuracy(x.flatten(0, 1), labels.repeat_interleave(x.shape[1]))
    return {
        **figures,
        **answers.notes,
        "nfe": answers.nfe,
        "gradients": answers.gradients,
        "seconds": round(answers.seconds, 2),
    }


def baseline_figures(
    x: Tensor, truth: Tensor, measurement: Measurement, reader: DigitReader | None, labels: Tensor | None
) -> dict[str, float]:
    """Figures of one picture for each measurement, x (N, C, H, W)."""
    figures = {"psnr_db": psnr(x, truth), "residual_over_noise": residual(x[:, None], measurement)}
    if reader is not None and labels is not None:
        figures["accuracy"] = reader.accuracy(x, labels)
    return figures


def residual(x: Tensor, measurement: Measurement) -> float:
    """Root mean square of A x - y over the deviation of the noise, x (N, S, *event): 1 for the truth itself."""
    y = measurement.y.cpu().repeat_interleave(x.shape[1], 0)
    rest = Measurement(y, measurement.operator, measurement.noise_std).residual(x.flatten(0, 1))
    return float(rest.square().mean().sqrt()) / measurement.noise_std


def save_picture(
    path: Path,
    truth: Tensor,
    task: Task,
    y: Tensor,
    found: Mapping[MethodName, tuple[Answers, Mapping[str, float]]],
    scaling: Scaling,
) -> None:
    """A PNG with a panel for each method: truth, measurement, mean, deviation, samples.

    The deviation of what samples look like, clamped to [-1, 1], is drawn in grey on one scale for all methods, black
    for none; channels by their root mean square.
    """
    looks = {name: answers.x.clamp(-1, 1) for name, (answers, _) in found.items()}
    spreads = {name: x.var(1).mean(1, keepdim=True).sqrt() for name, x in looks.items()}
    white = max(float(spread.quantile(0.995)) for spread in spreads.values()) or 1.0
    zoom = max(1, -(-LEAST // truth.shape[-1]))
    heads = ["truth", "measured", "mean", "std"]
    sheets = []
    for name, (answers, _) in found.items():
        spread = (spreads[name] / white * 2 - 1).expand_as(truth)
        draws = answers.x[:, :DRAWS].unbind(1)
        columns = [part[:ROWS] for part in (truth, task.show(y), answers.x.mean(1), spread, *draws)]
        pixels = scaling.to_uint8(torch.stack(columns, 1).flatten(0, 1))
        sheets.append(tile(pixels, len(columns), zoom=zoom))
    heads += [str(k + 1) for k in range(len(draws))]
    height, width = sheets[0].shape[:2]
    beside = 1 if len(sheets) <= 3 else 2
    below = -(-len(sheets) // beside)
    size = ((width / 120 + 0.3) * beside, (height / 120 + 0.6) * below)
    figure, axes = new_figure(below, beside, size=1.0)
    figure.set_size_inches(*size)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, sheet, (name, (_, figures)) in zip(axes.flat, sheets, found.items(), strict=False):
        axis.set_axis_on()
        axis.imshow(sheet, interpolation="nearest")
        axis.set_xticks([(i + 0.5) * width / len(heads) for i in range(len(heads))], heads)
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        axis.set_yticks([])
        axis.set_frame_on(False)
        title = f"{task.name}, {name}: PSNR of the mean {figures['psnr_mean_db']:.1f} dB; std white at {white:.2g}"
        axis.set_title(title, fontsize=9)
    save_figure(path, figure)
