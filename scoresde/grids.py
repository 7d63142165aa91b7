"""Decreasing times for the solvers: (steps + 1,), float64, from T down to t_min."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde import checks
from scoresde.sde import SDE, Time

if TYPE_CHECKING:  # fitting stands above the solvers, which stand above grids
    from scoresde.fitting import Iteration
    from scoresde.reverse import Reverse
    from scoresde.solvers import Solver
    from scoresde.solvers.fitted import Fitted


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
    _signal_left(sde, start)
    first, last = sde.log_snr(start), sde.log_snr(end)
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
    _signal_left(sde, start)
    first, last = ((-0.5 / rho * sde.log_snr(t)).exp() for t in (start, end))
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
    r"""Steps where the denoiser varies, long ones at both ends; made for :class:`~scoresde.VelocityMultistep`.

    With σ̃ = σ/α, equal steps in::

        ψ(σ̃) = (2/a) atan((σ̃/c)^a) + ε log σ̃

    the integral of the density sech(a log(σ̃/c)) + ε of steps in log σ̃. a, c and ε depend on the number of steps alone::

        steps <= 21, n = max(4, steps - 1):   a = 1.021 e^{-2.25/n}   c = 0.756 e^{2.26/n}   ε = 0.130 e^{-1.59/n}
        more,        n = steps:               a = 0.968 e^{-0.33/n}   c = 0.711 e^{1.10/n}   ε = 0.0699 e^{2.29/n}

    so that the grid depends on the SDE through its range of σ̃ only. a = 1, ε = 0 would be the angle of the cosine
    schedule. Steps end at σ̃ = 0.002 sigma_data, from where one step leads to any lower t_end, also to σ = 0.
    Arguments as in :func:`uniform`, and

    Args:
        sigma_data: scale of the data, per coordinate; 0.5 to 2 times the truth makes little difference.
    """
    checks.positive(sigma_data, name="sigma_data")
    start, end = _ends(sde, steps, t_start, t_end)
    _signal_left(sde, start)
    scale = math.log(checks.number(sigma_data))
    first, last = (-0.5 * sde.log_snr(t) - scale for t in (start, end))  # log of σ̃ over the scale
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


def _signal_left(sde: SDE, t: Tensor) -> None:
    if not bool(sde.alpha(t) > 0):
        raise ValueError(f"α = 0 at t_start = {t:g}, where σ/α is infinite; start at T = {sde.T:g} at the latest.")


def _noise_left(log_snr: Tensor, t: Tensor) -> None:
    if not bool(log_snr.isfinite()):
        raise ValueError(
            f"the log-SNR is infinite at t_end = {t:g}, so equal steps in it do not exist; end at t_min > 0, and ask "
            "solve(..., denoise=True) for the last step to the data."
        )


def fit(
    process: Reverse,
    solver: Solver | Sequence[Solver] | None = None,
    steps: int = 8,
    *,
    shape: tuple[int, ...] | None = None,
    starts: Tensor | None = None,
    batch: int = 250,
    seed: int = 0,
    iterations: int = 300,
    budget: float = 60.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    callback: Callable[[Iteration], None] | None = None,
) -> Fitted:
    r"""A sampler for one process: the times at which the score is asked and all coefficients, fitted to exact ends.

    The end y_n of n evaluations D_j = E[x_0 | x_{τ_j} = y_j] of combinations of what is known so far::

        y_i = a_i x_T + Σ_{j<i} w_ij D_j        i = 0 … n

    is brought close to the end of the probability-flow ODE by a damped Gauss-Newton method on a robust loss, starting
    at the fixed method that does best on the trajectories: each of ``solver`` on each of the rules for a grid. The
    end points come from a fifth-order method with up to 1024 steps, halved until they stand still. A part of the
    trajectories is held out: where the fit is no better there than the best fixed method, that method is what is
    returned, and ``.report`` says so.

    The family of methods, and fitting it to trajectories (by Adam, for velocities): Shaul et al. 2024
    (arXiv:2403.01329), eq. 10. The damping: Marquardt 1963 (doi:10.1137/0111030).

    Args:
        process: η = 0; its score may be a network, guided or bound to conditions. Its parameters are left alone.
        solver: where to start: linear methods with fixed steps; default several of :class:`~scoresde.Multistep`.
        steps: n, the score evaluations of the sampler. Solvers start it with the steps of their own that take so many.
        shape: (N, *event), how many starts to draw from the prior: one to two thousand.
        starts: (N, *event), or the states at T themselves.
        batch: the score is always called with so many samples, the first ones first: the size that bound conditions
            have. N is a multiple of it. 3/5 of the batches are fitted to, about 1/7 say when to stop, the rest judges.
        seed: of the starts, and of the order in which batches are taken.
        iterations: at most so many.
        budget: at most so many seconds of them; end points and fixed methods come on top.
        dtype: of the starts drawn.
        device: of the starts drawn; default that of the score's parameters.
        callback: called after each iteration that moved.

    Returns:
        A :class:`~scoresde.solvers.fitted.Fitted`: ``sample(..., solver=fitted)``, ``fitted.save(path)``.

    Raises:
        TypeError, ValueError: η > 0; a method that is not linear in the score; numbers that do not fit; a score that
            answers differently when asked twice.
    """
    from scoresde.fitting import fit as fit_

    return fit_(
        process,
        solver,
        steps,
        shape=shape,
        starts=starts,
        batch=batch,
        seed=seed,
        iterations=iterations,
        budget=budget,
        dtype=dtype,
        device=device,
        callback=callback,
    )
