"""The benchmark's problems: two exact mixtures under two SDEs, or a trained network, and where their ODE ends.

    problem("mixture2d-vp").score, problem("runs/digits/checkpoints").score
    ends = end_points(problem("digits64-edm"), x)

The mixtures are known in closed form, so every library integrates the same exact score in float64 and the distance to
the exact end point is the error of its integration alone; of a network, the same score is integrated by everybody too.
"""

from __future__ import annotations

import functools
import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import DOP853, solve_ivp
from sklearn.datasets import load_digits
from torch import Tensor

import scoresde as ss
from scoresde.models.combination import Combination
from scoresde.models.conditions import nulls_of
from scoresde.models.score import DerivedScore
from scoresde.problems import GaussianMixture
from scoresde.train import describe, load_model

NAMES = ("mixture2d-vp", "mixture2d-edm", "digits64-vp", "digits64-edm")


@functools.cache
def mixture2d(components: int = 8, seed: int = 0) -> GaussianMixture:
    """Eight Gaussians around the unit circle, with unequal weights, radii, widths (0.1 to 0.3) and orientations."""
    draw = np.random.default_rng(seed)
    angle = 2 * np.pi * (np.arange(components) + draw.uniform(-0.2, 0.2, components)) / components
    radius = draw.uniform(0.8, 1.2, components)
    means = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    turn = draw.uniform(0, np.pi, components)
    axes = np.stack([np.stack([np.cos(turn), -np.sin(turn)], 1), np.stack([np.sin(turn), np.cos(turn)], 1)], 1)
    variances = draw.uniform(0.1, 0.3, (components, 2)) ** 2
    covariances = np.einsum("kij,kj,klj->kil", axes, variances, axes)
    return GaussianMixture(*(torch.from_numpy(v) for v in (draw.uniform(0.5, 1.5, components), means, covariances)))


@functools.cache
def digits64(event: tuple[int, ...] = (64,), ridge: float = 0.01) -> GaussianMixture:
    """One full Gaussian for each class of scikit-learn's 8x8 digits, in pixels of mean 0 and mean variance 1.

    ``ridge`` is added to each covariance: some pixels never change within a class.
    """
    pixels, label = load_digits(return_X_y=True)
    x = (pixels - pixels.mean(0)) / np.sqrt(pixels.var(0).mean())
    classes = [x[label == k] for k in range(10)]
    means = np.stack([c.mean(0) for c in classes])
    covariances = np.stack([np.cov(c.T) + ridge * np.eye(64) for c in classes])
    weights = np.array([float(len(c)) for c in classes])
    return GaussianMixture(
        torch.from_numpy(weights), torch.from_numpy(means).reshape(-1, *event), torch.from_numpy(covariances)
    )


@dataclass(frozen=True)
class Problem(ABC):
    """A law under an SDE, samples flattened to (n, D)."""

    name: str
    sde: ss.SDE

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Coordinates of a sample."""

    @property
    @abstractmethod
    def score(self) -> ss.Score:
        """The score."""

    @abstractmethod
    def denoise(self, y: Tensor, ratio: float | Tensor) -> Tensor:
        """E[x_0 | x_t/α = y] where σ/α = ``ratio``, a number or (): what peers call the denoiser."""

    @abstractmethod
    def fingerprint(self) -> bytes:
        """Tells two scores apart."""

    @property
    def ratios(self) -> tuple[float, float]:
        """σ/α at T and at t_min: where every peer starts and ends."""
        first, last = (float(self.sde.sigma(t) / self.sde.alpha(t)) for t in (self.sde.T, self.sde.t_min))
        return first, last

    def start(self, n: int, seed: int = 0) -> Tensor:
        """x_T (n, D), float64, from the prior."""
        return self.sde.prior_sample((n, self.dimension), seed, dtype=torch.float64)


@dataclass(frozen=True)
class Mixture(Problem):
    """A mixture, whose score is exact."""

    mixture: GaussianMixture

    @property
    def dimension(self) -> int:
        return self.mixture.event[0]

    @property
    def score(self) -> ss.Score:
        return self.mixture.score(self.sde)

    def denoise(self, y: Tensor, ratio: float | Tensor) -> Tensor:
        # x_t/α = x_0 + (σ/α) ε has the law of the variance-exploding SDE whose time is the ratio, whatever the SDE
        return _exploding(self.mixture).denoise(y, torch.as_tensor(ratio, dtype=torch.float64))

    def fingerprint(self) -> bytes:
        told = (self.mixture.weights, self.mixture.means, self.mixture.sample(16, 0))
        return b"".join(v.numpy().tobytes() for v in told)

    def law(self, n: int, seed: int) -> Tensor:
        """n exact samples of p at t_min, where every sampler stops."""
        t = self.sde.t_min
        noise = ss.IndependentNoise(seed)
        x0 = self.mixture.sample(n, noise)
        z = noise.initial(tuple(x0.shape), dtype=torch.float64, device=x0.device)
        return self.sde.alpha(t) * x0 + self.sde.sigma(t) * z


@functools.cache
def _exploding(mixture: GaussianMixture) -> ss.Score:
    return mixture.score(ss.EDM(T=1e4, t_min=1e-9))


@dataclass(frozen=True)
class Learned(Problem):
    """A trained network, in float64; where it knows classes, sample i is of class i modulo their number."""

    model: ss.ScoreModel
    event: tuple[int, ...]
    classes: int

    @property
    def dimension(self) -> int:
        return math.prod(self.event)

    @property
    def score(self) -> ss.Score:
        return Flat(self.model, self.event, self.classes)

    def denoise(self, y: Tensor, ratio: float | Tensor) -> Tensor:
        t = self.sde.t_of_log_snr(-2 * torch.as_tensor(ratio, dtype=torch.float64).log())
        return self.score.denoise(self.sde.alpha(t) * y, t)

    def fingerprint(self) -> bytes:
        return b"".join(p.detach().numpy().tobytes() for p in self.model.parameters())


@dataclass(frozen=True, eq=False)
class Flat(DerivedScore):
    """A network's score of samples flattened to (n, D); with classes, sample i is of class i modulo their number."""

    score: ss.ScoreModel
    event: tuple[int, ...]
    classes: int

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        label = {"label": torch.arange(len(x)) % self.classes} if self.classes else {}
        return self.score.evaluate(x.reshape(-1, *self.event), t, wanted, label).flatten(1)


@functools.cache
def problem(name: str) -> Problem:
    """One of NAMES, or the network in the folder of that name that train() has left.

    Raises:
        ValueError: neither.
    """
    if name in NAMES:
        return mixture(name)
    if not Path(name).is_dir():
        raise ValueError(f"the problems are {', '.join(NAMES)} and folders of trained networks; got {name!r}.")
    event = describe(name).event_shape
    if event is None:
        raise ValueError(f"the checkpoint in {name} does not tell the shape of its data.")
    model = load_model(name).double().requires_grad_(False)
    classes = int(nulls_of(model.net).get("label", 0))
    return Learned(name, model.sde, model, tuple(event), classes)


def mixture(name: str) -> Mixture:
    """One of NAMES."""
    kind, schedule = name.split("-")
    sde: ss.SDE = ss.VP(0.1, 20.0, t_min=1e-3) if schedule == "vp" else ss.EDM(T=80.0, t_min=0.002)
    return Mixture(name, sde, mixture2d() if kind == "mixture2d" else digits64())


def end_points(problem: Problem, x: Tensor, *, tolerance: float = 1e-13, cache: Path | None = None) -> Tensor:
    """Where the probability-flow ODE carries x (n, D) from T to t_min, to about 1e-10.

    Each sample's y = x/α obeys dy/dr = (y - E[x_0 | y]) / r in r = σ/α, here in log r, by the eighth-order pair of
    Dormand and Prince, in groups of like samples with one step size. ``cache`` is a folder of earlier answers.
    """
    file = None
    if cache is not None:
        content = x.numpy().tobytes() + problem.fingerprint() + f"{problem.sde} {tolerance}".encode()
        file = cache / f"{Path(problem.name).name}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
        if file.exists():
            stored: Tensor = torch.load(file, weights_only=True)
            return stored
    first, last = problem.ratios

    def slope(log_ratio: float, flat: np.ndarray) -> np.ndarray:
        y = torch.from_numpy(flat).reshape(-1, problem.dimension)
        out: np.ndarray = (y - problem.denoise(y, float(np.exp(log_ratio)))).numpy().ravel()
        return out

    ends = []
    y = x / problem.sde.alpha(problem.sde.T)
    for part in (y[i : i + 125] for i in range(0, len(y), 125)):
        span = (float(np.log(first)), float(np.log(last)))
        run = solve_ivp(slope, span, part.numpy().ravel(), method=DOP853, rtol=tolerance, atol=tolerance)
        if not run.success:
            raise RuntimeError(f"the reference integration of {problem.name} failed: {run.message}")
        ends.append(torch.from_numpy(run.y[:, -1]).reshape(part.shape))
    exact = torch.cat(ends) * problem.sde.alpha(problem.sde.t_min)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(exact, file)
    return exact
