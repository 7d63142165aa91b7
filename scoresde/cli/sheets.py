"""Sheets that compare: a row for each version of the same samples, a column for each sample, under heads of its own.

    draw_rows(path, [("original", x), ("as wished", y), ("difference", y - x)], heads=["3 → 8", "5 → 0"],
              scaling=scaling, title="counterfactuals")

Images are shown as they are, volumes by their middle slice, series as curves over their index, vectors as bars.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from scoresde.cli.pictures import grey, new_figure, save_figure, to_images
from scoresde.data import Scaling

SheetRow = tuple[str, Tensor]
"""A name, and samples (N, *event) in model units; those called difference, std, mask and map are maps."""

MAPS: dict[str, dict[str, Any]] = {
    "difference": {"cmap": "seismic", "vmin": -2, "vmax": 2},
    "std": {"cmap": "gray", "vmin": 0},
    "mask": {"cmap": "gray", "vmin": 0, "vmax": 1},
    "map": {"cmap": "gray", "vmin": 0},
}
"""How rows are drawn that are no samples."""
COLUMNS = 10
"""Samples shown."""


def draw_rows(
    path: Path, rows: Sequence[SheetRow], heads: Sequence[str], scaling: Scaling, title: str, *, size: float = 0.8
) -> None:
    """A PNG with a row for each of ``rows``, the first samples in columns under their heads.

    Args:
        path: the file.
        rows: each with as many samples, of the shape of the data or, for measurements, of another.
        heads: for each sample what it is, such as its own label.
        scaling: to the data's own units, in which values of series and vectors are drawn.
        title: above it all.
        size: inches of a picture; curves are twice as wide.
    """
    count = min(COLUMNS, len(heads))
    flat = all(samples.ndim < 4 for _, samples in rows)
    figure, axes = new_figure(len(rows), count, size=1.2 if flat else size, width=1.8 if flat else size)
    for number, (line, (name, samples)) in enumerate(zip(axes, rows, strict=True)):
        shown = samples[:count].cpu()
        if shown.ndim == 5:
            shown = shown[:, :, shown.shape[2] // 2]
        for i, axis in enumerate(line):
            axis.tick_params(labelsize=5)
            if shown.ndim == 4:
                axis.set_xticks([])
                axis.set_yticks([])
                if name in MAPS:
                    axis.imshow(shown[i].mean(0).numpy(), interpolation="nearest", **MAPS[name])
                else:
                    axis.imshow(to_images(grey(shown[i : i + 1], scaling))[0], interpolation="nearest")
            else:
                values = _in_units(shown[i], scaling)
                if name in MAPS:  # no samples but lengths: without the shift, and a mask as it is
                    values = shown[i] if name == "mask" else values - _in_units(shown[i] * 0, scaling)
                if values.ndim == 1:
                    axis.bar(range(len(values)), values.numpy())
                else:
                    dots = "." if bool(values.isnan().any()) else ""  # between gaps there may be one value alone
                    axis.plot(values.T.numpy(), linewidth=0.8, marker=dots, markersize=3)
                    axis.set_xlim(-0.5, values.shape[-1] - 0.5)
                if number == len(rows) - 1:
                    axis.set_xlabel("index", fontsize=6)
        line[0].set_ylabel(name, fontsize=6, rotation=0, ha="right", va="center")
    for axis, head in zip(axes[0], heads[:count], strict=True):
        axis.set_title(head, fontsize=7)
    figure.suptitle(title, fontsize=9)
    save_figure(path, figure)


def _in_units(x: Tensor, scaling: Scaling) -> Tensor:
    """In those of the data; a measurement of another shape may have none and stays as it is."""
    try:
        return scaling.to_data(x)
    except ValueError:
        return x
