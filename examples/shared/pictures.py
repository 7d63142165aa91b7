"""Pictures that the scripts draw: grids, loss curves, samples, animations. Each file is written whole or not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

matplotlib.use("Agg")  # no display is needed, or used where there is one

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

import scoresde as ss
from scoresde.data import Scaling
from scoresde.files import replacing


def to_images(pixels: Tensor) -> np.ndarray[Any, Any]:
    """uint8 (N, C, H, W) to (N, H, W, 3): the first three channels as colours, or the first one as grey."""
    images = pixels.cpu().permute(0, 2, 3, 1).numpy()
    return images[..., :3] if images.shape[3] >= 3 else np.repeat(images[..., :1], 3, axis=3)


def tile(pixels: Tensor, columns: int, *, gap: int = 1, zoom: int = 1) -> np.ndarray[Any, Any]:
    """uint8 (N, C, H, W) as one picture (H', W', 3), row by row, on a dark grey ground."""
    images = to_images(pixels).repeat(zoom, axis=1).repeat(zoom, axis=2)
    n, height, width, _ = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 40, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def save_grid(path: Path, pixels: Tensor, heads: Sequence[str], title: str) -> None:
    """A PNG of uint8 (N, C, H, W), one column for each of ``heads``."""
    columns = len(heads)
    sheet = tile(pixels, columns, zoom=max(1, 48 // pixels.shape[-1]))
    figure, axes = plt.subplots(figsize=(sheet.shape[1] / 100, sheet.shape[0] / 100 + 0.7))
    axes.imshow(sheet, interpolation="nearest")
    width = sheet.shape[1] / columns
    axes.set_xticks([(i + 0.5) * width for i in range(columns)], heads)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.set_frame_on(False)
    axes.set_title(title, fontsize=9)
    save_figure(path, figure)


def save_losses(path: Path, log: Path) -> None:
    """A PNG of the losses in a run's log.jsonl."""
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    figure, axes = plt.subplots(figsize=(6, 3.5))
    axes.plot(*([line[name] for line in lines] for name in ("step", "loss")), linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("denoising score matching loss")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    save_figure(path, figure)


def new_figure(rows: int, columns: int, *, size: float) -> tuple[Figure, np.ndarray[Any, Any]]:
    """A figure of rows x columns axes, each ``size`` inches wide and high; the axes are an array of that shape."""
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, size * rows + 0.3), squeeze=False)
    return figure, axes


def save_figure(path: Path, figure: Figure) -> None:
    """Write a matplotlib figure as PNG, and close it."""
    figure.tight_layout()
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
    plt.close(figure)


def figure_pixels(figure: Figure) -> np.ndarray[Any, Any]:
    """A drawn figure as (H, W, 3) uint8, for an animation; closes it."""
    canvas: Any = figure.canvas
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    return pixels


def save_gif(path: Path, frames: Sequence[np.ndarray[Any, Any]], *, milliseconds: int = 60, hold: int = 1500) -> None:
    """An endless GIF of (H, W, 3) uint8 frames; the last one stays for ``hold`` milliseconds."""
    pictures = [Image.fromarray(frame).convert("P", palette=Image.Palette.ADAPTIVE, colors=64) for frame in frames]
    durations = [milliseconds] * (len(pictures) - 1) + [hold]
    with replacing(path) as partial:
        pictures[0].save(
            partial, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True
        )


def visible(sde: ss.SDE, solution: ss.Solution, spread: float) -> Tensor:
    """The trajectory (n + 1, B, *event) at the spread of the data, whatever the SDE's own scale, and then its end."""
    assert solution.trajectory is not None
    path = solution.trajectory
    scale = (sde.alpha(solution.grid) ** 2 * spread**2 + sde.sigma(solution.grid) ** 2).sqrt() / spread
    return torch.cat([path / scale.to(path).reshape(-1, *[1] * (path.ndim - 1)), solution.x[None]])


def by_class(x: Tensor, labels: Tensor, classes: int, rows: int) -> Tensor:
    """The first ``rows`` samples of each class, arranged so that each class is a column."""
    columns = [x[labels == k][:rows] for k in range(classes)]
    return torch.stack(columns, dim=1).flatten(0, 1)


def draw_samples(path: Path, x: Tensor, scaling: Scaling, heads: Sequence[str], title: str) -> None:
    """A PNG of samples in model units, of any rank.

    Args:
        path: the file.
        x: (N, *event). Images are shown as they are, volumes by their middle slice, signals as curves, vectors as
            points of their first two numbers (a histogram where there is one).
        scaling: to the data's own units.
        heads: names of classes that the samples take in turn; without names there are none.
        title: above it all.
    """
    if x.ndim == 5:
        x = x[:, :, x.shape[2] // 2]
    if x.ndim == 4:
        save_grid(path, _pixels(x, scaling), _columns(heads, 8)[: len(x)], title)
        return
    data = scaling.to_data(x)
    if x.ndim == 3:
        names = _columns(heads, 4)[: len(x)]
        figure, axes = new_figure(-(-len(x) // len(names)), len(names), size=1.6)
        for i, axis in enumerate(axes.flat):
            axis.set_axis_off()
            if i < len(data):
                axis.plot(data[i].T.numpy(), linewidth=0.8)
                axis.set_ylim(float(data.min()), float(data.max()))
            if i < len(names):
                axis.set_title(names[i], fontsize=8)
    else:
        figure, axes = new_figure(1, 1, size=5)
        for k, name in enumerate((heads or [""])[: len(data)]):
            part = data[k :: len(heads) or 1]
            if part.shape[1] == 1:
                axes[0, 0].hist(part[:, 0].numpy(), bins=30, alpha=0.6, label=name)
            else:
                axes[0, 0].scatter(part[:, 0], part[:, 1], s=4, label=name)
        if heads:
            axes[0, 0].legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    save_figure(path, figure)


def _columns(heads: Sequence[str], least: int) -> list[str]:
    """Names of about ``least`` columns or more: few classes take several columns each."""
    return list(heads or [""]) * max(1, least // max(1, len(heads)))


def _pixels(x: Tensor, scaling: Scaling) -> Tensor:
    """uint8: the data's own black and white, or where they have none the range of all but the extreme hundredths."""
    if scaling.levels is not None:
        return scaling.to_uint8(x)
    low, high = np.quantile(x.numpy(), [0.01, 0.99])
    grey: Tensor = (x - float(low)) / max(float(high - low), 1e-12) * 255
    return grey.round().clamp(0, 255).to(torch.uint8)
