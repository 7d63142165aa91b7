"""What inverse.py measures of pictures: for each task the operator, how y is drawn, and simple answers.

    task = TASKS["hole"]((1, 8, 8), Settings())
    y = task.operator(x)

A task is added by naming it in :data:`TASKS`, as a function of a picture's shape and the settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde.inverse import (
    Blur,
    Downsample,
    Grayscale,
    LinearOperator,
    Mask,
    Matrix,
    PhaseRetrieval,
    gaussian_kernel,
)
from shared.measures import upsized

Event = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What tasks can be told; the flags of the script that measures."""

    noise: float = 0.05
    """Standard deviation of the measurements' noise, for pictures in [-1, 1]."""
    hole: float = 0.5
    """Side of the hole, as a share of the picture's sides."""
    kept: float = 0.25
    """Share of the pixels that task pixels keeps, and projections as a share of the picture's numbers."""
    blur: float | None = None
    """Standard deviation of the blur in pixels; 1, or a twentieth of the height where that is more, unless told."""
    seed: int = 0
    """Of the pixels and projections."""


@dataclass(frozen=True)
class Task:
    """A measurement of pictures (N, C, H, W) in [-1, 1].

    Attributes:
        name: the task's.
        operator: A.
        show: y (N, *measured) as pictures (N, C, H, W), to look at.
        baselines: simple answers to y, by name.
        hidden: (C, H, W) bool, the pixels that a mask leaves out; None where no pixel is measured itself.
    """

    name: str
    operator: LinearOperator | PhaseRetrieval
    show: Callable[[Tensor], Tensor]
    baselines: Callable[[Tensor], Mapping[str, Tensor]]
    hidden: Tensor | None = None


def inpainting(name: str, kept: Tensor, event: Event) -> Task:
    """The pixels where ``kept`` (H, W); the hole is drawn grey."""
    operator = Mask(kept, event)

    def filled(y: Tensor) -> Mapping[str, Tensor]:
        mean = y.reshape(len(y), event[0], -1).mean(2)[..., None, None]  # of each channel, row-major as y is
        return {"mean fill": torch.where(kept.to(y.device), operator.adjoint(y), mean)}

    return Task(name, operator, operator.adjoint, filled, ~kept.expand(event))


def hole(event: Event, settings: Settings) -> Task:
    """All but a square in the middle."""
    kept = torch.ones(event[1:], dtype=torch.bool)
    rows, columns = (max(1, round(settings.hole * n)) for n in event[1:])
    top, left = (event[1] - rows) // 2, (event[2] - columns) // 2
    kept[top : top + rows, left : left + columns] = False
    return inpainting("hole", kept, event)


def pixels(event: Event, settings: Settings) -> Task:
    """A random share of the pixels, the same ones of every picture and channel."""
    count = event[1] * event[2]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed))
    kept = torch.zeros(count, dtype=torch.bool)
    kept[order[: max(1, round(settings.kept * count))]] = True
    return inpainting("pixels", kept.reshape(event[1:]), event)


def superresolution(event: Event, settings: Settings, *, factor: int) -> Task:
    """Means of factor x factor pixels.

    Raises:
        ValueError: sides that the factor does not divide.
    """
    name = f"x{factor}"
    if event[1] % factor or event[2] % factor:
        raise ValueError(f"--tasks {name} needs sides that {factor} divides, and the prior's are {event}.")

    def enlarged(y: Tensor) -> Mapping[str, Tensor]:
        bilinear = F.interpolate(y, scale_factor=factor, mode="bilinear", align_corners=False)
        return {"nearest": upsized(y, factor), "bilinear": bilinear}

    return Task(name, Downsample(factor, event), lambda y: upsized(y, factor), enlarged)


def deblurring(event: Event, settings: Settings) -> Task:
    """A Gaussian blur with circular boundary."""
    sigma = max(1.0, event[1] / 20) if settings.blur is None else settings.blur
    side = min(event[1:])
    width = min(2 * round(3 * sigma) + 1, side if side % 2 else side - 1)
    operator = Blur(gaussian_kernel(width, sigma), event)

    def simple(y: Tensor) -> Mapping[str, Tensor]:
        return {"as measured": y, "ridge": ridge(operator, y, settings.noise, centre=True)}

    return Task("deblur", operator, lambda y: y, simple)


def colourisation(event: Event, settings: Settings) -> Task:
    """Luma alone.

    Raises:
        ValueError: pictures without colours.
    """
    if event[0] != 3:
        raise ValueError(f"--tasks colour needs pictures of three channels, and the prior's are {event}; leave it out.")
    return Task("colour", Grayscale(event), lambda y: y.expand(-1, 3, -1, -1), lambda y: {"grey": y.repeat(1, 3, 1, 1)})


def projections(event: Event, settings: Settings) -> Task:
    """Compressed sensing: random projections, as many as ``share`` of the picture's numbers; drawn as their ridge."""
    operator = Matrix.gaussian(max(1, round(settings.kept * math.prod(event))), event, settings.seed)

    def answer(y: Tensor) -> Tensor:
        return ridge(operator, y, settings.noise)

    return Task("projections", operator, answer, lambda y: {"ridge": answer(y)})


def phase(event: Event, settings: Settings) -> Task:
    """Moduli of the Fourier transform, drawn as their logarithm with the zero frequency in the middle."""

    def spectrum(y: Tensor) -> Tensor:
        log = y.abs().clamp(min=1e-3).log()
        shifted = F.interpolate(torch.fft.fftshift(log, dim=(-2, -1)), size=event[1:], mode="area")
        low, high = shifted.amin((1, 2, 3), keepdim=True), shifted.amax((1, 2, 3), keepdim=True)
        return (shifted - low) / (high - low).clamp(min=1e-12) * 2 - 1

    return Task("phase", PhaseRetrieval(event), spectrum, lambda y: {"grey": y.new_zeros(len(y), *event)})


def ridge(operator: LinearOperator, y: Tensor, noise: float, *, variance: float = 0.25, centre: bool = False) -> Tensor:
    """The mean given y for white pixels of that variance; ``centre``: around the mean of y, for an A that keeps it."""
    middle = y.flatten(1).mean(1)[:, None, None, None] if centre else 0
    return middle + variance * operator.adjoint(operator.solve(y - middle, variance, noise**2))


TASKS: Mapping[str, Callable[[Event, Settings], Task]] = {
    "hole": hole,
    "pixels": pixels,
    "x2": partial(superresolution, factor=2),
    "x4": partial(superresolution, factor=4),
    "deblur": deblurring,
    "colour": colourisation,
    "projections": projections,
    "phase": phase,
}
if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[tuple(TASKS)]
