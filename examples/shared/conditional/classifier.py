"""Digits by a classifier of noisy digits: is it calibrated at each noise level, and where does its gradient lead?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import scoresde as ss
from scoresde.cli.outputs import file_name, show
from scoresde.cli.pictures import by_class, new_figure, save_figure, save_grid
from scoresde.data import Dataset
from scoresde.files import make_writable
from scoresde.guidance import Calibration, calibration
from scoresde.nn import NoiseClassifier
from scoresde.times import LogNormalSigma, Stratified
from scoresde.train import train_classifier
from shared.conditional.task import Flags, fit, network, training_options
from shared.digits import CLASSES, EVENT, load
from shared.readers import Judge
from shared.training import of_each_class, trained

STEPS = 2000
LEVELS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # σ/α at which the classifier is asked whether it can be believed


def run(flags: Flags, out: Path) -> dict[str, Any]:
    """Train a score without labels and a classifier, draw, measure; the figures."""
    training, held = load(flags.seed)
    judge = Judge(training, of_each_class(held, flags.samples), flags.seed)
    model = fit(flags, network(flags, 1), training, out, steps=STEPS)
    classifier = learn(flags, training, model, out)
    report = judged(classifier, held, flags.seed)
    picture(report, out / "calibration.png")
    times = [{"sigma_over_alpha": level, **row} for level, row in zip(LEVELS, rows(report), strict=True)]
    for row in times:
        show(f"sigma/alpha {row['sigma_over_alpha']:g}", row)

    labels = judge.labels
    device = next(model.parameters()).device
    generated = {}
    for w in (0.0, *flags.guidance):
        for name, temperature in (("", 1.0), (", calibrated", report.temperature_at)):
            if w == 0 and name:
                continue
            score = ss.classifier(model, classifier, w, label=labels.to(device), temperature=temperature)
            solution = ss.sample(score, (len(labels), *EVENT), steps=flags.sampling_steps, seed=flags.seed)
            x = judge.levels(solution.x.cpu())
            kind = f"scale {w:g}{name}"
            generated[kind] = judge(x)
            show(kind, generated[kind])
            pixels = judge.scaling.to_uint8(by_class(x, labels, 10, min(8, int(labels.bincount().min()))))
            save_grid(out / file_name(kind, ".png"), pixels, CLASSES, f"classifier guidance, {kind}")
    return {"real": {"accuracy": judge.accuracy_real}, "calibration": times, "generated": generated}


def learn(flags: Flags, training: Dataset, model: ss.ScoreModel, out: Path) -> ss.ClassifierModel:
    """The noise-conditional classifier under the model's SDE, with averaged weights."""
    torch.manual_seed(flags.seed)
    net = NoiseClassifier(1, 10, width=flags.width, attention_levels=(), dropout=flags.dropout)
    return trained(
        train_classifier,
        ss.ClassifierModel(net, model.sde, model.sigma_data),
        training,
        **training_options(flags, STEPS),
        lr=flags.lr / 2,
        weight_decay=0.05,
        times=Stratified(LogNormalSigma(-0.6, 1.4)),
        folder=make_writable(out / "classifier"),
    )


def judged(classifier: ss.ClassifierModel, held: Dataset, seed: int) -> Calibration:
    """Its calibration on all held-out digits, at each of LEVELS."""
    sde, device = classifier.sde, next(classifier.parameters()).device
    times = torch.stack([sde.t_of_log_snr(-2 * torch.tensor(level, dtype=torch.float64).log()) for level in LEVELS])
    batch = held[:]
    return calibration(classifier, sde, batch["x"].to(device), batch["label"].to(device), times, seed)


def rows(report: Calibration) -> list[dict[str, float]]:
    """The figures of each time."""
    names = ("accuracy", "confidence", "nll", "ece", "ece_floor", "brier", "temperature")
    return [{name: float(getattr(report, name)[i]) for name in names} for i in range(len(LEVELS))]


def picture(report: Calibration, path: Path) -> None:
    """Accuracy beside confidence, and the fitted temperature, over the noise level."""
    figure, axes = new_figure(1, 2, size=3.2)
    for name in ("accuracy", "confidence"):
        axes[0, 0].plot(LEVELS, getattr(report, name).cpu(), marker="o", label=name)
    axes[0, 0].legend(fontsize=7)
    axes[0, 1].plot(LEVELS, report.temperature.cpu(), marker="o")
    axes[0, 1].axhline(1.0, color="grey", linewidth=0.8)
    axes[0, 1].set_title("fitted temperature", fontsize=8)
    for axis in axes.flat:
        axis.set_xscale("log")
        axis.set_xlabel("σ/α", fontsize=8)
    save_figure(path, figure)
