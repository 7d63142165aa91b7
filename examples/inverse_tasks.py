"""What inverse.py measures of pictures: for each task the operator, how y is drawn, and simple answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from image_tasks import upsized
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

TaskName = Literal["hole", "pixels", "x2", "x4", "deblur", "colour", "projections", "phase"]
Event = tuple[int, int, int]


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

    name: TaskName
    operator: LinearOperator | PhaseRetrieval
    show: Callable[[Tensor], Tensor]
    baselines: Callable[[Tensor], Mapping[str, Tensor]]
    hidden: Tensor | None = None


def inpainting(name: TaskName, kept: Tensor, event: Event) -> Task:
    """The pixels where ``kept`` (H, W); the hole is drawn grey."""
    operator = Mask(kept, event)

    def filled(y: Tensor) -> Mapping[str, Tensor]:
        mean = y.reshape(len(y), event[0], -1).mean(2)[..., None, None]  # of each channel, row-major as y is
        return {"mean fill": torch.where(kept.to(y.device), operator.adjoint(y), mean)}

    return Task(name, operator, operator.adjoint, filled, ~kept.expand(event))


def hole(event: Event, side: float) -> Task:
    """All but a square in the middle, ``side`` of the picture's sides."""
    kept = torch.ones(event[1:], dtype=torch.bool)
    rows, columns = (max(1, round(side * n)) for n in event[1:])
    top, left = (event[1] - rows) // 2, (event[2] - columns) // 2
    kept[top : top + rows, left : left + columns] = False
    return inpainting("hole", kept, event)


def pixels(event: Event, share: float, seed: int) -> Task:
    """A random share of the pixels, the same ones of every picture and channel."""
    count = event[1] * event[2]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    kept = torch.zeros(count, dtype=torch.bool)
    kept[order[: max(1, round(share * count))]] = True
    return inpainting("pixels", kept.reshape(event[1:]), event)


def superresolution(name: TaskName, event: Event, factor: int) -> Task:
    """Means of factor x factor pixels."""

    def enlarged(y: Tensor) -> Mapping[str, Tensor]:
        bilinear = F.interpolate(y, scale_factor=factor, mode="bilinear", align_corners=False)
        return {"nearest": upsized(y, factor), "bilinear": bilinear}

    return Task(name, Downsample(factor, event), lambda y: upsized(y, factor), enlarged)


def deblurring(event: Event, sigma: float, noise: float) -> Task:
    """A Gaussian blur with circular boundary."""
    side = min(event[1:])
    width = min(2 * round(3 * sigma) + 1, side if side % 2 else side - 1)
    operator = Blur(gaussian_kernel(width, sigma), event)
    return Task(
        "deblur", operator, lambda y: y, lambda y: {"as measured": y, "ridge": ridge(operator, y, noise, centre=True)}
    )


def colourisation(event: Event) -> Task:
    """Luma alone."""
    return Task("colour", Grayscale(event), lambda y: y.expand(-1, 3, -1, -1), lambda y: {"grey": y.repeat(1, 3, 1, 1)})


def projections(event: Event, share: float, noise: float, seed: int) -> Task:
    """Compressed sensing: random projections, as many as ``share`` of the picture's numbers; drawn as their ridge."""
    operator = Matrix.gaussian(max(1, round(share * event[0] * event[1] * event[2])), event, seed)
    return Task(
        "projections",
        operator,
        lambda y: ridge(operator, y, noise),
        lambda y: {"ridge": ridge(operator, y, noise)},
    )


def phase(event: Event) -> Task:
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


def build(
    name: TaskName, event: Event, *, side: float, kept: float, blur: float | None, noise: float, seed: int
) -> Task:
    """One task for pictures of this shape.

    Args:
        name: which.
        event: (C, H, W).
        side: of the hole, as a share of the picture's.
        kept: share of pixels, and number of projections as a share of the picture's.
        blur: deviation of the blur in pixels; None: 1, or a twentieth of the picture's height where that is more.
        noise: deviation of the measurement's noise.
        seed: of which pixels and projections.

    Raises:
        ValueError: pictures that have no such task.
    """
    if name == "colour" and event[0] != 3:
        raise ValueError(f"--tasks colour needs pictures of three channels, and the prior's are {event}; leave it out.")
    factor = {"x2": 2, "x4": 4}.get(name)
    if factor is not None:
        if event[1] % factor or event[2] % factor:
            raise ValueError(f"--tasks {name} needs sides that {factor} divides, and the prior's are {event}.")
        return superresolution(name, event, factor)
    every: dict[str, Callable[[], Task]] = {
        "hole": lambda: hole(event, side),
        "pixels": lambda: pixels(event, kept, seed),
        "deblur": lambda: deblurring(event, max(1.0, event[1] / 20) if blur is None else blur, noise),
        "colour": lambda: colourisation(event),
        "projections": lambda: projections(event, kept, noise, seed),
        "phase": lambda: phase(event),
    }
    return every[name]()
