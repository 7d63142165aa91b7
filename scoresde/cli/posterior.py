"""The posterior p(θ | x) of a simulator, from pairs of parameters and observations, in one command.

    scoresde posterior --theta theta.npy --x x.npy --observed x_obs.npy --out runs/posterior
    scoresde posterior --theta theta.npy --x x.npy --observed x_obs.npy --observations set     # x (N, L, d)
    scoresde sample --checkpoint runs/posterior --condition obs=other_obs.npy        # later, for other observations

``theta.npy`` holds a row of parameters drawn from the prior for each of N simulations, ``x.npy`` what each of them
gave, ``x_obs.npy`` one observation or several. A network learns the score of θ given x (neural posterior score
estimation: Sharrock et al. 2022, arXiv:2210.04872), both standardised column by column; it is valid for any x that the
simulations cover.

A tenth of the pairs says when to stop, and the average of the weights that did best there is kept. Another tenth is
never looked at until the end: for each of its pairs posterior samples are drawn, and the share of true parameters
inside the central 50 % and 90 % intervals is reported with its standard error, and a picture shows the ranks of the
truth, which are uniform for a right posterior (simulation-based calibration, Talts et al. 2018, arXiv:1804.06788).

Written: posterior.npy ((draws, d), or (observations, draws, d)), pairs.png, ranks.png, loss.png, report.json,
config.yaml and the checkpoint. :func:`main` takes the flags as a :class:`PosteriorConfig`.
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
from scoresde.cli.calibration import IntervalCoverage, draw_ranks, interval_coverage
from scoresde.cli.choices import SDES, SDEName, build
from scoresde.cli.conditions import read_numbers
from scoresde.cli.config import remember
from scoresde.cli.costs import Watch, duration, in_batches, size_of_training
from scoresde.cli.flags import MachineFlags, at_least
from scoresde.cli.outputs import brief, save_array, say, told
from scoresde.cli.pictures import draw_pairs, save_losses
from scoresde.cli.trained import device_for
from scoresde.data import Dataset, Scaling, from_tensors
from scoresde.data.condition_files import of_members
from scoresde.files import make_writable, write_json
from scoresde.nn import MLP
from scoresde.times import LogNormalSigma, Stratified
from scoresde.train import Run, train
from scoresde.warning import warn_user

LOOK = 100
"""Steps between looks at the pairs that say when to stop."""
LEVELS = (0.5, 0.9)
"""Of the intervals whose coverage is reported."""
TIMES = LogNormalSigma(mean=-1.0, std=1.6)
"""Noise levels in training: from a hundredth of the prior's width, for narrow posteriors, to well above it."""


@dataclass(frozen=True, kw_only=True)
class PosteriorConfig(MachineFlags):
    """Learn p(θ | x) from simulations, draw from it for observations, and report whether it is calibrated."""

    theta: Path
    """Parameters (N, d), an .npy file: a row for each simulation, drawn from the prior."""
    x: Path
    """What the simulations gave, (N, ...), an .npy file with the same rows."""
    observations: Literal["vector", "set", "series"] = "vector"
    """What one simulation gave: numbers, each of which means the same in all (vector); several observations without an
    order (set) or steps in time (series), (N, L, d) with any number L in use, where members of NaN are padding."""
    observed: Path | None = None
    """Observations: one, of the shape of a row of x, or several; without them the model alone is trained and judged."""
    out: Path = Path("runs/posterior")
    """Folder for everything that is written."""
    draws: int = 2000
    """Samples of the posterior of each observation."""
    train_steps: int = 5000
    """Training steps at most; it stops before where the pairs that are kept aside say so."""
    patience: int = 15
    """Stop after so many looks, 100 steps each, without improvement on the pairs that say when to stop."""
    batch_size: int = 256
    """Pairs in a training step."""
    lr: float = 1e-3
    """Peak learning rate of AdamW; it falls to 0 by a cosine."""
    width: int = 128
    """Width of the network, a residual MLP."""
    depth: int = 3
    """Its number of blocks."""
    dropout: float = 0.0
    """Probability of dropping an activation in training: against overconfidence where simulations are few."""
    held_out: float = 0.1
    """Share of the pairs that says when to stop, and as much again that judges calibration."""
    calibration_pairs: int = 1000
    """Held-out pairs at most by which calibration is judged."""
    calibration_draws: int = 100
    """Samples for each of them."""
    sampling_steps: int = 40
    """Evaluations of the network for a sample."""
    sde: SDEName = "vp"
    """The SDE that turns parameters into noise."""
    sde_options: tuple[str, ...] = ()
    """Its parameters, as name=value."""
    names: tuple[str, ...] = ()
    """Names of the parameters, for pictures and the report."""
    chunk: int = 20_000
    """Samples drawn at once."""
    seed: int = 0
    """Of everything: split, weights, training, samples."""

    def check(self) -> None:
        at_least(self, draws=1, train_steps=1, patience=1, batch_size=1, width=1, depth=1, sampling_steps=1, chunk=1)
        at_least(self, calibration_pairs=10, calibration_draws=10)
        if not 0 < self.held_out <= 0.4:
            raise ValueError(f"--held-out is a share above 0 and of at most 0.4, taken twice; got {self.held_out}.")


@dataclass(frozen=True)
class Pairs:
    """Parameters (N, d) and observations (N, m), or (N, L, m) of sets and series; their shape; three parts of rows."""

    theta: Tensor
    x: Tensor
    observation: tuple[int, ...]
    training: Tensor
    stopping: Tensor
    judging: Tensor


def read_pairs(config: PosteriorConfig) -> Pairs:
    """The simulations, split by the seed.

    Raises:
        FileNotFoundError, TypeError, ValueError: files that do not go together, or hold too few pairs.
    """
    members = config.observations != "vector"
    theta = read_numbers(config.theta, "--theta").double()
    x = read_numbers(config.x, "--x", members=members).double()
    theta = theta[:, None] if theta.ndim == 1 else theta
    if theta.ndim != 2:
        raise ValueError(
            f"--theta {config.theta} has shape {tuple(theta.shape)}; expected (N, d), a row of parameters for each "
            "simulation."
        )
    if x.ndim == 0 or len(x) != len(theta):
        raise ValueError(
            f"--x {config.x} has shape {tuple(x.shape)}, and --theta {len(theta)} rows; expected what each of the "
            f"simulations gave, ({len(theta)}, ...)."
        )
    if members and x.ndim != 3:
        raise ValueError(
            f"--x {config.x} has shape {tuple(x.shape)}; for --observations {config.observations} expected (N, L, d): "
            "L members of d numbers in each simulation."
        )
    if config.names and len(config.names) != theta.shape[1]:
        raise ValueError(f"--names gives {len(config.names)} names for {theta.shape[1]} parameters.")
    aside = round(config.held_out * len(theta))
    if aside < 20:
        raise ValueError(
            f"{len(theta)} simulations leave {aside} pairs to judge calibration with --held-out {config.held_out:g}; "
            "expected 20 at least, that is a few hundred simulations. Simulate more."
        )
    observation = tuple(x.shape[1:])
    order = torch.randperm(len(theta), generator=torch.Generator().manual_seed(config.seed))
    parts = order[2 * aside :], order[:aside], order[aside : 2 * aside]
    return Pairs(theta, x if members else x.reshape(len(x), -1), observation, *parts)


def read_observed(config: PosteriorConfig, pairs: Pairs) -> tuple[Tensor, bool]:
    """The observations (R, m), or (R, L, m) of sets and series, and whether it was one without an axis for several.

    Raises:
        FileNotFoundError, TypeError, ValueError: none, or of another shape than the simulations'.
    """
    assert config.observed is not None
    if config.observations != "vector":
        return _read_members(config.observed, pairs)
    found = read_numbers(config.observed, "--observed").double()
    single = tuple(found.shape) == pairs.observation
    several = found.ndim > 0 and tuple(found.shape[1:]) == pairs.observation
    if not single and not several:
        raise ValueError(
            f"--observed {config.observed} has shape {tuple(found.shape)}; expected one observation "
            f"{pairs.observation}, as in a row of --x, or several, (R, ...) of them."
        )
    if not found.numel():
        raise ValueError(f"--observed {config.observed} holds no observation.")
    rows = found.reshape(1 if single else len(found), -1)
    _warn_of_far(rows, pairs.x[pairs.training])
    return rows, single


def _read_members(path: Path, pairs: Pairs) -> tuple[Tensor, bool]:
    """Sets or series of any length, (R, L, m), and whether it was one, (L, m)."""
    found, size = read_numbers(path, "--observed", members=True).double(), pairs.observation[-1]
    single = found.ndim == 2
    rows = found[None] if single else found
    if rows.ndim != 3 or rows.shape[2] != size or not len(rows):
        raise ValueError(
            f"--observed {path} has shape {tuple(found.shape)}; expected one observation (L, {size}) of any length L, "
            f"as in a row of --x, or several of them, (R, L, {size})."
        )
    most, longest = (int((~some.isnan().all(2)).sum(1).max()) for some in (pairs.x, rows))
    if longest > most:
        warn_user(
            f"an observation has {longest} members, and in the simulations there are {most} at most: the posterior is "
            "a guess there. Simulate as many."
        )
    known = pairs.x[pairs.training].flatten(0, 1)
    _warn_of_far(rows.flatten(0, 1), known[~known.isnan().any(1)])
    return rows, single


def _warn_of_far(rows: Tensor, x: Tensor) -> None:
    """Say which observations, or members, lie outside all simulations: what a network answers there is a guess."""
    low, high = x.amin(0), x.amax(0)
    outside = (rows < low) | (rows > high)
    for row, column in outside.nonzero()[:5].tolist():
        warn_user(
            f"observation {row} has {rows[row, column].item():.6g} as its number {column}, and in the simulations "
            f"that runs from {low[column].item():.6g} to {high[column].item():.6g}: the posterior there is a guess. "
            "Simulate with parameters that give such observations, or look whether the simulator is right."
        )


def data_of(pairs: Pairs) -> Dataset:
    """All pairs, standardised by the statistics of the training ones."""
    theta, x = pairs.theta[pairs.training], pairs.x[pairs.training]
    scaling = from_tensors(theta).scaling
    units = of_members(x) if x.ndim == 3 else Scaling.standardise(x, "coordinate")
    return from_tensors(
        pairs.theta, scaling=scaling, conditions={"obs": pairs.x.float()}, condition_scalings={"obs": units}
    )


def fitted_model(config: PosteriorConfig, pairs: Pairs, out: Path) -> tuple[ss.ScoreModel, dict[str, Any]]:
    """The model that did best on the pairs kept aside for that, with averaged weights, and how it went.

    Raises:
        ValueError: flags that do not fit, or a folder that holds a run.
    """
    sde: ss.SDE = build(SDES, config.sde, config.sde_options)
    dataset = data_of(pairs)
    torch.manual_seed(config.seed)  # the initial weights
    kind = {"vector": "vectors", "set": "sets", "series": "series"}[config.observations]
    obs: dict[str, Any] = {kind: {"obs": pairs.x.shape[-1]}}
    net = MLP(pairs.theta.shape[1], config.width, config.depth, dropout=config.dropout, **obs)
    model = ss.ScoreModel(net, sde, "edm", sigma_data=1.0)
    run = train(
        model,
        dataset.subset(pairs.training),
        steps=config.train_steps + 1,  # the last is not taken: what did best is saved, and not what comes last
        batch_size=min(config.batch_size, len(pairs.training)),
        lr=config.lr,
        warmup=min(100, config.train_steps // 10),
        decay="cosine",
        ema=0.999,
        weighting="edm",
        times=Stratified(TIMES),
        condition_dropout=0.0,
        seed=config.seed,
        folder=out,
        keep=1,
        log_every=25,
        cpu=config.cpu,
        progress=False,
    )
    say(f"{len(pairs.training)} pairs to learn from, {len(pairs.stopping)} to say when to stop")
    say(f"MLP, {size_of_training(model)}; {brief(sde)}")
    best, at = _train_until_best(config, run, dataset.subset(pairs.stopping))
    final = ss.train.load_model(out, ema=True)
    return final.to(device_for(cpu=config.cpu)), {"best_step": at, "steps": run.step, "stopping_loss": best}


def _train_until_best(config: PosteriorConfig, run: Run[ss.ScoreModel], aside: Dataset) -> tuple[float, int]:
    """Train; the least loss of the averaged weights on what is kept aside, and the step of it, which is saved."""
    look = _Look(aside, run.model)
    watch = Watch(config.train_steps, "step")
    best, at = math.inf, 0
    every = min(LOOK, config.train_steps)
    for step in run:
        watch.done(step.step)
        if step.step % every == 0 or step.step == config.train_steps:
            value = look.loss(run.ema_model())
            if value < best:
                best, at = value, step.step
                run.save()
            if step.step - at >= config.patience * every or step.step >= config.train_steps:
                break
    run.close()
    return best, at


class _Look:
    """The loss on pairs kept aside, with the same noise and times at each look."""

    def __init__(self, aside: Dataset, model: ss.ScoreModel) -> None:
        batch = aside[:]
        device = next(model.parameters()).device
        times = max(1, 4096 // len(aside))
        noise = torch.Generator().manual_seed(0)
        self.x0, self.obs = (torch.cat([batch[name]] * times).to(device) for name in ("x", "obs"))
        self.eps = torch.randn(self.x0.shape, generator=noise).to(device)
        order = torch.randperm(len(self.x0), generator=noise)
        self.t = TIMES.sample(model.sde, (order + 0.5) / len(order))[0].to(device)

    def loss(self, model: ss.ScoreModel) -> float:
        """The mean over all pairs."""
        with torch.no_grad():
            losses = ss.dsm_loss(model.eval(), self.x0, self.t, self.eps, "edm", conditions={"obs": self.obs})
        return float(losses.mean())


def posterior_draws(config: PosteriorConfig, model: ss.ScoreModel, x: Tensor, draws: int, seed: int) -> Tensor:
    """Samples of the posterior of each of x (R, m), in units of θ: (R, draws, d)."""
    assert isinstance(model.net, MLP)
    device = next(model.parameters()).device
    rows = x.float().repeat_interleave(draws, 0)
    scaling, dim = model.scaling, int(model.net.config["dim"])
    assert isinstance(scaling, Scaling)
    parts = []
    for some in in_batches(len(rows), config.chunk):
        score = model.bind(obs=rows[some].to(device))
        noise = ss.PerSampleNoise(seed, first=some.start)
        shape = (some.stop - some.start, dim)
        solution = ss.sample(score, shape, steps=config.sampling_steps, noise=noise, device=device)
        parts.append(scaling.to_data(solution.x.cpu()).double())
    return torch.cat(parts).reshape(len(x), draws, dim)


def main(config: PosteriorConfig) -> dict[str, Any]:
    """Learn, draw, judge, write; returns what report.json holds."""
    start = time.perf_counter()
    config.ready()
    pairs = read_pairs(config)
    observed = None if config.observed is None else read_observed(config, pairs)
    if any(config.out.expanduser().glob("step-*")):
        raise ValueError(f"--out {config.out} holds a run already; take another folder, or remove it.")
    out = make_writable(config.out)
    names = config.names or tuple(f"theta{i}" for i in range(pairs.theta.shape[1]))
    model, how = fitted_model(config, pairs, out)
    remember(config, out)
    save_losses(out / "loss.png", out / "log.jsonl")
    so_far = duration(time.perf_counter() - start)
    say(f"stopped after {how['steps']} steps, best at {how['best_step']}; {so_far} so far")

    judging = pairs.judging[: config.calibration_pairs]
    say(f"drawing {config.calibration_draws} samples for each of {len(judging)} held-out pairs")
    samples = posterior_draws(config, model, pairs.x[judging], config.calibration_draws, config.seed + 1)
    found = interval_coverage(samples, pairs.theta[judging], LEVELS)
    draw_ranks(out / "ranks.png", samples, pairs.theta[judging], names)
    tell(found, names)
    report: dict[str, Any] = {
        "config": told(config, out),
        "sde": repr(model.sde),
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": {"pairs": len(pairs.training), **how},
        "calibration": found.to_json(names),
    }
    if observed is not None:
        report["posterior"] = answer_observed(config, model, pairs, *observed, names, out)
    report["seconds"] = round(time.perf_counter() - start, 1)
    write_json(out / "report.json", report)
    say(f"{report['seconds']:.0f} s in all; everything is in {out}")
    return report


def answer_observed(
    config: PosteriorConfig,
    model: ss.ScoreModel,
    pairs: Pairs,
    x: Tensor,
    single: bool,
    names: tuple[str, ...],
    out: Path,
) -> list[dict[str, Any]]:
    """Samples for the observations, their picture, and their summary."""
    samples = posterior_draws(config, model, x, config.draws, config.seed + 2)
    save_array(out / "posterior.npy", (samples[0] if single else samples).numpy().astype(np.float64))
    draw_pairs(
        out / "pairs.png",
        samples[0],
        "the first observation",
        heads=["posterior"],
        real=pairs.theta[pairs.training][:2000],
        ground="prior",
        names=names,
    )
    low, high = pairs.theta.amin(0), pairs.theta.amax(0)
    found = []
    for row, some in enumerate(samples):
        outside = ((some < low) | (some > high)).any(1).double().mean().item()
        quantiles = torch.quantile(some, torch.tensor([0.05, 0.5, 0.95], dtype=some.dtype), dim=0)
        summary = {
            name: {
                "mean": some[:, i].mean().item(),
                "std": some[:, i].std().item() if len(some) > 1 else None,
                "quantiles_5_50_95": quantiles[:, i].tolist(),
            }
            for i, name in enumerate(names)
        }
        found.append({"parameters": summary, "share_outside_the_simulated_range": outside})
        if row < 5:
            for name, one in summary.items():
                low90, median, high90 = one["quantiles_5_50_95"]
                say(f"observation {row}, {name}: median {median:.4g}, 90 % in [{low90:.4g}, {high90:.4g}]")
    return found


def tell(found: IntervalCoverage, names: tuple[str, ...]) -> None:
    """The coverage, and what it means where it is off."""
    for level, share, error in zip(found.levels, found.coverage, found.errors, strict=True):
        say(f"coverage of {level:.0%} intervals: {share:.3f} +- {error:.3f} on {found.pairs} held-out pairs")
    for name, shares in zip(names, found.each, strict=True):
        say(f"  {name}: " + ", ".join(f"{s:.3f} of {level:.0%}" for s, level in zip(shares, found.levels, strict=True)))
    verdict = found.verdict()
    if verdict:
        say(verdict)
