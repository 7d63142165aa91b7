"""The SDE: α(t) and σ(t) are the whole schedule; everything else is derived here, once::

    sde = VP()
    sde.alpha(t), sde.sigma(t), sde.f(t), sde.g(t), sde.log_snr(t), sde.t_of_log_snr(level)
    mean, std = sde.marginal(x0, t)                 # also transition, bridge, posterior
    x_T = sde.prior_sample((16, 2), noise=0)

A member of your own is a frozen dataclass with ``alpha`` and ``sigma``; functions of time become one by
:class:`~scoresde.ScheduleSDE`.
"""

from __future__ import annotations

import functools
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.noise import Noise, as_noise
from scoresde.sde.chain import Chain
from scoresde.sde.host import answered_elsewhere, first_parameter, twin

Time = float | Tensor
"""A number, or a tensor () for all samples or (B,) for each."""

_FUNCTIONS_OF_TIME = ("alpha", "sigma", "f", "g", "log_snr")
_MAY_NOT_DIVERGE = ("f", "g")

# torch counts the levels of forward-mode differentiation for the whole process: two threads inside one would get each
# other's tangents, or errors
_ONE_AT_A_TIME = threading.RLock()


def spread(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient of time, () or (B,), ready to multiply x (B, *event).

    A scalar is left alone: torch lets it join a tensor of any dtype and device without widening it. One value per
    sample is cast to x's dtype and gets trailing axes.
    """
    coefficient = _level(coefficient, "coefficient")
    if coefficient.ndim == 0:
        return coefficient
    checks.same_batch(coefficient, checks.state(x), name="coefficient")
    return checks.sent(coefficient, x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))


NO_SIGNAL = 1e-8
"""α/σ up to which nothing of x_0 is taken to be left in x_t. Rounding makes 6e-17 of cos(π/2), which is not above 0."""


def signal_left(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Where x_t = α x_0 + σ ε says something of x_0: α > 1e-8 σ, shaped like α."""
    return _level(alpha, "alpha") > NO_SIGNAL * _level(sigma, "sigma")


def _level(value: Tensor, name: str) -> Tensor:
    """A floating tensor as it is, and other numbers as one."""
    return value if isinstance(value, Tensor) and value.is_floating_point() else checks.real(value, name=name)


def has_signal(alpha: Tensor, sigma: Tensor) -> bool:
    """Whether that holds for all of them; taken for granted where values cannot be read without stalling a device."""
    alpha, sigma = _level(alpha, "alpha"), _level(sigma, "sigma")
    signal, noise = checks.single(alpha), checks.single(sigma)
    if signal is not None and noise is not None:
        return signal > NO_SIGNAL * noise
    left = signal_left(alpha.detach(), sigma.detach())
    return not checks.readable(left) or bool(left.all())


def signal_at(sde: SDE, time: Tensor) -> bool:
    """Whether there is signal at all these times; at T in place of times that cannot be read without stalling."""
    checks.instance(sde, SDE, name="sde")
    time = _level(time, "time")
    asked = time.detach() if checks.readable(time) else torch.tensor(sde.T, dtype=torch.float64)
    return has_signal(sde.alpha(asked), sde.sigma(asked))


def root(square: Tensor) -> Tensor:
    """sqrt of what is not negative, with the gradient 0 where the value is 0; there it is infinite, times 0 NaN."""
    if (number := checks.single(square)) is not None and number > 0:
        return square.sqrt()
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, torch.ones_like(square)).sqrt(), 0 * square)


def _in_float64(method: Callable[[Any, Tensor], Tensor], name: str) -> Callable[[Any, Time], Tensor]:
    """Evaluate a schedule formula in float64 on a checked time, and answer in the dtype of the caller's t."""

    @functools.wraps(method)
    def evaluate(self: SDE, t: Time) -> Tensor:
        time = checks.time(t, self.t_max, what=type(self).__name__)
        asked = twin(self) if time.is_cpu else self
        value = method(asked, beside_parameters(asked, time))
        if isinstance(value, Tensor) and value.device != time.device and time.is_cpu:
            answered_elsewhere(self)
        value = torch.as_tensor(value, dtype=torch.float64, device=time.device)
        if value.shape != time.shape:
            value = value.expand(time.shape)
        if name in _MAY_NOT_DIVERGE:
            self._finite(value, time, name)
        return checks.brought(value, checks.result_dtype(t))

    return evaluate


def _beside(method: Callable[[Any, Time], Tensor]) -> Callable[[Any, Time], Tensor]:
    """Evaluate an inverse where the parameters are that it takes from ``self``, and answer where it was asked."""

    @functools.wraps(method)
    def evaluate(self: SDE, log_snr: Time) -> Tensor:
        first = first_parameter(self)
        if first is None or first.device == getattr(log_snr, "device", torch.device("cpu")):
            return method(self, log_snr)
        if not isinstance(log_snr, Tensor):
            log_snr = checks.real(log_snr, name="log_snr")
        if log_snr.is_cpu:
            answered_elsewhere(self)
        asked = twin(self) if log_snr.is_cpu else self
        return method(asked, beside_parameters(asked, log_snr)).to(log_snr.device)

    return evaluate


def beside_parameters(holder: object, time: Tensor) -> Tensor:
    """The time where the parameters of ``holder`` are, if it is a module, or an SDE, that has some."""
    first = first_parameter(holder)
    return time if first is None or first.device == time.device else checks.sent(time, first.device)


@dataclass(frozen=True)
class SDE(ABC):
    r"""A linear SDE ``dx = f(t) x dt + g(t) dw`` given by its marginal ``x_t = α(t) x_0 + σ(t) ε``, ε ~ N(0, I).

    A member is a frozen dataclass with two methods, ``alpha(t)`` and ``sigma(t)``, written as plain torch formulas;
    they are evaluated in float64 whatever the dtype of t, for a number, a tensor () or (B,), and may hold tensors as
    parameters, through which gradients flow; where a standard deviation is 0, such as σ(0) of VP, its gradient is
    taken as 0. A schedule that is learned holds modules or parameters in its fields, or is a module itself, ``class
    Learned(SDE, nn.Module)``, whose ``__init__`` may set ``self.T`` and ``self.t_min``: a
    :class:`~scoresde.ScoreModel` counts them among its own. The rest follows (Song et al. 2021, arXiv:2011.13456;
    Kingma et al. 2021, arXiv:2107.00630, eq. 1-2, appendix D)::

        f = (log α)'        g² = α² ((σ/α)²)'        log SNR = log(α² / σ²)

    and may be overridden by a closed form where that is faster.

    Attributes:
        T: where noise starts the reverse process. α(T) may be 0 ("zero terminal SNR"); f and g diverge there, and are
            finite on (0, T) in any case.
        t_min: where integration stops; at least 0.

    Raises:
        ValueError: at construction when not 0 <= t_min < T <= t_max; a function of time for a t outside [0, t_max].
    """

    T: float = field(default=1.0, kw_only=True)
    t_min: float = field(default=1e-3, kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _FUNCTIONS_OF_TIME:
            if name in cls.__dict__:
                setattr(cls, name, _in_float64(cls.__dict__[name], name))
        if "t_of_log_snr" in cls.__dict__:
            cls.t_of_log_snr = _beside(cls.__dict__["t_of_log_snr"])  # type: ignore[method-assign, assignment]
        if issubclass(cls, nn.Module):  # what it learns is in no field: two of them are not the same
            for name in ("__eq__", "__hash__"):
                if name not in cls.__dict__:
                    setattr(cls, name, getattr(object, name))

    def __post_init__(self) -> None:
        if isinstance(self, nn.Module) and "_parameters" not in vars(self):
            raise TypeError(
                f"{type(self).__name__} is a module and a dataclass at once, whose fields torch does not see. Either "
                "leave nn.Module out, and modules and parameters in its fields are found, or leave @dataclass out and "
                "write __init__, which begins with nn.Module.__init__(self)."
            )
        checks.fields(self)
        for name in ("T", "t_min"):  # numbers, unless somebody differentiates by them
            end = getattr(self, name)
            if isinstance(end, Tensor) and not checks.followed(end):
                object.__setattr__(self, name, float(end))
        if not (0 <= self.t_min < self.T <= self.t_max and math.isfinite(self.T)):
            raise ValueError(
                f"{type(self).__name__} needs 0 <= t_min < T <= {self.t_max:g}, "
                f"got t_min = {self.t_min:g}, T = {self.T:g}."
            )

    @property
    def t_max(self) -> float:
        """End of the range on which α and σ are defined (f may diverge there); T unless a member says more."""
        return self.T

    # -- the schedule ------------------------------------------------------------------------------------------

    @abstractmethod
    def alpha(self, t: Time) -> Tensor:
        """Signal scale α(t) > 0 on [0, T); at T it may be 0."""

    @abstractmethod
    def sigma(self, t: Time) -> Tensor:
        """Noise scale σ(t) >= 0; σ/α increases with t."""

    def f(self, t: Time) -> Tensor:
        """Drift coefficient f(t) = d log α / dt, in 1/time."""
        time, dtype = checks.time(t, self.t_max), checks.result_dtype(t)
        return self._finite(derivative(lambda u: self.alpha(u).log(), time), time, "f").to(dtype)

    def g(self, t: Time) -> Tensor:
        """Diffusion coefficient g(t) = sqrt(α² d(σ²/α²)/dt), in 1/√time; derived only where σ > 0."""
        time, dtype = checks.time(t, self.t_max), checks.result_dtype(t)
        rate = derivative(self.inverse_snr, time) * self.alpha(time) ** 2
        # A schedule that rests (g = 0) comes out as minus a rounding error, here of sizes like σ²/T; a rising SNR stays
        # negative and is refused.
        sigma = self.sigma(time).detach()
        rate = torch.where((rate < 0) & (rate >= -1e-12 * sigma**2 / self.T), torch.zeros_like(rate), rate)
        if type(self).inverse_snr is SDE.inverse_snr:
            # σ ~ sqrt(t) rises infinitely fast at σ = 0, where its square does not: the derivative is not to be had.
            rate = torch.where(sigma > 0, rate, math.nan)
        return self._finite(rate.sqrt(), time, "g").to(dtype)

    def inverse_snr(self, t: Tensor) -> Tensor:
        """1/SNR = (σ/α)², whose derivative is g²/α²; overridden where σ is a square root of it."""
        return (self.sigma(t) / self.alpha(t)) ** 2

    def _finite(self, value: Tensor, time: Tensor, name: str) -> Tensor:
        bad = ~value.detach().isfinite()
        if checks.readable(bad) and bad.any().item():
            raise ValueError(
                f"{type(self).__name__}.{name} has no finite value at t = {time.detach()[bad].flatten()[0].item():g}. "
                f"Stay inside [t_min, T] = [{self.t_min:g}, {self.T:g}], where σ/α increases and α > 0."
            )
        return value

    def derivatives(self, t: Time) -> tuple[Tensor, Tensor]:
        """(α', σ') at t, where σ > 0.

        E[α' x_0 + σ' ε | x_t] is the slope of the probability-flow ODE, also where α = 0 and f diverges.
        """
        time, dtype = checks.time(t, self.t_max, what=type(self).__name__), checks.result_dtype(t)
        alpha, sigma = self.alpha(time), self.sigma(time)
        if signal_at(self, time):
            f = self.f(time)
            of_x0, of_noise = f * alpha, f * sigma + 0.5 * self.g(time) ** 2 / sigma
        else:
            of_x0, of_noise = derivative(self.alpha, time), derivative(self.sigma, time)
        return of_x0.to(dtype), self._finite(of_noise, time, "derivatives").to(dtype)

    def log_snr(self, t: Time) -> Tensor:
        """λ(t) = log(α²/σ²), decreasing; +inf where σ = 0, -inf where α = 0."""
        time, dtype = checks.time(t, self.t_max), checks.result_dtype(t)
        return (2 * (self.alpha(time).log() - self.sigma(time).log())).to(dtype)

    def t_of_log_snr(self, log_snr: Time) -> Tensor:
        """The time at which log(α²/σ²) equals ``log_snr``: by search, then one Newton step that carries gradients.

        Those of first order, dt/dλ = 1/λ'(t), and through tensors that the schedule holds: the slope is taken as
        constant, so second derivatives are not those of the inverse function.

        Args:
            log_snr: (), (n,) or a number.

        Raises:
            ValueError: no time in [0, t_max] has this log-SNR.
        """
        target = self._reachable(log_snr)
        with torch.no_grad():
            low, width = torch.zeros_like(target), self.t_max
            # few values are found in few calls, many in few evaluations
            bits = 4 if target.numel() <= 32 else 1
            parts = torch.arange(1, 2**bits, dtype=target.dtype, device=target.device)
            for _ in range(72 // bits):  # 2^72 parts of t_max: below the spacing of float64 near t = 1e-5 t_max
                width = width / 2**bits
                inner = (low[..., None] + width * parts).clamp_max(self.t_max)
                above = self.log_snr(inner.flatten()).reshape(inner.shape) > target[..., None]
                low = low + width * above.sum(-1)
            time = (low + width).clamp_max(self.t_max)
        # dt/dλ = 1/λ'(t), the implicit function theorem. Where λ is infinite there is no slope and no step.
        step = (self.log_snr(time) - target) / derivative(self.log_snr, time).detach()
        time = time - torch.where(step.isfinite(), step, torch.zeros_like(step))
        return self._inside(time).to(checks.result_dtype(log_snr))

    def _inside(self, time: Tensor) -> Tensor:
        """The time, which rounding may have taken out of the range at its ends, with its gradient."""
        return time + (time.clamp(0.0, self.t_max) - time).detach()

    def _reachable(self, log_snr: Time) -> Tensor:
        """``log_snr`` in float64, inside the range it has on [0, t_max]."""
        target = checks.real(log_snr, name="log_snr")
        if target.ndim > 1:
            raise ValueError(f"log_snr must be a number or have one axis, (n,); got shape {tuple(target.shape)}.")
        if not target.numel() or not checks.readable(target):
            return target
        lowest, highest = (self.log_snr(t).item() for t in (self.t_max, 0.0))
        low, high = (v.item() for v in target.detach().aminmax())
        slack = checks.rounding(log_snr)
        tolerance = [slack * max(1.0, abs(end)) if math.isfinite(end) else 0.0 for end in (lowest, highest)]
        if lowest < 2 * math.log(NO_SIGNAL):
            tolerance[0] = math.inf  # α(t_max) is 0 but for rounding, or as good: less signal is none as well
        if not (low >= lowest - tolerance[0] and high <= highest + tolerance[1]):
            raise ValueError(
                f"log_snr must be one that {type(self).__name__} has on its times [0, {self.t_max:g}], in "
                f"[{lowest:.10g}, {highest:.10g}]; got values in [{low:.10g}, {high:.10g}]."
            )
        return target.clamp(lowest, highest) if low < lowest or high > highest else target

    def smooth(self) -> SDE:
        """An SDE over the same range of σ/α whose α and σ are smooth in t: itself, unless a member has kinks.

        Laws and ODE paths of the two differ by the factor sqrt(α² + σ²) alone, so that an adaptive method, which a kink
        makes take tiny steps, may follow the smooth one in its place.
        """
        return self

    # -- laws of x_t -------------------------------------------------------------------------------------------

    def marginal(self, x0: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Mean α(t) x_0 (B, *event) and standard deviation σ(t) of p(x_t | x_0).

        The deviation broadcasts against x0: shape () for one time, (B, 1, ...) for one per sample.
        """
        x0 = checks.state(x0, name="x0")
        time = checks.time(t, self.t_max, what=type(self).__name__)
        checks.same_batch(time, x0)
        return spread(self.alpha(time), x0) * x0, spread(self.sigma(time), x0)

    def transition_coefficients(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """(α_t/α_s, σ_t² - (α_t/α_s)² σ_s²) for s <= t, float64: scale and variance of p(x_t | x_s)."""
        s, t = self._ordered(s, t)
        before = self.alpha(s)
        signal = before > 0
        if checks.readable(signal) and bool((~signal & (s < t)).any()):
            raise ValueError(f"nothing starts from s = {s}: {type(self).__name__} has α(s) = 0 there; take s < T.")
        # where α(s) = 0 a time only leads to itself
        ratio = torch.where(signal, self.alpha(t) / torch.where(signal, before, 1.0), 1.0)
        return ratio, (self.sigma(t) ** 2 - (ratio * self.sigma(s)) ** 2).clamp_min(0.0)

    def transition(self, x_s: Tensor, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of p(x_t | x_s), s <= t (Kingma et al. 2021, arXiv:2107.00630, appendix A.1)."""
        s, t = self._ordered(s, t, checks.state(x_s, name="x_s"))
        ratio, variance = self.transition_coefficients(s, t)
        return spread(ratio, x_s) * x_s, spread(root(variance), x_s)

    def bridge(self, x_s: Tensor, x_t: Tensor, s: Time, u: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of p(x_u | x_s, x_t), s <= u <= t, s < t.

        With (r, v) the scale and variance of each transition, v_st = v_ut + r_ut² v_su::

            mean = (v_ut r_su x_s + v_su r_ut x_t) / v_st        variance = v_su v_ut / v_st
        """
        checks.same_shape(checks.state(x_s, name="x_s"), checks.state(x_t, name="x_t"), names="x_s and x_t")
        s, u = self._ordered(s, u, x_s, names=("s", "u"))
        u, t = self._ordered(u, t, x_s, names=("u", "t"))
        ratio_su, variance_su = self.transition_coefficients(s, u)
        ratio_ut, variance_ut = self.transition_coefficients(u, t)
        return _product(x_s, x_t, ratio_su, variance_su, ratio_ut, variance_ut)

    def posterior(self, x0: Tensor, x_t: Tensor, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of p(x_s | x_0, x_t), s < t: DDPM's q(x_{t-1} | x_t, x_0).

        Ho et al. 2020 (arXiv:2006.11239), eq. 6-7; here for any schedule, also where σ(0) > 0. s = 0 with σ(0) = 0
        gives x_0 itself.
        """
        checks.same_shape(checks.state(x0, name="x0"), checks.state(x_t, name="x_t"), names="x0 and x_t")
        s, t = self._ordered(s, t, x0)
        ratio, variance = self.transition_coefficients(s, t)
        return _product(x0, x_t, self.alpha(s), self.sigma(s) ** 2, ratio, variance)

    def _ordered(
        self, s: Time, t: Time, x: Tensor | None = None, *, names: tuple[str, str] = ("s", "t")
    ) -> tuple[Tensor, Tensor]:
        what = type(self).__name__
        start, end = (
            checks.time(time, self.t_max, name=name, what=what) for time, name in zip((s, t), names, strict=True)
        )
        if x is not None:
            checks.same_batch(start, x, name=names[0])
            checks.same_batch(end, x, name=names[1])
        elif start.ndim and end.ndim:
            checks.same_shape(start, end, names=" and ".join(names))
        if start.device != end.device:  # a scalar may stay on the CPU; two axes must meet
            start, end = (v.to(start.device if start.ndim else end.device) for v in (start, end))
        if checks.readable(start) and checks.readable(end) and bool((start > end).any()):
            first, last = names
            raise ValueError(
                f"a transition must run forward in time, {first} <= {last}; got {first} = {s}, {last} = {t}. Swap them."
            )
        return start, end

    # -- prior -------------------------------------------------------------------------------------------------

    @property
    def prior_std(self) -> Tensor:
        """σ(T), float64 (): the prior is N(0, σ(T)² I), the law of x_T once α(T) x_0 is negligible."""
        return self.sigma(torch.tensor(self.T, dtype=torch.float64))

    def prior_sample(
        self,
        shape: tuple[int, ...],
        noise: Noise | torch.Generator | int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """x_T ~ N(0, σ(T)² I) of ``shape`` (B, *event), drawn from ``noise`` (a Noise, a generator or a seed)."""
        shape, dtype, device = checks.shape(shape), checks.dtype(dtype), checks.device(device)
        return as_noise(noise).initial(shape, dtype=dtype, device=device) * self.prior_std

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """log N(x; 0, σ(T)² I) in nats, (B,)."""
        x = checks.state(x)
        std = self.prior_std
        flat = x.flatten(1) if x.ndim > 1 else x[:, None]
        return -0.5 * ((flat / std) ** 2).sum(1) - flat.shape[1] * (std.log() + 0.5 * math.log(2 * math.pi))

    # -- discretisation ----------------------------------------------------------------------------------------

    def discretize(self, n: int) -> Chain:
        """The Markov chain of n levels, x_0 -> x_1 -> ... -> x_n; exact transitions between the times i T / n here.

        VP overrides it by DDPM's chain, VE by SMLD's, of which they are the limits.

        Raises:
            ValueError: n < 1 (for VE n < 2).
        """
        n, times = chain_times(n, self.T)
        alpha, sigma = self.alpha(times), self.sigma(times)
        before_alpha = torch.cat([torch.ones_like(alpha[:1]), alpha[:-1]])
        before_sigma = torch.cat([torch.zeros_like(sigma[:1]), sigma[:-1]])
        ratio = alpha / before_alpha
        return Chain(times=times, ratio=ratio, variance=(sigma**2 - (ratio * before_sigma) ** 2).clamp_min(0.0))


_frozen = SDE.__setattr__


def _assigned(self: object, name: str, value: Any) -> None:
    """Frozen as its fields are; but a module's __init__ may say where its time ends."""
    if not (isinstance(self, nn.Module) and name in ("T", "t_min")):
        _frozen(self, name, value)
        return
    checked = {"T": checks.positive, "t_min": checks.not_negative}[name]
    object.__setattr__(
        self, name, value if isinstance(value, Tensor) and checks.followed(value) else checked(value, name=name)
    )


SDE.__setattr__ = _assigned  # type: ignore[method-assign]


def chain_times(n: int, T: float, *, least: int = 1) -> tuple[int, Tensor]:
    """The number of a chain's levels, checked, and their times i T / n, i = 1 .. n."""
    n = checks.count(n, name="n, the number of a chain's levels,", least=least, most=10_000_000)
    return n, torch.arange(1, n + 1, dtype=torch.float64) * (T / n)


def _product(
    x_s: Tensor, x_t: Tensor, ratio_su: Tensor, variance_su: Tensor, ratio_ut: Tensor, variance_ut: Tensor
) -> tuple[Tensor, Tensor]:
    """The product of N(x_u; r_su x_s, v_su) and N(x_t; r_ut x_u, v_ut) as a Gaussian in x_u."""
    total = variance_ut + ratio_ut**2 * variance_su
    if checks.readable(total) and bool((total <= 0).any()):
        raise ValueError("no noise is added between the two ends given, so they determine nothing; take s < t.")
    weight_s, weight_t = variance_ut * ratio_su / total, variance_su * ratio_ut / total
    mean = spread(weight_s, x_s) * x_s + spread(weight_t, x_t) * x_t
    return mean, spread(root(variance_su * variance_ut / total), x_s)


def derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Elementwise derivative of a function of time, by forward-mode differentiation."""
    if torch.compiler.is_compiling():
        return torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]
    with _ONE_AT_A_TIME:
        return torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]
