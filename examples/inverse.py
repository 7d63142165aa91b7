"""Inverse problems on pictures with a trained prior: holes, super-resolution, deblurring, colourisation, and more.

    python examples/inverse.py                                        # trains a small digits model, writes runs/inverse
    python examples/inverse.py --prior runs/digits-vp --methods pigdm moment-matching --tasks hole x2
    python examples/inverse.py --prior runs/cifar --data cifar/test.parquet --count 16

    hole         a square in the middle is missing             deblur       Gaussian blur
    pixels       most pixels are missing, at random            colour       luma alone, of colour pictures
    x2, x4       means of 2x2 or 4x4 pixels                    projections  random projections (compressed sensing)
                                                               phase        moduli of the Fourier transform, by dps

Pictures that the prior has not seen are measured with noise, and their posteriors sampled. Each task writes one PNG:
truth, measurement, posterior mean, standard deviation and samples of every method. report.json says how far mean and
samples are from the truth (PSNR, beside simple baselines) and from what was measured (1 is the noise itself), how often
the truth lies inside the samples' 50 % and 90 % intervals, and the cost.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import digits
import torch
from choices import SDES, SDEName
from command_line import DataFlags, command, use_threads
from conditioned import of_each_class, show
from inverse_figures import answer_figures, baseline_figures, save_picture
from inverse_methods import MethodName, Prior, answer
from inverse_tasks import Event, Task, TaskName, build
from outputs import make_folder, save_json
from readers import DigitReader
from torch import Tensor
from trained import Trained, open_checkpoint

import scoresde as ss
from scoresde.data import Dataset, Scaling
from scoresde.inverse import Measurement

DIGIT = (1, 8, 8)


@dataclass
class Config:
    """Measure pictures, sample what they may have been, and see how right that is."""

    prior: Path | None = None
    """Folder of a run of examples/train.py or examples/digits.py; without it a model of digits is trained here."""
    data: Path | None = None
    """Pictures the prior has not seen, a folder, a Parquet file or .npy; for a prior of digits those held out."""
    mode: Literal["L", "RGB"] | None = None
    """Convert --data to grey (L) or RGB; as they are unless told."""
    image_column: str | None = None
    """The column of a Parquet file that holds the images; image or img unless told."""
    out: Path = Path("runs/inverse")
    """Folder for everything that is written."""
    tasks: tuple[TaskName, ...] = ()
    """What is measured; by default hole, pixels, x2, x4, deblur, and colour where there are colours."""
    methods: tuple[MethodName, ...] = ()
    """How it is answered; by default pigdm and diffpir, with particles for digits, and dps for phase."""
    count: int = 16
    """Pictures that are measured."""
    samples: int = 32
    """Samples of each posterior."""
    particles: int = 64
    """Particles for each picture, of which --methods particles draws its samples."""
    steps: int = 50
    """Steps of a sample, one evaluation of the network each and one to end with (repaint shares them out)."""
    noise: float = 0.05
    """Standard deviation of the measurements' noise, for pictures in [-1, 1]."""
    hole: float = 0.5
    """Side of the hole, as a share of the picture's sides."""
    kept: float = 0.25
    """Share of the pixels that task pixels keeps, and projections as a share of the picture's numbers."""
    blur: float | None = None
    """Standard deviation of the blur in pixels; 1, or a twentieth of the height where that is more, unless told."""
    dps_scale: float = 1.0
    """Length of each step's pull of dps, for so few steps larger than in its paper, 0.1 to 1."""
    sigma_data: float | None = None
    """Standard deviation of the data that pigdm and particles take in every direction; the prior's own for digits, and
    four times that for larger pictures unless told: what is common to many pixels varies more than one pixel does."""
    batch_size: int = 256
    """Samples or particles at once; all particles of one picture stay together."""
    sde: SDEName = "vp"
    """For a model trained here: the SDE."""
    train_steps: int = 600
    """For a model trained here: training steps."""
    resume: bool = False
    """For a model trained here: go on from the last checkpoint in the folder."""
    seed: int = 0
    """Of the split of digits and all noise; that of the run of digits.py, so that held-out digits are held out."""
    threads: int = 0
    """Threads of torch; 0 leaves its default."""
    cpu: bool = False
    """Stay on the CPU although there is a GPU."""

    def check(self) -> None:
        """Raise ValueError for flags that would fail only after work."""
        least = {"count": 1, "samples": 2, "particles": 2, "steps": 1, "batch_size": 1, "train_steps": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {value}, got {getattr(self, name)}.")
        for name in ("hole", "kept"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"--{name} is a share above 0 and below 1, got {getattr(self, name)}.")
        for name in ("noise", "blur", "dps_scale", "sigma_data"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"--{name.replace('_', '-')} must be positive and finite, got {value}.")
        if "particles" in self.methods and self.particles < self.samples:
            raise ValueError(
                f"--particles {self.particles} are fewer than --samples {self.samples}, which are drawn of them: some "
                "would be the same. Take more particles or fewer samples."
            )
        if "phase" in self.tasks and self.methods not in ((), ("dps",)):
            raise ValueError(
                "--tasks phase is not linear, and of the methods dps alone takes such: give --methods dps, or none."
            )
        if self.prior is not None and self.resume:
            raise ValueError("--resume goes on with training, and --prior brings a trained model: leave one out.")
        if self.prior is None and self.data is not None:
            raise ValueError(
                "--data needs a prior of such pictures: train one with examples/train.py and give --prior."
            )
        if self.data is None and (self.mode, self.image_column) != (None, None):
            raise ValueError("--mode and --image-column say how --data is read: give --data, or leave them out.")


def methods_of(config: Config, task: TaskName, event: Event) -> tuple[MethodName, ...]:
    """The methods asked for, or sensible ones."""
    if config.methods:
        return config.methods
    if task == "phase":
        return ("dps",)
    # Particles want many of them for many pixels: too slow for large pictures.
    few = event == DIGIT and config.particles >= config.samples
    return ("pigdm", "diffpir", "particles") if few else ("pigdm", "diffpir")


def opened(folder: Path, *, cpu: bool) -> Trained:
    """The prior given.

    Raises:
        ValueError: it is none of pictures with whole levels, grey or in colours.
    """
    inside = folder.expanduser() / "checkpoints"
    found = open_checkpoint(inside if inside.is_dir() else folder, ema=True, cpu=cpu)
    if len(found.event) != 3 or found.event[0] not in (1, 3) or found.scaling.levels is None:
        raise ValueError(
            f"{folder} holds a model of events {found.event}; these tasks need pictures (1 or 3, H, W) of whole levels."
        )
    return found


def own_pictures(config: Config, path: Path, event: Event, scaling: Scaling) -> Dataset:
    """``config.count`` of the user's pictures, drawn at random.

    Raises:
        FileNotFoundError, ValueError: none, or others than the prior's.
    """
    given = DataFlags(data=path, mode=config.mode, image_column=config.image_column).load()
    if given.event_shape != event or given.scaling != scaling:
        raise ValueError(
            f"the prior knows pictures {event} in units of {scaling}, and {path} holds {given.event_shape} in units of "
            f"{given.scaling}; resize them, or convert them by --mode."
        )
    if len(given) < config.count:
        raise ValueError(f"{path} holds {len(given)} pictures, and --count asks for {config.count}.")
    order = torch.randperm(len(given), generator=torch.Generator().manual_seed(config.seed))
    return given.subset(order[: config.count])


def pictures_of(config: Config, event: Event, scaling: Scaling, held: Dataset) -> tuple[Dataset, bool]:
    """What is measured, and whether it is our digits.

    Raises:
        FileNotFoundError, ValueError: nothing to measure for this prior, or too little.
    """
    if config.data is not None:
        return own_pictures(config, config.data, event, scaling), False
    if event != DIGIT or scaling != held.scaling:
        raise ValueError(
            f"the prior in {config.prior} knows pictures {event}, and only 8x8 digits are at hand: give some that it "
            "has not seen by --data."
        )
    if config.count > len(held):
        raise ValueError(f"--count {config.count} is more than the {len(held)} digits held out.")
    of_each = of_each_class(held, min(len(held), config.count + 9))
    chosen = of_each if len(of_each) >= config.count else held
    return chosen.subset(torch.arange(config.count)), True


def main(config: Config) -> dict[str, Any]:
    """Train or load, measure, answer, judge, write; the report."""
    start = time.perf_counter()
    config.check()
    use_threads(config.threads)
    out = make_folder(config.out)
    training, held = digits.load(config.seed)
    found = None if config.prior is None else opened(config.prior, cpu=config.cpu)
    event: Event = DIGIT if found is None else (found.event[0], found.event[1], found.event[2])
    scaling = held.scaling if found is None else found.scaling
    chosen, ours = pictures_of(config, event, scaling, held)
    names: tuple[TaskName, ...] = config.tasks or (
        ("hole", "pixels", "x2", "x4", "deblur", "colour")
        if event[0] == 3
        else ("hole", "pixels", "x2", "x4", "deblur")
    )
    tasks = [
        build(name, event, side=config.hole, kept=config.kept, blur=config.blur, noise=config.noise, seed=config.seed)
        for name in names
    ]
    model = trained_here(config, training, out) if found is None else found.model
    model.requires_grad_(False)  # gradients are taken in the picture alone
    device = next(model.parameters()).device
    prior = Prior(
        model,
        model.sde,
        config.sigma_data or (model.sigma_data or 1.0) * (1 if event == DIGIT else 4),
        event,
        config.samples,
        config.particles,
        config.steps,
        config.dps_scale,
        config.batch_size,
        config.seed,
        device,
    )
    truth, labels = chosen[:]["x"], chosen.label if ours else None
    reader = DigitReader(training) if ours else None
    report: dict[str, Any] = {
        "config": {**asdict(config), "out": str(out)},
        "sde": repr(model.sde),
        "data": str(config.data or "scikit-learn digits, held out"),
        "truth": {} if reader is None or labels is None else {"accuracy": reader.accuracy(truth, labels)},
        "sigma_data": prior.sigma_data,
        "tasks": {},
    }
    for task in tasks:
        report["tasks"][task.name] = solve(config, prior, task, truth, scaling, reader, labels, out)
        save_json(out / "report.json", report)  # what has been done is kept if a later task fails
    report["seconds"] = round(time.perf_counter() - start, 1)
    save_json(out / "report.json", report)
    print(f"{report['seconds']:.0f} s in all; pictures and report.json are in {out}")
    return report


def trained_here(config: Config, training: Dataset, out: Path) -> ss.ScoreModel:
    """The small model of digits."""
    chosen = digits.Config(
        sde=config.sde, steps=config.train_steps, resume=config.resume, seed=config.seed, cpu=config.cpu
    )
    return digits.fit(chosen, SDES[config.sde](), training, out)


def solve(
    config: Config,
    prior: Prior,
    task: Task,
    truth: Tensor,
    scaling: Scaling,
    reader: DigitReader | None,
    labels: Tensor | None,
    out: Path,
) -> dict[str, Any]:
    """One task: measurement, baselines, all methods, the picture; the figures."""
    measurement = Measurement.simulate(truth.to(prior.device), task.operator, config.noise, config.seed)
    y = measurement.y.cpu()
    figures: dict[str, Any] = {"baselines": {}, "methods": {}}
    for name, x in task.baselines(y).items():
        figures["baselines"][name] = baseline_figures(x, truth, measurement, reader, labels)
        show(f"{task.name}, {name}", figures["baselines"][name])
    drawn = {}
    for method in methods_of(config, task.name, prior.event):
        answers = answer(prior, method, measurement)
        numbers = answer_figures(answers, truth, task, measurement, scaling, reader, labels)
        figures["methods"][method] = numbers
        drawn[method] = (answers, numbers)
        show(f"{task.name}, {method}", numbers)
    save_picture(out / f"{task.name}.png", truth, task, y, drawn, scaling)
    return figures


if __name__ == "__main__":
    command(main, Config)
