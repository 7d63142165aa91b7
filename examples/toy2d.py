"""A score in the plane, learned and measured against the exact one: fields, densities, samples, trajectories.

    python examples/toy2d.py                         # moons under VP, writes runs/toy2d-moons-vp
    python examples/toy2d.py --data checkerboard --sde ve
    python examples/toy2d.py --data mixture --sde rectified-flow --sde-options t_min=0.01

Density and score of the data are known exactly at every time (toys.py), so every figure has its truth beside it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoresde as ss
from scoresde import grids, losses, metrics
from scoresde.cli.choices import SDES, SDEName, build
from scoresde.cli.command import command
from scoresde.cli.flags import ScriptFlags, at_least
from scoresde.cli.outputs import told
from scoresde.cli.pictures import visible
from scoresde.data import Scaling, from_tensors
from scoresde.files import write_json
from scoresde.nn import MLP
from scoresde.solvers import ProbabilityFlow
from scoresde.times import LogNormalSigma, Stratified
from scoresde.train import train
from shared.plane import animate_paths, draw_plane
from shared.toys import TOYS, Toy, ToyName
from shared.training import trained


@dataclass(frozen=True, kw_only=True)
class Config(ScriptFlags):
    """Learn the score of a law in the plane, and compare all that follows from it with the exact answers."""

    data: ToyName = "moons"
    """The law."""
    sde: SDEName = "vp"
    """The SDE that turns points into noise."""
    sde_options: tuple[str, ...] = ()
    """Its parameters, as name=value: sigma_max=20, t_min=0.01, ..."""
    out: Path | None = None
    """Folder for everything that is written; default runs/toy2d-DATA-SDE."""
    points: int = 50_000
    """Points that are learned from."""
    steps: int = 6000
    """Training steps."""
    batch_size: int = 256
    """Points in a training step."""
    lr: float = 2e-3
    """Peak learning rate of AdamW; it falls to 0 by a cosine."""
    width: int = 64
    """Width of the network, a residual MLP."""
    depth: int = 4
    """Its number of blocks."""
    samples: int = 2000
    """Points that are generated, and real ones that each figure compares them to."""
    sampling_steps: int = 200
    """Steps of Euler-Maruyama (SDE), and of Heun (ODE) at two evaluations each."""
    resolution: int = 64
    """Points along each side of the pictures of the density."""
    frames: int = 50
    """Pictures in the GIF."""
    seed: int = 0
    """Of everything: points, weights, training, sampling."""

    def check(self) -> None:
        at_least(self, points=2, samples=2, sampling_steps=1, resolution=2, frames=1)  # training checks its own


# Noise levels σ/α at which learned and exact score are compared, where the SDE has them.
LEVELS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


def fit(config: Config, sde: ss.SDE, toy: Toy) -> ss.ScoreModel:
    """The trained model, with averaged weights."""
    points = toy.sample(config.points, config.seed)
    sigma_data = float(points.std())
    torch.manual_seed(config.seed)  # the initial weights
    return trained(
        train,
        ss.ScoreModel(MLP(2, config.width, config.depth), sde, predicts="edm", sigma_data=sigma_data),
        from_tensors(points, scaling=Scaling(shift=0.0, scale=1.0)),
        steps=config.steps,
        batch_size=config.batch_size,
        lr=config.lr,
        weighting=losses.edm(sigma_data),
        # From the sharpest edges to well above the size of the whole.
        times=Stratified(LogNormalSigma(mean=-1.0, std=1.6)),
        seed=config.seed,
        cpu=True,
    )


def score_errors(sde: ss.SDE, toy: Toy, model: ss.Score, x0: Tensor, seed: int) -> list[dict[str, float]]:
    """At each level σ/α: sqrt(E|learned - exact|² / E|exact|²) over x_t."""
    eps = ss.PerSampleNoise(seed).stream("score error").normal(x0)
    ends = [math.exp(-0.5 * sde.log_snr(t).item()) for t in (sde.t_min, sde.T)]
    errors = []
    for level in LEVELS:
        if not ends[0] <= level <= ends[1]:
            continue
        t = sde.t_of_log_snr(-2 * math.log(level))
        mean, std = sde.marginal(x0, t)
        x = mean + std * eps
        exact = toy.score(sde)(x, t)
        with torch.no_grad():
            error = (model(x, t) - exact).square().mean() / exact.square().mean()
        errors.append({"noise_level": level, "t": t.item(), "relative_error": error.sqrt().item()})
    return errors


def likelihoods(sde: ss.SDE, toy: Toy, model: ss.ScoreModel, x: Tensor) -> dict[str, float]:
    """Mean log-likelihood of fresh points under the model and under the exact law at t_min, in nats."""
    learned = density(model, x)
    exact = toy.log_prob(x, sde, sde.t_min)
    gap = exact - learned
    return {
        "model": learned.mean().item(),
        "exact": exact.mean().item(),
        "gap": gap.mean().item(),
        "standard_error_of_gap": (gap.std() / math.sqrt(len(x))).item(),
    }


def density(model: ss.ScoreModel, x: Tensor) -> Tensor:
    """log p(x) by the probability-flow ODE with the exact divergence, (B,)."""
    with torch.no_grad():
        return ss.log_prob(model, x, "exact", solver=ProbabilityFlow(rtol=1e-4, atol=1e-4))


def generate(config: Config, score: ss.Score) -> dict[str, tuple[ss.Solution, float]]:
    """The same prior points carried to data by the reverse SDE and by the ODE: solution and seconds of each.

    The random numbers are the same for any score.
    """
    found = {}
    solvers: dict[str, ss.Solver] = {"sde": ss.EulerMaruyama(), "ode": ss.Heun()}
    for name, solver in solvers.items():
        start = time.perf_counter()
        shape = (config.samples, 2)
        grid = grids.log_snr(score.sde, config.sampling_steps)
        solution = ss.sample(score, shape, solver=solver, grid=grid, seed=config.seed, trajectory=True)
        found[name] = solution, time.perf_counter() - start
    return found


def main(config: Config) -> dict[str, Any]:
    """Learn, generate, measure, draw; returns what report.json holds."""
    start = time.perf_counter()
    sde: ss.SDE = build(SDES, config.sde, config.sde_options)
    out = config.begin(Path("runs") / f"toy2d-{config.data}-{config.sde}" if config.out is None else config.out)
    toy = TOYS[config.data]()
    model = fit(config, sde, toy)
    trained = time.perf_counter() - start

    # Fresh points, each set of its own seed: one to compare with, others for the real-vs-real distance.
    real, *others = (toy.sample(config.samples, config.seed + 1 + i) for i in range(11))
    floors = torch.tensor([metrics.energy_distance(other, real) for other in others])
    solutions = generate(config, model)
    # With the exact score, solver and random numbers being the same, what is left is no fault of the network.
    both = {"learned": solutions, "exact": generate(config, toy.score(sde))}
    distances = {
        f"{name}_{which}_score": metrics.energy_distance(solution.x, real)
        for which, found in both.items()
        for name, (solution, _) in found.items()
    }
    report: dict[str, Any] = {
        "config": told(config, out),
        "model": {"sde": repr(sde), "parameters": sum(p.numel() for p in model.parameters())},
        "score_errors": score_errors(sde, toy, model, real, config.seed),
        "energy_distance": {"real_vs_real": floors.mean().item(), "real_vs_real_std": floors.std().item(), **distances},
        "energy_distance_over_real": {name: d / floors.mean().item() for name, d in distances.items()},
        "log_likelihood_nats": likelihoods(sde, toy, model, real[:1000]),
        "nfe": {name: solution.nfe for name, (solution, _) in solutions.items()},
    }

    half = 1.15 * real.abs().max().item()
    side = torch.linspace(-half, half, config.resolution)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).reshape(-1, 2)
    logs = {"learned": density(model, grid), "exact": toy.log_prob(grid, sde, sde.t_min)}
    paths = {name: visible(sde, solution, real.std().item()) for name, (solution, _) in solutions.items()}
    densities = {name: value.exp().reshape(config.resolution, -1) for name, value in logs.items()}
    title = f"{config.data}, {sde}"
    draw_plane(
        out / "plane.png", title, sde, toy.score(sde), model, real, paths, densities, report["score_errors"], half
    )
    levels = (-0.5 * sde.log_snr(solutions["sde"][0].grid)).exp()
    animate_paths(out / "noise-to-data.gif", paths, torch.cat([levels, levels.new_zeros(1)]), half, config.frames)
    seconds = {name: spent for name, (_, spent) in solutions.items()}
    report["seconds"] = {"training": trained, **seconds, "total": time.perf_counter() - start}
    write_json(out / "report.json", report)
    tell(report)
    print(f"{report['seconds']['total']:.0f} s in all; plane.png, noise-to-data.gif and report.json are in {out}")
    return report


def tell(report: dict[str, Any]) -> None:
    """The figures in a few lines."""
    for row in report["score_errors"]:
        print(f"score at sigma/alpha {row['noise_level']:<5g} off by {100 * row['relative_error']:5.1f} %")
    for name, ratio in report["energy_distance_over_real"].items():
        kind, which, _ = name.split("_")
        print(f"{kind.upper()} samples, {which} score: energy distance {ratio:.2f}x real-vs-real")
    nats = report["log_likelihood_nats"]
    print(f"log-likelihood {nats['model']:.4f} nats, exact {nats['exact']:.4f}")


if __name__ == "__main__":
    command(main, Config)
