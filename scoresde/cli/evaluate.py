"""How far samples are from data, with what two sets of real data score against each other, error bars and p-values.

    scoresde evaluate --samples runs/my-images/samples/samples.npy --data held-out-images
    scoresde evaluate --checkpoint runs/points --data held-out.npy --training points.npy --features pixels learned
    scoresde evaluate --samples samples.npy --data held-out --figures frechet precision-recall --features runs/features
    torchrun --nproc-per-node 4 -m scoresde evaluate --checkpoint runs/my-images --data held-out-images

Every figure compares a random half of the data with as many samples, and with the other half of the data, in several
random splits: mean and standard deviation over the splits of both, and their ratio: 1 cannot be told from real. A
p-value is that of all samples against all data. Figures are of pixels, or of any other feature space, which is named
beside each of them with its fingerprint. With --training also how many samples are copies of training samples.

:func:`main` takes the flags as an :class:`EvaluateConfig`.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import scoresde as ss
from scoresde import metrics
from scoresde.cli.config import remember
from scoresde.cli.costs import expect, in_batches
from scoresde.cli.figures import ALL, FIGURES, FigureName, result_of
from scoresde.cli.flags import DataFlags, MachineFlags, at_least
from scoresde.cli.likelihood import matching_data
from scoresde.cli.outputs import gone_if_empty, say, told
from scoresde.cli.pictures import draw_samples
from scoresde.cli.shared_work import SharedWork
from scoresde.cli.spaces import space_of
from scoresde.cli.trained import Trained, device_for, open_checkpoint
from scoresde.data import Dataset, Scaling, reader_of
from scoresde.files import make_writable, write_json
from scoresde.metrics import Features, NetFeatures

QUANTILE = 0.05
"""Of the data's distances to the training set, below which a sample is called memorised."""


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
    ema_decay: float | None = None
    """Those of the average of this decay, as of `scoresde sample`."""
    ema_width: float | None = None
    """Those of an average of this width, put together of snapshots, as of `scoresde sample`."""
    steps: int = 25
    """Steps of the sampler."""
    training: Path | None = None
    """What the model was trained on: measure memorisation; --data are then to be other data."""
    features: tuple[str, ...] = ("pixels",)
    """Feature spaces: pixels; learned, a small network trained on --training; the folder of one that was kept; or
    module:name of a torch module or scoresde.metrics.Features in Python."""
    figures: tuple[FigureName, ...] = ALL
    """Which figures; all that the numbers of samples allow unless told."""
    features_steps: int = 1500
    """Steps of the training of a learned feature space."""
    permutations: int = 199
    """Random regroupings of the p-values of energy, kernel and mmd; 0 for none."""
    permute_all: bool = False
    """Take p-values by permutation of all figures, which costs each of them as often as there are permutations."""
    seeds: int = 1
    """How many times a checkpoint draws, with seeds from --seed on: spread over them beside that over the splits."""
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
        at_least(self, steps=1, most=8, splits=2, batch_size=1, features_steps=1, permutations=0, seeds=1)
        if (self.samples is None) == (self.checkpoint is None):
            raise ValueError("give --samples, a file, or --checkpoint, a model, and not both.")
        if self.seeds > 1 and self.checkpoint is None:
            raise ValueError("--seeds draws from a model several times: give --checkpoint, or one file of samples.")
        if self.checkpoint is None and (self.ema_decay is not None or self.ema_width is not None):
            raise ValueError("--ema-decay and --ema-width are of the weights of a --checkpoint; leave them out.")
        if not self.features or not self.figures:
            raise ValueError("--features and --figures must name one each at least.")
        if self.permute_all and not self.permutations:
            raise ValueError("--permute-all takes p-values by --permutations, of which there are 0: give some.")


def main(config: EvaluateConfig) -> dict[str, Any]:
    """Read or draw, compare, write; returns what report.json holds."""
    start = time.perf_counter()
    config.ready()
    work = SharedWork(cpu=config.cpu)
    trained = None
    if config.checkpoint is not None:
        weights = {"decay": config.ema_decay, "width": config.ema_width}
        trained = open_checkpoint(config.checkpoint, ema=config.ema, cpu=config.cpu, **weights)
        if work.device is not None:  # a GPU of its own for each process
            trained = replace(trained, model=trained.model.to(work.device), device=work.device)
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
    training = None if config.training is None else read_set(config, config.training, dataset, "training")
    out = results_folder(config, trained) if config.out is None else config.out
    there = out.exists()
    out = make_writable(out)
    device = device_for(cpu=config.cpu) if work.device is None else work.device
    with gone_if_empty(out, there=there):
        with work.main_first():  # learned last: what is wrong with the others is found before that is trained
            found_spaces = {
                word: space_of(word, training, out, steps=config.features_steps, seed=config.seed, device=device)
                for word in sorted(config.features, key=lambda word: word == "learned")
            }
        spaces = [found_spaces[word] for word in config.features]
        if trained is None:
            drawn = [read_samples(config, dataset)]
        else:
            drawn = [drawn_samples(config, trained, dataset, config.seed + k, work) for k in range(config.seeds)]
    if work.main:
        remember(config, out)
    figures: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    for space in spaces:
        known = None if training is None else training[:]["x"]
        found, omitted = in_space(config, space, drawn, real, known, work)
        figures |= found
        left_out |= omitted
    report = {
        "config": told(config, out),
        "samples": len(drawn[0]),
        "data": len(real),
        "features": {space.name: described(space, real) for space in spaces},
        "figures": figures,
        "left_out": left_out,
    }
    if work.main:
        draw_samples(
            out / "samples.png", drawn[0][:64], dataset.scaling, [], f"{len(drawn[0])} samples", data=real[:2000]
        )
        wide = max(map(len, figures)) + 2
        for name, one in figures.items():
            say(line_of(name.ljust(wide), one))
        for name, reason in left_out.items():
            say(f"{name} is left out: it {reason}")
        report["seconds"] = round(time.perf_counter() - start, 1)
        write_json(out / "report.json", report)
        say(f"{report['seconds']} s; report.json and samples.png are in {out}")
    return report


def described(space: Features, real: Tensor) -> dict[str, Any]:
    """What report.json says of a feature space."""
    found: dict[str, Any] = {"fingerprint": space.fingerprint, "numbers": space(real[:1]).shape[1]}
    if isinstance(space, NetFeatures):
        found["trained"] = space.trained
    return found


def line_of(name: str, one: Mapping[str, Any]) -> str:
    """A figure in a line: its value, that of real data, what of it is chance."""
    text = f"{name}{one['value']:.4g} +- {one['std']:.2g}   real {one['real']:.4g} +- {one['real_std']:.2g}"
    text += f"  ratio {one['ratio']:.3g}" if "ratio" in one else ""
    text += f"  over seeds +- {one['std_over_seeds']:.2g}" if "std_over_seeds" in one else ""
    return text + (f"  p {one['p_value']:.3g}" if "p_value" in one else "")


def in_space(
    config: EvaluateConfig, space: Features, drawn: list[Tensor], real: Tensor, known: Tensor | None, work: SharedWork
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """All figures of one feature space, by name, and why others are left out."""
    before = "" if space.name == "pixels" else f"{space.name}/"
    b = features_of(space, real, config.batch_size, work)
    sets = [features_of(space, x, config.batch_size, work) for x in drawn]
    half = min(min(map(len, sets)), len(b) // 2)
    omitted = {name: reason for name in config.figures if (reason := FIGURES[name].unfit(half, b.shape[1]))}
    fit = [name for name in config.figures if name not in omitted]
    each = [compared(a, b, config.splits, config.seed, fit, work) for a in sets]
    found: dict[str, dict[str, Any]] = {}
    for name in each[0]:
        means = torch.tensor([one[name]["value"] for one in each], dtype=torch.float64)
        found[name] = {key: float(np.mean([one[name][key] for one in each])) for key in each[0][name]}
        if len(each) > 1:
            found[name]["std_over_seeds"] = means.std().item()
    for name, test in tested(config, sets[0], b, fit, work).items():
        if name in found or "value" in test:
            found[name] = {**found.get(name, {}), **test}
    if known is not None:
        found |= copies(sets[0], b, features_of(space, known, config.batch_size, work))
    for one in found.values():
        one["features"] = str(space)
    return {before + name: one for name, one in found.items()}, {before + k: reason for k, reason in omitted.items()}


def features_of(space: Features, x: Tensor, batch_size: int, work: SharedWork) -> Tensor:
    """Features of all samples (n, d), of which each process computes some."""
    rows = x[work.rows(len(x))]
    if not len(rows):  # fewer samples than processes
        return work.joined(space(x[:1])[:0])
    return work.joined(space(rows, batch_size=batch_size))


def tested(
    config: EvaluateConfig, a: Tensor, b: Tensor, names: Sequence[FigureName], work: SharedWork
) -> dict[str, dict[str, float]]:
    """P-values of all samples against all data, by the first value of each figure; and what the classifier finds."""
    wanted = [
        name
        for name in names
        if name == "classifier"
        or (config.permutations and (FIGURES[name].test or (config.permute_all and FIGURES[name].statistic)))
    ]
    done: dict[str, dict[str, float]] = {}
    mine = work.mine(len(wanted))
    for at in in_batches(len(mine), 1, "test"):
        name = wanted[mine[at.start]]
        figure = FIGURES[name]
        if name == "classifier":
            one = metrics.classifier_two_sample_test(a, b, config.seed)
            done["classifier_accuracy"] = {
                "value": one.accuracy, "std": one.error, "real": 0.5, "real_std": one.error, "p_value": one.p_value
            }  # fmt: skip
            continue
        if figure.test is not None:
            p_value = figure.test(a, b, config.permutations, config.seed).p_value
        else:
            assert figure.statistic is not None
            seed, count = config.seed, config.permutations
            p_value = metrics.permutation_test(figure.statistic, a, b, seed, permutations=count).p_value
        done |= {value: {"p_value": p_value} for value in figure.values}
    return work.gathered(done)


def copies(a: Tensor, b: Tensor, known: Tensor) -> dict[str, dict[str, Any]]:
    """How many samples are copies of training samples, beside what of the data would be called so."""
    share = metrics.memorised_share(a, known, b, quantile=QUANTILE)
    error = (QUANTILE * (1 - QUANTILE) * (1 / len(a) + 1 / len(b))) ** 0.5
    found = {"memorised_share": {"value": share, "std": error, "real": QUANTILE, "real_std": error}}
    if len(known) > 1:
        of_samples, of_real = (metrics.authenticity(rows, known) for rows in (a, b))
        errors = [(p * (1 - p) / len(rows)) ** 0.5 for p, rows in zip((of_samples, of_real), (a, b), strict=True)]
        found["authenticity"] = {"value": of_samples, "std": errors[0], "real": of_real, "real_std": errors[1]}
    return found


def results_folder(config: EvaluateConfig, trained: Trained | None) -> Path:
    """Where results go unless told."""
    if trained is not None:
        return trained.home / "evaluation"
    assert config.samples is not None
    return config.samples.expanduser().parent / "evaluation"


def read_samples(config: EvaluateConfig, dataset: Dataset) -> Tensor:
    """The samples of a file (n, *event), in the units of the data's model, at most ``--most`` of them."""
    assert config.samples is not None
    x = read_set(config, config.samples, dataset, "samples")[:]["x"]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(config.seed + 1))
    return x[order[: config.most]]


def read_set(config: EvaluateConfig, path: Path, dataset: Dataset, what: str) -> Dataset:
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
    return found


def drawn_samples(config: EvaluateConfig, trained: Trained, dataset: Dataset, seed: int, work: SharedWork) -> Tensor:
    """As many samples of a model as there are data, with their labels where both have them; each process draws some."""
    parts = [torch.zeros(0, *trained.event)]
    here = work.rows(len(dataset))
    if work.main:
        expect(trained, config.steps + 1, here.stop - here.start, config.batch_size)
    for batch in in_batches(here.stop - here.start, config.batch_size):
        rows = slice(here.start + batch.start, here.start + batch.stop)
        score: ss.Score = trained.model
        if trained.classes is not None and dataset.label is not None:
            score = trained.model.bind(label=dataset.label[rows].to(trained.device))
        solution = ss.sample(
            score,
            (rows.stop - rows.start, *trained.event),
            steps=config.steps,
            noise=ss.PerSampleNoise(seed, first=rows.start),
            device=trained.device,
        )
        parts.append(solution.x.cpu())
    return rounded(work.joined(torch.cat(parts)), trained.scaling)


def rounded(x: Tensor, scaling: Scaling) -> Tensor:
    """Samples at the levels that the data have, where they have some."""
    if scaling.levels is None:
        return x
    return scaling.to_model(scaling.to_data(x).round().clamp(0, scaling.levels - 1))


def compared(
    x: Tensor,
    real: Tensor,
    splits: int,
    seed: int,
    names: Sequence[FigureName] = ALL,
    work: SharedWork | None = None,
) -> dict[str, dict[str, float]]:
    """Each figure of samples against a half of the data, and of the other half against it, over random splits."""
    work = SharedWork() if work is None else work
    a, b = x.flatten(1).double(), real.flatten(1).double()
    half = min(len(a), len(b) // 2)
    noise = torch.Generator().manual_seed(seed)
    orders = [
        (torch.randperm(len(b), generator=noise), torch.randperm(len(a), generator=noise)[:half]) for _ in range(splits)
    ]
    mine = work.mine(splits)
    done: dict[int, tuple[dict[str, float], dict[str, float]]] = {}
    for at in in_batches(len(mine), 1, "split"):
        order, some = orders[mine[at.start]]
        one, other = b[order[:half]], b[order[half : 2 * half]]
        values: dict[str, float] = {}
        floor: dict[str, float] = {}
        for name in names:
            values |= FIGURES[name].compare(a[some], one)
            floor |= FIGURES[name].compare(other, one)
        done[mine[at.start]] = values, floor
    every = list(work.gathered(done).values())
    plain = {value for name in names for value in FIGURES[name].values if value not in FIGURES[name].centred}
    return {
        name: result_of([v[name] for v, _ in every], [f[name] for _, f in every], ratio=name in plain)
        for name in every[0][0]
    }
