"""The noise of adaptive steps: what a rejected step has drawn stays drawn, and shorter steps are bridged into it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from scoresde.noise import BrownianNoise, Noise, PerSampleNoise, drawn_seed
from scoresde.sde.base import root
from scoresde.solvers._step_control import mixed, scaled


class Driver(ABC):
    r"""N = ∫_{h_t}^{h_s} sqrt(2) η e^{-η² (h_s - h)} dW_h for steps that may be taken back; h = log(α/σ) rises.

    σ_s N is exactly what the Wiener process adds to x_s, of variance σ_s² (1 - e^{-2 η² (h_s - h_t)}).
    """

    def __init__(self, noise: Noise, x: Tensor, eta: float | Tensor) -> None:
        self.noise, self.template, self.eta = noise, x, eta
        self.rows = torch.arange(len(x), device=x.device)

    @abstractmethod
    def attempt(self, p: Tensor, target: Tensor, times: tuple[Tensor, Tensor]) -> Tensor:
        """N for steps from p to ``target`` (B,), whose ``times`` are (t, s)."""

    @abstractmethod
    def between(self, p: Tensor, times: tuple[Tensor, Tensor]) -> Tensor:
        """N up to a place p (B,) inside the step just tried; asked with rising places."""

    @abstractmethod
    def commit(self, moved: Tensor, accepted: Tensor) -> None:
        """Which of the samples took a step, and which of them keep it."""

    def reach(self, p: Tensor, h: Tensor) -> Tensor:
        """How far a step of length h may go."""
        return h

    def refused(self, times: tuple[Tensor, Tensor]) -> Tensor | None:
        """(B,) bool, for which samples a step between ``times`` (t, s) is too short; None where none is."""
        return None

    def select(self, rows: Tensor) -> None:
        """Only these samples go on."""
        self.rows = self.rows[rows]

    def _decay(self, length: Tensor) -> tuple[Tensor, Tensor]:
        """e^{-η² Δ} and 1 - e^{-2 η² Δ}."""
        rate = self.eta**2 * length
        return (-rate).exp(), -torch.expm1(-2 * rate)

    def _normal(self, noise: Noise) -> Tensor:
        """The same draw for a sample whichever other samples still run."""
        return noise.normal(self.template)[self.rows]


class Followed(Driver):
    """A given Brownian path, in the time of the SDE: N is its increment times the exact standard deviation.

    The same path under any tolerance, and the same end point as that of fixed-step methods in the limit of small steps.
    """

    def attempt(self, p: Tensor, target: Tensor, times: tuple[Tensor, Tensor]) -> Tensor:
        self.start = p
        _, variance = self._decay(target - p)
        # a path knows its samples by their place in the batch: those that are gone stand still
        t, s = (self._everyone(time) for time in times)
        return scaled(root(variance), self.noise.between(self.template, t, s)[self.rows])

    def between(self, p: Tensor, times: tuple[Tensor, Tensor]) -> Tensor:
        kept = self.start
        value = self.attempt(self.start, p, times)
        self.start = kept
        return value

    def commit(self, moved: Tensor, accepted: Tensor) -> None:
        pass

    def refused(self, times: tuple[Tensor, Tensor]) -> Tensor | None:
        if not isinstance(self.noise, BrownianNoise):
            return None
        return ~self.noise.resolves(*times).to(self.rows.device)

    def _everyone(self, time: Tensor) -> Tensor:
        whole = torch.zeros(len(self.template), dtype=time.dtype, device=time.device)
        return whole.index_put((self.rows,), time.detach())


class Remembered(Driver):
    r"""R with dR = -η² R dh + sqrt(2) η dW_h, drawn where it is asked for; N = R_s - e^{-η² (h_s - h_t)} R_t.

    A step that is rejected leaves its R_s behind, as a fact: shorter steps are drawn from the bridge between R_t and
    R_s, until that place is passed. So each sample has one path of R, whatever is rejected and why, and the noise of
    the accepted steps has exactly its law (Rackauckas & Nie 2017, doi:10.3934/dcdsb.2017133, do the same for Brownian
    motion; here the bridge is that of R itself, whose time is the process's own). Memory grows by one state for each
    rejection that is nested in another.
    """

    def __init__(self, noise: Noise, x: Tensor, eta: float | Tensor) -> None:
        super().__init__(noise, x, eta)
        self.value = torch.zeros_like(x)
        # facts about the future of each sample, the nearest last: places (B, S), values (B, S, *event), how many (B,)
        self.places = torch.zeros(len(x), 0, dtype=torch.float64, device=x.device)
        self.values = x.new_zeros(len(x), 0, *x.shape[1:])
        self.depth = torch.zeros(len(x), dtype=torch.long, device=x.device)
        # a generator has no streams: its next draw seeds one, so that states in between change nothing at the end
        seed = drawn_seed(noise)
        self.apart = PerSampleNoise(seed) if noise.stream("trajectory") is noise else noise.stream("trajectory")

    def _nearest(self) -> tuple[Tensor, Tensor]:
        """Place and value of the next fact; infinitely far where there is none."""
        if not self.places.shape[1]:
            return torch.full_like(self.depth, torch.inf, dtype=torch.float64), torch.zeros_like(self.value)
        at = (self.depth - 1).clamp_min(0)
        each = torch.arange(len(at), device=at.device)
        return torch.where(self.depth > 0, self.places[each, at], torch.inf), self.values[each, at]

    def reach(self, p: Tensor, h: Tensor) -> Tensor:
        """Not beyond the next fact; up to it rather than leaving a splinter."""
        left = self._nearest()[0] - p
        return torch.where(left < 1.1 * h, left, h)

    def attempt(self, p: Tensor, target: Tensor, times: tuple[Tensor, Tensor]) -> Tensor:
        place, value = self._nearest()
        self.known = target >= place - 1e-9 * (place - p).clamp_max(1.0)
        z = self._normal(self.noise)
        decay, variance = self._decay(target - p)
        free = scaled(decay, self.value) + scaled(root(variance), z)
        tied = self._bridge(p, self.value, target, torch.where(place.isinf(), target + 1, place), value, z)
        self.trial = mixed(self.known, value, mixed(place.isinf(), free, tied))
        self.start, self.target, self.left = p, target, (p, self.value)
        return self.trial - scaled(decay, self.value)

    def _bridge(self, p: Tensor, before: Tensor, s: Tensor, end: Tensor, after: Tensor, z: Tensor) -> Tensor:
        """R at s, given its values at p <= s and end >= s."""
        first, first_variance = self._decay((s - p).clamp_min(0.0))
        second, second_variance = self._decay((end - s).clamp_min(0.0))
        whole = self._decay(end - p)[1]
        whole = torch.where(whole > 0, whole, 1.0)
        mean = scaled(first * second_variance / whole, before) + scaled(second * first_variance / whole, after)
        return mean + scaled(root(first_variance * second_variance / whole), z)

    def between(self, p: Tensor, times: tuple[Tensor, Tensor]) -> Tensor:
        start, value = self.left
        inside = self._bridge(start, value, p, self.target, self.trial, self._normal(self.apart))
        moved = p > start
        self.left = torch.where(moved, p, start), mixed(moved, inside, value)
        decay, _ = self._decay((p - self.start).clamp_min(0.0))
        return inside - scaled(decay, self.value)

    def commit(self, moved: Tensor, accepted: Tensor) -> None:
        self.value = mixed(accepted, self.trial, self.value)
        self.depth = self.depth - (accepted & self.known).long()
        pushed = moved & ~accepted & ~self.known
        if not bool(pushed.any()):
            return
        if int(self.depth[pushed].max()) == self.places.shape[1]:
            self.places = torch.cat([self.places, torch.zeros_like(self.target)[:, None]], 1)
            self.values = torch.cat([self.values, torch.zeros_like(self.value)[:, None]], 1)
        each = pushed.nonzero()[:, 0]
        at = (each, self.depth[each])
        self.places = self.places.index_put(at, self.target.detach()[each])
        self.values = self.values.index_put(at, self.trial[each])
        self.depth = self.depth + pushed.long()

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        for name in ("value", "places", "values", "depth"):
            setattr(self, name, getattr(self, name)[rows])


def driver(noise: Noise, x: Tensor, eta: float | Tensor) -> Driver:
    """A path that is given is followed; any other noise is remembered."""
    return (Followed if isinstance(noise, BrownianNoise) else Remembered)(noise, x, eta)
