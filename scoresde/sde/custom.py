"""SDEs from a user's functions: α and σ, or f and g, or the levels of a discrete chain.

    ScheduleSDE(lambda t: torch.cos(1.5 * t), lambda t: torch.sin(1.5 * t))
    LinearSDE(f=lambda t: -0.5 - 4 * t, g=lambda t: (1 + 8 * t).sqrt())
    ChainSDE(Chain.from_betas(beta))

Each is an SDE like any other: every solver, loss and guidance takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.lasting import lasting_property
from scoresde.sde.base import SDE, Time, beside_parameters, derivative, root, signal_left
from scoresde.sde.chain import Chain
from scoresde.sde.host import answered_elsewhere, twin
from scoresde.sde.members import RectifiedFlow

TimeFunction = Callable[[Tensor], Tensor | float]


def _on(function: TimeFunction | float, u: Tensor) -> Tensor:
    """A user's function, or constant, at the times u of any shape; the function sees one axis."""
    asked = twin(function) if u.is_cpu else function
    answer = asked(beside_parameters(asked, u.flatten())) if callable(asked) else asked
    value = answer if isinstance(answer, Tensor) else torch.as_tensor(answer, dtype=u.dtype)
    if u.is_cpu and not value.is_cpu:
        answered_elsewhere(function)
    if value.shape not in ((), (1,), (u.numel(),)):
        raise ValueError(
            f"a coefficient must work elementwise on times: it was given ({u.numel()},) and answered "
            f"{tuple(value.shape)}."
        )
    return value.to(u).expand(u.numel()).reshape(u.shape)


@dataclass(frozen=True, init=False, eq=False)
class ScheduleSDE(SDE):
    """An SDE from any two functions of time: ``ScheduleSDE(lambda t: torch.cos(t), lambda t: torch.sin(t), T=1.5)``.

    Args:
        alpha: t -> α(t) > 0 (at T it may be 0), float64 in and out, elementwise torch operations (so that f and g can
            be derived).
        sigma: t -> σ(t) >= 0, with σ/α increasing.
        T: start of the reverse process.
        t_min: its end.

    Raises:
        ValueError: α not positive, σ negative, or σ/α not increasing at 257 probed times of [0, T]; or derivatives
            that disagree with the functions' own differences.
    """

    _alpha: TimeFunction
    _sigma: TimeFunction

    def __init__(
        self,
        alpha: TimeFunction,
        sigma: TimeFunction,
        *,
        T: float = 1.0,
        t_min: float = 1e-3,
    ) -> None:
        for name, value in {"_alpha": alpha, "_sigma": sigma, "T": T, "t_min": t_min}.items():
            object.__setattr__(self, name, value)
        self.__post_init__()
        times = torch.linspace(0, self.T, 257, dtype=torch.float64)
        with torch.no_grad():
            scale, std = self.alpha(times), self.sigma(times)
            if not (bool((scale[:-1] > 0).all()) and bool(scale[-1] >= 0) and bool((std >= 0).all())):
                raise ValueError(
                    "a schedule needs σ(t) >= 0 on [0, T], and α(t) > 0 but at T, where it may be 0; the functions "
                    "given break this."
                )
            if not bool(((std / scale).diff() > 0).all()):
                raise ValueError("σ/α must increase with t (noise is only ever added); the functions given break this.")
            self._differentiable()

    def _differentiable(self) -> None:
        """f and g come from automatic differentiation, which sees nothing of .item(), numpy or a look-up in a table."""
        ends = torch.linspace(self.T / 16, self.T * 15 / 16, 15, dtype=torch.float64)
        # Mean slopes over short intervals lie between the extreme slopes inside, of which the derivative at several
        # points gives an idea: a factor of 2 is enough for any function that is smooth at this scale.
        width = self.T / 64
        points = ends + width * torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
        for name, function in {
            "f": lambda t: self.alpha(t).log(),
            "g²": self.inverse_snr,
        }.items():
            mean = (function(points[-1]) - function(points[0])) / width
            slopes = derivative(function, points.flatten()).reshape(points.shape).abs()
            rounding = 1e-12 * function(points[0]).abs().clamp_min(1.0 if name == "f" else 0.0) / width
            if bool((mean.abs() > 2 * slopes.amax(0) + rounding).any()):
                raise ValueError(
                    f"{name} cannot be derived from the functions given: automatic differentiation finds slopes up to "
                    f"{float(slopes.max()):.3g}, their values change by up to {float(mean.abs().max()):.3g} per unit "
                    "of time. Write them in torch operations on t: no .item(), float(t), numpy, detach() or look-up in "
                    "a table of constants (interpolate linearly in t instead, or take ChainSDE)."
                )

    def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return _on(self._alpha, t)

    def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return _on(self._sigma, t)


@dataclass(frozen=True, init=False, eq=False)
class LinearSDE(SDE):
    r"""``dx = f(t) x dt + g(t) dw`` from f and g, integrated to α and σ::

        log α(t) = ∫_0^t f        (σ/α)²(t) = ∫_0^t g²/α²

    by composite 16-point Gauss-Legendre quadrature on [0, t]: every time is integrated for itself, so α and σ are
    differentiable in t and in any tensor that f and g hold. The number of panels is doubled at construction until
    doubling again changes neither α nor σ by more than 1e-11 relative.

    Args:
        f: t -> f(t), elementwise torch operations on a float64 tensor (n,), or a constant.
        g: t -> g(t) >= 0, the same.
        T: start of the reverse process.
        t_min: its end.

    Raises:
        ValueError: f or g is not finite on (0, T), g vanishes near t = 0, or the integrals do not settle.
    """

    _f: TimeFunction | float
    _g: TimeFunction | float
    _panels: int

    def __init__(
        self, f: TimeFunction | float, g: TimeFunction | float, *, T: float = 1.0, t_min: float = 1e-3
    ) -> None:
        for name, constant in {"f": f, "g": g}.items():
            if not callable(constant):
                given = checks.number(constant, name=f"{name}, where it is no function,")
                if not abs(given) < float("inf"):
                    raise ValueError(f"{name} must be finite where it is no function, got {given:g}.")
        for name, value in {"_f": f, "_g": g, "T": T, "t_min": t_min, "_panels": 4}.items():
            object.__setattr__(self, name, value)
        self.__post_init__()
        with torch.no_grad():
            object.__setattr__(self, "_panels", self._settle())

    def _settle(self) -> int:
        # Both ends matter: σ is held to relative accuracy however small t is.
        near, far = torch.logspace(-6, -1, 11, dtype=torch.float64), torch.linspace(0.2, 1, 17, dtype=torch.float64)
        times = torch.cat([near, far]) * self.T
        if not bool((_on(self._g, times) >= 0).all()):
            raise ValueError(f"g must be at least 0 on (0, {self.T:g}], got {checks.got(self._g)}, which is not there.")
        before = self._integrate(times, 4)
        panels = 8
        while panels <= 4096:
            after = self._integrate(times, panels)
            if not all(bool(v.isfinite().all()) for v in after):
                raise ValueError(
                    f"f and g must be finite inside (0, T = {self.T:g}), and their integrals too; got "
                    f"{checks.got(self._f)} and {checks.got(self._g)}; "
                    "end the SDE earlier (a smaller T) if a coefficient diverges."
                )
            if not bool((after[1] > 0).all()):
                t = times[after[1] <= 0].max().item()
                raise ValueError(
                    f"g must be positive: it is 0 on (0, {t:g}], where no noise is added and nothing is to be reversed."
                )
            # error of log α is the relative error of α; half that of log (σ/α)² is σ/α's
            error = max((after[0] - before[0]).abs().max(), 0.5 * (after[1] / before[1]).log().abs().max())
            if error < 1e-11:
                return panels
            before, panels = after, 2 * panels
        raise ValueError(
            f"the integrals of f and g still change by {float(error):.1e} relative with {panels // 2} panels: "
            f"a coefficient diverges or jumps on [0, {self.T:g}]. End the SDE earlier, or give α and σ themselves, "
            "ScheduleSDE(alpha, sigma)."
        )

    def _integrate(self, t: Tensor, panels: int) -> tuple[Tensor, Tensor]:
        """(log α, (σ/α)²) at t of any shape."""
        nodes, weights, running = (torch.as_tensor(a, device=t.device) for a in _gauss_legendre(16))
        width = (t / panels)[..., None, None]
        u = width * (torch.arange(panels, device=t.device)[:, None] + nodes)
        rate = _on(self._f, u)
        whole = width[..., 0] * (rate @ weights)
        log_alpha = whole.cumsum(-1)
        at_nodes = (log_alpha - whole)[..., None] + width * (rate @ running.T)
        growth = _on(self._g, u) ** 2 * torch.exp(-2 * at_nodes)
        return log_alpha[..., -1], (width[..., 0] * (growth @ weights)).sum(-1)

    def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return self._integrate(t, self._panels)[0].exp()

    def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
        log_alpha, ratio = self._integrate(t, self._panels)
        return log_alpha.exp() * root(ratio)

    def inverse_snr(self, t: Tensor) -> Tensor:
        return self._integrate(t, self._panels)[1]

    def log_snr(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return -self.inverse_snr(t).log()

    def f(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return _on(self._f, t)

    def g(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return _on(self._g, t)


@lru_cache
def _gauss_legendre(points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1], and the matrix that integrates the interpolant from 0 to each node."""
    x, w = np.polynomial.legendre.leggauss(points)
    # ∫_{-1}^{x} of the interpolant: expand in Legendre polynomials (exact by the same quadrature), integrate those.
    degrees = np.arange(points)
    expand = (2 * degrees[:, None] + 1) / 2 * np.polynomial.legendre.legvander(x, points - 1).T * w
    antiderivatives = [np.polynomial.legendre.legint(np.eye(points)[k], lbnd=-1) for k in degrees]
    integrate = np.stack([np.polynomial.legendre.legval(x, c) for c in antiderivatives], axis=1)
    return (x + 1) / 2, w / 2, integrate @ expand / 2


@dataclass(frozen=True, eq=False)
class ChainSDE(SDE):
    """The SDE through the levels of a discrete chain: log α and (σ/α)² linear in t between them.

    At the times of the chain its marginals, transitions and posteriors are the chain's own, so a network trained on
    DDPM's or SMLD's chain runs here with every solver, and an ancestral step between levels is the textbook's.

    Args:
        chain: levels with positive times and a positive variance added by each. Where the last level has ratio 0, and
            so no signal ("zero terminal SNR"), the way to it is x_u = (1 - ρ) x + sqrt(1 - (1 - ρ)²) sqrt(v_n) z, ρ
            rising linearly in t from 0 to 1.
    """

    chain: Chain
    T: float = field(init=False, kw_only=True)
    t_min: float = field(init=False, kw_only=True)

    def __post_init__(self) -> None:
        times = checks.instance(self.chain, Chain, name="chain").times
        if not bool((self.chain.variance > 0).all()) or not times[0] > 0:
            raise ValueError("an SDE through a chain needs positive times and a positive variance at each level.")
        object.__setattr__(self, "T", times[-1].item())
        object.__setattr__(self, "t_min", times[0].item() if len(times) > 1 else 0.0)
        super().__post_init__()
        _ = self._fades, self._levels  # now, as torch.compile cannot make what is to last

    @lasting_property
    def _fades(self) -> bool:
        """Whether the last level is without signal."""
        return not bool(signal_left(self.chain.alpha[-1], self.chain.sigma[-1]))

    @lasting_property
    def _levels(self) -> tuple[Tensor, Tensor, Tensor]:
        """Times, log α and (σ/α)² at 0 and at each level, (n + 1,); a level without signal has those before it."""
        before = self.chain.before
        last = [value[-1:] for value in (before if self._fades else (self.chain.alpha, self.chain.sigma))]
        alpha, sigma = (torch.cat(pair) for pair in zip(before, last, strict=True))
        return torch.cat([self.chain.times.new_zeros(1), self.chain.times]), alpha.log(), (sigma / alpha) ** 2

    def _interpolate(self, t: Tensor, which: int) -> Tensor:
        """Piecewise-linear through the values at the levels: 1 for log α, 2 for (σ/α)²."""
        times, values = self._levels[0].to(t.device), self._levels[which].to(t.device)
        i = torch.searchsorted(times, t.detach().contiguous()).clamp(1, len(times) - 1)
        before, after = times.take(i - 1), times.take(i)
        return torch.lerp(values.take(i - 1), values.take(i), (t - before) / (after - before))

    def _left(self, t: Tensor) -> Tensor:
        """1 - ρ on the way to a last level without signal; 1 elsewhere."""
        before, end = self._levels[0][-2:].to(t.device)
        return torch.where(t > before, (end - t) / (end - before), torch.ones_like(t))

    def _added(self, left: Tensor) -> Tensor:
        """The variance added on that way."""
        return (1 - left) * (1 + left) * self.chain.variance[-1].to(left.device)

    def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
        alpha = self._interpolate(t, 1).exp()
        return self._left(t) * alpha if self._fades else alpha

    def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
        sigma = self._interpolate(t, 1).exp() * root(self._interpolate(t, 2))
        if not self._fades:
            return sigma
        left = self._left(t)
        return torch.where(left < 1, root((left * sigma) ** 2 + self._added(left)), sigma)

    def inverse_snr(self, t: Tensor) -> Tensor:
        before = self._interpolate(t, 2)
        if not self._fades:
            return before
        left = self._left(t)
        return before + self._added(left) / left**2 * self._scale(t)

    def _scale(self, t: Tensor) -> Tensor:
        """1/α² at the level before the last."""
        return (-2 * self._levels[1][-1].to(t.device)).exp()

    def __repr__(self) -> str:
        return f"ChainSDE({self.chain!r})"

    def smooth(self) -> SDE:
        """The straight path of :class:`RectifiedFlow`, from the first level's σ/α to the last's, infinite or not."""
        ends = torch.tensor([self.t_min, self.T], dtype=torch.float64)
        alpha, sigma = self.alpha(ends), self.sigma(ends)
        if checks.followed(alpha) or checks.followed(sigma) or not sigma[0] > 0:
            return self  # gradients by the levels need the chain itself
        first, last = (sigma / (alpha + sigma)).tolist()
        return RectifiedFlow(T=last, t_min=first)

    def t_of_log_snr(self, log_snr: Time) -> Tensor:
        """In closed form: (σ/α)² is piecewise linear, and on the way to a level without signal b + v (1/ρ² - 1)."""
        target = self._reachable(log_snr)
        # e^600 is as good as infinite, and differentiates
        wanted, (times, values) = (-target.clamp_min(-600.0)).exp(), (self._levels[i].to(target.device) for i in (0, 2))
        inside, known = wanted.clamp_max(values[-1]) if self._fades else wanted, values[-1]
        i = torch.searchsorted(values, inside.detach().contiguous()).clamp(1, len(values) - 1)
        start, gap = values.take(i - 1), values.take(i) - values.take(i - 1)
        part = (inside - start) / torch.where(gap > 0, gap, torch.ones_like(gap))
        time = torch.lerp(times.take(i - 1), times.take(i), part)
        if self._fades:
            added = self.chain.variance[-1].to(target.device) * self._scale(target)
            left = root(added / ((wanted - known).clamp_min(0.0) + added))
            time = torch.where(wanted > known, times[-1] - left * (times[-1] - times[-2]), time)
        return checks.brought(self._inside(time), checks.result_dtype(log_snr))
