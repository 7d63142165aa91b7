"""Decreasing times for the solvers: (steps + 1,), float64, from T down to t_min."""

from __future__ import annotations

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

        y_0 = x_T        y_i = a_i x_T + Σ_{j<i} w_ij D_j        i = 1 … n

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
        steps: of the solver. The sampler's own number is that of the score evaluations they take.
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
