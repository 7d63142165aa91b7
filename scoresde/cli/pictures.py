"""Pictures of samples: images in grids, volumes by slices, series as curves, vectors as pair plots; with labelled axes.

    draw_samples(Path("samples.png"), x, scaling, heads=["cat", "dog"], title="step 1000")
    figure, axes = new_figure(2, 3, size=1.6)

Each file is written whole or not. matplotlib is imported when something is drawn, and draws without a display; no
global state of it is used.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import scoresde as ss
from scoresde.data import Scaling
from scoresde.extras import needs
from scoresde.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = np.ndarray[Any, Any]

MOST_PAIRS = 5
"""Of vectors so many numbers at most are drawn against each other."""
SLICES = 5
"""And of a volume so many slices."""
NEAREST = 6
"""Samples of a row of slices, or of a sheet of curves."""


def to_images(pixels: Tensor) -> Pixels:
    """uint8 (N, C, H, W) to (N, H, W, 3): the first three channels as colours, or the first one as grey."""
    images = pixels.cpu().permute(0, 2, 3, 1).numpy()
    return images[..., :3] if images.shape[3] >= 3 else np.repeat(images[..., :1], 3, axis=3)


def tile(pixels: Tensor, columns: int, *, gap: int = 1, zoom: int = 1) -> Pixels:
    """uint8 (N, C, H, W) as one picture (H', W', 3), row by row, on a dark grey ground."""
    images = to_images(pixels).repeat(zoom, axis=1).repeat(zoom, axis=2)
    n, height, width, _ = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 40, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def new_figure(rows: int, columns: int, *, size: float, width: float | None = None) -> tuple[Figure, Pixels]:
    """A figure of rows x columns axes, each ``size`` inches high and ``width`` wide (as high unless given).

    The axes are an array of that shape.

    Raises:
        ModuleNotFoundError: matplotlib is missing; the message names the extra that brings it.
    """
    with needs("cli"):
        from matplotlib.figure import Figure as New
    figure = New(figsize=((width or size) * columns, size * rows + 0.3))
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG."""
    figure.tight_layout()
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120, bbox_inches="tight", pad_inches=0.08)


def figure_pixels(figure: Figure) -> Pixels:
    """A drawn figure as (H, W, 3) uint8, for an animation."""
    with needs("cli"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_gif(path: Path, frames: Sequence[Pixels], *, milliseconds: int = 60, hold: int = 1500) -> None:
    """An endless GIF of (H, W, 3) uint8 frames; the last one stays for ``hold`` milliseconds."""
    with needs("cli"):
        from PIL import Image
    pictures = [Image.fromarray(frame).convert("P", palette=Image.Palette.ADAPTIVE, colors=64) for frame in frames]
    durations = [milliseconds] * (len(pictures) - 1) + [hold]
    with replacing(path) as partial:
        pictures[0].save(
            partial, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True
        )


def save_grid(path: Path, pixels: Tensor, heads: Sequence[str], title: str) -> None:
    """A PNG of uint8 (N, C, H, W), one column for each of ``heads``, which lean where they are wider than columns."""
    columns = len(heads)
    sheet = tile(pixels, columns, zoom=max(1, 48 // pixels.shape[-1]))
    figure, axes = new_figure(1, 1, size=sheet.shape[0] / 100 + 0.4, width=sheet.shape[1] / 100)
    axis = axes[0, 0]
    axis.imshow(sheet, interpolation="nearest")
    width = sheet.shape[1] / columns
    axis.set_xticks([(i + 0.5) * width for i in range(columns)], heads)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.set_yticks([])
    axis.set_frame_on(False)
    axis.set_title(title, fontsize=9)
    _keep_apart(figure, axis.get_xticklabels())
    save_figure(path, figure)


def _keep_apart(figure: Figure, labels: Sequence[Any]) -> None:
    """Turn labels in a line by 45 degrees if one of them reaches into the next."""
    figure.tight_layout()
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    if any(right.x0 <= left.x1 for left, right in itertools.pairwise(boxes)):
        for label in labels:
            label.set(rotation=45, ha="left", rotation_mode="anchor", fontsize=8)


def save_losses(path: Path, log: Path) -> None:
    """A PNG of the losses in a run's log.jsonl."""
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    figure, axes = new_figure(1, 1, size=3.5, width=6)
    axis = axes[0, 0]
    axis.plot(*([line[name] for line in lines] for name in ("step", "loss")), linewidth=1)
    axis.set_xlabel("step")
    axis.set_ylabel("denoising score matching loss")
    axis.set_yscale("log")
    axis.grid(alpha=0.3)
    save_figure(path, figure)


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


def draw_samples(
    path: Path, x: Tensor, scaling: Scaling, heads: Sequence[str], title: str, data: Tensor | None = None
) -> None:
    """A PNG of samples in model units, of any rank.

    Images are shown as they are, volumes by slices with their number, series as curves of values over their index,
    vectors as pair plots (a histogram where there is one number), beside those of the data where they are given.

    Args:
        path: the file.
        x: (N, *event).
        scaling: to the data's own units.
        heads: names of classes that the samples take in turn; without names there are none.
        title: above it all.
        data: (M, *event) real samples in model units, to be drawn beside vectors.
    """
    if x.ndim == 5:
        _draw_volumes(path, x, scaling, heads, title)
    elif x.ndim == 4:
        save_grid(path, grey(x, scaling), _columns(heads, 8)[: len(x)], title)
    elif x.ndim == 3:
        _draw_series(path, scaling.to_data(x), heads, title)
    else:
        real = None if data is None else scaling.to_data(data)
        draw_pairs(path, scaling.to_data(x), title, heads=heads, real=real)


def _columns(heads: Sequence[str], least: int) -> list[str]:
    """Names of about ``least`` columns or more: few classes take several columns each."""
    return list(heads or [""]) * max(1, least // max(1, len(heads)))


def grey(x: Tensor, scaling: Scaling) -> Tensor:
    """uint8: the data's own black and white, or where they have none the range of all but the extreme hundredths."""
    if scaling.levels is not None:
        return scaling.to_uint8(x)
    low, high = np.quantile(x.numpy(), [0.01, 0.99])
    shade: Tensor = (x - float(low)) / max(float(high - low), 1e-12) * 255
    return shade.round().clamp(0, 255).to(torch.uint8)


def _draw_volumes(path: Path, x: Tensor, scaling: Scaling, heads: Sequence[str], title: str) -> None:
    """A row for each of the first samples: slices along the first axis, from end to end, with their number."""
    shown, depth = grey(x[:NEAREST], scaling), x.shape[2]
    places = sorted({round(i * (depth - 1) / max(1, SLICES - 1)) for i in range(SLICES)})
    figure, axes = new_figure(len(shown), len(places), size=1.5)
    for i, line in enumerate(axes):
        for axis, place in zip(line, places, strict=True):
            axis.imshow(to_images(shown[i : i + 1, :, place])[0], interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if i == 0:
                axis.set_title(f"slice {place} of 0-{depth - 1}", fontsize=7)
        line[0].set_ylabel(heads[i % len(heads)] if heads else f"sample {i}", fontsize=8)
    figure.suptitle(title, fontsize=9)
    save_figure(path, figure)


def _draw_series(path: Path, values: Tensor, heads: Sequence[str], title: str) -> None:
    """Curves (N, C, L), one sheet for all: every sample has axes of its own with the same ends."""
    names = _columns(heads, 4)[: len(values)]
    rows = -(-len(values) // len(names))
    figure, axes = new_figure(rows, len(names), size=1.5, width=2.0)
    low, high = float(values.min()), float(values.max())
    for i, axis in enumerate(axes.flat):
        if i >= len(values):
            axis.set_axis_off()
            continue
        for channel, curve in enumerate(values[i].numpy()):
            axis.plot(curve, linewidth=0.8, label=f"channel {channel}" if values.shape[1] > 1 else None)
        axis.set_ylim(low, high if high > low else low + 1)
        axis.tick_params(labelsize=6, labelbottom=i // len(names) == rows - 1, labelleft=i % len(names) == 0)
        if i // len(names) == rows - 1:
            axis.set_xlabel("index", fontsize=7)
        if i % len(names) == 0:
            axis.set_ylabel("value", fontsize=7)
        if i < len(names) and names[i]:
            axis.set_title(names[i], fontsize=8)
    if values.shape[1] > 1:
        axes.flat[0].legend(fontsize=5)
    figure.suptitle(title, fontsize=9)
    save_figure(path, figure)


def draw_pairs(
    path: Path,
    x: Tensor,
    title: str,
    *,
    heads: Sequence[str] = (),
    real: Tensor | None = None,
    ground: str = "data",
    names: Sequence[str] = (),
    marked: Tensor | None = None,
) -> None:
    """A PNG of vectors (N, d): below the diagonal each two numbers, on it histograms of one; of the first numbers.

    Args:
        path: the file.
        x: samples (N, d), in the units that the axes show.
        title: above it all.
        heads: names of classes that the samples take in turn.
        real: (M, d), drawn in grey below them.
        ground: what these are called.
        names: of the numbers; by default x0, x1, ....
        marked: (d,), one point that is marked, such as the truth.
    """
    count = min(MOST_PAIRS, x.shape[1])
    labels = list(names[:count]) or [f"x{i}" for i in range(count)]
    figure, axes = new_figure(count, count, size=4.0 if count == 1 else max(1.6, 6.0 / count))
    groups = [(name, x[k :: len(heads) or 1].numpy()) for k, name in enumerate((heads or ["samples"])[: len(x)])]
    grounds = [] if real is None else [(ground, real.numpy())]
    everyone = np.concatenate([some for _, some in [*grounds, *groups]])
    for row in range(count):
        edges = _bins(everyone[:, row], min(len(some) for _, some in groups))
        for column in range(count):
            axis = axes[row, column]
            axis.tick_params(labelsize=6)
            if column > row:
                axis.set_axis_off()
                continue
            for k, (name, some) in enumerate([*grounds, *groups]):
                behind = k < len(grounds)
                style = {"color": "0.7"} if behind else {"color": f"C{(k - len(grounds)) % 10}"}
                if row == column:
                    kind = "stepfilled" if behind or len(groups) == 1 else "step"
                    axis.hist(some[:, row], bins=edges, density=True, alpha=0.6, label=name, histtype=kind, **style)
                else:
                    axis.scatter(some[:, column], some[:, row], s=3, alpha=0.6, linewidths=0, **style)
            if marked is not None:
                axis.axvline(float(marked[column]), color="k", linewidth=0.8)
                if row != column:
                    axis.axhline(float(marked[row]), color="k", linewidth=0.8)
            if row == count - 1:
                axis.set_xlabel(labels[column], fontsize=8)
            if column == 0:
                axis.set_ylabel("density" if row == 0 else labels[row], fontsize=8)
    if len(groups) + len(grounds) > 1:
        axes[0, -1].legend(*axes[0, 0].get_legend_handles_labels(), fontsize=7)  # empty, where there are several
    rest = f" (the first {count} of {x.shape[1]} numbers)" if x.shape[1] > count else ""
    figure.suptitle(f"{title}{rest}", fontsize=9)
    save_figure(path, figure)


def _bins(values: Pixels, least: int) -> Pixels:
    """Edges of bins that all groups share, about the root of the least number of samples in one of them, 8 to 40."""
    edges: Pixels = np.histogram_bin_edges(values, bins=int(np.clip(math.sqrt(least) * 1.5, 8, 40)))
    return edges
