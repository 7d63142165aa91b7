"""What something is, in a few lines: a trained model, a file or folder of data, a fitted sampler.

    scoresde info --path runs/my-images
    scoresde info --path x.npy

Of a model: schedule, network, parameters, classes and conditions, units and shape of a sample, what it was
trained with, and what a sample costs. Of data: shape, classes, and how they would be read.
:func:`main` takes the flags as an :class:`InfoConfig`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoresde.cli.costs import ROWS, evaluation_seconds, megabytes, parameters_of_model
from scoresde.cli.flags import MachineFlags, ReaderFlags
from scoresde.cli.outputs import brief, say
from scoresde.cli.trained import PIPELINE, Trained, checkpoints_in, open_checkpoint
from scoresde.curve import curve_in_words
from scoresde.data import reader_of
from scoresde.data.readers import READERS
from scoresde.solvers.fitted import Fitted

STEPS = 25
"""Steps by which the cost of a sample is estimated: those of `scoresde sample`."""


@dataclass(frozen=True, kw_only=True)
class InfoConfig(MachineFlags, ReaderFlags):
    """Tell what a model, a file of data or a fitted sampler is."""

    path: str
    """A run's folder or other checkpoint, a file or folder of data, or a sampler of `scoresde fit`."""
    cost: bool = True
    """Time one evaluation of a model, to tell what a sample costs."""
    as_json: bool = False
    """Write it as one JSON object."""


def main(config: InfoConfig) -> dict[str, Any]:
    """Look and tell; returns what is told."""
    config.ready()
    found = looked_at(config)
    if config.as_json:
        say(json.dumps(found, indent=2, default=str))
    else:
        width = max(map(len, found))
        for name, value in found.items():
            say(f"{name:{width}s}  {value}")
    return found


def looked_at(config: InfoConfig) -> dict[str, Any]:
    """What is there, by name.

    Raises:
        FileNotFoundError, ValueError, CheckpointError: nothing, or nothing of these.
    """
    path = Path(config.path).expanduser()
    if path.is_file() and path.suffix == ".json":
        return of_sampler(path)
    if path.is_file() and path.suffix.lower() in READERS:
        return of_data(config, path)
    if path.is_dir() and not _holds_model(path) and any(path.iterdir()):
        return of_data(config, path)
    return of_model(open_checkpoint(config.path, ema=True, cpu=config.cpu), cost=config.cost)


def _holds_model(path: Path) -> bool:
    found = checkpoints_in(path, "checkpoints")
    return (found / "config.json").is_file() or any(found.glob("step-*")) or (path / PIPELINE).is_file()


def of_data(config: InfoConfig, path: Path) -> dict[str, Any]:
    """Shape, classes and units of data."""
    dataset = config.read(path)
    return {
        "data": str(dataset),
        "read by": reader_of(path).__name__,
        "samples": len(dataset),
        "sample": dataset.event_shape,
        "classes": dataset.class_names,
        "units": dataset.scaling,
        "memory": megabytes(dataset.data.numel() * dataset.data.element_size()),
    }


def of_sampler(path: Path) -> dict[str, Any]:
    """What a sampler was fitted for, and how well."""
    fitted = Fitted.load(path)
    return {
        "sampler": f"{fitted.steps} evaluations",
        "schedule": fitted.schedule.name,
        "sample": fitted.report.event,
        "report": str(fitted.report),
    }


def of_model(trained: Trained, *, cost: bool) -> dict[str, Any]:
    """All that a trained model tells of itself."""
    model = trained.model
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    config = {k: v for k, v in (getattr(model.net, "config", None) or {}).items() if v not in (None, {}, [])}
    found: dict[str, Any] = {
        "checkpoint": trained.path,
        "step": "not known" if trained.step is None else trained.step,
        "written by": f"scoresde {trained.version}" if trained.version else "another library",
        "schedule": brief(model.sde),
        "predicts": model.predicts,
        "sigma_data": model.sigma_data,
        "network": f"{type(model.net).__name__}({', '.join(f'{k}={v}' for k, v in config.items())})",
        "parameters": f"{parameters_of_model(model):,}, {megabytes(size)}",
        "sample": trained.event,
        "units": trained.scaling,
        "classes": "none" if trained.classes is None else ", ".join(trained.classes),
    }
    for name, told in trained.conditions.items():
        scaling = trained.condition_scalings.get(name)
        shape = f"({', '.join('any number' if n is None else str(n) for n in told.get('shape', ()))})"
        found[f"condition {name}"] = f"{shape} {told.get('dtype', '')}" + (f", {scaling}" if scaling else "")
    if trained.trained_with is not None:
        known = trained.trained_with
        hidden = ", ".join(f"{name} in {p:.0%} of samples" for name, p in known.dropout.items())
        found["trained with"] = f"{', '.join(known.names) or 'no condition'}; hidden: {hidden or 'never'}"
        if known.weighting is not None:
            found["weighting"] = known.weighting
        if known.coupling is not None:
            found["coupling"] = f"{known.coupling}: for samplers of the ODE alone"
    if trained.decays:
        found["averages"] = f"of decay {', '.join(map(str, trained.decays))}: --ema-decay"
    if trained.snapshots:
        count, first, last = len(trained.snapshots), trained.snapshots[0], trained.snapshots[-1]
        found["snapshots"] = f"{count}, of steps {first} to {last}: --ema-width puts any average together"
    if model.loss_curve is not None:
        found["held-out loss"] = curve_in_words(model.loss_curve)
    if cost:
        seconds = evaluation_seconds(trained)
        found["cost"] = (
            f"{seconds:.3g} s an evaluation of {ROWS} samples on {trained.device}: about "
            f"{seconds * (STEPS + 1) / ROWS:.2g} s a sample of {STEPS} steps"
        )
    return found
