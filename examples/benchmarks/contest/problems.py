"""The benchmark's problems by name: exact scores under two schedules, rough and guided ones, and trained networks.

    problem("spectral-edm").score, problem("digits64-guided4-vp").score, problem("digits64-rough-vp").score
    problem("runs/digits/checkpoints@guided2").score
    ends = end_points(problem("digits64-edm"), x)

A name is LAW-vp, LAW-edm, LAW-rough-vp, LAW-guidedW-vp, ... with a law of :data:`~contest.mixtures.MIXTURES`, whose
score is known in closed form: every library integrates the same exact score in float64, and the distance to the exact
end point is the error of its integration alone. Or it is the folder of a network, see :mod:`contest.learned`; of it,
too, the same score is integrated by everybody.
"""

from __future__ import annotations

import functools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import scoresde as ss
from contest.mixtures import MIXTURES, directions
from contest.mixtures import digits64 as digits64
from contest.mixtures import mixture2d as mixture2d
from contest.reference import EXACT, Accuracy
from scoresde.models.combination import Combination
from scoresde.models.score import DerivedScore, score_of_denoiser
from scoresde.problems import GaussianMixture

NAMES = ("mixture2d-vp", "mixture2d-edm", "digits64-vp", "digits64-edm")
"""What contests are about where nothing else is said."""

LAWS = tuple(f"{law}-{schedule}" for law in MIXTURES for schedule in ("vp", "edm"))
"""Every mixture under either schedule."""

FURTHER = (
    *(f"digits64-guided{w}-{schedule}" for w in (2, 4, 8) for schedule in ("vp", "edm")),
    *(f"{law}-rough-{schedule}" for law in ("digits64", "spectral") for schedule in ("vp", "edm")),
)
"""Guided and rough ones, of the many that names can say."""

SDES: dict[str, Callable[[], ss.SDE]] = {
    "vp": lambda: ss.VP(0.1, 20.0, t_min=1e-3),
    "edm": lambda: ss.EDM(T=80.0, t_min=0.002),
}


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
        """E[x_0 | x_t/α = y] where σ/α = ``ratio``, a number, () or (n,): what peers call the denoiser."""

    @abstractmethod
    def fingerprint(self) -> bytes:
        """Tells two scores apart."""

    @property
    def directions(self) -> tuple[Tensor, Tensor | None] | None:
        """Variances (D,) of the data, and the axes (D, D) along which they are, None for the coordinates; if known."""
        return None

    @property
    def period(self) -> int:
        """Samples i and i + period are asked under the same condition."""
        return 1

    @property
    def accuracy(self) -> Accuracy:
        """Of the end points."""
        return EXACT

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
        return self.under(self.sde)

    def under(self, sde: ss.SDE) -> ss.Score:
        """The score under another SDE."""
        return piecewise(self.mixture.score(sde), self.mixture, 1)

    def denoise(self, y: Tensor, ratio: float | Tensor) -> Tensor:
        # x_t/α = x_0 + (σ/α) ε has the law of the variance-exploding SDE whose time is the ratio, whatever the SDE
        return self.under(EXPLODING).denoise(y, torch.as_tensor(ratio, dtype=torch.float64))

    def fingerprint(self) -> bytes:
        told = (self.mixture.weights, self.mixture.means, self.mixture.sample(16, 0))
        return b"".join(v.numpy().tobytes() for v in told)

    @property
    def directions(self) -> tuple[Tensor, Tensor | None]:
        return _directions(self.mixture)

    def law(self, n: int, seed: int) -> Tensor:
        """n exact samples of p at t_min, where every sampler stops."""
        t = self.sde.t_min
        noise = ss.IndependentNoise(seed)
        x0 = self.mixture.sample(n, noise)
        z = noise.initial(tuple(x0.shape), dtype=torch.float64, device=x0.device)
        return self.sde.alpha(t) * x0 + self.sde.sigma(t) * z


EXPLODING = ss.EDM(T=1e4, t_min=1e-9)
_directions = functools.cache(directions)


@dataclass(frozen=True)
class Guided(Mixture):
    """The exact score of a component k under classifier-free guidance, sample i of component i modulo their number::

        s(x, t) + w (s_k(x, t) - s(x, t))

    Attributes:
        scale: w; 1 is the component alone.
    """

    scale: float

    @property
    def period(self) -> int:
        return len(self.mixture.weights)

    def under(self, sde: ss.SDE) -> ss.Score:
        return piecewise(GuidedScore(self.mixture.score(sde), self.mixture, self.scale), self.mixture, self.period)

    def fingerprint(self) -> bytes:
        return super().fingerprint() + f"guided {self.scale}".encode()


@dataclass(frozen=True, eq=False)
class GuidedScore(DerivedScore):
    """See :class:`Guided`."""

    score: ss.Score
    mixture: GaussianMixture
    scale: float

    @property
    def amplification(self) -> float:  # type: ignore[override]
        return abs(self.scale) + abs(1 - self.scale)

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        label = torch.arange(len(x)) % len(self.mixture.weights)
        alone = self.mixture.score(self.sde, label).evaluate(x, t, wanted)
        return torch.lerp(self.score.evaluate(x, t, wanted), alone, self.scale)


@dataclass(frozen=True, eq=False)
class Waves:
    r"""What a network errs by, as far as its size and its wiggles go: m plane waves along orthonormal directions b_j::

        e(y, r) = size · d(r) · sqrt(2 D/m) Σ_j b_j sin(k a_j·y/sqrt(s² + r²) + ω log r + φ_j)
        d(r) = s r/sqrt(s² + r²)

    d is the deviation that a coordinate of x_0 keeps once x_0 + r ε is known. The root mean square of a coordinate is
    size · d(r) over random phases, and never more than √2 of that: |e|² = size² d² (2 D/m) Σ_j sin² <= 2 D size² d².

    Attributes:
        size: of the error, in deviations of what is not known.
        scale: s, the deviation of a coordinate of the data.
        dimension: D.
        count: m; at most D.
        wave: k, for a_j of length 1.
        turn: ω.
    """

    size: float
    scale: float
    dimension: int
    count: int = 64
    wave: float = 2.0
    turn: float = 0.9
    seed: int = 0
    fixed: tuple[Tensor, Tensor, Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(self.seed)
        shape = (self.dimension, min(self.count, self.dimension))
        a, b = (torch.randn(*shape, generator=draw, dtype=torch.float64) for _ in range(2))
        phase = 2 * math.pi * torch.rand(shape[1], generator=draw, dtype=torch.float64)
        object.__setattr__(self, "fixed", (a / a.norm(dim=0), torch.linalg.qr(b)[0], phase))

    def spread(self, r: Tensor) -> Tensor:
        """d(r)."""
        return self.scale * r / (self.scale**2 + r**2).sqrt()

    def __call__(self, y: Tensor, ratio: float | Tensor) -> Tensor:
        """e(y, r), (n, D), for r a number, () or (n,)."""
        r = torch.as_tensor(ratio, dtype=torch.float64).reshape(-1, 1)
        a, b, phase = self.fixed
        angle = self.wave * (y / (self.scale**2 + r**2).sqrt()) @ a + self.turn * r.log() + phase
        return self.size * math.sqrt(2 * self.dimension / a.shape[1]) * self.spread(r) * (angle.sin() @ b.mT)


ROUGHNESS = 0.1
"""Size of the errors of rough problems. It is that of an MLP of 1.3 M parameters which was trained for three minutes on
samples of digits64, and so is how far in log r they are correlated with themselves: ``roughness.py`` measures both."""


@dataclass(frozen=True)
class Rough(Mixture):
    """A mixture whose denoiser errs as a network does, by :class:`Waves` of the size :data:`ROUGHNESS`."""

    waves: Waves

    @property
    def score(self) -> ss.Score:
        def denoiser(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
            return self.denoise(x / alpha.reshape(-1, 1), sigma / alpha)

        return score_of_denoiser(denoiser, self.sde)

    def denoise(self, y: Tensor, ratio: float | Tensor) -> Tensor:
        return super().denoise(y, ratio) + self.waves(y, ratio)

    def fingerprint(self) -> bytes:
        return super().fingerprint() + repr(self.waves).encode()


CHUNK = 2**21  # numbers (samples, components, D) that are in memory at a time


def piecewise(score: ss.Score, mixture: GaussianMixture, period: int) -> ss.Score:
    """The score of a mixture, for many samples of many coordinates a few at a time, a multiple of ``period``."""
    rows = CHUNK // mixture.means.numel()
    return Piecewise(score, max(1, rows // period) * period)


@dataclass(frozen=True, eq=False)
class Piecewise(DerivedScore):
    """A score that is asked for at most ``rows`` samples at a time."""

    score: ss.Score
    rows: int

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        if len(x) <= self.rows:
            return self.score.evaluate(x, t, wanted)
        parts = (slice(i, i + self.rows) for i in range(0, len(x), self.rows))
        return torch.cat([self._part(x, t, wanted, part) for part in parts])

    def _part(self, x: Tensor, t: Tensor, wanted: Combination, part: slice) -> Tensor:
        return self.score.evaluate(x[part], t[part] if t.ndim else t, wanted.for_samples(lambda c: c[part]))


_NAME = re.compile(rf"({'|'.join(MIXTURES)})(?:-(rough)|-guided(\d+(?:\.\d+)?))?-({'|'.join(SDES)})")


@functools.cache
def problem(name: str) -> Problem:
    """The problem of that name: see the head of this file.

    Raises:
        ValueError: no name, and no folder of a network either.
    """
    if _NAME.fullmatch(name):
        return mixture(name)
    from contest.learned import learned  # which builds on this module

    if not Path(name.partition("@")[0]).is_dir():
        raise ValueError(
            f"the problems are {', '.join((*LAWS, *FURTHER))} and folders of trained networks; got {name!r}."
        )
    return learned(name)


def mixture(name: str) -> Mixture:
    """A problem made of a mixture.

    Raises:
        ValueError: the name says another thing.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise ValueError(f"the mixtures are {', '.join((*LAWS, *FURTHER))}; got {name!r}.")
    law, rough, scale, schedule = found.groups()
    law, sde = MIXTURES[law](), SDES[schedule]()
    if scale:
        return Guided(name, sde, law, float(scale))
    if rough:
        deviation = float(directions(law)[0].mean().sqrt())
        return Rough(name, sde, law, Waves(ROUGHNESS, deviation, law.event[0]))
    return Mixture(name, sde, law)
