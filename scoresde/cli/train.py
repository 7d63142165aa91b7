"""Train a score model on your own data: images, Parquet, arrays; one CPU, one GPU or many.

    scoresde train --data my-images --network cifar-small --steps 100000
    scoresde train --data signals.npy --channels none --sde ve --sde-options sigma_max=80
    scoresde train --data theta.npy --condition obs=x.npy                   # the law of theta given each row of x
    torchrun --nproc-per-node 4 -m scoresde train --data my-images --mixed-precision bf16     # or accelerate launch
    scoresde train --data my-images --network cifar-small --steps 100000 --resume    # go on after a kill

Vectors are learned by a residual MLP, signals, images and volumes by a U-Net. The folder that is written describes
itself: `scoresde sample`, `likelihood` and the others need nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import scoresde as ss
from scoresde import losses
from scoresde.cli.choices import SDES, TIMES, WEIGHTINGS, PredictionName, SDEName, TimesName, WeightingName, build
from scoresde.cli.conditions import network_conditions, with_conditions
from scoresde.cli.config import remember
from scoresde.cli.costs import Watch, size_of_training
from scoresde.cli.flags import DataFlags, Repeated, ScriptFlags
from scoresde.cli.held_out import in_short, save_held_out
from scoresde.cli.networks import NetworkFlags, network
from scoresde.cli.outputs import brief, say
from scoresde.cli.pictures import save_losses
from scoresde.cli.training_flags import TrainingFlags, training_options
from scoresde.data import Dataset
from scoresde.data.scaling import Per
from scoresde.extras import needs
from scoresde.files import make_writable
from scoresde.times import Stratified, TimeDensity
from scoresde.train import EarlyStopping, Run, TrainOptions
from scoresde.train import train as training_run


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
    """Weight of the loss over noise levels (scoresde.losses); edm takes the data's standard deviation."""
    times: TimesName = "log-normal-sigma"
    """Density of training times; log-normal-sigma is centred on 0.6 of the data's deviation unless told."""
    times_options: tuple[str, ...] = ()
    """Its parameters, as name=value: mean=-0.5, std=1.2, ..."""
    stratified: bool = True
    """Spread the times of each batch evenly over their density: less noise in the gradient."""
    condition_dropout: float | None = None
    """Probability that a label is hidden, for classifier-free guidance; 0.1 unless told."""
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
    return Stratified(density) if config.stratified else density


def first_step_ready(config: TrainConfig, out: Path) -> Run[ss.ScoreModel]:
    """Everything up to the first step; all that can be wrong with the flags or the data is found here.

    Raises:
        FileNotFoundError, TypeError, ValueError: what is wrong.
    """
    sde: ss.SDE = build(SDES, config.sde, config.sde_options)
    dataset = config.load(levels=config.levels, scaling=config.scaling)
    dataset = with_conditions(dataset, config.condition)
    event, classes = dataset.event_shape, dataset.num_classes if config.conditional else None
    if config.flip and len(event) == 1:
        raise ValueError("--flip mirrors signals, images and volumes; samples here are vectors.")
    others = network_conditions(dataset, event)
    if config.condition_dropout is not None and classes is None and not others:
        raise ValueError("--condition-dropout hides conditions, and there are none to learn from here; leave it out.")
    held_out = samples_held_out(config, dataset)
    x = some(dataset)
    sigma_data = float(x.std()) if config.sigma_data is None else config.sigma_data
    times = density_of_times(config, sigma_data)
    weighting = losses.edm(sigma_data) if config.weighting == "edm" else WEIGHTINGS[config.weighting]
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
            "condition_dropout": config.condition_dropout,
            "dequantize": dataset.scaling.levels is not None if config.dequantize is None else config.dequantize,
            "folder": out,
            "held_out": held_out,
            "early_stopping": EarlyStopping(config.tolerance) if config.early_stopping else None,
        }
    )
    run = training_run(model, dataset, options)
    if is_main():
        say(str(dataset))
        say(f"{type(model.net).__name__}, {size_of_training(model)}; {brief(sde)}, sigma_data {sigma_data:.4g}")
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
    if config.condition:
        raise ValueError("--held-out of a file of its own would need its own --condition: give a share, such as 0.05.")
    return replace(config, data=config.held_out).load(levels=config.levels, scaling=dataset.scaling)


def log_sigma(sigma_data: float) -> float:
    """The mean of log(σ/α) in training that suits data of this deviation.

    Karras et al. 2022 (arXiv:2206.00364, table 1) take -1.2 for a deviation of 0.5, which is log 0.5 - 0.5.
    """
    return math.log(sigma_data) - 0.5


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
    out = make_writable(Path("runs") / config.data.stem if config.out is None else config.out)
    run = first_step_ready(config, out)
    if is_main():
        remember(config, out)
    watch = Watch(config.steps, "step")
    for step in run:
        if is_main():
            watch.done(step.step)
    if is_main():
        save_losses(out / "loss.png", out / "log.jsonl")
        if run.held_out is not None:
            save_held_out(out / "held-out.png", out / "log.jsonl")
            say(in_short(run.held_out))
        say(f"step {run.step} of {config.steps}; generate with: scoresde sample --checkpoint {out}")
    return out
