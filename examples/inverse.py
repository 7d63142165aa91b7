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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.cli.command import command
from scoresde.cli.flags import ReaderFlags, as_flag, at_least
from scoresde.cli.outputs import finish, show, told
from scoresde.cli.posteriors import PARTICLES, MethodName, PriorModel, answer
from scoresde.cli.trained import Trained, checkpoints_in, open_checkpoint
from scoresde.data import Dataset, Scaling
from scoresde.files import write_json
from scoresde.inverse import Measurement
from shared.digits import EVENT, DigitPriorFlags, load
from shared.inverse.figures import answer_figures, baseline_figures, save_picture
from shared.inverse.tasks import TASKS, Event, Settings, Task, TaskName
from shared.readers import DigitReader
from shared.training import of_each_class


@dataclass(frozen=True, kw_only=True)
class Config(DigitPriorFlags, Settings, ReaderFlags):
    """Measure pictures, sample what they may have been, and see how right that is."""

    prior: Path | None = None
    """Folder of a run of examples/train.py or examples/digits.py; without it a model of digits is trained here."""
    data: Path | None = None
    """Pictures the prior has not seen, a folder, a Parquet file or .npy; for a prior of digits those held out."""
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
    dps_scale: float = 1.0
    """Length of each step of dps along its gradient, for so few steps larger than in its paper, 0.1 to 1."""
    sigma_data: float | None = None
    """Standard deviation of the data that pigdm and particles take in every direction; the prior's own for digits, and
    four times that for larger pictures unless told: what is common to many pixels varies more than one pixel does."""
    batch_size: int = 256
    """Samples or particles at once; all particles of one picture stay together."""

    def check(self) -> None:
        at_least(self, count=1, samples=2, particles=2, steps=1, batch_size=1, train_steps=1)
        for name in ("hole", "kept"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{as_flag(name)} is a share above 0 and below 1, got {getattr(self, name)}.")
        for name in ("noise", "blur", "dps_scale", "sigma_data"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{as_flag(name)} must be positive and finite, got {value}.")
        if PARTICLES in self.methods and self.particles < self.samples:
            raise ValueError(
                f"--particles {self.particles} are fewer than --samples {self.samples}, which are drawn of them: some "
                "would be the same. Take more particles or fewer samples."
            )
        if "phase" in self.tasks and self.methods not in ((), ("dps",)):
            raise ValueError(
                "--tasks phase is not linear, and of the methods dps alone takes such: give --methods dps, or none."
            )
        self.check_given("prior", self.prior)
        if self.prior is None and self.data is not None:
            raise ValueError(
                "--data needs a prior of such pictures: train one with examples/train.py and give --prior."
            )
        if self.data is None and (self.mode, self.image_column) != (None, None):
            raise ValueError("--mode and --image-column say how --data is read: give --data, or leave them out.")


def methods_of(config: Config, task: str, event: tuple[int, ...]) -> tuple[MethodName, ...]:
    """The methods asked for, or sensible ones."""
    if config.methods:
        return config.methods
    if task == "phase":
        return ("dps",)
    # Particles want many of them for many pixels: too slow for large pictures.
    few = event == EVENT and config.particles >= config.samples
    return ("pigdm", "diffpir", PARTICLES) if few else ("pigdm", "diffpir")


def opened(folder: Path, *, cpu: bool) -> Trained:
    """The prior given.

    Raises:
        ValueError: it is none of pictures with whole levels, grey or in colours.
    """
    found = open_checkpoint(checkpoints_in(folder, "checkpoints"), ema=True, cpu=cpu)
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
    given = config.read(path)
    print(given)
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
    if event != EVENT or scaling != held.scaling:
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
    out = config.begin(config.out)
    training, held = load(config.seed)
    found = None if config.prior is None else opened(config.prior, cpu=config.cpu)
    event: Event = EVENT if found is None else (found.event[0], found.event[1], found.event[2])
    scaling = held.scaling if found is None else found.scaling
    chosen, ours = pictures_of(config, event, scaling, held)
    usual = ("hole", "pixels", "x2", "x4", "deblur", *(("colour",) if event[0] == 3 else ()))
    tasks = [TASKS[name](event, config) for name in config.tasks or usual]
    model = config.trained_here(training, out) if found is None else found.model
    model.requires_grad_(False)  # gradients are taken in the picture alone
    prior = PriorModel(
        score=model,
        sigma_data=config.sigma_data or (model.sigma_data or 1.0) * (1 if event == EVENT else 4),
        event=event,
        samples=config.samples,
        particles=config.particles,
        steps=config.steps,
        dps_scale=config.dps_scale,
        batch_size=config.batch_size,
        seed=config.seed,
        device=next(model.parameters()).device,
    )
    truth, labels = chosen[:]["x"], chosen.label if ours else None
    reader = DigitReader(training) if ours else None
    report: dict[str, Any] = {
        "config": told(config, out),
        "sde": repr(model.sde),
        "data": str(config.data or "scikit-learn digits, held out"),
        "truth": {} if reader is None or labels is None else {"accuracy": reader.accuracy(truth, labels)},
        "sigma_data": prior.sigma_data,
        "tasks": {},
    }
    for task in tasks:
        report["tasks"][task.name] = solve(config, prior, task, truth, scaling, reader, labels, out)
        write_json(out / "report.json", report)  # what has been done is kept if a later task fails
    finish(report, out, start)
    return report


def solve(
    config: Config,
    prior: PriorModel,
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
