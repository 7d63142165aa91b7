"""How much a network errs, and how fast its error changes: where the size of the errors of rough problems comes from.

    python examples/benchmarks/roughness.py --law digits64

A network is trained by denoising score matching on endless samples of a mixture, whose denoiser is known. Along the
mixture's own trajectories its error is printed in deviations d(r) of what is not known at r = σ/α, see
:class:`contest.problems.Waves`, and how far in log r it stays correlated with itself: to one half. Beside it the same
of the waves of the rough problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

import contest
import scoresde as ss
from contest.mixtures import MIXTURES, directions
from contest.problems import EXPLODING, ROUGHNESS, Waves
from scoresde.losses import dsm_loss, edm
from scoresde.nn import MLP
from scoresde.problems import GaussianMixture
from scoresde.times import LogNormalSigma

Denoiser = Callable[[Tensor, float], Tensor]
"""(y (n, D), r) -> E[x_0 | x_0 + r ε = y]."""


@dataclass
class Config:
    """Train a network on an exact mixture and measure its error."""

    law: str = "digits64"
    """The mixture."""
    steps: int = 6000
    """Of Adam."""
    batch: int = 256
    """Fresh samples in each."""
    width: int = 256
    """Of the network, an MLP with three blocks."""
    samples: int = 256
    """Trajectories along which the error is looked at."""
    levels: int = 241
    """σ/α from 50 to 0.01 at which it is."""


def trained(config: Config, law: GaussianMixture, scale: float) -> Denoiser:
    """The denoiser of a network that has seen steps · batch samples, at a rate that falls to zero."""
    torch.manual_seed(0)
    sde = ss.EDM(T=80.0, t_min=0.002)
    model = ss.ScoreModel(MLP(law.event[0], config.width), sde, "edm", scale)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    noise, times, weighting = ss.IndependentNoise(0), LogNormalSigma(), edm(scale)
    for _ in range(config.steps):
        x = law.sample(config.batch, noise).float()
        t, factor = times.sample(sde, torch.rand(config.batch))
        loss = (factor * dsm_loss(model, x, t, torch.randn_like(x), weighting)).mean() / x.shape[1]
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        rate.step()
    model = model.double().eval().requires_grad_(False)
    return lambda y, r: model.denoise(y, torch.tensor(r, dtype=torch.float64))


def row(errors: Tensor, ratios: list[float], spread: Tensor) -> list[str]:
    """Sizes of the errors (levels, n, D) of the levels in each decade, over d(r), and how long they last."""
    relative = errors.square().mean((1, 2)).sqrt() / spread
    logs = torch.tensor(ratios).log10()
    decades = (relative[(logs < top) & (logs >= top - 1)] for top in (2, 1, 0, -1))
    cells = [f"{float(part.square().mean().sqrt()):.4f}" for part in decades]
    whole, lasts = relative.square().mean().sqrt(), half_life(errors / spread[:, None, None], ratios)
    return [*cells, f"{float(whole):.4f}", f"{lasts:.2f}"]


def half_life(errors: Tensor, ratios: list[float]) -> float:
    """The difference of log r at which the correlation of the errors has fallen to one half."""
    flat = errors.flatten(1)
    flat = flat / flat.norm(dim=1, keepdim=True)
    step = math.log(ratios[0] / ratios[-1]) / (len(ratios) - 1)
    for lag in range(1, len(ratios)):
        if float((flat[lag:] * flat[:-lag]).sum(1).mean()) < 0.5:
            return lag * step
    return math.inf


def main(config: Config) -> None:
    """Train, look along the trajectories, print."""
    torch.set_num_threads(1)
    law = MIXTURES[config.law]()
    scale = float(directions(law)[0].mean().sqrt())
    waves = Waves(ROUGHNESS, scale, law.event[0])
    network, exact = trained(config, law, scale), law.score(EXPLODING)
    ratios = torch.linspace(math.log(50.0), math.log(0.01), config.levels, dtype=torch.float64).exp()
    spread = waves.spread(ratios)
    x = EXPLODING.prior_sample((config.samples, law.event[0]), 1, dtype=torch.float64) / EXPLODING.T * ratios[0]
    off: list[list[Tensor]] = [[], []]
    with torch.no_grad():
        for level, after in zip(ratios, [*ratios[1:], ratios[-1]], strict=True):
            truth = exact.denoise(x, level)
            off[0].append(network(x, float(level)) - truth)
            off[1].append(waves(x, level))
            x = truth + after / level * (x - truth)  # DDIM, whose steps are short here
    errors = {"network": torch.stack(off[0]), "waves": torch.stack(off[1])}
    rows = [[name, *row(error, ratios.tolist(), spread)] for name, error in errors.items()]
    heads = ["", "r 10-100:", "1-10:", "0.1-1:", "0.01-0.1:", "all:", "lasts, in log r:"]
    print(contest.markdown(heads, rows))


if __name__ == "__main__":
    main(tyro.cli(Config))
