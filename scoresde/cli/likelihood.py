"""How likely data are under a trained model, by the probability-flow ODE: bits/dim of quantised data, nats of others.

    scoresde likelihood --checkpoint runs/my-images --data held-out-images
    scoresde likelihood --checkpoint runs/points --data points.npy --divergence exact
    scoresde likelihood --checkpoint runs/posterior --data theta.npy --condition obs=x.npy       # of rows given rows

Data go through the scaling that the model was trained with. Nats are those of the density in the data's own units.
:func:`main` takes the flags as a :class:`LikelihoodConfig`.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import scoresde as ss
from scoresde.cli.conditions import asked_conditions
from scoresde.cli.config import remember
from scoresde.cli.costs import expect, in_batches
from scoresde.cli.flags import CheckpointFlags, DataFlags, Repeated, at_least
from scoresde.cli.outputs import save_array, say, told
from scoresde.cli.trained import Trained, trained_of
from scoresde.data import Dataset, reader_of
from scoresde.files import make_writable, write_json
from scoresde.solvers import ProbabilityFlow

USUAL = 100
"""Evaluations that an adaptive solver takes at the usual tolerances, for a forecast."""


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig(CheckpointFlags, DataFlags):
    """Measure how likely data are under a checkpoint: likelihood.npy and report.json."""

    out: Path | None = None
    """Folder for everything that is written; default likelihood in the run's folder."""
    first: int | None = None
    """Take only so many samples, the first ones; all unless told."""
    batch_size: int = 128
    """How many at a time. The ODE solver shares one error norm among them: values agree to its tolerance."""
    conditional: bool = True
    """Of the data given their labels, where model and data have them; otherwise of the data alone."""
    condition: Repeated = ()
    """Another condition, as name=numbers with commas for all, or name=file.npy with a row for each sample."""
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
    seed: int = 0
    """Of the random vectors, and of the uniform noise that fills the bins of quantised data."""

    def check(self) -> None:
        at_least(self, first=1, batch_size=1, probes=1)
        if self.divergence == "exact" and self.probes != 1:
            raise ValueError("--probes belong to the estimate; with --divergence exact leave them out.")


def matching_data(config: DataFlags, trained: Trained, *, conditional: bool = True) -> Dataset:
    """The data, in the units and with the class numbers of the model.

    Raises:
        FileNotFoundError, TypeError, ValueError: other units, shape or classes than the model's; see ``scoresde.data``.
    """
    units = "scaling" in inspect.signature(reader_of(config.data)).parameters  # of arrays; pictures bring their own
    try:
        dataset = config.load(scaling=trained.scaling if units else None)
    except ValueError as error:
        raise ValueError(f"{config.data} does not fit a model trained on {trained.event}: {error}") from error
    say(str(dataset))
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
        raise ValueError(f"--label gives classes, and {trained.path} was trained without; leave it out.")
    if dataset.label is None or trained.classes is None or not conditional:
        return Dataset(dataset.data, None, dataset.scaling, None)
    # By name: a folder without one of the classes numbers the others anew.
    names = dataset.class_names or ()
    numbers = torch.zeros(len(names), dtype=torch.int64)
    for k in set(dataset.label.tolist()):
        numbers[k] = trained.index(names[k])
    return Dataset(dataset.data, numbers[dataset.label], dataset.scaling, trained.classes)


def rows_given(config: LikelihoodConfig, trained: Trained, count: int) -> dict[str, Tensor]:
    """The conditions of all samples besides their class, by name (count, ...).

    Raises:
        ValueError: one is missing, or has neither one row nor a row for each sample.
    """
    given = asked_conditions(config.condition, trained, count, one_or_all=True)
    missing = [name for name in trained.conditions if name not in given]
    if missing:
        raise ValueError(f"the model in {trained.path} takes {missing[0]}: give --condition {missing[0]}=file.npy.")
    return given


def measure(
    config: LikelihoodConfig,
    trained: Trained,
    dataset: Dataset,
    given: Mapping[str, Tensor],
    rows: slice,
    solver: ProbabilityFlow,
) -> Tensor:
    """Of some samples: bits/dim where the data are quantised, else log-density in nats, (B,)."""
    batch, scaling = dataset[rows], trained.scaling
    x = batch["x"].to(trained.device)
    keywords: dict[str, Any] = {"divergence": config.divergence, "solver": solver, "probes": config.probes}
    keywords["noise"] = ss.PerSampleNoise(config.seed, first=rows.start)
    score: ss.Score = trained.model
    known = {name: value[rows] for name, value in given.items()}
    if trained.classes is not None:
        known["label"] = batch.get("label", torch.tensor(trained.null)).to(trained.device)
    if known:
        score = trained.model.bind(**known)
    with torch.no_grad():
        if scaling.bin_width is not None:
            return ss.bits_per_dim(score, x, scaling.bin_width, **keywords).cpu()
        return ss.log_prob(score, x, **keywords).cpu() - scaling.log_det(trained.event)  # from model to data units


def main(config: LikelihoodConfig) -> dict[str, Any]:
    """Measure and write; returns what report.json holds."""
    config.ready()
    solver = ProbabilityFlow(config.method, rtol=config.rtol, atol=config.atol)
    trained = trained_of(config)
    solver.check(ss.Reverse(trained.model, 0.0))
    dataset = matching_data(config, trained, conditional=config.conditional)
    out = make_writable(trained.home / "likelihood" if config.out is None else config.out)
    given = rows_given(config, trained, len(dataset))
    remember(config, out)
    total = len(dataset) if config.first is None else min(config.first, len(dataset))

    start = time.perf_counter()
    directions = math.prod(trained.event) if config.divergence == "exact" else config.probes
    expect(trained, USUAL * directions, total, config.batch_size, gradients=True)
    rows = in_batches(total, config.batch_size)
    values = torch.cat([measure(config, trained, dataset, given, some, solver).double() for some in rows])
    seconds = time.perf_counter() - start
    save_array(out / "likelihood.npy", values.numpy())
    report = {
        "config": told(config, out),
        **trained.told(),
        "sde": repr(trained.model.sde),
        "unit": "nats per sample" if trained.scaling.bin_width is None else "bits per dimension",
        "given_label": dataset.label is not None,
        "samples": total,
        "mean": values.mean().item(),
        "standard_error": values.std().item() / math.sqrt(total) if total > 1 else None,
        "seconds": seconds,
    }
    write_json(out / "report.json", report)
    error = "" if report["standard_error"] is None else f" +- {report['standard_error']:.4f}"
    say(f"{report['mean']:.4f}{error} {report['unit']}, mean of {total} samples, {seconds:.1f} s; more in {out}")
    return report
