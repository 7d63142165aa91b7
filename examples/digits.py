"""The main job: learn scikit-learn's digits, generate them with five solvers, and report honest figures.

    python examples/digits.py                      # VP, writes runs/digits-vp
    python examples/digits.py --sde ve --guidance 3
    python examples/digits.py --resume             # go on after a kill

A class-conditional U-Net is trained on 80 % of the 1797 pictures (8x8, 17 grey levels). The other 20 % are held out;
every figure compares as many generated pictures, with the same labels, to them.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from choices import SDES, SDEName
from command_line import command, use_threads
from outputs import make_folder, save_json
from pictures import by_class, save_curve, save_gif, save_grid, tile
from readers import QUANTILE as QUANTILE
from readers import Judge as Judge
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import scoresde as ss
from scoresde import grids, losses
from scoresde.data import Dataset, from_tensors
from scoresde.nn import UNet, presets
from scoresde.times import LogNormalSigma, Stratified
from scoresde.train import train


@dataclass
class Config:
    """Train a class-conditional score model on scikit-learn's digits, then generate and measure."""

    sde: SDEName = "vp"
    """The SDE that turns digits into noise."""
    out: Path | None = None
    """Folder for everything that is written; default runs/digits-SDE."""
    resume: bool = False
    """Go on from the last checkpoint in the folder; a finished training goes straight to generating."""
    steps: int = 2000
    """Training steps."""
    batch_size: int = 128
    """Pictures in a training step."""
    lr: float = 2e-3
    """Peak learning rate of AdamW; it falls to 0 by a cosine."""
    width: int = 32
    """Channels of the U-Net at its finest level."""
    dropout: float = 0.1
    """Dropout inside the U-Net."""
    guidance: float = 2.0
    """Scale of classifier-free guidance: 1 is conditional, larger is guided."""
    sde_steps: int = 200
    """Steps of the solvers of the reverse SDE (predictor-corrector takes half, at two evaluations each)."""
    ode_steps: int = 50
    """Steps of DDIM (Heun takes half, at two evaluations each)."""
    seed: int = 0
    """Of everything: split, weights, training, sampling."""
    threads: int = 0
    """Threads of torch; 0 leaves its default."""
    cpu: bool = False
    """Stay on the CPU although there is a GPU."""

    def check(self) -> None:
        """Raise ValueError for a flag that would fail only after training."""
        for name in ("steps", "batch_size", "width", "sde_steps", "ode_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}.")
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"--guidance must be a finite number of at least 0, got {self.guidance}.")


def load(seed: int) -> tuple[Dataset, Dataset]:
    """Training and held-out digits, stratified by class."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.uint8)[:, None]
    labels = torch.tensor(digits.target)
    everything = from_tensors(images, labels, levels=17)
    train_rows, held_rows = train_test_split(
        np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=seed
    )
    return everything.subset(torch.tensor(train_rows)), everything.subset(torch.tensor(held_rows))


def solvers(config: Config) -> dict[str, tuple[ss.Solver, Any, int]]:
    """Each family: the solver, its grid and its number of steps."""
    return {
        "euler_maruyama": (ss.EulerMaruyama(), grids.karras, config.sde_steps),
        "predictor_corrector": (ss.PredictorCorrector(), grids.karras, max(config.sde_steps // 2, 1)),
        "probability_flow_ode": (ss.ProbabilityFlow(rtol=1e-3, atol=1e-3), grids.uniform, 1),
        "ddim": (ss.DDIM(), grids.karras, config.ode_steps),
        "heun": (ss.Heun(), grids.karras, max(config.ode_steps // 2, 1)),
    }


def fit(config: Config, sde: ss.SDE, training: Dataset, out: Path) -> ss.ScoreModel:
    """The trained model, with averaged weights."""
    torch.manual_seed(config.seed)  # the initial weights
    shape = {**presets.digits(num_classes=10, dropout=config.dropout).config, "width": config.width}
    net = UNet(**shape)
    sigma_data = float(training[:]["x"].std())
    model = ss.ScoreModel(net, sde, predicts="edm", sigma_data=sigma_data)
    run = train(
        model,
        training,
        steps=config.steps,
        batch_size=config.batch_size,
        lr=config.lr,
        betas=(0.9, 0.99),
        warmup=min(100, config.steps),
        decay="cosine",
        ema=0.999,
        weighting=losses.edm(sigma_data),
        # Noise levels from a fifth of the finest grey level to well above the data's spread.
        times=Stratified(LogNormalSigma(mean=-0.6, std=1.4)),
        dequantize=True,
        seed=config.seed,
        folder=out / "checkpoints",
        resume=config.resume,
        save_every=250,
        log_every=25,
        cpu=config.cpu,
    )
    for _ in run:
        pass
    return run.ema_model().eval()


def generate(config: Config, model: ss.ScoreModel, judge: Judge, out: Path) -> dict[str, dict[str, Any]]:
    """For each solver, guided and not: pictures and figures."""
    shape, labels, device = tuple(judge.held.shape), judge.labels, next(model.parameters()).device
    report: dict[str, dict[str, Any]] = {}
    for name, (solver, grid, steps) in solvers(config).items():
        for kind, scale in (("unguided", 1.0), ("guided", config.guidance)):
            score = ss.classifier_free(model, scale=scale, label=labels.to(device))
            start = time.perf_counter()
            solution = ss.sample(model.sde, score, shape, solver=solver, steps=steps, grid=grid, seed=config.seed)
            seconds = time.perf_counter() - start
            x = judge.levels(solution.x.cpu())
            figures = {"nfe": solution.nfe, "seconds": round(seconds, 2), "samples": len(x), **judge(x)}
            report.setdefault(name, {})[kind] = figures
            print(
                f"{name:22s}{kind:9s} NFE {solution.nfe:4d}  {seconds:5.1f} s  accuracy {figures['accuracy']:.4f}  "
                f"energy distance {figures['energy_distance_over_real']:.2f}x real-vs-real  "
                f"memorised {figures['memorised_share']:.3f}"
            )
            pixels = judge.scaling.to_uint8(by_class(x, labels, 10, 8))
            title = f"{name}, {kind} (scale {scale:g}), {solution.nfe} evaluations"
            save_grid(out / f"{name}-{kind}.png", pixels, [str(k) for k in range(10)], title)
    return report


def animate(config: Config, model: ss.ScoreModel, judge: Judge, out: Path) -> None:
    """A GIF of noise becoming digits along the reverse SDE."""
    labels = torch.arange(10, device=next(model.parameters()).device).repeat_interleave(10)
    solution = ss.sample(
        model.sde,
        ss.classifier_free(model, scale=config.guidance, label=labels),
        (100, 1, 8, 8),
        solver=ss.EulerMaruyama(),
        steps=60,
        grid=grids.log_snr,
        seed=config.seed,
        trajectory=True,
    )
    assert solution.trajectory is not None
    frames = []
    spread = float(judge.train.std())
    for t, x in zip(solution.grid, solution.trajectory, strict=True):
        # Shown at the spread of the data, whatever the SDE's own scale at t.
        scale = float((model.sde.alpha(t) ** 2 * spread**2 + model.sde.sigma(t) ** 2).sqrt()) / spread
        frames.append(tile(judge.scaling.to_uint8(x / scale), 10, zoom=4))
    frames.append(tile(judge.scaling.to_uint8(solution.x), 10, zoom=4))
    save_gif(out / "noise-to-digits.gif", frames)


def bits(model: ss.ScoreModel, held: Dataset, seed: int) -> dict[str, float]:
    """Bits/dim of held-out digits by the probability-flow ODE: given their labels, and without."""
    device, width = next(model.parameters()).device, held.scaling.bin_width
    assert width is not None
    batch = {name: value.to(device) for name, value in held[:].items()}
    loose = ss.ProbabilityFlow(rtol=1e-3, atol=1e-3)
    null = torch.full_like(batch["label"], 10)
    with torch.no_grad():
        return {
            name: float(ss.bits_per_dim(model, batch["x"], width, noise=seed, solver=loose, label=label).mean())
            for name, label in (("given_label", batch["label"]), ("without_label", null))
        }


def main(config: Config) -> None:
    """Train, generate, measure, write."""
    start = time.perf_counter()
    config.check()
    use_threads(config.threads)
    out = make_folder(Path("runs") / f"digits-{config.sde}" if config.out is None else config.out)
    sde = SDES[config.sde]()
    training, held = load(config.seed)
    judge = Judge(training, held, config.seed)
    print(f"independent classifier on held-out real digits: accuracy {judge.accuracy_real:.4f}")
    model = fit(config, sde, training, out)
    trained = time.perf_counter() - start
    lines = [json.loads(line) for line in (out / "checkpoints" / "log.jsonl").read_text().splitlines()]
    save_curve(
        out / "loss.png",
        [line["step"] for line in lines],
        [line["loss"] for line in lines],
        ylabel="denoising score matching loss",
    )
    results = generate(config, model, judge, out)
    animate(config, model, judge, out)
    report: dict[str, Any] = {
        "config": {**asdict(config), "out": str(out)},
        "sde": repr(sde),
        "parameters": sum(p.numel() for p in model.parameters()),
        "classifier_accuracy_on_held_out_real": judge.accuracy_real,
        "energy_distance_real_vs_real": {"mean": judge.floor, "std": judge.floor_std},
        "memorised_share_of_held_out_real": judge(judge.held)["memorised_share"],
        "solvers": results,
        "bits_per_dim_held_out": bits(model, held, config.seed),
        "seconds": {"training": round(trained, 1), "total": round(time.perf_counter() - start, 1)},
    }
    save_json(out / "report.json", report)
    print(f"bits/dim of held-out digits: {report['bits_per_dim_held_out']}")
    print(f"{report['seconds']['total']:.0f} s in all; pictures and report.json are in {out}")


if __name__ == "__main__":
    command(main, Config)
