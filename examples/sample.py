"""Generate from a checkpoint folder, with any solver and any grid of the library.

    python examples/sample.py --checkpoint runs/my-images
    python examples/sample.py --checkpoint runs/my-images --labels cat dog --guidance 2
    python examples/sample.py --checkpoint runs/my-images --solver euler-maruyama --grid log-snr --steps 500
    python examples/sample.py --checkpoint runs/my-images --solver heun --solver-options churn=40 churn_noise=1.007

Sample i depends on the seed and on i alone: the same pictures whatever the batch size (to rounding; adaptive solvers
agree to their tolerance).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import scoresde as ss
from scoresde.data import Scaling
from scoresde.files import make_writable, write_json
from shared.choices import SDES, SOLVERS, GridName, SDEName, SolverName, build, grid
from shared.command_line import CheckpointFlags, at_least, command
from shared.outputs import save_array, told
from shared.pictures import draw_samples
from shared.trained import Trained, in_batches, open_checkpoint

# Up to so many classes are drawn in columns of their own.
COLUMNS = 16


@dataclass(kw_only=True)
class Config(CheckpointFlags):
    """Generate samples from a checkpoint folder: samples.npy, samples.png, report.json."""

    out: Path | None = None
    """Folder for everything that is written; default samples in the run's folder."""
    samples: int = 64
    """How many."""
    batch_size: int = 64
    """How many at a time; the samples are the same for any."""
    labels: tuple[str, ...] = ()
    """Classes, by name or number, that the samples take in turn; default all of them."""
    guidance: float | None = None
    """Scale of classifier-free guidance: 0 is unconditional, 1 conditional, larger is guided; 1 unless told."""
    solver: SolverName = "heun"
    """The numerical method."""
    solver_options: tuple[str, ...] = ()
    """Its options, as name=value: churn=40, corrector.snr=0.1, method=rk4, ..."""
    grid: GridName = "karras"
    """Where the steps are."""
    grid_options: tuple[str, ...] = ()
    """Its options, as name=value: rho=5, t_end=0.01, ..."""
    steps: int = 25
    """Steps; adaptive solvers choose their own."""
    eta: float | None = None
    """From the probability-flow ODE, 0, to the reverse SDE, 1, and beyond; the solver's own unless told."""
    sde: SDEName | None = None
    """Generate under another SDE than the one trained under: the same score by a change of variables."""
    sde_options: tuple[str, ...] = ()
    """Its parameters, as name=value; they need --sde."""
    noise: Literal["per-sample", "brownian"] = "per-sample"
    """Fresh for each step, or one Brownian path for any number of steps."""
    denoise: bool = True
    """End with the denoised sample, one evaluation more."""
    drawn: int = 64
    """How many of the samples samples.png shows."""
    seed: int = 0
    """Of the samples."""

    def check(self) -> None:
        at_least(self, samples=1, batch_size=1, drawn=1, steps=1)
        if self.sde_options and self.sde is None:
            raise ValueError("--sde-options say which parameters another SDE has; name it by --sde, or leave them out.")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError(f"--guidance must be a finite number, got {self.guidance}.")
        if self.guidance == 0 and self.labels:
            raise ValueError("--guidance 0 generates without labels; leave --labels out, or take another scale.")


def classes_in_turn(config: Config, trained: Trained) -> list[int] | None:
    """The classes that samples take in turn; None for a model without classes.

    Raises:
        ValueError: labels or guidance for such a model, or a class that it does not know.
    """
    if trained.classes is None:
        for name, given in (("labels", bool(config.labels)), ("guidance", config.guidance is not None)):
            if given:
                raise ValueError(
                    f"--{name} needs a model that knows classes, and {trained.description.path} was trained without "
                    "labels; leave it out."
                )
        return None
    return trained.indices(config.labels) or list(range(len(trained.classes)))


def source(config: Config, sde: ss.SDE, first: int) -> ss.Noise:
    """The randomness of the samples from number ``first`` on."""
    if config.noise == "brownian":
        return ss.BrownianNoise(config.seed, sde.T, first=first)
    return ss.PerSampleNoise(config.seed, first=first)


def generate(
    config: Config, model: ss.ScoreModel, solver: ss.Solver, times: Tensor, trained: Trained, labels: Tensor | None
) -> tuple[Tensor, int]:
    """All samples in model units, on the CPU, and evaluations of the network for each of them."""
    parts, evaluations = [], 0
    scale = 1.0 if config.guidance is None else config.guidance
    for rows in in_batches(config.samples, config.batch_size):
        score: ss.Score = model
        if labels is not None:
            score = ss.classifier_free(model, {"label": labels[rows].to(trained.device)}, scale=scale)
        solution = ss.sample(
            score,
            (rows.stop - rows.start, *trained.event),
            solver=solver,
            grid=times,
            eta=config.eta,
            noise=source(config, model.sde, rows.start),
            denoise=config.denoise,
            device=trained.device,
        )
        parts.append(solution.x.cpu())
        evaluations = max(evaluations, solution.nfe)  # adaptive solvers may differ between batches
    return torch.cat(parts), evaluations


def in_data_units(x: Tensor, scaling: Scaling) -> np.ndarray[Any, Any]:
    """Samples as the data are: rounded to their levels if they have some, else floating."""
    data = scaling.to_data(x)
    if scaling.levels is None:
        return data.numpy()
    levels = data.round().clamp(0, scaling.levels - 1)
    return levels.to(torch.uint8 if scaling.levels <= 256 else torch.int32).numpy()


def main(config: Config) -> dict[str, Any]:
    """Generate and write; returns what report.json holds."""
    config.ready()
    solver: ss.Solver = build(SOLVERS, config.solver, config.solver_options)
    trained = open_checkpoint(config.checkpoint, ema=config.ema, cpu=config.cpu)
    turn = classes_in_turn(config, trained)
    model = trained.model
    if config.sde is not None:
        model = model.under(build(SDES, config.sde, config.sde_options))
    times = grid(config.grid, config.grid_options)(model.sde, config.steps)
    ss.Reverse(model, 0.0 if config.eta is None else config.eta)  # refuses a bad eta before work starts
    out = make_writable(trained.description.path.parent / "samples" if config.out is None else config.out)
    labels = None if turn is None else torch.tensor(turn).repeat(-(-config.samples // len(turn)))[: config.samples]

    start = time.perf_counter()
    x, evaluations = generate(config, model, solver, times, trained, labels)
    seconds = time.perf_counter() - start
    save_array(out / "samples.npy", in_data_units(x, trained.scaling))
    heads: list[str] = []
    if labels is not None:
        save_array(out / "labels.npy", labels.numpy())
        if turn is not None and trained.classes is not None and config.guidance != 0 and len(turn) <= COLUMNS:
            heads = [trained.classes[k] for k in turn]
    title = f"{config.solver}, {evaluations} evaluations, step {trained.description.step}"
    draw_samples(out / "samples.png", x[: config.drawn], trained.scaling, heads, title)
    report = {
        "config": told(config, out),
        **trained.told(),
        "sde": repr(model.sde),
        "solver": repr(solver),
        "times": [times[0].item(), times[-1].item()],
        "samples": len(x),
        "nfe": evaluations,
        "seconds": seconds,
    }
    write_json(out / "report.json", report)
    print(f"{len(x)} samples, {evaluations} evaluations each, {seconds:.1f} s; they are in {out}")
    return report


if __name__ == "__main__":
    command(main, Config)
