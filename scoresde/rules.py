"""The rules behind :mod:`scoresde.grids`, which has all of them and those that are adapted to a score.

A rule makes decreasing times from an SDE and a number of steps, (steps + 1,), float64, from T down to t_min::

    rules.karras(sde, steps=20)

Where α(T) = 0 every rule but :func:`uniform` steps as from σ/α = 1000 (T = 0.999 of rectified flow), its first time
still T; :func:`spectral` as from 1000 scales of the data, or 30 times the largest deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from scoresde import checks
from scoresde.curve import LossCurve
from scoresde.sde import SDE, Time, has_signal
from scoresde.spectrum import Spectrum

Rule = Callable[..., Tensor]
"""(sde, steps) -> times, as the functions here, which also take t_start=... ."""


def between(knots: Sequence[int], rows: Sequence[Sequence[float]], steps: int) -> tuple[float, ...]:
    """A row for a number of steps: linear in its logarithm between those known, constant beyond the first and last."""
    place = [math.log(n) for n in knots]
    return tuple(float(np.interp(math.log(steps), place, column)) for column in zip(*rows, strict=True))


MOST = 1000.0
"""σ/α from which a run that starts without signal steps, after its first time."""
FLOOR = 0.002
"""σ/α, in units of the data's scale, below which no steps are spent."""


MOST_STEPS = 10_000_000
"""Of one grid: more would fill the memory before anything is drawn."""


def _ends(sde: SDE, steps: int, t_start: Time | None, t_end: Time | None) -> tuple[int, Tensor, Tensor]:
    if not isinstance(sde, SDE):
        raise TypeError(f"sde must be an SDE, got {checks.got(sde)}.")
    steps = checks.count(steps, name="steps", most=MOST_STEPS)
    start = checks.time(sde.T if t_start is None else t_start, sde.t_max, name="t_start", what=type(sde).__name__)
    end = checks.time(sde.t_min if t_end is None else t_end, sde.t_max, name="t_end", what=type(sde).__name__)
    if start.ndim or end.ndim:
        shapes = f"{tuple(start.shape)} and {tuple(end.shape)}"
        raise ValueError(f"t_start and t_end must be single times, got shapes {shapes}.")
    if not bool(end < start):
        raise ValueError(f"a grid runs backwards in time: t_end < t_start is needed, got {end:g} and {start:g}.")
    return steps, start, end


def _pinned(times: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Exact ends: a map to log-SNR and back moves them by a rounding."""
    return torch.cat([start.reshape(1), times[1:-1], end.reshape(1)])


def uniform(sde: SDE, steps: int, *, t_start: Time | None = None, t_end: Time | None = None) -> Tensor:
    """Equal steps in t.

    Args:
        sde: its T and t_min are the default ends.
        steps: number of steps; the grid has one time more.
        t_start: first time, default ``sde.T``.
        t_end: last time, default ``sde.t_min``.

    Raises:
        ValueError: steps < 1, or ends that are not 0 <= t_end < t_start <= t_max.
    """
    steps, start, end = _ends(sde, steps, t_start, t_end)
    return _pinned(start + (end - start) * torch.linspace(0, 1, steps + 1, dtype=torch.float64), start, end)


def log_snr(sde: SDE, steps: int, *, t_start: Time | None = None, t_end: Time | None = None) -> Tensor:
    """Equal steps in log-SNR (Lu et al. 2022, arXiv:2206.00927, section 3.3). Arguments as in :func:`uniform`.

    Raises:
        ValueError: also where the log-SNR at t_end is infinite (σ = 0).
    """
    steps, start, end = _ends(sde, steps, t_start, t_end)
    first, last = _first_level(sde, start, end), sde.log_snr(end)
    _noise_left(last, end)
    return _pinned(
        sde.t_of_log_snr(first + (last - first) * torch.linspace(0, 1, steps + 1, dtype=torch.float64)), start, end
    )


def karras(sde: SDE, steps: int, *, rho: float = 7.0, t_start: Time | None = None, t_end: Time | None = None) -> Tensor:
    """Equal steps in (σ/α)^{1/ρ} (Karras et al. 2022, arXiv:2206.00364, eq. 5). Arguments as in :func:`uniform`.

    Args:
        rho: 1 is uniform in σ/α; larger values take shorter steps near the data.
    """
    rho = checks.positive(rho, name="rho")
    steps, start, end = _ends(sde, steps, t_start, t_end)
    first, last = ((-0.5 / rho * level).exp() for level in (_first_level(sde, start, end), sde.log_snr(end)))
    root = first + (last - first) * torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    # only inside: at σ = 0 the last root is 0, whose log-SNR is infinite
    inside = sde.t_of_log_snr(-2 * rho * root[1:-1].log())
    return torch.cat([start.reshape(1), inside, end.reshape(1)])


_MESH = 4000  # points at which the density of spectral steps is summed

# The density of spectral steps for n of them: fitted once, see docs/default.md.
_BOTTOM, _BOTTOM_BY_STEPS = 0.095, 0.49
_POWER, _POWER_BY_STEPS = 0.348, -0.496
_REST = 0.0546


def spectral(
    sde: SDE, steps: int, *, spectrum: Spectrum | None = None, t_start: Time | None = None, t_end: Time | None = None
) -> Tensor:
    r"""Steps as long as E[x_0 | x_t] allows, for data of many scales; made for :class:`~scoresde.SpectralMultistep`.

    With σ̃ = σ/α, where the variance of Gaussian data is spread evenly over log λ from l to L, λ the variance along a
    direction, D = E[x_0 | x_t] moves at the rate ‖dD/d log σ̃‖² ∝ r² = (1 + l/σ̃²)⁻² - (1 + L/σ̃²)⁻². The density of
    steps in log σ̃ is::

        r^p + ε max r^p

    L is the spectrum's largest variance; l grows and p falls with the number of steps, by which they become more equal.
    It is summed down to σ̃ = 0.002 scales; to any lower t_end, also to σ = 0, the last step leads from the time before.
    Arguments as in :func:`uniform`, and

    Args:
        spectrum: deviations of the data; by default those of a single number of deviation 1.
    """
    data = Spectrum(1.0, 1.0) if spectrum is None else checks.instance(spectrum, Spectrum, name="spectrum")
    bottom, top = spectral_range(data)
    return by_density(
        sde,
        steps,
        lambda ratio: spectral_density(ratio, steps, data),
        bottom=bottom,
        top=top,
        t_start=t_start,
        t_end=t_end,
    )


def by_density(
    sde: SDE,
    steps: int,
    density: Callable[[Tensor], Tensor],
    *,
    bottom: float = FLOOR,
    top: float = MOST,
    t_start: Time | None = None,
    t_end: Time | None = None,
) -> Tensor:
    """Steps of a density of one's own: so many per unit of log σ/α. Arguments as in :func:`uniform`, and

    Args:
        density: of σ/α (n,), decreasing, positive and up to a factor.
        bottom: σ/α below which no steps are spent; to any lower t_end, also to σ = 0, leads the last step.
        top: σ/α from which a run that starts without signal steps, after its first time.

    Raises:
        TypeError: a density that is not of numbers.
        ValueError: also a density that is not positive.
    """
    checks.function(density, name="density", what="of σ/α (n,)")
    bottom, top = checks.positive(bottom, name="bottom"), checks.positive(top, name="top")
    steps, start, end = _ends(sde, steps, t_start, t_end)
    first = -0.5 * _first_level(sde, start, end, top)
    floor = torch.minimum(torch.tensor(math.log(bottom), dtype=torch.float64), first - 1)
    noisy = bool(sde.sigma(end) > 0)  # the derivative of an infinite level would be none
    last = torch.maximum(-0.5 * sde.log_snr(end), floor) if noisy else floor
    u = first + (last - first) * torch.linspace(0, 1, _MESH + 1, dtype=torch.float64)
    dense = checks.real(density(u.exp()), name="a density")
    if dense.shape != u.shape or not bool((dense.isfinite() & (dense > 0)).all()):
        raise ValueError(f"a density of steps is positive and finite for each of the {len(u)} values of σ/α.")
    place = torch.cat([torch.zeros(1, dtype=torch.float64), (dense[1:] + dense[:-1]).cumsum(0)])
    target = place[-1] * torch.linspace(0, 1, steps + 1, dtype=torch.float64)[1:-1]
    cell = torch.searchsorted(place.detach(), target.detach()).clamp(1, _MESH)
    part = (target - place[cell - 1]) / (place[cell] - place[cell - 1])
    inside = u[cell - 1] + part * (u[cell] - u[cell - 1])
    return torch.cat([start.reshape(1), sde.t_of_log_snr(-2 * inside), end.reshape(1)])


_WIDTH = 0.5  # of log σ/α, over which a measured loss is smoothed before its slope is taken


def by_loss(
    sde: SDE,
    steps: int,
    *,
    curve: LossCurve,
    power: float = 0.25,
    rest: float = 0.05,
    t_start: Time | None = None,
    t_end: Time | None = None,
) -> Tensor:
    r"""Steps as long as a network's own loss at each noise level allows, as training measured it.

    With σ̃ = σ/α, D = E[x_0 | x_t] and m = E|x_0 - D|², the slope of m in log σ̃ tells how much D moves with x::

        r² = dm/d log σ̃ = 2 E tr Cov[x_0 | x_t]² / σ̃² = 2 σ̃² E |∂D/∂x|²

    (Guo et al. 2011, arXiv:1004.3332, and Tweedie's formula). The density of steps in log σ̃ is (r²/max r²)^p + ε, of
    the curve's losses smoothed by a Gaussian of width 0.5; beyond its levels ε alone. Arguments as in :func:`uniform`,
    and

    Args:
        curve: the losses, such as ``model.loss_curve``, of a score model. Of one that was trained with data and noise
            coupled r² is not this, and the steps are no more than plausible.
        power: p.
        rest: ε.

    Raises:
        TypeError, ValueError: also no curve, or one of cross-entropies.
    """
    curve = checks.instance(curve, LossCurve, name="curve", hint="train(..., held_out=0.05) measures model.loss_curve.")
    power, rest = checks.not_negative(power, name="power"), checks.positive(rest, name="rest")
    levels = torch.tensor(curve.levels, dtype=torch.float64)
    errors = curve.x0_error(levels)
    scale = float(curve.sigma_data or 1.0)

    def slopes(level: Tensor) -> Tensor:
        # of the smoothed error, by the derivative of the smoothing kernel
        away = (level[:, None] - levels) / _WIDTH
        kernel = torch.softmax(-0.5 * away**2, dim=1)
        mean = (kernel * errors).sum(1, keepdim=True)
        return -(kernel * away * (errors - mean)).sum(1) / _WIDTH

    most = slopes(levels).max()
    if len(levels) < 2 or not bool(most > 0):
        raise ValueError("curve must tell of errors that grow with the noise; these do at none of its levels.")

    def density(ratio: Tensor) -> Tensor:
        level = ratio.log()
        inside = (level >= levels[0]) & (level <= levels[-1])
        slope = (slopes(level.clamp(levels[0], levels[-1])) / most).clamp(0, 1)
        return torch.where(inside, slope, 0.0) ** power + rest

    return by_density(sde, steps, density, bottom=FLOOR * scale, top=MOST * scale, t_start=t_start, t_end=t_end)


def spectral_range(spectrum: Spectrum) -> tuple[float, float]:
    """σ/α below which :func:`spectral` steps are not spent, and from which they are where there is no signal."""
    # from where the largest deviation is a thirtieth of the noise at least
    return FLOOR * spectrum.scale, MOST * max(spectrum.scale, 0.03 * spectrum.largest)


def spectral_density(ratio: Tensor, steps: int, spectrum: Spectrum) -> Tensor:
    """Of so many :func:`spectral` steps at σ/α = ``ratio``, per unit of its logarithm and up to a factor."""
    many = max(4, steps - 1) / 10
    high = (spectrum.largest / spectrum.scale) ** 2
    low = min(0.5, _BOTTOM * many**_BOTTOM_BY_STEPS) ** 2
    power = _POWER * many**_POWER_BY_STEPS
    inverse = (ratio / spectrum.scale) ** -2
    rate = ((1 + low * inverse) ** -2 - (1 + high * inverse) ** -2).clamp_min(0) ** (power / 2)
    # where its derivative in 1/σ̃² is 0
    root = (high / low) ** (1 / 3)
    at = (root - 1) / (high - root * low)
    most = ((1 + low * at) ** -2 - (1 + high * at) ** -2) ** (power / 2)
    return rate + _REST * most


def _first_level(sde: SDE, start: Tensor, end: Tensor, top: float = MOST) -> Tensor:
    """The log-SNR at the first time; where α = 0 there that of σ/α = ``top``, or ten times that at the last time."""
    if has_signal(sde.alpha(start), sde.sigma(start)):
        return sde.log_snr(start)
    most = torch.full_like(start, -2 * math.log(top))
    return torch.minimum(most, sde.log_snr(end) - 2 * math.log(10.0))


def _noise_left(log_snr: Tensor, t: Tensor) -> None:
    if not bool(log_snr.isfinite()):
        raise ValueError(
            f"the log-SNR is infinite at t_end = {t:g}, so equal steps in it do not exist; end at t_min > 0, and ask "
            "solve(..., denoise=True) for the last step to the data."
        )
