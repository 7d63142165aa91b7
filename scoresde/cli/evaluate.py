"""How far samples are from data, with what two sets of real data score against each other, and error bars.

    scoresde evaluate --samples runs/my-images/samples/samples.npy --data held-out-images
    scoresde evaluate --checkpoint runs/points --data held-out.npy --training points.npy

Every figure compares a random half of the data with as many samples, and with the other half of the data, in several
random splits: mean and standard deviation over the splits of both, and their ratio. 1 cannot be told from real.
Energy distance, sliced Wasserstein distance, and how far means, deviations and correlations are off; with --training
also the share of samples that lie closer to a training sample than 95 % of the data do.

:func:`main` takes the flags as an :class:`EvaluateConfig`.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoresde as ss
from scoresde import metrics
from scoresde.cli.config import remember
from scoresde.cli.costs import expect, in_batches
from scoresde.cli.flags import DataFlags, MachineFlags, at_least
from scoresde.cli.likelihood import matching_data
from scoresde.cli.outputs import say, told
from scoresde.cli.pictures import draw_samples
from scoresde.cli.trained import Trained, open_checkpoint
from scoresde.data import Dataset, Scaling, reader_of
from scoresde.files import make_writable, write_json

CORRELATED = 256
"""Numbers of a sample up to which correlations are compared."""
QUANTILE = 0.05
"""Of the data's distances to the training set, below which a sample is called memorised."""


def _mean_off(a: Tensor, b: Tensor) -> float:
    return float(((a.mean(0) - b.mean(0)) / _spread(b)).square().mean().sqrt())


def _std_off(a: Tensor, b: Tensor) -> float:
    return float((a.std(0) / _spread(b) - 1).square().mean().sqrt())


def _spread(x: Tensor) -> Tensor:
    """The deviation of each number; of those that never change, that of all."""
    each = x.std(0)
    return torch.where(each > 0, each, x.std().clamp_min(1e-12))


def _correlation_off(a: Tensor, b: Tensor) -> float:
    return float((torch.corrcoef(a.T) - torch.corrcoef(b.T)).nan_to_num().square().mean().sqrt())


FIGURES: Mapping[str, Callable[[Tensor, Tensor], float]] = {
    "energy_distance": metrics.energy_distance,
    "sliced_wasserstein": metrics.sliced_wasserstein,
    "mean_off": _mean_off,
    "std_off": _std_off,
    "correlation_off": _correlation_off,
}
"""Distances of two sets (n, d) and (m, d), in units of the model; 0 for equal ones."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(MachineFlags, DataFlags):
    """Compare samples, or those of a model, with data: report.json, samples.png."""

    samples: Path | None = None
    """Samples, a file or folder as of data; or give --checkpoint."""
    checkpoint: str | None = None
    """A model that samples are drawn from, as of `scoresde sample`; with the labels of the data where both have
    them."""
    ema: bool = True
    """Use the averaged weights of the model."""
    steps: int = 25
    """Steps of the sampler."""
    training: Path | None = None
    """What the model was trained on: measure memorisation; --data are then to be other data."""
    out: Path | None = None
    """Folder for what is written; default evaluation beside the samples, or in the run's folder."""
    most: int = 2000
    """Samples and data at most, drawn at random."""
    splits: int = 10
    """Random splits, over which the error bars are."""
    batch_size: int = 256
    """Samples drawn at a time."""
    seed: int = 0
    """Of samples and splits."""

    def check(self) -> None:
        at_least(self, steps=1, most=8, splits=2, batch_size=1)
        if (self.samples is None) == (self.checkpoint is None):
            raise ValueError("give --samples, a file, or --checkpoint, a model, and not both.")


def main(config: EvaluateConfig) -> dict[str, Any]:
    """Read or draw, compare, write; returns what report.json holds."""
    start = time.perf_counter()
    config.ready()
    trained = None
    if config.checkpoint is not None:
        trained = open_checkpoint(config.checkpoint, ema=config.ema, cpu=config.cpu)
        if trained.conditions:
            raise ValueError(
                f"the model in {trained.path} takes {', '.join(trained.conditions)}: draw with `scoresde sample "
                "--condition ...` and give the file by --samples."
            )
        dataset = matching_data(config, trained)
    else:
        dataset = config.load()
        say(str(dataset))
    if len(dataset) < 8:
        raise ValueError(f"{config.data} holds {len(dataset)} samples; expected 8 at least to compare with.")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(config.seed))
    dataset = dataset.subset(order[: config.most])
    real = dataset[:]["x"]
    x = read_samples(config, dataset) if trained is None else drawn_samples(config, trained, dataset)
    out = make_writable(results_folder(config, trained) if config.out is None else config.out)
    remember(config, out)
    figures = compared(x, real, config.splits, config.seed)
    if config.training is not None:
        known = other_set(config, config.training, dataset, "training")
        share = metrics.memorised_share(x, known, real, quantile=QUANTILE)
        error = (QUANTILE * (1 - QUANTILE) * (1 / len(x) + 1 / len(real))) ** 0.5
        figures["memorised_share"] = {"value": share, "std": error, "real": QUANTILE, "real_std": error}
    draw_samples(out / "samples.png", x[:64], dataset.scaling, [], f"{len(x)} samples", data=real[:2000])
    for name, one in figures.items():
        ratio = f"  ratio {one['ratio']:.3g}" if "ratio" in one else ""
        say(
            f"{name:20s}{one['value']:.4g} +- {one['std']:.2g}   real {one['real']:.4g} +- {one['real_std']:.2g}{ratio}"
        )
    report = {
        "config": told(config, out),
        "samples": len(x),
        "data": len(real),
        "figures": figures,
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_json(out / "report.json", report)
    say(f"{report['seconds']} s; report.json and samples.png are in {out}")
    return report


def results_folder(config: EvaluateConfig, trained: Trained | None) -> Path:
    """Where results go unless told."""
    if trained is not None:
        return trained.home / "evaluation"
    assert config.samples is not None
    return config.samples.expanduser().parent / "evaluation"


def read_samples(config: EvaluateConfig, dataset: Dataset) -> Tensor:
    """The samples of a file (n, *event), in the units of the data's model, at most ``--most`` of them."""
    assert config.samples is not None
    x = other_set(config, config.samples, dataset, "samples")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(config.seed + 1))
    return x[order[: config.most]]


def other_set(config: EvaluateConfig, path: Path, dataset: Dataset, what: str) -> Tensor:
    """Another set of the same kind as the data, in its units.

    Raises:
        FileNotFoundError, TypeError, ValueError: none, or of another shape or other units.
    """
    takes = inspect.signature(reader_of(path)).parameters
    options: dict[str, Any] = {"scaling": dataset.scaling} if "scaling" in takes else {}
    if "channels" in takes and config.channels is not None:
        options["channels"] = config.channels
    found = ss.data.load(path, **options)
    if found.event_shape != dataset.event_shape:
        raise ValueError(f"--{what} {path} holds {found.event_shape}, and --data {dataset.event_shape}.")
    if found.scaling != dataset.scaling:
        raise ValueError(f"--{what} {path} is read as {found.scaling}, and --data as {dataset.scaling}.")
    return found[:]["x"]


def drawn_samples(config: EvaluateConfig, trained: Trained, dataset: Dataset) -> Tensor:
    """As many samples of a model as there are data, with their labels where both have them."""
    parts = []
    expect(trained, config.steps + 1, len(dataset), config.batch_size)
    for rows in in_batches(len(dataset), config.batch_size):
        score: ss.Score = trained.model
        if trained.classes is not None and dataset.label is not None:
            score = trained.model.bind(label=dataset.label[rows].to(trained.device))
        solution = ss.sample(
            score,
            (rows.stop - rows.start, *trained.event),
            steps=config.steps,
            noise=ss.PerSampleNoise(config.seed, first=rows.start),
            device=trained.device,
        )
        parts.append(solution.x.cpu())
    return rounded(torch.cat(parts), trained.scaling)


def rounded(x: Tensor, scaling: Scaling) -> Tensor:
    """Samples at the levels that the data have, where they have some."""
    if scaling.levels is None:
        return x
    return scaling.to_model(scaling.to_data(x).round().clamp(0, scaling.levels - 1))


def compared(x: Tensor, real: Tensor, splits: int, seed: int) -> dict[str, dict[str, float]]:
    """Each figure of samples against a half of the data, and of the other half against it, over random splits."""
    a, b = x.flatten(1).double(), real.flatten(1).double()
    half = min(len(a), len(b) // 2)
    noise = torch.Generator().manual_seed(seed)
    found: dict[str, tuple[list[float], list[float]]] = {}
    for _ in range(splits):
        order, some = torch.randperm(len(b), generator=noise), torch.randperm(len(a), generator=noise)[:half]
        one, other = b[order[:half]], b[order[half : 2 * half]]
        for name, figure in FIGURES.items():
            if name == "correlation_off" and not 1 < b.shape[1] <= CORRELATED:
                continue
            of_samples, of_real = found.setdefault(name, ([], []))
            of_samples.append(figure(a[some], one))
            of_real.append(figure(other, one))
    return {name: _summary(*values) for name, values in found.items()}


def _summary(of_samples: list[float], of_real: list[float]) -> dict[str, float]:
    samples, real = (torch.tensor(values, dtype=torch.float64) for values in (of_samples, of_real))
    mean, floor = samples.mean().item(), real.mean().item()
    return {
        "value": mean,
        "std": samples.std().item(),
        "real": floor,
        "real_std": real.std().item(),
        "ratio": mean / floor if floor > 0 else float("inf"),
    }
