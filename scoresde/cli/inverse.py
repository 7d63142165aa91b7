"""What samples may have been, given measurements of them: a hole filled, a blur undone, a series from a few values.

    scoresde inverse --checkpoint runs/my-images --measured y.npy --operator mask --mask mask.npy --noise 5
    scoresde inverse --checkpoint runs/my-images --data held-out --operator downsample --factor 4 --noise 5
    scoresde inverse --checkpoint runs/signals --measured y.npy --operator matrix --matrix a.npy --noise 0.1

    mask        some of the numbers: those where --mask is true, all but a --hole in the middle, or a --kept share
    downsample  means over --factor numbers along each axis but the channels
    blur        a Gaussian blur of --blur pixels, circular at the edges
    grey        the luma of colour pictures
    matrix      any linear map: --matrix (M, D) of the D numbers of a sample

Measurements come from a file, or are made from samples of your own, --data, which are then the truth that answers are
compared with. Everything is in the units of the data. Written: samples.npy (measurements, samples, ...), mean.npy,
std.npy, measured.npy, inverse.png, report.json, config.yaml. :func:`main` takes the flags as an :class:`InverseConfig`.
"""

from __future__ import annotations

import inspect
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scoresde.cli.conditions import read_numbers
from scoresde.cli.config import remember
from scoresde.cli.costs import expect
from scoresde.cli.flags import CheckpointFlags, ReaderFlags, at_least
from scoresde.cli.outputs import save_array, say, told
from scoresde.cli.posteriors import PARTICLES, WITH_GRADIENTS, MethodName, PriorModel, answer
from scoresde.cli.sheets import SheetRow, draw_rows
from scoresde.cli.trained import Trained, trained_of
from scoresde.data import Scaling, reader_of
from scoresde.files import make_writable, write_json
from scoresde.inverse import (
    Blur,
    Downsample,
    Grayscale,
    LinearOperator,
    Mask,
    Matrix,
    Measurement,
    gaussian_kernel,
)
from scoresde.metrics import coverage

DRAWS = 3
"""Samples of each answer on the picture."""


@dataclass(frozen=True, kw_only=True)
class InverseConfig(CheckpointFlags, ReaderFlags):
    """Sample what may have been measured: samples, mean, deviation, a picture."""

    measured: Path | None = None
    """Measurements in the units of the data, an .npy file: one, or (N, ...)."""
    data: Path | None = None
    """Or samples that are measured here, with noise: a file or folder as for training."""
    operator: Literal["mask", "downsample", "blur", "grey", "matrix"] = "mask"
    """What is measured."""
    mask: Path | None = None
    """Of operator mask: an .npy file that is true, or 1, where numbers are measured; of a sample or of one channel."""
    hole: float | None = None
    """Of operator mask: in its place the side of a hole in the middle, as a share of the sides."""
    kept: float | None = None
    """Of operator mask: in its place the share of numbers that is measured, at random."""
    factor: int = 2
    """Of operator downsample."""
    blur: float = 1.0
    """Of operator blur: its deviation in pixels."""
    matrix: Path | None = None
    """Of operator matrix: an .npy file (M, D)."""
    noise: float = 0.0
    """Standard deviation of the measurements' noise, in the units of the data; above 0."""
    method: MethodName = "pigdm"
    """How it is answered (docs/inverse.md compares them)."""
    samples: int = 32
    """Samples of each posterior."""
    particles: int = 64
    """Particles for each measurement, of method particles."""
    steps: int = 50
    """Steps of a sample."""
    dps_scale: float = 1.0
    """Length of each step of dps along its gradient."""
    sigma_data: float | None = None
    """Standard deviation of the data that pigdm takes in every direction, in model units; the model's own unless
    told."""
    count: int = 10
    """Measurements at most, the first ones."""
    batch_size: int = 256
    """Samples at once."""
    out: Path | None = None
    """Folder for what is written; default inverse in the run's folder."""
    seed: int = 0
    """Of all noise."""

    def check(self) -> None:
        at_least(self, samples=2, particles=2, steps=1, factor=2, count=1, batch_size=1)
        if (self.measured is None) == (self.data is None):
            raise ValueError("give --measured, a file of measurements, or --data, samples to measure; and not both.")
        if not (math.isfinite(self.noise) and self.noise > 0):
            raise ValueError(
                f"--noise is the standard deviation of the measurements' noise and above 0, got {self.noise}; for "
                "exact numbers give a hundredth of their spread."
            )
        if not (math.isfinite(self.blur) and self.blur > 0):
            raise ValueError(f"--blur must be positive and finite, got {self.blur}.")
        masks = [name for name in ("mask", "hole", "kept") if getattr(self, name) is not None]
        if self.operator == "mask" and len(masks) != 1:
            raise ValueError("--operator mask needs one of --mask FILE, --hole SHARE and --kept SHARE.")
        if self.operator != "mask" and masks:
            raise ValueError(f"--{masks[0]} is of --operator mask, and this is {self.operator}.")
        for name in ("hole", "kept"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"--{name} is a share above 0 and below 1, got {value}.")
        if (self.operator == "matrix") != (self.matrix is not None):
            raise ValueError("--operator matrix and --matrix FILE go together.")
        if self.method == PARTICLES and self.particles < self.samples:
            raise ValueError(f"--particles {self.particles} are fewer than --samples {self.samples}; take more.")


def operator_of(config: InverseConfig, event: tuple[int, ...]) -> LinearOperator:
    """A, for samples of this shape.

    Raises:
        FileNotFoundError, TypeError, ValueError: it does not fit them.
    """
    if config.operator == "mask":
        return Mask(mask_of(config, event), event)
    if config.operator == "downsample":
        return Downsample((config.factor,) * max(1, len(event) - 1), event)
    if config.operator == "blur":
        side = min(event[1:]) if len(event) > 1 else 0
        width = min(2 * round(3 * config.blur) + 1, side if side % 2 else side - 1)
        if len(event) != 3 or width < 1:
            raise ValueError(f"--operator blur is for images (C, H, W), and samples here are {event}.")
        return Blur(gaussian_kernel(width, config.blur), event)
    if config.operator == "grey":
        if event[0] != 3:
            raise ValueError(f"--operator grey is for samples of three channels, and samples here are {event}.")
        return Grayscale(event)
    assert config.matrix is not None
    return Matrix(read_numbers(config.matrix, "--matrix").float(), event)


def mask_of(config: InverseConfig, event: tuple[int, ...]) -> Tensor:
    """Where numbers are measured, bool; the same in all channels unless the file says otherwise."""
    space = event[1:] if len(event) > 1 else event
    if config.mask is not None:
        values = read_numbers(config.mask, "--mask")
        if not bool(((values == 0) | (values == 1)).all()):
            raise ValueError(f"--mask {config.mask} must hold 0 and 1, where numbers are measured.")
        if tuple(values.shape) not in (event, space):
            raise ValueError(f"--mask {config.mask} has shape {tuple(values.shape)}; expected {event} or {space}.")
        kept = values.bool()
    elif config.hole is not None:
        kept = torch.ones(space, dtype=torch.bool)
        sizes = [max(1, round(config.hole * n)) for n in space]
        kept[tuple(slice((n - size) // 2, (n - size) // 2 + size) for n, size in zip(space, sizes, strict=True))] = (
            False
        )
    else:
        assert config.kept is not None
        count = math.prod(space)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))
        kept = torch.zeros(count, dtype=torch.bool)
        kept[order[: max(1, round(config.kept * count))]] = True
        kept = kept.reshape(space)
    if not bool(kept.any()):
        raise ValueError("the mask leaves nothing that is measured.")
    return kept if kept.ndim == len(event) else kept.expand(event)


def one_scale(scaling: Scaling) -> float:
    """The scale of all numbers of a sample.

    Raises:
        ValueError: several: the noise of a measurement would be another for each number.
    """
    if isinstance(scaling.scale, Tensor):
        values = scaling.scale.flatten()
        if bool((values != values[0]).any()):
            raise ValueError(
                "the model's numbers have scales of their own, and the methods here take one noise for all: train with "
                "--scaling tensor, or write the measurement in model units in Python (scoresde.inverse)."
            )
        return float(values[0])
    return float(scaling.scale)


def measurement_of(
    config: InverseConfig, trained: Trained, operator: LinearOperator
) -> tuple[Measurement, Tensor | None]:
    """The measurements in model units, one for each row, and the truth where there is one.

    Raises:
        FileNotFoundError, TypeError, ValueError: files that do not fit the model.
    """
    scale = one_scale(trained.scaling)
    noise = config.noise / scale
    if config.data is not None:
        options: dict[str, Any] = {}
        if "scaling" in inspect.signature(reader_of(config.data)).parameters:
            options["scaling"] = trained.scaling
        dataset = config.read(config.data, **options)
        if dataset.event_shape != trained.event or dataset.scaling != trained.scaling:
            raise ValueError(
                f"--data {config.data} holds {dataset.event_shape} read as {dataset.scaling}, and the model knows "
                f"{trained.event} read as {trained.scaling}."
            )
        truth = dataset.subset(slice(0, config.count))[:]["x"]
        return Measurement.simulate(truth.to(trained.device), operator, noise, config.seed), truth
    assert config.measured is not None
    y = read_numbers(config.measured, "--measured").double()
    shape = operator.measured
    if tuple(y.shape) == shape:
        y = y[None]
    if tuple(y.shape) == (len(y), *trained.event) and config.operator == "mask":
        y = operator(y.float()).double()  # whole samples, of which the mask says what counts
    if tuple(y.shape[1:]) != shape or not len(y):
        whole = f", or whole samples {trained.event} of which the mask takes some" if config.operator == "mask" else ""
        raise ValueError(
            f"--measured {config.measured} has shape {tuple(y.shape)}; this operator measures {shape} of a sample"
            f"{whole}: expected that, or rows of it."
        )
    # y = A(scale x + shift) + noise, so that (y - A(shift))/scale = A x + noise/scale
    shift = operator(torch.as_tensor(trained.scaling.shift, dtype=torch.float32).expand(1, *trained.event))
    return Measurement(((y[: config.count] - shift) / scale).float().to(trained.device), operator, noise), None


def main(config: InverseConfig) -> dict[str, Any]:
    """Measure or read, answer, write; returns what report.json holds."""
    start = time.perf_counter()
    config.ready()
    trained = trained_of(config)
    if trained.conditions:
        raise ValueError(
            f"the model in {trained.path} takes {', '.join(trained.conditions)}: for p(theta | x) of such a model use "
            "`scoresde sample --condition`, or `scoresde posterior`."
        )
    operator = operator_of(config, trained.event)
    measurement, truth = measurement_of(config, trained, operator)
    out = make_writable(trained.home / "inverse" if config.out is None else config.out)
    remember(config, out)
    model = trained.model.requires_grad_(False)
    prior = PriorModel(
        score=model if trained.classes is None else model.bind(label=torch.tensor(trained.null, device=trained.device)),
        sigma_data=config.sigma_data or model.sigma_data or 1.0,
        event=trained.event,
        samples=config.samples,
        particles=config.particles,
        steps=config.steps,
        dps_scale=config.dps_scale,
        batch_size=config.batch_size,
        seed=config.seed,
        device=trained.device,
    )
    say(f"{len(measurement.y)} measurements {operator.measured}, {config.samples} samples of each by {config.method}")
    rows = len(measurement.y) * (config.particles if config.method == PARTICLES else config.samples)
    expect(trained, config.steps + 1, rows, config.batch_size, gradients=config.method in WITH_GRADIENTS)
    found = answer(prior, config.method, measurement)
    x = found.x
    scale = one_scale(trained.scaling)
    save_array(out / "samples.npy", trained.scaling.to_data(x).numpy())
    save_array(out / "mean.npy", trained.scaling.to_data(x.mean(1)).numpy())
    save_array(out / "std.npy", (x.std(1) * scale).numpy())
    save_array(out / "measured.npy", (measurement.y.cpu() * scale + _shift(trained, operator)).numpy())
    figures = figures_of_answers(x, truth, measurement, operator, scale)
    figures |= {**found.notes, "nfe": found.nfe, "gradients": found.gradients}
    draw_answers(out, x, truth, measurement, operator, trained, config)
    report = {
        "config": told(config, out),
        **trained.told(),
        "measurements": len(measurement.y),
        "figures": figures,
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_json(out / "report.json", report)
    say(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    say(f"{report['seconds']} s; all is in {out}")
    return report


def _shift(trained: Trained, operator: LinearOperator) -> Tensor:
    return operator(torch.as_tensor(trained.scaling.shift, dtype=torch.float32).expand(1, *trained.event))


def figures_of_answers(
    x: Tensor, truth: Tensor | None, measurement: Measurement, operator: LinearOperator, scale: float
) -> dict[str, float]:
    """Consistency with what was measured (1 is the noise itself), and where the truth is known error and coverage."""
    y = measurement.y.cpu().repeat_interleave(x.shape[1], 0)
    rest = Measurement(y, operator, measurement.noise_std).residual(x.flatten(0, 1))
    figures = {"residual_over_noise": float(rest.square().mean().sqrt()) / measurement.noise_std}
    if truth is not None:
        figures["rms_error_of_mean"] = float((x.mean(1) - truth).square().mean().sqrt()) * scale
        figures["mean_std"] = float(x.std(1).square().mean().sqrt()) * scale
        figures["coverage_90"] = coverage(x, truth, 0.9)
    return figures


def draw_answers(
    out: Path,
    x: Tensor,
    truth: Tensor | None,
    measurement: Measurement,
    operator: LinearOperator,
    trained: Trained,
    config: InverseConfig,
) -> None:
    """The picture: truth, what was measured as far as it looks like a sample, mean, deviation, samples."""
    y = measurement.y.cpu()
    shown = operator.adjoint(y) if config.operator in ("mask", "matrix") else y
    if config.operator == "mask" and len(trained.event) < 3:  # curves and bars: gaps where nothing is measured
        shown = shown.where(operator.adjoint(torch.ones_like(y)) > 0, torch.nan)
    rows: list[SheetRow] = [] if truth is None else [("truth", truth)]
    rows += [("measured", shown), ("mean", x.mean(1)), ("std", x.std(1))]
    rows += [(f"sample {i}", x[:, i]) for i in range(min(DRAWS, x.shape[1]))]
    heads = [str(i) for i in range(len(x))]
    draw_rows(out / "inverse.png", rows, heads, trained.scaling, f"{config.operator}, {config.method}", size=1.1)
