"""Train a score model on your own data: images, Parquet, arrays; one CPU, one GPU or many.

    scoresde train --data my-images --network cifar-small --steps 100000
    scoresde train --data signals.npy --channels none --sde ve --sde-options sigma_max=80
    scoresde train --data theta.npy --condition obs=x.npy                   # the law of theta given each row of x
    scoresde train --data theta.npy --condition obs=x.npy --sets obs        # x (N, L, d): L observations for each
    torchrun --nproc-per-node 4 -m scoresde train --data my-images --mixed-precision bf16     # or accelerate launch
    scoresde train --data my-images --network cifar-small --steps 100000 --resume    # go on after a kill

Vectors are learned by a residual MLP, signals, images and volumes by a U-Net. The folder that is written describes
itself: `scoresde sample`, `likelihood` and the others need nothing else.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import scoresde as ss
from scoresde import losses
from scoresde.cli.choices import (
    COUPLINGS,
    LEARNED,
    SDES,
    TIMES,
    WEIGHTINGS,
    CouplingName,
    PredictionName,
    SDEName,
    TimesName,
    WeightingName,
    build,
)
from scoresde.cli.conditions import network_conditions, with_conditions
from scoresde.cli.config import remember
from scoresde.cli.costs import Watch, duration, size_of_training
from scoresde.cli.flags import DataFlags, Repeated, ScriptFlags, as_flag, at_least
from scoresde.cli.held_out import in_short, save_held_out
from scoresde.cli.networks import NetworkFlags, network
from scoresde.cli.outputs import brief, gone_if_empty, say
from scoresde.cli.pictures import save_losses
from scoresde.cli.training_flags import TrainingFlags, training_options
from scoresde.data import Augmentation, Dataset, reader_of
from scoresde.data.augmentation import NAME as AUGMENT
from scoresde.data.scaling import Per
from scoresde.extras import needs
from scoresde.files import make_writable
from scoresde.times import AdaptiveTimes, Stratified, TimeDensity
from scoresde.train import EarlyStopping, Run, Snapshots, Terminated, TrainOptions
from scoresde.train import train as training_run
from scoresde.train.compiled import NotCompiled


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ScriptFlags, TrainingFlags, NetworkFlags, DataFlags):
    """Train a score model on your own data, and write a checkpoint folder that describes itself."""

    levels: int | None = None
    """The numbers in .npy or .npz are 0 ... levels - 1; needed for integers other than 8-bit ones."""
    scaling: Per | None = None
    """Standardise arrays by one mean and deviation (tensor), those of each channel, or of each coordinate; by what
    suits the data unless told."""
    conditional: bool = True
    """Learn the score of each class too, where the data have labels."""
    condition: Repeated = ()
    """What else belongs to each sample, as name=file.npy with a row for each: numbers, which are standardised, tokens
    or images; repeat names for several."""
    sets: tuple[str, ...] = ()
    """Names of conditions (N, L, d) whose L members have no order, as several observations of one thing; a member of
    NaN is padding. Beside vectors others of that shape are series."""
    series: tuple[str, ...] = ()
    """Names of conditions (N, L, d) that are series in time."""
    out: Path | None = None
    """Folder for checkpoints, log and loss curve; default runs/ and the name of the data."""
    resume: bool = False
    """Go on from the last checkpoint in the folder; all other flags as they were."""

    sde: SDEName = "vp"
    """The SDE that turns data into noise."""
    sde_options: tuple[str, ...] = ()
    """Its parameters, as name=value: sigma_max=80, t_min=0.01, ..."""
    predicts: PredictionName = "edm"
    """What the network predicts."""
    sigma_data: float | None = None
    """Standard deviation of the data in model units, by which the network's input is scaled; measured unless told."""

    weighting: WeightingName = "edm"
    """Weight of the loss over noise levels (scoresde.losses); edm takes the data's standard deviation, and uncertainty
    is learned along, with edm as its base."""
    times: TimesName = "log-normal-sigma"
    """Density of training times; log-normal-sigma is centred on 0.6 of the data's deviation unless told."""
    times_options: tuple[str, ...] = ()
    """Its parameters, as name=value: mean=-0.5, std=1.2, ..."""
    stratified: bool = True
    """Spread the times of each batch evenly over their density: less noise in the gradient."""
    adaptive: bool = False
    """Draw those times more often at which the loss is large, and weigh it less there: the same mean, at less noise."""
    coupling: CouplingName = "none"
    """Which noise meets which sample of a batch: optimal-transport straightens the paths of the ODE, for few steps; the
    model is no score then, and only samplers of the ODE will do."""
    condition_weight: float | None = None
    """Of the distance of conditions that are numbers, in that coupling; needed where there are such conditions."""
    snapshot_every: int | None = None
    """Keep averages of the weights every so many steps, of which --ema-width puts together any other afterwards."""
    snapshot_dtype: Literal["float16", "float32"] = "float32"
    """In which they are kept."""
    condition_dropout: float | None = None
    """Probability that a label is hidden, for classifier-free guidance; 0.1 unless told."""
    augment: float | None = None
    """Probability of each transformation of pictures (flips, shifts, scalings, turns, stretches), of which the network
    is told, so that samples are as the data are; 0.12 suits small data sets of small pictures."""
    dequantize: bool | None = None
    """Fill the bins of quantised data with uniform noise, so that bits/dim mean something; done unless told."""
    warmup: int = 500
    """Steps of linear warm-up of the learning rate (fewer in a run shorter than ten times as many)."""
    held_out: float | Path | None = None
    """Samples that are never trained on: a share of the data such as 0.05, or a file or folder of its own, read as the
    data are. Their loss at each noise level is measured as training goes on, logged and drawn."""
    early_stopping: bool = False
    """End when the held-out loss has converged, or rises."""
    tolerance: float = 0.01
    """Relative change of the held-out loss that early stopping takes for none."""
    seed: int = 0
    """Of everything: weights and training."""

    def check(self) -> None:
        at_least(self, snapshot_every=1)
        if self.augment is not None and not 0 <= self.augment <= 1:
            raise ValueError(f"--augment must be a probability, from 0 to 1, got {self.augment:g}.")
        for name, other in (("tolerance", "early_stopping"), ("snapshot_dtype", "snapshot_every")):
            if getattr(self, name) != getattr(TrainConfig, name) and not getattr(self, other):
                raise ValueError(f"{as_flag(name)} does nothing without {as_flag(other)}; give both or neither.")


def some(dataset: Dataset, count: int = 2048) -> Tensor:
    """Up to ``count`` samples, the same ones every time."""
    rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count]
    return dataset[rows]["x"]


def density_of_times(config: TrainConfig, sigma_data: float) -> TimeDensity:
    """How training times are drawn."""
    options = list(config.times_options)
    if config.times == "log-normal-sigma" and not any(option.startswith("mean=") for option in options):
        options.append(f"mean={log_sigma(sigma_data)}")
    density: TimeDensity = build(TIMES, config.times, options)
    density = AdaptiveTimes(density) if config.adaptive else density
    return Stratified(density) if config.stratified else density


def weighting_of(config: TrainConfig, sigma_data: float) -> losses.Weighting | losses.Uncertainty:
    """The weight of the loss over noise levels."""
    if config.weighting == LEARNED:
        return losses.Uncertainty(losses.edm(sigma_data))
    return losses.edm(sigma_data) if config.weighting == "edm" else WEIGHTINGS[config.weighting]


def coupling_of(config: TrainConfig) -> losses.OptimalTransport | None:
    """Which noise meets which sample.

    Raises:
        ValueError: a weight without a coupling, or a negative one.
    """
    if config.coupling == "none":
        if config.condition_weight is not None:
            raise ValueError("--condition-weight is of --coupling optimal-transport; give that, or leave it out.")
        return None
    return COUPLINGS[config.coupling](config.condition_weight)


def snapshots_of(config: TrainConfig) -> Snapshots | None:
    """When averages are kept for later."""
    if config.snapshot_every is None:
        return None
    return Snapshots(config.snapshot_every, dtype=getattr(torch, config.snapshot_dtype))


def first_step_ready(config: TrainConfig, out: Path) -> Run[ss.ScoreModel]:
    """Everything up to the first step; all that can be wrong with the flags or the data is found here.

    Raises:
        FileNotFoundError, TypeError, ValueError: what is wrong.
    """
    sde: ss.SDE = build(SDES, config.sde, config.sde_options)
    dataset = config.load(levels=config.levels, scaling=config.scaling)
    dataset = with_conditions(dataset, config.condition, (*config.sets, *config.series))
    event, classes = dataset.event_shape, dataset.num_classes if config.conditional else None
    if config.flip and len(event) == 1:
        raise ValueError("--flip mirrors signals, images and volumes; samples here are vectors.")
    others = network_conditions(dataset, event, config.sets, config.series)
    if config.condition_dropout is not None and classes is None and not others:
        raise ValueError("--condition-dropout hides conditions, and there are none to learn from here; leave it out.")
    augmentation = None if config.augment is None else Augmentation(config.augment)
    if augmentation is not None:
        augmentation.check_event(event)
        others["vectors"] = {**others.get("vectors", {}), AUGMENT: augmentation.size}
    held_out = samples_held_out(config, dataset)
    x = some(dataset)
    sigma_data = float(x.std()) if config.sigma_data is None else config.sigma_data
    times = density_of_times(config, sigma_data)
    weighting = weighting_of(config, sigma_data)
    torch.manual_seed(config.seed)  # the initial weights
    model = ss.ScoreModel(network(config, event, classes, **others), sde, config.predicts, sigma_data)
    with torch.no_grad():
        model(x[:2], sde.T)  # a network that does not fit the samples says so now
    options = TrainOptions(
        **{
            **training_options(config),
            "warmup": min(config.warmup, config.steps // 10),
            "weighting": weighting,
            "times": times,
            "coupling": coupling_of(config),
            "snapshots": snapshots_of(config),
            "augment": augmentation,
            "condition_dropout": config.condition_dropout,
            "dequantize": dataset.scaling.levels is not None if config.dequantize is None else config.dequantize,
            "folder": out,
            "held_out": held_out,
            "early_stopping": EarlyStopping(config.tolerance) if config.early_stopping else None,
        }
    )
    name = type(model.net).__name__  # as long as it is not divided
    run = training_run(model, dataset, options)
    if is_main():
        say(str(dataset))
        for kind in ("sets", "series"):
            if kind in others:
                hint = " (--sets takes them without their order)" if kind == "series" else ""
                say(f"{', '.join(others[kind])}: {kind}, of any length{hint}")
        say(f"{name}, {size_of_training(model)}; {brief(sde)}, sigma_data {sigma_data:.4g}")
        if len(x) > 1:
            reach, last = ss.sde.suggest_sigma_max(x), math.exp(-0.5 * sde.log_snr(sde.T).item())
            say(f"starting from the prior loses at most {ss.sde.prior_mismatch(sde, x).upper:.2g} nats")
            say(f"(noise ends at sigma/alpha = {last:.3g}; two samples lie at most {reach:.3g} apart)")
    return run


def samples_held_out(config: TrainConfig, dataset: Dataset) -> float | Dataset | None:
    """The share of the data that is held out, or the data set of its own, in the units of the data.

    Raises:
        FileNotFoundError, ValueError: it cannot be read, or conditions would have to be read for it.
    """
    if not isinstance(config.held_out, Path):
        return config.held_out
    for flag in ("condition", "label"):
        if getattr(config, flag):
            raise ValueError(
                f"--held-out of a file of its own would need its own --{flag}: give a share, such as 0.05."
            )
    decoded = config.decoded and config.decoded.with_stem(f"{config.decoded.stem}-held-out")
    units: dict[str, object] = {"levels": config.levels}
    if "scaling" in inspect.signature(reader_of(config.held_out)).parameters:  # pictures bring theirs
        units["scaling"] = dataset.scaling
    return replace(config, data=config.held_out, decoded=decoded).load(**units)


def log_sigma(sigma_data: float) -> float:
    """The mean of log(σ/α) in training that suits data of this deviation.

    Karras et al. 2022 (arXiv:2206.00364, table 1) take -1.2 for a deviation of 0.5, which is log 0.5 - 0.5.
    """
    return math.log(sigma_data) - 0.5


@contextmanager
def compiler_told() -> Iterator[None]:
    """Inside, what a compiler cannot do is an error of the flags: it is told in a line."""
    try:
        yield
    except NotCompiled as error:
        raise ValueError(str(error)) from error


def is_main() -> bool:
    """Whether this process is the one that talks and draws."""
    with needs("train"):
        from accelerate import PartialState

    return bool(PartialState().is_main_process)


def main(config: TrainConfig) -> Path:
    """Train, and draw the loss; the folder of the run."""
    config.ready()
    if not config.data.expanduser().exists():
        raise FileNotFoundError(f"no data at {config.data}.")
    out = Path("runs") / config.data.stem if config.out is None else config.out.expanduser()
    there = out.exists()
    make_writable(out)
    with gone_if_empty(out, there=there), compiler_told():
        run = first_step_ready(config, out)
    if is_main():
        remember(config, out)
    watch, began = Watch(config.steps, "step"), time.perf_counter()
    compiling = config.compile and run.step < config.steps
    if compiling and is_main():
        say("compiling the network: the first step takes a minute")
    try:
        with compiler_told():
            for step in run:
                if compiling and is_main():
                    say(f"compiled: the first step took {duration(time.perf_counter() - began)}")
                    compiling = False
                if is_main():
                    watch.done(step.step)
    except Terminated as told:
        if is_main():
            say(f"SIGTERM: step {told.step} of {config.steps} is saved; go on by the same command with --resume")
        raise
    if is_main():
        save_losses(out / "loss.png", out / "log.jsonl")
        if run.held_out is not None:
            save_held_out(out / "held-out.png", out / "log.jsonl")
            say(in_short(run.held_out))
        say(f"step {run.step} of {config.steps}; generate with: scoresde sample --checkpoint {out}")
    return out
