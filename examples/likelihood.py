"""How likely data are under a checkpoint, by the probability-flow ODE: bits/dim of quantised data, nats of others.

    python examples/likelihood.py --checkpoint runs/my-images --data held-out-images
    python examples/likelihood.py --checkpoint runs/points --data points.npy --divergence exact

Data go through the scaling that the model was trained with. Nats are those of the density in the data's own units.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from command_line import DataFlags, command, use_threads
from outputs import make_folder, save_array, save_json
from torch import Tensor
from tqdm import tqdm
from trained import Trained, open_checkpoint

import scoresde as ss
from scoresde.data import Dataset, load_array, reader_of


@dataclass(kw_only=True)
class Config(DataFlags):
    """Measure how likely data are under a checkpoint: likelihood.npy and report.json."""

    checkpoint: Path
    """Folder that training wrote, or one of its step-... folders."""
    out: Path | None = None
    """Folder for everything that is written; default likelihood in the run's folder."""
    first: int | None = None
    """Take only so many samples, the first ones; all unless told."""
    batch_size: int = 128
    """How many at a time. The ODE solver shares one error norm among them: values agree to its tolerance."""
    conditional: bool = True
    """Of the data given their labels, where model and data have them; otherwise of the data alone."""
    divergence: Literal["hutchinson", "exact"] = "hutchinson"
    """Estimate the divergence without bias, or compute it, at a cost that grows with the size of a sample."""
    probes: int = 1
    """Random vectors that the estimate averages over."""
    method: str = "dopri5"
    """An adaptive method of torchdiffeq."""
    rtol: float = 1e-5
    """Its relative tolerance."""
    atol: float = 1e-5
    """Its absolute tolerance, in model units."""
    ema: bool = True
    """Use the averaged weights, not those of the last step."""
    seed: int = 0
    """Of the random vectors, and of the uniform noise that fills the bins of quantised data."""
    cpu: bool = False
    """Stay on the CPU although there is a GPU."""
    threads: int = 0
    """Threads of torch; 0 leaves its default."""


def check(config: Config) -> None:
    """Raises ValueError for flags that make no sense, alone or together."""
    for name in ("first", "batch_size", "probes"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
    if config.divergence == "exact" and config.probes != 1:
        raise ValueError("--probes belong to the estimate; with --divergence exact leave them out.")


def load(config: Config, trained: Trained) -> Dataset:
    """The data, in the units and with the class numbers of the model.

    Raises:
        FileNotFoundError, TypeError, ValueError: other units, shape or classes than the model's; see ``scoresde.data``.
    """
    dataset = config.load(scaling=trained.scaling if reader_of(config.data) is load_array else None)
    if dataset.event_shape != trained.event:
        raise ValueError(
            f"samples in {config.data} have shape {dataset.event_shape}, and the model was trained on {trained.event}."
        )
    if dataset.scaling != trained.scaling:
        raise ValueError(
            f"{config.data} is read as {dataset.scaling}, and the model was trained on data read as {trained.scaling}; "
            "store the data as an array (.npy) in the units of the training data."
        )
    if config.label is not None and trained.classes is None:
        raise ValueError(f"--label gives classes, and {trained.description.path} was trained without; leave it out.")
    if dataset.label is None or trained.classes is None or not config.conditional:
        return Dataset(dataset.data, None, dataset.scaling, None)
    # By name: a folder without one of the classes numbers the others anew.
    names = dataset.class_names or ()
    numbers = torch.zeros(len(names), dtype=torch.int64)
    for k in set(dataset.label.tolist()):
        numbers[k] = trained.index(names[k])
    return Dataset(dataset.data, numbers[dataset.label], dataset.scaling, trained.classes)


def measure(config: Config, trained: Trained, dataset: Dataset, rows: slice, solver: ss.ProbabilityFlow) -> Tensor:
    """Of some samples: bits/dim where the data are quantised, else log-density in nats, (B,)."""
    batch, scaling = dataset[rows], trained.scaling
    x = batch["x"].to(trained.device)
    keywords: dict[str, Any] = {"divergence": config.divergence, "solver": solver, "probes": config.probes}
    keywords["noise"] = ss.PerSampleNoise(config.seed, first=rows.start)
    if trained.classes is not None:
        keywords["label"] = batch.get("label", torch.full((len(x),), trained.null)).to(trained.device)
    with torch.no_grad():
        if scaling.bin_width is not None:
            return ss.bits_per_dim(trained.model, x, scaling.bin_width, **keywords).cpu()
        # From model to data units: one factor of the scale for each number in a sample.
        volume = math.prod(trained.event) * math.log(scaling.scale)
        return ss.log_prob(trained.model, x, **keywords).cpu() - volume


def main(config: Config) -> dict[str, Any]:
    """Measure and write; returns what report.json holds."""
    check(config)
    use_threads(config.threads)
    solver = ss.ProbabilityFlow(config.method, rtol=config.rtol, atol=config.atol)
    trained = open_checkpoint(config.checkpoint, ema=config.ema, cpu=config.cpu)
    solver.check(ss.Reverse(trained.model.sde, trained.model, 0.0))
    dataset = load(config, trained)
    out = make_folder(trained.description.path.parent / "likelihood" if config.out is None else config.out)
    total = len(dataset) if config.first is None else min(config.first, len(dataset))

    start, parts = time.perf_counter(), []
    with tqdm(total=total, unit="sample") as bar:
        for first in range(0, total, config.batch_size):
            rows = slice(first, min(first + config.batch_size, total))
            parts.append(measure(config, trained, dataset, rows, solver).double())
            bar.update(rows.stop - rows.start)
    values = torch.cat(parts)
    seconds = time.perf_counter() - start
    save_array(out / "likelihood.npy", values.numpy())
    report = {
        "config": {**asdict(config), "out": out},
        "checkpoint": trained.description.path,
        "step": trained.description.step,
        "sde": repr(trained.model.sde),
        "unit": "nats per sample" if trained.scaling.bin_width is None else "bits per dimension",
        "given_label": dataset.label is not None,
        "samples": total,
        "mean": values.mean().item(),
        "standard_error": values.std().item() / math.sqrt(total) if total > 1 else None,
        "seconds": seconds,
        "device": str(trained.device),
    }
    save_json(out / "report.json", report)
    error = "" if report["standard_error"] is None else f" +- {report['standard_error']:.4f}"
    print(f"{report['mean']:.4f}{error} {report['unit']}, mean of {total} samples, {seconds:.1f} s; more in {out}")
    return report


if __name__ == "__main__":
    command(main, Config)
