"""The pictures of toy2d.py: points, score fields, densities and paths in the plane, in one figure and one animation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

import scoresde as ss
from scoresde.cli.pictures import figure_pixels, new_figure, save_figure, save_gif

NAMES = {"sde": "reverse SDE", "ode": "probability-flow ODE"}
LEARNED, EXACT = "tab:red", "0.25"


def draw_plane(
    path: Path,
    title: str,
    sde: ss.SDE,
    exact: ss.Score,
    learned: ss.Score,
    real: Tensor,
    paths: Mapping[str, Tensor],
    densities: Mapping[str, Tensor],
    errors: list[dict[str, float]],
    half: float,
) -> None:
    """One PNG: samples beside data, score fields at four noise levels, densities, paths.

    Args:
        path: the file.
        title: above it all.
        sde: the SDE.
        exact: the exact score.
        learned: the learned one.
        real: points of the data (N, 2).
        paths: states on the way from noise to samples (n, B, 2), by name.
        densities: p(x) at t_min on a square grid, by name; they share a colour scale.
        errors: rows with noise_level and relative_error.
        half: the square shown is [-half, half]².
    """
    figure, axes = new_figure(3, 4, size=3.1)
    _points(axes[0, 0], real, "data", half)
    for axis, (name, states) in zip(axes[0, 1:3], paths.items(), strict=True):
        _points(axis, states[-1], f"samples of the {NAMES[name]}", half)
    _errors(axes[0, 3], errors)
    rows = np.unique(np.linspace(0, len(errors) - 1, 4).round().astype(int))
    for axis, row in zip(axes[1], rows, strict=False):
        _field(axis, sde, exact, learned, errors[row], half)
    for axis in axes[1, len(rows) :]:
        axis.set_axis_off()
    top = max(float(value.quantile(0.999)) for value in densities.values())
    for axis, (name, value) in zip(axes[2, :2], densities.items(), strict=True):
        _square(axis, f"{name} density", half)
        axis.imshow(value.numpy(), origin="lower", extent=(-half, half, -half, half), vmin=0, vmax=top, cmap="viridis")
    for axis, (name, states) in zip(axes[2, 2:], paths.items(), strict=True):
        _paths(axis, states[:, :12], f"paths of the {NAMES[name]}", half)
    figure.suptitle(title)
    save_figure(path, figure)


def animate_paths(path: Path, paths: Mapping[str, Tensor], levels: Tensor, half: float, frames: int) -> None:
    """A GIF of points on their way, side by side, named by their noise level.

    Args:
        path: the file.
        paths: states (n, B, 2) of equal n, by name.
        levels: σ/α of each state, (n,).
        half: the square shown is [-half, half]².
        frames: how many states are shown, the last one included.
    """
    pictures = []
    for k in sorted(set(torch.linspace(len(levels) - 1, 0, frames).round().long().tolist())):
        figure, axes = new_figure(1, len(paths), size=3.0)
        for axis, (name, states) in zip(axes[0], paths.items(), strict=True):
            _points(axis, states[k, :1000], NAMES[name], half)
        figure.suptitle(f"σ/α = {levels[k]:.3g}", fontsize=9)
        pictures.append(figure_pixels(figure))
    save_gif(path, pictures)


def _square(axis: Axes, title: str, half: float) -> None:
    axis.set_title(title, fontsize=9)
    axis.set_xlim(-half, half)
    axis.set_ylim(-half, half)
    axis.set_aspect("equal")
    axis.set_xticks([])
    axis.set_yticks([])


def _points(axis: Axes, x: Tensor, title: str, half: float) -> None:
    _square(axis, title, half)
    axis.scatter(x[:2000, 0], x[:2000, 1], s=2, linewidths=0, color="tab:blue")


def _errors(axis: Axes, errors: list[dict[str, float]]) -> None:
    levels, values = ([row[name] for row in errors] for name in ("noise_level", "relative_error"))
    axis.loglog(levels, values, "o-", color=LEARNED, markersize=3)
    axis.set_title("relative error of the score", fontsize=9)
    axis.set_xlabel("noise level σ/α", fontsize=8)
    axis.tick_params(labelsize=7, which="both")
    axis.grid(alpha=0.3)


def _field(axis: Axes, sde: ss.SDE, exact: ss.Score, learned: ss.Score, row: dict[str, float], half: float) -> None:
    """Arrows of σ s(x, t) on a grid of x/α, exact under learned: equal ones hide each other."""
    t = torch.tensor(row["t"], dtype=torch.float64)
    alpha, sigma = sde.alpha(t).item(), sde.sigma(t).item()
    reach = half + sigma / alpha
    _square(axis, f"score, learned on exact, σ/α = {row['noise_level']:g}", reach)
    side = torch.linspace(-0.95 * reach, 0.95 * reach, 17)
    x = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).reshape(-1, 2)
    with torch.no_grad():
        fields = [(sigma * score(alpha * x, t)).numpy() for score in (exact, learned)]
    longest = np.linalg.norm(fields[0], axis=1).max()
    for arrows, color, width in zip(fields, (EXACT, LEARNED), (0.008, 0.004), strict=True):
        shown = arrows / np.sqrt(np.linalg.norm(arrows, axis=1, keepdims=True) * longest + 1e-12)
        axis.quiver(*x.T.numpy(), *shown.T, color=color, width=width, scale=17, angles="xy")


def _paths(axis: Axes, states: Tensor, title: str, half: float) -> None:
    _square(axis, title, half)
    for line in states.transpose(0, 1).numpy():
        axis.plot(*line.T, linewidth=0.5, alpha=0.8)
    axis.scatter(states[0, :, 0], states[0, :, 1], s=6, color="0.6", zorder=3)
    axis.scatter(states[-1, :, 0], states[-1, :, 1], s=6, color="black", zorder=3)
