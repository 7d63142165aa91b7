"""Decreasing times for the solvers: (steps + 1,), float64, from T down to t_min.

    grid = grids.karras(sde, steps=20)
    sample(score, shape, grid=grids.uniform, steps=50)      # a rule, made for the score's SDE

Where α(T) = 0 every rule but :func:`uniform` steps as from σ/α = 1000 (T = 0.999 of rectified flow), its first time
still T; :func:`balanced` as from 1000 sigma_data.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde import checks
from scoresde.sde import SDE, Time, has_signal

Rule = Callable[..., Tensor]
"""(sde, steps) -> times, as the functions here, which also take t_start=... ."""

FEW = 21
"""Steps up to which :func:`balanced` and the solver made for it follow their rule for few evaluations."""


def _ends(sde: SDE, steps: int, t_start: Time | None, t_end: Time | None) -> tuple[Tensor, Tensor]:
    checks.count(steps, name="steps")
    start = checks.time(sde.T if t_start is None else t_start, sde.t_max, name="t_start", what=type(sde).__name__)
    end = checks.time(sde.t_min if t_end is None else t_end, sde.t_max, name="t_end", what=type(sde).__name__)
    if start.ndim or end.ndim:
        raise ValueError(f"t_start and t_end are single times, got shapes {tuple(start.shape)} and {tuple(end.shape)}.")
    if not bool(end < start):
        raise ValueError(f"a grid runs backwards in time: t_end < t_start is needed, got {end:g} and {start:g}.")
    return start, end


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
    start, end = _ends(sde, steps, t_start, t_end)
    return _pinned(start + (end - start) * torch.linspace(0, 1, steps + 1, dtype=torch.float64), start, end)


def log_snr(sde: SDE, steps: int, *, t_start: Time | None = None, t_end: Time | None = None) -> Tensor:
    """Equal steps in log-SNR (Lu et al. 2022, arXiv:2206.00927, section 3.3). Arguments as in :func:`uniform`.

    Raises:
        ValueError: also where the log-SNR at t_end is infinite (σ = 0).
    """
    start, end = _ends(sde, steps, t_start, t_end)
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
    checks.positive(rho, name="rho")
    start, end = _ends(sde, steps, t_start, t_end)
    first, last = ((-0.5 / rho * level).exp() for level in (_first_level(sde, start, end), sde.log_snr(end)))
    root = first + (last - first) * torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    # only inside: at σ = 0 the last root is 0, whose log-SNR is infinite
    inside = sde.t_of_log_snr(-2 * rho * root[1:-1].log())
    return torch.cat([start.reshape(1), inside, end.reshape(1)])


_FLOOR = 0.002  # σ/α, in units of the data's scale, below which no steps are spent


def _density(steps: int) -> tuple[float, float, float]:
    """a, log c and ε of balanced steps, fitted to a family of mixtures: see docs/benchmarks.md."""
    if steps <= FEW:
        n = max(4, steps - 1)
        return 1.021 * math.exp(-2.25 / n), math.log(0.756) + 2.26 / n, 0.130 * math.exp(-1.59 / n)
    return 0.968 * math.exp(-0.33 / steps), math.log(0.711) + 1.10 / steps, 0.0699 * math.exp(2.29 / steps)


def balanced(
    sde: SDE, steps: int, *, sigma_data: float = 1.0, t_start: Time | None = None, t_end: Time | None = None
) -> Tensor:
    r"""Steps where the denoiser varies, long ones at both ends; made for :class:`~scoresde.VMultistep`.

    With σ̃ = σ/α, equal steps in::

        ψ(σ̃) = (2/a) atan((σ̃/c)^a) + ε log σ̃

    the integral of the density sech(a log(σ̃/c)) + ε of steps in log σ̃. a, c and ε depend on the number of steps alone,
    by one rule up to :data:`FEW` steps and another beyond,
    so that the grid depends on the SDE through its range of σ̃ only. a = 1, ε = 0 would be the angle of the cosine
    schedule. Steps end at σ̃ = 0.002 sigma_data, from where one step leads to any lower t_end, also to σ = 0.
    Arguments as in :func:`uniform`, and

    Args:
        sigma_data: scale of the data, per coordinate; 0.5 to 2 times the truth makes little difference.
    """
    checks.positive(sigma_data, name="sigma_data")
    start, end = _ends(sde, steps, t_start, t_end)
    scale = math.log(checks.number(sigma_data))
    # log of σ̃ over the scale
    first, last = (-0.5 * level - scale for level in (_first_level(sde, start, end, scale), sde.log_snr(end)))
    floor = torch.minimum(torch.tensor(math.log(_FLOOR), dtype=torch.float64), first - 1)
    last = torch.maximum(last, floor)
    a, c, rest = _density(steps)

    def place(u: Tensor) -> Tensor:
        return 2 / a * torch.atan((a * (u - c)).exp()) + rest * u

    low, high = place(last), place(first)
    target = (high + (low - high) * torch.linspace(0, 1, steps + 1, dtype=torch.float64))[1:-1]
    with torch.no_grad():
        below, above = last.expand_as(target), first.expand_as(target)
        for _ in range(60):  # halves a range of any size below the spacing of float64
            middle = (below + above) / 2
            short = place(middle) < target
            below, above = torch.where(short, middle, below), torch.where(short, above, middle)
        u = (below + above) / 2
        slope = 1 / torch.cosh(a * (u - c)) + rest
    u = u + (target - place(u)) / slope  # no move, but carries gradients
    return torch.cat([start.reshape(1), sde.t_of_log_snr(-2 * (u + scale)), end.reshape(1)])


_MOST = 1000.0  # σ/α from which a run that starts without signal steps, after its first time


def _first_level(sde: SDE, start: Tensor, end: Tensor, log_scale: float = 0.0) -> Tensor:
    """The log-SNR at the first time; where α = 0 there that of σ/α = 1000 e^s, or ten times that at the last time."""
    if has_signal(sde.alpha(start), sde.sigma(start)):
        return sde.log_snr(start)
    most = torch.full_like(start, -2 * (math.log(_MOST) + log_scale))
    return torch.minimum(most, sde.log_snr(end) - 2 * math.log(10.0))


def _noise_left(log_snr: Tensor, t: Tensor) -> None:
    if not bool(log_snr.isfinite()):
        raise ValueError(
            f"the log-SNR is infinite at t_end = {t:g}, so equal steps in it do not exist; end at t_min > 0, and ask "
            "solve(..., denoise=True) for the last step to the data."
        )
