"""The main job: learn scikit-learn's digits, generate them with five solvers, and report honest figures.

    python examples/digits.py                      # VP, writes runs/digits-vp
    python examples/digits.py --sde ve --guidance 3
    python examples/digits.py --resume             # go on after a kill

A class-conditional U-Net is trained on 80 % of the 1797 pictures (8x8, 17 grey levels). The other 20 % are held out;
every figure compares as many generated pictures, with the same labels, to them.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import scoresde as ss
from scoresde import grids
from scoresde.cli.command import command
from scoresde.cli.flags import at_least
from scoresde.cli.outputs import told
from scoresde.cli.pictures import by_class, save_gif, save_grid, save_losses, tile, visible
from scoresde.data import Dataset
from scoresde.files import write_json
from scoresde.solvers import ProbabilityFlow
from shared.digits import CLASSES, EVENT, DigitFlags, fit, load
from shared.readers import Judge

NOTES = """\
A small class-conditional model of scikit-learn's digits (8x8, 17 grey levels; Alpaydin and Kaynak 1998, UCI, CC BY
4.0), for first pictures, lessons and tests.

Made by

    python examples/digits.py {flags} --save FOLDER

on 80 % of the 1797 digits. All figures are of the weights as they are stored here, rounded to float16: as many digits
as are held out, with their labels, against those. The classifier that reads them sees real digits alone, and reads
{real:.3f} of the held-out ones as their label. Memorised is what lies closer to a training digit than 95 % of held-out
ones do. Held-out digits have {given_label:.2f} bits/dim given their label, {without_label:.2f} without."""


@dataclass(frozen=True, kw_only=True)
class Config(DigitFlags):
    """Train a class-conditional score model on scikit-learn's digits, then generate and measure."""

    out: Path | None = None
    """Folder for everything that is written; default runs/digits-SDE."""
    guidance: float = 2.0
    """Scale of classifier-free guidance: 1 is conditional, larger is guided."""
    sde_steps: int = 100
    """Steps of the solvers of the reverse SDE (those of predictor-corrector take two evaluations each)."""
    ode_steps: int = 50
    """Steps of DDIM (Heun takes half, at two evaluations each)."""
    save: Path | None = None
    """Also write the model here for from_pretrained, weights in float16: then it is that one that is measured."""

    def check(self) -> None:
        at_least(self, steps=1, batch_size=1, width=1, sde_steps=1, ode_steps=1)
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"--guidance must be a finite number of at least 0, got {self.guidance}.")


def solvers(config: Config) -> dict[str, tuple[ss.Solver, Any, int]]:
    """Each family: the solver, its grid and its number of steps."""
    return {
        "euler_maruyama": (ss.EulerMaruyama(), grids.karras, config.sde_steps),
        "predictor_corrector": (ss.PredictorCorrector(), grids.karras, config.sde_steps),
        "probability_flow_ode": (ProbabilityFlow(rtol=1e-3, atol=1e-3), grids.uniform, 1),
        "ddim": (ss.DDIM(), grids.karras, config.ode_steps),
        "heun": (ss.Heun(), grids.karras, max(config.ode_steps // 2, 1)),
    }


def generate(config: Config, model: ss.ScoreModel, judge: Judge, out: Path) -> dict[str, dict[str, Any]]:
    """For each solver, guided and not: pictures and figures."""
    shape, labels, device = tuple(judge.held.shape), judge.labels, next(model.parameters()).device
    report: dict[str, dict[str, Any]] = {}
    for name, (solver, grid, steps) in solvers(config).items():
        for kind, scale in (("unguided", 1.0), ("guided", config.guidance)):
            score = ss.classifier_free(model, {"label": labels.to(device)}, scale=scale)
            start = time.perf_counter()
            solution = ss.sample(score, shape, solver=solver, steps=steps, grid=grid, seed=config.seed)
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
            save_grid(out / f"{name}-{kind}.png", pixels, CLASSES, title)
    return report


def animate(config: Config, model: ss.ScoreModel, judge: Judge, out: Path) -> None:
    """A GIF of noise becoming digits along the reverse SDE."""
    labels = torch.arange(10, device=next(model.parameters()).device).repeat_interleave(10)
    solution = ss.sample(
        ss.classifier_free(model, {"label": labels}, scale=config.guidance),
        (100, *EVENT),
        solver=ss.EulerMaruyama(),
        steps=60,
        grid=grids.log_snr,
        seed=config.seed,
        trajectory=True,
    )
    states = visible(model.sde, solution, float(judge.train.std()))
    save_gif(out / "noise-to-digits.gif", [tile(judge.scaling.to_uint8(x), 10, zoom=4) for x in states])


def bits(model: ss.ScoreModel, held: Dataset, seed: int) -> dict[str, float]:
    """Bits/dim of held-out digits by the probability-flow ODE: given their labels, and without."""
    device, width = next(model.parameters()).device, held.scaling.bin_width
    assert width is not None
    batch = {name: value.to(device) for name, value in held[:].items()}
    given: dict[str, Any] = {"noise": seed, "solver": ProbabilityFlow(rtol=1e-3, atol=1e-3)}
    with torch.no_grad():
        return {
            name: float(ss.bits_per_dim(score, batch["x"], width, **given).mean())
            for name, score in (
                ("given_label", model.bind(label=batch["label"])),
                ("without_label", ss.classifier_free(model, {"label": batch["label"]}, scale=0.0)),
            )
        }


def shared(config: Config, model: ss.ScoreModel, report: dict[str, Any], out: Path) -> None:
    """The model in a folder of its own, with a card that tells what was measured of it."""
    rows = {
        f"{solver}, {kind}": {
            "evaluations": figures["nfe"],
            "read as their label": figures["accuracy"],
            "energy distance over real against real": figures["energy_distance_over_real"],
            "memorised": figures["memorised_share"],
        }
        for solver, kinds in report["solvers"].items()
        for kind, figures in kinds.items()
    }
    assert config.save is not None
    model.save_pretrained(
        config.save,
        dtype=torch.float16,
        licence="mit",
        figures=rows,
        notes=NOTES.format(
            flags=f"--sde {config.sde} --width {config.width} --steps {config.steps} --seed {config.seed}",
            real=report["classifier_accuracy_on_held_out_real"],
            **report["bits_per_dim_held_out"],
        ),
        picture=out / "heun-guided.png",
        overwrite=True,
        source=config.save.name,
    )


def main(config: Config) -> None:
    """Train, generate, measure, write."""
    start = time.perf_counter()
    out = config.begin(Path("runs") / f"digits-{config.sde}" if config.out is None else config.out)
    training, held = load(config.seed)
    judge = Judge(training, held, config.seed)
    print(f"independent classifier on held-out real digits: accuracy {judge.accuracy_real:.4f}")
    model = fit(config, training, out)
    trained = time.perf_counter() - start
    if config.save is not None:  # what is measured is what is shared: weights rounded as they are stored
        model.save_pretrained(config.save, dtype=torch.float16, overwrite=True)
        model = ss.ScoreModel.from_pretrained(config.save).to(next(model.parameters()).device)
    save_losses(out / "loss.png", out / "checkpoints" / "log.jsonl")
    results = generate(config, model, judge, out)
    animate(config, model, judge, out)
    report: dict[str, Any] = {
        "config": told(config, out),
        "sde": repr(model.sde),
        "parameters": sum(p.numel() for p in model.parameters()),
        "classifier_accuracy_on_held_out_real": judge.accuracy_real,
        "energy_distance_real_vs_real": {"mean": judge.floor, "std": judge.floor_std},
        "memorised_share_of_held_out_real": judge(judge.held)["memorised_share"],
        "solvers": results,
        "bits_per_dim_held_out": bits(model, held, config.seed),
        "seconds": {"training": round(trained, 1), "total": round(time.perf_counter() - start, 1)},
    }
    write_json(out / "report.json", report)
    if config.save is not None:
        shared(config, model, report, out)
    print(f"bits/dim of held-out digits: {report['bits_per_dim_held_out']}")
    print(f"{report['seconds']['total']:.0f} s in all; pictures and report.json are in {out}")


if __name__ == "__main__":
    command(main, Config)
