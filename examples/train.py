"""Train a score model on your own data: images, Parquet, arrays; one CPU, one GPU or many.

    python examples/train.py --data my-images --network cifar-small --steps 100000
    python examples/train.py --data signals.npy --channels none --sde ve --sde-options sigma_max=80
    torchrun --nproc-per-node 4 examples/train.py --data my-images --mixed-precision bf16     # or accelerate launch
    python examples/train.py --data my-images --network cifar-small --steps 100000 --resume   # go on after a kill

Vectors are learned by a residual MLP, signals, images and volumes by a U-Net. The folder that is written describes
itself: sample.py and likelihood.py need nothing else.
"""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from choices import (
    PRESETS,
    SDES,
    TIMES,
    WEIGHTINGS,
    NetworkName,
    PredictionName,
    SDEName,
    TimesName,
    WeightingName,
    build,
)
from command_line import DataFlags, command, use_threads
from outputs import make_folder, save_json
from pictures import save_curve
from torch import Tensor

import scoresde as ss
from scoresde import losses
from scoresde.data import Dataset
from scoresde.nn import MLP, UNet
from scoresde.times import Stratified, TimeDensity
from scoresde.train import Run
from scoresde.train import train as training_run


@dataclass(kw_only=True)
class Config(DataFlags):
    """Train a score model on your own data, and write a checkpoint folder that describes itself."""

    levels: int | None = None
    """The numbers in .npy or .npz are 0 ... levels - 1; needed for integers other than 8-bit ones."""
    conditional: bool = True
    """Learn the score of each class too, where the data have labels."""
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

    network: NetworkName = "auto"
    """A preset U-Net for images, or auto: an MLP for vectors, a U-Net for all else; the flags below change it."""
    width: int | None = None
    """Width of the network: channels at the finest level."""
    multipliers: tuple[int, ...] | None = None
    """U-Net: channels of each level, finest first, in units of width; each level halves the sizes."""
    blocks: int | None = None
    """U-Net: residual blocks of each level."""
    attention_levels: tuple[int, ...] | None = None
    """U-Net: levels with self-attention, 0 the finest, -1 the coarsest; without numbers none."""
    conditioning: Literal["adaptive", "add"] | None = None
    """U-Net: how time and class come in, by a scale and shift or by addition."""
    depth: int | None = None
    """MLP: number of residual blocks."""
    time_features: Literal["sinusoidal", "fourier"] | None = None
    """How the noise level is shown to the network."""
    dropout: float | None = None
    """Probability of dropping an activation in training."""

    weighting: WeightingName = "edm"
    """Weight of the loss over noise levels (scoresde.losses); edm takes the data's standard deviation."""
    times: TimesName = "log-normal-sigma"
    """Density of training times; log-normal-sigma is centred on 0.6 of the data's deviation unless told."""
    times_options: tuple[str, ...] = ()
    """Its parameters, as name=value: mean=-0.5, std=1.2, ..."""
    stratified: bool = True
    """Spread the times of each batch evenly over their density: less noise in the gradient."""
    label_dropout: float | None = None
    """Probability that a label is hidden, for classifier-free guidance; 0.1 unless told."""
    dequantize: bool | None = None
    """Fill the bins of quantised data with uniform noise, so that bits/dim mean something; done unless told."""
    flip: bool = False
    """Mirror each sample along its last axis with probability 1/2."""

    steps: int = 20_000
    """Training steps, those before a resumption included."""
    batch_size: int = 128
    """Samples in a step, over all processes."""
    lr: float = 5e-4
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.0
    """Of AdamW."""
    warmup: int = 500
    """Steps of linear warm-up of the learning rate (fewer in a run shorter than ten times as many)."""
    decay: Literal["constant", "cosine"] = "cosine"
    """What the learning rate does after the warm-up."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.999
    """Decay of the average of the weights, which is what generates."""
    mixed_precision: Literal["no", "bf16"] | None = None
    """bf16 runs the network in bfloat16; what accelerate launch says unless told."""
    accumulate: int = 1
    """Split each process's part of the batch into so many pieces, to save memory."""
    num_workers: int = 0
    """Processes that prepare batches; 0 is best for data in memory, as these are."""
    save_every: int = 1000
    """Steps between checkpoints; one more is written at the end."""
    keep: int = 2
    """Checkpoints that are left."""
    log_every: int = 50
    """Steps between lines of log.jsonl."""
    max_seconds: float | None = None
    """Stop and save after so much time; --resume goes on."""
    seed: int = 0
    """Of everything: weights and training."""
    cpu: bool = False
    """Stay on the CPU although there is a GPU."""
    threads: int = 0
    """Threads of torch; 0 leaves its default."""


def network(config: Config, event: tuple[int, ...], classes: int | None) -> torch.nn.Module:
    """The network for events of this shape.

    Raises:
        ValueError: a shape that no network takes, or a flag that this network does not have.
    """
    flags = ("width", "multipliers", "blocks", "attention_levels", "conditioning", "depth", "time_features", "dropout")
    changes = {name: value for name in flags if (value := getattr(config, name)) is not None}
    kind: type[UNet] | type[MLP]
    base: dict[str, Any]
    if config.network != "auto":
        if len(event) != 3:
            raise ValueError(
                f"the preset {config.network} is for images (C, H, W), and samples here are {event}; "
                "take --network auto."
            )
        with torch.device("meta"):  # only its arguments are wanted, no memory for its weights
            kind, base = UNet, PRESETS[config.network](event[0], classes).config
    elif len(event) == 1:
        kind, base = MLP, {"dim": event[0], "num_classes": classes}
    elif len(event) <= 4:
        kind, base = UNet, {"channels": event[0], "event_dims": len(event) - 1, "num_classes": classes}
    else:
        raise ValueError(
            f"samples of shape {event} have {len(event)} axes; expected vectors (d,), signals (C, L), images (C, H, W) "
            "or volumes (C, D, H, W). For arrays without a channel axis say --channels none."
        )
    unknown = [name for name in changes if name not in inspect.signature(kind).parameters]
    if unknown:
        raise ValueError(
            f"--{unknown[0].replace('_', '-')} says nothing about the {kind.__name__} that learns samples of shape "
            f"{event}; leave it out."
        )
    return kind(**{**base, **changes})


def some(dataset: Dataset, count: int = 2048) -> Tensor:
    """Up to ``count`` samples, the same ones every time."""
    rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count]
    return dataset[rows]["x"]


def density_of_times(config: Config, sigma_data: float) -> TimeDensity:
    """How training times are drawn."""
    options = list(config.times_options)
    if config.times == "log-normal-sigma" and not any(option.startswith("mean=") for option in options):
        # Karras et al. 2022 take -1.2 for a standard deviation of 0.5, which is log 0.5 - 0.5.
        options.append(f"mean={math.log(sigma_data) - 0.5}")
    density: TimeDensity = build(TIMES, config.times, options)
    return Stratified(density) if config.stratified else density


def prepare(config: Config, out: Path) -> Run[ss.ScoreModel]:
    """Everything up to the first step; all that can be wrong with the flags or the data is found here.

    Raises:
        FileNotFoundError, TypeError, ValueError: what is wrong.
    """
    sde: ss.SDE = build(SDES, config.sde, config.sde_options)
    dataset = config.load(levels=config.levels)
    event, classes = dataset.event_shape, dataset.num_classes if config.conditional else None
    if config.flip and len(event) == 1:
        raise ValueError("--flip mirrors signals, images and volumes; samples here are vectors.")
    if config.label_dropout is not None and classes is None:
        raise ValueError("--label-dropout hides labels, and there are none to learn from here; leave it out.")
    x = some(dataset)
    sigma_data = float(x.std()) if config.sigma_data is None else config.sigma_data
    times = density_of_times(config, sigma_data)
    weighting = losses.edm(sigma_data) if config.weighting == "edm" else WEIGHTINGS[config.weighting]
    torch.manual_seed(config.seed)  # the initial weights
    model = ss.ScoreModel(network(config, event, classes), sde, config.predicts, sigma_data)
    with torch.no_grad():
        model(x[:2], sde.T)  # a network that does not fit the samples says so now
    run = training_run(
        model,
        dataset,
        steps=config.steps,
        batch_size=config.batch_size,
        lr=config.lr,
        weight_decay=config.weight_decay,
        warmup=min(config.warmup, config.steps // 10),
        decay=config.decay,
        clip=config.clip,
        ema=config.ema,
        weighting=weighting,
        times=times,
        label_dropout=config.label_dropout,
        flip=config.flip,
        dequantize=dataset.scaling.levels is not None if config.dequantize is None else config.dequantize,
        seed=config.seed,
        folder=out,
        resume=config.resume,
        save_every=config.save_every,
        keep=config.keep,
        log_every=config.log_every,
        max_seconds=config.max_seconds,
        mixed_precision=config.mixed_precision,
        accumulate=config.accumulate,
        num_workers=config.num_workers,
        cpu=config.cpu,
    )
    if is_main():
        size = sum(p.numel() for p in model.parameters())
        print(f"{dataset}\n{type(model.net).__name__} of {size:,} parameters, {sde}, sigma_data {sigma_data:.4g}")
        if len(x) > 1:
            reach, last = ss.suggest_sigma_max(x), math.exp(-0.5 * sde.log_snr(sde.T).item())
            print(f"starting from the prior loses at most {ss.prior_mismatch(sde, x).upper:.2g} nats")
            print(f"(noise ends at sigma/alpha = {last:.3g}; two samples lie at most {reach:.3g} apart)")
    return run


def is_main() -> bool:
    """Whether this process is the one that talks and draws."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def main(config: Config) -> None:
    """Train, and draw the loss."""
    use_threads(config.threads)
    if not config.data.expanduser().exists():
        raise FileNotFoundError(f"no data at {config.data}.")
    out = make_folder(Path("runs") / config.data.stem if config.out is None else config.out)
    run = prepare(config, out)
    if is_main():
        save_json(out / "flags.json", asdict(config))
    for _ in run:
        pass
    if is_main():
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        steps, values = ([line[name] for line in lines] for name in ("step", "loss"))
        save_curve(out / "loss.png", steps, values, ylabel="denoising score matching loss")
        print(f"step {run.step} of {config.steps}; generate with: python examples/sample.py --checkpoint {out}")


if __name__ == "__main__":
    command(main, Config)
